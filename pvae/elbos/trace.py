"""The ELBO from Pyro's traces: the Monte Carlo form, and the form with the KL divergence in closed form."""

from __future__ import annotations

import functools
from typing import Any

import torch
from pyro.infer import TraceMeanField_ELBO
from torch import Tensor
from torch.distributions import kl_divergence

from pvae.core.errors import InputError
from pvae.elbos.base import PerDatumELBO
from pvae.elbos.sites import Draws, Latent

__all__ = ["AnalyticELBO", "TraceELBO"]


class TraceELBO(PerDatumELBO):
    """Pyro's `Trace_ELBO`, per datum: the Monte Carlo bound, for a reparameterised q.

    Args:
        num_particles: K.
        beta: weight of the rate in the loss.

    Reference:
        Kingma and Welling, arXiv:1312.6114, equation 6.
    """


class AnalyticELBO(PerDatumELBO, TraceMeanField_ELBO):
    """The bound with the KL divergence in closed form, as Pyro's `TraceMeanField_ELBO` has it, in nats per datum.

    Args:
        num_particles: K.
        beta: weight of the rate in the loss.

    Raises:
        InputError: (when used) the pair q, p has no closed-form KL, where Pyro would silently use a Monte Carlo
            estimate; or guide and model draw their sites in different orders, so that a prior may depend on later
            draws of the guide and the sum of the KL divergences is not the rate.

    Reference:
        Kingma and Welling, arXiv:1312.6114, equation 7.
    """

    def rate(self, draws: Draws) -> Tensor:
        """Return KL(q(z | x) || p(z)) of each datum, (B,).

        Raises:
            InputError: it has no closed form, or the guide draws the sites in another order.
        """
        if list(draws.priors) != list(draws.posteriors):
            orders = f"{', '.join(draws.posteriors)} in the guide and {', '.join(draws.priors)} in the model"
            raise InputError(
                "a closed-form KL needs model and guide to draw their sites in the same order, and here it is "
                f"{orders}: use --elbo trace"
            )
        return functools.reduce(torch.add, map(_closed_form, draws.latents))

    def rate_by_dimension(self, draws: Draws) -> Tensor:
        """Return KL(q(z_l | x) || p(z_l)) of each latent dimension, (B, L)."""
        pairs: list[tuple[Any, Any]] = [(latent.posterior, latent.prior) for latent in draws.latents]
        rates = [kl_divergence(q.base_dist, p.base_dist) for q, p in pairs]
        return torch.cat([rate.mean(0) if rate.dim() == 3 else rate for rate in rates], dim=-1)


def _closed_form(latent: Latent) -> Tensor:
    try:
        rate = kl_divergence(latent.posterior, latent.prior)
    except NotImplementedError:
        pair = f"{_family(latent.posterior)}, {_family(latent.prior)}"
        raise InputError(f"no closed-form KL is known for ({pair}): use --elbo trace") from None
    return rate.mean(0) if rate.dim() == 2 else rate  # with several particles the KL divergence is repeated


def _family(distribution: Any) -> str:
    return type(getattr(distribution, "base_dist", distribution)).__name__
