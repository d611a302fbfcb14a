"""A function of tensors as a graph of torch's operators, recorded once and run again without its Python."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyro
import torch
from pyro.util import torch_isnan, warn_if_nan
from torch import Tensor, fx
from torch.overrides import TorchFunctionMode

from pvae.compile.bfloat16 import take_products_in_bfloat16
from pvae.compile.inductor import compile_graph, missing
from pvae.core.errors import InputError, brief, check_name
from pvae.core.finite import is_of_memory
from pvae.core.onednn import onednn, opaque_onednn, suits_onednn
from pvae.core.torch_private import make_fx

__all__ = ["check_ways", "record"]

_ATEN = torch.ops.aten

_LOOKS = (
    "the step cannot be recorded, since it looks at the values of its tensors: "
    "leave --compile out (in Python, give SVI the ELBO itself)"
)

Function = Callable[..., Sequence[Tensor]]


def record(function: Function, inputs: Sequence[Tensor], engine: str = "graph", precision: str = "fp32") -> Function:
    """Run a function and return its operators as a function of the same inputs.

    What it writes into, a replay writes into; so does the recording, once or twice, and its caller undoes that. What
    else it reads is read again at each call if it is a tensor (a parameter, a buffer), and fixed for good if it is not.
    Random draws stay draws, in the order of the function.

    Args:
        function: of tensors; with no control flow that looks at their values.
        inputs: what to run it on; the result takes tensors of these shapes, strides and dtypes only.
        engine: "graph" calls torch's operators one by one; "inductor" compiles them to C++ or Triton.
        precision: "fp32" leaves dtypes as they are; "bf16" takes matrix products and convolutions of float32 in
            bfloat16, and leaves all else.

    Raises:
        InputError: the function cannot be recorded or compiled, or there is no such engine, precision or compiler.
    """
    check_ways(engine, precision)
    graph = _graph_of(function, inputs)
    if precision == "bf16":
        take_products_in_bfloat16(graph.graph)
    else:
        _take_large_products_from_onednn(graph.graph, onednn if engine != "inductor" else opaque_onednn())
    graph.graph.eliminate_dead_code()
    graph.recompile()
    if engine != "inductor":
        return graph.forward
    try:
        return compile_graph(graph, *inputs)
    except Exception as error:
        if is_of_memory(error):
            raise
        raise InputError(
            f"inductor cannot compile this ({brief(error)}): see that the C++ compiler works and no disk is full, or "
            "take --compile graph"
        ) from error


def _graph_of(function: Function, inputs: Sequence[Tensor]) -> fx.GraphModule:
    def unread(*inputs: Tensor) -> Sequence[Tensor]:
        with _TensorsStayTensors():
            return function(*inputs)

    try:
        with pyro.validation_enabled(False):
            graph = make_fx(unread)(*inputs)
    except InputError:
        raise
    except Exception as error:  # the same ran before: what is wrong with it is that it is being recorded
        raise InputError(f"{_LOOKS} ({brief(error)})") from error
    if any(_depends_on_values(node) for node in graph.graph.nodes):
        raise InputError(_LOOKS)
    for node in graph.graph.find_nodes(op="get_attr"):
        node.meta.setdefault("val", getattr(graph, str(node.target)))  # torch 2.6 leaves it out
    graph.graph.eliminate_dead_code()
    return graph


def check_ways(engine: str, precision: str) -> None:
    """Raise an `InputError` unless there are an engine and a precision of these names, and what they need."""
    check_name("way to compile", engine, ["graph", "inductor"])
    check_name("precision", precision, ["fp32", "bf16"])
    if engine == "inductor" and missing():
        raise InputError(f"--compile inductor needs {missing()}, or take --compile graph")


class _TensorsStayTensors(TorchFunctionMode):
    """Keep Pyro's own ELBOs from reading values, so that they can be recorded.

    They turn parts of their value into Python numbers, through which no gradient would flow: so does `detach`. And they
    look for NaN, to warn.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.item:
            return args[0].detach()
        if func in (Tensor.tolist, Tensor.numpy, Tensor.__array__):
            raise InputError(_LOOKS)
        if func is Tensor.register_hook and _is_called_by(warn_if_nan):
            return None  # it would look at the gradients too
        if func is torch.isnan and _is_called_by(torch_isnan):
            return np.False_  # which has the `any` that is asked for next
        return func(*args, **(kwargs or {}))


def _depends_on_values(node: fx.Node) -> bool:
    """Whether the shape of an operator's result depends on the values of its arguments."""
    if node.target is _ATEN.index.Tensor:  # an index of integers does not, a mask does
        indices: Any = node.args[1]
        return any(index is not None and index.meta["val"].dtype in (torch.bool, torch.uint8) for index in indices)
    return torch.Tag.dynamic_output_shape in getattr(node.target, "tags", ())


def _is_called_by(function: Any) -> bool:
    """Whether it called the caller of this, with no more between than torch puts there."""
    callers = (sys._getframe(2).f_code, sys._getframe(4).f_code)
    return function.__code__ in callers


def _take_large_products_from_onednn(graph: fx.Graph, product: Callable[..., Tensor]) -> None:
    """Replace large float32 products on the CPU."""
    for node in list(graph.nodes):
        bias, left, right = _product_of(node)
        if left is None or not _is_for_onednn(left, right, bias):
            continue
        with graph.inserting_before(node):
            if left.target is _ATEN.t.default:  # oneDNN wants it so; said here, inductor writes it with what makes it
                left = graph.call_function(_ATEN.clone.default, (left,), {"memory_format": torch.contiguous_format})
            turned = (
                right.args[0] if right.target is _ATEN.t.default else graph.call_function(_ATEN.t.default, (right,))
            )
            new = graph.call_function(product, (left, turned, bias))
        new.meta = node.meta
        node.replace_all_uses_with(new)
        graph.erase_node(node)


def _product_of(node: fx.Node) -> tuple[Any, Any, Any]:
    """Return bias, left and right of a matrix product, and three times None of anything else."""
    if node.target is _ATEN.mm.default:
        return None, node.args[0], node.args[1]
    if node.target is _ATEN.addmm.default and not node.kwargs:
        return node.args[0], node.args[1], node.args[2]
    return None, None, None


def _is_for_onednn(left: fx.Node, right: fx.Node, bias: fx.Node | None) -> bool:
    a, b = left.meta.get("val"), right.meta.get("val")
    c = None if bias is None else bias.meta["val"]
    return a is not None and b is not None and suits_onednn(a, b.t(), c)
