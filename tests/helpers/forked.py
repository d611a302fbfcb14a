"""Run tests of another copy of the package, in forks of a process that has imported torch and Pyro once."""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import os
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from helpers.processes import PRELOADED

_SECONDS = 600
_BROKEN = 99  # no status of pytest


class Done(NamedTuple):
    returncode: int | None
    stdout: str


def run_tests(folder: Path, names: tuple[str, ...]) -> Done:
    """Run `tests/<name>` of a folder, up to the first failure, with the package `pvae` that lies beside them."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    log = folder / "log.txt"
    process = context.Process(target=_run, args=(str(folder), names, str(log)))
    process.start()
    process.join(_SECONDS)
    process.kill()
    process.join()
    return Done(process.exitcode, log.read_text())


def _run(folder: str, names: tuple[str, ...], log: str) -> None:
    os.chdir(folder)
    sys.path.insert(0, folder)
    importlib.invalidate_caches()
    status = _BROKEN
    try:
        with Path(log).open("w") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
            import pvae

            if Path(pvae.__file__).is_relative_to(folder):  # and not another copy of it
                how = ["-x", "-q", "-p", "no:cacheprovider", "-m", "not slow and not workflow"]
                status = pytest.main([*how, *(f"tests/{name}" for name in names)])
    finally:
        os._exit(status)
