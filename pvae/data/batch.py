"""`Batch`, data x with their labels y: what model, guide and ELBOs take as `*batch`; and `TrainingData`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pvae.core.errors import InputError
from pvae.data.preparation import Pixels, Preparation

__all__ = ["Batch", "Data", "TrainingData"]


@dataclass(frozen=True, eq=False)
class Batch:
    """N data with their labels, if there are some. A missing value is NaN in x.

    `*batch` is x, or x and y, so that `vae.posterior(*batch)` and `elbo.loss(vae.model, vae.guide, *batch)` take both.

    Args:
        x: data (N, *D), a tensor or `Pixels`.
        y: labels, one for each datum (N, ...), or one for all (1, ...); None without labels.

    Raises:
        InputError: there is another number of labels.
    """

    x: Any  # Tensor | Pixels; `split` yields tensors
    y: Tensor | None = None

    def __post_init__(self) -> None:
        """Check the number of labels."""
        if self.y is not None and len(self.y) not in (1, len(self.x)):
            raise InputError(
                f"there are {len(self.y)} labels for {len(self.x)} data: give one for each, or one for all"
            )

    @classmethod
    def of(cls, data: Batch | Tensor | Pixels) -> Batch:
        """Return data without labels as a batch, and a batch as it is."""
        return data if isinstance(data, Batch) else cls(data)

    def __len__(self) -> int:
        """Return N."""
        return len(self.x)

    def __iter__(self) -> Iterator[Any]:
        """Yield x, and then y if there are labels."""
        yield self.x
        if self.y is not None:
            yield self.y

    def rows(self, index: Tensor | slice) -> Batch:
        """Return the data of an index, int64 (M,), or of a slice."""
        return Batch(self.x[index], self.y if self.y is None or len(self.y) == 1 else self.y[index])

    def split(self, size: int) -> Iterator[Batch]:
        """Yield batches of at most `size` data, whose x is a tensor."""
        start = 0
        for x in self.x.split(size):
            yield Batch(x, self.rows(slice(start, start + len(x))).y)
            start += len(x)


Data = Batch | Tensor | Pixels  # what `Batch.of` accepts


@dataclass(frozen=True, eq=False)
class TrainingData:
    """Training data in memory, prepared once; the pixels of "dynamic" are drawn anew for each batch."""

    prepared: Tensor
    preparation: Preparation
    y: Tensor | None

    def __len__(self) -> int:
        """Return N."""
        return len(self.prepared)

    def batch(self, index: Tensor) -> Batch:
        """Return the data of an index, int64 (B,), on the device of the data."""
        return Batch(self.preparation.batch(self.prepared, index), None if self.y is None else self.y[index])
