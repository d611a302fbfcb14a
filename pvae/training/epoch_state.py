"""The state of an unfinished epoch: the order of its images, and the losses and terms of those seen so far."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pvae.core.parallel import Share, World
from pvae.core.terms import Terms
from pvae.runs.checkpoint import UnfinishedEpoch

__all__ = ["EpochState"]


@dataclass
class EpochState:
    """The state of one process in the middle of an epoch.

    Args:
        order: indices of the training images, int64 (N,).
        distortion: of each image, at its position in `order`, (N,): NaN in a skipped step, 0 in another
            process's rows.
        rate: as `distortion`.
        total: sum of this process's part of the losses over the images seen, without those of skipped steps.
        seen: number of images seen, by all processes together.
        seconds: time spent on steps.
    """

    order: Tensor
    distortion: Tensor
    rate: Tensor
    total: float = 0.0
    seen: int = 0
    seconds: float = 0.0

    @classmethod
    def new(cls, count: int, device: torch.device) -> EpochState:
        """Return the start of an epoch over `count` images, in a new random order."""
        return cls(torch.randperm(count).to(device), *torch.zeros(2, count, device=device))

    @classmethod
    def resumed(cls, stored: UnfinishedEpoch, world: World, device: torch.device) -> EpochState:
        """Return the state that a checkpoint stores; the first process alone keeps the sums of all processes."""
        order, distortion, rate = (tensor.to(device) for tensor in stored[:3])
        if world.is_first:
            return cls(order, distortion, rate, stored.total, stored.seen, stored.seconds)
        return cls(order, torch.zeros_like(rate), torch.zeros_like(rate), 0.0, stored.seen, stored.seconds)

    def add(self, share: Share, result: tuple[float, Terms] | None, seconds: float) -> None:
        """Add the result of one step.

        Args:
            share: this process's rows of the batch.
            result: their part in the loss, and their terms; None for a skipped step.
            seconds: the time it took.
        """
        if share.weight:
            rows = slice(self.seen + share.start, self.seen + share.stop)
            self.distortion[rows] = result[1].distortion if result else math.nan
            self.rate[rows] = result[1].rate if result else math.nan
        self.total += result[0] * share.total if result else 0.0
        self.seen += share.total
        self.seconds += seconds

    def summed(self, world: World) -> UnfinishedEpoch:
        """Return the state summed over all processes, as a checkpoint stores it."""
        total, terms = torch.tensor([self.total], dtype=torch.float64), torch.stack([self.distortion, self.rate])
        world.sum_([total])
        world.sum_([terms])
        return UnfinishedEpoch(self.order, terms[0], terms[1], total.item(), self.seen, self.seconds)
