"""Rows of columns of different kinds: the density, what is missing, and features that can be averaged."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pyro.distributions as dist
import pytest
import scipy.stats
import torch

from pvae.config.build import build_vae
from pvae.config.config import Config
from pvae.core.errors import InputError
from pvae.distributions.values import Columns, ordered_logits
from pvae.models.columns import column_kinds
from pvae.models.features import fit_to

KINDS = (
    "count,real,categorical:4,ordinal:3,real,binary,categorical:4,categorical:2,ordinal:3,count,positive,zero-inflated"
)
ROWS = torch.tensor(
    [[3.0, 210.0, 3, 0, -0.1, 1, 0, 1, 2, 0, 1.5, 0.5], [0.0, 190.0, 1, 2, 0.4, 0, 2, 0, 1, 17, 4.0, 3.5]],
    dtype=torch.float64,
)
D = ROWS.shape[1]


def likelihood(kinds=KINDS):
    """Its decoder gives z itself; in float64, with parameters away from their start."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = Config(likelihood="columns", columns=kinds, scale=0.4, missing=True)
        vae = build_vae(config, (len(column_kinds(kinds)),)).double()
    if kinds == KINDS:
        fit_to(vae, ROWS)
    found = vae.p_x
    found.decoder = torch.nn.Identity()
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.add_(torch.linspace(-0.3, 0.4, parameter.numel()).view_as(parameter))
    return found


def outputs(found, *batch):
    return torch.randn(*batch, sum(found.num_outputs), generator=torch.Generator().manual_seed(1)).double()


class Steps:
    """A distribution of scipy whose values were recorded in steps of u: log [F(x + u/2) - F(x - u/2)] - log u."""

    def __init__(self, base, step):
        self.base, self.step, self.mean = base, step, torch.as_tensor(base.mean())

    def log_prob(self, x):
        low, high = x.numpy() - self.step / 2, x.numpy() + self.step / 2
        more, less = np.where(  # in the tail in which F is small
            high + low < 2 * self.base.median(),
            [self.base.logcdf(high), self.base.logcdf(low)],
            [self.base.logsf(low), self.base.logsf(high)],
        )
        return torch.from_numpy(more + np.log1p(-np.exp(less - more)) - math.log(self.step))


class Atom:
    """A value a of which a share is known, and others above it."""

    def __init__(self, rest, atom, share, step):
        self.rest, self.atom, self.share, self.step = rest, atom, share, step
        self.mean = atom + (1 - share) * rest.mean

    def log_prob(self, x):
        of_rest = (1 - self.share).log() + self.rest.log_prob((x - self.atom).clamp(min=0))
        return torch.where(x > self.atom, of_rest, (self.share / self.step).log().logaddexp(of_rest))


def loc_and_scale(part, number, output, other, values):
    """Those of a Normal by two outputs of the decoder, in units of the mean and deviation of values."""
    scale = ((2 * part.log_scale[number] + 2 * other).exp() + 1e-6).sqrt()
    std = values.std(correction=0)
    std = std if std > 0 else torch.ones_like(std)
    return (values.mean() + std * output).numpy(), (std * scale).detach().numpy()


def by_hand(found, output):
    """A distribution of pyro.distributions or of scipy for each column, in the order of the columns of x."""
    kinds = [*dict.fromkeys(map(str, column_kinds(KINDS)))]
    real, count, three, positive, inflated = (
        found.parts[kinds.index(kind)] for kind in ("real", "count", "ordinal:3", "positive", "zero-inflated")
    )
    mean, std = ROWS.mean(0), ROWS.std(0, correction=0)
    # grouped by kind: counts 0:2, locations of reals 2:4, scales 4:6, categories of four 6:14, levels 14:16, binary 16,
    # categories of two 17:19, location and scale of the positive values 19:21, and those and a logit 21:24
    columns = {}
    for number, place in enumerate((0, 9)):
        unit = mean[place] / math.log(2)  # of counts whose mean is above log 2
        mu = unit * torch.nn.functional.softplus(output[..., number]) + 1e-6
        first_theta = mean[place] ** 2 / (std[place] ** 2 - mean[place])
        theta = first_theta * count.log_theta[number].exp()
        columns[place] = dist.GammaPoisson(theta, theta / mu)
    for number, (place, step) in enumerate(((1, 20.0), (4, 0.5))):
        each = loc_and_scale(real, number, output[..., 2 + number], output[..., 4 + number], ROWS[:, place])
        columns[place] = Steps(scipy.stats.norm(*each), step)
    columns[2], columns[6] = dist.Categorical(logits=output[..., 6:10]), dist.Categorical(logits=output[..., 10:14])
    for number, place in enumerate((3, 8)):
        shares = torch.stack([(ROWS[:, place] <= level).double().mean() for level in (0, 1)])
        first, second = shares.clamp(1e-4, 1 - 1e-4).logit()
        even = torch.logit(torch.arange(1, 3) / 3)  # in float32
        cut = first + three.first_cut[number] - even[0].double()
        gap = (
            1e-3 + (second - first - 1e-3).clamp(min=1e-3) * (three.log_gaps[number] - even.diff().log().double()).exp()
        )
        cuts = torch.cat([cut, cut + gap])
        columns[place] = dist.OrderedLogistic(output[..., 14 + number], cuts)
    columns[5], columns[7] = dist.Bernoulli(logits=output[..., 16]), dist.Categorical(logits=output[..., 17:19])
    for place, part, first, values in ((10, positive, 19, ROWS[:, 10]), (11, inflated, 21, ROWS[1:, 11] - 0.5)):
        loc, scale = loc_and_scale(part, 0, output[..., first], output[..., first + 1], values.log())
        step = 2.5 if place == 10 else 3.0
        columns[place] = Steps(scipy.stats.lognorm(scale, scale=np.exp(loc)), step)
    columns[11] = Atom(columns[11], 0.5, output[..., 23].sigmoid(), 3.0)  # as often as not in the data
    return [columns[place] for place in range(D)]


def test_the_log_density_is_the_sum_over_columns_of_pyros_own():
    found = likelihood()
    output = outputs(found, 5, 2)
    expected = sum(one.log_prob(ROWS[:, place]) for place, one in enumerate(by_hand(found, output)))
    ours = found(output)
    assert (ours.batch_shape, ours.event_shape) == ((5, 2), (D,))
    torch.testing.assert_close(ours.log_prob(ROWS), expected, rtol=1e-12, atol=1e-12)
    wider = found(output[0]).expand((5, 2)).log_prob(ROWS)
    torch.testing.assert_close(wider, ours.expand((5, 2)).log_prob(ROWS)[:1].expand(5, 2), rtol=1e-12, atol=1e-12)


def test_what_is_missing_is_integrated_out():
    found = likelihood()
    output, x = outputs(found, 5, 2), ROWS.clone()
    x[0, ::2] = x[1, 1::3] = math.nan
    each = [one.log_prob(ROWS[:, place]) for place, one in enumerate(by_hand(found, output))]
    expected = torch.where(x.isnan(), 0.0, torch.stack(each, -1)).sum(-1)
    torch.testing.assert_close(found(output).log_prob(x), expected, rtol=1e-12, atol=1e-12)
    assert not found(output).log_prob(torch.full_like(x, math.nan)).any()


@pytest.mark.parametrize(("kind", "count"), [("categorical", 7), ("categorical", 1), ("ordinal", 6), ("ordinal", 2)])
def test_categories_and_levels_of_any_number_are_normalised(kind, count):
    found = likelihood(f"{kind}:{count}")
    total = found(outputs(found)).log_prob(torch.arange(count).double()[:, None]).exp().sum()
    assert total.item() == pytest.approx(1, abs=1e-10)


@pytest.mark.parametrize("output", [-1e4, -100.0, 0.0, 100.0, 1e4])
def test_outputs_of_any_size_give_finite_values_and_gradients_in_float32(output):
    found = likelihood().float()
    given = torch.full((2, sum(found.num_outputs)), output)
    given[:, ::2] *= -1
    given.requires_grad_()
    value = found(given).log_prob(ROWS.float())
    value.sum().backward()
    assert value.isfinite().all()
    assert given.grad.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in found.parameters())


def test_levels_far_from_the_output_are_as_unlikely_as_by_fifty_digits():
    """Where the difference of two sigmoids is 0 in float64, and pyro's OrderedLogistic has a clamped value."""
    mpmath = pytest.importorskip("mpmath")
    cuts = [-1.0, -0.5, 2.0]
    found = ordered_logits(torch.tensor([0.3, 50.0, -1e3], dtype=torch.float64), torch.tensor(cuts).double())
    with mpmath.workdps(1000):
        for row, location in zip(found.tolist(), map(mpmath.mpf, (0.3, 50, -1000))):
            below = [0, *(1 / (1 + mpmath.exp(location - cut)) for cut in cuts), 1]
            expected = [float(mpmath.log(high - low)) for low, high in itertools.pairwise(below)]
            assert row == pytest.approx(expected, rel=1e-12)


def test_draws_have_the_probabilities_of_their_kind():
    """Shares and means of 40,000 draws, each within 4.6 errors: 20 numbers fail together once in 12,000 seeds."""
    found = likelihood()
    one = found(outputs(found))
    with torch.random.fork_rng():
        torch.manual_seed(2)
        x = one.sample((40_000,))
    found.check(x)
    separate = by_hand(found, outputs(found))
    for place, kind in enumerate(column_kinds(KINDS)):
        values = x[:, place, None]
        if kind.num_categories:
            values, mean = (values == torch.arange(kind.num_categories)).double(), separate[place].probs
        else:
            mean = separate[place].mean
        error = values.mean(0) - mean
        assert (error.abs() < 4.6 * values.std(0) / 200).all(), kind


def test_codes_are_never_averaged():
    """Of the draws 0, 0 and 2 of a category the most likely one is 0, and not their mean."""
    sure = torch.tensor([[9.0, 0, 0], [9.0, 0, 0], [0, 0, 9.0]])[:, None]
    three = Columns(
        [dist.Categorical(logits=sure), dist.Normal(torch.tensor([[1.0], [2], [6]]), 1)], torch.tensor([1, 0])
    )
    assert three.mean.tolist() == [[1, 0], [2, 0], [6, 2]]
    assert three.from_features(three.features.mean(0)).tolist() == [3, 0]
    assert three.has_mean.tolist() == [True, False]


def test_the_most_likely_codes_and_the_means_stand_in_their_columns():
    found = likelihood()
    output = outputs(found, 5, 2)
    mean = found(output).mean
    for place, one in enumerate(by_hand(found, output)):
        kind = column_kinds(KINDS)[place]
        expected = (
            one.probs.argmax(-1) if kind.num_categories else (one.mean > 0.5) if kind.name == "binary" else one.mean
        )
        torch.testing.assert_close(mean[..., place], expected.double().detach(), rtol=1e-12, atol=1e-12)


def test_values_outside_the_domain_of_their_column_are_refused():
    found = likelihood()
    found.check(ROWS)
    outside = [(0, -1), (0, 0.5), (1, math.inf), (2, 4), (2, 0.5), (3, 3), (5, 2), (10, 0), (10, math.inf), (11, 0)]
    for column, value in outside:
        x = ROWS.clone()
        x[1, column] = value
        with pytest.raises(InputError):
            found.check(x)


def test_what_an_encoder_sees():
    kinds = "real,count,positive,binary,zero-inflated,categorical:3,ordinal:3"
    vae = build_vae(Config(likelihood="columns", columns=kinds, missing=True), (7,))
    x = torch.tensor([[1.0, 0, math.e, 1, 2, 2, 0], [3.0, math.nan, math.nan, 0, 2 + math.e, math.nan, 1]])
    x = torch.cat([x, torch.tensor([[math.nan, 0, math.e, 1, math.nan, 0, 0]])])
    data = [
        [1.0, 0, math.e, 1, 2, 2, 0],
        [2.0, math.e**2 - 1, math.e**2, 0, 2 + math.e, 0, 1],
        [3.0, math.e - 1, math.e**3, 0, 2 + math.e**3, 0, 1],
    ]
    fit_to(vae, torch.tensor(data))
    first, second, third = vae.q_z.encoder[0](x).tolist()
    # The numbers of the data are 1, 2 and 3, the logarithms of counts 0, 1 and 2, of positive values 1, 2 and 3, and of
    # those above the least value 1 and 3. Numbers are first, then one for each category, and 1 for the least value.
    std = 1.5**0.5
    assert first == pytest.approx([-std, -std, -std, 1, 0, *(0, 0, 1), *(1, 0, 0), 1, *[1] * 7], abs=1e-6)
    assert second == pytest.approx([std, 0, 0, 0, -1, *(0, 0, 0), *(0, 1, 0), 0, *(1, 0, 0, 1, 1, 0, 1)], abs=1e-6)
    assert third == pytest.approx([0, -std, -std, 1, 0, *(1, 0, 0), *(1, 0, 0), 0, *(0, 1, 1, 1, 0, 1, 1)], abs=1e-6)
