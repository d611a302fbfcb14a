"""How much memory there is, so that what would not fit is refused and not begun."""

from __future__ import annotations

import os
import sys
from pathlib import Path

__all__ = ["available_memory"]

_CGROUP = Path("/sys/fs/cgroup")


def available_memory() -> int:
    """Return the bytes that a process can still take, or more than there ever are where nothing tells."""
    known = [_of_machine(), _of_container()]
    return min((size for size in known if size is not None), default=sys.maxsize)


def _of_machine() -> int | None:
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return 1024 * int(line.split()[1])
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (OSError, ValueError, IndexError, AttributeError):
        return None


def _of_container() -> int | None:
    """Return what is left of the limit of a container, if there is one; the page cache is given back when needed."""
    try:
        most, used = (int((_CGROUP / name).read_text(encoding="ascii")) for name in ("memory.max", "memory.current"))
        stat = dict(line.split() for line in (_CGROUP / "memory.stat").read_text(encoding="ascii").splitlines())
        cached = int(stat["active_file"]) + int(stat["inactive_file"])
    except (OSError, ValueError, KeyError):  # "max": no limit
        return None
    return max(0, most - used + cached)
