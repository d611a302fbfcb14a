"""Image files as one memory-mapped array of bytes: decoded once, in parallel, into the cache folder.

The name of a cache file is a hash of the image files (path, size, modification time) and the transform. It is
written under a temporary name and then renamed, so it is always whole. Two processes that build the same cache at once
both decode, and the second replaces the first one's file by an equal one.
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
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageOps
from tqdm import tqdm

from pvae.core.errors import InputError, brief
from pvae.core.files import open_bounded, read_bounded, write_whole
from pvae.core.records import to_json
from pvae.data.folders import is_folder

__all__ = ["SUFFIXES", "ImageTransform", "decode", "image_files", "load_images"]

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")

# A photograph has some tens of millions of pixels; a file whose header gives more is refused before it is decoded.
_MAX_PIXELS = 100_000_000
_MAX_BYTES = 2**28  # Pillow reads files of some formats whole before it knows the number of pixels
_MAX_KEPT_BYTES = 2**28  # of the list beside a cache file

# Larger images are decoded one at a time, in one thread: each takes up to a gigabyte, and a thread keeps its memory.
_LARGE_PIXELS, _LARGE_BYTES = 2**22, 2**23
_LARGE = ThreadPoolExecutor(1)

# By content, not by suffix. Pillow would hand PostScript, one of its other formats, to an external program.
_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM")

_DECODING = 3  # version of what `decode` returns; a new one makes old cache files unused


class ImageTransform(NamedTuple):
    """How an image file becomes an image: upright, its middle cut out, resized, in colour or grey.

    As in a viewer, an image is turned as its EXIF orientation says, and transparent pixels are laid over white.

    Args:
        size: height and width of the result.
        crop: side of the square cut out of the middle first; 0 for the whole image.
        grey: one channel in place of three.
        skip_broken: leave out a file that cannot be decoded, in place of raising an error that names it.
    """

    size: int = 64
    crop: int = 0
    grey: bool = False
    skip_broken: bool = False


def image_files(folder: Path) -> list[Path]:
    """Return the image files under a folder, sorted by path; links to files outside of it are left out.

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
    """Return the images as a memory-mapped array, and decode them first if they are not in the cache.

    Args:
        files: image files.
        transform: applied to each.
        cache: the folder of cache files; made if missing.

    Returns:
        Bytes (N, C, H, W), and for each of the N images the index of its file.

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
        cached = _cached(target, transform)
        if cached is None:
            cache.mkdir(parents=True, exist_ok=True)
            _build(files, transform, target)
            cached = _cached(target, transform)
    except OSError as error:
        raise InputError(f"the image cache {cache} cannot be used ({error.strerror or error})") from None
    if cached is None:
        raise InputError(f"the image cache {cache} cannot be read back: remove the folder and try again")
    return cached


def _cached(target: Path, transform: ImageTransform) -> tuple[NDArray[np.uint8], list[int]] | None:
    """Return the images of a cache file and the indices of their files; None if it is missing or damaged."""
    try:
        kept: list[int] = json.loads(read_bounded(target.with_suffix(".json"), _MAX_KEPT_BYTES))["kept"]
        with open_bounded(target, sys.maxsize):  # np.load would wait for a pipe
            # Copy on write, because torch warns of read-only memory; the file itself is never changed.
            images: NDArray[np.uint8] = np.load(target, mmap_mode="c")
        shape = (len(kept), 1 if transform.grey else 3, transform.size, transform.size)
    except (FileNotFoundError, ValueError, KeyError, TypeError, RecursionError, EOFError):
        return None
    return (images, kept) if images.dtype == np.uint8 and images.shape == shape else None


def _build(files: Sequence[Path], transform: ImageTransform, target: Path) -> None:
    """Decode the files into a cache file: the images as .npy, and the indices of their files as .json."""
    shape = (1 if transform.grey else 3, transform.size, transform.size)
    header = {"descr": "|u1", "fortran_order": False}
    temporary = target.with_suffix(f".{os.getpid()}.tmp")
    kept: list[int] = []
    # Threads, because Pillow decodes without holding the interpreter's lock.
    with warnings.catch_warnings(), ThreadPoolExecutor(os.cpu_count()) as pool:
        warnings.filterwarnings("ignore", module="PIL")  # an unusable file raises an error, which names it
        decoded = pool.map(lambda path: decode(path, transform), files)
        try:
            with temporary.open("wb") as file:
                np.lib.format.write_array_header_1_0(file, {**header, "shape": (len(files), *shape)})
                silent = None if sys.stderr is not None else True
                bar = tqdm(decoded, total=len(files), desc="decoding", unit="image", disable=silent)
                for index, image in enumerate(bar):
                    if image is not None:
                        file.write(image.tobytes())
                        kept.append(index)
                if len(kept) < 4:
                    raise InputError(
                        f"only {len(kept)} of {len(files)} image files can be decoded: training needs at least four"
                    )
                file.seek(0)
                # The same length as before, because numpy pads the header so that N can change.
                np.lib.format.write_array_header_1_0(file, {**header, "shape": (len(kept), *shape)})
            temporary.replace(target)
            write_whole(target.with_suffix(".json"), to_json({"kept": kept}).encode())
        finally:
            pool.shutdown(cancel_futures=True)
            temporary.unlink(missing_ok=True)


def decode(path: Path, transform: ImageTransform) -> NDArray[np.uint8] | None:
    """Return the image (C, H, W) of a file; None if it is broken and `transform.skip_broken` is set.

    Raises:
        InputError: the file cannot be decoded.
    """
    try:
        with open_bounded(path, _MAX_BYTES, follow=True) as file:
            is_large = os.fstat(file.fileno()).st_size > _LARGE_BYTES
            if not is_large:
                with Image.open(file, formats=_FORMATS) as header:
                    is_large = header.width * header.height > _LARGE_PIXELS
            pixels = _LARGE.submit(_pixels, file, transform).result() if is_large else _pixels(file, transform)
    except Exception as error:  # for broken files Pillow raises struct.error, KeyError and others
        if transform.skip_broken:
            return None
        reason = re.sub(r" (<_io|'/).*", "", brief(error)).removeprefix(f"{path} ")
        raise InputError(f"{path} cannot be used ({reason}): remove it, or give --skip-broken") from None
    return pixels[None] if transform.grey else pixels.transpose(2, 0, 1)


def _pixels(file: BinaryIO, transform: ImageTransform) -> NDArray[np.uint8]:
    """Return the transformed image, (H, W) or (H, W, C)."""
    file.seek(0)
    with Image.open(file, formats=_FORMATS) as opened:
        image: Image.Image = opened
        if image.width * image.height > _MAX_PIXELS:
            raise ValueError(f"{image.width} x {image.height} pixels are too many")
        image.load()  # raises here if more than the EXIF data is broken
        try:
            ImageOps.exif_transpose(image, in_place=True)
        except MemoryError:
            raise
        except Exception:  # damaged EXIF data raise many types of exception; viewers ignore them
            pass
        if transform.crop:
            left, top = (image.width - transform.crop) // 2, (image.height - transform.crop) // 2
            if left < 0 or top < 0:
                raise ValueError(f"{image.width} x {image.height} pixels, fewer than --crop {transform.crop} cuts out")
            image = image.crop((left, top, left + transform.crop, top + transform.crop))
        if image.mode.startswith("I;16") or (image.mode == "I" and opened.format in ("PNG", "PPM")):
            values = np.asarray(image).astype(np.uint32)  # 16 bits, which Pillow's convert would clip at 255
            values[values == image.info.get("transparency")] = 2**16 - 1
            image = Image.fromarray((values // 257).clip(0, 255).astype(np.uint8))
        elif image.mode in ("I", "F"):
            raise ValueError("its pixels have neither 8 nor 16 bits: convert it first")
        shown = image.convert("L" if transform.grey else "RGB")
        if image.has_transparency_data:
            alpha = (image if "A" in image.getbands() else image.convert("RGBA")).getchannel("A")
            shown.paste("white", mask=ImageChops.invert(alpha))
        return np.asarray(shown.resize((transform.size, transform.size), Image.Resampling.BILINEAR))
