"""The bound on test images, in batches whose rows are divided among the processes."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from pvae.core.finite import NotFiniteError
from pvae.core.terms import Terms
from pvae.data.dataset import to_pixels
from pvae.data.mapped import release
from pvae.reference.elbo import posterior_mean_loss
from pvae.training.step import Stepper
from pvae.vae import VAE

__all__ = ["measure"]

_PIXELS = 784_000  # of a batch times particles; with one particle, 1,000 images of 28 x 28


def measure(
    stepper: Stepper, images: Tensor, beta: float, between: Callable[[], None] = lambda: None
) -> tuple[Terms, float, float | None]:
    """Return terms and loss of images, with noise from the current state of torch's generators.

    Args:
        stepper: computes the ELBO; all its processes must call this function together.
        images: uint8 (N, C, H, W).
        beta: weight of the rate in the loss.
        between: called after each batch.

    Returns:
        The terms of each image, (N,); the mean of the training loss over the images; and the mean of the loss at the
        mean of q(z | x), or None without a closed-form KL.

    Raises:
        NotFiniteError: the loss of a batch is not finite.
    """
    world, config, count = stepper.world, stepper.config, len(images)
    sums, terms = torch.zeros(2, dtype=torch.float64), torch.zeros(2, count, device=images.device)
    batch_size = max(1, _PIXELS // max(784, images[0].numel() * config.particles))
    for start in range(0, count, batch_size):
        share = world.share(min(batch_size, count - start))
        rows = slice(start + share.start, start + share.stop)
        x = to_pixels(images[rows], config.pixels == "symmetric")
        try:
            loss, measured = stepper.evaluate(x, share, beta)
            at_mean = _posterior_mean_loss(stepper.vae, x)
        except NotFiniteError:
            if world.size == 1:
                raise
            sums += math.nan  # so that all processes raise the error together, below
        else:
            if share.weight:
                sums += torch.tensor([loss * share.total, at_mean], dtype=torch.float64)
                terms[0, rows], terms[1, rows] = measured[:2]
        release(images)
        between()
    world.sum_([sums])
    world.sum_([terms])
    loss, at_mean = (sums / count).tolist()
    if math.isnan(loss):
        raise NotFiniteError("it is NaN")
    return Terms(*terms), loss, None if math.isnan(at_mean) else at_mean


@torch.no_grad()
def _posterior_mean_loss(vae: VAE, x: Tensor) -> float:
    """Return the sum over a batch, or NaN where q and p have no closed-form KL."""
    try:
        return posterior_mean_loss(vae, x).sum().item()
    except NotImplementedError:
        return math.nan
