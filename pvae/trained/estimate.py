"""`Estimate`, a mean with its standard error."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

__all__ = ["Estimate"]


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean and its standard error.

    Args:
        mean: the mean of N values, in their unit.
        stderr: its standard error; 0 of an exact value.
    """

    mean: float
    stderr: float

    def __str__(self) -> str:
        """Return mean and error, with two to six decimals: two significant digits of a small error."""
        if not math.isfinite(self.stderr):
            return f"{self.mean} +- {self.stderr}"
        digits = 2 if self.stderr == 0 else min(6, max(2, 1 - math.floor(math.log10(self.stderr))))
        return f"{self.mean:.{digits}f} +- {self.stderr:.{digits}f}"

    @classmethod
    def of(cls, values: Tensor) -> Estimate:
        """Return the mean of values (N,), N at least 2, and its standard error std / sqrt(N), in float64."""
        values = values.double()
        return cls(mean=values.mean().item(), stderr=values.std().item() / math.sqrt(len(values)))
