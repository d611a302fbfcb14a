"""Where the ELBO loses nats: in the family of q, or because an encoder computes q for all data."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from pyro.distributions import MultivariateNormal
from torch import Tensor

from pvae.compile.graph import Function, record
from pvae.core.tracing import deferred
from pvae.data.batch import Batch, Data
from pvae.trained.annealing import check_continuous
from pvae.trained.chunks import data_at_once
from pvae.vae import VAE

__all__ = ["BestElbo", "best_elbo"]

_STEPS, _CHECKS = 100, 10  # between two checks of the bound; checks without a better one, after which it ends
_DRAWS = 1000  # for the final bound, and for mean and spread of q(z | x), from which the search starts


class BestElbo(NamedTuple):
    """The ELBO L[q*] of each datum, (N,) nats, from 1,000 draws of the best q* of a family, and its standard errors.

    Args:
        normal: of Normals with independent dimensions.
        normal_stderr: of `normal`.
        full: of Normals with any covariance.
        full_stderr: of `full`.
    """

    normal: Tensor
    normal_stderr: Tensor
    full: Tensor
    full_stderr: Tensor


def best_elbo(vae: VAE, data: Data, num_particles: int = 100, lr: float = 1e-3) -> BestElbo:
    """Return the ELBO of each datum at the best q* of two families, which is fitted to this datum alone.

        log p(x) - L[q]  =  (log p(x) - L[q*])  +  (L[q*] - L[q]),     L[q*] = max over q in the family of L[q]

    The first part is the approximation gap of the family, the second one the amortisation gap of the encoder; a wider
    encoder can close the second one only. q* starts at the mean and the spread of q(z | x), and that of full covariance
    at the best of independent dimensions. Adam fits it to all data of a batch at once, until ten checks in a row, each
    of the mean of 100 steps, find no better bound. It may end in a mode of p(z | x) that is not the best one.

    Args:
        vae: in eval mode; its latent is any vector of real numbers.
        data: N data x, or a `Batch` of them with their labels.
        num_particles: draws of z for each datum and step.
        lr: of Adam.

    Raises:
        InputError: the latent is discrete or on a sphere, or the VAE has no log p(x), or reads values.

    Reference:
        Cremer, Li and Duvenaud, arXiv:1801.03558, sections 3 and 4.
    """
    batch = Batch.of(data)
    check_continuous(vae, batch)
    size = data_at_once(vae, batch, num_particles)
    return BestElbo(*map(torch.cat, zip(*(_of_part(vae, part, num_particles, lr) for part in batch.split(size)))))


def _of_part(vae: VAE, batch: Batch, num_particles: int, lr: float) -> list[Tensor]:
    given, x, found = vae.given(batch.y), batch.x, list[Tensor]()
    with torch.no_grad():
        prior, z = given.prior(), given.posterior(x).sample((_DRAWS,))
    loc, log_scale, lower = z.mean(0), z.std(0).log(), torch.zeros(*z.shape[1:], z.shape[-1]).to(z)

    def bound(loc: Tensor, log_scale: Tensor, lower: Tensor) -> Tensor:
        scale = torch.diag_embed(log_scale.exp()) + lower.tril(-1)
        q = MultivariateNormal(loc, scale_tril=scale, validate_args=False)
        z = q.rsample((num_particles,))
        return given.log_likelihood(x, z) + prior.log_prob(z) - q.log_prob(z)

    def step(*q: Tensor) -> list[Tensor]:
        values = [one.detach().requires_grad_() for one in q]
        elbo = bound(*values).mean(0)
        return [elbo.detach(), *torch.autograd.grad(-elbo.sum(), values)]

    q = [loc, log_scale, lower]
    with deferred():
        recorded = record(step, q)
    for num_fitted in (2, 3):  # without and with covariances
        q = _fitted(recorded, q, num_fitted, lr)
        with torch.no_grad():
            values = torch.cat([bound(*q) for _ in range(math.ceil(_DRAWS / num_particles))]).double()
        found += [values.mean(0), values.std(0) / math.sqrt(len(values))]
    return found


def _fitted(step: Function, q: list[Tensor], num_fitted: int, lr: float) -> list[Tensor]:
    """Return the mean parameters of q over the steps of the best check; only the first ones of them are fitted."""
    q = [one.clone() for one in q]
    adam, best, kept, num_worse = torch.optim.Adam(q[:num_fitted], lr), -math.inf, q, 0
    while num_worse < _CHECKS:
        total, means = 0.0, [torch.zeros_like(one) for one in q]
        for _ in range(_STEPS):
            elbo, *gradients = step(*q)
            for one, gradient in zip(q[:num_fitted], gradients):
                one.grad = gradient
            adam.step()
            total += elbo.mean().item() / _STEPS
            torch._foreach_add_(means, q, alpha=1 / _STEPS)
        num_worse += 1
        if total > best:
            best, kept, num_worse = total, means, 0
    return kept
