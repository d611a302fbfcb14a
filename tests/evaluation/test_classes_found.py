"""What is said of classes that few labels teach."""

from __future__ import annotations

import pytest

from pvae.evaluation.measures.labels import ClassesFound


def classes(num_found, num_tested, **options):
    from scipy.stats import beta

    least = beta.ppf(0.05, num_found, num_tested - num_found + 1)
    known = {"num_known": 100, "nearest": 0.5, "logistic": 0.4, "most_frequent": 0.5, **options}
    return ClassesFound(num_found=num_found, num_tested=num_tested, least=float(least), **known)


@pytest.mark.parametrize(
    ("found", "said", "is_warned"),
    [
        (classes(7, 7), "7 of 7, at least 65%: better than a nearest neighbour of the same 100 labels (50%)", False),
        (classes(510, 1000), "not shown to be better than naming the most frequent class (50%)", True),
        (classes(800, 1000, nearest=0.82), "worse than a nearest neighbour of the same 100 labels (82%)", True),
        (classes(800, 1000, logistic=0.9), "worse than a logistic regression of the same 100 labels (90%)", True),
        (classes(800, 1000, logistic=None, nearest=0.7), "better than a nearest neighbour", False),
    ],
)
def test_a_share_of_classes_is_said_beside_what_else_reaches_it(found, said, is_warned):
    assert said in found.verdict
    assert bool([*found.warnings()]) == is_warned
