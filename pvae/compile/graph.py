"""Record a function of tensors as a graph of torch's operators, which runs without the function's Python."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pyro
import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode

from pvae.compile.inductor import compile_graph, missing
from pvae.core.errors import InputError, brief, check_name, is_out_of_memory

__all__ = ["Function", "RecordingError", "check_engine", "record"]

Function = Callable[..., Sequence[Tensor]]

_READS_VALUES = (
    "the step cannot be recorded, since its Python code reads values of tensors (.item(), `if x > 0`): "
    "give compile='none' (or to SVI the ELBO itself)"
)


class RecordingError(InputError):
    """A function of tensors cannot be recorded, or not compiled."""


def record(function: Function, inputs: Sequence[Tensor], engine: str = "graph") -> Function:
    """Run a function once, and return its operators as a function of the same inputs.

    A replay reads and writes the tensors that the function reads and writes, parameters and buffers for instance, and
    draws random numbers in the same order. Every other value is fixed by the recording.

    Args:
        function: of tensors; its control flow may not depend on their values.
        inputs: the inputs of this run; the result takes tensors of the same shapes, strides and dtypes only.
        engine: "graph" calls torch's operators one by one, which gives the same bits; "inductor" compiles them to C++
            or Triton, which rounds otherwise.

    Raises:
        RecordingError: (an InputError) the function cannot be recorded or compiled.
        InputError: there is no such engine or compiler.
    """
    check_engine(engine)

    def unread(*inputs: Tensor) -> Sequence[Tensor]:
        with _RefusesReading():
            return function(*inputs)

    try:
        with pyro.validation_enabled(False):
            graph = make_fx(unread)(*(x.view_as(x) for x in inputs))  # one tensor given twice is two inputs
    except InputError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise RecordingError(f"{_READS_VALUES} ({brief(error)})") from error
    if any(_depends_on_values(node, graph) for node in graph.graph.nodes):
        raise RecordingError(_READS_VALUES)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    if engine == "graph":
        return graph.forward
    try:
        return compile_graph(graph, inputs)
    except Exception as error:
        raise RecordingError(
            f"inductor cannot compile this ({brief(error)}): see that the C++ compiler works and no disk is full, or "
            "give compile='graph'"
        ) from error


def check_engine(engine: str) -> None:
    """Raise an `InputError` unless the engine exists, and inductor finds what it needs."""
    check_name("engine", engine, ["graph", "inductor"])
    if engine == "inductor" and missing():
        raise InputError(f"compile='inductor' needs {missing()}, or give compile='graph'")


class _RefusesReading(TorchFunctionMode):
    """Refuse the ways of reading a tensor's values that make_fx does not see and would take for constants."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (Tensor.tolist, Tensor.numpy, Tensor.__array__):
            raise RecordingError(_READS_VALUES)
        return func(*args, **(kwargs or {}))


def _depends_on_values(node: fx.Node, graph: fx.GraphModule) -> bool:
    """Whether the shape of an operator's result depends on the values of its arguments."""
    if node.target is not torch.ops.aten.index.Tensor:
        return torch.Tag.dynamic_output_shape in getattr(node.target, "tags", ())
    for index in filter(None, node.args[1]):  # type: ignore[arg-type]
        value = index.meta.get("val")
        if index.op == "get_attr":
            value = getattr(graph, str(index.target))
        if value.dtype in (torch.bool, torch.uint8):  # true of a mask, not of an index of integers
            return True
    return False
