"""The command `pvae compare`: the estimators side by side, with the same weights, data and noise."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
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
    from pvae.data.dataset import Dataset
    from pvae.evaluation.estimators import Measurement
    from pvae.runs.run import Run
    from pvae.vae import VAE

_STAGES = (2, 16)
_GROUPS = 5  # of miwae and piwae, if the configuration has only one

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
    from pandas import json_normalize

    from pvae.config.presets import get_system
    from pvae.elbos.base import PerDatumELBO
    from pvae.evaluation import estimators
    from pvae.marginal.log_likelihood import MOST_UNTRUSTED
    from pvae.plotting import figures

    members = PerDatumELBO.members
    names = [name for name in members if name != "handwritten"]
    if arguments.elbo is not None:
        names = [check_name("--elbo", name, members) for name in arguments.elbo.split(",")]
    run = None
    if arguments.run:
        run = open_run(arguments.run, arguments.vae)
        config = run.config
        title = run.path.resolve().name
        default = run.place / "comparison"
    else:
        config = get_system(arguments.system or "linear-gaussian")
        title = config.system
        default = Path("runs") / f"{datetime.now():%Y-%m-%d-%H%M%S}-compare"
    if config.is_autoencoder:
        raise InputError(f"{arguments.run or config.system} is an autoencoder: a point posterior has no bound")
    if config.posterior_class.support == "codes":
        raise InputError(f"{arguments.run or config.system} has codes of a codebook, which have one gradient to take")
    options: dict[str, Any] = {name: getattr(config, name) for name in ("alpha", "mix", "temperature", "groups")}
    if config.groups == 1:
        options["groups"] = _GROUPS
    folder = output_path(arguments.out, default)
    rows: list[Measurement] = []
    warnings: list[str] = []
    for epoch, vae, data in _weights(arguments, run, config):
        name = f"epoch {epoch}"
        has_own_vae = run is not None and run.has_own_vae
        vae, batch, every = estimators.data_to_compare(config, vae, data, arguments.batch_size, has_own_vae)
        pairs, reasons = estimators.pairs_to_compare(
            vae, batch.rows(slice(1)), names, arguments.particles, options["groups"]
        )
        if not pairs:
            raise InputError("; ".join(reasons))
        if arguments.elbo is not None:
            for reason in reasons:
                print_line(reason)
        log_p, untrusted = estimators.reference(vae, batch)
        value = str(log_p)
        if not log_p.stderr:
            value = f"{log_p.mean:.2f} exactly"
        if untrusted > MOST_UNTRUSTED:
            value += " (not reliable: see below)"
            warnings.append(
                f"{name}: log p(x) of {untrusted:.1%} of the data cannot be trusted, and is probably too low, so "
                "that the bias is too near 0; the variances are not affected"
            )
        print_line(f"{name}: log p(x) = {value}, mean of {len(batch)} of {every}")
        exact = estimators.exact_gradient(vae, batch)
        with progress_bar(name, len(pairs), "estimator") as bar:
            for pair in pairs:
                found = estimators.measure_estimator(vae, batch, *pair, log_p, arguments.repetitions, exact, **options)
                rows.append(replace(found, stage=name))
                bar.update()
    table = "\n\n".join([estimators.to_markdown(rows), estimators.LEGEND, *warnings])
    print_line(f"\n{table}\n")
    write(folder / "comparison.md", table + "\n")
    measured = json_normalize([asdict(row) for row in rows], sep="_")
    write(folder / "comparison.csv", measured)
    write(folder / "comparison.png", figures.comparison_figure(measured, title))
    print_line(f"{folder}: comparison.csv, comparison.md, comparison.png")


def _weights(arguments: argparse.Namespace, run: Run | None, config: Config) -> Iterable[tuple[int, VAE, Dataset]]:
    """Return the epochs, the VAEs and the data of the stages that are compared."""
    from pvae.runs.run import shown_data
    from pvae.training.fit import train_in_memory

    if run is None:
        from pvae.config.choices import load_for

        data = load_for(config, arguments.data_dir, arguments.offline)
        return train_in_memory(config, arguments.stages or _STAGES, data)
    data = shown_data(run, arguments.data_dir, arguments.offline)
    return [(run.best_checkpoint().epoch, run.vae(), data)]


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
