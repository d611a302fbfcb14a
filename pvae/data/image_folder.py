"""Image files as one memory-mapped array of bytes: decoded once, in parallel, into the cache folder.

The cache file is named after the files (path, size, time of change) and the transform, and appears whole or not at
all: it is written under a name of its own and then renamed. Two processes that build it at once both do the work,
and the second replaces the first's file with an equal one.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
import warnings
from collections.abc import Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
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

__all__ = ["SUFFIXES", "ImageTransform", "image_files", "load_images"]

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")

# A photograph has some tens of millions of pixels; a file that promises more is refused before it is decoded.
_MAX_PIXELS = 100_000_000
_MAX_BYTES = 2**28  # some formats are read whole before they say how many pixels they have

# One thread decodes all such images, one after the other: each takes up to a gigabyte, and a thread keeps its memory.
_LARGE_PIXELS, _LARGE_BYTES = 2**22, 2**23

# By what the file holds, not by its name; of Pillow's others one, PostScript, would run a program of its own.
_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
_MOST_KEPT = 2**28  # bytes of the list beside a cache file


_DECODING = 3  # what is made of a file; another number where that changes, or old caches would be taken


class ImageTransform(NamedTuple):
    """What is done to an image file: turn it upright, cut its middle out, resize it, turn it grey.

    As in a viewer, an image is turned as its EXIF orientation says, and what is transparent is laid over white.

    Args:
        size: height and width in the end.
        crop: side of the square cut out of the middle first; 0 for the whole image.
        grey: one channel in place of three.
        skip_broken: leave out a file that cannot be decoded, in place of ending with its name.
    """

    size: int = 64
    crop: int = 0
    grey: bool = False
    skip_broken: bool = False


def image_files(folder: Path) -> list[Path]:
    """Return the image files under a folder, in the order of their names; links that leave it are not followed.

    Raises:
        InputError: it is no folder, cannot be read, or holds no image file.
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
    """Return the images as a memory-mapped array, decoding them first if the cache has them not.

    Args:
        files: image files.
        transform: what is done to each.
        cache: the folder of cache files; made if missing.

    Returns:
        Bytes (N, C, H, W), and for each of the N images the index of its file.

    Raises:
        InputError: a file cannot be decoded (unless `skip_broken`), or the cache cannot be written.
    """
    try:
        target = cache / f"{_key(files, transform)}.npy"
        cached = _cached(target, transform)
        if cached is None:
            cache.mkdir(parents=True, exist_ok=True)
            _build(files, transform, target)
            cached = _cached(target, transform)
    except OSError as error:
        raise InputError(f"the image cache {cache} cannot be used ({error.strerror or error})") from None
    if cached is None:
        raise InputError(f"the image cache {cache} does not keep what is written there: is its disk whole?")
    return cached


def _cached(target: Path, transform: ImageTransform) -> tuple[NDArray[np.uint8], list[int]] | None:
    """Return what the cache holds of some files, or None where it has to be built: it is missing or damaged."""
    try:
        record = json.loads(read_bounded(target.with_suffix(".json"), _MOST_KEPT))
        kept: list[int] = record["kept"]
        shape = (len(kept), 1 if transform.grey else 3, transform.size, transform.size)
        with open_bounded(target, sys.maxsize) as file:
            if record["sha256"] != _sha256(file, kept):
                return None
        # Copy on write: torch wants memory that it may write to, and the file is never written to.
        images: NDArray[np.uint8] = np.load(target, mmap_mode="c")
    except (FileNotFoundError, ValueError, KeyError, TypeError, RecursionError, EOFError):
        return None
    return (images, kept) if images.dtype == np.uint8 and images.shape == shape else None


def _sha256(file: BinaryIO, kept: list[int]) -> str:
    digest = hashlib.sha256(json.dumps(kept).encode())
    while part := file.read(2**20):
        digest.update(part)
    return digest.hexdigest()


def _key(files: Sequence[Path], transform: ImageTransform) -> str:
    digest = hashlib.sha256(f"{_DECODING} {transform!r}".encode())
    for path in files:
        status = path.stat()
        digest.update(f"{path.resolve()}\0{status.st_size}\0{status.st_mtime_ns}\0".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:32]


def _build(files: Sequence[Path], transform: ImageTransform, target: Path) -> None:
    temporary = target.with_suffix(f".{os.getpid()}.tmp")
    shape = (len(files), 1 if transform.grey else 3, transform.size, transform.size)
    try:
        temporary.unlink(missing_ok=True)
        temporary.touch(exist_ok=False)  # fails here, and not in the middle, where the folder is not ours
        images = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.uint8, shape=shape)
        kept = _decode_all(files, transform, images)
        images.flush()
        del images
        if len(kept) < len(files):
            _shorten(temporary, len(kept))
        with temporary.open("rb") as file:
            record = {"kept": kept, "sha256": _sha256(file, kept)}
        temporary.replace(target)
        described = target.with_suffix(".json")
        if not described.is_file():  # another process may have made one, of the same, and read it now
            described.unlink(missing_ok=True)  # whatever it is: the cache is ours
        write_whole(described, to_json(record).encode())
    finally:
        temporary.unlink(missing_ok=True)


def _decode_all(files: Sequence[Path], transform: ImageTransform, images: NDArray[np.uint8]) -> list[int]:
    """Fill the array from the front; return the indices of the files whose images it holds."""
    kept: list[int] = []
    silent = None if sys.stderr is not None else True
    # Threads: Pillow decodes without holding the interpreter's lock.
    with warnings.catch_warnings(), ThreadPoolExecutor(os.cpu_count()) as pool, ThreadPoolExecutor(1) as large:
        warnings.filterwarnings("ignore", module="PIL")  # of odd files; those that cannot be used are named below
        decoded = pool.map(lambda path: _decode(path, transform, large), files)
        try:
            bar = tqdm(decoded, total=len(files), desc="decoding", unit="image", disable=silent)
            for index, image in enumerate(bar):
                if image is not None:
                    images[len(kept)] = image
                    kept.append(index)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    if len(kept) < 4:
        raise InputError(f"only {len(kept)} of {len(files)} image files can be decoded: four are the least to train on")
    return kept


def _decode(path: Path, transform: ImageTransform, large: Executor) -> NDArray[np.uint8] | None:
    """Return (C, H, W), or None for a broken file that is to be skipped; `large` decodes a large image."""
    try:
        with open_bounded(path, _MAX_BYTES, follow=True) as file:
            is_large = _is_large(file)
            pixels = large.submit(_transformed, file, transform).result() if is_large else _transformed(file, transform)
    except Exception as error:  # Pillow has no word of its own for a broken file: struct.error, KeyError, ...
        if transform.skip_broken:
            return None
        reason = re.sub(r" (<_io|'/).*", "", brief(error)).removeprefix(f"{path} ")
        raise InputError(f"{path} cannot be used ({reason}): remove it, or give --skip-broken") from None
    return pixels[None] if transform.grey else pixels.transpose(2, 0, 1)


def _is_large(file: BinaryIO) -> bool:
    if os.fstat(file.fileno()).st_size > _LARGE_BYTES:
        return True
    with Image.open(file, formats=_FORMATS) as header:
        return header.width * header.height > _LARGE_PIXELS


def _transformed(file: BinaryIO, transform: ImageTransform) -> NDArray[np.uint8]:
    """Return (H, W) or (H, W, C)."""
    file.seek(0)
    with Image.open(file, formats=_FORMATS) as opened:
        image: Image.Image = opened
        if image.width * image.height > _MAX_PIXELS:
            raise ValueError(f"{image.width} x {image.height} pixels are too many")
        _turn_upright(image)
        if transform.crop:
            left, top = (image.width - transform.crop) // 2, (image.height - transform.crop) // 2
            if left < 0 or top < 0:
                raise ValueError(f"{image.width} x {image.height} pixels, fewer than --crop {transform.crop} cuts out")
            image = image.crop((left, top, left + transform.crop, top + transform.crop))
        image = _over_white(_in_bytes(image, opened.format), "L" if transform.grey else "RGB")
        return np.asarray(image.resize((transform.size, transform.size), Image.Resampling.BILINEAR))


def _turn_upright(image: Image.Image) -> None:
    image.load()  # what is broken beside its EXIF data is refused
    try:
        ImageOps.exif_transpose(image, in_place=True)
    except MemoryError:
        raise
    except Exception:  # Pillow has no exception of its own for damaged EXIF data, which viewers ignore
        pass


def _over_white(image: Image.Image, mode: str) -> Image.Image:
    """Return an image in a mode without transparency; no third image of its size is made."""
    if not image.has_transparency_data:
        return image.convert(mode)
    clear = ImageChops.invert((image if "A" in image.getbands() else image.convert("RGBA")).getchannel("A"))
    shown = image.convert(mode)
    shown.paste("white", mask=clear)
    return shown


def _in_bytes(image: Image.Image, kind: str | None) -> Image.Image:
    """Return an image of 8 bits a channel: of 16 bits the upper ones, where Pillow would clip at 255.

    Raises:
        ValueError: its pixels are of a range that the file does not say.
    """
    if image.mode.startswith("I;16") or (image.mode == "I" and kind in ("PNG", "PPM")):
        pixels = np.asarray(image).astype(np.uint32)
        pixels[pixels == image.info.get("transparency")] = 2**16 - 1
        return Image.fromarray((pixels // 257).clip(0, 255).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError("its pixels have neither 8 nor 16 bits: convert it first")
    return image


def _shorten(path: Path, count: int) -> None:
    """Rewrite an array file with its first `count` rows alone."""
    whole = np.load(path, mmap_mode="r")
    shorter = path.with_suffix(".short")
    target = np.lib.format.open_memmap(shorter, mode="w+", dtype=whole.dtype, shape=(count, *whole.shape[1:]))
    for start in range(0, count, 1000):
        target[start : min(start + 1000, count)] = whole[start : min(start + 1000, count)]
    target.flush()
    del target, whole
    shorter.replace(path)
