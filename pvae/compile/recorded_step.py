"""A step of SVI as one recorded function of tensors (loss, terms, gradients or update), and its replay."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyro
import torch
from pyro import poutine
from torch import Tensor, nn

from pvae.compile.adam import AdamUpdate, in_layout_of
from pvae.compile.guards import Snapshot, is_same
from pvae.core.checks import deferred
from pvae.core.errors import InputError
from pvae.core.terms import LossAndTerms, Terms
from pvae.core.torch_private import has_gradient_hooks
from pvae.elbos.base import PyroFunction

__all__ = ["Call", "Prepare", "RecordedStep", "Step"]

Prepare = Callable[..., Tensor]


class Call(NamedTuple):
    """The arguments of a step, except its input tensors.

    Attributes:
        kind: "loss"; "gradients" for the loss and its gradients; "update" to apply these to the parameters too.
        model: a Pyro function.
        guide: its guide.
        update: steps the parameters, if `kind` is "update".
        prepare: converts the inputs to the argument of model and guide.
    """

    kind: str
    model: PyroFunction
    guide: PyroFunction
    update: AdamUpdate | None = None
    prepare: Prepare | None = None

    @property
    def functions(self) -> tuple[Callable[..., Any] | None, ...]:
        """Model, guide and `prepare`."""
        return (self.model, self.guide, self.prepare)


class Step:
    """Loss, terms, and gradients or an update, as one function of beta and the inputs.

    Args:
        elbo: has a `differentiable_loss`.
        call: the other arguments.

    Attributes:
        checks: the checks of inputs, each with the index of its input.
        errors: for each flag that the function returns, a function that makes the error to raise where it is false.
        has_terms: whether the ELBO returns its terms.
        params: the parameters of the step, by their names in Pyro's store.
        trained: the parameters that get a gradient, in the order of the gradients.
        sites: Pyro's sites of the parameters.
    """

    def __init__(self, elbo: Any, call: Call) -> None:
        self.elbo, self.call = elbo, call
        self.has_terms = hasattr(elbo, "loss_and_terms")

    def __call__(self, beta: Tensor, *inputs: Tensor) -> list[Tensor]:
        """Return [loss, distortion, rate], one flag per check, and further results by the kind of the call.

            "loss":      nothing more
            "gradients": one gradient for each parameter in `trained`
            "update":    whether the step is taken, that is all flags are true and all values finite; and the flags of
                         `AdamUpdate.finite`

        If the ELBO has no terms, the loss is returned three times. The checks are those of tensors that the step
        computes; checks of inputs are left to the replay.
        """
        with deferred() as checks, poutine.trace(param_only=True) as capture:
            x = inputs if self.call.prepare is None else (self.call.prepare(*inputs),)
            if self.has_terms:
                loss, terms = self.elbo.loss_and_terms(self.call.model, self.call.guide, *x, beta=beta)
            else:
                loss = self.elbo.differentiable_loss(self.call.model, self.call.guide, *x)
                terms = (loss.detach(), loss.detach())
        self.checks = [(index, check) for check in checks for index, one in enumerate(inputs) if one is check.x]
        computed = [check for check in checks if all(one is not check.x for one in inputs)]
        self.errors = [check.error for check in computed]
        nodes: list[Any] = [site for site in capture.trace.nodes.values() if site["type"] == "param"]
        self.sites = [{**site, "stop": False, "continuation": None} for site in nodes]
        self.params: dict[str, Tensor] = {site["name"]: site["value"].unconstrained() for site in nodes}
        self.trained: list[Tensor] = []
        flags = [check.holds(check.x) for check in computed]
        results = [loss.detach(), *terms[:2], *flags]
        if self.call.kind == "loss":
            return results
        gradients = self._gradients(loss)
        update = self.call.update
        if update is None:
            return [*results, *gradients]
        if self.has_params_of_optimizer:
            with torch.no_grad():
                finite = update.finite(loss, gradients)
                is_taken = functools.reduce(torch.logical_and, flags, finite.all())
                update.apply(self.trained, gradients, is_taken)
                results += [is_taken, finite]
        return results

    @property
    def has_params_of_optimizer(self) -> bool:
        """Whether the parameters of the step are those of the optimiser."""
        assert self.call.update is not None, "there is no update"
        return {id(one) for one in self.params.values()} == {id(one) for one in self.call.update.parameters}

    def _gradients(self, loss: Tensor) -> list[Tensor]:
        # Unique by identity, since one tensor may have two names.
        wanted = list({id(tensor): tensor for tensor in self.params.values() if tensor.requires_grad}.values())
        if any(map(has_gradient_hooks, wanted)):
            raise InputError("the step cannot be recorded, since a parameter has a hook after its gradient")
        gradients_or_none = torch.autograd.grad(loss, wanted, allow_unused=True)
        pairs = [(tensor, gradient) for tensor, gradient in zip(wanted, gradients_or_none) if gradient is not None]
        self.trained = [tensor for tensor, _ in pairs]
        storages: set[int] = set()
        gradients = []
        for _, gradient in pairs:  # no two may share memory, since an optimiser may write into each
            storage = gradient.untyped_storage().data_ptr()
            gradients.append(gradient.clone() if storage in storages else gradient)
            storages.add(storage)
        return gradients


@dataclass
class RecordedStep:
    """A recorded step, with everything that the recording depends on.

    Attributes:
        key: the kind of call, the shapes of its inputs, the settings of torch.
        call: the other arguments of the step.
        elbo: the ELBO.
        snapshot: of functions, ELBO and modules.
        modules: the modules that ran.
        beta: the input tensor for beta.
        replay: the recorded function.
        step: the function that was recorded.
        written: the tensors that the update writes into.
        counts: those among them that count the steps of the parameters trained.
    """

    key: tuple[object, ...]
    call: Call
    elbo: Any
    snapshot: Snapshot
    modules: list[nn.Module]
    beta: Tensor
    replay: Callable[..., Sequence[Tensor]]
    step: Step
    written: list[Tensor]
    counts: list[Tensor]

    def suits(self, key: tuple[object, ...], call: Call, elbo: Any) -> bool:
        """Whether this records such a call: the same inputs, functions, parameters and optimiser, and no edit since."""
        are_same = self.key == key and is_same(self.call.functions, call.functions) and self.elbo is elbo
        return are_same and self.has_state_of(call.update) and self._is_in_store() and self.snapshot.is_current()

    def has_state_of(self, update: AdamUpdate | None) -> bool:
        """Whether it steps by that update, and the optimiser's state is still the one that was recorded."""
        return self.call.update is update and (update is None or is_same(self.written, update.written()))

    def play(self, beta: float, inputs: Sequence[Tensor]) -> tuple[LossAndTerms, Sequence[Tensor]]:
        """Replay the step.

        Args:
            beta: weight of the rate.
            inputs: of the shapes in `key`.

        Returns:
            Loss and terms (None if the ELBO has none), and the further results of the call.

        Raises:
            Exception: the error of the first check that fails.
        """
        for index, check in self.step.checks:
            if not check.holds(inputs[index]):
                raise check.error()
        self.beta.fill_(beta)
        with torch.no_grad():
            loss, distortion, rate, *rest = self.replay(self.beta, *inputs)
        for flag, error in zip(rest, self.step.errors):
            if not flag:
                raise error()
        terms: Any = Terms(distortion, rate) if self.step.has_terms else None
        return LossAndTerms(loss, terms), rest[len(self.step.errors) :]

    def add_gradients(self, gradients: Sequence[Tensor]) -> None:
        """Add gradients to those of the parameters."""
        for parameter, gradient in zip(self.step.trained, gradients):
            if parameter.grad is None:
                parameter.grad = in_layout_of(parameter, gradient)
            else:
                parameter.grad = parameter.grad + gradient

    def _is_in_store(self) -> bool:
        """Whether Pyro's store holds the parameters; for an evaluation, those of modules may be missing."""
        now, trains = pyro.get_param_store()._params, self.call.kind != "loss"
        owned = set() if trains else {id(tensor) for module in self.modules for tensor in module.parameters()}
        for name, parameter in self.step.params.items():
            absent = parameter if id(parameter) in owned else None
            if now.get(name, absent) is not parameter:
                return False
        return True
