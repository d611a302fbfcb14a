"""What q(z | x) misses: the nats that an ELBO loses by its family or by the encoder."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from pyro.distributions import Normal
from torch import Tensor

from pvae.compile.graph import Function, record
from pvae.core.batch import Batch, Data
from pvae.core.random_state import seeded
from pvae.core.tracing import deferred
from pvae.distributions.flow import Planar
from pvae.marginal.chunks import data_at_once
from pvae.marginal.log_p import check_continuous
from pvae.vae import VAE

_STEPS = 100  # between two checks of the bound
_CHECKS = 4  # without a better bound, after which a search ends
_PLANAR = 8  # transforms of a flow
_DRAWS = 1000  # for the final bound, and for mean and spread of q(z | x), from which the search starts


class BestElbo(NamedTuple):
    """The ELBO of each datum, (N,) nats, from 1,000 draws of q(z | x), and of the best q* of three families.

    Those of the three families are from the same noise, so that their differences have smaller errors.

    Args:
        own: of q(z | x).
        own_stderr: standard errors of `own` over the draws.
        normal: of Normals with independent dimensions.
        normal_stderr: of `normal`.
        full: of Normals with any covariance.
        full_stderr: of `full`.
        flow: of eight planar transforms of N(0, I), and an affine one after them.
        flow_stderr: of `flow`.
    """

    own: Tensor
    own_stderr: Tensor
    normal: Tensor
    normal_stderr: Tensor
    full: Tensor
    full_stderr: Tensor
    flow: Tensor
    flow_stderr: Tensor


def best_elbo(vae: VAE, data: Data, num_particles: int = 20, lr: float = 1e-2) -> BestElbo:
    """Return the ELBO of each datum at the best q* of three families, which is fitted to this datum alone.

        log p(x) - L[q]  =  (log p(x) - L[q*])  +  (L[q*] - L[q]),     L[q*] = max over q in the family of L[q]

    The first part is the approximation gap of the family, the second one the amortisation gap of the encoder; a wider
    encoder can close the second one only. Each family holds the one before it:

        normal   z = loc + scale e,    e ~ N(0, I)
        full     z = loc + A e,        A lower triangular
        flow     z = loc + A f(e),     f of eight planar transforms, whose parameters are those of this datum too

    The first q* starts at the mean and the spread of q(z | x), each other one at the best of the family before. Adam
    fits it to all data of a batch at once, until four checks in a row, each of the mean of 100 steps, find no better
    bound. It may end in a mode of p(z | x) that is not the best one. Eight planar transforms bend few directions of
    many latents: log p(x) - L[q*] of the flow is at least the gap of better flows.

    Args:
        vae: in eval mode; its latent is any vector of real numbers.
        data: N data x, or a `Batch` of them with their labels.
        num_particles: draws of z for each datum and step.
        lr: of Adam.

    Raises:
        InputError: the latent is discrete or on a sphere, or the VAE has no log p(x), or reads values.

    Reference:
        Cremer, Li and Duvenaud, arXiv:1801.03558, sections 3 and 4, whose local flow is of affine couplings, and whose
        search is slower (lr 1e-3, 100 draws, ten checks); Rezende and Mohamed, arXiv:1505.05770, equation 10 (planar
        transforms).
    """
    batch = Batch.of(data)
    check_continuous(vae, batch)
    size = data_at_once(vae, batch, num_particles)
    return BestElbo(*map(torch.cat, zip(*(_of_part(vae, part, num_particles, lr) for part in batch.split(size)))))


def _of_part(vae: VAE, batch: Batch, num_particles: int, lr: float) -> list[Tensor]:
    given = vae.given(batch.y)
    x = batch.x
    with torch.no_grad():
        prior = given.prior()
        q = given.posterior(x)
        z = q.sample((_DRAWS,))
        parts = [given.log_likelihood(x, part) + prior.log_prob(part) for part in z.split(num_particles)]
        total = _mean(torch.cat(parts) - q.log_prob(z))
    loc = z.mean(0)
    seed = int(torch.randint(2**31, ()))
    standard = Normal(torch.zeros_like(loc), 1.0, validate_args=False).to_event(1)

    def bound(loc: Tensor, log_scale: Tensor, *more: Tensor) -> Tensor:
        e = standard.sample((num_particles,))
        moved = e
        scale = torch.diag_embed(log_scale.exp())
        log_q = standard.log_prob(e) - log_scale.sum(-1)
        if more:
            lower, *flow = more
            scale = scale + lower.tril(-1)
            if flow:
                moved, log_det = Planar(*flow).call_and_ladj(e)
                log_q = log_q - log_det
        z = loc + torch.einsum("bij,sbj->sbi", scale, moved)
        return given.log_likelihood(x, z) + prior.log_prob(z) - log_q

    def step(*q: Tensor) -> list[Tensor]:
        values = [parameter.detach().requires_grad_() for parameter in q]
        elbo = bound(*values).mean(0)
        return [elbo.detach(), *torch.autograd.grad(-elbo.sum(), values)]

    best = list[Tensor]()
    w = torch.randn(len(x), _PLANAR, loc.shape[-1]).to(z)
    for more in ([loc, z.std(0).log()], [torch.diag_embed(0 * loc)], [0 * w, w, torch.randn_like(w[..., 0])]):
        best = [*best, *more]
        with deferred():
            recorded = record(step, best)
        best = _fitted(recorded, best, lr)
        with torch.no_grad(), seeded(seed, z.device):
            total += _mean(torch.cat([bound(*best) for _ in range(math.ceil(_DRAWS / num_particles))]))
    return total


def _mean(values: Tensor) -> list[Tensor]:
    """Return the means of draws (S, B), and their standard errors, (B,) each in float64."""
    return [values.double().mean(0), values.double().std(0) / math.sqrt(len(values))]


def _fitted(step: Function, q: list[Tensor], lr: float) -> list[Tensor]:
    """Return the mean parameters of q over the steps of the best check."""
    q = [parameter.clone() for parameter in q]
    adam = torch.optim.Adam(q, lr)
    kept = q
    best = -math.inf
    num_worse = 0
    while num_worse < _CHECKS:
        means = [torch.zeros_like(parameter) for parameter in q]
        total = 0.0
        for _ in range(_STEPS):
            elbo, *gradients = step(*q)
            for parameter, gradient in zip(q, gradients):
                parameter.grad = gradient
            adam.step()
            total += elbo[elbo.isfinite()].mean().item() / _STEPS
            torch._foreach_add_(means, q, alpha=1 / _STEPS)
        num_worse += 1
        if total > best:
            best = total
            kept = means
            num_worse = 0
    return kept
