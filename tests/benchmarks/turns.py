"""Sides of the benchmark as processes that take turns: one runs while the others wait."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from pvae.core.errors import InputError

Result = dict[str, Any]

START, _TURN, END = (f"PVAE_BENCHMARK_{what}" for what in ("START", "TURN", "END "))
LEAN = "lean loop"  # the second side to which others are held


def since_start() -> float:
    """Return the seconds since this process, a side's, was started."""
    return time.time() - float(os.environ.get(START, "nan"))


def end_turn() -> None:
    """Wait, as a side, to be called again; end where nobody is left to do that."""
    print("\n" + _TURN, flush=True)  # at the start of a line, whatever a library has printed
    if not sys.stdin.readline():
        raise SystemExit("the benchmark that ran this side has gone")


def give(result: Result) -> None:
    """Tell, as a side, what it took."""
    print("\n" + END + json.dumps(result), flush=True)


class Side:
    """A side in a process of its own, which waits between two turns.

    Args:
        name: of the side.

    Attributes:
        result: what it took, once it has ended.
    """

    def __init__(self, name: str) -> None:
        self.name, self._seconds = name, 0.0
        script = Path(__file__).with_name("speed.py")
        self._command = [sys.executable, str(script), "--side", name, *sys.argv[1:]]
        self._process: subprocess.Popen[str] | None = None
        self.result: Result | None = None

    def __enter__(self) -> Side:
        self._errors = tempfile.TemporaryFile("w+", errors="replace")
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        self._errors.close()

    def take_turn(self) -> None:
        """Let it start, and run to the end of its first step; then of an epoch, or of a test; at last let it end.

        Raises:
            SystemExit: it has failed.
        """
        if self.result is not None:
            return
        started = time.perf_counter()
        if self._process is None:
            self._process = self._started()
        else:
            with contextlib.suppress(BrokenPipeError):  # it has died while it waited, and says nothing more
                self._process.stdin.write("\n")
                self._process.stdin.flush()
        said = next((line for line in self._process.stdout if line.startswith((_TURN, END))), "")
        status = None if said.startswith(_TURN) else self._process.wait()
        self._seconds += time.perf_counter() - started
        if status or not said:
            self._errors.seek(0)
            raise SystemExit(f"{self.name} failed with exit status {status}:\n{self._errors.read()[-2000:]}")
        if said.startswith(END):
            self.result = {**json.loads(said.removeprefix(END)), "process": self._seconds}

    def _started(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self._command,
            env={**os.environ, START: str(time.time()), "TF_CPP_MIN_LOG_LEVEL": "3"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            cwd=Path(__file__).parent,
        )


@contextlib.contextmanager
def busy(count: int) -> Iterator[None]:
    """Let this number of processes multiply matrices, each by one thread, until the block ends."""
    code = "import torch; torch.set_num_threads(1); x = torch.randn(400, 400)\nwhile True: x @ x"
    others = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(count)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def chosen(names: Collection[str], only: str) -> list[str]:
    """Return the names that match one of the expressions, which semicolons split.

    Raises:
        InputError: none matches.
    """
    found = [name for name in names if any(re.search(part, name) for part in only.split(";"))]
    if not found:
        raise InputError(f"--only {only} leaves none of: {'; '.join(names)}")
    return found


def in_turns(names: Sequence[str], title: str) -> dict[str, Result]:
    """Run sides at the same time, of which one runs while the others wait.

    Args:
        names: of the sides, the one first to which the others are held.
        title: before the name of the side that runs, on stderr.

    Returns:
        What each took, and beside it "ratios": of its epochs to those of the first side in the same turns; and "lean":
        to those of the lean loop, if it is one of them.
    """
    with contextlib.ExitStack() as stack:
        sides = [stack.enter_context(Side(name)) for name in names]
        while any(side.result is None for side in sides):
            for side in sides:
                print(f"\r{title}{side.name:40}", end="", file=sys.stderr, flush=True)
                side.take_turn()
        results = {side.name: side.result or {} for side in sides}
    print("\r" + 60 * " " + "\r", end="", file=sys.stderr)
    for key, reference in (("ratios", names[0]), ("lean", LEAN)):
        for result in results.values():
            pairs = zip(counted(result), counted(results[reference]), strict=True) if reference in results else ()
            result[key] = [mine / other for mine, other in pairs]
    return results


def counted(result: Result) -> list[float]:
    """Return the seconds of the epochs but the first, which compiles or warms caches."""
    seconds: list[float] = result["seconds"]
    return seconds[1:] or seconds
