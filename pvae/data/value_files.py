"""Data of any shape from files: an .npy or .npz file of arrays, or a CSV file of numbers."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pvae.core.errors import InputError, brief
from pvae.core.files import expanded
from pvae.data.dataset import Dataset
from pvae.data.folders import is_file
from pvae.data.image_arrays import arrays_in, is_array_file

__all__ = ["from_values", "read_values"]


def from_values(dataset: str, path: str) -> Dataset:
    """Return the data of "array:FILE" or "table:FILE".

    If the file names no test split, its rows are put into a random order, always the same one, and the last tenth are
    the test data.

    Args:
        dataset: the name, whose prefix says what the file is.
        path: the file.

    Raises:
        InputError: the file cannot be read, or holds no numbers.
    """
    file = expanded(path, "--dataset FILE").absolute()
    splits, labels, names = read_values(file)
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
    classes, coded = np.unique(np.concatenate([*labels.values()]), return_inverse=True) if labels else ((), None)
    sizes = np.cumsum([len(part) for part in labels.values()])
    codes = dict(zip(labels, np.split(coded, sizes[:-1]))) if coded is not None else {}
    tensors = {split: torch.from_numpy(np.ascontiguousarray(part)) for split, part in splits.items()}
    of_label = {split: torch.from_numpy(part) for split, part in codes.items()}
    return Dataset(
        file.name, tensors["train"], tensors["test"], of_label.get("train"), of_label.get("test"),
        tuple(map(str, classes)), f"{prefix}:{file}", valid=tensors.get("valid"), valid_labels=of_label.get("valid"),
        names=names,
    )  # fmt: skip


def read_values(file: Path) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]], dict[str, Sequence[str]]]:
    """Return the arrays of a file by split, in the order of the file, their labels, and a name for each row.

    Raises:
        InputError: the file cannot be read, or holds no numbers.
    """
    if not is_file(file):
        raise InputError(f"there is no file {file}: name an .npy, .npz or .csv file")
    if is_array_file(file):
        splits, labels = _of_arrays(file)
    elif file.suffix.lower() == ".csv":
        splits, labels = {"train": _of_csv(file)}, {}
    else:
        raise InputError(f"{file} is no .npy, .npz or .csv file")
    if file.suffix.lower() == ".csv":
        return splits, labels, {"train": [f"line-{row}" for row in range(2, len(splits["train"]) + 2)]}
    return splits, labels, {split: [f"{split}-{row}" for row in range(len(part))] for split, part in splits.items()}


def _of_arrays(file: Path) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]]]:
    try:
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
        if part.dtype.kind not in "fbui" or part.ndim < 1 or (split in labels and len(labels[split]) != len(part)):
            raise InputError(
                f"{file}: {split} is {part.dtype} of shape {part.shape}: give numbers, a row for each label"
            )
        if part.ndim == 1:
            splits[split] = part[:, None]
        if part.dtype.kind == "u" and part.dtype != np.uint8:
            splits[split] = part.astype(np.int64)  # torch lacks most operations on the others
    return splits, labels


def _of_csv(file: Path) -> NDArray[np.float64]:
    """Return the numbers of a CSV file whose first line names the columns; an empty field is NaN."""
    with file.open(newline="", encoding="utf-8") as lines:
        header, *rows = list(csv.reader(lines)) or [[]]
    if not rows or not header:
        raise InputError(f"{file} holds no rows below a line of column names")
    values = np.empty((len(rows), len(header)))
    for number, row in enumerate(rows, start=2):
        if len(row) != len(header):
            raise InputError(f"{file}, line {number} has {len(row)} fields, and the first line {len(header)}")
        for column, (name, text) in enumerate(zip(header, row)):
            try:
                values[number - 2, column] = float(text) if text.strip() else math.nan
            except ValueError:
                what = f"{name} is the text {text!r}, and not a number or empty"
                raise InputError(f"{file}, line {number}: {what}") from None
    return values
