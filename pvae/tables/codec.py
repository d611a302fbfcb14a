"""Rows of a table between the columns of its file and those of x: `from_file`, `to_file`, and `complete`.

The steps of a schema rewrite the columns of the file one after another; undone in turn, they bring them back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pvae.core.errors import listed
from pvae.tables.column import Column
from pvae.tables.parts import Empty
from pvae.tables.rule import TINY, Array, Flags, Rule, Values

if TYPE_CHECKING:
    from pvae.tables.schema import Schema


def from_file(
    schema: Schema, file: Array, y: Tensor | None = None, fills: bool = False
) -> tuple[Tensor, dict[int, str]]:
    """Return values of x, (N, D'), and the rows that cannot be rows of the table, with why.

    Args:
        schema: of the table.
        file: the values of the columns of the file, (N, D), of any rows.
        y: the labels, (N,) or (1,), if rules depend on them.
        fills: what is empty is filled in later, and given fields that need it are looked at then.
    """
    if not schema.recorded:
        return torch.from_numpy(file), {}
    values = {**named(file, schema.recorded), schema.reading.label_column: codes_of(y, len(file))}
    columns = {column.name: column for column in schema.recorded}
    why = dict[int, str]()
    full = _with_empties(schema, values)
    for rule in schema.rules:
        for row in np.flatnonzero(~rule.keeps(full)).tolist():
            why.setdefault(row, f"{_said(rule, full, columns, row)}, which breaks a rule: {rule}")
    left: Values = values
    for step in schema.steps:
        if not step.is_law:
            for row in np.flatnonzero(~step.keeps(left)).tolist():
                why.setdefault(row, f"{_said(step, left, columns, row)}, and in the training rows {step}")
        left = step.apply(left)
    x = _stacked(left, schema.columns)
    if fills:
        return torch.from_numpy(x), why
    again = named(_undone_rows(schema, named(x, schema.columns), y), schema.recorded)
    for column, slack in zip(schema.recorded, _slack(schema).tolist()):
        given = values[column.name]
        is_lost = ~np.isnan(given) & ~(np.abs(given - again[column.name]) <= slack + 1e-14 * np.abs(given))
        for row in np.flatnonzero(is_lost).tolist():
            text = column.text(given[row] - column.origin, is_given=True)
            why.setdefault(row, f"{column.name} is {text}, and no training row is like this one")
    return torch.from_numpy(x), why


def deduced(schema: Schema, file: Array, y: Tensor | None = None, fills: bool = False) -> Array:
    """Return the values of the columns of a file, (N, D), in which the rules have filled in what they determine.

    Args:
        schema: of the table.
        file: the values, NaN where they are empty.
        y: as for `from_file`.
        fills: in columns too of which empty fields are part of x; else in those that training rows have full.
    """
    values = {**named(file, schema.recorded), schema.reading.label_column: codes_of(y, len(file))}
    columns = {column.name: column for column in schema.recorded}
    kept = set() if fills else {*_indicators(schema)}
    rules = [rule for rule in schema.rules if {rule.column, *rule.of} <= values.keys()]  # not of whether one is empty
    num_empty = np.isnan(file).sum()
    while num_empty:  # one may need what another one fills in
        for rule in rules:
            values |= {name: x for name, x in rule.deduced(values, columns).items() if name in columns.keys() - kept}
        file = _stacked(values, schema.recorded)
        before = num_empty
        num_empty = np.isnan(file).sum()
        if num_empty == before:
            break
    return file


def _said(rule: Rule, values: Values, columns: Mapping[str, Column], row: int) -> str:
    """Return the value of the column of a rule in a row."""
    name = rule.column
    if isinstance(rule, Flags):
        return f"{listed([one for one in rule.flags if values[one][row] == 1]) or 'none'} is set"
    if name not in columns:
        name = name.removesuffix(" is empty")
    if name not in columns:
        return f"{name} is {values[rule.column][row]:g}"
    text = columns[name].text(values[name][row] - columns[name].origin, is_given=True)
    return f"{name} is {text or 'empty'}"


def to_file(schema: Schema, x: Tensor, y: Tensor | None = None) -> Tensor:
    """Return the values of the columns of a file, float64 (N, D), given x; of other data than tables x itself.

    Args:
        schema: of the data.
        x: values of x; those that were drawn or computed are rounded, as `Column.rounded` says.
        y: the labels, (N,) or (1,), if rules depend on them.
    """
    if not schema.columns:
        return x
    return _in_file(schema, _rounded(schema, x), y)


def _rounded(schema: Schema, x: Tensor, is_filled: bool = False) -> Tensor:
    """Return values of x as those of the file; below a limit, a value that was filled in stays."""
    rounded = x.to("cpu", torch.double, copy=True)
    for place, column in enumerate(schema.columns):
        if not (is_filled and column.limit is not None):
            rounded[:, place].apply_(column.rounded)
    return rounded


def _in_file(schema: Schema, x: Tensor, y: Tensor | None, is_filled: bool = False) -> Tensor:
    """Return the values of the columns of a file, given rounded ones of x."""
    if not schema.recorded:
        return x
    values = named(x.numpy(), schema.columns)
    if is_filled:  # a field stays empty only where another column says so
        values |= {name: values[name] * 0 for name in _indicators(schema).values() if name in values}
    return torch.from_numpy(_undone_rows(schema, values, y))


def _undone_rows(schema: Schema, values: Mapping[str, Array], y: Tensor | None) -> Array:
    """Return the values of the columns of a file, (N, D), given the columns of x."""
    count = len(next(iter(values.values())))
    values = {**values, schema.reading.label_column: codes_of(y, count)}
    return _stacked(undone(schema.steps, values, _indicators(schema)), schema.recorded)


def undone(steps: Sequence[Rule], values: Values, indicators: Mapping[str, str]) -> Values:
    """Return the columns before steps, given those after them, and the columns that say whether one is empty."""
    for step in reversed(steps):
        for name in step.of:
            if indicators.get(name) in values:
                values = {**values, name: np.where(values[indicators[name]] == 1, np.nan, values[name])}
        values = step.undo(values)
    return values


def complete(
    schema: Schema, file: Tensor, x: Tensor, tries: Sequence[Tensor], y: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return rows of a file, each filled in by the first of some tries that breaks no rule beside its given fields.

    Args:
        schema: of the table.
        file: rows (N, D) in the columns of the file; NaN is empty, and stays so in a row without such a try.
        x: the same rows as values of x, NaN where one is missing; those below a limit are filled in too.
        tries: as x, but filled in.
        y: as for `to_file`.

    Returns:
        The rows, and the places of those without such a try, fields of which stay empty.
    """
    rows, left = file.clone(), torch.arange(len(file))
    limits = torch.from_numpy(np.array([column.limit for column in schema.columns], float))  # NaN for None
    is_open = x.isnan() | (x < limits)
    for way in tries:
        if not len(left):
            break
        new = way[left].double()
        if schema.recorded:
            new = _rounded(schema, new, is_filled=True)
        labels = y if y is None or len(y) == 1 else y[left]
        filled = _in_file(schema, torch.where(is_open[left], new, x[left]), labels, is_filled=True)
        filled = torch.where(file[left].isnan(), filled, file[left])
        agrees = ~torch.from_numpy(breaking(schema, filled, schema.rules, labels))
        rows[left[agrees]] = filled[agrees]
        left = left[~agrees]
    return rows, left[rows[left].isnan().any(1)]


def breaking(schema: Schema, file: Tensor, rules: Sequence[Rule], y: Tensor | None = None) -> NDArray[np.bool_]:
    """Return which rows of the columns of a file (N, D) break one of some rules, bool (N,); y as for `to_file`."""
    values = _with_empties(schema, named(file.numpy(), schema.file_columns))
    values = {**values, schema.reading.label_column: codes_of(y, len(file))}
    broken = np.zeros(len(file), bool)
    for rule in rules:
        broken |= ~rule.keeps(values)
    return broken


def _with_empties(schema: Schema, values: Values) -> Values:
    """Return the columns of a file, and those that say whether a field is empty."""
    for step in schema.steps:
        if isinstance(step, Empty):
            values = step.apply(values)
    return values


def _indicators(schema: Schema) -> dict[str, str]:
    """Return the columns that say whether one is empty, by its name."""
    return {step.column: step.made[0] for step in schema.steps if isinstance(step, Empty)}


def _slack(schema: Schema) -> Tensor:
    """Return by how much a value of each column of the file may differ from itself, (D,): half of its last digit."""
    digits = [8 if column.decimals is None else min(column.decimals, 8) for column in schema.file_columns]
    return torch.tensor([0.49 * 10.0**-number for number in digits], dtype=torch.float64)


def codes_of(y: Tensor | None, count: int) -> Array:
    """Return the codes of labels, (N,), NaN where one is not known."""
    codes = np.full(count, np.nan)
    if y is not None:
        codes[:] = np.where(y.numpy() < 0, np.nan, y.numpy())
    return codes


def can_be(schema: Schema, x: Tensor, y: Tensor | None = None) -> Tensor:
    """Return which rows (N, D) keep all rules, and have computed columns within their limits, bool (N,)."""
    is_within = torch.ones(len(x), dtype=torch.bool)
    if not schema.recorded:
        return is_within
    file = to_file(schema, x, y)
    for column, values in zip(schema.recorded, file.T):
        least, greatest = column.natural_range
        if column not in schema.columns:
            is_within &= ~((values < least - TINY) | (values > greatest + TINY))
    return is_within & ~torch.from_numpy(breaking(schema, file, schema.rules, y))


def log_density_beside(schema: Schema, x: Tensor, y: Tensor | None = None) -> Tensor:
    """Return log p of rows in the columns of the file, less that in the columns that are left, (N,) nats.

        log p(file) - log p(left) = sum over given fields of left of log u  -  sum over those of the file of log u

    A value that is recorded in steps of u has the density P / u, P being the probability of its step. A field that a
    rule fills in has P = 1.

    Args:
        schema: of the table.
        x: values (N, D) of the columns that are left.
        y: as for `to_file`.
    """
    if not schema.recorded:
        return x.new_zeros(len(x))
    shares = []
    for columns, values in ((schema.columns, x), (schema.recorded, to_file(schema, x, y))):
        each = torch.tensor([column.spacing for column in columns], dtype=torch.float64)
        shares.append((each.log() * ~values.isnan()).sum(1))
    return shares[0] - shares[1]


def named(x: Array, columns: Sequence[Column]) -> dict[str, Array]:
    """Return columns by their names, with their origins added."""
    return {column.name: x[:, place] + column.origin for place, column in enumerate(columns)}


def _stacked(values: Values, columns: Sequence[Column]) -> Array:
    return np.stack([values[column.name] - column.origin for column in columns], 1)
