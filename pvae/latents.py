"""Modules whose call returns a distribution over the latent: p(z) and q(z | x)."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor, nn

__all__ = ["NormalPosterior", "StandardNormalPrior"]


class StandardNormalPrior(nn.Module):
    """The prior p(z) = prod_l Normal(z_l; 0, 1).

    Args:
        latent_dim: L.
    """

    loc: Tensor
    scale: Tensor

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        # Buffers, so that .to(device) and .double() reach them; constants, so no checkpoint holds them.
        self.register_buffer("loc", torch.zeros(latent_dim), persistent=False)
        self.register_buffer("scale", torch.ones(latent_dim), persistent=False)

    def forward(self) -> dist.Independent:
        """Return p(z): batch shape (), event shape (L,)."""
        return dist.Normal(self.loc, self.scale).to_event(1)


class NormalPosterior(nn.Module):
    """The approximate posterior q(z | x) = prod_l Normal(z_l; loc_l(x), scale_l(x)^2).

    The encoder's output is read as (loc, log scale), so that scale = exp(output), as the Deep Bayes course
    has it; the PyTorch example reads (loc, log variance) instead.

    Args:
        encoder: a network from (B, C, H, W) to (B, 2 L).

    Reference:
        Kingma and Welling, arXiv:1312.6114, equation 9.
    """

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, x: Tensor) -> dist.Independent:
        """Return q(z | x): batch shape (B,), event shape (L,)."""
        loc, log_scale = self.encoder(x).chunk(2, dim=-1)
        return dist.Normal(loc, log_scale.exp()).to_event(1)
