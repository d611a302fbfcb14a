"""The command `python -m pvae.compare`: the estimators side by side, on the same weights, images and noise."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pvae.cli.command import Parser, a_path, ctrl_c_exits_at_once, result_folder, run_command
from pvae.config.options import ELBOS, whole_number
from pvae.config.presets import get_system
from pvae.core.errors import InputError, check_name
from pvae.core.files import not_a_link, write_whole
from pvae.core.terminal import say

if TYPE_CHECKING:
    from torch import Tensor

    from pvae.config.config import Config
    from pvae.evaluation.estimators import Measurement
    from pvae.vae import VAE

__all__ = ["main"]

_ALL = ",".join(name for name in ELBOS if name != "handwritten")
_ONE_PARTICLE = ("trace", "analytic", "handwritten", "stl", "score")
_STAGES = "2,16"
_BATCH_SIZE = 100
_GROUPS = 5  # of miwae, where the configuration names none

_EPILOG = """\
Without a RUN it trains a system for a while and stops at each of --stages. Of the default, linear-gaussian, log p(x) is
known exactly; of others it is a long importance-weighted estimate. Of each estimator it prints the bound and how far it
is from log p(x), variance (the trace of the covariance) and signal-to-noise ratio, |E g| / sqrt(E |g - E g|^2), of the
gradients by encoder and decoder with their errors over repetitions, and the time of loss and gradients. All meet the
same images, weights and noise. It writes estimators.csv, estimators.md and estimators.png. A Bernoulli that was trained
on grey pixels is compared on binarized ones, which have a log p(x); beta is 1; --alpha, --mix and --groups (of miwae;
else 5) are the system's.

examples:
  python -m pvae.compare
  python -m pvae.compare runs/my-run --elbo trace,iwae,dreg --particles 1,10,100
  python -m pvae.compare --system deep-bayes --stages 0,4"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status: 0, 2 for what cannot be done as asked, 130 for Ctrl-C.

    Args:
        argv: the arguments after the program's name; `sys.argv` if left out.
    """
    return run_command("pvae.compare", lambda: _compare(_parser().parse_args(argv)))


def _compare(arguments: argparse.Namespace) -> None:
    names = [check_name("ELBO", name, ELBOS) for name in arguments.elbo.split(",")]
    particles = _counts("--particles", arguments.particles, least=1)
    stages = _counts("--stages", arguments.stages or _STAGES, least=0)
    for option, least in (("repetitions", 3), ("batch_size", 2)):
        if getattr(arguments, option) is not None:
            whole_number(option, getattr(arguments, option), least, 10**6)
    if arguments.run and arguments.system:
        raise InputError("give a RUN or --system, not both: a run has its system")
    if arguments.run and arguments.stages:
        raise InputError("--stages go with --system: of a RUN there is the last checkpoint only")
    with ctrl_c_exits_at_once("pvae.compare"):
        import pvae.evaluation.trained_run  # noqa: F401  torch is slow to import
    config = _config(arguments)
    if particles == [1] and not set(names) & set(_ONE_PARTICLE):
        raise InputError("with one particle these are the ELBO, or nothing: give more --particles")
    named = arguments.out or (not_a_link(arguments.run / "comparison") if arguments.run else None)
    reports = [f"comparison.{suffix}" for suffix in ("csv", "md", "png")] if arguments.out else []
    with result_folder(named or Path("runs") / f"{datetime.now():%Y-%m-%d-%H%M%S}-compare", reports) as folder:
        found: list[Measurement] = []
        for weights in _weights(arguments, config, stages):
            found += _measured(arguments, config, weights, names, particles)
        _write(found, folder, arguments.run.resolve().name if arguments.run else config.system)


def _config(arguments: argparse.Namespace) -> Config:
    """Return what was, or is to be, trained.

    Raises:
        InputError: there is no such run or system, or it is an autoencoder, which has nothing to compare.
    """
    from pvae.runs.run import Run

    config = Run.open(arguments.run).config if arguments.run else get_system(arguments.system or "linear-gaussian")
    if config.posterior == "delta":
        raise InputError(f"{arguments.run or config.system} is an autoencoder: a point posterior has no bound")
    return config


class _Weights(NamedTuple):
    """A VAE at some stage of its training, and a batch of test images."""

    stage: str
    vae: VAE
    x: Tensor
    pixels: str


def _weights(arguments: argparse.Namespace, config: Config, stages: Sequence[int]) -> Iterator[_Weights]:
    from pvae.evaluation.trained_run import TrainedRun, proper
    from pvae.training.fit import trained_at

    if arguments.run:
        subject = TrainedRun.of(arguments.run, arguments.data_dir, arguments.offline)
        given = iter([(subject.run.read_checkpoint().counts.epoch, subject.vae, subject.data)])
    else:
        given = trained_at(config, stages, arguments.data_dir, arguments.offline)
    for epoch, trained, data in given:
        count = arguments.batch_size or min(_BATCH_SIZE, len(data.test))
        if count > len(data.test):
            raise InputError(
                f"--batch-size {count:,} is more than the test images of {data.name}: give at least 2 and at most "
                f"{len(data.test):,}"
            )
        images = data.test[:count]
        vae, pixels, kind = proper(config, trained, data.image_shape, images)
        yield _Weights(f"epoch {epoch}", vae, next(pixels.split(len(images))), kind)


def _measured(
    arguments: argparse.Namespace, config: Config, weights: _Weights, names: Sequence[str], particles: Sequence[int]
) -> list[Measurement]:
    """Measure every estimator at one set of weights; of what was asked for by name, say what is left out."""
    from pvae.evaluation import estimators

    stage, vae, x, pixels = weights
    groups = config.groups if config.groups > 1 else _GROUPS
    pairs, reasons = estimators.compared(vae, names, particles, groups)
    if not pairs:
        raise InputError("; ".join(reasons))
    if arguments.elbo != _ALL:
        for reason in reasons:
            say(reason)
    log_p = estimators.reference(vae, x)
    say(f"{stage}: log p(x) = {log_p}, mean of {len(x)} test images; pixels {pixels}")
    found = []
    for name, count in _with_bar(pairs, stage):
        options = {"alpha": config.alpha, "mix": config.mix, "num_groups": groups if name == "miwae" else 1}
        found.append(estimators.measure(vae, x, name, count, log_p, stage, arguments.repetitions, **options))
    return found


def _write(found: Sequence[Measurement], folder: Path, title: str) -> None:
    """Print the table, and write it and the figure."""
    from pvae.evaluation import estimators
    from pvae.plotting import run_figures

    table = f"{estimators.to_markdown(found)}\n\n{estimators.LEGEND}"
    say(f"\n{table}\n")
    write_whole(folder / "comparison.md", (table + "\n").encode())
    write_whole(folder / "comparison.csv", estimators.to_csv(found).encode())
    run_figures.write_figure(folder / "comparison.png", run_figures.comparison_figure(found, title))
    say(f"{folder}: estimators.csv, estimators.md, estimators.png")


def _with_bar(pairs: Sequence[tuple[str, int]], stage: str) -> Iterator[tuple[str, int]]:
    from tqdm import tqdm

    yield from tqdm(pairs, desc=stage, unit="estimator", leave=False, disable=sys.stderr is None or None)


def _counts(option: str, text: str, least: int) -> list[int]:
    """Return the whole numbers of a list such as 1,5,50, in order."""
    try:
        counts = sorted({int(part) for part in text.split(",")})
    except ValueError:
        counts = []
    if not counts or counts[0] < least or counts[-1] > 10**6:
        limits = f"at least {least} and at most 1,000,000"
        raise InputError(f"{option} takes whole numbers of {limits}, such as 1,5,50, not {text!r}")
    return counts


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m pvae.compare",
        description="Compare estimators of the bound and of its gradient, at one set of weights.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("run", metavar="RUN", nargs="?", type=a_path, help="a run folder, whose checkpoint is taken")
    add(
        "--system",
        metavar="NAME",
        help="train this in place of a RUN (default: linear-gaussian)",
    )
    add("--stages", metavar="N,N", help=f"epochs after which to compare, in rising order (default: {_STAGES})")
    add("--elbo", metavar="NAME,NAME", default=_ALL, help=f"of {', '.join(ELBOS)} (default: all)")
    add("--particles", metavar="K,K", default="1,5,50", help="numbers of particles (default: 1,5,50)")
    add("--repetitions", metavar="R", type=int, default=100, help="of each estimator, with other draws (default: 100)")
    add("--batch-size", metavar="B", type=int, help=f"test images (default: {_BATCH_SIZE})")
    add("--data-dir", metavar="DIR", type=a_path, help="where the data lie")
    add("--offline", action="store_true", help="do not download anything")
    add("--out", metavar="DIR", type=a_path, help="where to write (default: RUN/comparison, or runs/<time>-compare)")
    return parser
