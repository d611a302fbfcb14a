"""The joint distribution of several layers."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers.svi import ELBOS
from torch.distributions import MultivariateNormal, kl_divergence

from pvae.config.build import build_elbo, build_vae
from pvae.config.config import Config
from pvae.distributions.joint import Joint
from pvae.reference import elbo as reference_elbo


def normal(loc, scale=0.5):
    return dist.Normal(loc, torch.full_like(loc, scale)).to_event(1)


@pytest.fixture(params=[False, True], ids=["bottom-up", "top-down"])
def linear(request):
    """Three layers of one dimension, a random walk with steps of 0.5 whose first position is N(1, 4)."""
    first = dist.Normal(torch.ones(1, dtype=torch.float64), 2.0).to_event(1)
    return Joint(first, [lambda z: normal(2 * z), lambda z: normal(z - 3)], [1, 1, 1], top_down=request.param)


def test_the_density_is_that_of_the_joint_normal(linear):
    """By hand, in the order in which the layers are drawn: variances 4, 4 * 4 + 0.25, and so on."""
    covariance = torch.tensor([[4.0, 8.0, 8.0], [8.0, 16.25, 16.25], [8.0, 16.25, 16.5]], dtype=torch.float64)
    loc = torch.tensor([1.0, 2.0, -1.0], dtype=torch.float64)
    if linear.top_down:
        covariance, loc = covariance.flip(0, 1), loc.flip(0)
    z = torch.randn(5, 7, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    exact = MultivariateNormal(loc, covariance).log_prob(z)
    assert torch.allclose(linear.log_prob(z), exact, rtol=1e-10)
    assert torch.allclose(linear.expand((5, 7)).log_prob(z), exact, rtol=1e-10)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        draws = linear.sample((40_000,))
        estimate = linear.estimate_mean(40_000)
    with pytest.raises(NotImplementedError):
        _ = linear.mean
    # Within 4.8 standard errors in six entries: by chance it fails once in 100,000 times.
    assert ((draws.mean(0) - loc).abs() < 4.8 * (covariance.diagonal() / 40_000).sqrt()).all()
    assert ((estimate - loc).abs() < 4.8 * (covariance.diagonal() / 40_000).sqrt()).all()
    error = ((covariance.diagonal()[:, None] * covariance.diagonal() + covariance**2) / 40_000).sqrt()
    assert ((draws.T.cov() - covariance).abs() < 4.8 * error).all()


def test_each_layer_is_a_site_and_the_draws_are_those_of_the_joint(linear):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        trace = pyro.poutine.trace(lambda: linear.draw(pyro.sample)).get_trace()
        torch.manual_seed(0)
        z = linear.rsample()
    order = ["z3", "z2", "z1"] if linear.top_down else ["z1", "z2", "z3"]
    assert list(trace.stochastic_nodes) == order
    assert torch.equal(torch.cat([trace.nodes[name]["value"] for name in ("z1", "z2", "z3")]), z)
    trace.compute_log_prob()
    assert torch.allclose(trace.log_prob_sum(), linear.log_prob(z))
    for (layer, one), name in zip(linear.conditionals(z), ("z1", "z2", "z3")):
        assert torch.equal(layer, trace.nodes[name]["value"])
        assert torch.equal(one.log_prob(layer), trace.nodes[name]["fn"].log_prob(layer))


@pytest.mark.parametrize("name", ["trace", "handwritten", "analytic"])
@pytest.mark.parametrize("inference", ["bottom-up", "ladder", "top-down"])
def test_free_bits_hold_for_each_dimension_of_each_layer(inference, name):
    """By hand, with the closed forms of the layers whose prior depends on no later draw of the guide."""
    config = Config(hidden=(8,), latent_dim=3, upper_latent_dims=(2,), upper_hidden=(5,), inference=inference)
    x = torch.rand(6, 1, 5, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with torch.random.fork_rng(), pyro.get_param_store().scope():
        torch.manual_seed(0)
        vae = build_vae(config, (1, 5, 4)).double()
        torch.manual_seed(3)
        found = build_elbo(name, 4, free_bits=0.1).loss(vae.model, vae.guide, x)
        torch.manual_seed(3)
        terms = reference_elbo.monte_carlo(vae, x, 4)
        torch.manual_seed(3)
        z = vae.posterior(x).rsample((4,))
        rates = reference_elbo.rate_by_dimension(vae.posterior(x), vae.prior(), z)
    assert rates.shape == (6, 5)
    assert torch.allclose(rates.sum(-1), terms.rate, rtol=1e-10)
    if name == "analytic":
        bases = [
            (q.base_dist, p.base_dist)
            for (_, q), (_, p) in zip(vae.posterior(x).conditionals(z), vae.prior().conditionals(z))
        ]
        exact = torch.cat([kl_divergence(q, p).expand(4, 6, -1).mean(0) for q, p in bases], dim=-1)
        first = 3 if inference == "bottom-up" else 0  # z1 has no closed form there
        rates = torch.cat([rates[:, :first], exact[:, first:]], dim=-1)
    by_hand = reference_elbo.loss(terms, 1.0, 0.1, rates).item()
    assert found == pytest.approx(by_hand, rel=1e-10)
    assert by_hand > (terms.distortion.mean() + rates.sum(-1).mean()).item() + 0.01


def test_the_ladders_posterior_is_the_product_of_both_ways():
    """Up and down: the density of z1 is the normalised product of two Normals, by quadrature."""
    config = Config(hidden=(8,), latent_dim=1, upper_latent_dims=(1,), upper_hidden=(5,), inference="ladder")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vae = build_vae(config, (1, 5, 4)).double()
    x = torch.rand(1, 1, 5, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    up = vae.q_z._from_below(x)[0]
    z1 = torch.linspace(-20, 20, 40_001, dtype=torch.float64)
    z = torch.stack([z1, torch.full_like(z1, 0.7)], -1)
    (_, prior), _ = vae.prior().conditionals(z)
    (_, q), _ = vae.posterior(x).conditionals(z)
    product = (up.log_prob(z1[:, None]) + prior.log_prob(z1[:, None])).exp()
    product = product / (product.sum() * 1e-3)
    assert torch.allclose(q.log_prob(z1[:, None]).exp(), product, atol=1e-9)
    assert math.isclose(product.sum().item() * 1e-3, 1.0)


@pytest.mark.parametrize("elbo", ELBOS)
@pytest.mark.parametrize("inference", ["bottom-up", "ladder", "top-down"])
def test_a_step_updates_each_running_average_once(inference, elbo):
    with torch.random.fork_rng(), pyro.get_param_store().scope():
        torch.manual_seed(0)
        config = Config(hidden=(8,), latent_dim=2, upper_latent_dims=(2, 2), upper_hidden=(5,), network="mlp-batchnorm")
        vae = build_vae(config.replace(inference=inference), (1, 5, 4))
        build_elbo(elbo, 2).loss_and_grads(vae.model, vae.guide, torch.rand(3, 1, 5, 4))
    counts = {name: int(count) for name, count in vae.named_buffers() if name.endswith("num_batches_tracked")}
    assert counts
    assert set(counts.values()) == {1}, counts
    assert all(norm.track_running_stats for norm in vae.modules() if isinstance(norm, torch.nn.BatchNorm1d))
