"""A command that ends in time after Ctrl-C or SIGTERM, whatever it is in the middle of."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType

from pvae.core.errors import InterruptedTrainingError
from pvae.core.signals import SIGNALS, is_repeated
from pvae.core.torchrun import is_first_process

__all__ = ["ending_in_time"]

_SECONDS = 1.5  # of the two that a user is promised


@contextlib.contextmanager
def ending_in_time(name: str, what_now: Callable[[], str], seconds: float = _SECONDS) -> Iterator[None]:
    """End the process so long after the first Ctrl-C or SIGTERM if it has not ended by itself; at once after a second.

    Until somebody else handles these signals (`Interruptions` does), the first is an `InterruptedTrainingError` on the
    spot. The clock is watched by a thread that the system's own signal handler wakes: Python's handlers wait for the
    main thread, which may be in the middle of a C++ compiler or of a checksum over all images.

    Args:
        name: of the command, before its last words.
        what_now: says what is on disk, and how to go on.
        seconds: that the command may take to end by itself.
    """
    if threading.current_thread() is not threading.main_thread():  # no signal arrives here
        yield
        return
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    thread = threading.Thread(target=_watch, args=(reader, name, what_now, seconds), daemon=True)
    handler = _raise_once(what_now)  # one for all: a second signal of another kind finds the first being handled
    before = {number: signal.signal(number, handler) for number in SIGNALS}
    fd_before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    _leave_children_alone()
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(fd_before)
        for number, previous in before.items():
            signal.signal(number, previous)
        writer.close()  # which the thread reads as the end
        thread.join()
        reader.close()


def _raise_once(what_now: Callable[[], str]) -> Callable[[int, FrameType | None], None]:
    """Return a handler that ends what runs, but where it is called by another handler, which has its own way to end."""
    has_raised = False

    def handler(number: int, frame: FrameType | None) -> None:
        nonlocal has_raised
        if signal.getsignal(number) is handler and not has_raised:
            has_raised = True
            raise InterruptedTrainingError(f"interrupted; {what_now()}", 128 + number)

    return handler


def _watch(reader: socket.socket, name: str, what_now: Callable[[], str], seconds: float) -> None:
    first, number = 0.0, 0
    while True:
        reader.settimeout(max(0.0, first + seconds - time.monotonic()) or 1e-3 if number else None)
        try:
            received = reader.recv(1)
        except TimeoutError:
            _end(name, what_now(), number)
        if not received:
            return
        if received[0] not in SIGNALS:
            continue
        if number and not is_repeated(first):
            _end(name, what_now(), received[0])
        if not number:
            first, number = time.monotonic(), received[0]


def _end(name: str, words: str, number: int) -> None:
    line = ("\n" if os.isatty(2) else "") + f"{name}: interrupted; {words}\n"  # a bar may stand on the line
    if is_first_process():
        with contextlib.suppress(OSError):
            os.write(2, line.encode(errors="backslashreplace"))
    os._exit(128 + number)


_is_registered = False


def _leave_children_alone() -> None:
    """Let a forked process, which inherits the way to the thread, not end its parent by a signal of its own."""
    global _is_registered
    if not _is_registered and hasattr(os, "register_at_fork"):
        _is_registered = True
        os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1) and None)
