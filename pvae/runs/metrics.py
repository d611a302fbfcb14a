"""The metrics of one epoch: a row of `metrics.jsonl`, and how it is printed."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

from pvae.core.finite import check_finite
from pvae.core.terms import Terms
from pvae.vae import VAE

__all__ = ["Metrics", "summarise"]


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """Means over the images of one split in one epoch, in nats per datum.

    Args:
        epoch: number of passes that were finished when it was measured.
        split: "train" (averaged during the pass, while the weights changed) or "test" (after it).
        elbo: the bound, which does not depend on beta; None where there is no bound: an autoencoder has no rate,
            and a scale that is fitted to the batch defines no likelihood.
        elbo_stderr: its standard error over images and draws of z.
        distortion: -E_q log p(x | z).
        rate: KL(q, p), or its Monte Carlo estimate.
        loss: the minimised quantity: distortion + beta rate, or the negated importance-weighted bound.
        posterior_mean_loss: distortion at the mean of q(z | x) + KL(q, p), on a "test" row. Not a bound, and usually
            lower than -elbo: the value that post 002 prints.
        seconds: the time it took; on a "train" row without the test.
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

    @property
    def bound(self) -> str:
        """The name under which `elbo` is shown: "ELBO" or "pseudo-ELBO"."""
        return "pseudo-ELBO" if self.pseudo else "ELBO"

    def __str__(self) -> str:
        """Name split, bound and error in one phrase."""
        if self.elbo is None:
            return f"{self.split} distortion {self.distortion:.2f}"
        return f"{self.split} {self.bound} {self.elbo:.2f} +- {self.elbo_stderr:.2f}"


def summarise(
    terms: Terms,
    *,
    vae: VAE,
    loss: float,
    epoch: int,
    split: str,
    seconds: float,
    posterior_mean_loss: float | None = None,
) -> Metrics:
    """Return the means over images as one row.

    Args:
        terms: distortion and rate, (N,) each, N at least 2.
        vae: in the mode in which they were computed.
        loss: the mean loss of the same images.
        epoch: passes finished.
        split: "train" or "test".
        seconds: the time it took.
        posterior_mean_loss: of the same images, if it was computed.

    Raises:
        NotFiniteError: one of the means is NaN or infinite.
    """
    distortion, rate = terms.distortion.double(), terms.rate.double()
    elbo = Terms(distortion, rate).elbo
    row = Metrics(
        epoch=epoch,
        split=split,
        elbo=elbo.mean().item() if vae.is_bounding else None,
        elbo_stderr=elbo.std().item() / math.sqrt(len(elbo)) if vae.is_bounding else None,
        distortion=distortion.mean().item(),
        rate=rate.mean().item(),
        loss=loss,
        seconds=seconds,
        pseudo=vae.is_pseudo,
        posterior_mean_loss=posterior_mean_loss,
    )
    check_finite(asdict(row))
    return row
