"""A step of SVI that was recorded, with all that a recording depends on, and its replay."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyro
import torch
from torch import Tensor, nn

from pvae.compile.adam import AdamUpdate
from pvae.compile.fingerprint import Fingerprint
from pvae.compile.steps import Call
from pvae.core.checks import Check
from pvae.core.terms import Terms

__all__ = ["Played", "Tape"]


class Played(NamedTuple):
    """What a replay gives.

    Attributes:
        loss: of the batch.
        terms: of the batch, if the ELBO has them.
        flags: whether what must hold of what the step made does; `Tape.refuse` tells.
        rest: what else the call gives.
    """

    loss: Tensor
    terms: Terms | None
    flags: Sequence[Tensor]
    rest: Sequence[Tensor]


@dataclass
class Tape:
    """A step that can be replayed."""

    key: tuple[object, ...]  # what it gives, the shapes of what it takes, the settings of torch
    functions: tuple[Callable[..., Any] | None, ...]  # model, guide, prepare
    elbo: Any
    fingerprint: Fingerprint
    modules: list[nn.Module]  # that ran
    beta: Tensor
    beta_now: float
    replay: Callable[..., Sequence[Tensor]]
    checks: list[tuple[int, Check]]  # with the place of what they look at among the inputs
    errors: list[Callable[[], Exception]]  # of what must hold of tensors that the step makes
    has_terms: bool
    held: dict[str, Tensor]  # parameters that Pyro's store held, by name
    owned: set[int]  # those of them that are a module's, which registers them itself
    trained: list[Tensor]  # parameters that get a gradient
    sites: list[Any]
    update: AdamUpdate | None
    written: list[Tensor]  # by the update
    counts: list[Tensor]  # of the steps that what is trained has taken, among them

    def suits(self, key: tuple[object, ...], call: Call, elbo: Any) -> bool:
        """Whether it gives that step: of the same inputs, model, guide, ELBO, parameters and optimiser, none edited."""
        is_of_it = self.key == key and self._is_in_store() and self.is_of(call.update)
        return is_of_it and self._is_unedited(call.functions, elbo)

    def is_of(self, update: AdamUpdate | None) -> bool:
        """Whether it steps by that optimiser, and its state is still the one that was recorded."""
        if self.update is not update:
            return False
        written = update.held() if update is not None else []
        return len(written) == len(self.written) and all(map(operator.is_, written, self.written))

    def play(self, beta: float, inputs: Sequence[Tensor]) -> Played:
        """Replay the step.

        Args:
            beta: weighs the rate.
            inputs: of the shapes in `key`.

        Raises:
            Exception: the one of the first check that does not hold of the inputs.
        """
        for place, check in self.checks:
            if not check.holds(inputs[place]):
                raise check.error()
        if self.beta_now != beta:
            self.beta_now = beta
            self.beta.fill_(beta)
        with torch.no_grad():
            loss, distortion, rate, *rest = self.replay(self.beta, *inputs)
        flags, rest = rest[: len(self.errors)], rest[len(self.errors) :]
        return Played(loss, Terms(distortion, rate) if self.has_terms else None, flags, rest)

    def refuse(self, flags: Sequence[Tensor]) -> None:
        """Raise the exception of the first check that does not hold of what the step made."""
        for holds, error in zip(flags, self.errors):
            if not holds:
                raise error()

    def add_gradients(self, gradients: Sequence[Tensor]) -> None:
        """Add gradients to those of the parameters."""
        for parameter, gradient in zip(self.trained, gradients):
            _add_gradient(parameter, gradient)

    def _is_in_store(self) -> bool:
        """Whether Pyro's store holds the parameters; to evaluate, a module's own need not be there."""
        now, trains = pyro.get_param_store()._params, self.key[0] != "loss"
        for name, parameter in self.held.items():
            absent = None if trains or id(parameter) not in self.owned else parameter
            if now.get(name, absent) is not parameter:
                return False
        return True

    def _is_unedited(self, functions: Sequence[Any], elbo: Any) -> bool:
        if self.functions == functions and self.elbo is elbo and self.fingerprint.is_current():
            return True
        now = Fingerprint([*functions, elbo, self.modules])
        if now != self.fingerprint:
            return False
        self.functions, self.elbo, self.fingerprint = tuple(functions), elbo, now
        return True


def _add_gradient(parameter: Tensor, gradient: Tensor) -> None:
    if parameter.grad is not None:
        parameter.grad = parameter.grad + gradient
    elif gradient.stride() == parameter.stride():
        parameter.grad = gradient
    else:  # in the parameter's layout, as autograd leaves it: a fused optimiser reads memory as it lies
        parameter.grad = torch.empty_like(parameter).copy_(gradient)
