"""What a default training of a table learns, beside scikit-learn's densities, TVAE, CTGAN and a Gaussian copula.

    pip install -e ".[bench]"
    python tests/benchmarks/tables.py FILE.csv ... [--rivals tvae,ctgan,copula] [--seconds]

All sides are fitted to the training rows of this package's own split; validation rows choose epochs, kinds and sizes.

- "ELBO": `python -m pvae.train --dataset table:FILE`, nats per test row, +- its standard error over test rows.
- "linear": log p(x) of the test rows by factor analysis or a Normal with a full covariance matrix (Ledoit-Wolf);
  "mixture": by a `GaussianMixture`. Both are standardised by the training rows, and scored in the units of the table.
  They are densities: they need numbers without missing values, and gain without end where a value occurs often, while
  here such a value has the probability of its step at most. All three are of the columns that the rules have left.
- "shapes / trends": SDMetrics' Column Shapes and Column Pair Trends of as many synthetic rows as the table has (10,000
  at most), against the rows of all splits; 1 is best. Texts and columns of 0 and 1 are discrete. Numbers of all sides
  are rounded as `Column.rounded` says, which keeps them on the steps of the file. The rivals are fitted to the columns
  of the file; of one with empty fields, whether a field is empty is a column of 0 and 1 beside it.
- "rows that keep the rules": the share of these rows in which `pvae.tables.codec.from_file` finds no broken rule, of
  those that `pvae.read(FILE)` finds; the rivals are not told them.
- `--seconds`: of the whole command here, its start and its figures included; of the other sides, of fitting in this
  process (all kinds and sizes), without imports and sampling.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pandas import DataFrame
from torch import Tensor

from pvae.cli.command import run_command
from pvae.config.choices import load_for, values_config
from pvae.config.config import Config
from pvae.core.errors import InputError
from pvae.data.dataset import Dataset
from pvae.data.read import read_other
from pvae.runs.run import Run
from pvae.tables.codec import from_file

PACKAGES = {"tvae": "ctgan", "ctgan": "ctgan", "copula": "copulas"}  # of each rival
_MOST_SAMPLES = 10_000  # of one call of `pvae sample`
_SIZES = range(1, 17)  # of a mixture, and numbers of factors
_COLUMNS = ("table", "rows x columns", "ELBO", "linear", "mixture", "ELBO - mixture")


def main() -> None:
    """Print a row for each table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE.csv")
    parser.add_argument("--rivals", default=",".join(PACKAGES), help='of the synthetic rows, or "" (default: all)')
    parser.add_argument("--seconds", action="store_true", help="print the seconds of each side too")
    arguments = parser.parse_args()
    sys.exit(run_command("tables.py", lambda: _run(arguments)))


def _run(arguments: argparse.Namespace) -> None:
    rivals = [name for name in arguments.rivals.split(",") if name]
    if unknown := {*rivals} - {*PACKAGES}:
        raise InputError(f"--rivals {','.join(sorted(unknown))}: there are {', '.join(PACKAGES)}")
    needed = ["sdmetrics", *(PACKAGES[name] for name in rivals)]
    absent = {package for package in needed if not importlib.util.find_spec(package)}
    if absent:
        print(f"absent: {', '.join(sorted(absent))}, which pip install -e '.[bench]' installs", file=sys.stderr)
    if "sdmetrics" in absent:
        absent.update(PACKAGES.values())  # their rows could not be scored
    columns = [*_COLUMNS, *(f"{name}, shapes / trends" for name in ("pvae", *PACKAGES))]
    columns.append(f"rows that keep the rules: pvae / {' / '.join(PACKAGES)}")
    if arguments.seconds:
        columns.append(f"s: pvae, linear, mixture, {', '.join(PACKAGES)}")
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}", flush=True)
    rivals = [name for name in rivals if PACKAGES[name] not in absent]
    for file in arguments.files:
        try:
            cells = row_of(file, rivals, "sdmetrics" not in absent)
        except InputError as error:  # a table that is refused keeps no other from its row
            cells = [file.stem, f"refused: {error}", *(len(columns) - 2) * ["-"]]
        print(f"| {' | '.join(cells[: len(columns)])} |", flush=True)


def row_of(file: Path, rivals: Sequence[str], scores: bool) -> list[str]:
    """Return the cells of a table's row, "-" for what does not apply; the last are the seconds.

    Args:
        file: the table.
        rivals: whose synthetic rows are scored, names of `PACKAGES`.
        scores: whether SDMetrics scores synthetic rows.
    """
    config = Config(dataset=f"table:{file}")
    data = load_for(config, None, True)
    data = data.with_valid(values_config(data, dataset=config.dataset).valid)
    rows = torch.cat([*data.splits.values()])
    count = min(len(rows), _MOST_SAMPLES)
    plain = load_for(config.replace(rules="none"), None, True)  # the same rows, in the columns of the file
    plain = plain.with_valid(values_config(data, dataset=config.dataset).valid)
    linear = mixture = math.nan
    times = (3 + len(PACKAGES)) * [math.nan]
    elbo, stderr, synthetic, times[0] = ours(data, plain, count)
    if not data.has_missing and not any(column.categories for column in data.columns):
        (linear, times[1]), (mixture, times[2]) = densities(data)
    drawn = {"pvae": synthetic}
    for place, name in enumerate(PACKAGES, start=3):
        if name in rivals:
            try:
                drawn[name], times[place] = rival(plain, name, count)
            except Exception as error:  # a rival may fail on a table in any way
                print(f"{name} failed on {file}: {error!r}", file=sys.stderr, flush=True)
    shapes, kept = [], []
    for name in ("pvae", *PACKAGES):
        rows_of = drawn.get(name)
        is_scored = rows_of is not None
        shapes.append(score(plain, rows_of) if scores and is_scored else "-")
        kept.append(share_kept(data, rows_of) if is_scored else math.nan)
    said = " / ".join(_number(one, 4) for one in kept)
    bound = "-" if math.isnan(elbo) else f"{elbo:.2f} +- {stderr:.2f}"
    nats = [bound, *(_number(one, 2) for one in (linear, mixture, elbo - mixture))]
    seconds = " / ".join(_number(one, 1) for one in times)
    return [file.stem, f"{len(rows):,} x {len(plain.columns)}", *nats, *shapes, said, seconds]


def _number(value: float, decimals: int) -> str:
    return "-" if math.isnan(value) else f"{value:.{decimals}f}"


def share_kept(data: Dataset, rows: Tensor) -> float:
    """Return the share of rows, in the columns of the file, that keep rules and levels of a table; NaN without any."""
    if not data.steps:
        return math.nan
    return 1 - len(from_file(data, rows.numpy())[1]) / len(rows)


def ours(data: Dataset, plain: Dataset, count: int) -> tuple[float, float, Tensor | None, float]:
    """Train by the command, and return the test ELBO, its standard error, `count` synthetic rows, and the seconds.

    The rows are in the columns of the file, as `plain` has them.
    If a command fails, its message is printed, and what it would have given is NaN or None.
    """
    with tempfile.TemporaryDirectory() as folder:
        out, samples = Path(folder, "run"), Path(folder, "samples.csv")
        started = time.perf_counter()
        is_trained = _succeeds(["pvae.train", "--dataset", data.dataset, "--quiet", "--out", str(out)])
        seconds = time.perf_counter() - started
        if not is_trained:
            return math.nan, math.nan, None, seconds
        run = Run.open(out)
        if run.data.sha256 != data.record().sha256:
            raise InputError(f"{data.name}: the training took another split than this benchmark")
        row = run.test_metrics()
        has_samples = _succeeds(["pvae", "sample", str(out), "-n", str(count), "--out", str(samples)])
        synthetic = read_other(plain.record(), samples).data if has_samples else None
        return row.elbo, row.elbo_stderr, synthetic, seconds


def _succeeds(command: list[str]) -> bool:
    done = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True)
    if done.returncode:
        print(f"{' '.join(command)} failed: {done.stderr.strip()[-500:]}", file=sys.stderr, flush=True)
    return done.returncode == 0


def densities(data: Dataset) -> list[tuple[float, float]]:
    """Return nats per test row, and the seconds of fitting, of the best linear model and of the best mixture."""
    from sklearn.covariance import LedoitWolf
    from sklearn.decomposition import FactorAnalysis
    from sklearn.mixture import GaussianMixture

    x = {split: values.numpy().astype(np.float64) for split, values in data.splits.items()}
    mean, std = x["train"].mean(0), x["train"].std(0)
    std[std == 0] = 1
    train, valid, test = ((x[split] - mean) / std for split in ("train", "valid", "test"))
    factors = [FactorAnalysis(size, max_iter=1000, random_state=0) for size in _SIZES if size <= train.shape[1]]
    mixtures = [
        GaussianMixture(size, covariance_type=kind, random_state=0)
        for kind in ("full", "diag", "tied")
        for size in _SIZES
        if size <= len(train)
    ]
    found = []
    for models in ([*factors, LedoitWolf()], mixtures):
        fitted, seconds = _timed(lambda models=models: [model.fit(train) for model in models])
        best = max(fitted, key=lambda model: model.score(valid))
        found.append((best.score(test) - np.log(std).sum(), seconds))
    return found


def rival(data: Dataset, name: str, count: int) -> tuple[Tensor, float]:
    """Return `count` rows that a rival draws, by its defaults, and the seconds of fitting.

    Args:
        data: the columns of the file.
        name: "tvae" or "ctgan" of the package ctgan (300 epochs), or "copula".
        count: number of rows.
    """
    columns = {}
    discrete = []
    for place, is_discrete in enumerate(_are_discrete(data)):
        x = data.train[:, place].double()
        is_empty = x.isnan()
        columns[str(place)] = x.where(~is_empty, x.nanmedian()).numpy()
        if is_discrete:
            discrete.append(str(place))
        if is_empty.any():
            columns[f"{place} is empty"] = is_empty.double().numpy()
            discrete.append(f"{place} is empty")
    frame = DataFrame(columns)
    if name == "copula":
        from copulas.multivariate import GaussianMultivariate

        model = GaussianMultivariate(random_state=0)
        _, seconds = _timed(lambda: model.fit(frame))
    else:
        import ctgan

        model = getattr(ctgan, name.upper())()
        model.set_random_state(0)
        _, seconds = _timed(lambda: model.fit(frame, discrete))
    drawn = model.sample(count)
    for one in discrete:  # the copula draws numbers between the codes
        drawn[one] = drawn[one].round().clip(frame[one].min(), frame[one].max())
    rows = []
    for place, column in enumerate(data.columns):
        x = [column.rounded(value) for value in drawn[str(place)].tolist()]
        is_empty = drawn.get(f"{place} is empty", np.zeros(count))
        rows.append(np.where(is_empty == 1, np.nan, x))
    return torch.from_numpy(np.stack(rows, 1)), seconds


def score(data: Dataset, synthetic: Tensor) -> str:
    """Return SDMetrics' scores of synthetic rows: "shapes / trends"."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from sdmetrics.reports.single_table import QualityReport

        report = QualityReport()
        real, drawn = (_frame(data, values) for values in (torch.cat([*data.splits.values()]), synthetic))
        kinds = ["categorical" if is_discrete else "numerical" for is_discrete in _are_discrete(data)]
        metadata = {"columns": {name: {"sdtype": kind} for name, kind in zip(real, kinds)}}
        report.generate(real, drawn, metadata, verbose=False)
    found = report.get_properties().set_index("Property")["Score"]
    return " / ".join(_number(found[name], 3) for name in ("Column Shapes", "Column Pair Trends"))


def _are_discrete(data: Dataset) -> list[bool]:
    """Return of each column whether its values are texts, or 0 and 1."""
    x = torch.cat([*data.splits.values()])
    bits = ((x == 0) | (x == 1) | x.isnan()).all(0)
    return [bool(column.categories) or is_bit for column, is_bit in zip(data.columns, bits.tolist())]


def _frame(data: Dataset, values: Tensor) -> DataFrame:
    """Return values (N, D) as a frame: the texts of categories, and numbers with the decimals of the file."""
    frame = {}
    for column, x in zip(data.columns, values.double().numpy().T):
        if column.categories:
            frame[column.name] = [None if math.isnan(code) else column.categories[int(code)] for code in x]
        else:
            frame[column.name] = np.round(column.origin + x, 15 if column.decimals is None else column.decimals)
    return DataFrame(frame)


def _timed(call: Callable[[], Any]) -> tuple[Any, float]:
    """Return what a function returns, and its seconds; its warnings are not printed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        started = time.perf_counter()
        return call(), time.perf_counter() - started


if __name__ == "__main__":
    main()
