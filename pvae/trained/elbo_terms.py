"""The ELBO of each datum and its parts, and the loss at the mean of the posterior, in nats."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributions import kl_divergence

from pvae.core.batch import Batch, Data
from pvae.distributions.joint import Joint
from pvae.distributions.power_spherical import PowerSpherical
from pvae.marginal.chunks import data_at_once
from pvae.vae import VAE

__all__ = ["LAYER_RATE", "elbo_terms", "posterior_mean_loss"]

LAYER_RATE = "rate of "  # and the name of a stochastic layer


@torch.no_grad()
def elbo_terms(vae: VAE, data: Data, num_draws: int = 10) -> dict[str, Tensor]:
    """Return the ELBO of each datum and its parts, from draws of z.

        elbo = -distortion - rate,    distortion = -E_q log p(x | z),    rate = KL(q(z | x) || p(z))

    Terms without a closed form are left out, except the rate, which is then a mean over the draws.

    Args:
        vae: in eval mode.
        data: N data x, or a `Batch` of them with their labels.
        num_draws: of z for each datum.

    Returns:
        Nats, (N,) each: elbo, distortion, rate, cross_entropy and, in closed form, posterior_entropy and
        posterior_mean_loss. With several stochastic layers also rate of z1, rate of z2 and so on.
    """
    batch = Batch.of(data)
    parts = [_terms(vae.given(part.y), part.x, num_draws) for part in batch.split(data_at_once(vae, batch, num_draws))]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _terms(vae: VAE, x: Tensor, num_draws: int) -> dict[str, Tensor]:
    """Return the terms of the ELBO of each datum, (B,) each, without terms that have no closed form for this VAE."""
    posterior: Any = vae.posterior(x)
    prior: Any = vae.prior()
    z = posterior.sample((num_draws,))
    distortion, cross_entropy = -vae.log_likelihood(x, z).mean(0), -prior.log_prob(z).mean(0)
    terms = {"distortion": distortion, "cross_entropy": cross_entropy}
    try:
        terms["posterior_entropy"] = posterior.entropy()
        terms["rate"] = _exact_rate(posterior, prior)
        terms["posterior_mean_loss"] = posterior_mean_loss(vae, x, posterior)
    except NotImplementedError:
        terms["rate"] = (posterior.log_prob(z) - prior.log_prob(z)).mean(0)
    if isinstance(posterior, Joint):
        layers = zip(posterior.names, posterior.conditionals(z), prior.conditionals(z))
        terms |= {LAYER_RATE + name: (q.log_prob(one) - p.log_prob(one)).mean(0) for name, (one, q), (_, p) in layers}
    return {**terms, "elbo": -distortion - terms["rate"]}


def posterior_mean_loss(vae: VAE, x: Tensor, posterior: Any = None) -> Tensor:
    """Return the loss at the mean of q(z | x) instead of a draw from it: (B,) nats; it is not a bound.

        -log p(x | E_q[z]) + KL(q(z | x) || p(z))

    This is the test loss that post 002 prints, since its network returns the mean in eval mode. It ignores the
    spread of q, and is therefore usually below the negative ELBO. On a sphere it is the loss at the mode of q(z | x),
    because the mean is not on the sphere.

    Args:
        vae: the three distributions.
        x: data (B, *D).
        posterior: q(z | x), if it was computed before.

    Raises:
        NotImplementedError: the pair (q, p) has no closed form in torch.distributions.
    """
    posterior = vae.posterior(x) if posterior is None else posterior
    rate = _exact_rate(posterior, vae.prior())
    z = posterior.loc if isinstance(posterior, PowerSpherical) else posterior.mean
    return -vae.log_likelihood(x, z) + rate


def _exact_rate(posterior: Any, prior: Any) -> Tensor:
    """Return the rate of each datum in closed form, KL(q(z | x) || p(z)), (B,) nats."""
    return kl_divergence(posterior, prior.expand(posterior.batch_shape))  # torch's for Bernoulli needs one shape
