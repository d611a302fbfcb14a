"""One torch optimiser over all parameters, in the form that `pyro.infer.SVI` takes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pyro.optim import PyroOptim
from torch import Tensor
from torch.optim import Optimizer

__all__ = ["SingleOptimizer"]


class SingleOptimizer(PyroOptim):
    """Let SVI step a torch optimiser that holds all the parameters.

    Pyro's own wrapper makes one optimiser per tensor: no fused step, and no clipping over all of them.

    Args:
        optimizer: made over the parameters that the loss will register with Pyro.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        super().__init__(type(optimizer), {})
        self.optimizer = optimizer
        self._known = {id(p) for group in optimizer.param_groups for p in group["params"]}

    def __call__(self, params: Iterable[Tensor], *args: Any, **kwargs: Any) -> None:
        """Step the optimiser.

        Args:
            params: the parameters that Pyro saw in the loss.
            args: handed to the optimiser's `step`.
            kwargs: handed to the optimiser's `step`.

        Raises:
            RuntimeError: one of them is not the optimiser's, and would stay untrained.
        """
        if any(id(parameter) not in self._known for parameter in params):
            raise RuntimeError("the loss registers parameters that this optimiser does not hold: build it over them")
        self.optimizer.step(*args, **kwargs)
