"""Distributions of pixels: Bernoulli, pseudo-Bernoulli and continuous Bernoulli of logits, and a rounded logistic."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.utils import broadcast_all
from torch.nn.functional import logsigmoid

__all__ = [
    "ContinuousBernoulli",
    "DiscretizedLogistic",
    "JointBernoulli",
    "LogitBernoulli",
    "PseudoBernoulli",
    "eight_bit_level",
]

_MOST_FACTORS = 64  # each at least 1/2: 2^-64 is far from the smallest float32
_LANES = 16  # values in a vector register


class LogitBernoulli(dist.Bernoulli):  # type: ignore[misc]  # Pyro makes its classes at run time
    """Pyro's Bernoulli of logits l, whose `to_event` returns a `JointBernoulli`: an image as one event."""

    def to_event(self, reinterpreted_batch_ndims: int | None = None) -> TorchDistribution:
        """Return the distribution whose event is the last dimensions of the batch shape."""
        count = reinterpreted_batch_ndims
        if count is None:
            count = len(self.batch_shape)
        if count == 0:
            return super().to_event(count)
        return JointBernoulli(self, count)


class JointBernoulli(dist.Independent):
    """Independent Bernoullis of logits l as one event of D values, with one logarithm for up to 64 of them.

        log_prob(x) = sum_d (x_d l_d - max(l_d, 0))  +  sum over groups of  log prod_{d in group} sigmoid(|l_d|)

    since log(1 + exp(l)) = max(l, 0) - log sigmoid(|l|). Each factor is at least 1/2 and a group has at most 64, so no
    product underflows. This formula is used where no gradients are computed, because there the logarithms would take
    most of the time; with gradients `log_prob` is the sum of the elementwise log-probabilities.
    """

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log p(value), of the batch shape."""
        base = self.base_dist
        if torch.is_grad_enabled() or base.logits.dtype not in (torch.float32, torch.float64):
            return super().log_prob(value)  # type: ignore[no-untyped-call]
        if base._validate_args:
            base._validate_sample(value)
        logits = base.logits
        count = self.reinterpreted_batch_ndims
        linear = (value * logits).sub_(logits.relu()).flatten(-count).sum(-1)
        num_factors = self.event_shape.numel()
        sizes = [size for size in range(1, _MOST_FACTORS + 1) if num_factors % size == 0]
        # Prefer a size that fills whole vector registers.
        size = max([size for size in sizes if num_factors // size % _LANES == 0] or sizes)
        factors = logits.abs().sigmoid_().flatten(-count).unflatten(-1, (size, -1))
        return linear + factors.prod(-2).log_().sum(-1)


class PseudoBernoulli(LogitBernoulli):
    """A Bernoulli whose log-probability is also taken at grey values in [0, 1].

        log_prob(x) = x log p + (1 - x) log(1 - p)

    On 0 and 1 this is the Bernoulli. Between them it is the cross-entropy that most of the posts train with: a
    pseudo-likelihood, since its exponential does not integrate to 1 over [0, 1]. An ELBO made of it is a pseudo-ELBO,
    which is not a bound on a log-likelihood of the grey x. Since the log-probability is linear in x, it is the mean
    E_{b ~ Bernoulli(x)} [log Bernoulli(b; p)] over binarizations; a pseudo-ELBO is therefore a lower bound on
    E_b [log p(b)], with an encoder that sees x instead of b.

    Raises:
        ValueError: `log_prob` at a value outside [0, 1] or NaN (torch's own validation).

    Reference:
        Loaiza-Ganem and Cunningham, arXiv:1907.06845, section 1 (the neglected normalising constant).
    """

    support = constraints.unit_interval


_NEAR_ZERO = 0.5
# log(sinh(h) / h) = h^2/6 - h^4/180 + ..., to float64's precision for |h| <= 1/4.
_SERIES = (1 / 6, -1 / 180, 1 / 2835, -1 / 37800, 1 / 467775, -691 / 3831077250)


class ContinuousBernoulli(TorchDistribution):
    """The density on [0, 1] that is proportional to exp(l x), with the logit l = log(p / (1 - p)).

        p(x) = C p^x (1 - p)^(1 - x),    log C = log( l / tanh(l / 2) )

        log p(x) = (x - 1/2) l - log( sinh(l/2) / (l/2) )

    `torch.distributions.ContinuousBernoulli` clamps p before it computes C. In float32 its density therefore integrates
    to less than 1 beyond a logit of about 16 (0.32 at 50), and its mean stays above 0.06. Here the second equation is
    computed from the logit: near l = 0 by the series of sinh(h) / h, and elsewhere as
    log|l| - log(1 - exp(-|l|)) - |l| |x - (l > 0)|, which neither overflows nor subtracts large values.

    Args:
        logits: l, of any shape.
        validate_args: check parameters and values.

    Reference:
        Loaiza-Ganem and Cunningham, arXiv:1907.06845, section 3.
    """

    arg_constraints: ClassVar = {"logits": constraints.real}
    support = constraints.unit_interval
    has_rsample = True

    def __init__(self, logits: Tensor, validate_args: bool | None = None) -> None:
        self.logits = logits
        super().__init__(logits.shape, validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> ContinuousBernoulli:
        """Return the same distribution over a larger batch shape."""
        new = ContinuousBernoulli(self.logits.expand(torch.Size(batch_shape)), validate_args=False)
        new._validate_args = self._validate_args
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log p(value), of the broadcast shape, in nats."""
        if self._validate_args:
            self._validate_sample(value)
        is_near, near, far = self._parts()
        square = (near / 2).square()
        log_sinhc = near * 0
        for coefficient in reversed(_SERIES):
            log_sinhc = (log_sinhc + coefficient) * square
        size = far.abs()
        distance = torch.where(far > 0, 1 - value, value)
        tail = size.log() - torch.log1p(-torch.exp(-size)) - size * distance
        return torch.where(is_near, (value - 0.5) * near - log_sinhc, tail)

    @property
    def mean(self) -> Tensor:
        """E[x] = 1/2 + (d/dl) log( sinh(l/2) / (l/2) ); for large |l|, about 1/|l| from 0 or 1."""
        is_near, near, far = self._parts()
        square = (near / 2).square()
        slope = near * 0
        for place in reversed(range(len(_SERIES))):
            slope = slope * square + (place + 1) * _SERIES[place]
        size = far.abs()
        distance = 1 / size - torch.exp(-size) / -torch.expm1(-size)
        return torch.where(is_near, 0.5 + slope * near / 2, torch.where(far > 0, 1 - distance, distance))

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        """Return reparameterised draws, sample_shape + batch_shape."""
        shape = self._extended_shape(torch.Size(sample_shape))
        return self.icdf(torch.rand(shape, dtype=self.logits.dtype, device=self.logits.device))

    def icdf(self, value: Tensor) -> Tensor:
        """Return the quantile, the x with P(X <= x) = value: log(1 + value (exp(l) - 1)) / l."""
        threshold = torch.finfo(self.logits.dtype).eps ** 0.2  # below it four terms of the series in l suffice
        is_near, near, far = self._parts(threshold)
        spread = value * (1 - value)
        skew = 1 - 2 * value
        series = value + near * spread * (1 / 2 + near * (skew / 6 + near * (1 - 6 * spread) / 24))
        size = far.abs()
        # Distance of x from the end with more probability: -log(1 - beyond (1 - exp(-|l|))) / |l|.
        beyond = torch.where(far > 0, 1 - value, value)
        inner = torch.log1p((beyond * torch.expm1(-size)).clamp(min=-0.5))
        outer = torch.logaddexp(torch.where(far > 0, value, 1 - value).log(), beyond.log() - size)
        distance = -torch.where(inner > math.log(0.5), inner, outer) / size
        return torch.where(is_near, series, torch.where(far > 0, 1 - distance, distance))

    def _parts(self, threshold: float = _NEAR_ZERO) -> tuple[Tensor, Tensor, Tensor]:
        """Return a mask of the logits near 0, and the logits for each formula, replaced where it is not used."""
        is_near = self.logits.abs() < threshold
        return is_near, torch.where(is_near, self.logits, 0), torch.where(is_near, 1, self.logits)


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
