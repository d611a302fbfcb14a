"""Runs that a command takes, and code of the user: the function that FILE.py:FUNCTION names, and its VAE."""

from __future__ import annotations

import contextlib
import functools
import inspect
import io
import runpy
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from pvae.config.config import OPTIONS, Config
from pvae.core.errors import InputError, brief, listed

if TYPE_CHECKING:
    from pvae.runs.run import Run
    from pvae.vae import VAE

__all__ = ["load_function", "open_run", "own_vae", "runs_in"]


_OF_A_VAE = {  # the options of networks and distributions alone; "columns" also says how a table is read
    "network", "hidden", "activation", "initialization", "latent_dim", "upper_latent_dims", "upper_hidden", "inference",
    "posterior", "flow_length", "flow_hidden", "categories", "code_dim", "prior", "components", "likelihood", "scale",
}  # fmt: skip


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
    from pvae.core.random_state import seeded
    from pvae.vae import VAE

    function, read = load_function(place), set[str]()

    class Watched(Config):
        def __getattribute__(self, name: str) -> Any:
            read.add(name)
            return super().__getattribute__(name)

    watched, shape = Watched(**asdict(config)), config.padded(datum_shape)
    read.clear()  # of the checks
    try:
        with seeded(config.seed):
            vae = function(watched, shape)
    except InputError:
        raise
    except (Exception, SystemExit) as error:  # of any type: it is the user's code
        raise InputError(f"--vae {place} raises {type(error).__name__}: {brief(error)}") from None
    if unused := [OPTIONS[name].flag for name in chosen if name in _OF_A_VAE - read]:
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
        file, kept = Path(place.rpartition(":")[0]), run.path / OWN_CODE
        run.vae(own_vae(place, run.config, run.data.datum_shape))
        if kept.exists() and kept.read_bytes() != file.read_bytes():
            print(f"note: {file} differs from {kept}, with which {path} was trained", file=sys.stderr)
    run.check_vae(None)
    return run


def runs_in(path: Path) -> list[Path]:
    """Return the run folders in a folder of them; none in a run folder."""
    return [] if (path / "config.json").exists() else sorted(file.parent for file in path.glob("*/config.json"))


def load_function(place: str) -> Callable[..., Any]:
    """Run a file, and return the function that it names.

    Raises:
        InputError: there is no such file or function, or the file raises an exception.
    """
    file, _, name = place.rpartition(":") if not place.endswith(".py") else (place, "", "")
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
        owner, found = found, getattr(found, part, None)
    if not callable(found) or isinstance(found, type):
        functions = [one for one, value in names.items() if inspect.isfunction(value) and one[0] != "_"]
        has = f"no function {name}" if name else "to be named with a function"
        raise InputError(f"{path} has {has}; it has {', '.join(functions) or 'none'}: give FILE.py:FUNCTION")
    if isinstance(owner, type) and not isinstance(inspect.getattr_static(owner, part), (staticmethod, classmethod)):
        return functools.partial(found, object())  # a method, which is called without an object of its class
    return found
