"""Image files as one memory-mapped array of bytes: decoded once, in parallel, into the cache folder.

The cache file is named after the files (path, size, time of change) and the transform, and appears whole or not at
all: it is written under a name of its own and then renamed. Two processes that build it at once both do the work,
and the second replaces the first's file with an equal one.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from pvae.errors import InputError

__all__ = ["SUFFIXES", "ImageTransform", "image_files", "load_images"]

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")

# A photograph has some tens of millions of pixels; a file that promises more is refused before it is decoded.
_MAX_PIXELS = 100_000_000


class ImageTransform(NamedTuple):
    """What is done to an image file: cut its middle out, resize it, turn it grey.

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
    if not folder.is_dir():
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
    target = cache / f"{_key(files, transform)}.npy"
    kept_file = target.with_suffix(".json")
    try:
        if not (target.exists() and kept_file.exists()):
            cache.mkdir(parents=True, exist_ok=True)
            _build(files, transform, target, kept_file)
        # Copy on write: torch wants memory that it may write to, and the file is never written to.
        return np.load(target, mmap_mode="c"), json.loads(kept_file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"the image cache {cache} cannot be used ({error.strerror or error})") from None


def _key(files: Sequence[Path], transform: ImageTransform) -> str:
    digest = hashlib.sha256(repr(transform).encode())
    for path in files:
        status = path.stat()
        digest.update(f"{path.resolve()}\0{status.st_size}\0{status.st_mtime_ns}\0".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:32]


def _build(files: Sequence[Path], transform: ImageTransform, target: Path, kept_file: Path) -> None:
    temporary = target.with_suffix(f".{os.getpid()}.tmp")
    shape = (len(files), 1 if transform.grey else 3, transform.size, transform.size)
    try:
        with temporary.open("wb") as file:  # fails here, and not in the middle, where the folder is not ours
            file.truncate(0)
        images = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.uint8, shape=shape)
        kept = _decode_all(files, transform, images)
        images.flush()
        del images
        if len(kept) < len(files):
            _shorten(temporary, len(kept))
        temporary.replace(target)
        partial = kept_file.with_suffix(f".{os.getpid()}.tmp2")
        partial.write_text(json.dumps(kept), encoding="utf-8")
        partial.replace(kept_file)
    finally:
        temporary.unlink(missing_ok=True)


def _decode_all(files: Sequence[Path], transform: ImageTransform, images: NDArray[np.uint8]) -> list[int]:
    """Fill the array from the front; return the indices of the files whose images it holds."""
    kept: list[int] = []
    silent = None if sys.stderr is not None else True
    # Threads: Pillow decodes without holding the interpreter's lock.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        decoded = pool.map(lambda path: _decode(path, transform), files)
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


def _decode(path: Path, transform: ImageTransform) -> NDArray[np.uint8] | None:
    """Return (C, H, W), or None for a broken file that is to be skipped."""
    try:
        with Image.open(path) as opened:
            image: Image.Image = opened
            if image.width * image.height > _MAX_PIXELS:
                raise ValueError(f"{image.width} x {image.height} pixels are too many")
            if transform.crop:
                left, top = (image.width - transform.crop) // 2, (image.height - transform.crop) // 2
                if left < 0 or top < 0:
                    raise ValueError(
                        f"{image.width} x {image.height} pixels, fewer than --crop {transform.crop} cuts out"
                    )
                image = image.crop((left, top, left + transform.crop, top + transform.crop))
            image = image.convert("L" if transform.grey else "RGB")
            image = image.resize((transform.size, transform.size), Image.Resampling.BILINEAR)
            pixels = np.asarray(image)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        if transform.skip_broken:
            return None
        reason = str(error).replace(f" {str(path)!r}", "")
        raise InputError(f"{path} cannot be used ({reason}): remove it, or give --skip-broken") from None
    return pixels[None] if transform.grey else pixels.transpose(2, 0, 1)


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
