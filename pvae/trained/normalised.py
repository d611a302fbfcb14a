"""The VAE and the data of which there is a log p(x): a likelihood that is a probability or a density, in bits too."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pvae.config.config import Config
from pvae.core.errors import InputError
from pvae.data.preparation import Pixels, Preparation
from pvae.models.build import build_vae
from pvae.runs.run import Run
from pvae.vae import VAE

__all__ = ["bits_per_dimension", "with_likelihood", "with_normalised_likelihood"]


def with_likelihood(run: Run, images: Tensor, y: Tensor | None = None) -> tuple[VAE, Pixels, str]:
    """Return a VAE whose likelihood is a probability or a density, pixels in its domain, and their kind.

    They are those of `with_normalised_likelihood` for bytes `images` (N, C, H, W), given labels y if there are some.
    """
    return with_normalised_likelihood(
        run.config, run.vae().given(y), run.data.datum_shape, images, len(run.data.label_names)
    )


def with_normalised_likelihood(
    config: Config, vae: VAE, datum_shape: Sequence[int], images: Tensor, num_labels: int = 0
) -> tuple[VAE, Pixels, str]:
    """Return a VAE whose likelihood is a probability or a density, images in its domain, and the kind of their pixels.

    A VAE with a pseudo-Bernoulli of grey pixels is replaced by one with a Bernoulli of binary pixels and the same
    networks.

    Args:
        config: configuration of the VAE.
        vae: in eval mode.
        datum_shape: shape of the images of the data, before padding.
        images: test images of the data, as bytes.
        num_labels: number of classes or attributes of the data.

    Raises:
        InputError: the VAE was built in Python, and its likelihood is a pseudo-likelihood.
    """
    preparation = Preparation.of(config)
    if not vae.is_pseudo:
        pixels = preparation.pixels(images)
        return vae, pixels, preparation.kind if pixels.is_bytes else ""
    config = config.replace(binarize="static")
    with torch.random.fork_rng(devices=[]):
        binary = build_vae(config, datum_shape, num_labels)
    try:
        binary.load_state_dict(vae.state_dict())
    except RuntimeError:  # a VAE that was built in Python
        raise InputError(
            "p(x | z) is a pseudo-likelihood, and log p(x) needs a likelihood: give one to the VAE"
        ) from None
    kind = "binarized: each drawn once, with its grey value as probability"
    return binary.eval().given(getattr(vae, "y", None)), Preparation.of(config).pixels(images), kind


def bits_per_dimension(vae: VAE, log_p: Tensor, x: Pixels) -> Tensor:
    """Return a log-likelihood, or a bound on it, in bits for each of the D values of an image.

        -log_p / (D log 2) + log2(levels)

    levels is 1 for a probability, and for a density of other data than images, in whose units it is. A density of
    images is multiplied by the distance 1 / levels between two 8-bit levels: this is not the probability of the bytes,
    and it is wrong for scales near that distance.

    Args:
        vae: whose likelihood says how many levels there are in an interval of length 1.
        log_p: nats, (N,).
        x: the N images.

    Returns:
        Bits, float64 (N,), lower is better.
    """
    levels: float = getattr(vae.p_x, "levels_per_unit", 1.0) if x.is_bytes else 1.0
    return (-log_p.double() / x.images[0].numel() + math.log(levels)) / math.log(2)
