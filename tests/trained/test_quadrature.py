"""Quadrature of log p(x) over one or two latents, where it is known exactly, and where q misses a mode."""

from __future__ import annotations

import math

import pyro.distributions as dist
import pytest
import torch
from helpers.linear_gaussian import LinearGaussian
from torch import nn

from pvae.core.errors import InputError
from pvae.core.random_state import seeded
from pvae.data.batch import Batch
from pvae.trained.quadrature import quadrature
from pvae.vae import VAE


@pytest.mark.parametrize("num_labels", [0, 3])
def test_two_latents_are_integrated_exactly(num_labels):
    truth = LinearGaussian(num_labels=num_labels)
    with seeded(0):
        found = quadrature(truth.vae(off=0.5), Batch(truth.x, truth.y) if num_labels else truth.x, 1e-6)
    assert torch.allclose(found.log_p, truth.log_p(), atol=2e-6)
    assert (found.error < 2e-6).all()


class Squares(nn.Module):
    """x = z^2 + noise: p(z | x) has two modes, of which q knows one."""

    def __init__(self, scale):
        super().__init__()
        self.scale = scale

    def forward(self, z):
        return dist.Normal(z.square(), self.scale).to_event(1)


class Prior(nn.Module):
    def forward(self):
        return dist.Normal(torch.zeros(1).double(), 1.0).to_event(1)


class Posterior(nn.Module):
    def forward(self, x):
        return dist.Normal(x.abs().sqrt(), 0.1).to_event(1)


@pytest.mark.parametrize("scale", [0.5, 0.01])
def test_a_mode_that_q_misses_is_found(scale):
    x = torch.tensor([[0.3], [1.0], [4.0]]).double()
    z = torch.linspace(-8, 8, 400_001, dtype=torch.float64)
    log_joint = dist.Normal(z.square(), scale).log_prob(x) + dist.Normal(0.0, 1.0).log_prob(z)
    exact = log_joint.logsumexp(1) + math.log(16 / 400_000)
    with seeded(0):
        found = quadrature(VAE(Prior(), Posterior(), Squares(scale)), x)
    assert ((found.log_p - exact).abs() < found.error + 1e-8).all()
    assert (found.error < 1e-3).all()


def test_what_lies_outside_the_grid_is_in_the_error():
    x = torch.tensor([[400.0]]).double()

    class Elsewhere(nn.Module):
        def forward(self, x):
            return dist.Normal(0 * x, 1.0).to_event(1)

    with seeded(0):
        assert quadrature(VAE(Prior(), Elsewhere(), Squares(0.5)), x).error > 0.5


def test_three_latents_are_refused(linear, x):
    with pytest.raises(InputError):
        quadrature(linear(), x)
