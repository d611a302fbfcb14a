"""Why a loss or a gradient is NaN or infinite, and what to do about it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro
import torch
from torch import Tensor

from pvae.core.errors import listed
from pvae.data.batch import Batch
from pvae.vae import VAE

__all__ = ["cause_of"]

_SMALLER_STEPS = "train anew with a smaller --lr, or with --clip-norm 100"
_GREATEST_SCALE = 1e6
_SCALES = {  # of each distribution: its name in messages, the least scale, and what to do
    # Pixels are in [0, 1], at distances of 1/255 = 0.004. A density of images that are reproduced exactly has no limit.
    "p_x": ("p(x | z)", 1e-4, f"give a fixed --scale, or --likelihood discretized-logistic; or {_SMALLER_STEPS}"),
    "q_z": ("q(z | x)", 1e-30, _SMALLER_STEPS),
    "p_z": ("p(z)", 1e-30, _SMALLER_STEPS),
}
_OUTLIER = 1000.0  # an image is an outlier if its loss is more than this multiple of the median of its batch


@torch.no_grad()
def cause_of(vae: VAE, batch: Batch, names: Sequence[str]) -> str:
    """Return why the loss or the gradient of a batch is not finite, and what to do, as one clause.

    The causes, in the order in which they are looked for: parameters that are not finite; a few images of the batch,
    found by computing the loss of one image at a time in eval mode; a scale of p(x | z), q(z | x) or p(z) close to 0 or
    very large; and otherwise steps that are too large.

    Args:
        vae: at the parameters before the step.
        batch: B data x, with their labels if the VAE takes labels.
        names: of each image, for the message.
    """
    broken = [name for name, value in vae.named_parameters() if not value.isfinite().all()]
    if broken:
        return f"{listed(broken)} {'is' if len(broken) == 1 else 'are'} NaN or infinite already: {_SMALLER_STEPS}"
    vae.eval()
    with pyro.validation_enabled(False):  # a scale of 0 is a cause to name, and not an error
        parts = [_loss_and_scales(vae.given(part.y), part.x) for part in batch.split(1)]
    losses = torch.tensor([abs(loss) for loss, _ in parts])
    outliers = ~(losses <= _OUTLIER * losses[losses.isfinite()].median()) if losses.isfinite().any() else losses == 0
    if 0 < outliers.sum() <= len(batch) // 2:
        found = [name for name, is_one in zip(names, outliers) if is_one]
        return f"{listed(found)} alone of the {len(batch)} images of the batch: look at it, and leave it out"
    for name, (role, least, advice) in _SCALES.items():
        scales = [scale for _, of in parts for scale in of.get(name, ())]
        if scales and not (min(scales) > least and max(scales) < _GREATEST_SCALE):
            return f"the scale of {role} lies between {min(scales):.1e} and {max(scales):.1e}: {advice}"
    return f"no single image is the cause: {_SMALLER_STEPS}"


def _loss_and_scales(vae: VAE, x: Tensor) -> tuple[float, dict[str, tuple[float, float]]]:
    """Return -ELBO of one image, or NaN, and the least and the greatest scale of each distribution that has one."""
    scales: dict[str, tuple[float, float]] = {}

    def noted(name: str, distribution: Any) -> Any:
        base = distribution
        while hasattr(base, "base_dist"):
            base = base.base_dist
        if isinstance(scale := getattr(base, "scale", None), Tensor):
            scales[name] = scale.min().item(), scale.max().item()
        return distribution

    try:
        prior, posterior = noted("p_z", vae.prior()), noted("q_z", vae.posterior(x))
        z = posterior.sample()
        log_p_x = noted("p_x", vae.likelihood(z)).log_prob(x)
        rate = posterior.log_prob(z) - prior.log_prob(z) if vae.has_density else 0.0
        return (rate - log_p_x).sum().item(), scales
    except (ValueError, RuntimeError):  # a distribution refuses a parameter that is NaN
        return float("nan"), scales
