"""A mixture of Normals: its density, and the gradients of its draws by quadrature and by the continuity equation."""

from __future__ import annotations

import math

import pyro.distributions as dist
import pytest
import torch
from scipy import stats

from pvae.distributions.normal_mixture import NormalMixture


def parameters(num_components, length, seed=0):
    """Weights as logits, locations and log scales, in float64."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(num_components,), (num_components, length), (num_components, length)]
    logits, loc, log_scale = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    return [logits, 1.5 * loc, 0.3 * log_scale]


def mixture(logits, loc, log_scale):
    return NormalMixture(dist.Categorical(logits=logits), dist.Normal(loc, log_scale.exp()).to_event(1))


def velocity(given, z):
    """The derivatives of each draw z (N, L) by each parameter, (N, L, P), and of q(z), (N, P)."""
    own = [one.expand(len(z), *one.shape).clone().requires_grad_() for one in given]
    q = mixture(*own)
    moved = q.reparameterised(z)
    assert torch.equal(moved, z), "only the gradient is added"

    def by(value):
        return torch.cat([one.flatten(1) for one in torch.autograd.grad(value.sum(), own, retain_graph=True)], 1)

    return torch.stack([by(column) for column in moved.T], 1), by(q.log_prob(z).exp())


@pytest.mark.parametrize("shape", [(), (5,)])
def test_the_density_is_the_weighted_sum_of_normals(shape):
    """In value and gradient, of a single mixture (a matrix product), of its expansion and of one for each datum."""
    given = [one.expand(*shape, *one.shape).clone().requires_grad_() for one in parameters(4, 3)]
    logits, loc, log_scale = given
    z = torch.randn(7, 5, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64, requires_grad=True)
    by_normal = dist.Normal(loc, log_scale.exp()).log_prob(z.unsqueeze(-2)).sum(-1)
    by_hand = (logits.log_softmax(-1) + by_normal).logsumexp(-1)
    for q in (mixture(*given), mixture(*given).expand((7, 5))):
        log_q = q.log_prob(z)
        assert torch.allclose(log_q, by_hand, rtol=1e-12)
        gradients = [torch.autograd.grad(one.sum(), [z, *given], retain_graph=True) for one in (log_q, by_hand)]
        assert all(torch.allclose(*pair, rtol=1e-10, atol=1e-12) for pair in zip(*gradients))


@pytest.mark.parametrize("size", [1.0, 1e-3])
def test_the_density_of_a_single_mixture_is_exact_in_float32(size):
    """Terms of 10^7 cancel in it."""
    logits, loc, log_scale = (one.float() for one in parameters(50, 40))
    q = mixture(logits, loc, log_scale + math.log(size))
    torch.manual_seed(0)
    z = q.sample((100,))
    exact = mixture(*(one.double() for one in (logits, loc, log_scale + math.log(size)))).log_prob(z.double())
    assert torch.allclose(q.log_prob(z).double(), exact, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize(("num_components", "length"), [(3, 1), (3, 2), (4, 5), (1, 3)])
def test_draws_move_as_their_density_changes(num_components, length):
    """The continuity equation, dq/dparameter + div(q dz/dparameter) = 0, at random z and for every parameter."""
    given = parameters(num_components, length)
    torch.manual_seed(0)
    z, step = mixture(*given).sample((50,)), 1e-5

    def flux(at):
        return mixture(*given).log_prob(at).exp()[:, None, None] * velocity(given, at)[0]

    shifts = step * torch.eye(length, dtype=torch.float64)
    divergence = sum(
        (flux(z + shift)[:, one] - flux(z - shift)[:, one]) / (2 * step) for one, shift in enumerate(shifts)
    )
    change = velocity(given, z)[1]
    assert (change + divergence).abs().max() < 1e-7 * change.abs().max().clamp(min=1e-2)


@pytest.mark.parametrize("length", [1, 2])
def test_gradients_of_draws_are_those_of_the_expectation(length):
    """The mean of the gradients is the gradient of the mean, by quadrature, for every parameter."""
    given = [one.requires_grad_() for one in parameters(3, length, seed=1)]
    axis = torch.linspace(-14, 14, 401, dtype=torch.float64)
    z = torch.cartesian_prod(*[axis] * length).view(-1, length).requires_grad_()

    def function(at):
        return (at.sum(-1) + 0.3).sin() + at[:, 0].square() * at[:, -1]

    cell = (28 / 400) ** length
    density = mixture(*given).log_prob(z.detach()).exp()
    exact = torch.autograd.grad((density * function(z.detach())).sum() * cell, given)
    (slope,) = torch.autograd.grad(function(z).sum(), z)
    near = density.detach() > 1e-13  # elsewhere the distribution function is 0 or 1 to rounding
    moved = velocity([one.detach() for one in given], z.detach()[near])[0]
    ours = cell * torch.einsum("n,nl,nlp->p", density.detach()[near], slope[near], moved)
    assert torch.allclose(ours, torch.cat([one.flatten() for one in exact]), rtol=1e-6, atol=1e-7)


def test_draws_follow_the_density():
    """Kolmogorov-Smirnov of two marginals of 40,000 draws: 8e-6 each by chance."""
    logits, loc, log_scale = parameters(3, 2)
    torch.manual_seed(0)
    z = mixture(logits, loc, log_scale).sample((40_000,))
    for axis in range(2):
        below = torch.special.ndtr((z[:, axis, None] - loc[:, axis]) / log_scale[:, axis].exp())
        uniform = (below * logits.softmax(0)).sum(1)
        assert stats.kstest(uniform.numpy(), "uniform").statistic < 2.5 / 40_000**0.5


@pytest.mark.parametrize("scale", [0.02, 1.0, 100.0])
def test_gradients_are_finite_in_many_dimensions_in_float32(scale):
    """Those of pyro.distributions.MixtureOfDiagNormals are not: its densities of 64 dimensions over- or underflow."""
    torch.manual_seed(0)
    given = [torch.zeros(10, 4), torch.randn(10, 4, 64), torch.full((10, 4, 64), scale).log()]
    given = [one.requires_grad_() for one in given]
    q = mixture(*given)
    z = q.rsample((8,))
    (q.log_prob(z) + z.square().sum(-1)).sum().backward()
    assert all(one.grad.isfinite().all() for one in given)


def test_float32_has_the_gradients_of_float64():
    given = parameters(4, 20)
    torch.manual_seed(0)
    z = mixture(*given).sample((2000,)).float()
    ours, exact = (
        velocity([one.to(dtype) for one in given], z.to(dtype))[0] for dtype in (torch.float32, torch.float64)
    )
    assert (ours - exact).norm() < 1e-3 * exact.norm()
    assert ((ours - exact).mean(0).norm() / exact.mean(0).norm()) < 1e-4


def test_equal_components_are_one_normal():
    """Components in one place, which have no direction from one to the other."""
    loc = torch.randn(1, 3, dtype=torch.float64)
    given = [torch.zeros(2).double(), loc.expand(2, -1), torch.zeros(2, 3).double()]
    z = torch.randn(5, 3, dtype=torch.float64)
    by_parameters, _ = velocity(given, z)
    assert by_parameters[..., :2].abs().max() < 1e-14
    assert torch.allclose(mixture(*given).log_prob(z), dist.Normal(loc, 1.0).to_event(1).log_prob(z), rtol=1e-12)


def test_shapes_and_expansion():
    given = [one.expand(3, *one.shape) for one in parameters(4, 2)]
    q = mixture(*given)
    assert (q.batch_shape, q.event_shape) == ((3,), (2,))
    wide = q.expand((5, 3))
    assert isinstance(wide, NormalMixture)
    torch.manual_seed(0)
    z = wide.rsample()
    torch.manual_seed(0)
    assert torch.equal(z, q.rsample((5,)))
    assert not q.sample((5,)).requires_grad
