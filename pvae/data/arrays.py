"""Arrays of data and of their labels in .npy, .npz and .h5 files, read without executing anything."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pvae.core.errors import InputError, brief
from pvae.data.folders import is_file

__all__ = ["HDF5", "SPLITS", "SplitArray", "is_array_file", "read_arrays"]

SPLITS = {"train": "train", "test": "test", "valid": "valid", "val": "valid"}  # by the name of an array or folder
HDF5 = (".h5", ".hdf5")

# The names that data and their labels have in archives of pvae and MedMNIST, of Keras, of dSprites and elsewhere.
_NAMES = {
    "train": "train_labels",
    "train_images": "train_labels",
    "x_train": "y_train",
    "X_train": "y_train",
    "images": "labels",
    "imgs": "labels",
    "X": "y",
}


class SplitArray(NamedTuple):
    """The data of a split in a file of arrays.

    Args:
        name: the name of the array.
        split: "train", "test" or "valid".
        x: booleans, integers or floats (N, ...).
        labels: classes (N,), or None if there are none.
    """

    name: str
    split: str
    x: NDArray[Any]
    labels: NDArray[Any] | None


def is_array_file(path: Path) -> bool:
    """Return whether there is a file of this name, and its suffix is .npy or .npz."""
    return path.suffix.lower() in (".npy", ".npz") and is_file(path)


def read_arrays(file: Path) -> tuple[list[SplitArray], str]:
    """Return the arrays of data in a file, with their labels, and a note that names the arrays that are not read.

    An .npz or .h5 file holds one array; `images` or `imgs` and perhaps `labels`, or `X` and `y`; or `train` and perhaps
    `test` and `valid` (or `val`), with `train_labels` and so on, which may also be named `train_images`, or `x_train`
    and `y_train`. An .npy file may be larger than the memory, the arrays in an .npz or .h5 file may not.

    Raises:
        InputError: the file cannot be read, its arrays have other names, or its data or labels another type or number.
    """
    if file.suffix.lower() in HDF5 and find_spec("h5py") is None:
        raise InputError(f"{file} needs h5py: pip install h5py")
    arrays = []
    try:
        stored = _hdf5(file) if file.suffix.lower() in HDF5 else np.load(file, mmap_mode="c", allow_pickle=False)
        if isinstance(stored, np.ndarray):
            stored = {file.stem: stored}
        unread = {*stored}
        for name, split, label_name in _names({*stored}):
            labels = stored[label_name] if label_name in unread else None
            arrays.append(SplitArray(name, split, stored[name], labels))
            unread -= {name, label_name}
    except MemoryError:
        raise
    except InputError as error:
        raise InputError(f"{file} cannot be used: {error}") from None
    except Exception as error:  # for damaged files numpy, zipfile and h5py raise exceptions of many types
        raise InputError(f"{file} is damaged, or holds objects, which are never loaded ({brief(error)})") from None
    for place, (name, split, x, labels) in enumerate(arrays):
        if x.dtype.kind not in "fbui" or x.ndim < 1:
            raise InputError(f"{file}: {name} is {x.dtype} of shape {x.shape}: give booleans, integers or floats")
        if labels is not None:
            if labels.shape not in ((len(x),), (len(x), 1)) or labels.dtype.kind not in "iubfU":
                found = f"the labels of {name} are {labels.dtype} of shape {labels.shape}"
                raise InputError(f"{file}: {found}: give {len(x):,} whole numbers or texts, one for each datum")
            arrays[place] = SplitArray(name, split, x, labels.reshape(len(x)))
    return arrays, f"arrays of {file.name} that are not read: {', '.join(sorted(unread))}" if unread else ""


def _names(stored: set[str]) -> list[tuple[str, str, str]]:
    """Return the name of each array of data among those of a file, its split, and the name its labels would have.

    Raises:
        InputError: none of the names is known, and there is more than one array.
    """
    for data, labels in _NAMES.items():
        if data in stored and "train" in data:
            names = [(data.replace("train", n), s, labels.replace("train", n)) for n, s in SPLITS.items()]
            return [one for one in names if one[0] in stored]
        if data in stored:
            return [(data, "train", labels)]
    if len(stored) == 1:
        return [(next(iter(stored)), "train", "")]
    found = ", ".join(sorted(stored)) or "no array"
    raise InputError(f"it holds {found}: name its data {', '.join(_NAMES)} (test, valid), or leave one array in it")


def _hdf5(file: Path) -> dict[str, NDArray[Any]]:
    """Return the arrays at the top of an HDF5 file."""
    import h5py

    with h5py.File(file) as content:
        found = {name: one for name, one in content.items() if isinstance(one, h5py.Dataset)}
        is_text = {name: h5py.check_string_dtype(one.dtype) is not None for name, one in found.items()}
        return {name: one.asstr()[()].astype(str) if is_text[name] else one[()] for name, one in found.items()}
