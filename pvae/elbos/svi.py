"""Pyro's SVI, whose steps also return the terms of the loss."""

from __future__ import annotations

import math
from typing import Any

from pyro import poutine
from pyro.infer import SVI
from pyro.optim import PyroOptim
from torch import Tensor

from pvae.core.errors import NotFiniteError
from pvae.core.terms import LossAndTerms, Terms
from pvae.elbos.base import PyroFunction

__all__ = ["SVIWithTerms", "finite_loss"]


class SVIWithTerms(SVI):
    """`pyro.infer.SVI` whose steps also return distortion and rate, and refuse a loss that is not finite.

    Args:
        model: a Pyro function.
        guide: its guide.
        optim: updates the parameters and clears their gradients.
        loss: a `PerDatumELBO`, compiled or not.
    """

    def __init__(self, model: PyroFunction, guide: PyroFunction, optim: PyroOptim, loss: Any) -> None:
        super().__init__(model, guide, optim, loss=loss)  # type: ignore[no-untyped-call]
        self.elbo = loss

    def step_with_terms(self, *inputs: Tensor, beta: float | None = None) -> tuple[float, Terms]:
        """Update the parameters on a batch x (B, C, H, W), and return its loss and terms; beta weighs the rate.

        Raises:
            NotFiniteError: the loss or a gradient is not finite; no parameter was updated.
        """
        with poutine.trace(param_only=True) as capture:
            result = self.elbo.backward(self.model, self.guide, *inputs, beta=beta)
        loss = finite_loss(result)  # checked first, since gradients may be finite where the loss is not
        nodes: list[Any] = [*capture.trace.nodes.values()]
        self.optim({site["value"].unconstrained() for site in nodes})
        return loss, result.terms

    def evaluate_with_terms(self, x: Tensor, beta: float | None = None) -> tuple[float, Terms]:
        """Return the loss of one batch x (B, C, H, W) and its terms; beta weighs the rate.

        Raises:
            NotFiniteError: the loss is not finite.
        """
        result = self.elbo.evaluate(self.model, self.guide, x, beta=beta)
        return finite_loss(result), result.terms


def finite_loss(result: LossAndTerms) -> float:
    """Return the loss as a float.

    Raises:
        NotFiniteError: it is not finite.
    """
    loss = result.loss.item()
    if not math.isfinite(loss):
        raise NotFiniteError(f"the loss is {loss}")
    return loss
