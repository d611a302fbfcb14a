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
from pvae.core.errors import InputError
from pvae.core.terms import LossAndTerms, Terms
from pvae.core.torch_private import has_gradient_hooks
from pvae.core.tracing import Check, deferred
from pvae.elbos.base import PyroFunction

__all__ = ["Call", "Prepare", "RecordedStep", "Step", "run_step"]

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


class Step(NamedTuple):
    """What the replay of a step needs, besides the recorded function.

    Attributes:
        checks: the checks of inputs, each with the index of its input.
        errors: for each flag that the function returns, a function that makes the error to raise where it is false.
        sites: Pyro's sites of the parameters.
        params: the parameters, by their names in Pyro's store.
        trained: those that get a gradient, in the order of the gradients.
    """

    checks: list[tuple[int, Check]]
    errors: list[Callable[[], Exception]]
    sites: list[dict[str, Any]]
    params: dict[str, Tensor]
    trained: list[Tensor]

    def has_parameters_of(self, update: AdamUpdate) -> bool:
        """Whether the parameters of the step are those of the optimiser."""
        return {id(one) for one in self.params.values()} == {id(one) for one in update.parameters}


def run_step(elbo: Any, call: Call, beta: Tensor, *inputs: Tensor) -> tuple[list[Tensor], Step]:
    """Run a step, and return its tensors and what else a replay needs.

    The tensors are [loss, distortion, rate], one flag per check, and further ones by the kind of the call:

        "loss":      nothing more
        "gradients": one gradient for each parameter in `trained`
        "update":    whether the step is taken, that is all flags are true and all values finite; and the flags of
                     `AdamUpdate.finite`. Nothing, if the parameters are not those of the optimiser

    If the ELBO has no terms, the loss is returned three times. The flags are of the checks of tensors that the step
    computes; checks of inputs are left to the replay.
    """
    with deferred() as checks, poutine.trace(param_only=True) as capture:
        x = inputs if call.prepare is None else (call.prepare(*inputs),)
        if hasattr(elbo, "loss_and_terms"):
            loss, terms = elbo.loss_and_terms(call.model, call.guide, *x, beta=beta)
            distortion, rate, _ = terms
        else:
            with torch.enable_grad():  # TraceEnum_ELBO raises unless its loss has a gradient
                loss = elbo.differentiable_loss(call.model, call.guide, *x)
            distortion, rate = loss.detach(), loss.detach()
    nodes: list[Any] = [site for site in capture.trace.nodes.values() if site["type"] == "param"]
    params: dict[str, Tensor] = {site["name"]: site["value"].unconstrained() for site in nodes}
    computed = [check for check in checks if all(one is not check.x for one in inputs)]
    flags = [check.holds(check.x) for check in computed]
    trained, gradients = ([], []) if call.kind == "loss" else _gradients(loss, params)
    step = Step(
        checks=[(index, check) for check in checks for index, one in enumerate(inputs) if one is check.x],
        errors=[check.error for check in computed],
        sites=[{**site, "stop": False, "continuation": None} for site in nodes],
        params=params,
        trained=trained,
    )
    results = [loss.detach(), distortion, rate, *flags]
    update = call.update
    if update is None:
        results += gradients
    elif step.has_parameters_of(update):
        with torch.no_grad():
            finite = update.finite(loss, gradients)
            is_taken = functools.reduce(torch.logical_and, flags, finite.all())
            update.apply(trained, gradients, is_taken)
            results += [is_taken, finite]
    return results, step


def _gradients(loss: Tensor, params: dict[str, Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Return the parameters that get a gradient, and their gradients."""
    # Unique by identity, since one tensor may have two names.
    wanted = list({id(tensor): tensor for tensor in params.values() if tensor.requires_grad}.values())
    if any(map(has_gradient_hooks, wanted)):
        raise InputError("the step cannot be recorded, since a parameter has a hook after its gradient")
    gradients_or_none = torch.autograd.grad(loss, wanted, allow_unused=True) if wanted else ()
    trained: list[Tensor] = []
    gradients: list[Tensor] = []
    storages: set[int] = set()
    for tensor, gradient in zip(wanted, gradients_or_none):
        if gradient is not None:
            storage = gradient.untyped_storage().data_ptr()
            trained.append(tensor)  # no two gradients may share memory, since an optimiser may write into each
            gradients.append(gradient.clone() if storage in storages else gradient)
            storages.add(storage)
    return trained, gradients


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
        step: what else the replay needs.
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

    def matches(self, key: tuple[object, ...], call: Call, elbo: Any) -> bool:
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
        terms: Any = Terms(distortion, rate) if hasattr(self.elbo, "loss_and_terms") else None
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
