"""The ELBO from Pyro's traces: the Monte Carlo form, and the form with the KL divergence in closed form."""

from __future__ import annotations

import contextlib
import functools
import warnings
from typing import Any

import torch
from pyro.infer import TraceMeanField_ELBO
from torch import Tensor
from torch.distributions import kl_divergence

from pvae.core.errors import InputError
from pvae.elbos.base import PerDatumELBO
from pvae.elbos.sites import Draws, Latent

__all__ = ["AnalyticELBO", "TraceELBO"]


class TraceELBO(PerDatumELBO, name="trace", help="the ELBO, by Monte Carlo, as Pyro's Trace_ELBO"):
    """The Monte Carlo bound, for a reparameterised q: Pyro's `Trace_ELBO` divided by the number of data.

        L(x) = E_q [ log p(x, z) - log q(z | x) ]

    Args:
        num_particles: K, the number of draws of z for each datum.
        beta: weight of the rate in the loss.
        free_bits: nats per latent dimension that cost nothing.

    Reference:
        Kingma and Welling, arXiv:1312.6114, equation 6.
    """


class AnalyticELBO(
    PerDatumELBO,
    TraceMeanField_ELBO,
    name="analytic",
    help="with the KL in closed form, as TraceMeanField_ELBO",
):
    """The bound with the KL divergence in closed form: Pyro's `TraceMeanField_ELBO` divided by the number of data.

        L(x) = E_q [ log p(x | z) ] - KL(q(z | x) || p(z))

    Of several latent sites, those with a closed form take it, at the draws of the sites before them; the others take
    the mean of log q - log p. A site has no closed form if its prior may depend on a site that the guide draws later.

    Args:
        num_particles: K, the number of draws of z for each datum.
        beta: weight of the rate in the loss.
        free_bits: nats per latent dimension that cost nothing.

    Raises:
        InputError: (when used) no site has a closed form, where Pyro would silently use a Monte Carlo estimate.

    Reference:
        Kingma and Welling, arXiv:1312.6114, equation 7.
    """

    needs_closed_form = True

    def rate(self, draws: Draws) -> Tensor:
        """Return the rate of each datum, (B,): KL(q(z | x) || p(z)), or of several sites the sum of their rates.

        Raises:
            InputError: no site has a closed form.
        """
        latents = [*draws.latents]
        divergences = [_divergence(latent, latent.posterior, latent.prior) for latent in latents]
        if all(divergence is None for divergence in divergences):
            families = "; ".join(f"({_family(latent.posterior)}, {_family(latent.prior)})" for latent in latents)
            raise InputError(f"no closed-form KL is known for {families}: use TraceELBO")
        num_drawn = sum(divergence is None for divergence in divergences)
        if num_drawn:
            warnings.warn(
                f"{num_drawn} of {len(latents)} layers of latents have no KL in closed form: their rate is a mean of "
                "log q - log p at the draws",
                stacklevel=2,
            )
        pairs = zip(latents, divergences)
        rates = [
            PerDatumELBO.rate_of(self, one, one.posterior, one.prior) if rate is None else rate for one, rate in pairs
        ]
        return functools.reduce(torch.add, (rate.mean(0) if rate.dim() == 2 else rate for rate in rates))

    def rate_of(self, latent: Latent, q: Any, p: Any) -> Tensor:
        """Return KL(q || p), or where it is not the rate or has no closed form, log q - log p at the draws."""
        divergence = _divergence(latent, q, p)
        return super().rate_of(latent, q, p) if divergence is None else divergence


def _divergence(latent: Latent, q: Any, p: Any) -> Tensor | None:
    """Return KL(q, p), repeated for each particle, or None where it is not the rate or has no closed form."""
    with contextlib.suppress(NotImplementedError):
        return kl_divergence(q, p) if latent.is_prior_known else None
    return None


def _family(distribution: Any) -> str:
    return type(getattr(distribution, "base_dist", distribution)).__name__
