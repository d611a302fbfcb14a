"""Record a function of tensors as a graph of torch's operators, which runs without the function's Python."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyro
import torch
from pyro.infer.util import Dice
from pyro.util import torch_isnan, warn_if_nan
from torch import Tensor, fx
from torch.distributions import Distribution
from torch.overrides import TorchFunctionMode

from pvae.compile.decompositions import Decompositions, bfloat16_products, onednn_products
from pvae.compile.inductor import compile_graph, missing
from pvae.core.errors import InputError, brief, check_name, is_out_of_memory
from pvae.core.torch_private import make_fx, validate_sample, validated
from pvae.models.onednn import onednn, opaque_onednn

__all__ = ["check_engine", "record"]

_ATEN = torch.ops.aten

_READS_VALUES = (
    "the step cannot be recorded, since its Python code reads values of tensors (.item(), `if x > 0`): "
    "leave --compile out (in Python, give SVI the ELBO itself)"
)

Function = Callable[..., Sequence[Tensor]]


def record(function: Function, inputs: Sequence[Tensor], engine: str = "graph", precision: str = "fp32") -> Function:
    """Run a function and return its operators as a function of the same inputs.

    A replay writes into the tensors that the function writes into. So does the recording, once or twice, which the
    caller undoes. Other tensors that the function reads (parameters, buffers) are read again at each call; all other
    values are fixed by the recording. Random draws stay random draws, in the order of the function.

    Args:
        function: of tensors; its control flow may not depend on their values.
        inputs: the inputs of the trial run; the result takes tensors of the same shapes, strides and dtypes only.
        engine: "graph" calls torch's operators one by one; "inductor" compiles them to C++ or Triton.
        precision: "fp32" leaves dtypes as they are; "bf16" computes float32 matrix products and convolutions in
            bfloat16, and everything else as before.

    Raises:
        InputError: the function cannot be recorded or compiled, or there is no such engine, precision or compiler.
    """
    check_engine(engine, precision)
    if precision == "bf16":
        products = bfloat16_products()
    else:
        products = onednn_products(onednn if engine != "inductor" else opaque_onednn())
    graph = _graph_of(function, inputs, products)
    if engine != "inductor":
        return graph.forward
    try:
        return compile_graph(graph, *inputs)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise InputError(
            f"inductor cannot compile this ({brief(error)}): see that the C++ compiler works and no disk is full, or "
            "take --compile graph"
        ) from error


def _graph_of(function: Function, inputs: Sequence[Tensor], products: Decompositions) -> fx.GraphModule:
    def unread(*inputs: Tensor) -> Sequence[Tensor]:
        with _TensorsStayTensors():
            return function(*inputs)

    try:
        with pyro.validation_enabled(False):
            graph = make_fx(unread, decomposition_table=products)(*inputs)
    except InputError:
        raise
    except Exception as error:  # the function ran before without an error, so the recording is the cause
        raise InputError(f"{_READS_VALUES} ({brief(error)})") from error
    for node in graph.graph.find_nodes(op="get_attr"):
        node.meta.setdefault("val", getattr(graph, str(node.target)))  # torch 2.6 leaves it out
    if any(_depends_on_values(node) for node in graph.graph.nodes):
        raise InputError(_READS_VALUES)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return graph


def check_engine(engine: str, precision: str) -> None:
    """Raise an `InputError` unless engine and precision exist, and inductor finds what it needs."""
    check_name("--compile engine", engine, ["graph", "inductor"])
    check_name("precision", precision, ["fp32", "bf16"])
    if engine == "inductor" and missing():
        raise InputError(f"--compile inductor needs {missing()}, or take --compile graph")


class _TensorsStayTensors(TorchFunctionMode):
    """Replace the calls by which Pyro's own ELBOs read values, so that they can be recorded.

    They convert parts of the loss to Python numbers, which carry no gradient (`detach` has the same effect), and warn
    of NaN.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.item:
            return args[0].detach()
        if func in (Tensor.tolist, Tensor.numpy, Tensor.__array__):
            raise InputError(_READS_VALUES)
        if func is Tensor.register_hook and _is_called_by(warn_if_nan):
            return None  # the hook would read the gradients
        if func is Tensor.all and _is_called_by(Dice.compute_expectation):
            return False  # it then selects the terms of positive weight
        if func is Tensor.masked_select and _is_called_by(Dice.compute_expectation):
            return torch.where(args[1], args[0], 0.0)  # of which it sums the products
        if func in validated and _is_called_by(validate_sample, Distribution.__init__):
            return True
        if func is torch.isnan and _is_called_by(torch_isnan):
            return np.False_  # Pyro calls its `any`
        return func(*args, **(kwargs or {}))


def _depends_on_values(node: fx.Node) -> bool:
    """Whether the shape of an operator's result depends on the values of its arguments."""
    if node.target is _ATEN.index.Tensor:  # true of a mask, not of an index of integers
        indices: Any = node.args[1]
        return any(index is not None and index.meta["val"].dtype in (torch.bool, torch.uint8) for index in indices)
    return torch.Tag.dynamic_output_shape in getattr(node.target, "tags", ())


def _is_called_by(*functions: Any) -> bool:
    """Whether one of them called the torch function that is handled; torch adds up to two frames between them."""
    callers = (sys._getframe(2).f_code, sys._getframe(3).f_code, sys._getframe(4).f_code)
    return any(function.__code__ in callers for function in functions)
