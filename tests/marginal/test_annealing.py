"""Annealed importance sampling against Normals and linear-Gaussian VAEs, whose log p(x) is known exactly.

A statistical comparison allows 4.3 standard errors (a failure rate of 2e-5 each).
"""

from __future__ import annotations

import math

import pyro.distributions as dist
import pytest
import torch
from conftest import needs_inductor
from helpers.fixed import Fixed
from helpers.linear_gaussian import LinearGaussian

from pvae.config.build import build_vae
from pvae.config.config import Config
from pvae.core.batch import Batch
from pvae.core.errors import InputError
from pvae.core.random_state import seeded
from pvae.marginal.annealing import STARTS, Point, annealed, bracket, leapfrog, log_weights, temperatures, transition
from pvae.marginal.importance import importance_sample
from pvae.marginal.log_p import is_continuous
from pvae.reference import linear_gaussian
from pvae.vae import VAE

SIGMAS = 4.3
LOC, SCALE, LOG_Z = torch.tensor([1.5, -0.5]).double(), torch.tensor([0.4, 0.8]).double(), -7.0
BETAS = torch.tensor([0, 0.1, 0.4, 1]).double()
STEPS = [0.25, 0.13]


def normals(z):
    """r is Normal(0, I), and p(x, z) is exp(LOG_Z) Normal(LOC, SCALE^2)."""
    off = (z - LOC) / SCALE
    log_r = -0.5 * z.square().sum(-1) - math.log(2 * math.pi)
    log_joint = -0.5 * off.square().sum(-1) - (SCALE.log().sum() + math.log(2 * math.pi)) + LOG_Z
    return Point(z, log_r, log_joint, -z, -off / SCALE)


def curved(z):
    """A density whose curvature varies, without a normalisation."""
    z = z.detach().requires_grad_()
    log_joint = -0.1 * z[..., 0] ** 4 - (z[..., 1] - z[..., 0].square().sin()).square() + z[..., 0]
    (by_joint,) = torch.autograd.grad(log_joint.sum(), z)
    return Point(z.detach(), -0.5 * z.detach().square().sum(-1), log_joint.detach(), -z.detach(), by_joint)


def draws(*shape):
    return torch.randn(*shape, 2, dtype=torch.float64)


def assert_mean(values, exact, what=""):
    stderr = values.std(0) / math.sqrt(len(values))
    assert ((values.mean(0) - exact).abs() < SIGMAS * stderr).all(), what


def test_leapfrog_is_its_own_inverse_and_preserves_volume():
    with seeded(0):
        z, momentum = draws(7, 3), draws(7, 3)
    moved, last = leapfrog(curved, curved(z), momentum, 0.7, 0.11)
    back, first = leapfrog(curved, moved, -last, 0.7, 0.11)
    assert (moved.z - z).abs().min() > 1e-3, "which moves"
    assert torch.allclose(back.z, z, atol=1e-12)
    assert torch.allclose(-first, momentum, atol=1e-12)
    flat, columns = torch.cat([z, momentum], -1), []
    for one in 1e-5 * torch.eye(4, dtype=torch.float64):
        ends = [leapfrog(curved, curved(at[..., :2]), at[..., 2:], 0.7, 0.11) for at in (flat + one, flat - one)]
        plus, minus = (torch.cat([point.z, v], -1) for point, v in ends)
        columns.append((plus - minus) / 2e-5)
    assert torch.allclose(torch.linalg.det(torch.stack(columns, -1)), torch.ones(7, 3).double(), atol=1e-6)


@pytest.mark.parametrize("beta", [0.3, 1.0])
def test_a_transition_leaves_its_density_as_it_is(beta):
    """Draws from f_b have its moments afterwards too, at a step of which half are refused."""
    precision = (1 - beta) + beta / SCALE**2
    mean = beta * LOC / SCALE**2 / precision
    with seeded(1):
        z = mean + draws(40_000, 1) / precision.sqrt()
        point, acceptance = transition(normals, normals(z), beta, 1.7 / precision.max().sqrt().item())
    assert 0.3 < acceptance.mean() < 0.9, "this step could not have seen a missing refusal"
    off = ((point.z - mean) * precision.sqrt())[:, 0]
    moments = torch.cat([off, off.square(), off**4, off[:, :1] * off[:, 1:]], 1)
    assert_mean(moments, torch.tensor([0, 0, 1, 1, 3, 3, 0]).double())
    expected = normals(point.z)
    assert all(torch.allclose(one, other) for one, other in zip(point, expected)), "what is kept belongs to z"


def test_the_mean_weight_is_the_normalisation_and_backwards_its_inverse():
    with seeded(2):
        forward, acceptance = log_weights(normals, draws(60_000, 1), BETAS, STEPS)
        exact = LOC + SCALE * draws(60_000, 1)
        backward, _ = log_weights(normals, exact, BETAS.flip(0), STEPS[::-1])
    assert 0.5 < acceptance.mean() < 0.999
    assert_mean((forward - LOG_Z).exp(), 1, "from below")
    assert_mean((LOG_Z + backward).exp(), 1, "from above")
    assert forward.mean() < LOG_Z - 0.1, "there is a bias to see"
    assert -backward.mean() > LOG_Z + 0.1


def test_steps_are_not_changed_while_weights_are_estimated():
    """Where every transition is refused, the weights are those of importance sampling, to the last digit."""
    with seeded(3):
        z = draws(5, 4)
        log_w, acceptance = log_weights(normals, z, temperatures(80), [1e6] * 79)
    point = normals(z)
    assert torch.allclose(log_w, point.log_joint - point.log_start, rtol=1e-12)
    assert not acceptance.any()


@pytest.mark.parametrize("start", ["prior", pytest.param("posterior", marks=pytest.mark.workflow)])
def test_estimates_are_within_their_errors_and_bias_falls(linear, start):
    """By the root mean square of (estimate - log p(x)) / error over 200 data, which is 1 of exact errors."""
    vae = linear(0.3)
    with seeded(4):
        x = vae.likelihood(vae.prior().sample((200,))).sample()
        exact = linear_gaussian.log_evidence(vae, x).detach()
        found = {count: annealed(vae, x, count, 12, start) for count in (1, 40)}
    few, many = found.values()
    error = many.log_p - exact
    assert 0.75 < (error / many.stderr).square().mean().sqrt() < 1.6
    assert_mean(error.exp(), 1, "the mean of exp of the estimate is p(x)")
    gaps = [(off.exp() - 1 - off).mean() for off in (few.log_p - exact, error)]  # of mean -E[off], with less noise
    assert gaps[0] > 3 * gaps[1]
    assert many.stderr.mean() < 0.6 * few.stderr.mean()
    assert many.effective.mean() > few.effective.mean()


def test_simulated_data_are_bounded_from_both_sides(linear):
    vae = linear(0.3)
    with seeded(5):
        like = torch.zeros(300, 1, 3, 4).double()
        wide, narrow = (bracket(vae, like, count, 4) for count in (2, 40))
    for found in (wide, narrow):
        gap = found.upper - found.lower
        assert gap.mean() > SIGMAS * gap.std() / math.sqrt(300)
    assert (narrow.upper - narrow.lower).mean() < 0.3 * (wide.upper - wide.lower).mean()


@pytest.mark.workflow
@pytest.mark.parametrize("start", STARTS)
def test_labels_and_missing_values(start):
    truth = LinearGaussian(num_labels=3)
    batch, vae = Batch(truth.x, truth.y), truth.vae(off=0.1)
    with seeded(6):
        found, both = (method(vae, batch, 100, 12, start) for method in (annealed, bracket))
    error = (found.log_p - truth.log_p()) / found.stderr
    assert error.square().mean().sqrt() < 2
    assert (both.upper - both.lower).mean().abs() < 1


@pytest.mark.workflow
@pytest.mark.parametrize(
    "options",
    [
        {"upper_latent_dims": (2,), "upper_hidden": (5,)},
        {"posterior": "iaf", "flow_hidden": (5,)},
        {"posterior": "planar"},
        {"posterior": "normal-full"},
        {"prior": "mixture", "components": 3},
        {"prior": "flow", "flow_hidden": (5,)},
    ],
)
def test_every_family_of_real_latents_is_annealed(options):
    """From p(z) and from q(z | x), against 20,000 importance samples."""
    with seeded(7):
        vae = build_vae(Config(hidden=(8,), latent_dim=3, binarize="static", **options), (1, 3, 4)).double().eval()
        for parameter in vae.p_x.parameters():
            parameter.data *= 2
        x = torch.rand(6, 1, 3, 4).double().round()
        sample = importance_sample(vae, x, 20_000)
        for start in STARTS:
            found = annealed(vae, x, 10, 12, start)
            error = (found.stderr.square() + sample.stderr.square()).sqrt()
            assert ((found.log_p - sample.log_p).abs() < 5 * error + 1e-3).all(), start


@pytest.mark.workflow
@pytest.mark.parametrize("engine", ["none", pytest.param("inductor", marks=[needs_inductor, pytest.mark.slow])])
def test_every_engine_gives_the_same(small_vae, small_images, engine):
    """Compiled code rounds otherwise, which a pilot of 130 transitions makes visible: it agrees within the errors."""
    vae, x = small_vae("static").eval(), small_images(4, binary=True)
    found = []
    for one in ("graph", engine):
        with seeded(8):
            found.append(annealed(vae, x, 10, 6, engine=one))
    allowed = 5 * found[0].stderr.hypot(found[1].stderr) if engine == "inductor" else 1e-10
    assert ((found[0].log_p - found[1].log_p).abs() < allowed).all()


def independent(y, scale, off=0.0):
    """x = z + y noise of 8 dimensions, whose q(z | x) has `scale` times the right width; the data and log p(x)."""

    def q(x, y):
        width = y / (1 + y**2).sqrt()
        return dist.Normal(x / (1 + y**2) + off * width, scale * width).to_event(1)

    prior = dist.Normal(torch.zeros(8).double(), 1.0).to_event(1)
    modules = lambda y=0: prior, q, lambda z, y: dist.Normal(z, y.expand_as(z)).to_event(1)
    vae = VAE(*(Fixed(one, takes_labels=True) for one in modules))
    z = torch.randn(len(y), 8).double()
    x = z + y * torch.randn_like(z)
    return vae, Batch(x, y), dist.Normal(0.0, (1 + y**2).sqrt()).log_prob(x).sum(1)


@pytest.mark.workflow
def test_a_step_that_is_too_long_for_a_datum_is_not_trusted():
    """Of one datum in ten p(z | x) is 30 times narrower, so that no move of its chains is accepted."""
    y = torch.ones(50, 1).double()
    y[::10] = 0.03
    with seeded(9):
        vae, batch, exact = independent(y, 0.5, 0.5)
        found = annealed(vae, batch, 60, 8, "posterior")
    assert ((found.log_p - exact).abs() > 1.5).any()
    assert not found.is_trusted[::10].any()
    assert found.is_trusted.double().mean() > 0.8


@pytest.mark.workflow
@pytest.mark.parametrize(("scale", "off", "is_right"), [(0.8, 0.3, True), (0.3, 0.0, False), (0.3, 1.0, False)])
def test_chains_from_a_narrow_posterior_are_not_trusted(scale, off, is_right):
    """Some of them look equal by chance, and are 1 nat too low. Those from a wider one are within their errors."""
    with seeded(10):
        vae, batch, exact = independent(torch.full((100, 1), 0.1).double(), scale, off)
        found = annealed(vae, batch, 40, 8, "posterior")
        few = annealed(vae, batch, 40, 3, "posterior")
    error = found.log_p - exact
    assert not few.is_trusted.any()
    if is_right:
        assert found.is_trusted.double().mean() > 0.9
        assert_mean((error.exp() - 1)[:, None], 0)
        assert 0.75 < (error / found.stderr).square().mean().sqrt() < 1.6
    else:
        assert error[found.effective >= 4].mean() < -0.7, "what chance gives"
        assert not found.is_trusted.any()


def test_a_latent_of_half_the_line_is_not_continuous():
    for prior in (dist.LogNormal, dist.Gamma, dist.Uniform):
        vae = VAE(*[Fixed(lambda *_, prior=prior: prior(torch.ones(1), 2.0).to_event(1), takes_labels=True)] * 3)
        assert not is_continuous(vae, Batch(torch.ones(2, 1), torch.ones(2, 1)))


def test_what_cannot_be_annealed_is_refused(linear, x):
    x28 = torch.zeros(2, 1, 28, 28)
    for options in (
        {"posterior": "delta"},
        {"binarize": "none"},
        {"posterior": "power-spherical", "prior": "sphere-uniform"},
    ):
        with pytest.raises(InputError):
            annealed(build_vae(Config(hidden=(8,), latent_dim=3).replace(**options), (1, 28, 28)).eval(), x28, 2)
    for arguments in ((0,), (2, 1), (2, 2, "nowhere")):
        with pytest.raises(InputError):
            annealed(linear(), x, *arguments)
