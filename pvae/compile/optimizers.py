"""One torch optimiser over all parameters, in the form that `pyro.infer.SVI` takes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from pyro.optim import PyroOptim
from torch import Tensor
from torch.optim import Optimizer

from pvae.core.finite import NotFiniteError, listed

__all__ = ["OTHER_PARAMETERS", "SingleOptimizer"]

OTHER_PARAMETERS = "the parameters that the loss registers with Pyro are not those of the optimiser"


class SingleOptimizer(PyroOptim):
    """Let SVI step a torch optimiser that holds all the parameters, by finite gradients only.

    Pyro's own wrapper makes one optimiser per tensor: no fused step, and no clipping over all of them.

    Args:
        optimizer: made over the parameters that the loss will register with Pyro.
        names: of the parameters, for messages.
        clip_norm: the most that the norm of all gradients together may be, by which they are scaled; 0 for no bound.
        reduce: is given the gradients before they are looked at, and may write into them: processes sum theirs.
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
        self._known = {id(p) for p in self._parameters}

    def __call__(self, params: Iterable[Tensor], *args: Any, **kwargs: Any) -> None:
        """Step the optimiser.

        Args:
            params: the parameters that Pyro saw in the loss.
            args: handed to the optimiser's `step`.
            kwargs: handed to the optimiser's `step`.

        Raises:
            RuntimeError: they are not the optimiser's own: one that it lacks would stay untrained, and the
                gradient of one that only it holds would pile up, since SVI clears what it saw alone.
            NotFiniteError: a gradient is NaN or infinite; no parameter was stepped.
        """
        if {id(parameter) for parameter in params} != self._known:
            raise RuntimeError(OTHER_PARAMETERS)
        try:
            self._prepare_gradients()
            self.optimizer.step(*args, **kwargs)
        finally:
            for parameter in self._parameters:  # to none at all: SVI would write zeros, for the next to be added to
                parameter.grad = None

    def _prepare_gradients(self) -> None:
        for parameter in self._parameters:
            if parameter.grad is None and self.reduce is not None:  # another process may have one
                parameter.grad = torch.zeros_like(parameter)
        given = [parameter for parameter in self._parameters if parameter.grad is not None]
        gradients: list[Tensor] = [parameter.grad for parameter in given]
        if self.reduce is not None:
            self.reduce(gradients)
        norm = torch.nn.utils.get_total_norm(gradients)
        if not math.isfinite(norm.item()):
            named = [self.name_of(p) for p, one in zip(given, gradients) if not one.norm().isfinite()]
            raise NotFiniteError(f"the gradient of {listed(named or list(self._names.values()))} is NaN or infinite")
        if self.clip_norm:
            torch.nn.utils.clip_grads_with_norm_(given, self.clip_norm, norm)

    def name_of(self, parameter: Tensor) -> str:
        """Return what a message calls a parameter."""
        return self._names.get(id(parameter), "a parameter")

    def get_state(self) -> dict[str, Any]:
        """Return the optimiser's state."""
        return self.optimizer.state_dict()

    def set_state(self, state_dict: dict[str, Any]) -> None:
        """Go back to a state that `get_state` gave."""
        self.optimizer.load_state_dict(state_dict)
