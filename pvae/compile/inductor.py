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
_OPTIONS: dict[str, Any] = {"fallback_random": True}  # the random stream of the other engines

Function = Callable[..., Sequence[Tensor]]


def missing() -> str:
    """Return what inductor needs and does not find here, or an empty text."""
    if torch.__version__ < OLDEST_FOR_INDUCTOR:
        return f"torch {OLDEST_FOR_INDUCTOR} or newer, and this is {torch.__version__}: install it"
    if not any(map(shutil.which, (os.environ.get("CXX", "c++"), "g++", "clang++"))):
        return "a C++ compiler, and there is none: install g++"
    return ""


def compile_graph(graph: fx.GraphModule, *inputs: Tensor) -> Function:
    """Compile a graph of torch's operators, and run it once or twice.

    Args:
        graph: its results need no gradient; the trial runs write into the tensors that it writes into.
        inputs: of the graph.

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
        except Exception as error:  # an error of the graph itself is raised again below
            _LOG.info("not compiled ahead of time: %s", error)
            return _through_dynamo(graph, inputs)


def _ahead_of_time(graph: fx.GraphModule, inputs: Sequence[Tensor]) -> Function:
    lifted, held = _lifted(graph)
    run = load_or_compile(lifted, [*inputs, *held], _OPTIONS)
    known, one_at_a_time = _layout(inputs), threading.Lock()  # torch's own lock waits while it holds the GIL

    def replay(*inputs: Tensor) -> Sequence[Tensor]:
        if _layout(inputs) != known:  # the code would read memory in another layout
            raise ValueError(f"compiled for {known}, given {_layout(inputs)}")
        with one_at_a_time:
            return run([*inputs, *held])

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
    """Return a graph whose tensor attributes are further inputs, and these tensors."""
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
    """Silence torch's warning that there is a CUDA compiler and no GPU: only C++ is compiled."""
    logger = logging.getLogger("torch.utils.cpp_extension")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
