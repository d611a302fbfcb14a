"""Two values that are reported beside an ELBO: the rate in closed form, and the loss at the mean of the posterior."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.distributions import kl_divergence

from pvae.distributions.power_spherical import PowerSpherical
from pvae.vae import VAE

__all__ = ["exact_rate", "posterior_mean_loss"]


def exact_rate(posterior: Any, prior: Any) -> Tensor:
    """Return the rate of each datum in closed form, KL(q(z | x) || p(z)), (B,) nats.

    Args:
        posterior: q(z | x), batch shape (B,).
        prior: p(z).

    Raises:
        NotImplementedError: the pair (q, p) has no closed form in torch.distributions.
    """
    return kl_divergence(posterior, prior.expand(posterior.batch_shape))  # torch's for Bernoulli needs one shape


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
    rate = exact_rate(posterior, vae.prior())
    z = posterior.loc if isinstance(posterior, PowerSpherical) else posterior.mean
    return -vae.log_likelihood(x, z) + rate
