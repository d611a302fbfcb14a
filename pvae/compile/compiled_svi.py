"""Pyro's SVI with the optimiser's step in the recording, beside loss and gradients."""

from __future__ import annotations

from torch import Tensor

from pvae.compile.adam import AdamUpdate, ElementwiseAdam, OperatorAdam
from pvae.compile.compiled_elbo import CompiledELBO
from pvae.compile.optimizers import SingleOptimizer
from pvae.compile.recorded_step import Prepare
from pvae.core.terms import Terms
from pvae.elbos.base import PyroFunction
from pvae.elbos.svi import SVIWithTerms, finite_loss

__all__ = ["CompiledSVI"]


class CompiledSVI(SVIWithTerms):
    """SVI over a `CompiledELBO`, each step of which is one recorded function: loss, gradients, Adam's update.

    A replay runs none of SVI's Python and keeps no gradient. The training is the same as by `SVI`, to rounding, on the
    optimiser's own state. With another optimiser than plain fused Adam, or where gradients wait to be added to, it
    steps as `SVIWithTerms` does.

    Args:
        model: a Pyro function.
        guide: its guide.
        optim: holds the torch optimiser over all their parameters.
        loss: the compiled ELBO.
        prepare: turns the inputs of `step` into the one tensor that model and guide take (an index into a batch, for
            instance), on the same device; it is recorded too. `evaluate_loss` takes that tensor itself.
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
        kinds: list[type[AdamUpdate]] = [OperatorAdam, ElementwiseAdam]
        suiting = [kind for kind in kinds[loss.engine == "inductor" :] if kind.suits(optimizer)]
        self._update = suiting[0](optimizer, optim.name_of) if suiting else None  # type: ignore[arg-type]

    def step(self, *inputs: Tensor, beta: float | None = None) -> float:
        """Step the parameters by one batch, and return its loss; `step_with_terms` says what it raises."""
        return self.step_with_terms(*inputs, beta=beta)[0]

    def step_with_terms(self, *inputs: Tensor, beta: float | None = None) -> tuple[float, Terms]:
        """Step the parameters by one batch, and return its loss and terms; beta weighs the rate.

        Raises:
            InputError: the step cannot be recorded (`CompiledELBO` says why), or pixels are outside the domain; weights
                and the optimiser's state are then as before.
            NotFiniteError: the loss or a gradient is not finite; weights and the optimiser's state are as before.
            RuntimeError: the parameters that model and guide register with Pyro are not the optimiser's.
        """
        found = None
        if self._update is not None:
            if not self._update.is_recorded():
                self._update = ElementwiseAdam(self._update.optimizer, self._update.name_of)
            found = self.elbo.update(self.model, self.guide, self._update, *inputs, prepare=self.prepare, beta=beta)
        if found is None:
            x = inputs[0] if self.prepare is None else self.prepare(*inputs)
            return super().step_with_terms(x, beta=beta)
        return finite_loss(found), found.terms
