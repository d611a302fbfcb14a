"""Pyro's SVI with the whole step in one recording: loss, gradients and the optimiser's update."""

from __future__ import annotations

from pyro.infer import SVI
from torch import Tensor

from pvae.compile.adam import ElementwiseAdamUpdate, FusedAdamUpdate
from pvae.compile.compiled_elbo import CompiledELBO
from pvae.compile.optimizers import SingleOptimizer
from pvae.compile.recorded_step import Prepare
from pvae.elbos.base import OnResult, PyroFunction

__all__ = ["CompiledSVI"]


class CompiledSVI(SVI):
    """SVI over a `CompiledELBO` that replays each step as one recorded function: loss, gradients, Adam's update.

    A replay runs none of SVI's Python and stores no gradient. The training equals that of `SVI`, to rounding, and uses
    the optimiser's own state. The step is that of `SVI` if the optimiser is not plain fused Adam, if its betas
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
        super().__init__(model, guide, optim, loss)  # type: ignore[no-untyped-call]
        self.elbo = loss
        self.prepare = prepare
        optimizer = optim.optimizer
        kind = ElementwiseAdamUpdate if loss.engine == "inductor" else FusedAdamUpdate
        self._update = kind(optimizer, optim.name_of) if kind.supports(optimizer) else None  # type: ignore[arg-type]

    def step(self, *inputs: Tensor, beta: float | None = None, on_result: OnResult = lambda result: None) -> float:
        """Step the parameters by one batch, and return its loss.

        Args:
            inputs: of `prepare`, or of model and guide.
            beta: weight of the rate in the loss.
            on_result: called with loss and terms.

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
            return super().step(*x, beta=beta, on_result=on_result)  # type: ignore[no-untyped-call]
        on_result(result)
        return result.loss.item()
