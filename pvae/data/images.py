"""Images of files and of arrays as one memory-mapped array of bytes: decoded once, into the cache folder.

The name of a cache file is a hash of the files (path, size, modification time) and of the transform. The file is
written under a temporary name and then renamed, so it is always complete. If two processes build the same cache at
once, both decode the images, and the second process replaces the file by an equal one. A second file, .json, says what
the images are.
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
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial, reduce
from operator import or_
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageChops, ImageOps
from tifffile import TiffFile

from pvae.core.errors import InputError, brief, joined
from pvae.core.files import cache_dir, to_json, write_whole
from pvae.core.terminal import progress_bar
from pvae.data.arrays import read_arrays
from pvae.data.files import is_folder
from pvae.data.levels import Levels, to_bytes
from pvae.tables.reading import Reading

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")

# Formats are recognised by content, not by suffix. Pillow would run an external program for PostScript.
_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
_FORMATS_OF_PAGES = ("PNG", "GIF", "WEBP", "TIFF")  # a JPEG's further images are previews and depth maps

# Pillow's grey modes; those with I and F have more than 8 bits. The other modes become three channels of 8 bits.
_GREY = ("1", "L", "LA", "I", "I;16", "I;16L", "I;16B", "I;16N", "F")

# The number of channels beside opacity, by the tag PhotometricInterpretation of a TIFF: grey, where white is 0 or black
# is 0, and RGB. A TIFF of another kind, such as CMYK, is left to Pillow.
_PHOTOMETRIC = {0: 1, 1: 1, 2: 3}
_OPACITY = {1, 2, 999}  # in the tag ExtraSamples of a TIFF; 999 is written by old versions of Corel Draw
_ORIENTATION = int(ExifTags.Base.Orientation)  # from 1 (upright) to 8; from 5 on, rows and columns are exchanged

_NOT_READ = "not read; save it as 8 bits, or give an .npy array"

# Larger images are decoded one at a time, in one thread: each takes up to a gigabyte, and threads do not free it.
_LARGE_PIXELS = 2**22
_LARGE = ThreadPoolExecutor(1)

_FIRST = 8  # files that show nearly always that grey values are not 0 and 1 only
_AT_ONCE = 1000  # files that are read before the result of the first of them is used

_MAX_CHANNELS = 16  # of an array
_LONGEST = 64  # pixels of the longer side to which larger images are reduced, unless a size is given

_DECODING = 13  # the version of the decoding, a part of the name of a cache file

_T = TypeVar("_T")

Shape = tuple[int, int, int]  # height, width, channels


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
        value_range: the values that become the levels 0 and 255; () for bytes that stay as they are; None to choose it
            by the values of all images, as in `Levels.value_range`.
    """

    size: tuple[int, int] | None = None
    channels: int = 0
    skip_broken: bool = False
    keep_aspect: bool = False
    value_range: tuple[float, ...] | None = None

    @classmethod
    def of(cls, reading: Reading, value_range: tuple[float, ...] | None = None) -> ImageTransform:
        """Return the conversion that options of reading describe, with the range of values of other images."""
        height, _, width = reading.image_size.partition("x")
        size = None
        if height != "auto":
            size = (int(height), int(width or height))
        return cls(size, int(reading.grey), reading.skip_broken, keep_aspect=size is None, value_range=value_range)


def image_files(folder: Path) -> tuple[list[Path], str]:
    """Return the image files under a folder, sorted by path, and a note that counts the files that are left out.

    Left out are hidden files and folders, `__MACOSX`, links to files outside of the folder, and files of other kinds.

    Raises:
        InputError: the folder does not exist, or contains no image file that can be read.
    """
    if not is_folder(folder):
        raise InputError(f"there is no folder {folder}, and no .npy or .npz file of this name")
    root, present = folder.resolve(), [path for path in folder.rglob("*") if path.is_file()]
    files = [
        path
        for path in present
        if path.suffix.lower() in SUFFIXES
        and not any(part.startswith(".") or part == "__MACOSX" for part in path.relative_to(folder).parts)
        and path.resolve().is_relative_to(root)
    ]
    if not files:
        raise InputError(f"the folder {folder} holds no image file that can be read ({', '.join(SUFFIXES)})")
    left_out = f"{len(present) - len(files):,} files that are hidden, of another type, or linked from another folder"
    return sorted(files), f"{left_out} are left out" * (len(present) > len(files))


@dataclass
class ImageFiles:
    """Image files.

    Args:
        paths: the files.
        folder: files are named by their paths in this folder.
        splits: the split of each file, or [].
        labels: the label of each file, or [].
        note: what is left out, or "".
    """

    paths: list[Path]
    folder: Path
    splits: Sequence[str] = ()
    labels: Sequence[Any] = ()
    note: str = ""
    key = ""

    @property
    def names(self) -> list[str]:
        """The name of each file."""
        return [str(path.relative_to(self.folder)) for path in self.paths]

    def survey(self) -> tuple[list[Shape], Levels | None]:
        """Return the shapes of the images, and their levels if some have more than 8 bits, or if all are 0 or 1."""
        headers = [*_in_parallel(partial(_of_pages, lambda page: (page.shape, page.is_deep)), self.paths)]
        deep = [path for path, pages in zip(self.paths, headers) if any(is_deep for _, is_deep in pages)]
        read = partial(_of_pages, lambda page: Levels.of(page.read()[0]))
        levels = None
        if deep or all(one.kind == "u1" and one.high <= 1 for path in self.paths[:_FIRST] for one in read(path)):
            found = [*itertools.chain.from_iterable(_in_parallel(read, deep or self.paths))]
            levels = reduce(or_, found) if found else None
        return [shape for pages in headers for shape, _ in pages], levels

    def decoded(self, transform: ImageTransform, levels: Levels | None) -> Iterator[list[NDArray[np.uint8]]]:
        """Yield the images (C, H, W) of each file in turn; none if it cannot be decoded and `skip_broken` is set.

        Bytes stay as they are if the levels are those of values of more bits.
        """
        of_bytes = transform if levels and levels.kind == "u1" else transform._replace(value_range=())

        def pixels(page: _Page) -> NDArray[np.uint8]:
            values, opacity = page.read()
            return _converted(values, transform if page.is_deep else of_bytes, opacity)

        return _in_parallel(partial(_of_pages, pixels, skip_broken=transform.skip_broken), self.paths)


def _in_parallel(function: Callable[[Path], _T], files: Sequence[Path]) -> Iterator[_T]:
    """Yield function(file) for each file, by threads: Pillow decodes without holding the interpreter's lock."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(files), _AT_ONCE):
            yield from pool.map(function, files[start : start + _AT_ONCE])


class _Page(NamedTuple):
    """An image of a file, not yet decoded.

    Args:
        shape: as a viewer shows it.
        is_deep: whether its values have more than 8 bits.
        read: returns the values (H, W) or (H, W, C), and their opacity, or None.
    """

    shape: Shape
    is_deep: bool
    read: Callable[[], tuple[NDArray[Any], Image.Image | None]]


def _of_pages(function: Callable[[_Page], _T], path: Path, skip_broken: bool = True) -> list[_T]:
    """Return the results of a function for each image of a file; large images are decoded one at a time.

    Raises:
        InputError: the file cannot be decoded, and not `skip_broken`, for which there is no result; or it holds NaN.
    """
    results = []
    try:
        for page in _pages(path):
            is_large = math.prod(page.shape[:2]) > _LARGE_PIXELS
            results.append(_LARGE.submit(function, page).result() if is_large else function(page))
    except InputError as error:
        raise InputError(f"{path} cannot be used: {error}") from None
    except Exception as error:  # Pillow raises struct.error, KeyError and others for broken files
        if skip_broken:
            return []
        reason = re.sub(r" (<_io|'/).*", "", brief(error))
        advice = "take it out of the images, or give --skip-broken"
        raise InputError(f"{path} cannot be used ({reason}): {advice}") from None
    return results


def _pages(path: Path) -> Iterator[_Page]:
    """Yield the images of a file, each of which must be read before the next one is asked for.

        tifffile   TIFFs of bands, or of colours of 16 bits or floats
        Pillow     all others

    Raises:
        ValueError: the file is of a kind that is not read.
    """
    with path.open("rb") as file:
        is_tiff = file.read(4) in (b"II*\0", b"MM\0*")
        file.seek(0)
        tiff: list[Any] = [*TiffFile(file).pages] if is_tiff else []
        file.seek(0)
        # Not reduced copies of another page, nor masks.
        wanted = [number for number, page in enumerate(tiff) if len(tiff) == 1 or not page.subfiletype & 5]
        if any(map(_is_for_tifffile, tiff)):
            yield from (_tiff_page(tiff[number]) for number in wanted)
            return
        with Image.open(file, formats=_FORMATS) as image:
            count = getattr(image, "n_frames", 1) if image.format in _FORMATS_OF_PAGES else 1
            for number in wanted or range(count):
                image.seek(number)
                yield _pillow_page(image, count == 1)


def _is_for_tifffile(page: Any) -> bool:
    """Return whether a page has channels beside grey or colour and opacity, or several of more than 8 bits."""
    channels, usual = page.samplesperpixel, _PHOTOMETRIC.get(page.photometric)
    has_opacity = bool(_OPACITY & set(page.extrasamples))
    return usual is not None and (channels != usual + has_opacity or (channels > 1 and page.bitspersample > 8))


def _tiff_page(page: Any) -> _Page:
    """Return an image that tifffile reads."""
    if _OPACITY & set(page.extrasamples) or page.tags.valueof(_ORIENTATION, 1) != 1:
        raise ValueError(f"opacity or a rotation of bands and 16-bit colours is {_NOT_READ}")

    def read() -> tuple[NDArray[Any], None]:
        values = page.asarray()
        is_planar = page.axes.startswith("S")
        return np.moveaxis(values, 0, 2) if is_planar else values.reshape(*values.shape[:2], -1), None

    return _Page((page.imagelength, page.imagewidth, page.samplesperpixel), page.bitspersample > 8, read)


def _pillow_page(image: Image.Image, is_only: bool) -> _Page:
    """Return the image that Pillow has opened; `is_only` says that the file has no other one."""
    orientation = 1
    with contextlib.suppress(Exception):  # damaged EXIF data are ignored, as by viewers
        # Pillow decodes a PNG to search it for EXIF data.
        if is_only and (image.format != "PNG" or "exif" in image.info):
            orientation = int(image.getexif().get(_ORIENTATION, 1))
    is_deep = image.mode[0] in "IF"
    if image.format == "PNG" and not is_deep and ";16" in str(getattr(image, "tile", "")):
        raise ValueError(f"a PNG of 16-bit colours is {_NOT_READ}")
    if is_deep and image.has_transparency_data:
        raise ValueError(f"opacity of 16-bit values is {_NOT_READ}")
    height, width = image.size if orientation >= 5 else image.size[::-1]
    return _Page((height, width, 1 if image.mode in _GREY else 3), is_deep, partial(_pillow_values, image, is_only))


def _pillow_values(image: Image.Image, is_only: bool) -> tuple[NDArray[Any], Image.Image | None]:
    """Return the values of an image, upright, and its opacity or None."""
    image.load()  # raises an error if more than the EXIF data is damaged
    if is_only:
        with contextlib.suppress(Exception):
            ImageOps.exif_transpose(image, in_place=True)
    if image.mode[0] in "IF":
        is_unsigned = image.mode == "I" and image.format in ("PNG", "PPM")  # of 16 bits
        return np.asarray(image, np.uint16 if is_unsigned else None), None
    opacity = image.convert("RGBA").getchannel("A") if image.has_transparency_data else None
    mode = "1" if image.mode == "1" else "L" if image.mode in _GREY else "RGB"
    return np.asarray(image.convert(mode)), opacity


def _converted(
    values: NDArray[Any], transform: ImageTransform, opacity: Image.Image | None = None
) -> NDArray[np.uint8]:
    """Return an image as bytes of the wanted number of channels and size, (C, H, W).

    Args:
        values: (H, W) or (H, W, C), of any type.
        transform: the number of channels, the range of values and the size.
        opacity: laid over white where it is not 255; None for an image that is nowhere transparent.

    Raises:
        ValueError: the image has another number of channels.
    """
    values = np.atleast_3d(to_bytes(values, transform.value_range or ()))
    bands = [values] if values.shape[2] == 3 else np.moveaxis(values, 2, 0)
    layers = [Image.fromarray(np.ascontiguousarray(band)) for band in bands]
    if len(layers) == 1 and transform.channels in (1, 3):
        layers = [layers[0].convert("L" if transform.channels == 1 else "RGB")]
    elif len(layers) != transform.channels:
        raise ValueError(f"it has {values.shape[2]} channels, and {transform.channels} are wanted")
    if opacity is not None:
        layers[0].paste("white", mask=ImageChops.invert(opacity))
    size = (transform.size or layers[0].size[::-1])[::-1]  # Pillow's is (width, height)
    resize = ImageOps.fit if transform.keep_aspect else Image.Image.resize
    resized = [np.atleast_3d(np.asarray(resize(layer, size, Image.Resampling.BILINEAR))) for layer in layers]
    return np.concatenate(resized, axis=2).transpose(2, 0, 1)


class ImageArrays:
    """The images and labels of an .npy or .npz file; `read_arrays` says how arrays are named.

    An array of images has the shape (N, H, W), (N, H, W, C) or (N, C, H, W), of at most 16 channels C. If the last
    side is 1, 3 or 4, it is C; otherwise the second one is C if it is 1, 3 or 4; otherwise C is the one of them that
    is at most 16. No channel is taken for opacity. The values are booleans, integers or floats; `Levels` describes how
    they become bytes.

    Args:
        path: the file.
        is_shuffled: put the images of each array into a random order, always the same one.

    Raises:
        InputError: the file cannot be read, or its images or labels have another shape or type.
    """

    def __init__(self, path: Path, is_shuffled: bool = True) -> None:
        self.paths, self.key = [path], f" shuffled {is_shuffled}"
        self.names, self.splits, self.labels = list[str](), list[str](), list[Any]()
        self._arrays: list[tuple[NDArray[Any], NDArray[np.int64]]] = []  # with the new order of their images
        values = read_arrays(path)
        self.note = values.schema.note
        for split, x in values.x.items():
            images, count = _channels_last(x, f"{path} cannot be used: {split}"), len(x)
            order = np.random.RandomState(count).permutation(count) if is_shuffled else np.arange(count)
            self._arrays.append((images, order))
            self.names += [values.names[split][row] for row in order]
            self.splits += [split] * count
            self.labels += [*values.labels[split][order]] if split in values.labels else []
        if 0 < len(self.labels) < len(self.names):
            which = "some of its arrays of images have labels, and some have not"
            raise InputError(f"{path} cannot be used: {which}: give labels for all or none")

    def survey(self) -> tuple[list[Shape], Levels | None]:
        """Return the shapes of the images of each array, and the levels of all.

        Raises:
            InputError: a value is NaN or infinite, or the arrays have several types.
        """
        images = [images for images, _ in self._arrays]
        return [array.shape[1:] for array in images], reduce(or_, map(Levels.of, images))

    def decoded(self, transform: ImageTransform, _: Levels | None) -> Iterator[list[NDArray[np.uint8]]]:
        """Yield each image (C, H, W) in turn, as the only one of its file."""
        for array, order in self._arrays:
            yield from ([_converted(array[row], transform)] for row in order)


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


ImageSource = ImageFiles | ImageArrays


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
            for index, images in enumerate(source.decoded(chosen, levels)):
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
