"""Quadrature of log p(x) over one or two latents, where it is known exactly, and where q misses a mode."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers.fixed import Fixed
from helpers.linear_gaussian import LinearGaussian
from helpers.squares import squares

from pvae.core.batch import Batch
from pvae.core.errors import InputError
from pvae.core.random_state import seeded
from pvae.marginal import quadrature as module
from pvae.marginal.quadrature import quadrature
from pvae.vae import VAE


def oblique(ratio, scale, of_q=1.0, diagonal=True, count=30):
    """Return x = W z + noise whose p(z | x) is oblique, data, their log p(x), and the direction x knows z least by."""
    columns, turn = (torch.linalg.qr(torch.randn(size, 2).double())[0] for size in (10, 2))
    weight, eye = columns @ torch.tensor([ratio, 1.0]).double().diag() @ turn, torch.eye(2).double()
    covariance = torch.linalg.inv(eye + weight.T @ weight / scale**2)
    spread = covariance.diagonal().diag() if diagonal else covariance
    vae = VAE(
        Fixed(lambda: dist.Normal(torch.zeros(2).double(), 1.0).to_event(1)),
        Fixed(lambda x: dist.MultivariateNormal(x @ weight / scale**2 @ covariance, of_q**2 * spread)),
        Fixed(lambda z: dist.Normal(z @ weight.T, scale).to_event(1)),
    )
    noise = scale**2 * torch.eye(10).double()
    marginal = dist.MultivariateNormal(torch.zeros(10).double(), weight @ weight.T + noise)
    x = marginal.sample((count,))
    return vae, x, marginal.log_prob(x), columns[:, 1]


@pytest.mark.parametrize("num_labels", [0, 3])
def test_two_latents_are_integrated_exactly(num_labels):
    truth = LinearGaussian(num_labels=num_labels)
    with seeded(0):
        found = quadrature(truth.vae(off=0.5), Batch(truth.x, truth.y) if num_labels else truth.x, 1e-6)
    assert torch.allclose(found.log_p, truth.log_p(), atol=2e-6)
    assert (found.stderr < 2e-6).all()


@pytest.mark.parametrize("scale", [0.5, 0.01])
def test_a_mode_that_q_misses_is_found(scale):
    vae, x, exact = squares(scale)
    with seeded(0):
        found = quadrature(vae, x)
    assert ((found.log_p - exact).abs() < found.stderr + 1e-8).all()
    assert (found.stderr < 1e-3).all()
    assert found.is_trusted.all()


DECODERS = {  # with modes of p(z | x) that only one component of x tells from the others
    "squares and sines": lambda z: torch.cat([z**2, z**2 - 0.5, torch.sin(3 * z)], -1),
    "squares and a sine": lambda z: torch.cat([z**2, torch.sin(3 * z.sum(-1, keepdim=True))], -1),
    "cubes and squares": lambda z: torch.cat([z**3 - 2 * z, z**2], -1),
}


@pytest.mark.parametrize(("of_q", "scale"), [(0.05, 0.01), pytest.param(0.3, 0.003, marks=pytest.mark.workflow)])
@pytest.mark.parametrize("num_latents", [1, 2])
@pytest.mark.parametrize("name", DECODERS)
def test_what_is_trusted_is_no_less_than_a_lower_bound_where_q_has_the_wrong_sign(name, num_latents, of_q, scale):
    """The bound is log p(x) by importance sampling from the Normal at the mode from which x was drawn, to 0.01."""
    decode, eye = DECODERS[name], torch.eye(num_latents).double()
    with seeded(0):
        z = torch.randn(36, num_latents).double()
        x = decode(z) + scale * torch.randn(decode(z).shape).double()
        vae = VAE(
            Fixed(lambda: dist.Normal(torch.zeros(num_latents).double(), 1.0).to_event(1)),
            Fixed(lambda x: dist.Normal(-3 * torch.ones(len(x), num_latents).double(), of_q).to_event(1)),
            Fixed(lambda z: dist.Normal(decode(z), scale).to_event(1)),
        )
        for _ in range(6):  # of Gauss and Newton, to the mode
            slope = torch.stack([torch.autograd.functional.jacobian(decode, one) for one in z])
            precision = slope.mT @ slope / scale**2 + eye
            step = torch.einsum("noi,no->ni", slope, x - decode(z)) / scale**2 - z
            z = z + torch.linalg.solve(precision, step)
        near = dist.MultivariateNormal(z, precision_matrix=precision / 1.3)
        draws = near.sample((5000,))
        log_w = vae.log_likelihood(x, draws) + vae.prior().log_prob(draws) - near.log_prob(draws)
        bound = log_w.logsumexp(0) - math.log(5000)
        found = quadrature(vae, x)
    assert found.is_trusted.double().mean() > 0.8
    # Two modes within a cell or two of the grid over p(z) have one peak: of all 432 data this is so of one.
    assert (found.log_p > bound - 0.05)[found.is_trusted].double().mean() > 0.96


def waves(decode, scale, num_latents, count=25):
    """Return x = f(z) + noise of each latent alone, 25 data, and their log p(x), a sum over 600,001 values of z."""
    z = torch.linspace(-7.5, 7.5, 600_001, dtype=torch.float64)
    loc = decode(z)
    log_prior = dist.Normal(0.0, 1.0).log_prob(z) + math.log(15 / 600_000)
    x = dist.Normal(decode(torch.randn(count, num_latents).double()), scale).sample()
    vae = VAE(
        Fixed(lambda: dist.Normal(torch.zeros(num_latents).double(), 1.0).to_event(1)),
        Fixed(lambda x: dist.Normal(torch.full((len(x), num_latents), 0.5).double(), 0.4).to_event(1)),
        Fixed(lambda z: dist.Normal(decode(z), scale).to_event(1)),
    )
    exact = [(dist.Normal(loc, scale).log_prob(one) + log_prior).logsumexp(0) for one in x.flatten()]
    return vae, x, torch.stack(exact).view(x.shape).sum(1)


@pytest.mark.parametrize(
    ("num_latents", "frequency", "scale", "least"), [(1, 20, 0.003, 25), (1, 50, 0.01, 25), (2, 3, 0.05, 10)]
)
def test_many_narrow_modes_are_all_covered_or_not_trusted(num_latents, frequency, scale, least):
    """x = sin(w z) + noise: up to some hundred modes, far narrower than a cell of the first grid."""
    with seeded(0):
        vae, x, exact = waves(lambda z: torch.sin(frequency * z), scale, num_latents)
        found = quadrature(vae, x)
    assert ((found.log_p - exact).abs() < found.stderr + 1e-4)[found.is_trusted].all()
    assert found.is_trusted.sum() >= least


def test_a_first_grid_that_is_too_coarse_is_not_trusted():
    """A wave of x is 2.5 cells long, and p(x, z) rises within cells by more than it differs between them."""
    with seeded(0):
        vae, x, _ = waves(lambda z: torch.sin(800 * z), 0.003, 1)
        assert not quadrature(vae, x).is_trusted.any()


def network(seed, gain):
    """Return a random network of one input and output, whose steepest slopes are about this many."""
    draw = torch.Generator().manual_seed(seed)
    weight, bias, out = (torch.randn(40, generator=draw, dtype=torch.float64) for _ in range(3))
    return lambda z: torch.tanh(z[..., None] * weight * gain + bias * gain) @ out / 40**0.5


@pytest.mark.slow
@pytest.mark.parametrize("num_latents", [1, 2])
def test_nothing_is_trusted_that_is_wrong(num_latents):
    """Of 25 data of each of 20 decoders with 1 to 60 modes for each latent, trusted ones, none by its error + 0.01."""
    decoders = [lambda z, w=w: torch.sin(w * z) for w in (1, 2, 3, 5, 8, 10, 15, 20, 30, 47)]
    decoders += [network(seed, gain) for seed in range(3) for gain in (1, 4, 10)] + [torch.square]
    num_trusted = num_wrong = 0
    for number, decode in enumerate(decoders):
        for scale in (0.003, 0.03):
            with seeded(number):
                vae, x, exact = waves(decode, scale, num_latents)
                found = quadrature(vae, x)
            num_trusted += int(found.is_trusted.sum())
            num_wrong += int(((found.log_p - exact).abs() > found.stderr + 0.01)[found.is_trusted].sum())
    print(f"{num_latents} latents: {num_trusted} of {50 * len(decoders)} trusted, {num_wrong} of these wrong")
    assert num_wrong == 0
    assert num_trusted > 50 * len(decoders) * {1: 0.9, 2: 0.4}[num_latents]


def test_what_lies_outside_the_grid_is_in_the_error():
    vae, x, _ = squares(0.5, x=(400.0,), slope=0.0)
    with seeded(0):
        found = quadrature(vae, x)
    assert found.stderr > 0.5
    assert not found.is_trusted


@pytest.mark.parametrize(("ratio", "scale", "of_q"), [(3, 0.02, 0.5), (10, 0.1, 1.0), (30, 0.005, 0.2)])
def test_a_narrow_oblique_posterior_is_integrated(ratio, scale, of_q):
    """Of a scale down to 2e-4 and up to 30 times as long, where q is independent and up to 5 times too narrow."""
    with seeded(0):
        vae, x, exact, _ = oblique(ratio, scale, of_q)
        found = quadrature(vae, x)
    assert found.is_trusted.all()
    assert torch.allclose(found.log_p, exact, atol=1e-3)


def test_an_outlier_leaves_the_other_data_as_they_are():
    with seeded(0):
        vae, x, exact, direction = oblique(3, 0.15)
        found = quadrature(vae, torch.cat([x, x[:1] + 60 * direction]))
    assert found.is_trusted[:-1].all()
    assert torch.allclose(found.log_p[:-1], exact, atol=1e-3)


def test_what_is_cut_off_is_not_trusted(monkeypatch):
    """Either because a grid has too many cells, or because cells of much mass are left out."""
    with seeded(0):
        vae, x, exact, _ = oblique(3, 0.1)
        fine = quadrature(vae, x, 1e-11)  # so that some data are cut before others
        assert torch.allclose(fine.log_p, exact, atol=1e-3)
        assert (fine.stderr == torch.inf).any()
        monkeypatch.setattr(module, "_DEPTH", 0.2)
        found = quadrature(vae, x)
    assert (found.log_p < exact - 0.3).sum() > 5
    assert not found.is_trusted.any()


def test_what_draws_find_beyond_the_grids_is_in_the_error():
    """Three quarters of p(x) are in a spike of width 1e-4, from which q draws."""
    spike = dist.Normal(torch.ones(2).double(), 1e-4).to_event(1)
    prior = dist.Normal(torch.zeros(2).double(), 1.0).to_event(1)
    narrow = dist.Normal(torch.tensor([[0.0, 0.0], [1.0, 1.0]]).double(), torch.tensor([[1.0], [1e-4]])).to_event(1)

    class Spiked(dist.TorchDistribution):
        def __init__(self, z):
            super().__init__(z.shape[:-1], torch.Size([1]), validate_args=False)
            self.z = z

        def log_prob(self, x):
            log_spike = math.log(3) + spike.log_prob(self.z) - prior.log_prob(self.z)
            return log_spike.logaddexp(torch.zeros_like(log_spike)) + 0 * x[..., 0]

    half = dist.Categorical(torch.ones(2).double())
    q = dist.MixtureSameFamily(half, narrow)
    vae = VAE(Fixed(lambda: prior), Fixed(lambda x: q.expand([len(x)])), Fixed(Spiked))
    with seeded(0):
        found = quadrature(vae, torch.zeros(3, 1).double())
    assert torch.allclose(found.stderr, torch.tensor(math.log(4)).double(), atol=0.3)
    assert not found.is_trusted.any()


def test_three_latents_are_refused(linear, x):
    with pytest.raises(InputError):
        quadrature(linear(), x)


def test_where_the_likelihood_is_nan_nothing_is_trusted():
    vae, x, *_ = oblique(1.0, 0.5, count=2)
    likelihood = vae.p_x.forward
    vae.p_x.forward = lambda z: likelihood(torch.where(z > 3, math.nan, z))
    with seeded(0), pyro.validation_enabled(False):
        found = quadrature(vae, x)
    assert not found.is_trusted.any()
    assert (found.stderr == math.inf).all()
