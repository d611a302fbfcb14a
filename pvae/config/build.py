"""From a configuration to a VAE, to the labels and the check of its data, and to an ELBO for `pyro.infer.SVI`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import constraints

from pvae.config.config import OPTIONS, Config
from pvae.config.refusals import needs_separate_draws_text, refuse
from pvae.core.batch import Batch
from pvae.core.errors import InputError, check_name, listed
from pvae.core.options import call_with, options_of
from pvae.core.random_state import seeded
from pvae.data.dataset import Dataset, few_labels
from pvae.data.preparation import Preparation
from pvae.elbos.base import PerDatumELBO
from pvae.models.features import fit_to
from pvae.models.hierarchy import FirstLayer, Inference
from pvae.models.labels import EncoderJoin, LabelPosterior, LabelPrior, LikelihoodGivenLabels, PosteriorGivenLabels
from pvae.models.networks import Sizes
from pvae.vae import VAE


def build_vae(config: Config, datum_shape: Sequence[int], num_labels: int = 0) -> VAE:
    """Return the untrained VAE that a configuration describes; its weights are drawn from torch's generator.

    Each class is given those of the options, and of the sizes that follow from them, that it has arguments for.

    Args:
        config: the system.
        datum_shape: of the data, (C, H, W) of images; `config.pad` is added to it.
        num_labels: number of classes or attributes of the data, for `config.condition` and `config.labels`.

    Returns:
        The VAE, on the CPU, in float32 whatever torch's default dtype is. A Bernoulli likelihood is the
        pseudo-Bernoulli if `config.binarize` leaves the pixels grey.

    Raises:
        InputError: a size is below 1, or the convolutions are given no images (C, H, W) or cannot halve them.
    """
    refuse(config, datum_shape=tuple(datum_shape), num_labels=num_labels)
    if not config.takes_labels:
        num_labels = 0
    known = {name: getattr(config, name) for name in OPTIONS}
    known |= {
        "datum_shape": config.padded(tuple(datum_shape)),
        "has_missing": config.missing,
        "symmetric": config.is_symmetric,
        "num_context": config.hidden[-1],
        "sizes": config.latent_dims,
        "posterior": config.posterior_class,
        "batch_norm": config.network_class.has_batch_norm,
    }
    p_x = config.likelihood_class
    if config.is_pseudo and p_x.grey is not None:
        p_x = p_x.grey
    seen, shape = call_with(p_x.features, known)
    num_outputs = call_with(config.posterior_class.num_outputs, known)
    latent_dim = config.latent_dim
    layers = None
    if config.inference_class is not None:
        layers = call_with(config.inference_class, known)
        num_outputs = layers.num_outputs(num_outputs)
        if layers.decodes_all:
            latent_dim = sum(config.latent_dims)
    sizes = Sizes(shape, num_outputs, num_labels + latent_dim, call_with(p_x.decoded_shape, known), num_labels)
    if config.initialization == "exact":
        sizes = sizes._replace(has_linear_path=True)
    network = call_with(config.network_class, known)
    encoder, decoder = network.pair(sizes)
    if not num_labels:
        for module in reversed(seen):
            encoder = nn.Sequential(module, encoder)
    posterior, prior = _of_layers(config, known | {"encoder": encoder}, layers)
    if layers is not None and not layers.decodes_all:
        decoder = nn.Sequential(FirstLayer(config.latent_dim), decoder)
    likelihood: nn.Module = call_with(p_x, {**known, "decoder": decoder})
    if num_labels:
        join = EncoderJoin(shape, num_labels, network.is_conv)
        posterior = PosteriorGivenLabels(nn.Sequential(*seen), join, posterior)
    if config.condition:
        likelihood = LikelihoodGivenLabels(likelihood, num_labels)
    elif config.labels:
        label_encoder, _ = network.pair(Sizes(shape, num_labels, config.latent_dim, sizes.decoded_shape))
        posterior = LabelPosterior(nn.Sequential(*seen, label_encoder), posterior, config.latent_dim)
        prior = LabelPrior(num_labels, prior, config.latent_dim)
    return VAE(p_z=prior, q_z=posterior, p_x=likelihood).float()


def _of_layers(config: Config, known: Mapping[str, Any], layers: Inference | None) -> tuple[Any, Any]:
    """Return posterior and prior of the stochastic layers, or of the one layer."""
    posterior = call_with(config.posterior_class, known)
    if layers is None:
        return posterior, call_with(config.prior_class, {**known, "posterior": posterior})
    up = layers.networks_up()
    down = layers.networks_down()
    posterior = layers.posterior(known["encoder"], posterior, up, down)
    top = {"latent_dim": config.latent_dims[-1], "posterior": getattr(posterior, "top", None)}
    return posterior, layers.prior(call_with(config.prior_class, {**known, **top}), down)


def vae_for(config: Config, data: Dataset, x: Tensor) -> VAE:
    """Return the VAE that a configuration describes, at random weights, with units of the training data x, (N, *D)."""
    vae = build_vae(config, data.datum_shape, len(data.label_names)).to(x.device)
    if config.initialization == "burda":
        start_like_burda(vae, x)
    if not data.is_images:
        fit_to(vae, x)
    return vae


def labels_for(config: Config, data: Dataset, vae: VAE, note: Callable[[str], object]) -> dict[str, Tensor]:
    """Return the labels that model and guide take, by split; {} if they take none."""
    if not vae.takes_labels:
        if config.takes_labels:
            raise InputError("no module of your VAE takes labels: leave --labels and --condition out")
        return {}
    if config.labels:
        few = few_labels(data, config.labels, config.seed)
        number = int((few >= 0).sum())
        if number < config.labels:
            note(f"labels of {number:,} training data are known and used")
        return {"train": few}
    lacking = data.splits.keys() - data.labels.keys()
    if lacking:
        raise InputError(f"the VAE needs labels, and the {listed(sorted(lacking))} data of {data.name} have none")
    if any(bool((labels < 0).any()) for labels in data.labels.values() if labels.dtype == torch.int64):
        advice = "leave these data out, or give --labels N, which uses all x and N labels"
        raise InputError(f"some labels of {data.name} are not known, and --condition needs all: {advice}")
    return dict(data.labels)


def check_of_data(vae: VAE, data: Batch, has_missing: bool) -> Callable[[Tensor], Tensor] | None:
    """Return what checks x: the likelihood, or of your own VAE the support of p(x | z).

    It is None if that support depends on z, or cannot be found.

    Args:
        vae: the VAE.
        data: some data.
        has_missing: NaN is a value that is missing.
    """
    p_x: Any = vae.p_x
    if hasattr(p_x, "check"):
        check: Callable[[Tensor], Tensor] = p_x.check
        return check
    (few,) = data.rows(slice(1)).split(1)
    try:
        with torch.no_grad(), seeded(0, few.x.device):
            support: Any = vae.eval().likelihood(vae.posterior(*few).sample(), few.y).support
            support.check(few.x)
    except Exception:  # of any type: it is the user's code, of which the first loss tells
        return None
    base = support
    while isinstance(base, constraints.independent):
        base = base.base_constraint
    if any(isinstance(bound, Tensor) for bound in vars(base).values()):
        return None

    def check_support(x: Tensor) -> Tensor:
        is_inside = support.check(x)
        if has_missing:
            is_inside = is_inside | x.isnan().flatten(1).any(1)
        if not is_inside.all():
            raise InputError(f"x must be in the support of p(x | z), {base}")
        return x

    return check_support


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
    fitting = {name: tensor for name, tensor in weights.items() if name in own and own[name].shape == tensor.shape}
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


def build_elbo(name: str, num_particles: int = 1, **options: float) -> PerDatumELBO:
    """Return the ELBO of that name, whose loss is a mean over the batch, where that of Pyro's own ELBOs is a sum.

    Args:
        name: one of `PerDatumELBO.members`.
        num_particles: K, the number of draws of z for each datum.
        options: arguments of its class: `beta`, `free_bits`, `alpha`, `mix`, `temperature`, `groups` or `label_weight`.

    Raises:
        InputError: the name is unknown, or an option is out of range or is none of this ELBO.
    """
    kind = PerDatumELBO.members[check_name("ELBO", name, PerDatumELBO.members)]
    for option in options:
        check_name(f"option of the ELBO {name}", option, options_of(kind))
    config = Config(elbo=name, particles=num_particles, labels=int(kind.sums_over_labels), **options)
    refuse(config, has_elbo=True, has_own_vae=True)  # of which the configuration says nothing
    return kind(num_particles, **options)


def elbo_of(
    config: Config, y: Tensor | None = None, num_data: int = 0, has_own_vae: bool = False, vae: VAE | None = None
) -> PerDatumELBO:
    """Return the ELBO of a configuration.

    Args:
        config: the configuration.
        y: with `config.labels` the labels of the training data, -1 where one is not known.
        num_data: the number of training data, for an ELBO that needs it.
        has_own_vae: the VAE was built in Python, so that what `config` says of it is not used.
        vae: the VAE, if it was built, whose modules must go with the ELBO.

    Raises:
        InputError: an option, or the VAE that the configuration describes, does not go with the ELBO.
    """
    refuse(config, has_elbo=True, has_own_vae=has_own_vae)
    known = config.used() | {"num_particles": config.particles, "num_data": num_data}
    if config.warm_up:
        known["beta"] = 0.0  # of the first step
    if config.labels and y is not None:
        known["label_weight"] = config.label_weight / (y >= 0).float().mean().item()
    elbo: PerDatumELBO = call_with(config.elbo_class, known)
    if elbo.needs_separate_draws and vae is not None:
        modules = [*vae.p_z.modules(), *vae.p_x.modules()]
        if any(isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)) for module in modules):
            raise InputError(needs_separate_draws_text(config.elbo))
    return elbo


def loss_text(config: Config) -> str:
    """Return a phrase for the loss that a training of the configuration minimises."""
    if config.is_autoencoder:
        return "the distortion"
    if "beta" not in config.elbo_class.takes:
        return f"the loss of --elbo {config.elbo} with {config.particles} draws of z for each image"
    text = f"distortion + {config.beta:g} x rate (--elbo {config.elbo})"
    if config.warm_up:
        text += f", with a warm-up of the weight of the rate from 0 over {config.warm_up} epochs"
    if config.free_bits:
        text += f", where the rate of each latent counts as at least {config.free_bits:g} nats"
    return text


def preparation_of(config: Config, has_own_vae: bool = False) -> Preparation:
    """Return how data become the x of a VAE; one that was built in Python takes float32."""
    is_exact = not (has_own_vae or config.likelihood_class.is_of_images)
    return Preparation(config.binarize, config.pad, config.pixels, is_exact)
