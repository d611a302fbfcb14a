"""Record a function of tensors as a graph of torch's operators, which runs without the function's Python."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pyro
import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode

from pvae.compile.decompositions import bfloat16_products, onednn_products
from pvae.compile.inductor import MayCompile, compile_graph, missing
from pvae.core.errors import InputError, brief, check_name, is_out_of_memory

__all__ = ["Function", "RecordingError", "check_engine", "graph_of", "record"]

Function = Callable[..., Sequence[Tensor]]

_READS_VALUES = (
    "the step cannot be recorded, since its Python code reads values of tensors (.item(), `if x > 0`): "
    "give --compile none (in Python, give SVI the ELBO itself)"
)


class RecordingError(InputError):
    """A function of tensors cannot be recorded, or not compiled."""


def record(
    function: Function,
    inputs: Sequence[Tensor],
    engine: str = "graph",
    precision: str = "fp32",
    may_compile: MayCompile = lambda num_operators: True,
) -> Function:
    """Run a function once, and return its operators as a function of the same inputs.

    A replay reads and writes the tensors that the function reads and writes, parameters and buffers for instance, and
    draws random numbers in the same order. Every other value is fixed by the recording.

    Args:
        function: of tensors; its control flow may not depend on their values.
        inputs: the inputs of this run; the result takes tensors of the same shapes, strides and dtypes only.
        engine: "graph" calls torch's operators one by one; "inductor" compiles them to C++ or Triton.
        precision: "fp32" leaves dtypes as they are; "bf16" computes float32 matrix products and convolutions in
            bfloat16, and everything else as before.
        may_compile: asked, with the number of operators, before "inductor" compiles what is not kept from an earlier
            run.

    Raises:
        RecordingError: (an InputError) the function cannot be recorded or compiled, or may not be compiled.
        InputError: there is no such engine, precision or compiler.
    """
    check_engine(engine, precision)
    products = bfloat16_products() if precision == "bf16" else onednn_products(is_compiled=engine == "inductor")
    graph = graph_of(function, [x.view_as(x) for x in inputs], products)  # one tensor given twice is two inputs
    if inputs[0].device.type == "cuda":
        _move_constants(graph, inputs[0].device)
    if engine == "graph":
        return graph.forward
    try:
        return compile_graph(graph, inputs, may_compile)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise RecordingError(
            f"inductor cannot compile this ({brief(error)}): see that the C++ compiler works and no disk is full, or "
            "take --compile graph"
        ) from error


def check_engine(engine: str, precision: str) -> None:
    """Raise an `InputError` unless engine and precision exist, and inductor finds what it needs."""
    check_name("--compile engine", engine, ["graph", "inductor"])
    check_name("precision", precision, ["fp32", "bf16"])
    if engine == "inductor" and missing():
        raise InputError(f"--compile inductor needs {missing()}, or take --compile graph")


def graph_of(function: Function, inputs: Sequence[Tensor], products: Any) -> fx.GraphModule:
    """Run a function once, and return its operators as a graph.

    Args:
        function: as for `record`.
        inputs: as for `record`.
        products: a decomposition table, as of `decompositions`.

    Raises:
        RecordingError: (an InputError) the function cannot be recorded.
    """

    def unread(*inputs: Tensor) -> Sequence[Tensor]:
        with _RefusesReading():
            return function(*inputs)

    try:
        with pyro.validation_enabled(False):
            graph = make_fx(unread, decomposition_table=products)(*inputs)
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
    return graph


class _RefusesReading(TorchFunctionMode):
    """Refuse the ways of reading a tensor's values that make_fx does not see and would take for constants."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (Tensor.tolist, Tensor.numpy, Tensor.__array__):
            raise RecordingError(_READS_VALUES)
        return func(*args, **(kwargs or {}))


def _depends_on_values(node: fx.Node, graph: fx.GraphModule) -> bool:
    """Whether the shape of an operator's result depends on the values of its arguments."""
    if node.target is torch.ops.aten.index.Tensor:  # true of a mask, not of an index of integers
        for index in filter(None, node.args[1]):  # type: ignore[arg-type]
            value = getattr(graph, str(index.target)) if index.op == "get_attr" else index.meta["val"]
            if value.dtype in (torch.bool, torch.uint8):
                return True
        return False
    return torch.Tag.dynamic_output_shape in getattr(node.target, "tags", ())


def _move_constants(graph: fx.GraphModule, device: torch.device) -> None:
    """Move the constants that a recording made on the CPU to a GPU: a CUDA graph copies nothing from the host."""
    for node in graph.graph.find_nodes(op="get_attr"):
        value = getattr(graph, str(node.target))
        if value.device.type == "cpu" and not isinstance(value, nn.Parameter):
            setattr(graph, str(node.target), value.to(device))
