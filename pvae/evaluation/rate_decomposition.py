"""Split the rate of a VAE into mutual information, total correlation and dimension-wise KL; find active units."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import Independent, Normal

from pvae.core.errors import InputError
from pvae.data.batch import given_parts
from pvae.data.dataset import random_subset
from pvae.data.preparation import Pixels
from pvae.trained.chunks import CHUNK_VALUES, images_at_once
from pvae.trained.latent_space import encode
from pvae.vae import VAE

__all__ = ["RateSplit", "active_units", "split_rate"]


@dataclass(frozen=True, eq=False)
class RateSplit:
    """The three parts of the rate, (M,) nats each, at one draw z ~ q(z | x_m) for each of M of the N images.

        rate = I(n; z)                       mutual information between image index and code, at most log N
             + KL(q(z) || prod_l q(z_l))     total correlation
             + sum_l KL(q(z_l) || p(z_l))    dimension-wise KL

    The aggregate posterior is q(z) = (1/N) sum_n q(z | x_n), over these N images. If the M images are a random subset
    of the N, the means over the draws are unbiased for the N images. The mean of the mutual information is a lower
    bound on I(x; z) over the whole distribution of images. If it is near log N, it is far too low, and the two other
    parts are too large by the difference. The means of `leave_one_out` and of `rate` are upper bounds on I(x; z).

    The standard error of a mean over the M draws needs no term for q(z), although q(z) is estimated from the same
    images: to first order an image changes the mean of log q(z) by E_q(z)[q(z | x_n) / q(z)] - 1 = 0, and the same
    holds for each log q(z_l). The standard error covers images and draws, but not the bias; for a statement about the N
    images alone it is somewhat too large.

    Args:
        images: indices of the M images, int64 (M,), in rising order.
        mutual_information: log q(z | x) - log q(z).
        leave_one_out: log q(z | x) - log q(z) with q(z) over the N - 1 other images.
        total_correlation: log q(z) - log prod_l q(z_l).
        dimension_wise_kl: log prod_l q(z_l) - log p(z).

    Reference:
        Hoffman and Johnson, ELBO surgery, 2016; Chen et al., arXiv:1802.04942, equation 2; both bounds on I(x; z):
        Poole et al., arXiv:1905.06922, section 2.5.
    """

    images: Tensor
    mutual_information: Tensor
    leave_one_out: Tensor
    total_correlation: Tensor
    dimension_wise_kl: Tensor

    @property
    def rate(self) -> Tensor:
        """Log q(z | x) - log p(z) at the draws, (M,)."""
        return self.mutual_information + self.total_correlation + self.dimension_wise_kl


@torch.no_grad()
def split_rate(vae: VAE, x: Tensor | Pixels, num_images: int = 2000, seed: int = 0) -> RateSplit:
    """Split the rate at one draw z ~ q(z | x) for each image of a random subset.

    Args:
        vae: in eval mode; q(z | x) is Normal, and latent dimensions are independent in q(z | x) and p(z).
        x: images (N, C, H, W), N at least 2.
        num_images: the largest M; M is N if N is smaller.
        seed: selects the subset; z is drawn from torch's generator.

    Raises:
        InputError: q(z | x) is not Normal, or q(z | x) or p(z) is not independent over dimensions.
    """
    one, first = next(given_parts(vae, x, 1))
    posterior = one.posterior(first)
    is_normal = isinstance(posterior, Independent) and isinstance(posterior.base_dist, Normal)
    if not (is_normal and isinstance(vae.prior(), Independent)):
        raise InputError("the rate can be split only for a Normal q(z | x) and a p(z) of independent latent dimensions")
    parts = [one.posterior(part).base_dist for one, part in given_parts(vae, x, images_at_once(vae, x))]
    loc, scale = (torch.cat([getattr(part, name) for part in parts]).double() for name in ("loc", "scale"))
    images = random_subset(len(x), num_images, seed).to(loc.device)
    q = Normal(loc, scale)
    z = q.sample()[images]
    own = Normal(loc[images], scale[images]).log_prob(z).sum(1)
    # Written into, because small tensors that are allocated between large ones would fragment the memory.
    log_q_z, log_others, log_product = z.new_empty(3, len(z))
    size = max(1, CHUNK_VALUES // loc.numel())
    for start in range(0, len(z), size):
        part = slice(start, start + size)
        log_q = q.log_prob(z[part].unsqueeze(1))  # (draws, N, L)
        log_product[part] = (log_q.logsumexp(1) - math.log(len(x))).sum(1)
        joint = log_q.sum(2)
        log_q_z[part] = joint.logsumexp(1) - math.log(len(x))
        joint.scatter_(1, images[part, None], -math.inf)
        log_others[part] = joint.logsumexp(1) - math.log(len(x) - 1)
    return RateSplit(
        images=images,
        mutual_information=own - log_q_z,
        leave_one_out=own - log_others,
        total_correlation=log_q_z - log_product,
        dimension_wise_kl=log_product - vae.prior().log_prob(z.to(first.dtype)).double(),
    )


def active_units(vae: VAE, x: Tensor | Pixels, threshold: float = 0.01) -> Tensor:
    """Return which latent dimensions are active, that is, whose mean E_{q(z | x)}[z_l] varies over images.

        Var_x ( E_{q(z | x)} [z_l] )  >  threshold

    It is the variance of the means (`encode`), because draws of z vary in unused dimensions too, with the variance of
    the prior.

    Args:
        vae: in eval mode.
        x: images (N, C, H, W).
        threshold: 0.01, as published.

    Returns:
        bool (L,).

    Reference:
        Burda, Grosse and Salakhutdinov, arXiv:1509.00519, on the representation of the latent space.
    """
    return encode(vae, x).var(0) > threshold
