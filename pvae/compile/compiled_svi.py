"""Pyro's SVI over recorded steps: loss, gradients and, compiled by inductor, Adam's update."""

from __future__ import annotations

from typing import Any

from pyro import poutine
from pyro.infer import SVI
from torch import Tensor

from pvae.compile.adam import AdamUpdate, in_layout_of
from pvae.compile.compiled_elbo import Call, CompiledELBO, Prepare, Recording, Tensors
from pvae.compile.inductor import MayCompile
from pvae.compile.optimizers import SingleOptimizer
from pvae.core.errors import NotFiniteError
from pvae.core.terms import LossAndTerms
from pvae.elbos.base import PyroFunction

__all__ = ["CompiledSVI"]


class CompiledSVI(SVI):
    """SVI over a `CompiledELBO`, whose steps it replays without SVI's own Python; a step returns loss and terms.

    The training equals that of `SVI`, to rounding, and uses the optimiser's own state. With the engine "inductor" and
    plain fused Adam, the update is compiled with the gradients; otherwise the optimiser steps by itself.

    Args:
        model: a Pyro function.
        guide: its guide.
        optim: holds the torch optimiser over all their parameters.
        loss: the compiled ELBO.
        prepare: converts what `step` is given (for example an index) to the tensors that model and guide take, on the
            same device; it is recorded too. `evaluate_loss` takes these tensors themselves.
    """

    def __init__(
        self,
        model: PyroFunction,
        guide: PyroFunction,
        optim: SingleOptimizer,
        loss: CompiledELBO,
        prepare: Prepare | None = None,
    ) -> None:
        super().__init__(model, guide, optim, loss)  # type: ignore[no-untyped-call]
        self.elbo = loss
        self.prepare = prepare
        self._update: AdamUpdate | None = None

    def step(self, *batch: Tensor, beta: float | None = None) -> LossAndTerms:
        """Step the parameters by one batch, and return its loss and terms.

        Args:
            batch: what `prepare` takes, or what model and guide take.
            beta: weight of the rate in the loss; the ELBO's own if left out.

        Raises:
            InputError: the step cannot be recorded (see `CompiledELBO`), or pixels are outside the domain.
            NotFiniteError: the loss or a gradient is not finite.
            RuntimeError: the parameters that model and guide register with Pyro are not the optimiser's.
                After any of these weights and the optimiser's state are as before.
        """
        recording = self._find(batch)
        if recording is None:
            return self._eager_step(batch, beta)
        update = recording.call.update
        if update is not None:
            update.set_values(recording.trained)
        result, rest = recording.play(self.elbo.weight(beta), batch)
        if update is None:
            result.check_finite()  # before the optimiser steps, since gradients may be finite where the loss is not
            for parameter, gradient in zip(recording.trained, rest):
                parameter.grad = in_layout_of(parameter, gradient)
            self.optim(recording.params.values())
        else:
            is_taken, finite = rest
            if not is_taken:
                update.refuse(result.loss, recording.trained, finite)
        return result

    def _eager_step(self, batch: Tensors, beta: float | None) -> LossAndTerms:
        """Step as `SVI.step` does."""
        given = batch if self.prepare is None else self.prepare(*batch)
        with poutine.trace(param_only=True) as capture:
            result = self.elbo.elbo.backward(self.model, self.guide, *given, beta=beta)
        sites: Any = capture.trace.nodes.values()
        parameters = {site["value"].unconstrained() for site in sites}
        try:
            result.check_finite()
        except NotFiniteError:
            for parameter in parameters:
                parameter.grad = None
            raise
        self.optim(parameters)
        return result

    def use_inductor(self, batch: Tensors, may_compile: MayCompile) -> None:
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

    def _find(self, batch: Tensors, may_compile: MayCompile = lambda num_operators: True) -> Recording | None:
        """Return the recording of a step; None for the first one, before which Adam has no state."""
        optim: SingleOptimizer = self.optim
        is_begun, engine = bool(optim.optimizer.state), self.elbo.engine_for(batch[0])
        if self._update is None and is_begun and engine == "inductor" and AdamUpdate.supports(optim):
            self._update = AdamUpdate(optim)
        update = self._update if engine == "inductor" else None
        return self.elbo.find(Call(self.model, self.guide, engine, self.prepare, update), batch, is_begun, may_compile)
