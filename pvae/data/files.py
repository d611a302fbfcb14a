"""The names of data sets and of files of data, and the folders in which these are searched."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from pvae.core.errors import InputError
from pvae.core.files import cache_dir, expanded

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
PACKAGES = {  # that read files beside numpy, scipy and pandas
    ".parquet": "pyarrow",
    ".xlsx": "openpyxl",
    ".h5": "h5py",
    ".hdf5": "h5py",
    ".h5ad": "anndata",
}


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
