"""Used by every command: the parser, errors as one line, signals, exit statuses, and where results are written."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import io
import os
import re
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from pvae.core.errors import (
    InputError,
    LostError,
    NotFiniteError,
    TrainingError,
    is_out_of_memory,
    naming_refused_parameters,
    one_line,
)
from pvae.core.files import write_whole
from pvae.core.terminal import SIGNALS, Interruptions, handled_by, is_first_process

_INTERRUPTED = "interrupted; any file already written is complete"
_DATA_DIR = (
    "folder that holds MNIST/raw, FashionMNIST/raw, binarized_mnist/ or celeba/ (default: that of the run's training, "
    "then $PVAE_DATA); for a run of folder:PATH, where those images are now"
)


@dataclass(frozen=True)
class Command:
    """A sub-command of `pvae`: a function of the arguments after its name, which returns the exit status.

    Args:
        parser: returns the parser of its arguments.
        work: does the work of the parsed arguments, and raises an `InputError` where they cannot be used. Torch is
            imported by then.
        exclusive: pairs of arguments that have no meaning together, such as ("RUN", "system").
    """

    parser: Callable[[], Parser]
    work: Callable[[argparse.Namespace], None]
    exclusive: Sequence[tuple[str, str]] = ()

    def __call__(self, argv: Sequence[str] | None = None) -> int:
        """Run the command, and return its exit status as `run_command` does.

        Args:
            argv: the arguments after the command's name; those of the program if left out.
        """
        parser = self.parser()

        def parse_and_work() -> None:
            arguments = parser.parse_intermixed_args(argv)
            for pair in self.exclusive:
                values = [getattr(arguments, name.lower(), None) for name in pair]
                if not any(value is None or value is False for value in values):
                    first, second = (name if name.isupper() else f"--{name}" for name in pair)
                    raise InputError(f"{first} and {second} exclude each other: leave one of them out")
            with ctrl_c_exits_at_once(parser.command):
                import pvae.training.fit  # noqa: F401  imports torch, which takes two seconds
            self.work(arguments)

        return run_command(parser.command, parse_and_work)


class Parser(argparse.ArgumentParser):
    """A parser that reports an error as one line.

    Args:
        command: "pvae" and the name of the sub-command, as in an error message.
        description: what the command does.
        epilog: examples.
    """

    def __init__(self, command: str, description: str, epilog: str) -> None:
        self.command = command
        how = argparse.RawDescriptionHelpFormatter
        super().__init__(command, None, description, epilog, formatter_class=how, allow_abbrev=False)
        # argparse takes -1e-1 and -1,2 for options, and has no public way to say otherwise.
        self._negative_number_matcher = re.compile(r"-(\d+\.?\d*|\.\d+)(e[-+]?\d+)?(,.*)?$|-inf$", re.IGNORECASE)

    def error(self, message: str) -> NoReturn:
        """Refuse the arguments.

        Raises:
            InputError: always; the message names the nearest option.
        """
        hint = "--help lists the options"
        unknown = re.match(r"unrecognized arguments: (--[^\s=]+)", message)
        names = [one.dest for one in self._get_positional_actions()]
        if names == ["run"] and re.match(r"unrecognized arguments: [^-]", message):
            hint = "it takes one run: pvae evaluate RUN RUN compares several, pvae draw FOLDER draws those in a folder"
        near = difflib.get_close_matches(unknown[1], self._option_string_actions, n=1) if unknown else []
        if near:
            hint = f"did you mean {near[0]}?"
        raise InputError(f"{message} ({hint})")


def run_parser(command: str, description: str, epilog: str, out: str, metavar: str = "DIR", **run: Any) -> Parser:
    """Return a parser with the arguments of every command for a run: RUN, --vae, --data-dir, --offline and --out.

    Args:
        command: as for `Parser`, as are `description` and `epilog`.
        description: what it does.
        epilog: examples.
        out: help text of --out.
        metavar: what --out names.
        run: arguments of `add_argument` for RUN, in place of the usual ones.
    """
    parser = Parser(command, description, epilog)
    parser.add_argument("run", **{"metavar": "RUN", "type": nonempty_path, "help": "a run folder", **run})
    group = parser.add_argument_group("the run, its data and the results")
    add_vae(group, "for a run of a VAE of your own")
    add_places(group, out, metavar)
    return parser


def add_vae(parser: argparse._ActionsContainer, what: str) -> None:
    """Add the argument --vae."""
    text = f"{what}: a function of the configuration and the shape of a datum that returns a pvae.VAE"
    parser.add_argument("--vae", metavar="FILE.py:FUNCTION", help=text)


def add_places(parser: argparse._ActionsContainer, out: str, metavar: str = "DIR") -> None:
    """Add the arguments --data-dir, --offline and --out to a parser or a group of its arguments."""
    parser.add_argument("--data-dir", metavar="DIR", type=nonempty_path, help=_DATA_DIR)
    parser.add_argument("--offline", action="store_true", help="do not download anything")
    parser.add_argument("--out", metavar=metavar, type=nonempty_path, help=out)


def add_seed(parser: argparse.ArgumentParser) -> None:
    """Add the argument --seed, of random draws."""
    kind = integer(0, 2**63 - 1)
    parser.add_argument("--seed", metavar="S", type=kind, default=0, help="seed of the random draws (default: 0)")


def nonempty_path(text: str) -> Path:
    """Return a path; an empty text, as of an unset variable of a shell, would be the working folder.

    Raises:
        argparse.ArgumentTypeError: the text is empty.
    """
    if not text:
        raise argparse.ArgumentTypeError("the path is empty, as an unset variable of a shell is: name a file or folder")
    return Path(text)


def integer(least: int, most: int = 10**9) -> Callable[[str], int]:
    """Return a type of `add_argument`: a whole number between two limits."""

    def number(text: str) -> int:
        with contextlib.suppress(ValueError):
            if least <= int(text) <= most:
                return int(text)
        limits = f"at least {least:,} and at most {most:,}"
        raise argparse.ArgumentTypeError(f"must be a whole number of {limits}, not {text}")

    return number


def integers(least: int, most: int) -> Callable[[str], Sequence[int]]:
    """Return a type of `add_argument`: whole numbers such as 1,5,50 or 0:8, which is 0 to 7; sorted."""
    number = integer(least, most)

    def numbers(text: str) -> Sequence[int]:
        first, colon, end = text.partition(":")
        with contextlib.suppress(argparse.ArgumentTypeError):
            if given := range(number(first), number(end)) if colon else sorted({*map(number, text.split(","))}):
                return given
        limits = f"at least {least:,} and at most {most:,}"
        raise argparse.ArgumentTypeError(
            f"must be one or more whole numbers of {limits}, such as 0,3,5, or 0:8 for 0 to 7, not {text}"
        )

    return numbers


def output_path(out: Path | None, default: Path) -> Path:
    """Return where a command writes; nothing is made there yet, so that a command that fails leaves nothing.

    Files are replaced in the default place alone, where only pvae writes.

    Args:
        out: --out, which must name a new file, or a new or empty folder.
        default: the place without --out, in the folder of the run.

    Raises:
        InputError: --out names something else, or the place cannot be written to.
    """
    place = out or default
    is_empty = place.is_dir() and not any(place.iterdir())
    if out is not None and os.path.lexists(out) and not is_empty and out.resolve() != default.resolve():
        raise InputError(f"--out {out} exists and is not replaced: remove it, or name another place")
    folder = place.absolute()
    if place.is_file():
        folder = folder.parent
    while not os.path.lexists(folder):
        folder = folder.parent
    if not (folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)):
        raise InputError(f"{place} cannot be written, as {folder} is read-only or no folder: name a place with --out")
    return place


def write(path: Path, content: Any, sep: str = ",") -> None:
    """Write a text, a mapping of arrays, a figure or a data frame as a whole file; its folder is made if missing.

    The index of a data frame is written if it has a name, and `sep` separates its fields.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    raw = io.BytesIO()
    if isinstance(content, Mapping):
        import numpy as np

        np.savez(raw, **content)
    elif hasattr(content, "savefig"):
        from matplotlib import rc_context

        # Text stays text in SVG, and is TrueType in PDF: some journals refuse the fonts of type 3.
        with rc_context({"pdf.fonttype": 42, "svg.fonttype": "none"}):
            content.savefig(raw, format=path.suffix[1:])
    else:
        if hasattr(content, "to_csv"):
            content = content.to_csv(sep=sep, index=content.index.name is not None, lineterminator="\n")
        raw.write(content.encode("utf-8", "surrogateescape"))  # as names of files may be
    write_whole(path, raw.getvalue())


def run_command(name: str, command: Callable[[], None]) -> int:
    """Run a command and return its exit status; print an error as one line on standard error.

    Ctrl-C and SIGTERM raise an exception in the command, except during a training, which handles them itself.

    Args:
        name: printed before the line.
        command: does the work.

    Returns:
        0; 2 for a command that cannot be done as given or is not permitted, 1 for a disk or a process that failed, 130
        for Ctrl-C, 143 for SIGTERM.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):  # a name that the terminal cannot show must not end a training
        sys.stdout.reconfigure(errors="backslashreplace")
    # A thread that waits for another one spins 300,000 times before it sleeps, which blocks that one on a busy machine.
    os.environ.setdefault("GOMP_SPINCOUNT", "100000")  # read when torch is imported
    with Interruptions(at_once=True), _warnings_as_notes():
        try:
            with naming_refused_parameters():
                command()
            return 0
        except SystemExit as done:  # of --help
            return done.code if isinstance(done.code, int) else int(done.code is not None)
        except (Exception, KeyboardInterrupt) as error:
            line, status = _line_and_status(error)
            if line:
                print(f"{name}: {one_line(line)}", file=sys.stderr)
            return status


@contextlib.contextmanager
def _warnings_as_notes() -> Iterator[None]:
    """Print each warning once, as a line without the code that gave it."""
    said = set[str]()

    def show(message: Warning | str, *_: object, **__: object) -> None:
        line = f"note: {one_line(str(message))}"
        if line not in said and is_first_process():
            print(line, file=sys.stderr)
        said.add(line)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


def _line_and_status(error: BaseException) -> tuple[str, int]:
    """Return the line that explains an error, empty if another process prints it, and the exit status.

    Raises:
        BaseException: the error itself, if it is one of the program.
    """
    if isinstance(error, KeyboardInterrupt):
        line = str(error) or _INTERRUPTED
        return line if is_first_process() else "", getattr(error, "status", 130)  # torchrun ends the others too
    if isinstance(error, (InputError, TrainingError, NotFiniteError, LostError)):
        advice = "; the weights have diverged: train anew, with a smaller --lr" * isinstance(error, NotFiniteError)
        line = f"{error}{advice}" if is_first_process() else ""  # all processes raise the same error
        return line, 1 if isinstance(error, LostError) else 2
    if is_out_of_memory(error):
        smaller = "smaller images, networks, batches or fewer particles"
        return f"out of memory: stop other programs, raise the limit of ulimit -v, or give {smaller}", 2
    if isinstance(error, BrokenPipeError):  # the program that read standard output has ended
        return "", 0
    if isinstance(error, OSError):
        file = error.filename or "a result"  # the error of a write has no file name
        return f"{file} cannot be written or read: {error.strerror}", 2 if isinstance(error, PermissionError) else 1
    raise error


@contextlib.contextmanager
def ctrl_c_exits_at_once(name: str) -> Iterator[None]:
    """Let Ctrl-C and SIGTERM end the process while it imports torch; many modules cannot handle an exception then."""

    def exit_at_once(number: int, _: object) -> None:
        if is_first_process():
            os.write(2, f"{name}: {_INTERRUPTED}\n".encode())
        os._exit(128 + number)

    with handled_by(exit_at_once):
        yield


def exit_process(status: int) -> NoReturn:
    """Exit without the usual cleanup of Python, which takes a second or two, and in which torch's threads may abort.

    All files are written by then. Lines that standard output does not take, as after `head`, are dropped.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    for stream in filter(None, (sys.stdout, sys.stderr)):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(status)
