"""A name becomes a Pyro ELBO: each can be given to `pyro.infer.SVI` as any other."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from pyro.infer import TraceMeanField_ELBO
from pyro.infer.trace_mean_field_elbo import _check_mean_field_requirement
from pyro.infer.util import is_validation_enabled
from pyro.poutine import Trace
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor
from torch.distributions import kl_divergence

from pvae.config.options import ELBOS, check_elbo_options
from pvae.core.errors import InputError, check_name
from pvae.core.param_store import register
from pvae.core.terms import Terms
from pvae.elbos.base import PerDatumELBO, PyroFunction, refuse_dependent_dimensions
from pvae.elbos.importance import CIWAE, IWAE, MIWAE, DReG, RenyiELBO, ScoreELBO, StickingTheLanding
from pvae.elbos.sites import Draws, Latent
from pvae.vae import VAE

__all__ = ["AnalyticELBO", "HandwrittenELBO", "TraceELBO", "build_elbo"]


class TraceELBO(PerDatumELBO):
    """Pyro's `Trace_ELBO`, per datum: the Monte Carlo bound, for a reparameterised q.

    Args:
        num_particles: K.
        beta: weight of the rate in the loss.

    Reference:
        Kingma and Welling, arXiv:1312.6114, equation 6.
    """


class AnalyticELBO(PerDatumELBO, TraceMeanField_ELBO):
    """Pyro's `TraceMeanField_ELBO`, per datum: the bound with the KL divergence in closed form.

    Args:
        num_particles: K.
        beta: weight of the rate in the loss.

    Raises:
        InputError: when used on a pair q, p that has no closed-form KL; Pyro would go on with a Monte
            Carlo estimate and not say so.

    Reference:
        Kingma and Welling, arXiv:1312.6114, equation 7.
    """

    def _get_trace(self, model: PyroFunction, guide: PyroFunction, args: Any, kwargs: Any) -> tuple[Trace, Trace]:
        model_trace, guide_trace = super()._get_trace(model, guide, args, kwargs)
        if is_validation_enabled():
            _check_mean_field_requirement(*map(prune_subsample_sites, (model_trace, guide_trace)))
        return model_trace, guide_trace

    def rate(self, draws: Draws) -> Tensor:
        """Return KL(q(z | x) || p(z)) of each datum, (B,).

        Raises:
            InputError: it has no closed form.
        """
        return functools.reduce(torch.add, map(_closed_form, draws.latents))

    def rate_by_dimension(self, draws: Draws) -> Tensor:
        """Return the same for each latent dimension, (B, L)."""
        pairs: list[tuple[Any, Any]] = [(latent.posterior, latent.prior) for latent in draws.latents]
        rates = [kl_divergence(q.base_dist, p.base_dist) for q, p in pairs]
        return torch.cat([rate.mean(0) if rate.dim() == 3 else rate for rate in rates], dim=-1)


class HandwrittenELBO(PerDatumELBO):
    """log p(x | z) + log p(z) - log q(z | x) written by hand, without Pyro's traces, trained by the same SVI.

    Args:
        num_particles: K.
        beta: weight of the rate in the loss.
    """

    def differentiable_loss(self, model: PyroFunction, guide: PyroFunction, x: Tensor) -> Tensor:
        """Return the loss of a batch x (B, C, H, W) from the distributions of the VAE that owns `model` and `guide`.

        Raises:
            TypeError: they are not the `model` and `guide` of one VAE, and so have no distributions to take.
            InputError: with free bits, the latent dimensions are not independent.
        """
        vae = getattr(model, "__self__", None)
        if not isinstance(vae, VAE) or (model, guide) != (vae.model, vae.guide):
            raise TypeError("the handwritten ELBO takes vae.model and vae.guide of one VAE")
        if self.free_bits:
            refuse_dependent_dimensions(vae.prior())  # of a VAE the posterior is of the same kind
        for name in ("p_z", "q_z", "p_x"):  # SVI steps only what is registered while the loss runs
            register(name, getattr(vae, name))
        prior, posterior = vae.prior(), vae.posterior(x)
        z = posterior.rsample((self.num_particles,))
        distortion = -vae.likelihood(z).log_prob(x).mean(0)
        rate = (posterior.log_prob(z) - prior.log_prob(z)).mean(0)
        self.terms = Terms(distortion.detach(), rate.detach())
        if not self.free_bits:
            return (distortion + self.beta * rate).mean()
        rates = (posterior.base_dist.log_prob(z) - prior.base_dist.log_prob(z)).mean((0, 1))
        return distortion.mean() + self.beta * rates.clamp(min=self.free_bits).sum()


def build_elbo(
    name: str,
    num_particles: int = 1,
    beta: float = 1.0,
    free_bits: float = 0.0,
    *,
    alpha: float = 0.5,
    mix: float = 0.5,
    num_groups: int = 1,
) -> PerDatumELBO:
    """Return the ELBO of that name.

    Args:
        name: one of `options.ELBOS`.
        num_particles: K.
        beta: weight of the rate in the loss.
        free_bits: nats of each latent dimension that cost nothing.
        alpha: of "renyi"; below 0 its objective is no lower bound on log p(x).
        mix: the ELBO's share in "ciwae".
        num_groups: M of "miwae".

    Raises:
        InputError: the name is unknown, there are no particles, or the ELBO has no such option.
    """
    if isinstance(num_particles, bool) or not isinstance(num_particles, int) or num_particles < 1:
        raise InputError(f"num_particles must be a whole number of at least 1, not {num_particles!r}")
    check_name("ELBO", name, ELBOS)
    check_elbo_options(name, num_particles, num_groups, weighs_rate=beta != 1, free_bits=free_bits)
    kinds: dict[str, Callable[[], PerDatumELBO]] = {
        "trace": lambda: TraceELBO(num_particles, beta, free_bits),
        "analytic": lambda: AnalyticELBO(num_particles, beta, free_bits),
        "handwritten": lambda: HandwrittenELBO(num_particles, beta, free_bits),
        "stl": lambda: StickingTheLanding(num_particles, beta),
        "score": lambda: ScoreELBO(num_particles, beta),
        "score-loo": lambda: ScoreELBO(num_particles, beta, leave_one_out=True),
        "iwae": lambda: IWAE(num_particles),
        "dreg": lambda: DReG(num_particles),
        "renyi": lambda: RenyiELBO(num_particles, alpha),
        "ciwae": lambda: CIWAE(num_particles, mix),
        "miwae": lambda: MIWAE(num_particles, num_groups),
    }
    return kinds[name]()


def _closed_form(latent: Latent) -> Tensor:
    try:
        rate = kl_divergence(latent.posterior, latent.prior)
    except NotImplementedError:
        pair = f"{_family(latent.posterior)}, {_family(latent.prior)}"
        raise InputError(f"no closed-form KL is known for ({pair}): use --elbo trace") from None
    return rate.mean(0) if rate.dim() == 2 else rate  # of K draws of z it is K times the same


def _family(distribution: Any) -> str:
    return type(getattr(distribution, "base_dist", distribution)).__name__
