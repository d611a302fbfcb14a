"""Run tests of another copy of the package, in a fork of a process that has imported torch and Pyro once."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from helpers.processes import Group

_BROKEN = 99  # no status of pytest


class Done(NamedTuple):
    returncode: int | None
    stdout: str


def run_tests(folder: Path, names: tuple[str, ...]) -> Done:
    """Run `tests/<name>` of a folder, up to the first failure, with the package `pvae` that lies beside them."""
    group = Group(1, _run, str(folder), names, folder=folder)
    (status,) = group.join(600)
    return Done(status, group.out + group.err)


def _run(folder: str, names: tuple[str, ...]) -> int:
    sys.path.insert(0, folder)
    importlib.invalidate_caches()
    import pvae

    if not Path(pvae.__file__).is_relative_to(folder):
        return _BROKEN  # it is another copy
    how = ["-x", "-q", "-p", "no:cacheprovider", "-m", "not slow and not workflow"]
    return int(pytest.main([*how, *(f"tests/{name}" for name in names)]))
