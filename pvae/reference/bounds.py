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

__all__ = [
    "ciwae",
    "dreg_gradients",
    "elbo",
    "iwae",
    "log_weights",
    "miwae",
    "renyi",
    "score_gradients",
    "stl_gradients",
]


def log_weights(vae: VAE, x: Tensor, num_particles: int) -> Tensor:
    """Return log w_k = log p(x | z_k) + log p(z_k) - log q(z_k | x) at z_1..z_K ~ q(z | x): (K, B) nats.

    Args:
        vae: the three distributions.
        x: images (B, C, H, W).
        num_particles: K.
    """
    posterior = vae.posterior(x)
    z = posterior.rsample((num_particles,))
    return vae.likelihood(z).log_prob(x) + vae.prior().log_prob(z) - posterior.log_prob(z)


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

    alpha -> 1 is the ELBO and alpha = 0 the importance-weighted bound. The bound falls with alpha; for alpha below 0 it
    is not a lower bound on log p(x). With K finite it is biased towards the ELBO.

    Reference:
        Li and Turner, arXiv:1602.02311, equations 4 (exact) and 5 (from K draws).
    """
    if alpha == 1:
        return elbo(log_w)
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

    Reference:
        Roeder, Wu and Duvenaud, arXiv:1703.09194.
    """
    posterior = vae.posterior(x)
    z = posterior.rsample((num_particles,))
    # The gradient by z at fixed parameters of q; `_gradients` then applies the chain rule.
    at = z.detach().requires_grad_()
    loss = -(vae.likelihood(at).log_prob(x) + vae.prior().log_prob(at) - posterior.log_prob(at)).mean()
    (by_z,) = torch.autograd.grad(loss, at, retain_graph=True)
    return _gradients(vae, z, by_z, -_log_joint(vae, x, z.detach()).mean())


def dreg_gradients(vae: VAE, x: Tensor, num_particles: int) -> dict[str, Tensor]:
    """Return the gradients of -L_K, batch mean, where the encoder's is doubly reparameterised.

        d/d phi L_K  =  E [ sum_k (w_k / sum_j w_j)^2  d log w_k / dz_k  dz_k / d phi ]

    The decoder's is the gradient of L_K, with the weights to the first power. The signal-to-noise ratio of the
    encoder's gradient grows as sqrt(K), and at q(z | x) = p(z | x) its variance is zero.

    Reference:
        Tucker, Lawson, Gu and Maddison, arXiv:1810.04152.
    """
    posterior = vae.posterior(x)
    z = posterior.rsample((num_particles,))
    at = z.detach().requires_grad_()
    log_w = vae.likelihood(at).log_prob(x) + vae.prior().log_prob(at) - posterior.log_prob(at)
    weight = log_w.detach().softmax(0)
    (by_z,) = torch.autograd.grad(-(weight**2 * log_w).sum(0).mean(), at, retain_graph=True)
    return _gradients(vae, z, by_z, -(weight * _log_joint(vae, x, z.detach())).sum(0).mean())


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
    log_joint, log_q_z = _log_joint(vae, x, z), posterior.log_prob(z)
    f = (log_joint - log_q_z).detach()
    if leave_one_out:
        others = [torch.cat([f[:k], f[k + 1 :]]).mean(0) for k in range(num_particles)]
        f = f - torch.stack(others)
    names = [name for name, _ in vae.named_parameters()]
    loss = -(f * log_q_z + log_joint).mean()
    return dict(zip(names, torch.autograd.grad(loss, list(vae.parameters()))))


def _log_joint(vae: VAE, x: Tensor, z: Tensor) -> Tensor:
    return vae.likelihood(z).log_prob(x) + vae.prior().log_prob(z)


def _gradients(vae: VAE, z: Tensor, by_z: Tensor, loss: Tensor) -> dict[str, Tensor]:
    """Return gradients: of the encoder by the chain rule from those by z, and of all else by those of the loss."""
    ours = dict(vae.q_z.named_parameters(prefix="q_z"))
    theirs = {name: parameter for name, parameter in vae.named_parameters() if name not in ours}
    gradients = dict(zip(ours, torch.autograd.grad(z, list(ours.values()), by_z)))
    return gradients | dict(zip(theirs, torch.autograd.grad(loss, list(theirs.values()))))
