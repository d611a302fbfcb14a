"""Ctrl-C and SIGTERM during a training: taken between two steps, where the state can be saved."""

from __future__ import annotations

import signal
import time
from types import FrameType, TracebackType
from typing import Any

__all__ = ["SIGNALS", "Interruptions", "is_repeated"]

# A terminal that is closed sends SIGHUP, but to what was started by nohup, which ignores it.
_HANGS_UP = hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN
SIGNALS = (signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if _HANGS_UP else []))
_ONE_PRESS = 0.2  # seconds; `timeout`, for one, signals a process, and its group right after


def is_repeated(first: float) -> bool:
    """Whether a signal that comes now is the one of that time once more, sent twice, and no second wish."""
    return time.monotonic() - first < _ONE_PRESS


class Interruptions:
    """Hold Ctrl-C and SIGTERM back inside a `with` block; the second of them is a KeyboardInterrupt on the spot.

    Outside the main thread, where no signal arrives, it holds nothing. A handler that was there before is called too,
    but for Python's own.

    Attributes:
        received: the number of the signal that came, or 0.
    """

    def __init__(self) -> None:
        self.received = 0
        self._first = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interruptions:
        for number in SIGNALS:
            try:
                self._before[number] = signal.signal(number, self._note)
            except ValueError:  # not in the main thread
                break
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @property
    def status(self) -> int:
        """The exit status of a process that this signal ended: 130 for Ctrl-C, 143 for SIGTERM, 129 for SIGHUP."""
        return 128 + (self.received or signal.SIGINT)

    def stop_if_asked(self) -> None:
        """Stop here, where all that there is to save is saved.

        Raises:
            KeyboardInterrupt: a signal came.
        """
        if self.received:
            raise KeyboardInterrupt

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received and is_repeated(self._first):
            return
        is_second, self.received = bool(self.received), number
        if is_second:
            raise KeyboardInterrupt
        self._first = time.monotonic()
        before = self._before.get(number)
        if callable(before) and before is not signal.default_int_handler:
            before(number, frame)
