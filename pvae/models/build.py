"""From a configuration to a VAE."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pvae.config.config import Config
from pvae.core.errors import InputError, brief, shown
from pvae.core.memory import available_memory
from pvae.models.hierarchy import ChainPosterior, ChainPrior, FirstLayerDecoder
from pvae.models.latents import DeltaPosterior, FlatPrior, NormalPosterior, StandardNormalPrior
from pvae.models.likelihoods import (
    BernoulliLikelihood,
    ContinuousBernoulliLikelihood,
    DiscretizedLogisticLikelihood,
    LearnedNormalLikelihood,
    Likelihood,
    LinearNormalLikelihood,
    NormalLikelihood,
    OptimalNormalLikelihood,
    PseudoBernoulliLikelihood,
)
from pvae.models.networks import conv_decoder, conv_encoder, mlp, mlp_decoder, mlp_encoder
from pvae.vae import VAE

__all__ = ["build_vae", "refuse_what_does_not_fit", "start_like_burda", "unmade_state"]

_NORMALS = {
    "normal": NormalLikelihood,
    "normal-learned": LearnedNormalLikelihood,
    "normal-optimal": OptimalNormalLikelihood,
    "normal-linear": LinearNormalLikelihood,
}


def build_vae(config: Config, image_shape: Sequence[int]) -> VAE:
    """Return the untrained VAE that a configuration describes, with weights drawn from torch's generator.

    Args:
        config: the system.
        image_shape: (C, H, W) of the data; `config.pad` is added to it.

    Returns:
        The VAE, on the CPU, in float32 as pixels are, whatever torch's default is. A Bernoulli likelihood is the
        pseudo-Bernoulli if `config.binarize` leaves the pixels grey.

    Raises:
        InputError: the images are no multiple of what the convolutions halve, or the networks do not fit
            into memory.
    """
    if len(image_shape) != 3 or min(image_shape) < 1:
        raise InputError(f"image_shape must be (C, H, W), each at least 1, not {tuple(image_shape)}")
    channels, height, width = image_shape
    image_shape = (channels, height + 2 * config.pad, width + 2 * config.pad)
    try:
        encoder, decoder = _networks(config, image_shape)
    except (RuntimeError, MemoryError) as error:
        if not isinstance(error, MemoryError) and not re.search("allocate memory|overflow|too large", str(error)):
            raise
        sizes = f"--hidden {' '.join(map(str, config.hidden))} --latent-dim {config.latent_dim}"
        raise InputError(f"networks of {sizes} do not fit into memory: give smaller ones") from error
    if config.posterior == "delta":
        likelihood = _likelihood(config, decoder, image_shape)
        return VAE(p_z=FlatPrior(config.latent_dim), q_z=DeltaPosterior(encoder), p_x=likelihood).float()
    posterior = NormalPosterior(encoder, log_variance=config.posterior == "normal-log-variance")
    if config.second_latent_dim:
        return _two_layers(config, posterior, decoder, image_shape).float()
    likelihood = _likelihood(config, decoder, image_shape)
    return VAE(p_z=StandardNormalPrior(config.latent_dim), q_z=posterior, p_x=likelihood).float()


def unmade_state(config: Config, image_shape: Sequence[int]) -> dict[str, Tensor]:
    """Return the parameters and buffers of what `build_vae` gives, on no device: names, shapes and dtypes alone.

    Args:
        config: the system.
        image_shape: (C, H, W) of the data.

    Raises:
        InputError: there can be no such networks.
    """
    try:
        with torch.device("meta"):
            return build_vae(config, image_shape).state_dict()
    except (RuntimeError, OverflowError, TypeError) as error:  # torch's words for sizes that are too large
        raise InputError(f"the configuration describes networks that cannot be ({brief(error)})") from None


def refuse_what_does_not_fit(config: Config, image_shape: tuple[int, ...]) -> None:
    """Refuse networks before they are made where the system would end the process that makes them.

    Raises:
        InputError: weights, gradients and Adam's two moments are more than there is memory.
    """
    needed = 4 * sum(tensor.nbytes for tensor in unmade_state(config, image_shape).values())
    if needed > available_memory():
        sizes = f"--hidden {' '.join(map(str, config.hidden))} --latent-dim {config.latent_dim}"
        raise InputError(f"networks of {shown(sizes)[1:-1]} do not fit into memory: give smaller ones")


def start_like_burda(vae: VAE, images: Tensor) -> None:
    """Start from Glorot-uniform weights, zero biases, and a decoder that gives the mean image at z = 0.

    The last bias is logit(clip(mean of the training images, 0.001, 0.999)), pixel by pixel. Location and scale come
    from one layer here and from two in the code released with the paper, so that its Glorot range is a little smaller.

    Args:
        vae: of MLPs; changed in place.
        images: training images, uint8 (N, C, H, W).

    Reference:
        Burda, Grosse and Salakhutdinov, arXiv:1509.00519, section 5, and the code released with it.
    """
    layers = [module for module in vae.modules() if isinstance(module, nn.Linear)]
    for layer in layers:
        nn.init.xavier_uniform_(layer.weight)
        nn.init.zeros_(layer.bias)
    last = [module for module in vae.p_x.modules() if isinstance(module, nn.Linear)][-1]
    mean = images.sum(0, dtype=torch.int64).flatten().double() / (255 * len(images))
    with torch.no_grad():
        last.bias.copy_(torch.logit(mean.clamp(0.001, 0.999)))


def _two_layers(config: Config, first: NormalPosterior, decoder: nn.Module, image_shape: tuple[int, ...]) -> VAE:
    one, two, hidden = config.latent_dim, config.second_latent_dim, config.second_hidden
    up = mlp(one, *hidden, 2 * two, activation=config.activation)
    down = mlp(two, *reversed(hidden), 2 * one, activation=config.activation)
    likelihood = _likelihood(config, FirstLayerDecoder(decoder, one), image_shape)
    return VAE(p_z=ChainPrior(down, one, two), q_z=ChainPosterior(first, up, two), p_x=likelihood)


def _networks(config: Config, image_shape: tuple[int, ...]) -> tuple[nn.Module, nn.Module]:
    num_outputs = config.latent_dim * (1 if config.posterior == "delta" else 2)
    if config.network in ("mlp", "linear"):
        hidden = config.hidden if config.network == "mlp" else ()
        encoder = mlp_encoder(image_shape, hidden, num_outputs, config.activation)
        return encoder, mlp_decoder(config.latent_dim, hidden, image_shape, config.activation)
    halvings = 2 ** len(config.hidden)
    if image_shape[1] % halvings or image_shape[2] % halvings:
        raise InputError(
            f"--hidden with {len(config.hidden)} convolutions halves images that often, and "
            f"{image_shape[1]} x {image_shape[2]} cannot be: --pad or --hidden must change"
        )
    batch_norm = config.network == "conv-batchnorm"
    encoder = conv_encoder(image_shape, config.hidden, num_outputs, batch_norm)
    return encoder, conv_decoder(config.latent_dim, config.hidden, image_shape, batch_norm)


def _likelihood(config: Config, decoder: nn.Module, image_shape: Sequence[int]) -> Likelihood:
    if config.likelihood == "bernoulli":
        return (PseudoBernoulliLikelihood if config.binarize == "none" else BernoulliLikelihood)(decoder, image_shape)
    if config.likelihood == "continuous-bernoulli":
        return ContinuousBernoulliLikelihood(decoder, image_shape)
    if config.likelihood == "discretized-logistic":
        return DiscretizedLogisticLikelihood(decoder, image_shape, config.scale)
    return _NORMALS[config.likelihood](decoder, image_shape, config.scale, symmetric=config.pixels == "symmetric")
