"""Pareto k of importance weights: how heavy their tail is, and whether their mean can be trusted."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["num_in_tail", "pareto_k", "trusted_below"]

_LEAST = 5  # weights in a tail, below which none is fitted
_ROUNDING = 1e-4  # nats, of log-weights that float32 sums give


def num_in_tail(num_particles: int) -> int:
    """Return how many of K weights are their tail: min(K / 5, 3 sqrt(K)), rounded up."""
    return math.ceil(min(num_particles / 5, 3 * math.sqrt(num_particles)))


def trusted_below(num_particles: int) -> float:
    """Return the Pareto k below which the mean of K weights can be trusted: min(1 - 1 / log10 K, 0.7).

    Reference:
        Vehtari et al., arXiv:1507.02646v9, section 3.
    """
    return min(1 - 1 / math.log10(max(2, num_particles)), 0.7)


def pareto_k(largest: Tensor) -> Tensor:
    """Return the shape k of the generalised Pareto distribution of the largest importance weights.

        p(w - u > t) = (1 + k t / sigma)^(-1 / k),     u the largest weight that is not in the tail

    A moment E[w^m] is finite for m < 1 / k. From k = 0.5 the variance of the weights is infinite, and from 1 their
    mean. The fit is the mean of a posterior, drawn towards 0.5 as if by ten more weights. It describes the weights that
    were drawn: it cannot see a mode of p(z | x) from which none came.

    Args:
        largest: the logarithms of the M + 1 largest of K weights, (M + 1, N), in any order; M = `num_in_tail(K)`.

    Returns:
        k, float64 (N,); -inf where the weights are equal to rounding, inf where fewer than 5 are above u, as where they
        tie or underflow, NaN where a weight is NaN.

    Reference:
        Zhang and Stephens, Technometrics 51, 2009, section 3 (the fit); Vehtari et al., arXiv:1507.02646v9, section 3
        (its use) and appendix H (the size of the tail).
    """
    log_w = largest.double().sort(0).values
    is_nan, log_w = log_w.isnan().any(0), log_w - log_w[-1]
    log_cutoff = log_w[0].clamp(min=math.log(torch.finfo(torch.float64).tiny))
    is_tail = log_w > log_cutoff
    num_tail = is_tail.sum(0)  # (N,)
    tail = (log_w.exp() - log_cutoff.exp()).where(is_tail, 0.0)  # (M + 1, N), ascending; log1p(0) adds nothing
    # A grid of theta = -k / sigma, whose posterior has the profile likelihood and a prior from the lower quartile.
    size = 30 + num_tail.sqrt().long()
    steps = torch.arange(int(size.max()), device=tail.device)[:, None]
    grid = 1 - (size / (steps + 0.5)).sqrt()
    quartile = tail.gather(0, (len(tail) - num_tail + (num_tail / 4 + 0.5).long() - 1).clamp(0, len(tail) - 1)[None])
    theta = (1 / tail[-1] + grid / (3 * quartile)).where(steps < size, -1.0)
    k = _shape(theta[:, None], tail, num_tail)
    posterior = (num_tail * ((-theta / k).log() - k - 1)).where(steps < size, -math.inf).softmax(0)
    found = _shape((posterior * theta).sum(0)[None], tail, num_tail)
    found = ((num_tail * found + 10 * 0.5) / (num_tail + 10)).where(num_tail >= _LEAST, math.inf)
    is_equal = log_w[0] > -_ROUNDING
    return found.where(~is_equal | (len(tail) <= _LEAST), -math.inf).where(~is_nan, math.nan)


def _shape(theta: Tensor, tail: Tensor, num_tail: Tensor) -> Tensor:
    return (-theta * tail).log1p().sum(-2) / num_tail
