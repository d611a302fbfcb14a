"""Rules of a table: what holds in all of its rows is found, taken out before a training, and holds in every drawn row.

A rule rewrites the columns of a table so that less is left to model, and `undo` brings them back exactly. Each is a
bijection of the rows for which it holds, between values in steps or categories, whose probabilities do not change; a
difference or a residual is its column shifted by others, which keeps a density too. So log p of the columns that are
left is log p of the row.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

import pvae.data.rule_kinds  # noqa: F401  which are the members of `Rule`
from pvae.core.errors import check_name
from pvae.data.column import Column
from pvae.data.rule import LEAST_ROWS, TINY, Array, Empty, Rule, Table, Values

if TYPE_CHECKING:
    from pvae.data.schema import Schema


def find_rules(table: Table, without: Sequence[str] = ()) -> Table:
    """Return the table as all rules that are found have rewritten it.

    Rules are searched in all rows, in the order of their classes: what is empty, products and sums, thresholds, what
    others determine, where a column has one value, ends, order, seasons, and levels. A column is computed from others,
    which may be computed too, but never from itself. A rule must hold in all rows, also in those for validation and
    test, so that none of these has log p = -inf; `evaluate` names what nearly all rows keep. A rule that a few values
    could keep, as `same`, `threshold`, `where` and `order`, is taken only if it would hold by chance, of independent
    columns, with a probability of at most 1e-9.

    Args:
        table: the columns of a file.
        without: names of rules, or of columns of which rules are left out.
    """
    if len(table) < LEAST_ROWS:
        return table
    for kind in Rule.members.values():
        for rule in kind.find(table):
            is_asked = {kind.name, rule.column, *rule.of}.isdisjoint(without) and rule.column not in table.kept
            if is_asked and table.may_compute(rule.column, rule.of, is_emptied=not rule.is_shift):
                table.planned[rule.column] = rule
        if not kind.waits:
            table.take_planned()
    return table


def without_rules(
    x: Array, columns: Sequence[Column], kept: Sequence[str], option: str
) -> tuple[Array, dict[str, Any]]:
    """Return the values (N, D) that are left of those of a file, and the fields of a schema that say of what.

    Args:
        x: the values of the file.
        columns: its columns.
        kept: names of columns that are not rewritten.
        option: `Reading.rules`.
    """
    without = []
    if option != "auto":
        names = [*Rule.members, *(column.name for column in columns)]
        without = [check_name("--rules", one.strip().removeprefix("not "), names) for one in option.split(",")]
    table = find_rules(Table(_named(x, columns), columns, kept), without)
    left = tuple(table.columns.values())
    if not table.rules:
        return x, {"columns": left}
    recorded = [*columns]
    for place, column in enumerate(columns):
        if column not in left:  # it is computed from others, which say its range
            recorded[place] = column.of_any_size()
    return _stacked(table.values, left), {"columns": left, "rules": tuple(table.rules), "recorded": tuple(recorded)}


def modelled(schema: Schema, x: Array, rows: Sequence[str], outside: dict[str, str]) -> Array:
    """Return the values that are left of those of another file (N, D), by the rules of a schema.

    Args:
        schema: of the run.
        x: the values of the file.
        rows: the names of the rows.
        outside: rows that cannot be rows of the run's table, and why; those that break a rule are added.
    """
    if not schema.rules:
        return x
    file = _named(x, schema.recorded)
    values: Values = file
    columns = {column.name: column for column in schema.recorded}
    slack = dict(zip(columns, _slack(schema)))
    made: dict[str, str] = {}  # the column of the file that it was made from
    for rule in schema.rules:
        before = values
        values = rule.apply(before)
        name = made.get(rule.column, rule.column)
        made |= dict.fromkeys(rule.made, name)
        is_known = ~np.isnan([file[name], *(file[one] for one in rule.of if one in file)]).any(0)
        is_kept = rule.keeps(before, values, slack[name]) | np.isnan(before[rule.column])
        for row in np.flatnonzero(is_known & ~is_kept).tolist():
            text = columns[name].text(file[name][row] - columns[name].origin, is_given=True)
            outside.setdefault(rows[row], f"{name} is {text}, which breaks a rule of the run: {rule}")
    return _stacked(values, schema.columns)


def recorded(schema: Schema, x: Tensor, is_filled: bool = False) -> Tensor:
    """Return the values of the columns of a file (N, D), given those that are left.

    Args:
        schema: of the table.
        x: values that are left; those that were drawn or computed are rounded as `Column.rounded` says.
        is_filled: a field stays empty only where another column says so.
    """
    if not schema.rules:
        return x
    return _in_file(schema, _rounded(schema, x, is_filled), is_filled)


def _rounded(schema: Schema, x: Tensor, is_filled: bool) -> Tensor:
    """Return values that are left as those of the file."""
    rounded = x.double().clone()
    for place, column in enumerate(schema.columns):
        if not (is_filled and column.limit is not None):  # which is filled in with numbers below it
            rounded[:, place] = torch.tensor(
                [column.rounded(value) for value in rounded[:, place].tolist()], dtype=torch.float64
            )
    return rounded


def _in_file(schema: Schema, x: Tensor, is_filled: bool) -> Tensor:
    """Return the values of the columns of a file, given rounded ones that are left."""
    if not schema.rules:
        return x
    values: Values = _named(x.numpy(), schema.columns)
    if is_filled:
        given = {one.indicator: np.zeros(len(x)) for one in schema.rules if isinstance(one, Empty)}
        values = {name: given.get(name, x) for name, x in values.items()}
    return torch.from_numpy(_stacked(_undone(schema.rules, values), schema.recorded))


def completed(schema: Schema, given: Tensor, x: Tensor, tries: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return rows of a file, each filled in by the first of some tries that breaks no rule beside its given fields.

    Args:
        schema: of the table.
        given: rows (N, D) in the columns of the file; NaN is empty, and stays so in a row without such a try.
        x: their values that are left, NaN where one is missing; those below a limit are filled in too.
        tries: as x, but filled in.

    Returns:
        The rows, and the places of those without such a try.
    """
    found, left = given.clone(), torch.arange(len(given))
    slack = torch.from_numpy(_slack(schema))
    limits = torch.from_numpy(np.array([column.limit for column in schema.columns], float))  # NaN for None
    is_open = x.isnan() | (x < limits)
    for one in tries:
        if not len(left):
            break
        new = one[left].double()
        if schema.rules:
            new = _rounded(schema, new, is_filled=True)
        filled = _in_file(schema, torch.where(is_open[left], new, x[left]), is_filled=True)
        known = given[left]
        agrees = (known.isnan() | ((filled - known).abs() <= slack + 1e-14 * known.abs())).all(1)
        found[left[agrees]] = torch.where(known.isnan(), filled, known)[agrees]
        left = left[~agrees]
    return found, left


def can_be(schema: Schema, x: Tensor) -> Tensor:
    """Return for each of some rows (N, D) whether the columns that are computed lie within their limits, bool (N,)."""
    is_within = torch.ones(len(x), dtype=torch.bool)
    if not schema.rules:
        return is_within
    for column, values in zip(schema.recorded, recorded(schema, x).T):
        if column not in schema.columns and column.least is not None:
            greatest = math.inf if column.greatest is None else column.greatest
            is_within &= ~((values < column.least - TINY) | (values > greatest + TINY))
    return is_within


def log_density_beside(schema: Schema, x: Tensor) -> Tensor:
    """Return log p of rows in the columns of the file, less that in the columns that are left, (N,) nats.

        log p(file) - log p(left) = sum over given fields of left of log u  -  sum over those of the file of log u

    A value that is recorded in steps of u has the density P / u, P being the probability of its step. A field that a
    rule fills in has P = 1. A difference has the u of its column, since a shift keeps a density.

    Args:
        schema: of the table.
        x: values (N, D) of the columns that are left.
    """
    if not schema.rules:
        return x.new_zeros(len(x))
    of_file = {column.name: column.spacing for column in schema.recorded}
    of_left = {column.name: column.spacing for column in schema.columns}
    for rule in schema.rules:
        if rule.is_shift and rule.column in of_file:
            of_left.update(dict.fromkeys(rule.made, of_file[rule.column]))
    shares = []
    for columns, spacing, values in (
        (schema.columns, of_left, x),
        (schema.recorded, of_file, recorded(schema, x)),
    ):
        each = torch.tensor([spacing[column.name] for column in columns], dtype=torch.float64)
        shares.append((each.log() * ~values.isnan()).sum(1))
    return shares[0] - shares[1]


def _undone(rules: Sequence[Rule], values: Values) -> Values:
    indicators = {rule.column: rule.indicator for rule in rules if isinstance(rule, Empty)}
    for rule in reversed(rules):
        for name in rule.of:
            if indicators.get(name) in values:
                values = {**values, name: np.where(values[indicators[name]] == 1, np.nan, values[name])}
        values = rule.undo(values)
    return values


def _slack(schema: Schema) -> Array:
    """Return by how much values of the columns of a file may differ that are equal, (D,)."""
    digits = [8 if column.decimals is None else min(column.decimals, 8) for column in schema.file_columns]
    return 0.49 * 10.0 ** -np.array(digits)


def _named(x: Array, columns: Sequence[Column]) -> Values:
    return {column.name: x[:, place] + column.origin for place, column in enumerate(columns)}


def _stacked(values: Values, columns: Sequence[Column]) -> Array:
    return np.stack([values[column.name] - column.origin for column in columns], 1)
