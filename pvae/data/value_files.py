"""Data of any shape from a file of arrays, .npy, .npz or .h5, or from a table, .csv or .parquet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from pvae.core.errors import InputError, check_name
from pvae.core.files import expanded
from pvae.data.arrays import HDF5, is_array_file, read_arrays
from pvae.data.dataset import Column, Dataset
from pvae.data.folders import is_file
from pvae.data.labels import coded_labels
from pvae.data.tables import labels_of, read_columns, read_frame, row_name

__all__ = ["Values", "from_values", "read_values"]


class Values(NamedTuple):
    """The data of a file that are no images.

    Args:
        x: values (N, ...) of each split.
        labels: classes (N,) of each split that has some.
        names: a name for each datum of a split: its line in a CSV file, or its number.
        columns: the columns, if the file is a table.
        note: what is not read, or "".
    """

    x: dict[str, NDArray[Any]]
    labels: dict[str, NDArray[Any]]
    names: Mapping[str, Sequence[str]]
    columns: tuple[Column, ...] = ()
    note: str = ""


def from_values(dataset: str, path: str, label_column: str = "") -> Dataset:
    """Return the data of "array:FILE" or "table:FILE".

    If the file names no test split, its rows are put into a random order, always the same one, and the last tenth are
    the test data.

    Args:
        dataset: the name, whose prefix says what the file is.
        path: the file.
        label_column: the column of a table that holds the labels, which is then no part of x; "" for none.

    Raises:
        InputError: the file cannot be read, holds no data, or has no such column.
    """
    file = expanded(path, "--dataset FILE").absolute()
    values = read_values(file, label_column=label_column)
    if values.columns and label_column and not values.labels:
        check_name("--label-column", label_column, [column.name for column in values.columns])
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
    )  # fmt: skip


def read_values(file: Path, known: Sequence[Column] = (), label_column: str = "") -> Values:
    """Return the data of a file by split, in its order.

    Args:
        file: the file.
        known: the columns of the table that a run was trained on, which a table must have; its texts get their codes.
        label_column: the name of a column whose fields are the labels, and which is no part of x.

    Raises:
        InputError: the file cannot be read, or holds no data, or another table.
    """
    if not is_file(file):
        raise InputError(f"there is no file {file}: name an .npy, .npz, .h5, .csv or .parquet file")
    if file.suffix.lower() in (".csv", ".parquet"):
        frame = read_frame(file)
        note = "the column without a name, as of row numbers, is left out" if "" in frame else ""
        frame = frame.drop(columns="", errors="ignore")
        labels = {"train": labels_of(frame.pop(label_column))} if label_column in frame else {}
        x, columns = read_columns(frame, file, known)
        lines = [row_name(file, row).replace(" ", "-") for row in frame.index]
        return Values({"train": x}, labels, {"train": lines}, columns, note)
    if not is_array_file(file) and file.suffix.lower() not in HDF5:
        raise InputError(f"{file} is no .npy, .npz, .h5, .csv or .parquet file")
    arrays, note = read_arrays(file)
    splits, labels = {}, {}
    for _, split, x, classes in arrays:
        x = x[:, None] if x.ndim == 1 else x
        splits[split] = x.astype(np.int64) if x.dtype.kind == "u" and x.dtype != np.uint8 else x  # torch lacks these
        if classes is not None:
            labels[split] = classes
    names = {split: [f"{split}-{row}" for row in range(len(x))] for split, x in splits.items()}
    return Values(splits, labels, names, (), note)
