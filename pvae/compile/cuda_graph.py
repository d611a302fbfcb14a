"""A recorded function as a CUDA graph: one launch for all its kernels, and TF32 products where they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["CudaGraph", "in_tf32"]

Function = Callable[..., Sequence[Tensor]]

_WARM_UPS = 3  # libraries choose their kernels and take their memory in the first calls


class CudaGraph:
    """A function of tensors on a GPU, captured once and launched as a whole.

    What it reads and writes beside its inputs is read and written where it lay at the capture. Random draws are made
    anew at each launch, from torch's generator of that GPU.

    Args:
        function: of tensors, without anything that waits for the GPU.
        inputs: on one GPU; the function runs on them some times, and its caller undoes what it wrote.
    """

    def __init__(self, function: Function, inputs: Sequence[Tensor]) -> None:
        self._function = function  # what it holds, the graph reads where it lies
        self._inputs = [x.detach().clone() for x in inputs]
        self._device = self._inputs[0].device
        with torch.cuda.device(self._device):
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(_WARM_UPS):
                    function(*self._inputs)
            torch.cuda.current_stream().wait_stream(stream)
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph, stream=stream):
                self._outputs = list(function(*self._inputs))

    def __call__(self, *inputs: Tensor) -> list[Tensor]:
        """Return what the function gives for these inputs, in memory of its own."""
        with torch.cuda.device(self._device):
            for mine, given in zip(self._inputs, inputs):
                mine.copy_(given)
            self._graph.replay()
            return [output.clone() for output in self._outputs]


def in_tf32(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function with its float32 products and convolutions on a GPU in TF32: 10 bits of each factor's 23."""

    def rounded(*inputs: Tensor) -> Any:
        flags: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn)
        before = [flag.allow_tf32 for flag in flags]
        try:
            for flag in flags:
                flag.allow_tf32 = True
            return function(*inputs)
        finally:
            for flag, value in zip(flags, before):
                flag.allow_tf32 = value

    return rounded
