"""Pyro's SVI with the optimiser's step in the recording, beside the gradients that it takes."""

from __future__ import annotations

from pyro.infer import SVI
from torch import Tensor

from pvae.adam import AdamUpdate
from pvae.compiled import CompiledELBO
from pvae.optimizers import SingleOptimizer
from pvae.perdatum import PyroFunction
from pvae.steps import Prepare

__all__ = ["CompiledSVI"]


class CompiledSVI(SVI):
    """`pyro.infer.SVI` over a `CompiledELBO`, of which a step is one recorded function: loss, gradients, Adam's update.

    It pays where the operators are compiled together (engine "inductor"): a gradient is then taken while it lies in the
    cache, and is never kept. The same training as by `SVI`, to rounding, on the optimiser's own state. With another
    optimiser than plain fused Adam, or where gradients wait to be added to, it steps as `SVI` does.

    Args:
        model: a Pyro function.
        guide: its guide.
        optim: holds the torch optimiser over all their parameters.
        loss: the compiled ELBO.
        prepare: makes of what `step` is given the one tensor that model and guide take (the batch of an index, for
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
        super().__init__(model, guide, optim, loss=loss)  # type: ignore[no-untyped-call]
        self.elbo = loss
        self.prepare = prepare
        self._update = AdamUpdate(optim.optimizer, optim.name_of) if AdamUpdate.suits(optim.optimizer) else None  # type: ignore[arg-type]

    def step(self, *inputs: Tensor) -> float:
        """Step the parameters by one batch, and return its loss.

        Raises:
            InputError: the step cannot be recorded (`CompiledELBO` says why), or pixels are outside the domain; weights
                and the optimiser's state are then as before.
            NotFiniteError: the loss or a gradient is not finite; weights and the optimiser's state are as before.
            RuntimeError: the parameters that model and guide register with Pyro are not the optimiser's.
        """
        if self._update is not None:
            loss = self.elbo.loss_and_update(self.model, self.guide, self._update, *inputs, prepare=self.prepare)
            if loss is not None:
                return loss.item()
        taken = inputs if self.prepare is None else (self.prepare(*inputs),)
        loss_of_svi: float = super().step(*taken)  # type: ignore[no-untyped-call]
        return loss_of_svi
