"""Print lines on the terminal."""

from __future__ import annotations

import sys

__all__ = ["say"]


def say(line: object) -> None:
    """Print a line; if standard output is a closed pipe or a full device, print nothing from then on."""
    if sys.stdout is None:
        return
    try:
        print(f"{line}\n", end="", flush=True)  # one write, so that the lines of two threads do not mix
    except OSError:
        sys.stdout = None  # or Python would try to flush it again at exit
