"""Pyro's SVI over steps whose operators are recorded once and then replayed, without the Python of model and guide."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer import SVI
from torch import Tensor, nn

from pvae.compile.adam import AdamUpdate
from pvae.compile.graph import Function, check_engine, record
from pvae.compile.inductor import MayCompile
from pvae.compile.optimizers import SingleOptimizer
from pvae.core.errors import NotFiniteError
from pvae.core.terms import LossAndTerms, Terms
from pvae.core.tracing import deferred
from pvae.elbos.base import PerDatumELBO, PyroFunction

__all__ = ["CompiledSVI"]

_MAX_RECORDINGS = 32  # one for each batch shape and mode of the modules


@dataclass(eq=False)
class Recording:
    """A recorded step, and everything that it depends on.

    Attributes:
        engine: "graph" or "inductor".
        update: steps the parameters; without one, the gradients are returned.
        layout: shape, strides, dtype and device of each tensor of the batch.
        params: the parameters, by their names in Pyro's store.
        modes: the modules that ran, each with its mode: True in training.
        replay: the recorded function of beta and the batch.
        beta: the input for beta.
        errors: for each flag that the function returns, what makes the error to raise where it is false.
        trained: the parameters that get a gradient, in the order of the gradients.
    """

    engine: str
    update: AdamUpdate | None
    layout: tuple[object, ...]
    params: dict[str, Tensor]
    modes: list[tuple[nn.Module, bool]]
    replay: Function
    beta: Tensor
    errors: list[Callable[[], Exception]]
    trained: list[Tensor]

    def matches(self, engine: str, layout: tuple[object, ...]) -> bool:
        """Whether this is a recording of such a step, with the parameters in Pyro's store and in the same modes."""
        if self.engine != engine or self.layout != layout:
            return False
        stored = dict(pyro.get_param_store().named_parameters())
        return all(stored.get(name) is one for name, one in self.params.items()) and all(
            module.training is mode for module, mode in self.modes
        )

    def play(self, beta: float, batch: tuple[Tensor, ...]) -> tuple[LossAndTerms, Sequence[Tensor]]:
        """Replay the step, and return loss and terms, and its further results.

        Raises:
            Exception: the error of the first check of the batch that fails.
        """
        self.beta.fill_(beta)
        with torch.no_grad():
            loss, distortion, rate, *rest = self.replay(self.beta, *batch)
        for flag, error in zip(rest, self.errors):
            if not flag:
                raise error()
        return LossAndTerms(loss, Terms(distortion, rate)), rest[len(self.errors) :]


class CompiledSVI(SVI):
    """SVI that records the operators of a step once, and replays them; a step returns loss and terms.

    The first step runs model and guide as usual and creates the parameters; the second one is recorded; later ones are
    replayed. A replay draws the same numbers from torch's generator as the model would, so the same seed gives the same
    training as `SVI`, to rounding, with the optimiser's own state. With the engine "inductor" and plain fused Adam, the
    update is compiled with the gradients; otherwise the optimiser steps by itself.

    A step is recorded anew for a batch of another shape or dtype, in another mode of a module (train or eval), and for
    other parameters in Pyro's store. Everything else that model and guide depend on (attributes, hooks, options of the
    ELBO, global variables, Pyro handlers around the step) must not change, as with `torch.compile`: a replay would not
    see it. Evaluations are not recorded.

    Args:
        model: a Pyro function.
        guide: its guide.
        optim: holds the torch optimiser over all their parameters.
        elbo: one of `pvae.build_elbo`.
        engine: "graph" or "inductor", see `graph.record`; or "none": steps run as usual, and nothing is recorded.
        precision: "fp32" or "bf16", see `graph.record`.
        batch_size: inductor compiles steps on batches of this size only; others, such as the short last batch of an
            epoch, are only recorded. By default all are compiled.
        prepare: converts what `step` is given (for example an index) to the tensors that model and guide take, on the
            same device; it is recorded too. `evaluate_loss` takes these tensors themselves.

    Attributes:
        num_recordings: how often it has recorded.

    Raises:
        InputError: there is no such engine or precision.
    """

    def __init__(
        self,
        model: PyroFunction,
        guide: PyroFunction,
        optim: SingleOptimizer,
        elbo: PerDatumELBO,
        engine: str = "graph",
        precision: str = "fp32",
        batch_size: int | None = None,
        prepare: Callable[[Tensor], Iterable[Tensor]] | None = None,
    ) -> None:
        super().__init__(model, guide, optim, elbo)  # type: ignore[no-untyped-call]
        if engine != "none":
            check_engine(engine, precision)
        self.elbo, self.engine, self.precision = elbo, engine, precision
        self.batch_size, self.prepare = batch_size, prepare
        self.num_recordings = 0
        self._recordings: list[Recording] = []
        self._is_begun = False  # there has been a step, so that the parameters exist

    def step(self, *batch: Tensor, beta: float | None = None) -> LossAndTerms:
        """Step the parameters by one batch, and return its loss and terms.

        Args:
            batch: what `prepare` takes, or what model and guide take.
            beta: weight of the rate in the loss; the ELBO's own if left out.

        Raises:
            InputError: the step cannot be recorded, since its Python code reads the values of tensors, or pixels are
                outside the domain.
            NotFiniteError: the loss or a gradient is not finite.
            RuntimeError: the parameters that model and guide register with Pyro are not the optimiser's.
                After any of these weights and the optimiser's state are as before.
        """
        recording = self._find(batch)
        if recording is None:
            return self._eager_step(batch, beta)
        update = recording.update
        if update is not None:
            update.set_values(recording.trained)
        result, rest = recording.play(float(self.elbo.beta if beta is None else beta), batch)
        if update is None:
            result.check_finite()  # before the optimiser steps, since gradients may be finite where the loss is not
            for parameter, gradient in zip(recording.trained, rest):
                is_in_order = gradient.stride() == parameter.stride()  # a fused optimiser reads memory in order
                parameter.grad = gradient if is_in_order else torch.empty_like(parameter).copy_(gradient)
            self.optim(recording.params.values())
        else:
            is_taken, finite = rest
            if not is_taken:
                update.refuse(result.loss, recording.trained, finite)
        return result

    def _eager_step(self, batch: tuple[Tensor, ...], beta: float | None) -> LossAndTerms:
        """Step as `SVI.step` does."""
        given = batch if self.prepare is None else self.prepare(*batch)
        with poutine.trace(param_only=True) as capture:
            result = self.elbo.backward(self.model, self.guide, *given, beta=beta)
        sites: Any = capture.trace.nodes.values()
        parameters = {site["value"].unconstrained() for site in sites}
        try:
            result.check_finite()
        except NotFiniteError:
            for parameter in parameters:
                parameter.grad = None
            raise
        self.optim(parameters)
        self._is_begun = True
        return result

    def use_inductor(self, batch: tuple[Tensor, ...], may_compile: MayCompile) -> None:
        """Compile steps on such batches from now on; there has been a step.

        Args:
            batch: of `step`.
            may_compile: as for `graph.record`.

        Raises:
            RecordingError: (an InputError) the step cannot be compiled, or may not.
            RuntimeError: compiling took more memory than there is.
                After either error steps are only recorded, as before.
        """
        self.engine = "inductor"
        try:
            self._find(batch, may_compile)
        except Exception:
            self.engine = "graph"
            raise

    def _find(
        self, batch: tuple[Tensor, ...], may_compile: MayCompile = lambda num_operators: True
    ) -> Recording | None:
        """Return the recording of a step, recorded now if there is none; None if the step runs as usual."""
        is_begun = self._is_begun or bool(self.optim.optimizer.state)  # of a resumed training, Adam has a state
        if self.engine == "none" or not is_begun:
            return None
        engine = self.engine if self.batch_size in (None, len(batch[0])) else "graph"
        layout = tuple((one.shape, one.stride(), one.dtype, one.device) for one in batch)
        for one in self._recordings:
            if one.matches(engine, layout):
                return one
        recording = self._record(engine, layout, batch, may_compile)
        self.num_recordings += 1
        self._recordings = [*self._recordings[1 - _MAX_RECORDINGS :], recording]
        return recording

    def _record(
        self, engine: str, layout: tuple[object, ...], batch: tuple[Tensor, ...], may_compile: MayCompile
    ) -> Recording:
        """Run the step once, undo what it wrote, and return its recording."""
        has_update = engine == "inductor" and AdamUpdate.supports(self.optim)
        update = AdamUpdate(self.optim) if has_update else None
        found: dict[str, Any] = {}  # fields of the recording

        def step(beta: Tensor, *batch: Tensor) -> list[Tensor]:
            with deferred() as checks, poutine.trace(param_only=True) as capture:
                given = batch if self.prepare is None else self.prepare(*batch)
                loss, terms = self.elbo.loss_and_terms(self.model, self.guide, *given, beta=beta)
            sites: list[Any] = [site for site in capture.trace.nodes.values() if site["type"] == "param"]
            params: dict[str, Tensor] = {site["name"]: site["value"].unconstrained() for site in sites}
            # Unique by identity, since one tensor may have two names.
            wanted = list({id(one): one for one in params.values() if one.requires_grad}.values())
            all_gradients = torch.autograd.grad(loss, wanted, allow_unused=True) if wanted else ()
            trained = [one for one, gradient in zip(wanted, all_gradients) if gradient is not None]
            gradients: list[Tensor] = [gradient for gradient in all_gradients if gradient is not None]
            flags = [check.holds(check.x) for check in checks]
            found.update(params=params, trained=trained, errors=[check.error for check in checks])
            rest = gradients if update is None else update.apply(loss, trained, gradients, flags)
            return [loss.detach(), terms.distortion, terms.rate, *flags, *rest]

        beta = torch.ones((), dtype=torch.float64, device=batch[0].device)
        with _undone(update.written() if update else [], batch[0].device) as modules:
            replay = record(step, [beta, *batch], engine, self.precision, may_compile)
        modes = [(module, module.training) for module in modules]
        return Recording(engine=engine, update=update, layout=layout, modes=modes, replay=replay, beta=beta, **found)


@contextlib.contextmanager
def _undone(tensors: Sequence[Tensor], device: torch.device) -> Iterator[list[nn.Module]]:
    """Restore these tensors, the buffers of modules that run in the block, and the device's random state at its end.

    Yields:
        A list, to which each module that runs is added.
    """
    modules: list[nn.Module] = []
    before = [(tensor, tensor.detach().clone()) for tensor in tensors]

    def collect(module: nn.Module, _: Any) -> None:
        if not any(module is known for known in modules):
            modules.append(module)
            before.extend((buffer, buffer.clone()) for buffer in module.buffers(recurse=False))

    hook = nn.modules.module.register_module_forward_pre_hook(collect)
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield modules
    finally:
        hook.remove()
        with torch.no_grad():
            for tensor, value in before:
                tensor.copy_(value)
