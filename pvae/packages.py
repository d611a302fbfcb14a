"""What inductor compiled, kept in the user's cache: the same graph is compiled once on a machine."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.export
from torch import Tensor, fx

from pvae.folders import cache_dir

__all__ = ["packaged"]

_NUM_KEPT = 100  # packages, of 2 MB each

Function = Callable[[list[Tensor]], list[Tensor]]


def packaged(graph: fx.GraphModule, inputs: Sequence[Tensor], options: dict[str, Any]) -> Function:
    """Return a graph of torch's operators as compiled code, from the cache or ahead of time, by torch's AOTInductor.

    To read it takes a tenth of a second, and needs no part of the compiler. It is read if graph, shapes, torch, CPU and
    the settings that torch takes from the environment are those that it was compiled under; what a process changes in
    torch._inductor.config is not looked at.

    Args:
        graph: all that it takes is an input, and no two of these share memory.
        inputs: on the CPU.
        options: of inductor.

    Returns:
        The function of a list of the inputs, which it empties.

    Raises:
        ValueError: the graph holds anything beside its inputs, or two of these share memory.
        Exception: whatever torch raises where it cannot compile it, and an OSError if nothing can be written.
    """
    if any(node.op not in ("placeholder", "call_function", "output") for node in graph.graph.nodes):
        raise ValueError("a graph that holds more than its inputs is not told from another")
    if len({one.untyped_storage()._cdata for one in inputs}) < len(inputs):
        raise ValueError("inputs share memory")
    folder = cache_dir() / "compiled"
    path = folder / f"{_key(graph, inputs, options)}.pt2"
    if path.is_file():
        with contextlib.suppress(Exception):  # it may be damaged
            function = _read(path)
            os.utime(path)
            return function
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as work:
        made = Path(work) / path.name
        program = torch.export.export(graph, tuple(inputs))
        torch._inductor.aoti_compile_and_package(program, package_path=str(made), inductor_configs={**options})
        made.replace(path)
    _drop_old(folder)
    return _read(path)


def _read(path: Path) -> Function:
    function: Function = torch._inductor.aoti_load_package(str(path)).loader.boxed_run
    return function


def _key(graph: fx.GraphModule, inputs: Sequence[Tensor], options: dict[str, Any]) -> str:
    """Return a name of all that the code hangs on."""
    of = (
        str(graph.graph),
        [(one.dtype, tuple(one.shape), one.stride()) for one in inputs],
        sorted(options.items()),
        (torch.__version__, torch.version.git_version),
        sorted(torch.cpu.get_capabilities().items()),
        (torch.get_num_threads(), torch.get_float32_matmul_precision(), torch.backends.mkldnn.enabled),
        torch.are_deterministic_algorithms_enabled(),
        sorted((name, value) for name, value in os.environ.items() if _is_setting(name)),
    )
    return hashlib.sha256(repr(of).encode()).hexdigest()[:32]


def _is_setting(name: str) -> bool:
    """Whether a variable of the environment may change the code; where things lie does not, and torch sets it."""
    return name.startswith(("TORCH", "AOT", "CXX", "CPP", "CFLAGS")) and not name.endswith("_DIR")


def _drop_old(folder: Path) -> None:
    with contextlib.suppress(OSError):  # another process may do the same
        by_age = sorted(folder.glob("*.pt2"), key=lambda path: path.stat().st_mtime)
        for path in by_age[:-_NUM_KEPT]:
            path.unlink()
