"""Data of any shape from a file of arrays, or from a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from pvae.config.columns import MISSING_VALUES
from pvae.core.errors import InputError
from pvae.core.files import expanded
from pvae.data.arrays import FILES, read_arrays
from pvae.data.dataset import Column, Dataset
from pvae.data.folders import is_file
from pvae.data.labels import coded_labels

__all__ = ["PACKAGES", "Reading", "Values", "from_values", "is_table", "read_values"]

PACKAGES = {".parquet": "pyarrow", ".xlsx": "openpyxl"}  # that read tables beside pandas


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


def is_table(file: Path) -> bool:
    """Return whether the name of a file is that of a table."""
    return file.name.lower().endswith((".csv", ".tsv", ".csv.gz", ".tsv.gz", *PACKAGES))


def from_values(dataset: str, path: str, reading: Reading = Reading()) -> Dataset:  # it cannot be changed
    """Return the data of "array:FILE" or "table:FILE".

    If the file names no test split, its rows are put into a random order, always the same one, and the last tenth are
    the test data.

    Args:
        dataset: the name, whose prefix says what the file is.
        path: the file.
        reading: how a table is read.

    Raises:
        InputError: the file cannot be read, holds no data, or has no such column.
    """
    file = expanded(path, "--dataset FILE").absolute()
    values = read_values(file, reading)
    x, labels, names = values.x, values.labels, values.names
    if "test" not in x:
        count = len(x["train"])
        order = np.random.RandomState(count).permutation(count)  # the same in every version of numpy
        train, test = np.split(order, [count - max(2, count // 10)])
        for parts in (x, labels):
            if "train" in parts:
                parts |= {"train": parts["train"][train], "test": parts["train"][test]}
        names = {split: [names["train"][row] for row in rows] for split, rows in (("train", train), ("test", test))}
    coded, classes = coded_labels(np.concatenate([*labels.values()])) if labels else (np.empty(0, np.int64), ())
    codes = dict(zip(labels, torch.from_numpy(coded).split([len(part) for part in labels.values()])))
    tensors = {split: torch.from_numpy(np.ascontiguousarray(part)) for split, part in x.items()}
    return Dataset(
        file.name, tensors["train"], tensors["test"], codes.get("train"), codes.get("test"), classes,
        f"{dataset.partition(':')[0]}:{file}", note=values.note, valid=tensors.get("valid"),
        valid_labels=codes.get("valid"), names=names, columns=values.columns,
        left_out=values.left_out,
    )  # fmt: skip


def read_values(file: Path, reading: Reading = Reading()) -> Values:  # it cannot be changed
    """Return the data of a file by split, in its order.

    Args:
        file: the file.
        reading: how a table is read.

    Raises:
        InputError: the file cannot be read, or holds no data, or another table.
    """
    if not is_file(file):
        raise InputError(f"there is no file {file}: name a file of a table or of arrays")
    if is_table(file):
        from pvae.data.tables import read_table  # imports pandas, which takes half a second

        return read_table(file, reading)
    if not file.name.lower().endswith(FILES):
        raise InputError(f"{file} is no {', '.join(FILES)}, and no table: .csv, .tsv, .parquet or .xlsx")
    arrays, note = read_arrays(file)
    splits, labels, names = {}, {}, {}
    for _, split, x, classes, own_names in arrays:
        x = x[:, None] if x.ndim == 1 else x
        splits[split] = x.astype(np.int64) if x.dtype.kind == "u" and x.dtype != np.uint8 else x  # torch lacks these
        names[split] = [f"{split}-{row}" for row in range(len(x))] if own_names is None else own_names.tolist()
        if classes is not None:
            labels[split] = classes
    return Values(splits, labels, names, (), note)
