"""Record a function of tensors as a graph of torch's operators, and compile it by inductor.

On a CPU code is compiled ahead of time, and kept in the user's cache folder: a package of AOTInductor is loaded in
0.2 s, where torch.compile takes some seconds even if its own cache has the code.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import operator
import os
import shutil
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyro
import torch
from torch import Tensor, fx
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.weak import WeakTensorKeyDictionary

from pvae.core.errors import InputError, brief, check_name, is_out_of_memory
from pvae.core.files import cache_dir, write_whole

__all__ = ["Function", "RecordingError", "check_engine", "compile_graph", "missing", "record"]

Function = Callable[..., Sequence[Tensor]]

_READS_VALUES = (
    "the step cannot be recorded, since its Python code reads values of tensors (.item(), `if x > 0`): "
    "give compile='none' (or to SVI the ELBO itself)"
)
# With torch 2.12 a step compiled by inductor trains differently from the other engines (the ELBO after two epochs
# differs by 2e-4), and packages cannot be loaded from a folder. No version between 2.12 and 2.14 was tried.
OLDEST_FOR_INDUCTOR = "2.14"
# Draw the same numbers as the other engines; take as many threads as torch has when the code runs.
_OPTIONS: dict[str, Any] = {"fallback_random": True, "cpp.dynamic_threads": True}
# Environment variables that may change the code. Not all of "TORCH": TORCHELASTIC_RUN_ID differs in each torchrun.
_SETTINGS = ("TORCH_", "TORCHINDUCTOR", "AOT", "ATEN", "INDUCTOR", "CXX", "CPP", "CFLAGS")


class RecordingError(InputError):
    """A function of tensors cannot be recorded, or not compiled."""


def record(function: Function, inputs: Sequence[Tensor], engine: str = "graph") -> Function:
    """Run a function once, and return its operators as a function of the same inputs.

    A replay reads and writes the tensors that the function reads and writes, parameters and buffers for instance, and
    draws random numbers in the same order. Every other value is fixed by the recording.

    Args:
        function: of tensors; its control flow may not depend on their values.
        inputs: the inputs of this run; the result takes tensors of the same shapes, strides and dtypes only.
        engine: "graph" calls torch's operators one by one, on a CPU without Python between them, which gives the same
            bits; "inductor" compiles them to C++ or Triton, which rounds otherwise.

    Raises:
        RecordingError: (an InputError) the function cannot be recorded or compiled.
        InputError: there is no such engine or compiler.
    """
    check_engine(engine)
    copies = [x.view_as(x) for x in inputs]  # one tensor given twice is two inputs
    recorder = _Recorder(copies)
    try:
        with pyro.validation_enabled(False), _RefusesReading(), recorder:
            results = function(*copies)
    except InputError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise RecordingError(f"{_READS_VALUES} ({brief(error)})") from error
    graph = recorder.finished(results)
    if engine == "graph":
        if any(x.device.type == "cuda" for x in inputs):
            return graph.forward
        return _interpreted(graph, inputs)
    try:
        return compile_graph(graph, inputs)
    except Exception as error:
        raise RecordingError(
            f"inductor cannot compile this ({brief(error)}): see that the C++ compiler works and no disk is full, or "
            "give compile='graph'"
        ) from error


def _interpreted(graph: fx.GraphModule, inputs: Sequence[Tensor]) -> Function:
    """Return a graph of torch's operators as a program of TorchScript, whose interpreter calls them from C++.

    Small steps take less time, since Python takes longer than most of their operators. Equal values are computed once,
    and nothing else is optimised, so that the bits are the same. From the first operator on that returns nothing, such
    as the update of Adam, Python calls them, since TorchScript does not trace these. The gradients of convolutions and
    of BatchNorm it does not trace either; their operators take longer anyway, and Python calls the whole graph, as
    where torch has no TorchScript, which is deprecated.
    """
    of_inputs, attributes = _lifted(graph)
    nodes = [*of_inputs.graph.nodes]
    schemas = [getattr(node.target, "_schema", None) for node in nodes]
    if any("bool[" in str(schema) for schema in schemas):
        return graph.forward
    end = next((place for place, schema in enumerate(schemas) if schema and not schema.returns), len(nodes) - 1)
    given = of_inputs.graph.find_nodes(op="placeholder")
    needed = [
        node for node in nodes[:end] if node.op != "placeholder" and not node.users.keys().isdisjoint(nodes[end:])
    ]
    first = _part(nodes[:end], given, needed)
    rest = _part(nodes[end:], [*given, *needed])
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            first = torch.jit.freeze(torch.jit.trace(first, (*inputs, *attributes), check_trace=False).eval())
    except Exception as error:
        if is_out_of_memory(error):
            raise
        return graph.forward

    def run(*inputs: Tensor) -> Sequence[Tensor]:
        with torch.no_grad(), torch.jit.optimized_execution(False):  # type: ignore[attr-defined]
            outputs: Sequence[Tensor] = rest(*inputs, *attributes, *first(*inputs, *attributes))
            return outputs

    return run


def check_engine(engine: str) -> None:
    """Raise an `InputError` unless the engine exists, and inductor finds what it needs."""
    check_name("engine", engine, ["graph", "inductor"])
    if engine == "inductor" and missing():
        raise InputError(f"compile='inductor' needs {missing()}, or give compile='graph'")


class _Recorder(TorchDispatchMode):
    """Write torch's operators, those of gradients too, into a graph while they run.

    make_fx does the same, but imports torch's compiler, which takes as long as the training of a small table.

    Args:
        inputs: of the graph. Other tensors that were there before are its attributes.
    """

    def __init__(self, inputs: Sequence[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.graph = fx.Graph()
        self.attributes: dict[str, Tensor] = {}
        self.nodes: Any = WeakTensorKeyDictionary()
        for place, x in enumerate(inputs):
            self.nodes[x] = self.graph.placeholder(f"input_{place}")

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # to say that it is skipped, torch would import its compiler

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.lift_fresh.default:  # of a constant, which a replay may not write into
            func = torch.ops.aten.lift_fresh_copy.default
        self._check_shape(func, args)
        given = tree_map_only(Tensor, self._node_of, (args, kwargs or {}))
        results = func(*args, **(kwargs or {}))
        node = self.graph.call_function(func, *given)
        if isinstance(results, Tensor):
            self.nodes[results] = node
        elif isinstance(results, list | tuple):
            for place, result in enumerate(results):
                if isinstance(result, Tensor):
                    self.nodes[result] = self.graph.call_function(operator.getitem, (node, place))
        return results

    def finished(self, results: Sequence[Tensor]) -> fx.GraphModule:
        """Return the graph that gives these results, without operators on which nothing depends."""
        self.graph.output([self._node_of(result) for result in results])
        self.graph.eliminate_dead_code()
        return fx.GraphModule(self.attributes, self.graph)

    def _node_of(self, x: Tensor) -> fx.Node:
        if x not in self.nodes:
            name = f"held_{len(self.attributes)}"
            self.attributes[name] = x
            self.nodes[x] = self.graph.get_attr(name)
        return self.nodes[x]

    def _check_shape(self, func: Any, args: Any) -> None:
        """Refuse an operator whose result is a number, or of a shape, that depends on values which a replay changes."""
        is_shaped = torch.Tag.dynamic_output_shape in func.tags
        if func is torch.ops.aten.index.Tensor:
            is_shaped = any(
                argument is not None and argument.dtype in (torch.bool, torch.uint8) for argument in args[1]
            )  # a mask
        is_number = torch.Tag.data_dependent_output in func.tags
        if is_shaped or (
            is_number and any(isinstance(argument, Tensor) and argument in self.nodes for argument in args)
        ):
            raise RecordingError(_READS_VALUES)


class _RefusesReading(TorchFunctionMode):
    """Refuse the ways of reading a tensor's values that are no operators, so that they would become constants."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (Tensor.tolist, Tensor.numpy, Tensor.__array__):
            raise RecordingError(_READS_VALUES)
        return func(*args, **(kwargs or {}))


def missing() -> str:
    """Return what inductor needs and this machine lacks, or an empty string."""
    if torch.__version__ < OLDEST_FOR_INDUCTOR:
        return f"torch {OLDEST_FOR_INDUCTOR} or newer, and this is {torch.__version__}: install it"
    if not any(map(shutil.which, (os.environ.get("CXX", "c++"), "g++", "clang++"))):
        return "a C++ compiler, and there is none: install g++"
    return ""


def compile_graph(graph: fx.GraphModule, inputs: Sequence[Tensor]) -> Callable[..., Sequence[Tensor]]:
    """Return a graph of torch's operators as compiled code, a function of tensors of these shapes and strides.

    Args:
        graph: its results need no gradient.
        inputs: the inputs of the graph.

    Raises:
        Exception: torch cannot compile the graph.
    """
    validates = pyro.infer.util.is_validation_enabled()  # which compiling switches off
    with torch.no_grad(), pyro.validation_enabled(validates), _no_warnings():
        if any(x.device.type == "cuda" for x in inputs):
            run = torch.compile(graph, options=_OPTIONS)
            run(*inputs)  # compiles it now; the caller undoes what a run writes
            return run
        of_inputs, attributes = _lifted(graph)
        if len({attribute.untyped_storage().data_ptr() for attribute in attributes}) < len(attributes):
            raise ValueError("tensors of the model share memory")  # compiled code does not expect it
        run = _load_or_compile(of_inputs, [*inputs, *attributes])
    return lambda *inputs: run([*inputs, *attributes])


def _load_or_compile(graph: fx.GraphModule, inputs: list[Tensor]) -> Any:
    """Return the package of a graph that takes every tensor as an input: from the cache, or compiled and cached.

    A package is loaded if it was compiled for the same graph, shapes, strides, torch, CPU and settings of torch. It
    takes the inputs as a list, and clears that list. It does not check shapes.
    """
    file = None
    with contextlib.suppress(InputError):  # the user has no cache folder
        file = cache_dir() / "compiled" / f"{_key(graph, inputs)}.pt2"
        with contextlib.suppress(Exception):  # missing or damaged
            return _unpacked(io.BytesIO(file.read_bytes()))
    package = io.BytesIO()  # torch would end the process if it wrote to a full disk
    program = torch.export.export(graph, tuple(inputs))
    torch._inductor.aoti_compile_and_package(program, package_path=package, inductor_configs={**_OPTIONS})
    if file is not None:
        with contextlib.suppress(OSError, InputError):  # the next process compiles it again
            file.parent.mkdir(parents=True, exist_ok=True)
            write_whole(file, package.getvalue())
    return _unpacked(package)


def _unpacked(package: io.BytesIO) -> Any:
    with tempfile.TemporaryDirectory() as folder:  # given a file, torch would leave an unpacked copy behind
        zipfile.ZipFile(package).extractall(folder)  # checks checksums: damaged code could crash the process
        # Not torch's `aoti_load_package`, which warns when it is given a folder.
        return torch._C._aoti.AOTIModelPackageLoader(folder, "model", False, 1, -1).boxed_run


def _key(graph: fx.GraphModule, inputs: Sequence[Tensor]) -> str:
    """Return a digest of everything that the compiled code depends on."""
    parts = (
        str(graph.graph),
        [(tensor.dtype, tuple(tensor.shape), tensor.stride()) for tensor in inputs],
        torch.__version__,
        sorted(torch.cpu.get_capabilities().items()),
        (torch.backends.mkldnn.enabled, torch.get_float32_matmul_precision()),
        torch.are_deterministic_algorithms_enabled(),
        sorted(item for item in os.environ.items() if item[0].startswith(_SETTINGS) and not item[0].endswith("_DIR")),
    )
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]


def _lifted(graph: fx.GraphModule) -> tuple[fx.GraphModule, list[Tensor]]:
    """Return the graph with its tensor attributes as further inputs, and these tensors."""
    inputs = fx.Graph()
    nodes = {node: inputs.placeholder(node.name) for node in graph.graph.find_nodes(op="placeholder")}
    held: dict[int, tuple[Tensor, fx.Node]] = {}  # by identity: one tensor may have two names
    for node in graph.graph.find_nodes(op="get_attr"):
        tensor = getattr(graph, str(node.target))
        if id(tensor) not in held:
            held[id(tensor)] = (tensor, inputs.placeholder(node.name))
        nodes[node] = held[id(tensor)][1]
    for node in graph.graph.nodes:
        if node not in nodes:
            nodes[node] = inputs.node_copy(node, nodes.__getitem__)
    return fx.GraphModule(graph, inputs), [tensor for tensor, _ in held.values()]


def _part(nodes: Sequence[fx.Node], given: Sequence[fx.Node], results: Sequence[fx.Node] = ()) -> fx.GraphModule:
    """Return some nodes of a graph as a function of nodes before them, whose results are given unless it ends there."""
    graph = fx.Graph()
    copies = {node: graph.placeholder(node.name) for node in given}
    for node in nodes:
        if node not in copies:
            copies[node] = graph.node_copy(node, copies.__getitem__)
    if results:
        graph.output([copies[node] for node in results])
    return fx.GraphModule({}, graph)


@contextlib.contextmanager
def _no_warnings() -> Iterator[None]:
    """Silence two warnings of torch: a CUDA compiler without a GPU, and an operator that inductor does not compile."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
