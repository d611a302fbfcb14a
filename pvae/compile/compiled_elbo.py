"""An ELBO whose operators are recorded once and replayed at each step, without the Python of model and guide."""

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
from pvae.compile.graph import check_engine, record
from pvae.compile.guards import (
    Snapshot,
    buffers_unchanged,
    is_same,
    refuse_handlers,
    running_modules,
    state_unchanged,
    torch_settings,
    unchanged,
)
from pvae.compile.optimizers import OTHER_PARAMETERS
from pvae.compile.recorded_step import Call, Prepare, RecordedStep, Step, run_step
from pvae.core.errors import InputError
from pvae.core.terms import LossAndTerms
from pvae.core.torch_private import empty_transform_caches
from pvae.elbos.base import OnResult, PyroFunction

__all__ = ["CompiledELBO"]

_CHANGES_ITSELF = (
    "the step cannot be recorded, since a module, or an object that model or guide use, changes itself in it: "
    "leave --compile out (in Python, give SVI the ELBO itself)"
)
_MAX_RECORDINGS = 32  # one for each batch shape, mode and edit of the model


class CompiledELBO(ELBO):
    """An ELBO for `pyro.infer.SVI` that runs model and guide once, records their operators, and replays these.

    The first step runs model and guide under Pyro's tracing and records the operators of loss and gradients; later
    steps replay them. A replay draws the same numbers from torch's generator as the model would, so the same seed gives
    the same training, to rounding. A step is recorded anew if its batch has another shape or dtype, if the parameter
    store or autocast changed, or if a module of the model was edited: a parameter, a mode, an attribute, a hook, a
    child. beta is an input. Other values (a global variable, another generator) are fixed by the recording. torch
    validates the first batch only; the domain of the pixels is checked at every step. A first step that creates
    parameters or modules is run eagerly.

    Args:
        elbo: one of pvae's, or any Pyro ELBO with a `differentiable_loss`.
        engine: "graph" or "inductor", see `graph.record`; inductor compiles training steps, and evaluations are only
            recorded.
        precision: "fp32" or "bf16", see `graph.record`.
        batch_size: inductor compiles steps on batches of this size only; others, such as the short last batch of an
            epoch, are only recorded. By default all are compiled.

    Attributes:
        num_recordings: how often it has recorded.

    Raises:
        TypeError: the ELBO has no `differentiable_loss`.
        InputError: there is no such engine or precision; or when used, if model or guide read the values of tensors,
            if a module changes itself in each step, if an argument is not a tensor, or if another Pyro handler than
            SVI's own is active.
    """

    def __init__(
        self, elbo: ELBO, engine: str = "graph", precision: str = "fp32", batch_size: int | None = None
    ) -> None:
        if not hasattr(elbo, "differentiable_loss"):
            raise TypeError(
                f"the steps of {type(elbo).__name__} cannot be recorded, since it has no differentiable_loss: take "
                "Trace_ELBO or one of pvae.build_elbo, or give SVI the ELBO itself"
            )
        self.elbo: Any = elbo
        check_engine(engine, precision)
        super().__init__(num_particles=elbo.num_particles)  # type: ignore[no-untyped-call]
        self.engine = engine
        self.precision = precision
        self.batch_size = batch_size
        self.num_recordings = 0
        self._changed: list[object] = []  # the calls whose last trial run changed a module
        self._recorded: list[RecordedStep] = []
        self._checked: dict[object, RecordedStep] | None = None  # by call and shapes, inside `skip_guards`

    @contextlib.contextmanager
    def skip_guards(self) -> Iterator[None]:
        """Look for edits only before the first step of each kind and batch shape, in a loop that makes none.

        Looking takes as long as many operators. In this block beta and Adam's lr, betas and epsilon may still change;
        model, guide, modules, their modes, the ELBO's other attributes, Pyro's parameter store, the optimiser and its
        state, and torch's settings may not.
        """
        before, self._checked = self._checked, {}
        try:
            yield
        finally:
            self._checked = before

    def backward(
        self, model: PyroFunction, guide: PyroFunction, *inputs: Tensor, beta: float | None = None
    ) -> LossAndTerms:
        """Add the gradients of the loss to the parameters, and return loss and terms; beta weighs the rate."""
        recorded = self._find(Call("gradients", model, guide), inputs)
        if recorded is None:
            if hasattr(self.elbo, "backward"):
                return self.elbo.backward(model, guide, *inputs, beta=beta)
            return LossAndTerms(torch.as_tensor(self.elbo.loss_and_grads(model, guide, *inputs)), None)  # type: ignore[arg-type]
        result, gradients = recorded.play(self._beta(beta), inputs)
        recorded.add_gradients(gradients)
        store = pyro.get_param_store()
        for site in recorded.step.sites:  # SVI steps the parameters whose sites it sees
            apply_stack({**site, "value": store[site["name"]]})  # type: ignore[typeddict-item]
        return result

    def update(
        self,
        model: PyroFunction,
        guide: PyroFunction,
        update: AdamUpdate,
        *inputs: Tensor,
        prepare: Prepare | None = None,
        beta: float | None = None,
    ) -> LossAndTerms | None:
        """Step the parameters, or return None if this step must be run eagerly (called by `CompiledSVI`).

        Args:
            model: a Pyro function.
            guide: its guide.
            update: steps the parameters.
            inputs: the inputs of `prepare`, or of model and guide.
            prepare: converts the inputs to the argument of model and guide; it is recorded too.
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
        if not update.set_values(recorded.counts):
            return None
        result, (is_taken, finite) = recorded.play(self._beta(beta), inputs)
        if not is_taken:
            update.refuse(result.loss, recorded.step.trained, finite)
        return result

    def evaluate(
        self, model: PyroFunction, guide: PyroFunction, *inputs: Tensor, beta: float | None = None
    ) -> LossAndTerms:
        """Return loss and terms; Pyro's parameter store stays as it was."""
        with torch.no_grad():
            recorded = self._find(Call("loss", model, guide), inputs)
            if recorded is None:
                if hasattr(self.elbo, "evaluate"):
                    return self.elbo.evaluate(model, guide, *inputs, beta=beta)
                return LossAndTerms(torch.as_tensor(self.elbo.loss(model, guide, *inputs)), None)  # type: ignore[arg-type]
            return recorded.play(self._beta(beta), inputs)[0]

    def loss_and_grads(
        self,
        model: PyroFunction,
        guide: PyroFunction,
        *inputs: Tensor,
        beta: float | None = None,
        on_result: OnResult = lambda result: None,
    ) -> Tensor:
        """Return the loss after adding its gradients to the parameters; see `PerDatumELBO.loss_and_grads`."""
        result = self.backward(model, guide, *inputs, beta=beta)
        on_result(result)
        return result.loss

    def loss(self, model: PyroFunction, guide: PyroFunction, *inputs: Tensor, beta: float | None = None) -> float:
        """Return the loss as a number (called by `SVI.evaluate_loss`)."""
        return self.evaluate(model, guide, *inputs, beta=beta).loss.item()

    def _get_trace(self, *arguments: Any) -> Any:  # required by Pyro's base class
        return self.elbo._get_trace(*arguments)

    def _beta(self, beta: float | None) -> float:
        return float(getattr(self.elbo, "beta", 1.0)) if beta is None else beta

    def _find(self, call: Call, inputs: Sequence[Tensor]) -> RecordedStep | None:
        """Return the recording of such a step, recorded now if there is none; None if the step must be run eagerly."""
        refuse_handlers(call.kind)
        try:
            shapes = tuple((x.shape, x.dtype, x.device, x.stride(), x.requires_grad) for x in inputs)
        except AttributeError:
            raise InputError("a compiled ELBO passes only tensors to model and guide: bind other arguments") from None
        recorded = None if self._checked is None else self._checked.get((call, shapes))
        if recorded is not None:
            return recorded
        update = call.update
        if update is not None and not update.supports(update.optimizer):
            return None
        if call.kind != "loss" and any(x.requires_grad for x in inputs):
            raise InputError("a compiled ELBO gives gradients to parameters only, and an input requires one")
        key = (call.kind, shapes, torch_settings())
        recorded = next((one for one in reversed(self._recorded) if one.matches(key, call, self.elbo)), None)
        if recorded is None:
            with state_unchanged([*inputs, *(update.parameters if update is not None else [])], call.kind):
                recorded = self._record(key, call, inputs)
            if recorded is None:
                return None
            self.num_recordings += 1
            # A recording with an earlier state of this optimiser is never used again, and would keep that state alive.
            kept = [one for one in self._recorded if one.call.update is not update or one.has_state_of(update)]
            self._recorded = [*kept[1 - _MAX_RECORDINGS :], recorded]
        if self._checked is not None:
            self._checked[call, shapes] = recorded
        return recorded

    def _record(self, key: tuple[object, ...], call: Call, inputs: Sequence[Tensor]) -> RecordedStep | None:
        """Run the step once, to find the parameters that it creates and the modules that run, and record it."""
        trial = self._run_once(call, inputs)
        if trial is None:
            return None
        modules, dtype = trial
        snapshot, update = Snapshot([*call.functions, self.elbo, *modules]), call.update
        if update is not None:
            update.prepare()
        written = update.written() if update is not None else []
        steps: list[Step] = []

        def function(*tensors: Tensor) -> list[Tensor]:
            results, step = run_step(self.elbo, call, *tensors)
            steps.append(step)
            return results

        device = inputs[0].device if inputs else None
        beta = torch.tensor(1.0, dtype=dtype if dtype.is_floating_point else None, device=device)
        # Compiling takes seconds, and saves milliseconds at each step, which a rare step does not repay.
        is_rare = call.kind == "loss" or self.batch_size not in (None, *map(len, inputs[:1]))
        engine = "graph" if is_rare else self.engine
        with buffers_unchanged(modules), unchanged(written), empty_transform_caches():
            # Views, since one tensor given twice would be recorded as one input.
            replay = record(function, [beta, *(x.view_as(x) for x in inputs)], engine, self.precision)
        if not snapshot.is_current():
            raise InputError(_CHANGES_ITSELF)
        (step,) = steps
        if update is not None and not step.has_parameters_of(update):
            raise RuntimeError(OTHER_PARAMETERS)
        counts = update.counts(step.trained) if update is not None else []
        return RecordedStep(key, call, self.elbo, snapshot, modules, beta, replay, step, written, counts)

    def _run_once(self, call: Call, inputs: Sequence[Tensor]) -> tuple[list[nn.Module], torch.dtype] | None:
        """Return the modules that run and the dtype of x; None if this run created parameters or changed a module."""
        snapshot, store = Snapshot([*call.functions, self.elbo]), pyro.get_param_store()
        if snapshot.has_lazy_parameters:
            return None
        known, is_pyros = store.get_state(), not hasattr(self.elbo, "loss_and_terms")
        # TraceEnum_ELBO raises unless its loss has a gradient.
        with running_modules() as modules, empty_transform_caches(), torch.set_grad_enabled(is_pyros):
            x = inputs if call.prepare is None else (call.prepare(*inputs),)
            self.elbo.differentiable_loss(call.model, call.guide, *x)
        torch.clear_autocast_cache()  # torch 2.6 would give the recording these weights, which have no gradient
        is_changed, this, before = not snapshot.is_current(), (call.kind, call.functions), self._changed
        self._changed = [one for one in before if not is_same(one, this)] + [this] * is_changed
        owned = [tensor for module in modules for tensor in module.parameters()]
        ids = {id(tensor) for tensor in (*known["params"].values(), *owned)}
        if not is_changed and all(id(tensor) in ids for tensor in store._params.values()):
            return modules, x[0].dtype if x else torch.get_default_dtype()
        snapshot.undo()  # so that the eager step creates the same, from the same draws
        store.clear()
        store.set_state(known)
        if is_changed and any(is_same(one, this) for one in before):  # once is allowed: some guides create themselves
            raise InputError(_CHANGES_ITSELF)
        return None
