"""Adam's update as operators on tensors, so that it can be recorded with the gradients that it takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NoReturn

import torch
from torch import Tensor
from torch.optim import Adam, Optimizer

from pvae.core.errors import GradientError, NotFiniteError, listed
from pvae.core.torch_private import foreach_add_, foreach_norm, foreach_sub_, fused_adam_, has_step_hooks

__all__ = ["AdamUpdate", "ElementwiseAdamUpdate", "FusedAdamUpdate", "in_layout_of"]

_NOT_PLAIN = ("amsgrad", "maximize", "weight_decay", "differentiable", "capturable", "decoupled_weight_decay")


class _Update:
    """One step of a `torch.optim.Adam`, on its own state, as part of a recording.

    The optimiser may be saved, loaded and stepped by itself between two steps. A step that is refused leaves parameters
    and state as they were.

    Args:
        optimizer: an optimiser for which `suits` is true.
        name_of: returns the name of a parameter for messages.

    Reference:
        Kingma and Ba, arXiv:1412.6980, algorithm 1.
    """

    def __init__(self, optimizer: Adam, name_of: Callable[[Tensor], str] = lambda _: "a parameter") -> None:
        self.optimizer = optimizer
        self.name_of = name_of
        self.parameters: list[Tensor] = optimizer.param_groups[0]["params"]

    @staticmethod
    def supports(optimizer: Optimizer) -> bool:
        """Whether it is plain fused Adam: one group, float32 or float64, one device, and settings that are numbers."""
        if type(optimizer) is not Adam or len(optimizer.param_groups) != 1:
            return False
        group = optimizer.param_groups[0]
        first = group["params"][0]
        is_plain = group["fused"] and not any(group.get(name) for name in _NOT_PLAIN)
        has_numbers = not any(isinstance(one, Tensor) for one in (group["lr"], *group["betas"], group["eps"]))
        is_alike = all(one.dtype == first.dtype and one.device == first.device for one in group["params"])
        is_exact = first.dtype in (torch.float32, torch.float64)  # torch computes other dtypes in float32
        return bool(is_plain and has_numbers and not has_step_hooks(optimizer) and is_alike and is_exact)

    def prepare(self) -> None:
        """Give each parameter the state that Adam would give it at its first step."""
        for parameter in self.parameters:
            state = self.optimizer.state[parameter]
            if not state and parameter.requires_grad:
                state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
                state["exp_avg"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
                state["exp_avg_sq"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)

    def written(self) -> list[Tensor]:
        """Return the tensors that the update writes into; a recording depends on their identity, not their values."""
        states = [self.optimizer.state[parameter] for parameter in self.parameters]
        return [*self.parameters, *(tensor for state in states for tensor in state.values())]

    def counts(self, trained: Sequence[Tensor]) -> list[Tensor]:
        """Return the number of steps that each of these parameters has taken."""
        return [self.optimizer.state[parameter]["step"] for parameter in trained]

    def refuse(self, loss: Tensor, trained: Sequence[Tensor], finite: Tensor) -> NoReturn:
        """Raise the error of a step for which a flag of `finite` is false.

        Raises:
            NotFiniteError: always; `apply` left parameters and state as they were.
        """
        is_loss_finite, *are_gradients_finite = finite.tolist()
        if not is_loss_finite:
            raise NotFiniteError(f"the loss is {loss.item()}")
        names = [self.name_of(parameter) for parameter, finite in zip(trained, are_gradients_finite) if not finite]
        raise GradientError(f"the gradient of {listed(names)} is NaN or infinite")


class FusedAdamUpdate(_Update):
    """Adam by the operator of torch's fused Adam: on a CPU the result is the same bit for bit.

        m <- beta_1 m + (1 - beta_1) g       v <- beta_2 v + (1 - beta_2) g^2
        p <- p - lr  m / (1 - beta_1^t)  / (sqrt(v / (1 - beta_2^t)) + epsilon)

    On a GPU lr is rounded to float32. The recording fixes betas and epsilon.
    """

    def __init__(self, optimizer: Adam, name_of: Callable[[Tensor], str] = lambda _: "a parameter") -> None:
        super().__init__(optimizer, name_of)
        device = self.parameters[0].device
        self._lr = torch.zeros((), dtype=torch.float64 if device.type == "cpu" else torch.float32, device=device)
        self._fixed = self._settings()

    def _settings(self) -> tuple[float, float, float]:
        group = self.optimizer.param_groups[0]
        return (*group["betas"], group["eps"])

    def set_values(self, counts: Sequence[Tensor]) -> bool:
        """Write lr into the tensor that the recording reads; False if the recording has other betas or epsilon."""
        self._lr.fill_(self.optimizer.param_groups[0]["lr"])
        return self._settings() == self._fixed

    @staticmethod
    def finite(loss: Tensor, gradients: Sequence[Tensor]) -> Tensor:
        """Return flags (1 + number of gradients,): whether the loss and the norm of each gradient are finite."""
        return torch.stack([loss, *foreach_norm(list(gradients))]).isfinite()

    def apply(self, trained: Sequence[Tensor], gradients: Sequence[Tensor], is_taken: Tensor) -> None:
        """Write the new parameters, moments and counts, or leave the old ones where `is_taken` is false."""
        states = [self.optimizer.state[parameter] for parameter in trained]
        counts, is_refused = self.counts(trained), 1.0 - is_taken.to(torch.float32)
        beta_1, beta_2, epsilon = self._fixed
        foreach_add_(counts, 1)
        fused_adam_(
            [parameter.detach() for parameter in trained],
            [in_layout_of(parameter, gradient) for parameter, gradient in zip(trained, gradients)],
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
            found_inf=is_refused,
        )
        foreach_sub_(counts, [is_refused] * len(counts))


class ElementwiseAdamUpdate(_Update):
    """Adam in elementwise operations, which a compiler fuses into one loop; equal to `FusedAdamUpdate` to rounding.

        m <- m + (1 - beta_1) (g - m)        v <- beta_2 v + (1 - beta_2) g^2
        p <- p - lr / (1 - beta_1^t)  m / (sqrt(v) / sqrt(1 - beta_2^t) + epsilon)

    `set_values` computes the factors that depend only on lr, betas, epsilon and t on the host, once a step. Inside the
    loop over a parameter, which writes memory, a compiler would compute them for each element. On a GPU, reading t
    synchronises.
    """

    def __init__(self, optimizer: Adam, name_of: Callable[[Tensor], str] = lambda _: "a parameter") -> None:
        super().__init__(optimizer, name_of)
        self._values = torch.zeros(6, dtype=self.parameters[0].dtype, device=self.parameters[0].device)

    def set_values(self, counts: Sequence[Tensor]) -> bool:
        """Write the factors of the next step into the tensor that the recording reads; False if the counts differ."""
        group = self.optimizer.param_groups[0]
        distinct_counts = {count.item() for count in counts}
        if len(distinct_counts) != 1:
            return False
        count, (beta_1, beta_2) = distinct_counts.pop() + 1, group["betas"]
        step_size, scale = group["lr"] / (1 - beta_1**count), (1 - beta_2**count) ** -0.5
        values = (step_size, scale, 1 - beta_1, beta_2, 1 - beta_2, group["eps"])
        self._values.copy_(torch.tensor(values, dtype=self._values.dtype))
        return True

    @staticmethod
    def finite(loss: Tensor, gradients: Sequence[Tensor]) -> Tensor:
        """Return flags (1 + number of gradients,): whether the loss and the squares of each gradient are finite."""
        return torch.stack([loss.isfinite(), *((g * g).isfinite().all() for g in gradients)])

    def apply(self, trained: Sequence[Tensor], gradients: Sequence[Tensor], is_taken: Tensor) -> None:
        """Write the new parameters, moments and counts, or leave the old ones where `is_taken` is false."""
        step_size, scale, one_minus_beta_1, beta_2, one_minus_beta_2, epsilon = self._values.unbind()
        for parameter, gradient in zip(trained, gradients):
            state: dict[str, Tensor] = self.optimizer.state[parameter]
            old = (parameter.detach(), state["exp_avg"], state["exp_avg_sq"], state["step"])
            mean = old[1] + one_minus_beta_1 * (gradient - old[1])
            square = beta_2 * old[2] + one_minus_beta_2 * (gradient * gradient)
            value = old[0] - step_size * mean / (scale * square.sqrt() + epsilon)
            for tensor, updated in zip(old, (value, mean, square, old[3] + 1)):
                tensor.copy_(torch.where(is_taken, updated, tensor))


AdamUpdate = FusedAdamUpdate | ElementwiseAdamUpdate


def in_layout_of(parameter: Tensor, gradient: Tensor) -> Tensor:
    """Return the gradient in the parameter's layout, since a fused optimiser reads memory in order."""
    return gradient if gradient.stride() == parameter.stride() else torch.empty_like(parameter).copy_(gradient)
