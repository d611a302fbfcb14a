"""`Dataset`, data in memory: images as bytes, or tensors of any other kind."""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pvae.core.errors import InputError, check_name, one_line
from pvae.data.torch_data import is_in_file, read_torch

__all__ = [
    "Column",
    "DataRecord",
    "Dataset",
    "coded_labels",
    "linear_gaussian",
    "random_subset",
]

_AT_ONCE = 10_000  # images
_MOST_CLASSES = 100  # of a column of numbers


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Args:
        name: its name.
        categories: the texts whose codes 0, 1, ... are the values; () for a column of numbers.
    """

    name: str
    categories: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class DataRecord:
    """The description of a data set in a run folder: where it was found, and a checksum of the images.

    Args:
        name: the name in titles.
        dataset: the name for `sources.load_dataset`; empty for data given from Python.
        folder: the folder in which the data set was found; empty if it was not searched in folders.
        num_train: number of training images.
        num_test: number of test images.
        datum_shape: the shape of a datum: (C, H, W) of an image.
        sha256: SHA-256 of the splits, with their shapes.
        num_valid: number of validation images.
        value_range: the values of the files that became the levels 0 and 255, as in `levels.to_bytes`; () for those of
            their type, as in all runs of early versions.
        note: the note on the data that the training printed, such as the files that were left out.
        is_images: the data are images as bytes.
        label_names: the names of the classes or attributes.
        has_attributes: they are attributes, of which a datum may have several.
        labels_sha256: SHA-256 of the labels and their names; "" if there are none, as in runs of early versions.
        columns: of a table.
    """

    name: str
    dataset: str
    folder: str
    num_train: int
    num_test: int
    datum_shape: tuple[int, ...]
    sha256: str
    num_valid: int = 0
    value_range: tuple[float, ...] = ()
    note: str = ""
    is_images: bool = True
    label_names: tuple[str, ...] = ()
    has_attributes: bool = False
    labels_sha256: str = ""
    columns: tuple[Column, ...] = ()

    @property
    def title(self) -> str:
        """Name and numbers of images, for the terminal and for titles of figures."""
        return _title(self.name, self.num_train, self.num_valid, self.num_test)


@dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """Data in memory: a tensor for each split, whose first dimension counts the data.

    Bytes (N, C, H, W) are images, which `Preparation` scales, pads and binarizes. Any other tensor of booleans,
    integers or floats, (N, *shape), such as rows (N, D), series (N, T, D) or volumes (N, C, D, H, W), goes to the VAE
    as it is, in float32. NaN is a value that is missing, which a VAE with `Config.missing` takes.

    Args:
        name: the name in titles, for instance "MNIST".
        train: training data, (N, *shape).
        test: test data, (M, *shape).
        train_labels: classes of the training data, int64 (N,), -1 where one is not known; or attributes, bool (N, A);
            or for a VAE of your own any tensor (N, ...). `Config.condition` or `Config.labels` trains with them.
        test_labels: classes or attributes of the test images.
        label_names: the name of each class or attribute; by default their numbers.
        dataset: the name for `sources.load_dataset`; empty for your own images.
        folder: the folder in which the data set was found.
        note: one line that is printed when a training starts, or empty.
        valid: validation data, to choose an epoch by, (V, *shape); None if none are held out.
        valid_labels: classes or attributes of the validation images.
        found: number, size, colour and bits of image files, for example "8 images of 28 x 20 pixels, grey"; or empty.
        value_range: the values of the files that became 0 and 255, as in `DataRecord`.
        names: a name for each image of a split, by the name of the split: the path in its folder; or {}.
        columns: the columns of a table (N, D).

    Raises:
        InputError: the tensors hold complex or infinite values, are empty, or differ in shape or type; a value of a
            datum is NaN in all training data; or there are not D columns.
    """

    name: str
    train: Tensor
    test: Tensor
    train_labels: Tensor | None = None
    test_labels: Tensor | None = None
    label_names: tuple[str, ...] = ()
    dataset: str = ""
    folder: str = ""
    note: str = ""
    valid: Tensor | None = None
    valid_labels: Tensor | None = None
    found: str = ""
    value_range: tuple[float, ...] = ()
    names: Mapping[str, Sequence[str]] = field(default_factory=dict)
    columns: tuple[Column, ...] = ()

    def __post_init__(self) -> None:
        """Check the types, shapes and values of the tensors."""
        for split, data in self.splits.items():
            wanted = f"{self.name}: {split} must be a tensor of shape (N, *shape) with N at least 2"
            if not isinstance(data, Tensor):
                advice = ": give torch.from_numpy(data)" * isinstance(data, np.ndarray)
                raise InputError(f"{wanted}, not a {type(data).__name__}{advice}")
            if not data.is_complex() and data.dim() > 1 and len(data) < 2:
                raise InputError(f"{self.name} has {len(data)} {split} data: give at least 2 in each split")
            if data.is_complex() or data.dim() < 2 or data.numel() == 0:
                raise InputError(f"{wanted}, not {data.dtype} of shape {tuple(data.shape)}")
            if (data.shape[1:], data.dtype) != (self.train.shape[1:], self.train.dtype):
                raise InputError(f"{self.name}: training and {split} data differ in shape or type")
            if self.is_images and data.shape[3] in (3, 4) and data.shape[1] > 4:
                raise InputError(f"{self.name}: images are (N, C, H, W), not {tuple(data.shape)}: permute(0, 3, 1, 2)")
            for start, part in _in_parts(data) if data.is_floating_point() else ():
                if (infinite := part.flatten(1).isinf()).any():
                    row, place = infinite.nonzero()[0].tolist()
                    datum = self.names[split][start + row] if split in self.names else f"{split}[{start + row}]"
                    where = value_name(place, self.datum_shape, self.columns)
                    raise InputError(f"{self.name}: {where} of {datum} is {part[row].flatten()[place].item()}")
        for split, labels in self.labels.items():
            if not isinstance(labels, Tensor):
                kind = type(labels).__name__
                raise InputError(f"{self.name}: the labels of {split} are a {kind}: give torch.as_tensor(labels)")
        if not self.label_names and self.train_labels is not None and _is_classes(self.train_labels):
            most = max(int(labels.max()) for labels in self.labels.values())
            object.__setattr__(self, "label_names", tuple(map(str, range(most + 1))))
        for split, labels in self.labels.items():
            if len(labels) != len(self.splits[split]):
                counts = f"{len(labels):,} labels, and {len(self.splits[split]):,} data"
                raise InputError(f"{self.name}: {split} has {counts}: give a label for each")
            if _is_classes(labels) and not bool(((labels >= -1) & (labels < len(self.label_names))).all()):
                allowed = f"from 0 to {len(self.label_names) - 1}, or -1 where one is not known"
                raise InputError(f"{self.name}: labels of {split} must be {allowed}, as there are names of classes")
        if self.columns and self.datum_shape != (len(self.columns),):
            raise InputError(f"{self.name}: {len(self.columns)} columns are named, of data {self.datum_shape}")
        if self.has_missing and (never := self.train.isnan().all(0).flatten()).any():
            place = int(never.nonzero()[0])
            where = value_name(place, self.datum_shape, self.columns)
            raise InputError(f"{self.name}: {where} is missing in all training data: leave it out")

    @classmethod
    def from_torch(cls, name: str, train: Any, test: Any = None) -> Dataset:
        """Return the data of `torch.utils.data` sets or loaders, read once.

        Data larger than half of the memory are kept in a temporary file that disappears with them, images as bytes and
        others in float32, in a random order that is always the same. `TMPDIR` names the folder of the file.

        Args:
            name: the name in titles.
            train: a map-style dataset of x or (x, label), or a `DataLoader` of batches of them.
            test: the same; None to hold out a tenth of `train`, always the same one if its order is.

        Raises:
            InputError: as for `Dataset`, or a source cannot be read or yields something else.
        """
        x, y, note = read_torch(train, "train", is_shuffled=test is None)
        if test is None:
            num_train = len(x) - max(2, len(x) // 10)
            x, x_test = x.tensor_split([num_train])
            y, y_test = (None, None) if y is None else y.tensor_split([num_train])
        else:
            x_test, y_test, of_test = read_torch(test, "test")
            note = "; ".join(filter(None, (note, of_test)))
        classes = tuple(map(str, range(int(y.max()) + 1))) if y is not None and y_test is not None else ()
        return cls(name, x, x_test, *((y, y_test) if classes else (None, None)), classes, note=note)

    @property
    def is_images(self) -> bool:
        """Whether the data are images as bytes."""
        return self.train.dtype == torch.uint8 and self.train.dim() == 4

    @property
    def has_missing(self) -> bool:
        """Whether a value is NaN, that is, missing."""
        return self.train.is_floating_point() and any(
            bool(part.isnan().any()) for split in self.splits.values() for _, part in _in_parts(split)
        )

    @property
    def datum_shape(self) -> tuple[int, ...]:
        """The shape of one datum."""
        return tuple(self.train.shape[1:])

    @property
    def splits(self) -> dict[str, Tensor]:
        """The images of each split, by its name: "train", "test" and, if images are held out, "valid"."""
        return {"train": self.train, "test": self.test, **({} if self.valid is None else {"valid": self.valid})}

    @property
    def labels(self) -> dict[str, Tensor]:
        """The labels of each split that has some, by its name."""
        labels = {"train": self.train_labels, "test": self.test_labels, "valid": self.valid_labels}
        return {split: labels[split] for split in self.splits if labels[split] is not None}  # type: ignore[misc]

    @property
    def has_attributes(self) -> bool:
        """Whether the labels are attributes (N, A), of which a datum may have several, and not classes (N,)."""
        return self.train_labels is not None and self.train_labels.dim() > 1 and bool(self.label_names)

    @property
    def shown_labels(self) -> Tensor | None:
        """Labels (R, ...) for pictures, R at most 10: every class, or the labels of the first test data."""
        if self.label_names and not self.has_attributes:
            return torch.arange(min(10, len(self.label_names)))
        return None if self.test_labels is None else self.test_labels[:8]

    def with_label_column(self, name: str) -> Dataset:
        """Return the data of a table without a column, whose texts or whole numbers are their labels; NaN is -1.

        Raises:
            InputError: there is no such column, or it holds other numbers, or too many.
        """
        place = [column.name for column in self.columns].index(
            check_name("--label-column", name, [column.name for column in self.columns])
        )
        every = torch.cat([split[:, place] for split in self.splits.values()])
        found = every[~every.isnan()].unique()
        if self.columns[place].categories:
            found, names = torch.arange(len(self.columns[place].categories)), self.columns[place].categories
        else:
            names = tuple(f"{one:g}" for one in found.tolist())
            if len(found) > _MOST_CLASSES or bool((found != found.round()).any()):
                raise InputError(f"--label-column {name} holds {len(found):,} numbers, which are no classes")
        others = [one for one in range(len(self.columns)) if one != place]

        def labels(split: Tensor | None) -> Tensor | None:
            if split is None:
                return None
            codes = torch.searchsorted(found.to(split.dtype), split[:, place].nan_to_num().contiguous())
            return torch.where(split[:, place].isnan(), torch.full_like(codes, -1), codes)

        return replace(
            self,
            train=self.train[:, others],
            test=self.test[:, others],
            valid=None if self.valid is None else self.valid[:, others],
            columns=tuple(self.columns[one] for one in others),
            label_names=names,
            train_labels=labels(self.train),
            test_labels=labels(self.test),
            valid_labels=labels(self.valid),
        )

    def few_labels(self, count: int, seed: int) -> Tensor:
        """Return the classes of about `count` training data, equally many of each class, and -1 for the others, (N,).

        A class that has fewer gives all that are known.

        Args:
            count: how many.
            seed: which ones, at random.

        Raises:
            InputError: the data have no classes, or a class gets none.
        """
        labels, num_classes = self.train_labels, len(self.label_names)
        if labels is None or labels.dim() != 1 or labels.dtype != torch.int64 or not num_classes:
            raise InputError(f"--labels needs the classes of data, which {self.name} has not: leave --labels out")
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
        few = torch.full_like(labels, -1)
        for number, name in enumerate(self.label_names):
            wanted = count // num_classes + (number < count % num_classes)
            chosen = order[labels[order] == number][:wanted]
            if not len(chosen):
                why = f"class {name} has none" if wanted else f"there are {num_classes} classes"
                raise InputError(f"--labels {count} takes labels of each class, and {why}: give another number")
            few[chosen] = number
        return few

    @property
    def title(self) -> str:
        """Name and numbers of images."""
        return _title(self.name, len(self.train), 0 if self.valid is None else len(self.valid), len(self.test))

    @property
    def is_binary(self) -> bool:
        """Whether the values of the training images are 0 and 255, and no others; of other data, 0 and 1."""
        high = 255 if self.is_images else 1
        has_low = has_high = False
        for _, part in _in_parts(self.train):
            is_low, is_high = part == 0, part == high
            if not bool((is_low | is_high | part.isnan()).all()):
                return False
            has_low, has_high = has_low or bool(is_low.any()), has_high or bool(is_high.any())
        return has_low and has_high

    @property
    def test_names(self) -> Sequence[str]:
        """A name for each test image: its path in its folder, or "test-" and its number from 0 on."""
        return self.names.get("test") or [f"test-{number}" for number in range(len(self.test))]

    def __repr__(self) -> str:
        """Return name, numbers of images and their shape, and not their pixels."""
        return f"<Dataset {self.title}, shape {self.datum_shape}>"

    def with_valid(self, share: float) -> Dataset:
        """Return the data set with a validation split.

        It is the data set's own, or, where it has none, a fixed share of the training images, at least two.

        Args:
            share: 0 for no validation split, even where the data set has its own.

        Raises:
            InputError: fewer than two images would remain to train.
        """
        if share == 0 and self.valid is not None:
            names = {split: names for split, names in self.names.items() if split != "valid"}
            unused = f"{len(self.valid):,} validation images are not used: --valid above 0 chooses the epoch by them"
            note = "; ".join(filter(None, (self.note, unused)))
            return replace(self, valid=None, valid_labels=None, names=names, note=note)
        if share == 0:
            return self
        if self.valid is not None:
            return self
        num_valid = max(2, round(share * len(self.train)))
        num_train = len(self.train) - num_valid
        if num_train < 2:
            rest = f"{num_train} of {len(self.train)} images to train"
            raise InputError(f"--valid {share:g} leaves {rest}: give --valid 0, or more images")
        rows = np.random.RandomState(len(self.train)).permutation(len(self.train))
        train, labels = self.train, self.train_labels
        # Files of a folder were shuffled, as far as their order is not given, and so were data in a temporary file.
        if self.dataset.startswith("folder:") or is_in_file(train):
            rows = np.arange(len(self.train))
        else:
            train, labels = train[rows], None if labels is None else labels[rows]
        parts = [None, None] if labels is None else labels.tensor_split([num_train])
        names = dict(self.names)
        if names:
            in_order = [names["train"][row] for row in rows]
            names |= {"train": in_order[:num_train], "valid": in_order[num_train:]}
        train, valid = train.tensor_split([num_train])
        return replace(self, train=train, valid=valid, train_labels=parts[0], valid_labels=parts[1], names=names)

    def split_csv(self) -> bytes:
        """Return a table of the name and the split of each image, as CSV."""
        text = io.StringIO()
        rows = ((name, split) for split, names in self.names.items() for name in names)
        csv.writer(text, lineterminator="\n").writerows([("name", "split"), *rows])
        return text.getvalue().encode("utf-8", "surrogateescape")

    def _labels_sha256(self) -> str:
        if not self.labels:
            return ""
        digest = hashlib.sha256("\n".join(self.label_names).encode("utf-8", "surrogateescape"))
        for split, labels in self.labels.items():
            digest.update(f"{split} {tuple(labels.shape)} {labels.dtype}".encode())
            digest.update(labels.contiguous().numpy().data)
        return digest.hexdigest()

    def record(self) -> DataRecord:
        """Return the record for a run folder; the checksum is computed from all pixels."""
        digest = hashlib.sha256()
        if any(column.categories for column in self.columns):
            digest.update(repr(self.columns).encode("utf-8", "surrogateescape"))
        for split in self.splits.values():
            digest.update(f"{tuple(split.shape)}{'' if self.is_images else split.dtype}".encode())
            for part in split.split(_AT_ONCE):
                digest.update(part.contiguous().numpy().data)
        return DataRecord(
            name=self.name,
            dataset=self.dataset,
            folder=self.folder,
            num_train=len(self.train),
            num_test=len(self.test),
            datum_shape=self.datum_shape,
            sha256=digest.hexdigest(),
            num_valid=0 if self.valid is None else len(self.valid),
            value_range=self.value_range,
            note=self.note,
            is_images=self.is_images,
            label_names=self.label_names,
            has_attributes=self.has_attributes,
            labels_sha256=self._labels_sha256(),
            columns=self.columns,
        )


def _in_parts(data: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Yield data in parts, each with the number of its first row."""
    size = max(1, 2**24 // data[0].numel())
    yield from ((start, data[start : start + size]) for start in range(0, len(data), size))


def value_name(place: int, datum_shape: Sequence[int], columns: Sequence[Column]) -> str:
    """Return how a message names the value at a flat index of a datum: by its column, or as x[1, 2]."""
    index = ", ".join(map(str, np.unravel_index(place, datum_shape)))
    return f"column {columns[place].name}" if columns else f"x[{index}]"


def _is_classes(labels: Tensor) -> bool:
    return labels.dtype == torch.int64 and labels.dim() == 1 and len(labels) > 0


def coded_labels(labels: NDArray[Any]) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Return classes as numbers from 0 on, in the order of their names, and the names.

    The number -1 and the text "unlabelled", beside others, stand for a label that is not known, and become -1.
    """
    unknown = labels.astype(str) == ("-1" if labels.dtype.kind in "iu" else "unlabelled")
    classes, codes = np.unique(labels[~unknown], return_inverse=True)
    values = np.full(len(labels), -1)
    values[~unknown] = codes
    return values, tuple(map(str, classes))


def random_subset(total: int, count: int, seed: int) -> Tensor:
    """Return the indices, in order, of `count` of `total` images drawn without replacement; of all if there are fewer.

    Unlike the first images, they represent data that are sorted, as the test images of binarized-mnist are by digit.
    """
    return torch.randperm(total, generator=torch.Generator().manual_seed(seed))[:count].sort().values


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


def _title(name: str, num_train: int, num_valid: int, num_test: int) -> str:
    name = one_line(name if len(name) <= 450 else f"{name[:450]} ...")  # the name of a folder may be any bytes
    valid = f" / {num_valid:,} valid" if num_valid else ""
    return f"{name} ({num_train:,} train{valid} / {num_test:,} test)"
