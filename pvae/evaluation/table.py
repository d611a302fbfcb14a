"""A table of trained runs: in CSV a row for each run, in Markdown a row for the seeds of each configuration."""

from __future__ import annotations

import contextlib
import hashlib
import json
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pvae.config.presets import system_title
from pvae.core.errors import InputError
from pvae.core.records import markdown_of
from pvae.runs.metrics import is_out_of_patience
from pvae.runs.run import Run
from pvae.trained.latent_space import LatentReport

__all__ = ["Row", "groups", "row_of", "to_markdown"]


@dataclass(frozen=True, kw_only=True)
class Row:
    """Results of one run on the test images, in nats per datum.

    Args:
        run: name of the run folder.
        configuration: digest of options, data and finished epochs, equal for runs that differ only in their seed.
        system: name of the system, with the options that differ from the published ones.
        estimator: the value of `--elbo`.
        data: name of the data.
        seed: the seed.
        epochs: number of finished epochs.
        planned_epochs: number of epochs of the configuration, or until patience ended; an unfinished run has fewer.
        chosen_epoch: the epoch of the results, which is the best on the validation images, if there are any.
        pseudo: whether `elbo` is a pseudo-ELBO.
        elbo: the ELBO; None for an autoencoder, or if it bounds nothing.
        elbo_stderr: standard error of `elbo` over images and draws of z.
        distortion: -E_q log p(x | z).
        rate: KL(q, p).
        log_likelihood: log p(x) that `pvae evaluate` wrote, of the same epoch and all test images, or None.
        log_likelihood_stderr: standard error of `log_likelihood`.
        importance_samples: draws of z for each image.
        posterior_mean_loss: the loss at the mean of q(z | x).
        accuracy: accuracy of a 10-nearest-neighbour classifier on the codes; None without classes.
        kolmogorov_smirnov: the largest distance of the draws of a latent dimension from N(0, 1); None if the prior is
            another one.
        mean_least: the least mean of the draws of a latent dimension.
        mean_greatest: the greatest mean.
        std_least: the least standard deviation of the draws of a latent dimension.
        std_greatest: the greatest standard deviation.
        seconds_per_epoch: median over epochs of the time for training and test.
    """

    run: str
    configuration: str
    system: str
    estimator: str
    data: str
    seed: int
    epochs: int
    planned_epochs: int
    chosen_epoch: int
    pseudo: bool
    elbo: float | None
    elbo_stderr: float | None
    distortion: float
    rate: float
    log_likelihood: float | None
    log_likelihood_stderr: float | None
    importance_samples: int | None
    posterior_mean_loss: float | None
    accuracy: float | None
    kolmogorov_smirnov: float | None
    mean_least: float
    mean_greatest: float
    std_least: float
    std_greatest: float
    seconds_per_epoch: float

    @property
    def progress(self) -> str:
        """The number of finished epochs: "16", "3 of 16" for an unfinished run, "16, best 12" if one was chosen."""
        planned = f" of {self.planned_epochs}" if self.epochs < self.planned_epochs else ""
        best = f", best {self.chosen_epoch}" if self.epochs != self.chosen_epoch else ""
        return f"{self.epochs}{planned}{best}"


def row_of(run: Run, codes: LatentReport) -> Row:
    """Return the row of a run.

    Args:
        run: with at least one finished epoch.
        codes: statistics of the codes of the run.

    Raises:
        InputError: the run has not finished an epoch.
    """
    rows, chosen = run.metrics(), run.test_metrics()
    if chosen is None:
        raise InputError(f"{run.path} has not finished an epoch")
    seconds = [sum(row.seconds for row in rows if row.epoch == epoch) for epoch in {row.epoch for row in rows}]
    options, epochs = asdict(run.config.replace(seed=0, source="")), rows[-1].epoch
    planned = epochs if is_out_of_patience(rows, run.config.patience) else run.config.epochs
    same = [options, run.data.sha256, *[epochs] * (epochs < planned)]
    digest = hashlib.sha256(json.dumps(same, sort_keys=True).encode()).hexdigest()
    log_p, stderr, num_particles = _evaluated(run, chosen.epoch)
    names = ("pseudo", "elbo", "elbo_stderr", "distortion", "rate", "posterior_mean_loss")
    return Row(
        run=run.path.resolve().name,
        configuration=digest[:12],
        system=system_title(run.config),
        estimator=run.config.elbo,
        data=run.data.name,
        seed=run.config.seed,
        epochs=epochs,
        planned_epochs=planned,
        chosen_epoch=chosen.epoch,
        **{name: getattr(chosen, name) for name in names},
        log_likelihood=log_p,
        log_likelihood_stderr=stderr,
        importance_samples=num_particles,
        accuracy=codes.accuracy,
        kolmogorov_smirnov=max(codes.kolmogorov_smirnov) if codes.kolmogorov_smirnov else None,
        mean_least=min(codes.mean),
        mean_greatest=max(codes.mean),
        std_least=min(codes.std),
        std_greatest=max(codes.std),
        seconds_per_epoch=statistics.median(seconds),
    )


def _evaluated(run: Run, epoch: int) -> tuple[Any, Any, Any]:
    """Return log p(x), its error and K from evaluation.json; None each unless it is of this epoch and all images."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # no such file, or without a log-likelihood
        report = json.loads((run.place / "evaluation.json").read_bytes())
        found = report["log_likelihood"]
        if (report["progress"], report["num_images"]) == (f"epoch {epoch}", run.data.num_test):
            return found["estimate"]["mean"], found["estimate"]["stderr"], found["num_particles"]
    return None, None, None


def groups(rows: Iterable[Row]) -> list[list[Row]]:
    """Return the rows in groups that differ only in their seed, in order of first appearance."""
    by_configuration: dict[str, list[Row]] = {}
    for row in rows:
        by_configuration.setdefault(row.configuration, []).append(row)
    return list(by_configuration.values())


def to_markdown(rows: Sequence[Row]) -> str:
    """Return a row for each configuration, with means and sample standard deviations over its seeds."""
    return f"{markdown_of(_COLUMNS, groups(rows))}\n\n{_NOTE}\n"


def _spread(group: Sequence[Row], name: str, digits: int = 2) -> str:
    """Return mean and standard deviation over seeds; of a single run its value and standard error; of none a dash."""
    rows = [row for row in group if getattr(row, name) is not None]
    if not rows:
        return "-"
    values = [getattr(row, name) for row in rows]
    error = statistics.stdev(values) if len(values) > 1 else getattr(rows[0], f"{name}_stderr", None)
    return f"{statistics.mean(values):.{digits}f}" + ("" if error is None else f" +- {error:.{digits}f}")


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
    "epochs": lambda group: group[0].progress,
    "ELBO": lambda group: (
        _spread(group, "elbo") + (" (pseudo)" if group[0].pseudo and group[0].elbo is not None else "")
    ),
    "log p(x)": lambda group: _spread(group, "log_likelihood"),
    "distortion": lambda group: _spread(group, "distortion"),
    "rate": lambda group: _spread(group, "rate"),
    "posterior-mean loss": lambda group: _spread(group, "posterior_mean_loss"),
    "10-NN": lambda group: _spread(group, "accuracy", 3),
    "KS": lambda group: _spread(group, "kolmogorov_smirnov", 3),
    "mean": lambda group: _range(group, "mean"),
    "std": lambda group: _range(group, "std"),
    "s an epoch": lambda group: f"{min(row.seconds_per_epoch for row in group):.1f}",
}

_NOTE = (
    "Nats per datum, on the test data. +- is the standard deviation over seeds; for the ELBO and log p(x) of a "
    "single run it is the standard error over them. (pseudo): the pixels are grey, so the value does not bound a "
    "log-likelihood. log p(x): importance sampling by pvae evaluate of all test data, binarized if a "
    "Bernoulli was trained on grey ones; too low where it warns of the weights. 10-NN: accuracy of a 10-nearest-"
    "neighbour classifier on the codes. KS: the largest Kolmogorov-Smirnov distance of a latent dimension of z ~ "
    "q(z | x) from N(0, 1). mean and std: the least and the greatest over dimensions and seeds. These three are of the "
    "top layer, if there are several. Seconds: the median epoch, training and test, of the fastest run."
)
