"""What the ELBOs here share: the unit, the weight of the rate, and a record of both terms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import torch
from pyro.infer import ELBO
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pvae import handwritten
from pvae.handwritten import Terms

__all__ = ["PerDatumELBO", "PyroFunction"]

PyroFunction = Callable[[Tensor], Any]


class _LatentScale(Messenger):
    """Multiply the log-probability of every latent site by beta, in model and guide alike.

    `poutine.scale` would scale the observed site too, and refuses beta = 0; scaling one side only is a
    trap (Pyro's analytic KL reads the guide's scale alone).
    """

    def __init__(self, beta: float) -> None:
        super().__init__()
        self.beta = beta

    def _pyro_sample(self, msg: Any) -> None:
        if not msg["is_observed"]:
            msg["scale"] = msg["scale"] * self.beta


class PerDatumELBO(ELBO):
    """What the ELBOs here share, laid over a Pyro ELBO: the unit, the weight of the rate, and a record.

        loss = mean over the batch of (distortion + beta rate), in nats per datum

    Pyro sums over the batch instead; the mean is what the source documents step on. The particles are one
    more batch dimension, not a loop. With free bits the rate in the loss is that of `handwritten.Terms.loss`.

    Args:
        num_particles: K, samples z ~ q(z | x) per datum.
        beta: weight of the rate in the loss; a training may change it from step to step.
        free_bits: nats of each latent dimension that cost nothing.

    Attributes:
        terms: distortion and rate of the last batch, (B,) nats each, without beta, free bits or gradient.
    """

    terms: Terms

    def __init__(self, num_particles: int = 1, beta: float = 1.0, free_bits: float = 0.0) -> None:
        # The one plate, "data", lies at dim -1; the particles then lie at dim -2.
        super().__init__(num_particles=num_particles, vectorize_particles=True, max_plate_nesting=1)  # type: ignore[no-untyped-call]
        self.beta = beta
        self.free_bits = free_bits
        self._rates: Tensor | None = None

    def differentiable_loss(self, model: PyroFunction, guide: PyroFunction, x: Tensor) -> Tensor:
        """Return the loss of a batch x (B, C, H, W): a scalar in nats per datum, to be made small."""
        with _LatentScale(self.beta):
            summed: Tensor = super().differentiable_loss(model, guide, x)  # type: ignore[misc]
        loss = summed / x.shape[0]
        if self._rates is None:
            return loss
        rates = self._rates.mean(0)  # Pyro's loss holds their sum; free bits want each held from below
        return loss + self.beta * (rates.clamp(min=self.free_bits) - rates).sum()

    def loss(self, model: PyroFunction, guide: PyroFunction, x: Tensor) -> float:
        """Return the loss as a number (`SVI.evaluate_loss` calls it); Pyro's parameter store stays as it was."""
        with torch.no_grad(), pyro.get_param_store().scope():
            return float(self.differentiable_loss(model, guide, x))

    def loss_and_grads(self, model: PyroFunction, guide: PyroFunction, x: Tensor) -> Tensor:
        """Return the loss after adding its gradients to the parameters (`SVI.step` calls it)."""
        loss = self.differentiable_loss(model, guide, x)
        loss.backward()
        return loss.detach()

    def _get_trace(self, model: PyroFunction, guide: PyroFunction, args: Any, kwargs: Any) -> tuple[Any, Any]:
        model_trace, guide_trace = super()._get_trace(model, guide, args, kwargs)  # type: ignore[safe-super, no-untyped-call]
        sites = [(name, site) for name, site in model_trace.nodes.items() if site["type"] == "sample"]
        with torch.no_grad():
            distortion = sum(-site["unscaled_log_prob"] for _, site in sites if site["is_observed"])
            rate = sum(self._rate(site, guide_trace.nodes[name]) for name, site in sites if not site["is_observed"])
            self.terms = Terms(_per_datum(distortion), _per_datum(rate))
        if self.free_bits:
            latents = [(guide_trace.nodes[name], site) for name, site in sites if not site["is_observed"]]
            self._rates = torch.cat([self._rate_by_dimension(*pair) for pair in latents], dim=-1)
        return model_trace, guide_trace

    def _rate(self, prior_site: Any, posterior_site: Any) -> Tensor:
        """Return log q - log p at the draws, (B,) or (K, B); an ELBO with a closed form returns that."""
        rate: Tensor = posterior_site["unscaled_log_prob"] - prior_site["unscaled_log_prob"]
        return rate

    def _rate_by_dimension(self, posterior_site: Any, prior_site: Any) -> Tensor:
        """Return the same for each latent dimension, averaged over the particles: (B, L)."""
        z = posterior_site["value"]
        rates = handwritten.rate_by_dimension(posterior_site["fn"], prior_site["fn"], z if z.dim() == 3 else z[None])
        return rates


def _per_datum(values: Any) -> Tensor:
    """Average (K, B) over the particles; (B,) is a mean already."""
    return values.mean(0) if values.dim() == 2 else values
