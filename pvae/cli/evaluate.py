"""The command `pvae evaluate`: measures of a trained run, each with its standard error."""

from __future__ import annotations

import argparse
import contextlib
import functools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pvae.cli.command import Command, Parser, add_seed, integer, output_path, run_parser, write
from pvae.cli.own_code import open_run, runs_in
from pvae.core.errors import InputError
from pvae.core.files import to_json
from pvae.core.terminal import print_line, progress_bar

if TYPE_CHECKING:
    from pvae.evaluation.context import Request
    from pvae.runs.run import Run

_DRAWS, _FEW_DRAWS = 5000, 200  # for each datum
_MINUTES = 2.0  # of log p(x)
_LARGE = 2000  # values of a datum, beyond which many draws take long and help little

_EPILOG = """\
It prints the ELBO and its parts, active units, the parts of the rate, and log p(x), each with its standard error, and
warns where a log p(x) is not reliable; it writes RUN/evaluation.json. Several runs of the same data give one table,
with the differences from the run with the highest log p(x); folders of runs that differ in the seed give a row each,
with errors over seeds. notebooks/evaluating.md explains them.

examples:
  pvae evaluate runs/my-run
  pvae evaluate runs/my-run --importance-samples 100 --images 1000
  pvae evaluate runs/my-run --method annealed --images 1000
  pvae evaluate runs/my-run --images 1000 --gaps 20 --calibration
  pvae evaluate runs/my-table --given age,income
  pvae evaluate runs/a runs/b runs/c --latex
  pvae evaluate runs/trace-seeds runs/iwae-seeds"""


def _evaluate(arguments: argparse.Namespace) -> None:
    from pvae.evaluation.report import check_density

    runs, folders = _opened(arguments)
    first = runs[0]
    if arguments.images is not None and arguments.images > first.data.num_test:
        raise InputError(f"--images {arguments.images}: {first.data.name} has {first.data.num_test:,} test data")
    is_table = len(runs) > 1 or arguments.latex
    requests = _requested(arguments, is_table)
    how = _how(arguments, math.prod(first.data.datum_shape) > _LARGE)
    out = arguments.out
    if out is not None or not is_table:
        out = output_path(out, first.place / "evaluation.json")
    for run in runs:
        run.dataset(None, arguments.data_dir, arguments.offline)
        check_density(run)
    if not is_table:
        _report(first, out, arguments, how, requests)
        return
    text = _table(runs, folders, arguments.latex, how)
    if out:
        write(out, f"{text}\n")
    if out and arguments.quiet:
        text = str(out)
    print_line(text)


def _minutes(text: str) -> float:
    """Return a time above 0; a type of `add_argument`."""
    with contextlib.suppress(ValueError):
        if float(text) > 0:
            return float(text)
    raise argparse.ArgumentTypeError(f"must be a number above 0, or inf, not {text}")


def _requested(arguments: argparse.Namespace, is_table: bool) -> dict[str, Any]:
    """Return the values of the options of measures that are computed on request.

    Raises:
        InputError: they are given for a table, or one that needs all data beside --minutes.
    """
    every = _requests()
    requests = {one.name: getattr(arguments, one.name) for one in every}
    requests = {name: value for name, value in requests.items() if value not in (None, False)}
    of_all = [f"--{one.name}" for one in every if one.needs_all and one.name in requests]
    if arguments.minutes is not None and of_all:
        raise InputError(f"--minutes bounds the estimate of log p(x) alone: leave it out, or {' and '.join(of_all)}")
    if is_table and (requests or arguments.minutes is not None):
        of_one = ", ".join(f"--{one.name}" for one in every)
        raise InputError(f"{of_one} and --minutes are of one run, without --latex: give one")
    if arguments.minutes is None and not of_all:
        arguments.minutes = _MINUTES
    return requests


def _report(
    run: Run, out: Path, arguments: argparse.Namespace, how: Mapping[str, Any], requests: Mapping[str, Any]
) -> None:
    """Write and print the report of a run, and draw what was requested."""
    from pvae.evaluation.report import evaluate, to_text
    from pvae.runs.writer import write_card

    seconds = None
    if arguments.minutes is not None and arguments.minutes < math.inf:
        seconds = 60 * arguments.minutes
    report = evaluate(run, seconds=seconds, **how, **requests)
    write(out, f"{to_json(report.record(), indent=2)}\n")
    if out == run.path / "evaluation.json":
        write_card(run)
    print_line(out if arguments.quiet else f"{to_text(report)}\n\n{out}")
    if not requests:
        return
    from pvae.plotting.pictures import OF_REPORTS

    folder = out.parent / "figures"
    if arguments.out is not None:
        folder = out.parent / f"{out.stem}-figures"
    for name, picture in OF_REPORTS.items():
        figure = picture(run, report)
        if figure is None:
            continue
        write(folder / f"{name}.png", figure)
        if not arguments.quiet:
            print_line(folder / f"{name}.png")


def _how(arguments: argparse.Namespace, is_large: bool) -> dict[str, Any]:
    """Return how log p(x) is estimated, of which data.

    Raises:
        InputError: there are settings of annealing, and the method is another.
    """
    from pvae.marginal.log_likelihood import ANNEALING

    num_draws = arguments.importance_samples
    method = arguments.method or ("importance" if num_draws else "auto")
    if num_draws is None:
        num_draws = _FEW_DRAWS if is_large else _DRAWS
    given = {name: value for name, value in vars(arguments).items() if name in ANNEALING and value is not None}
    if given and method not in ("auto", "annealed"):
        message = "--temperatures, --chains and --start are of annealing: leave them out, or give --method annealed"
        raise InputError(message)
    return {
        "num_particles": num_draws,
        "num_images": arguments.images,
        "seed": arguments.seed,
        "method": method,
        "annealing": {**ANNEALING, **given},
        "engine": arguments.compile,
        "progress": functools.partial(progress_bar, unit="datum", quiet=arguments.quiet, in_logs=True),
    }


def _table(runs: Sequence[Run], folders: Sequence[Path], is_latex: bool, how: Mapping[str, Any]) -> str:
    """Return the table of several runs, or of several folders of runs."""
    from pvae.evaluation import runs_table  # imports pandas

    compared = runs_table.compare_runs(runs, **how)
    if folders:
        compared = runs_table.over_seeds(compared, folders)
    if is_latex:
        return runs_table.comparison_to_latex(compared)
    return runs_table.comparison_to_markdown(compared)


def _opened(arguments: argparse.Namespace) -> tuple[list[Run], list[Path]]:
    """Return the runs, and for each run the folder that holds it, if folders were given."""
    every = list({path.resolve(): path for path in arguments.run}.values())  # each once
    given = [(path, runs_in(path)) for path in every]
    folders = [path for path, found in given for _ in found]
    if folders and any(not found for _, found in given):
        raise InputError("a row is a run, or the mean of a folder of runs: give runs alone, or folders alone")
    paths = [run for _, found in given for run in found] or every
    runs = [open_run(path, arguments.vae, len(paths) == 1) for path in paths]
    for folder in dict.fromkeys(folders):
        _check_seeds(folder, [run for run, place in zip(runs, folders) if place == folder])
    return runs, folders


def _check_seeds(folder: Path, runs: Sequence[Run]) -> None:
    """Check that the runs of a folder differ in the seed alone.

    Raises:
        InputError: there is only one, or they differ in something else, or two have the same seed.
    """
    if len(runs) < 2:
        raise InputError(f"{folder} holds one run, which has no error over seeds: give {runs[0].path}")
    configs = [run.config.replace(seed=0, source="") for run in runs]
    seeds = {run.config.seed for run in runs}
    if any(config != configs[0] for config in configs) or len(seeds) < len(runs):
        raise InputError(f"the runs in {folder} do not differ in the seed alone: give the runs themselves")


def _requests() -> list[Request]:
    """Return the options of measures that are computed on request."""
    from pvae.evaluation.measures import MEASURES

    every = [kind.request for kind in MEASURES.values() if kind.request]
    return list(dict.fromkeys(every))


def _parser() -> Parser:
    description = "Evaluate a trained run on its test data."
    out = "a new file (default: RUN/evaluation.json)"
    run = "a run folder; several give one table, as do folders of runs that differ in the seed"
    parser = run_parser("pvae evaluate", description, _EPILOG, out, "FILE", nargs="+", help=run)
    add = parser.add_argument
    default = f"{_DRAWS}, or {_FEW_DRAWS} where a datum has more than {_LARGE:,} values"
    samples = f"draws of z for each datum by importance sampling (default: {default})"
    add("--importance-samples", metavar="S", type=integer(2), help=samples)
    method = (
        "of log p(x). quadrature: of one or two latents, or a sum over few codes; importance: from q(z | x) and "
        "p(z); annealed: by chains that lead to p(z | x). auto: the first of these to be trusted, for each datum; "
        "it anneals 10,000 data of 784 values at most, and fewer larger ones (default: auto, or importance where "
        "--importance-samples is given)"
    )
    add("--method", metavar="HOW", choices=["auto", "quadrature", "importance", "annealed"], help=method)
    add("--temperatures", dest="num_temperatures", metavar="T", type=integer(1), help="of annealing (default: 100)")
    add("--chains", dest="num_chains", metavar="C", type=integer(2), help="of annealing, for each datum (default: 8)")
    start = "where the chains start: at draws from q(z | x) or p(z) (default: posterior)"
    add("--start", metavar="FROM", choices=["posterior", "prior"], help=start)
    for one in _requests():
        how: dict[str, Any] = {"action": "store_true"}
        if one.metavar:
            how = {"metavar": one.metavar, "type": str if one.least is None else integer(one.least)}
        add(f"--{one.name}", help=one.help, **how)
    add("--images", metavar="N", type=integer(2), help="a random subset of N test data (default: all)")
    minutes = (
        "estimate log p(x) of as many test data, in random order, as M minutes suffice for, and of ten if none of them "
        f"can be trusted; inf for all (default: {_MINUTES:g}; of several runs, all)"
    )
    add("--minutes", metavar="M", type=_minutes, help=minutes)
    add_seed(parser)
    engine = (
        "none; graph: record the operators; inductor: compile them to C++, which is faster for many "
        "samples; auto: inductor there, if torch is 2.14 and there is a compiler, else graph (default: auto)"
    )
    add("--compile", metavar="HOW", choices=["auto", "none", "graph", "inductor"], default="auto", help=engine)
    add("--latex", action="store_true", help="print the table of one or several runs as a LaTeX tabular")
    add("--quiet", action="store_true", help="print the file's name only")
    return parser


main = Command(_parser, _evaluate)
