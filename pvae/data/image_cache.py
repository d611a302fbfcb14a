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
import os
import statistics
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pvae.core.errors import InputError, joined
from pvae.core.files import cache_dir, write_whole
from pvae.core.records import to_json
from pvae.core.terminal import progress_bar
from pvae.data.image_sources import ImageArrays, ImageFiles, ImageTransform, Shape

__all__ = ["ImageSource", "Images", "colours", "load_images"]

ImageSource = ImageFiles | ImageArrays

_LONGEST = 64  # pixels of the longer side to which larger images are reduced, unless a size is given

_DECODING = 12  # the version of the decoding, a part of the name of a cache file


class Images(NamedTuple):
    """Decoded images.

    Args:
        pixels: bytes (N, C, H, W), mapped into memory.
        names: the name of each image; the third image of a.tif is named "a.tif#3".
        splits: "train", "test" or "valid" of each image; [] if there are none.
        labels: the class of each image, or its attributes; [] if there are none.
        found: number, size and colour of the images, for example "8 images of 28 x 20 pixels, grey".
        note: what was changed or lost, or "".
        value_range: as in `ImageTransform`, never None.
    """

    pixels: NDArray[np.uint8]
    names: list[str]
    splits: list[str]
    labels: list[Any]
    found: str
    note: str
    value_range: tuple[float, ...]


def colours(channels: int) -> str:
    """Return how a message names a number of channels."""
    return {1: "grey", 3: "colour"}.get(channels, f"{channels} channels")


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
            return _cached(target, source)
        cache.mkdir(parents=True, exist_ok=True)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="PIL|torchvision")  # a file that cannot be used raises an error
            _build(source, transform, target, least)
        return _cached(target, source)
    except OSError as error:
        raise InputError(f"the image cache {cache} cannot be used ({error.strerror or error})") from None


def _cached(target: Path, source: ImageSource) -> Images:
    """Return the images of a cache file.

    Raises:
        OSError, ValueError: it is missing or damaged.
    """
    record = json.loads(target.with_suffix(".json").read_bytes())
    # Copy on write, because torch warns of read-only memory.
    pixels = np.memmap(target, np.uint8, "c", shape=tuple(record["shape"]))[:, : record["channels"]]
    names, kept = source.names, record["kept"]
    return Images(
        pixels,
        [names[index] + f"#{page}" * (page > 0) for index, page in kept],
        [source.splits[index] for index, _ in kept if source.splits],
        [source.labels[index] for index, _ in kept if source.labels],
        record["found"],
        joined(source.note, record["note"]),
        tuple(record["value_range"]),
    )


def _build(source: ImageSource, transform: ImageTransform, target: Path, least: int) -> None:
    """Decode the images into a cache file."""
    shapes, levels = source.survey()
    channels = max((shape[2] for shape in shapes), default=1)
    value_range = levels.value_range(transform.value_range) if levels else ()
    chosen = transform._replace(
        size=transform.size or _common_size(shapes), channels=transform.channels or channels, value_range=value_range
    )
    temporary = target.with_suffix(f".{os.getpid()}.tmp")
    # Of each image the index of its file or row, and its number in the file from 1 on; 0 in a file of one image.
    kept = list[tuple[int, int]]()
    has_colour, total = False, len(source.names)
    try:
        with temporary.open("wb") as file, progress_bar("decoding", total, "image", in_logs=True) as bar:
            for index, images in enumerate(source.decoded(chosen)):
                bar.update()
                for page, image in enumerate(images, start=1):
                    file.write(image.tobytes())
                    kept.append((index, page if len(images) > 1 else 0))
                    has_colour = has_colour or bool((image != image[:1]).any())
        if len(kept) < least:
            raise InputError(f"only {len(kept)} of {total} images can be used: give at least {least}")
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    is_grey = chosen.channels == 3 and not (has_colour or transform.channels)
    left_out, sizes = total - len({index for index, _ in kept}), {shape[:2] for shape in shapes}
    broken = f"{left_out} of {total} image files cannot be decoded and are left out" if left_out else ""
    size = "several sizes" if len(sizes) > 1 else "{} x {} pixels".format(*sizes.pop())
    record: dict[str, Any] = {
        "shape": (len(kept), chosen.channels, *(chosen.size or ())),
        "channels": 1 if is_grey else chosen.channels,
        "kept": kept,
        "found": f"{len(kept):,} images of {size}, {colours(1 if is_grey else channels)}",
        "note": joined(broken, levels.note(value_range) if levels else ""),
        "value_range": value_range,
    }
    write_whole(target.with_suffix(".json"), to_json(record).encode())


def _common_size(shapes: Sequence[Shape]) -> tuple[int, int]:
    """Return the median size of images, reduced to a longer side of at most 64 pixels."""
    height, width = (statistics.median_low(side) for side in [*zip(*shapes)][:2] or [(1,), (1,)])
    reduction = min(1.0, _LONGEST / max(height, width))
    return max(1, round(height * reduction)), max(1, round(width * reduction))
