"""Ctrl-C and SIGTERM: noted during a training, which stops between two steps, and an exception elsewhere."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType

from pvae.core.errors import InterruptedTrainingError
from pvae.core.torchrun import is_first_process

__all__ = ["SIGNALS", "Interruptions", "handled_by"]

# A terminal that is closed sends SIGHUP, which a process under nohup ignores.
_HANGS_UP = hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN
SIGNALS = (signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if _HANGS_UP else []))
_ONE_PRESS = 0.2  # seconds; `timeout`, for one, signals a process, and its group right after


@contextlib.contextmanager
def handled_by(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Let a handler take these signals inside the block; outside the main thread, where none arrives, do nothing."""
    before = {}
    with contextlib.suppress(ValueError):  # not in the main thread
        before = {number: signal.signal(number, handler) for number in SIGNALS}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


class Interruptions:
    """Note Ctrl-C and SIGTERM inside a `with` block; the second of them is an InterruptedTrainingError.

    Python calls a handler between two of its own instructions, so one long call into C++ ends first.

    Args:
        at_once: the first is an exception too.

    Attributes:
        received: the number of the signal that came, or 0.
    """

    def __init__(self, at_once: bool = False) -> None:
        self.received = 0
        self.at_once = at_once
        self._last = 0.0
        self._handled = handled_by(self._note)

    def __enter__(self) -> Interruptions:
        self._handled.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._handled.__exit__(None, None, None)

    @property
    def status(self) -> int:
        """The exit status of a process that this signal ended: 130 for Ctrl-C, 143 for SIGTERM, 129 for SIGHUP."""
        return 128 + (self.received or signal.SIGINT)

    def stop_if_asked(self) -> None:
        """Stop here, where everything is saved.

        Raises:
            InterruptedTrainingError: a signal came.
        """
        if self.received:
            raise InterruptedTrainingError("", self.status)

    def _note(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.received and now - self._last < _ONE_PRESS:
            return
        is_second, self.received, self._last = bool(self.received), number, now
        if is_second or self.at_once:
            raise InterruptedTrainingError("", self.status)
        if is_first_process() and sys.stderr is not None and sys.stderr.isatty():  # a script presses no key
            os.write(2, b"\nstopping after this step, and saving the state; Ctrl-C again ends at once\n")
