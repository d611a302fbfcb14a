"""Code of the user, FILE.py:FUNCTION: the VAE of a run, and the loss that `pvae identify` names."""

from __future__ import annotations

import argparse
import ast
import contextlib
import functools
import inspect
import io
import re
import runpy
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from pvae.cli.command import Command, Parser
from pvae.core.errors import InputError, brief, listed
from pvae.core.terminal import print_line

if TYPE_CHECKING:
    from pvae.config.config import Config
    from pvae.runs.run import Run
    from pvae.vae import VAE

_EPILOG = """\
The loss is a function of x, its reconstruction, the encoder's two outputs and perhaps a draw z; or of x, its
reconstruction, and classes, bits, a KL divergence or codes. The command says that it is a factor times the negative
ELBO of a likelihood, a posterior and a beta, checked in value and gradients at 200 random points, or why it is not an
ELBO. The code at the top level of the file runs. More: notebooks/identify.md

examples:
  pvae identify my_vae.py:loss_function
  pvae identify my_vae.py:VAE.loss --shape 1x28x28 --constant kld_weight=0.005"""

_SIZES = ("initialization", "latent_dim", "upper_latent_dims")  # of a VAE, which no class takes


def _is_of_a_vae(name: str) -> bool:
    """Return whether networks and distributions alone take an option; "columns" also says how a table is read."""
    from pvae.config.config import FAMILIES, TAKERS

    takers = {family for family, _ in TAKERS.get(name, [(name, "")])}
    return name in _SIZES or (name != "columns" and takers <= {*FAMILIES} - {"elbo"})


def own_vae(place: str, config: Config, datum_shape: tuple[int, ...], chosen: Iterable[str] = ()) -> VAE:
    """Return the VAE that a function of the user builds.

    Args:
        place: FILE.py:FUNCTION.
        config: the configuration.
        datum_shape: the shape of a datum, before padding.
        chosen: the options that the user gave.

    Raises:
        InputError: there is no such function, it raises an exception or returns something else, or it does not read a
            chosen option of networks or distributions, which then has no effect.
    """
    from pvae.config.config import OPTIONS, Config
    from pvae.core.random_state import seeded
    from pvae.vae import VAE

    function = load_function(place)
    read: set[str] = set()

    class Watched(Config):  # since the function may read an option by a property, or by `build_vae`
        def __getattribute__(self, name: str) -> Any:
            read.add(name)
            return super().__getattribute__(name)

    watched = Watched(**asdict(config))
    read.clear()  # of the checks
    try:
        with seeded(config.seed):
            vae = function(watched, config.padded(datum_shape))
    except InputError:
        raise
    except (Exception, SystemExit) as error:  # of any type: it is the user's code
        raise InputError(f"--vae {place} raises {type(error).__name__}: {brief(error)}") from None
    unused = [OPTIONS[name].flag for name in chosen if _is_of_a_vae(name) and name not in read]
    if unused:
        raise InputError(f"--vae {place} does not read {listed(unused)} of its configuration: leave it out")
    if not isinstance(vae, VAE):
        raise InputError(f"--vae {place} returns a {type(vae).__name__}: return pvae.VAE(p_z=..., q_z=..., p_x=...)")
    return vae


def open_run(path: Path, place: str | None, is_only: bool = True) -> Run:
    """Return the run in a folder; if it trained a VAE of the user, with the VAE that --vae names.

    Args:
        path: the run folder.
        place: FILE.py:FUNCTION, or None.
        is_only: there is no other run that `place` may be for.

    Raises:
        InputError: the run, or its VAE, cannot be read.
    """
    from pvae.runs.run import OWN_CODE, Run

    run = Run.open(path)
    if place is not None and (run.has_own_vae or is_only):
        file = Path(place.rpartition(":")[0])
        kept = run.path / OWN_CODE
        run.vae(own_vae(place, run.config, run.data.datum_shape))
        if kept.exists() and kept.read_bytes() != file.read_bytes():
            print(f"note: {file} differs from {kept}, with which {path} was trained", file=sys.stderr)
    run.check_vae(None)
    return run


def runs_in(path: Path) -> list[Path]:
    """Return the run folders in a folder of them; none in a run folder."""
    if (path / "config.json").exists():
        return []
    return sorted(file.parent for file in path.glob("*/config.json"))


def load_function(place: str) -> Callable[..., Any]:
    """Run a file, and return the function that it names.

    Raises:
        InputError: there is no such file or function, or the file raises an exception.
    """
    file, _, name = place.rpartition(":")
    if place.endswith(".py"):
        file = place
        name = ""
    path = Path(file)
    if path.suffix != ".py" or not path.is_file():
        raise InputError(f"{place}: there is no file {file or place} of Python: give FILE.py:FUNCTION")
    sys.dont_write_bytecode = True
    sys.path.insert(0, str(path.parent.resolve()))  # for what the file imports
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            names = runpy.run_path(str(path), run_name="own_code")
    except InputError:
        raise
    except (Exception, SystemExit) as error:  # of any type: it is the user's file
        advice = "put the function into a file of its own, or the rest below if __name__ == '__main__'"
        raise InputError(f"{path} cannot be imported ({type(error).__name__}: {error}): {advice}") from None
    found: Any = SimpleNamespace(**names)
    for part in name.split("."):
        owner = found
        found = getattr(found, part, None)
    if not callable(found) or isinstance(found, type):
        functions = [one for one, value in names.items() if inspect.isfunction(value) and one[0] != "_"]
        has = "to be named with a function"
        if name:
            has = f"no function {name}"
        raise InputError(f"{path} has {has}; it has {', '.join(functions) or 'none'}: give FILE.py:FUNCTION")
    if isinstance(owner, type) and not isinstance(inspect.getattr_static(owner, part), (staticmethod, classmethod)):
        return functools.partial(found, object())  # a method, which is called without an object of its class
    return found


def _identify(arguments: argparse.Namespace) -> None:
    from pvae.identification.identify import identify as name_loss

    loss = load_function(arguments.loss)
    print_line(name_loss(loss, arguments.arguments, shape=arguments.shape, **dict(arguments.constant)))


def _parser() -> Parser:
    parser = Parser("pvae identify", "Name the loss of a VAE: likelihood, posterior, beta and reductions.", _EPILOG)
    add = parser.add_argument
    add("loss", metavar="FILE.py:FUNCTION", help="where the loss stands")
    roles = "their roles in order, as x,reconstruction,loc,spread (default: by the names)"
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


identify = Command(_parser, _identify)
