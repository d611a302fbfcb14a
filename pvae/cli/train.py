"""The command `python -m pvae.train`: parse the arguments, train, and print what to do next."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pvae.cli.command import Parser, add_places, ctrl_c_exits_at_once, nonempty_path, run_command
from pvae.config.config import OPTIONS, Config
from pvae.config.options import flag, whole_number
from pvae.config.presets import SYSTEMS, as_option, get_system, list_systems
from pvae.core.errors import InputError, brief, check_name
from pvae.core.files import read_bounded
from pvae.core.terminal import is_first_process, is_torchrun, print_line

if TYPE_CHECKING:
    from pvae.data.dataset import Dataset
    from pvae.runs.run import Run

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["main", "train_parser"]

_WHERE = ("data_dir", "offline", "device", "threads", "quiet")
_MOST_TOML = 2**18  # bytes

_EXAMPLES = """\
examples:
  python -m pvae.train --elbo analytic
      the Deep Bayes VAE on MNIST with the closed-form KL; on 5,000 digits if MNIST is not available
  python -m pvae.train --seeds 0:8 --out many
      the same for the seeds 0 to 7, and a table of mean and spread; interrupted, the same command goes on
  python -m pvae.train --binarize dynamic --elbo trace --particles 5 --latent-dim 20 --hidden 400
      another VAE on binary pixels, where the figure printed is a true lower bound on log p(x)
  torchrun --nproc-per-node=2 -m pvae.train --out RUN
      the same training by two processes that share each batch: faster on GPUs and for batches of 1,000 images or
      more, slower for small ones; if a process dies, the others end: go on with --resume RUN

Figures are nats per datum (an image): elbo = -(distortion + rate), higher is better, where the distortion is the
mean of -log p(x|z) and the rate the KL divergence of q(z|x) from p(z). The run folder holds config.json,
metrics.jsonl, checkpoint.safetensors, figures/ and TensorBoard events; pvae.load("RUN") gives the VAE in Python."""


# Options that other programs have, where no option here has a similar name, and what to give instead.
_OTHER_NAMES = {
    name: advice
    for names, advice in (
        ("--encoder --decoder --layers", "give --network, and --hidden for its widths; the decoder is its reverse"),
        (
            "--conditional --labels",
            "conditional VAEs do not exist here yet; labels are for evaluations and figures",
        ),
        ("--on-nan --max-skipped", "it was removed, since a training stops at NaN and names the cause"),
        ("--model", "give --system, or --network, --posterior, --prior and --likelihood"),
        ("--gpu --cuda --no-cuda", "give --device cuda, cuda:N or cpu"),
        ("--kl-weight --kld-weight", "give --beta"),
        ("--kl-annealing", "give --warm-up"),
        ("--learning-rate", "give --lr"),
        ("--lr-schedule --scheduler", "give --schedule"),
        ("--z-dim", "give --latent-dim"),
        ("--num-samples", "give --particles"),
        ("--grad-clip --max-grad-norm", "give --clip-norm"),
        ("--loss", "give --elbo and --likelihood"),
        ("--optimizer", "there is Adam alone: --lr, --adam-eps"),
        ("--data", "give --dataset folder:PATH, or --data-dir"),
        ("--output --save-dir --log-dir", "give --out"),
        ("--checkpoint --load", "give --resume RUN"),
        ("--workers --num-workers", "images are in memory; give --threads"),
    )
    for name in names.split()
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status, which `run_command` explains.

    Args:
        argv: the arguments after the program's name; `sys.argv` if left out.
    """

    def command() -> None:
        options = vars(train_parser().parse_args(argv))
        seeds, jobs = options.pop("seeds"), options.pop("jobs")
        if options.pop("list_systems"):
            print(list_systems())
        elif seeds is not None:
            _train_seeds(seeds, jobs, options, sys.argv[1:] if argv is None else argv)
        elif jobs is not None:
            raise InputError("--jobs goes with --seeds: leave it out")
        else:
            _train(options)

    return run_command("pvae.train", command, "interrupted before any step was taken")


def train_parser() -> argparse.ArgumentParser:
    """Return the parser of `python -m pvae.train`; its result has only those options of `Config` that were given."""
    description = "Train a variational autoencoder, written as Pyro functions, by stochastic variational inference."
    parser = Parser("train", description, _EXAMPLES, _OTHER_NAMES)
    parser.add_argument("--list-systems", action="store_true", help="list the published systems, and do nothing else")
    _add_config_options(parser)
    group = parser.add_argument_group("device, folders and output")
    out = "run folder, new or empty (default: runs/<time>-<system>-<elbo>)"
    data_dir = (
        "folder that holds MNIST/raw, FashionMNIST/raw, binarized_mnist/ or celeba/ (also: $PVAE_DATA); for a run of "
        "folder:PATH, where those images are now"
    )
    add_places(group, out, data_dir=data_dir)
    add = group.add_argument
    add("--device", metavar="DEVICE", help="auto, cpu, cuda or cuda:N (default: auto; on --resume, as before)")
    add(
        "--threads",
        metavar="N",
        type=int,
        help="number of threads (default: the fastest in the first steps, which depends on what else the machine "
        "computes; on --resume, as before); another number may change last digits",
    )
    add("--resume", metavar="RUN", type=nonempty_path, help="resume a run up to --epochs, with its own other options")
    add(
        "--seeds",
        metavar="LIST",
        help="0:8 (0 to 7) or 0,3,5: a run for each into --out DIR/seed-S, and a table of mean and spread; the number "
        "of threads that each has may change last digits",
    )
    add(
        "--jobs",
        metavar="N",
        type=int,
        help="with --seeds: number of runs at a time, among which the cores are divided (default: one run per core)",
    )
    add("--quiet", action="store_true", help="print the run folder and no progress")
    return parser


def _add_config_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what is trained (defaults: those of the system; here deep-bayes)")
    group.add_argument(
        "--config", metavar="FILE", type=nonempty_path, help="a system of your own: the options below, as TOML"
    )
    for name, option in OPTIONS.items():
        if name == "elbo":
            group = parser.add_argument_group("how it is trained")
        text = f"published system to start from: {', '.join(SYSTEMS)}" if name == "system" else option.text
        text, default = text.replace("%", "%%"), option.default
        if isinstance(default, bool):
            group.add_argument(flag(name), action="store_true", default=argparse.SUPPRESS, help=text)
        elif name != "source":
            kind = int if isinstance(default, tuple) else type(default)
            group.add_argument(
                flag(name),
                metavar={int: "N", float: "X"}.get(kind, "NAME"),
                type=kind,
                nargs=("+" if default else "*") if isinstance(default, tuple) else None,
                default=argparse.SUPPRESS,
                help=text,
            )


def _train_seeds(text: str, jobs: int | None, options: dict[str, Any], argv: Sequence[str]) -> None:
    """Train each seed by a process of this command."""
    with ctrl_c_exits_at_once("pvae.train"):
        from pvae.cli.seeds import check_seeds, train_seeds

    if is_torchrun():
        raise InputError("--seeds starts its own processes: run it without torchrun")
    for name in ("seed", "resume"):
        if options.get(name) is not None:
            raise InputError(f"--seeds {text} names the seeds, and finds the runs to resume: leave --{name} out")
    if jobs is not None:
        whole_number("jobs", jobs)
    seeds = check_seeds(text)
    config, _ = _configured(options)
    train_seeds(
        config,
        seeds,
        options["out"] or Path("runs") / f"{datetime.now():%Y-%m-%d-%H%M%S}-{config.system}-{config.elbo}-seeds",
        _without_seeds(argv),
        jobs=jobs,
        data=(options["data_dir"], options["offline"]),
        quiet=options["quiet"],
    )


def _without_seeds(argv: Sequence[str]) -> list[str]:
    """Return the arguments of one seed's process: without --seeds, --jobs, --out and --quiet."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in ("--seeds", "--jobs", "--out"):
        parser.add_argument(name)
    parser.add_argument("--quiet", action="store_true")
    return parser.parse_known_args(argv)[1]


def _train(options: dict[str, Any]) -> None:
    with ctrl_c_exits_at_once("pvae.train"):
        from pvae.runs.run import Run
        from pvae.training.fit import fit, resume  # imports torch, which is slow: after the arguments are read

    where = {name: options[name] for name in _WHERE}
    if where["threads"] is not None:
        whole_number("threads", where["threads"])
    path, out = options["resume"], options["out"]
    if path is None:
        config, data = _configured(options)
        run = fit(config, data=data, out=out, **{**where, "device": where["device"] or "auto"})
    else:
        if out is not None:
            raise InputError(f"--resume {path} writes into that folder: leave --out out")
        chosen, recorded = _chosen(options), Run.open(path).config
        for name, value in chosen.items():
            ours, theirs = OPTIONS[name].check(name, value), getattr(recorded, name)
            if name != "epochs" and ours != theirs:
                raise InputError(
                    f"{as_option(name, ours)} contradicts {path}/config.json, which says {as_option(name, theirs)}: "
                    "leave it out, or start a new run"
                )
        run = resume(path, chosen.get("epochs"), **where)
    if is_first_process():
        print_line(run.path if where["quiet"] else _what_is_next(run))


def _what_is_next(run: Run) -> str:
    """Return the lines that are printed after a training: where the run is, and commands that take it."""
    folder = shlex.quote(str(run.path))
    files = "config.json, metrics.jsonl, checkpoint.safetensors, figures/, TensorBoard events"
    following = [f"python -m pvae.draw {folder}"]
    if run.config.posterior != "delta":  # an autoencoder has no likelihood
        following.append(f"python -m pvae.evaluate {folder}")
    if run.config.system == "images":
        following += [f"python -m pvae.sample {folder}", f"python -m pvae.score {folder} IMAGES"]
    following.append(f"tensorboard --logdir {folder}")
    is_stopped = run.metrics()[-1].epoch < run.config.epochs  # by --patience
    if run.config.schedule == "constant" and not is_stopped:
        following.append(f"python -m pvae.train --resume {folder} --epochs {2 * run.config.epochs}")
    if not run.data.dataset:  # no command can find images given from Python
        following = [run.in_python, f"tensorboard --logdir {folder}"]
    return f"done; the run is in {folder}: {files}\nnext:  " + "\n   or  ".join(following)


def _chosen(options: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of `Config` that are given by the command line or, failing that, by the TOML file."""
    path, chosen = options["config"], {}
    if path is not None:
        try:
            chosen = tomllib.loads(read_bounded(path, _MOST_TOML).decode("utf-8"))
            for name, value in chosen.items():
                OPTIONS[check_name("option", name, OPTIONS)].check(name, value)
        except InputError as error:
            raise InputError(f"--config {path}: {error}") from None
        except OSError as error:
            raise InputError(f"--config {path} cannot be read ({error.strerror})") from None
        except (ValueError, RecursionError) as error:
            raise InputError(f"--config {path} is not TOML: {brief(error)}") from None
    return {**chosen, **{name: options[name] for name in OPTIONS if name in options}}


def _configured(options: dict[str, Any]) -> tuple[Config, Dataset | None]:
    """Return the named system with the given options; a TOML file may name a system of its own.

    The system "images" gets the options that suit its images; these are returned too, and what was chosen is printed.
    """
    from pvae.elbos.registry import elbo_of

    if "system" in options:
        get_system(options["system"])
    chosen, data = _chosen(options), None
    default = "images" if str(chosen.get("dataset", "")).startswith(("folder:", "svhn", "cifar10")) else "deep-bayes"
    config = SYSTEMS.get(chosen.get("system", default), Config()).replace(**chosen)
    config.check_used(chosen)
    if config.system == "images":
        from pvae.data.choices import describe_choices, images_config
        from pvae.runs.data import load_for

        chosen.pop("system", None)
        data = load_for(config, options["data_dir"], options["offline"])
        config = images_config(data, **{"dataset": config.dataset, **chosen})
    elbo_of(config)  # refuses what does not go together
    if data is not None and is_first_process() and not options["quiet"]:
        print_line(f"{data.title}{data.found and ': '}{data.found}; chosen for them, unless you give another value:")
        print_line(describe_choices(data, config, chosen))
    return config, data
