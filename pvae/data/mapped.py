"""Images in a file that is mapped into memory, and the order in which an epoch visits them."""

from __future__ import annotations

import mmap
import weakref
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["map_images", "shuffled"]

_LARGE = 2**30  # bytes of a file; smaller ones stay in memory, and an epoch visits their images in any order
_BLOCK = 2**20  # bytes of neighbouring images that are visited in the same part of an epoch
_BLOCKS = 256  # that are shuffled together

# The mapping of each large file, by the address of its first image, for as long as a tensor holds it.
_MAPPINGS: weakref.WeakValueDictionary[int, mmap.mmap] = weakref.WeakValueDictionary()


def map_images(path: Path) -> NDArray[np.uint8]:
    """Return the images of an .npy file, mapped into memory.

    Changes in place do not reach the file.

    Raises:
        ValueError: the file is damaged.
    """
    images = np.load(path, mmap_mode="c")  # copy on write, because torch warns of read-only memory
    mapping = images.base
    if isinstance(mapping, mmap.mmap) and len(mapping) > _LARGE:
        _MAPPINGS[images.ctypes.data] = mapping
    mapped: NDArray[np.uint8] = images
    return mapped


def shuffled(images: Tensor) -> Tensor:
    """Return the order in which an epoch visits images: a permutation, drawn by torch.

    It is uniform, unless the images are those of a mapped file of more than 1 GiB, which may not fit into memory. Then
    256 blocks of 1 MiB, drawn from the whole file, are shuffled together, so that the disk reads whole blocks. The
    images of a folder or an array were shuffled when their cache file was written: neighbours have nothing in common.

    Args:
        images: (N, C, H, W).

    Returns:
        int64 (N,), on the CPU.
    """
    count = len(images)
    if images.untyped_storage().data_ptr() not in _MAPPINGS:
        return torch.randperm(count)
    blocks = torch.arange(count).split(max(1, _BLOCK // images[0].numel()))
    order = torch.cat([blocks[index] for index in torch.randperm(len(blocks)).tolist()])
    return torch.cat([part[torch.randperm(len(part))] for part in order.split(_BLOCKS * len(blocks[0]))])
