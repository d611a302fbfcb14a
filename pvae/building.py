"""From a configuration to a VAE."""

from __future__ import annotations

import re
from collections.abc import Sequence

from pvae.config import Config
from pvae.errors import InputError
from pvae.latents import NormalPosterior, StandardNormalPrior
from pvae.likelihoods import BernoulliLikelihood, PseudoBernoulliLikelihood
from pvae.networks import mlp_decoder, mlp_encoder
from pvae.vae import VAE

__all__ = ["build_vae"]


def build_vae(config: Config, image_shape: Sequence[int]) -> VAE:
    """Return the untrained VAE that a configuration describes, with weights drawn from torch's generator.

    Args:
        config: the system.
        image_shape: (C, H, W).

    Returns:
        The VAE, on the CPU. Its likelihood is the Bernoulli if `config.binarize` makes the pixels binary,
        and the pseudo-Bernoulli if they stay grey.

    Raises:
        InputError: the networks do not fit into memory.
    """
    likelihood = PseudoBernoulliLikelihood if config.binarize == "none" else BernoulliLikelihood
    try:
        encoder = mlp_encoder(image_shape, config.hidden, config.latent_dim)
        decoder = mlp_decoder(config.latent_dim, config.hidden[::-1], image_shape)
    except (RuntimeError, MemoryError) as error:
        if not isinstance(error, MemoryError) and not re.search("allocate memory|overflow|too large", str(error)):
            raise
        sizes = f"--hidden {' '.join(map(str, config.hidden))} --latent-dim {config.latent_dim}"
        raise InputError(f"networks of {sizes} do not fit into memory: give smaller ones") from error
    return VAE(
        p_z=StandardNormalPrior(config.latent_dim),
        q_z=NormalPosterior(encoder),
        p_x=likelihood(decoder, image_shape),
    )
