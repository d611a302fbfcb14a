"""Data of any shape from a file of arrays, or from a table."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from pvae.core.errors import InputError
from pvae.core.files import expanded
from pvae.data.arrays import FILES, read_arrays
from pvae.data.dataset import Dataset
from pvae.data.folders import is_file
from pvae.data.labels import coded_labels
from pvae.data.reading import Reading, Values, is_table

__all__ = ["from_values", "read_values"]


def from_values(dataset: str, path: str, reading: Reading = Reading()) -> Dataset:  # noqa: B008  # it cannot be changed
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


def read_values(file: Path, reading: Reading = Reading()) -> Values:  # noqa: B008  # it cannot be changed
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
