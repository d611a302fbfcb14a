"""The linear-Gaussian VAE, whose log p(x), p(z | x) and ELBO are known exactly.

    p(z) = Normal(0, I),   p(x | z) = Normal(W z + b, s^2 I),   q(z | x) = Normal(loc(x), diag scale(x)^2)

Everything is differentiable with respect to the VAE's parameters, which gives the exact gradients.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Independent, LowRankMultivariateNormal, MultivariateNormal, Normal, kl_divergence

from pvae.core.errors import InputError
from pvae.vae import VAE


def has_oracle(vae: VAE) -> bool:
    """Whether the VAE is linear-Gaussian: a linear decoder, Normal noise, a standard Normal prior and a density q."""
    if not (is_linear(vae) and vae.has_density) or list(vae.p_z.parameters()):
        return False
    base = getattr(vae.prior(), "base_dist", None)
    return isinstance(base, Normal) and bool((base.loc == 0).all() and (base.scale == 1).all())


def is_linear(vae: VAE) -> bool:
    """Whether p(x | z) is Normal(W z + b, s^2)."""
    decoder = getattr(vae.p_x, "decoder", None)
    if not isinstance(decoder, nn.Sequential) or [type(part) for part in decoder] != [nn.Linear, nn.Unflatten]:
        return False
    with torch.no_grad():
        z = torch.ones_like(vae.prior().mean)
        base = getattr(vae.likelihood(z), "base_dist", None)
        return isinstance(base, Normal) and torch.equal(base.loc, decoder(z)) and len(base.scale.unique()) == 1


def decoder_of(vae: VAE) -> tuple[Tensor, Tensor, Tensor]:
    """Return the loadings W (D, L), the offset b (D,) and the scale s () of the decoder.

    Raises:
        InputError: the VAE is not linear-Gaussian.
    """
    if not has_oracle(vae):
        raise InputError("log p(x) is known exactly of a linear decoder, Normal noise and a standard Normal prior only")
    return linear_decoder_of(vae)


def linear_decoder_of(vae: VAE) -> tuple[Tensor, Tensor, Tensor]:
    """Return the loadings W (D, L), the offset b (D,) and the scale s () of a linear decoder, whatever the prior is.

    Raises:
        InputError: p(x | z) is not Normal(W z + b, s^2).
    """
    if not is_linear(vae):
        raise InputError("p(x | z) is not a Normal around a linear function of z: give a linear decoder")
    origin = torch.zeros_like(vae.prior().mean)
    noise: Any = vae.likelihood(origin)
    offset = noise.mean.flatten()
    loadings = vae.likelihood(torch.eye(len(origin), dtype=origin.dtype)).mean.flatten(1) - offset  # (L, D)
    return loadings.T, offset, noise.base_dist.scale.flatten()[0]


def log_evidence(vae: VAE, x: Tensor) -> Tensor:
    """Return log p(x) of images x (B, C, H, W): (B,) nats.

    p(x) = Normal(x; b, W W^T + s^2 I)
    """
    loadings, offset, scale = decoder_of(vae)
    noise = (scale**2).expand_as(offset)
    return LowRankMultivariateNormal(offset, loadings, noise).log_prob(x.flatten(1))


def true_posterior(vae: VAE, x: Tensor) -> MultivariateNormal:
    """Return p(z | x): batch shape (B,), event shape (L,).

        precision = I + W^T W / s^2,    mean = precision^-1 W^T (x - b) / s^2

    With orthogonal columns of W the precision is diagonal, and q(z | x) can be p(z | x) itself.
    """
    loadings, offset, scale = decoder_of(vae)
    precision = torch.eye(loadings.shape[1], dtype=loadings.dtype) + loadings.T @ loadings / scale**2
    mean = torch.linalg.solve(precision, loadings.T @ (x.flatten(1) - offset).T / scale**2).T
    return MultivariateNormal(mean, precision_matrix=precision)


def elbo(vae: VAE, x: Tensor) -> Tensor:
    """Return the exact ELBO of images x (B, C, H, W): (B,) nats.

    ELBO = log p(x) - KL(q(z | x) || p(z | x))

    Raises:
        ValueError: q(z | x) is not of independent Normals.
    """
    posterior: Any = vae.posterior(x)
    if not isinstance(posterior, Independent) or not isinstance(posterior.base_dist, Normal):
        raise ValueError(f"the exact ELBO needs q(z | x) of independent Normals, not {type(posterior).__name__}")
    q = MultivariateNormal(posterior.mean, scale_tril=torch.diag_embed(posterior.stddev))
    return log_evidence(vae, x) - kl_divergence(q, true_posterior(vae, x))
