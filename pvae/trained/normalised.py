"""What log p(x) needs: a VAE with a normalised likelihood, and data in its domain; bits per dimension."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pvae.config.build import build_vae
from pvae.config.config import Config
from pvae.core.batch import Batch
from pvae.core.errors import InputError
from pvae.data.preparation import Pixels, Preparation
from pvae.runs.run import Run
from pvae.trained.estimate import Estimate
from pvae.vae import VAE

__all__ = ["bits_of", "bits_per_dimension", "with_likelihood", "with_normalised_likelihood"]


def with_likelihood(
    run: Run, x: Tensor, y: Tensor | None = None, rows: Tensor | None = None, split: str = "test"
) -> tuple[VAE, Batch, str]:
    """Return `with_normalised_likelihood` for the VAE of a run."""
    num_labels = len(run.data.label_names)
    return with_normalised_likelihood(
        run.config, run.vae(), run.data.datum_shape, x, y, rows, num_labels, run.has_own_vae, split
    )


def with_normalised_likelihood(
    config: Config,
    vae: VAE,
    datum_shape: Sequence[int],
    x: Tensor,
    y: Tensor | None = None,
    rows: Tensor | None = None,
    num_labels: int = 0,
    has_own_vae: bool = False,
    split: str = "test",
) -> tuple[VAE, Batch, str]:
    """Return a VAE whose likelihood is a probability or a density, data in its domain, and the kind of their pixels.

    A VAE with a pseudo-Bernoulli of grey pixels is replaced by one with a Bernoulli of binary pixels and the same
    networks.

    Args:
        config: configuration of the VAE.
        vae: in eval mode.
        datum_shape: shape of the images of the data, before padding.
        x: data: images as bytes, or other data.
        y: their labels, if the VAE takes labels.
        rows: the data to take, int64 (M,); all by default. A pixel is binarized by its place among all.
        num_labels: number of classes or attributes of the data.
        has_own_vae: the VAE was built in Python.
        split: of the data, "train", "valid" or "test", each of which is binarized by draws of its own.

    Raises:
        InputError: the VAE was built in Python, and its likelihood is a pseudo-likelihood.
    """
    kind = ""
    if vae.is_pseudo:
        config = config.replace(binarize="static")
        with torch.random.fork_rng(devices=[]):
            binary = build_vae(config, datum_shape, num_labels).eval()
        try:
            binary.load_state_dict(vae.state_dict())
        except RuntimeError:  # a VAE that was built in Python
            raise InputError(
                "p(x | z) is a pseudo-likelihood, and log p(x) needs a likelihood: give one to the VAE"
            ) from None
        vae, kind = binary, "binarized: each drawn once, with its grey value as probability"
    preparation = Preparation.of(config, has_own_vae)
    pixels = preparation.pixels(x, split, rows)
    batch = Batch(pixels, y if y is None or rows is None or len(y) == 1 else y[rows])
    return vae, batch, kind or (preparation.kind if pixels.is_bytes else "")


def bits_per_dimension(vae: VAE, log_p: Tensor, x: Pixels) -> Tensor | None:
    """Return a log-likelihood, or a bound on it, in bits for each of the D values of a datum that are not missing.

        -log_p / (D log 2) + log2(levels)

    levels is 1 for a probability. A density of images is multiplied by the distance 1 / levels between two 8-bit
    levels: this is not the probability of the bytes, and it is wrong for scales near that distance. A density of other
    data depends on their units, which the columns of a table do not share, and has no bits.

    Args:
        vae: whose likelihood says whether it is a density, and how many levels there are in an interval of length 1.
        log_p: nats, (N,).
        x: the N data.

    Returns:
        Bits, float64 (N,), lower is better; or None for a density of data that are no images.
    """
    parts = getattr(vae.p_x, "parts", [vae.p_x])  # of columns
    if not x.is_bytes and any(getattr(part, "is_density", True) for part in parts):
        return None
    levels: float = getattr(vae.p_x, "levels_per_unit", 1.0) if x.is_bytes else 1.0
    num_values = (~x.images.isnan()).flatten(1).sum(1).clamp(min=1)
    return (-log_p.double() / num_values + math.log(levels)) / math.log(2)


def bits_of(vae: VAE, log_p: Tensor, x: Pixels) -> Estimate | None:
    """Return the mean of `bits_per_dimension` over data, with its error."""
    bits = bits_per_dimension(vae, log_p, x)
    return None if bits is None else Estimate.of(bits)
