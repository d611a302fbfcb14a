"""Pyro's SVI over recorded steps: loss, gradients and, compiled by inductor, Adam's update."""

from __future__ import annotations

from collections.abc import Callable

from pyro.infer import SVI
from torch import Tensor

from pvae.compile.adam import AdamUpdate, in_layout_of
from pvae.compile.compiled_elbo import Batch, Call, CompiledELBO, Recording
from pvae.compile.inductor import MayCompile
from pvae.compile.optimizers import SingleOptimizer
from pvae.elbos.base import OnResult, PyroFunction

__all__ = ["CompiledSVI"]


class CompiledSVI(SVI):
    """SVI over a `CompiledELBO` that replays each step, without SVI's own Python.

    The training equals that of `SVI`, to rounding, and uses the optimiser's own state. With the engine "inductor" and
    plain fused Adam, the update is compiled with the gradients; otherwise the optimiser steps by itself.

    Args:
        model: a Pyro function.
        guide: its guide.
        optim: holds the torch optimiser over all their parameters.
        loss: the compiled ELBO.
        prepare: converts the batch that `step` is given (for example an index) to x, or (x, y), of model and guide, on
            the same device; it is recorded too. `evaluate_loss` takes x itself.
    """

    def __init__(
        self,
        model: PyroFunction,
        guide: PyroFunction,
        optim: SingleOptimizer,
        loss: CompiledELBO,
        prepare: Callable[[Tensor], Tensor | Batch] | None = None,
    ) -> None:
        super().__init__(model, guide, optim, loss.elbo)  # type: ignore[no-untyped-call]
        self.elbo = loss
        self.prepare = prepare
        self._update: AdamUpdate | None = None

    def step(self, *batch: Tensor, beta: float | None = None, on_result: OnResult = lambda result: None) -> float:
        """Step the parameters by one batch, and return its loss.

        Args:
            batch: what `prepare` takes, or x, or (x, y), of model and guide.
            beta: weight of the rate in the loss.
            on_result: called with loss and terms.

        Raises:
            InputError: the step cannot be recorded (see `CompiledELBO`), or pixels are outside the domain; weights and
                the optimiser's state are as before.
            NotFiniteError: the loss or a gradient is not finite; weights and the optimiser's state are as before.
            RuntimeError: the parameters that model and guide register with Pyro are not the optimiser's.
        """
        recording = self._find(batch)
        if recording is None:
            given = batch if self.prepare is None else self.prepare(*batch)
            given = given if isinstance(given, tuple) else (given,)
            return super().step(*given, beta=beta, on_result=on_result)  # type: ignore[no-untyped-call]
        update = recording.call.update
        if update is not None:
            update.set_values(recording.trained)
        result, rest = recording.play(self.elbo.weight(beta), batch)
        if update is not None:
            is_taken, finite = rest
            if not is_taken:
                update.refuse(result.loss, recording.trained, finite)
            on_result(result)
        else:
            on_result(result)
            for parameter, gradient in zip(recording.trained, rest):
                parameter.grad = in_layout_of(parameter, gradient)
            self.optim(recording.params.values())
        return result.loss.item()

    def use_inductor(self, batch: Batch, may_compile: MayCompile) -> None:
        """Compile steps on such batches from now on; there has been a step.

        Args:
            batch: of `step`.
            may_compile: as for `graph.record`.

        Raises:
            RecordingError: (an InputError) the step cannot be compiled, or may not.
            RuntimeError: compiling took more memory than there is.
                After either error steps are only recorded, as before.
        """
        self.elbo.engine = "inductor"
        try:
            self._find(batch, may_compile)
        except Exception:
            self.elbo.engine = "graph"
            raise

    def _find(self, batch: Batch, may_compile: MayCompile = lambda num_operators: True) -> Recording | None:
        """Return the recording of a step; None for the first one, before which Adam has no state."""
        optim: SingleOptimizer = self.optim
        is_begun, engine = bool(optim.optimizer.state), self.elbo.engine_for(batch[0])
        if self._update is None and is_begun and engine == "inductor" and AdamUpdate.supports(optim):
            self._update = AdamUpdate(optim)
        update = self._update if engine == "inductor" else None
        return self.elbo.find(Call(self.model, self.guide, engine, self.prepare, update), batch, is_begun, may_compile)
