"""The command `pvae compare`: the estimators side by side, with the same weights, data and noise."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pvae.cli.command import Command, Parser, integer, integers, output_path, run_parser, write
from pvae.cli.own_code import open_run
from pvae.core.errors import InputError, check_name
from pvae.core.terminal import print_line, progress_bar

if TYPE_CHECKING:
    from pvae.config.config import Config
    from pvae.core.batch import Batch
    from pvae.evaluation.estimators import Measurement
    from pvae.runs.run import Run
    from pvae.vae import VAE

_STAGES = (2, 16)
_GROUPS = 5  # of miwae and piwae, if the configuration has only one
_UNTRUSTED = (
    "of the data cannot be trusted, and is probably too low, so that the bias is too near 0; the variances are not "
    "affected"
)

_EPILOG = """\
Without a RUN it trains a system, and compares after each of --stages. For each estimator it prints the bound and its
distance from log p(x), variance and signal-to-noise ratio of the gradients of encoder and decoder, the time, what noise
is left after a second, and the bias of the gradient where it is known exactly; and writes them as comparison.csv,
comparison.md and comparison.png. notebooks/evaluating.md explains them.

examples:
  pvae compare
  pvae compare runs/my-run --elbo trace,iwae,dreg --particles 1,10,100
  pvae compare --system deep-bayes --stages 0,4
  pvae compare --system linear-bits --particles 2,4"""


def _compare(arguments: argparse.Namespace) -> None:
    from pvae.evaluation import estimators

    names = _estimators(arguments.elbo)
    run, config = _run_or_system(arguments)
    title = config.system
    default = Path("runs") / f"{datetime.now():%Y-%m-%d-%H%M%S}-compare"
    if run is not None:
        title = run.path.resolve().name
        default = run.place / "comparison"
    options: dict[str, Any] = {name: getattr(config, name) for name in ("alpha", "mix", "temperature", "groups")}
    if config.groups == 1:
        options["groups"] = _GROUPS
    options["repetitions"] = arguments.repetitions
    folder = output_path(arguments.out, default)
    rows: list[Measurement] = []
    warnings: list[str] = []
    for stage, vae, batch, every in _stages(arguments, run, config):
        one = batch.rows(slice(1))
        pairs, reasons = estimators.pairs_to_compare(vae, one, names, arguments.particles, options["groups"])
        if not pairs:
            raise InputError("; ".join(reasons))
        if arguments.elbo is not None:
            for reason in reasons:
                print_line(reason)
        log_p = estimators.reference(vae, batch)
        print_line(f"{stage}: log p(x) = {log_p}, mean of {len(batch)} of {every}")
        if not log_p.is_reliable:
            warnings.append(f"{stage}: log p(x) of {log_p.untrusted:.1%} {_UNTRUSTED}")
        exact = estimators.exact_gradient(vae, batch)
        with progress_bar(stage, len(pairs), "estimator") as bar:
            for pair in pairs:
                measured = estimators.measure_estimator(vae, batch, *pair, log_p.estimate, exact=exact, **options)
                rows.append(replace(measured, stage=stage))
                bar.update()
    _write_comparison(folder, title, rows, warnings)


def _estimators(names: str | None) -> list[str]:
    """Return the estimators of --elbo, or all but the one that equals another."""
    from pvae.elbos.base import PerDatumELBO

    members = PerDatumELBO.members
    if names is None:
        return [name for name in members if name != "handwritten"]
    return [check_name("--elbo", name, members) for name in names.split(",")]


def _run_or_system(arguments: argparse.Namespace) -> tuple[Run | None, Config]:
    """Return the run, or None, and the configuration of it or of a system.

    Raises:
        InputError: it has no bound, or only one gradient.
    """
    from pvae.config.presets import get_system

    run = None
    if arguments.run:
        run = open_run(arguments.run, arguments.vae)
        config = run.config
    else:
        config = get_system(arguments.system or "linear-gaussian")
    name = arguments.run or config.system
    if config.is_autoencoder:
        raise InputError(f"{name} is an autoencoder: a point posterior has no bound")
    if config.posterior_class.support == "codes":
        raise InputError(f"{name} has codes of a codebook, which have one gradient to take")
    return run, config


def _stages(arguments: argparse.Namespace, run: Run | None, config: Config) -> Iterator[tuple[str, VAE, Batch, str]]:
    """Yield the name of each stage that is compared, its VAE, its data, and of which data these are a subset."""
    from pvae.config.choices import load_for
    from pvae.evaluation.estimators import data_to_compare
    from pvae.runs.run import shown_data
    from pvae.training.fit import train_in_memory

    if run is None:
        data = load_for(config, arguments.data_dir, arguments.offline)
        weights = train_in_memory(config, arguments.stages or _STAGES, data)
    else:
        data = shown_data(run, arguments.data_dir, arguments.offline)
        weights = [(run.best_checkpoint().epoch, run.vae(), data)]
    has_own_vae = run is not None and run.has_own_vae
    for epoch, vae, _ in weights:
        yield f"epoch {epoch}", *data_to_compare(config, vae, data, arguments.batch_size, has_own_vae)


def _write_comparison(folder: Path, title: str, rows: Sequence[Measurement], warnings: Sequence[str]) -> None:
    """Print and write the table of the measurements of all stages, and the picture of the last one."""
    from pandas import json_normalize

    from pvae.evaluation import estimators
    from pvae.plotting.figures import comparison_figure

    table = "\n\n".join([estimators.to_markdown(rows), estimators.LEGEND, *warnings])
    print_line(f"\n{table}\n")
    write(folder / "comparison.md", f"{table}\n")
    measured = json_normalize([asdict(row) for row in rows], sep="_")
    write(folder / "comparison.csv", measured)
    write(folder / "comparison.png", comparison_figure(measured, title))
    print_line(f"{folder}: comparison.csv, comparison.md, comparison.png")


def _parser() -> Parser:
    description = "Compare estimators of the bound and of its gradient, at one set of weights."
    out = "a new folder (default: RUN/comparison, or runs/<time>-compare)"
    run = "a run folder; with --valid, its best epoch is used"
    parser = run_parser("pvae compare", description, _EPILOG, out, nargs="?", help=run)
    add = parser.add_argument
    add("--system", metavar="NAME", help="train this in place of a RUN (default: linear-gaussian)")
    stages = f"epochs after which to compare (default: {','.join(map(str, _STAGES))})"
    add("--stages", metavar="N,N", type=integers(0, 10**6), help=stages)
    add("--elbo", metavar="NAME,NAME", help="as for `python -m pvae.train` (default: those that apply)")
    add("--particles", metavar="K,K", type=integers(1, 10**6), default="1,5,50", help="K (default: 1,5,50)")
    add("--repetitions", metavar="R", type=integer(3), default=100, help="with other draws each (default: 100)")
    batch_size = "random test data, or all if there are fewer (default: 100)"
    add("--batch-size", metavar="B", type=integer(2), default=100, help=batch_size)
    return parser


main = Command(_parser, _compare, exclusive=[("RUN", "system"), ("RUN", "stages")])
