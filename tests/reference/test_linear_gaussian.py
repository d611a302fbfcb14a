"""All estimators against the linear-Gaussian VAE, where the value and the gradient of every bound are known exactly.

A statistical comparison allows 4.3 standard errors (a failure rate of 2e-5 each) and first checks that it would have
seen an error of 2 %, or of 5 % of a gradient by the score function.
"""

from __future__ import annotations

import math

import pyro
import pytest
import torch
from conftest import LINEAR_SHAPE
from helpers.svi import ELBOS
from torch.distributions import MultivariateNormal, kl_divergence

from pvae.config.build import build_elbo
from pvae.core.errors import InputError
from pvae.reference import bounds as reference_bounds
from pvae.reference import linear_gaussian

SIGMAS = 4.3


def test_log_evidence_is_bayes_rule(linear, x):
    """log p(x) = log p(x | z) + log p(z) - log p(z | x), whatever z is; and by the dense covariance."""
    vae = linear(0.3)
    z = torch.randn(3, dtype=torch.float64, generator=torch.Generator().manual_seed(2)).expand(5, 3)
    joint = vae.likelihood(z).log_prob(x) + vae.prior().log_prob(z)
    exact = linear_gaussian.log_evidence(vae, x)
    assert torch.allclose(joint - linear_gaussian.true_posterior(vae, x).log_prob(z), exact, rtol=1e-12)
    loadings, offset, scale = linear_gaussian.decoder_of(vae)
    covariance = loadings @ loadings.T + scale**2 * torch.eye(12)
    assert torch.allclose(MultivariateNormal(offset, covariance).log_prob(x.flatten(1)), exact, rtol=1e-12)


def test_the_gap_of_the_elbo_is_the_kl(linear, x):
    """The exact ELBO against E_q log p(x | z) - KL(q || p(z)), in closed form."""
    vae = linear(0.3)
    posterior = vae.posterior(x)
    loadings, offset, scale = linear_gaussian.decoder_of(vae)
    residual = x.flatten(1) - offset - posterior.mean @ loadings.T
    noise = (posterior.variance * loadings.square().sum(0)).sum(1)
    distortion = 0.5 * (residual.square().sum(1) + noise) / scale**2 + 6 * math.log(2 * math.pi * scale**2)
    assert torch.allclose(linear_gaussian.elbo(vae, x), -distortion - kl_divergence(posterior, vae.prior()), rtol=1e-12)
    assert (linear_gaussian.elbo(vae, x) < linear_gaussian.log_evidence(vae, x) - 0.01).all()


def test_only_linear_gaussian_vaes_have_an_oracle(small_vae, small_images, linear):
    assert not linear_gaussian.has_oracle(small_vae())
    nonlinear = linear()
    nonlinear.p_x.decoder = torch.nn.Sequential(
        torch.nn.Linear(3, 12), torch.nn.Tanh(), torch.nn.Unflatten(-1, LINEAR_SHAPE)
    )
    assert not linear_gaussian.has_oracle(nonlinear)
    with pytest.raises(InputError):
        linear_gaussian.log_evidence(small_vae(), small_images(2))


def loss_and_gradients(vae, x, elbo, seed):
    vae.zero_grad()
    with torch.random.fork_rng(), pyro.get_param_store().scope():
        torch.manual_seed(seed)
        loss = elbo.loss_and_grads(vae.model, vae.guide, x)
    parts = [torch.cat([p.grad.flatten() for p in part.parameters()]) for part in (vae.q_z, vae.p_x)]
    return loss.item(), parts


@pytest.mark.parametrize("name", [name for name in ELBOS if name != "analytic"])
def test_at_the_exact_posterior_there_is_no_noise(linear, x, name):
    """Every bound is log p(x), whatever is drawn; and STL's and DReG's gradients have no variance either."""
    vae, elbo = linear(), build_elbo(name, 6, **({"groups": 3} if name in ("miwae", "piwae") else {}))
    assert torch.allclose(linear_gaussian.elbo(vae, x), linear_gaussian.log_evidence(vae, x), rtol=1e-12)
    draws = [loss_and_gradients(vae, x, elbo, seed) for seed in range(30)]
    for loss, _ in draws:
        assert -loss == pytest.approx(linear_gaussian.log_evidence(vae, x).mean().item(), rel=1e-12)
    encoder = torch.stack([parts[0] for _, parts in draws])
    if name in ("stl", "dreg"):
        assert encoder.var(0).max() < 1e-20
        assert encoder.abs().max() < 1e-10
    elif name != "score-loo":  # whose baseline is exact here, since all log-weights are the same
        assert encoder.var(0).max() > 1e-6


def replicates(vae, x, name, num_particles, num_groups=100, copies=400, **options):
    """Values and gradients of a bound: each row the mean over `copies` independent draws for each of the images."""
    elbo = build_elbo(name, num_particles, **options)
    many = x.repeat(copies, 1, 1, 1)
    rows = [loss_and_gradients(vae, many, elbo, seed) for seed in range(num_groups)]
    values = -torch.tensor([loss for loss, _ in rows], dtype=torch.float64)
    return values, *(torch.stack(parts) for parts in zip(*(parts for _, parts in rows)))


def assert_mean(values, exact, what, seen=0.02):
    stderr = values.std() / math.sqrt(len(values))
    assert stderr * SIGMAS < seen * abs(exact), f"{what}: this sample could not have seen {seen}"
    assert abs(values.mean() - exact) < SIGMAS * stderr, what


@pytest.mark.parametrize("name", ["trace", "analytic", "stl", "score", "score-loo"])
def test_elbos_and_their_gradients_are_unbiased(linear, x, name):
    """Distortion + 3 rate, and its gradient, along the exact gradient's direction, and orthogonal to it."""
    vae, is_score = linear(0.3), name.startswith("score")
    rate = kl_divergence(vae.posterior(x), vae.prior())
    exact = (-linear_gaussian.elbo(vae, x) + 2 * rate).mean()
    wanted = [torch.cat([g.flatten() for g in torch.autograd.grad(exact, list(part.parameters()), retain_graph=True)])
              for part in (vae.q_z, vae.p_x)]  # fmt: skip
    values, *gradients = replicates(vae, x, name, 4, 160 if is_score else 100, beta=3.0)
    assert_mean(values, -exact.item(), "value")
    generator = torch.Generator().manual_seed(5)
    for found, gradient, part in zip(gradients, wanted, ("encoder", "decoder")):
        along = gradient / gradient.norm()
        assert_mean(found @ along, gradient.norm().item(), f"{part}, along the gradient", 0.05 if is_score else 0.02)
        across = torch.randn(gradient.shape, generator=generator, dtype=torch.float64)
        across -= (across @ along) * along
        sideways = found @ (across / across.norm())
        assert abs(sideways.mean()) < SIGMAS * sideways.std() / math.sqrt(len(sideways)), f"{part}, across"


def relative_variance(vae, x):
    """Var_q [ p(x, z) / q(z | x) ] / p(x)^2, exactly: the chi-square divergence of p(z | x) from q(z | x)."""
    p, q = linear_gaussian.true_posterior(vae, x), vae.posterior(x)
    p_precision, q_precision = p.precision_matrix, torch.diag_embed(1 / q.variance)
    precision = 2 * p_precision - q_precision
    assert (torch.linalg.eigvalsh(precision) > 0).all(), "the variance is infinite"
    b = 2 * (p_precision @ p.mean[..., None]) - q_precision @ q.mean[..., None]
    exponent = (b.mT @ torch.linalg.solve(precision, b))[:, 0, 0]
    exponent -= 2 * (p.mean[:, None] @ p_precision @ p.mean[..., None])[:, 0, 0]
    exponent += (q.mean[:, None] @ q_precision @ q.mean[..., None])[:, 0, 0]
    logdet = torch.logdet(p_precision) - 0.5 * torch.logdet(q_precision) - 0.5 * torch.logdet(precision)
    return (0.5 * exponent + logdet).exp() - 1


def test_the_gap_of_iwae_closes_at_its_known_rate(linear, x):
    """log p(x) - L_K = Var[w / p(x)] / (2 K) to first order, and L_K rises with K.

    With r the mean of w / p(x), whose expectation is 1, the gap is E[-log r] = E[r - 1 - log r], and the second form's
    noise falls as fast as the gap itself.
    """
    vae = linear(0.1)
    exact, gaps = linear_gaussian.log_evidence(vae, x), {}
    for num_particles in (1, 4, 16, 64):
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(num_particles)
            log_w = reference_bounds.log_weights(vae, x.repeat(5000, 1, 1, 1), num_particles)
            log_r = reference_bounds.iwae(log_w).view(-1, 5) - exact
        values = (log_r.exp() - 1 - log_r).mean(1)
        gaps[num_particles] = values.mean().item(), values.std().item() / math.sqrt(5000)
        assert gaps[num_particles][1] * SIGMAS < 0.1 * gaps[num_particles][0], "this sample could not have seen 10 %"
    means = [mean for mean, _ in gaps.values()]
    assert means == sorted(means, reverse=True)
    elbos_gap = (exact - linear_gaussian.elbo(vae, x)).mean().item()
    assert gaps[1][0] == pytest.approx(elbos_gap, abs=SIGMAS * gaps[1][1])
    first_order = relative_variance(vae, x).mean().item() / (2 * 64)
    assert gaps[64][0] == pytest.approx(first_order, rel=0.1)
