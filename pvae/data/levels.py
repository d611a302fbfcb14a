"""`Levels`, which values images have, and the range of them that becomes the levels 0 to 255 of a byte."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pvae.core.errors import InputError

__all__ = ["Levels", "to_bytes"]

_SAMPLE = 10_000  # values that show cheaply whether there are more than 256 different ones


@dataclass(frozen=True)
class Levels:
    """The values of some images.

    Args:
        nominal: the range of their type: (0, 255), (0, 65535), (0, 1) for floats; () for other integers.
        low: the lowest value.
        high: the highest value.
        distinct: the different values, sorted; 257 of them if they are more than the 256 that a byte can hold.
        is_float: they are floats.
    """

    nominal: tuple[float, ...]
    low: float
    high: float
    distinct: NDArray[Any]
    is_float: bool

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
        nominal = {"b1": (0.0, 1.0), "u1": (0.0, 255.0), "u2": (0.0, 65535.0)}.get(values.dtype.str[1:], ())
        is_float = values.dtype.kind == "f"
        return cls((0.0, 1.0) if is_float else nominal, low, high, distinct[:257], is_float)

    def __or__(self, other: Levels) -> Levels:
        """Return the levels of both.

        Raises:
            InputError: their types differ.
        """
        if (self.nominal, self.is_float) != (other.nominal, other.is_float):
            raise InputError("the values of the images are of several types: convert all to one")
        both = np.union1d(self.distinct, other.distinct)[:257]
        return Levels(self.nominal, min(self.low, other.low), max(self.high, other.high), both, self.is_float)

    def value_range(self, given: tuple[float, ...] | None = None) -> tuple[float, ...]:
        """Return the values that become 0 and 255, or () for 8-bit values and booleans that stay as they are.

        It is the range of the type, if more than half of the levels remain in it. Otherwise it is 0 and 1 where there
        are no other values; 0 and 2^k - 1, at least 255, for integers; -1 and 1 or 0 and 255 for floats; or, if these
        too leave at most half of the levels, the lowest and the highest value.

        Args:
            given: the range of other images, on which a run was trained; 8-bit values take it if they are 0 and 1 only.
        """
        is_byte = self.nominal in ((0, 255), (0, 1)) and not self.is_float
        if is_byte or given is not None:
            are_bits = self.nominal == (0, 255) and given in (None, (0, 1)) and self.high == 1
            return (0.0, 1.0) if are_bits else () if is_byte else given or ()
        bits = max(8, int(max(self.high, 0)).bit_length())
        ranges: list[tuple[float, ...]] = [(-1.0, 1.0), (0.0, 255.0)] if self.is_float else [(0.0, 2.0**bits - 1)]
        if not self.is_float and (self.low, self.high) == (0, 1):
            ranges = [(0.0, 1.0)]
        elif self.nominal:
            ranges.insert(0, self.nominal)
        whole = self.low, max(self.high, self.low + 1e-6 * max(1, abs(self.low)))
        return next((one for one in ranges if self._remain_in(*one)), whole)

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
        if not value_range or (value_range == self.nominal and len(self.distinct) <= 256):
            return ""
        low, high = value_range
        if (low, high) == (0, 255) and low <= self.low <= self.high <= high and not self.is_float:
            return ""
        clipped = "; those beyond are set to these" if self.low < low or self.high > high else ""
        return f"values from {low:g} to {high:g} are read as 0 to 255 (x {255 / (high - low):.6g}){clipped}"


def to_bytes(values: NDArray[Any], value_range: tuple[float, ...]) -> NDArray[np.uint8]:
    """Return values as bytes.

        255 (value - low) / (high - low), rounded; values beyond low and high are set to these

    Args:
        values: of any type and shape.
        value_range: low and high; () for the range of the type. Of this one, bytes stay, 16 bits are divided by 257 and
            rounded down (of colour files by 256, as Pillow does), booleans become 0 and 255, and floats are multiplied
            by 255.

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
