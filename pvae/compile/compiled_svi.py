"""Pyro's SVI, many steps in one call: each is a function of tensors, which may be recorded once and then replayed.

Who calls whom, from a training to Pyro's loss:

    Trainer.train_epoch -> Engine.run -> CompiledSVI.run -> CompiledSVI.gradients -> PerDatumELBO.loss_and_terms

`run` takes the steps of a call, and reads at its end what they tell. A step has two halves: `CompiledSVI.gradients`
computes everything and changes nothing, and `AdamUpdate.apply` changes parameters and buffers, unless the step is bad.
With the engine "none" both run at every step. Otherwise `graph.record` runs them once, and `run` calls the recording.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.infer import SVI
from pyro.optim import PyroOptim
from torch import Tensor, nn

from pvae.compile.graph import Function, check_engine, record
from pvae.core.batch import LossAndTerms, Terms
from pvae.core.errors import GradientError, InputError, NotFiniteError, listed
from pvae.core.optimizers import Adam
from pvae.core.random_state import restore_rng_state, rng_state
from pvae.core.tracing import Check, deferred
from pvae.elbos.base import PerDatumELBO, PyroFunction

__all__ = ["AdamUpdate", "CompiledSVI", "Done", "Gradients", "StepState"]

_MAX_RECORDINGS = 32  # one for each batch shape and mode of the modules
_OPTIONS = ("amsgrad", "maximize", "weight_decay", "decoupled_weight_decay")  # of Adam


class StepState(NamedTuple):
    """What a step reads and changes, and what it checks.

    Args:
        parameters: by their names in Pyro's store.
        trained: the parameters that get a gradient.
        buffers: of the modules that ran, those that the step changes.
        modes: the modules that ran, each with its mode: True in training.
        checks: of the batch.
    """

    parameters: dict[str, Tensor]
    trained: list[Tensor]
    buffers: list[Tensor]
    modes: list[tuple[nn.Module, bool]]
    checks: list[Check]


class Gradients(NamedTuple):
    """What a step computes before it changes anything.

    Args:
        loss: a scalar, without a gradient.
        terms: of each datum.
        flags: whether each check holds, and at last whether the loss is finite, (F + 1,).
        gradients: of the parameters that get one.
        buffers: the new values of the buffers that the step changes.
        state: these parameters and buffers.
    """

    loss: Tensor
    terms: Terms
    flags: Tensor
    gradients: list[Tensor]
    buffers: list[Tensor]
    state: StepState

    def tensors(self) -> list[Tensor]:
        """Return the tensors that a step computes."""
        return [self.loss, *self.terms, self.flags, *self.gradients, *self.buffers]

    @classmethod
    def of(cls, tensors: Sequence[Tensor], state: StepState) -> Gradients:
        """Return these tensors as the results of a step."""
        loss, distortion, rate, flags, *rest = tensors
        number = len(state.trained)
        return cls(loss, Terms(distortion, rate), flags, rest[:number], rest[number:], state)


class AdamUpdate(PyroOptim):
    """Adam's step on the state of a `torch.optim.Adam`, for `CompiledSVI`; it equals torch's fused step to the bit.

        m <- m + (1 - beta_1) (g - m)        v <- beta_2 v + (1 - beta_2) g^2
        p <- p - lr / (1 - beta_1^t)  m / (sqrt(v) / sqrt(1 - beta_2^t) + epsilon)

    The host learns nothing of a step, and a step that is bad changes nothing.

    Args:
        optimizer: plain Adam over the parameters that the loss will register with Pyro.
        clip_norm: scale the gradients down to this total norm if it is larger; 0 for no limit.
        reduce: called with the gradients, and a tensor that says whether the step is bad, before the update; may change
            them in place, to sum over processes.

    Attributes:
        is_bad: 1 from the first bad step on, which was refused since a check failed, or loss or gradients were not
            finite; then no parameter changes until it is 0 again.

    Raises:
        InputError: it is another optimiser, or Adam with options.

    Reference:
        Kingma and Ba, arXiv:1412.6980, algorithm 1.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        clip_norm: float = 0.0,
        reduce: Callable[[Sequence[Tensor]], None] | None = None,
    ) -> None:
        super().__init__(type(optimizer), {})  # which SVI asks for
        group, *others = optimizer.param_groups
        if type(optimizer) not in (Adam, torch.optim.Adam) or others or any(group.get(name) for name in _OPTIONS):
            raise InputError(
                "only torch.optim.Adam without amsgrad, maximize and weight_decay, over one group of parameters, can "
                "be recorded: give SVI another optimiser and the ELBO itself"
            )
        self.optimizer = optimizer
        self.parameters: list[Tensor] = group["params"]
        self.clip_norm = clip_norm
        self.reduce = reduce
        self.is_bad = torch.zeros((), dtype=torch.float32, device=self.parameters[0].device)

    def state_of(self, parameter: Tensor) -> dict[str, Tensor]:
        """Return the state of a parameter, which is that of torch's fused Adam."""
        state: dict[str, Tensor] = self.optimizer.state[parameter]
        if not state:
            state["step"] = torch.zeros_like(self.is_bad)
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        return state

    def rows(self, values: Sequence[tuple[float, float]]) -> Tensor:
        """Return what changes with each of the next steps, float64 (n, 4).

            lr    beta    lr / (1 - beta_1^t)    1 / sqrt(1 - beta_2^t)

        Args:
            values: learning rate and weight of the rate of each step.
        """
        device = self.is_bad.device
        beta_1, beta_2 = self.optimizer.param_groups[0]["betas"]
        given = torch.tensor(values, dtype=torch.float64, device=device)
        taken = torch.stack([self.state_of(parameter)["step"] for parameter in self.parameters]).max().double()
        t = taken + torch.arange(1, len(given) + 1, device=device)
        return torch.column_stack([given, given[:, 0] / (1 - beta_1**t), (1 - beta_2**t).rsqrt()])

    @torch.no_grad()
    def apply(self, row: Tensor, step: Gradients, is_fused: bool = True) -> list[Tensor]:
        """Change parameters and buffers, unless this step is bad, or one before it was.

        Args:
            row: of `rows`.
            step: the step.
            is_fused: by torch's fused operator, or by elementwise ones, for inductor; they differ by rounding.

        Returns:
            Loss, distortion and rate; `is_bad` after the step; the flags; and whether each gradient is finite, (G,).
        """
        gradients = step.gradients
        flags = step.flags
        if self.reduce is not None:  # a step that is bad in one process is bad in all
            is_bad = (~flags).any().to(gradients[0].dtype)
            self.reduce([*gradients, is_bad])
            flags = (is_bad == 0).view(1)
        norms = torch.stack(torch._foreach_norm(gradients))
        are_finite = norms < math.inf  # false of NaN, too
        self.is_bad.logical_or_(~torch.cat([flags, are_finite]).all())
        if self.clip_norm:
            scale = (self.clip_norm / (torch.linalg.vector_norm(norms) + 1e-6)).clamp(max=1.0)
            gradients = list(torch._foreach_mul(gradients, scale))
        if is_fused:
            self._step_fused(row, step.state.trained, gradients)
        else:
            self._step_elementwise(row, step.state.trained, gradients)
        for buffer, new in zip(step.state.buffers, step.buffers):
            buffer.copy_(torch.where(self.is_bad > 0, buffer, new))
        return [step.loss, *step.terms, self.is_bad.clone(), step.flags, are_finite]

    def _step_fused(self, row: Tensor, trained: list[Tensor], gradients: list[Tensor]) -> None:
        states = [self.state_of(parameter) for parameter in trained]
        steps = [state["step"] for state in states]
        torch._foreach_add_(steps, [1 - self.is_bad] * len(steps))
        group = self.optimizer.param_groups[0]
        lr = row[0]
        if row.device.type != "cpu":
            lr = lr.float()
        torch._fused_adam_(
            trained,
            gradients,
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            steps,
            lr=lr,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            eps=group["eps"],
            weight_decay=0.0,
            amsgrad=False,
            maximize=False,
            found_inf=self.is_bad,
        )

    def _step_elementwise(self, row: Tensor, trained: list[Tensor], gradients: list[Tensor]) -> None:
        group = self.optimizer.param_groups[0]
        beta_1, beta_2 = group["betas"]
        for value, gradient in zip(trained, gradients):
            state = self.state_of(value)
            state["step"].add_(1 - self.is_bad)
            step_size, root = row[2:].to(value.dtype).unbind()
            mean = state["exp_avg"] + (1 - beta_1) * (gradient - state["exp_avg"])
            square = beta_2 * state["exp_avg_sq"] + (1 - beta_2) * (gradient * gradient)
            new = value - step_size * mean / (root * square.sqrt() + group["eps"])
            for tensor, stepped in ((value, new), (state["exp_avg"], mean), (state["exp_avg_sq"], square)):
                tensor.copy_(torch.where(self.is_bad > 0, tensor, stepped))


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


Batch = tuple[Tensor, ...]
_Layout = tuple[object, ...]  # shape, strides, dtype and device of each tensor of a batch


class _Recording(NamedTuple):
    """A recorded step, and the one list of what it depends on; all else that model and guide read must not change."""

    engine: str
    layout: _Layout
    state: StepState
    means: list[Tensor]  # of Adam, which tell whether its state was replaced
    replay: Function  # of a row and a batch; it returns what `AdamUpdate.apply` does

    def fits(self, engine: str, layout: _Layout, update: AdamUpdate) -> bool:
        """Whether it is such a step, of the parameters and the state that there are now, in the same modes."""
        stored = dict(pyro.get_param_store().named_parameters())
        means = [update.state_of(parameter)["exp_avg"] for parameter in self.state.trained]
        return (
            (self.engine, self.layout) == (engine, layout)
            and all(stored.get(name) is parameter for name, parameter in self.state.parameters.items())
            and all(now is mean for now, mean in zip(means, self.means))
            and all(module.training is mode for module, mode in self.state.modes)
        )


class CompiledSVI(SVI):
    """SVI that takes many steps in one call, and returns losses and terms.

    While it takes steps, the host reads no tensor. What a step tells becomes tensors: if a check of its data fails, or
    its loss or a gradient is not finite, then this step and those after it change nothing; the host finds out at the
    end.

    With the engine "graph" or "inductor", the operators of a step are recorded once, from the preparation of the batch
    to the update, and then replayed. A replay draws the same numbers from torch's generator as the model would, so the
    same seed gives the same training: with "graph" to the bit, with "inductor" to rounding. Of several processes,
    gradients are recorded, and the update is not.

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
        self.update = update
        self.elbo = elbo
        self.engine = engine
        self.batch_size = batch_size
        self.prepare = prepare
        self.num_recordings = 0
        self._recordings: list[_Recording] = []

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
        if beta is None:
            beta = self.elbo.beta
        done = self.run([batch], [(self.update.optimizer.param_groups[0]["lr"], beta)])
        if done.error is not None:
            raise done.error
        return LossAndTerms(done.losses[0], done.terms)

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
        replays = self._replays(batches, rows[0])
        random = []
        log: list[Sequence[Tensor]] = []
        self.update.is_bad.zero_()
        with torch.no_grad(), pyro.validation_enabled(False):  # which reads tensors
            for replay, row, batch in zip(replays, rows.unbind(), batches):
                random.append(rng_state(row.device))
                if replay is None:
                    log.append(self.update.apply(row, self.gradients(row, *batch)))
                else:
                    log.append(replay(row, *batch))
        losses, distortions, rates, are_bad, flags, are_finite = zip(*log)
        looked_at = torch.stack([torch.stack(losses).double(), torch.stack(are_bad).double()]).cpu()
        good = int((looked_at[1] == 0).sum())
        error = None
        if good < len(log):
            restore_rng_state(random[good], rows.device)
            with pyro.validation_enabled(False):
                state = self.gradients(rows[good], *batches[good]).state  # its checks know the values of this batch
            restore_rng_state(random[good], rows.device)
            error = self._error(state, losses[good], flags[good], are_finite[good])
        num_data = sum(len(values) for values in distortions[:good])
        terms = Terms(torch.cat(distortions)[:num_data], torch.cat(rates)[:num_data])
        return Done(looked_at[0, :good], terms, error)

    @torch.enable_grad()
    def gradients(self, row: Tensor, *batch: Tensor) -> Gradients:
        """Return what a step computes; only the random state changes.

        Args:
            row: of `AdamUpdate.rows`.
            batch: what `prepare` takes, or what model and guide take.
        """
        parameters = self.update.parameters
        with _buffers_kept() as ran:
            with deferred() as checks, poutine.trace(param_only=True) as capture:
                given: Iterable[Tensor] = batch
                if self.prepare is not None:
                    given = self.prepare(*batch)
                loss, terms = self.elbo.loss_and_terms(self.model, self.guide, *given, beta=row[1])
            sites: list[Any] = [site for site in capture.trace.nodes.values() if site["type"] == "param"]
            registered = {site["name"]: site["value"].unconstrained() for site in sites}
            if {id(parameter) for parameter in registered.values()} != {id(parameter) for parameter in parameters}:
                raise InputError(
                    "the parameters that the loss registers with Pyro are not those of the optimiser: create it over "
                    "all parameters of model and guide"
                )
            pairs = list(zip(parameters, torch.autograd.grad(loss, parameters, allow_unused=True)))
            buffers = [buffer for _, kept in ran for buffer, _ in _changed(kept)]
            loss = loss.detach()
            return Gradients(
                loss,
                terms,
                torch.stack([*(check.holds(check.x) for check in checks), loss.abs() < math.inf]),
                [_in_order(gradient, parameter) for parameter, gradient in pairs if gradient is not None],
                [buffer.clone() for buffer in buffers],
                StepState(
                    registered,
                    [parameter for parameter, gradient in pairs if gradient is not None],
                    buffers,
                    [(module, module.training) for module, _ in ran],
                    checks,
                ),
            )

    def _replays(self, batches: Sequence[Batch], row: Tensor) -> list[Function | None]:
        """Return the recording of the step on each batch, made now where there is none; None where steps are eager."""
        functions: dict[_Layout, Function | None] = {}
        layouts = [
            tuple((tensor.shape, tensor.stride(), tensor.dtype, tensor.device) for tensor in batch) for batch in batches
        ]
        for layout, batch in zip(layouts, batches):
            if layout in functions:
                continue
            engine = self.engine
            if engine == "inductor" and self.batch_size not in (None, len(batch[0])):
                engine = "graph"
            functions[layout] = None
            if engine != "none":
                fitting = (recording for recording in self._recordings if recording.fits(engine, layout, self.update))
                recording = next(fitting, None) or self._record(engine, layout, row, batch)
                functions[layout] = recording.replay
        return [functions[layout] for layout in layouts]

    def _record(self, engine: str, layout: _Layout, row: Tensor, batch: Batch) -> _Recording:
        """Record a step, and keep it; otherwise nothing but Pyro's store changes."""
        update = self.update
        is_fused = engine != "inductor"
        states = []

        def step(row: Tensor, *batch: Tensor) -> list[Tensor]:
            gradients = self.gradients(row, *batch)
            states.append(gradients.state)
            if update.reduce is not None:
                return gradients.tensors()
            return update.apply(row, gradients, is_fused)

        random = rng_state(row.device)
        update.is_bad.fill_(1.0)
        try:
            recorded = record(step, [row, *batch], engine)
        finally:
            update.is_bad.zero_()
            restore_rng_state(random, row.device)
        state = states[-1]

        def replay_of_several(row: Tensor, *batch: Tensor) -> list[Tensor]:
            return update.apply(row, Gradients.of(recorded(row, *batch), state), is_fused)

        replay = recorded
        if update.reduce is not None:
            replay = replay_of_several
        means = [update.state_of(parameter)["exp_avg"] for parameter in state.trained]
        self.num_recordings += 1
        self._recordings = [
            *self._recordings[1 - _MAX_RECORDINGS :],
            _Recording(engine, layout, state, means, replay),
        ]
        return self._recordings[-1]

    def _error(self, state: StepState, loss: Tensor, flags: Tensor, are_finite: Tensor) -> Exception:
        """Return the error of a bad step, of which `run` has logged these results."""
        *holds, is_loss_finite = flags.tolist()
        for check, is_held in zip(state.checks, holds):
            if not is_held:
                return check.error()
        if not is_loss_finite:
            return NotFiniteError(f"the loss is {loss.item()}")
        bad = {id(parameter) for parameter, is_finite in zip(state.trained, are_finite) if not is_finite}
        if bad:
            names = [name.replace("$$$", ".") for name, parameter in state.parameters.items() if id(parameter) in bad]
            return GradientError(f"the gradient of {listed(names)} is NaN or infinite")
        return NotFiniteError("the loss of another process is not finite, or its data are outside the domain")


def _in_order(gradient: Tensor, parameter: Tensor) -> Tensor:
    """Return a gradient with the strides of its parameter, since a fused optimiser reads memory in order."""
    if gradient.stride() == parameter.stride():
        return gradient
    return torch.empty_like(parameter).copy_(gradient)


_Kept = list[tuple[Tensor, Tensor, int]]  # buffers with a copy, and the version of the buffer before


def _changed(buffers: _Kept) -> list[tuple[Tensor, Tensor]]:
    """Return the buffers of a module, each with its copy, if the module has changed one of them.

    Not all writes raise the version: of BatchNorm's buffers only the number of batches tells.
    """
    if all(buffer._version == version for buffer, _, version in buffers):
        return []
    return [(buffer, copy) for buffer, copy, _ in buffers]


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
