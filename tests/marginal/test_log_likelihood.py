"""Which method log p(x) of each datum is estimated by, and that it is right where q(z | x) is not."""

from __future__ import annotations

import math

import pytest
import torch
from helpers.linear_gaussian import LinearGaussian
from helpers.squares import squares

from pvae.config.build import build_vae
from pvae.config.config import Config
from pvae.core.batch import Batch
from pvae.core.errors import InputError
from pvae.core.random_state import seeded
from pvae.marginal import importance
from pvae.marginal import log_likelihood as module
from pvae.marginal.importance import importance_sample
from pvae.marginal.log_likelihood import log_likelihood
from pvae.marginal.log_p import METHODS, LogP
from pvae.reference import linear_gaussian


@pytest.fixture
def narrow(linear):
    """A q(z | x) of a third of the width of p(z | x) and 60 data, and their exact log p(x)."""
    vae = linear()
    with seeded(0), torch.no_grad():
        vae.q_z.encoder[1].bias[3:] -= math.log(3)
        x = vae.likelihood(vae.prior().sample((60,))).sample()
        return vae, x, linear_gaussian.log_evidence(vae, x)


def test_a_mode_that_q_misses_is_found_by_draws_from_the_prior():
    """Half of p(x) is in it: q alone would be log 2 too low, with a small error. At 4.3 errors."""
    vae, x, exact = squares(0.5)
    with seeded(0):
        found = importance_sample(vae, x, 20_000)
    assert (found.stderr < 0.1).all()
    assert ((found.log_p - exact).abs() < 4.3 * found.stderr).all()


def test_what_importance_sampling_cannot_be_trusted_with_is_annealed(narrow):
    vae, x, exact = narrow
    with seeded(1):
        found = log_likelihood(vae, x, num_particles=390)
        alone = log_likelihood(vae, x, "importance", num_particles=390)
    assert alone.untrusted > 0.5
    assert found.counts["annealed"] > 30
    assert found.untrusted < 0.2
    error = (found.log_p - exact) / found.stderr
    assert error.square().mean().sqrt() < 1.8
    assert (found.effective[found.method == METHODS.index("annealed")] <= 8).all()


def test_draws_near_the_posterior_need_no_annealing(narrow):
    """A Normal is fitted to the draws, as there are 1,600 or more; its errors hold."""
    vae, x, exact = narrow
    with seeded(1):
        found = log_likelihood(vae, x, num_particles=2000)
    assert found.counts == {"importance": 60}
    assert (found.effective > 500).all()
    assert ((found.log_p - exact) / found.stderr).square().mean().sqrt() < 1.5


def test_draws_that_are_far_give_the_standard_normal_and_change_no_other():
    """Their covariance has no Cholesky factor; an error would stop all rows that are scored with this one."""
    with seeded(0):
        z = torch.randn(200, 2, 3)
    log_w = torch.zeros(200, 2, dtype=torch.float64)
    alone = importance._normal_of(z[:, 1:], log_w[:, 1:])
    z[:, 0] = 1e19 * z[:, 0, :1]
    found = importance._normal_of(z, log_w)
    assert torch.equal(found.loc[0], torch.zeros(3))
    assert torch.equal(found.scale_tril[0], torch.eye(3))
    assert torch.allclose(found.loc[1], alone.loc[0])
    assert torch.allclose(found.scale_tril[1], alone.scale_tril[0])


@pytest.mark.parametrize("num_finite", [0, 1, 12])
def test_few_weights_make_no_spike(num_finite):
    """A Normal around one draw would have weights that are equal, and so be trusted."""
    with seeded(0):
        z = torch.randn(200, 2, 3)
    log_w = torch.full((200, 2), -math.inf, dtype=torch.float64)
    log_w[:num_finite] = 0.0
    found = importance._normal_of(z, log_w)
    assert (found.variance > 0.5).all()


def test_what_can_be_trusted_is_not_annealed(linear, x):
    found = log_likelihood(linear(0.05), x, num_particles=500)
    assert found.counts == {"importance": 5}
    assert torch.allclose(found.log_p, linear_gaussian.log_evidence(linear(), x), atol=0.1)


@pytest.mark.parametrize("num_labels", [0, 3])
def test_two_latents_are_integrated(num_labels):
    truth = LinearGaussian(num_labels=num_labels)
    found = log_likelihood(truth.vae(off=2.0), Batch(truth.x, truth.y) if num_labels else truth.x)
    assert found.counts == {"quadrature": 30}
    assert torch.allclose(found.log_p, truth.log_p(), atol=1e-3)
    assert found.effective.isnan().all()


def test_few_are_annealed_where_data_are_large(narrow, monkeypatch):
    """Those of the highest k, in their places; the others keep their estimates and are not trusted."""
    vae, x, _ = narrow
    monkeypatch.setattr(module, "_MOST_VALUES", 12 * 8 * 100 * 10 * 7.5)
    with seeded(2):
        found = log_likelihood(vae, x, num_particles=200)
    is_annealed = found.method == METHODS.index("annealed")
    assert is_annealed.sum() == 7
    with seeded(2):
        alone = log_likelihood(vae, x, "importance", num_particles=200)
    assert torch.equal(is_annealed, alone.pareto_k >= alone.pareto_k.sort().values[-7])
    assert torch.equal(found.log_p[~is_annealed], alone.log_p[~is_annealed])
    assert torch.equal(found.pareto_k, alone.pareto_k), "those of importance sampling stay"
    assert found.untrusted > 0.5


def test_what_draws_from_the_prior_find_is_not_thrown_away(linear, x, monkeypatch):
    """Chains that lose a mode, of which an annealed estimate is 5 errors lower for two of five data, are not taken."""
    vae = linear()
    with seeded(3), torch.no_grad():
        vae.q_z.encoder[1].bias[3:] -= math.log(3)
        alone = log_likelihood(vae, x, "importance", num_particles=20)
    assert not alone.is_trusted.any()
    lower = torch.tensor([0.0, 5.0, 1.0, 5.0, -9.0]) * alone.stderr.hypot(torch.tensor(0.1)) + 0.001

    def low(*_, **_how):
        stderr, is_trusted = torch.full((5,), 0.1).double(), torch.ones(5, dtype=torch.bool)
        return LogP.of("annealed", alone.log_p - lower, stderr, is_trusted)

    monkeypatch.setattr(module, "annealed", low)
    with seeded(3):
        found = log_likelihood(vae, x, num_particles=20)
    is_kept = torch.tensor([False, True, False, True, False])
    assert torch.equal(found.is_trusted, ~is_kept)
    assert torch.allclose(found.log_p, torch.where(is_kept, alone.log_p, alone.log_p - lower))


def test_the_bias_of_the_mean_is_stated(linear):
    """Over 2,000 data, at 4.3 errors of the mean and a fifth of it for terms of higher order."""
    vae = linear(0.3)
    with seeded(4), torch.no_grad():
        x = vae.likelihood(vae.prior().sample((2000,))).sample()
        found = log_likelihood(vae, x, "importance", num_particles=25)
        error = (found.log_p - linear_gaussian.log_evidence(vae, x)).mean().item()
    assert found.bias > 4.3 * found.mean_stderr, "there is a bias to see"
    assert -error == pytest.approx(found.bias, abs=4.3 * found.mean_stderr + found.bias / 5)


def test_a_method_that_cannot_be_taken_is_refused(linear, x):
    label = build_vae(Config(hidden=(8,), latent_dim=1, labels=3, binarize="static"), (1, 3, 4), 3).double().eval()
    refused = [(linear(), "quadrature"), (linear(), "exact"), (label, "annealed")]
    for options in ({"posterior": "delta", "likelihood": "normal"}, {"binarize": "none"}):
        without = build_vae(Config(hidden=(8,), latent_dim=3).replace(**options), (1, 3, 4)).double().eval()
        refused += [(without, method) for method in ("auto", *METHODS)]
    for vae, method in refused:
        with pytest.raises(InputError):
            log_likelihood(vae, x, method)
    binary = Batch(x.round(), torch.full((5,), -1))
    assert log_likelihood(label, binary, num_particles=50).counts == {"importance": 5}
