"""Conformal p-values beside their exact distribution, and how odd a row is on both sides."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pandas
import pytest

from pvae.core.errors import InputError
from pvae.trained.alarm import Alarm, Sides, benjamini_hochberg, conformal_p_values, least_rows


def test_a_p_value_is_the_rank_among_the_calibration_rows():
    p = conformal_p_values([3.0, 1.0, 2.0, 2.0], [0.5, 2.0, 2.5, 3.0, 9.0, math.inf, math.nan])
    assert np.array_equal(p[:-1], [1.0, 4 / 5, 2 / 5, 2 / 5, 1 / 5, 1 / 5])
    assert math.isnan(p[-1])
    for wrong in ([], [1.0, math.nan]):
        with pytest.raises(InputError, match="calibration"):
            conformal_p_values(wrong, [1.0])


@pytest.mark.parametrize("bag", [[1.0, 2, 3, 4, 5], [1.0, 1, 2, 3, 3], [7.0] * 5])
def test_false_alarms_over_all_orders_of_exchangeable_rows(bag):
    """Exact: each row of a bag is the new one equally often. Without ties p is uniform, with ties at most that."""
    p = np.array([conformal_p_values(order[1:], order[:1])[0] for order in itertools.permutations(bag)])
    for rate in np.linspace(0, 1, 101):
        share = (p <= rate + 1e-12).mean()
        assert share <= rate + 1e-12
        if len({*bag}) == 5:
            assert share == pytest.approx(math.floor(5 * rate + 1e-9) / 5)


def test_discoveries_are_those_of_benjamini_and_hochberg():
    p = np.array([0.04, 0.001, 0.9, 0.02, math.nan, 0.011, 0.5, 0.6])
    found = benjamini_hochberg(p, 0.05)
    ordered = np.sort(p[~np.isnan(p)])
    last = max(k for k in range(1, 8) if ordered[k - 1] <= 0.05 * k / 7)
    assert np.array_equal(found, p <= ordered[last - 1])
    assert found.sum() == last == 3
    assert not benjamini_hochberg([0.5, 0.6], 0.05).any()
    assert not benjamini_hochberg([], 0.05).any()


def test_false_discoveries_with_shared_calibration_rows():
    """2,000 times, 90 of 100 rows are like the 500 that calibrate, and 10 are odd: FDR at most 0.2 * 0.9.

    The mean lies above that plus 4.3 of its errors with a probability of at most 2e-5.
    """
    draw = np.random.default_rng(1)
    shares = []
    for _ in range(2000):
        rows = np.concatenate([draw.normal(size=90), draw.normal(4, 1, size=10)])
        found = benjamini_hochberg(conformal_p_values(draw.normal(size=500), rows), 0.2)
        shares.append(found[:90].sum() / max(1, found.sum()))
    assert np.mean(shares) < 0.18 + 4.3 * np.std(shares) / math.sqrt(len(shares))
    assert np.mean(shares) > 0.1, "it finds the odd rows, and false ones"


def test_the_least_number_of_rows_reaches_the_rate():
    for rate in (0.5, 0.1, 0.05, 0.01, 1 / 161, 0.003):
        number = least_rows(rate)
        assert 1 / (number + 1) <= rate * (1 + 1e-9)
        assert number == 0 or 1 / number > rate


def rows(count=1000, seed=0):
    """log p(x), distortion and rate with a long tail on one side each."""
    draw = np.random.default_rng(seed)
    distortion, rate = draw.gamma(4, 2, count), draw.gamma(2, 1, count)
    return np.stack([-distortion - rate, distortion, rate], 1)


def test_a_row_is_odd_on_either_side_and_says_by_what():
    sides = Sides.of(rows())
    usual = sides.median
    odd = {"low distortion": (1, -50), "high distortion": (1, 50), "low rate": (2, -50), "high log p": (0, 50)}
    for text, (place, step) in odd.items():
        row = usual.copy()
        row[place] += step
        assert sides.oddness(row[None])[0] > sides.oddness(rows()).max()
        assert sides.says(row[None]) == [text]
    assert np.allclose((sides.distances(rows()) > 1).mean(0), 0.1, atol=2e-3)
    assert np.allclose((sides.distances(rows()) < -1).mean(0), 0.1, atol=2e-3)
    assert np.isfinite(sides.oddness(usual[None] + 1e-9)).all()
    assert np.isfinite(Sides.of(np.zeros((9, 3))).oddness(np.ones((1, 3)))).all(), "of a rate that is always 0"


def test_a_row_is_odd_by_values_that_do_not_occur_together():
    """A low distortion and a high rate, where both are high or low together; each of them alone is usual."""
    draw = np.random.default_rng(0)
    rate = draw.normal(10, 1, 1000)
    distortion = rate + 0.2 * draw.normal(size=1000)
    own = np.stack([-distortion - rate, distortion, rate], 1)
    sides = Sides.of(own)
    row = np.array([[-20.0, 9.0, 11.0]])
    assert np.abs(sides.distances(row)).max() < 1
    assert sides.oddness(row)[0] > sides.oddness(own).max()


def test_a_row_of_which_little_is_known_is_judged_by_that():
    sides = Sides.of(rows())
    usual, inf, nan = [*sides.median], math.inf, math.nan
    found = sides.oddness(np.array([usual, [usual[0], inf, usual[2]], [nan, 1e4, nan], [nan, nan, nan]]))
    assert found[0] < 1
    assert found[1] == inf
    assert found[2] > sides.oddness(rows()).max()
    assert np.isnan(found[3])


@pytest.mark.parametrize("count", [1, 2, 5, 19, 30])
def test_a_few_reference_rows_judge_those_far_out(count):
    own = np.concatenate([rows(count), [[-math.inf, math.nan, math.nan]]])
    assert Sides.of(own).oddness(np.array([[-1e4, 5e3, 5e3]]))[0] > 100


def test_a_tight_cluster_among_the_reference_rows_is_found():
    """The likeliest rows, in a cluster of 6 %, which their log p would rank last."""
    own = rows()
    cluster = np.tile([0.5, -3.0, 2.5], (60, 1)) + 0.01 * rows(60, 1)
    oddness = Sides.of(np.concatenate([own, cluster])).oddness
    area = (oddness(cluster)[:, None] > oddness(own)).mean()
    assert area > 0.95
    assert (cluster[:, :1] < own[:, 0]).mean() < 0.01, "area by log p alone"


def test_rows_that_are_none_of_the_table_are_marked_and_empty_ones_have_no_p_value():
    sides = Sides.of(rows())
    alarm = Alarm(sides, "test", sides.oddness(rows(99, 2)))
    table = [[-math.inf, math.nan, math.nan], [math.nan] * 3, [*sides.median], [*sides.median + np.array([0, 60, 0])]]
    scores = pandas.DataFrame(table, columns=["log_p", "distortion", "rate"])
    order = alarm.mark(scores, 0.01)
    assert scores["is_odd"].tolist() == [True, False, False, True]
    assert scores["p_value"].isna().tolist() == [False, True, False, False]
    assert scores["odd_by"].tolist() == ["low log p", "", "", "high distortion"]
    assert [*order] == [0, 3, 2, 1]
