"""`VAEEstimator` beside the run that it trains, and scikit-learn's own checks of an estimator."""

from __future__ import annotations

import pickle
from unittest import SkipTest

import numpy as np
import pandas
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.utils.estimator_checks import estimator_checks_generator

import pvae
from pvae.core.errors import InputError
from pvae.trained import latent_space

pytestmark = pytest.mark.workflow
FAST = {"initialization": "torch", "prior": "standard-normal", "hidden": (8,), "passes": 1}


def table(count=60):
    """Return rows of all kinds; the size goes with the price, and a twentieth of the prices is missing."""
    rng = np.random.default_rng(0)
    price = rng.lognormal(3, 1, count).round(2)
    columns = {
        "price": np.where(rng.random(count) < 0.05, np.nan, price),
        "size": pandas.Categorical(np.where(price > 20, "large", "small")),
        "shop": "north",
        "day": pandas.Timestamp("2024-03-01") + pandas.to_timedelta(rng.integers(0, 90, count), "D"),
        "paid": price > rng.lognormal(3, 1, count),
        "items": rng.poisson(3, count),
    }
    return pandas.DataFrame(columns)


@pytest.fixture(scope="module")
def fitted():
    return pvae.VAEEstimator(2, epochs=2, random_state=0, config=FAST).fit(table())


def test_rows_come_back_in_the_columns_and_types_of_the_table(fitted):
    frame = table()
    codes = fitted.transform(frame)
    assert codes.shape == (60, 2)
    for rows in (fitted.inverse_transform(codes), fitted.sample(60)):
        assert [*rows] == [*frame]
        assert set(rows["size"]) <= {"large", "small"}
        assert (rows["shop"] == "north").all()
        assert rows["price"].min() > 0
        assert rows.dtypes[["size", "shop", "day", "paid"]].equals(frame.dtypes[["size", "shop", "day", "paid"]])
    drawn = fitted.sample(60)
    assert drawn["price"].equals(drawn["price"].round(2)), "with the decimals of the table"
    assert drawn.equals(fitted.sample(60)), "of the same random state"


def test_what_is_missing_is_imputed_and_the_rest_is_kept(fitted):
    frame = table()
    filled = fitted.impute(frame)
    is_missing = frame["price"].isna()
    assert is_missing.any()
    assert filled["price"].notna().all()
    assert filled[~is_missing].equals(frame[~is_missing])


def test_what_is_imputed_stands_in_the_rows_and_columns_of_the_table(fitted):
    frame = table()
    turned = frame.assign(shop=None).sample(30, random_state=0)[frame.columns[::-1]].set_index(np.arange(30) % 7)
    filled = fitted.impute(turned)
    assert [*filled] == [*turned]
    assert filled.index.equals(turned.index)
    assert (filled["shop"] == "north").all()
    others = ["size", "day", "paid", "items"]
    assert filled[others].equals(turned[others])
    is_given = turned["price"].notna().to_numpy()
    assert filled["price"][is_given].equals(turned["price"][is_given])
    assert filled["price"].notna().all()


def test_log_p_of_a_row_does_not_depend_on_its_neighbours():
    """Of three latents, which are drawn; the second of the two rows is the third row of its own."""
    frame = table()
    found = pvae.VAEEstimator(3, epochs=1, random_state=0, config=FAST).fit(frame)
    log_p = found.score_samples(frame)
    assert {*found.log_likelihood(frame[:3]).counts} == {"importance"}
    assert np.array_equal(found.score_samples(frame[::-1])[::-1], log_p)
    assert np.array_equal(found.score_samples(frame[7:8]), log_p[7:8])
    how = found.log_likelihood(frame, num_particles=1600)
    assert np.all(np.abs(log_p - how.log_p.numpy()) < 8 * how.stderr.numpy() + 1e-3), "of other draws"


def test_differences_of_times_are_days_and_levels_of_a_category_are_known_without_a_row():
    rng = np.random.default_rng(0)
    kinds = pandas.CategoricalDtype(["short", "long", "endless"])
    frame = pandas.DataFrame({"stay": pandas.to_timedelta(rng.integers(1, 40, 60), "D")})
    frame["kind"] = pandas.Series(rng.choice(["short", "long"], 60)).astype(kinds)
    frame["constant"] = pandas.Series(["short"] * 60).astype(kinds)
    found = pvae.VAEEstimator(1, epochs=1, random_state=0, config=FAST).fit(frame)
    rows = found.sample(50)
    assert rows.dtypes.equals(frame.dtypes)
    assert (rows["stay"] % pandas.Timedelta(days=1) == pandas.Timedelta(0)).all()
    assert rows["stay"].between(frame["stay"].min(), frame["stay"].max()).all()
    for name in ("kind", "constant"):
        others = frame.assign(**{name: pandas.Series(["endless"] * 60).astype(kinds)})
        assert np.isfinite(found.score_samples(others)).all()


def test_rules_are_found_unless_they_are_turned_off():
    frame = table().assign(left=lambda one: 40 - one["items"])
    assert any({rule.column, *rule.of} == {"items", "left"} for rule in pvae.read(frame).rules)
    found = pvae.VAEEstimator(1, epochs=1, random_state=0, config={**FAST, "rules": "none"}).fit(frame)
    assert not found.schema_.rules
    assert found.config_.rules == "none"
    with pytest.raises(InputError, match="rules"):
        pvae.VAEEstimator(config={"rules": "some"}).fit(frame)


def test_rows_that_break_a_rule_are_encoded_with_a_warning_and_score_minus_infinity():
    rng = np.random.default_rng(0)
    year = rng.choice([2007, 2008, 2009], 300)
    frame = pandas.DataFrame({"year": year, "a": rng.normal(50, 9, 300).round(), "b": rng.normal(20, 4, 300).round()})
    frame["sum"] = frame["a"] + frame["b"]
    found = pvae.VAEEstimator(1, epochs=1, random_state=0, config=FAST).fit(frame)
    new = frame.assign(year=2010).iloc[:5]
    with pytest.warns(UserWarning, match="5 rows break a rule.*year is 2010"):
        codes = found.transform(new)
    assert np.isfinite(codes).all()
    assert np.isneginf(found.score_samples(new)).all()
    assert np.isneginf(found.score_samples(frame.assign(sum=0).iloc[:2])).all()
    assert np.isfinite(found.score_samples(frame)).all()


def test_columns_in_another_order_are_put_right_and_others_are_refused(fitted):
    frame = table()
    turned = frame[frame.columns[::-1]]
    assert np.array_equal(fitted.transform(turned), fitted.transform(frame))
    for wrong, names in (
        (frame.drop(columns="price"), "price"),
        (frame.assign(colour=1), "colour"),
        (frame.astype({"size": str}).replace({"size": {"large": "huge"}}), "huge"),
        (frame.assign(items=1.5), "items"),
        (frame.assign(shop="south"), "shop is 'south'"),
        (frame.assign(price=-1.0), "price"),
    ):
        with pytest.raises(ValueError, match=names):
            fitted.transform(wrong)
    for wrong, says in ((pandas.concat([frame, frame[["price"]]], axis=1), "named price"), (frame[[]], "feature")):
        with pytest.raises(InputError, match=says):
            pvae.VAEEstimator().fit(wrong)
    with pytest.raises(NotFittedError):
        pvae.VAEEstimator().transform(frame)
    with pytest.raises(InputError, match="shape"):
        fitted.inverse_transform(np.zeros((3, 5)))


def test_a_row_that_cannot_be_in_the_table_scores_minus_infinity(fitted):
    frame = table().astype({"size": str, "items": float})
    scores = fitted.score_samples(frame)
    frame.loc[[3, 40], "size"] = "huge"
    frame.loc[7, "items"] = 1.5
    frame.loc[9, "price"] = -1.0
    found = fitted.score_samples(frame)
    assert np.flatnonzero(np.isneginf(found)).tolist() == [3, 7, 9, 40]
    inside = np.isfinite(found)
    assert np.allclose(found[inside], np.delete(scores, [3, 7, 9, 40]), atol=1e-3)
    with pytest.warns(UserWarning, match="huge"):
        assert fitted.score(frame) == pytest.approx(found[inside].mean(), abs=1e-9)
    with pytest.raises(InputError, match="huge"):
        fitted.score(frame[~inside])


@pytest.mark.parametrize("number", [0, 2.5, {"large": 2}])
def test_a_number_of_rows_that_cannot_be_drawn_is_refused(fitted, number):
    with pytest.raises(InputError, match="n_samples"):
        fitted.sample(number)


def test_it_is_the_run_that_fit_trains(tmp_path, no_pictures):
    frame = table()
    found = pvae.VAEEstimator(2, epochs=2, random_state=0, config=FAST, out=tmp_path / "run").fit(frame)
    run = pvae.Run.open(tmp_path / "run")
    batch = found._batch_of(found._inside(frame))
    assert np.array_equal(latent_space.encode(run.vae(), batch).double(), found.transform(frame))
    log_p = found.log_likelihood(frame)
    assert found.score_samples(frame) == pytest.approx(log_p.log_p.numpy(), abs=0.05)  # by draws, and not by quadrature
    assert found.score(frame) == pytest.approx(log_p.log_p.mean().item(), abs=0.01)
    assert {*log_p.counts} == {"quadrature"}
    assert run.config.columns == "positive,categorical:2,real,binary,count,binary", "and whether there is a price"


def test_rows_are_drawn_and_filled_given_their_class():
    rng = np.random.default_rng(0)
    kind = rng.choice([1, 2], 200, p=[0.2, 0.8])
    frame = pandas.DataFrame({"a": rng.normal(size=200) + 6 * kind, "kind": kind, "b": rng.normal(size=200)})
    frame.loc[:20, "a"] = np.nan
    found = pvae.VAEEstimator(1, condition="kind", epochs=30, random_state=0, config=FAST | {"lr": 1e-2}).fit(frame)
    assert found.classes_ == ("1", "2")
    assert found.transform(frame).shape == (200, 1)
    rows = found.sample(1000)
    assert [*rows] == ["a", "kind", "b"]
    assert 0.1 < (rows["kind"] == 1).mean() < 0.3
    means, filled = rows.groupby("kind")["a"].mean(), found.impute(frame)[:21].groupby("kind")["a"].mean()
    assert np.allclose(means, [6, 12], atol=1)
    assert np.allclose(filled, [6, 12], atol=1)
    assert pickle.loads(pickle.dumps(found)).sample(5).equals(found.sample(5))
    with pytest.raises(InputError, match="kind is"):
        found.score(frame.assign(kind=3))
    assert (found.sample(20, condition=1)["kind"] == 1).all()
    with pytest.raises(InputError, match="not one of"):
        found.sample(5, condition=7)
    with pytest.raises(InputError, match="codes have no kind"):
        found.inverse_transform(np.zeros((1, 1)))
    with pytest.raises(InputError, match="condition"):
        pvae.VAEEstimator(condition="sort").fit(frame)


def test_a_pickle_holds_weights_and_no_modules(fitted):
    stored = pickle.dumps(fitted)
    assert b"torch.nn" not in stored
    again, frame = pickle.loads(stored), table()
    assert np.array_equal(again.transform(frame), fitted.transform(frame))
    assert again.sample(5).equals(fitted.sample(5))
    assert clone(fitted).get_params() == fitted.get_params()


@pytest.mark.slow
@pytest.mark.parametrize("latent_dim", [2, None])
def test_the_checks_of_scikit_learn(latent_dim):
    failed = {}
    estimator = pvae.VAEEstimator(latent_dim, epochs=1, random_state=0, config=FAST)
    for one, check in estimator_checks_generator(estimator):
        name = check.func.__name__
        try:
            check(one)
        except SkipTest:  # of SciPy's array API, unless it is on
            pass
        except Exception as error:  # of any type
            failed[name] = str(error)
    assert not failed
