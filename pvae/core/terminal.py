"""Lines and progress bars on the terminal, which process of several prints them, and Ctrl-C and SIGTERM."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from tqdm import tqdm

from pvae.core.errors import InterruptedTrainingError

# A terminal sends SIGHUP when it is closed; a process under nohup ignores it.
_HANDLES_SIGHUP = hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN
SIGNALS = (signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if _HANDLES_SIGHUP else []))
# In seconds. A second signal within this time is ignored, because `timeout` signals a process and then its group.
_MIN_INTERVAL = 0.2


def is_torchrun() -> bool:
    """Return whether torchrun, or a program that sets the same variables, started this process and others beside it."""
    is_started = {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys()
    return is_started and os.environ["WORLD_SIZE"] != "1"


def is_first_process() -> bool:
    """Return whether this is the only process or the first of those that torchrun started, which alone prints."""
    return not is_torchrun() or os.environ.get("RANK") == "0"


def print_line(line: object) -> None:
    """Print a line; if standard output is a closed pipe or a full device, print nothing from then on."""
    try:
        print(f"{line}\n", end="", flush=True)  # one write, so that the lines of two threads do not mix
    except OSError:
        sys.stdout = None  # Python would try again to flush it at its exit


def progress_bar(title: str, total: int, unit: str, quiet: bool = False, in_logs: bool = False) -> tqdm:
    """Return a tqdm bar, which is drawn if standard error is a terminal, and removed at its end.

    Args:
        title: printed before the bar.
        total: number of units.
        unit: name of a unit.
        quiet: draw nothing.
        in_logs: if standard error is not a terminal, write the time left to it every minute.
    """
    # None: tqdm looks if it is a terminal.
    rest: dict[str, Any] = {"disable": quiet or sys.stderr is None or None, "leave": False}
    if in_logs and not quiet and sys.stderr is not None and not sys.stderr.isatty():
        units = f"{unit}s"
        if unit == "datum":
            units = "data"
        left = f"{{desc}}: {{n_fmt}} of {{total_fmt}} {units}, {{remaining}} left"
        rest = {"delay": 10, "mininterval": 60, "bar_format": left}  # and at its end, with a line break
    return tqdm(total=total, desc=title, unit=unit, **rest)


@contextlib.contextmanager
def handled_by(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Call `handler` for these signals inside the block; outside the main thread, which gets no signals, do nothing."""
    before = {}
    with contextlib.suppress(ValueError):  # not in the main thread
        before = {number: signal.signal(number, handler) for number in SIGNALS}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


class Interruptions(contextlib.ExitStack):
    """Remember Ctrl-C and SIGTERM inside a `with` block; a second signal raises InterruptedTrainingError.

    Python calls the handler between two of its own instructions, so a long call into C++ ends first.

    Args:
        at_once: the first signal raises the error too.

    Attributes:
        received: the number of the last signal, or 0.
    """

    def __init__(self, at_once: bool = False) -> None:
        super().__init__()
        self.at_once = at_once
        self.received = 0
        self._last = 0.0

    def __enter__(self) -> Interruptions:
        self.enter_context(handled_by(self._receive))
        return self

    @property
    def status(self) -> int:
        """The exit status after this signal: 130 for Ctrl-C, 143 for SIGTERM, 129 for SIGHUP."""
        return 128 + (self.received or signal.SIGINT)

    def raise_if_received(self) -> None:
        """Raise the error of a signal that was received, if any; to be called where everything is saved.

        Raises:
            InterruptedTrainingError: a signal was received.
        """
        if self.received:
            raise InterruptedTrainingError("", self.status)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.received and now - self._last < _MIN_INTERVAL:
            return
        is_second = bool(self.received)
        self.received = number
        self._last = now
        if is_second or self.at_once:
            raise InterruptedTrainingError("", self.status)
        is_watched = sys.stderr is not None and sys.stderr.isatty()  # a script cannot press Ctrl-C
        if is_first_process() and is_watched:
            os.write(2, b"\nstopping after this step; Ctrl-C again ends at once\n")
