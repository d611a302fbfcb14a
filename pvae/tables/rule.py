"""Laws of the rows of a table, each of which rewrites its columns: functions, identities, orders and flags."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from pvae.core.options import Family
from pvae.models.features import steps_of
from pvae.tables.column import Column

Array = NDArray[np.float64]
Values = Mapping[str, Array]

TINY = 1e-9  # a difference of numbers that are equal
_DIGITS = 9  # behind the point, of dates and differences
_HEAP = 0.05  # the share of rows with one value, as of 0, that a difference would hide


@dataclass(frozen=True, kw_only=True)
class Rule(Family):
    """What rewrites a column of a table, so that less is left to model: `apply`, and `undo`, which brings it back.

    Numbers are those of the file, dates are days since 1970, and texts are the codes of their categories; NaN is an
    empty field.

    Args:
        column: the column that is rewritten, or left out.
        of: the columns that `undo` needs.
        rule: the name of the class, by which a run keeps it.
        says: the rule in one line.

    Attributes:
        is_law: it is a law of the rows, which relates columns, and no part of one.
    """

    is_law: ClassVar[bool] = True
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

    def apply(self, values: Values) -> Values:
        """Return the columns that are left, of any rows; of rows that keep the rule, `undo` brings back the others."""
        raise NotImplementedError

    def undo(self, values: Values) -> Values:
        """Return the columns before `apply`, given those left, in which the fields of `of` that are empty are NaN."""
        raise NotImplementedError

    def keeps(self, values: Values) -> NDArray[np.bool_]:
        """Return for each row whether it keeps the rule, as far as its fields are known, (N,)."""
        raise NotImplementedError

    def alternatives(self, columns: Mapping[str, Column]) -> list[Rule]:
        """Return the rule for each of its columns that it can rewrite, the best first."""
        return [self]

    def of_rows(self, values: Values) -> Rule | None:
        """Return the rule as it rewrites these rows; None if `undo` would not bring them back."""
        return self

    def deduced(self, values: Values, columns: Mapping[str, Column]) -> Values:
        """Return columns by their names, in which the rule says what some empty fields must be."""
        return {}

    def described(self, name: str, x: Array, before: Mapping[str, Column]) -> Column:
        """Return a column that the rule has made, given the columns before: of numbers, unless a class says more."""
        rounded = (k for k in range(9) if np.allclose(x, x.round(k), rtol=1e-14, atol=TINY, equal_nan=True))
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


def without(values: Values, *names: str) -> Values:
    """Return the columns other than those of some names."""
    return {name: x for name, x in values.items() if name not in names}


def class_of(x: Array, at: str) -> Array:
    """Return the classes that the values of a column are: themselves, or whether they are "zero"; NaN is none."""
    if at == "zero":
        return np.where(np.isnan(x), np.nan, x == 0)
    return x


def looked_up(x: Array, keys: tuple[float, ...], found: tuple[float, ...]) -> Array:
    """Return what is found for each of x, by keys in rising order; NaN of another value."""
    if not keys:
        return np.full(len(x), np.nan)
    places = np.searchsorted(keys, x - TINY).clip(max=len(keys) - 1)
    return np.where(np.abs(np.array(keys)[places] - x) <= TINY, np.array(found)[places], np.nan)


@dataclass(frozen=True, kw_only=True)
class Computed(Rule):
    """A column that others determine where `due` is not NaN: it is left out, or empty there.

    Args:
        is_total: they determine it in all rows.
    """

    is_total: bool = True

    def due(self, values: Values) -> Array:
        """Return the column, given the others; NaN where they do not determine it."""
        raise NotImplementedError

    def apply(self, values: Values) -> Values:
        """Leave the column out, or empty where it is known."""
        if self.is_total:
            return without(values, self.column)
        return {**values, self.column: np.where(np.isnan(self.due(values)), values[self.column], np.nan)}

    def undo(self, values: Values) -> Values:
        """Compute the column."""
        due = self.due(values)
        return {**values, self.column: np.where(np.isnan(due), values.get(self.column, np.nan), due)}

    def deduced(self, values: Values, columns: Mapping[str, Column]) -> Values:
        """Return the column, filled in where it is due."""
        x = values[self.column]
        return {self.column: np.where(np.isnan(x), self.due(values), x)}

    def of_rows(self, values: Values) -> Rule | None:
        """Return the rule, which leaves the column out if it is due wherever it is given."""
        is_open = ~np.isnan(values[self.column]) & np.isnan(self.due(values))
        if not self.keeps(values).all():
            return None
        return replace(self, is_total=not is_open.any())

    def keeps(self, values: Values) -> NDArray[np.bool_]:
        """Return whether the column is as it is due."""
        return ~(np.abs(values[self.column] - self.due(values)) > TINY)

    def described(self, name: str, x: Array, before: Mapping[str, Column]) -> Column:
        """Return the column as it was, with the range that is left."""
        if name != self.column:
            return super().described(name, x, before)
        column = before[name]
        if np.isnan(x).all():
            return column
        return replace(column, least=float(np.nanmin(x)) - column.origin, greatest=float(np.nanmax(x)) - column.origin)


@dataclass(frozen=True, kw_only=True)
class Function(Computed, name="function", help="a column, or whether it is 0, is a function of the class of another"):
    """A column, or whether it is 0, is a function of another column, whose values are classes.

    Args:
        at: "value" of the other column is the class, or whether it is "zero".
        to: what is determined: the "value" of the column, or whether it is "zero". In the second case `apply`
            empties the fields that must be 0.
        keys: the classes that decide, in rising order.
        found: what each of them decides.
        unit: of the last digit of the column, in place of a 0 that a class excludes.
        classes: of the column of the labels, the names of their codes; () of other columns.
    """

    at: str = "value"
    to: str = "value"
    keys: tuple[float, ...]
    found: tuple[float, ...]
    unit: float = 0.0
    classes: tuple[str, ...] = ()

    def decided(self, values: Values) -> Array:
        """Return what the class of each row decides; NaN where it decides nothing."""
        return looked_up(class_of(values[self.of[0]], self.at), self.keys, self.found)

    def due(self, values: Values) -> Array:
        """Return the column where it is decided."""
        decided = self.decided(values)
        if self.to == "zero":
            return np.where(decided == 1, 0.0, np.nan)
        return decided

    def undo(self, values: Values) -> Values:
        """Look the column up."""
        values = super().undo(values)
        x = values[self.column]
        if self.to == "zero":
            x = np.where((self.decided(values) == 0) & (x == 0), self.unit, x)
        return {**values, self.column: x}

    def keeps(self, values: Values) -> NDArray[np.bool_]:
        """Return whether the column is what its class decides."""
        return ~(np.abs(class_of(values[self.column], self.to) - self.decided(values)) > TINY)


@dataclass(frozen=True, kw_only=True)
class Identity(Computed, name="identity", help="a number is a sum of others, or a product of two"):
    """A number is a sum, or a product, up to a residual of a few units in its last digit, which is left.

        y = constant + sum_i factor_i a_i,    y = a b,    or y = a times a factor of the class b

    Args:
        factors: of a sum, one for each of the others; () of a product.
        constant: what is added.
        keys: the classes of the second of the others, if these have factors; else ().
        found: the factor of each.
        digits: of the column behind the point.
        most: the greatest residual, up to its sign; if it is 0, nothing of the column is left.
    """

    factors: tuple[float, ...] = ()
    constant: float = 0.0
    keys: tuple[float, ...] = ()
    found: tuple[float, ...] = ()
    digits: int = _DIGITS
    most: float = 0.0

    @property
    def made(self) -> tuple[str, ...]:
        """The name of the residual."""
        if self.most == 0:
            return ()
        return (f"{self.column} (residual)",)

    def alternatives(self, columns: Mapping[str, Column]) -> list[Rule]:
        """Return the identity, and as a sum that of each other column."""
        if not self.factors or self.most:
            return [self]
        weights = {self.column: 1.0} | {name: -factor for name, factor in zip(self.of, self.factors)}
        return [self, *(a_sum(weights, self.constant, name, columns[name]) for name in self.of)]

    def deduced(self, values: Values, columns: Mapping[str, Column]) -> Values:
        """Return each of its columns, filled in where the others leave one value of it; not up to a residual."""
        values_of = dict[str, Array]()
        if not self.most:
            values_of |= super().deduced(values, columns)
        for identity in self.alternatives(columns)[1:]:
            assert isinstance(identity, Identity)
            values_of |= Computed.deduced(identity, values, columns)
        if not (self.factors or self.most):
            first, second = self.of
            factor = values[second]
            if self.keys:
                factor = looked_up(factor, self.keys, self.found)
            pairs = [(first, factor)] if self.keys else [(first, factor), (second, values[first])]
            for name, other in pairs:
                digits = digits_of(columns[name])
                quotient = (values[self.column] / np.where(other == 0, np.nan, other)).round(digits)
                near = [self.keeps({**values, name: quotient + step}) for step in (0, 10.0**-digits, -(10.0**-digits))]
                is_deduced = np.isnan(values[name]) & near[0] & ~near[1] & ~near[2]  # no other value keeps the product
                values_of[name] = np.where(is_deduced, quotient, values[name])
        return values_of

    def due(self, values: Values) -> Array:
        """Return the sum or the product."""
        first, *others = (values[name] for name in self.of)
        if self.factors:
            total = self.constant + sum(factor * values[name] for factor, name in zip(self.factors, self.of))
        elif self.keys:
            total = first * looked_up(others[0], self.keys, self.found)
        else:
            total = first * others[0]
        return np.round(total, self.digits)

    def apply(self, values: Values) -> Values:
        """Leave the residual."""
        rest = (values[self.column] - self.due(values)).round(self.digits)
        return {**super().apply(values), **dict.fromkeys(self.made, rest)}

    def undo(self, values: Values) -> Values:
        """Add what is computed."""
        after = super().undo(values)
        y = after[self.column]
        for name in self.made:
            y = y + np.where(np.isnan(self.due(values)), 0, np.clip(values[name], -self.most, self.most))
        return {**without(after, *self.made), self.column: y.round(self.digits)}

    def keeps(self, values: Values) -> NDArray[np.bool_]:
        """Return whether the residual is small."""
        return ~(np.abs(values[self.column] - self.due(values)) > self.most + TINY)


def a_sum(weights: Mapping[str, float], total: float, name: str, column: Column) -> Identity:
    """Return sum_i weight_i a_i = total as an identity of one of its columns."""
    own = weights[name]
    factors = {term: -weight / own for term, weight in weights.items() if term != name}
    constant = round(total / own, 9)
    text = ""
    for term, factor in sorted(factors.items(), key=lambda item: item[1] < 0):
        text += " - " if factor < 0 else " + "
        size = abs(factor)
        text += term if size == 1 else f"{size:.12g} {term}"
    if constant:
        text += f" {'-' if constant < 0 else '+'} {abs(constant):.10g}"
    says = f"{name} = {text.removeprefix(' + ').strip()}"
    digits = digits_of(column)
    return Identity(
        column=name, of=tuple(factors), factors=tuple(factors.values()), constant=constant, digits=digits, says=says
    )


def digits_of(column: Column) -> int:
    """Return to how many digits behind the point a column is computed."""
    if column.date_format or column.decimals is None:
        return 9
    return min(column.decimals, 9)


@dataclass(frozen=True, kw_only=True)
class Order(Rule, name="order", help="a number is at most another one"):
    """A number is at most another one in the same step: one of them becomes their difference, which is at least 0.

    Args:
        is_above: the column is the greater one, b in b - a; or the smaller one.
        least: the least difference: 0, or a step.
    """

    is_above: bool
    least: float = 0.0

    @property
    def made(self) -> tuple[str, ...]:
        """The name of the difference."""
        pair = [self.of[0], self.column]
        return (" - ".join(pair[:: -self._sign]),)

    def described(self, name: str, x: Array, before: Mapping[str, Column]) -> Column:
        """Return a column of differences, which are in the step of dates if it has one."""
        new = super().described(name, x, before)
        if before[self.column].date_format:
            return replace(new, step=before[self.column].spacing)
        return new

    @property
    def _sign(self) -> int:
        return 1 if self.is_above else -1

    def alternatives(self, columns: Mapping[str, Column]) -> list[Rule]:
        """Return the order as it rewrites the one column or the other."""
        return [self, replace(self, column=self.of[0], of=(self.column,), is_above=not self.is_above)]

    def of_rows(self, values: Values) -> Rule | None:
        """Return the order, if the other column is given wherever this one is, and no value of this one is a heap."""
        is_alone = (np.isnan(values[self.of[0]]) & ~np.isnan(values[self.column])).any()
        heap = _times(values[self.column])
        if is_alone or heap > max(_HEAP * len(values[self.column]), 2 * _times(self._rest(values))):
            return None
        return self

    def apply(self, values: Values) -> Values:
        """Leave the difference."""
        rest = np.maximum(self._rest(values), self.least)
        return {**without(values, self.column), self.made[0]: rest}

    def undo(self, values: Values) -> Values:
        """Add the difference, or subtract it."""
        rest = np.maximum(values[self.made[0]], self.least)
        x = values[self.of[0]] + self._sign * rest
        return {**without(values, *self.made), self.column: x.round(_DIGITS)}

    def keeps(self, values: Values) -> NDArray[np.bool_]:
        """Return whether the difference is large enough."""
        return ~(self._rest(values) < self.least - TINY)

    def _rest(self, values: Values) -> Array:
        return (self._sign * (values[self.column] - values[self.of[0]])).round(_DIGITS)


def _times(x: Array) -> int:
    """Return how often the most frequent value occurs."""
    return int(np.unique(x[~np.isnan(x)], return_counts=True)[1].max(initial=0))


@dataclass(frozen=True, kw_only=True)
class Flags(Rule, name="flags", help="of some flags at most one, or exactly one, is set"):
    """Of the column and the others, all 0 or 1, at most one is 1: they become one category.

    Args:
        flags: all of them.
        is_exact: one is always 1.
    """

    flags: tuple[str, ...]
    is_exact: bool

    @property
    def made(self) -> tuple[str, ...]:
        """The name of the category, whose last code is that of none, if none may be set."""
        return (f"one of {', '.join(self.flags)}",)

    def apply(self, values: Values) -> Values:
        """Leave the category."""
        x = np.stack([values[name] for name in self.flags])
        none = 0 if self.is_exact else len(x)
        codes = np.where((x == 1).any(0), (x == 1).argmax(0), none)
        return {**without(values, *self.flags), self.made[0]: np.where(np.isnan(x).any(0), np.nan, codes)}

    def undo(self, values: Values) -> Values:
        """Set the flag of the category."""
        codes = values[self.made[0]]
        flags = {name: np.where(np.isnan(codes), np.nan, codes == code) for code, name in enumerate(self.flags)}
        return {**without(values, *self.made), **flags}

    def keeps(self, values: Values) -> NDArray[np.bool_]:
        """Return whether as many are set as may be."""
        x = np.stack([values[name] for name in self.flags])
        is_short = self.is_exact & ~np.isnan(x).any(0) & ~(x == 1).any(0)
        return ((x == 1).sum(0) <= 1) & ~is_short

    def described(self, name: str, x: Array, before: Mapping[str, Column]) -> Column:
        """Return a column of categories."""
        categories = self.flags
        if not self.is_exact:
            categories += ("none",)
        return Column(name, categories, "categorical")
