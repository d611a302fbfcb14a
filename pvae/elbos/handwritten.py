"""The ELBO as a loss written by hand, without Pyro's inference."""

from __future__ import annotations

from torch import Tensor

from pvae.core.param_store import register
from pvae.core.terms import LossAndTerms, Terms
from pvae.elbos.base import PerDatumELBO, PyroFunction, refuse_dependent_dimensions
from pvae.vae import VAE

__all__ = ["HandwrittenELBO"]


class HandwrittenELBO(PerDatumELBO):
    """log p(x | z) + log p(z) - log q(z | x) written by hand, without Pyro's traces, trained by the same SVI.

    Args:
        num_particles: K.
        beta: weight of the rate in the loss.
    """

    def loss_and_terms(
        self, model: PyroFunction, guide: PyroFunction, x: Tensor, beta: float | Tensor | None = None
    ) -> LossAndTerms:
        """Return loss and terms of a batch x (B, C, H, W), from the distributions of the VAE of `model` and `guide`.

        Raises:
            TypeError: `model` and `guide` are not the methods of one `VAE`, which has the distributions.
            InputError: with free bits, the latent dimensions are not independent.
        """
        vae = getattr(model, "__self__", None)
        if not isinstance(vae, VAE) or (model, guide) != (vae.model, vae.guide):
            raise TypeError("the handwritten ELBO takes vae.model and vae.guide of one VAE")
        if self.free_bits:
            refuse_dependent_dimensions(vae.prior(), vae.posterior(x))
        for name in ("p_z", "q_z", "p_x"):  # SVI updates only parameters that are registered while the loss is computed
            register(name, getattr(vae, name))
        prior, posterior = vae.prior(), vae.posterior(x)
        z = posterior.rsample((self.num_particles,))
        distortion = -vae.likelihood(z).log_prob(x).mean(0)
        rate = (posterior.log_prob(z) - prior.log_prob(z)).mean(0)
        beta = self.beta if beta is None else beta
        if self.free_bits:
            rates = (posterior.base_dist.log_prob(z) - prior.base_dist.log_prob(z)).mean((0, 1))
            loss = distortion.mean() + beta * rates.clamp(min=self.free_bits).sum()
        else:
            loss = (distortion + beta * rate).mean()
        return LossAndTerms(loss, Terms(distortion.detach(), rate.detach()))
