"""Files that others may have touched: written whole, read in bounded memory, never through a link; a folder's lock."""

from __future__ import annotations

import contextlib
import os
import re
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from pvae.core.errors import InputError

if sys.platform != "win32":
    import fcntl

__all__ = [
    "append",
    "check_replaceable",
    "expanded",
    "is_report",
    "is_temporary",
    "not_a_link",
    "open_bounded",
    "own_folder",
    "read_bounded",
    "write_whole",
]

_REPORTS = {  # how each report of pvae's begins, by its name or, of pictures, its suffix
    "evaluation.json": rb'\{\s*"run": "[^\n]*",\s*"epoch": \d+,\s*"data": "',
    "latent.json": rb'\{\s*"mean": \[',
    "probe.json": rb'\[\s*\{\s*"attribute": "',
    "comparison.csv": rb"stage,estimator,particles,",
    "comparison.md": rb"\| stage +\| estimator",
    "table.csv": rb"run,configuration,system,",
    "table.md": rb"\| system \| --elbo \|",
    ".png": rb"\x89PNG.*tEXtSoftware\0pvae",
}
_NO_LINK = getattr(os, "O_NOFOLLOW", 0)
_NO_WAIT = getattr(os, "O_NONBLOCK", 0)  # a pipe without a writer would be waited for


def write_whole(path: Path, content: bytes, previous: Path | None = None) -> None:
    """Write a file whole or not at all: to a temporary name, flushed to the disk, then renamed.

    Args:
        path: the file; a link of that name is replaced, and not followed.
        content: all of it.
        previous: where the file that it replaces is kept; at every moment one of the two is whole.

    Raises:
        InputError: something else than a file has that name: a folder, a pipe, a device.
        OSError: it cannot be written; what was there before still is.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    if os.path.lexists(path) and not (path.is_symlink() or path.is_file()):
        raise InputError(f"{path} is no ordinary file, and is not replaced: name another")
    try:
        temporary.unlink(missing_ok=True)  # a link that somebody put there would be written through
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if previous is not None and os.path.lexists(path):
            _keep(path, previous)
        temporary.replace(path)
        _flush_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def is_report(path: Path, kind: str = "") -> bool:
    """Whether a file is a report that pvae wrote, or a picture that it drew, of the kind of its name or of that one."""
    begins = _REPORTS.get(kind or path.name, _REPORTS.get(path.suffix, rb"(?!)"))
    with contextlib.suppress(InputError, OSError), open_bounded(path, sys.maxsize) as file:
        return re.match(begins, file.read(4096), re.DOTALL) is not None
    return False


def check_replaceable(path: Path, kind: str = "") -> None:
    """Refuse the name of a report that is taken by anything but such a report, a link or an empty file.

    Args:
        path: where it will be written, by `write_whole`.
        kind: a name that such reports have as a rule; that of the path if left out.

    Raises:
        InputError: it is taken.
    """
    is_free = path.is_symlink() or not path.exists() or (path.is_file() and path.stat().st_size == 0)
    if not is_free and not is_report(path, kind):
        raise InputError(f"{path} is another file, and is not replaced: move it away, or name another place with --out")


def not_a_link(folder: Path) -> Path:
    """Return a folder of a run folder, into which is written.

    Raises:
        InputError: it is a link, which may lead anywhere, or no folder.
    """
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        kind = "a link, which may lead anywhere" if folder.is_symlink() else "no folder"
        raise InputError(f"{folder} is {kind}: remove it")
    return folder


def is_temporary(path: Path) -> bool:
    """Whether it has a name under which `write_whole` begins a file: one that is there was never ended."""
    return re.fullmatch(r"\.[\w-]+\.(json|jsonl|safetensors|png|csv|md)\.\d+", path.name) is not None


def append(path: Path, content: bytes) -> None:
    """Add to a file and flush it to the disk.

    Raises:
        InputError: it is a link, or no ordinary file.
        OSError: it cannot be written; a part of `content` may have been.
    """
    with os.fdopen(_open_regular(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT), "ab") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def read_bounded(path: Path, most: int, *, follow: bool = False) -> bytes:
    """Return the content of an ordinary file of at most so many bytes.

    Args:
        path: the file.
        most: bytes.
        follow: a link is followed: of files that the user named, and not of those that lie in a run folder.

    Raises:
        InputError: it is a link, no ordinary file, or larger.
        OSError: it is missing or cannot be read.
    """
    with open_bounded(path, most, follow=follow) as file:
        return file.read(min(most, os.fstat(file.fileno()).st_size))  # asked for more, it takes the memory for it


@contextlib.contextmanager
def open_bounded(path: Path, most: int, *, follow: bool = False) -> Iterator[BinaryIO]:
    """Open what `read_bounded` reads.

    Raises:
        InputError: it is a link, no ordinary file, or larger.
        OSError: it is missing or cannot be opened.
    """
    with os.fdopen(_open_regular(path, os.O_RDONLY, follow), "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > most:
            raise InputError(f"{path} is damaged: its {size:,} bytes are more than the {most:,} that it may have")
        yield file


def expanded(path: str | Path, option: str) -> Path:
    """Return a path that a user gave, with "~" as a home folder.

    Args:
        path: what was given.
        option: by which option.

    Raises:
        InputError: there can be no such path, or nobody of that name, or it is empty, as an unset variable is.
    """
    if not str(path):
        raise InputError(f"{option}: the path is empty: name a file or folder")
    if "\0" in str(path):
        raise InputError(f"{option} {path}: a path holds no NUL character")
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise InputError(f"{option} {path}: there is no such user here: write the path in full") from None


@contextlib.contextmanager
def own_folder(folder: Path) -> Iterator[None]:
    """Hold a folder's lock, which the system takes back when the process ends, however it ends.

    Where the system or the folder's disk knows no such lock, there is none.

    Raises:
        InputError: another process holds it.
    """
    if sys.platform == "win32":
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"{folder} is being trained by another process: wait for its end, or stop it") from None
        except OSError:  # a network disk, for instance
            pass
        yield
    finally:
        os.close(descriptor)


def _open_regular(path: Path, flags: int, follow: bool = False) -> int:
    if path.is_symlink() and not follow:
        raise InputError(f"{path} is a link, which may lead anywhere: put the file itself there")
    descriptor = os.open(path, flags | _NO_WAIT | (0 if follow else _NO_LINK), 0o666)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise InputError(f"{path} is no ordinary file: put one there")
    return descriptor


def _keep(path: Path, previous: Path) -> None:
    """Give the file its other name too; where a disk has no hard links, rename it."""
    second = previous.with_name(f".{previous.name}.{os.getpid()}")
    second.unlink(missing_ok=True)
    try:
        os.link(path, second, follow_symlinks=False)
        second.replace(previous)
    except OSError:
        path.replace(previous)
    finally:
        second.unlink(missing_ok=True)


def _flush_folder(folder: Path) -> None:
    """Let the renaming outlive a loss of power, where folders can be flushed."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
