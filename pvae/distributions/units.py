"""Values in any unit, and counts of any size: densities that are computed in float64 between float32 networks."""

from __future__ import annotations

from typing import Any

import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Size, Tensor

__all__ = ["InFloat64", "InUnits"]


class InFloat64(TorchDistribution):
    """A distribution with float64 parameters whose log-probability returns to the dtype of a network's outputs.

        log_prob(x) = log p(x),    computed in float64 and rounded once

    In float32 the terms of a density may cancel: lgamma(x + theta) - lgamma(theta) - lgamma(x + 1) of a negative
    binomial at x = 5 and theta = e^15 is wrong by 2, and a Poisson at x = 50,000 by 0.06. Draws and means are float64,
    so that whole numbers of any size stay whole.

    Args:
        base: the distribution, of event shape ().
        dtype: of the log-probability.
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012  # `base` checks its own

    def __init__(self, base: TorchDistribution, dtype: torch.dtype, validate_args: bool | None = None) -> None:
        self.base, self.dtype = base, dtype
        super().__init__(base.batch_shape, base.event_shape, validate_args=validate_args)

    @property
    def support(self) -> Any:
        """The support of `base`."""
        return self.base.support

    def expand(self, batch_shape: Any, _instance: Any = None) -> InFloat64:
        """Return the same distribution over a larger batch shape."""
        return InFloat64(self.base.expand(batch_shape), self.dtype, validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log p(value), of the batch shape, in nats."""
        return self.base.log_prob(value.double()).to(self.dtype)

    def sample(self, sample_shape: Any = Size()) -> Tensor:  # noqa: B008
        """Return draws in float64, which have no gradient."""
        return self.base.sample(sample_shape)

    @property
    def mean(self) -> Tensor:
        """The mean in float64."""
        return self.base.mean

    @property
    def variance(self) -> Tensor:
        """The variance in float64."""
        return self.base.variance


class InUnits(InFloat64):
    """The distribution of x = m + s y, given that of y: values in units of their own.

        log_prob(x) = log p_y((x - m) / s) - log s

    y is computed in float64, so that values whose differences float32 does not hold, such as seconds since 1970, keep
    these; x may be float64 or float32. A change of the units of x adds a constant to log_prob and changes no gradient.

    Args:
        base: the distribution of y, with float64 parameters and event shape ().
        loc: m, float64, which broadcasts to the batch shape.
        scale: s > 0, likewise.
        dtype: of the log-probability.
    """

    def __init__(
        self,
        base: TorchDistribution,
        loc: Tensor,
        scale: Tensor,
        dtype: torch.dtype,
        validate_args: bool | None = None,
    ) -> None:
        self.loc, self.scale = loc, scale
        super().__init__(base, dtype, validate_args=validate_args)

    @property
    def support(self) -> Any:
        """The support of x: that of y in the units of x."""
        of_y: Any = self.base.support
        if not isinstance(of_y, constraints.interval):
            return of_y
        return constraints.interval(self.loc + self.scale * of_y.lower_bound, self.loc + self.scale * of_y.upper_bound)

    def expand(self, batch_shape: Any, _instance: Any = None) -> InUnits:
        """Return the same distribution over a larger batch shape."""
        return InUnits(self.base.expand(batch_shape), self.loc, self.scale, self.dtype, validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log p(value), of the batch shape, in nats."""
        y = (value.double() - self.loc) / self.scale
        return (self.base.log_prob(y) - self.scale.log()).to(self.dtype)

    def sample(self, sample_shape: Any = Size()) -> Tensor:  # noqa: B008
        """Return draws of x in float64, which have no gradient."""
        return self.loc + self.scale * self.base.sample(sample_shape)

    @property
    def mean(self) -> Tensor:
        """The mean of x, m + s E[y], in float64."""
        return self.loc + self.scale * self.base.mean

    @property
    def variance(self) -> Tensor:
        """The variance of x, s^2 Var[y], in float64."""
        return self.scale.square() * self.base.variance
