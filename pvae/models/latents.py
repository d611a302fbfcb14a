"""Modules that return a distribution over the latent: priors p(z) and approximate posteriors q(z | x)."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import constraints

__all__ = ["DeltaPosterior", "FlatPrior", "NormalPosterior", "StandardNormalPrior", "bounded_normal"]


class StandardNormalPrior(nn.Module):
    """The prior p(z) = prod_l Normal(z_l; 0, 1).

    Args:
        latent_dim: L.
    """

    loc: Tensor
    scale: Tensor

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        # Buffers, so that .to(device) and .double() convert them; not persistent, because they are constants.
        self.register_buffer("loc", torch.zeros(latent_dim), persistent=False)
        self.register_buffer("scale", torch.ones(latent_dim), persistent=False)

    def forward(self) -> dist.Independent:
        """Return p(z): batch shape (), event shape (L,)."""
        return dist.Normal(self.loc, self.scale).to_event(1)


class FlatPrior(nn.Module):
    """An improper prior, log p(z) = 0 everywhere, from which no z can be drawn.

    With a `DeltaPosterior` the rate is then 0 and the loss is the distortion: an autoencoder.

    Args:
        latent_dim: L.
    """

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.latent_dim = latent_dim

    def forward(self) -> dist.ImproperUniform:
        """Return the improper prior: batch shape (), event shape (L,)."""
        return _Flat(constraints.real_vector, (), (self.latent_dim,))  # type: ignore[no-untyped-call]


class _Flat(dist.ImproperUniform):
    """Pyro's improper uniform distribution, with a log-density on the device and in the dtype of z."""

    def log_prob(self, value: Tensor) -> Tensor:
        return value.new_zeros(value.shape[:-1])


class NormalPosterior(nn.Module):
    """The approximate posterior q(z | x) = prod_l Normal(z_l; loc_l(x), scale_l(x)^2).

    The encoder's output is (loc, log scale) as in the Deep Bayes course, so that scale = exp(output), or
    (loc, log variance) as in the other posts, so that scale = exp(output / 2). Both give the same family of
    distributions; only the size of a gradient step on the scale differs.

    Args:
        encoder: a network from (B, C, H, W) to (B, 2 L).
        log_variance: the second half of the output is the log variance.

    Reference:
        Kingma and Welling, arXiv:1312.6114, equation 9.
    """

    def __init__(self, encoder: nn.Module, log_variance: bool = False) -> None:
        super().__init__()
        self.encoder = encoder
        self.log_variance = log_variance

    def forward(self, x: Tensor) -> dist.Independent:
        """Return q(z | x): batch shape (B,), event shape (L,)."""
        return bounded_normal(self.encoder(x), self.log_variance)


def bounded_normal(parameters: Tensor, log_variance: bool = False) -> dist.Independent:
    """Return Normal(loc, scale) over L dimensions, with the scale between exp(-7) and exp(7), 0.0009 and 1097.

    Without bounds, the scale of a layer with a learned prior can underflow to 0, and log q(z | x) is then infinite.

    Args:
        parameters: the output of a network, (..., 2 L): loc and log scale.
        log_variance: the second half is the log variance.

    Returns:
        Batch shape (...), event shape (L,).

    Reference:
        Tomczak and Welling, arXiv:1705.07120, bound the log variance in their released code, to [-6, 2].
    """
    loc, log_scale = parameters.chunk(2, dim=-1)
    if log_variance:
        log_scale = 0.5 * log_scale
    log_scale = log_scale.clamp(-7, 7)
    return dist.Normal(loc, log_scale.exp()).to_event(1)


class DeltaPosterior(nn.Module):
    """The point mass q(z | x) at z = encoder(x): the deterministic code of an autoencoder.

    Args:
        encoder: a network from (B, C, H, W) to (B, L).
    """

    has_density = False

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, x: Tensor) -> dist.Delta:
        """Return the point mass: batch shape (B,), event shape (L,)."""
        return dist.Delta(self.encoder(x), event_dim=1)
