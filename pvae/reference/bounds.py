"""Importance-weighted bounds and gradients of bounds, written by hand from the three distributions alone.

    w_k = p(x | z_k) p(z_k) / q(z_k | x),   z_1..z_K ~ q(z | x)

As in `pvae.reference.elbo`, Pyro's inference is not used. The bounds are functions of log w_k, shape (K, B), in nats;
the gradients are dictionaries from the names of a VAE's parameters to tensors.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pvae.vae import VAE


def log_weights(vae: VAE, x: Tensor, num_particles: int) -> Tensor:
    """Return log w_k = log p(x | z_k) + log p(z_k) - log q(z_k | x) at z_1..z_K ~ q(z | x): (K, B) nats.

    Args:
        vae: the three distributions.
        x: images (B, C, H, W).
        num_particles: K, the number of draws of z for each datum.
    """
    posterior = vae.posterior(x)
    z = posterior.rsample((num_particles,))
    return vae.log_likelihood(x, z) + vae.prior().log_prob(z) - posterior.log_prob(z)


def elbo(log_w: Tensor) -> Tensor:
    """Return the ELBO of log-weights (K, B): their mean over the draws, (B,) nats."""
    return log_w.mean(0)


def iwae(log_w: Tensor) -> Tensor:
    """Return the importance-weighted bound of log-weights (K, B): (B,) nats.

        L_K(x) = E [ log (1/K) sum_k w_k ],      L_1 the ELBO,      L_K <= L_{K+1} <= log p(x)

    As an estimate of log p(x) it is biased downward, by Var[w / p(x)] / (2 K) to first order (Nowozin, Debiasing
    evidence approximations, ICLR 2018, corollary 1); its variance also falls as 1 / K. But the signal-to-noise ratio
    of the encoder's gradient falls as 1 / sqrt(K), while that of the decoder's grows as sqrt(K). `dreg_gradients`
    avoids this.

    Reference:
        Burda, Grosse and Salakhutdinov, arXiv:1509.00519, equation 8 (the bound); Rainforth et al.,
        arXiv:1802.04537 (its gradients).
    """
    return torch.logsumexp(log_w, 0) - math.log(len(log_w))


def renyi(log_w: Tensor, alpha: float) -> Tensor:
    """Return the variational Renyi bound of log-weights (K, B): (B,) nats.

        L_alpha(x) = 1 / (1 - alpha) log (1/K) sum_k w_k^(1 - alpha)

    alpha -> 1 is the ELBO, alpha = 0 the importance-weighted bound and alpha -> -inf max_k log w_k. The bound falls
    with alpha; for alpha below 0 it is not a lower bound on log p(x). With K finite it is biased towards the ELBO.

    Reference:
        Li and Turner, arXiv:1602.02311, equations 4 (exact) and 5 (from K draws).
    """
    if alpha == 1:
        return elbo(log_w)
    if alpha == -math.inf:
        return log_w.amax(0)
    # In float64: near alpha = 1 the division makes rounding large.
    return (iwae((1 - alpha) * log_w.double()) / (1 - alpha)).to(log_w.dtype)


def ciwae(log_w: Tensor, mix: float) -> Tensor:
    """Return the convex mix of ELBO and importance-weighted bound: (B,) nats.

        mix ELBO + (1 - mix) L_K

    Reference:
        Rainforth et al., arXiv:1802.04537 (CIWAE).
    """
    return mix * elbo(log_w) + (1 - mix) * iwae(log_w)


def miwae(log_w: Tensor, num_groups: int) -> Tensor:
    """Return the mean of M importance-weighted bounds of K / M draws each: (B,) nats.

    M = K is the ELBO, M = 1 the importance-weighted bound.

    Reference:
        Rainforth et al., arXiv:1802.04537 (MIWAE).
    """
    return torch.stack([iwae(group) for group in log_w.unflatten(0, (num_groups, -1))]).mean(0)


def stl_gradients(vae: VAE, x: Tensor, num_particles: int) -> dict[str, Tensor]:
    """Return the gradients of -ELBO, batch mean, where the encoder's is the path derivative alone.

        d/d phi  E_q [ log p(x, z) - log q(z | x) ]  =  E_q [ d/dz (log p(x, z) - log q(z | x))  dz/d phi ]

    since the score function, the gradient of log q(z | x) at a fixed z, has a mean of 0. At q(z | x) = p(z | x) this
    estimator has zero variance, unlike the gradient of the ELBO itself. Elsewhere its variance may be larger.

    Args:
        vae: the three distributions.
        x: images (B, C, H, W).
        num_particles: K, the number of draws of z for each datum.

    Reference:
        Roeder, Wu and Duvenaud, arXiv:1703.09194.
    """
    posterior = vae.posterior(x)
    z = posterior.rsample((num_particles,))
    # The gradient by z at fixed parameters of q; `_gradients` then applies the chain rule. At this copy of the draw a
    # flow is inverted.
    at = z.detach().clone().requires_grad_()
    loss = -(vae.log_likelihood(x, at) + vae.prior().log_prob(at) - posterior.log_prob(at)).mean()
    (by_z,) = torch.autograd.grad(loss, at, retain_graph=True)
    return _gradients(vae, z, by_z, -_log_joint(vae, x, z.detach()).mean())


def dreg_gradients(vae: VAE, x: Tensor, num_particles: int) -> dict[str, Tensor]:
    """Return the gradients of -L_K, batch mean, doubly reparameterised for the encoder.

        d/d phi L_K    =  E [ sum_k v_k^2  d log w_k / dz_k  dz_k / d phi ],     v_k = w_k / sum_j w_j
        d/d theta L_K  =  E [ sum_k v_k  d/d theta log p(x, z_k) ]

    The gradient of prior and decoder is that of L_K, with the weights to the first power. The signal-to-noise ratio of
    the encoder's gradient grows as sqrt(K), and at q(z | x) = p(z | x) its variance is zero.

    Args:
        vae: the three distributions.
        x: images (B, C, H, W).
        num_particles: K, the number of draws of z for each datum.

    Reference:
        Tucker, Lawson, Gu and Maddison, arXiv:1810.04152.
    """
    posterior = vae.posterior(x)
    z = posterior.rsample((num_particles,))
    at = z.detach().clone().requires_grad_()
    log_w = _log_joint(vae, x, at) - posterior.log_prob(at)
    weight = log_w.detach().softmax(0)
    (by_z,) = torch.autograd.grad(-(weight.square() * log_w).sum(0).mean(), at, retain_graph=True)
    return _gradients(vae, z, by_z, -(weight * _log_joint(vae, x, z.detach())).sum(0).mean())


def piwae_gradients(vae: VAE, x: Tensor, num_particles: int, num_groups: int) -> dict[str, Tensor]:
    """Return the gradients of -L, batch mean, where L is `miwae` for the encoder and `iwae` for prior and decoder.

        encoder            d/d phi    (1/M) sum_m log (M/K) sum_{k in group m} w_k
        prior, decoder     d/d theta  log (1/K) sum_k w_k

    A parameter of both, as in a ladder, has the sum of its gradients in each of the two roles.

    Args:
        vae: the three distributions.
        x: images (B, C, H, W).
        num_particles: K, the number of draws of z for each datum, a multiple of M.
        num_groups: M, the number of groups of draws.

    Reference:
        Rainforth et al., arXiv:1802.04537 (PIWAE).
    """
    posterior = vae.posterior(x)
    z = posterior.rsample((num_particles,))
    at = z.detach().requires_grad_()
    log_q_z = posterior.log_prob(z)
    log_w = (_log_joint(vae, x, z) - log_q_z).detach()
    of_group = log_w.unflatten(0, (num_groups, -1)).softmax(1).flatten(0, 1) / num_groups
    (by_z,) = torch.autograd.grad(-(of_group * _log_joint(vae, x, at)).sum(0).mean(), at)
    direct = (of_group * log_q_z - log_w.softmax(0) * _log_joint(vae, x, z.detach())).sum(0).mean()
    return _gradients(vae, z, by_z, direct)


def score_gradients(vae: VAE, x: Tensor, num_particles: int, leave_one_out: bool = False) -> dict[str, Tensor]:
    """Return the gradients of -ELBO, batch mean, where the encoder's is the score-function estimator.

        d/d phi  E_q [f]  =  E_q [ (f - b) d/d phi log q(z | x) ],      f = log p(x, z) - log q(z | x)

    It needs no derivative of f, at the price of a large variance. The baseline b_k, the mean of f over the other
    K - 1 draws, reduces the variance and adds no bias, because it does not depend on z_k.

    Args:
        vae: the three distributions.
        x: images (B, C, H, W).
        num_particles: K, at least 2 with a baseline.
        leave_one_out: use the baseline.

    Reference:
        Post 002, first half; Ranganath, Gerrish and Blei, arXiv:1401.0118; Mnih and Rezende, arXiv:1602.06725
        (leave-one-out).
    """
    posterior = vae.posterior(x)
    z = posterior.sample((num_particles,))
    log_joint = _log_joint(vae, x, z)
    log_q_z = posterior.log_prob(z)
    f = (log_joint - log_q_z).detach()
    if leave_one_out:
        others = [torch.cat([f[:k], f[k + 1 :]]).mean(0) for k in range(num_particles)]
        f = f - torch.stack(others)
    return _gradients_of(vae, -(f * log_q_z + log_joint).mean())


def vimco_gradients(vae: VAE, x: Tensor, num_particles: int) -> dict[str, Tensor]:
    """Return the gradients of -L_K, batch mean, where the encoder's is the score-function estimator with baselines.

        d/d phi L_K  =  E [ sum_k (L_K - L_-k - v_k) d/d phi log q(z_k | x) ],    v_k = w_k / sum_j w_j
        L_-k = log (1/K) (sum_{j != k} w_j + exp(mean_{j != k} log w_j))

    Args:
        vae: the three distributions.
        x: images (B, C, H, W).
        num_particles: K, at least 2.

    Reference:
        Mnih and Rezende, arXiv:1602.06725.
    """
    posterior = vae.posterior(x)
    z = posterior.sample((num_particles,))
    log_joint = _log_joint(vae, x, z)
    log_q_z = posterior.log_prob(z)
    log_w = (log_joint - log_q_z).detach()
    bound = iwae(log_w)
    weight = log_w.softmax(0)
    loss = -(weight * log_joint).sum(0)
    for k in range(num_particles):
        others = torch.cat([log_w[:k], log_w[k + 1 :]])
        without = iwae(torch.cat([others, others.mean(0, keepdim=True)]))
        loss = loss - (bound - without - weight[k]) * log_q_z[k]
    return _gradients_of(vae, loss.mean())


def _log_joint(vae: VAE, x: Tensor, z: Tensor) -> Tensor:
    return vae.log_likelihood(x, z) + vae.prior().log_prob(z)


def _gradients(vae: VAE, z: Tensor, by_z: Tensor, loss: Tensor) -> dict[str, Tensor]:
    """Return gradients: those of z by the chain rule, plus those of a loss at fixed z, by every parameter.

    The encoder is in both where the prior is made of posteriors, as the VampPrior is.
    """
    parameters = [*vae.parameters()]
    through_z = torch.autograd.grad(z, parameters, by_z, retain_graph=True, materialize_grads=True)
    direct = _gradients_of(vae, loss)
    return {name: one + direct[name] for name, one in zip(direct, through_z)}


def _gradients_of(vae: VAE, loss: Tensor) -> dict[str, Tensor]:
    parameters = dict(vae.named_parameters())
    return dict(zip(parameters, torch.autograd.grad(loss, [*parameters.values()], materialize_grads=True)))
