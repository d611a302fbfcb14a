"""Code of the user: a function that is named as FILE.py:FUNCTION, and the VAE that it returns."""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib.util
import inspect
import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pvae.core.errors import InputError, brief

if TYPE_CHECKING:
    from pvae.config.config import Config
    from pvae.runs.run import Run
    from pvae.vae import VAE

__all__ = ["add_vae", "load_function", "open_run", "own_vae"]


def add_vae(parser: argparse.ArgumentParser | argparse._ArgumentGroup, what: str) -> None:
    """Add the argument --vae."""
    text = f"{what}: a function of the configuration and the shape of a datum that returns a pvae.VAE"
    parser.add_argument("--vae", metavar="FILE.py:FUNCTION", help=text)


def own_vae(place: str, config: Config, datum_shape: tuple[int, ...]) -> VAE:
    """Return the VAE that a function of the user builds.

    Raises:
        InputError: there is no such function, it raises an exception, or it returns something else.
    """
    from pvae.core.random_state import seeded
    from pvae.vae import VAE

    function = load_function(place)
    try:
        import torch

        with seeded(config.seed, torch.device("cpu")):
            vae = function(config, config.padded(datum_shape))
    except InputError:
        raise
    except (Exception, SystemExit) as error:  # of any type: it is the user's code
        raise InputError(f"--vae {place} raises {type(error).__name__}: {brief(error)}") from None
    if not isinstance(vae, VAE):
        raise InputError(f"--vae {place} returns a {type(vae).__name__}: return pvae.VAE(p_z=..., q_z=..., p_x=...)")
    return vae


def open_run(path: Path, place: str | None, is_only: bool = True) -> Run:
    """Return the run in a folder; one of a VAE of the user with the VAE that --vae names.

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
        kept = run.path / OWN_CODE
        run.vae(own_vae(place, run.config, run.data.datum_shape))
        if kept.exists() and kept.read_bytes() != Path(place.rpartition(":")[0]).read_bytes():
            print(
                f"note: {place.rpartition(':')[0]} differs from {kept}, with which {path} was trained", file=sys.stderr
            )
    return run


def load_function(place: str) -> Callable[..., Any]:
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
        advice = "; put the function into a file of its own, or the rest below: if __name__ == '__main__'"
        advice *= not isinstance(error, (SyntaxError, ImportError))
        raise InputError(f"{path} cannot be imported ({type(error).__name__}: {error}){advice}") from None
    found: Any = module
    for part in name.split("."):
        owner, found = found, getattr(found, part, None)
    if not callable(found):
        named = [one for one, value in vars(module).items() if callable(value) and one[0] != "_"]
        wanted = f"no function {name}" if name else "to be named with a function"
        raise InputError(f"{path} has {wanted}; it has {', '.join(named) or 'none'}: give FILE.py:FUNCTION")
    if isinstance(found, type):
        raise InputError(f"{name} is a class: give FILE.py:{name}.METHOD, or the name of an object of it")
    if not isinstance(owner, type) or isinstance(inspect.getattr_static(owner, part), staticmethod | classmethod):
        return found
    return functools.partial(found, _NoObject(place))


class _NoObject:
    """Stands for the object of a method that is named by its class."""

    def __init__(self, place: str) -> None:
        self.place = place

    def __getattr__(self, name: str) -> Any:
        """Refuse the method, which uses its object."""
        raise InputError(
            f"{self.place} uses its object (.{name}): make an object at the end of the file, and name that"
        )
