"""What must be known to repeat a run: versions, the commit of the code, and what else is of a process."""

from __future__ import annotations

import platform
import subprocess
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

__all__ = ["commit", "provenance", "versions"]


def provenance() -> dict[str, object]:
    """Return what a process that begins now is to be known by later."""
    return {
        "threads": torch.get_num_threads(),
        "versions": versions(),
        "commit": commit(),
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that a result depends on."""
    found = {"python": platform.python_version()}
    for package in ("pvae", "torch", "pyro-ppl", "torchvision", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # a source tree that was not installed
            found[package] = "unknown"
    return found


def commit() -> str | None:
    """Return the commit of pvae's own checkout, with "-dirty" if it was edited; None outside of one."""
    package = Path(__file__).resolve().parent
    if _git(package, "ls-files", "--error-unmatch", "__init__.py") is None:
        return None  # the nearest repository, if any, is another project's
    head = _git(package, "rev-parse", "HEAD")
    if head is None:
        return None
    edited = _git(package, "status", "--porcelain", "--untracked-files=no")
    return head + ("-dirty" if edited else "")


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=5, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
