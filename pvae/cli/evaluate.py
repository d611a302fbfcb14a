"""The command `python -m pvae.evaluate`: measures of a trained run, each with its standard error."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from pvae.cli.command import Parser, add_places, ctrl_c_exits_at_once, nonempty_path, result_folder, run_command
from pvae.config.config import OPTIONS
from pvae.config.options import whole_number
from pvae.core.errors import InputError, check_name
from pvae.core.files import check_replaceable, write_whole
from pvae.core.records import to_json
from pvae.core.terminal import print_line, progress_bar

if TYPE_CHECKING:
    from pvae.evaluation.report import Report
    from pvae.trained.log_likelihood import ImportanceSample
    from pvae.trained.trained_run import TrainedRun

__all__ = ["main"]

_DRAWS, _FEW_DRAWS = 5000, 200  # for each image
_LARGE = 2000  # values of an image, beyond which many draws take long and help little

_EPILOG = """\
It prints the ELBO and its parts (distortion and rate; the three parts of post 004), the posterior-mean loss, active
units, the rate of a random subset of the images with its parts (mutual information, total correlation, dimension-wise
KL), and log p(x) by importance sampling, and writes RUN/evaluation.json. The log-likelihood of a model trained on grey
pixels by a Bernoulli is that of the binarized test images: grey ones have none. The memory does not depend on the
number of samples.

Where a likelihood is sharp and the pixels are many, a few draws dominate the importance weights of an image, and its
log p(x) is too low. The report then says which figures are reliable: the ELBO always is.

examples:
  python -m pvae.evaluate runs/my-run
  python -m pvae.evaluate runs/my-run --importance-samples 500 --seconds 600
  python -m pvae.evaluate runs/my-run --importance-samples 100 --images 1000"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status, which `run_command` explains.

    Args:
        argv: the arguments after the program's name; `sys.argv` if left out.
    """
    return run_command("pvae.evaluate", lambda: _evaluate(_parser().parse_args(argv)))


def _evaluate(arguments: argparse.Namespace) -> None:
    limits = {"importance_samples": (2, 10**9), "seconds": (0, 10**9), "images": (2, 10**9), "seed": (0, 2**63 - 1)}
    for name, (least, most) in limits.items():
        if getattr(arguments, name) is not None:
            whole_number(name, getattr(arguments, name), least, most)
    check_name("--compile", arguments.compile, ["auto", *OPTIONS["compile"].choices])
    check_name("--precision", arguments.precision, OPTIONS["precision"].choices)
    if arguments.compile == "none" and arguments.precision != "fp32":
        raise InputError(f"--precision {arguments.precision} goes with --compile auto, graph or inductor only")
    with ctrl_c_exits_at_once("pvae.evaluate"):
        from pvae.evaluation.report import to_text
        from pvae.runs.run import Run
        from pvae.trained.trained_run import TrainedRun
    path = arguments.out or Run.open(arguments.run).place / "evaluation.json"
    with result_folder(path.parent):
        check_replaceable(path, "evaluation.json")
        trained = TrainedRun.of(arguments.run, arguments.data_dir, arguments.offline)
        report = _report_of(trained, arguments)
        write_whole(path, (to_json(asdict(report), indent=2) + "\n").encode())
        print_line(f"{path}" if arguments.quiet else f"{to_text(report)}\n\n{path}")


def _report_of(trained: TrainedRun, arguments: argparse.Namespace) -> Report:
    """Return the report, with a progress bar."""
    from pvae.evaluation.report import evaluate

    count = arguments.images or len(trained.data.test)
    if count > len(trained.data.test):
        raise InputError(f"--images {count}: {trained.data.name} has {len(trained.data.test):,} test images")
    is_quiet = arguments.quiet
    is_large = math.prod(trained.data.image_shape) > _LARGE
    num_draws = arguments.importance_samples or (_FEW_DRAWS if is_large else _DRAWS)

    def report_draws(sample: ImportanceSample, taken: float) -> None:
        if arguments.seconds and not is_quiet:
            bar.reset(count)  # for the next draws
            untrusted = f"the weights of {sample.untrusted:.1%} of the images cannot be trusted"
            print_line(f"{sample.num_particles:,} draws for each image took {taken:.0f} s; {untrusted}")

    with progress_bar("importance sampling", count, "image", is_quiet, in_logs=True) as bar:
        return evaluate(
            trained,
            num_draws,
            arguments.images,
            arguments.seed,
            bar.update,
            engine=arguments.compile,
            precision=arguments.precision,
            seconds=arguments.seconds,
            on_sample=report_draws,
        )


def _parser() -> argparse.ArgumentParser:
    parser = Parser("evaluate", "Evaluate a trained run on its test images.", _EPILOG)
    add = parser.add_argument
    add("run", metavar="RUN", type=nonempty_path, help="a run folder")
    default = f"{_DRAWS}, or {_FEW_DRAWS} where an image has more than {_LARGE:,} values"
    add("--importance-samples", metavar="S", type=int, help=f"draws of z for each image (default: {default})")
    add(
        "--seconds",
        metavar="T",
        type=int,
        default=0,
        help="while the importance weights of more than 1%% of the images cannot be trusted, double the draws, as long "
        "as all of them take at most T seconds (default: 0, never)",
    )
    add("--images", metavar="N", type=int, help="a random subset of N test images (default: all)")
    add("--seed", metavar="S", type=int, default=0, help="of every draw and subset (default: 0)")
    add(
        "--compile",
        metavar="HOW",
        default="auto",
        help="none; graph: record the decoder's operators; inductor: compile them to C++, which is faster for many "
        "samples; auto: inductor there, if torch is 2.14 and there is a compiler, else graph (default: auto)",
    )
    add("--precision", metavar="P", default="fp32", help="fp32, or bf16 in the decoder's products (default: fp32)")
    add("--quiet", action="store_true", help="print the file's name only")
    add_places(parser, "where to write (default: RUN/evaluation.json)", "FILE")
    return parser
