"""Arrays of data, their labels and names, in files of arrays or sparse matrices, read without executing anything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pvae.core.errors import InputError, brief
from pvae.data.files import is_file
from pvae.tables.schema import Schema, Values, coded_labels

SPLITS = {"train": "train", "test": "test", "valid": "valid", "val": "valid"}  # by the name of an array or folder
FILES = (".npy", ".npz", ".h5", ".hdf5", ".h5ad", ".mtx", ".mtx.gz")
_OWN_NAMES = ("names", "cells", "obs_names")  # of an array of the name of each datum

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


def is_array_file(path: Path) -> bool:
    """Return whether there is a file of this name, and its suffix is .npy or .npz."""
    return path.suffix.lower() in (".npy", ".npz") and is_file(path)


def read_arrays(file: Path) -> Values:
    """Return the arrays of data in a file, with their labels, and a note that names the arrays that are not read.

    An .npz or .h5 file holds one array; `images` or `imgs` and perhaps `labels`, or `X` and `y`; or `train` and perhaps
    `test` and `valid` (or `val`), with `train_labels` and so on, which may also be named `train_images`, or `x_train`
    and `y_train`. Beside one array of data, texts `names`, `cells` or `obs_names` are the names of the data; otherwise
    these are the name of the array and the number of the row. An .npy file may be larger than the memory, other arrays
    may not; sparse matrices become dense ones.

    Raises:
        InputError: the file cannot be read, its arrays have other names, or its data or labels another type or number.
    """
    x, labels, names = dict[str, NDArray[Any]](), dict[str, NDArray[Any]](), dict[str, Sequence[str]]()
    try:
        stored = _stored(file)
        unread = {*stored}
        own_name = next((name for name in _OWN_NAMES if name in stored and len(stored) > 1), "")
        own = stored[own_name] if own_name else None
        for name, split, label_name in _names({*stored}.difference(_OWN_NAMES if own_name else ())):
            if split in x:  # "val" beside "valid"
                continue
            array = stored[name]
            if array.dtype.kind not in "fbui" or array.ndim < 1 or array.dtype.itemsize > 8:
                types = "booleans, integers or floats, of 64 bits at most"
                raise InputError(f"{name} is {array.dtype} of shape {array.shape}: give {types}")
            array = array.astype(array.dtype.newbyteorder("="), copy=False)
            x[split] = array[:, None] if array.ndim == 1 else array
            names[split] = [f"{name}-{row}" for row in range(len(array))]
            if label_name in unread:
                classes = stored[label_name]
                if classes.shape not in ((len(array),), (len(array), 1)) or classes.dtype.kind not in "iubfU":
                    wanted = f"give {len(array):,} whole numbers or texts, one for each datum"
                    raise InputError(f"the labels of {name} are {classes.dtype} of shape {classes.shape}: {wanted}")
                labels[split] = classes.reshape(len(array))
                coded_labels(labels[split])  # refuses what is no class
            unread -= {name, label_name}
            if own is not None and own.shape == array.shape[:1] and own.dtype.kind in "OU" and split == "train":
                names[split] = own.astype(str).tolist()
                unread -= {own_name}
    except MemoryError as error:
        raise InputError(f"{file} is larger than the memory: {brief(error)}: give a smaller part of it") from None
    except InputError as error:
        raise InputError(f"{file} cannot be used: {error}") from None
    except Exception as error:  # for damaged files numpy, zipfile and h5py raise exceptions of many types
        raise InputError(f"{file} is damaged, or holds objects, which are never loaded ({brief(error)})") from None
    note = ""
    if unread:
        note = f"arrays of {file.name} that are not read: {', '.join(sorted(unread))}"
    return Values(x, labels, names, Schema(note=note))


def _names(stored: set[str]) -> list[tuple[str, str, str]]:
    """Return the name of each array of data among those of a file, its split, and the name its labels would have.

    Raises:
        InputError: none of the names is known, and there is more than one array.
    """
    for data, labels in _NAMES.items():
        if data in stored and "train" in data:
            names = [(data.replace("train", n), s, labels.replace("train", n)) for n, s in SPLITS.items()]
            return [pair for pair in names if pair[0] in stored]
        if data in stored:
            return [(data, "train", labels)]
    if len(stored) == 1:
        return [(next(iter(stored)), "train", "")]
    present = ", ".join(sorted(stored)) or "no array"
    raise InputError(f"it holds {present}: name its data {', '.join(_NAMES)} (test, valid), or leave one array in it")


def _stored(file: Path) -> Mapping[str, NDArray[Any]]:
    """Return the arrays of a file by their names; a sparse matrix or AnnData's X as X, dense."""
    suffix = file.suffix.lower()
    if suffix == ".h5ad":
        import anndata

        data = anndata.read_h5ad(file)
        groups = ("obs", "obsm", "obsp", "var", "varm", "varp", "layers", "uns")
        others = [f"{group}/{name}" for group in groups for name in getattr(data, group)]
        others += ["var_names", *["raw"] * (data.raw is not None)]
        x = data.X if isinstance(data.X, np.ndarray) else data.X.toarray()
        return {"X": x, "obs_names": data.obs_names.to_numpy(), **dict.fromkeys(others, x)}
    if suffix in (".h5", ".hdf5"):
        import h5py

        with h5py.File(file) as content:
            items = {name: item for name, item in content.items() if isinstance(item, h5py.Dataset)}
            is_text = {name: h5py.check_string_dtype(item.dtype) is not None for name, item in items.items()}
            return {name: item.asstr()[()].astype(str) if is_text[name] else item[()] for name, item in items.items()}
    if suffix in (".mtx", ".gz"):
        from scipy.io import mmread

        x = mmread(file)
        return {"X": x if isinstance(x, np.ndarray) else x.toarray()}
    stored = np.load(file, mmap_mode="c", allow_pickle=False)
    if not isinstance(stored, np.ndarray) and {"format", "shape", "data"} <= {*stored}:
        from scipy.sparse import load_npz

        return {"X": load_npz(file).toarray()}
    return {file.stem: stored} if isinstance(stored, np.ndarray) else stored
