"""Whether draws from a VAE keep the rules of a table, and near rules: what holds in nearly all of its rows.

A near rule holds in at least 99 % of at least 200 training rows, and not in all. It says of two columns A and B

    A <= B                  of numbers, or of dates; q = P(A <= B)
    B is b where A is a     of values that are frequent, of the rows where A is a; q = P(B = b)

If A and B were independent, it would hold in each row with the probability q. A binomial distribution gives the
number of rows in which it holds, or more, a probability of at most 1e-9. Where A has few values, B as a function of A
is said for each of them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from pvae.core.errors import one_line
from pvae.data.column import Column
from pvae.data.rule import Array
from pvae.data.rules import modelled
from pvae.evaluation.context import Context, Measure, said
from pvae.evaluation.measures.samples import rows_of_file

_SURE = 1e-9
_LEAST_SHARE, _LEAST_ROWS = 0.99, 200


@dataclass(frozen=True, kw_only=True)
class NearRule:
    """What holds in nearly all rows, though not in all.

    Args:
        says: what it is, in one line.
        share: of the training rows of which it says something.
        share_of_draws: the same of the draws.

    >>> print(NearRule(says="returns <= orders", share=0.996, share_of_draws=0.981))
    returns <= orders: 99.6% of the rows, 98.1% of the draws
    """

    says: str
    share: float
    share_of_draws: float

    def __str__(self) -> str:
        """Return the rule with both shares, in one line."""
        return f"{one_line(self.says)}: {self.share:.1%} of the rows, {self.share_of_draws:.1%} of the draws"


@dataclass(frozen=True, kw_only=True)
class Rules(Measure):
    """What holds in all rows of a table, or in nearly all, and in which share of the draws; None as of `SampleQuality`.

    Rules are found in the rows of all splits, so no test row breaks one; `pvae score` names rows of other files that
    do.

    Args:
        found: the number of rules.
        broken: the share of drawn rows that break a rule.
        near: near rules, those first that draws keep least beside the training rows, at most five; of two columns at
            most one.
    """

    title = "rules of the table"

    found: int = said("rules", "which all rows of the file keep")
    broken: float = said("  broken", "the share of drawn rows that break one")
    near: tuple[NearRule, ...] = said("  kept by nearly all rows")

    @classmethod
    def of(cls, context: Context) -> Rules | None:
        """Return that of the draws that `SampleQuality` compares."""
        rows = context.once(rows_of_file)
        if rows is None:
            return None
        train, drawn = rows
        schema = context.run.data
        broken = dict[str, str]()
        modelled(schema, drawn, [*map(str, range(len(drawn)))], broken)
        near = near_rules(train, drawn, schema.file_columns)
        return cls(found=len(schema.rules), broken=len(broken) / len(drawn), near=tuple(near[:5]))


def near_rules(train: Array, draws: Array, columns: Sequence[Column]) -> list[NearRule]:
    """Return near rules of training rows (N, D) with their shares in draws (M, D), the largest drop first.

    Of two columns there is at most one.
    """
    origins = [column.origin for column in columns]
    tables = [np.where(np.isnan(x), np.inf, x + origins) for x in (train, draws)]  # an empty field is equal to another
    best = dict[frozenset[int], NearRule]()
    for pair in itertools.permutations(range(len(columns)), 2):
        key = frozenset(pair)
        for rule in _near_rules_of([columns[place] for place in pair], [x[:, pair] for x in tables]):
            best[key] = min(rule, best.get(key, rule), key=_change)
    return sorted(best.values(), key=_change)


def _change(rule: NearRule) -> float:
    return rule.share_of_draws - rule.share


def _near_rules_of(columns: Sequence[Column], tables: Sequence[Array]) -> Iterator[NearRule]:
    """Yield near rules of two columns, given both in training rows (N, 2) and in draws (M, 2)."""
    from scipy import stats  # slow to import

    first, second = columns
    a, b = tables[0].T
    found = []
    if not (first.categories or second.categories) and bool(first.date_format) == bool(second.date_format):
        given = [x[np.isfinite(x.sum(1))] for x in tables]
        low, high = given[0].T
        chances = np.searchsorted(np.sort(low), high, side="right") / len(low)
        found.append((f"{first.name} <= {second.name}", [x[:, 0] <= x[:, 1] for x in given], chances))
    keys, times = np.unique(a, return_counts=True)
    for key in keys[times >= _LEAST_ROWS]:
        rows = [x[x[:, 0] == key, 1] for x in tables]
        value = np.median(rows[0])  # nearly all are equal to it, if it is a near rule
        says = f"{_said(second, value)} where {_said(first, key)}"
        found.append((says, [part == value for part in rows], b == value))
    for says, (holds, of_draws), chances in found:
        if len(holds) < _LEAST_ROWS or not _LEAST_SHARE <= holds.mean() < 1 or not len(of_draws):
            continue
        if stats.binom.sf(holds.sum() - 1, len(holds), chances.mean()) <= _SURE:
            yield NearRule(says=says, share=holds.mean(), share_of_draws=of_draws.mean())


def _said(column: Column, value: float) -> str:
    text = "empty"
    if math.isfinite(value):
        text = column.text(value - column.origin, is_given=True)
    return f"{column.name} is {text}"
