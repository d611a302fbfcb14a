"""A VAE's model and guide in tools of Pyro and torch.func; log p(x) and p(z | x) are exact where they have them."""

from __future__ import annotations

import math

import pyro
import pytest
import torch
from helpers.linear_gaussian import LinearGaussian
from pyro import poutine
from pyro.infer import MCMC, NUTS, SVI, Importance, Predictive, Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoNormal, init_to_value
from torch import nn
from torch.func import functional_call, grad, vmap

from pvae.config.build import build_elbo
from pvae.core.random_state import seeded

COUNT = 5


@pytest.fixture
def truth():
    return LinearGaussian(COUNT)


@pytest.fixture(autouse=True)
def _scope():
    with pyro.get_param_store().scope(), seeded(0):
        yield


def test_importance_estimates_log_p_of_all_data(truth):
    """K weights of 5 data together; the estimate is 5 errors off once in 2e6 samples, and the seed is fixed."""
    vae = truth.vae(0.02)
    found = Importance(vae.model, vae.guide, num_samples=100).run(truth.x)
    weights = torch.tensor([float(one) for one in found.log_weights], dtype=torch.float64)
    log_p = weights.logsumexp(0) - math.log(100)
    relative = (weights - log_p).exp()
    assert abs(log_p - truth.log_p().sum()) < 5 * relative.std() / math.sqrt(100)
    assert relative.std() > 0.05


def test_predictive_draws_z_of_the_guide_and_x_of_the_model(truth):
    vae = truth.vae()
    drawn = Predictive(poutine.uncondition(vae.model), guide=vae.guide, num_samples=100, parallel=False)(truth.x)
    mean, covariance = truth.posterior(truth.x)
    z, x = drawn["z"], drawn["x"]
    assert ((z.mean(0) - mean).abs() < 5 * (covariance.diagonal(dim1=-2, dim2=-1) / 100).sqrt()).all()
    of_x = truth.b[0] + mean @ truth.w.T
    variance = truth.w @ covariance @ truth.w.T
    errors = ((variance.diagonal(dim1=-2, dim2=-1) + 0.4**2) / 100).sqrt()
    assert ((x.mean(0) - of_x).abs() < 5 * errors).all()


def test_a_conditioned_model_has_the_joint_density(truth):
    vae, z = truth.vae(), torch.randn(COUNT, 2, dtype=torch.float64)
    trace = poutine.trace(poutine.condition(vae.model, {"z": z})).get_trace(truth.x)
    joint = vae.prior().log_prob(z).sum() + vae.log_likelihood(truth.x, z).sum()
    torch.testing.assert_close(trace.log_prob_sum(), joint)


@pytest.mark.workflow
def test_nuts_finds_the_true_posterior(truth):
    """Means within 6 errors of 200 draws, taken as if half of them were independent."""
    vae = truth.vae(3.0)  # whose guide it does not use
    mcmc = MCMC(NUTS(vae.model), num_samples=200, warmup_steps=100, disable_progbar=True)
    mcmc.run(truth.x)
    mean, covariance = truth.posterior(truth.x)
    z = mcmc.get_samples()["z"]
    assert ((z.mean(0) - mean).abs() < 6 * (covariance.diagonal(dim1=-2, dim2=-1) / 100).sqrt()).all()


@pytest.mark.workflow
def test_an_autoguide_learns_what_a_mean_field_posterior_can(truth):
    """At its optimum the scales are those of the precision, and the means are exact."""
    vae = truth.vae()
    mean, _ = truth.posterior(truth.x)
    guide = AutoNormal(vae.model, init_loc_fn=init_to_value(values={"z": torch.zeros_like(mean)}), init_scale=0.1)
    svi = SVI(vae.model, guide, pyro.optim.Adam({"lr": 0.05}), TraceMeanField_ELBO(num_particles=4))
    for _ in range(400):
        svi.step(truth.x)
    loc = guide.median(truth.x)["z"]
    assert ((loc - mean).abs() < 0.1).all()
    loss = svi.evaluate_loss(truth.x)
    assert -loss < truth.log_p().sum() + 1


def test_a_second_vae_in_the_store_is_refused_by_svi_alone(small_vae, small_images):
    one, other, x = small_vae(), small_vae(seed=1), small_images(4)
    optimizer = pyro.optim.Adam({"lr": 1e-3})
    SVI(one.model, one.guide, optimizer, Trace_ELBO()).step(x)
    with seeded(1):
        found = Trace_ELBO().loss(other.model, other.guide, x)
    with pyro.get_param_store().scope(), seeded(1):
        assert found == Trace_ELBO().loss(other.model, other.guide, x)
    second = SVI(other.model, other.guide, optimizer, Trace_ELBO())
    second.evaluate_loss(x)
    with pytest.raises(RuntimeError, match="scope"):
        second.step(x)


def test_a_handler_that_replaces_parameters_is_refused(small_vae, small_images):
    lifted = poutine.lift(small_vae().model, prior=pyro.distributions.Normal(0.0, 1.0))
    with pytest.raises(RuntimeError, match="lift"):
        poutine.trace(lifted).get_trace(small_images(4))


def test_autocast_computes_the_bound_to_the_digits_of_bfloat16(small_vae, small_images):
    vae, x = small_vae().float(), small_images(4).float()
    elbo = build_elbo("analytic")
    with seeded(1):
        exact = elbo.loss_and_terms(vae.model, vae.guide, x).loss
    with seeded(1), torch.autocast("cpu", torch.bfloat16):
        found = elbo.loss_and_terms(vae.model, vae.guide, x).loss
    assert found != exact
    assert found.item() == pytest.approx(exact.item(), rel=2e-2)


class LogJoint(nn.Module):
    def __init__(self, vae):
        super().__init__()
        self.vae = vae

    def forward(self, x, z):
        return (self.vae.log_likelihood(x[None], z[None]) + self.vae.prior().log_prob(z[None]))[0]


def test_densities_are_mapped_over_data_and_gradients_are_per_datum(small_vae, small_images):
    """With validation off, since torch's own distributions read values."""
    joint, x = LogJoint(small_vae()), small_images(4)
    z = joint.vae.posterior(x).mean.detach()
    weights = {name: one.detach() for name, one in joint.named_parameters()}

    def log_joint(weights, x, z):
        return functional_call(joint, weights, (x, z))

    with pyro.validation_enabled(False):
        found = vmap(log_joint, in_dims=(None, 0, 0))(weights, x, z)
        gradients = vmap(grad(log_joint), in_dims=(None, 0, 0))(weights, x, z)
    for row in range(len(x)):
        alone = joint(x[row], z[row])
        torch.testing.assert_close(found[row], alone.detach())
        joint.zero_grad()
        alone.backward()
        for name, one in joint.named_parameters():
            torch.testing.assert_close(gradients[name][row], torch.zeros_like(one) if one.grad is None else one.grad)
