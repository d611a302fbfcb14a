"""Pyro's SVI with the optimiser's step in the recording, beside the gradients that it takes."""

from __future__ import annotations

import torch
from pyro.infer import SVI
from torch import Tensor

from pvae.compile.adam import AdamUpdate, ElementwiseAdam, OperatorAdam
from pvae.compile.compiled_elbo import Ahead, CompiledELBO
from pvae.compile.optimizers import SingleOptimizer
from pvae.compile.steps import Prepare
from pvae.core.finite import NotFiniteError
from pvae.elbos.base import PyroFunction

__all__ = ["CompiledSVI"]


class CompiledSVI(SVI):
    """`pyro.infer.SVI` over a `CompiledELBO`, of which a step is one recorded function: loss, gradients, Adam's update.

    A replay runs none of SVI's Python, keeps no gradient, and can be taken ahead of any look at what came of it: nobody
    waits for a GPU between two steps. The same training as by `SVI`, to rounding, on the optimiser's own state.
    With another optimiser than plain fused Adam, or where gradients wait to be added to, it steps as `SVI` does.

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
        self._ahead: list[Ahead] = []
        self._losses: list[float] = []  # of steps that looked themselves
        self._update = _update_of(optim, loss.engine)

    def step(self, *inputs: Tensor) -> float:
        """Step the parameters by one batch, and return its loss.

        Raises:
            InputError: the step cannot be recorded (`CompiledELBO` says why), or pixels are outside the domain; weights
                and the optimiser's state are then as before.
            NotFiniteError: the loss or a gradient is not finite; weights and the optimiser's state are as before.
            RuntimeError: the parameters that model and guide register with Pyro are not the optimiser's.
        """
        self.step_ahead(*inputs)
        return self.look()[-1]

    def step_ahead(self, *inputs: Tensor) -> None:
        """Step by one batch without waiting for what comes of it: `look` tells.

        A step that is refused keeps all those after it from being taken, until a look.

        Raises:
            InputError: as `step`.
            RuntimeError: as `step`.
        """
        if not self._step_by_replay(*inputs):
            self._look_back()
            taken = inputs if self.prepare is None else (self.prepare(*inputs),)
            self._losses.append(super().step(*taken))  # type: ignore[no-untyped-call]

    def _step_by_replay(self, *inputs: Tensor) -> bool:
        """Step by a recording; false if this step must be run."""
        if self._update is None:
            return False
        if not self._update.is_recorded():
            self._look_back()
            self._update = ElementwiseAdam(self._update.optimizer, self._update.name_of)
        try:
            ahead = self.elbo.loss_and_update(self.model, self.guide, self._update, *inputs, prepare=self.prepare)
        except Exception:
            self._look_back()  # what an earlier step has to say comes first
            raise
        if ahead is not None:
            self._ahead.append(ahead)
        return ahead is not None

    def _look_back(self) -> None:
        """Look at the steps before this one."""
        try:
            self._losses = self.look()
        except NotFiniteError as error:
            error.steps_since += 1  # this one
            raise

    @property
    def num_ahead(self) -> int:
        """How many steps nobody has looked at."""
        return len(self._ahead) + len(self._losses)

    def look(self) -> list[float]:
        """Return the losses of the steps since the last look.

        Raises:
            InputError: pixels of one were outside the domain; it was not taken, nor was any after it.
            NotFiniteError: the loss or a gradient of one was not finite; likewise.
        """
        ahead, losses = self._ahead, self._losses
        taken = _numbers([one.is_taken for one in ahead])
        try:
            if not all(taken):
                _refuse(ahead[taken.index(False) :])
            return losses + _numbers([one.loss for one in ahead])
        finally:
            self._ahead, self._losses = [], []


def _refuse(ahead: list[Ahead]) -> None:
    """Refuse the first of these steps; none of the others was taken."""
    try:
        ahead[0].refuse()
    except NotFiniteError as error:
        error.steps_since = len(ahead) - 1
        raise


def _numbers(tensors: list[Tensor]) -> list[float]:
    """Return the numbers of some scalars, for all of which a GPU is waited for once."""
    return [one.item() for one in tensors] if len(tensors) < 2 else torch.stack(tensors).tolist()


def _update_of(optim: SingleOptimizer, engine: str) -> AdamUpdate | None:
    """Return what is recorded of the optimiser: none if it steps by itself."""
    optimizer = optim.optimizer
    kinds = [ElementwiseAdam] if engine == "inductor" else [OperatorAdam, ElementwiseAdam]
    return next((kind(optimizer, optim.name_of) for kind in kinds if kind.suits(optimizer)), None)  # type: ignore[arg-type]
