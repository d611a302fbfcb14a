"""Where data are looked for: the folder that is given, $PVAE_DATA, the user's cache."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path

from pvae.core.errors import InputError
from pvae.core.files import expanded

__all__ = ["cache_dir", "data_folders", "is_folder", "places_in"]


def cache_dir() -> Path:
    """Return the user's cache folder of pvae; nothing is created.

    Raises:
        InputError: the user has no home folder, as a container's may, and no other is named.
    """
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pvae"
    except RuntimeError:
        raise InputError("there is no home folder for a cache: set XDG_CACHE_HOME to a folder") from None


def data_folders(data_dir: str | Path | None) -> list[Path]:
    """Return the folders in which data are looked for, in this order; no cache where there is no home folder.

    Raises:
        InputError: one that is given does not exist.
    """
    given = {"--data-dir": data_dir, "PVAE_DATA": os.environ.get("PVAE_DATA") or None}
    roots = {source: expanded(path, source) for source, path in given.items() if path is not None}
    for source, root in roots.items():
        if not is_folder(root):
            raise InputError(f"{source}: there is no folder {root}")
    found = [*roots.values()]
    with contextlib.suppress(InputError):
        found.append(cache_dir())
    return found


def places_in(roots: Iterable[Path], place: str) -> str:
    """Return where data would lie in these folders, for a message that they do not."""
    return ", ".join(str(root / place) for root in roots) or "a cache, since there is no home folder"


def is_folder(path: Path) -> bool:
    """Return whether it is a folder that can be looked at; a name that is too long is none."""
    try:
        return path.is_dir()
    except OSError:
        return False
