"""From a configuration to a VAE, and to an ELBO for `pyro.infer.SVI`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pkgutil import resolve_name
from typing import Any

import torch
from torch import Tensor, nn

from pvae.config.config import OPTIONS, Config
from pvae.config.presets import as_option
from pvae.config.refusals import Case, refuse
from pvae.core.errors import InputError, check_name, listed
from pvae.data.preparation import Preparation
from pvae.elbos.base import PerDatumELBO
from pvae.elbos.registry import ELBOS
from pvae.models.features import ColumnFeatures, CountUnits, Standardize, WithMask
from pvae.models.hierarchy import BottomUpPosterior, FirstLayer, HierarchyPrior, LadderPosterior, TopDownPosterior
from pvae.models.labels import EncoderJoin, LabelPosterior, LabelPrior, LikelihoodGivenLabels, PosteriorGivenLabels
from pvae.models.networks import FlatBatch, WithPaths, conv_decoder, conv_encoder, groupnorm_decoder, mlp
from pvae.models.posteriors import bits, bounded_normal
from pvae.vae import VAE

__all__ = [
    "ELBO_CLASSES",
    "build_elbo",
    "build_vae",
    "elbo_of",
    "loss_text",
    "meta_state_dict",
    "preparation_of",
    "sizes_of",
    "start_from",
    "start_like_burda",
]

ELBO_CLASSES: dict[str, type[PerDatumELBO]] = {name: resolve_name(where) for name, where in ELBOS.items()}


def build_vae(config: Config, datum_shape: Sequence[int], num_labels: int = 0) -> VAE:
    """Return the untrained VAE that a configuration describes; its weights are drawn from torch's generator.

    Args:
        config: the system; the rows of its families in `pvae.config.families` name the classes.
        datum_shape: of the data, (C, H, W) of images; `config.pad` is added to it.
        num_labels: number of classes or attributes of the data, for `config.condition` and `config.labels`.

    Returns:
        The VAE, on the CPU, in float32 whatever torch's default dtype is. A Bernoulli likelihood is the
        pseudo-Bernoulli if `config.binarize` leaves the pixels grey.

    Raises:
        InputError: a size is below 1, or the convolutions are given no images (C, H, W) or cannot halve them.
    """
    refuse(Case(config=config, datum_shape=tuple(datum_shape), num_labels=num_labels))
    datum_shape = config.padded(tuple(datum_shape))
    num_labels *= config.takes_labels
    seen, shape = _encoder_input(config, datum_shape)
    encoder, decoder = _networks(config, shape, datum_shape, _num_outputs(config), num_labels)
    if not num_labels:
        for module in reversed(seen):
            encoder = nn.Sequential(module, encoder)
    if config.upper_latent_dims:
        prior, posterior = _hierarchy(config, encoder, datum_shape)
        if config.inference != "top-down":
            decoder = nn.Sequential(FirstLayer(config.latent_dim), decoder)
    else:
        posterior = _posterior(config, encoder)
        prior = _prior(config, posterior, datum_shape)
    family = config.likelihood_family
    likelihood: nn.Module = resolve_name(family.grey if config.is_pseudo else family.module)(
        decoder, datum_shape, has_missing=config.missing, **family.arguments(config)
    )
    if num_labels:
        join = EncoderJoin(shape, num_labels, config.is_conv)
        posterior = PosteriorGivenLabels(nn.Sequential(*seen), join, posterior)
    if config.condition:
        likelihood = LikelihoodGivenLabels(likelihood, num_labels)
    elif config.labels:
        classifier = nn.Sequential(*seen, _networks(config, shape, datum_shape, num_labels)[0])
        posterior = LabelPosterior(classifier, posterior, config.latent_dim)
        prior = LabelPrior(num_labels, prior, config.latent_dim)
    return VAE(p_z=prior, q_z=posterior, p_x=likelihood).float()


def _encoder_input(config: Config, datum_shape: tuple[int, ...]) -> tuple[list[nn.Module], tuple[int, ...]]:
    """Return the transforms of x before the encoder, and the shape of their result.

    Args:
        config: its likelihood says what the encoder sees; with `missing` it also sees which values are NaN.
        datum_shape: of x.
    """
    family = config.likelihood_family
    if family.is_of_columns:
        features = ColumnFeatures(config.column_kinds, config.missing)
        return [features], (features.num_features,)
    seen: list[nn.Module] = []
    if family.is_count:
        seen.append(CountUnits(datum_shape))
    elif family.is_real:
        seen.append(Standardize(datum_shape))
    if not config.missing:
        return seen, datum_shape
    return [*seen, WithMask(datum_shape)], (2 * datum_shape[0], *datum_shape[1:])  # the values and their mask


def _num_outputs(config: Config) -> int:
    """Return the number of outputs of the encoder: parameters of q, and the context of the layers drawn after it."""
    if not config.upper_latent_dims or config.inference == "bottom-up":
        return config.posterior_family.num_outputs(config)
    first = config.latent_dim if config.inference == "ladder" else config.latent_dims[-1]
    return 2 * first + config.hidden[-1]


def _posterior(config: Config, encoder: nn.Module) -> Any:
    family = config.posterior_family
    return resolve_name(family.module)(encoder, **family.arguments(config))


def _prior(config: Config, posterior: Any, datum_shape: Sequence[int]) -> nn.Module:
    """Return the prior of the top layer; `posterior` is the module or function that returns its posterior."""
    family = config.prior_family
    first: tuple[Any, ...] = (posterior,) * (family.support == "codes") + (config.latent_dims[-1],)
    if family.is_of_posterior:
        first = (getattr(posterior, "forward", posterior), datum_shape)
    prior: nn.Module = resolve_name(family.module)(*first, **family.arguments(config))
    return prior


def _hierarchy(config: Config, encoder: nn.Module, datum_shape: Sequence[int]) -> tuple[nn.Module, nn.Module]:
    """Return the prior and the posterior of several stochastic layers."""
    sizes, context = config.latent_dims, config.hidden[-1]

    def network(width: int, num_outputs: int, hidden: Sequence[int] = config.upper_hidden) -> nn.Module:
        batch_norm = config.network == "mlp-batchnorm"
        return mlp(width, *hidden, num_outputs, activation=config.activation, batch_norm=batch_norm)

    pairs, from_top = [*pairwise(sizes)], config.upper_hidden[::-1]
    layer, each = (bits, 1) if config.posterior_family.support == "bits" else (bounded_normal, 2)
    if config.inference == "bottom-up":
        up = [network(below, each * size) for below, size in pairs]
    elif config.inference == "ladder":
        contexts = [context] * (len(pairs) - 1) + [0]
        up = [network(context, 2 * size + more) for size, more in zip(sizes[1:], contexts)]
    else:
        up = [network(context + above, 2 * size, from_top) for size, above in pairs]
    down = [network(above, each * size, from_top) for size, above in pairs]
    if config.inference == "bottom-up":
        posterior: Any = BottomUpPosterior(_posterior(config, encoder), up, sizes, layer)
    elif config.inference == "ladder":
        posterior = LadderPosterior(encoder, up, down, sizes)
    else:
        posterior = TopDownPosterior(encoder, up, sizes)
    top = _prior(config, getattr(posterior, "top", None), datum_shape)
    return HierarchyPrior(top, down, sizes, layer), posterior


def _networks(
    config: Config, shape: tuple[int, ...], datum_shape: tuple[int, ...], num_outputs: int, num_labels: int = 0
) -> tuple[nn.Module, nn.Module]:
    """Return encoder and decoder.

    Args:
        config: the system.
        shape: of what the encoder takes; given labels, `EncoderJoin` adds them to it.
        datum_shape: the shape of x; the decoder returns one value for each of its values, or for a row of columns as
            many as their kinds need. Given labels, the decoder takes them beside z.
        num_outputs: of the encoder.
        num_labels: number of classes or attributes; 0 without labels.
    """
    kinds, each = config.column_kinds, config.likelihood_family.outputs_each
    decoded = (sum(kind.num_outputs for kind in kinds),) if kinds else (each * datum_shape[0], *datum_shape[1:])
    latent_dim = num_labels + (sum(config.latent_dims) if config.inference == "top-down" else config.latent_dim)
    batch_norm = config.has_batch_norm
    if not config.is_conv:
        hidden = () if config.network == "linear" else config.hidden
        width, num_dims = math.prod(shape) + num_labels, 1 if num_labels else len(shape)
        up = mlp(width, *hidden, num_outputs, activation=config.activation, batch_norm=batch_norm)
        widths = (latent_dim, *reversed(hidden), math.prod(decoded))
        down = mlp(*widths, activation=config.activation, batch_norm=batch_norm)
        if config.initialization == "exact":
            number = config.components * config.prior_family.is_mixture
            ends = (width, num_outputs), (latent_dim, math.prod(decoded))
            up, down = (
                nn.Sequential(WithPaths(*end, number, network if hidden else None))
                for end, network in zip(ends, (up, down))
            )
        return nn.Sequential(nn.Flatten(-num_dims), *up), nn.Sequential(*down, nn.Unflatten(-1, decoded))
    shape = (shape[0] + (num_labels > 0), *shape[1:])
    norm = {"conv": "none", "conv-batchnorm": "batch", "conv-groupnorm": "group"}[config.network]
    if norm == "group":  # its decoder draws its weights first
        decoder = groupnorm_decoder(latent_dim, config.hidden, decoded)
    encoder: nn.Module = conv_encoder(shape, config.hidden, num_outputs, norm)
    if norm != "group":
        decoder = conv_decoder(latent_dim, config.hidden, decoded, norm)
    return FlatBatch(encoder, 3) if num_labels else encoder, decoder


def meta_state_dict(config: Config, datum_shape: Sequence[int], num_labels: int = 0) -> dict[str, Tensor]:
    """Return the state_dict of the VAE that `build_vae` returns, as tensors on the meta device, which hold no data.

    Args:
        config: the system.
        datum_shape: (C, H, W) of the data.
        num_labels: number of classes or attributes.
    """
    with torch.device("meta"):
        return build_vae(config, datum_shape, num_labels).state_dict()


def start_from(vae: VAE, weights: Mapping[str, Tensor], source: object) -> str:
    """Load those of the given weights and buffers whose name and shape occur in this VAE.

    Args:
        vae: changed in place.
        weights: a state_dict.
        source: where it is from, for messages.

    Returns:
        A note that says how many were taken, and names the others.

    Raises:
        InputError: none of them fits.
    """
    own = vae.state_dict()
    fitting = {name: one for name, one in weights.items() if name in own and own[name].shape == one.shape}
    if not fitting:
        raise InputError(f"no weight of {source} has a name and a shape of this VAE: give the options of that run")
    vae.load_state_dict(fitting, strict=False)
    new = [name for name in own if name not in fitting]
    rest = f"; {listed(new)} are new" if new else ""
    return f"{len(fitting)} of {len(own)} weights and buffers are those of {source}{rest}"


def start_like_burda(vae: VAE, images: Tensor) -> None:
    """Initialise as Burda et al.: Glorot-uniform weights, zero biases, the logit of the mean image as the last bias.

    This bias is logit(clip(mean of the training images, 0.001, 0.999)), pixel by pixel. Location and scale come
    from one layer here and from two layers in the code released with the paper, so the Glorot range of that layer is
    a little smaller here.

    Args:
        vae: of MLPs; changed in place.
        images: training images, uint8 (N, C, H, W).

    Reference:
        Burda, Grosse and Salakhutdinov, arXiv:1509.00519, section 5, and the code released with it.
    """
    for layer in vae.modules():
        if type(layer) is nn.Linear:  # and not those of a flow, which starts near the identity
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
    last = [module for module in vae.p_x.modules() if isinstance(module, nn.Linear)][-1]
    mean = images.sum(0, dtype=torch.int64).flatten().double() / (255 * len(images))
    with torch.no_grad():
        last.bias.copy_(torch.logit(mean.clamp(0.001, 0.999)))


def sizes_of(config: Config) -> str:
    """Return the options that set the sizes of the networks."""
    sizes = ("hidden", "latent_dim", "upper_latent_dims", "upper_hidden", "flow_length", "flow_hidden", "components")
    given = {name: getattr(config, name) for name in ("posterior", *sizes) if OPTIONS[name].only_with[1](config)}
    return " ".join(as_option(name, value) for name, value in given.items() if value)


def build_elbo(name: str, num_particles: int = 1, **options: float) -> PerDatumELBO:
    """Return the ELBO of that name, whose loss is a mean over the batch, where that of Pyro's own ELBOs is a sum.

    Args:
        name: one of `ELBO_CLASSES`.
        num_particles: K, the number of draws of z for each datum.
        options: those that its class takes.
            beta: weight of the rate in the loss.
            free_bits: nats per latent dimension that cost nothing.
            alpha: order of "renyi"; below 0 the objective is not a lower bound on log p(x), -inf is VR-max.
            mix: share of the ELBO in "ciwae".
            temperature: of the relaxed bits of "gumbel".
            num_groups: number of groups M of "miwae" and "piwae".
            label_weight: weight of the classifier's loss at known labels in "enumerate".

    Raises:
        InputError: the name is unknown, or an option is out of range or is none of this ELBO.
    """
    kind = ELBO_CLASSES[check_name("ELBO", name, ELBO_CLASSES)]
    elbo = kind(num_particles, **options)
    fields: dict[str, Any] = {
        "groups" if option == "num_groups" else option: value for option, value in options.items()
    }
    config = Config(elbo=name, particles=num_particles, labels=int(kind.sums_over_labels), **fields)
    refuse(Case(config=config, elbo=kind, has_own_vae=True))  # of which the configuration says nothing
    return elbo


def elbo_of(config: Config, labelled: float = 1.0) -> PerDatumELBO:
    """Return the ELBO of a configuration.

    Args:
        config: the configuration.
        labelled: the share of the training data whose labels are known, with `config.labels`.

    Raises:
        InputError: an option, or the VAE that the configuration describes, does not go with the ELBO.
    """
    kind = ELBO_CLASSES[config.elbo]
    refuse(Case(config=config, elbo=kind))
    given: dict[str, float] = {
        "beta": 0.0 if config.warm_up else config.beta,  # of the first step
        "free_bits": config.free_bits,
        "alpha": config.alpha,
        "mix": config.mix,
        "temperature": config.temperature,
        "num_groups": config.groups,
        "label_weight": config.label_weight / labelled,
    }
    return kind(config.particles, **{option: given[option] for option in kind.options})


def loss_text(config: Config) -> str:
    """Return a phrase for the loss that a training of the configuration minimises."""
    if config.is_autoencoder:
        return "the distortion"
    if "beta" not in ELBO_CLASSES[config.elbo].options:
        return f"the loss of --elbo {config.elbo} with {config.particles} draws of z for each image"
    text = f"distortion + {config.beta:g} x rate (--elbo {config.elbo})"
    if config.warm_up:
        text += f", with a warm-up of the weight of the rate from 0 over {config.warm_up} epochs"
    if config.free_bits:
        text += f", where the rate of each latent counts as at least {config.free_bits:g} nats"
    return text


def preparation_of(config: Config, has_own_vae: bool = False) -> Preparation:
    """Return how data become the x of a VAE; one that was built in Python takes float32."""
    is_exact = not (has_own_vae or config.likelihood_family.is_of_images)
    return Preparation(config.binarize, config.pad, config.pixels, is_exact)
