"""A file or a data frame becomes a schema and values; rows of a known table are parsed by its columns."""

from __future__ import annotations

import csv
import gzip
import io
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import torch
from numpy.typing import NDArray
from pandas import DataFrame, Series
from pandas.api.types import is_bool_dtype
from torch import Tensor

from pvae.core.errors import InputError, brief, check_name, joined, listed, shown
from pvae.models.columns import LIMITED, column_kinds, named_kinds
from pvae.tables.column import Column, field_texts, fitted, numbers_in, parse
from pvae.tables.reading import Reading
from pvae.tables.schema import EMPTY, UNKNOWN, Constant, Fields, Schema, Values, names_of

_MOST_LEVELS = 100  # of a column of a data frame whose type names them


def read_table(file: Path, reading: Reading, known: Schema | None = None, keeps_outside: bool = False) -> Values:
    """Return the content of a table as the split "train".

    The values of a column are its numbers, or the days of its dates, less `Column.origin`; or the codes of its texts,
    of which zip codes are some. NaN is a missing value. Columns in which all rows are equal (`constants`), identifiers,
    and texts of which each row has its own are left out, unless `reading.columns` names a kind for them. So are rows
    whose fields are all empty, unless empty fields of a column lie below its limit, or `keeps_outside` is true.

    Args:
        file: the file.
        reading: how it is read.
        known: the schema of a table, of whose columns the values are.
        keeps_outside: rows that are empty, or cannot be rows of that table, are in `Values.outside`, and not refused.

    Raises:
        InputError: the file cannot be read, or holds no rows; a column is absent or has too many texts, or a field is
            not of its column's kind; or the table is not that of the run.
    """
    columns: tuple[Column, ...] = ()
    if known is not None:
        columns = known.file_columns
    fields = _read_fields(file, columns, keeps_outside or "=below:" in reading.columns)
    frame = fields.frame.drop(columns="", errors="ignore")
    if known is None:
        schema = _new_schema(str(file), frame, fields, reading)
    else:
        columns = tuple(replace(column, point=fields.point) for column in columns)
        schema = replace(_of_file(known, reading), columns=columns, note=fields.note)
    values = _rows(str(file), frame, schema)
    is_empty = (frame == "").all(axis=1).to_numpy() & np.isnan(values.x["train"]).all(1)
    outside = dict.fromkeys(np.flatnonzero(is_empty).tolist(), EMPTY) | {**values.outside}
    values = values._replace(fields=fields, outside=outside)
    if not keeps_outside:
        _refuse_outside(str(file), frame, values)
    return values


def read_frame(frame: DataFrame, reading: Reading, name: str = "the table", known: Schema | None = None) -> Values:
    """Return the content of a data frame as the split "train", as `read_table` does that of a file.

    Args:
        frame: numbers, texts, dates and categories, each column with a name of its own; other objects are their texts.
        reading: how it is read.
        name: what messages name it.
        known: the schema of a table, of whose columns the values are; rows that cannot be its rows are not refused.

    Raises:
        InputError: as for `read_table`.
    """
    given = checked(frame, name).set_axis([f"row {row}" for row in range(len(frame))])
    frame = given.apply(lambda fields: fields if fields.dtype.kind in "iufM" else field_texts(fields))
    if known is not None:
        return _rows(name, frame, _of_file(known, reading))
    texts, levels = frame.apply(_texts), {}
    for column, categories in given.select_dtypes("category").items():
        named = field_texts(Series(categories.cat.categories))
        are_numbers = numbers_in(named, ".").notna().all()
        if 1 < len(named) <= min(_MOST_LEVELS, len(frame) / 2) and not are_numbers:
            levels[column] = tuple(named)
    point, note = _decimal_point(texts, ",")
    schema = _new_schema(name, texts, Fields(texts, note, ",", point, levels), reading)
    values = _rows(name, frame, schema)
    _refuse_outside(name, frame, values)
    return values


def checked(frame: DataFrame, name: str) -> DataFrame:
    """Return a data frame with columns named by texts, booleans as 0 and 1, timedeltas in seconds; refuse lists."""
    frame = frame.rename(columns=str)
    frame = frame.assign(**frame.select_dtypes("timedelta") / timedelta(seconds=1))
    for column in frame.columns[[is_bool_dtype(dtype) for dtype in frame.dtypes]]:
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
    texts = _texts(frame[label])
    codes, wrong = parse(Column(label, tuple(classes)), texts.mask(texts == ""))
    for why in wrong.values():
        raise InputError(f"{name}: {why}")
    return torch.from_numpy(np.nan_to_num(codes, nan=-1).astype(np.int64))


def _texts(fields: Series) -> Series:
    """Return fields as texts, of which whole numbers have no point."""
    return field_texts(fields.convert_dtypes())


def _of_file(known: Schema, reading: Reading) -> Schema:
    """Return the schema of a table as its file has it, before rules rewrite it."""
    return Schema(
        reading=reading,
        columns=known.file_columns,
        left_out=known.left_out,
        label_place=known.label_place,
        constants=known.constants,
    )


def _refuse_outside(name: str, frame: DataFrame, values: Values) -> None:
    for row, why in values.outside.items():
        raise InputError(f"{name}, {frame.index[row]}: {why}")


def _new_schema(name: str, texts: DataFrame, fields: Fields, reading: Reading) -> Schema:
    """Return the schema of a new table: which columns it has, which are left out, and why.

    Args:
        name: what messages name the table.
        texts: its fields as texts, "" where one is empty, without a column that has no name.
        fields: how they are written.
        reading: how they are read.

    Raises:
        InputError: no column is left, or one has too many texts, or is not of the kind that is named.
    """
    label, ignored = reading.label_column, [reading.ignore]
    if reading.ignore not in texts:
        ignored = [text.strip() for text in reading.ignore.split(",")]
    named = {"--label-column": [label], "--name-column": [reading.name_column], "--ignore": ignored}
    outside = list[str]()
    for option, names in named.items():
        outside += [check_name(option, column, texts) for column in names if column]
    try:
        columns = _columns(texts.drop(columns=outside), fields, reading, reading.columns)
    except InputError as error:
        raise InputError(f"{name}: {error}") from None
    reasons = {column: why for column, why in columns.items() if isinstance(why, str)}
    if len(reasons) == len(columns):
        raise InputError(f"{name}: no column of values is left: {_listed_notes(reasons) or 'add some'}")
    label_place, place, constants = 0, 0.0, list[Constant]()
    for column in texts:
        if column == label:
            label_place, place = int(place), place + 0.5
        elif column in reasons:
            given = _without_missing(texts[column], reading).fillna("")
            if given.nunique() == 1:
                constants.append(Constant(column, given.iloc[0], place))
        elif column in columns:
            place = int(place) + 1.0
    of_x = [column for column in columns.values() if isinstance(column, Column)]
    units = {column.name: column.unit for column in of_x if column.unit}
    return Schema(
        reading=reading,
        note=_with_notes(fields.note, {"left out": reasons, "counted from an origin": units}),
        columns=tuple(of_x),
        left_out=(*outside, *reasons),
        label_place=label_place,
        constants=tuple(constants),
    )


def _columns(texts: DataFrame, fields: Fields, reading: Reading, kinds: str) -> dict[str, Column | str]:
    """Return each column of a new table, or why it is left out; arguments as for `_new_schema`.

    Args:
        texts: of the columns that are no labels or names of rows, and are not ignored.
        fields: how they are written.
        reading: how they are read.
        kinds: the kinds of the columns, as `--columns` lists them.
    """
    named = named_kinds(kinds)
    for column in named:
        check_name("--columns", column, texts)
    if in_order := column_kinds(kinds):
        stay = [*texts]
        if len(in_order) != len(stay):  # they are those of the columns that would stay
            columns = _columns(texts, fields, reading, "")
            stay = [name for name, column in columns.items() if isinstance(column, Column)]
        if len(in_order) == len(stay):
            named = {column: (kind.name, kind.levels) for column, kind in zip(stay, in_order)}
    columns = {}
    for column in texts:
        kind, levels = named.get(column, ("", fields.levels.get(column, ())))
        draft = Column(column, levels, kind, point=fields.point)
        if levels and kind in ("below", *LIMITED):
            draft = Column(column, (), kind, point=fields.point, limit=float(levels[0]))
        given = _without_missing(texts[column], reading, levels)
        columns[column] = fitted(draft, given, numbers_in(given, fields.point))
    return columns


def _rows(name: str, frame: DataFrame, schema: Schema) -> Values:
    """Return the values of the rows of a table that has the columns of a schema, and which cannot be its rows, and why.

    Args:
        name: what messages name the table.
        frame: its fields as texts, "" where one is empty; or as numbers, dates and other objects.
        schema: of the table.

    Raises:
        InputError: it has other columns, or its labels are no classes.
    """
    reading, columns = schema.reading, schema.columns
    names = [column.name for column in columns]
    if absent := [column for column in names if column not in frame]:
        raise InputError(f"{name} has no column {listed(absent)}, which the run was trained on")
    if more := [column for column in frame if column not in (*names, *schema.left_out)]:
        raise InputError(f"{name} has the column {listed(more)}, which the run was not trained on: leave it out")
    rows = Series(frame.index.str.replace(" ", "-"))
    frame = frame.reset_index(drop=True)
    x, outside = np.empty((len(frame), len(columns))), dict[int, str]()
    given, below = dict[str, Series](), dict[str, str]()
    for place, column in enumerate(columns):
        given[column.name] = _without_missing(frame[column.name], reading, column.categories)
        x[:, place], wrong = parse(column, given[column.name])
        outside = wrong | outside
        if column.limit is not None and (number := (x[:, place] < column.limit).sum()):
            below[column.name] = f"{column.limit_text} in {number:,} rows"
    for constant in schema.constants:
        outside = _of_others(constant, frame, reading) | outside
    labels = dict[str, NDArray[Any]]()
    if reading.label_column in frame:
        classes = _without_missing(_texts(frame[reading.label_column]), reading)
        labels["train"] = _labels(f"{name}, --label-column {reading.label_column}", classes)
        given[reading.label_column] = classes
    if reading.name_column in frame:
        rows = _without_missing(_texts(frame[reading.name_column]), reading).fillna(rows)
    used = Counter(text for column, fields in given.items() for text in frame[column][fields.isna()].dropna())
    missing = {str(text): f"{number:,}" for text, number in used.items() if text != ""}
    notes = {"known only to be below a limit": below, "missing, beside empty fields": missing}
    schema = replace(schema, note=_with_notes(schema.note, notes))
    return Values({"train": x}, labels, {"train": rows.tolist()}, schema, outside=dict(sorted(outside.items())))


def _without_missing(fields: Series, reading: Reading, categories: Collection[str] = ()) -> Series:
    """Return the fields of a column, NaN where one is missing; a category is not, nor is "-" beside "+"."""
    missing = reading.missing_texts.difference(categories)
    if fields.dtype.kind in "iuf":
        return fields.mask(fields.isin(numbers_in(Series([*missing]), ".").dropna()))
    if fields.dtype.kind == "M":
        return fields
    if not categories and {*fields[~fields.isin(missing)]} == {"+"}:
        missing.discard("-")
    return fields.mask(fields.isin(missing))


def _of_others(constant: Constant, frame: DataFrame, reading: Reading) -> dict[int, str]:
    """Return the rows with a text in a column whose fields were all equal and had another one, and why."""
    if not constant.text or constant.name not in frame:
        return {}
    texts = field_texts(_without_missing(frame[constant.name], reading))
    other = texts[~texts.isin(["", constant.text]) & numbers_in(texts, ".").isna()]
    equal = f"{shown(constant.text)} in all rows of the run's table"
    return {row: f"{constant.name} is {shown(text)}, and {equal}" for row, text in other.items()}


def _labels(where: str, classes: Series) -> NDArray[Any]:
    """Return the label of each row: numbers if their classes are in the order of these, else texts."""
    codes = numbers_in(field_texts(classes), ".")
    try:
        if codes.count() == classes.count() and names_of(codes.to_numpy()) == [*classes.fillna("")]:
            return codes.to_numpy()  # not 01 or 1.0
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    return classes.fillna(UNKNOWN).to_numpy(str)


def _with_notes(note: str, notes: Mapping[str, Mapping[str, str]]) -> str:
    """Return a note and others, each with the names that it is about."""
    return joined(note, *(f"{what}: {_listed_notes(said)}" for what, said in notes.items() if said))


def _listed_notes(notes: Mapping[str, str]) -> str:
    """Return the first names, each with what is said of it."""
    return listed([f"{name} ({note})" for name, note in notes.items()])


def _read_fields(file: Path, known: Sequence[Column], keeps_empty: bool) -> Fields:
    """Return the fields of a file.

    Args:
        file: the file.
        known: the columns of a run's table, by whose names the line of names is recognised; () of a new table.
        keeps_empty: rows below the line of names whose fields are all empty stay.

    Raises:
        InputError: it cannot be read, has no rows, or names two columns alike.
    """
    suffix, sep, notes = file.suffix.lower(), ",", list[str]()
    try:
        if suffix == ".parquet":
            frame = pandas.read_parquet(file).convert_dtypes().rename(columns=str)  # whole floats become integers
            frame = frame if isinstance(frame.index, pandas.RangeIndex) else frame.reset_index()
        elif suffix == ".xlsx":
            sheets = pandas.read_excel(file, sheet_name=None, header=None, dtype=object, keep_default_na=False)
            first, *others = sheets
            frame = sheets[first]
            notes += [f"sheet {name} is not read" for name in others if len(sheets[name])]
        else:
            frame, sep, notes = _read_text(file)
    except InputError:
        raise
    except Exception as error:  # pandas, pyarrow, openpyxl and gzip raise exceptions of many types
        raise InputError(f"{file} cannot be read ({brief(error)}): give a CSV, TSV, Parquet or Excel file") from None
    if suffix in (".parquet", ".xlsx"):
        frame = frame.apply(field_texts).set_axis([f"row {row + 1}" for row in frame.index])
    filled = frame[(frame != "").any(axis=1)]
    if suffix != ".parquet" and len(filled):
        names = filled.iloc[0]
        is_known = bool(known) and {column.name for column in known} <= {*names}
        if is_known or _is_header(names, filled.iloc[1:]):
            frame = frame.set_axis(names, axis=1).loc[names.name :].iloc[1:]
        else:
            frame = frame.set_axis([f"column-{place + 1}" for place in range(len(names))], axis=1).loc[names.name :]
            notes.append(f"there is no line of names of columns: they are {listed([*frame])}")
    is_filled = (frame.drop(columns="", errors="ignore") != "").any(axis=1)
    if not is_filled.any():
        raise InputError(f"{file} holds no rows below a line of names of columns")
    if not (is_filled.all() or keeps_empty):
        notes.append(f"rows in which all fields are empty, and that are left out: {(~is_filled).sum():,}")
        frame = frame[is_filled]
    if "" in frame:
        notes.append("the column without a name, as of row numbers, is left out")
        frame = frame.loc[:, ~((frame.columns == "") & frame.columns.duplicated())]
    if frame.columns.has_duplicates:
        twice = frame.columns[frame.columns.duplicated()][0]
        raise InputError(f"{file} has several columns named {twice}: give each a name of its own")
    point, note = _decimal_point(frame, sep, any(column.point == "," for column in known))
    return Fields(frame, joined(*notes, note), sep, point)


def _is_header(names: Series, rows: DataFrame) -> bool:
    """Return whether a line names the columns: its numbers count in even steps, or a text of it is in no other row."""
    numbers = pandas.to_numeric(names.str.replace(",", "."), errors="coerce").dropna()
    steps = np.diff(numbers)
    if len(steps) > 1 and steps[0] > 0 and np.allclose(steps, steps[0]):
        return True
    places = [place for place, text in enumerate(names) if not re.match("[-+.]?[0-9]|$", text)]
    return any((rows.iloc[:, place] != names.iloc[place]).all() for place in places)


def _decimal_point(texts: DataFrame, sep: str, run_has_comma: bool = False) -> tuple[str, str]:
    """Return the decimal point of a table, and a note.

    It is that by which more of its fields are numbers. If as many are by both, as of "18,922", it is the comma where
    the run's table has it, or in a file with semicolons.
    """
    fields = Series(texts.to_numpy().ravel(), dtype=object)
    has_comma = fields.str.contains(",", regex=False).any()
    usual = "."
    if run_has_comma or (has_comma and sep == ";"):
        usual = ","
    elif not has_comma:
        return usual, ""
    num_english, num_european = numbers_in(fields, ".").count(), numbers_in(fields, ",").count()
    point = usual
    if num_english != num_european:
        point = "," if num_european > num_english else "."
    meaning = {",": "decimal comma", ".": "mark between thousands"}[point]
    with_comma = texts.apply(lambda column: numbers_in(column[column.str.contains(",", regex=False)], point).any())
    note = f"a comma is read as a {meaning} in: {listed([*texts.columns[with_comma]])}"
    return point, note if with_comma.any() else ""


def _read_text(file: Path) -> tuple[DataFrame, str, list[str]]:
    """Return the fields of a file of texts, what separates them, and notes."""
    content, notes = file.read_bytes(), list[str]()
    if file.suffix.lower() == ".gz":
        content = gzip.decompress(content)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = content.decode("cp1252", "replace")
        notes.append("read as Windows-1252 (latin-1), since it is not UTF-8")
    if "\0" in text:
        raise InputError(f"{file} is no file of texts in UTF-8: give a CSV, TSV, Parquet or Excel file")
    lines = io.StringIO(text.rstrip("\r\n"), newline="").readlines()
    above = next((place for place, line in enumerate(lines) if line.strip() and line[0] != "#"), len(lines))
    head = [line for line in lines[above : above + 10] if line.strip()]
    sep = next((mark for mark in "\t;" if all(mark in line for line in head)), ",")
    by = {",": "", ";": "semicolons", "\t": "tabs"}[sep]
    if re.fullmatch(r"[-+.\deE \r\n]+", "".join(head[1:])) and all(" " in line.strip() for line in head):
        lines = ["\t".join(line.split()) or line for line in lines]
        sep = "\t"
        by = "spaces"
    reader = csv.reader(lines[above:], delimiter=sep, skipinitialspace=True, strict=True)
    rows, width, number = dict[str, list[str]](), 0, above + 1
    try:
        for row in reader:
            fields = [field.strip() for field in row]
            if any(fields):
                width = width or len(fields)
            else:
                fields = [""] * width
            if len(fields) != width:
                wanted = f"{len(fields)} fields, and the first line {width}: separate them all by {sep!r}"
                raise InputError(f"{file}, line {number} has {wanted}")
            if width:
                rows[f"line {number}"] = fields
            number = above + reader.line_num + 1  # a text may have several lines
    except csv.Error as error:
        how = "separate all lines alike, close quotation marks, and double those within a text"
        raise InputError(f"{file}, line {number} cannot be read ({error}): {how}") from None
    if by:
        notes.append(f"fields are separated by {by}")
    if comments := sum(line[0] == "#" for line in lines[:above]):
        notes.append(f"lines of comments (#) that are left out: {comments:,}")
    return DataFrame([*rows.values()], [*rows], dtype=object), sep, notes
