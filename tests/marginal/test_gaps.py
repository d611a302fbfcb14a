"""The best q of a family against its closed form, for a linear-Gaussian VAE."""

from __future__ import annotations

import pyro.distributions as dist
import pytest
import torch
from helpers.linear_gaussian import LinearGaussian

from pvae.core.batch import Batch
from pvae.core.errors import InputError
from pvae.core.random_state import seeded
from pvae.marginal import gaps
from pvae.marginal.gaps import best_elbo


def test_at_the_true_posterior_the_bound_is_log_p_at_every_draw(monkeypatch):
    """The search is replaced by the true posterior. The flow's first transform is z_1 -> 2 z_1, but for 1e-8."""
    truth = LinearGaussian(num_labels=3)
    loc, covariance = truth.posterior(truth.x, truth.y)
    lower = torch.linalg.cholesky(covariance)
    log_scale, half = lower.diagonal(dim1=1, dim2=2).log(), torch.tensor([0.5, 1.0])

    def exact(_step, q, _lr):
        if len(q) < 6:
            return [loc, log_scale, lower][: len(q)]
        u, w, b = (0 * one for one in q[3:])
        u[:, 0, 0], w[:, 0, 0] = 1e4, 1e-4
        return [loc, log_scale + half.log(), lower * half, u, w, b]

    monkeypatch.setattr(gaps, "_fitted", exact)
    monkeypatch.setattr(gaps, "record", lambda step, _q: step)
    mean, num_draws = gaps._mean, []
    monkeypatch.setattr(gaps, "_mean", lambda values: num_draws.append(len(values)) or mean(values))
    with seeded(0):
        found = best_elbo(truth.vae(), Batch(truth.x, truth.y), 20)
    assert num_draws == [1000] * 4
    for name in ("own", "full", "flow"):
        elbo, error = getattr(found, name), getattr(found, f"{name}_stderr")
        torch.testing.assert_close(elbo, truth.log_p(), rtol=1e-6, atol=1e-6)
        assert error.max() < 1e-6
    independent, joint = torch.diag_embed((2 * log_scale).exp()), dist.MultivariateNormal(loc, covariance)
    lost = torch.distributions.kl_divergence(dist.MultivariateNormal(loc, independent), joint)
    assert (found.normal_stderr > 0).all(), "its mean is one of draws, with 6 standard errors for 30 data"
    assert ((found.normal - truth.log_p() + lost).abs() < 6 * found.normal_stderr).all()


@pytest.mark.workflow
@pytest.mark.parametrize("num_labels", [pytest.param(0, marks=pytest.mark.slow), 3])
def test_the_best_q_has_the_gap_that_theory_says(num_labels, monkeypatch):
    """KL(q*, p(z | x)) = 1/2 (sum_l log P_ll - log det P) of the precision P; it is 0 for a full covariance.

    At 5 errors of the draws for each of 30 data, and the fifth of the gap that the search may leave in the mean.
    """
    monkeypatch.setattr(gaps, "_CHECKS", 4)
    truth = LinearGaussian(num_labels=num_labels)
    _, covariance = truth.posterior(truth.x, truth.y)
    precision = torch.linalg.inv(covariance)
    gap = (precision.diagonal(dim1=1, dim2=2).log().sum(1) - torch.logdet(precision)) / 2
    assert gap.mean() > 0.03, "there is a gap to see"
    with seeded(0):
        found = best_elbo(truth.vae(off=0.3), Batch(truth.x, truth.y) if num_labels else truth.x, 20, 0.01)
    for elbo, error, exact in (
        (found.normal, found.normal_stderr, truth.log_p() - gap),
        (found.full, found.full_stderr, truth.log_p()),
        (found.flow, found.flow_stderr, truth.log_p()),
    ):
        assert ((elbo - exact).abs() < 5 * error + 0.01).all()
        assert (elbo - exact).mean().abs() < 0.2 * gap.mean()


def test_a_vae_without_log_p_is_refused(small_vae, small_images):
    with pytest.raises(InputError):
        best_elbo(small_vae(), small_images(2))
