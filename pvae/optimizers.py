"""One torch optimiser over all parameters, in the form that `pyro.infer.SVI` takes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pyro.optim import PyroOptim
from torch import Tensor
from torch.optim import Optimizer

__all__ = ["OTHER_PARAMETERS", "SingleOptimizer"]

OTHER_PARAMETERS = "the parameters that the loss registers with Pyro are not those of the optimiser"


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
            RuntimeError: they are not the optimiser's own: one that it lacks would stay untrained, and the
                gradient of one that only it holds would pile up, since SVI clears what it saw alone.
        """
        if {id(parameter) for parameter in params} != self._known:
            raise RuntimeError(OTHER_PARAMETERS)
        self.optimizer.step(*args, **kwargs)
        self.optimizer.zero_grad()  # to none at all, where SVI would write zeros for the next gradient to be added to

    def get_state(self) -> dict[str, Any]:
        """Return the optimiser's state."""
        return self.optimizer.state_dict()

    def set_state(self, state_dict: dict[str, Any]) -> None:
        """Go back to a state that `get_state` gave."""
        self.optimizer.load_state_dict(state_dict)
