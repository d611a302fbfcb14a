"""Pyro's SVI, many steps in one call: each is a function of tensors, which may be recorded once and then replayed."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.infer import SVI
from torch import Tensor, nn

from pvae.compile.adam import AdamUpdate
from pvae.compile.graph import Function, check_engine, record
from pvae.compile.inductor import MayCompile
from pvae.core.batch import LossAndTerms, Terms
from pvae.core.errors import GradientError, InputError, NotFiniteError, listed
from pvae.core.random_state import restore_rng_state, rng_state
from pvae.core.tracing import Check, deferred
from pvae.elbos.base import PerDatumELBO, PyroFunction

__all__ = ["CompiledSVI", "Done"]

_MAX_RECORDINGS = 32  # one for each batch shape and mode of the modules

Batch = tuple[Tensor, ...]


class Done(NamedTuple):
    """Steps that were taken, and why the next one was refused.

    Args:
        losses: of each step, float64 (n,), on the CPU.
        terms: of each datum of the batches, in their order.
        error: of the step after them; None if there was none, or if it was taken too. Parameters, buffers, the
            optimiser's state and the random state are as before that step.
        seconds: that it took.
    """

    losses: Tensor
    terms: Terms
    error: Exception | None = None
    seconds: float = 0.0


class Step:
    """A step on batches of one layout, as a function of tensors, and what it found when its Python ran.

    Args:
        svi: takes the step.
        engine: "none", "graph" or "inductor".
        layout: shape, strides, dtype and device of each tensor of the batch.

    Attributes:
        checks: of the batch.
        params: the parameters, by their names in Pyro's store.
        trained: the parameters that get a gradient, in the order of the gradients.
        modes: the modules that ran, each with its mode: True in training.
        buffers: of these modules, those that the step changes.
    """

    def __init__(self, svi: CompiledSVI, engine: str, layout: tuple[object, ...]) -> None:
        self.svi, self.engine, self.layout = svi, engine, layout
        self.checks: list[Check] = []
        self.params: dict[str, Tensor] = {}
        self.trained: list[Tensor] = []
        self.modes: list[tuple[nn.Module, bool]] = []
        self.buffers: list[Tensor] = []
        self._state: list[Tensor] = []
        self._function: Function = self.gradients if svi.update.reduce else self._whole

    def __call__(self, row: Tensor, batch: Batch) -> Sequence[Tensor]:
        """Take the step, unless it or a step before it is bad.

        Args:
            row: of `AdamUpdate.rows`.
            batch: what the SVI takes.

        Returns:
            Loss, distortion, rate, `AdamUpdate.is_bad` after the step; whether each check holds, and at last whether
            the loss is finite, (F + 1,); and whether each gradient is finite, (G,).
        """
        with contextlib.nullcontext() if self.engine == "none" else torch.no_grad():
            results = self._function(row, *batch)
        return results if self.svi.update.reduce is None else self._updated(row, *results)

    def record(self, row: Tensor, batch: Batch, may_compile: MayCompile) -> None:
        """Record the step; nothing but Pyro's store changes."""
        devices = [row.device] if row.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices), self.svi.update.held():
            self._function = record(self._function, [row, *batch], self.engine, may_compile)
        self._state = [self.svi.update.state_of(one)["exp_avg"] for one in self.trained]

    def matches(self, engine: str, layout: tuple[object, ...]) -> bool:
        """Whether this is such a step, of the parameters and the state that there are now, in the same modes."""
        if self.engine != engine or self.layout != layout:
            return False
        stored, state_of = dict(pyro.get_param_store().named_parameters()), self.svi.update.state_of
        return (
            all(stored.get(name) is one for name, one in self.params.items())
            and all(state_of(one)["exp_avg"] is mean for one, mean in zip(self.trained, self._state))
            and all(module.training is mode for module, mode in self.modes)
        )

    def error(self, loss: Tensor, flags: Tensor, are_finite: Tensor) -> Exception | None:
        """Return the error of a step with these results, or None if it is good."""
        *holds, is_loss_finite = flags.tolist()
        for check, flag in zip(self.checks, holds):
            if not flag:
                return check.error()
        if not is_loss_finite:
            return NotFiniteError(f"the loss is {loss.item()}")
        names = [self.svi.update.name_of(one) for one, is_finite in zip(self.trained, are_finite) if not is_finite]
        if names:
            return GradientError(f"the gradient of {listed(names)} is NaN or infinite")
        return None

    def _whole(self, row: Tensor, *batch: Tensor) -> list[Tensor]:
        return self._updated(row, *self.gradients(row, *batch))

    def gradients(self, row: Tensor, *batch: Tensor) -> list[Tensor]:
        """Return loss, distortion, rate, flags, the gradients, and the new values of buffers; it changes nothing."""
        svi, parameters = self.svi, self.svi.update.parameters
        with _buffers_kept() as ran:
            with deferred() as self.checks, poutine.trace(param_only=True) as capture:
                given = batch if svi.prepare is None else svi.prepare(*batch)
                loss, terms = svi.elbo.loss_and_terms(svi.model, svi.guide, *given, beta=row[1])
            sites: list[Any] = [site for site in capture.trace.nodes.values() if site["type"] == "param"]
            self.params = {site["name"]: site["value"].unconstrained() for site in sites}
            if {id(one) for one in self.params.values()} != {id(one) for one in parameters}:
                raise InputError(
                    "the parameters that the loss registers with Pyro are not those of the optimiser: create it over "
                    "all parameters of model and guide"
                )
            gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
            found = [(one, gradient) for one, gradient in zip(parameters, gradients) if gradient is not None]
            flags = [check.holds(check.x) for check in self.checks]
            self.trained = [one for one, _ in found]
            self.modes = [(module, module.training) for module, _ in ran]
            self.buffers = [buffer for _, buffers in ran for buffer, _ in _changed(buffers)]
            return [
                loss.detach(),
                *terms,
                torch.stack([*flags, loss.detach().abs() < math.inf]),
                *(_in_order(gradient, one) for one, gradient in found),
                *(buffer.clone() for buffer in self.buffers),
            ]

    def _updated(
        self, row: Tensor, loss: Tensor, distortion: Tensor, rate: Tensor, flags: Tensor, *rest: Tensor
    ) -> list[Tensor]:
        """Change parameters and buffers, unless the step is bad."""
        update, gradients = self.svi.update, list(rest[: len(self.trained)])
        everywhere = flags
        if update.reduce is not None:  # a step that is bad in one process is bad in all
            bad = (~flags).any().to(gradients[0].dtype)
            update.reduce([*gradients, bad])
            everywhere = (bad == 0).view(1)
        are_finite = update.apply(row, self.trained, gradients, everywhere, is_fused=self.engine != "inductor")
        for buffer, new in zip(self.buffers, rest[len(gradients) :]):
            buffer.copy_(torch.where(update.is_bad > 0, buffer, new))
        return [loss, distortion, rate, update.is_bad.clone(), flags, are_finite]


class CompiledSVI(SVI):
    """SVI that takes many steps in one call, and returns losses and terms.

    While it takes steps, the host reads no tensor. What a step tells becomes tensors: if a check of its data fails, or
    its loss or a gradient is not finite, then this step and those after it change nothing; the host finds out at the
    end.

    With the engine "graph" or "inductor", the operators of a step are recorded once, from the preparation of the batch
    to the update, and then replayed. A replay draws the same numbers from torch's generator as the model would, so the
    same seed gives the same training, to rounding. Of several processes, gradients are recorded, and the update is not.

    A step is recorded anew for a batch of another shape or dtype, in another mode of a module (train or eval), and for
    other parameters in Pyro's store. Everything else that model and guide depend on (attributes, hooks, options of the
    ELBO, global variables, Pyro handlers around the step, Adam's betas and epsilon) must not change, as with
    `torch.compile`: a replay would not see it. Evaluations are not recorded.

    Args:
        model: a Pyro function.
        guide: its guide.
        update: holds Adam over all their parameters.
        elbo: one of `pvae.build_elbo`.
        engine: "graph" or "inductor", see `graph.record`; or "none": model and guide run at every step.
        batch_size: inductor compiles steps on batches of this size only; others, such as the short last batch of an
            epoch, are only recorded. By default all are compiled.
        prepare: converts what `step` is given (for example an index) to the tensors that model and guide take, on the
            same device; it is recorded too. `evaluate_loss` takes these tensors themselves.

    Attributes:
        num_recordings: how often it has recorded.

    Raises:
        InputError: there is no such engine.
    """

    def __init__(
        self,
        model: PyroFunction,
        guide: PyroFunction,
        update: AdamUpdate,
        elbo: PerDatumELBO,
        engine: str = "graph",
        batch_size: int | None = None,
        prepare: Callable[[Tensor], Iterable[Tensor]] | None = None,
    ) -> None:
        super().__init__(model, guide, update, elbo)  # type: ignore[no-untyped-call]
        if engine != "none":
            check_engine(engine)
        self.update, self.elbo, self.engine = update, elbo, engine
        self.batch_size, self.prepare = batch_size, prepare
        self.num_recordings = 0
        self._recorded: list[Step] = []

    def step(self, *batch: Tensor, beta: float | None = None) -> LossAndTerms:
        """Step the parameters by one batch, with the optimiser's learning rate.

        Args:
            batch: what `prepare` takes, or what model and guide take.
            beta: weight of the rate in the loss; the ELBO's own if left out.

        Raises:
            RecordingError: (an InputError) as for `run`.
            InputError: the batch is outside the domain; or as for `run`.
            NotFiniteError: the loss or a gradient is not finite.
        """
        losses, terms, error, _ = self.run([batch], [(self.update.lr, self.elbo.beta if beta is None else beta)])
        if error is not None:
            raise error
        return LossAndTerms(losses[0], terms)

    def run(self, batches: Sequence[Batch], values: Sequence[tuple[float, float]]) -> Done:
        """Take steps, until all are taken or one is refused.

        Args:
            batches: of each step what `prepare` takes, or what model and guide take.
            values: learning rate and weight of the rate of each step.

        Raises:
            RecordingError: (an InputError) a step cannot be recorded, since its Python code reads the values of
                tensors, or cannot be compiled.
            InputError: the parameters that model and guide register with Pyro are not the optimiser's.
        """
        rows = self.update.rows(values)
        steps = self._steps(self.engine, batches, rows[0])
        started = rng_state(rows.device)
        self.update.is_bad.zero_()
        with pyro.validation_enabled(False):  # which reads tensors
            log = [step(row, batch) for step, row, batch in zip(steps, rows.unbind(), batches)]
        losses, distortions, rates, are_bad, flags, are_finite = zip(*log)
        looked_at = torch.stack([torch.stack(losses).double(), torch.stack(are_bad).double()]).cpu()
        good, error = int((looked_at[1] == 0).sum()), None
        if good < len(log):
            restore_rng_state(started, rows.device)
            with self.update.held(), pyro.validation_enabled(False):
                for step, row, batch in zip(steps[:good], rows, batches):
                    step(row, batch)  # draws its random numbers once more, and changes nothing
                before = rng_state(rows.device)
                step = Step(self, "none", ())
                step(rows[good], batches[good])  # its checks know the values of this batch
            restore_rng_state(before, rows.device)
            error = step.error(losses[good], flags[good], are_finite[good]) or NotFiniteError(
                "the loss of another process is not finite, or its data are outside the domain"
            )
        num_data = sum(len(one) for one in distortions[:good])
        terms = Terms(torch.cat(distortions)[:num_data], torch.cat(rates)[:num_data])
        return Done(looked_at[0, :good], terms, error)

    def use_inductor(self, batch: Batch, may_compile: MayCompile) -> None:
        """Compile steps on such batches from now on.

        Args:
            batch: of `step`.
            may_compile: as for `graph.record`.

        Raises:
            RecordingError: (an InputError) the step cannot be compiled, or may not.
            RuntimeError: compiling took more memory than there is.
                After either error steps are only recorded, as before.
        """
        self._steps("inductor", [batch], self.update.rows([(0.0, 1.0)])[0], may_compile)
        self.engine = "inductor"

    def _steps(
        self, engine: str, batches: Sequence[Batch], row: Tensor, may_compile: MayCompile = lambda num_operators: True
    ) -> list[Step]:
        """Return the step of each batch, recorded now where there is no recording."""
        found: dict[tuple[object, ...], Step] = {}
        layouts = [tuple((one.shape, one.stride(), one.dtype, one.device) for one in batch) for batch in batches]
        for layout, batch in zip(layouts, batches):
            if layout in found:
                continue
            is_short = engine == "inductor" and self.batch_size not in (None, len(batch[0]))
            own = "graph" if is_short else engine
            step = next((one for one in self._recorded if one.matches(own, layout)), None)
            if step is None:
                step = Step(self, own, layout)
                if own != "none":
                    step.record(row, batch, may_compile)
                    self.num_recordings += 1
                    self._recorded = [*self._recorded[1 - _MAX_RECORDINGS :], step]
            found[layout] = step
        return [found[layout] for layout in layouts]


def _in_order(gradient: Tensor, parameter: Tensor) -> Tensor:
    """Return a gradient with the strides of its parameter, since a fused optimiser reads memory in order."""
    return gradient if gradient.stride() == parameter.stride() else torch.empty_like(parameter).copy_(gradient)


_Kept = list[tuple[Tensor, Tensor, int]]  # buffers with a copy, and the version of the buffer before


def _changed(buffers: _Kept) -> list[tuple[Tensor, Tensor]]:
    """Return the buffers of a module, each with its copy, if the module has changed one of them.

    Not all writes raise the version: of BatchNorm's buffers only the number of batches tells.
    """
    is_changed = any(buffer._version != version for buffer, _, version in buffers)
    return [(buffer, copy) for buffer, copy, _ in buffers] if is_changed else []


@contextlib.contextmanager
def _buffers_kept() -> Iterator[list[tuple[nn.Module, _Kept]]]:
    """Restore the buffers of the modules that run in the block at its end.

    Yields:
        A list, to which each module that runs is added.
    """
    ran: list[tuple[nn.Module, _Kept]] = []

    def collect(module: nn.Module, _: Any) -> None:
        if not any(module is known for known, _ in ran):
            buffers = module.buffers(recurse=False)
            ran.append((module, [(buffer, buffer.clone(), buffer._version) for buffer in buffers]))

    hook = nn.modules.module.register_module_forward_pre_hook(collect)
    try:
        yield ran
    finally:
        hook.remove()
        with torch.no_grad():
            for _, buffers in ran:
                for buffer, copy in _changed(buffers):
                    buffer.copy_(copy)
