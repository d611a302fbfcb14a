"""`ImageArrays`, the images and labels of an .npy or .npz file."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pvae.core.errors import InputError, brief
from pvae.data.folders import is_file

__all__ = ["SPLITS", "ImageArrays", "is_array_file"]

SPLITS = {"train": "train", "test": "test", "valid": "valid", "val": "valid"}  # by the name of an array or folder
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # of Pillow, by the number of channels
_READ = 2**24  # bytes at a time
_MAX_VALUES = 4 * 10**8  # of an image


def is_array_file(path: Path) -> bool:
    """Return whether there is a file of this name, and its suffix is .npy or .npz."""
    return path.suffix.lower() in (".npy", ".npz") and is_file(path)


class ImageArrays:
    """The images and labels of an .npy or .npz file, read without executing anything.

    An array of images has the shape (N, H, W), (N, H, W, C) or, if its last side cannot be a number of channels,
    (N, C, H, W). C is 1, 3 or 4; a fourth channel is the opacity. Its values are bytes; booleans; unsigned 16-bit
    integers, which are reduced to 8 bits; or floats in [0, 1].

    An .npz file holds one array; `images` and perhaps `labels`; or `train` and perhaps `test` and `valid` (or `val`),
    with `train_labels` and so on. Other arrays are not read. An .npy file may be larger than the memory, an array of
    an .npz file may not.

    Args:
        path: the file.
        is_shuffled: put the images of each array into a random order, always the same one.

    Attributes:
        names: a name for each image, such as "train-0" for the first one of the array `train`.
        splits: "train", "test" or "valid" for each image.
        labels: the class of each image, or None if they have none.
        height, width, mode: those of the images, with Pillow's name of the mode.

    Raises:
        InputError: the file cannot be read, or its images or labels have another shape or type.
    """

    def __init__(self, path: Path, is_shuffled: bool = True) -> None:
        self.path, self.is_shuffled = path, is_shuffled
        self.names, self.splits = list[str](), list[str]()
        self._rows: dict[str, NDArray[np.int64]] = {}  # of each array, in their new order
        shapes, labels = set(), []
        with self._explained():
            loaded = self._array("")
            for name in [""] if isinstance(loaded, np.ndarray) else self._names_of_images(set(loaded)):
                array = loaded[name] if name else loaded
                shapes.add(self._shape(array, name))
                count = len(array)
                rows = np.random.RandomState(count).permutation(count) if is_shuffled else np.arange(count)
                self._rows[name] = rows
                self.names += [f"{name or path.stem}-{row}" for row in rows]
                self.splits += [SPLITS.get(name, "train") if "train" in self._rows else "train"] * count
                label_name = "labels" if name == "images" else f"{name}_labels"
                if name and label_name in loaded:
                    labels.append(self._checked_labels(loaded[label_name], label_name, count)[rows])
        if len(shapes) > 1:
            raise self._refused(f"its images have the shapes {' and '.join(map(str, sorted(shapes)))}: give one shape")
        if labels and len(labels) < len(self._rows):
            raise self._refused("some of its arrays of images have labels and others not: give labels for all or none")
        self.height, self.width, channels = shapes.pop()
        self.mode = _MODES[channels]
        self.labels = np.concatenate(labels) if labels else None

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.names)

    def images(self) -> Iterator[Image.Image]:
        """Yield the images.

        Raises:
            InputError: the file is damaged, or its values are out of range.
        """
        with self._explained():
            for name, rows in self._rows.items():
                array, greatest = self._array(name), 0
                at_once = max(1, _READ // array[0].nbytes)
                for start in range(0, len(rows), at_once):
                    values = self._read(array, rows[start : start + at_once])
                    greatest = max(greatest, values.max())
                    yield from map(Image.fromarray, self._as_bytes(values, name))
                if array.dtype.kind == "u" and array.dtype.itemsize == 2 and greatest < 256:
                    raise self._refused(f"{_described(array, name)}, with no value above 255: save it as bytes (uint8)")

    def _array(self, name: str) -> Any:
        """Return an array of an .npz file; without a name, that of an .npy file, or all of an .npz file by name."""
        loaded = np.load(self.path, mmap_mode="r", allow_pickle=False)
        return loaded[name] if name else loaded

    def _read(self, array: NDArray[Any], rows: NDArray[np.int64]) -> NDArray[Any]:
        """Return rows of an array; of an .npy file without its mapping, whose pages would stay in memory."""
        if not isinstance(array, np.memmap) or not array.flags.c_contiguous:
            return array[rows]
        values = np.empty((len(rows), *array.shape[1:]), array.dtype)
        with self.path.open("rb") as file:
            for value, row in zip(values, rows.tolist()):
                file.seek(array.offset + row * value.nbytes)
                file.readinto(value)
        return values

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (InputError, MemoryError):
            raise
        except Exception as error:  # for damaged files numpy and zipfile raise exceptions of many types
            reason = f"it is damaged, or holds objects, which are never loaded ({brief(error)})"
            raise self._refused(reason) from None

    def _refused(self, reason: str) -> InputError:
        return InputError(f"{self.path} cannot be used: {reason}")

    def _names_of_images(self, stored: set[str]) -> list[str]:
        """Return the names of those of the stored arrays that hold images."""
        if "train" in stored:
            return [name for name in SPLITS if name in stored]
        if "images" in stored or len(stored) == 1:
            return ["images"] if "images" in stored else list(stored)
        found = ", ".join(sorted(stored)) or "no array"
        layout = "one array, images and labels, or train, valid and test with train_labels, valid_labels, test_labels"
        raise self._refused(f"it holds {found}: name its arrays so that it holds {layout}")

    def _shape(self, array: NDArray[Any], name: str) -> tuple[int, int, int]:
        """Return the shape (H, W, C) of the images of an array."""
        described = _described(array, name)
        if array.dtype.kind not in "fbu" or (array.dtype.kind == "u" and array.dtype.itemsize > 2):
            types = "bytes (uint8), booleans, 16-bit integers (uint16) or floats in [0, 1]"
            raise self._refused(f"{described}: give {types}")
        _, *shape = array.shape if array.ndim != 3 else (*array.shape, 1)
        if len(shape) != 3 or array.size == 0 or not {shape[0], shape[2]} & _MODES.keys():
            raise self._refused(f"{described}: give (N, H, W), (N, H, W, C) or (N, C, H, W), with 1, 3 or 4 channels C")
        if math.prod(shape) > _MAX_VALUES:
            raise self._refused(f"{described}: its images are too large")
        height, width, channels = shape if shape[2] in _MODES else (*shape[1:], shape[0])
        return height, width, channels

    def _as_bytes(self, values: NDArray[Any], name: str) -> NDArray[np.uint8]:
        """Return images as Pillow takes them: (N, H, W) or (N, H, W, C)."""
        if values.ndim == 4 and values.shape[3] not in _MODES:
            values = np.moveaxis(values, 1, 3)
        if values.dtype.kind == "u":
            values = values // 257 if values.dtype.itemsize == 2 else values
        elif 0 <= values.min() <= values.max() <= 1:
            values = np.rint(values * np.float32(255))
        else:
            raise self._refused(
                f"{_described(values, name)}, with NaN or values outside of [0, 1]: remove or rescale them"
            )
        return np.ascontiguousarray(values[..., 0] if values.shape[3:] == (1,) else values, np.uint8)

    def _checked_labels(self, labels: NDArray[Any], name: str, count: int) -> NDArray[Any]:
        if labels.shape != (count,) or labels.dtype.kind not in "iubU":
            wanted = f"give {count} whole numbers or texts, one for each image"
            raise self._refused(f"{_described(labels, name)}: {wanted}")
        return labels


def _described(array: NDArray[Any], name: str) -> str:
    return f"{name or 'it'} is {array.dtype} of shape {array.shape}"
