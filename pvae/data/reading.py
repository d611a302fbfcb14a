"""`Reading`, how data are read, declared once; and what is read of a file that holds no images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from pvae.core.options import Option
from pvae.data.schema import Column, Constant
from pvae.models.columns import ColumnsText

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from pandas import DataFrame

DATASETS = (
    "auto",
    "mnist",
    "fashion-mnist",
    "mnist-5k",
    "binarized-mnist",
    "celeba",
    "linear-gaussian",
    "folder:PATH",
    "array:FILE",
    "table:FILE",
)
MISSING_VALUES = "NA,N/A,n/a,#N/A,<NA>,NaN,nan,null,NULL,None,?,-"
_IMAGE_FILES = "dataset=folder:PATH,celeba"
_TABLES = "dataset=table:FILE"
PACKAGES = {  # that read files beside numpy, scipy and pandas
    ".parquet": "pyarrow",
    ".xlsx": "openpyxl",
    ".h5": "h5py",
    ".hdf5": "h5py",
    ".h5ad": "anndata",
}


@dataclass(frozen=True)
class Reading:
    """How data are read: image files, by the first three, and tables, by the others.

    Args:
        image_size: height and width of images.
        grey: read colour images as grey ones.
        skip_broken: leave out image files that cannot be decoded.
        label_column: the column of the labels, or "".
        name_column: the column of the names of rows, or "".
        ignore: names of columns that are no part of x, with commas in between.
        missing_values: the texts that stand for a missing value, with commas in between.
        columns: the kinds of columns, as `models.columns.COLUMNS` says.
        known: the columns of the table that a run was trained on, which the table must have; or ().
        left_out: names of other columns of that table, which the table may have.
        in_parts: a Parquet file that is large for the memory is read in parts.
    """

    image_size: Annotated[
        str,
        Option(
            help="height and width to which image files are resized: 28x20, or 64 for 64x64. auto: their median size, "
            "reduced to a longer side of 64 if it is larger; what does not fit its shape is cut off at both ends",
            pattern=r"auto|[1-9]\d{0,3}(x[1-9]\d{0,3})?",
            described="auto, a size such as 28x20 (height x width), or 64 for 64x64",
            needs=_IMAGE_FILES,
        ),
    ] = "auto"
    grey: Annotated[
        bool,
        Option(
            help="read colour images as grey ones; images that are all grey have one channel anyway",
            needs=_IMAGE_FILES,
        ),
    ] = False
    skip_broken: Annotated[bool, Option(help="leave out image files that cannot be decoded", needs=_IMAGE_FILES)] = (
        False
    )
    label_column: Annotated[
        str,
        Option(
            help="the column of a table that holds the labels, and is no part of x; an empty field is a label that is "
            "not known",
            pattern=r"[^\n]{0,200}",
            described="the name of a column",
            needs=_TABLES,
        ),
    ] = ""
    name_column: Annotated[
        str,
        Option(
            help="the column of a table that names its rows, and is no part of x: encode, score and sample --impute "
            "write the names",
            pattern=r"[^\n]{0,200}",
            described="the name of a column",
            needs=_TABLES,
        ),
    ] = ""
    ignore: Annotated[
        str,
        Option(
            help="columns of a table that are no part of x: their names, with commas in between",
            pattern=r"[^\n]{0,10000}",
            described="names of columns, with commas in between",
            needs=_TABLES,
        ),
    ] = ""
    missing_values: Annotated[
        str,
        Option(
            help="the texts that stand for a missing value in a table, beside an empty field, with commas in between; "
            "they replace the default ones",
            pattern=r"[^\n]{0,1000}",
            described="texts, with commas in between",
            needs=_TABLES,
        ),
    ] = MISSING_VALUES
    columns: ColumnsText = ""
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


def own_path(dataset: str) -> str:
    """Return the path in "folder:PATH", "array:FILE" or "table:FILE"; "" for the name of a published data set."""
    prefix, _, path = dataset.partition(":")
    return path if prefix in ("folder", "array", "table") else ""
