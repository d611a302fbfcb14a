"""The command `python -m pvae.compare`: the estimators side by side, on the same weights, images and noise."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from pvae.commands import Parser, ctrl_c_exits_at_once, leave, run_command
from pvae.config import ELBOS
from pvae.errors import InputError, check_name
from pvae.systems import get_system

if TYPE_CHECKING:
    from torch import Tensor

    from pvae.comparison import Measurement
    from pvae.vae import VAE

__all__ = ["main"]

_DEFAULT_ELBOS = tuple(name for name in ELBOS if name != "handwritten")

_EPILOG = """\
Without a RUN it trains a system for a while and stops at each of --stages. Of the default, linear-gaussian, log p(x) is
known exactly; of others it is a long importance-weighted estimate. Of each estimator it prints the bound and how far it
is from log p(x), variance (the trace of the covariance) and signal-to-noise ratio, |E g| / sqrt(E |g - E g|^2), of the
gradients by encoder and decoder, and the time of loss and gradients. All meet the same images, weights and noise. It
writes comparison.csv, comparison.md and comparison.png.

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
    stages = _counts("--stages", arguments.stages, least=0)
    for option in ("repetitions", "batch_size"):
        if not 2 <= getattr(arguments, option) <= 10**6:
            raise InputError(f"--{option.replace('_', '-')} must be a whole number of at least 2")
    if arguments.run and arguments.system:
        raise InputError("give a RUN or --system, not both: a run has its system")
    with ctrl_c_exits_at_once("pvae.compare"):
        from pvae import comparison, figures
        from pvae.runs import Run
    pairs = comparison.compared(names, particles)
    if not pairs:
        raise InputError("nothing to compare: with one particle these bounds are the ELBO; give more --particles")
    if arguments.run is None:
        get_system(arguments.system or "linear-gaussian")
    else:
        Run.open(arguments.run)
    folder = _folder(arguments)
    found: list[Measurement] = []
    for stage, vae, x in _weights(arguments, stages):
        log_p = comparison.reference(vae, x)
        exact = "exactly" if log_p.stderr == 0 else f"+- {log_p.stderr:.2f}"
        print(f"{stage}: log p(x) = {log_p.log_p:.2f} {exact}, mean of {len(x)} images", flush=True)
        for pair in _with_bar(pairs, stage):
            found.append(comparison.measure(vae, x, *pair, log_p, stage, arguments.repetitions))
    table = comparison.to_markdown(found)
    (folder / "comparison.md").write_text(table + "\n", encoding="utf-8")
    (folder / "comparison.csv").write_text(comparison.to_csv(found), encoding="utf-8")
    title = arguments.run.name if arguments.run else arguments.system or "linear-gaussian"
    figures.comparison_figure(found, title).savefig(folder / "comparison.png")
    print(f"\n{table}\n\n{folder}: comparison.csv, comparison.md, comparison.png")


def _weights(arguments: argparse.Namespace, stages: Sequence[int]) -> Iterator[tuple[str, VAE, Tensor]]:
    """Yield weights, by what they are called, with a batch of test images."""
    from pvae.subjects import Subject, trained_at

    if arguments.run:
        subject = Subject.of(arguments.run, arguments.data_dir, arguments.offline)
        epoch = subject.run.read_checkpoint()["epoch"]
        yield f"epoch {epoch}", subject.vae, subject.pixels(subject.test[: arguments.batch_size])
        return
    config = get_system(arguments.system or "linear-gaussian")
    for epoch, vae, x in trained_at(config, stages, arguments.data_dir, arguments.offline, arguments.batch_size):
        yield f"epoch {epoch}", vae, x


def _with_bar(pairs: Sequence[tuple[str, int]], stage: str) -> Iterator[tuple[str, int]]:
    from tqdm import tqdm

    yield from tqdm(pairs, desc=stage, unit="estimator", leave=False, disable=sys.stderr is None or None)


def _folder(arguments: argparse.Namespace) -> Path:
    """Make the folder of the results."""
    named = arguments.out or (arguments.run / "comparison" if arguments.run else None)
    folder: Path = named or Path("runs") / f"{datetime.now():%Y-%m-%d-%H%M%S}-compare"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder} cannot be written ({error.strerror}): name another folder with --out") from None
    return folder


def _counts(option: str, text: str, least: int) -> list[int]:
    """Return the whole numbers of a list such as 1,5,50, in order."""
    try:
        counts = sorted({int(part) for part in text.split(",")})
    except ValueError:
        counts = []
    if not counts or counts[0] < least or counts[-1] > 10**6:
        raise InputError(f"{option} takes whole numbers of at least {least}, such as 1,5,50, not {text!r}")
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
    add("run", metavar="RUN", nargs="?", type=Path, help="a run folder, whose checkpoint is taken")
    add(
        "--system",
        metavar="NAME",
        help="train this in place of a RUN (default: linear-gaussian)",
    )
    add("--stages", metavar="N,N", default="2,16", help="epochs after which to compare (default: 2,16)")
    add("--elbo", metavar="NAME,NAME", default=",".join(_DEFAULT_ELBOS), help=f"of {', '.join(ELBOS)} (default: all)")
    add("--particles", metavar="K,K", default="1,5,50", help="numbers of particles (default: 1,5,50)")
    add("--repetitions", metavar="R", type=int, default=100, help="of each estimator, with other draws (default: 100)")
    add("--batch-size", metavar="B", type=int, default=100, help="test images (default: 100)")
    add("--data-dir", metavar="DIR", type=Path, help="where the data lie")
    add("--offline", action="store_true", help="do not download anything")
    add("--out", metavar="DIR", type=Path, help="where to write (default: RUN/comparison, or runs/<time>-compare)")
    return parser


if __name__ == "__main__":
    leave(main())
