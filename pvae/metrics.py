"""The figures of one epoch: what a row of `metrics.jsonl` holds, and how it reads."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from pvae.handwritten import Terms

__all__ = ["Metrics", "summarise"]


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """Means over the images of one split in one epoch, in nats per datum.

    Args:
        epoch: how many passes were finished when it was measured.
        split: "train" (averaged during the pass, while the weights changed) or "test" (after it).
        elbo: the bound; no beta enters it.
        elbo_stderr: its standard error over images and draws of z.
        distortion: -E_q log p(x | z).
        rate: KL(q, p), or its Monte Carlo estimate.
        loss: what was minimised: distortion + beta rate.
        seconds: the time it took; on a "train" row the training alone.
        pseudo: the pixels were grey, so `elbo` is a pseudo-ELBO: no bound on log p(x).
    """

    epoch: int
    split: str
    elbo: float
    elbo_stderr: float
    distortion: float
    rate: float
    loss: float
    seconds: float
    pseudo: bool

    @property
    def bound(self) -> str:
        """What `elbo` is, as it must be called wherever it is shown."""
        return "pseudo-ELBO" if self.pseudo else "ELBO"

    def __str__(self) -> str:
        """Name split, bound and error in one phrase."""
        return f"{self.split} {self.bound} {self.elbo:.2f} +- {self.elbo_stderr:.2f}"


def summarise(terms: Sequence[Terms], *, loss: float, epoch: int, split: str, seconds: float, pseudo: bool) -> Metrics:
    """Average the terms of many batches into one row.

    Args:
        terms: distortion and rate of each batch, (B,) each; together at least two images.
        loss: the mean loss of the same images.
        epoch: passes finished.
        split: "train" or "test".
        seconds: the time it took.
        pseudo: whether the bound is a pseudo-ELBO.
    """
    distortion = torch.cat([batch.distortion for batch in terms]).double()
    rate = torch.cat([batch.rate for batch in terms]).double()
    elbo = Terms(distortion, rate).elbo
    return Metrics(
        epoch=epoch,
        split=split,
        elbo=elbo.mean().item(),
        elbo_stderr=elbo.std().item() / math.sqrt(len(elbo)),
        distortion=distortion.mean().item(),
        rate=rate.mean().item(),
        loss=loss,
        seconds=seconds,
        pseudo=pseudo,
    )
