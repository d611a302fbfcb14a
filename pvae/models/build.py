"""`build_vae`: the VAE that a configuration describes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pvae.config.config import Config
from pvae.core.errors import InputError, brief, shown
from pvae.core.memory import available_memory
from pvae.models.hierarchy import ChainPosterior, ChainPrior, FirstLayerDecoder
from pvae.models.latents import DeltaPosterior, FlatPrior, NormalPosterior, StandardNormalPrior
from pvae.models.likelihoods import LIKELIHOOD_CLASSES, PseudoBernoulliLikelihood
from pvae.models.networks import (
    conv_decoder,
    conv_encoder,
    groupnorm_decoder,
    groupnorm_encoder,
    mlp,
    mlp_decoder,
    mlp_encoder,
)
from pvae.vae import VAE

__all__ = ["build_vae", "check_memory", "meta_state_dict", "start_like_burda"]


def build_vae(config: Config, image_shape: Sequence[int]) -> VAE:
    """Return the untrained VAE that a configuration describes; its weights are drawn from torch's generator.

    Args:
        config: the system.
        image_shape: (C, H, W) of the data; `config.pad` is added to it.

    Returns:
        The VAE, on the CPU, in float32 whatever torch's default dtype is. A Bernoulli likelihood is the
        pseudo-Bernoulli if `config.binarize` leaves the pixels grey.

    Raises:
        InputError: `image_shape` is not (C, H, W), or the convolutions cannot halve images of this size.
    """
    if len(image_shape) != 3 or min(image_shape) < 1:
        raise InputError(f"image_shape must be (C, H, W), each at least 1, not {tuple(image_shape)}")
    channels, height, width = image_shape
    image_shape = (channels, height + 2 * config.pad, width + 2 * config.pad)
    encoder, decoder = _networks(config, image_shape)
    prior: nn.Module = StandardNormalPrior(config.latent_dim)
    posterior: nn.Module = NormalPosterior(encoder, log_variance=config.posterior == "normal-log-variance")
    if config.posterior == "delta":
        prior, posterior = FlatPrior(config.latent_dim), DeltaPosterior(encoder)
    elif config.second_latent_dim:
        one, two = config.latent_dim, config.second_latent_dim
        up = mlp(one, *config.second_hidden, 2 * two, activation=config.activation)
        down = mlp(two, *reversed(config.second_hidden), 2 * one, activation=config.activation)
        prior, posterior = ChainPrior(down, one, two), ChainPosterior(posterior, up, two)
        decoder = FirstLayerDecoder(decoder, one)
    is_pseudo = config.likelihood == "bernoulli" and config.binarize == "none"
    kind = PseudoBernoulliLikelihood if is_pseudo else LIKELIHOOD_CLASSES[config.likelihood]
    likelihood = kind(decoder, image_shape, config.scale, config.pixels == "symmetric")
    return VAE(p_z=prior, q_z=posterior, p_x=likelihood).float()


def meta_state_dict(config: Config, image_shape: Sequence[int]) -> dict[str, Tensor]:
    """Return the state_dict of the VAE that `build_vae` returns, as tensors on the meta device, which hold no data.

    Args:
        config: the system.
        image_shape: (C, H, W) of the data.

    Raises:
        InputError: the networks are too large for torch.
    """
    try:
        with torch.device("meta"):
            return build_vae(config, image_shape).state_dict()
    except (RuntimeError, OverflowError, TypeError) as error:  # torch raises these for sizes that are too large
        raise InputError(
            f"networks of {_sizes(config)} are too large for torch ({brief(error)}): give smaller ones"
        ) from None


def check_memory(config: Config, image_shape: tuple[int, ...]) -> None:
    """Check that the networks fit into memory before they are built: the system could kill a process that builds them.

    Raises:
        InputError: weights, gradients and Adam's two moments need more memory than is available.
    """
    needed = 4 * sum(tensor.nbytes for tensor in meta_state_dict(config, image_shape).values())
    if needed > available_memory():
        raise InputError(f"networks of {_sizes(config)} do not fit into memory: give smaller ones")


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
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
    last = [module for module in vae.p_x.modules() if isinstance(module, nn.Linear)][-1]
    mean = images.sum(0, dtype=torch.int64).flatten().double() / (255 * len(images))
    with torch.no_grad():
        last.bias.copy_(torch.logit(mean.clamp(0.001, 0.999)))


def _sizes(config: Config) -> str:
    return shown(f"--hidden {' '.join(map(str, config.hidden))} --latent-dim {config.latent_dim}")[1:-1]


def _networks(config: Config, image_shape: tuple[int, ...]) -> tuple[nn.Module, nn.Module]:
    """Return encoder and decoder."""
    num_outputs = config.latent_dim * (1 if config.posterior == "delta" else 2)
    if config.network in ("mlp", "linear"):
        hidden = config.hidden if config.network == "mlp" else ()
        encoder = mlp_encoder(image_shape, hidden, num_outputs, config.activation)
        return encoder, mlp_decoder(config.latent_dim, hidden, image_shape, config.activation)
    if config.network == "conv-groupnorm":
        decoder = groupnorm_decoder(config.latent_dim, config.hidden, image_shape)
        return groupnorm_encoder(image_shape, config.hidden, num_outputs), decoder
    batch_norm = config.network == "conv-batchnorm"
    encoder = conv_encoder(image_shape, config.hidden, num_outputs, batch_norm)
    return encoder, conv_decoder(config.latent_dim, config.hidden, image_shape, batch_norm)
