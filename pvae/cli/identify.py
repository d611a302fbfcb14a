"""The command `python -m pvae.identify`: name a loss that stands in a file of Python."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pvae.cli.command import Parser, ctrl_c_exits_at_once, run_command, whole_number
from pvae.core.errors import InputError, brief
from pvae.core.terminal import print_line

__all__ = ["main"]

_SECONDS = 60  # that importing the file and calling the loss may take

_EPILOG = """\
The loss is a function of x, its reconstruction, the encoder's two outputs and perhaps a draw z. It is found to be a
factor times the negative ELBO of a stated likelihood, posterior and beta, and checked in value and gradients at 200
random points; or it is said why it is no ELBO. The file is imported, as by `python -c "import FILE"`: what it executes
at its top level is executed.

example:
  python -m pvae.identify my_vae.py:loss_function"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status, which `run_command` explains.

    Args:
        argv: the arguments after the program's name; `sys.argv` if left out.
    """

    def command() -> None:
        arguments = _parser().parse_args(argv)
        with ctrl_c_exits_at_once("pvae.identify"):
            from pvae.reference.identify import identify
        roles = arguments.arguments.split(",") if arguments.arguments else None
        shape = tuple(arguments.shape) if arguments.shape else None
        with _time_limit(arguments.loss):
            loss = _load(arguments.loss)
            print_line(identify(loss, roles, shape=shape, **dict(arguments.constant)))

    return run_command("pvae.identify", command)


def _parser() -> argparse.ArgumentParser:
    parser = Parser("identify", "Name the loss of a VAE: likelihood, posterior, beta and reductions.", _EPILOG)
    add = parser.add_argument
    add("loss", metavar="FILE.py:FUNCTION", help="where the loss stands")
    roles = (
        "the roles of its arguments, in order: x, reconstruction, loc, spread, z, x_spread (default: by their names)"
    )
    add("--arguments", metavar="LIST", help=roles)
    add("--shape", metavar="N", type=whole_number(1), nargs="+", help="of one image, as 1 28 28 (default: by trying)")
    constant = "another argument, a number, as kld_weight=0.005; may be given several times"
    add("--constant", metavar="NAME=X", type=_constant, action="append", default=[], help=constant)
    return parser


def _constant(text: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    if not name.isidentifier():
        raise argparse.ArgumentTypeError(f"{text} is not NAME=NUMBER")
    return name, float(value)


def _load(place: str) -> Callable[..., Any]:
    """Import a file, and return the function that it names.

    Raises:
        InputError: there is no such file or function, or importing it fails.
    """
    file, _, name = place.rpartition(":")
    path = Path(file)
    if path.suffix != ".py" or not path.is_file():
        raise InputError(f"{place}: there is no file {file or place}: give FILE.py:FUNCTION")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None  # noqa: PT018
    module = importlib.util.module_from_spec(spec)
    sys.dont_write_bytecode = True
    sys.path.insert(0, str(path.parent.resolve()))
    sys.modules[path.stem] = module
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            spec.loader.exec_module(module)
    except InputError:
        raise
    except (Exception, SystemExit) as error:  # of any type: it is the user's file
        raise InputError(f"{path} cannot be imported ({type(error).__name__}: {brief(error)}): mend it first") from None
    if not callable(loss := getattr(module, name, None)):
        named = [one for one, value in vars(module).items() if callable(value) and one[0] != "_"]
        raise InputError(f"{path} has no function {name}; it has {', '.join(named) or 'none'}")
    return loss


@contextlib.contextmanager
def _time_limit(place: str) -> Iterator[None]:
    def stop(*_: object) -> None:
        raise InputError(f"{place} has not returned within {_SECONDS} s: give a loss that neither sleeps nor trains")

    if not hasattr(signal, "setitimer"):  # Windows
        yield
        return
    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, _SECONDS, 1.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
