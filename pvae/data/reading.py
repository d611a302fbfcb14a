"""`Reading`, how a file of data that are no images is read, and `Values`, what it holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from numpy.typing import NDArray

from pvae.config.columns import MISSING_VALUES
from pvae.data.dataset import Column, Constant

if TYPE_CHECKING:
    from pandas import DataFrame

__all__ = ["PACKAGES", "Fields", "Reading", "Values", "is_table"]

PACKAGES = {  # that read files beside numpy, scipy and pandas
    ".parquet": "pyarrow",
    ".xlsx": "openpyxl",
    ".h5": "h5py",
    ".hdf5": "h5py",
    ".h5ad": "anndata",
}


@dataclass(frozen=True)
class Reading:
    """How the columns of a table are read.

    Args:
        label_column: the column of the labels, or "".
        name_column: the column of the names of rows, or "".
        ignore: names of columns that are no part of x, with commas in between.
        columns: as `Config.columns`.
        missing_values: the texts that stand for a missing value, with commas in between.
        known: the columns of the table that a run was trained on, which the table must have; or ().
        left_out: names of other columns of that table, which the table may have.
        in_parts: a Parquet file that is large for the memory is read in parts.
    """

    label_column: str = ""
    name_column: str = ""
    ignore: str = ""
    columns: str = ""
    missing_values: str = MISSING_VALUES
    known: tuple[Column, ...] = ()
    left_out: tuple[str, ...] = ()
    in_parts: bool = True


class Fields(NamedTuple):
    """The fields of a file.

    Args:
        frame: the fields as texts without spaces around them, "" where a field is empty; indexed by the names of rows,
            such as "line 2". A column without a name, "", is no part of the data.
        note: how the file was read, and what is left out, or "".
        sep: what separates the fields; "," of a file that is no text.
        points: the decimal point of each column, "." or ",".
    """

    frame: DataFrame
    note: str
    sep: str
    points: dict[str, str]


class Values(NamedTuple):
    """The data of a file that are no images.

    Args:
        x: values (N, ...) of each split.
        labels: classes (N,) of each split that has some.
        names: a name for each datum of a split: its own, its line in a CSV file, or its array and row.
        columns: the columns, if the file is a table.
        note: what is not read, or "".
        left_out: the columns of a table that are no part of x.
        label_place: how many columns of x stand before that of the labels.
        constants: the columns whose fields are all equal.
        fields: of a table.
    """

    x: dict[str, NDArray[Any]]
    labels: dict[str, NDArray[Any]]
    names: dict[str, Sequence[str]]
    columns: tuple[Column, ...] = ()
    note: str = ""
    left_out: tuple[str, ...] = ()
    label_place: int = 0
    constants: tuple[Constant, ...] = ()
    fields: Fields | None = None


def is_table(file: Path) -> bool:
    """Return whether the name of a file is that of a table."""
    return file.name.lower().endswith((".csv", ".tsv", ".csv.gz", ".tsv.gz", ".parquet", ".xlsx"))
