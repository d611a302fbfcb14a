"""Lines and progress bars on the terminal, and which process of several prints them."""

from __future__ import annotations

import os
import sys
from typing import Any

from tqdm import tqdm

__all__ = ["is_first_process", "is_torchrun", "print_line", "progress_bar"]


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


def progress_bar(title: str, total: int, unit: str, quiet: bool = False, done: int = 0, in_logs: bool = False) -> tqdm:
    """Return a tqdm bar, which is drawn if standard error is a terminal, and removed at its end.

    Args:
        title: printed before the bar.
        total: number of units.
        unit: name of a unit.
        quiet: draw nothing.
        done: number of units that were done before.
        in_logs: if standard error is not a terminal, write the time left to it after ten seconds and then every minute.
    """
    rest: dict[str, Any] = {"disable": quiet or sys.stderr is None or None}  # None: tqdm looks if it is a terminal
    if in_logs and not quiet and sys.stderr is not None and not sys.stderr.isatty():
        left = "{desc}: {n_fmt} of {total_fmt} {unit}s, {remaining} left"
        rest = {"delay": 10, "mininterval": 60, "bar_format": left}
    return tqdm(total=total, initial=done, desc=title, unit=unit, leave=False, **rest)
