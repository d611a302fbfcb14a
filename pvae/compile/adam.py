"""Adam's update as operators on tensors: the host learns nothing of a step, and a step that is bad changes nothing."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from pyro.optim import PyroOptim
from torch import Tensor
from torch.optim import Adam

from pvae.core.errors import InputError

__all__ = ["AdamUpdate"]

_OPTIONS = ("amsgrad", "maximize", "weight_decay", "decoupled_weight_decay")


class AdamUpdate(PyroOptim):
    """Adam's step on the state of a `torch.optim.Adam`, for `CompiledSVI`; it equals torch's fused step to the bit.

        m <- m + (1 - beta_1) (g - m)        v <- beta_2 v + (1 - beta_2) g^2
        p <- p - lr / (1 - beta_1^t)  m / (sqrt(v) / sqrt(1 - beta_2^t) + epsilon)

    Args:
        optimizer: plain Adam over the parameters that the loss will register with Pyro.
        names: the parameters by name, for messages.
        clip_norm: scale the gradients down to this total norm if it is larger; 0 for no limit.
        reduce: called with the gradients, and a tensor that says whether the step is bad, before the update; may change
            them in place, to sum over processes.

    Attributes:
        is_bad: 1 from the first bad step on, which was refused since a check failed, or loss or gradients were not
            finite; then no parameter changes until it is 0 again.

    Raises:
        InputError: it is another optimiser, or Adam with options.

    Reference:
        Kingma and Ba, arXiv:1412.6980, algorithm 1.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        names: Mapping[str, Tensor] | None = None,
        clip_norm: float = 0.0,
        reduce: Callable[[Sequence[Tensor]], None] | None = None,
    ) -> None:
        super().__init__(type(optimizer), {})  # which SVI asks for
        (group, *others), self.optimizer = optimizer.param_groups, optimizer
        self.parameters: list[Tensor] = group["params"]
        if type(optimizer) is not Adam or others or any(group.get(name) for name in _OPTIONS):
            raise InputError(
                "only torch.optim.Adam without amsgrad, maximize and weight_decay, over one group of parameters, can "
                "be recorded: give SVI another optimiser and the ELBO itself"
            )
        self._names = {id(tensor): name for name, tensor in (names or {}).items()}
        self.clip_norm, self.reduce = clip_norm, reduce
        self.is_bad = torch.zeros((), dtype=torch.float32, device=self.parameters[0].device)

    @property
    def lr(self) -> float:
        """The learning rate of the optimiser."""
        return float(self.optimizer.param_groups[0]["lr"])

    def name_of(self, parameter: Tensor) -> str:
        """Return the name of a parameter, for messages."""
        return self._names.get(id(parameter), "a parameter")

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Let no step in this block change anything."""
        self.is_bad.fill_(1.0)
        try:
            yield
        finally:
            self.is_bad.zero_()

    def state_of(self, parameter: Tensor) -> dict[str, Tensor]:
        """Return the state of a parameter, which is that of torch's fused Adam."""
        state: dict[str, Tensor] = self.optimizer.state[parameter]
        if not state:
            state["step"] = torch.zeros_like(self.is_bad)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        return state

    def rows(self, values: Sequence[tuple[float, float]]) -> Tensor:
        """Return what changes with each of the next steps, float64 (n, 4).

            lr    beta    lr / (1 - beta_1^t)    1 / sqrt(1 - beta_2^t)

        Args:
            values: learning rate and weight of the rate of each step.
        """
        device, (beta_1, beta_2) = self.is_bad.device, self.optimizer.param_groups[0]["betas"]
        given = torch.tensor(values, dtype=torch.float64, device=device)
        taken = torch.stack([self.state_of(one)["step"] for one in self.parameters]).max().double()
        t = taken + torch.arange(1, len(given) + 1, device=device)
        return torch.column_stack([given, given[:, 0] / (1 - beta_1**t), (1 - beta_2**t).rsqrt()])

    def apply(
        self, row: Tensor, trained: list[Tensor], gradients: list[Tensor], flags: Tensor, is_fused: bool
    ) -> Tensor:
        """Step parameters, unless this step is bad, or one before it was.

        Args:
            row: of `rows`.
            trained: the parameters.
            gradients: of each.
            flags: the step is bad unless all are true, (F,).
            is_fused: by torch's fused operator, or by elementwise ones, for inductor; they differ by rounding.

        Returns:
            Whether each gradient is finite, (number of gradients,).
        """
        states = [self.state_of(one) for one in trained]
        means, squares, steps = ([one[name] for one in states] for name in ("exp_avg", "exp_avg_sq", "step"))
        with torch.no_grad():
            norms = torch.stack(torch._foreach_norm(gradients))
            are_finite = norms < math.inf  # false of NaN, too
            self.is_bad.logical_or_(~torch.cat([flags, are_finite]).all())
            if self.clip_norm:
                scale = (self.clip_norm / (torch.linalg.vector_norm(norms) + 1e-6)).clamp(max=1.0)
                gradients = list(torch._foreach_mul(gradients, scale))
            torch._foreach_add_(steps, [1 - self.is_bad] * len(steps))
            self.move((trained, gradients, means, squares, steps), row, self.is_bad, is_fused)
        return are_finite

    def move(self, lists: Sequence[list[Tensor]], row: Tensor, stays: Tensor, is_fused: bool) -> None:
        """Step tensors, whose number of steps is counted already.

        Args:
            lists: tensors, their gradients, means and squares of the gradients, and numbers of steps.
            row: a row of `rows`; if not fused, perhaps one for each of S models whose tensors are (S, D): (4, S, 1).
            stays: 1 to leave the tensors as they are, or 0; not fused, it may be (S, 1).
            is_fused: as for `apply`.
        """
        (beta_1, beta_2), epsilon = (self.optimizer.param_groups[0][name] for name in ("betas", "eps"))
        if is_fused:
            values, gradients, means, squares, steps = lists
            lr = row[0] if row.device.type == "cpu" else row[0].float()
            options: dict[str, Any] = {"beta1": beta_1, "beta2": beta_2, "eps": epsilon, "found_inf": stays}
            options |= {"weight_decay": 0.0, "amsgrad": False, "maximize": False}
            torch._fused_adam_(values, gradients, means, squares, [], steps, lr=lr, **options)
            return
        for value, gradient, mean, square, _ in zip(*lists):
            step_size, root = row[2:].to(value.dtype).unbind()
            new_mean = mean + (1 - beta_1) * (gradient - mean)
            new_square = beta_2 * square + (1 - beta_2) * (gradient * gradient)
            new_value = value - step_size * new_mean / (root * new_square.sqrt() + epsilon)
            for tensor, new in ((value, new_value), (mean, new_mean), (square, new_square)):
                tensor.copy_(torch.where(stays > 0, tensor, new))
