"""What is missing, against sums over a grid and against p(x missing | x observed) of a linear-Gaussian model."""

from __future__ import annotations

import math

import pyro.distributions as dist
import pytest
import torch
from helpers.linear_gaussian import SCALE, LinearGaussian
from torch import nn

from pvae.config.build import build_vae
from pvae.config.config import Config
from pvae.core.batch import Batch
from pvae.core.random_state import seeded
from pvae.trained.imputation import impute
from pvae.vae import VAE

CPU = torch.device("cpu")


@pytest.mark.workflow
def test_trusted_errors_cover_the_conditional_means_as_often_as_they_say():
    """95 % within 1.96 errors; of some 1,000 data an error of 0.8 %. q has 0.6 of the width, half a width away."""
    truth = LinearGaussian(1000)

    class Narrow(nn.Module):
        def forward(self, x):
            loc, covariance = truth.posterior(x)
            root = torch.linalg.cholesky(covariance)
            return dist.MultivariateNormal(loc + root.sum(-1) / math.sqrt(8), scale_tril=0.6 * root)

    with seeded(0, CPU):
        found = impute(VAE(truth.vae().p_z, Narrow(), truth.vae().p_x), truth.x)
    loc, _ = truth.posterior(truth.x)
    is_within = (found.filled - truth.b - loc @ truth.w.T).abs() < 1.96 * found.stderr
    counted = truth.x.isnan() & found.is_trusted[:, None]
    assert counted.sum() > 0.5 * truth.x.isnan().sum()
    assert 0.925 < is_within[counted].double().mean() < 0.975


@pytest.mark.parametrize("num_labels", [0, 3])
def test_draws_are_from_what_is_missing_given_the_rest(num_labels):
    """Means at 5 errors of some 50 values, variances within 20 %, and covariances beside what is observed."""
    truth = LinearGaussian(num_labels=num_labels)
    batch = Batch(truth.x, truth.y if num_labels else None)
    with seeded(0, CPU):
        found = impute(truth.vae(off=0.1), batch, 4000, num_draws=2000)
    assert found.draws.shape == (30, 2000, 7)
    loc, covariance = truth.posterior(truth.x, truth.y)
    expected = truth.b[truth.y] + loc @ truth.w.T
    variance = torch.einsum("dl,blm,dm->bd", truth.w, covariance, truth.w) + SCALE**2
    is_missing = truth.x.isnan()
    error = (found.stderr.square() + variance / 2000).sqrt()
    assert (((found.draws.mean(1) - expected) / error)[is_missing].abs() < 5).all()
    ratio = (found.draws.var(1) / variance)[is_missing]
    assert ((ratio - 1).abs() < 0.2).all()
    ratio = (found.std.square() / variance)[is_missing]
    assert ((ratio - 1).abs() < 0.2).all()
    assert not found.std[~is_missing].any()
    assert (found.draws == truth.x[:, None])[~is_missing[:, None].expand_as(found.draws)].all()
    assert impute(truth.vae(), batch, 5).draws.shape == (30, 0, 7)


def test_a_label_that_is_a_latent_is_that_of_the_datum_where_it_is_known():
    """Against sums over the classes and a grid of one latent, at 5 errors; the last datum has no label."""
    config = Config(hidden=(8,), latent_dim=1, likelihood="normal-diagonal", missing=True, labels=10)
    with seeded(1, CPU):
        vae = build_vae(config, (4,), 3).double().eval()
        x = torch.randn(4, 4).double()
    x[:, 2:] = math.nan
    y = torch.tensor([0, 1, 2, -1])
    grid = torch.linspace(-8, 8, 1601, dtype=torch.float64)
    z = torch.cat([torch.eye(3).double().repeat_interleave(1601, 0), grid.repeat(3)[:, None]], 1)
    with torch.no_grad():
        p_x = vae.likelihood(z)
        log_p = vae.log_likelihood(x, z[:, None].expand(-1, 4, -1)) + vae.prior().log_prob(z)[:, None]
    is_other = (y >= 0) & (z[:, :3].argmax(-1)[:, None] != y)
    expected = log_p.masked_fill(is_other, -math.inf).softmax(0).T @ p_x.mean
    with seeded(0, CPU):
        found = impute(vae, Batch(x, y), 4000)
    assert ((found.filled - expected) / found.stderr)[:, 2:].abs().max() < 5
    assert found.stderr.max() < 0.1 * (expected[0] - expected[1]).abs().max(), "which tells the classes apart"
