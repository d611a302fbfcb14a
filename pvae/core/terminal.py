"""Lines on the terminal."""

from __future__ import annotations

import sys

__all__ = ["say"]


def say(line: object) -> None:
    """Print a line; where no one reads any more (a closed pipe, a full device), the work goes on without a word."""
    if sys.stdout is None:
        return
    try:
        print(line, flush=True)
    except OSError:
        sys.stdout = None  # nor may Python's own flush at the exit fail
