"""Where data are looked for: the folder that is given, $PVAE_DATA, the user's cache."""

from __future__ import annotations

import os
from pathlib import Path

from pvae.errors import InputError
from pvae.files import expanded

__all__ = ["cache_dir", "data_folders", "is_folder"]


def cache_dir() -> Path:
    """Return the user's cache folder of pvae; nothing is created."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pvae"


def data_folders(data_dir: str | Path | None) -> list[Path]:
    """Return the folders in which data are looked for, in this order.

    Raises:
        InputError: one that is given does not exist.
    """
    given = {"--data-dir": data_dir, "PVAE_DATA": os.environ.get("PVAE_DATA") or None}
    roots = {source: expanded(path, source) for source, path in given.items() if path is not None}
    for source, root in roots.items():
        if not is_folder(root):
            raise InputError(f"{source}: there is no folder {root}")
    return [*roots.values(), cache_dir()]


def is_folder(path: Path) -> bool:
    """Return whether it is a folder that can be looked at; a name that is too long is none."""
    try:
        return path.is_dir()
    except OSError:
        return False
