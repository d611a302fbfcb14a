"""The bound on held-out images, in batches, of which each process measures its part."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from pvae.core.finite import NotFiniteError
from pvae.core.terms import Terms
from pvae.data.dataset import to_pixels
from pvae.reference.elbo import posterior_mean_loss
from pvae.training.step import Stepper
from pvae.vae import VAE

__all__ = ["HeldOut", "measure"]

# Batches are of 1,000 images of 28 x 28; larger images, or more particles, come in smaller ones.
_PIXELS = 784_000


class HeldOut(NamedTuple):
    """What was measured on held-out images.

    Attributes:
        terms: of each image, (N,).
        loss: the mean over the images of what training minimises.
        posterior_mean_loss: the mean of the loss at the mean of q(z | x); None without a closed-form KL.
    """

    terms: Terms
    loss: float
    posterior_mean_loss: float | None


def measure(stepper: Stepper, images: Tensor, beta: float, between: Callable[[], None] = lambda: None) -> HeldOut:
    """Measure the bound of a VAE as it is, with the noise that comes next from torch's generators.

    Args:
        stepper: whose ELBO it is; all of its processes must measure together.
        images: uint8 (N, C, H, W).
        beta: weight of the rate in the loss.
        between: called after each batch.

    Raises:
        NotFiniteError: the loss of a batch is no finite number.
    """
    world, config, count = stepper.world, stepper.config, len(images)
    sums, terms = torch.zeros(2, dtype=torch.float64), torch.zeros(2, count, device=images.device)
    batch_size = max(1, _PIXELS // max(784, images[0].numel() * config.particles))
    for start in range(0, count, batch_size):
        share = world.share(min(batch_size, count - start))
        rows = slice(start + share.start, start + share.stop)
        x = to_pixels(images[rows], config.pixels == "symmetric")
        try:
            loss, found = stepper.evaluate(x, share, beta)
            at_mean = _posterior_mean_loss(stepper.vae, x)
        except NotFiniteError:
            if world.size == 1:
                raise
            sums += math.nan  # all processes refuse it together, below
        else:
            if share.weight:
                sums += torch.tensor([loss * share.total, at_mean], dtype=torch.float64)
                terms[0, rows], terms[1, rows] = found[:2]
        between()
    world.sum_([sums])
    world.sum_([terms])
    loss, at_mean = (sums / count).tolist()
    if math.isnan(loss):
        raise NotFiniteError("it is NaN")
    return HeldOut(Terms(*terms), loss, None if math.isnan(at_mean) else at_mean)


@torch.no_grad()
def _posterior_mean_loss(vae: VAE, x: Tensor) -> float:
    """Return the sum over a batch, or NaN where q and p have no closed-form KL."""
    try:
        return posterior_mean_loss(vae, x).sum().item()
    except NotImplementedError:
        return math.nan
