"""`Levels`, the values that images have, and the range of these values that becomes the levels 0 to 255 of a byte."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pvae.core.errors import InputError

__all__ = ["Levels", "to_bytes"]

_SAMPLE = 10_000  # values that show cheaply whether there are more than 256 different ones
# The range of a type: of booleans, of integers of 8 and 16 bits without a sign, and of floats.
_NOMINAL = {"b1": (0.0, 1.0), "u1": (0.0, 255.0), "u2": (0.0, 65535.0), "f": (0.0, 1.0)}


@dataclass(frozen=True)
class Levels:
    """The values of some images.

    Args:
        kind: "b1" of booleans, "u1" of bytes, "u2" of 16-bit integers, "f" of floats, "" of other integers.
        low: the lowest value.
        high: the highest value.
        distinct: the different values, sorted; 257 of them if there are more than the 256 that a byte can hold.
    """

    kind: str
    low: float
    high: float
    distinct: NDArray[Any]

    @classmethod
    def of(cls, values: NDArray[Any]) -> Levels:
        """Return the levels of an array.

        Raises:
            InputError: a value is NaN or infinite.
        """
        low, high = float(values.min()), float(values.max())
        if not np.isfinite([low, high]).all():
            raise InputError("the images have values that are NaN or infinite: remove them")
        distinct = np.unique(values.reshape(-1)[:_SAMPLE])
        distinct = np.unique(values) if len(distinct) <= 256 else distinct
        kind = "f" if values.dtype.kind == "f" else values.dtype.str[1:]
        return cls(kind if kind in _NOMINAL else "", low, high, distinct[:257])

    def __or__(self, other: Levels) -> Levels:
        """Return the levels of both.

        Raises:
            InputError: their types differ.
        """
        if self.kind != other.kind:
            raise InputError("the values of the images are of several types: convert all to one")
        both = np.union1d(self.distinct, other.distinct)[:257]
        return Levels(self.kind, min(self.low, other.low), max(self.high, other.high), both)

    def value_range(self, given: tuple[float, ...] | None = None) -> tuple[float, ...]:
        """Return the values that become 0 and 255, or () for 8-bit values and booleans that stay as they are.

        It is the first of these ranges that holds all values and in which more than half of their levels remain:

            16-bit integers   0 to 65535, 0 to 2^k - 1       floats   0 to 1, -1 to 1, 0 to 255
            other integers    0 to 2^k - 1                   any      the lowest to the highest value

        with 2^k - 1 at least 255. Bytes and integers that are all 0 or 1 have the range 0 to 1.

        Args:
            given: the range of other images, on which a run was trained; 8-bit values take it if they are 0 and 1 only.
        """
        is_byte = self.kind in ("u1", "b1")
        if is_byte or given is not None:
            are_bits = self.kind == "u1" and given in (None, (0, 1)) and self.high == 1
            return (0.0, 1.0) if are_bits else () if is_byte else given or ()
        if (self.low, self.high) == (0, 1):
            return 0.0, 1.0
        whole = (0.0, 2.0 ** max(8, int(max(self.high, 0)).bit_length()) - 1)
        by_kind = {"f": [(0.0, 1.0), (-1.0, 1.0), (0.0, 255.0)], "u2": [(0.0, 65535.0), whole]}
        ranges = by_kind.get(self.kind, [whole])
        observed = self.low, max(self.high, self.low + 1e-6 * max(1, abs(self.low)))
        return next((one for one in ranges if self._remain_in(*one)), observed)

    def _remain_in(self, low: float, high: float) -> bool:
        """Return whether the range holds all values, and more than half of their levels remain in it."""
        if self.low < low or self.high > high:
            return False
        if len(self.distinct) > 256:
            return 2 * (255 * (self.high - self.low) / (high - low) + 1) > 256
        remaining = len(np.unique(np.floor((self.distinct.astype(np.float64) - low) * (255 / (high - low)) + 1e-6)))
        return 2 * remaining > len(self.distinct) or len(self.distinct) == 1

    def note(self, value_range: tuple[float, ...]) -> str:
        """Return what `to_bytes` changes or loses, or ""."""
        if not value_range or (value_range == _NOMINAL.get(self.kind) and len(self.distinct) <= 256):
            return ""
        low, high = value_range
        if (low, high) == (0, 255) and low <= self.low <= self.high <= high and self.kind != "f":
            return ""
        clipped = "; those beyond are set to these" if self.low < low or self.high > high else ""
        return f"values from {low:g} to {high:g} are read as 0 to 255 (x {255 / (high - low):.6g}){clipped}"


def to_bytes(values: NDArray[Any], value_range: tuple[float, ...]) -> NDArray[np.uint8]:
    """Return values as bytes.

        255 (value - low) / (high - low), rounded; values beyond low and high are set to these

    Args:
        values: of any type and shape.
        value_range: low and high; () for the range of the type: bytes stay, 16-bit values are divided by 257 and
            rounded down (those of colour files by 256, as Pillow does), booleans become 0 and 255, and floats are
            multiplied by 255.

    Raises:
        ValueError: there is no range, and the values are floats beyond [0, 1] or integers beyond [0, 255].
    """
    kind = values.dtype.str[1:]
    if kind == "u1" and value_range != (0, 1):
        return values
    if kind == "u2" and value_range in ((), (0, 65535)):
        return (values // 257).astype(np.uint8)
    if kind == "b1":
        return values.astype(np.uint8) * np.uint8(255)
    if not value_range or (value_range == (0, 1) and values.dtype.kind == "f"):
        most = 1 if values.dtype.kind == "f" else 255
        if not 0 <= values.min() <= values.max() <= most:
            raise InputError(f"values are outside of [0, {most}], the range of the training images: rescale them")
        return np.rint(values * np.float32(255 // most)).astype(np.uint8)
    low, high = value_range
    return np.rint((values.astype(np.float64) - low) * (255 / (high - low))).clip(0, 255).astype(np.uint8)
