"""A mixture of Normals: its density and its draws."""

from __future__ import annotations

import math

import pyro.distributions as dist
import pytest
import torch
from scipy import stats

from pvae.distributions.normals import NormalMixture


def parameters(num_components, length, seed=0):
    """Weights as logits, locations and log scales, in float64."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(num_components,), (num_components, length), (num_components, length)]
    logits, loc, log_scale = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    return [logits, 1.5 * loc, 0.3 * log_scale]


def mixture(logits, loc, log_scale):
    return NormalMixture(dist.Categorical(logits=logits), dist.Normal(loc, log_scale.exp()).to_event(1))


@pytest.mark.parametrize(("shape", "count"), [((), 7), ((), 700), ((5,), 7)])
def test_the_density_is_the_weighted_sum_of_normals(shape, count):
    """In value and gradient, of a single mixture (of many z a matrix product), its expansion and one for each datum."""
    given = [one.expand(*shape, *one.shape).clone().requires_grad_() for one in parameters(4, 3)]
    z = torch.randn(count, 5, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64, requires_grad=True)
    for q in (mixture(*given), mixture(*given).expand((count, 5))):
        assert_density_by_hand(q, z, given, 1e-12)


def assert_density_by_hand(q, z, given, rtol):
    """In value, and in the gradients by z and by the parameters."""
    logits, loc, log_scale = given
    by_normal = dist.Normal(loc, log_scale.exp()).log_prob(z.unsqueeze(-2)).sum(-1)
    values = [q.log_prob(z), (logits.log_softmax(-1) + by_normal).logsumexp(-1)]
    assert torch.allclose(*values, rtol=rtol)
    gradients = [torch.autograd.grad(one.sum(), [z, *given], retain_graph=True) for one in values]
    assert all(torch.allclose(*pair, rtol=100 * rtol, atol=rtol) for pair in zip(*gradients))


@pytest.mark.parametrize("size", [1.0, 1e-3])
def test_the_density_of_a_single_mixture_is_exact_in_float32(size):
    """Terms of 10^7 cancel in it."""
    logits, loc, log_scale = (one.float() for one in parameters(50, 40))
    q = mixture(logits, loc, log_scale + math.log(size))
    torch.manual_seed(0)
    z = q.sample((100,))
    exact = mixture(*(one.double() for one in (logits, loc, log_scale + math.log(size)))).log_prob(z.double())
    assert torch.allclose(q.log_prob(z).double(), exact, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("far", [1e2, 1e5, 1e8])
def test_narrow_components_far_from_the_origin_do_not_cancel(far):
    """In value and gradients, against the sum of Normals, near three components of which two are neighbours."""
    logits, loc, log_scale = parameters(40, 3)
    loc = far * loc
    loc[1] = loc[0] + 1e-3
    given = [one.requires_grad_() for one in (logits, loc, log_scale - 7)]
    z = (loc[:3] + 5e-4).detach().repeat(300, 1).requires_grad_()
    assert_density_by_hand(mixture(*given), z, given, 1e-8)


def test_draws_follow_the_density():
    """Kolmogorov-Smirnov of two marginals of 40,000 draws: 8e-6 each by chance."""
    logits, loc, log_scale = parameters(3, 2)
    torch.manual_seed(0)
    z = mixture(logits, loc, log_scale).sample((40_000,))
    for axis in range(2):
        below = torch.special.ndtr((z[:, axis, None] - loc[:, axis]) / log_scale[:, axis].exp())
        uniform = (below * logits.softmax(0)).sum(1)
        assert stats.kstest(uniform.numpy(), "uniform").statistic < 2.5 / 40_000**0.5
