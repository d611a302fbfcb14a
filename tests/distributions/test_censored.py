"""Values that are known only to be below a limit: sums over all steps, SciPy's densities and means, and draws."""

from __future__ import annotations

import math

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from scipy import integrate, stats

from pvae.distributions.values import Censored, Columns, InFloat64, InSteps, is_below

P = {"normal": (dist.Normal, 1.0, 2.0), "log-normal": (dist.LogNormal, 0.3, 0.8)}


def double(value):
    return torch.tensor(value, dtype=torch.float64)


def censored(name, limit, step, are_below=None):
    kind, loc, scale = P[name]
    return Censored(InSteps(InFloat64(kind(double(loc), double(scale)), torch.float64), double(step)), limit, are_below)


def of_scipy(name):
    _, loc, scale = P[name]
    return stats.norm(loc, scale) if name == "normal" else stats.lognorm(scale, scale=math.exp(loc))


@pytest.mark.parametrize("name", P)
@pytest.mark.parametrize(("limit", "step"), [(0.5, 0.25), (0.6, 0.25), (0.5, 1.0), (0.05, 0.1), (0.7, 0.7)])
def test_the_probabilities_of_all_steps_and_of_what_is_below_sum_to_1(name, limit, step):
    x = torch.arange(0, 20_000, dtype=torch.float64) * step
    x = torch.cat([x[~is_below(x, limit)], double([limit / 2])])
    assert censored(name, limit, step).log_prob(x).exp().sum() * step == pytest.approx(1, abs=1e-11)


@pytest.mark.parametrize("name", P)
def test_below_the_limit_is_the_cdf_and_above_it_the_base(name):
    p, scipy_p = censored(name, 0.5, 0.1), of_scipy(name)
    below = scipy_p.logcdf(0.45) - math.log(0.1)
    assert p.log_prob(double([0.1, 0.25, 0.4999])).numpy() == pytest.approx(below, abs=1e-12)
    x = double([0.5, 0.9, 7.0])
    assert torch.equal(p.log_prob(x), p.base.log_prob(x))
    x = torch.tensor([0.7], dtype=torch.float32)  # which is below 0.7 in float64
    assert censored(name, 0.7, 0.0).log_prob(x).item() == pytest.approx(scipy_p.logpdf(x.item()), abs=1e-6)
    assert censored(name, 0.7, 0.0).log_prob(double(0.1)).item() == pytest.approx(scipy_p.logcdf(0.7), abs=1e-12)


@pytest.mark.parametrize("distance", [3.0, 0.0, -20.0, -200.0])
def test_gradients_are_finite_far_from_the_limit(distance):
    loc, scale = double(0.5 - 0.1 * distance).requires_grad_(), double(0.1).requires_grad_()
    p = Censored(InSteps(InFloat64(dist.Normal(loc, scale), torch.float64), double(0.1)), 0.5)
    p.log_prob(double([0.25, 0.5, 0.9])).sum().backward()
    assert loc.grad.isfinite()
    assert scale.grad.isfinite()


@pytest.mark.parametrize("name", P)
@pytest.mark.parametrize("limit", [4.0, 0.5, 0.02, -20.0])
def test_given_that_a_value_is_below_the_mean_and_draws_are_those_of_the_part_below(name, limit):
    if name == "log-normal":
        limit = abs(limit)
    p = censored(name, limit, 0.0, torch.tensor([True, False]))
    part, (_, loc, scale) = of_scipy(name), P[name]
    low = -np.inf if name == "normal" else 0.0
    mass = part.cdf(limit)
    mean = integrate.quad(lambda x: x * part.pdf(x), low, limit, epsabs=0, epsrel=1e-12)[0] / mass
    if name == "normal":
        assert mean == pytest.approx(stats.truncnorm.mean(-np.inf, (limit - loc) / scale, loc, scale), rel=1e-8)
    assert p.mean[0].item() == pytest.approx(mean, rel=1e-8)
    assert p.mean[1] == p.base.mean
    torch.manual_seed(0)
    draws = p.expand((2,)).sample((20_000,))
    assert (draws[:, 0] < limit).all()
    for one, cdf in ((draws[:, 0], lambda x: part.cdf(x) / mass), (draws[:, 1], part.cdf)):
        assert stats.kstest(one.numpy(), lambda x, cdf=cdf: np.minimum(cdf(x), 1)).pvalue > 1e-5  # its failure rate


def test_a_part_of_no_mass_below_has_finite_draws_at_the_limit():
    p = Censored(InSteps(InFloat64(dist.Normal(double(90.0), double(1.0)), torch.float64), double(0.1)), 0.5)
    p.are_below = torch.tensor(True)
    assert ((p.sample((99,)) - 0.45).abs() < 1e-9).all()
    assert p.mean.item() == pytest.approx(0.45, abs=0.02)


def test_columns_know_which_values_are_open():
    normal = censored("normal", 0.5, 0.0).expand((2, 2))
    p = Columns([normal, dist.Bernoulli(logits=torch.zeros(2, 1))], torch.tensor([2, 0, 1]))
    given, are_open = p.given(double([[0.7, math.nan, 0.2], [0.1, 1.0, math.nan]]))
    assert are_open.tolist() == [[False, True, True], [True, False, True]]
    assert (given.mean[:, [0, 2]] < 0.5).tolist() == [[False, True], [True, False]]
