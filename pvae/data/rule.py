"""`Rule`, what holds in all rows of a table and how it rewrites columns, and `Table`, which rules rewrite."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from pvae.core.options import Family
from pvae.data.column import Column
from pvae.models.features import steps_of

Array = NDArray[np.float64]
Values = Mapping[str, Array]

LEAST_ROWS = 12  # in which a rule could have failed
TINY = 1e-9  # a difference of numbers that are equal
_MOST_KEYS = 100  # values by which another column is looked up
_SAMPLE = 2000  # rows, evenly spaced, that rule out most pairs of columns


@dataclass(frozen=True, kw_only=True)
class Rule(Family):
    """What holds in all rows of a table, and how its columns are rewritten by it.

    Numbers are those of the file, dates are days since 1970, and texts are the codes of their categories; NaN is an
    empty field.

    Args:
        column: the column that is rewritten, or left out.
        of: the columns that it depends on.
        rule: the name of the class, by which a run keeps it.
        says: the rule in one line.

    Attributes:
        fills: it empties fields of the column, and fills them in again.
        waits: it is applied with rules of the next kind, which may compute columns from what it leaves out.
        is_shift: it only shifts the column by another one, so that densities in the columns before and after are equal.
    """

    fills: ClassVar[bool] = False
    waits: ClassVar[bool] = False
    is_shift: ClassVar[bool] = False
    column: str
    of: tuple[str, ...] = ()
    rule: str = ""
    says: str = ""

    def __post_init__(self) -> None:
        """Set the name of the class."""
        object.__setattr__(self, "rule", self.name)

    def __str__(self) -> str:
        """Return the rule in one line."""
        return self.says

    @property
    def made(self) -> tuple[str, ...]:
        """The names of the columns that it adds."""
        return ()

    @classmethod
    def find(cls, table: Table) -> Iterator[Rule]:
        """Yield rules of this class; each is planned before the next one is searched."""
        raise NotImplementedError

    def apply(self, values: Values) -> Values:
        """Return the columns that are left."""
        raise NotImplementedError

    def undo(self, values: Values) -> Values:
        """Return the columns before `apply`, given those left, in which the fields of `of` that are empty are NaN."""
        raise NotImplementedError

    def keeps(self, before: Values, after: Values, slack: float) -> NDArray[np.bool_]:
        """Return for each row whether it keeps the rule, (N,), given the columns before and after `apply`.

        Args:
            before: as for `apply`.
            after: what it returned.
            slack: by how much values of the column may differ that are equal.
        """
        back = self.undo(after)[self.column]
        return np.isclose(back, before[self.column], rtol=1e-14, atol=slack, equal_nan=True)

    def described(self, name: str, x: Array, before: Mapping[str, Column]) -> Column:
        """Return a column that the rule has made, given the columns before: of numbers, unless a class says more."""
        rounded = (k for k in range(9) if are_equal(x, x.round(k)))
        return replace(
            before.get(name, Column(name)),
            decimals=next(rounded, None),
            least=float(np.nanmin(x)),
            greatest=float(np.nanmax(x)),
            origin=0.0,
            unit="",
            date_format="",
            step=steps_of(torch.tensor(x[:, None])).item(),
        )


@dataclass(frozen=True, kw_only=True)
class Empty(Rule, name="empty", help="whether a field is empty is a column of 0 and 1"):
    """Whether a field is empty is another column: drawn rows have empty fields as the data have."""

    fills = True

    @property
    def indicator(self) -> str:
        """The name of the other column."""
        return f"{self.column} is empty"

    @property
    def made(self) -> tuple[str, ...]:
        """The name of the other column."""
        return (self.indicator,)

    @classmethod
    def find(cls, table: Table) -> Iterator[Rule]:
        """Yield a rule for each column with an empty field."""
        for name in [*table.columns]:
            count = np.isnan(table.values[name]).sum()
            if count:
                yield cls(column=name, says=f"{name} is empty in {count / len(table):.1%} of the rows")

    def apply(self, values: Values) -> Values:
        """Add the other column."""
        return {**values, self.indicator: np.isnan(values[self.column]).astype(float)}

    def undo(self, values: Values) -> Values:
        """Leave the fields empty."""
        x = np.where(values[self.indicator] == 1, np.nan, values[self.column])
        return without({**values, self.column: x}, self.indicator)

    def described(self, name: str, x: Array, before: Mapping[str, Column]) -> Column:
        """Return a column of 0 and 1."""
        return Column(name, kind="binary", decimals=0, least=0.0, greatest=1.0)


class Table:
    """The columns of a table, as rules rewrite them one after another.

    Args:
        values: of each column, (N,).
        columns: the columns.
        kept: names of columns that are not rewritten, since a user named their kinds.
    """

    def __init__(self, values: Values, columns: Sequence[Column], kept: Sequence[str] = ()) -> None:
        self.first: Values = dict(values)
        self.values: Values = dict(values)
        self.columns = {column.name: column for column in columns}
        self.kept = frozenset(kept)
        self.rules: list[Rule] = []
        self.planned: dict[str, Rule] = {}
        self._codes: dict[str, tuple[NDArray[np.int64], Array, NDArray[np.int64]]] = {}

    def __len__(self) -> int:
        return len(next(iter(self.values.values())))

    def codes(self, name: str) -> tuple[NDArray[np.int64], Array, NDArray[np.int64]]:
        """Return the code of each row's value, -1 where it is empty, the values, and how often each occurs."""
        if name not in self._codes:
            x = self.values[name]
            is_given = ~np.isnan(x)
            levels, inverse, counts = np.unique(x[is_given], return_inverse=True, return_counts=True)
            codes = np.full(len(x), -1)
            codes[is_given] = inverse
            self._codes[name] = codes, levels, counts
        return self._codes[name]

    def numbers(self) -> list[str]:
        """Return the names of columns of numbers with a known number of digits, and of dates."""
        return [
            name
            for name, column in self.columns.items()
            if not column.categories
            and (column.date_format or (column.decimals is not None and column.decimals <= 8))
            and len(self.codes(name)[1]) > 1
        ]

    def is_key(self, name: str) -> bool:
        """Return whether others may be looked up by a column: it has few values, or ten rows for each text."""
        most = _MOST_KEYS
        if self.columns[name].categories:
            most = max(most, len(self) // 10)
        return 1 < len(self.codes(name)[1]) <= most and not self.columns[name].date_format

    def unit(self, name: str) -> float:
        """Return the unit of the last digit of a number."""
        decimals = self.columns[name].decimals
        if decimals is None:
            return 1 / 86_400
        return 10.0**-decimals

    def text(self, name: str, number: float) -> str:
        """Return a number of a column as the file has it."""
        column = self.columns[name]
        return column.text(number - column.origin, is_given=True)

    def may_compute(self, name: str, of: Sequence[str], is_emptied: bool = True) -> bool:
        """Return whether a rule may compute a column from others without a circle, unless one is planned for it.

        Args:
            name: of the column.
            of: names of the others.
            is_emptied: the rule depends on whether these are empty, which other columns say.
        """
        computed = {rule.column: rule for rule in self.rules if not isinstance(rule, Empty)} | self.planned
        needed = self._with_indicators(of) if is_emptied else [*of]
        if any(one not in self.columns for one in needed):  # whether one is empty is not known when the rule is undone
            return False
        if any(self.columns[one].limit is not None for one in of):  # values below it are not known
            return False
        for one in needed:  # which grows
            if one in computed:
                needed += [other for other in self._with_indicators(computed[one].of) if other not in needed]
        return name not in self.planned and name not in needed

    def take_planned(self) -> None:
        """Apply the planned rules, each after those that need its column."""
        while self.planned:
            needed = {name for rule in self.planned.values() for name in self._with_indicators(rule.of)}
            self.take(self.planned.pop(next(name for name in self.planned if name not in needed)))

    def _with_indicators(self, names: Sequence[str]) -> list[str]:
        """Return names of columns, and those that say whether one of them is empty."""
        said = {rule.column: rule.indicator for rule in self.rules if isinstance(rule, Empty)}
        return [*names, *(said[name] for name in names if name in said)]

    def take(self, rule: Rule) -> None:
        """Apply a rule, if `undo` brings back what was there."""
        if any(name in self.values for name in rule.made):
            return
        after = rule.apply(self.values)
        back = rule.undo(after)
        emptied = {one.column for one in self.rules if one.fills}
        for name, x in self.values.items():
            is_compared = ~np.isnan(x) | (name not in emptied)
            if back[name] is not x and not are_equal(back[name][is_compared], x[is_compared]):
                return
        columns = {}
        for name, x in after.items():
            if x is self.values.get(name):
                columns[name] = self.columns[name]
            else:
                columns[name] = rule.described(name, x, self.columns)
                self._codes.pop(name, None)
        self.values, self.columns = after, columns
        self.rules.append(rule)

    def sample(self) -> NDArray[np.int64]:
        """Return some rows, evenly spaced."""
        return np.linspace(0, len(self) - 1, min(len(self), _SAMPLE)).astype(int)


def are_equal(x: Array, y: Array) -> bool:
    """Return whether all numbers of two columns are equal, up to rounding."""
    return bool(np.allclose(x, y, rtol=1e-14, atol=TINY, equal_nan=True))


def without(values: Values, *names: str) -> Values:
    """Return the columns other than those of some names."""
    return {name: x for name, x in values.items() if name not in names}
