"""Two stochastic layers as one latent: z = (z1, z2), with joint distributions made of two factors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn
from torch.distributions import constraints

from pvae.models.latents import StandardNormalPrior, bounded_normal

__all__ = ["Chain", "ChainPosterior", "ChainPrior", "FirstLayerDecoder"]


class Chain(TorchDistribution):
    """The joint distribution of a vector made of two parts, the second drawn given the first.

        log p(a, b) = log p(a) + log p(b | a)

    Its value is one vector, like that of any other latent. Its KL divergence from another distribution has no closed
    form, and neither has its mean.

    Args:
        first: distribution of a, with an event of one dimension.
        second: returns the distribution of b for a value of a.
        num_second: the length of b.
        swapped: b stands before a in the vector.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    support = constraints.real_vector
    has_rsample = True

    def __init__(
        self,
        first: TorchDistribution,
        second: Callable[[Tensor], TorchDistribution],
        num_second: int,
        *,
        swapped: bool = False,
    ) -> None:
        self.first = first
        self.second = second
        self.swapped = swapped
        num_first = first.event_shape[0]
        self.num_second = num_second
        self._sizes = [num_second, num_first] if swapped else [num_first, num_second]
        super().__init__(first.batch_shape, torch.Size([num_first + num_second]), validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Chain:
        """Return the same over a larger batch."""
        return Chain(self.first.expand(batch_shape), self.second, self.num_second, swapped=self.swapped)

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        """Return reparameterised draws, sample_shape + (..., L1 + L2)."""
        a = self.first.rsample(sample_shape)
        return self._joined(a, self.second(a).rsample())

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log p(a) + log p(b | a) at vectors (..., L1 + L2)."""
        parts = value.split(self._sizes, dim=-1)
        a, b = reversed(parts) if self.swapped else parts
        return self.first.log_prob(a) + self.second(a).log_prob(b)

    @property
    def mean(self) -> Tensor:
        """The mean of a, and the mean of b given that value of a, which is not the mean of b: a point to decode."""
        a = self.first.mean
        return self._joined(a, self.second(a).mean)

    def mean_over(self, num_samples: int) -> Tensor:
        """Return the mean of a, and an estimate of that of b: its mean given a, averaged over draws of a."""
        return self._joined(self.first.mean, self.second(self.first.sample((num_samples,))).mean.mean(0))

    def _joined(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.cat([b, a] if self.swapped else [a, b], dim=-1)


class ChainPrior(nn.Module):
    """The prior p(z1, z2) = Normal(z2; 0, I) prod_l Normal(z1_l; loc_l(z2), scale_l(z2)^2).

    Args:
        network: from (..., L2) to (..., 2 L1), read as (loc, log scale).
        first_dim: L1.
        latent_dim: L2.
    """

    def __init__(self, network: nn.Module, first_dim: int, latent_dim: int) -> None:
        super().__init__()
        self.network = network
        self.first_dim = first_dim
        self.second_layer = StandardNormalPrior(latent_dim)

    def forward(self) -> Chain:
        """Return p(z1, z2): batch shape (), event shape (L1 + L2,)."""
        return Chain(self.second_layer(), lambda z2: bounded_normal(self.network(z2)), self.first_dim, swapped=True)


class ChainPosterior(nn.Module):
    """The approximate posterior q(z1, z2 | x) = q(z1 | x) q(z2 | z1), each of independent Normals.

    Args:
        first: a module that returns q(z1 | x).
        network: from (..., L1) to (..., 2 L2), read as (loc, log scale).
        latent_dim: L2.
    """

    def __init__(self, first: nn.Module, network: nn.Module, latent_dim: int) -> None:
        super().__init__()
        self.first = first
        self.network = network
        self.latent_dim = latent_dim

    def forward(self, x: Tensor) -> Chain:
        """Return q(z1, z2 | x): batch shape (B,), event shape (L1 + L2,)."""
        return Chain(self.first(x), lambda z1: bounded_normal(self.network(z1)), self.latent_dim)


class FirstLayerDecoder(nn.Module):
    """Feed a decoder the first layer alone: p(x | z1, z2) = p(x | z1).

    Args:
        decoder: a network from (..., L1) to (..., C, H, W).
        latent_dim: L1.
    """

    def __init__(self, decoder: nn.Module, latent_dim: int) -> None:
        super().__init__()
        self.decoder = decoder
        self.latent_dim = latent_dim

    def forward(self, z: Tensor) -> Tensor:
        """Return the decoder's output at z1, the first part of z = (z1, z2)."""
        return self.decoder(z[..., : self.latent_dim])
