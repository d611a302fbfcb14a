"""Write files as a whole, name folders, and lock them."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from pvae.core.errors import InputError

if sys.platform != "win32":
    import fcntl

__all__ = ["cache_dir", "expanded", "is_temporary", "locked", "write_whole"]


def write_whole(path: Path, content: bytes) -> None:
    """Write a file as a whole or not at all: under a temporary name, flushed to the disk, then renamed.

    Args:
        path: the file; a link of that name is replaced, not followed.
        content: all of its bytes.

    Raises:
        InputError: `path` is a folder, a pipe or a device.
        OSError: the file cannot be written; what was there before is unchanged. The error names the file.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    if path.exists() and not path.is_file():
        raise InputError(f"{path} is not an ordinary file, and is not replaced: name another")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        error.filename = str(path)  # not the temporary name
        raise
    finally:
        temporary.unlink(missing_ok=True)


def is_temporary(path: Path) -> bool:
    """Return whether this is a temporary name of `write_whole`, left by a process that was killed."""
    return re.fullmatch(r"\.[\w-]+\.(json|jsonl|safetensors|png|csv|md|npz|pt2|html)\.\d+", path.name) is not None


def expanded(path: str | Path, option: str) -> Path:
    """Return a path that a user gave, with "~" replaced by the home folder.

    Args:
        path: the path.
        option: the name of the option, for messages.

    Raises:
        InputError: it is empty, as from an unset variable, or names the home folder of an unknown user.
    """
    if not str(path):
        raise InputError(f"{option}: the path is empty: name a file or folder")
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise InputError(f"{option} {path}: there is no such user: write the path in full") from None


def cache_dir() -> Path:
    """Return pvae's folder in the user's cache, without creating it.

    Raises:
        InputError: XDG_CACHE_HOME is not set and the user has no home folder, as in some containers.
    """
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pvae"
    except RuntimeError:
        raise InputError("there is no home folder for a cache: set XDG_CACHE_HOME to a folder") from None


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder, which the system releases when the process ends, even if it is killed.

    On Windows, and on disks that do not support locks, nothing is locked.

    Raises:
        InputError: another process holds it.
    """
    if sys.platform == "win32":
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise InputError(f"{folder} is being trained by another process: wait for its end, or stop it") from None
    except OSError:  # a disk that does not support locks, for example a network disk
        pass
    try:
        yield
    finally:
        os.close(descriptor)
