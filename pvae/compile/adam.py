"""Adam's update as operators on tensors, so that it can be recorded with the gradients that it takes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import NoReturn

import torch
from torch import Tensor
from torch.optim import Adam, Optimizer

from pvae.core.finite import NotFiniteError, listed
from pvae.core.torch_private import foreach_add_, foreach_norm, foreach_sub_, fused_adam_, has_step_hooks

__all__ = ["AdamUpdate", "ElementwiseAdam", "OperatorAdam"]

_NOT_PLAIN = ("amsgrad", "maximize", "weight_decay", "differentiable", "capturable", "decoupled_weight_decay")
_HAS_OPERATOR = fused_adam_ is not None  # without it the elementwise form is recorded


class AdamUpdate(ABC):
    """One step of a `torch.optim.Adam`, on its own state, as part of a recording.

        m <- beta_1 m + (1 - beta_1) g       v <- beta_2 v + (1 - beta_2) g^2
        p <- p - lr  m / (1 - beta_1^t)  / (sqrt(v / (1 - beta_2^t)) + epsilon)

    The optimiser may be saved, loaded and stepped by itself in between: its state stays its own. A step that is refused
    leaves parameters and state as they were.

    Args:
        optimizer: as `suits` takes it.
        name_of: what a message calls a parameter.

    Reference:
        Kingma and Ba, arXiv:1412.6980, algorithm 1.
    """

    def __init__(self, optimizer: Adam, name_of: Callable[[Tensor], str] = lambda _: "a parameter") -> None:
        self.optimizer = optimizer
        self.name_of = name_of
        self.parameters: list[Tensor] = optimizer.param_groups[0]["params"]

    @classmethod
    def suits(cls, optimizer: Optimizer) -> bool:
        """Whether it is plain fused Adam: one group, float32 or float64, one device, and settings that are numbers."""
        if type(optimizer) is not Adam or len(optimizer.param_groups) != 1:
            return False
        group = optimizer.param_groups[0]
        first = group["params"][0]
        is_plain = group["fused"] and not any(group.get(name) for name in _NOT_PLAIN)
        has_numbers = not any(isinstance(one, Tensor) for one in (group["lr"], *group["betas"], group["eps"]))
        is_alike = all(one.dtype == first.dtype and one.device == first.device for one in group["params"])
        is_exact = first.dtype in (torch.float32, torch.float64)  # torch's own computes the others in float32
        return bool(is_plain and has_numbers and not has_step_hooks(optimizer) and is_alike and is_exact)

    def prepare(self) -> None:
        """Give each parameter the state that Adam would give it at its first step."""
        for parameter in self.parameters:
            state = self.optimizer.state[parameter]
            if not state and parameter.requires_grad:
                state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
                state["exp_avg"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
                state["exp_avg_sq"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)

    def held(self) -> list[Tensor]:
        """Return the tensors that it writes into: a recording depends on which they are, not on their values."""
        states = [self.optimizer.state[parameter] for parameter in self.parameters]
        return [*self.parameters, *(tensor for state in states for tensor in state.values())]

    def counts(self, trained: Sequence[Tensor]) -> list[Tensor]:
        """Return how many steps each of these parameters has taken."""
        return [self.optimizer.state[parameter]["step"] for parameter in trained]

    def refuse(self, loss: Tensor, trained: Sequence[Tensor], finite: Tensor) -> NoReturn:
        """Raise the error of a step of which a flag of `finite` is false.

        Raises:
            NotFiniteError: always; `apply` left parameters and state as they were.
        """
        is_finite, *of_gradients = finite.tolist()
        if not is_finite:
            raise NotFiniteError(f"the loss is {loss.item()}")
        named = [self.name_of(parameter) for parameter, holds in zip(trained, of_gradients) if not holds]
        raise NotFiniteError(f"the gradient of {listed(named)} is NaN or infinite")

    @abstractmethod
    def is_recorded(self) -> bool:
        """Whether the settings that a recording fixes are unchanged."""

    @abstractmethod
    def set_numbers(self, counts: Sequence[Tensor]) -> bool:
        """Set the values that may change from step to step; return False if these counts of steps do not allow it."""

    @staticmethod
    @abstractmethod
    def finite(loss: Tensor, gradients: Sequence[Tensor]) -> Tensor:
        """Return flags (1 + number of gradients,): whether the loss is finite, and each gradient and its square."""

    @abstractmethod
    def apply(self, trained: Sequence[Tensor], gradients: Sequence[Tensor], is_well: Tensor) -> None:
        """Write the new parameters, moments and counts, or leave the old ones where `is_well` is false."""


class OperatorAdam(AdamUpdate):
    """Adam by the operator that torch's fused Adam calls: on a CPU bit for bit the same, on a GPU with lr in float32.

    The recording fixes betas and epsilon.
    """

    def __init__(self, optimizer: Adam, name_of: Callable[[Tensor], str] = lambda _: "a parameter") -> None:
        super().__init__(optimizer, name_of)
        first = self.parameters[0]
        is_on_cpu = first.device.type == "cpu"
        self._lr = torch.zeros((), dtype=torch.float64 if is_on_cpu else torch.float32, device=first.device)
        self._lr_now = 0.0
        self._fixed = self._settings()

    @classmethod
    def suits(cls, optimizer: Optimizer) -> bool:
        """Whether the operator takes this optimiser; on a GPU it reads lr in float32, too coarse for float64."""
        first = optimizer.param_groups[0]["params"][0]
        is_too_fine = first.dtype == torch.float64 and first.device.type != "cpu"
        return _HAS_OPERATOR and super().suits(optimizer) and not is_too_fine

    def _settings(self) -> tuple[float, float, float]:
        group = self.optimizer.param_groups[0]
        return (*group["betas"], group["eps"])

    def is_recorded(self) -> bool:
        """Whether betas and epsilon are still those of the recording."""
        return self._settings() == self._fixed

    def set_numbers(self, counts: Sequence[Tensor]) -> bool:
        """Set lr for the next step; the operator reads the counts itself."""
        lr = self.optimizer.param_groups[0]["lr"]
        if lr != self._lr_now:
            self._lr.fill_(lr)
            self._lr_now = lr
        return True

    @staticmethod
    def finite(loss: Tensor, gradients: Sequence[Tensor]) -> Tensor:
        """Return flags (1 + number of gradients,): whether the loss is finite, and the norm of each gradient."""
        return torch.stack([loss, *foreach_norm(list(gradients))]).isfinite()

    def apply(self, trained: Sequence[Tensor], gradients: Sequence[Tensor], is_well: Tensor) -> None:
        """Write the new parameters, moments and counts, or leave the old ones where `is_well` is false."""
        states = [self.optimizer.state[parameter] for parameter in trained]
        counts, is_ill = self.counts(trained), 1.0 - is_well.to(torch.float32)
        beta_1, beta_2, epsilon = self._fixed
        foreach_add_(counts, 1)
        fused_adam_(
            [parameter.detach() for parameter in trained],
            [_laid_out_as(parameter, gradient) for parameter, gradient in zip(trained, gradients)],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            counts,
            lr=self._lr,
            beta1=beta_1,
            beta2=beta_2,
            weight_decay=0.0,
            eps=epsilon,
            amsgrad=False,
            maximize=False,
            found_inf=is_ill,
        )
        foreach_sub_(counts, [is_ill] * len(counts))


def _laid_out_as(parameter: Tensor, gradient: Tensor) -> Tensor:
    """Return the gradient in the parameter's layout: the operator reads memory in its order."""
    return gradient if gradient.stride() == parameter.stride() else torch.empty_like(parameter).copy_(gradient)


class ElementwiseAdam(AdamUpdate):
    """Adam in elementwise operations, which a compiler fuses into one loop; the same to rounding.

        m <- m + (1 - beta_1) (g - m)        v <- beta_2 v + (1 - beta_2) g^2
        p <- p - lr / (1 - beta_1^t)  m / (sqrt(v) / sqrt(1 - beta_2^t) + epsilon)

    The factors that depend only on lr, betas, epsilon and t are computed once a step by `set_numbers`, outside of the
    loop over a parameter: the loop writes memory, so a compiler cannot move them out of it. Reading t waits for a GPU.
    """

    def __init__(self, optimizer: Adam, name_of: Callable[[Tensor], str] = lambda _: "a parameter") -> None:
        super().__init__(optimizer, name_of)
        self._numbers = torch.zeros(6, dtype=self.parameters[0].dtype, device=self.parameters[0].device)

    def is_recorded(self) -> bool:
        """Whether the settings that a recording fixes are unchanged: there are none."""
        return True

    def set_numbers(self, counts: Sequence[Tensor]) -> bool:
        """Set the factors of the next step from the settings and these counts; return False if the counts differ."""
        group = self.optimizer.param_groups[0]
        found = {count.item() for count in counts}
        if len(found) != 1:
            return False
        count, (beta_1, beta_2) = found.pop() + 1, group["betas"]
        step_size, scale = group["lr"] / (1 - beta_1**count), (1 - beta_2**count) ** -0.5
        numbers = (step_size, scale, 1 - beta_1, beta_2, 1 - beta_2, group["eps"])
        if self._numbers.device.type == "cpu":
            self._numbers.numpy()[:] = numbers  # several times as fast as making a tensor
        else:
            self._numbers.copy_(torch.tensor(numbers, dtype=self._numbers.dtype))
        return True

    @staticmethod
    def finite(loss: Tensor, gradients: Sequence[Tensor]) -> Tensor:
        """Return flags (1 + number of gradients,): whether the loss is finite, and each gradient and its square."""
        return torch.stack([loss.isfinite(), *((one * one).isfinite().all() for one in gradients)])

    def apply(self, trained: Sequence[Tensor], gradients: Sequence[Tensor], is_well: Tensor) -> None:
        """Write the new parameters, moments and counts, or the old ones where `is_well` is false."""
        step_size, scale, new, decay, newer, epsilon = self._numbers.unbind()
        for parameter, gradient in zip(trained, gradients):
            state: dict[str, Tensor] = self.optimizer.state[parameter]
            old = (parameter.detach(), state["exp_avg"], state["exp_avg_sq"], state["step"])
            mean = old[1] + new * (gradient - old[1])
            square = decay * old[2] + newer * (gradient * gradient)
            value = old[0] - step_size * mean / (scale * square.sqrt() + epsilon)
            for tensor, updated in zip(old, (value, mean, square, old[3] + 1)):
                tensor.copy_(torch.where(is_well, updated, tensor))
