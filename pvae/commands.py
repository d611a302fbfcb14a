"""What every command shares: a refusal is one line, Ctrl-C leaves at once, a closed pipe is no error."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

from pvae.errors import InputError, LostError, TrainingError, one_line

__all__ = ["Parser", "ctrl_c_exits_at_once", "leave", "result_folder", "run_command"]


class Parser(argparse.ArgumentParser):
    """A parser whose refusal is one line."""

    def error(self, message: str) -> NoReturn:
        """Refuse the arguments.

        Raises:
            InputError: always.
        """
        raise InputError(f"{message} (--help lists the options)")


def run_command(name: str, command: Callable[[], None]) -> int:
    """Run a command and return its exit status.

    Args:
        name: stands before a refusal.
        command: does the work.

    Returns:
        0; 2 for what cannot be done as asked, 1 for a file that cannot be written or read or a process that has gone,
        130 for Ctrl-C, 143 for SIGTERM.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name that the terminal cannot show must not end a training
            stream.reconfigure(errors="backslashreplace")
    try:
        command()
        return 0
    except (InputError, TrainingError) as error:
        print(f"{name}: {one_line(str(error))}", file=sys.stderr)
        return 2
    except LostError as error:
        print(f"{name}: {one_line(str(error))}", file=sys.stderr)
        return 1
    except (RuntimeError, MemoryError) as error:
        if not isinstance(error, MemoryError) and not re.search("allocate memory|out of memory", str(error)):
            raise
        print(f"{name}: out of memory: give smaller images, networks, batches or fewer particles", file=sys.stderr)
        return 2
    except BrokenPipeError:  # whoever read our output has gone
        sys.stdout = None
        return 0
    except OSError as error:
        print(f"{name}: {error.filename or 'a file'} cannot be written or read: {error.strerror}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as error:
        print(f"{name}: {str(error) or 'interrupted'}", file=sys.stderr)
        return int(getattr(error, "status", 130))


@contextlib.contextmanager
def ctrl_c_exits_at_once(name: str) -> Iterator[None]:
    """Let Ctrl-C end the process on the spot while modules load: an exception in the middle of that breaks them."""

    def exit_at_once(*_: object) -> None:
        print(f"{name}: interrupted before anything was done", file=sys.stderr, flush=True)
        os._exit(130)

    try:
        before = signal.signal(signal.SIGINT, exit_at_once)
    except ValueError:  # not in the main thread, where no signal arrives
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def result_folder(folder: Path) -> Iterator[Path]:
    """Make the folder that a command writes to, and those above it; what stays empty is gone again afterwards.

    Raises:
        InputError: it cannot be made.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder} cannot be written ({error.strerror}): name another folder with --out") from None
    try:
        yield folder
    finally:
        with contextlib.suppress(OSError):  # one that holds something stays, and those above it
            for path in made:
                path.rmdir()


def leave(status: int) -> NoReturn:
    """Exit; after Ctrl-C at once, since torch's own clearing up takes about a second and all is on disk."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # all is said and done
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.flush()
    if status in (1, 130, 143):
        os._exit(status)
    sys.exit(status)
