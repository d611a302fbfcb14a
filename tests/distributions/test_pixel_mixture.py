"""Mixtures of logistics with noise that follows neighbours, beside their definition, pixel by pixel."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.special import expit

from pvae.distributions.pixel_mixture import DiscretizedLogisticMixture
from pvae.distributions.pixels import DiscretizedLogistic

LEVELS = torch.arange(256, dtype=torch.float64) / 255


def mixture(shape, num_logistics=1, bound=0.7, has_neighbours=True, has_colours=True, scale=0.1, seed=0):
    """A distribution of an image whose parameters are all drawn, in float64."""
    draw = np.random.default_rng(seed)
    num_colours, height, width = shape
    of_pixels = (num_logistics, *shape)
    logits = torch.from_numpy(draw.normal(size=(num_logistics, height, width)))
    loc = torch.from_numpy(draw.normal(0.5, 0.5, size=of_pixels))
    scales = scale * torch.from_numpy(draw.normal(size=of_pixels)).exp()
    colour = kernel = None
    if has_colours and num_colours > 1:
        colour = torch.from_numpy(draw.normal(size=(num_colours * (num_colours - 1) // 2, height, width))) / 2
    if has_neighbours:
        kernel = torch.from_numpy(draw.normal(size=(num_colours, num_colours, 3, 5))) / 4
    return DiscretizedLogisticMixture(logits, loc, scales, colour, kernel, bound)


def by_hand(p, x):
    """log P(x) of an image, from the definition, with a loop over rows, columns, logistics and colours."""
    x = x.numpy()
    num_logistics, num_colours, height, width = p.loc.shape
    loc, scale = p.loc.numpy(), p.scale.numpy()
    pi = p.logits.softmax(0).numpy()
    m = sum(pi[k] * np.clip(loc[k], 0, 1) for k in range(num_logistics))
    total = 0.0
    for h, w in itertools.product(range(height), range(width)):
        shift = np.zeros(num_colours)
        for c in range(num_colours):
            sizes = 1e-6
            for d, i, j in itertools.product(range(num_colours), range(3), range(5)):
                is_before = i < 2 or j < 2
                if p.kernel is None or not is_before:
                    continue
                weight = p.kernel[c, d, i, j].item()
                sizes += abs(weight)
                row, column = h + i - 2, w + j - 2
                if row >= 0 and 0 <= column < width:
                    shift[c] += weight * (x[d, row, column] - m[d, row, column])
            for b in range(c):
                if p.colour is not None:
                    weight = p.colour[c * (c - 1) // 2 + b, h, w].item()
                    sizes += abs(weight)
                    shift[c] += weight * (x[b, h, w] - m[b, h, w])
            shift[c] *= min(1.0, p.bound / sizes)
        of_pixel = 0.0
        for k in range(num_logistics):
            product = pi[k, h, w]
            for c in range(num_colours):
                middle = loc[k, c, h, w] + shift[c]
                upper, lower = 1.0, 0.0
                if x[c, h, w] < 1:
                    upper = expit((x[c, h, w] + 1 / 510 - middle) / scale[k, c, h, w])
                if x[c, h, w] > 0:
                    lower = expit((x[c, h, w] - 1 / 510 - middle) / scale[k, c, h, w])
                product *= upper - lower
            of_pixel += product
        total += math.log(of_pixel)
    return total


CASES = [
    ((1, 4, 6), {}),
    ((1, 4, 6), {"num_logistics": 3}),
    ((3, 4, 6), {}),
    ((3, 4, 6), {"num_logistics": 3, "bound": 0.95}),
    ((2, 3, 4), {"num_logistics": 2, "has_neighbours": False}),
    ((2, 3, 4), {"num_logistics": 2, "has_neighbours": False, "has_colours": False}),
]


@pytest.mark.parametrize(("shape", "options"), CASES)
def test_the_probability_is_that_of_its_definition(shape, options):
    p = mixture(shape, **options, scale=0.2)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        x = p.sample()
    assert {0.0, 1.0} < set(x.flatten().tolist())
    assert p.log_prob(x).item() == pytest.approx(by_hand(p, x), rel=1e-10)


def test_the_probabilities_of_the_images_of_two_pixels_sum_to_1():
    """Of all 65,536 images of one colour, in which the second pixel follows the first."""
    p = mixture((1, 1, 2), num_logistics=2)
    first, second = torch.meshgrid(LEVELS, LEVELS, indexing="ij")
    x = torch.stack([first.flatten(), second.flatten()], -1).view(-1, 1, 1, 2)
    assert p.log_prob(x).exp().sum().item() == pytest.approx(1, rel=1e-12)


@pytest.mark.workflow
def test_the_probabilities_of_the_colours_of_a_pixel_sum_to_1():
    """Over all 256^3 colours, of two logistics whose locations follow the colours before; in float32, to 1e-5."""
    p = mixture((3, 1, 1), num_logistics=2)
    single = DiscretizedLogisticMixture(p.logits.float(), p.loc.float(), p.scale.float(), p.colour.float())
    green_and_blue = torch.cartesian_prod(LEVELS, LEVELS)
    total = 0.0
    for red in LEVELS:
        x = torch.cat([red.expand(len(green_and_blue), 1), green_and_blue], 1)
        total += single.log_prob(x.float()[..., None, None]).double().exp().sum().item()
    assert total == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("shape", [(1, 5, 7), (3, 4, 9), (2, 1, 6), (2, 6, 1)])
def test_a_draw_is_that_of_its_noise_and_the_pixels_before(shape):
    """Of one logistic: what is drawn pixel by pixel fulfils the equation of all pixels at once."""
    p = mixture(shape, bound=0.95)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        x = p.sample((3,))
        torch.manual_seed(0)
        noise = p.scale[0] * torch.rand(3, *shape, dtype=torch.float64).logit()
    due = p.loc[0] + p._shift(x - p.mean) + noise
    assert torch.equal(x, (255 * due).round().clamp(0, 255) / 255)
    assert p._shift(x - p.mean).abs().max() > 0.01


def test_draws_have_the_entropy_of_their_probabilities():
    """Of images of two pixels and two logistics, whose entropy is a sum; at 4.3 standard errors (2e-5)."""
    p = mixture((1, 1, 2), num_logistics=2, scale=0.02)
    first, second = torch.meshgrid(LEVELS, LEVELS, indexing="ij")
    of_all = p.log_prob(torch.stack([first.flatten(), second.flatten()], -1).view(-1, 1, 1, 2))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        log_p = p.log_prob(p.sample((20_000,)))
    error = 4.3 * log_p.std().item() / len(log_p) ** 0.5
    exact = (of_all.exp() * of_all).sum().item()
    assert error < 0.02 * abs(exact), "this sample could not have seen an error of 2 %"
    assert log_p.mean().item() == pytest.approx(exact, abs=error)


def test_what_is_missing_has_no_factor_and_no_residual():
    """An image with holes has the probability of its definition with r = 0 and no factor there."""
    p = mixture((1, 3, 4))
    x = torch.from_numpy(np.random.default_rng(0).integers(256, size=(1, 3, 4))).double() / 255
    holes = torch.zeros(1, 3, 4, dtype=torch.bool)
    holes[0, 0, 1] = holes[0, 1, 2] = True
    seen = DiscretizedLogisticMixture(p.logits, p.loc, p.scale, p.colour, p.kernel, p.bound, has_missing=True)
    log_p = seen.log_prob(torch.where(holes, math.nan, x))
    shift = p._shift(torch.where(holes, 0.0, x - p.mean))
    each = DiscretizedLogistic(p.loc[0] + shift, p.scale[0]).log_prob(x)
    assert log_p.item() == pytest.approx(each[~holes].sum().item(), rel=1e-12)


def test_gradients_are_finite_differences():
    shape, count = (2, 2, 3), 2
    p = mixture(shape, num_logistics=count)
    x = torch.from_numpy(np.random.default_rng(0).choice([0, 3, 128, 255], shape)).double() / 255

    def log_p(logits, loc, scale, colour, kernel):
        return DiscretizedLogisticMixture(logits, loc, scale, colour, kernel, 0.7).log_prob(x)

    values = [value.clone().requires_grad_() for value in (p.logits, p.loc, p.scale, p.colour, p.kernel)]
    assert torch.autograd.gradcheck(log_p, values)


def test_a_larger_batch_shape_has_the_same_probabilities():
    p = mixture((2, 3, 4), num_logistics=2)
    x = p.sample((5,))
    assert torch.allclose(p.expand((5,)).log_prob(x), p.log_prob(x), rtol=1e-13)
    assert p.expand((5,)).sample((2,)).shape == (2, 5, 2, 3, 4)
