"""An alarm whose false alarms are known: how odd a row is by three scores, and its conformal p-value."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from pvae.core.errors import InputError
from pvae.data.dataset import random_subset
from pvae.data.read import OtherData
from pvae.models.start import quietly
from pvae.runs.run import Run
from pvae.trained.codes import given_y
from pvae.trained.scores import score_rows

if TYPE_CHECKING:
    import pandas

__all__ = ["Alarm", "Sides", "alarm_of", "benjamini_hochberg", "conformal_p_values", "held_out_rows", "least_rows"]

Array = NDArray[np.float64]

SIGNS = ("log_p", "distortion", "rate")  # of a row, nats each
_TAIL = 0.1  # the share of the reference rows beyond a distance of 1, on each side
_KEPT = 0.75  # of the reference rows, to which a robust covariance is fitted first
_ENOUGH_TO_FIT = 20  # rows for a covariance
_NOISE = 0.1  # standard deviation, for distances whose covariance may be singular: log p is nearly -(distortion + rate)
_LEAST_SPREAD = 0.01  # nats, below which a distance from the median says nothing
_MOST = 1000  # reference rows, and calibration rows unless the rate asks for more
_COMPARED = 20  # calibration rows; if they differ, and all are training rows, the run was trained on all rows
_ENOUGH = 10  # expected false alarms among the calibration rows, above which no more are scored


def conformal_p_values(calibration: ArrayLike, values: ArrayLike) -> Array:
    """Return the conformal p-value of each value: the rank of its oddness among those of held-out rows.

        p = (1 + number of calibration rows with c_i >= v) / (1 + n)

    If a row and the n calibration rows are exchangeable, P(p <= alpha) <= alpha for every alpha, whatever the oddness
    is worth; it is floor(alpha (n + 1)) / (n + 1) without ties. The oddness has to be a fixed function of a row: rows
    that trained a model, or chose it, are no calibration rows. It is a probability over calibration rows too: given
    these, the share of false alarms varies by about sqrt(alpha (1 - alpha) / n).

    Args:
        calibration: the oddness of n held-out rows, higher is odder.
        values: the oddness of other rows, any shape.

    Returns:
        p-values between 1 / (n + 1) and 1; NaN of a value that is NaN.

    Raises:
        InputError: a calibration value is NaN, or there is none.

    Reference:
        Bates et al., arXiv:2104.08279: the marginal conformal p-value, with a score that is higher for odder rows;
        proposition 1 (the share of false alarms, given the calibration rows).
    """
    held_out, values = np.sort(np.ravel(calibration)), np.asarray(values, dtype=np.float64)
    if not len(held_out) or np.isnan(held_out).any():
        raise InputError("calibration must be one or more values, and none of them NaN")
    num_odder = len(held_out) - np.searchsorted(held_out, values, "left")
    return np.where(np.isnan(values), np.nan, (1 + num_odder) / (1 + len(held_out)))


def benjamini_hochberg(p_values: ArrayLike, rate: float) -> NDArray[np.bool_]:
    """Return which p-values are discoveries, of which a share of at most `rate` is false in the mean.

        all p <= p_(k),     k the largest number for which the k-th smallest p_(k) <= rate k / m

    It holds for independent p-values, and for those of `conformal_p_values`, which share their calibration rows.

    Args:
        p_values: (m,); NaN is none, and does not count.
        rate: the false discovery rate.

    Reference:
        Benjamini and Hochberg, J. R. Stat. Soc. B 57, 1995; Bates et al., arXiv:2104.08279, theorem 2 and corollary 1.
    """
    p_values = np.asarray(p_values, dtype=np.float64)
    ordered = np.sort(p_values[~np.isnan(p_values)])
    passing = ordered[ordered <= rate * np.arange(1, len(ordered) + 1) / len(ordered)]
    return p_values <= max(passing, default=-math.inf)


def least_rows(rate: float) -> int:
    """Return the least number n of calibration rows for a p-value as low as a rate: 1 / (n + 1) <= rate."""
    return math.ceil(1 / rate - 1e-9) - 1


class Sides(NamedTuple):
    """How odd a row is by log p(x), distortion and rate together, from both sides.

        d_s(x) = (s(x) - median) / spread on that side;     oddness^2 = (d - m)^T C^-1 (d - m)

    The spread is the distance from the median to the first or the ninth tenth, so that a tenth of the reference rows
    lie beyond 1 on each side. m and C are the robust mean and covariance of d, to which noise of standard deviation 0.1
    is added: those of the rows that are not far from a first fit to three quarters of them. Anomalies among the
    reference rows hardly change them, as long as they are less than a tenth. A row may be odd by values that do not
    occur together, as a low distortion and a high rate. Of fewer than 20 reference rows m is 0 and C is I.

    Args:
        median: of the reference rows, (3,) nats.
        below: the spread below it.
        above: the spread above it.
        centre: m, (3,).
        precision: C^-1, (3, 3).

    Reference:
        Rousseeuw and Van Driessen, "A fast algorithm for the minimum covariance determinant estimator",
        Technometrics 41, 1999.
    """

    median: Array
    below: Array
    above: Array
    centre: Array
    precision: Array

    @classmethod
    def of(cls, signs: Array) -> Sides:
        """Return those of reference rows, (N, 3): log p(x), distortion and rate of each; finite ones count."""
        from sklearn.covariance import MinCovDet

        signs = signs[np.isfinite(signs).all(1)]
        low, median, high = np.quantile(signs, [_TAIL, 0.5, 1 - _TAIL], axis=0)
        spreads = np.maximum(median - low, _LEAST_SPREAD), np.maximum(high - median, _LEAST_SPREAD)
        sides = cls(median, *spreads, np.zeros(3), np.eye(3))
        if len(signs) < _ENOUGH_TO_FIT:
            return sides
        noise = _NOISE * np.random.default_rng(0).normal(size=signs.shape)
        with quietly():
            fit = MinCovDet(support_fraction=_KEPT, random_state=0).fit(sides.distances(signs) + noise)
        return sides._replace(centre=fit.location_, precision=fit.precision_)

    def distances(self, signs: Array) -> Array:
        """Return the signed distances d of rows (N, 3) on both sides, (N, 3)."""
        difference = signs - self.median
        return difference / np.where(difference > 0, self.above, self.below)

    def oddness(self, signs: Array) -> Array:
        """Return how odd rows are, (N,): inf where one of the three is; NaN where none of them is known."""
        d = np.where(np.isfinite(signs), self.distances(signs) - self.centre, 0.0)
        found: Array = np.sqrt(np.einsum("ni, ij, nj -> n", d, self.precision, d))
        found[np.isnan(signs).all(axis=1)] = math.nan
        found[np.isinf(signs).any(axis=1)] = math.inf
        return found

    def says(self, signs: Array) -> list[str]:
        """Return for each row by what it is odd, such as "high rate"."""
        distances = np.nan_to_num(self.distances(signs))
        texts = []
        for row, place in zip(distances, np.abs(distances).argmax(1)):
            side = "high" if row[place] > 0 else "low"
            texts.append(f"{side} {SIGNS[place]}".replace("_", " "))
        return texts


class Alarm(NamedTuple):
    """What marks odd rows for a run.

    Args:
        sides: how odd a row is, by training rows.
        split: which rows calibrate, "calibration" or "test".
        calibration: how odd each of them is, (n,).
    """

    sides: Sides
    split: str
    calibration: Array

    def mark(self, scores: pandas.DataFrame, rate: float, is_fdr: bool = False) -> NDArray[np.int64]:
        """Add columns to scores, and return the numbers of the rows, the oddest first.

        A row whose log p is -inf is as odd as can be, and one whose log p is NaN has no p-value.

        Args:
            scores: as of `pvae.trained.scores.score_rows`; it gets the columns
                p_value: `conformal_p_values`;
                is_odd: whether the row is marked;
                odd_by: of a marked row, which of the three is the farthest out by itself, such as "high rate".
            rate: of false alarms.
            is_fdr: `rate` is the share of false ones among those that are marked, as in `benjamini_hochberg`.
        """
        signs = scores[[*SIGNS]].to_numpy(dtype=np.float64)
        oddness = self.sides.oddness(signs)
        scores["p_value"] = p_values = conformal_p_values(self.calibration, oddness)
        scores["is_odd"] = p_values <= rate
        if is_fdr:
            scores["is_odd"] = benjamini_hochberg(p_values, rate)
        scores["odd_by"] = np.where(scores["is_odd"], self.sides.says(signs), "")
        return (-oddness).argsort(kind="stable")

    def lines(self, scores: pandas.DataFrame, rate: float, is_fdr: bool, is_own: bool) -> Iterator[str]:
        """Yield what a person has to know of marked scores.

        Args:
            scores: after `mark`.
            rate: of false alarms, as for `mark`, as is `is_fdr`.
            is_fdr: it is that among the marked.
            is_own: the rows are those of the run's own data.
        """
        num_rows, num_held_out = len(scores), len(self.calibration)
        spread = math.sqrt(rate * (1 - rate) * num_rows * (1 + num_rows / num_held_out))
        meaning = f"p_value at most {rate:g}; if no row is odd, {rate * num_rows:,.1f} +- {spread:,.1f} are expected"
        if is_fdr:
            meaning = f"in the mean at most {rate:.1%} of them are false"
        num_marked = int(scores["is_odd"].sum())
        yield f"marked as odd: {num_marked:,} of {num_rows:,} rows; {meaning}"
        least = math.ceil(num_rows / (rate * (1 + num_held_out)) - 1e-9)
        if is_fdr and not num_marked:
            yield f"--fdr marks rows if about {least:,} or more are odder than all {num_held_out:,} held-out rows"
        rows = f"{num_held_out:,} {self.split} data, which neither trained nor chose anything"
        yield f"p_value: (1 + number of rows at least as odd) / (1 + {num_held_out:,}), among {rows}"
        if is_own:
            yield (
                "these rows are of the data of this run: a p_value is the rank among rows like these, so anomalies "
                "that are alike, and also among the held-out data, are not marked"
            )


def held_out_rows(run: Run, rate: float) -> dict[str, Tensor]:
    """Return which rows an alarm needs, by their split: training rows for `Sides`, and then those that calibrate.

    The latter are of the calibration split, or of the test split if that has too few: at most 1,000, or 10 / rate if
    that is more.

    Raises:
        InputError: the rate is not between 0 and 1, or no p-value can be as low; the run was trained on all rows; or
            its data cannot be found.
    """
    if not 0 < rate < 1:
        raise InputError(f"--alarm {rate:g} must be above 0 and below 1: give a rate of false alarms such as 0.01")
    splits = run.dataset().splits
    split = "calibration"
    if len(splits.get(split, ())) < least_rows(rate) and len(splits.get(split, ())) < len(splits["test"]):
        split = "test"
    x = splits[split]
    few = x[:_COMPARED].nan_to_num()
    others = torch.cat([other for name, other in splits.items() if name != split]).nan_to_num()
    is_known = [bool((others == row).flatten(1).all(1).any()) for row in few]
    if split == "test" and all(is_known) and len(few.unique(dim=0)) == len(few):
        raise InputError(f"{run.name} was trained on all rows, and --alarm needs others: train with --calibration 0.1")
    if len(x) < least_rows(rate):
        smallest = math.ceil(1e6 / (len(x) + 1)) / 1e6
        raise InputError(
            f"--alarm {rate:g} needs at least {least_rows(rate):,} rows that neither trained {run.name} nor chose "
            f"anything, and there are {len(x):,} {split} data: give --alarm {smallest:g} or more, or train with more "
            "rows or a larger --calibration"
        )
    most = max(_MOST, math.ceil(_ENOUGH / rate))
    return {"train": random_subset(len(splits["train"]), _MOST, 0), split: random_subset(len(x), most, 0)}


def alarm_of(run: Run, rows: Mapping[str, Tensor], *how: Any) -> Alarm:
    """Return the alarm of a run, from rows that are scored as those that it will judge.

    Args:
        run: the run.
        rows: as `held_out_rows` returns them.
        how: the number of particles and `progress` of `score_images`.
    """
    signs = []
    for split, chosen in rows.items():
        x = run.dataset().splits[split]
        drawn_as = "calibration" if split == "test" else split  # binary pixels are not drawn as those of other rows
        y = given_y(run, split)
        scores, _ = score_rows(run, OtherData([split] * len(x), x, y=y), chosen, drawn_as, *how)
        signs.append(scores[[*SIGNS]].to_numpy(dtype=np.float64))
    sides = Sides.of(signs[0])
    split = [*rows][-1]
    num_impossible = len(run.dataset().impossible.get(split, ()))  # rows that break a rule are as odd as can be
    return Alarm(sides, split, np.append(sides.oddness(signs[1]), np.full(num_impossible, math.inf)))
