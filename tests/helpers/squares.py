"""x = z^2 + noise: p(z | x) has two modes, of which q(z | x) knows one."""

from __future__ import annotations

import math

import pyro.distributions as dist
import torch

from helpers.fixed import Fixed
from pvae.vae import VAE


def squares(scale, x=(0.3, 1.0, 4.0), slope=1.0):
    """Return a VAE of one latent, data and their log p(x), by a sum over 400,001 values of z."""
    x = torch.tensor(x).double()[:, None]
    z = torch.linspace(-8, 8, 400_001, dtype=torch.float64)
    log_joint = dist.Normal(z.square(), scale).log_prob(x) + dist.Normal(0.0, 1.0).log_prob(z)
    vae = VAE(
        Fixed(lambda: dist.Normal(torch.zeros(1).double(), 1.0).to_event(1)),
        Fixed(lambda x: dist.Normal(slope * x.abs().sqrt(), 0.25).to_event(1)),
        Fixed(lambda z: dist.Normal(z.square(), scale).to_event(1)),
    )
    return vae, x, log_joint.logsumexp(1) + math.log(16 / 400_000)
