"""`ImageArrays`, the images and labels of an .npy or .npz file."""

from __future__ import annotations

from collections.abc import Iterator
from functools import reduce
from operator import or_
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pvae.core.errors import InputError, brief
from pvae.data.folders import is_file
from pvae.data.levels import Levels

__all__ = ["SPLITS", "ImageArrays", "arrays_in", "is_array_file"]

SPLITS = {"train": "train", "test": "test", "valid": "valid", "val": "valid"}  # by the name of an array or folder
_MAX_CHANNELS = 16

# The names of the images and of their labels in an archive: of pvae and MedMNIST, of Keras, of dSprites and of others.
_NAMES = {
    "train": "train_labels",
    "train_images": "train_labels",
    "x_train": "y_train",
    "X_train": "y_train",
    "images": "labels",
    "imgs": "labels",
    "X": "y",
}

_READ = 2**24  # bytes at a time


def is_array_file(path: Path) -> bool:
    """Return whether there is a file of this name, and its suffix is .npy or .npz."""
    return path.suffix.lower() in (".npy", ".npz") and is_file(path)


def arrays_in(stored: set[str], what: str) -> list[tuple[str, str, str]]:
    """Return the name of each array of data in an archive, its split, and the name that its labels would have.

    Args:
        stored: the names of all arrays.
        what: they are, for messages: "images" or "data".

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
    raise InputError(f"it holds {found}: name its {what} {', '.join(_NAMES)} (test, valid), or leave one array in it")


class ImageArrays:
    """The images and labels of an .npy or .npz file, read without executing anything.

    An array of images has the shape (N, H, W), (N, H, W, C) or (N, C, H, W), of at most 16 channels C. If the last
    side is 1, 3 or 4, it is C; otherwise the second one is C if it is 1, 3 or 4; otherwise C is the one of them that
    is at most 16. No channel is taken for opacity. The values are booleans, integers or floats; `Levels` describes how
    they become bytes.

    An .npz file holds one array; `images` or `imgs` and perhaps `labels`, or `X` and `y`; or `train` and perhaps `test`
    and `valid` (or `val`), with `train_labels` and so on, which may also be named `train_images`, or `x_train` and
    `y_train`. Other arrays are not read. An .npy file may be larger than the memory, the arrays of an .npz file may
    not.

    Args:
        path: the file.
        is_shuffled: put the images of each array into a random order, always the same one.

    Attributes:
        names: a name for each image, such as "train-0" for the first one of the array `train`.
        splits: "train", "test" or "valid" for each image.
        labels: the class of each image, or None if they have none.
        note: names the arrays that are not read, or is empty.
        shape: (H, W, C) of the images.

    Raises:
        InputError: the file cannot be read, or its images or labels have another shape or type.
    """

    def __init__(self, path: Path, is_shuffled: bool = True) -> None:
        self.path, self.is_shuffled = path, is_shuffled
        self.names, self.splits = list[str](), list[str]()
        self._arrays: list[tuple[NDArray[Any], NDArray[np.int64]]] = []  # with the new order of their images
        labels = []
        try:
            loaded = np.load(path, mmap_mode="r", allow_pickle=False)
            stored = {path.stem: loaded} if isinstance(loaded, np.ndarray) else loaded
            unread, found = set(stored), arrays_in(set(stored), "images")
            for name, split, label_name in found:
                unread -= {name, label_name}
                array = self._channels_last(stored[name], name)
                count = len(array)
                order = np.random.RandomState(count).permutation(count) if is_shuffled else np.arange(count)
                self._arrays.append((array, order))
                self.names += [f"{name}-{row}" for row in order]
                self.splits += [split] * count
                if label_name in stored:
                    labels.append(self._checked_labels(stored[label_name], label_name, count)[order])
        except MemoryError:
            raise
        except InputError as error:
            raise error if str(error).startswith(str(path)) else self._refused(str(error)) from None
        except Exception as error:  # for damaged files numpy and zipfile raise exceptions of many types
            damaged = f"it is damaged, or holds objects, which are never loaded ({brief(error)})"
            raise self._refused(damaged) from None
        shapes = sorted({array.shape[1:] for array, _ in self._arrays})
        if len(shapes) > 1:
            raise self._refused(f"its images have the shapes {' and '.join(map(str, shapes))}: give one shape")
        if labels and len(labels) < len(self._arrays):
            raise self._refused("some of its arrays of images have labels and others not: give labels for all or none")
        self.shape: tuple[int, int, int] = shapes[0]
        self.note = f"arrays of {path.name} that are not read: {', '.join(sorted(unread))}" if unread else ""
        self.labels = np.concatenate(labels) if labels else None

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.names)

    def levels(self) -> Levels:
        """Return the values that the images have.

        Raises:
            InputError: a value is NaN or infinite, or the arrays have several types.
        """
        parts = []
        for array, _ in self._arrays:
            at_once = max(1, _READ // array[0].nbytes)
            for start in range(0, len(array), at_once):
                parts.append(Levels.of(array[start : start + at_once]))
                if array.dtype == np.uint8 and parts[-1].high > 1:
                    return parts[-1]  # bytes stay as they are
        return reduce(or_, parts)

    def values(self) -> Iterator[NDArray[Any]]:
        """Yield the images, (H, W, C)."""
        for array, order in self._arrays:
            yield from (array[row] for row in order)

    def _refused(self, reason: str) -> InputError:
        return InputError(f"{self.path} cannot be used: {reason}")

    def _channels_last(self, array: NDArray[Any], name: str) -> NDArray[Any]:
        """Return images as (N, H, W, C)."""
        described = f"{name} is {array.dtype} of shape {array.shape}"
        if array.dtype.kind not in "fbui":
            raise self._refused(f"{described}: give booleans, integers or floats")
        array = array[..., None] if array.ndim == 3 else array
        if array.ndim != 4 or array.size == 0:
            raise self._refused(f"{described}: give (N, H, W), (N, H, W, C) or (N, C, H, W)")
        _, second, _, last = array.shape
        if last in (1, 3, 4) or (second not in (1, 3, 4) and last <= _MAX_CHANNELS < second):
            return array
        if second in (1, 3, 4) or second <= _MAX_CHANNELS < last:
            return np.moveaxis(array, 1, 3)
        wanted = f"give (N, H, W, C) or (N, C, H, W), where one side only is at most {_MAX_CHANNELS}, or C is 1, 3 or 4"
        raise self._refused(f"{described}, where the channels cannot be told from the rows and columns: {wanted}")

    def _checked_labels(self, labels: NDArray[Any], name: str, count: int) -> NDArray[Any]:
        if labels.shape not in ((count,), (count, 1)) or labels.dtype.kind not in "iubU":
            wanted = f"give {count} whole numbers or texts, one for each image"
            raise self._refused(f"{name} is {labels.dtype} of shape {labels.shape}: {wanted}")
        return labels.reshape(count)
