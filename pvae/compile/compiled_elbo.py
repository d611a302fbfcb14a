"""An ELBO recorded once and replayed at each step: the same loss and gradients without the Python that forms them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import pyro
import torch
from pyro.infer import ELBO
from pyro.poutine.runtime import apply_stack
from torch import Tensor, nn

from pvae.compile.adam import AdamUpdate
from pvae.compile.graph import check_ways, record
from pvae.compile.guards import (
    Snapshot,
    as_if_nothing,
    buffers_unchanged,
    refuse_handlers,
    running_modules,
    surroundings,
    unchanged,
    unmakes_parameters,
)
from pvae.compile.optimizers import OTHER_PARAMETERS
from pvae.compile.recorded_step import Call, Prepare, RecordedStep, Step
from pvae.core.errors import InputError
from pvae.core.terms import LossAndTerms
from pvae.elbos.base import PyroFunction

__all__ = ["CompiledELBO"]

_CHANGES_ITSELF = (
    "the step cannot be recorded, since a module, or what model or guide hold, changes itself in it: "
    "leave --compile out (in Python, give SVI the ELBO itself)"
)
_NUM_KEPT = 32  # recordings: each is of a batch shape, a mode or an edit of the model


class CompiledELBO(ELBO):
    """An ELBO that `pyro.infer.SVI` takes as any other, and that runs model and guide only when it must.

    The first step runs them under Pyro's tracing and records the operators of loss and gradients; later steps replay
    these. A replay draws from torch's generator what the model would have drawn, so that the same seed gives the same
    training, to rounding. A step is recorded anew if its batch has another shape or dtype, if the parameter store or
    autocast changed, or if a module of the model was edited: a parameter, a mode, an attribute, a hook, a child.
    beta is an input. Values read from elsewhere (a global variable, another generator) are fixed by the recording, and
    torch's validation looks at the first batch alone; the domain of the pixels is checked at every step.

    Args:
        elbo: one of pvae's, or any Pyro ELBO with a `differentiable_loss`.
        engine: "graph" or "inductor", of `graph.record`; inductor compiles what trains, and a loss alone is recorded.
        precision: "fp32" or "bf16", of `graph.record`.
        batch_size: inductor compiles steps on batches of this many only; rarer ones, such as the short last batch of an
            epoch, are recorded. Without it all are compiled.

    Attributes:
        num_recordings: how often it has recorded.

    Raises:
        TypeError: the ELBO has no `differentiable_loss`.
        InputError: there is no such engine or precision; or when used, if model or guide read the values of tensors,
            if a module changes itself in each step, or if another Pyro handler than SVI's own is around.
    """

    def __init__(
        self, elbo: ELBO, engine: str = "graph", precision: str = "fp32", batch_size: int | None = None
    ) -> None:
        if not hasattr(elbo, "differentiable_loss"):
            raise TypeError(f"{type(elbo).__name__} has no differentiable_loss: take one of pvae.build_elbo")
        self.elbo: Any = elbo
        check_ways(engine, precision)
        super().__init__(num_particles=elbo.num_particles)  # type: ignore[no-untyped-call]
        self.engine = engine
        self.precision = precision
        self.batch_size = batch_size
        self.num_recordings = 0
        self._is_changing = False
        self._recorded: list[RecordedStep] = []
        self._known: dict[object, RecordedStep] | None = None  # by call and shapes, inside `unedited`

    @contextlib.contextmanager
    def unedited(self) -> Iterator[None]:
        """Look for edits once, and not before each step: for a loop that makes none.

        To look costs as much as many operators. In this block it is done before the first step of each kind and batch
        shape. beta and Adam's lr, betas and epsilon may still change; model, guide, modules, their modes, the ELBO's
        other attributes, Pyro's parameter store, the optimiser and its state, and torch's settings may not.
        """
        before, self._known = self._known, {}
        try:
            yield
        finally:
            self._known = before

    def backward(
        self, model: PyroFunction, guide: PyroFunction, *inputs: Tensor, beta: float | None = None
    ) -> LossAndTerms:
        """Add the gradients of the loss to the parameters, and return loss and terms; beta weighs the rate."""
        recorded = self._find(Call("gradients", model, guide), inputs)
        if recorded is None:
            return self._eager("backward", "loss_and_grads", model, guide, *inputs, beta=beta)
        found, flags, gradients = recorded.play(self._beta(beta), inputs)
        recorded.refuse(flags)
        recorded.add_gradients(gradients)
        store = pyro.get_param_store()
        for site in recorded.step.sites:  # SVI steps the parameters whose sites it sees
            apply_stack({**site, "value": store[site["name"]]})  # type: ignore[typeddict-item]
        return found

    def update(
        self,
        model: PyroFunction,
        guide: PyroFunction,
        update: AdamUpdate,
        *inputs: Tensor,
        prepare: Prepare | None = None,
        beta: float | None = None,
    ) -> LossAndTerms | None:
        """Step the parameters, or return None if this step must be run eagerly (`CompiledSVI` calls it).

        Args:
            model: a Pyro function.
            guide: its guide.
            update: steps the parameters.
            inputs: of `prepare`, or of model and guide.
            prepare: turns the inputs into the argument of model and guide; recorded too.
            beta: weight of the rate.

        Returns:
            Loss and terms of the batch.

        Raises:
            InputError: the step cannot be recorded, or an input is outside the domain.
            NotFiniteError: the loss or a gradient is not finite; parameters and the optimiser's state are as before.
            RuntimeError: the parameters that model and guide register with Pyro are not the optimiser's.
        """
        recorded = self._find(Call("update", model, guide, update, prepare), inputs)
        if recorded is None or any(parameter.grad is not None for parameter in recorded.step.trained):
            return None
        if not update.set_numbers(recorded.counts):
            return None
        found, flags, (is_taken, finite) = recorded.play(self._beta(beta), inputs)
        if not is_taken:
            recorded.refuse(flags)
            update.refuse(found.loss, recorded.step.trained, finite)
        return found

    def evaluate(
        self, model: PyroFunction, guide: PyroFunction, *inputs: Tensor, beta: float | None = None
    ) -> LossAndTerms:
        """Return loss and terms; Pyro's parameter store stays as it was."""
        with torch.no_grad():
            recorded = self._find(Call("loss", model, guide), inputs)
            if recorded is None:
                return self._eager("evaluate", "loss", model, guide, *inputs, beta=beta)
            found, flags, _ = recorded.play(self._beta(beta), inputs)
            recorded.refuse(flags)
            return found

    def loss_and_grads(
        self, model: PyroFunction, guide: PyroFunction, *inputs: Tensor, beta: float | None = None
    ) -> Tensor:
        """Return the loss after adding its gradients to the parameters (`SVI.step` calls it)."""
        return self.backward(model, guide, *inputs, beta=beta).loss

    def loss(self, model: PyroFunction, guide: PyroFunction, *inputs: Tensor, beta: float | None = None) -> float:
        """Return the loss as a number (`SVI.evaluate_loss` calls it)."""
        return self.evaluate(model, guide, *inputs, beta=beta).loss.item()

    def _get_trace(self, *arguments: Any) -> Any:  # Pyro's base class wants one
        return self.elbo._get_trace(*arguments)

    def _beta(self, beta: float | None) -> float:
        return float(getattr(self.elbo, "beta", 1.0)) if beta is None else beta

    def _eager(self, ours: str, pyros: str, *arguments: Any, beta: float | None) -> LossAndTerms:
        """Call the ELBO itself; one of Pyro's has no terms and no beta."""
        if hasattr(self.elbo, ours):
            return getattr(self.elbo, ours)(*arguments, beta=beta)
        return LossAndTerms(torch.as_tensor(getattr(self.elbo, pyros)(*arguments)), None)  # type: ignore[arg-type]

    def _find(self, call: Call, inputs: Sequence[Tensor]) -> RecordedStep | None:
        """Return the recording of such a step, made now if there is none; None for a step that must be run eagerly."""
        refuse_handlers(call.gives)
        shapes = tuple((x.shape, x.dtype, x.device, x.stride(), x.requires_grad) for x in inputs)
        recorded = None if self._known is None else self._known.get((call, shapes))
        if recorded is None:
            recorded = self._look_up(call, inputs, shapes)
            if recorded is not None and self._known is not None:
                self._known[call, shapes] = recorded
        return recorded

    def _look_up(self, call: Call, inputs: Sequence[Tensor], shapes: object) -> RecordedStep | None:
        """Return the recording of such a step if nothing was edited since; else a new one, or None."""
        update = call.update
        if update is not None and not update.suits(update.optimizer):
            return None
        key = (call.gives, shapes, surroundings())
        if call.gives != "loss" and any(x.requires_grad for x in inputs):
            raise InputError("a compiled ELBO gives gradients to parameters only, and an input requires one")
        for recorded in reversed(self._recorded):
            if recorded.suits(key, call, self.elbo):
                return recorded
        with as_if_nothing([*inputs, *(update.parameters if update is not None else [])], call.gives):
            fresh = self._record(key, call, inputs)
        if fresh is not None:
            self.num_recordings += 1
            # A recording with another state of this optimiser is of no use any more, and would keep that state alive.
            kept = [one for one in self._recorded if one.call.update is not update or one.is_of(update)]
            self._recorded = [*kept[1 - _NUM_KEPT :], fresh]
        return fresh

    def _record(self, key: tuple[object, ...], call: Call, inputs: Sequence[Tensor]) -> RecordedStep | None:
        """Run the step once, to see the parameters that it makes and the modules that run, and record it."""
        seen = self._run_once(call, inputs)
        if seen is None:
            return None
        modules, dtype = seen
        update, watched = call.update, [*call.functions, self.elbo, modules]
        snapshot = Snapshot(watched)
        if update is not None:
            update.prepare()
        step = Step(self.elbo, call)
        # Views: one tensor given twice would be taken for one input.
        beta = torch.tensor(1.0, dtype=dtype if dtype.is_floating_point else None, device=inputs[0].device)
        written = update.held() if update is not None else []
        is_rare = call.gives == "loss" or self.batch_size not in (None, len(inputs[0]))
        # To compile takes seconds, and saves milliseconds of a rare step.
        engine = "graph" if is_rare and self.engine == "inductor" else self.engine
        with buffers_unchanged(modules), unchanged(written):
            replay = record(step, [beta, *(x.view_as(x) for x in inputs)], engine, self.precision)
        if snapshot != Snapshot(watched):
            raise InputError(_CHANGES_ITSELF)
        if update is not None and not step.is_of_the_optimizer:
            raise RuntimeError(OTHER_PARAMETERS)
        return RecordedStep(
            key=key,
            call=call,
            elbo=self.elbo,
            snapshot=snapshot,
            modules=modules,
            beta=beta,
            replay=replay,
            step=step,
            written=update.held() if update is not None else [],
            counts=update.counts(step.trained) if update is not None else [],
        )

    def _run_once(self, call: Call, inputs: Sequence[Tensor]) -> tuple[list[nn.Module], torch.dtype] | None:
        """Return the modules of the loss and the dtype of its batch; None if it made parameters or changed a module."""
        of = [*call.functions, self.elbo]
        before, known = Snapshot(of), set(pyro.get_param_store()._params)
        with running_modules() as ran, torch.no_grad():
            taken = inputs if call.prepare is None else (call.prepare(*inputs),)
            self.elbo.differentiable_loss(call.model, call.guide, *taken)
        torch.clear_autocast_cache()  # torch 2.6 would give the recording these weights, which have no gradient
        modules = list(ran.values())
        is_changed = before != Snapshot(of)
        if is_changed and self._is_changing:
            raise InputError(_CHANGES_ITSELF)
        self._is_changing = is_changed  # once it may: a guide that makes itself at its first step
        owned = {id(tensor) for module in modules for tensor in module.parameters()}
        return None if unmakes_parameters(known, owned) or is_changed else (modules, taken[0].dtype)
