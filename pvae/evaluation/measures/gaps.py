"""`Gaps`: where the difference of log p(x) and the ELBO is lost, of test and of training data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pvae.core.batch import Batch
from pvae.core.errors import InputError
from pvae.data.dataset import random_subset
from pvae.evaluation.measures.log_likelihood import methods_of
from pvae.evaluation.measures.measure import Measure, Request
from pvae.marginal.gaps import best_elbo
from pvae.marginal.log_p import LogP, check_continuous
from pvae.trained.codes import given_y
from pvae.trained.scores import Estimate, with_likelihood
from pvae.vae import VAE

if TYPE_CHECKING:
    from pvae.evaluation.context import Context

__all__ = ["Gaps", "TrainGaps"]

_MOST_LOST = 10  # data that are named


@dataclass(frozen=True, kw_only=True)
class Gaps(Measure):
    """Where log p(x) - L[q] is lost, in nats per datum; see `pvae.marginal.gaps.best_elbo`.

    The sum of `amortisation`, `correlations`, `shape` and `rest` is log p(x) - L[q]. Errors are over images; what the
    search for q* misses is not counted in them.

    Args:
        num_images: number of random images whose log p(x) is trusted, of those that were asked for.
        method: the methods of their log p(x).
        log_p: log p(x); like all values below None of fewer than 2 images.
        elbo: L[q].
        approximation: log p(x) - L[q*], where q* is for each image alone the best Normal of independent dimensions.
        correlations: the part of it that the best Normal of any covariance gains.
        shape: the part of it that planar transforms of this Normal gain.
        rest: the part of it that is left.
        amortisation: L[q*] - L[q]; below 0 where the run's own q is of a wider family.
        largest: of the images that lose most, the place among all test or training data, and log p(x) - L[q].
    """

    title = "gaps between log p(x) and the ELBO L[q]"
    request = Request(
        "gaps",
        "of N test data and N training data, how much of log p(x) - ELBO is due to the family of q, and how much to "
        "the encoder, in figures/gaps.png too (with --out NAME.json in NAME-figures); evaluation.json names those that "
        "lose most; some seconds for each",
        "N",
        least=2,
    )

    num_images: int = field(metadata={"data": "those of a random subset whose log p(x) is trusted"})
    method: str = field(metadata={"  log p(x) by": ""})
    log_p: Estimate | None = field(metadata={"  log p(x)": ""}, default=None)
    elbo: Estimate | None = field(metadata={"  L[q]": "their ELBO, from 1,000 draws of z each"}, default=None)
    approximation: Estimate | None = field(
        metadata={"approximation gap": "log p(x) - L[q*], q* the best Normal for each datum"}, default=None
    )
    correlations: Estimate | None = field(
        metadata={"  by correlations": "what the best Normal of any covariance gains"}, default=None
    )
    shape: Estimate | None = field(metadata={"  by another shape": "what planar transforms of it gain"}, default=None)
    rest: Estimate | None = field(metadata={"  by the rest": "what is left; too low where log p(x) is"}, default=None)
    amortisation: Estimate | None = field(
        metadata={"amortisation gap": "L[q*] - L[q], which a better encoder closes"}, default=None
    )
    largest: tuple[tuple[int, float], ...] = ()

    @classmethod
    def check(cls, context: Context) -> None:
        """Raise an `InputError` if the latent has no gaps, or there are fewer data."""
        if count := context.asked(cls):
            check_continuous(context.normalised, context.test)
            if count > len(context.test):
                raise InputError(f"--gaps {count}: there are {len(context.test):,} test data to choose from")

    @classmethod
    def of(cls, context: Context) -> Gaps | None:
        """Return the gaps of random test data."""
        if not (count := context.asked(cls)):
            return None
        rows = random_subset(len(context.batch), count, context.settings.seed)
        return cls(**_gaps(context.normalised, context.batch, context.log_p, rows, context.places[rows]))


class TrainGaps(Gaps):
    """The same of training data."""

    title = "the same gaps of training data"

    @classmethod
    def of(cls, context: Context) -> TrainGaps | None:
        """Return the gaps of random training data."""
        if not (count := context.asked(cls)):
            return None
        run, train = context.run, context.data.train
        rows = random_subset(len(train), count, context.settings.seed)
        _, batch, _ = with_likelihood(run, train, given_y(run, "train"), rows, "train")
        return cls(**_gaps(context.normalised, batch, context.log_p_of(batch), torch.arange(len(rows)), rows))


def _gaps(vae: VAE, batch: Batch, log_p: LogP, rows: Tensor, places: Tensor) -> dict[str, Any]:
    """Return the fields of the gaps of some rows of a batch, int64 (M,), whose places among all data are (M,)."""
    trusted = log_p.is_trusted[rows]
    rows, places = rows[trusted], places[trusted]
    if len(rows) < 2:
        return {"num_images": len(rows), "method": "none: too few are trusted"}
    found, batch = LogP(*(one[rows] for one in log_p)), batch.rows(rows)
    best = best_elbo(vae, batch)
    parts = {
        "log_p": found.log_p,
        "elbo": best.own,
        "approximation": found.log_p - best.normal,
        "correlations": best.full - best.normal,
        "shape": best.flow - best.full,
        "rest": found.log_p - best.flow,
        "amortisation": best.normal - best.own,
    }
    is_finite = torch.stack([*parts.values()]).isfinite().all(0)
    if not is_finite.all():
        return _gaps(vae, batch, found, is_finite.nonzero()[:, 0], places[is_finite])
    estimates = {name: Estimate.of(values) for name, values in parts.items()}
    lost, order = (found.log_p - best.own).topk(min(_MOST_LOST, len(rows)))
    largest = tuple(zip(places[order].tolist(), lost.tolist()))
    return {"num_images": len(rows), "method": methods_of(found), **estimates, "largest": largest}
