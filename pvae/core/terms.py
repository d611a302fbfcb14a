"""The terms of an ELBO (distortion and rate), and a loss with its terms."""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor

from pvae.core.errors import NotFiniteError

__all__ = ["LossAndTerms", "Terms"]


class Terms(NamedTuple):
    """The two terms of an ELBO, each of shape (B,), in nats per datum; `elbo` is minus their sum.

    Reference:
        Alemi et al., arXiv:1711.00464 (the names of the terms).
    """

    distortion: Tensor
    rate: Tensor

    @property
    def elbo(self) -> Tensor:
        """The lower bound on log p(x), (B,): -distortion - rate, without the weights of the loss."""
        return -self.distortion - self.rate


class LossAndTerms(NamedTuple):
    """The loss of a batch, a scalar in nats per datum, and its terms, which require no gradient."""

    loss: Tensor
    terms: Terms

    def check_finite(self) -> None:
        """Raise a `NotFiniteError` if the loss is NaN or infinite."""
        if not math.isfinite(self.loss.item()):
            raise NotFiniteError(f"the loss is {self.loss.item()}")
