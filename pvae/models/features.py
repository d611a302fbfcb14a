"""What an encoder sees of x: transforms of data that lie before its first layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import softplus

from pvae.distributions.values import is_atom, is_below

__all__ = [
    "CountUnits",
    "LogUnits",
    "OrdinalUnits",
    "RealUnits",
    "Standardize",
    "Units",
    "WithMask",
    "features_seen",
    "fit_to",
    "steps_of",
]

_ROWS = 10_000  # in a part of the data
_ROUNDING = 1e-14  # standard deviation of equal values, as a share of their mean, by rounding of float64
_LEAST_MEAN = 1e-6  # of a count, where all are 0
_LEAST_SHARE = 1e-4  # of the training data that are at most a level, or above it
LEAST_GAP = 1e-3  # between the cut points of levels
_MOST_DIVISORS = 12  # steps in the least gap of values that are no decimals
_FEW_VALUES = 5  # of these, which say nothing of a step unless each is repeated
_TIMES = 10  # that such a value occurs on average
_CHANCE = 1e-4  # the greatest probability that values are multiples of a step by chance
_MOST_DIGITS = 8  # of steps, after the first digit of the range of a column: further ones say nothing beside its spread


def features_seen(q_z: nn.Module, x: Tensor, with_mask: bool = False) -> Tensor:
    """Return what the encoder of a posterior sees of data (N, *D): (N, F), perhaps with the mask of what is missing."""
    seen, num_last = x, 0
    for layer in q_z.modules():
        if isinstance(layer, Units | WithMask):
            seen = layer(seen)
            if getattr(layer, "has_mask", False):
                num_last = x[0].numel()
    seen = seen.flatten(1)
    if with_mask:
        return seen
    return seen[:, : seen.shape[1] - num_last]


class Units(nn.Module):
    """The location and the scale of each value of the training data, which `fit_to` stores as buffers.

    A checkpoint of an earlier version, which had no such buffers, loads as a module that was not fitted to data.

    Args:
        datum_shape: of x.

    Attributes:
        columns: where x is a part of a datum, the columns of the datum that it is.
    """

    unfitted: ClassVar[Mapping[str, float]]  # the name of each buffer, and its values before the fit
    columns: Sequence[int] | None = None

    def __init__(self, datum_shape: Sequence[int]) -> None:
        super().__init__()
        for name, value in self.unfitted.items():
            self.register_buffer(name, torch.full(tuple(datum_shape), value))

    def fit_to(self, data: Tensor) -> None:
        """Store what is needed of the training data, (N, *datum_shape)."""
        raise NotImplementedError

    def _mean_of(self, data: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the mean over the data of a function of float64 values, without those that are NaN."""
        total = count = torch.zeros((), dtype=torch.float64)
        for part in data.split(_ROWS):  # a float64 copy of all may not fit into memory
            values = function(self._own(part).double())
            total, count = total + values.nansum(0), count + (~values.isnan()).sum(0)
        return total / count

    def _own(self, data: Tensor) -> Tensor:
        """Return the part of the data that x is."""
        return data if self.columns is None else data[..., self.columns]

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        for name, value in self.unfitted.items():
            state_dict.setdefault(prefix + name, torch.full_like(getattr(self, name), value))
        super()._load_from_state_dict(state_dict, prefix, *args)


@torch.no_grad()
def fit_to(vae: nn.Module, data: Tensor) -> None:
    """Store what modules of a new VAE need to know of the training data, such as mean and standard deviation.

    Args:
        vae: changed in place.
        data: x of the training data, (N, *datum_shape).
    """
    for module in vae.modules():
        if isinstance(module, Units):
            module.fit_to(data)


class Standardize(Units):
    """Subtract the mean of the training data and divide by their standard deviation, value by value, in float64.

    The mean is kept as the sum of two float32 values, because one does not hold 1e15 + 1e3.

    Args:
        datum_shape: of x.
    """

    unfitted: ClassVar[Mapping[str, float]] = MappingProxyType({"mean": 0.0, "mean_rest": 0.0, "std": 1.0})
    mean: Tensor
    mean_rest: Tensor
    std: Tensor

    @property
    def loc(self) -> Tensor:
        """The mean in float64."""
        return self.mean.double() + self.mean_rest.double()

    @property
    def scale(self) -> Tensor:
        """The standard deviation in float64."""
        return self.std.double()

    def fit_to(self, data: Tensor) -> None:
        """Store mean and standard deviation of the training data, (N, *datum_shape), without those that are NaN."""
        self._fit_mean(data, lambda x: x)

    def _fit_mean(self, data: Tensor, of: Callable[[Tensor], Tensor]) -> None:
        mean = self._mean_of(data, of).nan_to_num()
        std = self._mean_of(data, lambda x: (of(x) - mean).square()).nan_to_num().sqrt()
        self.mean.copy_(mean)
        self.mean_rest.copy_(mean - self.mean.double())
        is_constant = (std <= _ROUNDING * mean.abs()) | (std < torch.finfo(torch.float32).tiny)
        self.std.copy_(torch.where(is_constant, torch.ones_like(std), std))

    def forward(self, x: Tensor) -> Tensor:
        """Return (x - mean) / std, in the dtype of the buffers."""
        return ((x.double() - self.loc) / self.scale).to(self.std.dtype)


@np.errstate(all="ignore")
def steps_of(data: Tensor) -> Tensor:
    """Return in which steps each value of the data was recorded, such as 0.1 or 5; 0 where in none.

        u = the greatest u with which all differences of two of its values are multiples of u

    A step that is no decimal, such as 5/9, is found if the least gap of about a hundred values is at most 12 u.

    Args:
        data: (N, *datum_shape); NaN is a value that is missing.
    """
    x = data.double().flatten(1).numpy(force=True)
    least = np.nanmin(x, 0, initial=np.inf)
    size = np.nanmax(np.abs(x - least), 0, initial=0.0)
    first = -np.floor(np.log10(size))  # as many digits behind the point as make the size a number of one digit
    steps = np.zeros(x.shape[1])
    rounding = (size + np.abs(least)) * (torch.finfo(data.dtype).eps if data.dtype == torch.float32 else 0.0)
    left = np.flatnonzero((size > 0) & np.isfinite(size))
    for digits in range(_MOST_DIGITS + 1):
        unit = 10.0 ** (first + digits)
        for rows in (slice(100), slice(None)):  # the first rows rule most columns out
            scaled = (x[rows, left] - least[left]) * unit[left]
            error = np.minimum(rounding[left] * unit[left] + min(1e-6 * 10.0**digits, 1e-4), 0.05)
            fits = ((np.abs(scaled - scaled.round()) <= error) | np.isnan(scaled)).all(0)
            kept = left[fits]
            if not len(kept):
                break
            if rows != slice(100):
                whole = np.nan_to_num(scaled[:, fits]).round().astype(np.int64)
                steps[kept] = np.gcd.reduce(whole, 0) / unit[kept]
                left = left[~fits]
    rounding = 4 * (size + np.abs(least)) * torch.finfo(data.dtype if data.is_floating_point() else torch.float64).eps
    for place in left.tolist():
        steps[place] = _step_of(x[:, place] - least[place], rounding[place])
    return torch.from_numpy(steps).view(data.shape[1:])


def _step_of(x: NDArray[np.float64], rounding: float) -> float:
    """Return the step of values from 0 on that are no decimals, such as 5/9; or 0.

    It is the least gap of about a hundred of them, evenly spaced, divided by 1 to 12, if all values are multiples of
    it, which is improbable by chance.
    """
    x = x[~np.isnan(x)]
    few = np.sort(x[:: max(1, len(x) // 100)])
    gaps = np.diff(few)
    gaps = gaps[gaps > rounding]
    num_values = len(gaps) + 1
    if num_values == 1 or (num_values <= _FEW_VALUES and len(few) < _TIMES * num_values):
        return 0.0
    for divisor in range(1, _MOST_DIVISORS + 1):
        step = few[-1] / round(few[-1] * divisor / gaps.min())
        error = 1e-7 + rounding / step
        if error > 0.01 or divisor * (2 * error) ** (len(gaps) - 1) > _CHANCE:
            return 0.0
        if all((np.abs(some / step - (some / step).round()) <= error).all() for some in (few, x)):
            return float(step)
    return 0.0


class RealUnits(Standardize):
    """The units of real values: mean and standard deviation, and in which steps they were recorded.

    Args:
        datum_shape: of x.

    Attributes:
        step: u of `steps_of`; 0 before the fit.
        limit: L, below which values are known only to be below it, as in `Censored`; their codes have no steps, and
            those of the others are multiples of u. Or None.
    """

    unfitted: ClassVar[Mapping[str, float]] = MappingProxyType({**Standardize.unfitted, "step": 0.0})
    limit: float | None = None
    step: Tensor

    def fit_to(self, data: Tensor) -> None:
        """Store mean, standard deviation and steps of the training data, (N, *datum_shape)."""
        super().fit_to(data)
        own = self._own(data)
        if self.limit is not None:
            seen = torch.where(is_below(own, self.limit), math.nan, own)
            own = torch.cat([seen, torch.zeros_like(own[:1])])
        self.step.copy_(steps_of(own))


class LogUnits(RealUnits):
    """The units of positive values: mean and standard deviation of log (x - a), and in which steps x was recorded.

    Args:
        datum_shape: of x.
        has_atom: a is the least of the training data, which many may equal; otherwise it is 0.

    Attributes:
        atom: a; 0 before the fit.
        share: the share of the training data that are a.
    """

    unfitted: ClassVar[Mapping[str, float]] = MappingProxyType({**RealUnits.unfitted, "atom": 0.0, "share": 0.0})
    atom: Tensor
    share: Tensor

    def __init__(self, datum_shape: Sequence[int], has_atom: bool = False) -> None:
        super().__init__(datum_shape)
        self.has_atom = has_atom

    def fit_to(self, data: Tensor) -> None:
        """Store what the training data, (N, *datum_shape), say, without those that are NaN."""
        super().fit_to(data)
        if self.has_atom:
            self.atom.copy_(self._own(data).nan_to_num(nan=math.inf).amin(0))
            self.share.copy_(self._mean_of(data, lambda x: torch.where(x.isnan(), x, self.is_atom(x).double())))
        self._fit_mean(data, self.log_above)

    def is_atom(self, x: Tensor) -> Tensor:
        """Return whether x is a; no x of a column without such a value is."""
        if not self.has_atom:
            return torch.zeros_like(x, dtype=torch.bool)
        return is_atom(x.double(), self.atom.double(), self.step.double())

    def log_above(self, x: Tensor) -> Tensor:
        """Return log (x - a) in float64, NaN where x is a or below it."""
        rest = x.double() - self.atom.double()
        return torch.where(self.is_atom(x) | (rest <= 0), math.nan, rest).log()


class WithMask(nn.Module):
    """Return x with 0 for NaN, and beside it 1 for each value that is not NaN: (..., 2 C, H, W) of (..., C, H, W).

    Args:
        datum_shape: of x.
    """

    has_mask = True

    def __init__(self, datum_shape: Sequence[int]) -> None:
        super().__init__()
        self.num_dims = len(datum_shape)

    def forward(self, x: Tensor) -> Tensor:
        """Return the values and then the mask, along the first dimension of a datum."""
        is_missing = x.isnan()
        values = torch.where(is_missing, 0.0, x)
        return torch.cat([values, (~is_missing).to(x.dtype)], dim=-self.num_dims)


class CountUnits(Units):
    """The units of counts: their mean m and variance in the training data, value by value.

    A decoder's output o becomes the mean of a count, and an encoder sees the count x as v:

        mean = a softplus(c o + b),      v = log((1 + x) / (1 + m)) / c
        a = max(1, m / log 2),   a softplus(b) = m,   c = min(1, sd / (a sigmoid(b)))

    So the mean is m at o = 0, whatever the unit, and an o of order 1 changes it by about a standard deviation sd. Of
    counts that are mostly 0, whose natural unit is 1, an o of order 1 is about one count. In a module that was not
    fitted to data, a and c are 1 and b is 0.

    Args:
        datum_shape: of x.

    Attributes:
        mean: m; 0 before the fit.
        slope: c.
        log_theta: of the negative binomial that has this mean and variance, from -3 to 10; 0 before the fit.
    """

    unfitted: ClassVar[Mapping[str, float]] = MappingProxyType({"mean": 0.0, "slope": 1.0, "log_theta": 0.0})
    mean: Tensor
    slope: Tensor
    log_theta: Tensor

    def fit_to(self, data: Tensor) -> None:
        """Store what the training data, (N, *datum_shape), say, without those that are NaN."""
        mean = self._mean_of(data, lambda x: x).clamp(min=_LEAST_MEAN)
        variance = self._mean_of(data, lambda x: (x - mean).square())
        is_constant = variance <= (_ROUNDING * mean).square()
        self.mean.copy_(mean)
        unit, shift = self.unit_and_shift()
        slope = (variance.sqrt() / (unit * shift.sigmoid())).clamp(max=1)
        self.slope.copy_(torch.where(is_constant, 1.0, slope))
        log_theta = (mean.square() / (variance - mean).clamp(min=1e-300)).log().clamp(-3, 10)
        self.log_theta.copy_(torch.where(is_constant, 0.0, log_theta))

    def mean_of(self, output: Tensor) -> Tensor:
        """Return the mean of counts in float64, given a decoder's output."""
        unit, shift = self.unit_and_shift()
        return unit * softplus(self.slope * output.double() + shift) + 1e-6  # log(0) otherwise, at an output below -100

    def forward(self, x: Tensor) -> Tensor:
        """Return log((1 + x) / (1 + m)) / c, in the dtype of the buffers."""
        return (((1 + x.double()) / (1 + self.mean.double())).log() / self.slope).to(self.mean.dtype)

    def unit_and_shift(self) -> tuple[Tensor, Tensor]:
        """Return a and b in float64."""
        mean = self.mean.double()
        unit = (mean / math.log(2)).clamp(min=1)
        return unit, torch.where(mean > 0, mean.div(unit).expm1().log(), 0.0)


class OrdinalUnits(Units):
    """The shares of K levels in the training data, value by value.

    Args:
        datum_shape: (D,), of x, levels 0 to K - 1.
        num_levels: K.

    Attributes:
        shift: added to the parameters of `cutpoints`, (D, K - 1), so that each level has its share at an output of 0; 0
            before the fit, where each has the share 1 / K.
    """

    unfitted: ClassVar[Mapping[str, float]] = MappingProxyType({"shift": 0.0})
    shift: Tensor
    start: Tensor

    def __init__(self, datum_shape: Sequence[int], num_levels: int) -> None:
        super().__init__((*datum_shape, num_levels - 1))
        start = torch.logit(torch.arange(1, num_levels) / num_levels)
        self.register_buffer("start", torch.cat([start[:1], start.diff().log()]), persistent=False)

    def fit_to(self, data: Tensor) -> None:
        """Store the cut points of the shares of the training data, (N, D), without those that are NaN."""
        levels = torch.arange(self.shift.shape[-1], device=data.device)

        def are_at_most(x: Tensor) -> Tensor:
            x = x[..., None]
            return torch.where(x.isnan(), x, (x <= levels).double())

        below = self._mean_of(data, are_at_most)
        cuts = below.clamp(_LEAST_SHARE, 1 - _LEAST_SHARE).logit()
        gaps = (cuts.diff() - LEAST_GAP).clamp(min=LEAST_GAP)
        self.shift.copy_(torch.cat([cuts[..., :1], gaps.log()], -1).sub(self.start).nan_to_num())

    def cutpoints(self, parameters: Tensor) -> Tensor:
        """Return increasing cut points (D, K - 1): the first one and the logarithms of gaps are parameters + shift."""
        raw = parameters + self.shift
        return torch.cat([raw[..., :1], LEAST_GAP + raw[..., 1:].exp()], -1).cumsum(-1)
