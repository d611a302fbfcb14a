"""Whether networks fit into memory, and errors of one line for missing memory."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from pvae.config.config import Config
from pvae.core.errors import InputError, TrainingError, is_out_of_memory
from pvae.models.build import meta_state_dict, sizes_of

__all__ = ["available_memory", "check_memory", "no_memory_for"]

_CGROUP = Path("/sys/fs/cgroup")


def available_memory() -> int:
    """Return how many bytes a process can still allocate, or `sys.maxsize` if the system does not tell."""
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


@contextlib.contextmanager
def no_memory_for(what: str) -> Iterator[None]:
    """Replace torch's out-of-memory exceptions by one that says what to do.

    Args:
        what: the operation that needs the memory, for the message.

    Raises:
        TrainingError: the machine or a GPU is out of memory.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise TrainingError(
            f"out of memory at {what}: give a smaller --batch-size, fewer --particles or smaller networks"
        ) from error


def check_memory(config: Config, image_shape: tuple[int, ...]) -> None:
    """Check that the networks fit into memory before they are built: the system could kill a process that builds them.

    Raises:
        InputError: weights, gradients and Adam's two moments need more memory than is available.
    """
    needed = 4 * sum(tensor.nbytes for tensor in meta_state_dict(config, image_shape).values())
    if needed > available_memory():
        raise InputError(f"networks of {sizes_of(config)} do not fit into memory: give smaller ones")
