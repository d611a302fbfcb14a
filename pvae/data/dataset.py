"""`Dataset`, data with their schema: images as bytes, or tensors of any other kind."""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from pvae.core.errors import InputError, joined, listed
from pvae.data.mapped import batches_of, in_file
from pvae.models.columns import column_kinds, named_kinds
from pvae.tables.codec import codes_of, from_file
from pvae.tables.column import Column
from pvae.tables.rules import find_rules
from pvae.tables.schema import DataRecord, Schema, is_classes, title_of

_SAMPLE = 40_000  # rows of data in parts on which the start of a training depends
_MOST_VALID = 10_000  # of data in parts
_AT_ONCE = 1000  # data in a batch


@dataclass(frozen=True, eq=False, repr=False)
class Dataset(Schema):
    """Data in memory, and what they mean: a tensor for each split, whose first dimension counts the data.

    Bytes (N, C, H, W) are images, which `Preparation` scales, pads and binarizes. Any other tensor of booleans,
    integers or floats, (N, *shape), such as rows (N, D), series (N, T, D) or volumes (N, C, D, H, W), goes to the VAE
    as it is, in float32. NaN is a value that is missing, which a VAE with `Config.missing` takes.

    Args:
        name: the name in titles, for instance "MNIST".
        train: training data, (N, *shape).
        test: test data, (M, *shape).
        train_labels: classes of the training data, int64 (N,), -1 where a class is not known; or attributes, bool
            (N, A); or for a VAE of your own any tensor (N, ...). `Config.condition` and `Config.labels` use them.
        test_labels: classes or attributes of the test data.
        label_names: the name of each class or attribute; by default their numbers.
        valid: validation data, to choose an epoch by, (V, *shape), or None.
        valid_labels: classes or attributes of the validation data.
        calibration: data that neither train nor choose anything, by which `pvae.trained.alarm` calibrates, or None.
        calibration_labels: their classes or attributes.
        found: number, size and colour of image files, for example "8 images of 28 x 20 pixels, grey"; or empty.
        names: a name for each datum of a split, by the name of the split, such as the path of an image; or {}.
        is_in_parts: the data are mapped into memory, in a random order, and may be larger than it.
        impossible: of each row of a split that breaks a rule, and is no part of it, its name and why.
        plain: the same data before their rules rewrote them, with all rows; None if they have no rules.
        is_given_labels: rules may depend on the labels, which the VAE is given.
        schema: the fields of `Schema`, by their names.

    Raises:
        InputError: the tensors hold complex or infinite values, are empty, or differ in shape or type; or a
            value of a datum is NaN in all training data.
    """

    name: str
    train: Tensor
    test: Tensor
    train_labels: Tensor | None = None
    test_labels: Tensor | None = None
    label_names: tuple[str, ...] = ()
    valid: Tensor | None = field(default=None, kw_only=True)
    valid_labels: Tensor | None = field(default=None, kw_only=True)
    calibration: Tensor | None = field(default=None, kw_only=True)
    calibration_labels: Tensor | None = field(default=None, kw_only=True)
    found: str = field(default="", kw_only=True)
    names: Mapping[str, Sequence[str]] = field(default_factory=dict, kw_only=True)
    is_in_parts: bool = field(default=False, kw_only=True)
    impossible: Mapping[str, Sequence[str]] = field(default_factory=dict, kw_only=True)
    plain: Dataset | None = field(default=None, kw_only=True)
    is_given_labels: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        """Check the tensors, and name the classes by their numbers if no names are given."""
        y = self.train_labels
        if not self.label_names and isinstance(y, Tensor) and is_classes(y):
            tensors = [labels for labels in self.labels.values() if isinstance(labels, Tensor) and len(labels)]
            most = max(int(labels.max()) for labels in tensors)
            object.__setattr__(self, "label_names", tuple(map(str, range(most + 1))))
        if fault := next(_faults(self), ""):
            raise InputError(f"{self.name}: {fault}")

    @classmethod
    def from_torch(cls, name: str, train: Any, test: Any = None) -> Dataset:
        """Return the data of `torch.utils.data` sets or loaders, read once.

        Args:
            name: the name in titles.
            train: a map-style dataset of x or (x, label), or a `DataLoader` of batches of them.
            test: the same; None to hold out a tenth of `train`, always the same one if its order is.

        Raises:
            InputError: as for `Dataset`, or a source cannot be read, or yields something else.
        """
        x, y, note = _read_torch(train, "train")
        if test is not None:
            x_test, y_test, of_test = _read_torch(test, "test")
            return cls(name, x, x_test, y, y_test, note=joined(note, of_test))
        return cls(name, **with_split("test", max(2, len(x) // 10), x, y), note=note)

    @property
    def is_images(self) -> bool:
        """Whether the data are images as bytes."""
        return self.train.dtype == torch.uint8 and self.train.dim() == 4

    @cached_property
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
    def num_train(self) -> int:
        """The number of training data."""
        return len(self.train)

    @property
    def num_sample(self) -> int:
        """The number of training data, the first ones, on which the start of a training depends."""
        if self.is_in_parts:
            return min(_SAMPLE, len(self.train))
        return len(self.train)

    @property
    def splits(self) -> dict[str, Tensor]:
        """The data of each split, by its name: "train", "test" and, if there are some, "valid" and "calibration"."""
        splits = {"train": self.train, "test": self.test, "valid": self.valid, "calibration": self.calibration}
        return {split: x for split, x in splits.items() if x is not None}

    @property
    def labels(self) -> dict[str, Tensor]:
        """The labels of each split that has some, by its name."""
        labels = {split: getattr(self, f"{split}_labels") for split in self.splits}
        return {split: y for split, y in labels.items() if y is not None}

    @property
    def has_attributes(self) -> bool:
        """Whether the labels are attributes (N, A), several for a datum, and not classes (N,)."""
        return self.train_labels is not None and self.train_labels.dim() > 1 and bool(self.label_names)

    @property
    def shown_labels(self) -> Tensor | None:
        """Labels (R, ...) for pictures, R at most 10: every class, or the labels of the first test data."""
        if self.label_names and not self.has_attributes:
            return torch.arange(min(10, len(self.label_names)))
        if self.test_labels is None:
            return None
        return self.test_labels[:8]

    @property
    def title(self) -> str:
        """The name and the number of data in each split."""
        return title_of(self.name, {split: len(x) for split, x in self.splits.items()})

    @property
    def is_binary(self) -> bool:
        """Whether the pixels of the training images are all 0 or 255, and both occur; for other data, 0 or 1."""
        high = 255 if self.is_images else 1
        parts = [part for _, part in _in_parts(self.train)]
        are_bits = all(bool(((part == 0) | (part == high) | part.isnan()).all()) for part in parts)
        return are_bits and all(any(bool((part == bit).any()) for part in parts) for bit in (0, high))

    def names_of(self, split: str) -> Sequence[str]:
        """Return the names of the data of a split, or numbers in it."""
        return self.names.get(split) or [f"{split}[{row}]" for row in range(len(self.splits[split]))]

    @property
    def test_names(self) -> Sequence[str]:
        """A name for each test datum, such as the path of an image, or "test-" and its number from 0 on."""
        return self.names.get("test") or [f"test-{number}" for number in range(len(self.test))]

    def __repr__(self) -> str:
        """Return the name, the number of data in each split and their shape, without the data."""
        return f"<Dataset {self.title}, shape {self.datum_shape}>"

    def with_valid(
        self, share: float, calibration: float = 0.0, is_given_labels: bool = False, known: Schema | None = None
    ) -> Dataset:
        """Return the data set with a validation split, and perhaps a calibration split.

        If the data set has no validation split of its own, a fixed share of the training data, at least two, becomes
        one. The same data are chosen at every call. Rules of a table are those of the training rows that are left.

        Args:
            share: the share, between 0 and 1; 0 for no validation split, even if the data set has its own.
            calibration: the share of the training data that neither train nor choose; 0 if there are some.
            is_given_labels: as for `with_rules`, as is `known`.
            known: the schema whose rules are taken.

        Raises:
            InputError: fewer than two data would remain to train.
        """
        plain = self.plain or self
        data = plain.held_out(share, calibration)
        is_known = data is plain and is_given_labels == self.is_given_labels
        if known is None and self.plain is None:  # rules are not looked for
            return data
        if known is None and is_known:  # they were found
            return self
        return data.with_rules(is_given_labels, known)

    def with_rules(self, is_given_labels: bool = False, known: Schema | None = None) -> Dataset:
        """Return a table whose rules have rewritten it, without the rows that break one; or other data as they are.

        Args:
            is_given_labels: a rule may depend on the labels.
            known: the schema whose rules are taken; by default they are those of the training rows.

        Raises:
            InputError: a rule that was said cannot be one.
        """
        labels = dict[str, Tensor]()
        if is_given_labels and self.reading.label_column and not self.has_attributes:
            labels = self.labels
        schema = known or self._found_rules(labels)
        if schema is None:
            return self
        note = self.note
        if known is None:
            note = joined(note, schema.note)
        if not schema.steps and not schema.rules:
            return replace(self, plain=self, near=schema.near, note=note)
        changed: dict[str, Any] = {
            name: getattr(schema, name) for name in ("columns", "rules", "steps", "recorded", "near")
        }
        names, impossible = {**self.names}, dict[str, Sequence[str]]()
        for split, file in self.splits.items():
            x, why = from_file(schema, file.double().numpy(), labels.get(split))
            rows = [row for row in range(len(x)) if row not in why]
            named = self.names_of(split)
            changed[split] = x[rows]
            if split in self.labels:
                changed[f"{split}_labels"] = self.labels[split][rows]
            if split in names:
                names[split] = [named[row] for row in rows]
            if why:
                impossible[split] = tuple(f"{named[row]}: {text}" for row, text in why.items())
                count = f"{len(why):,} of {len(x):,} {split} rows"
                note = joined(note, f"{count} break a rule, and are left out: {listed(impossible[split])}")
        changed |= {"impossible": impossible, "plain": self, "is_given_labels": is_given_labels}
        return replace(self, **changed, names=names, note=note)

    def _found_rules(self, labels: Mapping[str, Tensor]) -> Schema | None:
        """Return the schema with the rules of the training rows; None if none are looked for."""
        is_table = bool(self.columns) and not self.is_in_parts and not column_kinds(self.reading.columns)
        if not is_table and self.reading.rules not in ("auto", "none"):
            raise InputError("--rules is for tables in memory with names of columns: leave it out")
        if not is_table or self.reading.rules == "none":
            return None
        seen = [split for split in ("train", "valid") if split in self.splits]
        of_labels = {}
        if labels:
            codes = torch.cat([labels[split] for split in seen])
            of_labels = {self.reading.label_column: (codes_of(codes, len(codes)), self.label_names)}
        fields = find_rules(
            self.columns,
            torch.cat([self.splits[split] for split in seen]).double().numpy(),
            [name for split in seen for name in self.names_of(split)],
            len(self.train),
            self.reading.rules,
            kept=[
                *named_kinds(self.reading.columns),
                *(column.name for column in self.columns if column.limit is not None),
            ],
            labels=of_labels,
        )
        return replace(Schema(**self.schema), recorded=self.columns, **fields)

    def held_out(self, share: float, calibration: float) -> Dataset:
        """Return the data with a validation split and a calibration split, before their rules."""
        data = self
        if share == 0 and self.valid is not None:
            names = {split: names for split, names in self.names.items() if split != "valid"}
            unused = f"{len(self.valid):,} validation data are not used: --valid above 0 chooses the epoch by them"
            data = replace(self, valid=None, valid_labels=None, names=names, note=joined(self.note, unused))
        numbers = {"valid": self.count_valid(share)}
        if self.calibration is None:
            numbers["calibration"] = round(calibration * len(self.train))
        # The files of a folder and the rows of data in parts are in a random order since they were read.
        is_shuffled = self.dataset.startswith("folder:") or self.is_in_parts
        for split, number in numbers.items():
            left = len(data.train) - number
            if number and left < 2:
                raise InputError(
                    f"--{split} leaves {max(0, left)} of {len(self.train)} data to train: give --{split} 0"
                )
            if number:
                held_out = with_split(split, number, data.train, data.train_labels, data.names, is_shuffled)
                data = replace(data, **held_out)
        return data

    def count_valid(self, share: float) -> int:
        """Return how many training data `with_valid` makes validation data; 0 if there are validation data."""
        if share == 0 or self.valid is not None:
            return 0
        number = max(2, round(share * len(self.train)))
        if self.is_in_parts:
            return min(number, _MOST_VALID)
        return number

    def split_csv(self) -> bytes:
        """Return a table of the name and the split of each datum, as CSV."""
        text = io.StringIO()
        rows = ((name, split) for split, names in self.names.items() for name in names)
        csv.writer(text, lineterminator="\n").writerows([("name", "split"), *rows])
        return text.getvalue().encode("utf-8", "surrogateescape")

    @cached_property
    def sha256(self) -> str:
        """The SHA-256 of all data, as in `DataRecord`."""
        digest = hashlib.sha256()
        if any(column.categories for column in self.columns):
            texts = [f"Column(name={column.name!r}, categories={column.categories!r})" for column in self.columns]
            digest.update(f"({', '.join(texts)}{',' * (len(texts) == 1)})".encode("utf-8", "surrogateescape"))
        for split in self.splits.values():
            digest.update(f"{tuple(split.shape)}{'' if self.is_images else split.dtype}".encode())
            for _, part in _in_parts(split):
                digest.update(part.contiguous().numpy().data)
        return digest.hexdigest()

    @cached_property
    def labels_sha256(self) -> str:
        """The SHA-256 of the labels and their names; "" if there are no labels."""
        if not self.labels:
            return ""
        digest = hashlib.sha256("\n".join(self.label_names).encode("utf-8", "surrogateescape"))
        for split, labels in self.labels.items():
            digest.update(f"{split} {tuple(labels.shape)} {labels.dtype}".encode())
            digest.update(labels.contiguous().numpy().data)
        return digest.hexdigest()

    def record(self) -> DataRecord:
        """Return the record for a run folder."""
        numbers: dict[str, Any] = {f"num_{split}": len(x) for split, x in self.splits.items()}
        names = [entry.name for entry in fields(DataRecord) if not entry.name.startswith("num_")]
        others = {name: getattr(self, name) for name in names}
        others["impossible"] = tuple(self.impossible.get("test", ()))
        return DataRecord(**numbers, **others)


def _in_parts(data: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Yield data in parts, each with the number of its first row."""
    size = max(1, 2**24 // data[0].numel())
    yield from ((start, data[start : start + size]) for start in range(0, len(data), size))


def value_name(place: int, datum_shape: Sequence[int], columns: Sequence[Column]) -> str:
    """Return how a message names the value at a flat index of a datum: by its column, or as x[1, 2]."""
    index = ", ".join(map(str, np.unravel_index(place, datum_shape)))
    return f"column {columns[place].name}" if columns else f"x[{index}]"


def check_domain(check: Callable[[Tensor], Tensor] | None, splits: Mapping[str, Tensor], data: Dataset) -> None:
    """Check that data can be values of a likelihood.

    Args:
        check: raises an `InputError` if a batch is outside the domain of the likelihood; None for a likelihood that has
            no such method.
        splits: x of each split, (N, *shape).
        data: the data set, which names them.

    Raises:
        InputError: a datum is outside the domain; the message names the first such datum, and its value.
    """
    for split, x in splits.items():
        for row, where, fault in domain_faults(check, x, data.columns):
            name = f"{split}[{row}]"
            if split in data.names:
                name = data.names[split][row]
            raise InputError(f"{data.name}: {where} of {name} {fault}")


def domain_faults(
    check: Callable[[Tensor], Tensor] | None, values: Tensor, columns: Sequence[Column] = ()
) -> Iterator[tuple[int, str, str]]:
    """Yield each datum outside the domain of a likelihood: its number, the first such value, and what is wrong with it.

    Args:
        check: as of `check_domain`.
        values: x, (N, *shape).
        columns: the columns, if the data are a table.
    """
    for start in range(0, len(values) if check else 0, _AT_ONCE):
        part = values[start : start + _AT_ONCE]
        if _fault(check, part) is None:
            continue
        for row, datum in enumerate(part):
            if _fault(check, datum[None]) is None:
                continue
            inside = torch.as_tensor(getattr(getattr(check, "__self__", None), "inside", 0.0))
            inside = inside.to(datum).expand_as(datum)
            good = next((other for other in part if _fault(check, other[None]) is None), inside)
            place, fault = _first_fault(check, datum, good)
            where = value_name(place, datum.shape, columns)
            yield start + row, where, f"is {datum.flatten()[place]:g}, and {fault}"


def _first_fault(
    check: Callable[[Tensor], Tensor] | None, datum: Tensor, good: Tensor
) -> tuple[int, InputError | None]:
    """Return the place of the first value of a datum that is refused among those of a good one, and the error."""
    for place, value in enumerate(datum.flatten()):
        alone = good.flatten().clone()
        alone[place] = value
        fault = _fault(check, alone.view(1, *datum.shape))
        if fault is not None:
            return place, fault
    return 0, _fault(check, datum[None])


def _fault(check: Callable[[Tensor], Tensor] | None, values: Tensor) -> InputError | None:
    """Return the error of a check, or None."""
    try:
        if check:
            check(values)
    except InputError as error:
        return error
    return None


def _faults(data: Dataset) -> Iterator[str]:
    """Yield what is wrong with a data set; each check assumes that those before it found nothing."""
    for split, x in data.splits.items():
        wanted = f"{split} must be a tensor of shape (N, *shape) with N at least 2"
        if not isinstance(x, Tensor):
            yield f"{wanted}, not a {type(x).__name__}" + ": give torch.from_numpy(data)" * isinstance(x, np.ndarray)
        if x.dim() > 1 and len(x) < 2:
            sizes = " + ".join(f"{len(split_x)} {name}" for name, split_x in data.splits.items())
            yield f"there are too few data ({sizes}): give at least 2 in each split"
        if x.is_complex() or x.dim() < 2 or x.numel() == 0:
            yield f"{wanted}, not {x.dtype} of shape {tuple(x.shape)}"
        if (x.shape[1:], x.dtype) != (data.train.shape[1:], data.train.dtype):
            yield f"training and {split} data differ in shape or type"
    if data.is_images and data.train.shape[3] in (3, 4) and data.train.shape[1] > 4:
        yield f"images are (N, C, H, W), not {tuple(data.train.shape)}: permute(0, 3, 1, 2)"
    for split, labels in data.labels.items():
        if not isinstance(labels, Tensor):
            yield f"the labels of {split} are a {type(labels).__name__}: give torch.as_tensor(labels)"
        if len(labels) != len(data.splits[split]):
            yield f"{split} has {len(labels):,} labels, and {len(data.splits[split]):,} data: give a label for each"
        if is_classes(labels) and not bool(((labels >= -1) & (labels < len(data.label_names))).all()):
            allowed = f"from 0 to {len(data.label_names) - 1}, or -1 where one is not known"
            yield f"labels of {split} must be {allowed}, as there are names of classes"
    for split, x in data.splits.items():
        for start, part in _in_parts(x) if x.is_floating_point() else ():
            for row, place in part.flatten(1).isinf().nonzero()[:1].tolist():
                datum = data.names[split][start + row] if split in data.names else f"{split}[{start + row}]"
                value = part[row].flatten()[place].item()
                name = value_name(place, data.datum_shape, data.columns)
                yield f"{name} of {datum} is {value}: give a finite value, or none"
    if data.has_missing and (is_absent := data.train.isnan().all(0).flatten()).any():
        where = value_name(int(is_absent.nonzero()[0]), data.datum_shape, data.columns)
        yield f"{where} is missing in all training data: leave it out"


def with_split(
    split: str,
    count: int,
    train: Tensor,
    labels: Tensor | None,
    names: Mapping[str, Sequence[str]] = MappingProxyType({}),
    is_shuffled: bool = False,
) -> dict[str, Any]:
    """Return the arguments of a `Dataset` that hold out some training data, the last in a random order, as a split.

    Args:
        split: the name of the other split, "test", "valid" or "calibration".
        count: the number of data that are held out.
        train: the training data.
        labels: their labels, or None.
        names: of the data of each split, or {}.
        is_shuffled: the data are in a random order, and both splits are views of them; otherwise the order is the same
            at every call, and in every version of numpy.
    """
    rows: Any = [slice(len(train) - count), slice(len(train) - count, None)]
    if not is_shuffled:
        order = np.random.RandomState(len(train)).permutation(len(train))
        rows = [order[chosen] for chosen in rows]
    changed: dict[str, Any] = {"names": {**names}}
    for name, chosen in zip(("train", split), rows):
        changed[name] = train[chosen]
        if labels is not None:
            changed[f"{name}_labels"] = labels[chosen]
        if names:
            changed["names"][name] = np.array(names["train"], dtype=object)[chosen].tolist()
    return changed


def _read_torch(source: Any, split: str) -> tuple[Tensor, Tensor | None, str]:
    """Return the data of a map-style dataset or a `DataLoader`, their labels or None, and a note on what it leaves out.

    Raises:
        InputError: the source raises an exception, holds nothing, or yields something else.
    """
    loader = source
    if not isinstance(source, DataLoader):
        loader = DataLoader(source, batch_size=_AT_ONCE)
    x, y = in_file(batches_of(loader, split))
    if not len(x):
        raise InputError(f"{split} holds no data")
    if not hasattr(loader.dataset, "__len__") or len(loader.dataset) == len(x):  # an iterable dataset has no length
        return x, y, ""
    return x, y, f"{len(loader.dataset) - len(x):,} {split} data are left out by drop_last or a sampler"


def random_subset(total: int, count: int, seed: int) -> Tensor:
    """Return the sorted indices of `count` of `total` data drawn without replacement, or of all data if fewer exist.

    Unlike the first data, they represent a data set that is sorted, as the test images of binarized-mnist are by digit.
    """
    return torch.randperm(total, generator=torch.Generator().manual_seed(seed))[:count].sort().values


def few_labels(data: Dataset, count: int, seed: int) -> Tensor:
    """Return the classes of about `count` training data, equally many of each class, and -1 for the rest, (N,).

    If fewer data of a class are labelled than asked for, all of these are taken.

    Args:
        data: its labels are classes.
        count: the number of labels.
        seed: chooses the data.

    Raises:
        InputError: the data have no classes, or a class gets no label.
    """
    labels, num_classes = data.train_labels, len(data.label_names)
    if labels is None or not is_classes(labels) or not num_classes:
        raise InputError(f"--labels needs classes, and {data.name} has none: leave --labels out")
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    few = torch.full_like(labels, -1)
    for code, name in enumerate(data.label_names):
        wanted = count // num_classes + (code < count % num_classes)
        chosen = order[labels[order] == code][:wanted]
        if not len(chosen):
            why = f"there are {num_classes} classes"
            if wanted:
                why = f"class {name} has none"
            raise InputError(f"--labels {count} takes labels of each class, and {why}: give another number")
        few[chosen] = code
    return few
