"""A VAE of 28 x 28 images that a user might build from modules of torch and distributions of Pyro."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import nn

from pvae import VAE


class StudentPrior(nn.Module):
    def forward(self):
        return dist.StudentT(torch.full((2,), 5.0)).to_event(1)


class Posterior(nn.Sequential):
    def forward(self, x):
        loc, log_scale = super().forward(x).chunk(2, dim=-1)
        return dist.Normal(loc, log_scale.exp()).to_event(1)


class Likelihood(nn.Sequential):
    def forward(self, z):
        return dist.Bernoulli(logits=super().forward(z)).to_event(3)


class NormalLikelihood(nn.Sequential):
    """A Normal whose scale is trained; nothing keeps it from 0."""

    def __init__(self, *modules):
        super().__init__(*modules)
        self.log_scale = nn.Parameter(torch.zeros(()))

    def forward(self, z):
        return dist.Normal(super().forward(z), self.log_scale.exp()).to_event(3)


def own_vae(hidden=8, likelihood=Likelihood):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = nn.Flatten(), nn.Linear(784, hidden), nn.ReLU(), nn.Linear(hidden, 4)
        decoder = nn.Linear(2, hidden), nn.ReLU(), nn.Linear(hidden, 784), nn.Unflatten(-1, (1, 28, 28))
        return VAE(p_z=StudentPrior(), q_z=Posterior(*encoder), p_x=likelihood(*decoder))
