"""Flows: the density of a draw against the full Jacobian, the inverse, the normalisation and the draws."""

from __future__ import annotations

import copy

import pytest
import torch

from pvae.config.build import build_vae
from pvae.config.config import Config
from pvae.distributions.flow import Planar

SHAPE = (1, 3, 2)
KINDS = {
    "iaf": {"posterior": "iaf"},
    "spline": {"posterior": "spline"},
    "planar": {"posterior": "planar"},
    "prior": {"prior": "flow"},
}


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


def built(kind, latent_dim, length=3):
    with torch.random.fork_rng():
        torch.manual_seed(5)
        hidden = {} if kind == "planar" else {"flow_hidden": (9, 8)}
        config = Config(latent_dim=latent_dim, hidden=(6,), flow_length=length, **hidden, **KINDS[kind])
        return build_vae(config, SHAPE).double()


def module_of(kind, vae):
    return vae.p_z if kind == "prior" else vae.q_z


def flow_of(kind, latent_dim, num_images=1, length=3):
    """Return a flow for a batch of images, in float64, that is far from the identity."""
    vae = built(kind, latent_dim, length)
    if kind == "planar":
        vae.q_z.encoder[-1].weight.data[2 * latent_dim :] *= 5
    else:
        for transform in module_of(kind, vae).transforms:
            for parameter in transform.hyper[-1].parameters():
                parameter.data *= 200 if kind == "iaf" else 100
    with torch.random.fork_rng():
        torch.manual_seed(6)
        q = vae.posterior(torch.rand(num_images, *SHAPE).double())
    return vae.prior().expand((num_images,)) if kind == "prior" else q


def quadrature(q):
    """Return the points of a grid along one axis, and the mass of a flow of two dimensions at the grid's points."""
    axis = torch.linspace(-9, 9, 301, dtype=torch.float64)
    with torch.no_grad():
        log_q = q.log_prob(torch.cartesian_prod(axis, axis)[:, None])
    return axis, (log_q.exp() * (axis[1] - axis[0]) ** 2).view(301, 301)


@pytest.mark.parametrize("latent_dim", [2, 5])
def test_the_density_of_a_draw_is_that_of_the_full_jacobian(kind, latent_dim):
    q = flow_of(kind, latent_dim, num_images=3)
    torch.manual_seed(0)
    z = q.rsample((4,))
    with pytest.raises(NotImplementedError):
        _ = q.mean
    torch.manual_seed(0)
    e = q.base.rsample((4,))
    assert (z - e).abs().max() > 0.3, "far from the identity"
    for sample in range(4):
        for image in range(3):

            def of_one(one, sample=sample, image=image):
                whole = e.detach().clone()
                whole[sample, image] = one
                return q.bijection.call_and_ladj(whole)[0][sample, image]

            jacobian = torch.autograd.functional.jacobian(of_one, e[sample, image].detach())
            by_hand = q.base.log_prob(e)[sample, image] - torch.linalg.slogdet(jacobian).logabsdet
            assert q.log_prob(z)[sample, image].item() == pytest.approx(by_hand.item(), rel=1e-10)
            assert torch.allclose(of_one(e[sample, image]), z[sample, image], rtol=1e-12)


def test_the_density_of_a_copy_inverts_the_flow(kind):
    """In value, and in the gradient by z, against central differences."""
    q = flow_of(kind, 3, num_images=2)
    z = q.rsample((20,))
    at = z.detach().clone().requires_grad_()
    log_q = q.log_prob(at)
    assert torch.allclose(log_q, q.log_prob(z), rtol=1e-9)
    (slope,) = torch.autograd.grad(log_q.sum(), at)
    with torch.no_grad():
        for shift in 1e-5 * torch.eye(3, dtype=torch.float64):
            difference = (q.log_prob(at + shift) - q.log_prob(at - shift)) / 2e-5
            assert torch.allclose((slope @ shift) / 1e-5, difference, rtol=1e-5, atol=1e-5)
    assert q.log_prob(q.expand((2,)).rsample()).isfinite().all()


@pytest.mark.parametrize("kind", ["iaf", "spline", "planar"])
def test_a_detached_draw_is_not_inverted(kind, monkeypatch):
    """Value and derivatives, by z and by every parameter, are those of a copy, at which the flow is inverted."""
    vae, x = built(kind, 3), torch.rand(4, *SHAPE).double()
    found = []
    for copied in (lambda z: z.detach(), lambda z: z.detach().clone()):
        torch.manual_seed(0)
        q = vae.posterior(x)
        at = copied(q.rsample((2,))).requires_grad_()
        if not found:
            monkeypatch.setattr(type(q.bijection), "inv", property(lambda self: pytest.fail("it was inverted")))
        log_q = q.log_prob(at)
        monkeypatch.undo()
        found.append([log_q, *torch.autograd.grad(log_q.sum(), [at, *vae.q_z.parameters()])])
    assert all(torch.allclose(*pair, rtol=1e-8, atol=1e-10) for pair in zip(*found))


@pytest.mark.parametrize("kind", ["iaf", "spline"])
def test_the_gradients_of_a_sharp_flow_are_right_in_float32(kind):
    """The path derivative (of stl and dreg) and the score function by the encoder's parameters, against float64."""
    single = built(kind, 6, length=4).float()
    for module in single.q_z.transforms.modules():
        if isinstance(module, torch.nn.Linear):
            torch.nn.init.kaiming_uniform_(module.weight, a=5**0.5, generator=torch.Generator().manual_seed(0))
            module.weight.data *= 3
    noise, x = torch.randn(50, 20, 6, generator=torch.Generator().manual_seed(1)), torch.rand(20, *SHAPE)
    found = []
    for vae in (single, copy.deepcopy(single).double()):
        parameters, dtype = list(vae.q_z.parameters()), next(vae.parameters()).dtype
        q = vae.posterior(x.to(dtype))
        q.base.rsample = lambda _, base=q.base.base_dist, dtype=dtype: base.loc + base.scale * noise.to(dtype)
        z = q.rsample((50,))
        at = z.detach().requires_grad_()
        log_q = q.log_prob(at)
        (by_z,) = torch.autograd.grad(log_q.sum(), at, retain_graph=True)
        path = torch.autograd.grad((z * by_z).sum(), parameters, retain_graph=True)
        found.append([path, torch.autograd.grad(log_q.sum(), parameters)])
    for ours, theirs in zip(*found):
        ours, theirs = (torch.cat([gradient.flatten().double() for gradient in one]) for one in (ours, theirs))
        assert (ours - theirs).norm() < 1e-3 * theirs.norm()


def test_a_flow_is_normalised(kind):
    """A spline has a density with kinks, for which quadrature is less exact."""
    _, mass = quadrature(flow_of(kind, 2))
    assert mass.sum().item() == pytest.approx(1.0, abs=1e-3 if kind == "spline" else 1e-5)


@pytest.mark.parametrize("kind", ["iaf", "spline"])
def test_the_order_is_reversed_from_one_transform_to_the_next(kind):
    """With one transform the first dimension does not depend on the others; with two it does."""
    for length, depends in [(1, False), (2, True)]:
        q = flow_of(kind, 3, length=length)
        e = torch.zeros(1, 3, dtype=torch.float64, requires_grad=True)
        (by_e,) = torch.autograd.grad(q.bijection.call_and_ladj(e)[0][0, 0], e)
        assert bool((by_e[0, 1:] != 0).any()) == depends


@pytest.mark.parametrize("kind", ["iaf", "spline", "prior"])
def test_what_training_needs_takes_one_pass(kind):
    """A draw from a posterior with its density, and the density of a prior; the other direction takes L passes."""
    vae, calls = built(kind, 4, length=1), []
    module_of(kind, vae).transforms[0].hyper.register_forward_hook(lambda *_: calls.append(1))
    q = vae.prior() if kind == "prior" else vae.posterior(torch.rand(2, *SHAPE).double())
    at = torch.zeros(*q.batch_shape, 4, dtype=torch.float64)
    one_pass, several = (lambda: q.log_prob(at), q.sample) if kind == "prior" else (
        lambda: q.log_prob(q.rsample()), lambda: q.log_prob(at)
    )  # fmt: skip
    one_pass()
    assert len(calls) == 1
    several()
    assert len(calls) >= 1 + 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [0.0, 1e-25, 1e-3, 1.0, 30.0])
def test_planar_transforms_are_inverted_whatever_their_parameters(size, dtype):
    generator = torch.Generator().manual_seed(0)
    u, w, x = (torch.randn(40, 3, 6, generator=generator, dtype=dtype) for _ in range(3))
    u, w, b = (one.mul(size).requires_grad_() for one in (u, w, 10 * torch.randn(40, 3, generator=generator).to(dtype)))
    flow, x = Planar(u, w, b), 3 * x[:, 0]
    y, log_det = flow.call_and_ladj(x)
    again, minus_log_det = flow.inv.call_and_ladj(y)
    assert (flow.slope > -1).all()
    assert size > 0 or torch.equal(y, x)
    # Near w u' = -1 the inverse enlarges rounding errors, by up to exp(7) for each transform.
    assert torch.allclose(again, x, atol=(1e3 if size < 30 else 1e7) * torch.finfo(dtype).eps * y.abs().max().item())
    if dtype == torch.float64:
        assert torch.allclose(minus_log_det, -log_det, atol=1e-6)
    (y.sum() + log_det.sum() + again.sum()).backward()
    assert all(one.grad.isfinite().all() for one in (u, w, b))


def test_a_planar_transform_of_large_parameters_is_inverted():
    one, zero = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    flow, x = Planar(1e7 * one, one, zero), torch.linspace(-20, 20, 1001, dtype=torch.float64).unsqueeze(-1)
    y, log_det = flow.call_and_ladj(x)
    again, minus_log_det = flow.inv.call_and_ladj(y)
    assert torch.allclose(again, x, atol=1e-9)
    assert torch.allclose(minus_log_det, -log_det, atol=1e-9)


def test_a_planar_transform_is_that_of_the_paper_where_it_is_invertible():
    u, w, b = torch.tensor([[0.5, 0.2]]), torch.tensor([[1.0, -0.3]]), torch.tensor([0.1])
    x = torch.tensor([0.7, -1.1])
    assert torch.equal(Planar(u, w, b).call_and_ladj(x)[0], x + u[0] * torch.tanh(w[0] @ x + b[0]))
    assert (Planar(-9 * u, w, b).u * w).sum() > -1 > (-9 * u * w).sum()
