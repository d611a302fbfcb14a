"""Whether draws are like test rows: against values computed by hand, by scipy and pandas, and by SDMetrics."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from pvae.core.errors import InputError
from pvae.evaluation.measures.samples import sample_quality

NAN = np.nan
NAMES = ["age", "claim", "premium", "region", "smoker"]
IS_CATEGORY = [False, False, False, True, True]


def table(seed, count, missing=0.0):
    """Rows of numbers that depend on each other, one of them often 0, and of two categories that depend on them."""
    generator = np.random.default_rng(seed)
    age = generator.normal(size=count)
    claim = np.where(generator.random(count) < 0.5, 0, np.exp(age + generator.normal(size=count)))
    premium = age - 0.1 * seed * claim + generator.normal(size=count)
    region = np.floor(4 * generator.random(count) ** (1 + 0.2 * seed))
    smoker = (premium + region > 1.5).astype(float)
    x = np.stack([age, claim, premium, region, smoker], 1)
    x[generator.random(x.shape) < missing] = NAN
    return x


def columns(*values):
    return np.array(values, dtype=float).T


def distances(found):
    """Each distance of the draws and of the training rows by the names of its columns."""
    return {one.names: (one.distance, one.distance_of_train) for one in (*found.worst_columns, *found.worst_pairs)}


def test_the_distance_of_numbers_is_the_largest_distance_of_distribution_functions():
    # Shares of values of at most 0, 1, 2, 3: draws 1/4 2/4 3/4 1, test rows 2/4 2/4 1 1, training rows 0 0 0 1.
    found = sample_quality(columns([3, 1, 2, 0]), columns([0, 2, 0, 2]), columns([3, 3]), ["age"], [False])
    assert distances(found) == {("age",): (0.25, 1.0)}
    assert (found.column_shapes, found.column_shapes_of_train) == (0.75, 0.0)
    assert found.pair_trends is None
    assert found.pair_trends_of_train is None
    assert found.worst_pairs == ()


def by_definition(x, test, is_category):
    """The distance of one column or two, by scipy and pandas; x and test are data frames."""
    if any(is_category):
        x, test = x.copy(), test.copy()
        for name in itertools.compress(x, [not is_code for is_code in is_category]):
            edges = np.histogram_bin_edges(test[name].dropna(), 10)
            edges[[0, -1]] = -np.inf, np.inf
            x[name], test[name] = (pd.cut(part[name], edges, right=False, labels=False) for part in (x, test))
        shares = [part.dropna().value_counts(normalize=True) for part in (x, test)]
        return shares[0].sub(shares[1], fill_value=0).abs().sum() / 2
    x, test = x.dropna(), test.dropna()
    if len(is_category) == 1:
        return scipy.stats.ks_2samp(x.iloc[:, 0], test.iloc[:, 0]).statistic
    ours, theirs = (scipy.stats.pearsonr(part.iloc[:, 0], part.iloc[:, 1]).statistic for part in (x, test))
    return abs(ours - theirs) / 2


@pytest.mark.parametrize("missing", [0, 0.2])
def test_scipy_and_pandas_agree(missing):
    groups = [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2)]
    for three in itertools.combinations(range(5), 3):  # so that all columns and pairs are among the worst five
        parts = [table(seed, 150 + 50 * seed, missing)[:, three] for seed in range(3)]
        names, is_category = [NAMES[d] for d in three], [IS_CATEGORY[d] for d in three]
        draws, test, train = (pd.DataFrame(x, columns=names) for x in parts)
        expected = {}
        for group in groups:
            kinds = [is_category[d] for d in group]
            expected[tuple(names[d] for d in group)] = tuple(
                by_definition(x.iloc[:, [*group]], test.iloc[:, [*group]], kinds) for x in (draws, train)
            )
        found = sample_quality(*parts, names, is_category)
        assert distances(found).keys() == expected.keys()
        for named, both in distances(found).items():
            assert both == pytest.approx(expected[named], abs=1e-12), named
        means = 1 - np.array([*expected.values()]).reshape(2, 3, 2).mean(1)
        assert (found.column_shapes, found.column_shapes_of_train) == pytest.approx(means[0], abs=1e-12)
        assert (found.pair_trends, found.pair_trends_of_train) == pytest.approx(means[1], abs=1e-12)


def test_what_is_wrong_is_named_first_and_five_at_most():
    generator = np.random.default_rng(0)
    test, train, draws = generator.normal(size=(3, 500, 7))
    draws[:, 4] += 3
    draws[:, 2] += 1
    draws[:, 6] = draws[:, 1]  # column 6 looks right alone, and only its pair is wrong
    names = [f"c{d}" for d in range(7)]
    found = sample_quality(draws, test, train, names, [False] * 7)
    assert [one.names for one in found.worst_columns[:2]] == [("c4",), ("c2",)]
    assert found.worst_pairs[0].names == ("c1", "c6")
    for worst in (found.worst_columns, found.worst_pairs):
        assert len(worst) == 5
        assert [one.distance for one in worst] == sorted((one.distance for one in worst), reverse=True)
    assert found.column_shapes < found.column_shapes_of_train
    assert found.pair_trends < found.pair_trends_of_train


def test_missing_values_are_left_out_of_their_column_and_of_each_of_its_pairs():
    draws = columns([0, 1, 2, NAN, 9], [4, 2, 0, 9, NAN], [0, 0, 1, 1, 1])
    test = columns([0, 1, 2, NAN], [0, 1, 2, 9], [0, 0, 1, NAN])
    found = sample_quality(draws, test, test[::-1], ["age", "claim", "smoker"], [False, False, True])
    assert found.left_out is None
    assert distances(found) == {
        ("age",): (0.25, 0),  # 0 1 2 9 and 0 1 2
        ("claim",): (0.25, 0),  # 0 2 4 9 and 0 1 2 9
        ("smoker",): (pytest.approx(3 / 5 - 1 / 3), 0),
        ("age", "claim"): (pytest.approx(1), pytest.approx(0, abs=1e-15)),  # correlations -1 and 1 of three rows
        ("age", "smoker"): (pytest.approx(2 / 4 - 1 / 3), 0),  # four rows, two of them in the bin of 2, and three rows
        ("claim", "smoker"): (pytest.approx(1), 0),  # the bins are of width 0.9, and no row is in a bin of the others
    }


def test_a_column_without_values_is_left_out_and_named():
    test = columns([0, 1, 2], [0, 1, 0], [1, 0, 0])
    empty = test.copy()
    empty[:, 1] = NAN
    for parts in itertools.permutations([test, test, empty]):
        found = sample_quality(*parts, ["age", "a\nb", "smoker"], [False, False, True])
        assert found.left_out == "a\\nb"
        assert {*distances(found)} == {("age",), ("smoker",), ("age", "smoker")}
        assert (found.column_shapes, found.pair_trends_of_train) == (1, 1)
    assert sample_quality(test, test, test, ["a", "b", "c"], [False, False, True]).left_out is None


@pytest.mark.parametrize("constant", [2, 0.1])  # the mean of many 0.1 is not 0.1
def test_a_constant_column_has_correlation_0(constant):
    rising = np.arange(7)
    test, draws = columns(rising, rising), columns(rising, [constant] * 7)
    for x, of_test, train in ((draws, test, test), (test, draws, draws), (test[:1], test, test)):
        found = sample_quality(x, of_test, train, ["age", "claim"], [False, False])
        assert distances(found)["age", "claim"] == (pytest.approx(0.5), 0)


def test_what_does_not_fit_together_is_refused():
    x = np.zeros((4, 2))
    bad = [
        (x[:, :1], x, x, ["a", "b"], [False, True]),
        (x, x, x[:, 0], ["a", "b"], [False, True]),
        (x, x, x, ["a"], [False, True]),
        (x, x, x, ["a", "b"], [False]),
        (x[:0], x, x, ["a", "b"], [False, True]),
    ]
    for arguments in bad:
        with pytest.raises(InputError):
            sample_quality(*arguments)
