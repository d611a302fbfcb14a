"""One torch optimiser over all parameters, as an optimiser for `pyro.infer.SVI`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

import torch
from pyro.optim import PyroOptim
from torch import Tensor
from torch.optim import Optimizer

from pvae.core.errors import GradientError, listed

__all__ = ["SingleOptimizer"]


class SingleOptimizer(PyroOptim):
    """Let SVI step one torch optimiser over all parameters, and refuse gradients that are not finite.

    Pyro's own wrapper creates one optimiser per tensor, which allows neither a fused step nor clipping of the total
    gradient norm.

    Args:
        optimizer: created with the parameters that the loss will register with Pyro.
        names: the parameters by name, for messages.
        clip_norm: scale the gradients down to this total norm if it is larger; 0 for no limit.
        reduce: called with the gradients before they are checked; may change them in place, to sum over processes.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        names: Mapping[str, Tensor] | None = None,
        clip_norm: float = 0.0,
        reduce: Callable[[list[Tensor]], None] | None = None,
    ) -> None:
        super().__init__(type(optimizer), {})
        self.optimizer = optimizer
        self.clip_norm = clip_norm
        self.reduce = reduce
        self._names = {id(tensor): name for name, tensor in (names or {}).items()}
        self._parameters = [p for group in optimizer.param_groups for p in group["params"]]

    @property
    def changes_gradients(self) -> bool:
        """Whether gradients are clipped or summed over processes before the step."""
        return bool(self.clip_norm) or self.reduce is not None

    def __call__(self, params: Iterable[Tensor]) -> None:
        """Step the optimiser.

        Args:
            params: the parameters that the loss registered with Pyro.

        Raises:
            RuntimeError: they are not the parameters of the optimiser. A parameter that the optimiser lacks would not
                be trained; the gradient of one that only the optimiser has would accumulate, since SVI does not clear
                it.
            GradientError: a gradient is NaN or infinite; no parameter was stepped.
        """
        if {id(parameter) for parameter in params} != {id(parameter) for parameter in self._parameters}:
            raise RuntimeError(
                "the parameters that the loss registers with Pyro are not those of the optimiser: create it over all "
                "parameters of model and guide"
            )
        try:
            self._prepare_gradients()
            self.optimizer.step()
        finally:
            for parameter in self._parameters:
                parameter.grad = None  # SVI would write zeros, to which the next gradients would be added

    def _prepare_gradients(self) -> None:
        """Sum the gradients over processes, refuse those that are not finite, and clip them."""
        if self.reduce is not None:
            for parameter in self._parameters:
                if parameter.grad is None:  # another process may have a gradient
                    parameter.grad = torch.zeros_like(parameter)
            self.reduce([parameter.grad for parameter in self._parameters])
        stepped = [parameter for parameter in self._parameters if parameter.grad is not None]
        gradients: list[Tensor] = [parameter.grad for parameter in stepped]
        norm = torch.nn.utils.get_total_norm(gradients)
        if not math.isfinite(norm.item()):
            names = [self.name_of(p) for p, gradient in zip(stepped, gradients) if not gradient.norm().isfinite()]
            raise GradientError(f"the gradient of {listed(names or list(self._names.values()))} is NaN or infinite")
        if self.clip_norm:
            torch.nn.utils.clip_grads_with_norm_(stepped, self.clip_norm, norm)

    def name_of(self, parameter: Tensor) -> str:
        """Return the name of a parameter, for messages."""
        return self._names.get(id(parameter), "a parameter")
