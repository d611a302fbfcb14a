"""Data of any shape from files of arrays, .npy, .npz or .h5, and tables of numbers and texts, .csv or .parquet."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pvae.core.errors import InputError, brief, listed, shown
from pvae.core.files import expanded
from pvae.data.dataset import Column, Dataset, coded_labels
from pvae.data.folders import is_file
from pvae.data.image_arrays import arrays_in, is_array_file

__all__ = ["from_values", "read_values", "table_text"]

_MOST_TEXTS = 50  # beyond which a column of which most rows have a text of their own holds no categories
_ARRAYS, _TABLES = (".h5", ".hdf5"), (".csv", ".parquet")


def from_values(dataset: str, path: str) -> Dataset:
    """Return the data of "array:FILE" or "table:FILE".

    If the file names no test split, its rows are put into a random order, always the same one, and the last tenth are
    the test data.

    Args:
        dataset: the name, whose prefix says what the file is.
        path: the file.

    Raises:
        InputError: the file cannot be read, or holds no data.
    """
    file = expanded(path, "--dataset FILE").absolute()
    splits, labels, names, columns = read_values(file)
    prefix = dataset.partition(":")[0]
    if "test" not in splits:
        count = len(splits["train"])
        order = np.random.RandomState(count).permutation(count)  # the same in every version of numpy
        num_test = max(2, count // 10)
        for parts in (splits, labels):
            if "train" in parts:
                train = parts["train"][order]
                parts |= {"train": train[: count - num_test], "test": train[count - num_test :]}
        rows = [names["train"][row] for row in order]
        names |= {"train": rows[: count - num_test], "test": rows[count - num_test :]}
    coded, classes = coded_labels(np.concatenate([*labels.values()])) if labels else (None, ())
    sizes = np.cumsum([len(part) for part in labels.values()])
    codes = dict(zip(labels, np.split(coded, sizes[:-1]))) if coded is not None else {}
    tensors = {split: torch.from_numpy(np.ascontiguousarray(part)) for split, part in splits.items()}
    of_label = {split: torch.from_numpy(part) for split, part in codes.items()}
    return Dataset(
        file.name, tensors["train"], tensors["test"], of_label.get("train"), of_label.get("test"),
        classes, f"{prefix}:{file}", valid=tensors.get("valid"), valid_labels=of_label.get("valid"),
        names=names, columns=columns,
    )  # fmt: skip


def read_values(
    file: Path, columns: Sequence[Column] = (), without: str = ""
) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]], dict[str, Sequence[str]], tuple[Column, ...]]:
    """Return the arrays of a file by split, in its order, their labels, a name for each row, and a table's columns.

    Args:
        file: the file.
        columns: those of the table that a run was trained on, which a table must have; its texts get their codes.
        without: the name of a column that is left out, and whose fields are the labels.

    Raises:
        InputError: the file cannot be read, or holds no data, or another table.
    """
    if not is_file(file):
        raise InputError(f"there is no file {file}: name an .npy, .npz, .h5, .csv or .parquet file")
    suffix = file.suffix.lower()
    if suffix in _TABLES:
        values, found, texts = _of_table(file, columns, without)
        names, row = range(len(values)), _row(file)
        labels = {"train": np.array(texts)} if texts else {}
        return {"train": values}, labels, {"train": [row(number).replace(" ", "-") for number in names]}, found
    if not is_array_file(file) and suffix not in _ARRAYS:
        raise InputError(f"{file} is no .npy, .npz, .h5, .csv or .parquet file")
    splits, labels = _of_arrays(file)
    return splits, labels, {split: [f"{split}-{row}" for row in range(len(part))] for split, part in splits.items()}, ()


def table_text(columns: Sequence[Column], values: Tensor, given: Tensor | None = None) -> str:
    """Return rows of a table as CSV, with the texts of categories; NaN is an empty field.

    Args:
        columns: the columns.
        values: (N, D), written with 6 digits.
        given: values (N, D) that stand in their place, with 15 digits, where they are not NaN.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([column.name for column in columns])
    for row, known in zip(values.tolist(), (torch.full_like(values, math.nan) if given is None else given).tolist()):
        fields = [(one, 6) if math.isnan(exact) else (exact, 15) for one, exact in zip(row, known)]
        writer.writerow([_field(column, *field) for column, field in zip(columns, fields)])
    return text.getvalue()


def _field(column: Column, value: float, digits: int) -> str:
    if math.isnan(value):
        return ""
    return column.categories[int(value)] if column.categories else f"{value:.{digits}g}"


def _of_arrays(file: Path) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]]]:
    if file.suffix.lower() in _ARRAYS and find_spec("h5py") is None:
        raise InputError(f"{file} needs h5py: pip install h5py")
    try:
        if file.suffix.lower() in _ARRAYS:
            import h5py

            with h5py.File(file) as content:
                found = {name: one for name, one in content.items() if isinstance(one, h5py.Dataset)}
                texts = {name for name, one in found.items() if h5py.check_string_dtype(one.dtype)}
                loaded: Any = {name: (one.asstr() if name in texts else one)[()] for name, one in found.items()}
        else:
            loaded = np.load(file, allow_pickle=False)
        stored = {file.stem: loaded} if isinstance(loaded, np.ndarray) else dict(loaded)
        splits, labels = {}, {}
        for name, split, label_name in arrays_in({*stored}, "data"):
            splits[split] = stored[name]
            if label_name in stored:
                labels[split] = stored[label_name].reshape(-1)
    except InputError as error:
        raise InputError(f"{file} cannot be used: {error}") from None
    except Exception as error:  # for damaged files numpy and zipfile raise exceptions of many types
        raise InputError(f"{file} is damaged, or holds objects, which are never loaded ({brief(error)})") from None
    for split, part in splits.items():
        if part.dtype.kind not in "fbui" or part.ndim < 1:
            raise InputError(f"{file}: the {split} data are {part.dtype} of shape {part.shape}: give numbers")
        if split in labels and len(labels[split]) != len(part):
            counts = f"{len(labels[split]):,} labels for {len(part):,} {split} data"
            raise InputError(f"{file} has {counts}: give one for each")
        if part.ndim == 1:
            splits[split] = part[:, None]
        if part.dtype.kind == "u" and part.dtype != np.uint8:
            splits[split] = part.astype(np.int64)  # torch lacks most operations on the others
    return splits, labels


def _row(file: Path) -> Callable[[int], str]:
    """Return the function that names a row of a table, counted from 0."""
    word, first = ("line", 2) if file.suffix.lower() == ".csv" else ("row", 1)
    return lambda number: f"{word} {first + number}"


def _of_table(
    file: Path, known: Sequence[Column], without: str
) -> tuple[NDArray[np.float64], tuple[Column, ...], list[str]]:
    """Return the values of a table whose first line names the columns, the columns, and the fields of another one.

    An empty field is NaN.
    """
    header, rows = _fields(file)
    labels = list[str]()
    kept = [place for place, name in enumerate(header) if name != without]
    if len(kept) < len(header) and all(len(fields) == len(header) for fields in rows):
        labels = [fields[header.index(without)].strip() for fields in rows] if without else []
        header, rows = [header[place] for place in kept], [[fields[place] for place in kept] for fields in rows]
    if twice := [name for name in header if header.count(name) > 1]:
        raise InputError(f"{file} has {header.count(twice[0])} columns named {twice[0]}: give each a name of its own")
    if known and header != [column.name for column in known]:
        wanted = [column.name for column in known]
        if absent := [name for name in wanted if name not in header]:
            raise InputError(f"{file} has no column {listed(absent)}, which the run was trained on")
        if more := [name for name in header if name not in wanted]:
            raise InputError(f"{file} has the column {listed(more)}, which the run was not trained on: leave it out")
        rows = [
            [fields[header.index(name)] for name in wanted] if len(fields) == len(header) else fields for fields in rows
        ]
        header = wanted
    values, columns, row = np.empty((len(rows), len(header))), list[Column](), _row(file)
    for number, fields in enumerate(rows):
        if len(fields) != len(header):
            hint = "; its fields must be separated by commas" if len(header) == 1 and ";" in header[0] else ""
            raise InputError(f"{file}, {row(number)} has {len(fields)} fields, and the first line {len(header)}{hint}")
    for place, name in enumerate(header):
        texts = [fields[place].strip() for fields in rows]
        numbers = [_number(text) for text in texts]
        others = [number for number, one in enumerate(numbers) if one is None]
        num_fields = sum(text != "" for text in texts)
        if known[place].categories if known else 2 * len(others) > num_fields:
            columns.append(known[place] if known else Column(name, _categories(file, name, texts)))
            codes = {text: float(code) for code, text in enumerate(columns[-1].categories)} | {"": math.nan}
            if unseen := [number for number, text in enumerate(texts) if text not in codes]:
                what = f"{name} is {shown(texts[unseen[0]])}, which the training never saw"
                raise InputError(f"{file}, {row(unseen[0])}: {what} (known: {listed(columns[-1].categories)})")
            values[:, place] = [codes[text] for text in texts]
        elif others:
            what = f"{name} is the text {shown(texts[others[0]])}, and not a number or empty"
            raise InputError(f"{file}, {row(others[0])}: {what}")
        else:
            columns.append(Column(name))
            values[:, place] = numbers
    return values, tuple(columns), labels


def _fields(file: Path) -> tuple[list[str], list[list[str]]]:
    """Return the names of the columns of a table, and the fields of its rows."""
    try:
        if file.suffix.lower() == ".csv":
            content = file.read_text("utf-8-sig")
        elif missing := [name for name in ("pandas", "pyarrow") if find_spec(name) is None]:
            raise InputError(f'{file} needs {" and ".join(missing)}: pip install -e ".[tables]"')
        else:
            import pandas

            frame = pandas.read_parquet(file, dtype_backend="numpy_nullable")
            truths = [name for name, kind in frame.dtypes.items() if str(kind) == "boolean"]
            content = frame.astype(dict.fromkeys(truths, "Int64")).to_csv(index=False)
        header, *rows = list(csv.reader(io.StringIO(content, newline=""))) or [[]]
    except InputError:
        raise
    except Exception as error:  # pandas and pyarrow raise exceptions of many types
        raise InputError(f"{file} cannot be read ({brief(error)}): give a CSV file in UTF-8, or Parquet") from None
    if not rows or not header:
        raise InputError(f"{file} holds no rows below a line of column names")
    return header, rows


def _number(text: str) -> float | None:
    """Return the number that a text is, NaN of an empty one, or None."""
    try:
        return float(text or math.nan)
    except ValueError:
        return None


def _categories(file: Path, name: str, texts: Sequence[str]) -> tuple[str, ...]:
    """Return the different texts of a column in their order, or refuse a column whose rows have each its own."""
    categories = sorted({*texts} - {""})
    if len(categories) > _MOST_TEXTS and 2 * len(categories) > len(texts):
        found = f"{len(categories):,} different texts in {len(texts):,} rows"
        raise InputError(f"{file}: column {name} has {found}, which are no categories: leave it out of the file")
    return tuple(categories)
