"""Several runs evaluated on the same test images: log p(x), the ELBO, and paired differences between runs."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from pvae.core.errors import InputError
from pvae.core.random_state import seeded
from pvae.core.records import markdown_of
from pvae.data.batch import given_rows
from pvae.data.dataset import random_subset
from pvae.runs.run import Run
from pvae.trained.codes import given_y
from pvae.trained.elbo_terms import elbo_terms
from pvae.trained.estimate import Estimate
from pvae.trained.log_likelihood import MOST_UNTRUSTED, importance_sample
from pvae.trained.normalised import with_likelihood

__all__ = ["LEGEND", "RunResult", "evaluate_runs", "to_latex", "to_markdown"]

LEGEND = """\
Nats per datum, on the same test data; +- is the standard error over data and draws. Differences are taken datum by
datum, from the run with the highest log p(x), so that their errors leave out what all runs find hard."""


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """Results of one of several runs on the same test images, in nats per datum.

    Args:
        run: name of the run folder.
        log_p: the mean of the importance-weighted estimates of log p(x).
        difference: the mean over images of log p(x) minus that of the run with the highest mean.
        elbo: the ELBO of the same pixels.
        elbo_difference: the mean over images of the ELBO minus that of the same other run.
        untrusted: the fraction of images whose effective sample size is below 10.
    """

    run: str
    log_p: Estimate
    difference: Estimate
    elbo: Estimate
    elbo_difference: Estimate
    untrusted: float


def evaluate_runs(
    runs: Sequence[Run],
    num_particles: int,
    num_images: int | None = None,
    seed: int = 0,
    on_images: Callable[[int], object] = lambda count: None,
    *,
    engine: str = "auto",
    precision: str = "fp32",
) -> list[RunResult]:
    """Evaluate several runs on the same test images.

    Args:
        runs: the runs, in the order of the results.
        num_particles: K, the number of importance weights for each image.
        num_images: number of test images, a random subset; all if None.
        seed: seed of the subset and of the draws of each run.
        on_images: called after each part of the importance sampling with the number of images in it.
        engine: as in `importance_sample`.
        precision: as in `importance_sample`.

    Raises:
        InputError: a run is an autoencoder, or their pixels or the kinds of their p(x) differ.
    """
    measured, first = [], None
    for run in runs:
        if not run.vae().has_density:
            raise InputError(f"{run.path} is an autoencoder: a point posterior has no bound and no log-likelihood")
        vae, x, kind = with_likelihood(run, run.dataset().test, given_y(run))
        if num_images is not None:
            subset = random_subset(len(x), num_images, seed)
            x, vae = replace(x, images=x.images[subset]), given_rows(vae, subset)
        # A probability or a density, of x or given y.
        described = kind, getattr(vae.p_x, "levels_per_unit", 1.0), getattr(vae, "y", None) is None
        first = first or (x.images, described)
        if not torch.equal(x.images, first[0]) or described != first[1]:
            difference = "other test data or pixels, or one a density and one a probability, or one is given labels"
            raise InputError(f"{run.path} and {runs[0].path} have {difference}: evaluate them apart")
        with seeded(seed, torch.device("cpu")):
            sample = importance_sample(vae, x, num_particles, on_images, engine=engine, precision=precision)
            measured.append((sample, elbo_terms(vae, x)["elbo"]))
    best, best_elbo = max(measured, key=lambda one: one[0].log_p.mean().item())
    return [
        RunResult(
            run=run.path.resolve().name,
            log_p=Estimate.of(sample.log_p),
            difference=Estimate.of(sample.log_p - best.log_p),
            elbo=Estimate.of(elbo),
            elbo_difference=Estimate.of(elbo - best_elbo),
            untrusted=sample.untrusted,
        )
        for run, (sample, elbo) in zip(runs, measured)
    ]


_COLUMNS: dict[str, Callable[[RunResult], str]] = {
    "run": lambda one: one.run,
    "log p(x)": lambda one: f"{one.log_p}{' (too low)' if one.untrusted > MOST_UNTRUSTED else ''}",
    "difference": lambda one: str(one.difference) if one.difference.stderr else "best",
    "ELBO": lambda one: str(one.elbo),
    "difference of ELBO": lambda one: str(one.elbo_difference) if one.elbo_difference.stderr else "-",
}


def to_markdown(results: Sequence[RunResult]) -> str:
    """Return the results as a table with aligned columns."""
    return markdown_of(_COLUMNS, results, aligned=True)


def to_latex(results: Sequence[RunResult]) -> str:
    """Return the results as a LaTeX tabular."""
    rows = [[*_COLUMNS], *([cell(one) for cell in _COLUMNS.values()] for one in results)]
    rows[0][1] = r"$\log p(x)$"
    rows[1:] = [[re.sub(r"([&%$#_{}])", r"\\\1", name), *map(_as_math, cells)] for name, *cells in rows[1:]]
    lines = [" & ".join(cells) + r" \\" for cells in rows]
    return "\n".join([r"\begin{tabular}{lrrrr}", lines[0], r"\hline", *lines[1:], r"\end{tabular}"])


def _as_math(cell: str) -> str:
    return re.sub(r"(\S+) \+- (\S+)", r"$\1 \\pm \2$", cell)
