"""The command `python -m pvae.train`: parse, call downward, print."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pvae.cli.command import Parser, ctrl_c_exits_at_once, run_command
from pvae.cli.train_parser import train_parser
from pvae.config.config import Config
from pvae.config.options import IMPORTANCE_WEIGHTED
from pvae.config.presets import SYSTEMS, as_option, get_system, list_systems
from pvae.core.errors import InputError, brief
from pvae.core.files import read_bounded
from pvae.core.torchrun import is_first_process, place_of

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

if TYPE_CHECKING:
    from pvae.runs.run import Run

__all__ = ["main"]

_WHERE = ("data_dir", "offline", "device", "checkpoint_every", "quiet")
_MOST_TOML = 2**18  # bytes


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its status: 0, 2 for what cannot be done, 1 for a lost disk, 130 or 143 for a signal.

    Args:
        argv: the arguments after the program's name; `sys.argv` if left out.
    """
    options: dict[str, Any] = {}

    def command() -> None:
        options.update(vars(train_parser().parse_args(argv)))
        _dispatch(dict(options), sys.argv[1:] if argv is None else argv)

    return run_command("pvae.train", command, lambda: _what_is_left(options))


def _what_is_left(options: dict[str, Any]) -> str:
    """Say what an interrupted training leaves that cannot say it itself."""
    folder = options.get("resume") or options.get("out")
    if options.get("seeds") is not None:
        named = shlex.quote(str(folder)) if folder else "and the folder of the seeds"
        return f"the same command with --out {named} goes on where each seed was"
    if folder is None:
        return "the last checkpoint of the run folder, if there is one, stands: go on with --resume and its name"
    if not os.access(folder / "config.json", os.F_OK):
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
        from pvae.cli.seeds import Plan, check_seeds, train_seeds

    if place_of() is not None:
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
        from pvae.training.fit import fit, resume  # torch is slow to import: not before the arguments are read

    where = {name: options[name] for name in _WHERE}
    path, out = options["resume"], options["out"]
    if where["checkpoint_every"] < 0:
        raise InputError(f"--checkpoint-every must be at least 0, not {where['checkpoint_every']}")
    if path is None and _is_restarted(out):
        path, out, options = out, None, {"config": None}
    options = _system_options(options, is_new=path is None)
    if path is None:
        config = _configured(options)
        if config.particles == 1 and config.elbo in IMPORTANCE_WEIGHTED and is_first_process():
            print(f"note: with --particles 1, --elbo {config.elbo} is the ELBO", file=sys.stderr)
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
    from pvae.runs.run import Run

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
