"""A VAE of bits or categories whose log p(x), ELBO and gradients are exact, and estimators written by hand.

    z_l ~ Bernoulli(m_l),    f(z) = log p(x | z) + log p(z) - log q(z | x)

Of at most 4,096 codes everything is a sum over all of them. Of any number of bits the ELBO is exact where the decoder
is linear and the likelihood a Normal, since the mean of a squared error is a polynomial of the probabilities.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import Bernoulli

from pvae.core.errors import InputError
from pvae.reference.elbo import kl
from pvae.reference.linear_gaussian import is_linear, linear_decoder_of
from pvae.vae import VAE

_MOST_CODES = 4096


class Exact(NamedTuple):
    """Sums over all codes of a datum.

    Args:
        log_p: log p(x), (B,) nats.
        elbo: E_q f(z), (B,) nats.
        posterior: p(z | x) of each of C codes, (C, B).
    """

    log_p: Tensor
    elbo: Tensor
    posterior: Tensor


def enumerated(vae: VAE, x: Tensor) -> Exact:
    """Return log p(x), the ELBO and p(z | x) of data x (B, *D) as sums over all codes; all are differentiable.

    Args:
        vae: of one latent site of bits or categories.
        x: data.

    Raises:
        InputError: there are more than 4,096 codes, or z is no vector of bits, categories or codes.
    """
    p = vae.prior()
    z = _codes(p)[:, None].expand(-1, len(x), -1)
    log_joint = vae.log_likelihood(x, z) + p.log_prob(z)
    log_q = vae.posterior(x).log_prob(z)
    log_p = log_joint.logsumexp(0)
    terms = torch.where(log_q > -math.inf, log_q.exp() * (log_joint - log_q), torch.zeros_like(log_q))
    return Exact(log_p, terms.sum(0), (log_joint - log_p).exp())


def _codes(p: Any) -> Tensor:
    """Return all values of a vector of bits, categories or codes of a codebook, (C, L)."""
    if hasattr(p, "codebook"):
        values = p.codebook
    elif hasattr(p, "num_classes"):
        values = torch.eye(p.num_classes).to(p.mean)
    elif _is_of_bits(p):
        values = torch.arange(2.0).to(p.mean)[:, None]
    else:
        raise InputError("a latent of real numbers has no codes to sum over")
    count = p.event_shape[0] // values.shape[1]
    if len(values) ** count > _MOST_CODES:
        raise InputError(f"{len(values)}^{count} codes are too many to sum over: at most {_MOST_CODES:,}")
    places = torch.cartesian_prod(*[torch.arange(len(values))] * count).view(-1, count)
    return values[places].flatten(1)


def _is_of_bits(p: Any) -> bool:
    return isinstance(getattr(p, "base_dist", None), Bernoulli)


def linear_elbo(vae: VAE, x: Tensor) -> Tensor:
    """Return the ELBO (B,) of data x (B, *D), of any number of bits and a linear decoder; it is differentiable.

        E_q |x - b - W z|^2  =  |x - b - W m|^2 + sum_l m_l (1 - m_l) |W_l|^2

    Args:
        vae: its p(x | z) is Normal(W z + b, s^2), its q(z | x) and p(z) are independent bits.
        x: data.

    Raises:
        InputError: the decoder is not linear.
    """
    q = vae.posterior(x)
    probs = q.mean
    loadings, offset, scale = linear_decoder_of(vae)
    residual = x.flatten(1) - offset - probs @ loadings.T
    square = residual.square().sum(-1) + (probs * (1 - probs)) @ loadings.square().sum(0)
    log_likelihood = -square / (2 * scale**2) - offset.numel() * (scale.log() + math.log(2 * math.pi) / 2)
    return log_likelihood - kl(q, vae.prior())


def elbo(vae: VAE, x: Tensor) -> Tensor:
    """Return the exact ELBO (B,) of bits or categories: `linear_elbo` or the sum over all codes.

    Raises:
        InputError: neither is possible.
    """
    if _is_of_bits(vae.prior()) and is_linear(vae):
        return linear_elbo(vae, x)
    return enumerated(vae, x).elbo


def arms_gradient(probs: Tensor, z: Tensor, f: Tensor, correlation: Tensor) -> Tensor:
    """Return an estimate of d E_q f / d logits from n draws of which two have a correlation, (B, L).

        1 / (n - 1) sum_i (f_i - mean_j f_j) (z_il - p_l) / (1 - rho_l)

    Args:
        probs: p, (B, L).
        z: bits (n, B, L).
        f: (n, B) nats.
        correlation: rho, (B, L).
    """
    count = len(z)
    total = torch.zeros_like(probs)
    for i in range(count):
        others = sum(f[j] for j in range(count)) / count
        total = total + (f[i] - others)[:, None] * (z[i] - probs) / (1 - correlation)
    return total / (count - 1)


def categorical_disarm_gradient(logits: Tensor, z: Tensor, f: Tensor, correlation: Tensor) -> Tensor:
    """Return an estimate of d E_q f / d logits of categories from two draws of antithetic bits, (N, C), of one datum.

    The logits of the bits, a_k = logit_k - log sum_{j > k} exp(logit_j), are bit by bit those of
    `pvae.elbos.discrete.CategoricalDisARM`, and their derivatives are added to those of the logits.

    Args:
        logits: of q, (N, C).
        z: two draws, (2, N, C).
        f: (2,) nats.
        correlation: of the bits of the two draws, (N, C - 1).
    """
    found = torch.zeros_like(logits)
    number, num_classes = logits.shape
    for n in range(number):
        for k in range(num_classes - 1):
            after = logits[n, k + 1 :]
            p = torch.sigmoid(logits[n, k] - after.logsumexp(0))
            (u, b), (v, other) = (((one[n, :k] == 0).all().double(), one[n, k]) for one in z)
            estimate = u * v * (f[0] - f[1]) * (b - other) / (1 - correlation[n, k])
            estimate = estimate + u * (1 - v) * (f[0] - f[1]) * (b - p) + v * (1 - u) * (f[1] - f[0]) * (other - p)
            found[n, k] += estimate / 2
            found[n, k + 1 :] -= estimate / 2 * after.softmax(0)
    return found


def through_probabilities(slope: Tensor, probs: Tensor, temperature: float, num_classes: int = 1) -> Tensor:
    """Return d/d logits (..., L) of a function with the derivative `slope` by z = sigmoid or softmax(logits / t + c).

        bits        slope_l z_l (1 - z_l) / t          categories  z_k (slope_k - sum_j slope_j z_j) / t

    Args:
        slope: by z, (..., L).
        probs: z, (..., L).
        temperature: t; 1 of straight-through, whose z has the derivative of its probabilities.
        num_classes: of each categorical variable; 1 for bits.
    """
    if num_classes == 1:
        return slope * probs * (1 - probs) / temperature
    slope, probs = (one.unflatten(-1, (-1, num_classes)) for one in (slope, probs))
    return (probs * (slope - (slope * probs).sum(-1, keepdim=True)) / temperature).flatten(-2)
