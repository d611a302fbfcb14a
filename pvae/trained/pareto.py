"""Pareto k of importance weights: how heavy their tail is, and whether their mean can be trusted."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["num_in_tail", "pareto_k", "trusted_below"]

_LEAST = 5  # weights in a tail, below which none is fitted


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
        k, float64 (N,); -inf where the weights are equal, inf where M is less than 5, NaN where a weight is NaN.

    Reference:
        Zhang and Stephens, Technometrics 51, 2009, section 3 (the fit); Vehtari et al., arXiv:1507.02646v9, section 3
        (its use) and appendix H (the size of the tail).
    """
    log_w = largest.double().sort(0).values
    num_tail = len(log_w) - 1
    if num_tail < _LEAST:
        return torch.full_like(log_w[0], math.inf)
    weights = (log_w - log_w[-1]).exp()
    tail = (weights[1:] - weights[0]).clamp(min=torch.finfo(torch.float64).tiny)  # (M, N), ascending
    # A grid of theta = -k / sigma, whose posterior has the profile likelihood and a prior from the lower quartile.
    size = 30 + math.isqrt(num_tail)
    grid = 1 - (size / (torch.arange(size, dtype=torch.float64, device=tail.device) + 0.5)).sqrt()
    theta = 1 / tail[-1] + grid[:, None] / (3 * tail[int(num_tail / 4 + 0.5) - 1])
    k = _shape(theta[:, None], tail)
    posterior = (num_tail * ((-theta / k).log() - k - 1)).softmax(0)
    found = _shape((posterior * theta).sum(0)[None], tail)
    return ((num_tail * found + 10 * 0.5) / (num_tail + 10)).where(weights[0] != 1, -math.inf)


def _shape(theta: Tensor, tail: Tensor) -> Tensor:
    return (-theta * tail).log1p().mean(-2)
