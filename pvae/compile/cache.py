"""A cache of compiled graphs in the user's cache folder, so that each graph is compiled once on a machine.

torch's own caches still run parts of the compiler in each process; loading a package runs none.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.export
from torch import Tensor, fx

from pvae.core.errors import InputError
from pvae.core.files import read_bounded, write_whole
from pvae.core.torch_private import compile_package, load_package
from pvae.data.folders import cache_dir

__all__ = ["load_or_compile"]

_MAX_PACKAGES = 100  # of 2 MB each
_MAX_BYTES = 2**28  # of a package
# Environment variables that may change the code. Not all of "TORCH": TORCHELASTIC_RUN_ID differs in each torchrun.
_SETTINGS = ("TORCH_", "TORCHINDUCTOR", "AOT", "ATEN", "INDUCTOR", "CXX", "CPP", "CFLAGS")

Function = Callable[[list[Tensor]], list[Tensor]]


def load_or_compile(graph: fx.GraphModule, inputs: Sequence[Tensor], options: dict[str, Any]) -> Function:
    """Return a graph of torch's operators as compiled code: from the cache, or compiled ahead of time and cached.

    A package is loaded if it was compiled for the same graph, shapes, strides, torch, CPU and settings of torch, and if
    its checksums are right. Changes to torch._inductor.config in a process are not detected.

    Args:
        graph: takes every tensor as an input; no two of them share memory.
        inputs: on the CPU.
        options: of inductor.

    Returns:
        A function of a list of the inputs, which it empties. It checks no shapes. A result shares memory with an
        input only if it is that input.

    Raises:
        ValueError: the graph holds objects other than its inputs, or two inputs share memory.
        Exception: torch cannot compile the graph.
    """
    if any(node.op not in ("placeholder", "call_function", "output") for node in graph.graph.nodes):
        raise ValueError("a graph that holds more than its inputs cannot be identified by its text")
    if len({one.untyped_storage().data_ptr() for one in inputs}) < len(inputs):
        raise ValueError("inputs share memory")
    file = None
    with contextlib.suppress(InputError):  # the user has no cache folder
        file = cache_dir() / "compiled" / f"{_key(graph, inputs, options)}.pt2"
    if file is not None:
        with contextlib.suppress(Exception):  # missing or damaged
            return _load(file)
    package = io.BytesIO()  # torch would end the process if it wrote to a full disk
    compile_package(torch.export.export(graph, tuple(inputs)), package, {**options})
    if file is not None:
        with contextlib.suppress(OSError, InputError):  # the next process compiles it again
            _store(file, package.getvalue())
    return _unpacked(package)


def _load(file: Path) -> Function:
    function = _unpacked(io.BytesIO(read_bounded(file, _MAX_BYTES)))
    with contextlib.suppress(OSError):  # the folder may be read-only
        os.utime(file)
    return function


def _unpacked(package: io.BytesIO) -> Function:
    with tempfile.TemporaryDirectory() as folder:  # given a file, torch would leave an unpacked copy behind
        zipfile.ZipFile(package).extractall(folder)  # checks checksums: damaged code could crash the process
        return load_package(folder)


def _store(file: Path, package: bytes) -> None:
    """Write a package, and remove those that were not used for the longest time."""
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, package)
    by_last_use = sorted(file.parent.glob("*.pt2"), key=lambda path: path.stat().st_mtime)
    for path in by_last_use[:-_MAX_PACKAGES]:
        path.unlink(missing_ok=True)


def _key(graph: fx.GraphModule, inputs: Sequence[Tensor], options: dict[str, Any]) -> str:
    """Return a digest of everything that the compiled code depends on."""
    parts = (
        str(graph.graph),
        [(one.dtype, tuple(one.shape), one.stride()) for one in inputs],
        sorted(options.items()),
        torch.__version__,
        sorted(torch.cpu.get_capabilities().items()),
        (torch.get_num_threads(), torch.backends.mkldnn.enabled),
        (torch.get_default_dtype(), torch.get_float32_matmul_precision(), torch.is_autocast_enabled("cpu")),
        torch.are_deterministic_algorithms_enabled(),
        sorted(item for item in os.environ.items() if item[0].startswith(_SETTINGS) and not item[0].endswith("_DIR")),
    )
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]
