"""Handle Ctrl-C and SIGTERM: a training stops between two steps; elsewhere they raise an exception."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from types import FrameType

from pvae.core.errors import InterruptedTrainingError
from pvae.core.terminal import is_first_process

__all__ = ["SIGNALS", "Interruptions", "handled_by"]

# A terminal sends SIGHUP when it is closed; a process under nohup ignores it.
_HANDLES_SIGHUP = hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN
SIGNALS = (signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if _HANDLES_SIGHUP else []))
# In seconds. A second signal within this time is ignored, because `timeout` signals a process and then its group.
_MIN_INTERVAL = 0.2


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
        self.at_once, self.received, self._last = at_once, 0, 0.0

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
        is_second, self.received, self._last = bool(self.received), number, now
        if is_second or self.at_once:
            raise InterruptedTrainingError("", self.status)
        is_watched = sys.stderr is not None and sys.stderr.isatty()  # a script cannot press Ctrl-C
        if is_first_process() and is_watched:
            os.write(2, b"\nstopping after this step; Ctrl-C again ends at once\n")
