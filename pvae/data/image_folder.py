"""Image files as one memory-mapped array of bytes: decoded once, in parallel, into the cache folder.

The name of a cache file is a hash of the image files (path, size, modification time) and of the transform. The file is
written under a temporary name and then renamed, so it is always complete. If two processes build the same cache at
once, both decode the images, and the second process replaces the file by an equal one.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageOps

from pvae.core.errors import InputError, brief
from pvae.core.files import open_bounded, read_bounded, write_whole
from pvae.core.records import to_json
from pvae.core.terminal import progress_bar
from pvae.data.folders import is_folder

__all__ = ["SUFFIXES", "ImageTransform", "decode", "image_files", "load_images"]

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")

# The header of a file is checked before it is decoded; photographs have some tens of millions of pixels.
_MAX_PIXELS = 100_000_000
_MAX_BYTES = 2**28  # of an image file, which Pillow may read into memory at once, or of the list of decoded files

# Larger images are decoded one at a time, in one thread: each takes up to a gigabyte, and threads do not free it.
_LARGE_PIXELS = 2**22
_LARGE = ThreadPoolExecutor(1)

# Formats are recognised by content, not by suffix. Pillow would run an external program for PostScript.
_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM")

_DECODING = 3  # version of `decode`, a part of the name of a cache file


class ImageTransform(NamedTuple):
    """How an image file is converted to an image.

    As in a viewer, an image is turned as its EXIF orientation says, and transparent pixels are laid over white. It is
    then cropped and resized.

    Args:
        size: height and width of the result.
        crop: side of the square cut out of the middle; 0 for the whole image.
        grey: one channel in place of three.
        skip_broken: leave out a file that cannot be decoded, in place of raising an error.
    """

    size: int = 64
    crop: int = 0
    grey: bool = False
    skip_broken: bool = False


def image_files(folder: Path) -> list[Path]:
    """Return the image files under a folder, sorted by path, without links to files outside of the folder.

    Raises:
        InputError: the folder does not exist, cannot be read, or contains no image file.
    """
    if not is_folder(folder):
        raise InputError(f"there is no folder {folder}")
    if not os.access(folder, os.R_OK | os.X_OK):
        raise InputError(f"the folder {folder} cannot be read: its permissions forbid it")
    root = folder.resolve()
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    files = [path for path in files if path.resolve().is_relative_to(root)]
    if not files:
        raise InputError(f"the folder {folder} holds no image file ({', '.join(SUFFIXES)})")
    return files


def load_images(files: Sequence[Path], transform: ImageTransform, cache: Path) -> tuple[NDArray[np.uint8], list[int]]:
    """Return the images as a memory-mapped array, decoded now if they are not in the cache.

    Args:
        files: image files.
        transform: applied to each.
        cache: the folder of cache files, created if missing.

    Returns:
        Bytes (N, C, H, W), and the index of the file of each of the N images.

    Raises:
        InputError: a file cannot be decoded (unless `skip_broken`), or the cache cannot be written.
    """
    digest = hashlib.sha256(f"{_DECODING} {transform!r}".encode())
    try:
        for path in files:
            status = path.stat()
            identity = f"{path.resolve()}\0{status.st_size}\0{status.st_mtime_ns}\0"
            digest.update(identity.encode("utf-8", "surrogateescape"))
        target = cache / f"{digest.hexdigest()[:32]}.npy"
        return _cached(target, transform) or _build(files, transform, target)
    except OSError as error:
        raise InputError(f"the image cache {cache} cannot be used ({error.strerror or error})") from None


def _cached(target: Path, transform: ImageTransform) -> tuple[NDArray[np.uint8], list[int]] | None:
    """Return the images of a cache file and the indices of their files; None if it is missing or damaged."""
    try:
        kept: list[int] = json.loads(read_bounded(target.with_suffix(".json"), _MAX_BYTES))["kept"]
        with open_bounded(target, sys.maxsize):  # np.load would wait for a pipe
            images = _mapped(target)
        shape = (len(kept), 1 if transform.grey else 3, transform.size, transform.size)
    except (FileNotFoundError, ValueError, KeyError, TypeError, RecursionError, EOFError):
        return None
    return (images, kept) if images.dtype == np.uint8 and images.shape == shape else None


def _mapped(target: Path) -> NDArray[np.uint8]:
    # Copy on write, because torch warns of read-only memory; the file itself is never changed.
    return np.load(target, mmap_mode="c")


def _build(files: Sequence[Path], transform: ImageTransform, target: Path) -> tuple[NDArray[np.uint8], list[int]]:
    """Decode the files into a cache file (the images as .npy, the indices of their files as .json) and return both."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shape = (1 if transform.grey else 3, transform.size, transform.size)
    header = {"descr": "|u1", "fortran_order": False}
    temporary = target.with_suffix(f".{os.getpid()}.tmp")
    kept: list[int] = []
    # Threads, because Pillow decodes without holding the interpreter's lock.
    with warnings.catch_warnings(), ThreadPoolExecutor(os.cpu_count()) as pool:
        warnings.filterwarnings("ignore", module="PIL")  # a file that cannot be used raises an error
        decoded = pool.map(lambda path: decode(path, transform), files)
        try:
            with temporary.open("wb") as file, progress_bar("decoding", len(files), "image") as bar:
                np.lib.format.write_array_header_1_0(file, {**header, "shape": (len(files), *shape)})
                for index, image in enumerate(decoded):
                    bar.update()
                    if image is not None:
                        file.write(image.tobytes())
                        kept.append(index)
                if len(kept) < 4:
                    raise InputError(
                        f"only {len(kept)} of {len(files)} image files can be decoded: training needs at least four"
                    )
                file.seek(0)
                # The header keeps its length, because numpy pads it so that N can change.
                np.lib.format.write_array_header_1_0(file, {**header, "shape": (len(kept), *shape)})
            temporary.replace(target)
            write_whole(target.with_suffix(".json"), to_json({"kept": kept}).encode())
            return _mapped(target), kept
        finally:
            pool.shutdown(cancel_futures=True)
            temporary.unlink(missing_ok=True)


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
    return pixels[None] if transform.grey else pixels.transpose(2, 0, 1)


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
    shown = image.convert("L" if transform.grey else "RGB")
    if image.has_transparency_data:
        alpha = (image if "A" in image.getbands() else image.convert("RGBA")).getchannel("A")
        shown.paste("white", mask=ImageChops.invert(alpha))
    return np.asarray(shown.resize((transform.size, transform.size), Image.Resampling.BILINEAR))
