"""`Visits`, the training data of an epoch: in which order they are visited, and the batch of an index."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from pvae.data.batch import Batch
from pvae.data.preparation import Preparation
from pvae.data.torch_data import in_random_order

__all__ = ["Visits"]


@dataclass(frozen=True, eq=False)
class Visits:
    """Training data in memory, visited in a random order; the pixels of "dynamic" are drawn at each visit."""

    prepared: Tensor
    preparation: Preparation
    y: Tensor | None

    def __len__(self) -> int:
        """Return N."""
        return len(self.prepared)

    def order(self) -> Tensor:
        """Return the indices in a random order, int64 (N,)."""
        return in_random_order(self.prepared)

    def batch(self, index: Tensor) -> Batch:
        """Return the data of an index, int64 (B,), on the device of the data."""
        return Batch(self.preparation.batch(self.prepared, index), None if self.y is None else self.y[index])
