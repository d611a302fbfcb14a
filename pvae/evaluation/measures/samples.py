"""Whether draws from a VAE are like the rows of a table: distances of columns, and of the association of two columns.

Rows are compared in the columns of the file, to which draws are brought by the rules of the table.

    column of numbers      max_t | F_draws(t) - F_test(t) |,  F the share of values that are at most t
    column of categories   (1/2) sum_k | P_draws(k) - P_test(k) |,  P the share of category k
    two columns of numbers       | r_draws - r_test | / 2,  r Pearson's correlation
    two columns, any categories  (1/2) sum_kl | P_draws(k, l) - P_test(k, l) |, numbers in 10 bins

Each is between 0 and 1, and 0 if the draws are the test rows. Two finite samples of one distribution differ by chance;
the distances of the training rows from the same test rows say by how much.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from torch import Tensor

from pvae.core.errors import InputError, one_line
from pvae.data.dataset import random_subset
from pvae.evaluation.context import Context, Measure, said
from pvae.tables.codec import to_file
from pvae.tables.rule import Array
from pvae.trained.latent_space import sample_rows

_Table: TypeAlias = Tensor | NDArray[Any]

_MOST_ROWS = 10_000  # that are drawn from the VAE, or taken of the training rows
_MOST_PAIRS = 1770  # of 60 columns


@dataclass(frozen=True, kw_only=True)
class NamedDistance:
    """The distance of a column, or of the association of two columns, from the test rows: 0 at best, 1 at worst.

    Args:
        names: of the column, or of both columns.
        distance: of the draws.
        distance_of_train: of the training rows.

    >>> print(NamedDistance(names=("claim",), distance=0.312, distance_of_train=0.041))
    claim 0.312 (training rows 0.041)
    """

    names: tuple[str, ...]
    distance: float
    distance_of_train: float

    def __str__(self) -> str:
        """Return the names and both distances, in one line."""
        names = " and ".join(map(one_line, self.names))
        return f"{names} {self.distance:.3f} (training rows {self.distance_of_train:.3f})"


@dataclass(frozen=True, kw_only=True)
class SampleQuality(Measure):
    """How close draws from a VAE are to the test rows, and how close the training rows are; see `sample_quality`.

    Args:
        num_draws: number of draws.
        column_shapes: 1 minus the distance of the draws, the mean over columns.
        column_shapes_of_train: the same of the training rows.
        pair_trends: 1 minus the difference of the association of two columns, the mean over pairs; None without a pair.
        pair_trends_of_train: the same of the training rows.
        left_out: names of the columns without a value in the draws, the test rows or the training rows; None if all
            columns have values.
        worst_columns: the columns with the largest distances of the draws, the largest first, at most five.
        worst_pairs: the same of pairs of columns.
    """

    title = "draws from the VAE beside the test rows"

    num_draws: int = said("draws from the VAE", "compared with the test rows")
    column_shapes: float = said("column shapes", "1 - distance of a column from test rows; 1 at best")
    column_shapes_of_train: float = said("  of the training rows", "what other rows of the data reach")
    pair_trends: float | None = said("pair trends", "1 - difference of the association of two columns", default=None)
    pair_trends_of_train: float | None = said(
        "  of the training rows", "what other rows of the data reach", default=None
    )
    left_out: str | None = said("  left out", "columns without a value", default=None)
    worst_columns: tuple[NamedDistance, ...] = said("  most distant columns")
    worst_pairs: tuple[NamedDistance, ...] = said("  most distant pairs")

    @classmethod
    def of(cls, context: Context) -> SampleQuality | None:
        """Return that of as many draws as there are training rows; None of other data than tables, or given labels."""
        rows = context.once(rows_of_file)
        if rows is None:
            return None
        config = context.run.config
        schema = context.run.data
        kinds = dict(zip([column.name for column in schema.columns], config.column_kinds))
        is_bits = config.likelihood_class.is_of_logits
        columns = schema.file_columns
        are_codes = [
            is_bits or bool(column.categories) or str(kinds.get(column.name)) == "binary" for column in columns
        ]
        test = to_file(schema, context.data.test)
        return sample_quality(rows[1], test, rows[0], [column.name for column in columns], are_codes)


def rows_of_file(context: Context) -> tuple[Array, Array] | None:
    """Return at most 10,000 random training rows, and as many draws, in the columns of the file: (N, D) each.

    None of other data than tables, or given labels.
    """
    run = context.run
    if not run.data.columns or run.config.takes_labels:
        return None
    train = context.data.train
    train = train[random_subset(len(train), _MOST_ROWS, seed=0)]
    with run.seeded():
        drawn = sample_rows(context.vae, run.data, len(train))
    return to_file(run.data, train).numpy(), to_file(run.data, drawn).numpy()


def sample_quality(
    draws: _Table, test: _Table, train: _Table, names: Sequence[str], is_category: Sequence[bool] | NDArray[np.bool_]
) -> SampleQuality:
    """Compare each column and each pair of columns of draws with test rows, and of training rows with the same rows.

        column shapes = mean over columns of 1 - distance
        pair trends   = mean over pairs of 1 - difference of association

    The distances are those of the module's docstring. The 10 bins have equal widths between the least and the greatest
    number of the test rows; the first and the last bin also hold the numbers beyond. The pairs are all pairs of at most
    60 columns; of more columns they are 1,770 random pairs, which depend on the number of columns alone.

    A missing value is left out of its column, and its row is left out of each pair with that column. A column without a
    value in one of the three tables is left out, and so is a pair without a complete row in one of them. A column that
    is constant in the rows of a table has correlation 0 with any other column there; so has a column of draws with
    infinite values.

    Both scores depend on the numbers of rows: small tables differ more by chance, most of all in pairs of many
    categories. So compare as many draws as there are training rows. The scores see at most two columns at a time, and
    of two columns of numbers only the linear relation. They do not see whether draws are copies of training rows.

    The distances are those of SDMetrics, with two exceptions: in a pair with a category SDMetrics counts a missing
    value as a category of its own, and it gives no score to a pair of numbers with a constant column. The pair trends
    of its `QualityReport` are others: it bins draws at edges of their own, and leaves out pairs whose correlation in
    the test rows is at most 0.5, or whose Cramer's V is at most 0.3.

    Args:
        draws: x drawn from a VAE, (M, D), NaN where a value is missing: numbers, and codes of categories. Round
            numbers as the rows are rounded, in the same precision: a frequent value that is missed counts as distant.
        test: x that the VAE was not trained on, (N, D), finite or NaN.
        train: x that it was trained on, (K, D), finite or NaN.
        names: the names of the D columns.
        is_category: for each column whether it is binary, categorical or ordinal.

    Returns:
        Scores and distances without a unit, between 0 and 1. Those of 60 columns and 5,000 rows take about a second.

    Raises:
        InputError: tables, names and `is_category` differ in the number of columns, or no column has a value in each of
            the tables.

    Reference:
        SDMetrics 0.32, github.com/sdv-dev/SDMetrics: a distance is 1 - `KSComplement`, 1 - `TVComplement`,
        1 - `CorrelationSimilarity`, or 1 - `ContingencySimilarity` with 10 bins of the `continuous_column_names`.
    """
    tables = [_columns_of(table) for table in (draws, test, train)]
    shapes = [table.T.shape for table in tables]
    if any(shape[1:] != (len(names),) for shape in shapes) or len(is_category) != len(names):
        raise InputError(f"tables of {shapes}, {len(names)} names and {len(is_category)} kinds: give D columns of each")
    codes = [np.empty_like(table) for table in tables]
    for d, is_code in enumerate(is_category):
        if is_code:
            edges = np.unique(np.concatenate([x[d] for x in tables]))
        else:
            test_values = tables[1][d]
            edges = np.histogram_bin_edges(test_values[~np.isnan(test_values)], 10)[1:-1]
        for x, code in zip(tables, codes):
            code[d] = np.where(np.isnan(x[d]), np.nan, np.searchsorted(edges, x[d], side="right"))
    distances: dict[int, list[NamedDistance]] = {1: [], 2: []}  # of columns, and of pairs
    for group in [*([d] for d in range(len(names))), *_pairs(len(names))]:
        distance = _distance
        rows = [table[group] for table in tables]
        if any(is_category[d] for d in group):
            distance = _distance_of_codes
            rows = [table[group] for table in codes]
        rows = [part.compress(~np.isnan(part).any(0), axis=1) for part in rows]
        if all(part.size for part in rows):
            named = NamedDistance(
                names=tuple(names[d] for d in group),
                distance=distance(rows[0], rows[1]),
                distance_of_train=distance(rows[2], rows[1]),
            )
            distances[len(group)].append(named)
    if not distances[1]:
        raise InputError("no column has a value in the draws, in the test rows and in the training rows")
    scores = dict[str, Any]()
    for name, count in (("column_shapes", 1), ("pair_trends", 2)):
        distances[count].sort(key=lambda named: -named.distance)
        if distances[count]:
            scores[name] = 1 - fmean(named.distance for named in distances[count])
            scores[f"{name}_of_train"] = 1 - fmean(named.distance_of_train for named in distances[count])
    kept = [named.names for named in distances[1]]
    return SampleQuality(
        num_draws=tables[0].shape[1],
        left_out=", ".join(one_line(name) for name in names if (name,) not in kept) or None,
        worst_columns=tuple(distances[1][:5]),
        worst_pairs=tuple(distances[2][:5]),
        **scores,
    )


def _columns_of(table: _Table) -> NDArray[np.float64]:
    """Return the columns of a table, (D, N), the values of each next to each other in memory."""
    if isinstance(table, Tensor):
        table = table.double().numpy(force=True)
    return np.asarray(table, np.float64).T.copy()


def _distance(x: NDArray[np.float64], test: NDArray[np.float64]) -> float:
    """Return the distance of complete numbers, (1, M), from test rows, (1, N); of two columns, of their association."""
    if len(x) == 2:
        return abs(_correlation(x) - _correlation(test)) / 2
    from scipy import stats  # slow to import

    return float(stats.ks_2samp(x[0], test[0], method="asymp").statistic)  # an exact p-value would take seconds


def _distance_of_codes(x: NDArray[np.float64], test: NDArray[np.float64]) -> float:
    """Return the same of codes of categories or of bins, from the shares of their cells."""
    codes = np.concatenate([x, test], axis=1).astype(np.int64)
    cells, _ = pd.factorize(codes[0] * (codes[-1].max() + 1) + codes[-1])
    num_cells = cells.max() + 1
    shares = np.bincount(cells[: x.shape[1]], minlength=num_cells) / x.shape[1]
    of_test = np.bincount(cells[x.shape[1] :], minlength=num_cells) / test.shape[1]
    return min(1.0, float(np.abs(shares - of_test).sum() / 2))


def _correlation(x: NDArray[np.float64]) -> float:
    """Return Pearson's correlation of two columns, (2, M), or 0 where it is not defined."""
    if (x.min(1) == x.max(1)).any() or np.isinf(x).any():  # of a constant, rounding may leave a variance
        return 0.0
    return float(np.corrcoef(*x)[0, 1])


def _pairs(count: int) -> list[list[int]]:
    """Return all pairs i < j of at most 60 columns, and 1,770 random ones of more."""
    total = math.comb(count, 2)
    pairs = list[list[int]]()
    for place in sorted(random.Random(count).sample(range(total), min(total, _MOST_PAIRS))):
        j = (1 + math.isqrt(1 + 8 * place)) // 2
        pairs.append([place - math.comb(j, 2), j])
    return pairs
