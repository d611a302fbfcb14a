"""Labels of data: classes coded as numbers, a few of them at random, and a column of a table that holds them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pvae.core.errors import InputError, check_name
from pvae.data.dataset import Dataset, is_classes

__all__ = ["coded_labels", "few_labels", "with_label_column"]

_MOST_CLASSES = 100  # of a column of numbers


def coded_labels(labels: NDArray[Any]) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Return classes as numbers from 0 on, in the order of their names, and the names.

    The number -1, and the text "unlabelled", stand for a label that is not known, and become -1.
    """
    unknown = labels.astype(str) == ("-1" if labels.dtype.kind in "iu" else "unlabelled")
    classes, codes = np.unique(labels[~unknown], return_inverse=True)
    values = np.full(len(labels), -1)
    values[~unknown] = codes
    return values, tuple(map(str, classes))


def few_labels(data: Dataset, count: int, seed: int) -> Tensor:
    """Return the classes of about `count` training data, equally many of each class, and -1 for the rest, (N,).

    If fewer data of a class are labelled than asked for, all of these are taken.

    Args:
        data: its labels are classes.
        count: the number of labels.
        seed: chooses the data.

    Raises:
        InputError: the data have no classes, or a class gets no label.
    """
    labels, num_classes = data.train_labels, len(data.label_names)
    if labels is None or not is_classes(labels) or not num_classes:
        raise InputError(f"--labels needs classes, and {data.name} has none: leave --labels out")
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    few = torch.full_like(labels, -1)
    for code, name in enumerate(data.label_names):
        wanted = count // num_classes + (code < count % num_classes)
        chosen = order[labels[order] == code][:wanted]
        if not len(chosen):
            why = f"class {name} has none" if wanted else f"there are {num_classes} classes"
            raise InputError(f"--labels {count} takes labels of each class, and {why}: give another number")
        few[chosen] = code
    return few


def with_label_column(data: Dataset, name: str) -> Dataset:
    """Return the data of a table whose labels are one of its columns, which is then no part of x.

    The texts or whole numbers of the column are the classes; a missing one is the label -1, which is not known.

    Raises:
        InputError: there is no such column, or it holds values that are not whole, or too many different ones.
    """
    place = [column.name for column in data.columns].index(
        check_name("--label-column", name, [column.name for column in data.columns])
    )
    names = data.columns[place].categories
    found = torch.arange(len(names), dtype=data.train.dtype)
    if not names:
        found = torch.cat([split[:, place] for split in data.splits.values()]).unique()
        found = found[~found.isnan()]
        names = tuple(f"{value:g}" for value in found.tolist())
        if len(found) > _MOST_CLASSES or bool((found != found.round()).any()):
            raise InputError(f"--label-column {name} holds {len(found):,} different numbers, which are no classes")
    kept = [other for other in range(len(data.columns)) if other != place]
    changed: dict[str, Any] = {"columns": tuple(data.columns[other] for other in kept), "label_names": names}
    for split, x in data.splits.items():
        codes = torch.searchsorted(found, x[:, place].nan_to_num().contiguous())
        changed |= {split: x[:, kept], f"{split}_labels": codes.masked_fill(x[:, place].isnan(), -1)}
    return replace(data, **changed)
