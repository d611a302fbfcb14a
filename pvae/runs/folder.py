"""Where a run may lie: an empty folder or a new one, and what is said of a folder that holds none."""

from __future__ import annotations

import itertools
import os
from datetime import datetime
from pathlib import Path

from pvae.core.errors import InputError
from pvae.core.files import is_temporary

__all__ = ["check_out", "new_folder", "what_is_missing"]


def new_folder(path: Path | None, name: str) -> Path:
    """Make a folder for a run and return it, `runs/<time>-<name>` where none is named.

    Raises:
        InputError: the folder exists and is not empty, or cannot be written.
    """
    try:
        if path is None:
            return _make_new(Path("runs") / f"{datetime.now():%Y-%m-%d-%H%M%S}-{name}")
        check_out(path)
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        named = f"--out {path}" if path else "./runs"
        raise InputError(f"{named} cannot be written ({error.strerror}): name a folder with --out") from None
    return path


def check_out(path: Path) -> None:
    """Refuse a folder for a new run before anything is computed.

    Raises:
        InputError: it exists and is not an empty folder, or cannot be looked into.
    """
    try:
        taken = path.exists() and (not path.is_dir() or any(not is_temporary(one) for one in path.iterdir()))
    except OSError as error:
        raise InputError(f"--out {path} cannot be read ({error.strerror}): name another folder") from None
    if taken:
        raise InputError(f"--out {path} exists and is not an empty folder: name another, or --resume it")


def what_is_missing(path: Path) -> str:
    """Say why a folder is no run folder."""
    if not os.path.lexists(path):  # false too for a name that none can have
        return "there is nothing of that name"
    runs = sorted(path.glob("*/config.json"))
    return f"it is a folder of them: name one, as {runs[0].parent}" if runs else "there is no config.json to read in it"


def _make_new(path: Path) -> Path:
    """Make a folder that no one else has: of two processes that want one name, the second takes `<name>-2`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for number in itertools.count(1):
        new = path if number == 1 else path.with_name(f"{path.name}-{number}")
        try:
            new.mkdir()
            return new
        except FileExistsError:
            continue
    raise AssertionError
