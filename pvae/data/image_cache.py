"""Images as one memory-mapped array of bytes: decoded once, into the cache folder.

The name of a cache file is a hash of the files (path, size, modification time) and of the transform. The file is
written under a temporary name and then renamed, so it is always complete. If two processes build the same cache at
once, both decode the images, and the second process replaces the file by an equal one. A second file, .json, has the
other fields of `Images`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import statistics
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from pvae.core.errors import InputError, joined
from pvae.core.files import cache_dir, write_whole
from pvae.core.records import to_json
from pvae.core.terminal import progress_bar
from pvae.data.levels import Levels

__all__ = ["COLOURS", "ImageSource", "ImageTransform", "Images", "Shape", "load_images"]

COLOURS = {1: "grey", 3: "colour"}  # by the number of channels

_LONGEST = 64  # pixels of the longer side to which larger images are reduced, unless a size is given

_DECODING = 10  # the version of the decoding, a part of the name of a cache file


class ImageTransform(NamedTuple):
    """How an image file is converted to an image.

    As in a viewer, an image is turned as its EXIF orientation says, and transparent pixels are laid over white. It is
    then resized.

    Args:
        size: (height, width) of the result; None for the median size of the images, or, if that has a side of more
            than 64 pixels, for its reduction to a longer side of 64.
        channels: 1 for grey images, 3 for colour; 0 for 1 if all images are grey, and otherwise for the number of
            channels that they have.
        skip_broken: leave out a file that cannot be decoded, in place of raising an error.
        keep_aspect: cut off what would be stretched, in equal parts of both ends, before resizing.
        value_range: the values that become the levels 0 and 255; () for those of their type; None to choose it by the
            values of all images, as in `Levels.value_range`.
    """

    size: tuple[int, int] | None = None
    channels: int = 0
    skip_broken: bool = False
    keep_aspect: bool = False
    value_range: tuple[float, ...] | None = None


class Images(NamedTuple):
    """Decoded images.

    Args:
        pixels: bytes (N, C, H, W), mapped into memory.
        kept: for each image the index of its file, or of the image in `ImageArrays`.
        pages: the number of each image in its file, from 1 on; 0 in a file of one image.
        found: number, size, colour and bits of the images, for example "8 images of 28 x 20 pixels, grey".
        note: what was changed or lost, or "".
        value_range: as in `ImageTransform`, never None.
        first: for each image the index of the first image that is equal to it.
    """

    pixels: NDArray[np.uint8]
    kept: list[int]
    pages: list[int]
    found: str
    note: str
    value_range: tuple[float, ...]
    first: list[int]


Shape = tuple[int, int, int]  # height, width, channels


class ImageSource(Protocol):
    """Where images come from: `ImageFiles` or `ImageArrays`.

    Attributes:
        paths: the files, on which the name of the cache file depends.
        key: what else the name of the cache file depends on.
        note: what is left out, or "".
    """

    @property
    def paths(self) -> Sequence[Path]: ...  # noqa: D102

    key: str
    note: str

    def __len__(self) -> int:
        """Return the number of files, or of the images in arrays."""

    def survey(self) -> tuple[Sequence[Shape], Levels | None]:
        """Return the shapes of all images, and their levels; None if they are bytes that stay as they are."""

    def decoded(self, transform: ImageTransform) -> Iterator[list[NDArray[np.uint8]]]:
        """Yield the images (C, H, W) of each file in turn."""

    def described(self, images: Images) -> tuple[list[str], list[str], list[Any]]:
        """Return the name of each decoded image, its split, and its label; [] if there are no splits or labels."""


def load_images(source: ImageSource, transform: ImageTransform, least: int = 4) -> Images:
    """Return the images as a memory-mapped array, decoded now if they are not in the cache.

    Args:
        source: the images.
        transform: applied to each image.
        least: number of images that must be left; four are needed to train.

    Raises:
        InputError: a file cannot be decoded (unless `skip_broken`), or the cache cannot be written.
    """
    cache = cache_dir() / "images"
    digest = hashlib.sha256(f"{_DECODING} {transform!r}{source.key}".encode())
    try:
        for path in source.paths:
            status = path.stat()
            identity = f"{path.resolve()}\0{status.st_size}\0{status.st_mtime_ns}\0"
            digest.update(identity.encode("utf-8", "surrogateescape"))
        target = cache / f"{digest.hexdigest()[:32]}.bytes"
        with contextlib.suppress(OSError, ValueError):  # it is missing or damaged
            return _cached(target)
        cache.mkdir(parents=True, exist_ok=True)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="PIL|torchvision")  # a file that cannot be used raises an error
            _build(source, transform, target, least)
        return _cached(target)
    except OSError as error:
        raise InputError(f"the image cache {cache} cannot be used ({error.strerror or error})") from None


def _cached(target: Path) -> Images:
    """Return the images of a cache file.

    Raises:
        OSError, ValueError: it is missing or damaged.
    """
    record = json.loads(target.with_suffix(".json").read_bytes())
    # Copy on write, because torch warns of read-only memory.
    pixels = np.memmap(target, np.uint8, "c", shape=tuple(record.pop("shape")))
    record["value_range"] = tuple(record["value_range"])
    return Images(pixels[:, : record.pop("channels")], **record)


def _build(source: ImageSource, transform: ImageTransform, target: Path, least: int) -> None:
    """Decode the images into a cache file."""
    shapes, levels = source.survey()
    channels = max((shape[2] for shape in shapes), default=1)
    value_range = levels.value_range(transform.value_range) if levels else ()
    chosen = transform._replace(
        size=transform.size or _common_size(shapes), channels=transform.channels or channels, value_range=value_range
    )
    kept, pages, first, has_colour = _written(source.decoded(chosen), target, len(source), least)
    is_grey = chosen.channels == 3 and not (has_colour or transform.channels)
    left_out = len(source) - len(set(kept))
    broken = f"{left_out} of {len(source)} image files cannot be decoded and are left out" if left_out else ""
    record: dict[str, Any] = {
        "shape": (len(kept), chosen.channels, *(chosen.size or ())),
        "channels": 1 if is_grey else chosen.channels,
        "kept": kept,
        "pages": pages,
        "found": f"{len(kept):,} images of {_described(shapes, 1 if is_grey else channels, levels)}",
        "note": joined(broken, levels.note(value_range) if levels else ""),
        "value_range": value_range,
        "first": first,
    }
    write_whole(target.with_suffix(".json"), to_json(record).encode())


def _written(
    decoded: Iterator[list[NDArray[np.uint8]]], target: Path, total: int, least: int
) -> tuple[list[int], list[int], list[int], bool]:
    """Write the images of each file; return `kept`, `pages` and `first` of `Images`, and whether one has colours."""
    temporary = target.with_suffix(f".{os.getpid()}.tmp")
    kept, pages, first_of, first, has_colour = list[int](), list[int](), dict[int, int](), list[int](), False
    try:
        with temporary.open("wb") as file, progress_bar("decoding", total, "image", in_logs=True) as bar:
            for index, images in enumerate(decoded):
                bar.update()
                for page, image in enumerate(images, start=1):
                    content = image.tobytes()
                    file.write(content)
                    first.append(first_of.setdefault(hash(content), len(kept)))
                    kept.append(index)
                    pages.append(page if len(images) > 1 else 0)
                    has_colour = has_colour or bool((image != image[:1]).any())
        if len(kept) < least:
            raise InputError(f"only {len(kept)} of {total} images can be used: give at least {least}")
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    return kept, pages, first, has_colour


def _described(shapes: Sequence[Shape], channels: int, levels: Levels | None) -> str:
    """Return the sizes, colours and bits of images, for example "28 x 20 to 64 x 64 pixels, grey"."""
    sizes = sorted({shape[:2] for shape in shapes}, key=math.prod)
    size = " to ".join(f"{height} x {width}" for height, width in dict.fromkeys((sizes[0], sizes[-1])))
    is_deep = levels is not None and levels.kind not in ("b1", "u1")
    return f"{size} pixels, {COLOURS.get(channels, f'{channels} channels')}" + ", some of more than 8 bits" * is_deep


def _common_size(shapes: Sequence[Shape]) -> tuple[int, int]:
    """Return the median size of images, reduced to a longer side of at most 64 pixels."""
    height, width = (statistics.median_low(side) for side in [*zip(*shapes)][:2] or [(1,), (1,)])
    reduction = min(1.0, _LONGEST / max(height, width))
    return max(1, round(height * reduction)), max(1, round(width * reduction))
