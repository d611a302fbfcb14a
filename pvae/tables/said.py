"""`--rules` becomes rules: what is looked for, what is left out, and rules in four forms."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import numpy as np

from pvae.core.errors import InputError, check_name, listed, shown
from pvae.tables.rule import Computed, Identity, Order, Rule, a_sum, class_of, digits_of
from pvae.tables.search import Candidate, Table, flag_group, said_function, with_residual

FORMS = (
    "total = a + b - c or total = a x b, a <= b or a < b, code by status, at most one of a, b or exactly one of a, b"
)
_MOST_BROKEN = 1 / 20  # the share of rows that may break a rule that is said


def read_option(option: str, columns: Sequence[str]) -> tuple[list[str], bool, list[str]]:
    """Return the texts of rules that are said, whether others are looked for, and names of those that are left out.

    Args:
        option: as `Reading.rules`: parts with ; in between.
        columns: names of those of the file.

    Raises:
        InputError: there is no such column, or kind of rules.
    """
    said, left_out, is_searched = list[str](), list[str](), True
    for text in filter(None, map(str.strip, option.split(";"))):
        if text == "none":
            is_searched = False
        elif text.startswith("not "):
            names = [name.strip().removeprefix("not ") for name in text.split(",")]
            left_out += [check_name("--rules not", name, [*Rule.members, *columns]) for name in names]
        elif text != "auto":
            said.append(text)
    return said, is_searched, left_out


def read_rule(text: str, table: Table, names: Sequence[str]) -> Rule:
    """Return a rule that is said.

    Args:
        text: in one of four forms.
        table: the training rows.
        names: of the rows.

    Raises:
        InputError: it cannot be read, a column is absent, or too many rows break it.
    """
    text = re.sub(r": .* -> .*", "", text)  # as a function is printed
    rule, broken = _read(text, table, [*table.values, *(f"{name} is 0" for name in table.numbers)])
    if len(broken) > _MOST_BROKEN * table.n:
        rows = sorted([names[row] for row in broken.tolist()], key=lambda name: (len(name), name))
        share = f"{len(broken):,} of {table.n:,} training rows break it, and one in twenty may: {listed(rows, most=3)}"
        raise InputError(f"--rules {shown(text)}: {share}: leave it out, or correct them")
    return rule


def can_be_read(text: str, table: Table) -> bool:
    """Return whether a text is one rule, as it may not be if a name of a column has signs in it."""
    try:
        return ";" not in text and "'" not in text and str(_read(text, table, [*table.values]).rule).startswith(text)
    except InputError:
        return False


def check_writers(rules: Sequence[Rule]) -> None:
    """Refuse two rules that compute one column."""
    computed = dict[str, Rule]()
    for rule in rules:
        if isinstance(rule, Computed):
            first = computed.setdefault(rule.column, rule)
            if first is not rule:
                raise InputError(f"--rules: {first} and {rule} both compute {rule.column}: leave one out")


def _read(text: str, table: Table, known: Sequence[str]) -> Candidate:
    """Return the rule of a text, and the training rows that break it."""
    form = re.fullmatch(r"(at most|exactly) one of (.*)", text)
    if form:
        flags = [_column(flag, text, table.values) for flag in form[2].split(",")]
        for flag in flags:
            if not np.isin(table.values[flag], (0, 1)).all() or len({*flags}) < max(2, len(flags)):
                why = f"{flag} has an empty field or other values than 0 and 1, or stands alone"
                raise InputError(f"--rules {shown(text)}: {why}: name two flags or more")
        return _with_broken(flag_group(flags, form[1] == "exactly"), table)
    for sign in ("<=", ">=", "<", ">", "=", " by "):
        left, has_sign, right = text.partition(sign)
        if not has_sign:
            continue
        if sign == "=":
            return _identity(_column(left, text, table.numbers), right, text, table)
        if sign == " by ":
            return _function(_column(left, text, known), _column(right, text, known), text, table)
        low, high = (_column(side, text, table.numbers) for side in (left, right))
        if sign[0] == ">":
            low, high = high, low
        steps = {table.columns[column].step or table.unit[column] for column in (low, high)}
        if low == high:
            raise InputError(f"--rules {shown(text)} says nothing: name two columns")
        if len(steps) > 1:
            raise InputError(f"--rules {shown(text)}: {low} and {high} are recorded in different steps: give one step")
        least = 0.0 if sign.endswith("=") else steps.pop()
        says = f"{low} {'<' if least else '<='} {high}"
        return _with_broken(Order(column=high, of=(low,), is_above=True, least=least, says=says), table)
    raise InputError(f"--rules {shown(text)} cannot be read: give {FORMS}")


def _column(name: str, text: str, known: Iterable[str]) -> str:
    if any(sign in name for sign in "<>="):
        raise InputError(f"--rules {shown(text)} cannot be read at {shown(name.strip())}: separate rules by ;")
    return check_name(f"--rules {shown(text)}: column", name.strip(), [*known])


def _with_broken(rule: Rule, table: Table) -> Candidate:
    return Candidate(rule, np.flatnonzero(~rule.keeps(table.values)))


def _identity(name: str, right: str, text: str, table: Table) -> Candidate:
    """Return a sum of columns and numbers, or a product of two columns."""
    column = table.columns[name]
    names = "|".join(re.escape(column) for column in sorted(table.numbers, key=len, reverse=True))
    product = re.fullmatch(rf"\s*({names})\s*[x*]\s*({names})\s*", right)
    rule: Identity
    if product:
        rule = Identity(column=name, of=product.groups(), digits=digits_of(column), says=f"{name} ={right}")
    else:
        weights, constant, end = {name: 1.0}, 0.0, 0
        for term in re.finditer(
            rf"\s*([+-]?)\s*(?:({names})|(\d+(?:\.\d+)?(?:e-?\d+)?)(?:\s*[x*]?\s*({names}))?)\s*", right
        ):
            sign, alone, number, of = term.groups()
            factor = float(number or 1) * (-1 if sign == "-" else 1)
            if term.start() != end or (end and not sign) or (alone or of) in weights or (of and not factor):
                break
            end = term.end()
            if alone or of:
                weights[alone or of] = -factor
            else:
                constant += factor
        if end != len(right) or len(weights) < 2:
            for word in re.findall(r"[^\d\W]\w*", right):
                if word != "x":  # of a product
                    _column(word, text, table.numbers)
            where = f" at {shown(right[end:].strip())}" if right[end:].strip() else ", since it names no other column"
            raise InputError(f"--rules {shown(text)} cannot be read{where}: give {FORMS}")
        rule = a_sum(weights, constant, name, column)
    return with_residual(table, rule) or _with_broken(rule, table)


def _function(name: str, of: str, text: str, table: Table) -> Candidate:
    """Return a column as a function of another: of each of its classes, the value that most rows have."""
    pairs = [(side.removesuffix(" is 0"), "zero" if side.endswith(" is 0") else "value") for side in (of, name)]
    key, to = pairs
    x, y = (class_of(table.values[column], at) for column, at in pairs)
    is_given = ~np.isnan(x) & ~np.isnan(y)
    keys = np.unique(x[is_given])
    if key[0] == to[0]:
        raise InputError(f"--rules {shown(text)} says nothing: name two columns")
    if len(keys) > table.n / 2:
        raise InputError(f"--rules {shown(text)}: {of} has {len(keys):,} values, and decides nothing: name classes")
    commonest = []
    for code in keys:
        values, times = np.unique(y[is_given & (x == code)], return_counts=True)
        commonest.append(values[times.argmax()])
    return _with_broken(said_function(table, key, to, keys, np.array(commonest)), table)
