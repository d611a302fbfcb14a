"""Tables of numbers, dates and texts: a file becomes columns of values, and values become a CSV again."""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import math
import re
import shlex
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, time, timedelta
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pvae.config.columns import MISSING_VALUES, column_kinds, named_kinds
from pvae.core.errors import InputError, brief, check_name, joined, listed, shown
from pvae.data.dataset import EPOCH, Column
from pvae.data.labels import UNKNOWN, check_classes

__all__ = ["Fields", "Reading", "Values", "is_table", "read_fields", "read_table", "table_text"]

_PACKAGES = {".parquet": "pyarrow", ".xlsx": "openpyxl"}
_MOST_TEXTS = 100  # of a category that nobody asked for
_MOST_DAYS = 366 * 200  # between a date and 1970
_FEW_ROWS = 10  # fewer may all differ by chance
_PLAIN = r"[+-]?(?:(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?|inf)"
_ALL_PLAIN = re.compile(rf"(?:(?:{_PLAIN})?\n)*")
_GROUPED = {  # by the point, how a number with marks between its thousands is written, and these marks
    ".": (r"[+-]?\d{1,3}(,\d{3})+(\.\d+)?", ","),
    ",": (r"[+-]?(\d+|[1-9]\d{0,2}([. '\u00a0\u202f]\d{3})+)(,\d+)?([eE][+-]?\d+)?", r"[. '\u00a0\u202f]"),
}
_DECIMAL_COMMA = re.compile(r"[+-]?\d+,(\d{1,2}|\d{4,})")  # a comma that stands before no group of three
_CLOCKS = (  # numbers that count from a known time: their range, unit, units in a day, and their value on 1970-01-01
    (8e8, 2.2e9, "seconds", 86_400, 0.0),
    (8e11, 2.2e12, "milliseconds", 86_400_000, 0.0),
    (2.4e6, 2.5e6, "Julian days", 1, 2_440_587.5),
)
_ID = re.compile(r"(?:^|[^a-z])(?:id|ids|uuid|guid|index|idx|key|nr|no)(?:[^a-z]|$)|[a-z]I[Dd]$", re.IGNORECASE)


@dataclass(frozen=True)
class Reading:
    """How the columns of a table are read.

    Args:
        label_column: the column of the labels, or "".
        name_column: the column of the names of rows, or "".
        ignore: names of columns that are no part of x, with commas in between.
        columns: as `Config.columns`.
        missing_values: the texts that stand for a missing value, with commas in between.
        known: the columns of the table that a run was trained on, which the table must have; or ().
        left_out: names of other columns of that table, which the table may have.
    """

    label_column: str = ""
    name_column: str = ""
    ignore: str = ""
    columns: str = ""
    missing_values: str = MISSING_VALUES
    known: tuple[Column, ...] = ()
    left_out: tuple[str, ...] = ()


class Values(NamedTuple):
    """The data of a file that are no images.

    Args:
        x: values (N, ...) of each split.
        labels: classes (N,) of each split that has some.
        names: a name for each datum of a split: its own, its line in a CSV file, or its number.
        columns: the columns, if the file is a table.
        note: what is not read, or "".
        left_out: the columns of a table that are no part of x.
    """

    x: dict[str, NDArray[Any]]
    labels: dict[str, NDArray[Any]]
    names: Mapping[str, Sequence[str]]
    columns: tuple[Column, ...] = ()
    note: str = ""
    left_out: tuple[str, ...] = ()


class Fields(NamedTuple):
    """The fields of a file, by the names of columns, as texts without spaces around them, and the name of each row."""

    columns: dict[str, Sequence[str]]
    rows: list[str]
    note: str
    has_decimal_commas: bool = False


def is_table(file: Path) -> bool:
    """Return whether the name of a file is that of a table."""
    return file.name.lower().endswith((".csv", ".tsv", ".csv.gz", ".tsv.gz", *_PACKAGES))


def read_table(file: Path, reading: Reading = Reading()) -> Values:
    """Return the content of a table as the split "train".

    The values of a column are its numbers, or the days of its dates, less `Column.origin`; or the codes of its texts,
    of which zip codes are some. NaN is a missing value. Columns in which all rows are equal, identifiers, and texts of
    which each row has its own are left out, unless `reading.columns` names a kind for them.

    Raises:
        InputError: the file cannot be read, or holds no rows; a column is absent or has too many texts, or a field is
            not of its column's kind; or the table is not that of the run.
    """
    fields = read_fields(file, reading.known)
    ignored = [reading.ignore] if reading.ignore in fields.columns else reading.ignore.split(",")
    special = [("--label-column", reading.label_column), ("--name-column", reading.name_column)]
    special += [("--ignore", name.strip()) for name in ignored]
    for option, name in special:
        if name and not reading.known:
            check_name(option, name, fields.columns)
    missing = {one.strip() for one in reading.missing_values.split(",")} | {""}
    labels, names = (fields.columns.get(name, ()) for _, name in special[:2])
    outside = [name for _, name in special if name in fields.columns]
    texts = {name: column for name, column in fields.columns.items() if name not in outside}
    reasons = dict[str, str]()
    if reading.known:
        found = _columns_of_run(file, reading, texts, missing, fields.has_decimal_commas)
    else:
        found, reasons = _new_columns(file, reading.columns, texts, missing, fields.has_decimal_commas)
    for column, values in found:
        for place in np.flatnonzero(np.isnan(values)).tolist():
            text, row = texts[column.name][place], fields.rows[place]
            if text not in missing.difference(column.categories):
                wanted = "a date" if column.date_format else "a number, or missing: --missing-values names other texts"
                wanted = f"one of {listed(column.categories)}" if column.categories else wanted
                raise InputError(f"{file}, {row}: {column.name} is {shown(text)}, and not {wanted}")
    if not found:
        raise InputError(f"{file}: no column of values is left: {_said(reasons) or 'add some'}")
    used = Counter(text for column, _ in found for text in texts[column.name] if text in missing - {""})
    units = {column.name: column.unit for column, _ in found if column.unit and not reading.known}
    note = joined(
        fields.note,
        f"left out: {_said(reasons)}" * bool(reasons),
        f"counted from an origin: {_said(units)}" * bool(units),
        f"missing, beside empty fields: {_said({text: f'{n:,}' for text, n in used.items()})}" * bool(used),
    )
    rows = [row.replace(" ", "-") for row in fields.rows]
    names = [row if name in missing else name for name, row in zip(names or rows, rows)]
    x = np.stack([values for _, values in found], axis=1)
    y = {"train": _labels_of(labels, missing, reading.label_column)} if labels else {}
    columns = tuple(column for column, _ in found)
    return Values({"train": x}, y, {"train": names}, columns, note, (*outside, *reasons))


def _said(notes: dict[str, str]) -> str:
    """Return the first names, each with what is said of it."""
    return listed([f"{name} ({note})" for name, note in notes.items()])


def _labels_of(texts: Sequence[str], missing: set[str], name: str) -> NDArray[Any]:
    """Return the labels in a column: numbers, NaN where one is missing, or texts, where it is "unlabelled"."""
    given = ["" if text in missing else text for text in texts]
    if not _ALL_PLAIN.fullmatch("".join(f"{text}\n" for text in given)):
        return np.array([text or UNKNOWN for text in given])
    numbers = np.array([float(text or "nan") for text in given])
    check_classes(numbers, f"--label-column {name}")
    return numbers


def _columns_of_run(
    file: Path, reading: Reading, texts: dict[str, Sequence[str]], missing: set[str], has_decimal_commas: bool
) -> list[tuple[Column, NDArray[np.float64]]]:
    """Return the columns that a run was trained on, and their values."""
    names = [column.name for column in reading.known]
    if absent := [name for name in names if name not in texts]:
        raise InputError(f"{file} has no column {listed(absent)}, which the run was trained on")
    if more := [name for name in texts if name not in (*names, *reading.left_out)]:
        raise InputError(f"{file} has the column {listed(more)}, which the run was not trained on: leave it out")
    found = []
    for column in reading.known:
        none = missing.difference(column.categories)
        given = ["" if text in none else text for text in texts[column.name]]
        if column.categories:
            values = _codes(given, column.categories)
        elif column.date_format:
            dates = _dates(given, column.date_format)
            values = dates[0] if dates else np.full(len(given), np.nan)
        else:
            values = _numbers(given, has_decimal_commas)[0]
        found.append((column, values if column.categories else values - column.origin))
    return found


def _new_columns(
    file: Path, text: str, texts: dict[str, Sequence[str]], missing: set[str], has_decimal_commas: bool
) -> tuple[list[tuple[Column, NDArray[np.float64]]], dict[str, str]]:
    """Return the columns of a new table and their values, and why others are left out, by their names."""
    kinds, in_order, reasons = named_kinds(text), column_kinds(text), dict[str, str]()
    for name in kinds:
        check_name("--columns", name, texts)
    if in_order and len(in_order) != len(texts):  # they are those of the columns that would stay
        _, reasons = _new_columns(file, "", texts, missing, has_decimal_commas)
    stay = [name for name in texts if name not in reasons]
    if len(in_order) == len(stay):
        kinds = {name: (one.name, tuple(map(str, range(one.num_categories)))) for name, one in zip(stay, in_order)}
    found = []
    for name in stay:
        kind, levels = kinds.get(name, ("", ()))
        none = missing.difference(levels)
        new = _new_column(name, ["" if one in none else one for one in texts[name]], kind, levels, has_decimal_commas)
        if isinstance(new, str):
            reasons[name] = new
        elif len(new[0].categories) > _MOST_TEXTS and not kind:
            quoted = shlex.quote(name)
            how = f"give --ignore {quoted}, --name-column {quoted} or --columns {shlex.quote(f'{name}=categorical')}"
            raise InputError(f"{file}: column {name} has {len(new[0].categories):,} different texts: {how}")
        else:
            found.append(new)
    return found, reasons


def _new_column(
    name: str, texts: list[str], kind: str, levels: Sequence[str], has_decimal_commas: bool
) -> tuple[Column, NDArray[np.float64]] | str:
    """Return a column and its values, chosen by its texts, "" where one is missing; or why it is left out.

    Args:
        name: its name.
        texts: its texts.
        kind: its kind, if `--columns` names it, or "".
        levels: the categories that `--columns` names.
        has_decimal_commas: numbers of the file have decimal commas.
    """
    given = [text for text in texts if text]
    distinct = {*given}
    values, decimals, point, suffix = _numbers(texts, has_decimal_commas)
    x = values[~np.isnan(values)]
    if kind in ("categorical", "ordinal"):
        is_numeric, value_of = len(x) == len(given), dict(zip(texts, values))
        known = levels if distinct & {*levels} or is_numeric else ()
        if kind == "ordinal" and not known and not is_numeric:
            raise InputError(f"name the levels of {name} in their order: --columns {name}=ordinal:small<medium<large")
        categories = known or sorted(distinct, key=lambda text: (value_of[text] if is_numeric else 0, text))
        return Column(name, tuple(categories), kind), _codes(texts, categories)
    if not kind and len(distinct) < 2:
        return f"all are {shown(given[0])}" if given else "empty"
    is_zip = all(map(str.isdecimal, distinct)) and any(text[0] == "0" < text[1:] for text in distinct)
    is_number = bool(kind) or (2 * len(x) >= len(given) and not is_zip)
    if kind in ("", "real") and (len(x) < len(given) or {*map(len, distinct)} == {8}) and (dates := _dates(texts)):
        days, date_format = dates
        origin = float(np.floor(np.nanmin(days)))
        unit = f"days from {EPOCH + timedelta(days=origin):%Y-%m-%d}"
        ends = float(np.nanmin(days)) - origin, float(np.nanmax(days)) - origin
        return Column(name, (), kind, None, *ends, origin, unit, date_format), days - origin
    if not is_number:
        if len(distinct) == len(given) >= _FEW_ROWS or len(distinct) > max(_MOST_TEXTS, len(texts)) / 2:
            return "texts, of which each row has its own"
        return Column(name, tuple(sorted(distinct))), _codes(texts, sorted(distinct))
    if not len(x):
        return Column(name, (), kind), values
    least, greatest = float(x.min()), float(x.max())
    if not kind and decimals == 0 and len(distinct) == len(given):
        is_sequence = greatest - least + 1 == len(x) >= _FEW_ROWS and (least in (0, 1) or len(x) > _MOST_TEXTS)
        if is_sequence or _ID.search(name):
            return "whole numbers, of which each row has its own"
    origin, unit = _origin(least, greatest) if kind in ("", "real") else (0.0, "")
    ends = least - origin, greatest - origin
    column = Column(name, (), kind, decimals, *ends, origin, unit, "", suffix, point)
    return column, values - origin


def _origin(least: float, greatest: float) -> tuple[float, str]:
    """Return the origin from which numbers are counted, and the unit: of times, and of numbers far from 0; or 0, ""."""
    for low, high, unit, per_day, at_epoch in _CLOCKS:
        if low <= least and greatest <= high:
            origin = math.floor(least)
            return origin, f"{unit} from {EPOCH + timedelta(days=(origin - at_epoch) / per_day):%Y-%m-%d %H:%M}"
    if min(abs(least), abs(greatest)) > 100 * (greatest - least) > 0:  # in float32 too few digits differ
        return math.floor(least), f"less {math.floor(least):,}"
    return 0.0, ""


def _numbers(texts: Sequence[str], has_decimal_commas: bool) -> tuple[NDArray[np.float64], int, str, str]:
    """Return the numbers in texts, NaN for other texts; their decimals, 0 if all are whole; their point and suffix.

    They have a point or a decimal comma, perhaps marks between thousands, and perhaps a percent sign.
    """
    point, suffix, plain = ".", "", texts
    if has_decimal_commas or not _ALL_PLAIN.fullmatch("".join(f"{text}\n" for text in texts)):
        suffix = "%" if any(text.endswith("%") for text in texts) else ""
        bare = [text.removesuffix("%").rstrip() for text in texts]
        by_point = {point: _plain(bare, point) for point in (",." if has_decimal_commas else ".,")}
        point = max(by_point, key=lambda point: sum(map(bool, by_point[point])))
        plain = by_point[point]
    values = np.array([float(text or "nan") for text in plain])
    x = values[~np.isnan(values)]
    if (x == x.round()).all():
        return values, 0, point, suffix
    ends = re.findall(r"(?m)(?:\.(\d*))?(?:[eE]([+-]?\d+))?$", "\n".join(plain))
    return values, max(len(digits) - int(exponent or 0) for digits, exponent in ends), point, suffix


def _plain(texts: Sequence[str], point: str) -> list[str]:
    """Return texts of numbers without marks between thousands and with a point; "" for other texts."""
    pattern, marks = _GROUPED[point]
    other = _PLAIN if point == "." else "inf"  # 0.5 is no number with a decimal comma
    plain = [re.sub(marks, "", one).replace(",", ".") if re.fullmatch(pattern, one) else "" for one in texts]
    return [found or (one if re.fullmatch(other, one) else "") for found, one in zip(plain, texts)]


def _codes(texts: Sequence[str], categories: Sequence[str]) -> NDArray[np.float64]:
    """Return the code of each text, NaN if it is no category; "3.0" is the category "3" too."""
    codes = {text: float(code) for code, text in enumerate(categories)}
    return np.array([codes.get(text, codes.get(re.sub(r"\.0*$", "", text), math.nan)) for text in texts])


def _dates(texts: Sequence[str], known_format: str = "") -> tuple[NDArray[np.float64], str] | None:
    """Return the days since 1970 of dates, NaN for other texts, and their format, or None if most texts are no dates.

    The first text says the format; of a format with slashes in which day or month may come first, that is taken which
    reads more texts, or else the month.
    """
    import pandas
    from pandas.tseries.api import guess_datetime_format

    first = next(filter(None, texts), "")
    with warnings.catch_warnings():  # where the day comes first in spite of dayfirst=False
        warnings.simplefilter("ignore")
        guesses = [guess_datetime_format(first, dayfirst=one) or "" for one in ("." in first, "." not in first)]
    formats = [known_format, *(one.replace("%z", "Z") for one in guesses)]
    found = []
    for date_format in filter(None, dict.fromkeys(formats)):
        dates = pandas.to_datetime(pandas.Series(texts, dtype=object), format=date_format, errors="coerce")
        days = ((dates - EPOCH) / timedelta(days=1)).to_numpy(float)
        found.append((np.where(np.abs(days) < _MOST_DAYS, days, np.nan), date_format))
    best = max(found, key=lambda one: np.isfinite(one[0]).sum(), default=(np.empty(0), ""))
    return best if known_format or 2 * np.isfinite(best[0]).sum() > sum(map(bool, texts)) else None


def read_fields(file: Path, known: Sequence[Column]) -> Fields:
    """Return the fields of a file.

    Raises:
        InputError: it cannot be read, has no rows, or names two columns alike.
    """
    import pandas

    suffix, notes, has_decimal_commas = file.suffix.lower(), list[str](), False
    if suffix in _PACKAGES and find_spec(_PACKAGES[suffix]) is None:
        raise InputError(f"{file} needs {_PACKAGES[suffix]}: pip install {_PACKAGES[suffix]}")
    names = list[str]()
    try:
        if suffix == ".parquet":
            frame = pandas.read_parquet(file, dtype_backend="numpy_nullable")
            frame = frame if isinstance(frame.index, pandas.RangeIndex) else frame.reset_index()
            names, rows = [*map(str, frame.columns)], [f"row {row}" for row in range(1, len(frame) + 1)]
        elif suffix == ".xlsx":
            sheets = pandas.read_excel(file, sheet_name=None, header=None, dtype=object, keep_default_na=False)
            frame, *others = (sheet.replace("", None).dropna(how="all") for sheet in sheets.values())
            notes += [f"sheet {one} is not read" for one, sheet in zip([*sheets][1:], others) if len(sheet)]
            rows = [f"row {row + 1}" for row in frame.index]
        else:
            columns, rows, notes, names, has_decimal_commas = _read_text(file)
        if suffix in _PACKAGES:
            columns = [_texts_of(frame.iloc[:, place]) for place in range(frame.shape[1])]
    except InputError:
        raise
    except Exception as error:  # pandas, pyarrow, openpyxl and gzip raise exceptions of many types
        raise InputError(f"{file} cannot be read ({brief(error)}): give a CSV, TSV, Parquet or Excel file") from None
    if suffix != ".parquet" and rows:
        first = [column[0] for column in columns]
        if _is_header(first, [column[1:] for column in columns], known):
            names, columns, rows = first, [column[1:] for column in columns], rows[1:]
        else:
            names = names or [f"column-{place}" for place in range(1, len(first) + 1)]
            notes.append(f"there is no line of names of columns: they are {listed(names)}")
    if not rows:
        raise InputError(f"{file} holds no rows below a line of names of columns")
    if "" in names:
        notes.append("the column without a name, as of row numbers, is left out")
    named = [(name, column) for name, column in zip(names, columns) if name]
    if len({*names} - {""}) < len(named):
        twice = next(name for name in names if names.count(name) > 1 and name)
        raise InputError(f"{file} has several columns named {twice}: give each a name of its own")
    return Fields(dict(named), rows, joined(*notes), has_decimal_commas)


def _texts_of(column: Any) -> list[str]:
    """Return the fields of a column of a data frame as texts, "" where one is missing; 3.0 becomes 3."""
    values = column.astype(object).where(column.notna(), "").tolist()
    texts = [str(int(one)) if isinstance(one, float) and one.is_integer() else str(one).strip() for one in values]
    are_days = all(one.time() == time() for one in values if isinstance(one, datetime))
    return [text.removesuffix(" 00:00:00") for text in texts] if are_days else texts


def _is_header(first: Sequence[str], rest: Sequence[Sequence[str]], known: Sequence[Column]) -> bool:
    """Return whether the first line names the columns: it has no numbers, or they count 0, 1, 2 or 2001, 2002, 2003."""
    numbers = [float(text.replace(",", ".")) for text in first if re.fullmatch(_PLAIN, text.replace(",", "."))]
    is_count = len(numbers) > 2 and all(later == earlier + 1 for earlier, later in pairwise(numbers))
    is_data = all(text in below for text, below in zip(first, rest) if text and not re.match("[-+.]?[0-9]", text))
    return not numbers or is_count or not is_data or bool(known and {column.name for column in known} <= {*first})


def _read_text(file: Path) -> tuple[list[Sequence[str]], list[str], list[str], list[str], bool]:
    """Return the columns of a file of texts, its lines, notes, names in a comment, and if it has decimal commas."""
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
    lines = io.StringIO(text, newline="").readlines()
    start = next((place for place, line in enumerate(lines) if line.strip() and line[0] != "#"), len(lines))
    comments = [line for line in lines[:start] if line.strip()]
    separator = _separator(lines[start : start + 100])
    names = [name.strip() for name in comments[-1].lstrip("#").split(separator)] if comments else []
    records, begin = dict[str, list[str]](), start
    reader = csv.reader(lines[start:], delimiter=separator, strict=True, skipinitialspace=True)
    try:
        for fields in reader:
            if len(fields) > 1 or any(map(str.strip, fields)):
                records[f"line {begin + 1}"] = [*map(str.strip, fields)]
            begin = start + reader.line_num
    except csv.Error as error:
        how = "close its quotation marks, and double those within a text"
        raise InputError(f"{file}, line {begin + 1} cannot be read ({error}): {how}") from None
    width = len(next(iter(records.values()), ()))
    for line, fields in [*records.items()]:
        if len(fields) != width and fields[0].startswith("#"):
            comments.append(line)
            del records[line]
        elif len(fields) < width or any(fields[width:]):
            wanted = f"{len(fields)} fields, and the first line {width}: separate them all by {separator!r}"
            raise InputError(f"{file}, {line} has {wanted}")
    if separator != ",":
        notes.append(f"fields are separated by {'semicolons' if separator == ';' else 'tabs'}")
    if comments:
        notes.append(f"{len(comments)} lines of comments (#) are left out")
    columns: list[Sequence[str]] = [*zip(*(fields[:width] for fields in records.values()))]
    some = [field for column in columns for field in column[:50]]
    if has_decimal_commas := separator != "," and any(map(_DECIMAL_COMMA.fullmatch, some)):
        notes.append("numbers have decimal commas")
    return columns, [*records], notes, names if len(names) == width else [], has_decimal_commas


def _separator(lines: Sequence[str]) -> str:
    """Return what separates the fields: a tab or ; if all lines have equally many, or else what the first has most."""
    for separator in "\t;,":
        widths = {len(fields) for fields in csv.reader(lines, delimiter=separator) if fields}
        if len(widths) == 1 and widths != {1}:
            return separator
    return max(",;\t", key="".join(lines[:1]).count)


def table_text(
    columns: Sequence[Column],
    values: Tensor,
    fields: Mapping[str, Sequence[str]] = MappingProxyType({}),
    is_missing: Tensor | None = None,
) -> str:
    """Return rows of a table as CSV, each value as `Column.text` writes it; with semicolons if numbers have commas.

    Args:
        columns: the columns.
        values: (N, D); NaN is an empty field.
        fields: other columns, by their names; or with `is_missing` all columns of a file, as it writes them.
        is_missing: where a value stands in place of a field, bool (N, D).
    """
    import pandas

    texts = {**fields}
    for place, column in enumerate(columns):
        new = [column.text(value) for value in values[:, place].tolist()]
        if is_missing is not None:
            both = zip(is_missing[:, place].tolist(), new, fields[column.name])
            new = [text if is_new else field for is_new, text, field in both]
        texts[column.name] = new
    separator = ";" if any(column.point == "," for column in columns) else ","
    return pandas.DataFrame(texts).to_csv(index=False, sep=separator, lineterminator="\n")
