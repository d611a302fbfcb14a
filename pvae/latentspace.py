"""What a trained VAE shows: images of its prior and reconstructions. Tensors in, tensors out."""

from __future__ import annotations

import torch
from torch import Tensor

from pvae.vae import VAE

__all__ = ["reconstruct", "sample"]


@torch.no_grad()
def reconstruct(vae: VAE, x: Tensor) -> Tensor:
    """Return the mean image of p(x | z) at one draw z ~ q(z | x) for each image, as documents 000 and 004 draw it.

    Args:
        vae: the model.
        x: images (B, C, H, W).

    Returns:
        (B, C, H, W).
    """
    mean: Tensor = vae.likelihood(vae.posterior(x).sample()).mean
    return mean


@torch.no_grad()
def sample(vae: VAE, num_samples: int) -> Tensor:
    """Return the mean image of p(x | z) at draws z ~ p(z).

    Args:
        vae: the model.
        num_samples: S.

    Returns:
        (S, C, H, W).
    """
    mean: Tensor = vae.likelihood(vae.prior().sample((num_samples,))).mean
    return mean
