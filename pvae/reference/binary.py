"""A VAE of bits whose log p(x), ELBO and gradients are exact, and estimators of its gradients written by hand.

    z_l ~ Bernoulli(m_l),    f(z) = log p(x | z) + log p(z) - log q(z | x)

Of up to about 12 bits everything is a sum over all 2^L codes. Of any number of bits the ELBO is exact where the decoder
is linear and the likelihood a Normal, since the mean of a squared error is a polynomial of the probabilities.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from pvae.core.errors import InputError
from pvae.reference.linear_gaussian import linear_decoder_of
from pvae.vae import VAE

__all__ = ["Exact", "arms_gradient", "codes", "enumerated", "linear_elbo"]

_MOST_BITS = 16


class Exact(NamedTuple):
    """Sums over all codes of a datum.

    Args:
        log_p: log p(x), (B,) nats.
        elbo: E_q f(z), (B,) nats.
        posterior: p(z | x) of each code, (2^L, B).
    """

    log_p: Tensor
    elbo: Tensor
    posterior: Tensor


def codes(num_bits: int) -> Tensor:
    """Return all codes of L bits, float64 (2^L, L).

    Raises:
        InputError: they are more than 65,536.
    """
    if num_bits > _MOST_BITS:
        raise InputError(f"{num_bits} bits have too many codes to be summed over: give at most {_MOST_BITS}")
    numbers = torch.arange(2**num_bits)
    return (numbers[:, None] >> torch.arange(num_bits) & 1).double()


def enumerated(vae: VAE, x: Tensor) -> Exact:
    """Return log p(x), the ELBO and p(z | x) of data x (B, *D) as sums over all codes; all are differentiable.

    Args:
        vae: of one latent site of bits.
        x: data.
    """
    q, p = vae.posterior(x), vae.prior()
    z = codes(q.event_shape[0]).to(x.dtype)[:, None].expand(-1, len(x), -1)
    log_joint, log_q = vae.log_likelihood(x, z) + p.log_prob(z), q.log_prob(z)
    log_p = log_joint.logsumexp(0)
    terms = torch.where(log_q > -math.inf, log_q.exp() * (log_joint - log_q), torch.zeros_like(log_q))
    return Exact(log_p, terms.sum(0), (log_joint - log_p).exp())


def linear_elbo(vae: VAE, x: Tensor) -> Tensor:
    """Return the ELBO (B,) of data x (B, *D), of any number of bits and a linear decoder; it is differentiable.

        E_q |x - b - W z|^2  =  |x - b - W m|^2 + sum_l m_l (1 - m_l) |W_l|^2

    Args:
        vae: its p(x | z) is Normal(W z + b, s^2), its q(z | x) and p(z) are independent bits.
        x: data.

    Raises:
        InputError: the decoder is not linear.
    """
    q, p = vae.posterior(x), vae.prior()
    loadings, offset, scale = linear_decoder_of(vae)
    probs, size = q.mean, offset.numel()
    residual = x.flatten(1) - offset - probs @ loadings.T
    square = residual.square().sum(-1) + (probs * (1 - probs)) @ loadings.square().sum(0)
    log_likelihood = -square / (2 * scale**2) - size * (scale.log() + math.log(2 * math.pi) / 2)
    prior = p.mean
    rate = probs * (probs.log() - prior.log()) + (1 - probs) * ((1 - probs).log() - (1 - prior).log())
    return log_likelihood - rate.sum(-1)


def arms_gradient(probs: Tensor, z: Tensor, f: Tensor, correlation: Tensor) -> Tensor:
    """Return an estimate of d E_q f / d logits from n draws of which two have a correlation, (B, L).

        1 / (n - 1) sum_i (f_i - mean_j f_j) (z_il - p_l) / (1 - rho_l)

    Args:
        probs: p, (B, L).
        z: bits (n, B, L).
        f: (n, B) nats.
        correlation: rho, (B, L).
    """
    count, total = len(z), torch.zeros_like(probs)
    for i in range(count):
        others = sum(f[j] for j in range(count)) / count
        total = total + (f[i] - others)[:, None] * (z[i] - probs) / (1 - correlation)
    return total / (count - 1)
