"""`ImageArrays`, the images and labels of an .npy or .npz file."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import reduce
from operator import or_
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pvae.core.errors import InputError, brief
from pvae.data.folders import is_file
from pvae.data.levels import Levels

__all__ = ["SPLITS", "ImageArrays", "is_array_file"]

SPLITS = {"train": "train", "test": "test", "valid": "valid", "val": "valid"}  # by the name of an array or folder
_MAX_CHANNELS = 16

# The names of the images and of their labels in an archive: of pvae and MedMNIST, of Keras, and of others.
_NAMES_OF_SPLITS = (("{}", "{}_labels"), ("{}_images", "{}_labels"), ("x_{}", "y_{}"), ("X_{}", "y_{}"))
_NAMES = (("images", "labels"), ("imgs", "labels"), ("X", "y"))  # imgs is that of dSprites

_READ = 2**24  # bytes at a time
_MAX_VALUES = 4 * 10**8  # of an image


def is_array_file(path: Path) -> bool:
    """Return whether there is a file of this name, and its suffix is .npy or .npz."""
    return path.suffix.lower() in (".npy", ".npz") and is_file(path)


class ImageArrays:
    """The images and labels of an .npy or .npz file, read without executing anything.

    An array of images has the shape (N, H, W), (N, H, W, C) or (N, C, H, W), of at most 16 channels C. If the last
    side is 1, 3 or 4, it is C; otherwise the second one is C if it is 1, 3 or 4; otherwise C is the one of them that
    is at most 16. No channel is taken for opacity. The values are booleans, integers or floats; `Levels` describes how
    they become bytes.

    An .npz file holds one array; `images` or `imgs` and perhaps `labels`, or `X` and `y`; or `train` and perhaps `test`
    and `valid` (or `val`), with `train_labels` and so on, which may also be named `train_images`, or `x_train` and
    `y_train`. Other arrays are not read. An .npy file may be larger than the memory, an array of an .npz file may not.

    Args:
        path: the file.
        is_shuffled: put the images of each array into a random order, always the same one.

    Attributes:
        names: a name for each image, such as "train-0" for the first one of the array `train`.
        splits: "train", "test" or "valid" for each image.
        labels: the class of each image, or None if they have none.
        shape: (H, W, C) of the images.

    Raises:
        InputError: the file cannot be read, or its images or labels have another shape or type.
    """

    def __init__(self, path: Path, is_shuffled: bool = True) -> None:
        self.path, self.is_shuffled = path, is_shuffled
        self.names, self.splits = list[str](), list[str]()
        self._rows: dict[str, NDArray[np.int64]] = {}  # of each array, in their new order
        shapes, labels = set(), []
        with self._explained():
            loaded = np.load(path, mmap_mode="r", allow_pickle=False)
            is_archive = not isinstance(loaded, np.ndarray)
            for name, split, label_name in self._stored(set(loaded)) if is_archive else [("", "train", "")]:
                array = loaded[name] if is_archive else loaded
                shapes.add(self._channels_last(array, name).shape[1:])
                count = len(array)
                rows = np.random.RandomState(count).permutation(count) if is_shuffled else np.arange(count)
                self._rows[name] = rows
                self.names += [f"{name or path.stem}-{row}" for row in rows]
                self.splits += [split] * count
                if label_name and label_name in loaded:
                    labels.append(self._checked_labels(loaded[label_name], label_name, count)[rows])
        if len(shapes) > 1:
            raise self._refused(f"its images have the shapes {' and '.join(map(str, sorted(shapes)))}: give one shape")
        if labels and len(labels) < len(self._rows):
            raise self._refused("some of its arrays of images have labels and others not: give labels for all or none")
        self.shape: tuple[int, int, int] = shapes.pop()
        self.labels = np.concatenate(labels) if labels else None

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.names)

    def __str__(self) -> str:
        """Return the path."""
        return str(self.path)

    def levels(self) -> Levels:
        """Return the values that the images have.

        Raises:
            InputError: the file is damaged, or it has a value that is NaN or infinite.
        """
        with self._explained():
            parts = []
            for array in self._arrays():
                at_once = max(1, _READ // array[0].nbytes)
                for start in range(0, len(array), at_once):
                    parts.append(Levels.of(array[start : start + at_once]))
                    if array.dtype == np.uint8 and parts[-1].high > 1:
                        return parts[-1]  # bytes stay as they are
            return reduce(or_, parts)

    def values(self) -> Iterator[NDArray[Any]]:
        """Yield the images, (H, W, C).

        Raises:
            InputError: the file is damaged.
        """
        with self._explained():
            for rows, array in zip(self._rows.values(), self._arrays()):
                yield from (array[row] for row in rows)

    def _arrays(self) -> Iterator[NDArray[Any]]:
        loaded = np.load(self.path, mmap_mode="r", allow_pickle=False)
        for name in self._rows:
            yield self._channels_last(loaded[name] if name else loaded, name)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (InputError, MemoryError):
            raise
        except Exception as error:  # for damaged files numpy and zipfile raise exceptions of many types
            is_read = "has values" in str(error)  # by `Levels`, which says what is wrong
            damaged = f"it is damaged, or holds objects, which are never loaded ({brief(error)})"
            raise self._refused(str(error) if is_read else damaged) from None

    def _refused(self, reason: str) -> InputError:
        return InputError(f"{self.path} cannot be used: {reason}")

    def _stored(self, stored: set[str]) -> list[tuple[str, str, str]]:
        """Return the name of each array of images that an archive holds, its split, and the name of its labels."""
        for images, labels in _NAMES_OF_SPLITS:
            if images.format("train") in stored:
                found = [(images.format(name), split, labels.format(name)) for name, split in SPLITS.items()]
                return [one for one in found if one[0] in stored]
        for images, labels in _NAMES:
            if images in stored:
                return [(images, "train", labels)]
        if len(stored) == 1:
            return [(stored.pop(), "train", "")]
        found_names = ", ".join(sorted(stored)) or "no array"
        known = ", ".join([images for images, _ in _NAMES] + [name.format("train") for name, _ in _NAMES_OF_SPLITS])
        raise self._refused(f"it holds {found_names}: name its images {known} (test, valid), or leave one array in it")

    def _channels_last(self, array: NDArray[Any], name: str) -> NDArray[Any]:
        """Return images as (N, H, W, C)."""
        described = f"{name or 'it'} is {array.dtype} of shape {array.shape}"
        if array.dtype.kind not in "fbui":
            raise self._refused(f"{described}: give booleans, integers or floats")
        array = array[..., None] if array.ndim == 3 else array
        if array.ndim != 4 or array.size == 0:
            raise self._refused(f"{described}: give (N, H, W), (N, H, W, C) or (N, C, H, W)")
        _, second, _, last = array.shape
        if math.prod(array.shape[1:]) > _MAX_VALUES:
            raise self._refused(f"{described}: its images are too large")
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
