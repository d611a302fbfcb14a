"""`Levels`, the values that images have, and the range of these values that becomes the levels 0 to 255 of a byte."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pvae.core.errors import InputError


@dataclass(frozen=True)
class Levels:
    """The range of the values of some images.

    Args:
        kind: "b1" of booleans, "u1" of bytes, "u2" of 16-bit integers, "f" of floats, "" of other integers.
        low: the lowest value.
        high: the highest value.
    """

    kind: str
    low: float
    high: float

    @classmethod
    def of(cls, values: NDArray[Any]) -> Levels:
        """Return the levels of an array.

        Raises:
            InputError: a value is NaN or infinite.
        """
        low, high = float(values.min()), float(values.max())
        if not np.isfinite([low, high]).all():
            raise InputError("some values are NaN or infinite: remove them, or take array:FILE --missing for NaN")
        kind = "f" if values.dtype.kind == "f" else values.dtype.str[1:]
        return cls(kind if kind in ("b1", "u1", "u2", "f") else "", low, high)

    def __or__(self, other: Levels) -> Levels:
        """Return the levels of both.

        Raises:
            InputError: their types differ.
        """
        if self.kind != other.kind:
            raise InputError("the values of the images are of several types: convert all to one")
        return Levels(self.kind, min(self.low, other.low), max(self.high, other.high))

    def value_range(self, given: tuple[float, ...] | None = None) -> tuple[float, ...]:
        """Return the values that become 0 and 255, or () for 8-bit values and booleans that stay as they are.

        Integers from 0 to 255 stay as they are; if all values are 0 or 1, the range is 0 to 1. Otherwise it is the
        first of these ranges that holds all values and of which they cover at least half:

            16-bit integers   0 to 65535, 0 to 2^k - 1       floats   0 to 1, -1 to 1, 0 to 255
            other integers    0 to 2^k - 1                   any      the lowest to the highest value

        Values that are all equal need not cover half of a range.

        Args:
            given: the range of other images, on which a run was trained; 8-bit values take it if they are 0 and 1 only.
                () of a run that was trained on bytes: the values need not cover half of a range.
        """
        if self.kind in ("u1", "b1"):
            are_bits = self.kind == "u1" and given in (None, (0, 1)) and self.high == 1
            return (0.0, 1.0) if are_bits else ()
        if given:
            return given
        if (self.low, self.high) == (0, 1):
            return 0.0, 1.0
        if self.kind != "f" and 0 <= self.low <= self.high <= 255:
            return 0.0, 255.0
        whole = (0.0, 2.0 ** int(max(self.high, 0)).bit_length() - 1)
        by_kind = {"f": [(0.0, 1.0), (-1.0, 1.0), (0.0, 255.0)], "u2": [(0.0, 65535.0), whole]}
        is_any_share = given == () or self.low == self.high
        for low, high in by_kind.get(self.kind, [whole]):
            is_inside = low <= self.low and self.high <= high
            if is_inside and (is_any_share or 2 * (self.high - self.low) >= high - low):
                return low, high
        return self.low, max(self.high, self.low + 1e-6 * max(1, abs(self.low)))

    def note(self, value_range: tuple[float, ...]) -> str:
        """Return what `to_bytes` changes or loses, or ""."""
        if not value_range or (value_range == (0, 255) and self.kind != "f" and 0 <= self.low <= self.high <= 255):
            return ""
        low, high = value_range
        clipped = "; those beyond are set to these" if self.low < low or self.high > high else ""
        return f"values from {low:g} to {high:g} are read as 0 to 255 (x {255 / (high - low):.6g}){clipped}"


def to_bytes(values: NDArray[Any], value_range: tuple[float, ...]) -> NDArray[np.uint8]:
    """Return values as bytes.

        255 (value - low) / (high - low), rounded; values beyond low and high are set to these

    Bytes stay as they are unless the range is 0 to 1, booleans become 0 and 255, and 16-bit values from 0 to 65535 are
    divided by 257 and rounded down.

    Args:
        values: of any type and shape.
        value_range: low and high; () for bytes and booleans.
    """
    kind = values.dtype.str[1:]
    if kind == "b1":
        return values.astype(np.uint8) * np.uint8(255)
    if kind == "u1" and value_range != (0, 1):
        return values
    if kind == "u2" and value_range == (0, 65535):
        return (values // 257).astype(np.uint8)
    low, high = value_range
    scaled: NDArray[Any] = (values.astype(np.float64) - low) * (255 / (high - low))
    if values.dtype.kind == "f" and value_range == (0, 1):
        scaled = values * np.float32(255)
    return np.rint(scaled).clip(0, 255).astype(np.uint8)
