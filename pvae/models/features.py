"""What an encoder sees of x: transforms of data that lie before its first layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from pvae.config.columns import ColumnKind
from pvae.config.config import Config

__all__ = ["ColumnFeatures", "Log1p", "Standardize", "WithMask", "encoder_input"]

_ROWS = 10_000  # in a part of the data


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
        seen.append(Log1p())
    elif family.is_real:
        seen.append(Standardize(datum_shape))
    if not config.missing:
        return seen, datum_shape
    return [*seen, WithMask(datum_shape)], (2 * datum_shape[0], *datum_shape[1:])  # the values and their mask


class Standardize(nn.Module):
    """Subtract the mean of the training data and divide by their standard deviation, value by value.

    Args:
        datum_shape: of x.
        columns: where x is a part of a datum, the columns of the datum that it is.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, datum_shape: Sequence[int], columns: Sequence[int] | None = None) -> None:
        super().__init__()
        self.columns = None if columns is None else list(columns)
        self.register_buffer("mean", torch.zeros(*datum_shape))
        self.register_buffer("std", torch.ones(*datum_shape))

    def fit_to(self, data: Tensor) -> None:
        """Store mean and standard deviation of the training data, (N, *datum_shape), without those that are NaN."""

        def mean_of(function: Callable[[Tensor], Tensor]) -> Tensor:
            total = count = torch.zeros((), dtype=torch.float64)
            for part in data.split(_ROWS):  # a float64 copy of all may not fit into memory
                values = function(part if self.columns is None else part[..., self.columns]).double()
                total, count = total + values.nansum(0), count + (~values.isnan()).sum(0)
            return total / count

        mean = mean_of(lambda x: x)
        std = mean_of(lambda x: (x - mean).square()).sqrt()
        self.mean.copy_(mean)
        self.std.copy_(torch.where(std > 0, std, torch.ones_like(std)))

    def forward(self, x: Tensor) -> Tensor:
        """Return (x - mean) / std."""
        return (x - self.mean) / self.std


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


class Log1p(nn.Module):
    """Return log(1 + x) of counts, which may differ by orders of magnitude."""

    def forward(self, x: Tensor) -> Tensor:
        """Return log(1 + x)."""
        return x.log1p()


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
        self.mean[others], self.std[others] = 0.0, 1.0

    def forward(self, x: Tensor) -> Tensor:
        """Return the features."""
        values, parts = super().forward(self._logs(x))[..., self.order], list[Tensor]()
        for size, part in zip(self.counts, values.split([*self.counts.values()], -1)):
            if size:  # NaN equals no code
                part = (part[..., None] == torch.arange(size, device=x.device)).to(x.dtype).flatten(-2)
            parts.append(torch.where(part.isnan(), torch.zeros_like(part), part))
        return torch.cat([*parts, *[(~x.isnan()).to(x.dtype)] * self.has_mask], -1)

    def _logs(self, x: Tensor) -> Tensor:
        return torch.where(self.is_count, x.clamp(min=0).log1p(), x)
