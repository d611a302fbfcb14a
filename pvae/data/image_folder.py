"""Images of files as one memory-mapped array of bytes: decoded once, in parallel, into the cache folder.

The name of a cache file is a hash of the files (path, size, modification time) and of the transform. The file is
written under a temporary name and then renamed, so it is always complete. If two processes build the same cache at
once, both decode the images, and the second process replaces the file by an equal one. A second file, .json, has the
other fields of `Images`.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import math
import os
import re
import statistics
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial, reduce
from operator import or_
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageChops, ImageOps

from pvae.core.errors import InputError, brief
from pvae.core.files import write_whole
from pvae.core.records import to_json
from pvae.core.terminal import progress_bar
from pvae.data.folders import is_folder
from pvae.data.image_arrays import ImageArrays
from pvae.data.levels import Levels, to_bytes

__all__ = ["COLOURS", "SUFFIXES", "ImageTransform", "Images", "decode", "image_files", "load_images"]

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")

# Larger images are decoded one at a time, in one thread: each takes up to a gigabyte, and threads do not free it.
_LARGE_PIXELS = 2**22
_LARGE = ThreadPoolExecutor(1)

# Formats are recognised by content, not by suffix. Pillow would run an external program for PostScript.
_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
_FORMATS_OF_PAGES = ("PNG", "GIF", "WEBP", "TIFF")  # a JPEG's further images are previews and depth maps

_COLOURS_OF_16_BITS = re.compile("'(LA|RGBA?);16[BLN]'")  # in Pillow's description of how it will read an image
_OPACITY = {1, 2, 999}  # of the tag ExtraSamples of a TIFF; 999 is written by old versions of Corel Draw

COLOURS = {1: "grey", 3: "colour"}  # by the number of channels

_LONGEST = 64  # pixels of the longer side to which larger images are reduced, unless a size is given

_FIRST = 8  # files that show nearly always that grey values are not 0 and 1 only

_AT_ONCE = 1000  # files that are decoded before the first of them is written

_T = TypeVar("_T")

_DECODING = 7  # version of `decode`, a part of the name of a cache file


class ImageTransform(NamedTuple):
    """How an image file is converted to an image.

    As in a viewer, an image is turned as its EXIF orientation says, and transparent pixels are laid over white. It is
    then resized.

    Args:
        size: (height, width) of the result; None for the median size of the images, or, if that has a side of more
            than 64 pixels, for its reduction to a longer side of 64.
        channels: 1 for grey images, 3 for colour; 0 for 1 if all images are grey, and for those that they have
            otherwise.
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
        kept: the index of the file of each image, or of its place in `ImageArrays`.
        pages: the number of each image in its file, from 1 on; 0 in a file of one image.
        found: number, size, colour and bits of the images, for example "8 images of 28 x 20 pixels, grey".
        note: what was changed or lost, or "".
        value_range: as in `ImageTransform`, never None.
        first: for each file, the index of the first file that is equal to it, byte for byte; [] for arrays.
    """

    pixels: NDArray[np.uint8]
    kept: list[int]
    pages: list[int]
    found: str
    note: str
    value_range: tuple[float, ...]
    first: list[int]

    def names(self, files: Sequence[Path], folder: Path) -> list[str]:
        """Return the path of each image in a folder; of the third image of a file, for example "cells/a.tif#3"."""
        return [
            f"{files[index].relative_to(folder)}{f'#{page}' if page else ''}"
            for index, page in zip(self.kept, self.pages)
        ]


def image_files(folder: Path) -> tuple[list[Path], str]:
    """Return the image files under a folder, sorted by path, and a note that counts the files that are left out.

    Left out are hidden files and folders, `__MACOSX`, links to files outside of the folder, and files of other kinds.

    Raises:
        InputError: the folder does not exist, or contains no image file that can be read.
    """
    if not is_folder(folder):
        raise InputError(f"there is no folder {folder}, and no .npy or .npz file of this name")
    root, files, left_out = folder.resolve(), [], Counter[str]()
    for path in filter(Path.is_file, folder.rglob("*")):
        if any(part.startswith(".") or part == "__MACOSX" for part in path.relative_to(folder).parts):
            left_out["hidden"] += 1
        elif path.suffix.lower() not in SUFFIXES:
            left_out[f"of type {path.suffix.lower() or path.name}"] += 1
        elif not path.resolve().is_relative_to(root):
            left_out["linked from another folder"] += 1
        else:
            files.append(path)
    if not files:
        raise InputError(f"the folder {folder} holds no image file that can be read ({', '.join(SUFFIXES)})")
    counts = ", ".join(f"{count:,} {kind}" for kind, count in left_out.most_common(5))
    files_are = "1 file is" if left_out.total() == 1 else f"{left_out.total():,} files are"
    return sorted(files), f"{files_are} left out: {counts}" if left_out else ""


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
        target = cache / f"{digest.hexdigest()[:32]}.bytes"
        with contextlib.suppress(OSError, ValueError):  # it is missing or damaged
            return _cached(target)
        _build(files, transform, target, least)
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


class _Header(NamedTuple):
    """Height, width and number of channels of an image, and whether its values may have more than 8 bits."""

    height: int
    width: int
    channels: int
    is_deep: bool


class _Source(NamedTuple):
    """An image of a file, not yet decoded.

    Args:
        image: as Pillow opens it, or the values (H, W, C) of an array or of a TIFF that Pillow cannot read.
        read_16_bits: returns the values (H, W, C) of 16-bit colours, of which Pillow reads the upper 8 bits.
        is_only: the file has no other image.
    """

    image: Image.Image | NDArray[Any]
    read_16_bits: Callable[[], NDArray[Any]] | None = None
    is_only: bool = True


def _build(files: Sequence[Path] | ImageArrays, transform: ImageTransform, target: Path, least: int) -> None:
    """Decode the files into a cache file."""
    target.parent.mkdir(parents=True, exist_ok=True)
    # Threads, because Pillow decodes without holding the interpreter's lock.
    with warnings.catch_warnings(), ThreadPoolExecutor(os.cpu_count()) as pool:
        warnings.filterwarnings("ignore", module="PIL|torchvision")  # a file that cannot be used raises an error
        try:
            headers, levels, first = _looked_at(pool, files)
            chosen = transform._replace(
                size=transform.size or _common_size(headers),
                channels=transform.channels or max((header.channels for header in headers), default=1),
                value_range=levels.value_range(transform.value_range) if levels else (),
            )
            decoded: Iterator[list[NDArray[np.uint8]]]
            if isinstance(files, ImageArrays):
                decoded = ([_pixels(_Source(values), chosen)] for values in files.values())
            else:
                decoded = _in_parts(pool, partial(decode, transform=chosen), files)
            kept, pages, has_colour = _written(decoded, target, len(files), least)
        finally:
            pool.shutdown(cancel_futures=True)
    channels = 1 if chosen.channels == 3 and not (has_colour or transform.channels) else chosen.channels
    left_out = len(files) - len(set(kept))
    broken = f"{left_out} of {len(files)} image files cannot be decoded and are left out" if left_out else ""
    record = {
        "shape": (len(kept), chosen.channels, *(chosen.size or ())),
        "channels": channels,
        "kept": kept,
        "pages": pages,
        "found": f"{len(kept):,} images of {_described(headers, is_grey=channels == 1 and not transform.channels)}",
        "note": "; ".join(filter(None, (broken, levels.note(chosen.value_range or ()) if levels else ""))),
        "value_range": chosen.value_range,
        "first": first,
    }
    write_whole(target.with_suffix(".json"), to_json(record).encode())


def _written(
    decoded: Iterator[list[NDArray[np.uint8]]], target: Path, total: int, least: int
) -> tuple[list[int], list[int], bool]:
    """Write the images of each file; return `kept` and `pages` of `Images`, and whether an image has colours."""
    temporary = target.with_suffix(f".{os.getpid()}.tmp")
    kept, pages, has_colour = list[int](), list[int](), False
    try:
        with temporary.open("wb") as file, progress_bar("decoding", total, "image", in_logs=True) as bar:
            for index, images in enumerate(decoded):
                bar.update()
                for page, image in enumerate(images, start=1):
                    file.write(image.tobytes())
                    kept.append(index)
                    pages.append(page if len(images) > 1 else 0)
                    has_colour = has_colour or bool((image != image[:1]).any())
        if len(kept) < least:
            raise InputError(f"only {len(kept)} of {total} images can be used: give at least {least}")
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    return kept, pages, has_colour


def _described(headers: Sequence[_Header], is_grey: bool) -> str:
    """Return the sizes, colours and bits of images, for example "28 x 20 to 64 x 64 pixels, grey"."""
    sizes = sorted({(header.height, header.width) for header in headers}, key=math.prod)
    size = " to ".join(f"{height} x {width}" for height, width in dict.fromkeys((sizes[0], sizes[-1])))
    channels = 1 if is_grey else max(header.channels for header in headers)
    bits = ", some of more than 8 bits" if any(header.is_deep for header in headers) else ""
    return f"{size} pixels, {COLOURS.get(channels, f'{channels} channels')}{bits}"


def _in_parts(pool: ThreadPoolExecutor, function: Callable[[Path], _T], files: Sequence[Path]) -> Iterator[_T]:
    """Yield the results of `pool.map`, which would put all files and results into memory at once."""
    for start in range(0, len(files), _AT_ONCE):
        yield from pool.map(function, files[start : start + _AT_ONCE])


def _common_size(headers: Sequence[_Header]) -> tuple[int, int]:
    """Return the default size of images, as `ImageTransform` describes it."""
    sides = [(header.height, header.width) for header in headers] or [(1, 1)]
    height, width = (statistics.median_low(side) for side in zip(*sides))
    reduction = min(1.0, _LONGEST / max(height, width))
    return max(1, round(height * reduction)), max(1, round(width * reduction))


def _digest(path: Path) -> bytes:
    """Return the SHA-256 of a file, by which copies are found."""
    with contextlib.suppress(OSError):
        return hashlib.sha256(path.read_bytes()).digest()
    return os.fsencode(path)  # it cannot be read, which `decode` says


def _looked_at(
    pool: ThreadPoolExecutor, files: Sequence[Path] | ImageArrays
) -> tuple[list[_Header], Levels | None, list[int]]:
    """Return the headers of all images, their levels, and `first` of `Images`.

    The levels are those of files of more than 8 bits. If there are none, they are those of grey files that hold 0 and
    1 only, or None.
    """
    if isinstance(files, ImageArrays):
        return [_Header(*files.shape, False)], files.levels(), []
    seen: dict[bytes, int] = {}
    first = [seen.setdefault(digest, index) for index, digest in enumerate(_in_parts(pool, _digest, files))]
    of_files = list(_in_parts(pool, partial(_of_images, _header), files))
    headers = list(itertools.chain.from_iterable(of_files))
    deep = [file for file, of_file in zip(files, of_files) if any(header.is_deep for header in of_file)]
    read = partial(_of_images, _levels)
    shallow = itertools.chain.from_iterable(map(read, files[:_FIRST]))
    if not deep and not all(levels.nominal == (0, 255) and levels.high <= 1 for levels in shallow):
        return headers, None, first
    found = list(itertools.chain.from_iterable(_in_parts(pool, read, deep or files)))
    return headers, reduce(or_, found) if found else None, first


def _of_images(function: Callable[[_Source], _T], path: Path, skip_broken: bool = True) -> list[_T]:
    """Return the results of a function for the images of a file, which decodes large images one at a time.

    Args:
        function: of an image.
        path: the file.
        skip_broken: return no result if the file cannot be decoded, in place of raising an error.

    Raises:
        InputError: the file cannot be decoded.
    """
    results = []
    try:
        for source in _sources(path):
            is_large = isinstance(source.image, Image.Image) and math.prod(source.image.size) > _LARGE_PIXELS
            results.append(_LARGE.submit(function, source).result() if is_large else function(source))
    except Exception as error:  # Pillow raises struct.error, KeyError and others for broken files
        if skip_broken:
            return []
        reason, advice = re.sub(r" (<_io|'/).*", "", brief(error)), "take it out of the images, or give --skip-broken"
        if "imagecodecs" in str(error):
            reason, advice = "tifffile reads its compression by another package", "pip install imagecodecs"
        raise InputError(f"{path} cannot be used ({reason}): {advice}") from None
    return results


def decode(path: Path, transform: ImageTransform) -> list[NDArray[np.uint8]]:
    """Return the images (C, H, W) of a file; none if it cannot be decoded and `transform.skip_broken` is set.

    Raises:
        InputError: the file cannot be decoded.
    """
    return _of_images(partial(_pixels, transform=transform), path, transform.skip_broken)


def _levels(source: _Source) -> Levels:
    """Return the levels of an image where it is not transparent."""
    pixels, opacity = _decoded(source)
    values = np.asarray(pixels)
    return Levels.of(values if opacity is None else values[np.asarray(opacity) > 0])


def _sources(path: Path) -> Iterator[_Source]:
    """Yield the images of a file, each of which must be decoded before the next is asked for."""
    with path.open("rb") as file:
        tiff_pages = _tiff_pages(file)
        if any(map(_has_bands, tiff_pages)):
            yield from (_Source(_tiff_values(page)) for page in tiff_pages)
            return
        with Image.open(file, formats=_FORMATS) as image:
            count = getattr(image, "n_frames", 1) if image.format in _FORMATS_OF_PAGES else 1
            for number in range(count):
                image.seek(number)
                page = tiff_pages[number] if number < len(tiff_pages) else None
                if count > 1 and page is not None and page.subfiletype & 5:
                    continue  # a reduced copy of another page, or its mask
                read = None
                if _COLOURS_OF_16_BITS.search(str(image.tile)) and (page is not None or count == 1):
                    read = partial(_tiff_values, page) if page is not None else partial(_png_values, path)
                yield _Source(image, read, count == 1)


def _tiff_pages(file: BinaryIO) -> list[Any]:
    """Return the pages of a TIFF file as tifffile describes them; none for another file."""
    is_tiff = file.read(4) in (b"II*\0", b"MM\0*")
    file.seek(0)
    if not is_tiff:
        return []
    from tifffile import TiffFile

    pages = list(TiffFile(file).pages)
    file.seek(0)
    return pages


def _has_bands(page: Any) -> bool:
    """Return whether a page has channels beside grey or colour and opacity, so that Pillow cannot read it."""
    usual = {0: 1, 1: 1, 2: 3}.get(page.photometric, page.samplesperpixel)
    return page.samplesperpixel != usual + bool(_OPACITY & set(page.extrasamples))


def _tiff_values(page: Any) -> NDArray[Any]:
    """Return the values (H, W, C) of a page.

    Raises:
        ValueError: it is stored in a way that is not read.
    """
    if _has_bands(page) and _OPACITY & set(page.extrasamples):
        raise ValueError(f"it has {page.samplesperpixel} channels, one of which is opacity: remove that one")
    values = page.asarray()
    return np.moveaxis(values, 0, 2) if page.axes.startswith("S") else values.reshape(*values.shape[:2], -1)


def _png_values(path: Path) -> NDArray[Any]:
    """Return the 16-bit values (H, W, C) of a PNG."""
    from torchvision.io import ImageReadMode, decode_image  # which takes a second to import

    content = torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8)
    return decode_image(content, ImageReadMode.UNCHANGED).permute(1, 2, 0).numpy()


def _header(source: _Source) -> _Header:
    """Return the header of an image, with its sides as a viewer shows it."""
    image = source.image
    if isinstance(image, np.ndarray):
        height, width, channels = image.shape
        return _Header(height, width, channels, image.dtype != np.uint8)
    (width, height), mode = image.size, image.mode
    sides = (width, height) if _orientation(source) >= 5 else (height, width)
    is_deep = mode[0] in "IF" or source.read_16_bits is not None
    return _Header(*sides, 1 if mode[0] in "IF" or mode in ("1", "L", "LA") else 3, is_deep)


def _decoded(source: _Source) -> tuple[Image.Image | NDArray[Any], Image.Image | None]:
    """Return an image upright, and its opacity or None.

    Returns:
        An array (H, W) or (H, W, C), if its values may have more than 8 bits, or it came as one; otherwise Pillow's.
    """
    image = source.image
    if isinstance(image, np.ndarray):
        return image, None
    tile, orientation = str(getattr(image, "tile", "")), _orientation(source)
    has_16_bits = image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))
    image.load()  # raises an error if more than the EXIF data is damaged
    if source.is_only:
        with contextlib.suppress(Exception):  # damaged EXIF data are ignored, as by viewers
            ImageOps.exif_transpose(image, in_place=True)
    if has_16_bits or image.mode in ("I", "F"):
        values = np.asarray(image).astype(np.uint16) if has_16_bits else np.asarray(image)
        hidden = image.info.get("transparency")
        return values, None if hidden is None else Image.fromarray(np.uint8(255) * (values != hidden))
    opacity = None
    if image.has_transparency_data:
        opacity = (image if "A" in image.getbands() else image.convert("RGBA")).getchannel("A")
    if source.read_16_bits is not None:
        values = source.read_16_bits()
        return _upright(values[..., : 1 if values.shape[2] < 3 else 3], orientation), opacity
    if re.search("(LA|RGB.?);16|'ppm", tile) and np.asarray(image.convert("RGB")).max() < 128:
        raise ValueError("its 16-bit values use less than half of their range: save it as PNG or TIFF without opacity")
    return image, opacity


def _orientation(source: _Source) -> int:
    """Return the EXIF orientation of an image, from 1 (upright) to 8; 1 if its EXIF data are damaged."""
    image = source.image
    with contextlib.suppress(Exception):
        # Pillow decodes a PNG to search it for EXIF data.
        if source.is_only and isinstance(image, Image.Image) and (image.format != "PNG" or "exif" in image.info):
            return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    return 1


def _upright(values: NDArray[Any], orientation: int) -> NDArray[Any]:
    values = values.swapaxes(0, 1) if orientation >= 5 else values
    values = values[:, ::-1] if orientation in (2, 3, 6, 7) else values
    return values[::-1] if orientation in (3, 4, 7, 8) else values


def _pixels(source: _Source, transform: ImageTransform) -> NDArray[np.uint8]:
    """Return the transformed image, (C, H, W)."""
    value_range = transform.value_range or ()
    pixels, opacity = _decoded(source)
    if source.read_16_bits is not None and value_range in ((), (0, 65535)):
        pixels = (np.asarray(pixels) >> 8).astype(np.uint8)  # as Pillow does
    if isinstance(pixels, Image.Image) and pixels.mode == "L" and value_range == (0, 1):
        pixels = np.asarray(pixels)
    if isinstance(pixels, np.ndarray):
        values = np.atleast_3d(to_bytes(pixels, value_range))
        bands = [values] if values.shape[2] == 3 else np.moveaxis(values, 2, 0)
        layers = [Image.fromarray(np.ascontiguousarray(band)) for band in bands]
    else:
        layers = [pixels]
    if len(layers) == 1 and transform.channels in (1, 3):
        layers = [layers[0].convert("L" if transform.channels == 1 else "RGB")]
    elif len(layers) != transform.channels:
        number = sum(len(layer.getbands()) for layer in layers)
        raise ValueError(f"it has {number} channels, not {transform.channels} as the others or as asked for")
    if opacity is not None:
        layers[0].paste("white", mask=ImageChops.invert(opacity))
    return np.concatenate([_fitted(layer, transform) for layer in layers])


def _fitted(image: Image.Image, transform: ImageTransform) -> NDArray[np.uint8]:
    """Return a resized image, (1, H, W) or (3, H, W)."""
    height, width = transform.size or (image.height, image.width)
    resize = ImageOps.fit if transform.keep_aspect else Image.Image.resize
    pixels = np.asarray(resize(image, (width, height), Image.Resampling.BILINEAR))
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
