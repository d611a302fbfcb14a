"""Write files as a whole, records as Markdown or strict JSON, and read these; name folders, and lock them."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from pvae.core.errors import InputError, check_finite, shown

if sys.platform != "win32":
    import fcntl


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


T = TypeVar("T")


def from_record(kind: type[T], record: Any) -> T:
    """Return the dataclass whose `asdict` is `record`.

    Args:
        kind: a dataclass with fields of type T or T | None, where T is str, bool, int, float, tuple[int, ...],
            such a dataclass or a tuple of them.
        record: a value that `json.loads` returned.

    Raises:
        InputError: a field is unknown or of another type.
        TypeError: it is not a JSON object, or a field without a default is missing.
    """
    hints = get_type_hints(kind)
    values = {**record}
    if unknown := sorted(values.keys() - hints.keys()):
        raise InputError(f"{kind.__name__} is not of this version of pvae: it has unknown {', '.join(unknown)}")
    for name, value in values.items():
        hint: Any = hints[name]
        if is_dataclass(hint):
            value = from_record(hint, value)  # type: ignore[arg-type]
        elif isinstance(value, list):
            inner: Any = get_args(hint)[:1]
            if inner and is_dataclass(inner[0]):
                base: Any = inner[0]
                kinds = [base] * len(value)
                if hasattr(base, "members"):  # of a family, such as `Rule`: each item names its class, as "rule"
                    kinds = [base.members[item[base.__name__.lower()]] for item in value]
                value = [from_record(kind, item) for kind, item in zip(kinds, value)]
            value = tuple(value)
        if not _fits(value, hint):
            raise InputError(f"{name} of {kind.__name__} has the wrong type: {shown(value)}")
        values[name] = value
    return kind(**values)


def to_json(record: object, indent: int | None = None) -> str:
    """Return a record as strict JSON, without NaN and infinity.

    Raises:
        NotFiniteError: the record contains a NaN or an infinity.
    """
    check_finite(record)
    return json.dumps(record, allow_nan=False, indent=indent)


def markdown_of(rows: Sequence[Mapping[str, str]]) -> str:
    """Return rows of texts with the same columns, at least one, as a table in Markdown whose columns are aligned."""
    cells = [[*rows[0]], *([*row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells)]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths)) + " |" for row in cells]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])


def _fits(value: Any, hint: Any) -> bool:
    if get_origin(hint) is types.UnionType:
        return any(_fits(value, option) for option in get_args(hint))
    if get_origin(hint) is tuple:
        return isinstance(value, tuple) and all(_fits(item, get_args(hint)[0]) for item in value)
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)
