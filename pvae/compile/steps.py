"""What is recorded of a step: loss, terms, gradients or the update by them, as a function of beta and the inputs."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from pyro import poutine
from torch import Tensor

from pvae.compile.adam import AdamUpdate
from pvae.core.checks import Check, deferred
from pvae.core.errors import InputError
from pvae.core.terms import Terms
from pvae.core.torch_private import has_gradient_hooks
from pvae.elbos.base import PyroFunction

__all__ = ["Call", "Prepare", "Step"]

Prepare = Callable[..., Tensor]


class Call(NamedTuple):
    """What is asked of a step, beside its inputs.

    Attributes:
        gives: "loss"; "gradients" of it too; or "update", which takes these and writes the parameters.
        model: a Pyro function.
        guide: its guide.
        update: steps the parameters, of a call that gives "update".
        prepare: makes of the inputs what model and guide take.
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
    """Loss, terms, and gradients or an update, as one function of beta and the inputs, which notes what it met.

    Args:
        elbo: has a `differentiable_loss`.
        call: what it gives, and of which functions.

    Attributes:
        checks: what must hold of the inputs, with the place of each among them.
        errors: what is to be raised where a flag is false.
        has_terms: the ELBO records its terms.
        held: the parameters met, by the name that they have in Pyro's store.
        trained: those that get a gradient, in the order of the gradients.
        sites: where Pyro met them.
    """

    def __init__(self, elbo: Any, call: Call) -> None:
        self.elbo, self.call = elbo, call

    def __call__(self, beta: Tensor, *inputs: Tensor) -> list[Tensor]:
        """Return loss, distortion and rate (or the loss in their place), flags, and what else the call gives.

            "gradients": one of each parameter trained
            "update":    whether the step is taken: all flags hold, all is finite, and none was refused before; and the
                         flags of `AdamUpdate.finite`

        A flag says whether what must hold of a tensor that the step made, and not of an input, does.
        """
        with _beta_of(self.elbo, beta), deferred() as checks, poutine.trace(param_only=True) as capture:
            taken = inputs if self.call.prepare is None else (self.call.prepare(*inputs),)
            loss = self.elbo.differentiable_loss(self.call.model, self.call.guide, *taken)
        places = [_place_of(check.x, inputs) for check in checks]
        self.checks: list[tuple[int, Check]] = [(at, check) for at, check in zip(places, checks) if at is not None]
        made = [check for at, check in zip(places, checks) if at is None]
        self.errors = [check.error for check in made]
        nodes: list[Any] = [site for site in capture.trace.nodes.values() if site["type"] == "param"]
        self.sites = [{**site, "stop": False, "continuation": None} for site in nodes]
        self.held: dict[str, Tensor] = {site["name"]: _unconstrained(site["value"]) for site in nodes}
        terms = getattr(self.elbo, "terms", None)
        self.has_terms = isinstance(terms, Terms)
        self.trained: list[Tensor] = []
        given = [loss.detach(), *(terms[:2] if isinstance(terms, Terms) else (loss.detach(), loss.detach()))]
        flags = [check.holds(check.x) for check in made]
        given += flags
        if self.call.gives == "loss":
            return given
        gradients = self._gradients(loss)
        update = self.call.update
        if update is None:
            return [*given, *gradients]
        if self.is_of_the_optimizer:
            with torch.no_grad():
                finite = update.finite(loss, gradients)
                is_well = functools.reduce(torch.logical_and, [*flags, update.is_going], finite.all())
                update.apply(self.trained, gradients, is_well)
                update.is_going.copy_(is_well)
                given += [is_well, finite]
        return given

    @property
    def is_of_the_optimizer(self) -> bool:
        """Whether the parameters met are those that the update is of."""
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


def _unconstrained(value: Any) -> Tensor:
    parameter: Tensor = value.unconstrained()
    return parameter


def _place_of(x: Tensor, inputs: Sequence[Tensor]) -> int | None:
    return next((place for place, one in enumerate(inputs) if one is x), None)


@contextlib.contextmanager
def _beta_of(elbo: Any, beta: Tensor) -> Iterator[None]:
    """Let an ELBO that knows a beta have this one."""
    before = getattr(elbo, "beta", None)
    if before is not None:
        elbo.beta = beta
    try:
        yield
    finally:
        if before is not None:
            elbo.beta = before
