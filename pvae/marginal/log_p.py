"""`LogP`, estimates of log p(x), which every method returns; and which VAEs have a log p(x)."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from pvae.core.batch import Batch, Data
from pvae.core.errors import InputError
from pvae.core.random_state import seeded
from pvae.distributions.joint import sites_of
from pvae.vae import VAE

METHODS = ("quadrature", "importance", "annealed")  # in the order in which they are tried
NAMES = (*METHODS, "enumeration")  # of the methods of estimates: in place of quadrature, the exact sum over few codes


class LogP(NamedTuple):
    """Estimates of log p(x) of N data.

    Args:
        log_p: nats, float64 (N,).
        stderr: their standard errors from the draws, or the errors of quadrature, (N,).
        method: the number in `NAMES` of the method of each, int64 (N,).
        is_trusted: whether the diagnostics of this method trust the estimate and its error, (N,).
        effective: the effective sample size of its weights, (N,); NaN of quadrature.
        pareto_k: the shape of the tail of the weights of importance sampling, (N,); NaN where it was not tried.
    """

    log_p: Tensor
    stderr: Tensor
    method: Tensor
    is_trusted: Tensor
    effective: Tensor
    pareto_k: Tensor

    @classmethod
    def of(cls, method: str, log_p: Tensor, stderr: Tensor, is_trusted: Tensor) -> LogP:
        """Return estimates by one method, without what is known of weights only."""
        unknown = torch.full_like(log_p, math.nan)
        by = torch.full_like(log_p, NAMES.index(method), dtype=torch.int64)
        return cls(log_p, stderr, by, is_trusted, unknown, unknown)

    @classmethod
    def of_weights(cls, method: str, log_sum: Tensor, log_sum_squares: Tensor, num_weights: int) -> LogP:
        """Return the estimates from K weights w_k for each datum, none of which is trusted yet.

            log p(x) ~ log (1/K) sum_k w_k,    effective = (sum_k w_k)^2 / sum_k w_k^2
            stderr = sqrt((K / effective - 1) / (K - 1))

        The expectation of the estimate is a lower bound. Errors are of first order, over the draws alone, and too small
        where a few weights dominate the sum. The effective sample size is between 1 and K.

        Args:
            method: of `NAMES`.
            log_sum: log sum_k w_k, (N,).
            log_sum_squares: log sum_k w_k^2, (N,).
            num_weights: K, the number of weights of each datum.
        """
        effective = (2 * log_sum - log_sum_squares).exp()
        stderr = ((num_weights / effective - 1) / max(1, num_weights - 1)).clamp(min=0).sqrt()
        estimate = cls.of(method, log_sum - math.log(num_weights), stderr, torch.zeros_like(log_sum, dtype=torch.bool))
        return estimate._replace(effective=effective)

    @property
    def mean_stderr(self) -> float:
        """Standard error of the mean of `log_p` over the N data, from the draws alone: sqrt(sum_n stderr_n^2) / N."""
        return self.stderr.square().sum().sqrt().item() / len(self.log_p)

    @property
    def bias(self) -> float:
        """What the mean is too low by, to first order: the mean of stderr_n^2 / 2, 0 of quadrature and sums.

        It does not fall with N, and is more where estimates are not trusted.
        """
        return (self.stderr.square() / 2).where(self.method != METHODS.index("quadrature"), 0.0).mean().item()

    @property
    def untrusted(self) -> float:
        """The fraction of data whose estimates cannot be trusted."""
        return (~self.is_trusted).double().mean().item()

    @property
    def counts(self) -> dict[str, int]:
        """The number of data by each method that was taken."""
        numbers = zip(NAMES, self.method.bincount(minlength=len(NAMES)).tolist())
        return {name: count for name, count in numbers if count}


@torch.no_grad()
def is_continuous(vae: VAE, data: Data) -> bool:
    """Whether every vector of real numbers is a value of the latent: it is neither discrete nor on a sphere."""
    prior = vae.given(Batch.of(data).y).prior()
    with seeded(0, next(vae.parameters(), torch.empty(0)).device):
        z = prior.sample()
    far = (-1e6 + 0.25, 1e6 + 0.25)  # both are in the support of neither integers nor one half of the line
    return all(bool(p.support.check(torch.full_like(part, at)).all()) for part, p in sites_of(prior, z) for at in far)


def check_bounding(vae: VAE) -> None:
    """Check that log p(x) is defined.

    Raises:
        InputError: it is not.
    """
    if vae.is_pseudo or not vae.is_bounding:
        what = "this is an autoencoder"
        if vae.has_density:
            what = "p(x | z) is no likelihood"
        raise InputError(f"{what}, so that there is no log p(x): train a VAE with a likelihood")


def check_continuous(vae: VAE, data: Data) -> None:
    """Check that log p(x) is defined, and is an integral over vectors of real numbers.

    Raises:
        InputError: it is not.
    """
    check_bounding(vae)
    if not is_continuous(vae, data):
        raise InputError(
            "quadrature, annealing, gaps and calibration need a latent of real numbers: leave them out, or take "
            "importance"
        )
