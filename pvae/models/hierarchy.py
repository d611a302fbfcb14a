"""Two stochastic layers as one latent z = (z1, z2): a prior and a posterior that are chains of two distributions."""

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
    """The joint distribution of two vectors a and b, where b is drawn given a.

        log p(a, b) = log p(a) + log p(b | a)

    A value is one vector, the concatenation of both. The KL divergence and the mean have no closed form.

    Args:
        first: the distribution of a, with an event of one dimension.
        second: returns the distribution of b given a.
        num_second: the length of b.
        swapped: b comes before a in the vector.
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
        """Return this distribution expanded to another batch shape."""
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
        """The mean of a, and the mean of b given that mean; the second part is not the mean of b."""
        a = self.first.mean
        return self._joined(a, self.second(a).mean)

    def mean_over(self, num_samples: int) -> Tensor:
        """Return the mean of a, and an estimate of the mean of b: the mean of b given a, averaged over draws of a."""
        return self._joined(self.first.mean, self.second(self.first.sample((num_samples,))).mean.mean(0))

    def _joined(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.cat([b, a] if self.swapped else [a, b], dim=-1)


class ChainPrior(nn.Module):
    """The prior p(z1, z2) = Normal(z2; 0, I) prod_l Normal(z1_l; loc_l(z2), scale_l(z2)^2).

    Args:
        network: from (..., L2) to (..., 2 L1): loc and log scale.
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
        network: from (..., L1) to (..., 2 L2): loc and log scale.
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
    """A decoder that uses the first layer only: p(x | z1, z2) = p(x | z1).

    Args:
        decoder: a network from (..., L1) to (..., C, H, W).
        latent_dim: L1.
    """

    def __init__(self, decoder: nn.Module, latent_dim: int) -> None:
        super().__init__()
        self.decoder = decoder
        self.latent_dim = latent_dim

    def forward(self, z: Tensor) -> Tensor:
        """Return the decoder's output for z1, the first part of z = (z1, z2)."""
        return self.decoder(z[..., : self.latent_dim])
