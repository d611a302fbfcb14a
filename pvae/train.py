"""The command `python -m pvae.train`: parse, call downward, print."""

from __future__ import annotations

import argparse
import functools
import os
import shlex
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pvae.commands import Parser, ctrl_c_exits_at_once, is_first_process, leave, run_command
from pvae.config import Config
from pvae.deadlines import ending_in_time
from pvae.errors import InputError, brief
from pvae.files import read_bounded
from pvae.options import ACTIVATIONS, DATASETS, LIKELIHOODS, NETWORKS, PIXELS, POSTERIORS, RATE_REDUCTIONS
from pvae.systems import SYSTEMS, as_option, get_system, list_systems

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

if TYPE_CHECKING:
    from pvae.runs import Run

__all__ = ["main"]

_WHERE = ("data_dir", "offline", "device", "checkpoint_every", "quiet")
_MOST_TOML = 2**18  # bytes

_EXAMPLES = """\
examples:
  python -m pvae.train --elbo analytic
      the Deep Bayes VAE on MNIST with the closed-form KL; on 5,000 digits if MNIST is not to be had
  python -m pvae.train --seeds 0:8 --out many
      the same for the seeds 0 to 7, and a table of mean and spread; interrupted, the same command goes on
  python -m pvae.train --binarize dynamic --elbo trace --particles 5 --latent-dim 20 --hidden 400
      another VAE on binary pixels, where the figure printed is a true lower bound on log p(x)
  torchrun --nproc-per-node=2 -m pvae.train --out RUN
      the same training by two processes that share each batch; --max-restarts 3 lets it outlive the death of one

Figures are nats per datum (an image): elbo = -(distortion + rate), higher is better, where the distortion is the
mean of -log p(x|z) and the rate the KL divergence of q(z|x) from p(z). The run folder holds config.json,
metrics.jsonl, checkpoint.safetensors, figures/ and TensorBoard events; pvae.load("RUN") gives the VAE in Python."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its status: 0, 2 for what cannot be done, 1 for a lost disk, 130 or 143 for a signal.

    Args:
        argv: the arguments after the program's name; `sys.argv` if left out.
    """
    options: dict[str, Any] = {}

    def command() -> None:
        options.update(vars(_parser().parse_args(argv)))
        _dispatch(dict(options), sys.argv[1:] if argv is None else argv)

    with ending_in_time("pvae.train", lambda: _what_is_left(options)):
        return run_command("pvae.train", command)


def _what_is_left(options: dict[str, Any]) -> str:
    """Say what a training leaves that has no time to say it itself."""
    folder = options.get("resume") or options.get("out")
    if folder is None:
        return "the last checkpoint of the run folder, if there is one, stands: go on with --resume and its name"
    if not (folder / "config.json").exists():
        return "nothing was saved"
    return f"the last checkpoint stands; go on with: python -m pvae.train --resume {shlex.quote(str(folder))}"


def _dispatch(options: dict[str, Any], argv: Sequence[str]) -> None:
    seeds, jobs = options.pop("seeds"), options.pop("jobs")
    if options.pop("list_systems"):
        print(list_systems())
    elif seeds is not None:
        _train_seeds(seeds, jobs, options, argv)
    elif jobs is not None:
        raise InputError("--jobs goes with --seeds: leave it out")
    else:
        _train(options)


def _train_seeds(text: str, jobs: int | None, options: dict[str, Any], argv: Sequence[str]) -> None:
    """Let a process of this command train each seed."""
    with ctrl_c_exits_at_once("pvae.train"):
        from pvae.seeds import Plan, check_seeds, train_seeds

    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError("--seeds starts processes of its own: without torchrun")
    for name in ("seed", "resume"):
        if options.get(name) is not None:
            raise InputError(f"--seeds {text} names the seeds and finds what is to be resumed: leave --{name} out")
    if jobs is not None and jobs < 1:
        raise InputError(f"--jobs must be at least 1, not {jobs}")
    seeds, out = check_seeds(text), options["out"]
    config = _configured(_system_options(options))
    time = f"{datetime.now():%Y-%m-%d-%H%M%S}"
    where = {"--data-dir": options["data_dir"], "--device": options["device"]}
    resume = [text for name, value in where.items() if value is not None for text in (name, str(value))]
    resume += ["--offline"] * options["offline"] + ["--checkpoint-every", str(options["checkpoint_every"])]
    train_seeds(
        Plan(
            config=config,
            seeds=seeds,
            folder=out or Path("runs") / f"{time}-{config.system}-{config.elbo}-seeds",
            train=_without_seeds(argv),
            resume=resume,
            jobs=jobs or 0,
            data_dir=options["data_dir"],
            offline=options["offline"],
            quiet=options["quiet"],
        )
    )


def _without_seeds(argv: Sequence[str]) -> list[str]:
    """Return the arguments without those that are of all seeds together."""
    parser = Parser(add_help=False, allow_abbrev=False)
    for name in ("--seeds", "--jobs", "--out"):
        parser.add_argument(name)
    parser.add_argument("--quiet", action="store_true")  # the lines of its epochs are heard
    return parser.parse_known_args(argv)[1]


def _system_options(options: dict[str, Any], is_new: bool = True) -> dict[str, Any]:
    """Return what is given of the system, by a file and by options over it."""
    if is_new and "system" in options:
        get_system(options["system"])  # a name of one's own comes from --config
    given = {name: value for name, value in options.items() if name not in (*_WHERE, "resume", "out", "config")}
    return {**_read_toml(options["config"]), **given}


def _train(options: dict[str, Any]) -> None:
    with ctrl_c_exits_at_once("pvae.train"):
        from pvae.fitting import fit, resume  # torch is slow to import: not before the arguments are read

    where = {name: options[name] for name in _WHERE}
    path, out = options["resume"], options["out"]
    if where["checkpoint_every"] < 0:
        raise InputError(f"--checkpoint-every must be at least 0, not {where['checkpoint_every']}")
    if path is None and _is_restarted(out):
        path, out, options = out, None, {"config": None}
    options = _system_options(options, is_new=path is None)
    if path is None:
        config = _configured(options)
        run = fit(config, out=out, **{**where, "device": where["device"] or "auto"})
    else:
        _refuse_contradictions(path, out, options)
        run = resume(path, options.get("epochs"), **where)
    if sys.stdout is not None and is_first_process():
        _say_next(run, where["quiet"])


def _is_restarted(out: Path | None) -> bool:
    """Whether torchrun started this command again after a process of it had ended: it then goes on with its run.

    Raises:
        InputError: torchrun may do so, and the run would not be found again.
    """
    if int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")) > 0 and out is None:
        raise InputError("torchrun --max-restarts needs --out DIR or --resume RUN, to find the run again")
    is_again = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
    return is_again and out is not None and (out / "config.json").exists()


def _configured(options: dict[str, Any]) -> Config:
    """Return the published system that is named, with the options laid over it.

    A name that is not published is a user's own system, laid over deep-bayes.
    """
    name = options.get("system", "deep-bayes")
    config = SYSTEMS[name].replace(**options) if name in SYSTEMS else Config().replace(**options)
    config.refuse_unread(options)
    return config


def _read_toml(path: Path | None) -> dict[str, Any]:
    """Return the fields of a system that a TOML file gives."""
    if path is None:
        return {}
    try:
        options = tomllib.loads(read_bounded(path, _MOST_TOML, follow=True).decode("utf-8"))
    except InputError as error:
        raise InputError(f"--config {error}") from None
    except OSError as error:
        raise InputError(f"--config {path} cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"--config {path} is not TOML: {brief(error)}") from None
    try:
        Config().replace(**options)
    except InputError as error:
        raise InputError(f"--config {path}: {error}") from None
    return options


def _refuse_contradictions(path: Path, out: Path | None, options: dict[str, Any]) -> None:
    """With --resume, the run's own options hold; --epochs alone may differ."""
    from pvae.runs import Run

    if out is not None:
        raise InputError(f"--resume {path} writes into that folder: leave --out out")
    recorded = Run.open(path).config
    given = recorded.replace(**options)
    for name in options:
        if name != "epochs" and getattr(given, name) != getattr(recorded, name):
            raise InputError(
                f"{as_option(name, getattr(given, name))} contradicts {path}/config.json, which says "
                f"{as_option(name, getattr(recorded, name))}: leave it out, or start a new run"
            )


def _say_next(run: Run, quiet: bool) -> None:
    if quiet:
        print(run.path)
        return
    folder = shlex.quote(str(run.path))
    print(
        f"done; the run lies in {folder}: config.json, metrics.jsonl, checkpoint.safetensors, figures/, "
        "TensorBoard events"
    )
    print(f"next:  python -m pvae.draw {folder}")
    if run.config.posterior != "delta":  # an autoencoder has no likelihood
        print(f"   or  python -m pvae.evaluate {folder}")
    print(f"   or  tensorboard --logdir {folder}")
    if run.config.schedule == "constant":
        print(f"   or  python -m pvae.train --resume {folder} --epochs {2 * run.config.epochs}")


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m pvae.train",
        description="Train a variational autoencoder, written as Pyro functions, by stochastic variational inference.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--list-systems", action="store_true", help="list the published systems, and do nothing else")
    _add_system_options(parser.add_argument_group("what is trained (defaults: those of the system; here deep-bayes)"))
    _add_training_options(parser.add_argument_group("how it is trained"))
    _add_run_options(parser.add_argument_group("where it runs and what it leaves"))
    return parser


def _add_system_options(group: argparse._ArgumentGroup) -> None:
    add = functools.partial(group.add_argument, default=argparse.SUPPRESS)
    known = Config()
    add(
        "--system",
        metavar="NAME",
        help=f"published system to start from: {', '.join(SYSTEMS)}",
    )
    group.add_argument("--config", metavar="FILE", type=Path, help="a system of your own: the options below, as TOML")
    add(
        "--dataset",
        metavar="NAME",
        help=f"{', '.join(DATASETS)} (default: {known.dataset}: MNIST, or else 5,000 of its digits)",
    )
    add("--image-size", metavar="N", type=int, help="side to which image files are resized (default: 64)")
    add("--crop", metavar="N", type=int, help="side of the square cut out of image files first (default: none)")
    add("--grey", action="store_true", help="read image files in one channel")
    add("--skip-broken", action="store_true", help="leave out image files that cannot be decoded")
    add(
        "--binarize",
        metavar="HOW",
        help="none: pixels stay grey, the bound is a pseudo-ELBO; threshold: at 0.5; static: each drawn once with its "
        f"grey value as probability; dynamic: drawn anew at every visit (default: {known.binarize})",
    )
    add("--pad", metavar="N", type=int, help="black pixels added on each side (default: 0)")
    add("--pixels", metavar="RANGE", help=f"{' or '.join(PIXELS)}: [0, 1] or [-1, 1] (default: {known.pixels})")
    add("--network", metavar="KIND", help=f"{', '.join(NETWORKS)} (default: {known.network})")
    add(
        "--hidden",
        metavar="H",
        type=int,
        nargs="+",
        help="widths of the encoder's hidden layers, or channels of its convolutions (default: 100 100)",
    )
    add("--activation", metavar="NAME", help=f"of an mlp: {' or '.join(ACTIVATIONS)} (default: {known.activation})")
    add(
        "--initialization",
        metavar="HOW",
        help="torch, or burda: Glorot-uniform, the last bias at the mean image (default: torch)",
    )
    add("--latent-dim", metavar="L", type=int, help=f"latent dimensions (default: {known.latent_dim})")
    add("--second-latent-dim", metavar="L", type=int, help="of a second stochastic layer (default: 0, none)")
    add(
        "--second-hidden",
        metavar="H",
        type=int,
        nargs="+",
        help="widths of the hidden layers between the two stochastic layers (default: 100 100)",
    )
    add(
        "--posterior",
        metavar="KIND",
        help=f"{', '.join(POSTERIORS)}; delta makes an autoencoder (default: {known.posterior})",
    )
    add("--likelihood", metavar="KIND", help=f"{', '.join(LIKELIHOODS)} (default: {known.likelihood})")
    add(
        "--scale",
        metavar="S",
        type=float,
        help="of a normal or logistic likelihood (default: 1)",
    )


def _add_training_options(group: argparse._ArgumentGroup) -> None:
    add = functools.partial(group.add_argument, default=argparse.SUPPRESS)
    known = Config()
    add(
        "--elbo",
        metavar="NAME",
        help="trace (Pyro's Trace_ELBO, Monte Carlo), analytic (TraceMeanField_ELBO, closed-form KL), handwritten "
        "(log p(x|z) + log p(z) - log q(z|x) without Pyro's inference); the ELBO with another gradient: stl (sticking "
        "the landing), score (score function), score-loo (with a leave-one-out baseline); bounds of importance "
        f"weights: iwae, dreg (doubly reparameterised), renyi, ciwae, miwae (default: {known.elbo})",
    )
    add("--particles", metavar="K", type=int, help=f"samples of z per image in the bound (default: {known.particles})")
    add("--alpha", metavar="A", type=float, help=f"of --elbo renyi: 0 is iwae, 1 the ELBO (default: {known.alpha})")
    add("--mix", metavar="M", type=float, help=f"of --elbo ciwae: the ELBO's share (default: {known.mix})")
    add("--groups", metavar="M", type=int, help=f"of --elbo miwae: into which K is parted (default: {known.groups})")
    add("--beta", metavar="B", type=float, help=f"weight of the rate in the loss (default: {known.beta})")
    add(
        "--rate-reduction",
        metavar="HOW",
        help=f"{' or '.join(RATE_REDUCTIONS)} over latent dimensions, in the loss (default: {known.rate_reduction})",
    )
    add("--warm-up", metavar="N", type=int, help="epochs over which the rate's weight rises from 0 (default: 0)")
    add("--free-bits", metavar="NATS", type=float, help="rate per latent dimension that costs nothing (default: 0)")
    add("--epochs", metavar="N", type=int, help=f"passes over the training images (default: {known.epochs})")
    add("--batch-size", metavar="B", type=int, help=f"images per step (default: {known.batch_size})")
    add("--lr", metavar="RATE", type=float, help=f"Adam's learning rate (default: {known.lr})")
    add(
        "--schedule",
        metavar="NAME",
        help="constant; cosine: down to 2 %% of it; steps: times 0.63 after 2/5 and after 7/10 of the epochs; paper: "
        "Burda et al.'s eight stages, whose own length is --epochs 3280 --batch-size 20 --lr 0.001 "
        f"(default: {known.schedule})",
    )
    add("--adam-eps", metavar="E", type=float, help=f"Adam's epsilon (default: {known.adam_eps})")
    add(
        "--compile",
        metavar="HOW",
        help="none; graph: record a step once and replay it, the same training in less time; inductor: compile it "
        "whole, the fastest after some seconds at the start, with a C++ compiler only; cuda-graph: launch it on an "
        f"NVIDIA GPU as one (default: {known.compile})",
    )
    add(
        "--precision",
        metavar="P",
        help="fp32 or, of a compiled step, bf16 or a GPU's tf32 matrix products (default: fp32)",
    )
    add(
        "--clip-norm", metavar="N", type=float, help="most that the norm of all gradients may be (default: 0, no bound)"
    )
    add("--on-nan", metavar="HOW", help="stop, or skip the step, at a loss or gradient that is NaN (default: stop)")
    add("--max-skipped", metavar="N", type=int, help=f"steps that may be skipped (default: {known.max_skipped})")
    add("--seed", metavar="S", type=int, help=f"of weights, order and draws (default: {known.seed})")


def _add_run_options(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--data-dir", metavar="DIR", type=Path, help="holds MNIST/raw as torchvision lays it (also: $PVAE_DATA)")
    add("--offline", action="store_true", help="do not download anything")
    add("--device", metavar="DEVICE", help="auto, cpu, cuda or cuda:N (default: auto; on --resume, as before)")
    add("--out", metavar="DIR", type=Path, help="run folder, new or empty (default: runs/<time>-<system>-<elbo>)")
    add("--resume", metavar="RUN", type=Path, help="go on with a run up to --epochs; its other options hold")
    add(
        "--checkpoint-every",
        metavar="N",
        type=int,
        default=0,
        help="write a checkpoint every N steps too (default: after each epoch, and on Ctrl-C or SIGTERM)",
    )
    add(
        "--seeds",
        metavar="LIST",
        help="0:8 (0 to 7) or 0,3,5: a run for each into --out DIR/seed-S, and a table of mean and spread; the number "
        "of threads that each has may change last digits",
    )
    add("--jobs", metavar="N", type=int, help="of --seeds: runs at a time, the cores shared out (default: one a core)")
    add("--quiet", action="store_true", help="print the run folder and no progress")


if __name__ == "__main__":
    leave(main())
