"""What every command shares: a refusal is one line, Ctrl-C leaves at once, a closed pipe is no error."""

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

from pvae.cli.deadlines import ending_in_time
from pvae.core.errors import InputError, InterruptedTrainingError, LostError, TrainingError, one_line
from pvae.core.files import check_replaceable
from pvae.core.finite import NotFiniteError, is_of_memory, named, one_voice
from pvae.core.signals import SIGNALS
from pvae.core.torchrun import is_first_process

__all__ = ["Parser", "a_path", "ctrl_c_exits_at_once", "leave", "result_folder", "run_command"]


class Parser(argparse.ArgumentParser):
    """A parser whose refusal is one line."""

    def error(self, message: str) -> NoReturn:
        """Refuse the arguments.

        Raises:
            InputError: always.
        """
        raise InputError(f"{message} ({self._hint(message)})")

    def _hint(self, message: str) -> str:
        """Return the option that is nearest to one that there is not, or where all of them are listed."""
        unknown = re.match(r"unrecognized arguments: (--[^\s=]+)", message)
        near = difflib.get_close_matches(unknown[1], self._option_string_actions, n=1) if unknown else []
        return f"did you mean {near[0]}?" if near else "--help lists the options"


def a_path(text: str) -> Path:
    """Return the path that an argument names; an empty one would be the working folder.

    Raises:
        argparse.ArgumentTypeError: it is empty.
    """
    if not text:
        raise argparse.ArgumentTypeError("the path is empty, as an unset variable of a shell is: name a file or folder")
    return Path(text)


def run_command(
    name: str,
    command: Callable[[], None],
    what_now: Callable[[], str] = lambda: "what was written is whole",
) -> int:
    """Run a command and return its exit status; it ends within two seconds of Ctrl-C or SIGTERM.

    Args:
        name: stands before a refusal.
        command: does the work.
        what_now: says what an interrupted command leaves that cannot say it itself.

    Returns:
        0; 2 for what cannot be done as asked or is not permitted, 1 for a disk or a process that has gone, 130 for
        Ctrl-C, 143 for SIGTERM.
    """
    with ending_in_time(name, what_now):
        try:
            return _run(name, command)
        except InterruptedTrainingError as error:  # while the last words were said
            return error.status


def _run(name: str, command: Callable[[], None]) -> int:
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name that the terminal cannot show must not end a training
            stream.reconfigure(errors="backslashreplace")
    try:
        if not _is_somewhere():
            raise InputError("the folder in which the command was started is gone: go to one that is there")
        with named(), one_voice():
            command()
        return 0
    except (InputError, TrainingError, NotFiniteError) as error:
        if is_first_process():  # the others were refused for the same reason
            what_now = "; the weights have diverged: train anew, with a smaller --lr"
            why = f"{error}{what_now}" if isinstance(error, NotFiniteError) else str(error)
            print(f"{name}: {one_line(why)}", file=sys.stderr)
        return 2
    except LostError as error:
        if str(error):
            print(f"{name}: {one_line(str(error))}", file=sys.stderr)
        return 1
    except (RuntimeError, MemoryError, ImportError) as error:
        if not is_of_memory(error):
            raise
        smaller = "give smaller images, networks, batches or fewer particles"
        what_now = "torch cannot be loaded: see ulimit -v" if isinstance(error, ImportError) else smaller
        print(f"{name}: out of memory: {what_now}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # whoever read our output has gone
        sys.stdout = None
        return 0
    except OSError as error:
        file = error.filename or "a file of the result"  # a write that fails does not say which
        print(f"{name}: {file} cannot be written or read: {error.strerror}", file=sys.stderr)
        return 2 if isinstance(error, PermissionError) else 1
    except KeyboardInterrupt as error:
        if is_first_process():  # torchrun ends the others too
            print(f"{name}: {str(error) or 'interrupted'}", file=sys.stderr)
        return int(getattr(error, "status", 130))


def _is_somewhere() -> bool:
    """Whether the working folder is still there; without one torch's libraries end the process themselves."""
    try:
        return Path.cwd().exists()
    except OSError:
        return False


@contextlib.contextmanager
def ctrl_c_exits_at_once(name: str) -> Iterator[None]:
    """Let Ctrl-C and SIGTERM end the process on the spot while modules load, which an exception would break.

    Raises:
        InputError: Python runs without docstrings, and so cannot import Pyro.
    """
    if sys.flags.optimize > 1:
        raise InputError("Pyro needs docstrings, which PYTHONOPTIMIZE=2 and -OO take out: set it to 1, or give -O")

    def exit_at_once(number: int, _: object) -> None:
        if is_first_process():
            os.write(2, f"{name}: interrupted before anything was done\n".encode())
        os._exit(128 + number)

    try:
        before = {number: signal.signal(number, exit_at_once) for number in SIGNALS}
    except ValueError:  # not in the main thread, where no signal arrives
        yield
        return
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def result_folder(folder: Path, names: Iterable[str] = ()) -> Iterator[Path]:
    """Make the folder that a command writes to, and those above it; what stays empty is gone again afterwards.

    Args:
        folder: the folder.
        names: of the reports that will be written there; of a folder that is pvae's own they need not be given.

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

    All is on disk, and to clear up takes torch a second or two, in which threads of torch.distributed may abort it.
    """
    for number in SIGNALS:  # all is said and done
        signal.signal(number, signal.SIG_IGN)
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except BrokenPipeError:  # whoever read our output has gone
            pass
        except OSError as error:
            status = status or 1
            with contextlib.suppress(OSError):
                print(f"pvae: what was printed is lost: {error.strerror}", file=sys.stderr, flush=True)
    os._exit(status)
