"""Labels of data: classes coded as numbers, and a few of them at random."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pvae.core.errors import InputError

if TYPE_CHECKING:
    from pvae.data.dataset import Dataset

UNKNOWN = "unlabelled"
_MOST_CLASSES = 100  # of floats


def coded_labels(labels: NDArray[Any]) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Return classes as numbers from 0 on, in the order of their names, and the names.

    The number -1 among integers, NaN and the text "unlabelled" stand for a label that is not known, and become -1.

    Raises:
        InputError: the labels are floats that are not whole, or of which too many differ.
    """
    is_float = labels.dtype.kind == "f"
    if is_float:
        unknown = np.isnan(labels)
    elif labels.dtype.kind in "iu":
        unknown = labels == -1
    else:
        unknown = labels.astype(str) == UNKNOWN
    classes, codes = np.unique(labels[~unknown], return_inverse=True)
    if is_float and (len(classes) > _MOST_CLASSES or (classes != classes.round()).any()):
        wanted = f"give whole numbers, at most {_MOST_CLASSES} different ones, or no labels"
        raise InputError(f"the labels are {len(classes):,} different numbers, which are no classes: {wanted}")
    values = np.full(len(labels), -1)
    values[~unknown] = codes
    if is_float:
        classes = classes.astype(np.int64)
    return values, tuple(map(str, classes))


def is_classes(labels: Tensor) -> bool:
    """Return whether labels are classes, int64 (N,), and not attributes or values of another kind."""
    return labels.dtype == torch.int64 and labels.dim() == 1 and len(labels) > 0


def names_of(labels: NDArray[Any]) -> list[str]:
    """Return the class of each label by its name, "" where it is not known."""
    codes, classes = coded_labels(labels)
    return [("", *classes)[code + 1] for code in codes.tolist()]


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
            why = f"there are {num_classes} classes"
            if wanted:
                why = f"class {name} has none"
            raise InputError(f"--labels {count} takes labels of each class, and {why}: give another number")
        few[chosen] = code
    return few
