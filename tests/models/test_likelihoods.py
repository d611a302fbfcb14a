"""Likelihoods: normalisation, domains, samples, precision and training."""

from __future__ import annotations

import copy
import itertools
import math

import numpy as np
import pyro
import pytest
import scipy.stats
import torch
from torch import nn

from pvae.config.build import build_elbo, build_vae
from pvae.config.config import Config
from pvae.distributions.pixels import DiscretizedLogistic, PseudoBernoulli
from pvae.models.columns import ColumnsLikelihood
from pvae.models.features import Standardize, fit_to
from pvae.models.likelihoods import (
    BernoulliLikelihood,
    CategoricalLikelihood,
    DiagonalNormalLikelihood,
    Likelihood,
    NegativeBinomialLikelihood,
    OrdinalLikelihood,
    PoissonLikelihood,
    PositiveLikelihood,
    ZeroInflatedLikelihood,
)

OF_IMAGES = Likelihood.names_where("is_of_images")
COUNTS = ("poisson", "negative-binomial")
REALS = ("normal-diagonal", "student-t")


LEVELS = torch.arange(256, dtype=torch.float64) / 255


class Repeat(torch.nn.Module):
    """Repeat the last dimension."""

    def __init__(self, count):
        super().__init__()
        self.count = count

    def forward(self, z):
        return z.expand(*z.shape[:-1], self.count)


def one_pixel(name, **options):
    """A likelihood of one pixel whose decoder gives z itself, for each of its outputs, in float64 and eval mode."""
    config = Config(likelihood=name, scale=options.pop("scale", 0.2), **options)
    likelihood = build_vae(config, (1, 1, 1)).double().eval().p_x
    likelihood.decoder = torch.nn.Sequential(
        Repeat(math.prod(likelihood.output_shape)), torch.nn.Unflatten(-1, likelihood.output_shape)
    )
    return likelihood


@pytest.mark.parametrize(("pixels", "levels"), [("unit", 255.0), ("symmetric", 127.5)])
def test_a_learned_normal_gives_no_byte_a_density_above_that_of_its_step(pixels, levels):
    likelihood = one_pixel("normal-learned", pixels=pixels)
    likelihood.log_scale.data.fill_(-12.0)
    density = likelihood(torch.zeros(1, dtype=torch.float64))
    assert density.log_prob(density.mean).item() == pytest.approx(math.log(levels), rel=1e-6)


@pytest.mark.parametrize("name", ["normal", "normal-learned", "normal-optimal"])
def test_the_location_of_a_normal_is_in_the_range_of_the_pixels(name):
    z = torch.tensor([0.7], dtype=torch.float64)
    for pixels, loc in {"unit": z.sigmoid(), "symmetric": z.tanh()}.items():
        density = one_pixel(name, pixels=pixels)(z)
        assert density.mean.item() == pytest.approx(loc.item())
        assert density.stddev.item() == pytest.approx(0.2)


def test_the_optimal_scale_of_images_that_are_reproduced_exactly_is_bounded():
    """And unchanged above the bound, in value and gradient."""
    likelihood = one_pixel("normal-optimal").train()
    z = torch.tensor([[0.7]], dtype=torch.float64, requires_grad=True)
    density = likelihood(z)
    loc = density.mean.detach()
    for offset in (0.0, 1e-4, 0.1):
        x, likelihood.running_scale = loc + offset, torch.ones((), dtype=torch.float64)
        log_p = likelihood(z).log_prob(x)
        scale = max(offset, math.exp(-6))
        assert likelihood.running_scale.item() == pytest.approx(0.9 + 0.1 * scale)
        by_hand = -0.5 * (offset / scale) ** 2 - math.log(scale) - 0.5 * math.log(2 * math.pi)
        assert log_p.item() == pytest.approx(by_hand, rel=1e-6)
        (by_z,) = torch.autograd.grad(log_p, z)
        assert by_z.isfinite().all()
        assert offset == 0 or (by_z != 0).all()


def test_discretized_logistic_equals_its_definition():
    """Equal to a difference of two sigmoids where that is exact, and finite where that would be zero."""
    loc, scale = torch.tensor(0.4, dtype=torch.float64), torch.tensor(0.05, dtype=torch.float64)
    upper, lower = (torch.sigmoid((LEVELS + half - loc) / scale) for half in (1 / 510, -1 / 510))
    upper[-1], lower[0] = 1, 0
    distribution = DiscretizedLogistic(loc, scale)
    assert torch.allclose(distribution.log_prob(LEVELS).exp(), upper - lower, rtol=1e-9)
    far = DiscretizedLogistic(torch.tensor(0.0), torch.tensor(1e-3)).log_prob(torch.tensor(1.0))
    assert far.item() == pytest.approx(-(1 - 1 / 510) / 1e-3, rel=1e-5)


def test_samples_of_a_discretized_logistic_match_its_density():
    """The mean of log p(x) and of x over draws, against sums over the levels, at 4.3 standard errors."""
    distribution = one_pixel("discretized-logistic")(torch.tensor([0.8], dtype=torch.float64))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        x = distribution.sample((2_000_000,))
    levels = LEVELS.view(-1, 1, 1, 1)
    log_prob = distribution.log_prob(levels)
    for values, of_levels in ((x.flatten(), LEVELS), (distribution.log_prob(x), log_prob)):
        exact, error = (log_prob.exp() * of_levels).sum(), values.std() / len(values) ** 0.5
        assert 4.3 * error < 0.02 * max(abs(exact), 0.1), "this sample could not have seen an error of 2 %"
        assert abs(values.mean() - exact) < 4.3 * error + 1e-4 * abs(exact)


@pytest.mark.parametrize(
    ("name", "options", "good", "bad"),
    [
        ("bernoulli", {"binarize": "static"}, [0.0, 1.0], [0.5, -1.0, 2.0]),
        ("bernoulli", {}, [0.0, 0.3, 1.0], [-0.1, 1.1]),
        ("continuous-bernoulli", {}, [0.0, 0.3, 1.0], [-0.1, 1.1]),
        ("normal", {}, [0.0, 0.3, 1.0], [-0.1, 1.1]),
        ("normal", {"pixels": "symmetric"}, [-1.0, 0.3, 1.0], [-1.1, 1.1]),
        ("discretized-logistic", {}, [0.0, 3 / 255, 1.0], [0.5, -1 / 255, 256 / 255]),
        *((name, {}, [0.0, 7.0], [-1.0, 0.5, math.inf]) for name in COUNTS),
        *((name, {}, [-1e9, 0.5], [math.inf]) for name in REALS),
    ],
)
def test_each_likelihood_refuses_what_is_outside_its_domain(name, options, good, bad):
    likelihood, shape = (one_pixel(name, **options), (1, 1, 1)) if name in OF_IMAGES else (of_values(name), (3,))
    for value in good:
        likelihood.check(torch.full((2, *shape), value))
    for value in (*bad, math.nan):
        with pytest.raises(ValueError, match=r"must be|NaN"):
            likelihood.check(torch.stack([torch.full(shape, good[0]), torch.full(shape, value)]))


def test_optimal_scale_is_optimal():
    """In training, the scale maximises the likelihood of the batch; in eval mode it is the running average."""
    likelihood = one_pixel("normal-optimal")
    likelihood.train()
    z = torch.randn(50, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = torch.rand(50, 1, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    value = likelihood(z).log_prob(x).sum()
    loc = z.sigmoid().view(50, 1, 1, 1)
    best = (x - loc).square().mean().sqrt()
    through = torch.distributions.Normal(loc, best).log_prob(x).sum()
    assert value.item() == pytest.approx(through.item(), rel=1e-10)
    assert all(value > torch.distributions.Normal(loc, other * best).log_prob(x).sum() for other in (0.99, 1.01))
    assert not likelihood.is_bounding
    assert likelihood.running_scale.item() == pytest.approx(0.2 + 0.1 * (best.item() - 0.2))
    assert likelihood.eval().is_bounding
    assert likelihood(z).stddev.flatten()[0].item() == pytest.approx(likelihood.running_scale.item())


@pytest.mark.parametrize("pixels", ["unit", "symmetric"])
@pytest.mark.parametrize("name", OF_IMAGES)
def test_single_precision_is_exact_where_trained_decoders_are(name, pixels):
    """Value, gradient and mean against float64, at outputs beyond those of decoders trained on MNIST for 25 epochs.

    Those range over [-73, 14], and down to -110,000 for the continuous Bernoulli, at scales of 0.16 and more.
    """
    if pixels == "symmetric" and not name.startswith("normal"):
        pytest.skip("the likelihood is of pixels in [0, 1]")
    options = {"normal-linear": {"network": "linear"}, "discretized-logistic-mixture": {"logistics": 1}}.get(name, {})
    wide = one_pixel(name, pixels=pixels, scale=0.05, **options)
    single = copy.deepcopy(wide).float()
    ends = [-2e5, 2e5] if name == "continuous-bernoulli" else []
    output = torch.tensor([-160.0, -73.0, -44.0, -17.0, -9.0, -1.0, 0.0, 0.3, 5.0, 14.0, 50.0, 160.0, *ends])
    for level in (0, 1, 128, 255):
        x = torch.full((len(output), 1, 1, 1), level / 255)
        x = x.round() if name == "bernoulli" and level == 128 else 2 * x - 1 if pixels == "symmetric" else x
        found = []
        for likelihood, dtype in ((single, torch.float32), (wide, torch.float64)):
            z = output[:, None].to(dtype).requires_grad_()
            distribution = likelihood(z)
            log_prob = distribution.log_prob(x.to(dtype))
            found.append((log_prob, torch.autograd.grad(log_prob.sum(), z)[0], distribution.mean))
        for value, exact in zip(*found):
            assert torch.isfinite(value).all()
            assert torch.allclose(value.double(), exact, rtol=1e-3, atol=1e-4)  # tanh saturates


def test_pseudo_log_likelihood_is_the_mean_over_binarizations():
    """E_{b ~ Bernoulli(x)} [log Bernoulli(b; p)], enumerated over all 2^6 images, in float64."""
    generator = torch.Generator().manual_seed(0)
    x, logits = (torch.rand(6, generator=generator, dtype=torch.float64) for _ in range(2))
    images = torch.tensor(list(itertools.product([0.0, 1.0], repeat=6)), dtype=torch.float64)
    probability = torch.distributions.Bernoulli(x).log_prob(images).sum(-1).exp()
    mean = (probability * torch.distributions.Bernoulli(logits=logits).log_prob(images).sum(-1)).sum()
    assert torch.allclose(PseudoBernoulli(logits=logits).to_event(1).log_prob(x), mean, rtol=1e-12)


@pytest.mark.parametrize("event", [(1, 28, 28), (3, 64, 64), (1, 3, 4), (97,), (1,), (2, 101)])
def test_one_logarithm_for_many_pixels(event):
    """Without gradients, factors of pixels are multiplied before the logarithm; the result is the same."""
    generator = torch.Generator().manual_seed(0)
    logits = 10 * torch.randn(3, 2, *event, generator=generator, dtype=torch.float64)
    logits.view(-1)[:4] = torch.tensor([0.0, 700.0, -700.0, 1e-300], dtype=torch.float64)
    x = torch.rand(2, *event, generator=generator, dtype=torch.float64)
    together = PseudoBernoulli(logits=logits).to_event(len(event))
    one_by_one = torch.distributions.Bernoulli(logits=logits, validate_args=False).log_prob(x)
    with torch.no_grad():
        quick = together.log_prob(x)
    assert quick.shape == together.batch_shape == (3, 2)
    assert torch.allclose(quick, one_by_one.flatten(2).sum(-1), rtol=1e-13)
    assert torch.equal(together.log_prob(x), one_by_one.flatten(2).sum(-1))
    with torch.no_grad():  # the smallest factors, 1/2 each, in float32
        even = PseudoBernoulli(logits=torch.zeros(event)).to_event(len(event)).log_prob(x[0].float())
    assert even.item() == pytest.approx(-math.log(2) * x[0].numel(), rel=1e-6)
    with torch.no_grad(), pytest.raises(ValueError, match="support"):
        together.log_prob(x + 1)


@pytest.mark.parametrize("elbo", ["trace", "iwae", "renyi", "ciwae", "miwae"])
def test_the_gradient_at_the_optimal_scale_is_that_of_the_loss(small_images, elbo):
    """Against a central difference of the loss at the same draws, in float64: the scale depends on the weights too."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vae = build_vae(Config(hidden=(8, 6), latent_dim=3, likelihood="normal-optimal"), (1, 5, 4)).double().train()
        direction = [torch.randn_like(one) for one in vae.parameters()]
    x = small_images(6)

    def loss(step):
        with torch.no_grad():
            for one, way in zip(vae.parameters(), direction):
                one.add_(way, alpha=step)
        with torch.random.fork_rng(), pyro.get_param_store().scope():
            torch.manual_seed(3)
            return build_elbo(elbo, 6).differentiable_loss(vae.model, vae.guide, x)

    loss(0).backward()
    slope = sum((one.grad * way).sum() for one, way in zip(vae.parameters(), direction)).item()
    size = 1e-5
    difference = (loss(size) - loss(-2 * size)).item() / (2 * size)
    assert slope == pytest.approx(difference, rel=1e-6)


def of_values(name, datum_shape=(3,)):
    """A likelihood of values whose decoder gives z itself, in float64, with parameters away from their start."""
    likelihood = build_vae(Config(likelihood=name, scale=0.4), datum_shape).double().p_x
    return fitted(likelihood, [[1.0, -200.0, 0.01], [3.0, 500.0, 0.05]] if name in REALS else None)


def fitted(likelihood, data=None):
    """The same likelihood, fitted to data (N, 3), whose decoder gives z itself."""
    likelihood.decoder = nn.Identity()
    with torch.no_grad():
        for number, parameter in enumerate(likelihood.parameters()):
            parameter.add_(torch.linspace(-0.5, 0.5, 3, dtype=torch.float64) + 0.1 * number)
    if data is not None:
        likelihood.units.fit_to(torch.tensor(data, dtype=torch.float64))
    return likelihood


LOC, OF_SCALE, LOGIT = [-1.3, 0.2, 2.5], [0.3, -1.0, 1.7], [0.4, -3.0, 2.0]  # outputs of decoders


def in_steps(base, x, step):
    """The logarithm of the probability of the step of each value, less log u, by scipy's cdf."""
    right = x > base.median()
    more = np.where(right, base.logsf(x - step / 2), base.logcdf(x + step / 2))
    less = np.where(right, base.logsf(x + step / 2), base.logcdf(x - step / 2))
    return more + np.log1p(-np.exp(less - more)) - np.log(step)


LOGS = [[0.1, -7.0, 3.0], [1.3, -6.1, 3.04], [2.9, -5.2, 2.9]]  # of values in no steps, and in steps
WHOLE = [[1.0, 1000.0, 0.5], [3.0, 5000.0, 7.5], [24.0, 2000.0, 1.25]]


@pytest.mark.parametrize("has_steps", [False, True])
@pytest.mark.parametrize("kind", [PositiveLikelihood, ZeroInflatedLikelihood])
def test_positive_and_zero_inflated_values_are_those_of_scipy(kind, has_steps):
    """log p of each value, the least one too, and means, by scipy's lognorm, to a relative 1e-10."""
    data = np.array(WHOLE) if has_steps else np.exp(LOGS)
    likelihood, is_inflated = kind(nn.Identity(), (3,), 0.4).double(), kind is ZeroInflatedLikelihood
    if is_inflated:  # above values that float32 holds, of which each column has another share
        atom = np.array([0.0, -250.0, 0.25])
        rows = np.concatenate([np.where(np.tri(3), 0.0, data), 0 * data, data]) + atom
        above, share = np.where(rows > atom, rows - atom, np.nan), np.mean(rows == atom, 0)
        assert {*share} == {6 / 9, 5 / 9, 4 / 9}
    else:
        rows = above = data
    fitted(likelihood, rows)
    logs = np.log(above)
    log_scale = likelihood.log_scale.detach().numpy()
    with np.errstate(invalid="ignore"):
        loc = np.nanmean(logs, 0) + np.nanstd(logs, 0) * LOC
        scale = np.nanstd(logs, 0) * np.sqrt(np.exp(2 * (log_scale + OF_SCALE)) + 1e-6)
    p = scipy.stats.lognorm(scale, scale=np.exp(loc))
    step = np.array([1.0, 1000.0, 0.25]) if has_steps else np.zeros(3)
    outputs = torch.tensor(LOC + OF_SCALE + LOGIT * is_inflated, dtype=torch.float64)
    found = likelihood(outputs)
    mean, x = p.mean(), np.array([3.0, 4000.0, 0.75]) if has_steps else data[0]
    expected = in_steps(p, x, step) if has_steps else p.logpdf(x)
    if is_inflated:
        pi = 1 / (1 + np.exp(-np.array(LOGIT)) * (1 - share) / share)
        mean, x, expected = atom + (1 - pi) * mean, x + atom, expected + np.log1p(-pi)
        of_atom = np.log(pi + (1 - pi) * p.cdf(step / 2)) - np.log(np.where(step > 0, step, 1))
        assert found.log_prob(torch.from_numpy(atom)).item() == pytest.approx(of_atom.sum(), rel=1e-10)
        x[0], expected[0] = 0.0, of_atom[0]
    assert found.log_prob(torch.from_numpy(x)).item() == pytest.approx(expected.sum(), rel=1e-10)
    assert np.allclose(found.mean.detach().numpy(), mean, rtol=1e-10)
    both = torch.stack([outputs, outputs + 1])
    assert torch.equal(likelihood(both).log_prob(torch.from_numpy(x))[0], found.log_prob(torch.from_numpy(x)))


PI = math.pi  # in no steps
SMALL = {  # values of two columns that a likelihood takes, of which one is missing, and how many data count at the mean
    BernoulliLikelihood: ([[0, 1, 1, 0, 1, 1], [0, 0, math.nan, 0, 1, 0]], 1.0),
    CategoricalLikelihood: ([[0, 2, 1, 0, 0, 1], [2, 2, math.nan, 0, 2, 1]], 1.0),
    PoissonLikelihood: ([[3, 0, 9, 2, 1, 1], [40, 90, math.nan, 2, 50, 55]], 1.0),
    NegativeBinomialLikelihood: ([[3, 0, 9, 2, 1, 1], [40, 90, math.nan, 2, 50, 55]], 1.0),
    DiagonalNormalLikelihood: ([[0.1, PI, -0.337, 1.9, 0.5, -0.01], [410, 395 * PI, math.nan, 400, 390, 401]], 0.01),
    PositiveLikelihood: ([[0.1, 0.7, PI, 1.9, 0.5, 0.01], [410, 3 * PI, math.nan, 400, 90, 41]], 0.01),
    ZeroInflatedLikelihood: (
        [[0, 0.7, PI, 0, 0.5, 0.01], [-5, -5, math.nan, 4 * PI, 4, 8]],
        torch.tensor([0.01, 0.01, 1.0], dtype=torch.float64).repeat_interleave(2),
    ),
}
WEIGHTS = torch.tensor([[1, 1, 1, 1, 1, 1], [0.9, 0.1, 0.5, 0.3, 0, 1]], dtype=torch.float64).T


def gradients_of_each(likelihood, output, x):
    """The gradient of log p of each datum by outputs that it shares with the others, (N, outputs)."""

    def log_p(output):
        found = likelihood.pixels(output.expand(len(x), *output.shape))
        return torch.where(x.isnan(), 0.0, found.log_prob(torch.where(x.isnan(), x[:1], x))).sum(-1)

    return torch.autograd.functional.jacobian(log_p, output)


@pytest.mark.parametrize("kind", SMALL)
def test_outputs_for_data_are_those_of_the_greatest_log_likelihood(kind):
    """With one datum, or a hundredth, at the mean of all: the gradient is 0 to 1e-12, and falls through it."""
    values, smoothing = SMALL[kind]
    x = torch.tensor(values, dtype=torch.float64).T
    likelihood = kind(nn.Identity(), (2,), *([3] if kind is CategoricalLikelihood else [])).double()
    if hasattr(likelihood, "units"):
        likelihood.units.fit_to(x)
        assert not getattr(likelihood.units, "step", torch.zeros(2)).any()
    with torch.no_grad():
        for number, parameter in enumerate(likelihood.parameters()):
            parameter.add_(torch.tensor([-0.3, 0.4]) + 0.1 * number)

    def gradient(output, weight):
        each = gradients_of_each(likelihood, output, x)
        return weight @ each + smoothing * each.sum(0) / (each != 0).sum(0), each

    outputs = likelihood.outputs_for(x, WEIGHTS)
    assert (outputs.dtype, len(outputs)) == (torch.float64, 2)
    for output, weight in zip(outputs.flatten(1), WEIGHTS.T):
        total, each = gradient(output, weight)
        assert (total.abs() < 1e-12 * each.abs().sum(0)).all()
        for place in range(len(output)):
            for change in (-0.3, 0.3):
                other = output.index_add(0, torch.tensor([place]), torch.tensor([change]).double())
                assert gradient(other, weight)[0][place] * change < 0


def test_outputs_for_an_ordinal_value_are_those_of_its_probabilities():
    likelihood = OrdinalLikelihood(nn.Identity(), (2,), 4).double()
    output = torch.tensor([-1.3, 0.7], dtype=torch.float64)
    probs = likelihood.pixels(output).probs.detach()
    x = torch.arange(4.0).double()[:, None].expand(4, 2)
    found = torch.stack([likelihood.outputs_for(x, 1e9 * one[:, None])[0, place] for place, one in enumerate(probs)])
    torch.testing.assert_close(found, output, rtol=0, atol=1e-7)


def test_levels_start_at_their_shares_of_the_training_data():
    """Of two columns of a table, at the outputs that suit all rows and at 0; one has a missing value."""
    likelihood = ColumnsLikelihood(nn.Identity(), (3,), "ordinal:3,real,ordinal:3", has_missing=True).double()
    x = torch.tensor([[0.0, 1.5, 2], [1, 2.0, math.nan], [1, 0.5, 0], [2, PI, 1], [0, 0.1, 1]], dtype=torch.float64)
    fit_to(likelihood, x)
    (part, _) = likelihood.parts
    outputs = part.outputs_for(x[:, [0, 2]], torch.ones(5, 1, dtype=torch.float64))
    for output in (outputs[0], torch.zeros(2, dtype=torch.float64)):
        probs = torch.tensor([[0.4, 0.4, 0.2], [0.25, 0.5, 0.25]], dtype=torch.float64)
        torch.testing.assert_close(part.pixels(output).probs.detach(), probs, rtol=0, atol=1e-6)


def test_outputs_for_columns_are_those_of_the_greatest_log_likelihood():
    """Of 1e9 times the weights, beside which one datum more is nothing; in the order of the columns."""
    kinds = "positive,binary,real,zero-inflated,categorical:3,count,real"
    x = [
        [0.7, 0, math.nan, 0.0, 2, 4, 1.0],
        [math.nan, 1, PI, 3 * PI, 0, 0, -PI],
        [PI, 0, 0.1, 0.5, 1, 9, 3.3],
        [1.9, 0, 7.2, 0.0, 1, math.nan, 2.0],
        [9.1, 1, -3.0, 12.5, 0, 2, 0.4],
    ]
    likelihood = ColumnsLikelihood(nn.Identity(), (7,), kinds, has_missing=True).double()
    for part, places in zip(likelihood.parts, ([0], [1], [2, 6], [3], [4], [5])):
        if hasattr(part, "units"):
            assert part.units.columns == places
            part.units.fit_to(torch.tensor(x, dtype=torch.float64))
    weight = torch.tensor([0.2, 1.0, 0.5, 0.9, 0.3], dtype=torch.float64)
    output = likelihood.outputs_for(torch.tensor(x, dtype=torch.float64), 1e9 * weight[:, None])
    assert output.shape == (1, *likelihood.output_shape) == (1, 2 + 1 + 4 + 3 + 3 + 1)

    def log_p(output):
        return likelihood.given(output.expand(5, -1)).log_prob(torch.tensor(x, dtype=torch.float64))

    each = torch.autograd.functional.jacobian(log_p, output[0])
    assert each.abs().sum(0).min() > 0.1
    assert (weight @ each).abs().max() < 1e-7


@pytest.mark.parametrize("has_steps", [False, True])
def test_normal_values_and_their_steps_are_those_of_the_density(has_steps):
    """log p(x | z) = log Normal(y; loc, scale) + log |dy/dx|, dy/dx by differences; in the order of the columns."""
    kinds = "positive,real,positive,real"
    x = torch.tensor([[2.0, -7.5, 40.0, 0.25], [1.0, 3.0, 70.0, 0.75], [5.0, 8.25, 20.0, 1.0]], dtype=torch.float64)
    x = x if has_steps else x * PI
    likelihood = ColumnsLikelihood(nn.Identity(), (4,), kinds).double()
    for part in likelihood.parts:
        part.units.fit_to(x)
    y, log_slope = likelihood.normal_values(x)
    outputs = torch.tensor([0.2, -1.0, 0.1, -0.3, 0.7, 0.6, -0.2, 0.4], dtype=torch.float64)
    loc, scale = outputs[[0, 4, 1, 5]], (outputs[[2, 6, 3, 7]].mul(2).exp() + 1e-6).sqrt()
    if has_steps:
        slope = (likelihood.normal_values(x + 1e-6)[0] - likelihood.normal_values(x - 1e-6)[0]) / 2e-6
        torch.testing.assert_close(log_slope.exp(), slope, rtol=1e-7, atol=0)
    else:
        of_y = torch.distributions.Normal(loc, scale).log_prob(y) + log_slope
        torch.testing.assert_close(likelihood(outputs).log_prob(x), of_y.sum(-1), rtol=1e-12, atol=0)
    with_count = ColumnsLikelihood(nn.Identity(), (2,), "real,binary").double()
    assert with_count.normal_values(x[:, :2]) is None


def test_values_are_standardised_in_parts_and_one_that_never_changes_is_left_as_it_is():
    """Its standard deviation is 0, and 1 stands for it; NaN counts nowhere."""
    units = Standardize((2,))
    units.fit_to(torch.tensor([[5.0, 1.0], [5.0, 5.0], [5.0, math.nan]]).repeat_interleave(7000, 0))
    torch.testing.assert_close(units.mean, torch.tensor([5.0, 3.0]))
    torch.testing.assert_close(units.std, torch.tensor([1.0, 2.0]))
    torch.testing.assert_close(units(torch.tensor([[5.0, 7.0]])), torch.tensor([[0.0, 2.0]]))
