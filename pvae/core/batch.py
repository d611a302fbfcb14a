"""`Batch`, data x with their labels y, which model, guide and ELBOs take; and the loss and terms that ELBOs return."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from pvae.core.errors import InputError, NotFiniteError


class Rows(Protocol):
    """N data that `split` turns into tensors in parts, such as a tensor."""

    def __len__(self) -> int:
        """Return N."""

    def __getitem__(self, index: Any) -> Any:
        """Return the data of an index, int64 (M,), or of a slice."""

    def split(self, size: int) -> Any:
        """Yield tensors of at most `size` data."""


@dataclass(frozen=True, eq=False)
class Batch:
    """N data with their labels, if there are some. A missing value is NaN in x.

    `*batch` is x, or x and y, so that `vae.posterior(*batch)` and `elbo.loss(vae.model, vae.guide, *batch)` take both.

    Args:
        x: data (N, *D), a tensor or other `Rows`.
        y: labels, one for each datum (N, ...), or one for all (1, ...); None without labels.

    Raises:
        InputError: there is another number of labels.
    """

    x: Any  # `Rows`
    y: Tensor | None = None

    def __post_init__(self) -> None:
        """Check the number of labels."""
        if self.y is not None and len(self.y) not in (1, len(self.x)):
            raise InputError(
                f"there are {len(self.y)} labels for {len(self.x)} data: give one for each, or one for all"
            )

    @classmethod
    def of(cls, data: Data) -> Batch:
        """Return data without labels as a batch, and a batch as it is."""
        if isinstance(data, Batch):
            return data
        return cls(data)

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
        y = self.y
        if y is not None and len(y) > 1:
            y = y[index]
        return Batch(self.x[index], y)

    def split(self, size: int) -> Iterator[Batch]:
        """Yield batches of at most `size` data, whose x is a tensor."""
        start = 0
        for x in self.x.split(size):
            yield Batch(x, self.rows(slice(start, start + len(x))).y)
            start += len(x)


Data = Batch | Rows  # what `Batch.of` accepts


class Terms(NamedTuple):
    """The two terms of an ELBO, each of shape (B,), in nats per datum; `elbo` is minus their sum.

    Reference:
        Alemi et al., arXiv:1711.00464 (the names of the terms).
    """

    distortion: Tensor
    rate: Tensor

    @property
    def elbo(self) -> Tensor:
        """The lower bound on log p(x), (B,): -distortion - rate, without the weights of the loss."""
        return -self.distortion - self.rate


class LossAndTerms(NamedTuple):
    """The loss of a batch, a scalar in nats per datum, and its terms, which require no gradient."""

    loss: Tensor
    terms: Terms

    def check_finite(self) -> None:
        """Raise a `NotFiniteError` if the loss is NaN or infinite."""
        if not math.isfinite(self.loss.item()):
            raise NotFiniteError(f"the loss is {self.loss.item()}")
