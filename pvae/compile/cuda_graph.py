"""A recorded step as one CUDA graph, which the host launches without a call for each kernel."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from pvae.compile.graph import RecordingError
from pvae.core.errors import brief, is_out_of_memory

__all__ = ["captured"]

_WARM_UP = 3  # runs before the capture, in which libraries allocate what they need


class CudaGraph:
    """A function of tensors on a GPU, captured; a replay draws new random numbers from torch's default generator.

    It is run before it is captured: what it writes then, and the random state, are the caller's to undo.

    Args:
        function: recorded, so that it launches the same kernels on the same memory every time; no kernel of it copies
            from the host.
        inputs: of these shapes.
        pool: memory that several graphs share, of which one runs at a time.
    """

    def __init__(self, function: Callable[..., Sequence[Tensor]], inputs: Sequence[Tensor], pool: Any) -> None:
        self._inputs = [x.clone() for x in inputs]  # where a replay reads them
        stream, current = torch.cuda.Stream(inputs[0].device), torch.cuda.current_stream(inputs[0].device)
        stream.wait_stream(current)
        with torch.cuda.stream(stream), torch.no_grad():
            for _ in range(_WARM_UP):
                function(*self._inputs)
            with _no_waiting():
                results = function(*self._inputs)
        current.wait_stream(stream)
        self._shapes = [one.shape for one in results]
        self._graph = torch.cuda.CUDAGraph()
        with torch.no_grad(), torch.cuda.graph(self._graph, pool=pool, stream=stream):
            results = function(*self._inputs)
            # One tensor, since a replay overwrites the results: they are copied after each, by one kernel.
            self._results = torch.cat([one.reshape(-1).to(results[0].dtype) for one in results])

    def __call__(self, *inputs: Tensor) -> list[Tensor]:
        """Return the results for these inputs, all of the dtype of the first; booleans are 0 and 1."""
        for static, x in zip(self._inputs, inputs):
            static.copy_(x)
        self._graph.replay()
        parts = self._results.clone().split([shape.numel() for shape in self._shapes])
        return [part.view(shape) for part, shape in zip(parts, self._shapes)]


@contextlib.contextmanager
def _no_waiting() -> Iterator[None]:
    """Raise a RuntimeError where the host waits for the GPU, which a capture does not survive.

    After a capture that has failed, torch's generator draws nothing more in this process.
    """
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls the mode a prototype
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def captured(
    function: Callable[..., Sequence[Tensor]], inputs: Sequence[Tensor], pool: Any
) -> Callable[..., Sequence[Tensor]]:
    """Return a recorded function as a CUDA graph.

    Raises:
        RecordingError: (an InputError) it cannot be captured: it waits for the GPU, or copies from the host.
    """
    try:
        return CudaGraph(function, inputs, pool)
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        raise RecordingError(
            f"the step cannot be captured as a CUDA graph ({brief(error)}): give --compile graph"
        ) from error
