"""The ELBO is a lower bound on log p(x), and its gap is the KL from the true posterior: by quadrature, in float64."""

from __future__ import annotations

import pytest
import torch

from pvae.config.build import build_vae
from pvae.config.config import Config
from pvae.core.batch import Terms
from pvae.reference.elbo import closed_form, monte_carlo, three_parts

GRID = torch.linspace(-12, 12, 20_001, dtype=torch.float64).unsqueeze(-1)

DRAWS = 150_000


@pytest.fixture(scope="module")
def truth():
    """A VAE of one latent and 6 binary pixels; for 8 images log p(x), distortion, rate and KL(q, p(z | x)), exactly."""
    with torch.random.fork_rng():
        torch.manual_seed(4)
        vae = build_vae(Config(hidden=(8,), latent_dim=1, binarize="static"), (1, 2, 3)).double()
        for parameter in vae.parameters():
            parameter.data *= 1.7
        x = torch.bernoulli(torch.full((8, 1, 2, 3), 0.5, dtype=torch.float64))
    with torch.no_grad():
        posterior = vae.posterior(x)
        z = GRID.unsqueeze(1)  # (G, 1, 1), against the images' batch
        log_q = posterior.log_prob(z)
        log_p_z, log_p_x_z = vae.prior().log_prob(z), vae.likelihood(z).log_prob(x)
        log_p_x = integral((log_p_z + log_p_x_z).exp()).log()
        distortion, rate = integral(-log_q.exp() * log_p_x_z), integral(log_q.exp() * (log_q - log_p_z))
        gap = integral(log_q.exp() * (log_q - (log_p_z + log_p_x_z - log_p_x)))
    return vae, x, log_p_x, Terms(distortion, rate), gap


def integral(values):
    return torch.trapezoid(values, GRID, dim=0)


def test_the_gap_is_the_kl_from_the_true_posterior(truth):
    _, _, log_p_x, exact, gap = truth
    assert torch.allclose(log_p_x - exact.elbo, gap, rtol=1e-9, atol=1e-9)
    assert gap.min() > 0
    assert gap.max() > 0.1, "q is so near the posterior that a wrong bound could not be told"


@pytest.mark.parametrize("form", [monte_carlo, closed_form, three_parts])
def test_the_forms_have_the_exact_distortion_and_rate_as_means(truth, form):
    vae, x, log_p_x, exact, _ = truth
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(6)
        found = form(vae, x.repeat(DRAWS, 1, 1, 1))
    if form is three_parts:
        found = Terms(found.reconstruction_error, found.cross_entropy - found.posterior_entropy)
    assert_mean_is(exact.distortion, found.distortion)
    assert_mean_is(exact.rate, found.rate, seen=0.1)
    assert (found.elbo.view(DRAWS, len(x)).mean(0) < log_p_x).all()


def assert_mean_is(exact, draws, seen=0.01):
    """Each of 8 images at 4.3 standard errors: fails for one seed in 7,400 where all is right; it is fixed."""
    draws = draws.view(DRAWS, len(exact))
    error = draws.std(0) / DRAWS**0.5
    assert (4.3 * error < seen * exact.abs()).all(), f"this sample could not have seen an error of {seen}"
    assert ((draws.mean(0) - exact).abs() < 4.3 * error + 1e-6).all()  # the error of the quadrature
