"""The kinds of rules of a table: what others determine, sums and products, what has one value, order, seasons, levels.

To add one, write a subclass of `Rule` with a name here, its `undo` in `explore/rules.js`, and a test.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pvae.core.errors import listed
from pvae.data.column import Column
from pvae.data.rule import LEAST_ROWS, TINY, Array, Empty, Rule, Table, Values, without

_SURE = math.log(1e-9)  # the greatest log-probability that a rule holds in all rows by chance, of independent columns
_MOST_NUMBERS = 40  # columns of numbers among which sums and products are searched
_LEAST_VALUES = 8  # of a column that is computed from others
_FEW_ROWS = 50  # that rule out most products
_ROUNDING = 3  # units in the last digit by which a sum may differ
_FEW_LEVELS, _MOST_LEVELS, _LEAST_TIMES = 20, 50, 5  # of levels, and how often each occurs
_TIMES = 10  # that a level occurs on average
_END_SHARE, _END_TIMES = 0.05, 4  # of rows at an end of a column, and how many times those of another value
_LEAST_BELOW = 5  # rows in which a Normal difference would be below 0, if it is always at least 0 by a rule
_SCALE = 5  # times that a number is at least another one, since their scales differ
_DIGITS = 9  # behind the point, of differences
_FEW_KEYS = 4  # values of a number, each of which may be one of a rule; beyond, ranges of them are
_BESIDE = 10  # others that are expected beside a range, or by their share in any other value
_FAR = 1e300  # the end of a range that has none
_CLOSE = 1e-3  # steps, of equal values
_SPAN = 730  # days from which a date has a season
_FACTORS = (1, 2, 3, 4, 5, 10, 12, 60, 100)  # denominators of simple coefficients


def _log_arrangements(counts: Iterable[float]) -> float:
    """Return the logarithm of the number of arrangements of values that have these counts."""
    return math.lgamma(sum(counts) + 1) - sum(math.lgamma(one + 1) for one in counts)


class Computed(Rule):
    """A column that others determine: it is left out."""

    waits = True

    def computed(self, values: Values) -> Array:
        """Return the column, given the others."""
        raise NotImplementedError

    def apply(self, values: Values) -> Values:
        """Leave the column out."""
        return without(values, self.column)

    def undo(self, values: Values) -> Values:
        """Compute the column."""
        return {**values, self.column: self.computed(values)}


@dataclass(frozen=True, kw_only=True)
class Formula(Computed):
    """A column is computed from others, up to a residual of a few units in its last digit, which is left.

    Args:
        decimals: digits of the column behind the point.
        most: the greatest residual, up to its sign; if it is 0, the column is left out.
    """

    decimals: int
    most: float = 0.0

    @property
    def made(self) -> tuple[str, ...]:
        """The name of the residual."""
        if self.most == 0:
            return ()
        return (f"{self.column} (residual)",)

    def apply(self, values: Values) -> Values:
        """Leave the residual."""
        rest = (values[self.column] - self.computed(values)).round(self.decimals)
        return {**super().apply(values), **dict.fromkeys(self.made, rest)}

    def undo(self, values: Values) -> Values:
        """Add what is computed."""
        x = self.computed(values)
        for name in self.made:
            x = x + np.clip(values[name], -self.most, self.most)
        return {**without(values, *self.made), self.column: x.round(self.decimals)}

    @classmethod
    def of_residual(cls, table: Table, rule: Formula, explained: float) -> Iterator[Rule]:
        """Yield the rule, if its residual in all rows is at most what rounding explains."""
        x = table.values[rule.column]
        if np.isnan(rule.computed(table.values)[~np.isnan(x)]).any():
            return
        most = float(np.nanmax(np.abs(x - rule.computed(table.values)).round(rule.decimals)))
        if most == 0:
            yield rule
        elif most <= min(explained, _ROUNDING * table.unit(rule.column)) + TINY and most <= 0.02 * np.nanstd(x):
            yield replace(rule, most=most, says=f"{rule.says}, to within {most:g}")


@dataclass(frozen=True, kw_only=True)
class Product(Formula, name="product", help="a number is the product or the ratio of two others"):
    """A number is the product of two others, or their ratio.

    Args:
        is_ratio: it is the first divided by the second.
    """

    is_ratio: bool

    @classmethod
    def find(cls, table: Table) -> Iterator[Rule]:
        """Yield rules for the last column first, all products before ratios."""
        names = [one for one in table.numbers()[:_MOST_NUMBERS] if not table.columns[one].date_format]
        for is_ratio, name in itertools.product((False, True), names[::-1]):
            if len(table.codes(name)[1]) >= _LEAST_VALUES:
                for of in cls._candidates(table, is_ratio, name, names):
                    says = f"{name} = {of[0]} {'/' if is_ratio else 'x'} {of[1]}"
                    decimals = table.columns[name].decimals or 0
                    rule = cls(column=name, of=of, decimals=decimals, is_ratio=is_ratio, says=says)
                    yield from cls.of_residual(table, rule, math.inf)

    @classmethod
    @np.errstate(all="ignore")
    def _candidates(cls, table: Table, is_ratio: bool, name: str, names: list[str]) -> list[tuple[str, str]]:
        """Return two columns each whose products or ratios agree in a few rows."""
        others = [one for one in names if table.may_compute(name, [one])]
        y = table.values[name]
        rows = np.flatnonzero(~np.isnan(y))
        rows = rows[:: max(1, len(rows) // _FEW_ROWS)]
        if not others or len(rows) < LEAST_ROWS:
            return []
        x = np.stack([table.values[one][rows] for one in others])
        computed = x[:, None] / x if is_ratio else x[:, None] * x
        is_close = (np.abs(computed - y[rows]) <= (_ROUNDING + 0.5) * table.unit(name)).all(-1)
        if is_ratio:  # of a product, which says more
            units = np.array([table.unit(one) for one in others])
            is_close &= ~(np.abs(x * y[rows] - x[:, None]) <= 0.51 * units[:, None, None]).all(-1)
        return [(others[i], others[j]) for i, j in np.argwhere(is_close).tolist() if i < j or (is_ratio and i != j)]

    @np.errstate(all="ignore")
    def computed(self, values: Values) -> Array:
        """Return the product or the ratio; NaN where that is not finite."""
        first, second = (values[name] for name in self.of)
        x = first / second if self.is_ratio else first * second
        return np.where(np.isfinite(x), x, np.nan).round(self.decimals)


@dataclass(frozen=True, kw_only=True)
class Sum(Formula, name="sum", help="a number is a sum of others, with simple coefficients"):
    """A number is a constant and a sum of others, each with a simple coefficient.

    Args:
        factors: the coefficient of each of the others.
        constant: what is added.
    """

    factors: tuple[float, ...]
    constant: float

    @classmethod
    def find(cls, table: Table) -> Iterator[Rule]:
        """Yield rules found by least squares, for the last column first."""
        for name in table.numbers()[::-1][:_MOST_NUMBERS]:
            others = [one for one in table.numbers()[:_MOST_NUMBERS] if table.may_compute(name, [one])]
            if len(table.codes(name)[1]) >= _LEAST_VALUES:
                others.sort(key=lambda one: one not in table.planned)  # these are needed least
                yield from cls._of(table, name, others)

    @classmethod
    def _of(cls, table: Table, name: str, others: list[str]) -> Iterator[Rule]:
        decimals = table.columns[name].decimals or 0
        rows = table.sample()
        rows = rows[~np.isnan(table.values[name][rows])]
        others = [one for one in others if not np.isnan(table.values[one][rows]).any()]
        if not others or len(rows) < 5 * (len(others) + 1):
            return
        y = table.values[name][rows]
        x = np.stack([table.values[one][rows] for one in others], 1)
        exact = _needed(x, y, 1e-3 * table.unit(name))
        places = exact or _needed(x, y, _ROUNDING * table.unit(name))
        if not places:
            return
        factors = [_simple(one) for one in _least_squares(x[:, places], y)]
        if 0 in factors:
            return
        rest = y - x[:, places] @ np.array(factors)
        constant = round(float(np.median(rest)), decimals)
        of = tuple(others[place] for place in places)
        says = f"{name} = " + _said_sum(factors, of, constant)
        rule = cls(column=name, of=of, decimals=decimals, factors=tuple(factors), constant=constant, says=says)
        parts = [abs(factor) * table.unit(one) for factor, one in zip(factors, of)]
        yield from cls.of_residual(table, rule, (sum(parts) + table.unit(name)) / 2)

    def computed(self, values: Values) -> Array:
        """Return the sum."""
        total = np.full(len(values[self.of[0]]), self.constant)
        for factor, name in zip(self.factors, self.of):
            total = total + factor * values[name]
        return total.round(self.decimals)


def _least_squares(x: Array, y: Array) -> Array:
    """Return the coefficients of x (N, K), of a sum with a constant."""
    centred = x - x.mean(0)
    scale = np.abs(centred).max(0) + 1e-300
    found, *_ = np.linalg.lstsq(centred / scale, y - y.mean(), rcond=1e-10)
    return found / scale


def _needed(x: Array, y: Array, slack: float) -> list[int]:
    """Return the columns of x of which y is a sum with a constant up to `slack`, as few as suffice; [] if of none."""

    def suffice(places: list[int]) -> bool:
        rest = y - x[:, places] @ _least_squares(x[:, places], y)
        return bool(np.ptp(rest) <= 2 * slack)

    places = [*range(x.shape[1])]
    if not suffice(places):
        return []
    for place in [*places]:
        fewer = [one for one in places if one != place]
        if fewer and suffice(fewer):
            places = fewer
    return places


def _simple(factor: float) -> float:
    """Return the simple number that a coefficient is close to, or 0."""
    found = (round(factor * one) / one for one in _FACTORS)
    return next((one for one in found if abs(one - factor) <= 1e-3 * max(1.0, abs(factor))), 0.0)


def _said_sum(factors: Sequence[float], names: Sequence[str], constant: float) -> str:
    text = ""
    for factor, name in sorted(zip(factors, names), key=lambda one: one[0] < 0):
        text += " - " if factor < 0 else " + "
        text += name if abs(factor) == 1 else f"{abs(factor):g} {name}"
    if constant:
        text = f"{constant:.10g}{text}"
    return text.removeprefix(" + ").strip()


@dataclass(frozen=True, kw_only=True)
class Threshold(Computed, name="threshold", help="a category is a function of a number, by thresholds"):
    """A column of few values is a function of a number, by thresholds: it is left out.

    Args:
        thresholds: between two values of the number, in rising order.
        found: the value of the column below the first, between each two, and above the last.
    """

    thresholds: tuple[float, ...]
    found: tuple[float, ...]

    @classmethod
    def find(cls, table: Table) -> Iterator[Rule]:
        """Yield rules of columns with at most 20 values, which no text determines.

        They change as often as they have values, less one.
        """
        few = [name for name in table.columns if 1 < len(table.codes(name)[1]) <= _FEW_LEVELS]
        texts = [name for name, column in table.columns.items() if column.categories]
        for name, other in itertools.product(few, table.numbers()):
            codes, levels, counts = table.codes(name)
            keys, values, times = table.codes(other)
            is_whole = counts.sum() == times.sum() == len(table)
            if not is_whole or len(values) <= len(levels) or not table.may_compute(name, [other]):
                continue
            found = np.zeros(len(values), int)  # the code at each value
            found[keys] = codes
            changes = np.flatnonzero(np.diff(found))
            if len(changes) != len(levels) - 1 or (found[keys] != codes).any():
                continue
            ways = math.lgamma(len(levels) + 1)  # orders of the values, of all arrangements of the rows
            if ways - _log_arrangements(counts) > _SURE:
                continue
            if any(one != name and any(Same.of_columns(table, name, [one])) for one in texts):
                continue
            below = values[changes]
            is_often = times[changes] >= _END_SHARE * len(table)  # as 0, of which others may be close
            places = np.where(is_often, below + table.unit(other) / 2, (below + values[changes + 1]) / 2)
            firsts = found[[0, *(changes + 1)]]
            thresholds = tuple(places.tolist())
            said = listed([table.text(other, one) for one in values[changes + 1].tolist()])
            says = f"{name} is a function of {other}, which changes at {said}"
            yield cls(column=name, of=(other,), thresholds=thresholds, found=tuple(levels[firsts].tolist()), says=says)

    def computed(self, values: Values) -> Array:
        """Look the column up."""
        x = values[self.of[0]]
        return np.where(np.isnan(x), np.nan, np.array(self.found)[np.searchsorted(self.thresholds, x)])


@dataclass(frozen=True, kw_only=True)
class Same(Computed, name="same", help="a column is a function of another one, or of two"):
    """A column is a function of one or two others, of few values: it is left out, and looked up.

    Args:
        keys: the values of the first of these others.
        seconds: the values of the second, or ().
        found: the value of the column for each of them.
    """

    waits = False
    keys: tuple[float, ...]
    seconds: tuple[float, ...] = ()
    found: tuple[float, ...]

    @classmethod
    def find(cls, table: Table) -> Iterator[Rule]:
        """Yield rules of one other column, then of two; the columns with the fewest values come first."""
        for count in (1, 2):
            names = sorted(table.columns, key=lambda name: len(table.codes(name)[1]))
            few = [name for name in names if table.is_key(name)]
            for of in itertools.combinations(few, count):
                for name in names:
                    if table.may_compute(name, of):
                        yield from cls.of_columns(table, name, of)

    @classmethod
    def of_columns(cls, table: Table, name: str, of: Sequence[str]) -> Iterator[Rule]:
        """Yield the rule of a column and one or two others, if these determine it."""
        codes, levels, counts = table.codes(name)
        keys = [table.codes(one) for one in of]
        sizes = [len(one[1]) for one in keys]
        if not 1 < len(levels) <= math.prod(sizes) or (len(of) == 2 and math.prod(sizes) > len(table) / _TIMES):
            return
        for rows in (table.sample(), slice(None)):
            is_given = codes[rows] >= 0
            places = [one[0][rows][is_given] for one in keys]
            joint = np.ravel_multi_index(places, sizes, mode="clip")
            of_key = np.full(math.prod(sizes), -1)
            of_key[joint] = codes[rows][is_given]
            if np.min(places, initial=0) < 0 or (of_key[joint] != codes[rows][is_given]).any():
                return
        seen = np.flatnonzero(of_key >= 0)
        ways = len(seen) * math.log(len(levels))  # a value for each key, of all arrangements of the rows
        if ways - _log_arrangements(counts) > _SURE:
            return
        if len(of) == 2 and len(seen) < math.prod(sizes):  # a drawn row may have another pair
            return
        is_one_to_one = len(of) == 1 and len(levels) == len(seen)
        if is_one_to_one and table.columns[name].categories and not table.columns[of[0]].categories:
            return  # a number is left out rather than a text
        found = [tuple(key[1][place].tolist()) for key, place in zip(keys, np.unravel_index(seen, sizes))]
        looked_up = tuple(levels[of_key[seen]].tolist())
        says = f"{name} is a function of {' and '.join(of)}"
        yield cls(column=name, of=tuple(of), keys=found[0], seconds=(*found, ())[1], found=looked_up, says=says)

    def computed(self, values: Values) -> Array:
        """Look the column up."""
        keys = [self.keys]
        if self.seconds:
            keys.append(self.seconds)
        value_of = dict(zip(zip(*keys), self.found))
        rows = zip(*(_nearest(values[name], key).tolist() for name, key in zip(self.of, keys)))
        return np.array([value_of.get(row, math.nan) for row in rows])


def _nearest(x: Array, known: Sequence[float]) -> Array:
    """Return the known value that is nearest to each of x; NaN stays."""
    levels = np.unique(known)
    places = np.searchsorted((levels[1:] + levels[:-1]) / 2, x)
    return np.where(np.isnan(x), np.nan, levels[places])


@dataclass(frozen=True, kw_only=True)
class Where(Rule, name="where", help="a column has one value where another one has some values"):
    """A column has one value in all rows in which another one lies in certain ranges: it is not modelled there.

    Args:
        lows: the lower ends of the ranges of the other column; of a category they are its codes.
        highs: the upper ends.
        value: of the column there.
    """

    fills = True
    lows: tuple[float, ...]
    highs: tuple[float, ...]
    value: float

    @classmethod
    def find(cls, table: Table) -> Iterator[Rule]:
        """Yield rules of a number that is its least or greatest value, of a text, and of whether a field is empty."""
        for of, name in itertools.permutations(table.columns, 2):
            if table.is_key(of) and table.may_compute(name, [of]):
                yield from cls._of(table, name, of)

    @classmethod
    def _of(cls, table: Table, name: str, of: str) -> Iterator[Rule]:
        keys, key_values, key_counts = table.codes(of)
        codes, levels, counts = table.codes(name)
        is_range = not table.columns[of].categories and len(key_values) > _FEW_KEYS
        least = max(LEAST_ROWS, 0.01 * len(keys))
        is_often = is_range | (key_counts >= least)
        if key_counts[is_often].sum() < key_counts.sum() / 2:
            return
        often = {0, len(levels) - 1}
        if table.columns[name].categories:
            often = {*range(len(levels))}
        for code in sorted(often, key=lambda one: -counts[one]):
            for rows in (table.sample(), slice(None)):
                is_other = (keys[rows] >= 0) & (codes[rows] != code)
                others = np.bincount(keys[rows][is_other], minlength=len(key_values))
                found = np.flatnonzero((others == 0) & is_often)
                if not len(found):
                    break
            runs = [(place, place + 1) for place in found.tolist()]
            ways = _log_arrangements([len(found), is_often.sum() - len(found)])  # to choose those values
            if is_range:
                runs = _runs(key_counts, others, least)
                ways = 2 * len(runs) * math.log(len(key_values))
            times = sum(key_counts[first:end].sum() for first, end in runs)
            beside = is_often & (others > 0)
            if not is_range and times * (others[beside] / key_counts[beside]).min(initial=1.0) < _BESIDE:
                continue  # it could be one more value in which others are seldom
            share = counts[code] / counts.sum()
            if times * math.log(share) + ways <= _SURE and share <= 0.98 and times < len(keys) - LEAST_ROWS:
                ranges = [_range(key_values, first, end) for first, end in runs]
                where = listed([_said_range(table.columns[of], *one) for one in ranges])
                is_all = times == counts[code] and not table.columns[name].categories
                says = f"{name} is {_said_range(table.columns[name], levels[code], levels[code])}"
                if any(isinstance(one, Empty) and one.indicator == name for one in table.rules):
                    says = name.removesuffix(" is empty") + (" is empty" if levels[code] else " is given")
                yield cls(
                    column=name,
                    of=(of,),
                    lows=tuple(low for low, _ in ranges),
                    highs=tuple(high for _, high in ranges),
                    value=float(levels[code]),
                    says=f"{says} {'exactly ' if is_all else ''}where {of} is {where}",
                )
                return

    def apply(self, values: Values) -> Values:
        """Leave the fields empty."""
        return {**values, self.column: np.where(self._is_there(values), np.nan, values[self.column])}

    def undo(self, values: Values) -> Values:
        """Fill the fields in."""
        return {**values, self.column: np.where(self._is_there(values), self.value, values[self.column])}

    def _is_there(self, values: Values) -> NDArray[np.bool_]:
        x = values[self.of[0]]
        places = np.searchsorted(self.lows, x, "right") - 1  # of the last range that begins at x or below
        return (places >= 0) & (x <= np.array(self.highs)[places])

    def described(self, name: str, x: Array, before: Mapping[str, Column]) -> Column:
        """Return the column as it was, with the range that is left."""
        column = before[name]
        least, greatest = float(np.nanmin(x)), float(np.nanmax(x))
        return replace(column, least=least - column.origin, greatest=greatest - column.origin)


def _runs(counts: NDArray[np.int64], others: NDArray[np.int64], least: float) -> list[tuple[int, int]]:
    """Return the first places and the ends of at most two ranges of values of a number, in which no row is another one.

    Beside a range others are at least half as frequent as anywhere: a rule begins at once, a dependence does not.

    Args:
        counts: how many rows have each value.
        others: how many of these are others.
        least: the fewest rows of a range.
    """
    edges = np.flatnonzero(np.diff(others == 0, prepend=False, append=False)).reshape(-1, 2).tolist()
    runs = [(first, end) for first, end in edges if counts[first:end].sum() >= least]
    rest = counts.sum() - sum(counts[first:end].sum() for first, end in runs)
    if not others.any():
        return []
    rate = others.sum() / rest

    def is_sharp(places: NDArray[np.int64]) -> bool:
        """Return whether others are frequent at once from the end of a range on."""
        near = places[: np.searchsorted(counts[places].cumsum(), _BESIDE / rate) + 1]
        return bool(len(near) == 0 or others[near].sum() >= rate / 2 * counts[near].sum())

    places = np.arange(len(counts))
    runs = [(first, end) for first, end in runs if is_sharp(places[:first][::-1]) and is_sharp(places[end:])]
    return runs if len(runs) <= 2 else []


def _range(values: Array, first: int, end: int) -> tuple[float, float]:
    """Return the ends of a range of values; one of several that has the least or greatest value has no end there."""
    low, high = float(values[first]), float(values[end - 1])
    if end - first == 1:
        return low, high
    return (-_FAR if first == 0 else low), (_FAR if end == len(values) else high)


def _said_range(column: Column, low: float, high: float) -> str:
    ends = [column.text(one - column.origin, is_given=True) for one in dict.fromkeys([low, high]) if abs(one) < _FAR]
    if low == -_FAR:
        return f"at most {ends[0]}"
    if high == _FAR:
        return f"at least {ends[0]}"
    return " to ".join(ends)


@dataclass(frozen=True, kw_only=True)
class Ends(Rule, name="ends", help="many values of a number are its greatest one, or its least one too"):
    """A number that often has its greatest value: whether it has, or has its least one, is another column.

    Args:
        ends: the greatest value, after the least one if that is frequent too.
        texts: of these, as the file has them.
        unit: of the last digit.
    """

    fills = True
    ends: tuple[float, ...]
    texts: tuple[str, ...]
    unit: float

    @property
    def category(self) -> str:
        """The name of the other column, whose codes are the places of the ends, and then that of all between."""
        return f"{self.column} at its end"

    @property
    def made(self) -> tuple[str, ...]:
        """The name of the other column."""
        return (self.category,)

    @classmethod
    def find(cls, table: Table) -> Iterator[Rule]:
        """Yield a rule for each number whose greatest value is frequent, and four times as frequent as others."""
        for name in table.numbers():
            _, levels, counts = table.codes(name)
            if len(levels) <= _FEW_LEVELS or table.columns[name].date_format:
                continue
            often = counts >= max(_END_SHARE * counts.sum(), _END_TIMES * counts[1:-1].max())
            if often[-1]:
                ends = tuple(levels[[place for place in (0, -1) if often[place]]].tolist())
                texts = tuple(table.text(name, end) for end in ends)
                says = f"{name} is often {' or '.join(texts)}, and else lies within"
                yield cls(column=name, ends=ends, texts=texts, unit=table.unit(name), says=says)

    def apply(self, values: Values) -> Values:
        """Add the other column, and leave the fields of the ends empty."""
        x = values[self.column]
        codes = np.where(np.isnan(x), np.nan, len(self.ends))
        for code, end in enumerate(self.ends):
            codes[x == end] = code
        return {**values, self.column: np.where(codes == len(self.ends), x, np.nan), self.category: codes}

    def undo(self, values: Values) -> Values:
        """Fill in the ends, between which all others lie."""
        least = -math.inf
        if len(self.ends) == 2:
            least = self.ends[0] + self.unit
        x = np.clip(values[self.column], least, self.ends[-1] - self.unit)
        for code, end in enumerate(self.ends):
            x = np.where(values[self.category] == code, end, x)
        return without({**values, self.column: x}, self.category)

    def described(self, name: str, x: Array, before: Mapping[str, Column]) -> Column:
        """Return a column of categories for the other column."""
        if name == self.column:
            return super().described(name, x, before)
        return Column(name, (*self.texts, "between"), "categorical")


@dataclass(frozen=True, kw_only=True)
class Order(Rule, name="order", help="a number is at most another one"):
    """A number is at most another one: one of them becomes their difference, which is at least 0.

    Args:
        is_above: the column is the greater one, b in b - a; or the smaller one.
        least: the least value of the column.
        step: between two values that the column can have.
    """

    is_shift = True
    is_above: bool
    least: float
    step: float

    @classmethod
    def find(cls, table: Table) -> Iterator[Rule]:
        """Yield rules of pairs, the closest first."""
        used = {rule.column for rule in table.rules if not isinstance(rule, (Empty, Where))}
        names = [one for one in table.numbers() if one not in used and len(table.codes(one)[1]) > 3]
        found: list[tuple[float, Order]] = []
        for low, high in itertools.permutations(names, 2):
            found += cls._of(table, low, high)
        for _, rule in sorted(found, key=lambda one: one[0]):
            yield rule

    @classmethod
    def _of(cls, table: Table, low: str, high: str) -> Iterator[tuple[float, Order]]:
        a, b = table.values[low], table.values[high]
        columns = table.columns[low], table.columns[high]
        if bool(columns[0].date_format) != bool(columns[1].date_format):
            return
        if np.nanmin((b - a)[table.sample()], initial=math.inf) < 0:
            return
        if {low, high} <= {*table.first} and np.nanmin(table.first[high] - table.first[low], initial=math.inf) < 0:
            return  # where another rule fills one in
        both = ~np.isnan(b - a)
        rest = (b - a)[both]
        if len(rest) < LEAST_ROWS or rest.min() < 0 or rest.std() > np.nanstd(b):
            return
        failed = np.searchsorted(np.sort(b[both]), a[both]).mean() / len(rest)  # of independent columns
        below = math.erfc(rest.mean() / (math.sqrt(2) * rest.std() + 1e-300)) / 2  # of a Normal difference
        is_far = len(rest) * below < _LEAST_BELOW or ((a >= 0) & (_SCALE * a <= b))[both].all()
        if is_far or len(rest) * math.log1p(-min(failed, 0.999)) > _SURE:
            return
        pairs = [(high, low), (low, high)]  # of which the first becomes a difference
        pairs = [(name, of) for name, of in pairs if both.sum() == (~np.isnan(table.values[name])).sum()]
        pairs = [one for one in pairs if table.columns[one[0]].spacing > 10.0 ** (1 - _DIGITS)]  # no microseconds
        pairs.sort(key=lambda one: Levels.has_few(table, one[0]))  # these keep their values
        for name, of in pairs:
            least, step = float(np.nanmin(table.values[name])), table.columns[name].spacing
            rule = cls(column=name, of=(of,), is_above=name == high, least=least, step=step, says=f"{low} <= {high}")
            yield float(rest.std() / np.nanstd(b)), rule

    def apply(self, values: Values) -> Values:
        """Leave the difference."""
        rest = self._sign * (values[self.column] - values[self.of[0]])
        return {**without(values, self.column), self.made[0]: rest.round(_DIGITS)}

    def undo(self, values: Values) -> Values:
        """Add the difference, of at least 0, or subtract it, and take the next value that keeps the order."""
        rest = np.maximum(values[self.made[0]], 0)
        places = self._sign * (values[self.of[0]] + self._sign * rest - self.least) / self.step
        x = self.least + self._sign * np.ceil(places - _CLOSE) * self.step
        if not self.is_above and self.least >= 0:
            x = np.maximum(x, 0.0)
        return {**without(values, *self.made), self.column: x.round(_DIGITS)}

    def keeps(self, before: Values, after: Values, slack: float) -> NDArray[np.bool_]:
        """Return whether the difference is at least 0; a value may have more digits than those it was found in."""
        return after[self.made[0]] >= -TINY

    @property
    def made(self) -> tuple[str, ...]:
        """The name of the difference."""
        pair = [self.of[0], self.column]
        return (" - ".join(pair[:: -self._sign]),)

    @property
    def _sign(self) -> int:
        return 1 if self.is_above else -1


@dataclass(frozen=True, kw_only=True)
class Season(Rule, name="season", help="a date of two years or more is its year, its day of the year, and its time"):
    """A date becomes a year, a day of the year and, if it has one, a time of the day in days.

    Args:
        has_time: it has a time.
        step: between two times, in days.
    """

    has_time: bool
    step: float

    @classmethod
    def find(cls, table: Table) -> Iterator[Rule]:
        """Yield a rule for each date that spans two years or more."""
        for name in [*table.columns]:
            if not table.columns[name].date_format:
                continue
            x = table.values[name]
            if np.nanmax(x) - np.nanmin(x) >= _SPAN:
                has_time = bool((x != np.floor(x))[~np.isnan(x)].any())
                step = table.columns[name].spacing
                yield cls(column=name, has_time=has_time, step=step, says=f"{name} has seasons")

    @property
    def made(self) -> tuple[str, ...]:
        """The names of the parts."""
        names = f"{self.column}: year", f"{self.column}: day of the year", f"{self.column}: time"
        return names[: 2 + self.has_time]

    def apply(self, values: Values) -> Values:
        """Leave the parts of the date."""
        x = values[self.column]
        days = np.floor(x)
        dates = np.where(np.isnan(days), 0, days).astype("datetime64[D]")
        years = dates.astype("datetime64[Y]")
        parts = (years.astype(float) + 1970, (dates - years.astype("datetime64[D]")).astype(float) + 1, x - days)
        found = {name: np.where(np.isnan(x), np.nan, part) for name, part in zip(self.made, parts)}
        return {**without(values, self.column), **found}

    def undo(self, values: Values) -> Values:
        """Return the date; a day that the year does not have becomes its last one."""
        year, day, *times = (values[name] for name in self.made)
        time = sum(np.clip(one, 0, 1 - self.step) for one in times)
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
class Levels(Rule, name="levels", help="a number of few values becomes their codes"):
    """A number that has few values, each many times, becomes the codes of these, in their order.

    Args:
        levels: the values.
        texts: of the values, as the file has them.
    """

    levels: tuple[float, ...]
    texts: tuple[str, ...]

    @classmethod
    def find(cls, table: Table) -> Iterator[Rule]:
        """Yield a rule for each number of at most 20 values, of 50 with gaps, or by which others are looked up."""
        keys = {name for rule in table.rules if isinstance(rule, Same) for name in rule.of}
        for name, column in [*table.columns.items()]:
            levels = table.codes(name)[1]
            if column.categories or column.kind or column.date_format or len(levels) < 2:
                continue
            if name in keys or cls.has_few(table, name):
                texts = tuple(table.text(name, value) for value in levels.tolist())
                says = f"{name} is one of {listed(texts)}"
                yield cls(column=name, levels=tuple(levels.tolist()), texts=texts, says=says)

    @classmethod
    def has_few(cls, table: Table, name: str) -> bool:
        """Return whether a number has few values, each many times, and not only 0 and 1."""
        _, levels, counts = table.codes(name)
        steps = np.diff(levels)
        most = _FEW_LEVELS
        if steps.max() > 1.5 * steps.min():  # it has gaps
            most = _MOST_LEVELS
        are_often = counts.min() >= _LEAST_TIMES and counts.sum() >= _TIMES * len(levels)
        return are_often and len(levels) <= most and not {*levels.tolist()} <= {0.0, 1.0}

    def apply(self, values: Values) -> Values:
        """Leave the codes; NaN of another value."""
        x = values[self.column]
        codes = np.searchsorted(self.levels, x).clip(0, len(self.levels) - 1)
        is_level = np.array(self.levels)[codes] == x
        return {**values, self.column: np.where(is_level, codes, np.nan)}

    def undo(self, values: Values) -> Values:
        """Return the values."""
        codes = values[self.column]
        x = np.array(self.levels)[np.where(np.isnan(codes), 0, codes).astype(int)]
        return {**values, self.column: np.where(np.isnan(codes), np.nan, x)}

    def described(self, name: str, x: Array, before: Mapping[str, Column]) -> Column:
        """Return an ordinal column."""
        return Column(name, self.texts, "ordinal")
