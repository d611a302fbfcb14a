"""How data are read, declared once, the names of data sets, and the folders in which these are searched."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pvae.core.errors import InputError
from pvae.core.files import cache_dir, expanded
from pvae.core.options import Option
from pvae.models.columns import ColumnsText

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
        columns: the kinds of columns, as `models.columns.ColumnsText` says.
        rules: "auto", "none", which rules of a table are left out, and rules that are said, with ; in between.
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
    rules: Annotated[
        str,
        Option(
            help="auto: find laws in the training rows of a table, which then hold in every drawn row; or rules with ; "
            "in between, beside those that are found: 'total = a + b; refund <= price; currency by country; at most "
            "one of a, b'; 'not NAME', with commas in between, finds none of a column, or of a kind; none finds "
            "nothing. A column whose kind --columns names is not rewritten",
            pattern=r"[^\n]{1,10000}",
            described="auto, none, 'not NAME' with the name of a column or of a kind of rules, or rules",
            needs=_TABLES,
        ),
    ] = "auto"


def is_table(file: Path) -> bool:
    """Return whether the name of a file is that of a table."""
    return file.name.lower().endswith((".csv", ".tsv", ".csv.gz", ".tsv.gz", ".parquet", ".xlsx"))


def own_path(dataset: str) -> str:
    """Return the path in "folder:PATH", "array:FILE" or "table:FILE"; "" for the name of a published data set."""
    prefix, _, path = dataset.partition(":")
    return path if prefix in ("folder", "array", "table") else ""


class NotFoundError(InputError):
    """A data set is in none of the searched folders, and it cannot be downloaded."""


def find(title: str, path: str, data_dir: str | Path | None, advice: str = "") -> Path:
    """Return the first of `data_dir`, `$PVAE_DATA` and the cache that contains a folder or a file.

    Args:
        title: name of the data set, for messages.
        path: relative path of the folder or file, for instance "MNIST/raw".
        data_dir: searched first, if given.
        advice: how to get the data set, for the message.

    Raises:
        NotFoundError: none of the three contains it.
        InputError: `data_dir` or `$PVAE_DATA` is given and does not exist.
    """
    given = {"--data-dir": data_dir, "PVAE_DATA": os.environ.get("PVAE_DATA") or None}
    roots = [expanded(root, source) for source, root in given.items() if root is not None]
    if missing := [root for root in roots if not is_folder(root)]:
        raise InputError(f"there is no folder {missing[0]}: change --data-dir or PVAE_DATA")
    with contextlib.suppress(InputError):
        roots.append(cache_dir())
    for root in roots:
        if is_folder(root / path) or is_file(root / path):
            return root
    searched = ", ".join(str(root / path) for root in roots) or "any folder (set XDG_CACHE_HOME, or give --data-dir)"
    raise NotFoundError(f"{title} is not in {searched}{advice and ': '}{advice}")


def is_folder(path: Path) -> bool:
    """Return whether a folder of this name exists; False for names that are too long or contain NUL."""
    return os.path.isdir(path)  # noqa: PTH112  Path.is_dir raises for such names


def is_file(path: Path) -> bool:
    """Return whether an ordinary file of this name exists; False for names that are too long or contain NUL."""
    return os.path.isfile(path)  # noqa: PTH113
