"""A logistic distribution, rounded to the 256 levels of an 8-bit pixel."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.utils import broadcast_all
from torch.nn.functional import logsigmoid

__all__ = ["DiscretizedLogistic", "eight_bit_level"]

_STEP = 1 / 255


class _EightBitLevel(constraints.Constraint):
    """A value k / 255 with k in 0..255."""

    is_discrete = True

    def check(self, value: Tensor) -> Tensor:
        level = value * 255
        return (level >= 0) & (level <= 255) & ((level - level.round()).abs() < 1e-3)


eight_bit_level = _EightBitLevel()


class DiscretizedLogistic(TorchDistribution):
    """A Logistic(loc, scale) rounded to the nearest level k / 255 and clamped to the ends.

        P(x) = F((x + h - loc) / scale) - F((x - h - loc) / scale),   F the sigmoid, h = 1 / 510

    At the level 1 the upper term is F(+inf) = 1 and at the level 0 the lower term is F(-inf) = 0, so that the
    probabilities sum to 1 over the 256 levels. The logarithm is computed from
    P = sigmoid(b) sigmoid(-a) (1 - exp(a - b)) at the interval's ends a < b, which never subtracts two nearly
    equal values.

    Args:
        loc: location, in units of the pixels.
        scale: positive.
        validate_args: check parameters and values.

    Reference:
        Kingma et al., arXiv:1606.04934; Salimans et al., arXiv:1701.05517.
    """

    arg_constraints: ClassVar = {"loc": constraints.real, "scale": constraints.positive}
    support = eight_bit_level

    def __init__(self, loc: Tensor, scale: Tensor, validate_args: bool | None = None) -> None:
        self.loc, self.scale = broadcast_all(loc, scale)
        super().__init__(self.loc.shape, validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> DiscretizedLogistic:
        """Return the same distribution over a larger batch shape."""
        shape = torch.Size(batch_shape)
        new = DiscretizedLogistic(self.loc.expand(shape), self.scale.expand(shape), validate_args=False)
        new._validate_args = self._validate_args
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log P(value), of the broadcast shape."""
        if self._validate_args:
            self._validate_sample(value)
        lower = (value - 0.5 * _STEP - self.loc) / self.scale
        upper = (value + 0.5 * _STEP - self.loc) / self.scale
        at_bottom = value < 0.5 * _STEP
        at_top = value > 1 - 0.5 * _STEP
        zero = torch.zeros_like(lower)
        inside = torch.log(-torch.expm1(-_STEP / self.scale))
        return (
            torch.where(at_top, zero, logsigmoid(upper))
            + torch.where(at_bottom, zero, logsigmoid(-lower))
            + torch.where(at_top | at_bottom, zero, inside)
        )

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw levels k / 255."""
        with torch.no_grad():
            shape = self._extended_shape(torch.Size(sample_shape))
            uniform = torch.rand(shape, dtype=self.loc.dtype, device=self.loc.device)
            drawn = self.loc + self.scale * torch.logit(uniform, eps=torch.finfo(uniform.dtype).tiny)
            return (drawn * 255).round().clamp(0, 255) / 255

    @property
    def mean(self) -> Tensor:
        """The mean level, (1/255) sum_{k=1..255} P(level >= k / 255)."""
        total = torch.zeros_like(self.loc)
        for k in range(1, 256):
            total = total + torch.sigmoid((self.loc - (k - 0.5) * _STEP) / self.scale)
        return total * _STEP
