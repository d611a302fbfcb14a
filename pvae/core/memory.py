"""The memory that is left, so that what would not fit is refused before it is allocated."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

__all__ = ["available_memory"]

_CGROUP = Path("/sys/fs/cgroup")


def available_memory() -> int:
    """Return how many bytes a process can still allocate; `sys.maxsize` where the system does not say."""
    sizes = [sys.maxsize]
    with contextlib.suppress(OSError, ValueError, AttributeError):  # Windows
        sizes.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    with contextlib.suppress(OSError, ValueError, IndexError):  # not Linux
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        sizes += [1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
    with contextlib.suppress(OSError, ValueError, KeyError):  # no container, or one without a limit ("max")
        most, used = (int((_CGROUP / name).read_text(encoding="ascii")) for name in ("memory.max", "memory.current"))
        stat = dict(line.split() for line in (_CGROUP / "memory.stat").read_text(encoding="ascii").splitlines())
        cached = int(stat["active_file"]) + int(stat["inactive_file"])  # the system frees the page cache when needed
        sizes.append(max(0, most - used + cached))
    return min(sizes)
