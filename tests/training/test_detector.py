"""`VAEOutlierDetector`: its marks, its false alarms, and scikit-learn's own checks of an outlier detector."""

from __future__ import annotations

import pickle
from unittest import SkipTest

import numpy as np
import pandas
import pytest
from sklearn.utils.estimator_checks import estimator_checks_generator

import pvae
from pvae.core.errors import InputError

pytestmark = pytest.mark.workflow
FAST = {"initialization": "torch", "prior": "standard-normal", "hidden": (8,), "passes": 1}


def table(count, seed=0):
    draw = np.random.default_rng(seed)
    z = draw.normal(size=count)
    columns = {"a": z + 0.1 * draw.normal(size=count), "b": np.exp(z).round(2) + 0.01, "c": draw.poisson(np.exp(z))}
    return pandas.DataFrame(columns)


def detector(alarm=0.1, **options):
    return pvae.VAEOutlierDetector(2, alarm=alarm, epochs=1, random_state=0, config=FAST, **options)


def test_rows_are_marked_by_their_p_values_and_alone():
    found = detector().fit(table(200))
    rows = table(60, seed=1)
    p_values, marks = found.p_values(rows), found.predict(rows)
    assert len(found.calibration_) == 39, "a fifth of 180 training rows; p-values are multiples of 1 / 40"
    assert np.array_equal(marks, np.where(p_values <= 0.1, -1, 1))
    assert np.array_equal(p_values, np.concatenate([found.p_values(rows[:7]), found.p_values(rows[7:])]))
    odd = rows.assign(b=1e6)
    assert (found.predict(odd) == -1).all()
    assert np.array_equal(pickle.loads(pickle.dumps(found)).predict(rows), marks)


def test_a_rate_that_cannot_be_reached_is_refused_and_one_that_can_holds_out_rows():
    for alarm in (0.0, 1.0, -1):
        with pytest.raises(InputError, match="alarm"):
            detector(alarm).fit(table(60))
    with pytest.raises(InputError, match=r"alarm=0\.036"):
        detector(0.01).fit(table(60))
    assert len(detector(0.05).fit(table(60)).calibration_) == 19


@pytest.mark.slow
def test_the_checks_of_scikit_learn():
    failed, names = {}, set()
    for one, check in estimator_checks_generator(detector(0.2)):
        names.add(check.func.__name__)
        try:
            check(one)
        except SkipTest:  # of SciPy's array API, unless it is on
            pass
        except Exception as error:  # of any type
            failed[check.func.__name__] = str(error)
    assert not failed
    assert {"check_outliers_train", "check_outliers_fit_predict"} <= names
