"""An epoch in progress: the images it has seen, and their terms and losses, in one process and in all of them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pvae.core.parallel import Share, World
from pvae.core.terms import Terms
from pvae.runs.checkpoint import Pass

__all__ = ["EpochState"]


class EpochState:
    """An epoch in progress, as one of its processes knows it.

    Args:
        known: what a checkpoint holds of it.
    """

    def __init__(self, known: Pass) -> None:
        self._known = known

    @classmethod
    def new(cls, count: int, device: torch.device) -> EpochState:
        """Return one over `count` images, in a new order."""
        order = torch.randperm(count).to(device)
        distortion, rate = torch.zeros(2, count, device=device)
        return cls(Pass(order, distortion, rate, total=0.0, seen=0, seconds=0.0))

    @classmethod
    def resumed(cls, known: Pass, world: World, device: torch.device) -> EpochState:
        """Return one to continue: what was seen counts as the first process's part."""
        order, distortion, rate = (tensor.to(device) for tensor in known[:3])
        if not world.is_first:
            distortion.zero_(), rate.zero_()
        total = known.total if world.is_first else 0.0
        return cls(known._replace(order=order, distortion=distortion, rate=rate, total=total))

    @property
    def order(self) -> Tensor:
        """Indices of the training images, (N,)."""
        return self._known.order

    @property
    def seen(self) -> int:
        """The number of images seen."""
        return self._known.seen

    def add(self, share: Share, result: tuple[float, Terms] | None, seconds: float) -> None:
        """Count a step.

        Args:
            share: this process's rows of the batch.
            result: their part in the loss, and their terms; None of a step that was skipped.
            seconds: the time it took.
        """
        loss, terms = result if result is not None else (0.0, None)
        if share.weight:
            rows = slice(self.seen + share.start, self.seen + share.stop)
            self._known.distortion[rows] = terms.distortion if terms else math.nan
            self._known.rate[rows] = terms.rate if terms else math.nan
        self._known = self._known._replace(
            total=self._known.total + loss * share.total,
            seen=self.seen + share.total,
            seconds=self._known.seconds + seconds,
        )

    def running_loss(self, world: World) -> float:
        """Return the mean loss so far, as this process's part tells it."""
        return self._known.total * world.size / self.seen

    def whole(self, world: World) -> Pass:
        """Return what all processes together know of it."""
        total = torch.tensor([self._known.total], dtype=torch.float64)
        terms = [self._known.distortion, self._known.rate]
        if world.size > 1:
            terms = [tensor.clone() for tensor in terms]
            world.sum_([total])
            world.sum_(terms)
        return self._known._replace(distortion=terms[0], rate=terms[1], total=total.item())
