"""`Schema`, what values and labels mean, `DataRecord`, which a run keeps of it, and `Values`, the content of a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import pvae.tables.parts  # noqa: F401  which are members of `Rule`, by which a record is read
from pvae.core.errors import InputError, listed, one_line
from pvae.tables.column import Column
from pvae.tables.reading import Reading
from pvae.tables.rule import Rule

if TYPE_CHECKING:
    from pandas import DataFrame

SPLITS = ("train", "valid", "calibration", "test")  # in the order of titles


@dataclass(frozen=True)
class Constant:
    """A column of a table whose fields are all equal, and which is no part of x.

    Args:
        name: its name.
        text: the text of its fields.
        place: how many columns of x stand before it, and a half more if the labels stand between those and it.
    """

    name: str
    text: str
    place: float


@dataclass(frozen=True, kw_only=True)
class Schema:
    """What the values of a data set mean, and where they are from; a run keeps it, and reads other data by it.

    Args:
        dataset: the name for `pvae.read`; empty for data given from Python.
        folder: the folder in which the data set was found; empty if it was not searched in folders.
        reading: how it was read.
        note: what the data lost as they were read, such as files that were left out; a training prints it.
        value_range: the values of the files that became the levels 0 and 255, as in `levels.to_bytes`; () for bytes
            that stay as they are.
        columns: the columns, if the data are a table.
        left_out: names of columns of the table that are no part of x; other files may have them too.
        label_place: how many of the columns stand before that of the labels.
        constants: columns of the table whose fields are all equal, which come back in new rows.
        rules: what holds in the rows of the table, by which other rows cannot be.
        steps: the rules and parts by which the columns of the table became those of x, in their order.
        recorded: the columns of the table that are not left out, if there are steps; else ().
        near: orders and identities that a few of the training rows break, and which are no rules.
    """

    dataset: str = ""
    folder: str = ""
    reading: Reading = Reading()  # noqa: RUF009  # it cannot be changed
    note: str = ""
    value_range: tuple[float, ...] = ()
    columns: tuple[Column, ...] = ()
    left_out: tuple[str, ...] = ()
    label_place: int = 0
    constants: tuple[Constant, ...] = ()
    rules: tuple[Rule, ...] = ()
    steps: tuple[Rule, ...] = ()
    recorded: tuple[Column, ...] = ()
    near: tuple[Rule, ...] = ()

    @property
    def file_columns(self) -> tuple[Column, ...]:
        """The columns of the table that are not left out."""
        return self.recorded or self.columns

    @property
    def limits(self) -> list[float]:
        """The limits of the columns of x that have one."""
        return [column.limit for column in self.columns if column.limit is not None]

    @property
    def schema(self) -> dict[str, Any]:
        """The fields of a schema alone, by their names."""
        return {one.name: getattr(self, one.name) for one in fields(Schema)}


@dataclass(frozen=True, kw_only=True)
class DataRecord(Schema):
    """The description of a data set in a run folder: its schema, and a checksum of the data.

    Args:
        name: the name in titles.
        num_train: number of training data.
        num_test: number of test data.
        num_valid: number of validation data.
        num_calibration: number of data that neither trained nor chose anything, and are no test data.
        datum_shape: the shape of a datum: (C, H, W) of an image.
        sha256: SHA-256 of the splits, with their shapes.
        is_images: the data are images as bytes.
        label_names: the names of the classes or attributes.
        has_attributes: the labels are attributes; a datum may have several of them.
        labels_sha256: SHA-256 of the labels and their names; "" if there are none.
        impossible: of each test row that breaks a rule, and is no part of the test data, its name and why.
    """

    name: str
    num_train: int
    num_test: int
    datum_shape: tuple[int, ...]
    sha256: str
    num_valid: int = 0
    num_calibration: int = 0
    is_images: bool = True
    label_names: tuple[str, ...] = ()
    has_attributes: bool = False
    labels_sha256: str = ""
    impossible: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        """What the data are, as text."""
        if self.is_images:
            return "images"
        if self.columns:
            return "a table"
        return "arrays of values"

    @property
    def of_possible(self) -> str:
        """What is said beside a figure of the test data, of which rows it is; "" if it is of all."""
        if not self.impossible:
            return ""
        count = f"of {self.num_test:,} of {self.num_test + len(self.impossible):,} rows"
        return f"{count}, {len(self.impossible):,} are impossible ({listed(self.impossible)})"

    @property
    def title(self) -> str:
        """The name and the number of data in each split, for the terminal and for titles of figures."""
        return title_of(self.name, {split: getattr(self, f"num_{split}") for split in SPLITS})


class Fields(NamedTuple):
    """The fields of a file.

    Args:
        frame: the fields as texts without spaces around them, "" where a field is empty; indexed by the names of rows,
            such as "line 2". A column without a name, "", is no part of the data.
        note: how the file was read, and what is left out, or "".
        sep: what separates the fields; "," of a file that is no text.
        point: the decimal point, "." or ",".
        levels: the categories of columns of a data frame whose types name them; some may not occur.
    """

    frame: DataFrame
    note: str
    sep: str
    point: str = "."
    levels: Mapping[str, tuple[str, ...]] = MappingProxyType({})


class Values(NamedTuple):
    """The data of a file that are no images.

    Args:
        x: values (N, ...) of each split.
        labels: classes (N,) of each split that has some.
        names: a name for each datum of a split: its own, its line in a CSV file, or its array and row.
        schema: what they mean, and how they were read.
        fields: of a table.
        outside: rows of a table for a run that cannot be rows of its table, by their numbers, and why.
    """

    x: dict[str, NDArray[Any]]
    labels: dict[str, NDArray[Any]]
    names: dict[str, Sequence[str]]
    schema: Schema = Schema()
    fields: Fields | None = None
    outside: Mapping[int, str] = MappingProxyType({})


def title_of(name: str, sizes: Mapping[str, int]) -> str:
    """Return a name and the number of data in each split."""
    if len(name) > 450:  # the name of a folder may be any bytes
        name = f"{name[:450]} ..."
    texts = [f"{sizes[split]:,} {split}" for split in SPLITS if sizes.get(split)]
    return f"{one_line(name)} ({' / '.join(texts)})"


EMPTY = "all fields are empty"  # a row outside of a table, of which p(x) says nothing
UNKNOWN = "unlabelled"
_MOST_CLASSES = 100  # of floats


def coded_labels(labels: NDArray[Any]) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Return classes as numbers from 0 on, in the order of their names, and the names.

    The number -1 among integers, NaN and the text "unlabelled" stand for a label that is not known, and become -1.

    Raises:
        InputError: the labels are floats that are not whole, or of which too many differ.
    """
    is_float = labels.dtype.kind == "f"
    if is_float:
        unknown = np.isnan(labels)
    elif labels.dtype.kind in "iu":
        unknown = labels == -1
    else:
        unknown = labels.astype(str) == UNKNOWN
    classes, codes = np.unique(labels[~unknown], return_inverse=True)
    if is_float and (len(classes) > _MOST_CLASSES or (classes != classes.round()).any()):
        wanted = f"give whole numbers, at most {_MOST_CLASSES} different ones, or no labels"
        raise InputError(f"the labels are {len(classes):,} different numbers, which are no classes: {wanted}")
    values = np.full(len(labels), -1)
    values[~unknown] = codes
    if is_float:
        classes = classes.astype(np.int64)
    return values, tuple(map(str, classes))


def is_classes(labels: Tensor) -> bool:
    """Return whether labels are classes, int64 (N,), and not attributes or values of another kind."""
    return labels.dtype == torch.int64 and labels.dim() == 1 and len(labels) > 0


def names_of(labels: NDArray[Any]) -> list[str]:
    """Return the class of each label by its name, "" where it is not known."""
    codes, classes = coded_labels(labels)
    return [("", *classes)[code + 1] for code in codes.tolist()]
