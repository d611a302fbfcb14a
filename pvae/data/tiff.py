"""Pages of TIFF files that Pillow cannot read: those with another number of channels than grey, colour and opacity."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL.TiffImagePlugin import ImageFileDirectory_v2

__all__ = ["band_pages", "num_bands", "tags_of_pages"]

# The numbers of the tags in the TIFF 6.0 specification.
_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _OFFSETS, _SAMPLES = 256, 257, 258, 259, 262, 273, 277
_COUNTS, _PLANES, _PREDICTOR, _EXTRA, _FORMAT = 279, 284, 317, 338, 339
_OPACITY = {1, 2, 999}  # of _EXTRA; 999 is written by old versions of Corel Draw
_KINDS = {1: "u", 2: "i", 3: "f"}  # of _FORMAT
_MAX_BYTES = 2**29  # of a page


def tags_of_pages(file: BinaryIO) -> list[dict[int, Any]]:
    """Return the tags of each page of a TIFF file; none for another file."""
    head, pages, seen = file.read(8), list[dict[int, Any]](), set[int]()
    if head[:4] in (b"II*\0", b"MM\0*"):
        directory = ImageFileDirectory_v2(head)
        while directory.next and directory.next not in seen:
            seen.add(directory.next)
            file.seek(directory.next)
            directory.load(file)
            pages.append({**dict(directory), 0: head[:2]})
    file.seek(0)
    return pages


def num_bands(tags: Mapping[int, Any]) -> int:
    """Return the number of channels of a page that Pillow cannot read as grey or colour; 0 if it can."""
    samples = tags.get(_SAMPLES, 1)
    usual = {0: 1, 1: 1, 2: 3}.get(tags.get(_PHOTOMETRIC, -1), samples)
    has_opacity = bool(_OPACITY & set(tags.get(_EXTRA, ())))
    return 0 if samples == usual + has_opacity else samples


def band_pages(file: BinaryIO, pages: list[dict[int, Any]]) -> Iterator[NDArray[Any]]:
    """Yield the values (H, W, C) of pages.

    Raises:
        ValueError: they are stored in a way that is not read.
    """
    for tags in pages:
        height, width, bands = tags[_HEIGHT], tags[_WIDTH], tags.get(_SAMPLES, 1)
        bits, compression = set(tags.get(_BITS, (1,))), tags.get(_COMPRESSION, 1)
        is_deflated, is_planar = compression in (8, 32946), tags.get(_PLANES, 1) == 2
        if (
            len(bits) > 1
            or not bits <= {8, 16, 32, 64}
            or _OFFSETS not in tags
            or not (is_deflated or compression == 1)
        ):
            raise ValueError(f"its {bands} channels are in tiles, or packed: save it in strips, plain or by deflate")
        if _OPACITY & set(tags.get(_EXTRA, ())):
            raise ValueError(f"it has {bands} channels, one of which is opacity: remove that one")
        kind = np.dtype(f"{'<' if tags[0] == b'II' else '>'}{_KINDS[tags.get(_FORMAT, (1,))[0]]}{bits.pop() // 8}")
        most = height * width * bands * kind.itemsize
        if most > _MAX_BYTES:
            raise ValueError(f"{width} x {height} pixels are too many")
        strips = []
        for offset, count in zip(tags[_OFFSETS], tags[_COUNTS]):
            file.seek(offset)
            strip = file.read(count)
            strips.append(zlib.decompressobj().decompress(strip, most) if is_deflated else strip)
        planes = np.frombuffer(b"".join(strips), kind).reshape(bands if is_planar else 1, height, width, -1)
        if tags.get(_PREDICTOR, 1) == 2:
            planes = np.cumsum(planes, axis=2, dtype=kind)
        yield planes[..., 0].transpose(1, 2, 0) if is_planar else planes[0]
