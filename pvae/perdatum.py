"""What the ELBOs here share: two traces become draws, and draws a loss, per datum, and a record of its two terms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pyro
import torch
from pyro.infer import Trace_ELBO
from torch import Tensor
from torch.distributions import Distribution

from pvae import handwritten
from pvae.handwritten import Terms

__all__ = ["Draws", "Latent", "PerDatumELBO", "PyroFunction"]

PyroFunction = Callable[[Tensor], Any]


class Latent(NamedTuple):
    """A latent site: z (K, B, L) or, with one particle, (B, L), and the two distributions that it has."""

    z: Tensor
    prior: Distribution
    posterior: Distribution


class Draws(NamedTuple):
    """What two traces hold at z_1..z_K ~ q(z | x): log-probabilities (K, B), and the latent sites."""

    log_p_x: Tensor
    log_p_z: Tensor
    log_q_z: Tensor
    latents: tuple[Latent, ...]

    @property
    def log_w(self) -> Tensor:
        """The logarithm of the importance weights, (K, B)."""
        return self.log_p_x + self.log_p_z - self.log_q_z


class PerDatumELBO(Trace_ELBO):
    """What the ELBOs here share, laid over Pyro's tracing: the unit, the weight of the rate, and a record.

        loss = mean over the batch of (distortion + beta rate), in nats per datum

    Pyro sums over the batch instead; the mean is what the source documents step on. The particles are one more batch
    dimension, not a loop. With free bits the rate in the loss is that of `handwritten.Terms.loss`.

    Args:
        num_particles: K, samples z ~ q(z | x) per datum.
        beta: weight of the rate in the loss; a training may change it from step to step.
        free_bits: nats of each latent dimension that cost nothing.

    Attributes:
        terms: distortion and rate of the last batch, (B,) nats each, without beta, free bits or gradient.
    """

    terms: Terms
    reparameterised = True

    def __init__(self, num_particles: int = 1, beta: float = 1.0, free_bits: float = 0.0) -> None:
        # The one plate, "data", lies at dim -1; the particles then lie at dim -2.
        super().__init__(num_particles=num_particles, vectorize_particles=True, max_plate_nesting=1)  # type: ignore[no-untyped-call]
        self.beta: float | Tensor = beta
        self.free_bits = free_bits

    def differentiable_loss(self, model: PyroFunction, guide: PyroFunction, x: Tensor) -> Tensor:
        """Return the loss of a batch x (B, C, H, W): a scalar in nats per datum, to be made small.

        Raises:
            ValueError: a site is scaled or masked, is not of each datum or stands in the guide alone, all of which no
                bound here knows; or z is not reparameterised where the gradient needs that.
        """
        ((model_trace, guide_trace),) = self._get_traces(model, guide, (x,), {})  # type: ignore[no-untyped-call]
        draws = self._draws(model_trace, guide_trace, x.shape[0])
        distortion, rate = -draws.log_p_x.mean(0), self.rate(draws)
        self.terms = Terms(distortion.detach(), rate.detach())
        return self.loss_of(draws, distortion, rate)

    def loss_of(self, draws: Draws, distortion: Tensor, rate: Tensor) -> Tensor:
        """Return the loss, a scalar, of what was drawn and of its two terms, (B,) each."""
        loss = (distortion + self.beta * rate).mean()
        if not self.free_bits:
            return loss
        rates = self.rate_by_dimension(draws).mean(0)
        return loss + self.beta * (rates.clamp(min=self.free_bits) - rates).sum()

    def rate(self, draws: Draws) -> Tensor:
        """Return the rate of each datum, (B,): the mean of log q - log p, or a closed form of its expectation."""
        return (draws.log_q_z - draws.log_p_z).mean(0)

    def rate_by_dimension(self, draws: Draws) -> Tensor:
        """Return the same for each latent dimension, (B, L); they sum to the rate."""
        rates = [
            handwritten.rate_by_dimension(posterior, prior, z if z.dim() == 3 else z[None])
            for z, prior, posterior in draws.latents
        ]
        return torch.cat(rates, dim=-1)

    def loss(self, model: PyroFunction, guide: PyroFunction, x: Tensor) -> float:
        """Return the loss as a number (`SVI.evaluate_loss` calls it); Pyro's parameter store stays as it was."""
        store = pyro.get_param_store()
        with torch.no_grad(), store.scope(store.get_state()):
            return float(self.differentiable_loss(model, guide, x))

    def loss_and_grads(self, model: PyroFunction, guide: PyroFunction, x: Tensor) -> Tensor:
        """Return the loss after adding its gradients to the parameters (`SVI.step` calls it)."""
        loss = self.differentiable_loss(model, guide, x)
        loss.backward()
        return loss.detach()

    def _draws(self, model_trace: Any, guide_trace: Any, batch_size: int) -> Draws:
        sites = {name: site for name, site in model_trace.nodes.items() if site["type"] == "sample"}
        guide_sites = {name: site for name, site in guide_trace.nodes.items() if site["type"] == "sample"}
        if auxiliary := guide_sites.keys() - sites.keys():
            raise ValueError(f"site {min(auxiliary)!r} is drawn in the guide and not in the model")
        for name, site in sites.items():
            self._check(name, site, guide_sites.get(name), batch_size)
        observed = [site for site in sites.values() if site["is_observed"]]
        names = [name for name, site in sites.items() if not site["is_observed"]]
        priors, posteriors = [sites[name] for name in names], [guide_sites[name] for name in names]
        log_p_x, log_p_z, log_q_z = (
            torch.stack([_rows(site["log_prob"]) for site in part]).sum(0) for part in (observed, priors, posteriors)
        )
        latents = tuple(Latent(q["value"], p["fn"], q["fn"]) for p, q in zip(priors, posteriors))
        return Draws(log_p_x, log_p_z, log_q_z, latents)

    def _check(self, name: str, site: Any, guide_site: Any, batch_size: int) -> None:
        if guide_site is None and not site["is_observed"]:
            raise ValueError(f"site {name!r} is drawn in the model and not in the guide")
        for one in filter(None, (site, guide_site)):
            if not _is_one(one["scale"]) or one["mask"] is not None:
                raise ValueError(f"site {name!r} is scaled or masked, which is no bound: weigh the rate by beta")
            if one["log_prob"].shape[-1:] != (batch_size,):
                raise ValueError(f"site {name!r} is not of each datum: put it inside pyro.plate('data', x.shape[0])")
        if self.reparameterised and guide_site is not None and not guide_site["fn"].has_rsample:
            raise ValueError(f"q of {name!r} is not reparameterised: its gradient needs ScoreELBO, --elbo score")


def _is_one(scale: Any) -> bool:
    return isinstance(scale, (int, float)) and scale == 1


def _rows(log_prob: Tensor) -> Tensor:
    """Return (K, B); with one particle Pyro leaves its dimension out, and here it is 1."""
    return log_prob if log_prob.dim() == 2 else log_prob.unsqueeze(0)
