"""`Metrics`, the metrics of one epoch and split: one row of `metrics.jsonl`."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pvae.core.errors import InputError
from pvae.core.files import from_record


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """Means over the images of one split in one epoch, in nats per datum.

    Args:
        epoch: number of the epoch, from 1; 0 is the start of a training with `Config.initialization` "exact".
        split: "train" (averaged during the epoch, while the weights changed), or "valid" or "test" (measured after the
            epoch).
        elbo: the bound, which does not depend on beta. None if there is no bound: for an autoencoder, which has no
            rate, and for a scale that is fitted to each batch, which defines no likelihood.
        elbo_stderr: standard error of `elbo` over images and draws of z.
        distortion: -E_q log p(x | z).
        rate: KL(q, p), or its Monte Carlo estimate.
        loss: the quantity that is minimised: distortion + beta rate, or the negative importance-weighted bound.
        posterior_mean_loss: distortion at the mean of q(z | x) + KL(q, p), not for "train". It is not a bound and
            usually lower than -elbo; post 002 prints it.
        seconds: duration; for "train" without the test.
        accuracy: with `Config.labels`, the share of the known labels that q(y | x) finds, not for "train".
        pseudo: the pixels were grey, so `elbo` is a pseudo-ELBO, which does not bound log p(x).
    """

    epoch: int
    split: str
    elbo: float | None
    elbo_stderr: float | None
    distortion: float
    rate: float
    loss: float
    seconds: float
    pseudo: bool
    posterior_mean_loss: float | None = None
    accuracy: float | None = None

    @property
    def bound(self) -> str:
        """The name of `elbo` in texts and figures: "ELBO" or "pseudo-ELBO"."""
        if self.pseudo:
            return "pseudo-ELBO"
        return "ELBO"

    def __str__(self) -> str:
        """Return split, bound and standard error, for instance "test ELBO -111.24 +- 0.32"."""
        if self.elbo is None:
            return f"{self.split} distortion {self.distortion:.2f}"
        return f"{self.split} {self.bound} {self.elbo:.2f} +- {self.elbo_stderr:.2f}"


def read_metrics(file: Path, epoch: int) -> list[Metrics]:
    """Return the rows of a `metrics.jsonl` up to an epoch.

    Later rows are left out: the training was killed before it wrote the checkpoint of their epoch.

    Raises:
        InputError: a row up to that epoch is missing or damaged.
    """
    rows = list[Metrics]()
    with contextlib.suppress(OSError, ValueError, TypeError, RecursionError):  # a line that was not written to its end
        for line in file.read_bytes().splitlines():
            row = from_record(Metrics, json.loads(line))
            if row.epoch > epoch:
                break
            rows.append(row)
    if [row.epoch for row in rows if row.split == "test" and row.epoch] != list(range(1, epoch + 1)):
        raise InputError(
            f"{file} is damaged: it lacks rows of the {epoch} finished epochs; restore a copy of it, or train anew"
        )
    return rows


def best_epoch(rows: Iterable[Metrics]) -> int | None:
    """Return the epoch with the best bound on the validation images, or None if there are none.

    The ELBO is compared, whatever the weight of the rate in the loss; where there is no bound, as for an autoencoder,
    the loss is compared. Of equal epochs the first is returned.
    """
    valid = [row for row in rows if row.split == "valid"]
    if not valid:
        return None
    return max(valid, key=lambda row: -row.loss if row.elbo is None else row.elbo).epoch


def is_out_of_patience(rows: Iterable[Metrics], patience: int) -> bool:
    """Return whether the best bound on the validation images is `patience` epochs old, or older; 0 is no limit."""
    rows = list(rows)
    best = best_epoch(rows)
    return patience > 0 and best is not None and rows[-1].epoch - best >= patience
