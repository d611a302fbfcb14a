"""What a trained VAE is worth: the measures that apply, as a record and as text, and the last lines of a training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from pvae.core.errors import InputError
from pvae.core.random_state import seeded
from pvae.evaluation.context import Context
from pvae.evaluation.measures import MEASURES
from pvae.evaluation.measures.baselines import Baselines, beside_no_latent, floor_of_each
from pvae.evaluation.measures.files import LosslessFiles
from pvae.evaluation.measures.labels import ClassesFound
from pvae.evaluation.measures.latents import latents_used, said_of_collapse
from pvae.runs.run import Run
from pvae.trained.codes import examples
from pvae.trained.scores import Estimate

_FEW = 1000  # test data of which the rate of each latent is computed at the end of a training


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
        record = asdict(self)
        measures = record.pop("measures")
        return record | measures


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
    seconds: float | None = None,
    **options: Any,
) -> Report:
    """Evaluate a trained VAE on test data.

    Args:
        run: the run.
        num_particles: K, the number of importance weights for each datum, at least 2.
        num_images: number of test data, a random subset; all if None.
        seed: seed of the subset and of all draws.
        seconds: estimate log p(x) of data in random order, as many as these seconds suffice for, and of no more than
            the first ten if none of them can be trusted; None for all.
        options: measures that are computed on request, by the names of their options: `gaps`, how many test and
            training data; `calibration`, True; `given`, a mask of x, bool (*D), true where given, or a text that
            `given_values` takes; and the other arguments of `pvae.marginal.log_likelihood.log_likelihood`: `method`,
            `annealing`, `engine` and `progress`.

    Raises:
        InputError: the run is an autoencoder, which has no likelihood, or there are fewer than two data, or the
            method or a measure that was asked for cannot be taken for this VAE.
    """
    check_density(run)
    names = {kind.request.name for kind in MEASURES.values() if kind.request}
    given = {name: options.pop(name) for name in names & options.keys()}
    requests = {name: value for name, value in given.items() if value is not None and value is not False}
    taken = {name: kind for name, kind in MEASURES.items() if not kind.request or kind.request.name in requests}
    how = {"num_particles": num_particles, **options}
    context = Context(run, num_images, seed, seconds, requests, how)
    if len(context.seen) < 2 or num_particles < 2:
        raise InputError("an evaluation needs at least 2 test images and 2 importance samples")
    for kind in taken.values():
        kind.check(context)
    with seeded(seed, torch.device("cpu")):
        measures = dict.fromkeys(MEASURES) | {name: context.once(kind.of) for name, kind in taken.items()}
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
    tested = "test data"
    if report.is_subset:
        tested = "random test data"
    yield f"{report.run}, epoch {report.epoch}, {report.num_images:,} {tested} of {report.data}"
    yield "nats per datum; +- is the standard error over data; another seed may change a run by more"
    yield ""
    for name, measure in report.measures.items():
        kind = MEASURES[name]
        if measure is None and not kind.absent:
            continue
        if kind.title:
            yield ""
            yield kind.title
        if measure is None:
            yield kind.absent
        else:
            yield from measure.lines()
    for measure in filter(None, report.measures.values()):
        warnings = [*measure.warnings()]
        if warnings:
            yield ""
        yield from warnings


def what_was_learned(run: Run) -> Iterator[str]:
    """Yield the last lines of a training: its ELBO beside simple models, and the latents that it uses.

    They are of the test data; of a VAE of your own there are none.
    """
    test = run.test_metrics()
    if run.has_own_vae or test is None or test.elbo is None:
        return
    context = Context(run)
    if not context.vae.has_density:
        return
    with run.seeded():
        latents = latents_used(context.vae, examples(run, min(_FEW, run.data.num_test)), test.rate)
        baselines = context.once(Baselines.of)
        each = context.once(floor_of_each)
        files = context.once(LosslessFiles.of)
        classes = context.once(ClassesFound.of)
    reached = list[str]()
    if each is not None:
        alone = each.sum().item()
        reached.append(f"without a latent {alone:.2f}")
    elbo: float = test.elbo
    said = str(test)
    if baselines is not None:  # beside which it is of the same ten draws of z
        reached += [f"{name} {log_p.mean:.2f}" for name, log_p, _ in baselines.models]
        mean = Estimate.of(context.terms["elbo"])
        elbo = mean.mean
        said = f"test ELBO {mean}"
    if reached:
        yield "; ".join([said, *reached])
    if classes is not None:
        yield f"classes found: {classes.verdict}"
    if latents.is_collapsed:
        yield f"warning: {said_of_collapse(run, baselines)}"
        return
    verdict = ""
    if each is not None:
        verdict = beside_no_latent(elbo, alone)
    if baselines is not None:
        verdict = verdict or baselines.verdict
    elif each is not None:
        verdict = verdict or f"{elbo - alone:.2f} nats more than without a latent"
    verdicts = [verdict] if verdict else []
    if files is not None:
        verdicts.insert(0, files.verdict)
    if verdicts:
        yield f"learned: {'; '.join(verdicts)}"
    yield latents.summary
