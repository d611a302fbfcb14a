"""The bits of test images as PNG and lossless WebP files, beside which a model of images is weighed."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pvae.evaluation.context import Context, Measure, said
from pvae.trained.scores import Estimate

_MOST_IMAGES = 300
_HEADERS = {"PNG": 8 + 25 + 12 + 12, "WEBP": 12 + 8 + 5}  # bytes: signature and empty chunks
_OPTIONS: dict[str, dict[str, Any]] = {
    "PNG": {"optimize": True},
    "WEBP": {"lossless": True, "quality": 100, "method": 6},
}


@dataclass(frozen=True, kw_only=True)
class LosslessFiles(Measure):
    """Test images as files that lose nothing, in bits per dimension: means over at most 300 of them, evenly spaced.

    A file format is a code that knows nothing of the images in advance, and no probability: it shows what neighbouring
    pixels tell of one another. The bytes of a header, which every file has, are not counted.

    Args:
        bits: of the ELBO of all test images.
        png: as PNG.
        webp: as lossless WebP; None where Pillow cannot write it.
    """

    title = "the same images as files"

    bits: float
    png: Estimate = said("PNG", "bits per dimension: a code, and no probability")
    webp: Estimate | None = said("lossless WebP", "the same")

    @classmethod
    def of(cls, context: Context) -> LosslessFiles | None:
        """Return that of images of bytes or of two values, in grey or colours; None of other data."""
        run = context.run
        num_colours = run.data.datum_shape[0]
        has_levels = run.config.likelihood_class.has_levels or run.config.binarize == "threshold"
        if not (run.data.is_images and has_levels and num_colours in (1, 3)):
            return None
        count = len(context.seen)
        if count < 2:
            return None
        few = context.seen.rows(slice(0, count, math.ceil(count / _MOST_IMAGES)))
        (x,) = few.x.split(len(few))
        elbo = context.terms["elbo"].mean().item()
        return cls(bits=-elbo / (x[0].numel() * math.log(2)), png=bits_as(x, "PNG"), webp=_webp(x))

    @property
    def verdict(self) -> str:
        """How many bits fewer or more the model needs."""
        parts = []
        for name, bits in (("PNG", self.png), ("lossless WebP", self.webp)):
            if bits is not None:
                more = "fewer" if self.bits < bits.mean else "more"
                parts.append(f"{abs(self.bits - bits.mean):.2f} {more} than {name}")
        first, *others = parts
        return ", ".join([first.replace(" ", " bits per dimension ", 1), *others])

    def warnings(self) -> Iterator[str]:
        """Yield that a file format describes the images better."""
        if self.bits > self.png.mean:
            yield f"warning: PNG describes these images better, by {self.bits - self.png.mean:.2f} bits per dimension"


def bits_as(x: Tensor, form: str) -> Estimate:
    """Return the mean size of images in a file format, without its header, in bits per dimension.

    Args:
        x: pixels k / 255, (N, 1 or 3, H, W), N at least 2; those of 0 and 1 alone are written in one bit.
        form: "PNG" or "WEBP".
    """
    from PIL import Image

    is_binary = bool(((x == 0) | (x == 1)).all())
    sizes = []
    for image in (x * 255).round().to(torch.uint8).movedim(1, -1).squeeze(-1).numpy(force=True):
        picture = Image.fromarray(image)
        if is_binary and form == "PNG":
            picture = picture.convert("1", dither=Image.Dither.NONE)
        file = io.BytesIO()
        picture.save(file, form, **_OPTIONS[form])
        sizes.append(8 * (len(file.getvalue()) - _HEADERS[form]) / image.size)
    return Estimate.of(torch.tensor(sizes))


def _webp(x: Tensor) -> Estimate | None:
    from PIL import features

    if not features.check("webp"):
        return None
    return bits_as(x, "WEBP")
