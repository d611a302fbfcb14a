"""Adam's update as operations on tensors, so that it can be recorded with the gradients that it takes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Adam, Optimizer

__all__ = ["AdamUpdate"]

_NOT_PLAIN = ("amsgrad", "maximize", "weight_decay", "differentiable", "capturable", "decoupled_weight_decay")


class AdamUpdate:
    """One step of a `torch.optim.Adam`, on its own state, in operations that a recording can hold.

        m <- m + (1 - beta_1) (g - m)        v <- beta_2 v + (1 - beta_2) g^2
        p <- p - lr / (1 - beta_1^t)  m / (sqrt(v) / sqrt(1 - beta_2^t) + epsilon)

    The optimiser may be saved, loaded and stepped by itself in between: its state stays its own. What changes from
    step to step, lr and t, lies in two numbers that `advance` sets before each.

    Args:
        optimizer: as `suits` takes it.

    Reference:
        Kingma and Ba, arXiv:1412.6980, algorithm 1, with torch's order of operations.
    """

    def __init__(self, optimizer: Adam) -> None:
        self.optimizer = optimizer
        self.parameters: list[Tensor] = optimizer.param_groups[0]["params"]
        like = self.parameters[0]
        self._step_size = torch.zeros((), dtype=like.dtype, device=like.device)
        self._root = torch.ones((), dtype=like.dtype, device=like.device)

    @staticmethod
    def suits(optimizer: Optimizer) -> bool:
        """Whether it is plain fused Adam over one group of parameters of one dtype and device, lr a number."""
        if type(optimizer) is not Adam or len(optimizer.param_groups) != 1:
            return False
        group = optimizer.param_groups[0]
        kinds = {(parameter.dtype, parameter.device) for parameter in group["params"]}
        is_plain = not any(group.get(name) for name in _NOT_PLAIN) and not isinstance(group["lr"], Tensor)
        has_hooks = optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks
        return bool(is_plain and group["fused"] and len(kinds) == 1 and not has_hooks)

    def prepare(self) -> None:
        """Give each parameter the state that Adam would give it at its first step."""
        for parameter in self.parameters:
            state = self.optimizer.state[parameter]
            if not state and parameter.requires_grad:
                state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
                state["exp_avg"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
                state["exp_avg_sq"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)

    def held(self) -> list[Tensor]:
        """Return the tensors that it writes into."""
        states = [self.optimizer.state[parameter] for parameter in self.parameters]
        return [*self.parameters, *(tensor for state in states for tensor in state.values())]

    def facts(self) -> list[object]:
        """Return what a recording of it hangs on, as objects that stay the same: its settings, and `held`."""
        group = self.optimizer.param_groups[0]
        return [group["betas"], group["eps"], *self.held()]

    def advance(self, trained: Iterable[Tensor]) -> None:
        """Count a step of these parameters, and set what hangs on the count and on lr."""
        group = self.optimizer.param_groups[0]
        steps = [self.optimizer.state[parameter]["step"] for parameter in trained]
        torch._foreach_add_(steps, 1.0)
        count, (beta_1, beta_2) = steps[0].item(), group["betas"]
        self._step_size.fill_(group["lr"] / (1 - beta_1**count))
        self._root.fill_((1 - beta_2**count) ** 0.5)

    def apply(self, trained: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
        """Write the new parameters and moments, as `advance` left the numbers."""
        group: dict[str, Any] = self.optimizer.param_groups[0]
        beta_1, beta_2 = group["betas"]
        with torch.no_grad():
            for parameter, gradient in zip(trained, gradients):
                state = self.optimizer.state[parameter]
                mean, square = state["exp_avg"], state["exp_avg_sq"]
                mean.copy_(torch.lerp(mean, gradient, 1 - beta_1))
                square.copy_(square * beta_2 + gradient * gradient * (1 - beta_2))
                parameter.sub_(self._step_size * (mean / (square.sqrt() / self._root + group["eps"])))
