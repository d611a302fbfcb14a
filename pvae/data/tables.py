"""Tables of numbers and texts: a CSV or Parquet file becomes a DataFrame, and a DataFrame becomes columns."""

from __future__ import annotations

import math
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pvae.core.errors import InputError, brief, listed, shown
from pvae.data.dataset import Column

if TYPE_CHECKING:
    import pandas

__all__ = ["labels_of", "read_columns", "read_frame", "row_name", "table_text"]

_MOST_CLASSES = 100  # of a column of labels that are numbers
_MOST_TEXTS = 50  # a column of more different texts, and of a new text in most rows, holds no categories


def read_frame(file: Path) -> pandas.DataFrame:
    """Return the rows of a table, with its names of columns; the index counts them from 0, blank lines included.

    The fields of a CSV file are texts, "" where a field is empty. The columns of a Parquet file have their types.

    Raises:
        InputError: the file cannot be read, holds no rows, or names two columns alike.
    """
    import pandas

    is_csv = file.suffix.lower() == ".csv"
    if not is_csv and find_spec("pyarrow") is None:
        raise InputError(f'{file} needs pyarrow: pip install -e ".[tables]"')
    try:
        if is_csv:  # by pandas' Python engine, which tells a row that is too short from one whose fields are empty
            lines = pandas.read_csv(
                file, header=None, dtype=str, keep_default_na=False, skip_blank_lines=False, engine="python",
                encoding="utf-8-sig",
            )  # fmt: skip
            frame = lines[1:].set_axis(lines.iloc[0], axis=1).reset_index(drop=True).dropna(how="all")
        else:
            frame = pandas.read_parquet(file, dtype_backend="numpy_nullable")
    except pandas.errors.EmptyDataError:
        frame = pandas.DataFrame()
    except Exception as error:  # pandas and pyarrow raise exceptions of many types
        raise InputError(f"{file} cannot be read ({brief(error)}): give a CSV file in UTF-8, or Parquet") from None
    if frame.empty:
        raise InputError(f"{file} holds no rows below a line of column names")
    if twice := frame.columns[frame.columns.duplicated()].tolist():
        raise InputError(f"{file} has several columns named {twice[0]}: give each a name of its own")
    if is_csv and (is_short := frame.isna().any(axis=1)).any():
        row = is_short.idxmax()
        fields = f"{frame.loc[row].count()} fields, and the first line {len(frame.columns)}"
        raise InputError(f"{file}, {row_name(file, row)} has {fields}: separate them by commas")
    return frame


def row_name(file: Path, row: int) -> str:
    """Return the name of a row of a table, counted from 0: its line in a CSV file, or its number from 1 on."""
    return f"line {row + 2}" if file.suffix.lower() == ".csv" else f"row {row + 1}"


def read_columns(
    frame: pandas.DataFrame, file: Path, known: Sequence[Column] = ()
) -> tuple[NDArray[np.float64], tuple[Column, ...]]:
    """Return the values (N, D) of a table, NaN where a field is empty, and its columns.

    A column with more texts than numbers is a category: its values are the codes of its texts in alphabetical order.

    Args:
        frame: the rows, as `read_frame` returns them.
        file: where they are from, for messages.
        known: the columns of the table that a run was trained on, in whose order the values are returned.

    Raises:
        InputError: a column of numbers has a text, or one of texts a text that the run does not know, or one of its
            own in most rows; or the columns are not those of the run.
    """
    import pandas

    column_of = {column.name: column for column in known}
    names = [*(column_of or frame)]
    if absent := [name for name in names if name not in frame]:
        raise InputError(f"{file} has no column {listed(absent)}, which the run was trained on")
    if more := [name for name in frame if name not in names]:
        raise InputError(f"{file} has the column {listed(more)}, which the run was not trained on: leave it out")
    if not names:
        raise InputError(f"{file} has no column beside that of the labels: add columns of values")
    values, columns = [], []
    for name in names:
        column = column_of.get(name)
        texts, numbers = _texts_of(frame[name]), pandas.to_numeric(frame[name], errors="coerce")
        is_given = texts != ""
        is_text = is_given & numbers.isna() & (texts.str.lower() != "nan")
        is_category = bool(column.categories) if column else 2 * is_text.sum() > is_given.sum()
        if is_category:
            column = column or Column(name, _categories(file, name, texts))
            numbers = texts.map({text: code for code, text in enumerate(column.categories)})
            is_text = is_given & numbers.isna()
        if is_text.any():
            row = is_text.idxmax()
            known_texts = f"which the training never saw (known: {listed(column.categories)})" if column else ""
            what = "" if is_category else "the text "
            why = known_texts if is_category else "and not a number or empty"
            raise InputError(f"{file}, {row_name(file, row)}: {name} is {what}{shown(texts[row])}, {why}")
        columns.append(column or Column(name))
        values.append(numbers.to_numpy(float, na_value=math.nan))
    return np.stack(values, axis=1), tuple(columns)


def labels_of(column: pandas.Series[Any]) -> NDArray[Any]:
    """Return the labels in a column: numbers, NaN where one is missing, or texts, where it is "unlabelled".

    Raises:
        InputError: they are numbers that are not whole, or too many different ones.
    """
    import pandas

    texts, numbers = _texts_of(column), pandas.to_numeric(column, errors="coerce")
    if ((texts == "") | numbers.notna()).all():
        found = numbers.dropna().unique()
        if len(found) > _MOST_CLASSES or (found != found.round()).any():
            raise InputError(f"--label-column {column.name} holds {len(found):,} numbers, which are no classes")
        return numbers.to_numpy(float, na_value=math.nan)
    return texts.where(texts != "", "unlabelled").to_numpy(str)


def _texts_of(column: pandas.Series[Any]) -> pandas.Series[str]:
    """Return the fields of a column as texts without spaces around them, "" where one is missing."""
    return column.astype(object).where(column.notna(), "").astype(str).str.strip()


def _categories(file: Path, name: str, texts: pandas.Series[str]) -> tuple[str, ...]:
    """Return the different texts of a column in their order, or refuse a column whose rows have each its own."""
    categories = sorted({*texts} - {""})
    if len(categories) > _MOST_TEXTS and 2 * len(categories) > len(texts):
        found = f"{len(categories):,} different texts in {len(texts):,} rows"
        raise InputError(f"{file}: column {name} has {found}, which are no categories: leave it out of the file")
    return tuple(categories)


def table_text(columns: Sequence[Column], values: Tensor, given: Tensor | None = None) -> str:
    """Return rows of a table as CSV, each value as `Column.text` writes it; with semicolons if numbers have commas.

    Args:
        columns: the columns.
        values: (N, D); NaN is an empty field.
        given: values (N, D) of a file that stand in their place where they are not NaN.
    """
    import pandas

    fields = {}
    for place, column in enumerate(columns):
        texts = [column.text(value) for value in values[:, place].tolist()]
        if given is not None:
            texts = [column.text(value, True) or text for value, text in zip(given[:, place].tolist(), texts)]
        fields[column.name] = texts
    separator = ";" if any(column.point == "," for column in columns) else ","
    return pandas.DataFrame(fields).to_csv(index=False, sep=separator, lineterminator="\n")
