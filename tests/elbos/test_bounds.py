"""Importance-weighted bounds and gradient estimators: each ELBO of pvae.elbos equals the one in pvae.reference."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pyro
import pytest
import torch
from helpers.gradients import assert_same_gradients, value_and_gradients
from pyro.distributions.testing.fakes import NonreparameterizedNormal
from pyro.infer import RenyiELBO, Trace_ELBO, TraceGraph_ELBO

from pvae.config.build import build_elbo
from pvae.core.tracing import register
from pvae.elbos.bounds import RenyiELBO as RenyiBound
from pvae.models.posteriors import bounded_normal
from pvae.reference import bounds as reference_bounds


def gradients_of(vae):
    return {name: parameter.grad.clone() for name, parameter in vae.named_parameters() if parameter.grad is not None}


def seeded_loss(vae, x, elbo):
    return value_and_gradients(
        vae, lambda: torch.as_tensor(elbo.loss_and_grads(vae.model, vae.guide, x), dtype=x.dtype).detach()
    )


def by_hand(vae, x, bound, num_particles):
    return value_and_gradients(vae, lambda: -bound(reference_bounds.log_weights(vae, x, num_particles)).mean())


@pytest.mark.parametrize("num_particles", [2, 5])
@pytest.mark.parametrize("alpha", [-1.0, 0.0, 0.5, 2.0])
def test_pyros_own_renyi_elbo_is_the_same(small_vae, small_images, alpha, num_particles):
    """Under a plain plate Pyro's is exact; it sums over the batch."""
    vae, x = small_vae(), small_images(6)
    theirs = RenyiELBO(alpha=alpha, num_particles=num_particles, vectorize_particles=True, max_plate_nesting=1)
    value, gradients = seeded_loss(vae, x, theirs)
    theirs = value / len(x), {name: gradient / len(x) for name, gradient in gradients.items()}
    assert_same_gradients(seeded_loss(vae, x, build_elbo("renyi", num_particles, alpha=alpha)), theirs)
    if alpha == 0:
        assert_same_gradients(seeded_loss(vae, x, build_elbo("iwae", num_particles)), theirs)


def test_the_ends_of_each_family(small_vae, small_images):
    vae, x = small_vae(), small_images(6)
    elbo, iwae = seeded_loss(vae, x, build_elbo("trace", 4)), seeded_loss(vae, x, build_elbo("iwae", 4))
    assert iwae[0] < elbo[0] - 0.01, "the two must differ for their ends to say anything"
    for end, options in [(elbo, {"mix": 1.0}), (iwae, {"mix": 0.0})]:
        assert_same_gradients(seeded_loss(vae, x, build_elbo("ciwae", 4, **options)), end)
    for end, options in [(elbo, {"groups": 4}), (iwae, {"groups": 1})]:
        assert_same_gradients(seeded_loss(vae, x, build_elbo("miwae", 4, **options)), end)
    for end, options in [(elbo, {"alpha": 1.0}), (iwae, {"alpha": 0.0})]:
        assert_same_gradients(seeded_loss(vae, x, build_elbo("renyi", 4, **options)), end)
    decoder = {name: gradient for name, gradient in iwae[1].items() if not name.startswith("q_z")}
    for groups in (1, 2, 4):  # the groups matter to the encoder only
        miwae = seeded_loss(vae, x, build_elbo("miwae", 4, groups=groups))
        assert_same_gradients(
            seeded_loss(vae, x, build_elbo("piwae", 4, groups=groups)), (iwae[0], {**miwae[1], **decoder})
        )
    largest = by_hand(vae, x, lambda log_w: log_w.max(0).values, 4)
    assert largest[0] < iwae[0] - 0.01
    assert_same_gradients(seeded_loss(vae, x, build_elbo("renyi", 4, alpha=-math.inf)), largest)
    nearly = seeded_loss(vae, x, build_elbo("renyi", 4, alpha=-1e6))
    assert nearly[0] == pytest.approx(largest[0], rel=1e-5)
    near = seeded_loss(vae, x, build_elbo("renyi", 4, alpha=1 - 1e-6))
    assert near[0] == pytest.approx(elbo[0], rel=1e-5)
    for name, gradient in elbo[1].items():
        assert torch.allclose(near[1][name], gradient, rtol=1e-3, atol=1e-6)


def test_the_score_function_is_pyros(small_vae, small_images):
    """Pyro takes the score function where a guide's distribution cannot be reparameterised."""
    vae, x = small_vae(), small_images(6)

    def guide(x):
        register("q_z", vae.q_z)
        q = vae.posterior(x).base_dist
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", NonreparameterizedNormal(q.loc, q.scale).to_event(1))

    ours = seeded_loss(vae, x, build_elbo("score", 1))
    for kind in (Trace_ELBO, TraceGraph_ELBO):
        vae.zero_grad()
        with torch.random.fork_rng(), pyro.get_param_store().scope():
            torch.manual_seed(7)
            value = kind().loss_and_grads(vae.model, guide, x)
        theirs = value / len(x), {name: gradient / len(x) for name, gradient in gradients_of(vae).items()}
        assert_same_gradients(ours, theirs)


@pytest.mark.parametrize("alpha", [1 - 1e-6, 1 + 1e-6])
def test_near_the_elbo_renyi_does_not_cancel(alpha):
    log_w = torch.randn(5, 40, generator=torch.Generator().manual_seed(0)) * 3 - 100
    assert torch.allclose(reference_bounds.renyi(log_w, alpha), reference_bounds.elbo(log_w), atol=1e-3)
    found = RenyiBound(5, alpha=alpha).bound(SimpleNamespace(log_w=log_w), 1.0)
    assert torch.allclose(found, reference_bounds.elbo(log_w), atol=1e-3)


def test_a_group_whose_weight_is_zero_in_float32_trains_the_encoder(small_vae, small_images):
    """The encoder of PIWAE has the weights of each group alone, also where those of all draws are 0 but for one."""
    vae, x = small_vae().float(), small_images(6).float()
    with torch.no_grad():
        for parameter in vae.p_x.parameters():
            parameter.mul_(300)
        log_w = reference_bounds.log_weights(vae, x, 4)
    assert (log_w.unflatten(0, (2, 2)).logsumexp(1).softmax(0) == 0).any(), "no group has a weight of 0"
    piwae = seeded_loss(vae, x, build_elbo("piwae", 4, groups=2))[1]
    miwae = seeded_loss(vae, x, build_elbo("miwae", 4, groups=2))[1]
    for name, gradient in miwae.items():
        if name.startswith("q_z"):
            assert (piwae[name] - gradient).norm() < 1e-5 * gradient.norm(), name


@pytest.mark.parametrize("log_variance", [False, True])
@pytest.mark.parametrize("size", [200.0, 1e30])
def test_a_scale_neither_vanishes_nor_overflows(size, log_variance):
    """In float32 exp(-104) is 0 and exp(89) infinite: a network trained together with its prior gives such outputs."""
    parameters = torch.tensor([[0.5, -0.5, -size, size]], requires_grad=True)
    q = bounded_normal(parameters, log_variance)
    log_prob = q.log_prob(q.rsample((5,)))
    assert torch.isfinite(log_prob).all()
    log_prob.sum().backward()
    assert torch.isfinite(parameters.grad).all()
    ordinary = torch.tensor([[0.5, -0.5, -3.0, 2.0]])
    scale = (0.5 * ordinary if log_variance else ordinary)[:, 2:].exp()
    assert torch.equal(bounded_normal(ordinary, log_variance).base_dist.scale, scale)
