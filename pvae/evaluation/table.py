"""Records as CSV, and trained runs as a table: in Markdown one row for all runs that differ in their seed alone."""

from __future__ import annotations

import hashlib
import json
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pvae.config.presets import system_title
from pvae.core.errors import InputError
from pvae.core.records import csv_of, markdown_of
from pvae.evaluation.latent_space import LatentReport
from pvae.runs.run import Run

__all__ = ["Row", "groups", "row_of", "to_csv", "to_markdown"]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One run; figures of the test images after its last epoch, nats per datum.

    Args:
        run: name of its folder.
        configuration: a digest of its options, data and epochs, equal for runs that differ in their seed alone.
        system: its system, with the options that differ from the published ones.
        estimator: its `--elbo`.
        data: name of its data.
        seed: its seed.
        epochs: how many epochs it finished.
        pseudo: `elbo` is a pseudo-ELBO.
        elbo: the bound; None for an autoencoder, or where it bounds nothing.
        elbo_stderr: its standard error over images and draws of z.
        distortion: -E_q log p(x | z).
        rate: KL(q, p).
        posterior_mean_loss: the loss at the mean of q(z | x).
        accuracy: of a 10-nearest-neighbour classifier on the codes; None without classes.
        kolmogorov_smirnov: the largest distance of a latent dimension's draws from N(0, 1).
        mean_least: the least mean of a latent dimension's draws.
        mean_greatest: the greatest.
        std_least: the least standard deviation of a latent dimension's draws.
        std_greatest: the greatest.
        seconds_per_epoch: median over its epochs, training and test.
    """

    run: str
    configuration: str
    system: str
    estimator: str
    data: str
    seed: int
    epochs: int
    pseudo: bool
    elbo: float | None
    elbo_stderr: float | None
    distortion: float
    rate: float
    posterior_mean_loss: float | None
    accuracy: float | None
    kolmogorov_smirnov: float
    mean_least: float
    mean_greatest: float
    std_least: float
    std_greatest: float
    seconds_per_epoch: float


def row_of(run: Run, codes: LatentReport) -> Row:
    """Return the row of a run.

    Args:
        run: with at least one finished epoch.
        codes: statistics of its codes.

    Raises:
        InputError: the run has not finished an epoch.
    """
    rows = run.metrics()
    if len(rows) < 2:
        raise InputError(f"{run.path} has not finished an epoch")
    last = [row for row in rows if row.split == "test"][-1]
    seconds = [sum(row.seconds for row in rows if row.epoch == epoch) for epoch in {row.epoch for row in rows}]
    options = asdict(run.config.replace(seed=0, epochs=last.epoch, source=""))
    digest = hashlib.sha256(json.dumps([options, run.data.sha256], sort_keys=True).encode()).hexdigest()
    names = ("pseudo", "elbo", "elbo_stderr", "distortion", "rate", "posterior_mean_loss")
    return Row(
        run=run.path.resolve().name,
        configuration=digest[:12],
        system=system_title(run.config),
        estimator=run.config.elbo,
        data=run.data.name,
        seed=run.config.seed,
        epochs=last.epoch,
        **{name: getattr(last, name) for name in names},
        accuracy=codes.accuracy,
        kolmogorov_smirnov=max(codes.kolmogorov_smirnov),
        mean_least=min(codes.mean),
        mean_greatest=max(codes.mean),
        std_least=min(codes.std),
        std_greatest=max(codes.std),
        seconds_per_epoch=statistics.median(seconds),
    )


def groups(rows: Iterable[Row]) -> list[list[Row]]:
    """Return the rows in groups that differ in their seed alone, in order of first appearance."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row.configuration, []).append(row)
    return list(found.values())


def to_csv(records: Sequence[Any]) -> str:
    """Return a line for each dataclass, of which there is at least one, under a line of field names; None is empty.

    A field whose value is a dataclass becomes a column for each field of that one, named `field_inner`.
    """
    rows: list[dict[str, object]] = []
    for record in records:
        rows.append({})
        for name, value in asdict(record).items():
            inner = {f"{name}_{key}": one for key, one in value.items()} if isinstance(value, dict) else {name: value}
            rows[-1].update(inner)
    return csv_of(rows)


def to_markdown(rows: Sequence[Row]) -> str:
    """Return a line for each system, with means and sample standard deviations over its seeds."""
    note = (
        "Nats per datum, on the test images. +- is the standard deviation over seeds; of a single run's ELBO, the "
        "standard error over images. (pseudo): the pixels are grey, so that the figure bounds no log-likelihood. "
        "10-NN: accuracy of a 10-nearest-neighbour classifier on the codes. KS: the largest Kolmogorov-Smirnov "
        "distance of a latent dimension of z ~ q(z | x) from N(0, 1); mean and std: the least and the greatest of a "
        "dimension and seed. Seconds: the median epoch, training and test, of the fastest run."
    )
    return f"{markdown_of(_COLUMNS, groups(rows))}\n\n{note}\n"


def _bound(group: Sequence[Row]) -> str:
    first = group[0]
    if first.elbo is None:
        return "-"
    error = f" +- {first.elbo_stderr:.2f}" if len(group) == 1 else ""
    return _spread(group, "elbo") + error + (" (pseudo)" if first.pseudo else "")


def _spread(group: Sequence[Row], name: str, digits: int = 2) -> str:
    """Return mean and standard deviation over seeds; of a single run the value, and a dash for None."""
    values = [value for row in group if (value := getattr(row, name)) is not None]
    if not values:
        return "-"
    error = f" +- {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{error}"


def _range(group: Sequence[Row], name: str) -> str:
    """Return the least and the greatest value over latent dimensions and seeds."""
    least = min(getattr(row, f"{name}_least") for row in group)
    greatest = max(getattr(row, f"{name}_greatest") for row in group)
    return f"{least:.2f} to {greatest:.2f}"


_COLUMNS: dict[str, Callable[[Sequence[Row]], str]] = {
    "system": lambda group: group[0].system,
    "--elbo": lambda group: group[0].estimator,
    "data": lambda group: group[0].data,
    "seeds": lambda group: str(len(group)),
    "epochs": lambda group: str(group[0].epochs),
    "ELBO": _bound,
    "distortion": lambda group: _spread(group, "distortion"),
    "rate": lambda group: _spread(group, "rate"),
    "posterior-mean loss": lambda group: _spread(group, "posterior_mean_loss"),
    "10-NN": lambda group: _spread(group, "accuracy", 3),
    "KS": lambda group: _spread(group, "kolmogorov_smirnov", 3),
    "mean": lambda group: _range(group, "mean"),
    "std": lambda group: _range(group, "std"),
    "s an epoch": lambda group: f"{min(row.seconds_per_epoch for row in group):.1f}",
}
