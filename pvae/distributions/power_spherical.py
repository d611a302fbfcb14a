"""The power spherical distribution of vectors on the unit sphere, and the uniform distribution on it."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution
from pyro.distributions.util import broadcast_shape
from torch import Size, Tensor
from torch.distributions import Dirichlet, register_kl
from torch.nn.functional import normalize

__all__ = ["PowerSpherical", "SphereUniform", "kl_power_spherical"]


class PowerSpherical(TorchDistribution):
    """The density of unit vectors z of length L that is proportional to (1 + loc z)^k, with k the concentration.

        log q(z) = k log((1 + loc z) / 2) - 2 b log 2 - b log pi + log Gamma(a + b) - log Gamma(a)
        a = (L - 1) / 2 + k,    b = (L - 1) / 2

    It resembles a von Mises-Fisher distribution, and its draws need no rejection: (1 + loc z) / 2 is drawn from
    Beta(a, b), the direction around loc uniformly, and a Householder reflection takes the first axis to loc.

    In float32 the terms of a high concentration would cancel. So (1 + loc z) / 2 is computed from the distance of z
    and loc, the draw from the Beta distribution and the log-gamma functions in float64, and the reflection maps the
    first axis to the farther one of loc and -loc. At a concentration of 10^6, torch's gradient of a Beta draw is wrong
    by 1 % even in float64.

    Args:
        loc: unit vectors, (..., L), L at least 2.
        concentration: k >= 0, which broadcasts with (...); 0 is the uniform distribution.
        validate_args: check parameters and values.

    Reference:
        De Cao and Aziz, arXiv:2006.04437.
    """

    arg_constraints: ClassVar = {"loc": constraints.sphere, "concentration": constraints.nonnegative}
    support = constraints.sphere
    has_rsample = True

    def __init__(self, loc: Tensor, concentration: Tensor, validate_args: bool | None = None) -> None:
        shape = broadcast_shape(loc.shape[:-1], concentration.shape)
        self.loc = loc.expand(*shape, -1)
        self.concentration = concentration.expand(shape)
        super().__init__(shape, loc.shape[-1:], validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> PowerSpherical:
        """Return the same distribution over a larger batch shape."""
        shape = Size(batch_shape)
        new = type(self).__new__(type(self))
        new.loc = self.loc.expand(*shape, -1)
        new.concentration = self.concentration.expand(shape)
        TorchDistribution.__init__(new, shape, self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log q(value), of the broadcast batch shape, in nats."""
        if self._validate_args:
            self._validate_sample(value)
        squared_distance = (value - self.loc).square().sum(-1)  # 2 - 2 loc z
        opposite = 1 - torch.finfo(value.dtype).eps
        return self.concentration * torch.log1p(-(squared_distance / 4).clamp(max=opposite)) + self._log_constant()

    def rsample(self, sample_shape: Any = Size()) -> Tensor:  # noqa: B008
        """Return reparameterised draws, sample_shape + (..., L)."""
        a, b = self._beta()
        shape = self._extended_shape(Size(sample_shape))
        # A Dirichlet of two has 1 - x to full precision too. In float32 torch's gradient of it is wrong by up to 35 %.
        beta = Dirichlet(torch.stack([a, torch.full_like(a, b)], -1), validate_args=False)
        along, across = beta.rsample(Size(sample_shape)).to(self.loc.dtype).unsqueeze(-1).unbind(-2)
        noise = torch.randn(*shape[:-1], shape[-1] - 1, dtype=self.loc.dtype, device=self.loc.device)
        y = torch.cat([along - across, 2 * (along * across).sqrt() * normalize(noise, dim=-1)], -1)
        first = self.loc[..., :1]
        sign = torch.ones_like(first).copysign(first.detach())
        axis = torch.cat([first + sign, self.loc[..., 1:]], -1)  # its square is 2 + 2 sign first
        return normalize(sign * (axis * ((axis * y).sum(-1, keepdim=True) / (1 + sign * first)) - y), dim=-1)

    @property
    def mean(self) -> Tensor:
        """E[z] = loc k / (k + L - 1), inside the sphere."""
        return self.loc * (self.concentration / (self.concentration + self.event_shape[0] - 1)).unsqueeze(-1)

    @property
    def variance(self) -> Tensor:
        """Var[z_l], (..., L)."""
        a, b = self._beta()
        a = a.to(self.loc.dtype).unsqueeze(-1)
        mean = (a - b) / (a + b)
        square = mean.square() + 4 * a * b / ((a + b).square() * (a + b + 1))  # E[(loc z)^2]
        across = self.loc.square()
        return square * across + (1 - square) * (1 - across) / (2 * b) - mean.square() * across

    def entropy(self) -> Tensor:
        """Return -E[log q(z)] of the density on the sphere, (...), in nats."""
        a, b = self._beta()
        expected_log = (torch.digamma(a) - torch.digamma(a + b)).to(self.loc.dtype)  # E[log((1 + loc z) / 2)]
        return -self.concentration * expected_log - self._log_constant()

    def _beta(self) -> tuple[Tensor, float]:
        """Return a, (...), in float64, and b."""
        b = (self.event_shape[0] - 1) / 2
        return self.concentration.double() + b, b

    def _log_constant(self) -> Tensor:
        a, b = self._beta()
        return (torch.lgamma(a + b) - torch.lgamma(a) - b * math.log(4 * math.pi)).to(self.loc.dtype)


class SphereUniform(PowerSpherical):
    """The uniform distribution on the unit sphere: the power spherical distribution of concentration 0.

    Args:
        loc: any unit vectors, (..., L).
        validate_args: check parameters and values.
    """

    def __init__(self, loc: Tensor, validate_args: bool | None = None) -> None:
        super().__init__(loc, torch.zeros_like(loc[..., 0]), validate_args)

    def entropy(self) -> Tensor:
        """Return the logarithm of the sphere's area, 2 pi^(L / 2) / Gamma(L / 2), (...), in nats."""
        half = self.event_shape[0] / 2
        return torch.full_like(self.concentration, math.log(2) + half * math.log(math.pi) - math.lgamma(half))


@register_kl(PowerSpherical, SphereUniform)  # type: ignore[untyped-decorator]
def kl_power_spherical(q: PowerSpherical, p: SphereUniform) -> Tensor:
    """Return KL(q || p) = H(p) - H(q), the difference of the entropies, in nats, of the batch shape.

    Args:
        q: on the sphere in R^L.
        p: the uniform distribution on the same sphere.

    Reference:
        De Cao and Aziz, arXiv:2006.04437.
    """
    return p.entropy() - q.entropy()
