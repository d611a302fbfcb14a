"""Data sets of `torchvision.datasets`, read by torchvision from the files that it leaves in a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pvae.core.errors import InputError, brief
from pvae.data.dataset import Dataset
from pvae.data.folders import find

__all__ = ["SETS", "torchvision_set"]


class _Set(NamedTuple):
    """A data set: the name of its class in torchvision, its files, and the arguments for its splits."""

    title: str
    files: tuple[str, ...]
    train: dict[str, Any]
    test: dict[str, Any]


def _idx(folder: str, *splits: str, labels: str = "labels-idx1-ubyte") -> tuple[str, ...]:
    return tuple(f"{folder}/raw/{split}-{kind}" for split in splits for kind in ("images-idx3-ubyte", labels))


_TRAIN, _TEST = {"train": True}, {"train": False}
_BATCHES = ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch")
SETS = {
    "kmnist": _Set("KMNIST", _idx("KMNIST", "train", "t10k"), _TRAIN, _TEST),
    "emnist": _Set(
        "EMNIST",
        _idx("EMNIST", "emnist-balanced-train", "emnist-balanced-test"),
        {"split": "balanced", **_TRAIN},
        {"split": "balanced", **_TEST},
    ),
    "qmnist": _Set("QMNIST", _idx("QMNIST", "qmnist-train", "qmnist-test", labels="labels-idx2-int"), _TRAIN, _TEST),
    "usps": _Set("USPS", ("usps.bz2", "usps.t.bz2"), _TRAIN, _TEST),
    "svhn": _Set("SVHN", ("train_32x32.mat", "test_32x32.mat"), {"split": "train"}, {"split": "test"}),
    # Its files are pickles, which may execute anything: torchvision loads those with the published MD5 sums only.
    "cifar10": _Set(
        "CIFAR10", tuple(f"cifar-10-batches-py/{name}" for name in (*_BATCHES, "batches.meta")), _TRAIN, _TEST
    ),
}


def torchvision_set(name: str, data_dir: str | Path | None) -> Dataset:
    """Return one of `SETS` from the first folder that contains it.

    The images of EMNIST are turned upright. Those of SVHN and CIFAR10 are in colour.

    Raises:
        InputError: it is in no folder, or a file is missing or damaged.
    """
    title, files, *arguments = SETS[name]
    layout = f"DIR/{files[0]}{''.join(f', {Path(file).name}' for file in files[1:])}"
    root = find(
        title, files[0], data_dir, f"put its files there as torchvision does, and give --data-dir DIR: {layout}"
    )
    from torchvision import datasets  # which takes seconds to import

    try:
        train, test = (getattr(datasets, title)(root, **split) for split in arguments)
        (x_train, y_train), (x_test, y_test) = _images_and_labels(train), _images_and_labels(test)
    except Exception as error:  # for damaged files torchvision, numpy and scipy raise exceptions of many types
        raise InputError(
            f"{title} in {root} cannot be read ({brief(error)}): put its published files there: {layout}"
        ) from None
    classes = tuple(getattr(train, "classes", map(str, range(10))))
    return Dataset(title, x_train, x_test, y_train, y_test, classes, dataset=name, folder=str(root.absolute()))


def _images_and_labels(split: Any) -> tuple[Tensor, Tensor]:
    """Return the images (N, C, H, W) and the classes (N,) that torchvision has loaded.

    Raises:
        ValueError: their numbers differ.
    """
    images = torch.as_tensor(split.data)
    labels = torch.as_tensor(split.labels if hasattr(split, "labels") else split.targets).long()
    if type(split).__name__ == "EMNIST":
        images = images.transpose(1, 2)
    if images.dim() == 3:
        images = images[:, None]
    elif type(split).__name__ == "CIFAR10":
        images = images.permute(0, 3, 1, 2)
    labels = labels[:, 0] if labels.dim() == 2 else labels  # QMNIST has columns beside the class
    if len(images) != len(labels):
        raise ValueError(f"{len(images)} images and {len(labels)} labels")
    return images.contiguous(), labels
