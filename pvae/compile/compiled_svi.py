"""Pyro's SVI with the whole step in one recording: loss, gradients and the optimiser's update."""

from __future__ import annotations

from torch import Tensor

from pvae.compile.adam import ElementwiseAdamUpdate, FusedAdamUpdate
from pvae.compile.compiled_elbo import CompiledELBO
from pvae.compile.optimizers import SingleOptimizer
from pvae.compile.recorded_step import Prepare
from pvae.core.terms import Terms
from pvae.elbos.base import PyroFunction
from pvae.elbos.svi import SVIWithTerms, finite_loss

__all__ = ["CompiledSVI"]


class CompiledSVI(SVIWithTerms):
    """SVI over a `CompiledELBO` that replays each step as one recorded function: loss, gradients, Adam's update.

    A replay runs none of SVI's Python and stores no gradient. The training equals that of `SVI`, to rounding, and uses
    the optimiser's own state. The step is that of `SVIWithTerms` if the optimiser is not plain fused Adam, if its betas
    or epsilon have changed (with `engine="inductor"` they may change), or if parameters already hold gradients.

    Args:
        model: a Pyro function.
        guide: its guide.
        optim: holds the torch optimiser over all their parameters.
        loss: the compiled ELBO.
        prepare: converts the inputs of `step` (for example an index) to the one tensor that model and guide take, on
            the same device; it is recorded too. `evaluate_loss` takes that tensor itself.
    """

    def __init__(
        self,
        model: PyroFunction,
        guide: PyroFunction,
        optim: SingleOptimizer,
        loss: CompiledELBO,
        prepare: Prepare | None = None,
    ) -> None:
        super().__init__(model, guide, optim, loss)
        self.prepare = prepare
        optimizer = optim.optimizer
        kind = ElementwiseAdamUpdate if loss.engine == "inductor" else FusedAdamUpdate
        self._update = kind(optimizer, optim.name_of) if kind.supports(optimizer) else None  # type: ignore[arg-type]

    def step(self, *inputs: Tensor, beta: float | None = None) -> float:
        """Step the parameters by one batch, and return its loss; see `step_with_terms` for the errors."""
        return self.step_with_terms(*inputs, beta=beta)[0]

    def step_with_terms(self, *inputs: Tensor, beta: float | None = None) -> tuple[float, Terms]:
        """Step the parameters by one batch, and return its loss and terms; beta is the weight of the rate.

        Raises:
            InputError: the step cannot be recorded (see `CompiledELBO`), or pixels are outside the domain; weights and
                the optimiser's state are as before.
            NotFiniteError: the loss or a gradient is not finite; weights and the optimiser's state are as before.
            RuntimeError: the parameters that model and guide register with Pyro are not the optimiser's.
        """
        result = None
        if self._update is not None:
            result = self.elbo.update(self.model, self.guide, self._update, *inputs, prepare=self.prepare, beta=beta)
        if result is None:
            x = inputs if self.prepare is None else (self.prepare(*inputs),)
            return super().step_with_terms(*x, beta=beta)
        return finite_loss(result), result.terms
