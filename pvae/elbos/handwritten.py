"""The ELBO as a loss written by hand, without Pyro's inference."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pvae.core import protocol
from pvae.core.batch import LossAndTerms, Terms
from pvae.core.tracing import register, shared_calls
from pvae.elbos.base import PerDatumELBO, PyroFunction, penalty_of, refuse_dependent_dimensions, require_rsample
from pvae.vae import VAE

__all__ = ["HandwrittenELBO"]


class HandwrittenELBO(
    PerDatumELBO, name="handwritten", help="log p(x|z) + log p(z) - log q(z|x) without Pyro's inference"
):
    """The Monte Carlo bound written by hand, without Pyro's traces, trained by the same SVI.

        L(x) = E_q [ log p(x | z) + log p(z) - log q(z | x) ]

    Args:
        num_particles: K, the number of draws of z for each datum.
        beta: weight of the rate in the loss.
        free_bits: nats per latent dimension that cost nothing.
    """

    def loss_and_terms(
        self, model: PyroFunction, guide: PyroFunction, *batch: Tensor, beta: float | Tensor | None = None
    ) -> LossAndTerms:
        """Return loss and terms of data x (B, *D), from the distributions of the VAE of `model` and `guide`.

        Raises:
            TypeError: `model` and `guide` are not the methods of one `VAE`, which has the distributions.
            InputError: z is not reparameterised, or with free bits the latent dimensions are not independent.
        """
        vae = getattr(model, "__self__", None)
        if not isinstance(vae, VAE | protocol.Given) or (model, guide) != (vae.model, vae.guide):
            raise TypeError("the handwritten ELBO takes vae.model and vae.guide of one VAE")
        for name in ("p_z", "q_z", "p_x"):  # SVI updates only parameters that are registered while the loss is computed
            register(name, getattr(vae, name))
        x, *labels = batch
        vae = vae.given(*labels) if labels else vae
        layers: dict[str, tuple[Any, Tensor]] = {}  # each layer's posterior and draw
        priors: dict[str, Any] = {}

        def draw(name: str, q: Any) -> Tensor:
            require_rsample(name, q)
            layers[name] = q, q.rsample(() if layers else (self.num_particles,))
            return layers[name][1]

        def replay(name: str, p: Any) -> Tensor:
            priors[name] = p
            return layers[name][1]

        with shared_calls():
            z = protocol.draw(vae.posterior(x), draw)
            protocol.draw(vae.prior(), replay)
        pairs = [(q, priors[name], z) for name, (q, z) in layers.items()]
        distortion = -vae.log_likelihood(x, z).mean(0)
        log_q_z, log_p_z = sum(q.log_prob(z) for q, _, z in pairs), sum(p.log_prob(z) for _, p, z in pairs)
        rate = (log_q_z - log_p_z).mean(0)
        beta = self.beta if beta is None else beta
        if self.free_bits:
            refuse_dependent_dimensions(one for q, p, _ in pairs for one in (q, p))
            rates = [(q.base_dist.log_prob(z) - p.base_dist.log_prob(z)).mean((0, 1)) for q, p, z in pairs]
            loss = distortion.mean() + beta * torch.cat(rates).clamp(min=self.free_bits).sum()
        else:
            loss = (distortion + beta * rate).mean()
        return LossAndTerms(loss + penalty_of(q for q, _, _ in pairs), Terms(distortion.detach(), rate.detach()))
