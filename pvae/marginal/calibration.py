"""Whether q(z | x) is calibrated on data that the VAE has drawn, whose latents are known."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from pvae.core.batch import Batch, Data
from pvae.marginal.annealing import simulated
from pvae.marginal.chunks import data_at_once
from pvae.marginal.log_p import check_continuous
from pvae.vae import VAE

_DRAWS = 99  # of q(z | x) for each datum, so that there are 100 ranks


class Calibration(NamedTuple):
    """How often a draw z from p(z | x) lies in regions of q(z | x) of masses 0.1, 0.2, ..., 0.9.

    Args:
        latents: the shares of data whose z_l is below the quantiles 0.1, 0.2, ..., 0.9 of q(z_l | x), float64 (L, 9).
        regions: the shares of data whose z is in the regions of highest density of q(z | x), (9,).
        band: how far any of these shares may be from the mass of its region, if q(z | x) is p(z | x).
    """

    latents: Tensor
    regions: Tensor
    band: float

    @property
    def distances(self) -> Tensor:
        """The largest distance of the shares from the masses, of each latent and of the regions, (L + 1,)."""
        shares = torch.cat([self.latents, self.regions[None]])
        return (shares - torch.arange(1, 10).to(shares) / 10).abs().amax(1)


@torch.no_grad()
def calibration(vae: VAE, data: Data, num_data: int = 1000, level: float = 0.95) -> Calibration:
    """Draw data from the model, and compare the z of each with 99 draws from q(z | x).

        z ~ p(z),  x ~ p(x | z):     z is a draw from p(z | x)

    If q(z | x) is p(z | x), the rank of z_l among draws of z_l from q(z | x) is uniform over 0, ..., 99, and so is the
    number of draws where q is denser than at z. A rank is thus below k with probability k / 100. All shares
    are within a band around these with probability `level` or more, by the inequality of Dvoretzky, Kiefer and
    Wolfowitz for each of L + 1 distribution functions:

        band = sqrt(log(2 (L + 1) / (1 - level)) / (2 num_data))

    Where q is too narrow, few z lie in the regions of highest density. A q that is p(z) for all x is calibrated too:
    the ELBO, and not this test, says how much of p(z | x) it misses. Real data may differ from those that are drawn.

    Args:
        vae: in eval mode; its latent is any vector of real numbers.
        data: N data, or a `Batch` of them with their labels; those drawn have labels and missing values of random ones.
        num_data: the number of data that are drawn.
        level: of the band, of all shares together.

    Raises:
        InputError: the latent is discrete or on a sphere, or the VAE has no log p(x).

    Reference:
        Talts et al., arXiv:1804.06788, theorem 1 (ranks); Hermans et al., arXiv:2110.06581 (regions of highest
        density); Massart, Annals of Probability 18, 1990 (the inequality, with its constant).
    """
    batch = Batch.of(data)
    check_continuous(vae, batch)
    batch = batch.rows(torch.randint(len(batch), (num_data,)))
    ranks = []
    for part in batch.split(data_at_once(vae, batch, _DRAWS)):
        x, z = simulated(vae, part)
        q = vae.given(part.y).posterior(x)
        draws = q.sample((_DRAWS,))
        is_denser = q.log_prob(draws) > q.log_prob(z)
        ranks.append(torch.cat([(draws < z).sum(0), is_denser.sum(0)[:, None]], 1))
    shares = (torch.cat(ranks)[..., None] < torch.arange(10, 100, 10)).double().mean(0)
    band = math.sqrt(math.log(2 * len(shares) / (1 - level)) / (2 * num_data))
    return Calibration(shares[:-1], shares[-1], band)
