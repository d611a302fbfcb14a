"""The ELBO as a loss written by hand, without Pyro's inference."""

from __future__ import annotations

import torch
from torch import Tensor

from pvae.core.terms import LossAndTerms, Terms
from pvae.core.tracing import register
from pvae.distributions.hierarchy import layers_of
from pvae.elbos.base import PerDatumELBO, PyroFunction, refuse_dependent_dimensions, require_rsample
from pvae.vae import VAE

__all__ = ["HandwrittenELBO"]


class HandwrittenELBO(PerDatumELBO):
    """log p(x | z) + log p(z) - log q(z | x) written by hand, without Pyro's traces, trained by the same SVI.

    Args:
        num_particles: K.
        beta: weight of the rate in the loss.
        free_bits: nats per latent dimension that cost nothing.
    """

    def loss_and_terms(
        self, model: PyroFunction, guide: PyroFunction, x: Tensor, beta: float | Tensor | None = None
    ) -> LossAndTerms:
        """Return loss and terms of a batch x (B, C, H, W), from the distributions of the VAE of `model` and `guide`.

        Raises:
            TypeError: `model` and `guide` are not the methods of one `VAE`, which has the distributions.
            InputError: z is not reparameterised, or with free bits the latent dimensions are not independent.
        """
        vae = getattr(model, "__self__", None)
        if not isinstance(vae, VAE) or (model, guide) != (vae.model, vae.guide):
            raise TypeError("the handwritten ELBO takes vae.model and vae.guide of one VAE")
        for name in ("p_z", "q_z", "p_x"):  # SVI updates only parameters that are registered while the loss is computed
            register(name, getattr(vae, name))
        prior, posterior = vae.prior(), vae.posterior(x)
        require_rsample("z", posterior)
        z = posterior.rsample((self.num_particles,))
        distortion = -vae.likelihood(z).log_prob(x).mean(0)
        rate = (posterior.log_prob(z) - prior.log_prob(z)).mean(0)
        beta = self.beta if beta is None else beta
        if self.free_bits:
            layers = [(q, p, layer) for (layer, q), (_, p) in zip(layers_of(posterior, z), layers_of(prior, z))]
            refuse_dependent_dimensions(one for q, p, _ in layers for one in (q, p))
            rates = [(q.base_dist.log_prob(z) - p.base_dist.log_prob(z)).mean((0, 1)) for q, p, z in layers]
            loss = distortion.mean() + beta * torch.cat(rates).clamp(min=self.free_bits).sum()
        else:
            loss = (distortion + beta * rate).mean()
        return LossAndTerms(loss, Terms(distortion.detach(), rate.detach()))
