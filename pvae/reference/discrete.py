"""A VAE of bits or categories whose log p(x), ELBO and gradients are exact.

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
