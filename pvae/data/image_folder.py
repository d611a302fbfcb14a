"""`ImageFiles`, the images of the image files in a folder, decoded in parallel."""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import re
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
from pvae.data.folders import is_folder
from pvae.data.image_cache import Images, ImageTransform, Shape
from pvae.data.levels import Levels, to_bytes

__all__ = ["SUFFIXES", "ImageFiles", "converted", "decode", "image_files"]

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")

# Formats are recognised by content, not by suffix. Pillow would run an external program for PostScript.
_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
_FORMATS_OF_PAGES = ("PNG", "GIF", "WEBP", "TIFF")  # a JPEG's further images are previews and depth maps

# The channels of Pillow's modes, and the type of the values that it returns for those of more than 8 bits. The other
# modes have three channels of 8 bits. A PNG or PPM of mode I has 16 bits.
_MODES: dict[str, tuple[int, Any]] = {
    "1": (1, None),
    "L": (1, None),
    "LA": (1, None),
    "I;16": (1, np.uint16),
    "I;16L": (1, np.uint16),
    "I;16B": (1, np.uint16),
    "I;16N": (1, np.uint16),
    "I": (1, np.int32),
    "F": (1, np.float32),
}
_COLOURS_OF_16_BITS = re.compile("'(LA|RGBA?);16[BLN]'")  # in Pillow's description of how it will read an image
_MAYBE_16_BITS = re.compile("(LA|RGB.?);16|'ppm")

# The number of channels beside opacity that Pillow reads, by the tag PhotometricInterpretation of a TIFF: grey, where
# white is 0 or black is 0, and RGB. A TIFF of another kind, such as CMYK, is left to Pillow.
_PHOTOMETRIC = {0: 1, 1: 1, 2: 3}
_OPACITY = {1, 2, 999}  # in the tag ExtraSamples of a TIFF; 999 is written by old versions of Corel Draw

# Larger images are decoded one at a time, in one thread: each takes up to a gigabyte, and threads do not free it.
_LARGE_PIXELS = 2**22
_LARGE = ThreadPoolExecutor(1)

_FIRST = 8  # files that show nearly always that grey values are not 0 and 1 only
_AT_ONCE = 1000  # files that are read before the result of the first of them is used

_T = TypeVar("_T")


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


class ImageFiles:
    """Image files, as an `ImageSource`.

    Args:
        paths: the files.
        folder: images are named by their paths in this folder.
        splits: the split of each file, or [].
        labels: the label of each file; [] or None if they have none.
        note: what is left out, or "".
    """

    key = ""

    def __init__(
        self, paths: list[Path], folder: Path, splits: Sequence[str] = (), labels: Sequence[Any] | None = None,
        note: str = "",
    ) -> None:  # fmt: skip
        self.paths, self.folder, self.splits, self.labels, self.note = paths, folder, splits, labels or [], note

    def __len__(self) -> int:
        """Return the number of files."""
        return len(self.paths)

    def described(self, images: Images) -> tuple[list[str], list[str], list[Any]]:
        """Return the name of each image, its split, and its label; the third image of a.tif is named "a.tif#3"."""
        pages = [f"#{page}" if page else "" for page in images.pages]
        names = [f"{self.paths[index].relative_to(self.folder)}{page}" for index, page in zip(images.kept, pages)]
        splits = [self.splits[index] for index in images.kept if self.splits]
        return names, splits, [self.labels[index] for index in images.kept if self.labels]

    def survey(self) -> tuple[list[Shape], Levels | None]:
        """Return the shapes of the images, and their levels if some have more than 8 bits, or if all are 0 or 1."""
        headers = [*_in_parallel(partial(_of_images, _header), self.paths)]
        deep = [path for path, of_file in zip(self.paths, headers) if any(is_deep for _, is_deep in of_file)]
        read = partial(_of_images, _levels)
        shallow = [] if deep else itertools.chain.from_iterable(map(read, self.paths[:_FIRST]))
        levels = None
        if deep or all(one.kind == "u1" and one.high <= 1 for one in shallow):
            found = [*itertools.chain.from_iterable(_in_parallel(read, deep or self.paths))]
            levels = reduce(or_, found) if found else None
        return [shape for of_file in headers for shape, _ in of_file], levels

    def decoded(self, transform: ImageTransform) -> Iterator[list[NDArray[np.uint8]]]:
        """Yield the images (C, H, W) of each file in turn."""
        return _in_parallel(partial(decode, transform=transform), self.paths)


def _in_parallel(function: Callable[[Path], _T], files: Sequence[Path]) -> Iterator[_T]:
    """Yield function(file) for each file, by threads: Pillow decodes without holding the interpreter's lock."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        try:
            for start in range(0, len(files), _AT_ONCE):
                yield from pool.map(function, files[start : start + _AT_ONCE])
        finally:
            pool.shutdown(cancel_futures=True)


def decode(path: Path, transform: ImageTransform) -> list[NDArray[np.uint8]]:
    """Return the images (C, H, W) of a file; none if it cannot be decoded and `transform.skip_broken` is set.

    Raises:
        InputError: the file cannot be decoded.
    """
    return _of_images(partial(_pixels, transform=transform), path, transform.skip_broken)


class _Source(NamedTuple):
    """An image of a file, not yet decoded.

    Args:
        image: as Pillow opens it, or the values (H, W, C) of a TIFF that Pillow cannot read.
        read_16_bits: returns the values (H, W, C) of 16-bit colours, of which Pillow reads the upper 8 bits.
        is_only: the file has no other image.
    """

    image: Image.Image | NDArray[Any]
    read_16_bits: Callable[[], NDArray[Any]] | None = None
    is_only: bool = True


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


def _sources(path: Path) -> Iterator[_Source]:
    """Yield the images of a file; decode each image before the next one is asked for."""
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
    usual = _PHOTOMETRIC.get(page.photometric, page.samplesperpixel)
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


def _header(source: _Source) -> tuple[Shape, bool]:
    """Return (height, width, channels) of an image as a viewer shows it, and whether it has more than 8 bits."""
    image = source.image
    if isinstance(image, np.ndarray):
        height, width, channels = image.shape
        return (height, width, channels), image.dtype != np.uint8
    channels, dtype = _MODES.get(image.mode, (3, None))
    width, height = image.size[::-1] if _orientation(source) >= 5 else image.size
    return (height, width, channels), dtype is not None or source.read_16_bits is not None


def _levels(source: _Source) -> Levels:
    """Return the levels of an image where it is not transparent."""
    pixels, opacity = _decoded(source)
    values = np.asarray(pixels)
    return Levels.of(values if opacity is None else values[np.asarray(opacity) > 0])


def _decoded(source: _Source) -> tuple[Image.Image | NDArray[Any], Image.Image | None]:
    """Return an image upright, and its opacity or None.

    Returns:
        An array (H, W) or (H, W, C), if its values may have more than 8 bits, or it came as one; otherwise Pillow's.
    """
    image = source.image
    if isinstance(image, np.ndarray):
        return image, None
    tile, orientation = str(getattr(image, "tile", "")), _orientation(source)
    _, dtype = _MODES.get(image.mode, (3, None))
    dtype = np.uint16 if image.mode == "I" and image.format in ("PNG", "PPM") else dtype
    image.load()  # raises an error if more than the EXIF data is damaged
    if source.is_only:
        with contextlib.suppress(Exception):  # damaged EXIF data are ignored, as by viewers
            ImageOps.exif_transpose(image, in_place=True)
    if dtype is not None:
        values = np.asarray(image).astype(dtype)
        hidden = image.info.get("transparency")
        return values, None if hidden is None else Image.fromarray(np.uint8(255) * (values != hidden))
    opacity = None
    if image.has_transparency_data:
        opacity = (image if "A" in image.getbands() else image.convert("RGBA")).getchannel("A")
    if source.read_16_bits is not None:
        values = source.read_16_bits()
        return _upright(values[..., : 1 if values.shape[2] < 3 else 3], orientation), opacity
    if _MAYBE_16_BITS.search(tile) and np.asarray(image.convert("RGB")).max() < 128:
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
    """Return the converted image, (C, H, W)."""
    pixels, opacity = _decoded(source)
    if source.read_16_bits is not None and transform.value_range in (None, (), (0, 65535)):
        pixels = (np.asarray(pixels) >> 8).astype(np.uint8)  # as Pillow does
    return converted(pixels, transform, opacity)


def converted(
    pixels: Image.Image | NDArray[Any], transform: ImageTransform, opacity: Image.Image | None = None
) -> NDArray[np.uint8]:
    """Return an image as bytes of the wanted number of channels and size, (C, H, W).

    Args:
        pixels: as Pillow decoded it, or values (H, W) or (H, W, C) of any type.
        transform: the number of channels, the range of values and the size.
        opacity: laid over white where it is not 255; None for an image that is nowhere transparent.

    Raises:
        ValueError: the image has another number of channels.
    """
    value_range = transform.value_range or ()
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
        raise ValueError(f"it has {number} channels, and {transform.channels} are wanted")
    if opacity is not None:
        layers[0].paste("white", mask=ImageChops.invert(opacity))
    size = (transform.size or layers[0].size[::-1])[::-1]  # Pillow's is (width, height)
    resize = ImageOps.fit if transform.keep_aspect else Image.Image.resize
    resized = [np.atleast_3d(np.asarray(resize(layer, size, Image.Resampling.BILINEAR))) for layer in layers]
    return np.concatenate(resized, axis=2).transpose(2, 0, 1)
