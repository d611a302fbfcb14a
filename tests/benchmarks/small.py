"""How long a person waits for a default training of a small table, by stage, beside a search over mixtures and TVAE.

    pip install -e ".[bench]"
    python tests/benchmarks/small.py [--only NAME ...] [--rivals tvae]

Tables: iris, and made ones of mixed kinds: like the penguins (344 x 8, with empty fields), like customers (3,000 x 10),
and 20,000 x 10. Seconds are of whole processes, one after the other, in threads as they come by default:

- "kinds": from the start of `python -m pvae.train --dataset table:FILE` until it prints how columns are read;
- "start": until it prints where the training starts, after the models and trial steps;
- "steps": from there to the verdict, with the recording of the step and evaluations; "end": figures, and the process;
- "all": of the whole command; "fit": `VAEEstimator(epochs=1).fit(frame)` and the default fit, without the import;
- "mixture": a `GaussianMixture` of each size and kind of `tables.py`, chosen by validation rows, if all are numbers;
- "tvae": 300 epochs, if it is asked for.

"ELBO" is of the test rows, nats; "mixture" in nats too, in columns of numbers without missing fields.
"""

from __future__ import annotations

import argparse
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from pandas import DataFrame
from sklearn.datasets import load_iris
from tables import densities, rival

import pvae

_STAGES = {"kinds": "columns read as", "start": "note: the training starts", "steps": "test ELBO"}


def iris() -> DataFrame:
    """Return the flowers, without their species."""
    return load_iris(as_frame=True).data


def mixed(count: int, num_columns: int, has_missing: bool = False, seed: int = 0) -> DataFrame:
    """Return a table of three groups of rows with a common factor, in columns of several kinds."""
    draw = np.random.default_rng(seed)
    group = draw.choice(3, count, p=[0.45, 0.35, 0.2])
    factor = draw.normal(size=count)
    found = {
        "group": np.array(["Adelie", "Gentoo", "Chinstrap"])[group],
        "place": np.where(draw.uniform(size=count) < [0.8, 0.2, 0.5] @ np.eye(3)[group].T, "north", "south"),
        "length": (40 + 5 * group + 2 * factor + draw.normal(size=count)).round(1),
        "depth": (18 - 2 * group + 0.6 * factor + 0.5 * draw.normal(size=count)).round(1),
        "weight": (np.exp(8.2 + 0.1 * group + 0.08 * factor + 0.05 * draw.normal(size=count)) / 25).round() * 25,
        "eggs": draw.poisson(1 + group),
        "is_ringed": draw.uniform(size=count) < 0.3,
        "year": draw.choice([2007, 2008, 2009], count),
        "spent": np.where(draw.uniform(size=count) < 0.4, 0.0, np.exp(3 + factor)).round(2),
        "visits": draw.negative_binomial(2, 0.2, count) + 5 * (group == 1),
    }
    frame = DataFrame(found).iloc[:, :num_columns]
    if has_missing:
        frame = frame.mask(draw.uniform(size=frame.shape) < 0.02)
    return frame


TABLES: dict[str, Callable[[], DataFrame]] = {
    "iris": iris,
    "penguins' kind": lambda: mixed(344, 8, has_missing=True),
    "customers' kind": lambda: mixed(3000, 10),
    "20,000 rows": lambda: mixed(20_000, 10),
}


def main() -> None:
    """Print a row for each table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=TABLES, default=[*TABLES], metavar="NAME")
    parser.add_argument("--rivals", default="", help="tvae, or nothing")
    arguments = parser.parse_args()
    columns = ["table", "rows x columns", *_STAGES, "end", "all", "fit, one epoch", "fit", "ELBO", "mixture, nats"]
    columns += ["mixture, s", "tvae, s"]
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}", flush=True)
    for name in arguments.only:
        frame = TABLES[name]()
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "table.csv")
            frame.to_csv(file, index=False)
            seconds, elbo = command(file, Path(folder, "run"))
            rivals = others(file, arguments.rivals)
        fits = [fit(frame, epochs) for epochs in (1, None)]
        figures = [f"{one:.1f}" for one in [*seconds, *fits]]
        nats, *times = ("-" if math.isnan(one) else f"{one:.2f}" for one in rivals)
        shape = f"{len(frame):,} x {len(frame.columns)}"
        print(f"| {' | '.join([name, shape, *figures, elbo, nats, *times])} |", flush=True)


def command(file: Path, out: Path) -> tuple[list[float], str]:
    """Train by the command, and return the seconds of its stages and of all, and its test ELBO."""
    started = time.perf_counter()
    said = {}
    elbo = "-"
    line_of = [sys.executable, "-u", "-m", "pvae.train", "--dataset", f"table:{file}", "--out", str(out)]
    with subprocess.Popen(line_of, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            for stage, words in _STAGES.items():
                if line.startswith(words):
                    said.setdefault(stage, time.perf_counter() - started)
            if line.startswith("test ELBO"):
                elbo, *_ = line.removeprefix("test ELBO ").split(";")
    whole = time.perf_counter() - started
    times = [said.get(stage, math.nan) for stage in _STAGES]
    return [*np.diff([0.0, *times, whole]), whole], elbo


def fit(frame: DataFrame, epochs: int | None) -> float:
    """Return the seconds of a fit in a process of its own."""
    started = time.perf_counter()
    pvae.VAEEstimator(epochs=epochs, random_state=0).fit(frame)
    return time.perf_counter() - started


def others(file: Path, names: str) -> tuple[float, float, float]:
    """Return nats per test row and seconds of the best mixture, and the seconds of TVAE; NaN where there is none."""
    data = pvae.read(file).with_valid(0.1)
    nats = of_mixture = of_tvae = math.nan
    if not data.has_missing and not any(column.categories for column in data.columns):
        _, (nats, of_mixture) = densities(data)
    if "tvae" in names:
        plain = pvae.read(file, rules="none").with_valid(0.1)
        _, of_tvae = rival(plain, "tvae", 100)
    return nats, of_mixture, of_tvae


if __name__ == "__main__":
    main()
