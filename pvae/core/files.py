"""Write files as a whole, read them up to a size limit and not through links, and lock folders."""

from __future__ import annotations

import contextlib
import os
import re
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
    "locked",
    "not_a_link",
    "open_bounded",
    "read_bounded",
    "write_whole",
]

_REPORTS = {  # a regular expression for the start of each report, by file name or by suffix
    "evaluation.json": rb'\{\s*"run": "[^\n]*",\s*"epoch": \d+,\s*"data": "',
    "latent.json": rb'\{\s*"mean": \[',
    "codes.npz": rb"PK\x03\x04.*names\.npy",
    "codes.csv": rb"name,(loc|z)_1,",
    "scores.csv": rb"name,log_p,",
    "comparison.csv": rb"stage,estimator,particles,",
    "comparison.md": rb"\| stage +\| estimator",
    "table.csv": rb"run,configuration,system,",
    "table.md": rb"\| system \| --elbo \|",
    ".onnx": rb"\x08.\x12\x04pvae",  # the version of ONNX, and then its field "producer_name"
    ".png": rb"\x89PNG.*tEXtSoftware\0pvae",
    ".gif": rb"GIF8.*!\xfe\x04pvae\0",
}


def write_whole(path: Path, content: bytes, previous: Path | None = None) -> None:
    """Write a file as a whole or not at all: under a temporary name, flushed to the disk, then renamed.

    Args:
        path: the file; a link of that name is replaced, not followed.
        content: all of its bytes.
        previous: where to keep the file that is replaced; one of the two files is whole at any time.

    Raises:
        InputError: `path` is a folder, a pipe or a device.
        OSError: the file cannot be written; what was there before is unchanged. The error names the file.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    if os.path.lexists(path) and not (path.is_symlink() or path.is_file()):
        raise InputError(f"{path} is not an ordinary file, and is not replaced: name another")
    try:
        temporary.unlink(missing_ok=True)  # left by a killed process with the same id; mode "x" would fail
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if previous is not None and os.path.lexists(path):
            previous.unlink(missing_ok=True)
            try:
                os.link(path, previous, follow_symlinks=False)
            except OSError:  # a disk without hard links
                path.replace(previous)
        temporary.replace(path)
        with contextlib.suppress(OSError):  # Windows cannot flush a folder
            descriptor = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(descriptor)  # so that the new name survives a loss of power
            finally:
                os.close(descriptor)
    except OSError as error:
        error.filename = str(path)  # not the temporary name
        raise
    finally:
        temporary.unlink(missing_ok=True)


def is_report(path: Path, kind: str = "") -> bool:
    """Return whether pvae wrote this file: a picture, or a report of the kind that `kind` or its name says."""
    begins = _REPORTS.get(kind or path.name, _REPORTS.get(path.suffix, rb"(?!)"))
    with contextlib.suppress(InputError, OSError), open_bounded(path, sys.maxsize) as file:
        return re.match(begins, file.read(4096), re.DOTALL) is not None
    return False


def check_replaceable(path: Path, kind: str = "") -> None:
    """Refuse to replace a file, unless it is an earlier report of the same kind, a link or empty.

    Args:
        path: where `write_whole` will write a report.
        kind: the usual name of such reports; the name of `path` if left out.

    Raises:
        InputError: another file has that name.
    """
    is_free = path.is_symlink() or not path.exists() or (path.is_file() and path.stat().st_size == 0)
    if not is_free and not is_report(path, kind):
        early = ", or a picture of an early version of pvae," if path.suffix == ".png" else ""
        raise InputError(f"{path} is another file{early} and is not replaced: move it away, or name another with --out")


def not_a_link(folder: Path) -> Path:
    """Return `folder`, a part of a run folder into which pvae writes.

    Raises:
        InputError: it is a link, which may lead anywhere, or not a folder.
    """
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        kind = "a link, which may lead anywhere" if folder.is_symlink() else "not a folder"
        raise InputError(f"{folder} is {kind}: remove it")
    return folder


def is_temporary(path: Path) -> bool:
    """Return whether this is a temporary name of `write_whole`, left by a process that was killed."""
    return re.fullmatch(r"\.[\w-]+\.(json|jsonl|safetensors|png|csv|md|npz)\.\d+", path.name) is not None


def append(path: Path, content: bytes) -> None:
    """Append to a file, which is created if missing, and flush it to the disk.

    Raises:
        InputError: it is a link, or not an ordinary file.
        OSError: it cannot be written; a part of `content` may have been written.
    """
    _check_ordinary(path)
    with path.open("ab") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def read_bounded(path: Path, most: int, *, follow: bool = False) -> bytes:
    """Return the content of an ordinary file of at most `most` bytes.

    Args:
        path: the file.
        most: number of bytes.
        follow: follow a link: for files that the user named, not for those in a run folder.

    Raises:
        InputError: it is a link, not an ordinary file, or larger.
        OSError: it is missing or cannot be read.
    """
    with open_bounded(path, most, follow=follow) as file:
        return file.read(os.fstat(file.fileno()).st_size)


@contextlib.contextmanager
def open_bounded(path: Path, most: int, *, follow: bool = False) -> Iterator[BinaryIO]:
    """Open an ordinary file of at most `most` bytes for reading; the arguments are those of `read_bounded`.

    Raises:
        InputError: it is a link, not an ordinary file, or larger.
        OSError: it is missing or cannot be opened.
    """
    _check_ordinary(path, follow)
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > most:
            raise InputError(f"{path} is damaged: its {size:,} bytes are more than the {most:,} that it may have")
        yield file


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
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"{folder} is being trained by another process: wait for its end, or stop it") from None
        except OSError:  # a disk that does not support locks, for example a network disk
            pass
        yield
    finally:
        os.close(descriptor)


def _check_ordinary(path: Path, follow: bool = False) -> None:
    """Refuse a link, unless it may be followed, and a pipe, a device or a folder, before opening it."""
    if path.is_symlink() and not follow:
        raise InputError(f"{path} is a link, which may lead anywhere: put the file itself there")
    if path.exists() and not path.is_file():
        raise InputError(f"{path} is not an ordinary file: put one there")
