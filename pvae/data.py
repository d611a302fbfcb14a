"""Data sets as tensors in memory: where they come from, how pixels become outcomes, and batches."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from pvae.config import BINARIZATIONS
from pvae.errors import InputError, check_name

__all__ = ["Dataset", "batches", "binarized", "to_pixels"]

# The same binary images for every run, whatever its seed.
_BINARIZATION_SEED = {"train": 20070501, "test": 20070502}


@dataclass(frozen=True)
class Dataset:
    """Images in memory as bytes, with a name for titles.

    Args:
        name: what a reader calls it ("MNIST").
        train: training images, uint8, (N, C, H, W).
        test: test images, uint8, (M, C, H, W).
        source: where they were read from.
        note: what its user should know of how it was come by; one line or nothing.

    Raises:
        InputError: the tensors are no bytes, have no pixels, or differ in shape.
    """

    name: str
    train: Tensor
    test: Tensor
    source: str = "tensors given from Python"
    note: str = ""

    def __post_init__(self) -> None:
        """Refuse what is no set of images."""
        for split in (self.train, self.test):
            if split.dtype != torch.uint8 or split.dim() != 4 or len(split) < 2 or split.numel() == 0:
                raise InputError(f"{self.name}: images must be uint8 of shape (N, C, H, W), with N at least 2")
        if self.train.shape[1:] != self.test.shape[1:]:
            raise InputError(f"{self.name}: training and test images differ in shape")

    @property
    def image_shape(self) -> tuple[int, ...]:
        """The shape (C, H, W) of one image."""
        return tuple(self.train.shape[1:])

    @property
    def title(self) -> str:
        """Name and sizes, as they stand in the terminal and over each figure."""
        return f"{self.name} ({len(self.train):,} train / {len(self.test):,} test)"

    def describe(self) -> dict[str, object]:
        """Return what a run folder records: name, sizes, source and SHA-256 of all the pixels."""
        digest = hashlib.sha256()
        for split in (self.train, self.test):
            digest.update(split.contiguous().numpy().data)
        return {
            "name": self.name,
            "num_train": len(self.train),
            "num_test": len(self.test),
            "image_shape": list(self.image_shape),
            "source": self.source,
            "sha256": digest.hexdigest(),
        }


def binarized(images: Tensor, mode: str, split: str) -> Tensor:
    """Return the bytes that a run works on: binarized once, where the mode fixes the outcome.

        none: x      threshold: 255 [x >= 0.5]      static: 255 Bernoulli(x), drawn once

    "dynamic" draws its training images at every visit (`batches` does), and its test images once, as
    "static" does; so the test images are the same for every run.

    Args:
        images: uint8, any shape.
        mode: one of `config.BINARIZATIONS`.
        split: "train" or "test".

    Returns:
        uint8 of the same shape.
    """
    check_name("binarization", mode, BINARIZATIONS)
    if mode == "threshold":
        return (images >= 128).to(torch.uint8) * 255
    if mode == "static" or (mode == "dynamic" and split == "test"):
        generator = torch.Generator().manual_seed(_BINARIZATION_SEED[split])
        drawn = [torch.bernoulli(to_pixels(part), generator=generator) for part in images.split(1000)]
        return torch.cat([part.to(torch.uint8) for part in drawn]) * 255
    return images


def to_pixels(images: Tensor) -> Tensor:
    """Return bytes as floating-point pixels in [0, 1], in torch's default dtype."""
    return images.to(torch.get_default_dtype()).div_(255)


def batches(images: Tensor, batch_size: int, *, shuffle: bool = False, dynamic: bool = False) -> Iterator[Tensor]:
    """Yield the images as pixels in [0, 1], batch by batch; the last batch may be short.

    Args:
        images: uint8 (N, C, H, W), on the device where the batches are wanted.
        batch_size: B.
        shuffle: a new order, drawn from torch's generator.
        dynamic: draw each pixel from Bernoulli(x), anew at each visit.

    Yields:
        (B, C, H, W).
    """
    order = torch.randperm(len(images)) if shuffle else torch.arange(len(images))
    for index in order.to(images.device).split(batch_size):
        pixels = to_pixels(images[index])
        yield torch.bernoulli(pixels) if dynamic else pixels
