"""log p(x_a | x_b) against its closed form, for a linear-Gaussian VAE."""

from __future__ import annotations

import pytest
import torch
from helpers.linear_gaussian import SCALE, D, LinearGaussian

from pvae.core.batch import Batch
from pvae.core.random_state import seeded
from pvae.marginal.log_likelihood import conditional_log_likelihood


@pytest.mark.parametrize("num_labels", [0, 3])
def test_it_is_the_density_of_the_conditional_normal(num_labels):
    """At 5.1 standard errors of each of 30 data, some values of which are missing: 1e-5 for all of them."""
    truth = LinearGaussian(num_labels=num_labels)
    batch = Batch(truth.x, truth.y) if num_labels else truth.x
    is_given = torch.arange(D) % 2 == 0
    with seeded(0):
        found, joint, given = conditional_log_likelihood(truth.vae(), batch, is_given, method="importance")
    exact = []
    for x, mean in zip(truth.x, (truth.b + truth.m @ truth.w.T)[truth.y]):
        covariance = truth.w @ truth.w.T + SCALE**2 * torch.eye(D, dtype=torch.float64)
        a, b = ~is_given & ~x.isnan(), is_given & ~x.isnan()
        gain = torch.linalg.solve(covariance[b][:, b], covariance[b][:, a]).T
        loc, spread = mean[a] + gain @ (x - mean)[b], covariance[a][:, a] - gain @ covariance[b][:, a]
        exact.append(torch.distributions.MultivariateNormal(loc, spread).log_prob(x[a]) if a.any() else 0 * loc.sum())
    error = joint.stderr.hypot(given.stderr)
    assert error.max() < 0.05
    assert ((found - torch.stack(exact)).abs() < 5.1 * error).all()
