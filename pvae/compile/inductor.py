"""Compile a recorded graph to C++ or Triton by torch's inductor."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyro
import torch
from torch import Tensor, fx

from pvae.compile.cache import load_or_compile
from pvae.core.torch_private import OLDEST_FOR_INDUCTOR

__all__ = ["compile_graph", "missing"]

_LOG = logging.getLogger(__name__)
_OPTIONS: dict[str, Any] = {"fallback_random": True}  # draw the same numbers as the other engines

Function = Callable[..., Sequence[Tensor]]


def missing() -> str:
    """Return what inductor needs and this machine lacks, or an empty string."""
    if torch.__version__ < OLDEST_FOR_INDUCTOR:
        return f"torch {OLDEST_FOR_INDUCTOR} or newer, and this is {torch.__version__}: install it"
    if not any(map(shutil.which, (os.environ.get("CXX", "c++"), "g++", "clang++"))):
        return "a C++ compiler, and there is none: install g++"
    return ""


def compile_graph(graph: fx.GraphModule, *inputs: Tensor) -> Function:
    """Compile a graph of torch's operators, and run it once or twice.

    Args:
        graph: its results need no gradient; the trial runs write into the same tensors as the graph.
        inputs: the inputs of the graph.

    Returns:
        The same function, of tensors of these shapes, strides and dtypes only.

    Raises:
        Exception: torch cannot compile the graph.
    """
    is_on_gpu = any(x.device.type == "cuda" for x in inputs)
    validates = pyro.infer.util.is_validation_enabled()  # which compiling switches off
    with torch.no_grad(), pyro.validation_enabled(validates), _no_warnings():
        if is_on_gpu:
            return _through_dynamo(graph, inputs)
        try:
            return _ahead_of_time(graph, inputs)
        except Exception as error:  # dynamo raises an error of the graph itself again
            _LOG.info("not compiled ahead of time: %s", error)
            return _through_dynamo(graph, inputs)


def _ahead_of_time(graph: fx.GraphModule, inputs: Sequence[Tensor]) -> Function:
    lifted, attributes = _lifted(graph)
    run = load_or_compile(lifted, [*inputs, *attributes], _OPTIONS)
    compiled_for = _layout(inputs)
    lock = threading.Lock()  # torch waits for its own lock while it holds the GIL, so that two threads could deadlock

    def replay(*inputs: Tensor) -> Sequence[Tensor]:
        if _layout(inputs) != compiled_for:  # the code would read memory in a wrong layout
            raise ValueError(f"compiled for {compiled_for}, given {_layout(inputs)}")
        with lock:
            return run([*inputs, *attributes])

    replay(*inputs)
    return replay


def _layout(inputs: Sequence[Tensor]) -> list[tuple[Any, ...]]:
    return [(one.dtype, one.shape, one.stride()) for one in inputs]


def _through_dynamo(graph: fx.GraphModule, inputs: Sequence[Tensor]) -> Function:
    is_on_cpu = all(x.device.type == "cpu" for x in inputs)
    guards = {"guard_filter_fn": lambda guards: [False for _ in guards]}  # the caller checks shapes
    replay: Function = torch.compile(graph, options={**_OPTIONS, **guards, "cpp_wrapper": is_on_cpu})
    replay(*inputs)
    return replay


def _lifted(graph: fx.GraphModule) -> tuple[fx.GraphModule, list[Tensor]]:
    """Return the graph with its tensor attributes as further inputs, and these tensors."""
    lifted = fx.Graph()
    nodes = {node: lifted.placeholder(node.name) for node in graph.graph.find_nodes(op="placeholder")}
    held: dict[int, tuple[Tensor, fx.Node]] = {}  # by identity: one tensor may have two names
    for node in graph.graph.find_nodes(op="get_attr"):
        tensor = getattr(graph, str(node.target))
        if isinstance(tensor, Tensor):
            if id(tensor) not in held:
                held[id(tensor)] = (tensor, lifted.placeholder(node.name))
            nodes[node] = held[id(tensor)][1]
    for node in graph.graph.nodes:
        if node not in nodes:
            nodes[node] = lifted.node_copy(node, nodes.__getitem__)
    return fx.GraphModule(graph, lifted), [tensor for tensor, _ in held.values()]


@contextlib.contextmanager
def _no_warnings() -> Iterator[None]:
    """Silence two warnings of torch: a CUDA compiler without a GPU, and an operator that inductor does not compile."""
    loggers = [logging.getLogger(name) for name in ("torch.utils.cpp_extension", "torch._inductor.ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
