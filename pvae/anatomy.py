"""The anatomy of a trained VAE's rate: mutual information, total correlation, dimension-wise KL, active units."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import Independent, Normal

from pvae.errors import InputError
from pvae.evaluation import CHUNK_NUMBERS, Images, images_at_once
from pvae.hierarchy import Chain
from pvae.vae import VAE

__all__ = ["RateSplit", "active_units", "latent_means", "split_rate"]


@dataclass(frozen=True, eq=False)
class RateSplit:
    """The rate, averaged over N images, in three parts that sum to it; (M,) nats each, at one draw of M of the images.

        rate = I(n; z)                       mutual information of an image's index and its code, at most log N
             + KL(q(z) || prod_l q(z_l))     total correlation
             + sum_l KL(q(z_l) || p(z_l))    dimension-wise KL

    with the aggregate posterior q(z) = (1/N) sum_n q(z | x_n), over these N images and no others. For them it is exact
    but for the noise of the draws. As an estimate for all images there could be, the mutual information is
    biased downward, and badly where it comes near log N; what it lacks stands in the two other parts.

    Reference:
        Hoffman and Johnson, ELBO surgery, 2016; Chen et al., arXiv:1802.04942.
    """

    mutual_information: Tensor
    total_correlation: Tensor
    dimension_wise: Tensor

    @property
    def rate(self) -> Tensor:
        """Log q(z | x) - log p(z) at the draws, (M,)."""
        return self.mutual_information + self.total_correlation + self.dimension_wise


@torch.no_grad()
def split_rate(vae: VAE, x: Images, num_draws: int = 2000) -> RateSplit:
    """Split the rate of images at one draw z ~ q(z | x) for each of the first `num_draws` of them.

    Args:
        vae: in eval mode, with independent Normals for q(z | x) and p(z).
        x: images (N, C, H, W).
        num_draws: M; N if there are fewer.

    Raises:
        InputError: q(z | x) or p(z) is not independent over dimensions.
    """
    first = next(iter(x.split(1)))
    if not all(isinstance(part, Independent) for part in (vae.posterior(first), vae.prior())):
        raise InputError("the rate can be split where q(z | x) and p(z) are independent over latent dimensions only")
    parts = [vae.posterior(part).base_dist for part in x.split(images_at_once(vae, x))]
    loc, scale = (torch.cat([getattr(part, name) for part in parts]).double() for name in ("loc", "scale"))
    q = Normal(loc, scale)
    z = q.sample()[:num_draws]
    own = Normal(loc[:num_draws], scale[:num_draws]).log_prob(z).sum(1)
    log_q_z, log_product = z.new_empty(2, len(z))  # small tensors kept in between would leave holes in the memory
    size = max(1, CHUNK_NUMBERS // loc.numel())
    for start in range(0, len(z), size):
        part = slice(start, start + size)
        log_q = q.log_prob(z[part].unsqueeze(1))  # (draws, N, L)
        log_q_z[part] = log_q.sum(2).logsumexp(1) - math.log(len(x))
        log_product[part] = (log_q.logsumexp(1) - math.log(len(x))).sum(1)
    return RateSplit(
        mutual_information=own - log_q_z,
        total_correlation=log_q_z - log_product,
        dimension_wise=log_product - vae.prior().log_prob(z.to(first.dtype)).double(),
    )


@torch.no_grad()
def latent_means(vae: VAE, x: Images, num_samples: int = 100) -> Tensor:
    """Return E_{q(z | x)}[z] of each image, (N, L): exact, but for a second stochastic layer.

    Its mean is E_{q(z1 | x)}[ E[z2 | z1] ], estimated by the mean of E[z2 | z1] over draws of z1. Draws of z2 would
    vary over images even where z2 says nothing of x.

    Args:
        vae: in eval mode.
        x: images (N, C, H, W).
        num_samples: draws of z1 for each image.
    """
    posteriors = (vae.posterior(part) for part in x.split(images_at_once(vae, x)))
    return torch.cat([q.mean_over(num_samples) if isinstance(q, Chain) else q.mean for q in posteriors])


def active_units(vae: VAE, x: Images, threshold: float = 0.01) -> Tensor:
    """Return which latent dimensions are used: those of which the mean, E_{q(z | x)}[z_l], varies over images.

        Var_x ( E_{q(z | x)} [z_l] )  >  threshold

    The variance is that of the means; draws of z vary in an unused dimension too, by the prior's variance.

    Args:
        vae: in eval mode.
        x: images (N, C, H, W).
        threshold: 0.01, as published.

    Returns:
        bool (L,).

    Reference:
        Burda, Grosse and Salakhutdinov, arXiv:1509.00519, on the representation of the latent space.
    """
    return latent_means(vae, x).var(0) > threshold
