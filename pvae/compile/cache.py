"""A cache of compiled graphs in the user's cache folder: each graph is compiled once on a machine.

Loading a package runs no part of the compiler, which torch's own caches do not spare a process.
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

_NUM_KEPT = 100  # packages, of 2 MB each
_MOST = 2**28  # bytes of a package

Function = Callable[[list[Tensor]], list[Tensor]]


def load_or_compile(graph: fx.GraphModule, inputs: Sequence[Tensor], options: dict[str, Any]) -> Function:
    """Return a graph of torch's operators as compiled code: from the cache, or compiled ahead of time and cached.

    A package is loaded if graph, shapes, strides, torch, CPU and torch's settings are those that it was compiled under,
    and if its checksum is right. Changes to torch._inductor.config in a process are not seen.

    Args:
        graph: takes every tensor as an input; no two of them share memory.
        inputs: on the CPU.
        options: of inductor.

    Returns:
        A function of a list of the inputs, which it empties. It checks no shapes; its results share no memory with the
        inputs unless they are inputs.

    Raises:
        ValueError: the graph holds anything beside its inputs, or two of these share memory, or one is not on the CPU.
        Exception: whatever torch raises where it cannot compile it.
    """
    if any(node.op not in ("placeholder", "call_function", "output") for node in graph.graph.nodes):
        raise ValueError("a graph that holds more than its inputs is not told from another")
    if len({one.untyped_storage().data_ptr() for one in inputs}) < len(inputs):
        raise ValueError("inputs share memory")
    if any(one.device.type != "cpu" for one in inputs):
        raise ValueError("an input is not on the CPU")
    package, key = None, _key(graph, inputs, options)
    with contextlib.suppress(InputError):  # there is no cache folder
        package = _kept(cache_dir() / "compiled", key)
    if package is None:
        package = _compiled(graph, inputs, options)
        with contextlib.suppress(OSError, InputError):  # the next process compiles it again
            _keep(cache_dir() / "compiled", key, package)
    return _loaded(package)


def _compiled(graph: fx.GraphModule, inputs: Sequence[Tensor], options: dict[str, Any]) -> bytes:
    package = io.BytesIO()  # on a full disk torch would end the process
    program = torch.export.export(graph, tuple(inputs))
    compile_package(program, package, {**options})
    return package.getvalue()


def _loaded(package: bytes) -> Function:
    with tempfile.TemporaryDirectory() as folder:  # given the file, torch would leave an unpacked copy behind
        zipfile.ZipFile(io.BytesIO(package)).extractall(folder)
        return load_package(folder)


def _kept(folder: Path, key: str) -> bytes | None:
    """Return the package of that key if its checksum is right: damaged code would not raise, but crash the process."""
    for path in folder.glob(f"{key}-*.pt2"):
        with contextlib.suppress(OSError, InputError):
            package = read_bounded(path, _MOST)
            if path.name == _name(key, package):
                with contextlib.suppress(OSError):  # the folder may be read-only
                    os.utime(path)
                return package
    return None


def _keep(folder: Path, key: str, package: bytes) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for damaged in folder.glob(f"{key}-*.pt2"):
        damaged.unlink(missing_ok=True)
    write_whole(folder / _name(key, package), package)
    by_age = sorted(folder.glob("*.pt2"), key=lambda path: path.stat().st_mtime)
    for path in by_age[:-_NUM_KEPT]:
        path.unlink(missing_ok=True)


def _name(key: str, package: bytes) -> str:
    return f"{key}-{_digest(package)}.pt2"


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:32]


def _key(graph: fx.GraphModule, inputs: Sequence[Tensor], options: dict[str, Any]) -> str:
    """Return a digest of everything that the compiled code depends on."""
    parts = (
        str(graph.graph),
        [(one.dtype, tuple(one.shape), one.stride()) for one in inputs],
        sorted(options.items()),
        (torch.__version__, torch.version.git_version),
        sorted(torch.cpu.get_capabilities().items()),
        (torch.backends.cpu.get_cpu_capability(), torch.get_num_threads(), torch.backends.mkldnn.enabled),
        (torch.get_default_dtype(), torch.get_float32_matmul_precision(), torch.is_autocast_enabled("cpu")),
        torch.are_deterministic_algorithms_enabled(),
        sorted((name, value) for name, value in os.environ.items() if _is_setting(name)),
    )
    return _digest(repr(parts).encode())


def _is_setting(name: str) -> bool:
    """Whether a variable of the environment may change the code; paths do not."""
    return name.startswith(_SETTINGS) and not name.endswith("_DIR")


# Not all of "TORCH": torchrun gives each run a name, in TORCHELASTIC_RUN_ID.
_SETTINGS = ("TORCH_", "TORCHINDUCTOR", "AOT", "ATEN", "INDUCTOR", "CXX", "CPP", "CFLAGS")
