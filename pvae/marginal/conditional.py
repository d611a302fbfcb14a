"""The log-likelihood log p(x_a | x_b) of a part of x given the other part."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pvae.core.batch import Batch, Data
from pvae.core.errors import InputError
from pvae.marginal.log_likelihood import log_likelihood
from pvae.marginal.log_p import LogP
from pvae.vae import VAE

__all__ = ["conditional_log_likelihood"]


def conditional_log_likelihood(
    vae: VAE, data: Data, is_given: Tensor, joint: LogP | None = None, **how: Any
) -> tuple[Tensor, LogP, LogP]:
    """Estimate log p(x_a | x_b) of the values x_a that are not given, from two estimates with missing values.

        log p(x_a | x_b) = log p(x_a, x_b) - log p(x_b)

    Both are in the mean too low (except by quadrature), so that the difference may be too low or too high. Their draws
    are independent of each other: the standard error is the root of the sum of their squared errors. Values of x that
    are missing are in neither part.

    Args:
        vae: in eval mode; it takes missing values.
        data: N data x, or a `Batch` of them with their labels.
        is_given: which values of a datum are in x_b, bool (*D).
        joint: log p(x_a, x_b) of the same data, if it is known.
        how: method and options of `log_likelihood`.

    Returns:
        log p(x_a | x_b), (N,) nats in float64, and the estimates of log p(x_a, x_b) and log p(x_b).

    Raises:
        InputError: as `log_likelihood`; or `is_given` is not boolean, or not of the shape of a datum.
    """
    batch = Batch.of(data)
    shape = next(iter(batch.x.split(1))).shape[1:]
    if is_given.dtype != torch.bool or is_given.shape != shape:
        what = f"{is_given.dtype} of the shape {tuple(is_given.shape)}"
        raise InputError(f"is_given is {what}: give booleans of the shape {tuple(shape)}, true where given")
    joint = log_likelihood(vae, batch, **how) if joint is None else joint
    x = torch.cat([part.where(is_given, torch.nan) for part in batch.x.split(1000)])
    given = log_likelihood(vae, Batch(x, batch.y), **how)
    return joint.log_p - given.log_p, joint, given
