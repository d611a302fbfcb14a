"""`Column`, a column of a table: how its fields become values, and values become fields again."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone

EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_MOST_DECIMALS = 8  # of numbers that a person wrote


@dataclass(frozen=True)
class Column:
    """A column of a table: how its fields become values of x, and values become fields again.

    Args:
        name: its name.
        categories: the texts whose codes 0, 1, ... are the values of x, of an ordinal column in their order; () for
            numbers and dates.
        kind: "real", "count", "binary", "categorical" or "ordinal", if `--columns` names one for it; or ""; or "below",
            if its missing fields are those below its limit.
        decimals: digits behind the point of its numbers, 0 if they are whole; None if that is not known.
        least: the least value in the file.
        greatest: the greatest value in the file.
        origin: what is added to a value of x to give the number in the file, or for dates the days since 1970-01-01.
        unit: the unit of the values of x, for instance "days from 2020-03-01", or "".
        date_format: how dates are written, as `datetime.strftime` takes it, %z in UTC; "" for a column of other values.
        suffix: "%" behind each number, or "".
        point: "." or the decimal comma.
        step: of which the differences of its numbers are multiples, such as 500, if it is above a unit of the last
            digit; of dates those of times of the day, in days, such as of whole minutes; or 0.
        least_decimals: the fewest digits behind the point of a number in the file, up to which zeros at the end are not
            written; None if all have `decimals`.
        limit: L, below which values are known only to be below it; or None. `origin` is then 0.
        limit_text: how a field below L is written, such as "<0.5".
    """

    name: str
    categories: tuple[str, ...] = ()
    kind: str = ""
    decimals: int | None = None
    least: float | None = None
    greatest: float | None = None
    origin: float = 0.0
    unit: str = ""
    date_format: str = ""
    suffix: str = ""
    point: str = "."
    step: float = 0.0
    least_decimals: int | None = None
    limit: float | None = None
    limit_text: str = ""

    @property
    def spacing(self) -> float:
        """The distance of neighbouring values in the unit of x; 1 of categories, and of numbers of any digits."""
        if self.categories:
            return 1.0
        if self.step:
            return self.step
        if self.date_format:
            return self._date_unit / timedelta(days=1)
        if self.decimals is None or self.decimals > _MOST_DECIMALS:
            return 1.0
        return float(10.0**-self.decimals)

    @property
    def natural_range(self) -> tuple[float, float]:
        """The least and the greatest value that its numbers have by themselves: 0, or the first above it, and 1."""
        if self.least is None or self.greatest is None or self.date_format or not math.isfinite(self.least):
            return -math.inf, math.inf
        low, greatest = self.origin + self.least, math.inf
        if low < 0 or self.categories:
            return -math.inf, greatest
        least = low - self.spacing * math.floor(low / self.spacing + 1e-6)
        if low > 0 and least < 1e-3 * self.spacing:  # none is 0
            least += self.spacing
        if self.decimals is None:
            least = 0.0
        elif self.origin + self.greatest <= 1:  # a share
            greatest = 1 - self.origin
        return least - self.origin, greatest

    @property
    def _date_unit(self) -> timedelta:
        """The unit in which dates are written."""
        parts = ("days", "%d"), ("hours", "%H"), ("minutes", "%M"), ("seconds", "%S"), ("microseconds", "%f")
        return timedelta(**{[name for name, code in parts if code in self.date_format or code == "%d"][-1]: 1})

    @property
    def below(self) -> float:
        """The value of x of a field below the limit."""
        limit = self.limit or 0.0
        return limit - (abs(limit) / 2 or 1.0)

    def is_below(self, value: float) -> bool:
        """Return whether a value lies below the limit."""
        return self.limit is not None and value < self.limit

    def rounded(self, value: float) -> float:
        """Return a value that was drawn or computed as one of the file: in its steps and decimals, or `below`.

        A number of a column of which none is below 0, or none is 0, is not below 0 either, or not 0; and one of a
        column of shares is at most 1. It may lie beyond the values of the file.
        """
        value = self._in_steps(value)
        if self.is_below(value):
            return self.below
        return value

    def _in_steps(self, value: float) -> float:
        if math.isnan(value):
            return value
        if self.date_format:
            return round((self.origin + value) / self.spacing) * self.spacing - self.origin
        is_in_digits = self.decimals is not None and self.decimals <= _MOST_DECIMALS
        if self.step and self.least is not None:
            value = self.least + self.step * round((value - self.least) / self.step)
        elif not is_in_digits:
            return value
        least, greatest = self.natural_range
        value = min(max(value, least), greatest)
        if is_in_digits:
            return round(self.origin + value, self.decimals) - self.origin
        return value

    def text(self, value: float, is_given: bool = False, is_filled: bool = False) -> str:
        """Return a value as the file has it: the text of a category, a date, or a number with the file's decimals.

        Numbers and dates that were drawn or computed are rounded, as `rounded` says.

        Args:
            value: a value of x; NaN becomes "".
            is_given: the value is from a file, and keeps all of its digits.
            is_filled: the value is imputed; it is a number below the limit, too.
        """
        if math.isnan(value):
            return ""
        if self.categories:
            return self.categories[min(max(round(value), 0), len(self.categories) - 1)]
        if is_filled and self.is_below(value):
            return f"{value:.6g}".replace(".", self.point) + self.suffix
        if not is_given:
            value = self.rounded(value)
        if self.is_below(value):
            return self.limit_text
        number = self.origin + value
        if self.date_format:
            unit = self._date_unit
            return f"{EPOCH + round(timedelta(days=number) / unit) * unit:{self.date_format.replace('%z', '+00:00')}}"
        if self.decimals is None:
            digits = 15 if is_given else 6
            text = f"{number:.{digits}g}"
        elif self.decimals > _MOST_DECIMALS:  # written from doubles: the shortest text of this number
            import numpy as np

            single = np.float32(number)
            text = repr(number)
            if float(single) == number:
                text = str(single)
        else:
            text = f"{round(number, self.decimals) + 0.0:.{self.decimals}f}"  # 0.0 makes -0 a 0
            if is_given and float(text) != number:
                text = f"{number:.15g}"
            elif self.least_decimals is not None:
                whole, _, fraction = text.partition(".")
                text = f"{whole}.{fraction.rstrip('0').ljust(self.least_decimals, '0')}".rstrip(".")
        return text.replace(".", self.point) + self.suffix
