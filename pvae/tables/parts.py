"""How one column of a table is modelled by others: whether it is empty, its ends, its year and day, its levels.

To add a part, write a subclass of `Part` with a name here, add it to `PARTS`, and write its `undo` in
`explore/rules.js` and a test.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from pvae.core.errors import listed
from pvae.tables.column import Column
from pvae.tables.rule import Array, Rule, Values, without

LEAST_TIMES = 5  # rows of a level
ENOUGH_ROWS = 368  # 1 / (e 0.001): what no row of them has costs at most a new row in a thousand
_FEW_LEVELS, _MOST_LEVELS = 20, 50
_END_SHARE, _END_ROWS, _END_TIMES = 0.05, 10, 4  # of rows at an end of a column, and how many times those of a value
_SPAN = 730  # days from which a date has a season
_SURE, _SURE_OF_FEW = 6.9, 13.8  # rows that are expected beyond the last level, and are not there: 0.001, 1e-6


class Part(Rule):
    """How a column is modelled by others."""

    is_law: ClassVar[bool] = False

    @classmethod
    def find(cls, name: str, column: Column, x: Array) -> Iterator[Part]:
        """Yield the part of a column, given its training values (N,), if it has this one."""
        raise NotImplementedError

    def keeps(self, values: Values) -> NDArray[np.bool_]:
        """Return whether a value can be one of the column; any can, unless a class says which."""
        return np.ones(len(values[self.column]), bool)


@dataclass(frozen=True, kw_only=True)
class Empty(Part, name="empty", help="whether a field is empty is a column of 0 and 1"):
    """Whether a field is empty is another column: drawn rows have empty fields as the data have."""

    @property
    def made(self) -> tuple[str, ...]:
        """The name of the other column."""
        return (f"{self.column} is empty",)

    def apply(self, values: Values) -> Values:
        """Add the other column."""
        return {**values, self.made[0]: np.isnan(values[self.column]).astype(float)}

    def undo(self, values: Values) -> Values:
        """Leave the fields empty."""
        x = np.where(values[self.made[0]] == 1, np.nan, values[self.column])
        return without({**values, self.column: x}, *self.made)

    def described(self, name: str, x: Array, before: Mapping[str, Column]) -> Column:
        """Return a column of 0 and 1 for the other column."""
        if name == self.column:
            return before[name]
        return Column(name, kind="binary", decimals=0, least=0.0, greatest=1.0)


@dataclass(frozen=True, kw_only=True)
class Ends(Part, name="ends", help="many values of a number are its greatest one, or its least one too"):
    """A number that often has its greatest value: whether it has, or has its least one, is another column.

    Args:
        ends: the greatest value, after the least one if that is frequent too.
        texts: of these, as the file has them.
        unit: of the last digit.
    """

    ends: tuple[float, ...]
    texts: tuple[str, ...]
    unit: float

    @property
    def made(self) -> tuple[str, ...]:
        """The name of the other column, whose codes are the places of the ends, and then that of all between."""
        return (f"{self.column} at its end",)

    @classmethod
    def find(cls, name: str, column: Column, x: Array) -> Iterator[Part]:
        """Yield it for a number whose greatest value is frequent, and four times as frequent as others."""
        levels, counts = np.unique(x[~np.isnan(x)], return_counts=True)
        if column.categories or column.date_format or column.decimals is None or len(levels) <= _FEW_LEVELS:
            return
        often = counts >= max(_END_SHARE * counts.sum(), _END_ROWS, _END_TIMES * counts[1:-1].max())
        if often[-1]:
            ends = tuple(levels[[place for place in (0, -1) if often[place]]].tolist())
            texts = tuple(column.text(end - column.origin, is_given=True) for end in ends)
            says = f"{name} is often {' or '.join(texts)}, and else lies within"
            yield cls(column=name, ends=ends, texts=texts, unit=10.0**-column.decimals, says=says)

    def apply(self, values: Values) -> Values:
        """Add the other column, and leave the fields of the ends, and beyond, empty."""
        x = values[self.column]
        codes = np.where(np.isnan(x), np.nan, len(self.ends))
        codes[x >= self.ends[-1]] = len(self.ends) - 1
        if len(self.ends) == 2:
            codes[x <= self.ends[0]] = 0
        return {**values, self.column: np.where(codes == len(self.ends), x, np.nan), self.made[0]: codes}

    def undo(self, values: Values) -> Values:
        """Fill in the ends, between which all others lie."""
        least = -math.inf
        if len(self.ends) == 2:
            least = self.ends[0] + self.unit
        x = np.clip(values[self.column], least, self.ends[-1] - self.unit)
        for code, end in enumerate(self.ends):
            x = np.where(values[self.made[0]] == code, end, x)
        return without({**values, self.column: x}, *self.made)

    def keeps(self, values: Values) -> NDArray[np.bool_]:
        """Return whether a value does not lie beyond an end."""
        x = values[self.column]
        is_above = x > self.ends[-1]
        return ~(is_above | ((x < self.ends[0]) & (len(self.ends) == 2)))

    def described(self, name: str, x: Array, before: Mapping[str, Column]) -> Column:
        """Return a column of categories for the other column."""
        if name == self.column:
            return super().described(name, x, before)
        return Column(name, (*self.texts, "between"), "categorical")


@dataclass(frozen=True, kw_only=True)
class Season(Part, name="season", help="a date of two years or more is its year, its day of the year, and its time"):
    """A date becomes a year, a day of the year and, if it has one, a time of the day in days.

    Args:
        has_time: it has a time.
        step: between two times, in days.
    """

    has_time: bool
    step: float

    @property
    def made(self) -> tuple[str, ...]:
        """The names of the parts."""
        names = f"{self.column}: year", f"{self.column}: day of the year", f"{self.column}: time"
        return names[: 2 + self.has_time]

    @classmethod
    def find(cls, name: str, column: Column, x: Array) -> Iterator[Part]:
        """Yield it for a date that spans two years or more."""
        if column.date_format and np.nanmax(x) - np.nanmin(x) >= _SPAN:
            has_time = bool((x != np.floor(x))[~np.isnan(x)].any())
            yield cls(column=name, has_time=has_time, step=column.spacing, says=f"{name} has seasons")

    def apply(self, values: Values) -> Values:
        """Leave the parts of the date."""
        x = values[self.column]
        days = np.floor(x)
        dates = np.where(np.isnan(days), 0, days).astype("datetime64[D]")
        years = dates.astype("datetime64[Y]")
        parts = (
            years.astype(float) + 1970,
            (dates - years.astype("datetime64[D]")).astype(float) + 1,
            (x - days).round(9),
        )
        made = {name: np.where(np.isnan(x), np.nan, part) for name, part in zip(self.made, parts)}
        return {**without(values, self.column), **made}

    def undo(self, values: Values) -> Values:
        """Return the date; a day that the year does not have becomes its last one."""
        year, day, *times = (values[name] for name in self.made)
        time = sum(np.clip(time_part, 0, 1 - self.step) for time_part in times)
        is_empty = np.isnan(year + day)
        years = np.where(is_empty, 0, year - 1970).astype(int).astype("datetime64[Y]")
        start = years.astype("datetime64[D]").astype(float)
        length = (years + 1).astype("datetime64[D]").astype(float) - start
        x = start + np.clip(day, 1, length) - 1 + time
        return {**without(values, *self.made), self.column: np.where(is_empty, np.nan, x)}

    def described(self, name: str, x: Array, before: Mapping[str, Column]) -> Column:
        """Return a column of whole numbers, or of times."""
        new = super().described(name, x, before)
        if name in self.made[2:]:
            return replace(new, step=self.step)
        return new


@dataclass(frozen=True, kw_only=True)
class Levels(Part, name="levels", help="a number of few values becomes their codes"):
    """A number that has few values, each many times, becomes the codes of these, in their order.

    Args:
        levels: the values.
        texts: of the values, as the file has them.
    """

    levels: tuple[float, ...]
    texts: tuple[str, ...]

    @classmethod
    def find(cls, name: str, column: Column, x: Array) -> Iterator[Part]:
        """Yield it for a number with levels."""
        if column.categories or column.kind or column.date_format or not has_levels(x):
            return
        levels = np.unique(x[~np.isnan(x)])
        if not {*levels.tolist()} <= {0.0, 1.0}:
            texts = tuple(column.text(value - column.origin, is_given=True) for value in levels.tolist())
            yield cls(column=name, levels=tuple(levels.tolist()), texts=texts, says=f"{name} is one of {listed(texts)}")

    def apply(self, values: Values) -> Values:
        """Leave the codes of the nearest levels."""
        x = values[self.column]
        levels = np.array(self.levels)
        codes = np.searchsorted((levels[1:] + levels[:-1]) / 2, x)
        return {**values, self.column: np.where(np.isnan(x), np.nan, codes)}

    def undo(self, values: Values) -> Values:
        """Return the values."""
        codes = values[self.column]
        x = np.array(self.levels)[np.where(np.isnan(codes), 0, codes).astype(int)]
        return {**values, self.column: np.where(np.isnan(codes), np.nan, x)}

    def keeps(self, values: Values) -> NDArray[np.bool_]:
        """Return whether a value is one of the levels."""
        x = values[self.column]
        return np.isin(x, self.levels) | np.isnan(x)

    def described(self, name: str, x: Array, before: Mapping[str, Column]) -> Column:
        """Return an ordinal column."""
        return Column(name, self.texts, "ordinal")


def has_levels(x: Array) -> bool:
    """Return whether numbers (N,) have few values, each in five rows or more, and a new row will have one of them.

    Either there are gaps between the values, or the counts stop abruptly at both ends (a start at 0 is enough below).
    Other whole numbers are counts, and a new row may have a larger one.
    """
    levels, counts = np.unique(x[~np.isnan(x)], return_counts=True)
    if not 1 < len(levels) <= _MOST_LEVELS or counts.min() < LEAST_TIMES:
        return False
    steps = np.diff(levels)
    if steps.max() > 1.5 * steps.min():
        return True
    need = _SURE if counts.sum() >= ENOUGH_ROWS else _SURE_OF_FEW
    begins = levels[0] == 0 or counts[0] ** 2 / counts[1] > need
    return bool(begins and counts[-1] ** 2 / counts[-2] > need and len(levels) <= _FEW_LEVELS)


PARTS: tuple[type[Part], ...] = (Ends, Season, Levels)  # of each column that laws have left
