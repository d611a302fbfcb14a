"""The evaluation of a trained VAE on test data: the measures that apply, as a record and as text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch

from pvae.core.errors import InputError
from pvae.core.random_state import seeded
from pvae.evaluation.context import Context, Settings
from pvae.evaluation.measures import MEASURES
from pvae.evaluation.measures.measure import Measure
from pvae.marginal.log_likelihood import ANNEALING, Progress, hidden
from pvae.runs.run import Run

__all__ = ["Report", "check_density", "evaluate", "to_text"]


@dataclass(frozen=True, kw_only=True)
class Report:
    """The content of the file that `pvae evaluate` writes.

    Args:
        run: name of the run folder.
        epoch: number of epochs after which the run was evaluated.
        data: name and sizes of the data.
        num_images: number of test data that were evaluated.
        is_subset: whether they are a random subset of the test data.
        seed: the seed of all draws and of the random subsets of data.
        measures: those of `MEASURES`, by their names, which are attributes too; None where one does not apply.
    """

    run: str
    epoch: int
    data: str
    num_images: int
    is_subset: bool
    seed: int
    measures: Mapping[str, Any]

    def __getattr__(self, name: str) -> Any:
        """Return a measure."""
        if name == "measures" or name not in self.measures:
            raise AttributeError(name)
        return self.measures[name]

    def record(self) -> dict[str, Any]:
        """Return its content for JSON, a measure below its name."""
        header = {one.name: getattr(self, one.name) for one in fields(self) if one.name != "measures"}
        return header | {name: None if one is None else asdict(one) for name, one in self.measures.items()}


def check_density(run: Run) -> None:
    """Check that a run has a likelihood, which was trained.

    Raises:
        InputError: it is an autoencoder, or has not finished an epoch.
    """
    if not run.vae().has_density:
        raise InputError(f"{run.path} is an autoencoder: a point posterior has no bound and no log-likelihood")
    if run.read_checkpoint().epoch == 0:
        raise InputError(f"{run.path} has not finished an epoch; go on with: {run.how_to_resume}")


def evaluate(
    run: Run,
    num_particles: int = 5000,
    num_images: int | None = None,
    seed: int = 0,
    method: str = "auto",
    annealing: Mapping[str, Any] = ANNEALING,
    engine: str = "auto",
    progress: Progress = hidden,
    seconds: float | None = None,
    **requests: Any,
) -> Report:
    """Evaluate a trained VAE on test data.

    Args:
        run: the run.
        num_particles: K, the number of importance weights for each datum, at least 2.
        num_images: number of test data, a random subset; all if None.
        seed: seed of the subset and of all draws.
        method: of log p(x), as in `log_likelihood`.
        annealing: as in `log_likelihood`.
        engine: "auto", "none", "graph" or "inductor", as in `importance_sample`.
        progress: as in `log_likelihood`.
        seconds: estimate log p(x) of data in random order, some at a time, until these seconds have passed.
        requests: measures that are computed on request, by the names of their options: `gaps`, how many test and
            training data; `calibration`, True; `given`, a mask of x, bool (*D), true where given, or a text that
            `given_values` takes.

    Raises:
        InputError: the run is an autoencoder, which has no likelihood, or there are fewer than two data, or the
            method or a measure that was asked for cannot be taken for this VAE.
    """
    check_density(run)
    settings = Settings(
        num_particles=num_particles, num_images=num_images, seed=seed, method=method, annealing=annealing,
        engine=engine, progress=progress, seconds=seconds, requests=requests,
    )  # fmt: skip
    context = Context(run, settings)
    if len(context.seen) < 2 or num_particles < 2:
        raise InputError("an evaluation needs at least 2 test images and 2 importance samples")
    for kind in MEASURES.values():
        kind.check(context)
    with seeded(seed, torch.device("cpu")):
        measures = {name: context.measure(kind) for name, kind in MEASURES.items()}
    return Report(
        run=run.path.resolve().name,
        epoch=run.best_checkpoint().epoch,
        data=context.data.title,
        num_images=len(context.seen),
        is_subset=len(context.seen) < len(context.data.test),
        seed=seed,
        measures=measures,
    )


def to_text(report: Report) -> str:
    """Return the report as a table, with a note on the meaning of each value."""
    return "\n".join(_text(report))


def _text(report: Report) -> Iterator[str]:
    tested = f"{'random ' if report.is_subset else ''}test data"
    yield f"{report.run}, epoch {report.epoch}, {report.num_images:,} {tested} of {report.data}"
    yield "nats per datum; +- is the standard error over data; another seed may change a run by more"
    yield ""
    for name, measure in report.measures.items():
        kind: type[Measure] = MEASURES[name]
        if measure is None and not kind.absent:
            continue
        if kind.title:
            yield from ("", kind.title)
        yield from [kind.absent] if measure is None else measure.lines()
    for measure in report.measures.values():
        warnings = [] if measure is None else [*measure.warnings()]
        yield from [""] * bool(warnings) + warnings
