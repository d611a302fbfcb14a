"""Adam's update as operators on tensors, so that inductor compiles it together with the gradients."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NoReturn

import torch
from torch import Tensor
from torch.optim import Adam

from pvae.compile.optimizers import SingleOptimizer
from pvae.core.errors import GradientError, NotFiniteError, listed

__all__ = ["AdamUpdate"]


class AdamUpdate:
    """One step of a `torch.optim.Adam`, on its own state, in elementwise operations, equal to torch's to rounding.

        m <- m + (1 - beta_1) (g - m)        v <- beta_2 v + (1 - beta_2) g^2
        p <- p - lr / (1 - beta_1^t)  m / (sqrt(v) / sqrt(1 - beta_2^t) + epsilon)

    The factors that depend only on lr, betas, epsilon and t are computed on the host, once a step. A step whose loss or
    gradients are not finite leaves parameters and state as they were.

    Args:
        optim: holds plain Adam over one group of parameters, each of which has taken the same number of steps.

    Reference:
        Kingma and Ba, arXiv:1412.6980, algorithm 1.
    """

    def __init__(self, optim: SingleOptimizer) -> None:
        self.optim = optim
        self.optimizer = optim.optimizer
        self.parameters: list[Tensor] = self.optimizer.param_groups[0]["params"]
        self._values = torch.zeros(6, dtype=self.parameters[0].dtype, device=self.parameters[0].device)

    @staticmethod
    def supports(optim: SingleOptimizer) -> bool:
        """Whether this is fused Adam without options, over parameters of one dtype with one number of steps taken."""
        optimizer = optim.optimizer
        group, counts = optimizer.param_groups[0], {float(one["step"]) for one in optimizer.state.values()}
        names = ("amsgrad", "maximize", "weight_decay", "decoupled_weight_decay")
        is_plain = type(optimizer) is Adam and group["fused"] and not any(group.get(name) for name in names)
        is_alike = len(counts) == 1 and len({one.dtype for one in group["params"]}) == 1
        return is_plain and is_alike and len(optimizer.param_groups) == 1 and not optim.changes_gradients

    def written(self) -> list[Tensor]:
        """Return the tensors that the update writes into."""
        states = [self.optimizer.state.get(parameter, {}) for parameter in self.parameters]
        return [*self.parameters, *(tensor for state in states for tensor in state.values())]

    def set_values(self, trained: Sequence[Tensor]) -> None:
        """Write the factors of the next step of these parameters into the tensor that the recording reads."""
        group = self.optimizer.param_groups[0]
        count, (beta_1, beta_2) = self.optimizer.state[trained[0]]["step"].item() + 1, group["betas"]
        step_size, scale = group["lr"] / (1 - beta_1**count), (1 - beta_2**count) ** -0.5
        values = (step_size, scale, 1 - beta_1, beta_2, 1 - beta_2, group["eps"])
        self._values.copy_(torch.tensor(values, dtype=self._values.dtype))

    def apply(
        self, loss: Tensor, trained: Sequence[Tensor], gradients: Sequence[Tensor], flags: Sequence[Tensor]
    ) -> list[Tensor]:
        """Step these parameters where all flags are true, and loss and gradients are finite.

        Returns:
            Whether the step was taken, and whether the loss and each gradient is finite, (1 + number of gradients,).
        """
        with torch.no_grad():
            finite = torch.stack([loss.isfinite(), *((g * g).isfinite().all() for g in gradients)])
            is_taken = functools.reduce(torch.logical_and, flags, finite.all())
            step_size, scale, one_minus_beta_1, beta_2, one_minus_beta_2, epsilon = self._values.unbind()
            for parameter, gradient in zip(trained, gradients):
                state: dict[str, Tensor] = self.optimizer.state[parameter]
                old = (parameter.detach(), state["exp_avg"], state["exp_avg_sq"], state["step"])
                mean = old[1] + one_minus_beta_1 * (gradient - old[1])
                square = beta_2 * old[2] + one_minus_beta_2 * (gradient * gradient)
                value = old[0] - step_size * mean / (scale * square.sqrt() + epsilon)
                for tensor, updated in zip(old, (value, mean, square, old[3] + 1)):
                    tensor.copy_(torch.where(is_taken, updated, tensor))
        return [is_taken, finite]

    def refuse(self, loss: Tensor, trained: Sequence[Tensor], finite: Tensor) -> NoReturn:
        """Raise the error of a step that was not taken.

        Raises:
            NotFiniteError: always; `apply` left parameters and state as they were.
        """
        is_loss_finite, *are_gradients_finite = finite.tolist()
        if not is_loss_finite:
            raise NotFiniteError(f"the loss is {loss.item()}")
        names = [self.optim.name_of(one) for one, finite in zip(trained, are_gradients_finite) if not finite]
        raise GradientError(f"the gradient of {listed(names)} is NaN or infinite")
