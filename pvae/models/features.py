"""What an encoder sees of x: transforms of data that lie before its first layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from pvae.config.columns import ColumnKind
from pvae.config.config import Config

__all__ = ["ColumnFeatures", "CountUnits", "Standardize", "Units", "WithMask", "encoder_input"]

_ROWS = 10_000  # in a part of the data
_ROUNDING = 1e-14  # standard deviation of equal values, as a share of their mean, by rounding of float64
_LEAST_MEAN = 1e-6  # of a count, where all are 0


def encoder_input(config: Config, datum_shape: tuple[int, ...]) -> tuple[list[nn.Module], tuple[int, ...]]:
    """Return the transforms of x before the encoder, and the shape of their result.

    Args:
        config: its likelihood says what the encoder sees; with `missing` it also sees which values are NaN.
        datum_shape: of x.
    """
    family = config.likelihood_family
    if family.is_of_columns:
        features = ColumnFeatures(config.column_kinds, config.missing)
        return [features], (features.num_features,)
    seen: list[nn.Module] = []
    if family.is_count:
        seen.append(CountUnits(datum_shape))
    elif family.is_real:
        seen.append(Standardize(datum_shape))
    if not config.missing:
        return seen, datum_shape
    return [*seen, WithMask(datum_shape)], (2 * datum_shape[0], *datum_shape[1:])  # the values and their mask


class Units(nn.Module):
    """The location and the scale of each value of the training data, which `build.fit_to` stores as buffers.

    A checkpoint of an earlier version, which had no such buffers, loads as a module that was not fitted to data.

    Args:
        datum_shape: of x.
        columns: where x is a part of a datum, the columns of the datum that it is.
    """

    unfitted: ClassVar[Mapping[str, float]]  # the name of each buffer, and its values before the fit

    def __init__(self, datum_shape: Sequence[int], columns: Sequence[int] | None = None) -> None:
        super().__init__()
        self.columns = None if columns is None else list(columns)
        for name, value in self.unfitted.items():
            self.register_buffer(name, torch.full(tuple(datum_shape), value))

    def fit_to(self, data: Tensor) -> None:
        """Store what is needed of the training data, (N, *datum_shape)."""
        raise NotImplementedError

    def _mean_of(self, data: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the mean over the data of a function of float64 values, without those that are NaN."""
        total = count = torch.zeros((), dtype=torch.float64)
        for part in data.split(_ROWS):  # a float64 copy of all may not fit into memory
            values = function((part if self.columns is None else part[..., self.columns]).double())
            total, count = total + values.nansum(0), count + (~values.isnan()).sum(0)
        return total / count

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        for name, value in self.unfitted.items():
            state_dict.setdefault(prefix + name, torch.full_like(getattr(self, name), value))
        super()._load_from_state_dict(state_dict, prefix, *args)


class Standardize(Units):
    """Subtract the mean of the training data and divide by their standard deviation, value by value, in float64.

    The mean is kept as the sum of two float32 values, because one does not hold 1e15 + 1e3.

    Args:
        datum_shape: of x.
        columns: where x is a part of a datum, the columns of the datum that it is.
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
        mean = self._mean_of(data, lambda x: x)
        std = self._mean_of(data, lambda x: (x - mean).square()).sqrt()
        self.mean.copy_(mean)
        self.mean_rest.copy_(mean - self.mean.double())
        is_constant = (std <= _ROUNDING * mean.abs()) | (std < torch.finfo(torch.float32).tiny)
        self.std.copy_(torch.where(is_constant, torch.ones_like(std), std))

    def forward(self, x: Tensor) -> Tensor:
        """Return (x - mean) / std, in the dtype of the buffers."""
        return ((x.double() - self.loc) / self.scale).to(self.std.dtype)


class WithMask(nn.Module):
    """Return x with 0 for NaN, and beside it 1 for each value that is not NaN: (..., 2 C, H, W) of (..., C, H, W).

    Args:
        datum_shape: of x.
    """

    def __init__(self, datum_shape: Sequence[int]) -> None:
        super().__init__()
        self.num_dims = len(datum_shape)

    def forward(self, x: Tensor) -> Tensor:
        """Return the values and then the mask, along the first dimension of a datum."""
        is_missing = x.isnan()
        values = torch.where(is_missing, torch.zeros_like(x), x)
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
        columns: where x is a part of a datum, the columns of the datum that it is.

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


class ColumnFeatures(Standardize):
    """Return what an encoder sees of rows (..., D) of columns of different kinds: (..., F), and with a mask F + D.

    A real value and log(1 + count) are standardised, a binary value is as it is, and a category is one-hot. What is
    missing, NaN, is 0 in all of these.

    Args:
        kinds: the kind of each column.
        has_mask: add 1 for each value that is not NaN.
    """

    is_count: Tensor
    order: Tensor

    def __init__(self, kinds: Sequence[ColumnKind], has_mask: bool) -> None:
        super().__init__((len(kinds),))
        self.kinds, self.has_mask = tuple(kinds), has_mask
        sizes = [kind.num_categories for kind in kinds]  # K, or 0 of a number
        self.counts = {size: sizes.count(size) for size in sorted({*sizes})}
        order = sorted(range(len(kinds)), key=sizes.__getitem__)
        self.register_buffer("order", torch.tensor(order), persistent=False)
        self.register_buffer("is_count", torch.tensor([kind.is_count for kind in kinds]), persistent=False)

    @property
    def num_features(self) -> int:
        """F, or F + D with a mask."""
        return sum(kind.num_features for kind in self.kinds) + self.has_mask * len(self.kinds)

    def fit_to(self, data: Tensor) -> None:
        """Store mean and standard deviation of log(1 + count) and of real values, and leave others as they are."""
        super().fit_to(self._logs(data))
        others = [place for place, kind in enumerate(self.kinds) if not kind.is_standardized]
        self.mean[others] = self.mean_rest[others] = 0.0
        self.std[others] = 1.0

    def forward(self, x: Tensor) -> Tensor:
        """Return the features."""
        values, parts = super().forward(self._logs(x))[..., self.order], list[Tensor]()
        for size, part in zip(self.counts, values.split([*self.counts.values()], -1)):
            if size:  # NaN equals no code
                part = (part[..., None] == torch.arange(size, device=x.device)).to(part.dtype).flatten(-2)
            parts.append(torch.where(part.isnan(), torch.zeros_like(part), part))
        return torch.cat([*parts, *[(~x.isnan()).to(values.dtype)] * self.has_mask], -1)

    def _logs(self, x: Tensor) -> Tensor:
        x = x.double()
        return torch.where(self.is_count, x.clamp(min=0).log1p(), x)
