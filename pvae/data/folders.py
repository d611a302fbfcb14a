"""Folders in which data are searched: --data-dir, $PVAE_DATA and the user's cache."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from pvae.core.errors import InputError
from pvae.core.files import expanded

__all__ = ["cache_dir", "find", "is_folder"]


def cache_dir() -> Path:
    """Return pvae's folder in the user's cache, without creating it.

    Raises:
        InputError: XDG_CACHE_HOME is not set and the user has no home folder, as in some containers.
    """
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pvae"
    except RuntimeError:
        raise InputError("there is no home folder for a cache: set XDG_CACHE_HOME to a folder") from None


def find(place: str, data_dir: str | Path | None) -> tuple[Path | None, str]:
    """Search `data_dir`, `$PVAE_DATA` and the cache for a folder.

    Args:
        place: relative path of the folder, as "MNIST/raw".
        data_dir: searched first, if given.

    Returns:
        The first of the three that contains `place`, or None; and all searched paths, to be quoted in a message.

    Raises:
        InputError: `data_dir` or `$PVAE_DATA` is given and does not exist.
    """
    roots = []
    for source, given in (("--data-dir", data_dir), ("PVAE_DATA", os.environ.get("PVAE_DATA") or None)):
        if given is not None:
            roots.append(expanded(given, source))
            if not is_folder(roots[-1]):
                raise InputError(f"{source}: there is no folder {roots[-1]}")
    with contextlib.suppress(InputError):
        roots.append(cache_dir())
    searched = ", ".join(str(root / place) for root in roots) or "a cache, since there is no home folder"
    return next((root for root in roots if is_folder(root / place)), None), searched


def is_folder(path: Path) -> bool:
    """Return whether a folder of this name exists; False for names that are too long or contain NUL."""
    return os.path.isdir(path)  # noqa: PTH112  Path.is_dir raises for such names
