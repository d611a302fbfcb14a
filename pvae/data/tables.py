"""Tables of numbers, dates and texts: a file becomes columns of values, and values become a CSV again."""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import itertools
import math
import re
import shlex
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas
import torch
from numpy.typing import NDArray
from pandas import DataFrame, Series
from pandas.api.types import is_bool_dtype, is_datetime64_any_dtype, is_numeric_dtype
from pandas.tseries.api import guess_datetime_format
from torch import Tensor

from pvae.core.errors import InputError, brief, check_name, joined, listed, shown
from pvae.data.column import EPOCH, Column
from pvae.data.reading import Reading
from pvae.data.schema import EMPTY, UNKNOWN, Constant, Fields, Schema, Values, names_of
from pvae.models.columns import LIMITED, column_kinds, named_kinds
from pvae.models.features import steps_of

_MOST_TEXTS = 100  # of a category, unless --columns names its kind, or there are as many rows for each as
_ROWS_OF_TEXT = 20
_MILLISECONDS = 86_400_000  # of a day
_MOST_DAYS = 366 * 200  # between a date and 1970
_FEW_ROWS = 10  # fewer may all differ by chance
_NUMBERS = {  # by the decimal point, how numbers are written, and the marks between their thousands
    ".": (
        "[+-]?(?:(?:\\d+|[1-9]\\d{0,2}(?:[,'\u2019]\\d{3})+)(?:\\.\\d*)?|\\.\\d+)(?:[eE][+-]?\\d+)?|[+-]?inf",
        "[,'\u2019]",
    ),
    ",": (
        "[+-]?(?:\\d+|[1-9]\\d{0,2}(?:[. '\u00a0\u202f]\\d{3})+)(?:,\\d+)?(?:[eE][+-]?\\d+)?|[+-]?inf",
        "[. '\u00a0\u202f]",
    ),
}
_LIMITED = ("", "below", *LIMITED)
_FEW_TEXTS = 5  # that say how dates are written
_DATES = (  # formats that pandas does not guess
    "%m/%d/%y", "%d/%m/%y", "%d.%m.%y", "%d-%b-%y", "%b-%y", "%m/%d/%Y %I:%M %p", "%m/%d/%Y %I:%M:%S %p",
)  # fmt: skip
_TIME = "(?i)time|date|stamp|jd|day|epoch"  # in the name of a column of times
_CLOCKS = (  # numbers that count from a known time: their range, unit, units in a day, and their value on 1970-01-01
    (8e8, 2.2e9, "seconds", 86_400, 0.0),
    (2.4e6, 2.5e6, "Julian days", 1, 2_440_587.5),
)
_ID = r"(?:^|[^A-Za-z])(?i:(?:id|ids|uuid|guid|index|idx)(?:[^A-Za-z]|$)|(?:key|nr|no)\W*$)|[a-z]I[Dd]$"


def read_table(file: Path, reading: Reading, known: Schema | None = None, keeps_empty: bool = False) -> Values:
    """Return the content of a table as the split "train".

    The values of a column are its numbers, or the days of its dates, less `Column.origin`; or the codes of its texts,
    of which zip codes are some. NaN is a missing value. Columns in which all rows are equal (`constants`), identifiers,
    and texts of which each row has its own are left out, unless `reading.columns` names a kind for them. So are rows
    whose fields are all empty, unless empty fields of a column lie below its limit, or `keeps_empty` is true: they are
    then among those that are outside.

    Raises:
        InputError: the file cannot be read, or holds no rows; a column is absent or has too many texts, or a field is
            not of its column's kind; or the table is not that of the run.
    """
    keeps_empty = keeps_empty or "=below:" in reading.columns
    return _values_of(_read_fields(file, _columns_of(known), keeps_empty), file, reading, known)


def _columns_of(known: Schema | None) -> tuple[Column, ...]:
    """Return the columns of a schema, or ()."""
    if known is None:
        return ()
    return known.file_columns


def read_frame(frame: DataFrame, reading: Reading, name: str = "the table", known: Schema | None = None) -> Values:
    """Return the content of a data frame as the split "train", as `read_table` does that of a file.

    Args:
        frame: numbers, texts, dates and categories, each column with a name of its own; other objects are their texts.
        reading: how it is read.
        name: what messages name it.
        known: the schema of a table, of whose columns the values are; it says how they are read.

    Raises:
        InputError: as for `read_table`.
    """
    frame = checked(frame, name)
    if known is not None:
        _check_names(Path(name), frame, known)
        rows = [f"row-{row}" for row in range(len(frame))]
        wrong: dict[str, str] = {}
        x = frame_values(frame, known, name, wrong)
        outside = {row: wrong[f"row {row}"] for row in range(len(frame)) if f"row {row}" in wrong}
        return Values({"train": x}, {}, {"train": rows}, known, outside=outside)
    texts = frame.convert_dtypes().apply(field_texts).astype(object)
    texts = texts.set_axis([f"row {row}" for row in range(len(frame))])
    points, _ = _points(texts, ",", ())
    categories = frame.select_dtypes("category")
    levels = {column: (*field_texts(Series(categories[column].cat.categories)),) for column in categories}
    values = _values_of(Fields(texts, "", ",", points, levels), Path(name), reading)
    return values._replace(x={"train": frame_values(frame, values.schema, name)})


def checked(frame: DataFrame, name: str) -> DataFrame:
    """Return a data frame with columns named by texts, booleans as 0 and 1, timedeltas in seconds; refuse lists."""
    frame = frame.rename(columns=str)
    frame = frame.assign(**frame.select_dtypes("timedelta") / timedelta(seconds=1))
    bits = frame.columns[[is_bool_dtype(one) for one in frame.dtypes]]
    for column in bits:
        frame = frame.assign(**{column: frame[column].astype("Int64" if frame[column].hasnans else "int64")})
    for column in frame:
        if any(isinstance(one, (list, tuple, dict, set, np.ndarray)) for one in frame[column].dropna().iloc[:1]):
            raise InputError(f"{name}: column {column} holds several values in each row: give a number or a text")
    return frame


def class_codes(frame: DataFrame, label: str, classes: Sequence[str], name: str) -> Tensor:
    """Return the class of each row of a data frame by the texts of a column, int64 (N,); -1 where it is missing.

    Raises:
        InputError: the column is absent, or has another class.
    """
    check_name("--label-column", label, [*frame])
    texts = field_texts(frame[label].convert_dtypes())
    codes = texts.map({text: code for code, text in enumerate(classes)} | {"": -1})
    if codes.isna().any():
        raise InputError(f"{name}: {label} is {shown(texts[codes.isna()].iloc[0])}, and not one of {listed(classes)}")
    return torch.from_numpy(codes.to_numpy(np.int64, copy=True))


def frame_values(
    frame: DataFrame, schema: Schema, name: str, outside: dict[str, str] | None = None
) -> NDArray[np.float64]:
    """Return the values (N, D) of the columns of a file from a data frame; of texts each one is read once.

    Args:
        frame: the data frame.
        schema: of the table.
        name: what messages name it.
        outside: rows that cannot be rows of the table are added, with why; by default they are refused.

    Raises:
        InputError: a column is absent, or a field is not of its column's kind.
    """
    missing = {one.strip() for one in schema.reading.missing_values.split(",")} | {""}
    if absent := [column.name for column in schema.file_columns if column.name not in frame]:
        raise InputError(f"{name} has no column {listed(absent)}")
    found = np.empty((len(frame), len(schema.file_columns)))
    wrong: dict[str, str] = {}
    coded = pandas.to_numeric(Series([*missing]), errors="coerce").dropna().to_numpy()
    for place, column in enumerate(schema.file_columns):
        fields = frame[column.name]
        is_plain = not (column.categories or column.date_format or is_bool_dtype(fields))
        if is_plain and is_numeric_dtype(fields):
            x = fields.to_numpy(float, na_value=np.nan)
            found[:, place] = np.where(np.isin(x, coded), np.nan, x) - column.origin
        elif column.date_format and is_datetime64_any_dtype(fields):
            days = (pandas.to_datetime(fields, utc=True) - EPOCH) / timedelta(days=1)
            found[:, place] = days.to_numpy(float) - column.origin
        else:
            codes, _ = pandas.factorize(fields)
            is_first = (~fields.duplicated() & fields.notna()).to_numpy()
            texts = field_texts(fields[is_first]).set_axis([f"row {row}" for row in np.flatnonzero(is_first)])
            given = _given(texts, missing.difference(column.categories))
            numbers = _numbers(given.to_frame(column.name), {column.name: column.point})[column.name]
            said: dict[str, str] = {}
            values = _values(Path(name), column, given.rename(column.name), numbers, said)
            found[:, place] = np.append(values, np.nan)[codes]
            for first, why in said.items():
                same = np.flatnonzero(codes == codes[int(first.removeprefix("row "))])
                wrong = dict.fromkeys([f"row {row}" for row in same], why) | wrong
    rows = [f"row {row}" for row in range(len(frame))]
    _check_constants(schema, frame.set_axis(rows), missing, wrong)
    if outside is not None:
        outside.update(wrong)
    elif wrong:
        raise InputError("{}, {}: {}".format(name, *next(iter(wrong.items()))))
    return _below_limits(schema.file_columns, found)[0]


def _values_of(fields: Fields, file: Path, reading: Reading, known: Schema | None = None) -> Values:
    """Return the values of the fields of a table."""
    note = fields.note
    frame = fields.frame.drop(columns="", errors="ignore")
    ignored = [reading.ignore] if reading.ignore in frame else reading.ignore.split(",")
    special = [("--label-column", reading.label_column), ("--name-column", reading.name_column)]
    special += [("--ignore", name.strip()) for name in ignored]
    for option, name in special:
        if name and known is None:
            check_name(option, name, frame)
    missing = {one.strip() for one in reading.missing_values.split(",")} | {""}
    outside = [name for _, name in special if name in frame]
    label, reasons = reading.label_column, dict[str, str]()
    texts = frame.drop(columns=[name for name in outside if name != label])
    given = _given(texts, missing)
    levels = {name: levels for name, (_, levels) in named_kinds(reading.columns).items()}
    for name, kept in (levels | {column.name: column.categories for column in _columns_of(known)}).items():
        if name in texts and missing & {*kept}:
            given[name] = _given(texts[name], missing.difference(kept))
    numbers = _numbers(given, fields.points)
    for name in texts.columns[(texts == "-").any()] if "-" in missing else ():
        is_alone = given[name].nunique() == 1 and not numbers[name].count()  # as "+" and "-" of strands
        if is_alone and (name == label or known is None):
            given[name] = _given(texts[name], missing - {"-"})
    if known is not None:
        columns = known.file_columns
        _check_names(file, texts, known)
    else:
        of_x = given.drop(columns=label, errors="ignore")
        columns, reasons = _new_columns(file, reading.columns, of_x, numbers, fields)
    if not columns:
        raise InputError(f"{file}: no column of values is left: {_said(reasons) or 'add some'}")
    wrong: dict[str, str] = {}
    parts = [_values(file, column, given[column.name], numbers[column.name], wrong) for column in columns]
    x, is_low = _below_limits(columns, np.stack(parts, 1))
    if known is not None:
        wrong |= dict.fromkeys(frame.index[(frame == "").all(axis=1) & ~is_low.any(1)], EMPTY)
        _check_constants(known, texts, missing, wrong)
    elif wrong:
        raise InputError("{}, {}: {}".format(file, *next(iter(wrong.items()))))
    used = Counter(text for text in texts.to_numpy()[given.isna().to_numpy()] if text)
    units = {column.name: column.unit for column in columns if column.unit and known is None}
    below = {one.name: f"{one.limit_text} in {count:,} rows" for one, count in zip(columns, is_low.sum(0)) if count}
    notes = {
        "known only to be below a limit": below,
        "left out": reasons,
        "counted from an origin": units,
        "missing, beside empty fields": {text: f"{count:,}" for text, count in used.items()},
    }
    note = joined(note, *(f"{what}: {_said(found)}" for what, found in notes.items() if found))
    rows = frame.index.str.replace(" ", "-").to_series(index=frame.index)
    if reading.name_column in frame:
        rows = _given(frame[reading.name_column], missing).fillna(rows)
    labels, place = {}, 0
    if label in frame:
        place = sum(column.name in frame.loc[:, :label] for column in columns)
        labels["train"] = _labels(file, label, given[label], numbers[label])
    constants = _constants([*frame], columns, {name: given[name] for name in reasons}, label, place)
    schema = Schema(
        reading=reading, note=note, columns=columns, left_out=(*outside, *reasons), label_place=place,
        constants=constants,
    )  # fmt: skip
    numbered = {number: wrong[row] for number, row in enumerate(frame.index) if row in wrong}
    return Values({"train": x}, labels, {"train": rows.tolist()}, schema, fields, numbered)


def _labels(file: Path, name: str, classes: Series, codes: Series) -> NDArray[Any]:
    """Return the label of each row: numbers if their classes are in the order of these, else texts."""
    try:
        if codes.count() == classes.count() and names_of(codes.to_numpy()) == [*classes.fillna("")]:
            return codes.to_numpy()  # not 01 or 1.0
    except InputError as error:
        raise InputError(f"{file}, --label-column {name}: {error}") from None
    return classes.fillna(UNKNOWN).to_numpy(str)


def _constants(
    names: Sequence[str], columns: Sequence[Column], left_out: Mapping[str, Series], label: str, place: int
) -> tuple[Constant, ...]:
    """Return the columns that are left out since all their rows are equal, with their places among the others.

    Args:
        names: of all columns of the file, in their order.
        columns: those that are x.
        left_out: the texts of those that are not.
        label: the column of labels, or "".
        place: how many columns of x are before it.
    """
    constants, of_x = list[Constant](), {column.name for column in columns}
    for name, texts in left_out.items():
        if texts.nunique(dropna=False) == 1:
            before = names[: names.index(name)]
            number = len(of_x & {*before})
            is_after_label = label in before and place == number
            constants.append(Constant(name, texts.fillna("").iloc[0], number + 0.5 * is_after_label))
    return tuple(constants)


def _check_constants(known: Schema, frame: DataFrame, missing: set[str], outside: dict[str, str]) -> None:
    """Add to `outside` the rows with a text in a column whose fields were all equal and had another one, and why."""
    for one in known.constants:
        if one.text and one.name in frame:
            texts = field_texts(frame[one.name])
            other = texts[~texts.isin(missing | {one.text})]
            for row, text in other[pandas.to_numeric(other, errors="coerce").isna()].items():
                said = f"{one.name} is {shown(text)}, and {shown(one.text)} in all rows of the run's table"
                outside.setdefault(str(row), said)


def _said(notes: dict[str, str]) -> str:
    """Return the first names, each with what is said of it."""
    return listed([f"{name} ({note})" for name, note in notes.items()])


def _given(texts: Any, missing: set[str]) -> Any:
    """Return a series or a frame of texts with NaN where one is missing."""
    return texts.mask(texts.isin(missing))


def _check_names(file: Path, texts: DataFrame, known: Schema) -> None:
    """Refuse a table that has not the columns of the table that a run was trained on."""
    names = [column.name for column in known.file_columns]
    if absent := [name for name in names if name not in texts]:
        raise InputError(f"{file} has no column {listed(absent)}, which the run was trained on")
    if more := [name for name in texts if name not in (*names, *known.left_out)]:
        raise InputError(f"{file} has the column {listed(more)}, which the run was not trained on: leave it out")


def _new_columns(
    file: Path, kinds_text: str, given: DataFrame, numbers: DataFrame, fields: Fields
) -> tuple[tuple[Column, ...], dict[str, str]]:
    """Return the columns of a new table, and why others are left out, by their names."""
    kinds, in_order, reasons = named_kinds(kinds_text), column_kinds(kinds_text), dict[str, str]()
    for name in kinds:
        check_name("--columns", name, given)
    if in_order and len(in_order) != given.shape[1]:  # they are those of the columns that would stay
        _, reasons = _new_columns(file, "", given, numbers, fields)
    stay = [name for name in given if name not in reasons]
    if len(in_order) == len(stay):
        kinds = {name: (one.name, one.levels) for name, one in zip(stay, in_order)}
    columns = list[Column]()
    for name in stay:
        kind, levels = kinds.get(name, ("", fields.levels.get(name, ())))
        described = given[name], numbers[name], fields.points[name], kind, levels
        new = _limited_column(*described) or _new_column(*described)
        if isinstance(new, str):
            reasons[name] = new
        elif len(new.categories) > max(_MOST_TEXTS, given[name].count() / _ROWS_OF_TEXT) and not kind:
            quoted = shlex.quote(name)
            how = f"give --ignore {quoted}, --name-column {quoted} or --columns {shlex.quote(f'{name}=categorical')}"
            raise InputError(f"{file}: column {name} has {len(new.categories):,} different texts: {how}")
        else:
            columns.append(new)
    return tuple(columns), reasons


def _new_column(given: Series, numbers: Series, point: str, kind: str, levels: Sequence[str]) -> Column | str:
    """Return a column, chosen by its texts; or why it is left out.

    Args:
        given: its texts, NaN where one is missing.
        numbers: the numbers in them, NaN for other texts.
        point: their decimal point.
        kind: its kind, if `--columns` names it, or "".
        levels: the categories that `--columns` names, or those of a data frame's type.
    """
    name, x, count = str(given.name), numbers.dropna().to_numpy(), given.count()
    distinct, is_numeric = {*given.dropna()}, len(x) == count
    if kind in ("categorical", "ordinal"):
        known = levels if is_numeric or distinct & {*levels} else ()
        if kind == "ordinal" and not known and not is_numeric:
            raise InputError(f"name the levels of {name} in their order: --columns {name}=ordinal:small<medium<large")
        if levels and not known and len(levels) != len(distinct):
            what = f"{name} has {len(distinct):,} different texts ({listed(sorted(distinct))})"
            raise InputError(
                f"{what}, and not {len(levels)}: --columns {shlex.quote(f'{name}={kind}:{len(distinct)}')}"
            )
        value_of = dict(zip(given, numbers)) if is_numeric else {}
        return Column(name, tuple(known or sorted(distinct, key=lambda text: (value_of.get(text, 0), text))), kind)
    if not kind and 1 < len(levels) <= min(_MOST_TEXTS, len(given) / 2) and not is_numeric:
        return Column(name, tuple(levels))
    if not kind and len(distinct) < 2:
        return f"all are {shown(*distinct)}" if count else "empty"
    is_zip = all(map(str.isdecimal, distinct)) and any(len(text) > 1 and text[0] == "0" for text in distinct)
    may_be_dates = kind in ("", "real") and (not is_numeric or {*map(len, distinct)} == {8})
    if may_be_dates and (date_format := _date_format(given)):
        days = _days(given, date_format)
        origin, least, greatest = float(math.floor(days.min())), float(days.min()), float(days.max())
        unit = f"days from {EPOCH + timedelta(days=origin):%Y-%m-%d}"
        if "%z" in date_format:
            unit += " UTC"
        new = Column(name, (), kind, None, least - origin, greatest - origin, origin, unit, date_format)
        times = (_MILLISECONDS * (days % 1)).round().dropna().to_numpy(int)
        step = np.gcd.reduce(times, initial=_MILLISECONDS) / _MILLISECONDS  # from midnight
        return replace(new, step=step) if 1.5 * new.spacing < step < 1 else new
    if not kind and (is_zip or 2 * len(x) < count):
        if len(distinct) == count >= _FEW_ROWS or len(distinct) > max(_MOST_TEXTS, len(given)) / 2:
            return (
                f"texts, of which each row has its own: --name-column {shlex.quote(name)} takes it as the names of rows"
            )
        return Column(name, tuple(sorted(distinct)))
    if not len(x):
        return Column(name, (), kind)
    least, greatest = float(x.min()), float(x.max())
    decimals = fewest = None
    if not any("e" in text.lower() for text in distinct):
        counts = {len(text.rstrip(" %").partition(point)[2]) for text in distinct}
        fewest, decimals = min(counts), max(counts)
    if (x == x.round()).all():
        decimals = 0
    if not kind and decimals == 0 and len(distinct) == count:
        is_sequence = greatest - least + 1 == len(x) >= _FEW_ROWS and (least in (0, 1) or len(x) > _MOST_TEXTS)
        if is_sequence or re.search(_ID, name):
            how = f"--name-column {shlex.quote(name)} takes it as the names of rows"
            how += f", --columns {shlex.quote(f'{name}=real')} as values"
            return f"whole numbers, of which each row has its own: {how}"
    origin, unit = _origin(name, least, greatest) if kind in ("", "real") else (0.0, "")
    suffix = "%" if any(text.endswith("%") for text in distinct) else ""
    step = 0.0
    if decimals is not None:
        step = steps_of(torch.tensor(x[:, None])).item()
        if step < 1.5 * 10.0**-decimals:  # a unit of the last digit
            step = 0.0
    return Column(
        name,
        kind=kind,
        decimals=decimals,
        least=least - origin,
        greatest=greatest - origin,
        origin=origin,
        unit=unit,
        suffix=suffix,
        point=point,
        step=step,
        least_decimals=fewest,
    )


def _limits(given: Series, point: str) -> Series:
    """Return the limits in texts such as "<0.5", NaN for other texts."""
    return _numbers(given.fillna("").str.extract(r"^<\s*(?P<limit>.+)$"), {"limit": point})["limit"]


def _limited_column(given: Series, numbers: Series, point: str, kind: str, levels: Sequence[str]) -> Column | None:
    """Return a column of which some values are known only to be below a limit; None if there is no limit.

    `--columns` names the limit, as `levels`, or texts such as "<0.5" do. Where there are no such texts, what is missing
    lies below it.

    Args:
        given: as for `_new_column`.
        numbers: likewise.
        point: likewise.
        kind: likewise.
        levels: the limit, if `--columns` names it.

    Raises:
        InputError: a value or another limit contradicts the limit, or the column is one of texts.
    """
    limits = _limits(given, point)
    others, below = given[limits.isna()].dropna(), limits.dropna()
    named = levels if kind else ()
    if kind not in _LIMITED or (below.empty and not named):
        return None
    name, x, some = str(given.name), numbers.dropna(), listed([*given[below.index].unique()])
    if named and x.empty:
        raise InputError(f"{name} holds no numbers, and can have no limit: name another kind in --columns")
    if x.empty or 2 * (len(x) + len(below)) < given.count():
        if kind or others.empty or others.str.contains(r"\d").any():  # as "<18" beside "18-30"
            return None
        how = f"correct it, or give --columns {shlex.quote(f'{name}=categorical')}"
        raise InputError(f"{name} is {some} in some rows, and {shown(others.iloc[0])} in others: {how}")
    limit, least = float([*named, below.min()][0]), float(x.min())
    if below.max() > limit:
        how = f"give --columns {shlex.quote(f'{name}=below:{below.max():.15g}')}, by which all values below it count so"
        raise InputError(f"{name} has several limits ({some}): {how}")
    if least < limit and below.nunique() < 2:
        raise InputError(f"{name} has the value {least:g} below its limit {limit:g}: give a smaller limit")
    column: Any = _new_column(others, numbers, point, "positive", ())
    text = f"<{limit:.15g}".replace(".", point) + column.suffix
    step = column.spacing
    return replace(
        column,
        kind="below" if below.empty else kind.replace("below", ""),
        least=least - step * (math.floor((least - limit) / step + 1e-6) + 1),  # the first value below the limit
        limit=limit,
        limit_text=next(iter(given[limits == limit]), text),
    )


def _below_limits(columns: Sequence[Column], x: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Return values (N, D) of which those below the limit of their column are `Column.below`, and which are."""
    is_low = x < np.array([column.limit for column in columns], float)  # NaN for None
    is_low |= np.isnan(x) & [column.kind == "below" for column in columns]
    return np.where(is_low, [column.below for column in columns], x), is_low


def _origin(name: str, least: float, greatest: float) -> tuple[float, str]:
    """Return the origin from which numbers are counted, and the unit: of times, and of numbers far from 0; or 0, ""."""
    for low, high, unit, per_day, at_epoch in _CLOCKS if re.search(_TIME, name) else ():
        if low <= least and greatest <= high:
            origin = math.floor(least)
            return origin, f"{unit} from {EPOCH + timedelta(days=(origin - at_epoch) / per_day):%Y-%m-%d %H:%M}"
    if min(abs(least), abs(greatest)) > 100 * (greatest - least) > 0:  # in float32 too few digits differ
        return math.floor(least), f"less {math.floor(least):,}"
    return 0.0, ""


def _values(file: Path, column: Column, given: Series, numbers: Series, outside: dict[str, str]) -> NDArray[np.float64]:
    """Return the values of a column, and add to `outside` the rows whose text is not of its kind, and why."""
    if column.categories:
        codes = {text: float(code) for code, text in enumerate(column.categories)}
        values = given.map(codes).fillna(given.str.replace(r"\.0*$", "", regex=True).map(codes))  # "3.0" is "3" too
        wanted = f"one of {listed(column.categories)}"
    elif column.date_format:
        values = _days(given, column.date_format) - column.origin
        wanted = f"a date, such as {column.text(0.0)}"
    else:
        values = numbers - column.origin
        if column.limit is not None:
            values = values.mask(_limits(given, column.point) <= column.limit, column.below)
        wanted = "a number, or missing: --missing-values names other texts"
        for row, text in given[numbers.abs() >= 2**53].items():
            if text.lstrip("+-").isdecimal() and int(float(text)) != int(text):
                quoted = shlex.quote(column.name)
                how = f"leave the column out by --ignore {quoted}, or give --name-column {quoted}"
                raise InputError(f"{file}, {row}: {column.name} is {text}, of more digits than float64 holds: {how}")
    for row, text in given[given.notna() & values.isna()].items():
        outside.setdefault(str(row), f"{column.name} is {shown(text)}, and not {wanted}")
    return values.to_numpy(float)


def _numbers(given: DataFrame, points: dict[str, str]) -> DataFrame:
    """Return the numbers in texts, NaN for other texts; they may have marks between thousands, and a percent sign."""
    parts = []
    for point, (pattern, marks) in _NUMBERS.items():
        part = given[[name for name in given if points[name] == point]]
        bare = Series(part.to_numpy().ravel(), dtype=str).str.removesuffix("%").str.rstrip()
        plain = bare.where(bare.str.fullmatch(pattern).eq(True)).str.replace(marks, "", regex=True)
        values = plain.str.replace(",", ".").astype(float).to_numpy().reshape(part.shape)
        parts.append(DataFrame(values, part.index, part.columns))
    return pandas.concat(parts, axis=1)[[*given]]


def _points(texts: DataFrame, sep: str, known: Sequence[Column]) -> tuple[dict[str, str], list[str]]:
    """Return the decimal point of each column of texts, and notes.

    The point of a column is that by which more of its texts are numbers. The comma of "18,922" may be either: it is
    decimal in a column that has whole numbers of four digits, and a mark between thousands beside shorter ones. Else
    the column has the point of the run's, or ".", or the other point where most columns differ from theirs; where no
    column says so, and no run does, the comma is decimal in a file with semicolons or tabs.
    """
    by = {point: _count(texts, rf"(?:{pattern})\s*%?") for point, (pattern, _) in _NUMBERS.items()}
    usual = {column.name: column.point for column in known}
    is_alike, is_other = by["."] == by[","], by[","] > by["."]
    found = {name: "," if is_other[name] else "." for name in texts if not is_alike[name]}
    alike = texts.loc[:, is_alike & (by["."] > 0)]
    alike = alike.loc[:, _count(alike, r"[+-]?\d+,\d{3}\s*%?") > 0]
    if not known:
        short, long = _count(alike, r"[+-]?[1-9]\d{0,2}\s*%?"), _count(alike, r"[+-]?\d{4,}\s*%?")
        found |= {name: "," if long[name] else "." for name in alike if long[name] or short[name]}
    is_numeric = 2 * np.maximum(by["."], by[","]) >= (texts != "").sum()
    votes = sum(1 if point != usual.get(name, ".") else -1 for name, point in found.items() if is_numeric[name])
    points = {}
    for name in texts:
        point = usual.get(name, ".")
        is_swapped = votes > 0 or (votes == 0 and not known and name in alike and sep in ";\t")
        points[name] = found.get(name, {".": ",", ",": "."}[point] if is_swapped else point)
    commas = _count(texts[[name for name in texts if points[name] == "," and is_numeric[name]]], ".*,.*")
    decimal, thousands = [*commas[commas > 0].index], [name for name in alike if points[name] == "."]
    notes = [f"a comma is read as a decimal comma in: {listed(decimal)}"] * bool(decimal)
    percent = _count(texts, ".*%")
    some = [*percent[is_numeric & (percent > 0) & (percent < np.maximum(by["."], by[","]))].index]
    notes += [f"% stands behind some numbers only, which are read as if behind all, in: {listed(some)}"] * bool(some)
    return points, notes + [f"a comma is read as a mark between thousands in: {listed(thousands)}"] * bool(thousands)


def _count(texts: DataFrame, pattern: str) -> Series:
    """Return how many texts of each column match a pattern."""
    is_match = Series(texts.to_numpy().ravel(), dtype=str).str.fullmatch(pattern).eq(True)
    return Series(is_match.to_numpy(bool).reshape(texts.shape).sum(0), texts.columns)


def _date_format(texts: Series) -> str:
    """Return the format of dates, or "" if most texts are no dates.

    The first few texts that differ say which formats are possible; that is taken which reads the most texts. Of formats
    with slashes in which day or month may come first and which read equally many, it is that of the month.
    """
    few = texts.dropna().drop_duplicates().iloc[:_FEW_TEXTS]
    with warnings.catch_warnings():  # where the day comes first in spite of dayfirst=False
        warnings.simplefilter("ignore")
        guesses = [guess_datetime_format(one, dayfirst=("." in one) != swaps) for swaps in (0, 1) for one in few]
    formats = dict.fromkeys(form for one in guesses if one for form in (one.replace("%z", "Z"), one))
    counts = {one: _days(texts, one).count() for one in (*formats, *_DATES) if _days(few, one).count()}
    best = max(counts, key=lambda one: counts[one], default="")
    return best if 2 * counts.get(best, 0) > texts.count() else ""


def _days(texts: Series, date_format: str) -> Series:
    """Return the days since 1970 in UTC of dates, NaN for other texts."""
    days = (pandas.to_datetime(texts, format=date_format, errors="coerce", utc=True) - EPOCH) / timedelta(days=1)
    return days.where(days.abs() < _MOST_DAYS)


def _read_fields(file: Path, known: Sequence[Column], keeps_empty: bool) -> Fields:
    """Return the fields of a file.

    Args:
        file: the file.
        known: columns by whose names the line of names is recognised, or ().
        keeps_empty: rows below the line of names whose fields are all empty stay.

    Raises:
        InputError: it cannot be read, has no rows, or names two columns alike.
    """
    suffix, sep, notes, above = file.suffix.lower(), ",", list[str](), list[str]()
    try:
        if suffix == ".parquet":
            frame = pandas.read_parquet(file).convert_dtypes().rename(columns=str)  # whole floats become integers
            frame = frame if isinstance(frame.index, pandas.RangeIndex) else frame.reset_index()
        elif suffix == ".xlsx":
            sheets = pandas.read_excel(file, sheet_name=None, header=None, dtype=object, keep_default_na=False)
            frame, *others = sheets.values()
            notes += [f"sheet {name} is not read" for name, sheet in zip([*sheets][1:], others) if len(sheet)]
        else:
            frame, notes, sep, above = _read_text(file)
        if suffix in (".parquet", ".xlsx"):
            frame = frame.apply(field_texts).set_axis([f"row {row + 1}" for row in frame.index])
    except InputError:
        raise
    except Exception as error:  # pandas, pyarrow, openpyxl and gzip raise exceptions of many types
        raise InputError(f"{file} cannot be read ({brief(error)}): give a CSV, TSV, Parquet or Excel file") from None
    is_empty = (frame == "").all(axis=1)
    filled = frame[~is_empty]
    if is_empty.any() and not keeps_empty:
        notes.append(f"rows in which all fields are empty, and that are left out: {is_empty.sum():,}")
        frame = filled
    if suffix != ".parquet" and len(filled):
        frame = frame.loc[filled.index[0] :]
        if _is_header(filled.iloc[0], filled.iloc[1:], known):
            frame = frame.iloc[1:].set_axis(frame.iloc[0], axis=1)
        elif len(above) == frame.shape[1] and all(above) and _is_header(Series(above), filled, known):
            frame = frame.set_axis(above, axis=1)
            notes.append("the last comment above the rows is read as the names of columns")
        else:
            frame = frame.rename(columns=lambda place: f"column-{place + 1}")
            notes.append(f"there is no line of names of columns: they are {listed([*frame])}")
    if (frame == "").all(axis=None):
        raise InputError(f"{file} holds no rows below a line of names of columns")
    if "" in frame:
        notes.append("the column without a name, as of row numbers, is left out")
        frame = frame.loc[:, ~((frame.columns == "") & frame.columns.duplicated())]
    if frame.columns.has_duplicates:
        twice = frame.columns[frame.columns.duplicated()][0]
        raise InputError(f"{file} has several columns named {twice}: give each a name of its own")
    points, more = _points(frame.drop(columns="", errors="ignore"), sep, known)
    return Fields(frame, joined(*notes, *more), sep, points)


def field_texts(column: Series) -> Series:
    """Return the fields of a column of a data frame as texts, "" where one is missing; days without their hour."""
    texts = column.astype(object).where(column.notna(), "").map(str).str.strip()
    are_days = (texts.str.endswith(" 00:00:00") | ~texts.str.contains(":")).all()
    return texts.str.removesuffix(" 00:00:00") if are_days else texts


def _is_header(first: Series, rest: DataFrame, known: Sequence[Column]) -> bool:
    """Return whether the first line names the columns.

    It does if its numbers count 0, 1, 2 or 2001, 2002, 2003, or if one of its texts does not occur below; and if it has
    no numbers, but the lines below have some.
    """
    numbers = pandas.to_numeric(first.str.replace(",", "."), errors="coerce").dropna()
    is_count = len(numbers) > 2 and (numbers.diff().iloc[1:] == 1).all()
    is_data = all(
        (rest.iloc[:, place] == text).any()
        for place, text in enumerate(first)
        if numbers.empty or not re.match("[-+.]?[0-9]|$", text)
    )
    if is_data and numbers.empty:
        is_data = not any(_count(rest, pattern).any() for pattern, _ in _NUMBERS.values())
    names = {column.name for column in known}
    return is_count or not is_data or bool(names and names <= {*first})


def _read_text(file: Path) -> tuple[DataFrame, list[str], str, list[str]]:
    """Return the fields of a file of texts, notes, what separates the fields, and those of the comment above them."""
    content, notes = file.read_bytes(), list[str]()
    content = gzip.decompress(content) if file.suffix.lower() == ".gz" else content
    is_utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = content.decode("utf-16" if is_utf16 else "utf-8-sig")
    except UnicodeDecodeError:
        text = content.decode("cp1252", "replace")
        notes.append("read as Windows-1252 (latin-1), since it is not UTF-8")
    if "\0" in text:
        raise InputError(f"{file} is no file of texts: give a CSV, TSV, Parquet or Excel file")
    lines = io.StringIO(text.rstrip("\r\n"), newline="").readlines()
    start = next((place for place, line in enumerate(lines) if line.strip() and line[0] != "#"), len(lines))
    are_values = 2 * sum(line[0] == "#" for line in lines[start:]) > len(lines) - start  # as of colours, #fff
    plain = [line for line in lines[start : start + 100] if are_values or line[0] != "#"]
    are_numbers = re.fullmatch(r"[-+.\deE \r\n]+", "".join(plain[1:])) is not None  # without a tab
    if are_spaced := are_numbers and all(" " in line.strip() for line in plain[:2]):
        lines, plain = (["\t".join(line.split()) or line for line in some] for some in (lines, plain))
    sep, num_comments, rows, width, numbered = _separator(plain), 0, dict[str, list[str]](), 0, enumerate(lines, 1)
    try:
        for number, line in numbered:
            if line[0] == "#" and (number <= start or not are_values):
                num_comments += 1
                continue
            row = itertools.chain([line], (more for _, more in numbered))  # a text may have several lines
            reader = csv.reader(row, delimiter=sep, skipinitialspace=True, strict=True)
            fields = [field.strip() for field in next(reader)]
            is_blank = not any(fields)
            width = width or (0 if is_blank else len(fields))
            if not is_blank and len(fields) != width:
                by = "spaces" if are_spaced else repr(sep)
                wanted = f"{len(fields)} fields, and the first line {width}: separate them all by {by}"
                raise InputError(f"{file}, line {number} has {wanted}")
            if width:
                rows[f"line {number}"] = [""] * width if is_blank else fields
    except csv.Error as error:
        how = "separate all lines alike, close quotation marks, and double those within a text"
        raise InputError(f"{file}, line {number} cannot be read ({error}): {how}") from None
    frame = DataFrame(np.array([*rows.values()], dtype=object), [*rows])  # of one type, which is fast for many columns
    if sep != ",":
        name = "spaces" if are_spaced else "semicolons" if sep == ";" else "tabs"
        notes.append(f"fields are separated by {name}")
    if num_comments:
        notes.append(f"lines of comments (#) that are left out: {num_comments:,}")
    above = lines[start - 1].lstrip("# \t").split(sep) if 0 < start < len(lines) else []
    return frame, notes, sep, [name.strip() for name in above]


def _separator(lines: Sequence[str]) -> str:
    """Return what separates the fields: a tab or ; if all lines have equally many, or else what the first has most."""
    for sep in "\t;,":
        widths = {len(fields) for fields in csv.reader(lines, delimiter=sep) if fields}
        if len(widths) == 1 and widths != {1}:
            return sep
    return max(",;\t", key="".join(lines[:1]).count)


def table_text(
    columns: Sequence[Column],
    values: Tensor,
    fields: DataFrame | Mapping[str, Sequence[str]] = MappingProxyType({}),
    is_missing: Tensor | None = None,
    sep: str = "",
) -> str:
    """Return rows of a table as CSV, each value as `Column.text` writes it.

    Args:
        columns: the columns.
        values: (N, D); NaN is an empty field.
        fields: other columns, by their names; or with `is_missing` all columns of a file, as it writes them.
        is_missing: where a value stands in place of a field, bool (N, D).
        sep: what separates the fields; by default a semicolon if numbers have decimal commas, or else a comma.
    """
    frame = DataFrame({**fields}, index=None if isinstance(fields, DataFrame) else range(len(values)))
    for place, column in enumerate(columns):
        is_new: Any = True
        if is_missing is not None:
            is_new = is_missing[:, place].numpy()
        texts = np.array([column.text(one, is_filled=is_new is not True) for one in values[:, place].tolist()], object)
        frame[column.name] = np.where(is_new, texts, frame.get(column.name, ""))
    sep = sep or (";" if any(column.point == "," for column in columns) else ",")
    return frame.to_csv(index=False, sep=sep, lineterminator="\n")
