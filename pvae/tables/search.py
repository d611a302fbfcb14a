"""The search for laws of a table: functions of classes, identities, orders, and flags.

A law is what a smooth model of the columns would call a miracle. No test of n rows sees that a law has exceptions of
share p, if none is among them: (1 - p)^n. So a law costs at most 1 / (e n) of new rows, and none is believed of few
rows. A kind of law that has near laws in the table, which a few rows break, and not ten laws for each, is not believed
either: by Good and Turing, the number of laws that exactly one row breaks estimates how often new rows break the laws
that no row breaks.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pvae.tables.column import Column
from pvae.tables.parts import ENOUGH_ROWS, LEAST_TIMES, has_levels
from pvae.tables.rule import TINY, Array, Flags, Function, Identity, Order, Rule, Values, a_sum, class_of, digits_of

Mask = NDArray[np.bool_]

_TWIN_ROWS, _FEW_ROWS = 200, 40  # least rows of columns that name one another, and of an identity
_SURE = math.log(1e-6)  # the log-probability of a law by chance
_CHANCE = 1e-3  # the same of any function of a table
_SURE_ORDER, _CHANCE_ORDER = 6.9, 0.01  # rows below 0 that a smooth model expects of an order, log(pairs / 0.01) of all
_EXCEPTIONS, _RARE, _TIMES = 5, 0.02, 10  # of a near law, their greatest share, and laws for each near law
_MOST_CLASSES = 12  # of numbers; texts may have a fifth as many as there are rows
_LEAST_VALUES = 8  # of a column that others compute
_HEAP = 0.03  # the share of differences that are 0, apart from the others
_SECONDS = (1, 24, 1440, 86400)  # units of numbers beside dates, in a day
_MOST_UNITS = 3  # in the last digit, by which an identity may differ
_SMALLEST = 1e-4  # of the greatest number of a column that rules compute or compare: they round to 1e-9
_SAMPLE = 12  # rows that exclude most products
_MOST_DIGITS = 6  # behind the point, of a factor
_CHUNKS = 4  # of rows, of which one may be without an exception


class Candidate(NamedTuple):
    """What may be a law of a table.

    Args:
        rule: the law.
        wrong: the training rows that break it, a few at most.
    """

    rule: Any
    wrong: NDArray[np.int64]


@dataclass
class Table:
    """What is asked of the training rows of a table again and again.

    Args:
        values: of each column, (N,), and whether it is empty.
        columns: the columns of the file, and those of whether one is empty.
        num_rows: of training and validation rows.
        held_out: the same columns of validation rows.
        labels: the names of the classes in the column of labels, by its name, which decides and is not decided.

    Attributes:
        n: the number of training rows.
        numbers: the names of columns of numbers and dates.
        unit: that of their last digit, or 0 where it is not known.
        features: codes of each row, -1 where it is empty, and classes, by a column and what of it is the class.
        near: laws but for a few rows.
        dropped: laws that are not believed for these.
    """

    values: Values
    columns: Mapping[str, Column]
    num_rows: int
    held_out: Values
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Compute units and steps, and which columns are classes."""
        self.n = len(next(iter(self.values.values())))
        self.dates = {name for name, column in self.columns.items() if column.date_format}
        self.numbers = list[str]()
        self.unit = dict[str, float]()
        self.features = dict[tuple[str, str], tuple[NDArray[np.int64], Array]]()
        self.near = list[Candidate]()
        self.dropped = list[Rule]()
        for name, x in self.values.items():
            column = self.columns.get(name)
            levels, counts = np.unique(x[~np.isnan(x)], return_counts=True)
            if column is None or column.categories or column.limit is not None or column.kind == "binary":
                self._add_classes(name, "value")
                continue
            if len(levels) < 2 or np.abs(levels).max() < _SMALLEST:
                continue
            self.numbers.append(name)
            self.unit[name] = _unit(column)
            is_few = len(levels) <= _MOST_CLASSES and (has_levels(x) or {*levels.tolist()} == {0.0, 1.0})
            if is_few and np.isin(self.held_out[name], [*levels, np.nan]).all() and name not in self.dates:
                self._add_classes(name, "value")
            else:
                smallest = counts[np.abs(levels) == np.abs(levels[levels != 0]).min()].max()
                if counts[levels == 0].sum() >= max(LEAST_TIMES, 2 * smallest):
                    self._add_classes(name, "zero")

    def _add_classes(self, name: str, at: str) -> None:
        """Add a column as classes, if there are two or more, and few beside the rows."""
        x = class_of(self.values[name], at)
        is_given = ~np.isnan(x)
        levels, inverse = np.unique(x[is_given], return_inverse=True)
        if 1 < len(levels) <= self.n / LEAST_TIMES:
            codes = np.full(self.n, -1)
            codes[is_given] = inverse
            self.features[name, at] = codes, levels

    def believed(self, candidates: Iterable[Candidate]) -> list[Any]:
        """Return laws of one kind, if ten of them stand for each near one; near ones are kept for a note."""
        every = [*candidates]
        near = [candidate for candidate in every if len(candidate.wrong)]
        self.near += near
        if _TIMES * len(near) > len(every) - len(near):
            self.dropped += [candidate.rule for candidate in every if not len(candidate.wrong)]
            return []
        return [candidate.rule for candidate in every if not len(candidate.wrong)]


def find_laws(table: Table) -> list[Rule]:
    """Return the laws of training rows, those first that compute a column."""
    laws = list[Rule]()
    with np.errstate(all="ignore"):
        if table.num_rows >= _FEW_ROWS:
            laws += table.believed(_identities(table))
        if table.num_rows >= _TWIN_ROWS:
            laws += _without_repeats(table, table.believed(_functions(table)))
        if table.num_rows >= ENOUGH_ROWS:
            laws += table.believed(_orders(table))
            laws += _flags(table)
    return laws


def _unit(column: Column) -> float:
    """Return the unit of the last digit; 0 where it is not known."""
    if column.date_format:
        return replace(column, step=0.0).spacing
    if column.decimals is None or column.decimals > 8:
        return 0.0
    return float(10.0**-column.decimals)


def _functions(table: Table) -> Iterator[Candidate]:
    """Yield functions of classes; a flag that excludes another one is left to groups of flags."""
    sure = min(_SURE, math.log(_CHANCE / max(1, len(table.features) ** 2)))
    flags = {feature for feature in table.features if _is_flag(table, feature)}
    for key, to in itertools.permutations(table.features, 2):
        if key[0] != to[0] and to[0] not in table.labels:
            candidate = _function(table, key, to, sure)
            if candidate is not None and (not {key, to} <= flags or _is_total(table, candidate.rule)):
                yield candidate


def _is_flag(table: Table, feature: tuple[str, str]) -> bool:
    """Return whether a feature is a column of 0 and 1 without an empty field."""
    name, at = feature
    codes, classes = table.features[feature]
    return at == "value" and name in table.numbers and [*classes] == [0, 1] and codes.min() == 0


def _is_total(table: Table, function: Function) -> bool:
    """Return whether each class decides."""
    return len(function.keys) == len(table.features[function.of[0], function.at][1])


def _without_repeats(table: Table, functions: Sequence[Function]) -> list[Rule]:
    """Return functions of which each says something that those before it do not.

    Of columns that name one another, one stands for all: the others are functions of it, and of nothing else.
    """
    whole = [function for function in functions if _is_total(table, function)]
    total = {((function.of[0], function.at), (function.column, function.to)) for function in whole}
    names = dict[tuple[str, str], tuple[str, str]]()
    for key in sorted(table.features, key=lambda feature: _rank(table, feature)):
        twins = [to for to in table.features if {(key, to), (to, key)} <= total and {key, to}.isdisjoint(names)]
        names |= dict.fromkeys(twins, key)
    rules = list[Rule]()
    decided = dict[str, Mask]()

    def strength(function: Function) -> tuple[bool, int, int]:
        num_decided = int((~np.isnan(function.decided(table.values))).sum())
        return (function.column, function.to) not in names, -num_decided, len(function.keys)

    for function in sorted(functions, key=strength):
        key, to = (function.of[0], function.at), (function.column, function.to)
        is_name = names.get(to) == key
        if not is_name and (key in names or to in names or table.num_rows < ENOUGH_ROWS):
            continue
        rows = ~np.isnan(function.decided(table.values))
        known = decided.get(function.column, np.zeros(table.n, bool))
        if (rows & ~known).any():
            decided[function.column] = known | rows
            rules.append(function)
    return rules


def _rank(table: Table, feature: tuple[str, str]) -> tuple[int, int]:
    """Return which of the columns that name one another stands for all: the labels, a text, a number.

    Not whether a number is 0, since a mean never is.
    """
    name, at = feature
    column = table.columns.get(name)
    place = [*table.values].index(name)
    if name in table.labels or column is None:
        return 0, place
    if at == "zero" or name.endswith(" is empty"):
        return 3, place
    return 1 + (not column.categories), place


def _function(table: Table, key: tuple[str, str], to: tuple[str, str], sure: float) -> Candidate | None:
    """Return the function of one feature by another, if there is one, or a near one.

    A class of n rows decides if it is a miracle that all have one value: n log(share of the value in other classes), or
    of what the class with the fewest exceptions keeps, is less than log 1e-6.
    """
    (x, keys), (y, values) = table.features[key], table.features[to]
    both = (x >= 0) & (y >= 0)
    times = np.bincount(x[both] * len(values) + y[both], minlength=len(keys) * len(values))
    times = times.reshape(len(keys), len(values))
    count, most, mode = times.sum(1), times.max(1), times.argmax(1)
    off = count - most
    is_enough = count >= LEAST_TIMES
    is_bad = (off > _EXCEPTIONS) | (off > _RARE * count)
    share = (times.sum(0)[mode] - most + 1) / (both.sum() - count + 2)
    exceptions = (off / count)[is_bad & is_enough]
    if len(exceptions):
        share = np.minimum(share, 1 - exceptions.min())
    surprise = count * np.log(share)
    is_total = not is_bad.any() and len({*mode[is_enough]}) > 1
    is_good = is_enough & ~is_bad & ((surprise < sure) | (is_total and surprise[is_enough].sum() < sure))
    if to[1] == "zero" and is_bad.any():
        is_good &= values[mode] == 1  # that none is 0 says little alone
    exact = is_good & (off == 0)
    if not exact.any() or (is_total and off.any()):
        exact = is_good
    if not exact.any():
        return None
    wrong = np.flatnonzero(exact[x] & both & (y != mode[x]))
    return Candidate(said_function(table, key, to, keys[exact], values[mode[exact]]), wrong)


def said_function(table: Table, key: tuple[str, str], to: tuple[str, str], keys: Array, found: Array) -> Function:
    """Return a function with its text."""
    (of, at), (name, of_value) = key, to
    classes = table.labels.get(of, ())
    rule = Function(
        column=name, of=(of,), at=at, to=of_value, keys=tuple(keys.tolist()), found=tuple(found.tolist()),
        classes=classes,
    )  # fmt: skip
    y, decided = table.values[name], rule.decided(table.values)
    is_total = of_value == "value" and not (np.isnan(decided) & ~np.isnan(y)).any()
    pairs = [
        f"{_text(table, of, at, value_of)} -> {_text(table, name, of_value, value)}"
        for value_of, value in zip(keys.tolist(), found.tolist())
    ]
    zero = {"value": "", "zero": " is 0"}
    says = f"{name}{zero[of_value]} by {of}{zero[at]}: {', '.join(pairs)}"
    return replace(rule, is_total=is_total, unit=table.unit.get(name, 1.0) or 1e-6, says=says)


def _text(table: Table, name: str, at: str, value: float) -> str:
    """Return a class as a person names it."""
    column = table.columns.get(name)
    if at == "zero" or name.endswith(" is empty"):
        return ("no", "yes")[int(value)]
    if column is None:
        return table.labels[name][int(value)]
    return column.text(value - column.origin, is_given=True)


def _identities(table: Table) -> Iterator[Candidate]:
    """Yield identities, one of the same columns, and one product for a column."""
    taken = set[frozenset[str]]()
    for rule in itertools.chain(_sums(table), _products(table), _factors(table)):
        columns = frozenset({rule.column, *rule.of})
        if not rule.factors:
            columns = frozenset({rule.column})
        candidate = None if columns in taken else with_residual(table, rule, _FEW_ROWS)
        if candidate is not None and len(candidate.wrong) <= min(_EXCEPTIONS, _RARE * table.n):
            taken.add(columns)
            yield candidate


def with_residual(table: Table, rule: Identity, least_rows: int = 1) -> Candidate | None:
    """Return an identity with its greatest residual, and the rows that break it; None if rounding explains none.

    Args:
        table: the training rows.
        rule: a sum or a product.
        least_rows: that keep it.
    """
    y, due = table.values[rule.column], rule.due(table.values)
    off = np.abs(y - due).round(rule.digits)
    room, spread = _rounding(table, rule)
    wrong = off > room + TINY
    kept = off[~wrong & ~np.isnan(off)]
    if len(kept) < least_rows or np.nanstd(y) == 0:
        return None
    most = float(kept.max(initial=0.0))
    if most > 0 and (most > _RARE * np.nanstd(y) or np.sqrt((kept**2).mean()) > 1.15 * spread or len(rule.of) == 1):
        return None
    says = rule.says
    if most:
        says += f", to within {most:g}"
    return Candidate(replace(rule, most=most, says=says), np.flatnonzero(wrong))


def _rounding(table: Table, rule: Identity) -> tuple[Array, float]:
    """Return by how much each row may differ from an identity, (N,), since its values are rounded; and how far it does.

    At most three units in the last digit; 0 where a column or a product of a class is exact.
    """
    unit = table.unit[rule.column]
    units = [table.unit.get(name, 0.0) for name in rule.of]
    weights = [np.full(table.n, abs(factor)) for factor in rule.factors]
    if not rule.factors and not rule.keys:
        weights = [np.abs(table.values[name]) for name in rule.of[::-1]]
    parts = np.array([weight * step for weight, step in zip(weights, units)] + [np.full(table.n, unit)])
    room = np.minimum(parts.sum(0) / 2, _MOST_UNITS * unit)
    return room, float(np.sqrt(np.nanmedian((parts**2).sum(0)) / 12))


def _sums(table: Table) -> Iterator[Identity]:
    """Yield sums among columns that are given together, of all rows, and of parts that may have no exception."""
    names = table.numbers
    if not names:
        return
    is_given = ~np.isnan(np.array([table.values[name] for name in names])).T
    patterns, times = np.unique(is_given, axis=0, return_counts=True)
    for pattern in patterns[np.argsort(-times)[:6]]:
        together = sorted(itertools.compress(names, pattern), key=lambda name: name in table.dates)
        rows = np.flatnonzero(is_given[:, pattern].all(1))
        if len(rows) < _FEW_ROWS or len(together) < 2:
            continue
        yield from _determined(table, together, rows[:: max(1, len(rows) // 1000)])
        if len(rows) >= _CHUNKS * max(_FEW_ROWS, 3 * len(together)):
            for part in np.array_split(rows, _CHUNKS):
                yield from _determined(table, together, part[:200])


def _determined(table: Table, names: Sequence[str], rows: NDArray[np.int64]) -> Iterator[Identity]:
    """Yield a sum for each column that those before it determine up to its rounding, with factors of 1 and -1.

    Gram and Schmidt: what is left of a column beside the ones before it is either new, or rounding. Dates are in
    seconds, and may have numbers of minutes, hours or days beside them.
    """
    scale = {name: 86400.0 if name in table.dates else 1.0 for name in names}
    basis = list[str]()
    q = np.full((len(rows), 1), len(rows) ** -0.5)
    for name in names:
        y = table.values[name][rows] * scale[name]
        rest = y - q @ (q.T @ y)
        rest -= q @ (q.T @ rest)
        size = np.sqrt((rest**2).mean())
        is_new = size > max(table.unit[name] * scale[name], 1e-9 * np.abs(y).max())
        if is_new or len(np.unique(y)) < _LEAST_VALUES or not basis:
            if size > max(1e-6 * y.std(), 1e-9 * np.abs(y).max()) and len(basis) < len(rows) / 2:
                basis.append(name)
                q = np.column_stack([q, rest / np.linalg.norm(rest)])
            continue
        x = np.array([table.values[name][rows] * scale[name] for name in basis]).T
        centred = (x - x.mean(0)) / x.std(0)
        factors = np.linalg.lstsq(centred, y - y.mean(), rcond=None)[0] / x.std(0)
        weights = {name: -1.0}
        for term, factor in zip(basis, factors.tolist()):
            if abs(factor) > 0.3:
                units = [1] if name not in table.dates else [86400 / per_day for per_day in _SECONDS]
                nearest = min(units, key=lambda unit: abs(unit - abs(factor)))
                weights[term] = math.copysign(nearest, factor)
                if abs(factor - weights[term]) > 0.2 * nearest:
                    weights.clear()
                    break
        if len(weights) > 1:
            yield from _total(
                table, {term: weight * scale[term] / scale[name] for term, weight in weights.items()}, rows
            )


def _total(table: Table, weights: dict[str, float], rows: NDArray[np.int64]) -> Iterator[Identity]:
    """Yield sum_i weight_i a_i = constant as a sum of the total, unless it is a constant total of parts."""
    constant = float(np.median(sum(weight * table.values[name][rows] for name, weight in weights.items())).round(9))
    positive = [name for name, weight in weights.items() if weight > 0]
    negative = [name for name, weight in weights.items() if weight < 0]
    name = negative[0]
    if len(positive) == 1 and len(negative) > 1:
        name = positive[0]
    if len(weights) < 3 or not constant or (positive and negative):
        yield a_sum(weights, constant, name, table.columns[name])


def _products(table: Table) -> Iterator[Identity]:
    """Yield products of two columns that agree in a few rows."""
    names = [name for name in table.numbers if name not in table.dates]
    rows = np.random.default_rng(0).permutation(table.n)
    x = np.array([table.values[name] for name in names]).reshape(len(names), table.n)
    units = np.array([table.unit[name] for name in names])
    for place, name in enumerate(names):
        y = x[place]
        some = rows[~np.isnan(y[rows]) & (y[rows] != 0)][:_SAMPLE]
        if len(np.unique(y[~np.isnan(y)])) < _LEAST_VALUES or len(some) < _SAMPLE:
            continue
        for few in (some[: _SAMPLE // 2], some[_SAMPLE // 2 :]):  # one of which may have no exception
            a, size = x[:, few], np.abs(x[:, few])
            room = (size[:, None] * units[:, None, None] + size * units[:, None]) * 0.51 + units[place] / 2
            off = np.abs(a[:, None] * a - y[few]) - room - TINY * np.abs(y[few])
            for i, j in np.argwhere(np.triu(~(off > 0).any(-1), 1)).tolist():
                both = ~np.isnan(x[i] * x[j] * y)
                if both.sum() < _FEW_ROWS:
                    continue
                varied = min((column_x[both] != np.median(column_x[both])).sum() for column_x in (x[i], x[j]))
                if place not in (i, j) and varied >= LEAST_TIMES:
                    of = names[i], names[j]
                    says = f"{name} = {of[0]} x {of[1]}"
                    yield Identity(column=name, of=of, digits=digits_of(table.columns[name]), says=says)


def _factors(table: Table) -> Iterator[Identity]:
    """Yield products of a column and a factor that is a function of a class, such as a rate of tax.

    In each class all ratios, up to the rounding of the product, must have a number in common; of the numbers that they
    have in common the factor is that of fewest digits.
    """
    names = [name for name in table.numbers if name not in table.dates and table.unit[name] > 0]
    classes = [feature for feature in table.features if feature[1] == "value" and feature[0] not in table.labels]
    classes.sort(key=lambda feature: len(table.features[feature][1]))
    x = np.array([table.values[name] for name in names]).reshape(len(names), table.n)
    best = dict[frozenset[int], tuple[int, float, Identity]]()  # by the pair: the place of the class, and the digits
    for place, feature in enumerate([None, *classes]):
        codes, levels = np.zeros(table.n, np.int64), np.zeros(1)
        if feature is not None:
            codes, levels = table.features[feature]
        for i, j in _with_one_ratio(x, [table.unit[name] for name in names], codes):
            pair = frozenset((i, j))
            known = ~np.isnan(x[i] * x[j]) & (x[j] != 0)
            is_named = feature is not None and feature[0] in (names[i], names[j])
            is_late = best.get(pair, (place,))[0] < place
            if is_late or is_named or known.sum() < _FEW_ROWS or (codes[known] < 0).any():
                continue
            unit, y, ratio = table.unit[names[i]], x[i][known], x[i][known] / x[j][known]
            room = (unit / 2 * (1 + 1e-6) + TINY * np.abs(y)) / np.abs(x[j][known])
            factors = _factor_of(codes[known], ratio - room, ratio + room)
            if not factors or y.std() < 20 * unit or (feature is not None and len({*factors.values()}) < 2):
                continue
            digits = float(np.mean([len(f"{factor:g}".partition(".")[2]) for factor in factors.values()]))
            column = table.columns[names[i]]
            if digits >= _MOST_DIGITS or best.get(pair, (0, math.inf))[1] <= digits:
                continue
            rule = a_sum({names[i]: 1.0, names[j]: -next(iter(factors.values()))}, 0.0, names[i], column)
            if feature is not None:
                keys = tuple(levels[[*factors]].tolist())
                pairs = [f"{_text(table, *feature, key)} -> {factor:g}" for key, factor in zip(keys, factors.values())]
                says = f"{names[i]} = {names[j]} x factor of {feature[0]}: {', '.join(pairs)}"
                of, found = (names[j], feature[0]), tuple(factors.values())
                rule = Identity(column=names[i], of=of, keys=keys, found=found, digits=digits_of(column), says=says)
            best[pair] = place, digits, rule
    yield from (rule for _, _, rule in best.values())


def _with_one_ratio(x: Array, units: Sequence[float], codes: NDArray[np.int64]) -> list[list[int]]:
    """Return the pairs of columns (D, N) whose ratios in some rows of the largest class have a number in common."""
    rows = np.flatnonzero(codes == np.bincount(codes[codes >= 0]).argmax())
    known = (~np.isnan(x[:, rows]) & (x[:, rows] != 0)).sum(0)
    some = x[:, rows[np.argsort(-known, kind="stable")[:_SAMPLE]]]
    some = np.where(some == 0, np.nan, some)
    room = np.array(units)[:, None, None] / 2 * (1 + 1e-6) + TINY * np.abs(some[:, None])
    ratio, room = some[:, None] / some, room / np.abs(some)
    low = np.fmax.reduce(ratio - room, -1, initial=-np.inf)
    high = np.fmin.reduce(ratio + room, -1, initial=np.inf)
    pairs: list[list[int]] = np.argwhere((low <= high) & ~np.eye(len(x), dtype=bool)).tolist()
    return pairs


def _factor_of(codes: NDArray[np.int64], low: Array, high: Array) -> dict[int, float]:
    """Return the factor of each class, given intervals that hold it; {} if a class has none."""
    rounded = dict[int, float]()
    count = np.bincount(codes)
    lows, highs = np.full(len(count), -np.inf), np.full(len(count), np.inf)
    np.maximum.at(lows, codes, low)
    np.minimum.at(highs, codes, high)
    if (lows > highs)[count > 0].any():
        return {}
    for code in np.flatnonzero(count >= LEAST_TIMES).tolist():
        middle = (lows[code] + highs[code]) / 2
        digits = (number for number in range(7) if lows[code] <= round(middle, number) <= highs[code])
        rounded[code] = round(middle, next(digits, 7))
    return rounded


def _orders(table: Table) -> list[Candidate]:
    """Return orders a <= b of columns in one step, the closest first."""
    names = [name for name in table.numbers if len(np.unique(table.values[name])) > 2]
    x = np.array([table.values[name] for name in names]).reshape(len(names), table.n)
    has_heap = np.array([(name, "zero") in table.features for name in names], bool)
    apart = np.where(has_heap[:, None] & (x == 0), np.nan, x)  # whether one is 0 is a function
    steps = [table.columns[name].step or table.unit[name] for name in names]
    kinds = [(name in table.dates, round(step, 9)) for name, step in zip(names, steps)]
    num_pairs = sum(kinds.count(kind) - 1 for kind in kinds)
    need = max(_SURE_ORDER, math.log(max(1, num_pairs) / _CHANCE_ORDER))
    orders = list[tuple[float, Candidate]]()
    for i, j in itertools.permutations(range(len(names)), 2):
        d = apart[j] - apart[i]
        if kinds[i] != kinds[j] or (d < 0).sum() > _EXCEPTIONS:
            continue
        both = ~np.isnan(d)
        wrong = np.flatnonzero(x[i] > x[j])
        d = d[d >= 0]
        if len(d) < 20 or d.std() == 0 or len(wrong) > _RARE * len(d):
            continue
        by_chance = np.searchsorted(np.sort(apart[j][both]), apart[i][both]).mean()  # broken by independent columns
        least = _edge(d, steps[i], need)
        if by_chance >= need and least is not None:
            says = f"{names[i]} {'<' if least else '<='} {names[j]}"
            rule = Order(column=names[j], of=(names[i],), is_above=True, least=least, says=says)
            orders.append((float(d.std() / np.nanstd(x[j])), Candidate(rule, wrong)))
    return [order for _, order in sorted(orders, key=lambda item: item[0])]


def _edge(d: Array, step: float, need: float) -> float | None:
    """Return the least of differences (N,) if it is a miracle, 0 or a step; or None.

    Differences of 0 may be a heap of their own, as where a discount is none: then the others are looked at.
    """
    if step < d.min() * 2 < 3 * step and expected_below(d, step / 2, step) > need:
        return step
    if expected_below(d, -step / 2, step) > need:
        return 0.0
    rest = d[d > step / 2]
    heap = len(d) - len(rest)
    if heap >= max(2 * LEAST_TIMES, _HEAP * len(d)) and len(rest) >= 20 and np.median(rest) > 5 * step:
        is_apart = heap > 5 * (rest < 3.5 * step).sum() / 3
        if is_apart and expected_below(rest, step / 2, step) > need / 2:
            return 0.0
    return None


def expected_below(d: Array, edge: float, step: float) -> float:
    """Return how many of differences (N,) a smooth model expects below an edge: the fewest of three models.

    A Normal; a log-Normal whose shift makes the probability plot of the middle 80 % straight; and a parabola through
    the log-counts of three cells above the edge. What lies at the edge is in no fit, so that it can be missed.
    """
    from scipy.special import ndtr, ndtri

    n, at = len(d), np.linspace(0.1, 0.9, 17)
    d = np.sort(d) + step * ((np.arange(n) * 0.6180339887) % 1 - 0.5)  # spread in its step
    q, z = np.quantile(d, at), ndtri(at)
    span = q[-1] - q[0]
    shift = np.r_[edge - span * np.geomspace(1e-3, 10, 40), edge + max(0.0, q[0] - edge) * np.linspace(0, 0.9, 10)]
    logs = np.log(np.maximum(q - shift[:, None], 1e-12 * span))
    centred = logs - logs.mean(1, keepdims=True)
    slope = centred @ z / (z @ z)
    best = (((centred - slope[:, None] * z) ** 2).sum(1) / (slope**2 + 1e-300)).argmin()
    shares = [float(ndtr((edge - d.mean()) / d.std())), 0.0]
    if shift[best] < edge:
        shares[1] = float(ndtr((math.log(edge - shift[best]) - logs[best].mean()) / slope[best]))
    width = (q[8] - edge) / 3
    if step and width < 20 * step:
        width = max(1, round(width / step)) * step
    cells = np.histogram(d, edge + width * np.arange(4))[0]
    return float(min(n * min(shares), cells[0] ** 3 * cells[2] / max(1, cells[1]) ** 3))


def _flags(table: Table) -> list[Rule]:
    """Return groups of flags of which at most one is set, or exactly one."""
    from scipy.special import pdtr

    x = {name: table.values[name] == 1 for name, at in table.features if _is_flag(table, (name, at))}
    left = sorted(x, key=lambda name: -x[name].sum())
    pairs = list[Candidate]()
    for pair in itertools.combinations(left, 2):
        wrong = np.flatnonzero(x[pair[0]] & x[pair[1]])
        if pdtr(len(wrong), x[pair[0]].mean() * x[pair[1]].sum()) < math.exp(_SURE) and len(wrong) <= _EXCEPTIONS:
            pairs.append(Candidate(flag_group(pair, False), wrong))
    if pairs and not table.believed(pairs):
        left = []
    groups = list[Rule]()
    while left:
        group = left[:1]
        union = x[left.pop(0)]
        for name in [*left]:
            if not (union & x[name]).any() and union.sum() * x[name].mean() > 4:
                group.append(name)
                union = union | x[name]
                left.remove(name)
        none = float(np.prod([1 - x[name].mean() for name in group]))  # of independent ones
        at_most_one = none * (1 + sum(x[name].mean() / (1 - x[name].mean()) for name in group))
        if len(group) > 1 and table.n * math.log(min(1.0, at_most_one)) < _SURE:
            groups.append(flag_group(group, bool(union.all()) and table.n * none > LEAST_TIMES))
    return groups


def flag_group(names: Iterable[str], is_exact: bool) -> Flags:
    """Return the rule that at most one of some flags is set, or exactly one."""
    first, *others = names
    says = f"{'exactly' if is_exact else 'at most'} one of {', '.join([first, *others])}"
    return Flags(column=first, of=(), flags=(first, *others), is_exact=is_exact, says=says)
