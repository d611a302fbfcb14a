"""Fill in missing values by a trained VAE."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pvae.data.batch import Batch, Data
from pvae.distributions.columns import Columns
from pvae.trained.chunks import data_at_once
from pvae.vae import VAE

__all__ = ["Imputed", "impute"]


class Imputed(NamedTuple):
    """Data whose missing values are filled in, (N, *shape), and the standard error of each from the draws of z.

    Of a category or a binary column of `Columns` the most likely code is filled in, whose error is NaN.
    """

    filled: Tensor
    stderr: Tensor


@torch.no_grad()
def impute(vae: VAE, data: Data, num_particles: int = 200) -> Imputed:
    """Fill in what is missing: the mean of p(x missing | x observed), by self-normalised importance sampling.

        E[x missing | x observed] ~ sum_k w_k E[x | z_k] / sum_k w_k,    w_k = p(x observed, z_k) / q(z_k | x observed)

    Of a category its probabilities are averaged, and the most likely one is taken.

    Args:
        vae: in eval mode, with `Config.missing`.
        data: N data x, or a `Batch` of them with their labels; NaN is missing.
        num_particles: K.

    Returns:
        The data, with means in place of NaN, and the delta-method standard error of these; 0 where nothing is missing.

    Reference:
        Mattei and Frellsen, arXiv:1812.02633, "single imputation".
    """
    batch, filled, stderr = Batch.of(data), list[Tensor](), list[Tensor]()
    for part in batch.split(data_at_once(vae, batch, num_particles)):
        x, given = part.x, vae.given(part.y)
        q = given.posterior(x)
        z = q.sample((num_particles,))
        log_w = given.log_likelihood(x, z) + given.prior().log_prob(z) - q.log_prob(z)
        weight = log_w.softmax(0).reshape(*log_w.shape, *[1] * (x.dim() - 1))
        p_x = given.likelihood(z)
        means = p_x.features if isinstance(p_x, Columns) else p_x.mean
        mean, is_missing = (weight * means).sum(0), x.isnan()
        error = (weight * (means - mean)).square().sum(0).sqrt()
        if isinstance(p_x, Columns):
            nan = torch.full_like(x, torch.nan)
            mean, error = p_x.from_features(mean), torch.where(p_x.has_mean, p_x.from_features(error), nan)
        filled.append(torch.where(is_missing, mean, x))
        stderr.append(torch.where(is_missing, error, torch.zeros_like(error)))
    return Imputed(torch.cat(filled), torch.cat(stderr))
