"""Importance-weighted bounds as Pyro ELBOs. `pvae.reference.bounds` has the same written by hand.

`tests/elbos/test_bounds.py` compares the two, and `tests/reference/test_linear_gaussian.py` compares both with the
exact log p(x).
"""

from __future__ import annotations

import math
from typing import Annotated

import torch
from torch import Tensor

from pvae.core.options import Option
from pvae.elbos.base import PerDatumELBO
from pvae.elbos.sites import Draws

__all__ = ["CIWAE", "IWAE", "MIWAE", "Groups", "ImportanceELBO", "RenyiELBO", "log_mean_exp"]

_ALPHA = (
    "order of the Renyi bound: 0 is iwae, 1 the ELBO, -inf the largest weight (VR-max); below 0 the objective is not a "
    "lower bound. The reported elbo is the ELBO"
)
_Alpha = Annotated[float, Option(help=_ALPHA, least=-math.inf, most=1e38)]
_Mix = Annotated[float, Option(help="share of the ELBO in the bound, the rest is iwae", most=1.0)]
Groups = Annotated[int, Option(help="number of groups into which the K particles are divided", least=1, most=10**6)]


class ImportanceELBO(PerDatumELBO):
    """Base class of the ELBOs whose loss is a bound computed from the draws in Pyro's traces.

        loss = - mean over the batch of the bound, in nats per datum

    Args:
        num_particles: K, the number of draws of z for each datum.
    """

    is_importance_weighted = True

    def __init__(self, num_particles: int = 1) -> None:
        super().__init__(num_particles)

    def loss_of(self, draws: Draws, distortion: Tensor, rate: Tensor, beta: float | Tensor) -> Tensor:
        """Return the loss, a scalar, of the draws."""
        return -self.bound(draws, beta).mean()

    def bound(self, draws: Draws, beta: float | Tensor) -> Tensor:
        """Return the bound of each datum, (B,); beta weighs the rate in those bounds that have one."""
        raise NotImplementedError


class IWAE(ImportanceELBO, name="iwae", help="the importance-weighted bound"):
    """The importance-weighted bound; `pvae.reference.bounds.iwae` describes its weaknesses.

        L_K(x) = E [ log (1/K) sum_k w_k ],    w_k = p(x, z_k) / q(z_k | x),    L_1 <= L_K <= log p(x)

    L_1 is the ELBO. Pyro's `RenyiELBO(alpha=0)` is the same bound, but has no `differentiable_loss`.

    Args:
        num_particles: K, the number of draws of z for each datum.

    Reference:
        Burda, Grosse and Salakhutdinov, arXiv:1509.00519, equation 8.
    """

    def bound(self, draws: Draws, beta: float | Tensor) -> Tensor:
        """Return L_K of each datum, (B,)."""
        return log_mean_exp(draws.log_w)


class RenyiELBO(ImportanceELBO, name="renyi", help="the Renyi bound of order --alpha"):
    """The variational Renyi bound, between the ELBO and the importance-weighted bound.

        L(x) = E [ 1 / (1 - alpha) log (1/K) sum_k w_k^(1 - alpha) ]

    Args:
        num_particles: K, the number of draws of z for each datum.
        alpha: 0 is the importance-weighted bound, 1 the ELBO; below 0 it is not a lower bound on log p(x); -inf is
            max_k log w_k, "VR-max".

    Reference:
        Li and Turner, arXiv:1602.02311, equation 5; they name VR-max.
    """

    def __init__(self, num_particles: int = 1, alpha: _Alpha = 0.5) -> None:
        super().__init__(num_particles)
        self.alpha = alpha

    def bound(self, draws: Draws, beta: float | Tensor) -> Tensor:
        """Return the bound of each datum, (B,)."""
        if self.alpha == 1:
            return draws.log_w.mean(0)
        if self.alpha < -1e38:  # -inf, or too large for what is below
            return draws.log_w.max(0).values
        log_w = draws.log_w  # in float64, since near alpha = 1 the division makes rounding large
        return (log_mean_exp((1 - self.alpha) * log_w.double()) / (1 - self.alpha)).to(log_w.dtype)


class CIWAE(ImportanceELBO, name="ciwae", help="a mix of the ELBO and iwae"):
    """The convex mix of ELBO and importance-weighted bound.

        L(x) = E [ mix (1/K) sum_k log w_k + (1 - mix) log (1/K) sum_k w_k ]

    Args:
        num_particles: K, the number of draws of z for each datum.
        mix: 1 is the ELBO, 0 the importance-weighted bound.

    Reference:
        Rainforth et al., arXiv:1802.04537.
    """

    def __init__(self, num_particles: int = 1, mix: _Mix = 0.5) -> None:
        super().__init__(num_particles)
        self.mix = mix

    def bound(self, draws: Draws, beta: float | Tensor) -> Tensor:
        """Return the bound of each datum, (B,)."""
        return self.mix * draws.log_w.mean(0) + (1 - self.mix) * log_mean_exp(draws.log_w)


class MIWAE(ImportanceELBO, name="miwae", help="the mean of iwae over --groups groups of draws"):
    """The mean of M importance-weighted bounds of K / M draws each.

        L(x) = E [ (1/M) sum_m log (M/K) sum_{k in group m} w_k ]

    Args:
        num_particles: K, the number of draws of z for each datum, a multiple of M.
        groups: M, the number of groups; 1 is the importance-weighted bound, K the ELBO.

    Reference:
        Rainforth et al., arXiv:1802.04537.
    """

    def __init__(self, num_particles: int = 1, groups: Groups = 1) -> None:
        super().__init__(num_particles)
        self.groups = groups

    def bound(self, draws: Draws, beta: float | Tensor) -> Tensor:
        """Return the bound of each datum, (B,)."""
        return log_mean_exp(draws.log_w.unflatten(0, (self.groups, -1)).transpose(0, 1)).mean(0)


def log_mean_exp(values: Tensor) -> Tensor:
    """Return log (1/K) sum_k exp(values_k), (...), of values (K, ...)."""
    return torch.logsumexp(values, 0) - math.log(len(values))
