"""Ctrl-C and SIGTERM during a training: taken between two steps, where the state can be saved."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType
from typing import Any

__all__ = ["Interruptions"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interruptions:
    """Hold Ctrl-C and SIGTERM back inside a `with` block; the second of them is a KeyboardInterrupt on the spot.

    Outside the main thread, where no signal arrives, it holds nothing. A handler that was there before is called too,
    but for Python's own.

    Attributes:
        received: the number of the signal that came, or 0.
    """

    def __init__(self) -> None:
        self.received = 0
        self._is_holding = True
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interruptions:
        for number in _SIGNALS:
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
        """The exit status of a process that this signal ended: 130 for Ctrl-C, 143 for SIGTERM."""
        return 128 + (self.received or signal.SIGINT)

    def release(self) -> None:
        """From now on, let a signal be a KeyboardInterrupt at once: there is nothing more to save.

        Raises:
            KeyboardInterrupt: one came before.
        """
        self._is_holding = False
        if self.received:
            raise KeyboardInterrupt

    def _note(self, number: int, frame: FrameType | None) -> None:
        is_second, self.received = bool(self.received), number
        if is_second or not self._is_holding:
            raise KeyboardInterrupt
        before = self._before.get(number)
        if callable(before) and before is not signal.default_int_handler:
            before(number, frame)
