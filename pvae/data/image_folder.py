"""Images of files as one memory-mapped array of bytes: decoded once, in parallel, into the cache folder.

The name of a cache file is a hash of the files (path, size, modification time) and of the transform. The file is
written under a temporary name and then renamed, so it is always complete. If two processes build the same cache at
once, both decode the images, and the second process replaces the file by an equal one.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
import statistics
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import BinaryIO, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageChops, ImageOps

from pvae.core.errors import InputError, brief
from pvae.core.files import open_bounded, read_bounded, write_whole
from pvae.core.records import to_json
from pvae.core.terminal import progress_bar
from pvae.data.folders import is_file, is_folder
from pvae.data.image_arrays import ImageArrays
from pvae.data.mapped import map_images

__all__ = ["SUFFIXES", "ImageTransform", "Images", "decode", "image_files", "load_images"]

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")

# The header of a file is checked before it is decoded; photographs have some tens of millions of pixels.
_MAX_PIXELS = 100_000_000
_MAX_BYTES = 2**28  # of an image file, which Pillow may read into memory at once, or of the list of decoded files

# Larger images are decoded one at a time, in one thread: each takes up to a gigabyte, and threads do not free it.
_LARGE_PIXELS = 2**22
_LARGE = ThreadPoolExecutor(1)

# Formats are recognised by content, not by suffix. Pillow would run an external program for PostScript.
_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM")

_LONGEST = 64  # pixels of the longer side to which larger images are reduced, unless a size is given

_GREY_MODES = ("1", "L", "LA", "I", "F", "I;16", "I;16L", "I;16B", "I;16N")  # of Pillow

_AT_ONCE = 1000  # files that are decoded before the first of them is written

_T = TypeVar("_T")

_DECODING = 5  # version of `decode`, a part of the name of a cache file


class ImageTransform(NamedTuple):
    """How an image file is converted to an image.

    As in a viewer, an image is turned as its EXIF orientation says, and transparent pixels are laid over white. It is
    then cropped and resized.

    Args:
        size: (height, width) of the result; None for the median size of the images, or, if that has a side of more
            than 64 pixels, for its reduction to a longer side of 64.
        crop: side of the square cut out of the middle; 0 for the whole image.
        channels: 1 for grey images, 3 for colour, 0 for 1 if all images are grey and 3 otherwise.
        skip_broken: leave out a file that cannot be decoded, in place of raising an error.
        keep_aspect: cut off what would be stretched, in equal parts of both ends, before resizing.
    """

    size: tuple[int, int] | None = None
    crop: int = 0
    channels: int = 0
    skip_broken: bool = False
    keep_aspect: bool = False


class Images(NamedTuple):
    """Decoded images.

    Args:
        pixels: bytes (N, C, H, W), mapped into memory.
        kept: the index of the file of each image, or of its place in `ImageArrays`.
        found: number, size, colour and bits of the images, in words.
    """

    pixels: NDArray[np.uint8]
    kept: list[int]
    found: str


def image_files(folder: Path) -> list[Path]:
    """Return the image files under a folder, sorted by path, without links to files outside of the folder.

    Raises:
        InputError: the folder does not exist, cannot be read, or contains no image file.
    """
    if not is_folder(folder):
        other = f"{folder} is a file: name a folder, or an .npy or .npz file"
        raise InputError(other if is_file(folder) else f"there is no file or folder {folder}")
    if not os.access(folder, os.R_OK | os.X_OK):
        raise InputError(f"the folder {folder} cannot be read: its permissions forbid it")
    root = folder.resolve()
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    files = [path for path in files if path.resolve().is_relative_to(root)]
    if not files:
        raise InputError(f"the folder {folder} holds no image file ({', '.join(SUFFIXES)})")
    return files


def load_images(files: Sequence[Path] | ImageArrays, transform: ImageTransform, cache: Path, least: int = 4) -> Images:
    """Return the images as a memory-mapped array, decoded now if they are not in the cache.

    Args:
        files: image files, or a file of arrays.
        transform: applied to each image.
        cache: the folder of cache files, created if missing.
        least: number of images that must be left; four are needed to train.

    Raises:
        InputError: a file cannot be decoded (unless `skip_broken`), or the cache cannot be written.
    """
    order = f" shuffled {files.is_shuffled}" if isinstance(files, ImageArrays) else ""
    digest = hashlib.sha256(f"{_DECODING} {transform!r}{order}".encode())
    try:
        for path in [files.path] if isinstance(files, ImageArrays) else files:
            status = path.stat()
            identity = f"{path.resolve()}\0{status.st_size}\0{status.st_mtime_ns}\0"
            digest.update(identity.encode("utf-8", "surrogateescape"))
        target = cache / f"{digest.hexdigest()[:32]}.npy"
        return _cached(target, transform) or _build(files, transform, target, least)
    except OSError as error:
        raise InputError(f"the image cache {cache} cannot be used ({error.strerror or error})") from None


def _cached(target: Path, transform: ImageTransform) -> Images | None:
    """Return the images of a cache file; None if it is missing or damaged."""
    try:
        record = json.loads(read_bounded(target.with_suffix(".json"), _MAX_BYTES))
        with open_bounded(target, sys.maxsize):  # np.load would wait for a pipe
            images = Images(map_images(target), list(record["kept"]), str(record["found"]))
        count, channels, *size = images.pixels.shape
    except (FileNotFoundError, ValueError, KeyError, TypeError, RecursionError, EOFError):
        return None
    is_whole = images.pixels.dtype == np.uint8 and count == len(images.kept)
    is_whole = is_whole and tuple(size) == (transform.size or tuple(size))
    return images if is_whole and channels in ((transform.channels,) if transform.channels else (1, 3)) else None


def _build(files: Sequence[Path] | ImageArrays, transform: ImageTransform, target: Path, least: int) -> Images:
    """Decode the files into a cache file (the images as .npy, the indices of their files as .json) and return both."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_suffix(f".{os.getpid()}.tmp")
    kept: list[int] = []
    # Threads, because Pillow decodes without holding the interpreter's lock.
    with warnings.catch_warnings(), ThreadPoolExecutor(os.cpu_count()) as pool:
        warnings.filterwarnings("ignore", module="PIL")  # a file that cannot be used raises an error
        if isinstance(files, ImageArrays):
            headers = [_Header(files.height, files.width, files.mode)]
        else:
            headers = [header for header in _in_parts(pool, _header, files) if header is not None]
        if transform.size is None:
            transform = transform._replace(size=_common_size(headers, transform.crop))
        are_grey = all(header.mode in _GREY_MODES for header in headers)
        assert transform.size is not None
        shape = (1 if transform.channels == 1 or (are_grey and not transform.channels) else 3, *transform.size)
        chosen = transform._replace(channels=shape[0])
        has_colour = transform.channels == 3
        images: Iterator[NDArray[np.uint8] | None]
        if isinstance(files, ImageArrays):
            images = _decoded_arrays(files, chosen)
        else:
            images = _in_parts(pool, partial(decode, transform=chosen), files)
        try:
            with temporary.open("wb") as file, progress_bar("decoding", len(files), "image", in_logs=True) as bar:
                _write_header(file, len(files), shape)
                for index, image in enumerate(images):
                    bar.update()
                    if image is not None:
                        file.write(image.tobytes())
                        kept.append(index)
                        has_colour = has_colour or bool((image != image[:1]).any())
                if len(kept) < least:
                    raise InputError(f"only {len(kept)} of {len(files)} images can be used: give at least {least}")
                _write_header(file, len(kept), shape)  # of the same length, because numpy pads it so that N can change
            if shape[0] == 3 and not has_colour:
                _keep_one_channel(temporary, (len(kept), 1, *transform.size))
            temporary.replace(target)
            found = _description(headers, len(files), are_grey or not (has_colour or transform.channels))
            write_whole(target.with_suffix(".json"), to_json({"kept": kept, "found": found}).encode())
            return Images(map_images(target), kept, found)
        finally:
            pool.shutdown(cancel_futures=True)
            temporary.unlink(missing_ok=True)


def _write_header(file: BinaryIO, count: int, shape: Sequence[int]) -> None:
    file.seek(0)
    header = {"descr": "|u1", "fortran_order": False, "shape": (count, *shape)}
    np.lib.format.write_array_header_1_0(file, header)


def _keep_one_channel(path: Path, shape: Sequence[int]) -> None:
    """Replace a file of colour images, all of them grey, by one of their first channel."""
    one_channel = path.with_suffix(".grey.tmp")
    try:
        with one_channel.open("wb") as file:
            _write_header(file, shape[0], shape[1:])
            for start in range(0, shape[0], _AT_ONCE):  # mapped anew, so that what was read leaves the memory
                file.write(np.load(path, mmap_mode="r")[start : start + _AT_ONCE, :1].tobytes())
        one_channel.replace(path)
    finally:
        one_channel.unlink(missing_ok=True)


def _in_parts(pool: ThreadPoolExecutor, function: Callable[[Path], _T], files: Sequence[Path]) -> Iterator[_T]:
    """Yield the results of `pool.map`, which would put all files and results into memory at once."""
    for start in range(0, len(files), _AT_ONCE):
        yield from pool.map(function, files[start : start + _AT_ONCE])


def _decoded_arrays(arrays: ImageArrays, transform: ImageTransform) -> Iterator[NDArray[np.uint8]]:
    """Yield the images of a file of arrays as `decode` returns them."""
    for image in arrays.images():
        try:
            yield _channels_first(_pixels(image, transform))
        except ValueError as error:
            raise InputError(f"{arrays.path} cannot be used: {error}") from None


class _Header(NamedTuple):
    """Height, width and Pillow's mode of an image file."""

    height: int
    width: int
    mode: str


def _header(path: Path) -> _Header | None:
    """Return the header of an image file, with its sides as a viewer shows it; None if it cannot be read."""
    try:
        with open_bounded(path, _MAX_BYTES, follow=True) as file, Image.open(file, formats=_FORMATS) as image:
            (width, height), mode, is_turned = image.size, image.mode, False
            with contextlib.suppress(Exception):  # damaged EXIF data are ignored, as in `_pixels`
                has_exif = image.format != "PNG" or "exif" in image.info  # Pillow decodes a PNG to search it for them
                is_turned = has_exif and image.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
            return _Header(width, height, mode) if is_turned else _Header(height, width, mode)
    except Exception:  # `decode` raises the error, or leaves the file out
        return None


def _common_size(headers: Sequence[_Header], crop: int) -> tuple[int, int]:
    """Return the size of images that are given none, as `ImageTransform` describes it."""
    sides = [(crop, crop)] if crop else [(header.height, header.width) for header in headers] or [(1, 1)]
    height, width = (statistics.median_low(side) for side in zip(*sides))
    reduction = min(1.0, _LONGEST / max(height, width))
    return max(1, round(height * reduction)), max(1, round(width * reduction))


def _description(headers: Sequence[_Header], num_files: int, are_grey: bool) -> str:
    sizes = sorted({(header.height, header.width) for header in headers}, key=math.prod)
    size = " to ".join(f"{height} x {width}" for height, width in dict.fromkeys((sizes[0], sizes[-1])))
    bits = ", some of 16 bits" if any(header.mode.startswith("I") for header in headers) else ""
    return f"{num_files:,} images of {size} pixels, {'grey' if are_grey else 'colour'}{bits}"


def decode(path: Path, transform: ImageTransform) -> NDArray[np.uint8] | None:
    """Return the image (C, H, W) of a file, or None if it cannot be decoded and `transform.skip_broken` is set.

    Raises:
        InputError: the file cannot be decoded.
    """
    try:
        with open_bounded(path, _MAX_BYTES, follow=True) as file, Image.open(file, formats=_FORMATS) as image:
            is_large = image.width * image.height > _LARGE_PIXELS
            pixels = _LARGE.submit(_pixels, image, transform).result() if is_large else _pixels(image, transform)
    except Exception as error:  # Pillow raises struct.error, KeyError and others for broken files
        if transform.skip_broken:
            return None
        reason = re.sub(r" (<_io|'/).*", "", brief(error)).removeprefix(f"{path} ")
        raise InputError(f"{path} cannot be used ({reason}): remove it, or give --skip-broken") from None
    return _channels_first(pixels)


def _channels_first(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def _pixels(image: Image.Image, transform: ImageTransform) -> NDArray[np.uint8]:
    """Return the transformed image, (H, W) or (H, W, C)."""
    if image.width * image.height > _MAX_PIXELS:
        raise ValueError(f"{image.width} x {image.height} pixels are too many")
    image.load()  # raises an error if more than the EXIF data is damaged
    has_16_bits = image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))
    try:
        ImageOps.exif_transpose(image, in_place=True)
    except MemoryError:
        raise
    except Exception:  # damaged EXIF data raise exceptions of many types; ignored, as by viewers
        pass
    if transform.crop:
        left, top = (image.width - transform.crop) // 2, (image.height - transform.crop) // 2
        if left < 0 or top < 0:
            raise ValueError(f"{image.width} x {image.height} pixels, fewer than --crop {transform.crop} cuts out")
        image = image.crop((left, top, left + transform.crop, top + transform.crop))
    if has_16_bits:
        values = np.asarray(image).astype(np.uint32)  # Pillow's convert would clip 16 bits at 255
        values[values == image.info.get("transparency")] = 2**16 - 1
        image = Image.fromarray((values // 257).clip(0, 255).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise ValueError("its pixels have neither 8 nor 16 bits: convert it first")
    shown = image.convert("L" if transform.channels == 1 else "RGB")
    if image.has_transparency_data:
        alpha = (image if "A" in image.getbands() else image.convert("RGBA")).getchannel("A")
        shown.paste("white", mask=ImageChops.invert(alpha))
    height, width = transform.size or (image.height, image.width)
    resize = ImageOps.fit if transform.keep_aspect else Image.Image.resize
    return np.asarray(resize(shown, (width, height), Image.Resampling.BILINEAR))
