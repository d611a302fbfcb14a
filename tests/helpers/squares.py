"""x = z^2 + noise: p(z | x) has two modes, of which q(z | x) knows one."""

from __future__ import annotations

import math

import pyro.distributions as dist
import torch
from torch import nn

from pvae.vae import VAE


class _Prior(nn.Module):
    def forward(self):
        return dist.Normal(torch.zeros(1).double(), 1.0).to_event(1)


class _Likelihood(nn.Module):
    def __init__(self, scale):
        super().__init__()
        self.scale = scale

    def forward(self, z):
        return dist.Normal(z.square(), self.scale).to_event(1)


class _Posterior(nn.Module):
    def __init__(self, slope):
        super().__init__()
        self.slope = slope

    def forward(self, x):
        return dist.Normal(self.slope * x.abs().sqrt(), 0.25).to_event(1)


def squares(scale, x=(0.3, 1.0, 4.0), slope=1.0):
    """Return a VAE of one latent, data and their log p(x), by a sum over 400,001 values of z."""
    x = torch.tensor(x).double()[:, None]
    z = torch.linspace(-8, 8, 400_001, dtype=torch.float64)
    log_joint = dist.Normal(z.square(), scale).log_prob(x) + dist.Normal(0.0, 1.0).log_prob(z)
    return VAE(_Prior(), _Posterior(slope), _Likelihood(scale)), x, log_joint.logsumexp(1) + math.log(16 / 400_000)
