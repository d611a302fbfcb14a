"""`ImageArrays`, the images and labels of an .npy or .npz file."""

from __future__ import annotations

from collections.abc import Iterator
from functools import reduce
from operator import or_
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pvae.core.errors import InputError
from pvae.data.arrays import read_arrays
from pvae.data.image_cache import Images, ImageTransform, Shape
from pvae.data.image_folder import converted
from pvae.data.levels import Levels

__all__ = ["ImageArrays"]

_MAX_CHANNELS = 16
_READ = 2**24  # bytes at a time


class ImageArrays:
    """The images and labels of an .npy or .npz file, as an `ImageSource`; `read_arrays` says how arrays are named.

    An array of images has the shape (N, H, W), (N, H, W, C) or (N, C, H, W), of at most 16 channels C. If the last
    side is 1, 3 or 4, it is C; otherwise the second one is C if it is 1, 3 or 4; otherwise C is the one of them that
    is at most 16. No channel is taken for opacity. The values are booleans, integers or floats; `Levels` describes how
    they become bytes.

    Args:
        path: the file.
        is_shuffled: put the images of each array into a random order, always the same one.

    Attributes:
        note: names the arrays that are not read, or is empty.

    Raises:
        InputError: the file cannot be read, or its images or labels have another shape or type.
    """

    def __init__(self, path: Path, is_shuffled: bool = True) -> None:
        self.paths, self.key = [path], f" shuffled {is_shuffled}"
        self.names, self.splits, self.labels = list[str](), list[str](), list[Any]()
        self._arrays: list[tuple[NDArray[Any], NDArray[np.int64]]] = []  # with the new order of their images
        arrays, self.note = read_arrays(path)
        for name, split, x, classes, own_names in arrays:
            images, count = _channels_last(x, f"{path} cannot be used: {name}"), len(x)
            order = np.random.RandomState(count).permutation(count) if is_shuffled else np.arange(count)
            self._arrays.append((images, order))
            self.names += [f"{name}-{row}" if own_names is None else str(own_names[row]) for row in order]
            self.splits += [split] * count
            self.labels += [] if classes is None else [*classes[order]]
        shapes = sorted({images.shape[1:] for images, _ in self._arrays})
        if len(shapes) > 1:
            found = " and ".join(map(str, shapes))
            raise InputError(f"{path} cannot be used: its images have the shapes {found}: give one shape")
        if 0 < len(self.labels) < len(self.names):
            which = "some of its arrays of images have labels, and some have not"
            raise InputError(f"{path} cannot be used: {which}: give labels for all or none")
        self.shape: Shape = shapes[0]

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.names)

    def survey(self) -> tuple[list[Shape], Levels | None]:
        """Return the shape of the images, and the values that they have.

        Raises:
            InputError: a value is NaN or infinite, or the arrays have several types.
        """
        parts = []
        for array, _ in self._arrays:
            at_once = max(1, _READ // array[0].nbytes)
            for start in range(0, len(array), at_once):
                parts.append(Levels.of(array[start : start + at_once]))
                if array.dtype == np.uint8 and parts[-1].high > 1:
                    return [self.shape], None  # bytes stay as they are
        return [self.shape], reduce(or_, parts)

    def described(self, images: Images) -> tuple[list[str], list[str], list[Any]]:
        """Return a name for each image, such as "train-0" for the first one of the array `train`, split and label."""
        return self.names, self.splits, self.labels

    def decoded(self, transform: ImageTransform) -> Iterator[list[NDArray[np.uint8]]]:
        """Yield each image (C, H, W) in turn, as the only one of its file."""
        for array, order in self._arrays:
            yield from ([converted(array[row], transform)] for row in order)


def _channels_last(array: NDArray[Any], name: str) -> NDArray[Any]:
    """Return images as (N, H, W, C)."""
    described = f"{name} is {array.dtype} of shape {array.shape}"
    array = array[..., None] if array.ndim == 3 else array
    if array.ndim != 4 or array.size == 0:
        raise InputError(f"{described}: give (N, H, W), (N, H, W, C) or (N, C, H, W)")
    _, second, _, last = array.shape
    if last in (1, 3, 4) or (second not in (1, 3, 4) and last <= _MAX_CHANNELS < second):
        return array
    if second in (1, 3, 4) or second <= _MAX_CHANNELS < last:
        return np.moveaxis(array, 1, 3)
    wanted = f"give (N, H, W, C) or (N, C, H, W), where one side only is at most {_MAX_CHANNELS}, or C is 1, 3 or 4"
    raise InputError(f"{described}, where the channels cannot be told from the rows and columns: {wanted}")
