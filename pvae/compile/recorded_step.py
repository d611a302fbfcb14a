"""A step of SVI that is recorded: its loss, terms, gradients or update as one function of tensors, and the replay."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyro
import torch
from pyro import poutine
from torch import Tensor, nn

from pvae.compile.adam import AdamUpdate
from pvae.compile.guards import Snapshot
from pvae.core.checks import Check, deferred
from pvae.core.errors import InputError
from pvae.core.terms import LossAndTerms, Terms
from pvae.core.torch_private import has_gradient_hooks
from pvae.elbos.base import PyroFunction

__all__ = ["Call", "Prepare", "RecordedStep", "Replayed", "Step"]

Prepare = Callable[..., Tensor]


class Call(NamedTuple):
    """What is asked of a step, beside its inputs.

    Attributes:
        gives: "loss"; "gradients" of it too; or "update", which applies these to the parameters.
        model: a Pyro function.
        guide: its guide.
        update: steps the parameters, of a call that gives "update".
        prepare: turns the inputs into the argument of model and guide.
    """

    gives: str
    model: PyroFunction
    guide: PyroFunction
    update: AdamUpdate | None = None
    prepare: Prepare | None = None

    @property
    def functions(self) -> tuple[Callable[..., Any] | None, ...]:
        """Model, guide and what prepares their input."""
        return (self.model, self.guide, self.prepare)


class Step:
    """Loss, terms, and gradients or an update, as one function of beta and the inputs.

    Args:
        elbo: has a `differentiable_loss`.
        call: what it gives, and of which functions.

    Attributes:
        checks: what must hold of the inputs, with the place of each among them.
        errors: what is raised where a flag is false.
        has_terms: the ELBO returns its terms.
        held: the parameters met, by the name that they have in Pyro's store.
        trained: those that get a gradient, in the order of the gradients.
        sites: the parameter sites that Pyro met.
    """

    def __init__(self, elbo: Any, call: Call) -> None:
        self.elbo, self.call = elbo, call
        self.has_terms = hasattr(elbo, "loss_and_terms")

    def __call__(self, beta: Tensor, *inputs: Tensor) -> list[Tensor]:
        """Return loss, distortion and rate (or the loss in their place), flags, and what else the call gives.

            "gradients": one of each parameter trained
            "update":    whether the step is taken: all flags hold and all is finite; and the flags of
                         `AdamUpdate.finite`

        A flag says whether a check holds of a tensor that the step itself computes, and not of an input.
        """
        with deferred() as checks, poutine.trace(param_only=True) as capture:
            taken = inputs if self.call.prepare is None else (self.call.prepare(*inputs),)
            if self.has_terms:
                loss, terms = self.elbo.loss_and_terms(self.call.model, self.call.guide, *taken, beta=beta)
            else:
                loss = self.elbo.differentiable_loss(self.call.model, self.call.guide, *taken)
                terms = (loss.detach(), loss.detach())
        places = [next((place for place, x in enumerate(inputs) if x is check.x), None) for check in checks]
        self.checks: list[tuple[int, Check]] = [(at, check) for at, check in zip(places, checks) if at is not None]
        computed = [check for at, check in zip(places, checks) if at is None]
        self.errors = [check.error for check in computed]
        nodes: list[Any] = [site for site in capture.trace.nodes.values() if site["type"] == "param"]
        self.sites = [{**site, "stop": False, "continuation": None} for site in nodes]
        self.held: dict[str, Tensor] = {site["name"]: site["value"].unconstrained() for site in nodes}
        self.trained: list[Tensor] = []
        flags = [check.holds(check.x) for check in computed]
        given = [loss.detach(), *terms[:2], *flags]
        if self.call.gives == "loss":
            return given
        gradients = self._gradients(loss)
        update = self.call.update
        if update is None:
            return [*given, *gradients]
        if self.is_of_the_optimizer:
            with torch.no_grad():
                finite = update.finite(loss, gradients)
                is_well = functools.reduce(torch.logical_and, flags, finite.all())
                update.apply(self.trained, gradients, is_well)
                given += [is_well, finite]
        return given

    @property
    def is_of_the_optimizer(self) -> bool:
        """Whether the parameters met are those of the update."""
        assert self.call.update is not None, "there is no update"
        return {id(one) for one in self.held.values()} == {id(one) for one in self.call.update.parameters}

    def _gradients(self, loss: Tensor) -> list[Tensor]:
        # By identity: one tensor may have two names.
        wanted = list({id(tensor): tensor for tensor in self.held.values() if tensor.requires_grad}.values())
        if any(map(has_gradient_hooks, wanted)):
            raise InputError("the step cannot be recorded, since a parameter has a hook after its gradient")
        found = zip(wanted, torch.autograd.grad(loss, wanted, allow_unused=True))
        pairs = [(tensor, gradient) for tensor, gradient in found if gradient is not None]
        self.trained = [tensor for tensor, _ in pairs]
        storages: set[int] = set()
        gradients = []
        for _, gradient in pairs:  # an optimiser may write into each
            own = gradient.untyped_storage().data_ptr()
            gradients.append(gradient.clone() if own in storages else gradient)
            storages.add(own)
        return gradients


class Replayed(NamedTuple):
    """What a replay gives.

    Attributes:
        found: loss and terms of the batch; no terms where the ELBO has none.
        flags: whether the checks hold of what the step computed; `RecordedStep.refuse` reads them.
        rest: what else the call gives.
    """

    found: LossAndTerms
    flags: Sequence[Tensor]
    rest: Sequence[Tensor]


@dataclass
class RecordedStep:
    """A recorded step, with everything that the recording depends on."""

    key: tuple[object, ...]  # what it gives, the shapes of its inputs, the settings of torch
    call: Call
    elbo: Any
    snapshot: Snapshot
    modules: list[nn.Module]  # that ran
    beta: Tensor
    replay: Callable[..., Sequence[Tensor]]
    step: Step
    written: list[Tensor]  # by the update
    counts: list[Tensor]  # of steps that the trained parameters have taken, among them
    beta_now: float = float("nan")

    def suits(self, key: tuple[object, ...], call: Call, elbo: Any) -> bool:
        """Whether it is the recording of this call: the same inputs, functions, parameters and optimiser, unedited."""
        is_of_it = self.key == key and self._is_in_store() and self.is_of(call.update)
        return is_of_it and self._is_unedited(call, elbo)

    def is_of(self, update: AdamUpdate | None) -> bool:
        """Whether it steps by that optimiser, and its state is still the one that was recorded."""
        if self.call.update is not update:
            return False
        written = update.held() if update is not None else []
        return len(written) == len(self.written) and all(map(operator.is_, written, self.written))

    def play(self, beta: float, inputs: Sequence[Tensor]) -> Replayed:
        """Replay the step.

        Args:
            beta: weight of the rate.
            inputs: of the shapes in `key`.

        Raises:
            Exception: the one of the first check that does not hold of the inputs.
        """
        for place, check in self.step.checks:
            if not check.holds(inputs[place]):
                raise check.error()
        if self.beta_now != beta:
            self.beta_now = beta
            self.beta.fill_(beta)
        with torch.no_grad():
            loss, distortion, rate, *rest = self.replay(self.beta, *inputs)
        terms: Any = Terms(distortion, rate) if self.step.has_terms else None
        number = len(self.step.errors)
        return Replayed(LossAndTerms(loss, terms), rest[:number], rest[number:])

    def refuse(self, flags: Sequence[Tensor]) -> None:
        """Raise the exception of the first check that does not hold of what the step computed."""
        for holds, error in zip(flags, self.step.errors):
            if not holds:
                raise error()

    def add_gradients(self, gradients: Sequence[Tensor]) -> None:
        """Add gradients to those of the parameters."""
        for parameter, gradient in zip(self.step.trained, gradients):
            if parameter.grad is not None:
                parameter.grad = parameter.grad + gradient
            elif gradient.stride() == parameter.stride():
                parameter.grad = gradient
            else:  # in the parameter's layout, as autograd leaves it: a fused optimiser reads memory in its order
                parameter.grad = torch.empty_like(parameter).copy_(gradient)

    def _is_in_store(self) -> bool:
        """Whether Pyro's store holds the parameters; for an evaluation, those of modules need not be there."""
        now, trains = pyro.get_param_store()._params, self.call.gives != "loss"
        owned = set() if trains else {id(tensor) for module in self.modules for tensor in module.parameters()}
        for name, parameter in self.step.held.items():
            absent = parameter if id(parameter) in owned else None
            if now.get(name, absent) is not parameter:
                return False
        return True

    def _is_unedited(self, call: Call, elbo: Any) -> bool:
        if self.call.functions == call.functions and self.elbo is elbo and self.snapshot.is_current():
            return True
        now = Snapshot([*call.functions, elbo, self.modules])
        if now != self.snapshot:
            return False
        self.call, self.elbo, self.snapshot = call, elbo, now
        return True
