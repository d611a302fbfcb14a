"""The command `python -m pvae.identify`: name a loss that stands in a file of Python."""

from __future__ import annotations

import argparse
import ast
import contextlib
import functools
import importlib.util
import inspect
import io
import re
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pvae.cli.command import Parser, ctrl_c_exits_at_once, run_command
from pvae.core.errors import InputError
from pvae.core.terminal import print_line

__all__ = ["main"]

_SECONDS = 60  # that importing the file and calling the loss may take

_EPILOG = """\
The loss is a function of x, its reconstruction, the encoder's two outputs and perhaps a draw z. The command says that
it is a factor times the negative ELBO of a likelihood, a posterior and a beta, checked in value and gradients at 200
random points, or why it is not an ELBO. The file is imported, so that the code at its top level runs.

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
        with _time_limit(arguments.loss):
            loss = _load(arguments.loss)
            print_line(identify(loss, arguments.arguments, shape=arguments.shape, **dict(arguments.constant)))

    return run_command("pvae.identify", command)


def _parser() -> argparse.ArgumentParser:
    parser = Parser("identify", "Name the loss of a VAE: likelihood, posterior, beta and reductions.", _EPILOG)
    add = parser.add_argument
    add("loss", metavar="FILE.py:FUNCTION", help="where the loss stands")
    roles = (
        "the roles of its arguments, in order: x, reconstruction, loc, spread, z, x_spread (default: by their names)"
    )
    add("--arguments", metavar="LIST", help=roles)
    add("--shape", metavar="SHAPE", type=_shape, help="of one image, as 1x28x28 or 784 (default: by trying)")
    constant = "another argument of the loss, as kld_weight=0.005; may be given several times"
    add("--constant", metavar="NAME=VALUE", type=_constant, action="append", default=[], help=constant)
    return parser


def _shape(text: str) -> tuple[int, ...]:
    if not re.fullmatch(r"[1-9]\d{0,5}(x[1-9]\d{0,5}){0,2}", text):
        raise argparse.ArgumentTypeError(f"{text} is no shape such as 1x28x28")
    return tuple(map(int, text.split("x")))


def _constant(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not name.isidentifier() or not equals:
        raise argparse.ArgumentTypeError(f"{text} is not NAME=VALUE")
    with contextlib.suppress(ValueError, SyntaxError):
        return name, ast.literal_eval(value)
    return name, value


def _load(place: str) -> Callable[..., Any]:
    """Import a file, and return the function that it names.

    Raises:
        InputError: there is no such file or function, or importing it fails.
    """
    file, _, name = place.rpartition(":") if not place.endswith(".py") else (place, "", "")
    path = Path(file)
    if path.suffix != ".py" or not path.is_file():
        what = "is no file of Python" if path.is_file() else "does not exist"
        raise InputError(f"{place}: {file or place} {what}: give FILE.py:FUNCTION")
    spec = importlib.util.spec_from_file_location("identified", path)  # a name that hides no other module
    assert spec is not None and spec.loader is not None  # noqa: PT018
    module = importlib.util.module_from_spec(spec)
    sys.dont_write_bytecode = True
    sys.path.insert(0, str(path.parent.resolve()))
    sys.modules["identified"] = module
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            spec.loader.exec_module(module)
    except InputError:
        raise
    except (Exception, SystemExit) as error:  # of any type: it is the user's file
        advice = "; put the loss into a file of its own, or the rest below: if __name__ == '__main__'"
        advice *= not isinstance(error, (SyntaxError, ImportError))
        raise InputError(f"{path} cannot be imported ({type(error).__name__}: {error}){advice}") from None
    loss: Any = module
    for part in name.split("."):
        owner, loss = loss, getattr(loss, part, None)
    if not callable(loss):
        named = [one for one, value in vars(module).items() if callable(value) and one[0] != "_"]
        wanted = f"no function {name}" if name else "to be named with a function"
        raise InputError(f"{path} has {wanted}; it has {', '.join(named) or 'none'}: give FILE.py:FUNCTION")
    if isinstance(loss, type):
        raise InputError(f"{name} is a class: give FILE.py:{name}.METHOD, or the name of an object of it")
    if not isinstance(owner, type) or isinstance(inspect.getattr_static(owner, part), staticmethod | classmethod):
        return loss
    return functools.partial(loss, _NoObject(place))


class _NoObject:
    """Stands for the object of a method that is named by its class."""

    def __init__(self, place: str) -> None:
        self.place = place

    def __getattr__(self, name: str) -> Any:
        """Refuse the method, which uses its object."""
        raise InputError(
            f"{self.place} uses its object (.{name}): make an object at the end of the file, and name that"
        )


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
