"""Data sets as tensors in memory: where they come from, how pixels become outcomes, and batches."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pvae.config.options import BINARIZATIONS
from pvae.core.errors import InputError, check_name, one_line

__all__ = [
    "DataRecord",
    "Dataset",
    "Pixels",
    "batch_of",
    "batches",
    "binarized",
    "linear_gaussian",
    "padded",
    "to_pixels",
]

_MOST_IMAGES, _MOST_PIXELS = 10**10, 3 * 10**8

# The same binary images for every run, whatever its seed.
_BINARIZATION_SEED = {"train": 20070501, "test": 20070502}


@dataclass(frozen=True, kw_only=True)
class DataRecord:
    """What a run folder keeps of its data: enough to find them again, and to know them for the same.

    Args:
        name: what a reader calls them.
        dataset: the name under which `sources.load_dataset` finds them; empty for data given from Python.
        folder: the folder given to it, where they were found; empty where none is needed.
        num_train: number of training images.
        num_test: number of test images.
        image_shape: (C, H, W).
        sha256: of both splits, with their shapes.
    """

    name: str
    dataset: str
    folder: str
    num_train: int
    num_test: int
    image_shape: tuple[int, ...]
    sha256: str

    def __post_init__(self) -> None:
        """Refuse what no data set has, before networks or memory are made after it."""
        counts_fit = all(2 <= count <= _MOST_IMAGES for count in (self.num_train, self.num_test))
        if not counts_fit or len(self.image_shape) != 3 or min(self.image_shape) < 1:
            raise InputError("num_train, num_test and image_shape are those of no data set")
        if math.prod(self.image_shape) > _MOST_PIXELS:
            raise InputError(f"image_shape must hold at most {_MOST_PIXELS:,} pixels")

    @property
    def title(self) -> str:
        """Name and sizes, as they stand in the terminal and over each figure."""
        return _title(self.name, self.num_train, self.num_test)


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images in memory as bytes, with a name for titles.

    Args:
        name: what a reader calls it ("MNIST").
        train: training images, uint8, (N, C, H, W).
        test: test images, uint8, (M, C, H, W).
        train_labels: classes of the training images, int64 (N,), or attributes, bool (N, A); training never sees
            them.
        test_labels: the same of the test images.
        label_names: what each class or attribute is called.
        dataset: the name under which `sources.load_dataset` finds them; empty for your own.
        folder: where that found them.
        note: what its user should know of how it was come by; one line or nothing.

    Raises:
        InputError: the tensors are no bytes, have no pixels, or differ in shape.
    """

    name: str
    train: Tensor
    test: Tensor
    train_labels: Tensor | None = None
    test_labels: Tensor | None = None
    label_names: tuple[str, ...] = ()
    dataset: str = ""
    folder: str = ""
    note: str = ""

    def __post_init__(self) -> None:
        """Refuse what is no set of images."""
        for split, images in (("train", self.train), ("test", self.test)):
            wanted = f"{self.name}: {split} must be a torch.uint8 tensor of shape (N, C, H, W) with N at least 2"
            if not isinstance(images, Tensor):
                raise InputError(f"{wanted}, not a {type(images).__name__}")
            if images.dtype != torch.uint8 or images.dim() != 4 or len(images) < 2 or images.numel() == 0:
                raise InputError(f"{wanted}, not {images.dtype} of shape {tuple(images.shape)}")
        if self.train.shape[1:] != self.test.shape[1:]:
            raise InputError(f"{self.name}: training and test images differ in shape")

    @property
    def image_shape(self) -> tuple[int, ...]:
        """The shape (C, H, W) of one image."""
        return tuple(self.train.shape[1:])

    @property
    def title(self) -> str:
        """Name and sizes."""
        return _title(self.name, len(self.train), len(self.test))

    def record(self) -> DataRecord:
        """Return what a run folder keeps of these data; every pixel is read for the checksum."""
        digest = hashlib.sha256()
        for split in (self.train, self.test):
            digest.update(f"{tuple(split.shape)}".encode())
            digest.update(split.contiguous().numpy().data)
        return DataRecord(
            name=self.name,
            dataset=self.dataset,
            folder=self.folder,
            num_train=len(self.train),
            num_test=len(self.test),
            image_shape=self.image_shape,
            sha256=digest.hexdigest(),
        )


def binarized(images: Tensor, mode: str, split: str) -> Tensor:
    """Return the bytes that a run works on: binarized once, where the mode fixes the outcome.

        none: x      threshold: 255 [x >= 0.5]      static: 255 Bernoulli(x), drawn once

    "dynamic" draws its training images at every visit (`batches` does), and its test images once, as
    "static" does; so the test images are the same for every run.

    Args:
        images: uint8, any shape.
        mode: one of `options.BINARIZATIONS`.
        split: "train" or "test".

    Returns:
        uint8 of the same shape.
    """
    check_name("binarization", mode, BINARIZATIONS)
    if mode == "threshold":
        return (images >= 128).to(torch.uint8) * 255
    if mode == "static" or (mode == "dynamic" and split == "test"):
        # A byte u, uniform over 0..254, is below v with probability v / 255: an exact Bernoulli(v / 255), and
        # RandomState's stream is frozen, so that the outcome hangs on no version and no default dtype.
        uniform = np.random.RandomState(_BINARIZATION_SEED[split]).randint(0, 255, tuple(images.shape), dtype=np.uint8)
        outcome = torch.from_numpy(np.less(uniform, images.cpu().numpy(), out=uniform.view(bool)).view(np.uint8))
        return outcome.mul_(255).to(images.device)  # all in the memory of the draws: there may be many images
    return images


def to_pixels(images: Tensor, symmetric: bool = False) -> Tensor:
    """Return bytes as float32 pixels in [0, 1], or in [-1, 1] if symmetric."""
    pixels = images.to(torch.float32).div_(255)
    return pixels.mul_(2).sub_(1) if symmetric else pixels


@dataclass(frozen=True, eq=False)
class Pixels:
    """Bytes that become pixels part by part, where all of them as floats would not fit.

    Args:
        images: uint8 (N, C, H, W).
        symmetric: pixels in [-1, 1] in place of [0, 1].
    """

    images: Tensor
    symmetric: bool = False

    def __len__(self) -> int:
        """Return N."""
        return len(self.images)

    def split(self, size: int) -> Iterator[Tensor]:
        """Yield the pixels of `size` images at a time, as `Tensor.split` does."""
        return (to_pixels(part, self.symmetric) for part in self.images.split(size))


def padded(images: Tensor, margin: int) -> Tensor:
    """Return the images with a black margin, of that many pixels on each side."""
    return torch.nn.functional.pad(images, (margin,) * 4) if margin else images


def batches(
    images: Tensor, batch_size: int, *, shuffle: bool = False, dynamic: bool = False, symmetric: bool = False
) -> Iterator[Tensor]:
    """Yield the images as pixels, batch by batch; the last batch may be short.

    Args:
        images: uint8 (N, C, H, W), on the device where the batches are wanted.
        batch_size: B.
        shuffle: a new order, drawn from torch's generator.
        dynamic: draw each pixel from Bernoulli(x), anew at each visit.
        symmetric: pixels in [-1, 1] in place of [0, 1].

    Yields:
        (B, C, H, W).
    """
    order = torch.randperm(len(images)) if shuffle else torch.arange(len(images))
    for index in order.to(images.device).split(batch_size):
        yield batch_of(images, index, dynamic=dynamic, symmetric=symmetric)


def batch_of(images: Tensor, index: Tensor, *, dynamic: bool = False, symmetric: bool = False) -> Tensor:
    """Return the pixels of some images.

    Args:
        images: uint8 (N, C, H, W).
        index: which, int64 (B,), on their device.
        dynamic: draw each pixel from Bernoulli(x).
        symmetric: pixels in [-1, 1] in place of [0, 1].

    Returns:
        (B, C, H, W).
    """
    pixels = to_pixels(images[index], symmetric)
    return torch.bernoulli(pixels) if dynamic else pixels


def linear_gaussian(num_train: int = 4000, num_test: int = 1000) -> Dataset:
    """Return images of 8 x 8 that a linear-Gaussian model drew, rounded to bytes.

        x = 1/2 + W z + 0.05 noise,    z ~ Normal(0, I) of 5 dimensions,    W with orthogonal columns

    The stream that draws them is frozen. Of such data a linear-Gaussian VAE can become the true model, but for the
    rounding; and of any data, whatever its weights, `oracle` knows its log p(x) exactly.

    Args:
        num_train: number of training images.
        num_test: number of test images.
    """
    draw = np.random.RandomState(8)
    columns, _ = np.linalg.qr(draw.standard_normal((64, 5)))
    loadings = columns * np.sqrt([0.26, 0.16, 0.11, 0.07, 0.04])
    z, noise = draw.standard_normal((num_train + num_test, 5)), draw.standard_normal((num_train + num_test, 64))
    pixels = np.clip(0.5 + z @ loadings.T + 0.05 * noise, 0, 1)
    images = torch.from_numpy(np.rint(pixels * 255).astype(np.uint8)).view(-1, 1, 8, 8)
    return Dataset("linear-Gaussian", images[:num_train], images[num_train:], dataset="linear-gaussian")


def _title(name: str, num_train: int, num_test: int) -> str:
    name = one_line(name if len(name) <= 450 else f"{name[:450]} ...")  # a folder's may hold bytes that are no text
    return f"{name} ({num_train:,} train / {num_test:,} test)"
