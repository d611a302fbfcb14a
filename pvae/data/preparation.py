"""`Preparation`, the conversion of images from bytes to the x of a VAE and back; other data are x as they are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from pvae.core.batch import Batch
from pvae.core.options import Option

# The binary images do not depend on the seed of a run.
_BINARIZATION_SEED = {"train": 20070501, "test": 20070502, "valid": 20070503, "calibration": 20070504}


@dataclass(frozen=True)
class Preparation:
    """How the bytes of images become the x of a VAE: binarized, padded, and scaled to [0, 1] or [-1, 1].

    Other data become float32, binarized if asked for. `prepared` returns bytes of images or floats, and `x` floats.

    Args:
        binarize: "none", "threshold", "static" or "dynamic".
        pad: black pixels added on each side.
        pixels: "unit", in [0, 1], or "symmetric", in [-1, 1].
        is_exact: other data that float32 does not hold exactly, of type float64 or int64 for instance, become float64,
            for a VAE that takes values in any unit.
    """

    binarize: Annotated[
        str,
        Option(
            help="none: pixels stay grey, and the bound of a Bernoulli is a pseudo-ELBO; threshold: at 0.5; static: "
            "each drawn once with its grey value as probability; dynamic: drawn anew at every visit",
            choices=("none", "threshold", "static", "dynamic"),
        ),
    ] = "none"
    pad: Annotated[int, Option(help="black pixels added on each side of the images", most=1000)] = 0
    pixels: Annotated[str, Option(help="unit: [0, 1]; symmetric: [-1, 1]", choices=("unit", "symmetric"))] = "unit"
    is_exact: bool = False

    @property
    def is_symmetric(self) -> bool:
        """Whether pixels are in [-1, 1] in place of [0, 1]."""
        return self.pixels == "symmetric"

    @property
    def is_dynamic(self) -> bool:
        """Whether training images are binarized anew at every visit."""
        return self.binarize == "dynamic"

    @property
    def kind(self) -> str:
        """The values of a pixel: "binary", "in [0, 1]" or "in [-1, 1]"."""
        if self.binarize != "none":
            return "binary"
        return "in [-1, 1]" if self.is_symmetric else "in [0, 1]"

    def binarized(self, images: Tensor, split: str) -> Tensor:
        """Return the images binarized.

            none: x      threshold: 255 [x >= 0.5]      static, dynamic: 255 Bernoulli(x), drawn once

        The draws are the same in every run.

        Args:
            images: uint8, any shape.
            split: "train", "valid", "calibration" or "test", each of which has its own draws.

        Returns:
            uint8 of the same shape.
        """
        if self.binarize == "none":
            return images
        if images.dtype != torch.uint8:  # by the threshold alone
            return torch.where(images.isnan(), images, (images >= 0.5).to(images.dtype))
        if self.binarize == "threshold":
            return (images >= 128).to(torch.uint8) * 255
        # A byte u, uniform over 0..254, is below v with probability v / 255: an exact Bernoulli(v / 255). RandomState
        # gives the same numbers in every version of numpy.
        uniform = np.random.RandomState(_BINARIZATION_SEED[split]).randint(0, 255, tuple(images.shape), dtype=np.uint8)
        outcome = torch.from_numpy(np.less(uniform, images.cpu().numpy(), out=uniform.view(bool)).view(np.uint8))
        return outcome.mul_(255).to(images.device)  # in place, to save memory

    def prepared(self, images: Tensor, split: str, is_redrawn: bool = False) -> Tensor:
        """Return images binarized and padded, as bytes, or other data binarized, as floats.

        Args:
            images: uint8 (N, C, H, W), or other data.
            split: as for `binarized`.
            is_redrawn: leave the images of "dynamic" grey, since `batch` will draw them.
        """
        if images.dtype != torch.uint8 or images.dim() != 4:
            is_double = self.is_exact and images.dtype in (torch.float64, torch.int32, torch.int64)
            images = images.to(torch.float64 if is_double else torch.float32)
        if not (is_redrawn and self.is_dynamic):
            images = self.binarized(images, split)
        return torch.nn.functional.pad(images, (self.pad,) * 4) if self.pad else images

    def x(self, prepared: Tensor) -> Tensor:
        """Return prepared bytes as float32 pixels in [0, 1], or in [-1, 1] if symmetric; other data as they are."""
        if prepared.dtype != torch.uint8:
            return prepared
        pixels = prepared.to(torch.float32).div_(255)
        return pixels.mul_(2).sub_(1) if self.is_symmetric else pixels

    def batch(self, prepared: Tensor, index: Tensor) -> Tensor:
        """Return a batch of training images as pixels; those of "dynamic" are drawn from torch's generator.

        Args:
            prepared: `prepared(images, "train", is_redrawn=True)`.
            index: indices of the batch, int64 (B,), on the device of `prepared`.

        Returns:
            (B, C, H, W).
        """
        pixels = self.x(prepared[index])
        return torch.bernoulli(pixels) if self.is_dynamic else pixels

    def x_of(self, images: Tensor, split: str = "test", rows: Tensor | None = None) -> Pixels:
        """Return the images, or those of the rows int64 (M,), as x, converted in parts."""
        if rows is not None and self.binarize in ("static", "dynamic"):  # drawn by the place of each among all images
            return Pixels(self.prepared(images, split)[rows], self)
        return Pixels(self.prepared(images if rows is None else images[rows], split), self)

    def shown(self, x: Tensor) -> Tensor:
        """Return x, or a mean of p(x | z), as pixels in [0, 1]."""
        return 0.5 * (x + 1) if self.is_symmetric else x


@dataclass(frozen=True, eq=False)
class Pixels:
    """Prepared images in memory as bytes, which `split` converts to float pixels in parts.

    Args:
        images: uint8 (N, C, H, W).
        preparation: converts them.
    """

    images: Tensor
    preparation: Preparation = Preparation()  # frozen

    def __len__(self) -> int:
        """Return N."""
        return len(self.images)

    def __getitem__(self, index: Tensor | slice) -> Pixels:
        """Return the images of an index, int64 (M,), or of a slice."""
        return Pixels(self.images[index], self.preparation)

    @property
    def is_bytes(self) -> bool:
        """Whether they are images as bytes, and not other data."""
        return self.images.dtype == torch.uint8

    def split(self, size: int) -> Iterator[Tensor]:
        """Yield the pixels of `size` images at a time, as `Tensor.split` does."""
        yield from map(self.preparation.x, self.images.split(size))


@dataclass(frozen=True, eq=False)
class TrainingData:
    """Training data, prepared once; the pixels of "dynamic" are drawn anew for each batch."""

    prepared: Tensor
    preparation: Preparation
    y: Tensor | None
    num_sample: int | None = None

    def __len__(self) -> int:
        """Return N."""
        return len(self.prepared)

    @property
    def sample(self) -> Tensor:
        """The prepared training data, or the first of them, on which what is not the loop may depend."""
        return self.prepared[: self.num_sample]

    def order(self, passes: int, num_visits: int) -> Tensor:
        """Return the order of the data in an epoch, int64 (num_visits,), a random one for each pass."""
        return torch.cat([torch.randperm(len(self)) for _ in range(passes)])[:num_visits]

    def batch(self, index: Tensor) -> Batch:
        """Return the data of an index, int64 (B,), on the device of the data."""
        return Batch(self.preparation.batch(self.prepared, index), None if self.y is None else self.y[index])
