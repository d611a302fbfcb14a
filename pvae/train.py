"""The command `python -m pvae.train`: parse, call downward, print."""

from __future__ import annotations

import argparse
import functools
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from pvae.config import BINARIZATIONS, DATASETS, Config
from pvae.errors import InputError, TrainingError
from pvae.systems import SYSTEMS, get_system

if TYPE_CHECKING:
    from pvae.runs import Run

__all__ = ["main"]

_EXAMPLES = """\
examples:
  python -m pvae.train --elbo analytic
      the Deep Bayes VAE on MNIST with the closed-form KL; on 5,000 digits if MNIST is not to be had
  python -m pvae.train --binarize dynamic --elbo trace --particles 5 --latent-dim 20 --hidden 400
      another VAE on binary pixels, where the figure printed is a true lower bound on log p(x)

Figures are nats per image: elbo = -(distortion + rate), higher is better. The run folder holds config.json,
metrics.jsonl, checkpoint.pt, figures/ and TensorBoard events; pvae.load("RUN") gives the VAE in Python."""


class _Parser(argparse.ArgumentParser):
    """A parser whose refusal is one line."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message} (--help lists the options)")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status: 0, 2 for what cannot be done as asked, 130 for Ctrl-C.

    Args:
        argv: the arguments after the program's name; `sys.argv` if left out.
    """
    try:
        _train(vars(_parser().parse_args(argv)))
        return 0
    except (InputError, TrainingError) as error:
        print(f"pvae.train: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"pvae.train: {error.filename or 'a file'} cannot be written or read: {error.strerror}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as error:
        print(f"pvae.train: {str(error) or 'interrupted before the training began'}", file=sys.stderr)
        return 130


def _train(options: dict[str, Any]) -> None:
    from pvae.fitting import fit, resume  # torch is slow to import: not before the arguments are read

    where = {name: options.pop(name) for name in ("data_dir", "offline", "device", "quiet")}
    path, out = options.pop("resume"), options.pop("out")
    if path is None:
        config = get_system(options.pop("system", "deep-bayes")).replace(**options)
        run = fit(config, out=out, **{**where, "device": where["device"] or "auto"})
    else:
        _refuse_contradictions(path, out, options)
        run = resume(path, options.get("epochs"), **where)
    if where["quiet"]:
        print(run.path)
    else:
        _say_next(run)


def _refuse_contradictions(path: Path, out: Path | None, options: dict[str, Any]) -> None:
    """With --resume, the run's own options hold; --epochs alone may differ."""
    from pvae.runs import Run

    if out is not None:
        raise InputError(f"--resume {path} writes into that folder: leave --out out")
    recorded = Run.open(path).config
    given = recorded.replace(**options)
    for name in options:
        if name != "epochs" and getattr(given, name) != getattr(recorded, name):
            flag = "--" + name.replace("_", "-")
            raise InputError(
                f"{flag} {options[name]} contradicts {path}/config.json, which says {getattr(recorded, name)}: "
                f"leave {flag} out, or start a new run"
            )


def _say_next(run: Run) -> None:
    folder = shlex.quote(str(run.path))
    print(f"done; the run lies in {folder}: config.json, metrics.jsonl, checkpoint.pt, figures/, TensorBoard events")
    print(f"next:  tensorboard --logdir {folder}")
    print(f"   or  python -m pvae.train --resume {folder} --epochs {2 * run.config.epochs}")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m pvae.train",
        description="Train a variational autoencoder, written as Pyro functions, by stochastic variational inference.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    _add_system_options(parser.add_argument_group("what is trained (defaults: the Deep Bayes system)"))
    _add_training_options(parser.add_argument_group("how it is trained"))
    _add_run_options(parser.add_argument_group("where it runs and what it leaves"))
    return parser


def _add_system_options(group: argparse._ArgumentGroup) -> None:
    add = functools.partial(group.add_argument, default=argparse.SUPPRESS)
    known = Config()
    add("--system", metavar="NAME", help=f"published system to start from: {', '.join(SYSTEMS)}")
    add("--dataset", metavar="NAME", help=f"{', '.join(DATASETS)} (default: {known.dataset}, the best MNIST to be had)")
    add(
        "--binarize",
        metavar="HOW",
        help=f"{', '.join(BINARIZATIONS)} (default: {known.binarize}: pixels stay grey, the bound is a pseudo-ELBO)",
    )
    add("--hidden", metavar="H", type=int, nargs="+", help="widths of the encoder's hidden layers (default: 100 100)")
    add("--latent-dim", metavar="L", type=int, help=f"latent dimensions (default: {known.latent_dim})")


def _add_training_options(group: argparse._ArgumentGroup) -> None:
    add = functools.partial(group.add_argument, default=argparse.SUPPRESS)
    known = Config()
    add(
        "--elbo",
        metavar="NAME",
        help="trace (Pyro's Trace_ELBO, Monte Carlo), analytic (TraceMeanField_ELBO, closed-form KL) or handwritten "
        f"(log p(x|z) + log p(z) - log q(z|x) without Pyro's inference) (default: {known.elbo})",
    )
    add("--particles", metavar="K", type=int, help=f"samples of z per image in the bound (default: {known.particles})")
    add("--beta", metavar="B", type=float, help=f"weight of the rate in the loss (default: {known.beta})")
    add("--epochs", metavar="N", type=int, help=f"passes over the training images (default: {known.epochs})")
    add("--batch-size", metavar="B", type=int, help=f"images per step (default: {known.batch_size})")
    add("--lr", metavar="RATE", type=float, help=f"Adam's learning rate (default: {known.lr})")
    add("--seed", metavar="S", type=int, help=f"of weights, order and draws (default: {known.seed})")


def _add_run_options(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--data-dir", metavar="DIR", type=Path, help="holds MNIST/raw as torchvision lays it (also: $PVAE_DATA)")
    add("--offline", action="store_true", help="do not download anything")
    add("--device", metavar="DEVICE", help="auto, cpu, cuda or cuda:N (default: auto; on --resume, as before)")
    add("--out", metavar="DIR", type=Path, help="run folder, new or empty (default: runs/<time>-<system>-<elbo>)")
    add("--resume", metavar="RUN", type=Path, help="go on with a run, to --epochs; its own options hold")
    add("--quiet", action="store_true", help="print the run folder and no progress")


def _leave(status: int) -> NoReturn:
    """Exit; after Ctrl-C at once, since torch's own clearing up takes about a second and all is on disk."""
    sys.stdout.flush()
    sys.stderr.flush()
    if status == 130:
        os._exit(status)
    sys.exit(status)


if __name__ == "__main__":
    _leave(main())
