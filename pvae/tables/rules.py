"""`find_rules` chooses, binds and orders the rules of a table, which hold in every drawn row.

A rule rewrites the columns of a table so that less is left to model, and `undo` brings them back exactly. Each is a
bijection of the rows for which it holds, between values in steps or categories, whose probabilities do not change; a
difference or a residual is its column shifted by others, which keeps a density too. So log p of the columns that are
left is log p of the row. A rule that cannot rewrite a column, since others compute it, is kept by drawing again.
"""

from __future__ import annotations

import itertools
from collections.abc import Container, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pvae.core.errors import InputError, joined, listed
from pvae.tables.codec import named, undone
from pvae.tables.column import Column
from pvae.tables.parts import ENOUGH_ROWS, PARTS, Empty
from pvae.tables.rule import Array, Computed, Flags, Function, Identity, Order, Rule, Values
from pvae.tables.said import can_be_read, check_writers, read_option, read_rule
from pvae.tables.search import Table, find_laws

Mask = NDArray[np.bool_]

_LEAST_ROWS = 12  # in which a column could have shown another value
_SHOWN, _MOST_NEAR = 3, 20  # near laws in a note, and of a run


class _Rows:
    """The columns of training and validation rows, as steps rewrite them one after another.

    Args:
        values: of each column, training rows first.
        columns: the columns of the file.
        is_train: which rows are training rows that can be, (N,).
        is_valid: which are validation rows.
    """

    def __init__(self, values: Values, columns: Sequence[Column], is_train: Mask, is_valid: Mask) -> None:
        self.values = values
        self.columns = {column.name: column for column in columns}
        self.is_train, self.is_valid = is_train, is_valid
        self.steps = list[Rule]()

    def take(self, step: Rule) -> None:
        """Apply a step, and describe the columns that it changes."""
        before, changed = self.columns, {step.column, *step.made}
        self.values = step.apply(self.values)
        train = self.train
        self.columns = {name: column for name, column in before.items() if name in train}
        self.columns |= {name: step.described(name, train[name], before) for name in train if name in changed}
        self.steps.append(step)

    @property
    def train(self) -> Values:
        """The training rows."""
        return {name: x[self.is_train] for name, x in self.values.items()}

    def table(self, labels: Mapping[str, tuple[str, ...]]) -> Table:
        """Return what is searched for laws."""
        valid = {name: x[self.is_valid] for name, x in self.values.items()}
        return Table(self.train, self.columns, int((self.is_train | self.is_valid).sum()), valid, labels)

    def find_empty(self, left_out: Container[str]) -> dict[str, str]:
        """Take whether a field is empty as a column, of each column with empty fields; return their names."""
        for name in [name for name, x in self.values.items() if np.isnan(x).any()]:
            part = Empty(column=name)
            if name not in left_out and part.name not in left_out and self.columns.keys().isdisjoint(part.made):
                self.take(part)
        return {step.column: step.made[0] for step in self.steps}

    def validation_rows_against(self, rule: Rule) -> list[int]:
        """Return the places of the validation rows that break a rule."""
        places: list[int] = np.flatnonzero(self.is_valid & ~rule.keeps(self.values)).tolist()
        return places

    def find_parts(self, left_out: Container[str]) -> None:
        """Take the parts of columns that no validation row contradicts."""
        train = self.train
        kinds = [kind for kind in PARTS if kind.name not in left_out]
        for name in [name for name in self.columns if name not in left_out]:
            for part in itertools.chain(*(kind.find(name, self.columns[name], train[name]) for kind in kinds)):
                is_new = self.columns.keys().isdisjoint(part.made)
                if is_new and name in self.columns and part.keeps(self.values)[self.is_valid].all():
                    self.take(part)


def find_rules(
    columns: Sequence[Column],
    x: Array,
    names: Sequence[str],
    num_train: int,
    option: str,
    kept: Sequence[str] = (),
    labels: Mapping[str, tuple[Array, tuple[str, ...]]] = MappingProxyType({}),
) -> dict[str, Any]:
    """Return the fields of a schema that say what holds in the rows of a table, and a note.

    Laws are looked for in the training rows, and those that a validation row breaks are dropped; then each column that
    is left gets its parts. Calibration and test rows are not looked at.

    Args:
        columns: of the file.
        x: the values of training rows, then of validation rows, in these columns, (N, D).
        names: of these rows.
        num_train: the number of training rows.
        option: `Reading.rules`.
        kept: names of columns that are not rewritten.
        labels: the codes of the labels, (N,), and the names of the classes, by the column of labels, if the VAE is
            given them.

    Raises:
        InputError: a rule of `option` cannot be read, or too many training rows break it.
    """
    said, is_searched, left_out = read_option(option, [column.name for column in columns])
    if num_train < _LEAST_ROWS and said:
        raise InputError(f"--rules needs {_LEAST_ROWS} training rows, and there are {num_train}: leave it out")
    if num_train < _LEAST_ROWS:
        return {"columns": tuple(columns)}
    is_train = np.arange(len(x)) < num_train
    rows = _Rows(named(x, columns), columns, is_train, ~is_train)
    indicators = rows.find_empty({*left_out, *kept})
    rows.values = {**rows.values, **{name: codes for name, (codes, _) in labels.items()}}
    classes = {name: of_codes for name, (_, of_codes) in labels.items()}
    rules = [read_rule(text, rows.table(classes), names) for text in said]
    check_writers(rules)
    for rule in rules:
        rows.is_train = rows.is_train & rule.keeps(rows.values)
    table = rows.table(classes)
    notes = list[str]()
    if is_searched:
        laws = find_laws(table)
        notes += _notes(table, [names[row] for row in np.flatnonzero(rows.is_train).tolist()], len(columns))
        of_said = [{rule.column, *rule.of} for rule in rules]
        kept_laws, more = _judged(laws, rows, names, left_out)
        notes += more
        rules += [rule for rule in kept_laws if {rule.column, *rule.of} not in of_said]
    no_indicator = {name for name in rows.columns if np.isnan(rows.values[name]).any() and name not in indicators}
    plan = _Plan(rows.columns, indicators, {*kept, *no_indicator}, labels)
    texts = {str(rule) for rule in rules[: len(said)]}
    rules, more = _writable(plan.bind(rules, rows.train), plan, texts)
    notes += more
    for rule in plan.in_order():
        rows.take(rule)
    if is_searched:
        rows.find_parts({*left_out, *kept})
    left = rows.train
    return {
        "columns": tuple(column for name, column in rows.columns.items() if not np.isnan(left[name]).all()),
        "rules": tuple(rules),
        "steps": tuple(rows.steps),
        "near": tuple(law.rule for law in table.near if not isinstance(law.rule, (Function, Flags)))[:_MOST_NEAR],
        "note": joined(*notes),
    }


def _writable(rules: Sequence[Rule], plan: _Plan, texts: Container[str]) -> tuple[list[Rule], list[str]]:
    """Return the rules without the identities none of whose columns may be computed, and notes on these.

    Raises:
        InputError: the text of such an identity is among those of `--rules`.
    """
    kept, notes = list[Rule](), list[str]()
    for rule in rules:
        if not isinstance(rule, Identity) or plan.writes(rule):
            kept.append(rule)
            continue
        why = f"none of its columns may be computed, and no draw keeps it: {rule}"
        if str(rule) in texts:
            raise InputError(f"--rules: {why}: leave it out, or --columns of one of them")
        notes.append(f"no rule, since {why}")
    return kept, notes


def _judged(
    laws: Sequence[Rule], rows: _Rows, names: Sequence[str], left_out: Container[str]
) -> tuple[list[Rule], list[str]]:
    """Return the laws that no validation row breaks and that were not left out, and notes on those that one breaks."""
    kept, notes = list[Rule](), list[str]()
    for law in laws:
        broken = rows.validation_rows_against(law)
        if broken:
            notes.append(f"no rule, since {names[broken[0]]} of the validation rows breaks it: {law}")
        elif not any(name in left_out for name in (law.name, law.column, *law.of)):
            kept.append(law)
    return kept, notes


def _notes(table: Table, names: Sequence[str], num_columns: int) -> list[str]:
    """Return what is to be said of a search: that it had few rows, and laws but for a few rows."""
    notes = list[str]()
    if table.num_rows < ENOUGH_ROWS and num_columns > 1:
        rows = f"{table.num_rows:,} rows to learn from"
        notes.append(f"{rows}: of rules only identities are looked for (others need {ENOUGH_ROWS}, or --rules)")
    for rule, wrong in sorted(table.near, key=lambda law: len(law.wrong))[:_SHOWN]:
        rows = listed([names[row] for row in wrong.tolist()])
        text = short(rule)
        note = f"{text} but for {rows}"
        if can_be_read(text, table):
            note += f": --rules '{text}' makes it a rule"
        notes.append(note)
    if table.dropped:
        notes.append(f"for that not taken either: {listed([short(rule) for rule in table.dropped])}")
    return notes


def short(rule: Rule) -> str:
    """Return a rule as --rules takes it."""
    if isinstance(rule, (Function, Identity)):
        return rule.says.partition(": ")[0].partition(", to within")[0]
    return rule.says


class _Plan:
    """Which rules rewrite which columns, so that each column is computed once, and none from itself.

    Args:
        columns: of the table.
        indicators: the columns that say whether one is empty, by its name.
        kept: names of columns that are not rewritten.
        labels: the name of the column of labels, if there is one.
    """

    def __init__(
        self,
        columns: Mapping[str, Column],
        indicators: Mapping[str, str],
        kept: Container[str],
        labels: Iterable[str] = (),
    ) -> None:
        self.columns = columns
        self.labels = labels
        self.indicators = indicators
        self.kept = kept
        self.writers = dict[str, list[Rule]]()

    def bind(self, rules: Sequence[Rule], values: Values) -> list[Rule]:
        """Return the rules that do not follow from others, each as it rewrites a column, if it can.

        Args:
            rules: laws of the training rows, the most important first.
            values: of the training rows.
        """
        pairs = [{rule.column, *rule.of} for rule in rules if isinstance(rule, Order)]
        bound, left = list[Rule](), list[Rule]()
        for rule in rules:
            written = self._write(rule, pairs, values) if isinstance(rule, Computed) else None
            (left if written is None else bound).append(written or rule)
        unbound = list[Rule]()
        for rule in self._not_implied(left, values):
            written = None if isinstance(rule, Computed) else self._write(rule, pairs, values)
            (unbound if written is None else bound).append(written or rule)
        return bound + self._not_implied(unbound, values)

    def writes(self, rule: Rule) -> bool:
        """Return whether a rule that is bound rewrites a column."""
        return any(writer is rule for name in _written(rule) for writer in self.writers.get(name, ()))

    def in_order(self) -> list[Rule]:
        """Return the rules that rewrite columns, in the order in which they are applied."""
        undo_order = list[Rule]()

        def visit(rule: Rule) -> None:
            if any(rule is visited for visited in undo_order):
                return
            for name in self._needed(rule.of):
                for other in self.writers.get(name, ()):
                    visit(other)
            for other in self.writers[rule.column]:
                if other is not rule and _is_whole(other):
                    visit(other)
            undo_order.append(rule)

        for rules in [*self.writers.values()]:
            for rule in rules:
                visit(rule)
        return undo_order[::-1]

    def _write(self, rule: Rule, pairs: Sequence[set[str]], values: Values) -> Rule | None:
        """Return a rule as it rewrites a column that it may, best one that no order needs; None if there is none."""
        columns = {rule.column, *rule.of}
        ordered = {name for pair in pairs if pair < columns for name in pair}
        choices = rule.alternatives(self.columns)
        choices.sort(key=lambda choice: (choice.column in ordered, choice.column in self.writers))
        for choice in filter(self._may_write, choices):
            fitted = choice.of_rows(values)
            if fitted is not None:
                for name in _written(fitted):
                    self.writers.setdefault(name, []).append(fitted)
                return fitted
        return None

    def _may_write(self, rule: Rule) -> bool:
        made = {name for rules in self.writers.values() for writer in rules for name in writer.made}
        if not made.union(self.columns, self.labels).isdisjoint(rule.made):
            return False
        for name in _written(rule):
            earlier = self.writers.get(name, [])
            if name in self.kept or (earlier and isinstance(rule, Flags)):
                return False
            for other in earlier:
                are_identities = isinstance(other, Identity) and isinstance(rule, Identity)
                are_whole = _is_whole(other) and _is_whole(rule)
                is_gone = isinstance(other, Flags) or (isinstance(other, Computed) and other.is_total)
                if are_identities or are_whole or is_gone:
                    return False
        return rule.column not in self._needed(rule.of)

    def _needed(self, names: Iterable[str]) -> list[str]:
        """Return columns, and all that they are computed from, with those that say whether one is empty."""
        needed = [*names]
        for name in needed:  # which grows
            more = [other for rule in self.writers.get(name, ()) for other in rule.of]
            more += [self.indicators[name]] if name in self.indicators else []
            needed += [other for other in more if other not in needed]
        return needed

    def _not_implied(self, rules: Sequence[Rule], values: Values) -> list[Rule]:
        """Return the rules that do not follow from the steps.

        Rows whose remaining columns are shuffled independently break them.
        """
        if not rules:
            return []
        steps = self.in_order()
        left = values
        for step in steps:
            left = step.apply(left)
        draw = np.random.RandomState(0)
        alone = {name: draw.permutation(_filled(x, draw)) for name, x in left.items()}
        drawn = undone(steps, alone, self.indicators)
        for name, indicator in self.indicators.items():
            drawn = {**drawn, name: np.where(drawn[indicator] == 1, np.nan, drawn[name])}
        return [rule for rule in rules if not rule.keeps(drawn).all()]


def _written(rule: Rule) -> Sequence[str]:
    """Return the columns that a rule rewrites."""
    if isinstance(rule, Flags):
        return rule.flags
    return (rule.column,)


def _is_whole(rule: Rule) -> bool:
    """Return whether a rule replaces its column in all rows."""
    return not isinstance(rule, Computed) or rule.is_total


def _filled(x: Array, draw: np.random.RandomState) -> Array:
    """Return values with draws of the others in place of NaN."""
    given = x[~np.isnan(x)]
    return np.where(np.isnan(x), draw.choice(given, len(x)), x) if len(given) else np.zeros(len(x))
