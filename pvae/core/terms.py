"""Distortion and rate, the two terms of an ELBO, and a loss with its terms."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

__all__ = ["LossAndTerms", "Terms"]


class Terms(NamedTuple):
    """The two terms of an ELBO, each of shape (B,), in nats per datum; `elbo` is minus their sum.

    `rates`, where it was asked for, is the rate of each latent dimension, (B, L): they sum to the rate.

    Reference:
        Alemi et al., arXiv:1711.00464, who name them so.
    """

    distortion: Tensor
    rate: Tensor
    rates: Tensor | None = None

    @property
    def elbo(self) -> Tensor:
        """The lower bound on log p(x), (B,): -distortion - rate, whatever the loss weighs them with."""
        return -self.distortion - self.rate


class LossAndTerms(NamedTuple):
    """The loss of a batch, a scalar in nats per datum, and its terms, which hold no gradient."""

    loss: Tensor
    terms: Terms
