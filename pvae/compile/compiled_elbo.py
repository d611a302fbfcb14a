"""Any ELBO, recorded once and replayed at each step: the same loss and gradients without the Python that forms them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple, NoReturn

import pyro
import torch
from pyro.infer import ELBO
from pyro.poutine.runtime import apply_stack
from torch import Tensor, nn

from pvae.compile.adam import AdamUpdate
from pvae.compile.fingerprint import Fingerprint, buffers_unchanged, running_modules, surroundings, unchanged
from pvae.compile.graph import check_ways, record
from pvae.compile.guards import as_if_nothing, refuse_handlers, unmakes_parameters
from pvae.compile.optimizers import OTHER_PARAMETERS
from pvae.compile.recorded_step import Played, Tape
from pvae.compile.steps import Call, Prepare, Step
from pvae.core.errors import InputError
from pvae.core.terms import Terms
from pvae.elbos.base import PyroFunction

__all__ = ["Ahead", "CompiledELBO"]

_CHANGES_ITSELF = (
    "the step cannot be recorded, since a module, or what model or guide hold, changes itself in it: "
    "leave --compile out (in Python, give SVI the ELBO itself)"
)
_NUM_KEPT = 32  # recordings: each is of a batch shape, a mode or an edit of the model


class Ahead(NamedTuple):
    """A step that was computed, and perhaps refused: nobody has looked.

    Attributes:
        loss: of its batch.
        is_taken: one flag: the step was taken, as was each before it.
        refuse: raises what speaks against it, and lets the next step be taken.
    """

    loss: Tensor
    is_taken: Tensor
    refuse: Callable[[], NoReturn]


class CompiledELBO(ELBO):
    """An ELBO that `pyro.infer.SVI` takes as any other, and that runs model and guide only when it must.

    The first step runs them under Pyro's tracing and records the operators of loss and gradients; the steps after it
    replay these. A replay draws from torch's generator what the model would have drawn, so that the same seed gives the
    same training, to rounding. Recorded anew is a step with another batch shape or dtype, parameter store or autocast,
    and one before which a module was edited that runs in the model: a parameter, a mode, an attribute, a hook, a child.
    beta is an input. What is read from elsewhere (a global number, a generator of one's own) is fixed by the recording,
    and torch's validation looks at the first batch alone; the domain of the pixels is checked at every step.

    Args:
        elbo: one of pvae's, or any Pyro ELBO with a `differentiable_loss`.
        engine: "graph", "inductor" or "cuda-graph", of `graph.record`; inductor compiles what trains, and a loss
            alone is recorded.
        precision: "fp32", "bf16" or "tf32", of `graph.record`.
        batch_size: inductor compiles steps on batches of this many alone; what is seldom, such as the short last batch
            of an epoch, is recorded. Without it all are compiled.

    Attributes:
        terms: of the last batch, if the ELBO has them.
        num_recordings: how often it has recorded.

    Raises:
        TypeError: the ELBO has no `differentiable_loss`.
        InputError: there is no such engine or precision; or when used, if model or guide look at the values of tensors,
            if a module changes itself in each step, or if another Pyro handler than SVI's own is around.
    """

    terms: Terms

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
        self._tapes: list[Tape] = []
        self._known: dict[object, Tape] | None = None  # by what they give and take, where nobody edits

    @property
    def beta(self) -> float:
        """The weight of the rate in the loss, of the ELBO."""
        return float(getattr(self.elbo, "beta", 1.0))

    @beta.setter
    def beta(self, beta: float) -> None:
        """Weigh the rate with another number, from the next step on."""
        self.elbo.beta = beta

    @property
    def num_particles(self) -> int:
        """K, of the ELBO."""
        count: int = self.elbo.num_particles
        return count

    @num_particles.setter
    def num_particles(self, count: int) -> None:
        """Take another number of particles, from the next step on."""
        self.elbo.num_particles = count

    @contextlib.contextmanager
    def unedited(self) -> Iterator[None]:
        """Look for edits once, and not before each step: for a loop in which nobody makes any.

        To look costs as much as many operators. In this block it is done before the first step of each kind and batch
        shape. beta and Adam's lr, betas and epsilon may change all the same; model, guide, modules, their modes, the
        ELBO's other attributes, Pyro's parameter store, which optimiser it is, its state, and torch's settings may not.
        """
        before, self._known = self._known, {}
        try:
            yield
        finally:
            self._known = before

    def loss_and_grads(self, model: PyroFunction, guide: PyroFunction, *inputs: Tensor) -> Tensor:
        """Return the loss after adding its gradients to the parameters (`SVI.step` calls it)."""
        tape = self._tape_of(Call("gradients", model, guide), inputs)
        if tape is None:
            return torch.as_tensor(self._eagerly(self.elbo.loss_and_grads, model, guide, *inputs))
        played = self._replay(tape, inputs)
        tape.refuse(played.flags)
        tape.add_gradients(played.rest)
        store = pyro.get_param_store()
        for site in tape.sites:  # SVI steps what it sees pass by
            apply_stack({**site, "value": store[site["name"]]})  # type: ignore[typeddict-item]
        return played.loss

    def loss_and_update(
        self,
        model: PyroFunction,
        guide: PyroFunction,
        update: AdamUpdate,
        *inputs: Tensor,
        prepare: Prepare | None = None,
    ) -> Ahead | None:
        """Step the parameters, or return none if this step must be run (`CompiledSVI` calls it).

        Args:
            model: a Pyro function.
            guide: its guide.
            update: steps the parameters.
            inputs: of `prepare`, or of model and guide.
            prepare: makes of the inputs what model and guide take; recorded too.

        Returns:
            The step, which nobody has looked at: where it was refused, all is as it was.

        Raises:
            InputError: the step cannot be recorded, or an input is outside the domain.
            RuntimeError: the parameters that model and guide register with Pyro are not the optimiser's.
        """
        tape = self._tape_of(Call("update", model, guide, update, prepare), inputs)
        if tape is None or any(parameter.grad is not None for parameter in tape.trained):
            return None
        if not update.set_numbers(tape.counts):
            return None
        played = self._replay(tape, inputs)
        return Ahead(played.loss, played.rest[0], partial(_refuse, tape, update, played))

    def loss(self, model: PyroFunction, guide: PyroFunction, *inputs: Tensor) -> float:
        """Return the loss as a number (`SVI.evaluate_loss` calls it); Pyro's parameter store stays as it was."""
        with torch.no_grad():
            tape = self._tape_of(Call("loss", model, guide), inputs)
            if tape is None:
                return float(self._eagerly(self.elbo.loss, model, guide, *inputs))
            played = self._replay(tape, inputs)
            tape.refuse(played.flags)
            return played.loss.item()

    def _get_trace(self, *arguments: Any) -> Any:  # Pyro's base class wants one
        return self.elbo._get_trace(*arguments)

    def _eagerly(self, function: Callable[..., Any], *arguments: Any) -> Any:
        value = function(*arguments)
        if hasattr(self.elbo, "terms"):
            self.terms = self.elbo.terms
        return value

    def _replay(self, tape: Tape, inputs: Sequence[Tensor]) -> Played:
        played = tape.play(self.beta, inputs)
        if played.terms is not None:
            self.terms = played.terms
        return played

    def _tape_of(self, call: Call, inputs: Sequence[Tensor]) -> Tape | None:
        """Return the tape of such a step; none if it is one that must be run, since it makes parameters."""
        refuse_handlers(call.gives)
        shapes = tuple((x.shape, x.dtype, x.device, x.stride(), x.requires_grad) for x in inputs)
        tape = None if self._known is None else self._known.get((call, shapes))
        if tape is None:
            tape = self._looked_up(call, inputs, shapes)
            if tape is not None and self._known is not None:
                self._known[call, shapes] = tape
        return tape

    def _looked_up(self, call: Call, inputs: Sequence[Tensor], shapes: object) -> Tape | None:
        """Return the tape that was recorded of such a step, if nothing was edited since; else a new one, or none."""
        update = call.update
        if update is not None and not update.suits(update.optimizer):
            return None
        key = (call.gives, shapes, surroundings())
        if call.gives != "loss" and any(x.requires_grad for x in inputs):
            raise InputError("a compiled ELBO gives gradients to parameters only, and an input requires one")
        for tape in reversed(self._tapes):
            if tape.suits(key, call, self.elbo):
                return tape
        with as_if_nothing([*inputs, *(update.parameters if update is not None else [])], call.gives):
            fresh = self._tape(key, call, inputs)
        if fresh is not None:
            self.num_recordings += 1
            # One of another state of the same optimiser will not come again, and would keep that state alive.
            kept = [tape for tape in self._tapes if tape.update is not update or tape.is_of(update)]
            self._tapes = [*kept[1 - _NUM_KEPT :], fresh]
        return fresh

    def _tape(self, key: tuple[object, ...], call: Call, inputs: Sequence[Tensor]) -> Tape | None:
        """Run the step once as it is, to see what it makes and what runs in it, and once more to record it."""
        seen = self._run_once(call, inputs)
        if seen is None:
            return None
        modules, dtype = seen
        update, watched = call.update, [*call.functions, self.elbo, modules]
        fingerprint = Fingerprint(watched)
        if update is not None:
            update.prepare()
        step = Step(self.elbo, call)
        # Views: one tensor given twice would be taken for one input.
        beta = torch.tensor(self.beta, dtype=dtype if dtype.is_floating_point else None, device=inputs[0].device)
        written = update.held() if update is not None else []
        is_seldom = call.gives == "loss" or self.batch_size not in (None, len(inputs[0]))
        # It would be compiled for seconds to save milliseconds.
        engine = "graph" if is_seldom and self.engine == "inductor" else self.engine
        with buffers_unchanged(modules), unchanged(written):
            replay = record(step, [beta, *(x.view_as(x) for x in inputs)], engine, self.precision)
        if fingerprint != Fingerprint(watched):
            raise InputError(_CHANGES_ITSELF)
        if update is not None and not step.is_of_the_optimizer:
            raise RuntimeError(OTHER_PARAMETERS)
        return Tape(
            key=key,
            functions=call.functions,
            elbo=self.elbo,
            fingerprint=fingerprint,
            modules=modules,
            beta=beta,
            beta_now=self.beta,
            replay=replay,
            checks=step.checks,
            errors=step.errors,
            has_terms=step.has_terms,
            held=step.held,
            owned={id(tensor) for module in modules for tensor in module.parameters()},
            trained=step.trained,
            sites=step.sites,
            update=update,
            written=update.held() if update is not None else [],
            counts=update.counts(step.trained) if update is not None else [],
        )

    def _run_once(self, call: Call, inputs: Sequence[Tensor]) -> tuple[list[nn.Module], torch.dtype] | None:
        """Return the modules of the loss and the dtype of its batch; none if it made parameters or changed a module."""
        of = [*call.functions, self.elbo]
        before, known = Fingerprint(of), set(pyro.get_param_store()._params)
        with running_modules() as ran, torch.no_grad():
            taken = inputs if call.prepare is None else (call.prepare(*inputs),)
            self.elbo.differentiable_loss(call.model, call.guide, *taken)
        torch.clear_autocast_cache()  # torch 2.6 would give the recording these weights, which have no gradient
        modules = list(ran.values())
        is_changed = before != Fingerprint(of)
        if is_changed and self._is_changing:
            raise InputError(_CHANGES_ITSELF)
        self._is_changing = is_changed  # once it may: a guide that makes itself at its first step
        owned = {id(tensor) for module in modules for tensor in module.parameters()}
        return None if unmakes_parameters(known, owned) or is_changed else (modules, taken[0].dtype)


def _refuse(tape: Tape, update: AdamUpdate, played: Played) -> NoReturn:
    update.go_on()
    tape.refuse(played.flags)
    update.refuse(played.loss, tape.trained, played.rest[1])
