"""What the commands share: their parser, one line for each refusal, signals, exit statuses, the folder they write."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import io
import os
import re
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NoReturn

from pvae.core.errors import InputError, LostError, TrainingError, one_line
from pvae.core.files import check_replaceable
from pvae.core.finite import NotFiniteError, naming_refused_parameters, no_nan_warnings
from pvae.core.memory import is_of_memory
from pvae.core.signals import SIGNALS, Interruptions, handled_by
from pvae.core.torchrun import is_first_process

__all__ = ["Parser", "a_path", "ctrl_c_exits_at_once", "leave", "result_folder", "run_command"]


class Parser(argparse.ArgumentParser):
    """A parser whose refusal is one line.

    Args:
        command: its name after "python -m pvae.".
        description: what it does.
        epilog: examples.
    """

    def __init__(self, command: str, description: str = "", epilog: str = "") -> None:
        super().__init__(
            prog=f"python -m pvae.{command}",
            description=description,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        # argparse takes -1e-1 for an option, and has no public way to say otherwise.
        self._negative_number_matcher = re.compile(r"-(\d+\.?\d*|\.\d+)(e[-+]?\d+)?$", re.IGNORECASE)

    def error(self, message: str) -> NoReturn:
        """Refuse the arguments.

        Raises:
            InputError: always; the message names the nearest option.
        """
        unknown = re.match(r"unrecognized arguments: (--[^\s=]+)", message)
        near = difflib.get_close_matches(unknown[1], self._option_string_actions, n=1) if unknown else []
        raise InputError(f"{message} ({f'did you mean {near[0]}?' if near else '--help lists the options'})")


def a_path(text: str) -> Path:
    """Return the path that an argument names; an empty one would be the working folder.

    Raises:
        argparse.ArgumentTypeError: it is empty.
    """
    if not text:
        raise argparse.ArgumentTypeError("the path is empty, as an unset variable of a shell is: name a file or folder")
    return Path(text)


def run_command(
    name: str, command: Callable[[], None], interrupted: str = "interrupted; what was written is whole"
) -> int:
    """Run a command and return its exit status; what ends it is one line on stderr.

    Ctrl-C and SIGTERM end the command by an exception; a training handles them itself.

    Args:
        name: stands before the line.
        command: does the work.
        interrupted: the line of an interruption that brings no message.

    Returns:
        0; 2 for what cannot be done as asked or is not permitted, 1 for a disk or a process that has gone, 130 for
        Ctrl-C, 143 for SIGTERM.
    """
    with Interruptions(at_once=True):
        try:
            return _run(name, command)
        except KeyboardInterrupt as error:
            if is_first_process():  # torchrun ends the others too
                with contextlib.suppress(KeyboardInterrupt):
                    print(f"{name}: {str(error) or interrupted}", file=sys.stderr)
            return int(getattr(error, "status", 130))


def _run(name: str, command: Callable[[], None]) -> int:
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name that the terminal cannot show must not end a training
            stream.reconfigure(errors="backslashreplace")
    try:
        if not _has_working_folder():
            raise InputError("the folder in which the command was started is gone: go to one that exists")
        with naming_refused_parameters(), no_nan_warnings():
            command()
        return 0
    except (InputError, TrainingError, NotFiniteError) as error:
        what_now = "; the weights have diverged: train anew, with a smaller --lr"
        line = f"{error}{what_now if isinstance(error, NotFiniteError) else ''}"
        line, status = line if is_first_process() else "", 2  # the other processes are refused for the same reason
    except LostError as error:
        line, status = str(error), 1
    except (RuntimeError, MemoryError, ImportError) as error:
        if not is_of_memory(error):
            raise
        smaller = "give smaller images, networks, batches or fewer particles"
        what_now = "torch cannot be loaded: see ulimit -v" if isinstance(error, ImportError) else smaller
        line, status = f"out of memory: {what_now}", 2
    except BrokenPipeError:  # the reader of our output has gone
        sys.stdout = None
        return 0
    except OSError as error:
        file = error.filename or "a file of the result"  # a write that fails does not say which
        line = f"{file} cannot be written or read: {error.strerror}"
        status = 2 if isinstance(error, PermissionError) else 1
    if line:
        print(f"{name}: {one_line(line)}", file=sys.stderr)
    return status


def _has_working_folder() -> bool:
    """Whether the working folder is still there; without one torch's libraries end the process themselves."""
    try:
        return Path.cwd().exists()
    except OSError:
        return False


@contextlib.contextmanager
def ctrl_c_exits_at_once(name: str) -> Iterator[None]:
    """Let Ctrl-C and SIGTERM exit while modules load: an exception would leave them half imported.

    Raises:
        InputError: Python runs without docstrings, and so cannot import Pyro.
    """
    if sys.flags.optimize > 1:
        raise InputError("Pyro needs docstrings, which PYTHONOPTIMIZE=2 and -OO take out: set it to 1, or give -O")

    def exit_at_once(number: int, _: object) -> None:
        if is_first_process():
            os.write(2, f"{name}: interrupted before anything was done\n".encode())
        os._exit(128 + number)

    with handled_by(exit_at_once):
        yield


@contextlib.contextmanager
def result_folder(folder: Path, names: Iterable[str] = ()) -> Iterator[Path]:
    """Make the folder that a command writes to, and those above it; remove those of them that stay empty.

    Args:
        folder: the folder.
        names: of the reports that will be written there; not needed of a folder that is pvae's own.

    Raises:
        InputError: it cannot be made, or another file has one of the names.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder} cannot be written ({error.strerror}): name another folder with --out") from None
    try:
        for name in names:
            check_replaceable(folder / name)
        yield folder
    finally:
        with contextlib.suppress(OSError):  # one that holds something stays, and those above it
            for path in made:
                path.rmdir()


def leave(status: int) -> NoReturn:
    """Exit at once, with 1 in place of 0 if what was printed is lost.

    Everything is on disk, and torch takes a second or two to clear up, in which threads of torch.distributed may abort.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except BrokenPipeError:  # the reader of our output has gone
            pass
        except OSError as error:
            status = status or 1
            with contextlib.suppress(OSError):
                print(f"pvae: what was printed is lost: {error.strerror}", file=sys.stderr, flush=True)
    os._exit(status)
