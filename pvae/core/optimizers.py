"""`Adam` and `LBFGS` without the compiler of torch, the import of which takes as long as training a small table."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch.optim import Optimizer

__all__ = ["LBFGS", "Adam"]


class _WithoutCompiler(Optimizer):
    """Methods of torch's optimisers as they are before torch decorates them for its compiler."""

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters."""
        inspect.unwrap(Optimizer.add_param_group)(self, param_group)

    def state_dict(self) -> dict[str, Any]:
        """Return the state."""
        state: dict[str, Any] = inspect.unwrap(Optimizer.state_dict)(self)
        return state


class Adam(_WithoutCompiler, torch.optim.Adam):
    """torch's Adam."""


class LBFGS(_WithoutCompiler, torch.optim.LBFGS):
    """torch's L-BFGS."""
