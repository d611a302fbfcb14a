"""`ImageArrays`, the images and labels of an .npy or .npz file."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pvae.core.errors import InputError, brief
from pvae.data.folders import is_file

__all__ = ["ImageArrays", "is_array_file"]

_SPLITS = {"train": "train", "test": "test", "valid": "valid", "val": "valid"}  # by the name of an array
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # of Pillow, by the number of channels
_READ = 2**24  # bytes at a time
_MAX_VALUES = 4 * 10**8  # of an image


def is_array_file(path: Path) -> bool:
    """Return whether there is a file of this name, and its suffix is .npy or .npz."""
    return path.suffix.lower() in (".npy", ".npz") and is_file(path)


class ImageArrays:
    """The images and labels of an .npy or .npz file, which is read in parts and executes nothing.

    An array of images has the shape (N, H, W), (N, H, W, C) or, if its last side cannot be a number of channels,
    (N, C, H, W). C is 1, 3 or 4; a fourth channel is the opacity. Its values are bytes; booleans; unsigned 16-bit
    integers, which are reduced to 8 bits; or floats in [0, 1].

    An .npz file holds one array; `images` and perhaps `labels`; or `train` and perhaps `test` and `valid` (or `val`),
    with `train_labels` and so on. Other arrays are not read.

    Args:
        path: the file.
        is_shuffled: put the images of each array into a random order, always the same one.

    Attributes:
        names: a name for each image, such as "train-0", in the order of the file.
        splits: "train", "test" or "valid" for each image, in the order of the file.
        order: the numbers of the images in the file, in their new order.
        height, width, mode: those of the images, with Pillow's name of the mode.

    Raises:
        InputError: the file cannot be read, or its images have another shape or type.
    """

    def __init__(self, path: Path, is_shuffled: bool = True) -> None:
        self.path, self.is_shuffled = path, is_shuffled
        self.names, self.splits, self.order = list[str](), list[str](), list[int]()
        self._stored = {""}  # the name of the array in an .npy file
        self._counts: dict[str, int] = {}  # number of images of each array
        shapes: set[tuple[int, int, int]] = set()
        with self._explained():
            if path.suffix.lower() == ".npz":
                with zipfile.ZipFile(path) as archive:
                    self._stored = {name.removesuffix(".npy") for name in archive.namelist()}
            for name in _names_of_images(self._stored):
                with self._array(name) as array:
                    count, shapes = len(array), shapes | {array.image_shape}
                rows = np.random.RandomState(count).permutation(count) if is_shuffled else np.arange(count)
                self.order += (rows + len(self.names)).tolist()
                self.names += [f"{name or path.stem}-{number}" for number in range(count)]
                self.splits += [_SPLITS.get(name, "train") if "train" in self._stored else "train"] * count
                self._counts[name] = count
            if len(shapes) > 1:
                raise ValueError(f"its images have the shapes {' and '.join(map(str, sorted(shapes)))}: give one shape")
        self.height, self.width, channels = shapes.pop()
        self.mode = _MODES[channels]

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.names)

    def images(self) -> Iterator[Image.Image]:
        """Yield the images, in the order of the file.

        Raises:
            InputError: the file is damaged, or its values are out of range.
        """
        with self._explained():
            for name in self._counts:
                with self._array(name) as array:
                    yield from array.as_images()

    def labels(self) -> NDArray[Any] | None:
        """Return the class of each image, in the order of the file, or None if they have none.

        Raises:
            InputError: they are not one number or text for each image.
        """
        parts = []
        with self._explained():
            for images, count in self._counts.items():
                name = "labels" if images == "images" else f"{images}_labels"
                if name not in self._stored:
                    return None
                with self._array(name) as array:
                    if array.shape != (count,) or array.dtype.kind not in "iubU":
                        raise ValueError(f"{array}: give {count} whole numbers or texts, one for each image")
                    parts.append(array.read(count))
        return np.concatenate(parts)

    @contextmanager
    def _array(self, name: str) -> Iterator[_Array]:
        """Open an array of the file."""
        if not name:
            with self.path.open("rb") as file:
                yield _Array(file, "it")
        else:
            with zipfile.ZipFile(self.path) as archive, archive.open(f"{name}.npy") as file:
                yield _Array(file, name)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # for damaged files numpy and zipfile raise exceptions of many types
            reason = f"{error}" if isinstance(error, ValueError) else f"it is damaged ({brief(error)})"
            raise InputError(f"{self.path} cannot be used: {reason}") from None


def _names_of_images(stored: set[str]) -> list[str]:
    """Return the names of those of the stored arrays that hold images."""
    if "train" in stored:
        return [name for name in _SPLITS if name in stored]
    if "images" in stored or len(stored) == 1:
        return ["images"] if "images" in stored else list(stored)
    found = ", ".join(sorted(stored)) or "no array"
    layout = "one array, images and labels, or train, valid and test with train_labels, valid_labels and test_labels"
    raise ValueError(f"it holds {found}: name its arrays so that it holds {layout}")


class _Array:
    """An array in a file in numpy's format, from which rows are read.

    Raises:
        ValueError: the file is not in this format, or its values are objects.
    """

    def __init__(self, file: IO[bytes], name: str) -> None:
        self.file, self.name = file, name
        is_old = np.lib.format.read_magic(file) == (1, 0)
        read = np.lib.format.read_array_header_1_0 if is_old else np.lib.format.read_array_header_2_0
        self.shape, is_fortran, self.dtype = read(file)
        self._native = self.dtype.newbyteorder("=")
        if self.dtype.hasobject:
            raise ValueError(f"{self}: give an array of numbers, since objects are never loaded")
        if is_fortran and len(self.shape) > 1:
            raise ValueError(f"{self} in Fortran's order: save numpy.ascontiguousarray of it")

    def __str__(self) -> str:
        return f"{self.name} is {self.dtype} of shape {self.shape}"

    def __len__(self) -> int:
        return self.shape[0]

    def read(self, count: int) -> NDArray[Any]:
        """Return the next rows."""
        shape = (count, *self.shape[1:])
        num_bytes = math.prod(shape) * self.dtype.itemsize
        content = self.file.read(num_bytes)
        if len(content) < num_bytes:
            raise ValueError(f"{self}, but the file is cut short")
        return np.frombuffer(content, self.dtype).reshape(shape)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """The shape (H, W, C) of an image.

        Raises:
            ValueError: these are no images.
        """
        if self.dtype.kind != "f" and self._native not in (np.bool_, np.uint8, np.uint16):
            raise ValueError(f"{self}: give bytes (uint8), booleans, 16-bit integers (uint16) or floats in [0, 1]")
        _, *shape = self.shape if len(self.shape) != 3 else (*self.shape, 1)
        if len(shape) != 3 or min(self.shape) < 1 or not {shape[0], shape[2]} & _MODES.keys():
            raise ValueError(f"{self}: give (N, H, W), (N, H, W, C) or (N, C, H, W), with 1, 3 or 4 channels C")
        if math.prod(shape) > _MAX_VALUES:
            raise ValueError(f"{self}: its images are too large")
        height, width, channels = shape if shape[2] in _MODES else (*shape[1:], shape[0])
        return height, width, channels

    def as_images(self) -> Iterator[Image.Image]:
        """Yield the images.

        Raises:
            ValueError: values are out of range, or the file is cut short.
        """
        height, width, channels = self.image_shape
        at_once = max(1, _READ // (height * width * channels * self.dtype.itemsize))
        greatest = 0.0
        for start in range(0, len(self), at_once):
            values = self.read(min(at_once, len(self) - start))
            greatest = max(greatest, values.max())
            if values.ndim == 4 and values.shape[3] not in _MODES:
                values = np.moveaxis(values, 1, 3)
            if self._native == np.uint16:
                values = values // 257
            elif self.dtype != np.uint8:
                if not 0 <= values.min() <= values.max() <= 1:
                    raise ValueError(f"{self}, with NaN or values outside of [0, 1]: remove or rescale them")
                values = np.rint(values * np.float32(255))
            shape = (-1, height, width) if channels == 1 else (-1, height, width, channels)
            yield from map(Image.fromarray, np.ascontiguousarray(values, np.uint8).reshape(shape))
        if self._native == np.uint16 and greatest < 256:
            raise ValueError(f"{self}, with no value above 255: save it as bytes (uint8)")
