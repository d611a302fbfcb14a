"""An epoch under way: which images it has seen, and their terms and losses, in one process and in all of them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pvae.core.parallel import Share, World
from pvae.core.terms import Terms
from pvae.runs.checkpoint import Pass

__all__ = ["UnderWay"]


class UnderWay:
    """An epoch under way, as one of its processes knows it.

    Args:
        known: what a checkpoint holds of it, but for the steps that nobody has looked at yet.
    """

    def __init__(self, known: Pass) -> None:
        self._known = known
        self._ahead: list[int] = []  # how many images each step has of which nobody has seen the loss

    @classmethod
    def new(cls, count: int, device: torch.device) -> UnderWay:
        """Return one over so many images, in a new order; its terms lie in one piece: many would leave holes."""
        order = torch.randperm(count).to(device)
        distortion, rate = torch.zeros(2, count, device=device)
        return cls(Pass(order, distortion, rate, total=0.0, seen=0, seconds=0.0))

    @classmethod
    def resumed(cls, known: Pass, world: World, device: torch.device) -> UnderWay:
        """Return one to go on with: what was seen is the first process's part."""
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
        """How many images it has seen."""
        return self._known.seen

    def begin(self, count: int) -> None:
        """Begin a step on so many images."""
        self._ahead.append(count)

    def end(self, count: int, share: Share, terms: Terms | None) -> None:
        """End it, with the terms of this process's rows; none of a step that was skipped."""
        if share.weight:
            rows = slice(self.seen + share.start, self.seen + share.stop)
            self._known.distortion[rows] = terms.distortion if terms else math.nan
            self._known.rate[rows] = terms.rate if terms else math.nan
        self._known = self._known._replace(seen=self.seen + count)

    def count(self, losses: Sequence[float]) -> None:
        """Count the losses of the first steps of which nobody had seen them."""
        for loss in losses:
            self._known = self._known._replace(total=self._known.total + loss * self._ahead.pop(0))

    def forget(self) -> None:
        """Count the losses of no step that was begun and not counted."""
        self._ahead.clear()

    def took(self, seconds: float) -> None:
        """Count the time of a step."""
        self._known = self._known._replace(seconds=self._known.seconds + seconds)

    def running_loss(self, world: World) -> float | None:
        """Return the mean loss so far, over the images that were counted; none before the first."""
        counted = self.seen - sum(self._ahead)
        return self._known.total * world.size / counted if counted else None

    def whole(self, world: World) -> Pass:
        """Return what all processes together know of it."""
        total = torch.tensor([self._known.total], dtype=torch.float64)
        terms = [self._known.distortion, self._known.rate]
        if world.size > 1:
            terms = [tensor.clone() for tensor in terms]
            world.sum_([total])
            world.sum_(terms)
        return self._known._replace(distortion=terms[0], rate=terms[1], total=total.item())
