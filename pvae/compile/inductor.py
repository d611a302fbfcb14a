"""A recorded graph, compiled by torch's inductor to C++ or Triton."""

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
_OPTIONS: dict[str, Any] = {"fallback_random": True}  # with a stream of its own it would not train as the others do

Function = Callable[..., Sequence[Tensor]]


def missing() -> str:
    """Return what inductor needs and does not find here; an empty text if there is all."""
    if torch.__version__ < OLDEST_FOR_INDUCTOR:
        return f"torch {OLDEST_FOR_INDUCTOR} or newer, and this is {torch.__version__}: install it"
    if not any(map(shutil.which, (os.environ.get("CXX", "c++"), "g++", "clang++"))):
        return "a C++ compiler, and there is none: install g++"
    return ""


def compile_graph(graph: fx.GraphModule, *inputs: Tensor) -> Function:
    """Compile a graph of torch's operators, and run it once or twice.

    Args:
        graph: no gradient is taken of what it gives; what it writes into, the runs write into.
        inputs: what it takes.

    Returns:
        The same function, of tensors of these shapes, strides and dtypes only.

    Raises:
        Exception: whatever torch raises where it cannot compile the graph.
    """
    is_on_gpu = any(x.device.type == "cuda" for x in inputs)
    validates = pyro.infer.util.is_validation_enabled()  # compiling would switch it off for good
    with torch.no_grad(), pyro.validation_enabled(validates), _without_a_word_of_cuda():
        if is_on_gpu:
            return _through_dynamo(graph, inputs)
        try:
            return _ahead_of_time(graph, inputs)
        except Exception as error:  # not all can be compiled so; what is wrong with the graph itself comes again
            _LOG.info("not compiled ahead of time: %s", error)
            return _through_dynamo(graph, inputs)


def _ahead_of_time(graph: fx.GraphModule, inputs: Sequence[Tensor]) -> Function:
    lifted, held = _lifted(graph)
    run = load_or_compile(lifted, [*inputs, *held], _OPTIONS)
    known, one_at_a_time = _layout(inputs), threading.Lock()  # torch's own lock waits with the GIL in its hand

    def replay(*inputs: Tensor) -> Sequence[Tensor]:
        if _layout(inputs) != known:  # the code would read memory as it was laid out then
            raise ValueError(f"compiled for {known}, given {_layout(inputs)}")
        with one_at_a_time:
            return run([*inputs, *held])

    replay(*inputs)
    return replay


def _layout(inputs: Sequence[Tensor]) -> list[tuple[Any, ...]]:
    return [(one.dtype, one.shape, one.stride()) for one in inputs]


def _through_dynamo(graph: fx.GraphModule, inputs: Sequence[Tensor]) -> Function:
    is_on_cpu = all(x.device.type == "cpu" for x in inputs)
    guards = {"guard_filter_fn": lambda guards: [False for _ in guards]}  # who replays knows what it is of
    replay: Function = torch.compile(graph, options={**_OPTIONS, **guards, "cpp_wrapper": is_on_cpu})
    replay(*inputs)
    return replay


def _lifted(graph: fx.GraphModule) -> tuple[fx.GraphModule, list[Tensor]]:
    """Return a graph that takes, after its inputs, the tensors that this one holds, and these."""
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
def _without_a_word_of_cuda() -> Iterator[None]:
    """Let torch not warn that CUDA's compiler is here and no GPU, when all that is wanted is C++."""
    logger = logging.getLogger("torch.utils.cpp_extension")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
