"""The continuous Bernoulli at logits of hundreds and thousands, as trained networks have them, in both precisions."""

from __future__ import annotations

import functools

import mpmath
import pytest
import torch

from pvae.distributions.pixels import ContinuousBernoulli

LOGITS = [0.0, 1e-9, 1e-4, 0.03, 0.3, 0.4999, 0.5, 1.0, 7.0, 16.0, 36.0, 50.0, 150.0, 1e3, 1e4]
LOGITS = [sign * logit for logit in LOGITS for sign in (1, -1)]
PRECISIONS = [(torch.float32, 3e-6), (torch.float64, 1e-13)]


def exact(logit, x):
    """log p(x) and its derivative by the logit, the mean and its derivative, to fifty digits."""
    with mpmath.workdps(50):
        half, x = mpmath.mpf(logit) / 2, mpmath.mpf(x)
        if logit == 0:
            return [float(one) for one in (0, x - mpmath.mpf(1) / 2, 0.5, mpmath.mpf(1) / 12)]
        coth = mpmath.coth(half)
        mean = mpmath.mpf(1) / 2 + coth / 2 - 1 / (2 * half)
        variance = 1 / (4 * half**2) - 1 / (4 * mpmath.sinh(half) ** 2)
        log_prob = 2 * (x - mpmath.mpf(1) / 2) * half - mpmath.log(mpmath.sinh(half) / half)
        return [float(one) for one in (log_prob, x - mean, mean, variance)]


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
@pytest.mark.parametrize("logit", LOGITS)
def test_equals_the_formula(logit, dtype, tolerance):
    """Value and gradient of the log-density at five pixels, and of the mean."""
    pixels = [0.0, 0.1, 0.5, 254 / 255, 1.0]
    logits = torch.full((5,), logit, dtype=dtype).requires_grad_()
    x = torch.tensor(pixels, dtype=dtype)
    distribution = ContinuousBernoulli(logits)
    log_prob, mean = distribution.log_prob(x), distribution.mean
    (slope,) = torch.autograd.grad(log_prob.sum(), logits)
    (mean_slope,) = torch.autograd.grad(mean.sum(), logits)
    rows = zip(*(one.tolist() for one in (x, log_prob, slope, mean, mean_slope)), strict=True)
    for pixel, *found in rows:
        wanted = exact(logits[0].item(), pixel)
        for name, one, other in zip(("log_prob", "slope", "mean", "mean's slope"), found, wanted):
            assert one == pytest.approx(other, rel=10 * tolerance, abs=tolerance), name


def quantile(value, logit):
    return mpmath.log1p(value * mpmath.expm1(logit)) / logit


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
@pytest.mark.parametrize("logit", LOGITS)
def test_a_quantile_inverts_the_distribution_function(logit, dtype, tolerance):
    """And its derivative by the logit is that of the quantile's formula, which samples pass on."""
    logits = torch.full((4,), logit, dtype=dtype).requires_grad_()
    value = torch.tensor([0.0, 0.25, 0.9, 1 - 2**-20], dtype=dtype)
    x = ContinuousBernoulli(logits).icdf(value)
    (slope,) = torch.autograd.grad(x.sum(), logits)
    for one, found, found_slope in zip(value.tolist(), x.tolist(), slope.tolist()):
        with mpmath.workdps(5000 if logit > 100 else 100):
            at = mpmath.mpf(logits[0].item()) or mpmath.mpf("1e-20")
            inverse = functools.partial(quantile, one)
            wanted, wanted_slope = float(inverse(at)), float(mpmath.diff(inverse, at, h=mpmath.mpf("1e-25")))
        assert found == pytest.approx(wanted, rel=10 * tolerance, abs=tolerance)
        assert found_slope == pytest.approx(wanted_slope, rel=1e4 * tolerance, abs=100 * tolerance)


@pytest.mark.parametrize("logit", [-150.0, 0.0, 0.2, 20.0])
def test_samples_have_the_distributions_mean(logit):
    """400,000 draws, at 4.3 standard errors: it fails by chance once in 59,000 times."""
    distribution = ContinuousBernoulli(torch.tensor(logit))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        x = distribution.sample((400_000,))
    assert 0 <= x.min() <= x.max() <= 1
    variance = exact(logit, 0.5)[3]
    assert x.double().mean().item() == pytest.approx(distribution.mean.item(), abs=4.3 * (variance / len(x)) ** 0.5)
    assert x.double().var().item() == pytest.approx(variance, rel=0.03)


def test_it_is_a_distribution():
    wide = ContinuousBernoulli(torch.zeros(3)).expand((2, 3)).to_event(1)
    assert (wide.batch_shape, wide.event_shape) == ((2,), (3,))
    assert wide.rsample((4,)).shape == (4, 2, 3)
    with pytest.raises(ValueError, match="support"):
        wide.log_prob(torch.full((2, 3), 1.5))
    with pytest.raises(ValueError, match="logits"):
        ContinuousBernoulli(torch.tensor(float("nan")))
