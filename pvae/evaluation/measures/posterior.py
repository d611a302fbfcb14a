"""How far q(z | x) is from p(z | x): what the ELBO loses by it, and whether it is calibrated."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from pvae.core.batch import Batch
from pvae.core.errors import InputError
from pvae.data.dataset import random_subset
from pvae.evaluation.context import Context, Measure, Request, said
from pvae.evaluation.measures.log_likelihood import methods_of
from pvae.marginal.calibration import calibration
from pvae.marginal.gaps import best_elbo
from pvae.marginal.log_p import LogP, check_continuous
from pvae.trained.codes import given_y
from pvae.trained.scores import Estimate, with_likelihood

_MOST_LOST = 10  # data that are named


@dataclass(frozen=True, kw_only=True)
class Gaps(Measure):
    """Where log p(x) - L[q] is lost, in nats per datum; see `pvae.marginal.gaps.best_elbo`.

    The sum of `amortisation`, `correlations`, `shape` and `rest` is log p(x) - L[q]. Errors are over images; what the
    search for q* misses is not counted in them.

    Args:
        num_images: number of random images, without those of which a part is not finite.
        untrusted: the fraction of them whose log p(x) is not trusted. They are not left out, since those that are
            trusted by lucky draws lie too low.
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
        needs_all=True,
    )

    num_images: int = said("data", "a random subset")
    method: str = said("  log p(x) by")
    untrusted: float | None = said("  share of untrusted", "data, whose gaps are too small", default=None)
    log_p: Estimate | None = said("  log p(x)", default=None)
    elbo: Estimate | None = said("  L[q]", "their ELBO, from 1,000 draws of z each", default=None)
    approximation: Estimate | None = said(
        "approximation gap", "log p(x) - L[q*], q* the best Normal for each datum", default=None
    )
    correlations: Estimate | None = said(
        "  by correlations", "what the best Normal of any covariance gains", default=None
    )
    shape: Estimate | None = said("  by another shape", "what planar transforms of it gain", default=None)
    rest: Estimate | None = said("  by the rest", "what is left; too low where log p(x) is", default=None)
    amortisation: Estimate | None = said(
        "amortisation gap", "L[q*] - L[q], which a better encoder closes", default=None
    )
    largest: tuple[tuple[int, float], ...] = ()

    @classmethod
    def check(cls, context: Context) -> None:
        """Raise an `InputError` if the latent has no gaps, or there are fewer data."""
        count = context.requests["gaps"]
        check_continuous(context.normalised, context.test)
        if count > len(context.test):
            raise InputError(f"--gaps {count}: there are {len(context.test):,} test data to choose from")

    @classmethod
    def of(cls, context: Context) -> Gaps:
        """Return the gaps of random test data."""
        rows = random_subset(len(context.batch), context.requests["gaps"], context.seed)
        places = rows
        if context.rows is not None:
            places = context.rows[rows]
        return cls._of(context, context.batch.rows(rows), _rows_of(context.log_p, rows), places)

    @classmethod
    def _of(cls, context: Context, batch: Batch, log_p: LogP, places: Tensor) -> Gaps:
        """Return the gaps of those data where they are finite; their places are among all data, int64 (M,)."""
        best = best_elbo(context.normalised, batch)
        parts = {
            "log_p": log_p.log_p,
            "elbo": best.own,
            "approximation": log_p.log_p - best.normal,
            "correlations": best.full - best.normal,
            "shape": best.flow - best.full,
            "rest": log_p.log_p - best.flow,
            "amortisation": best.normal - best.own,
        }
        rows = torch.stack([*parts.values()]).isfinite().all(0).nonzero()[:, 0]
        if len(rows) < 2:
            return cls(num_images=len(rows), method="none: too few are finite")
        log_p = _rows_of(log_p, rows)
        lost, order = (parts["log_p"] - parts["elbo"])[rows].topk(min(_MOST_LOST, len(rows)))
        estimates = {name: Estimate.of(values[rows]) for name, values in parts.items()}
        largest = tuple(zip(places[rows][order].tolist(), lost.tolist()))
        return cls(
            num_images=len(rows),
            method=methods_of(log_p),
            untrusted=log_p.untrusted,
            largest=largest,
            **estimates,
        )

    def warnings(self) -> Iterator[str]:
        """Yield how many data have gaps that are not reliable."""
        if self.untrusted:
            yield f"warning: {self.title}: log p(x) of {self.untrusted:.1%} of the data is not reliable, and too low"


def _rows_of(log_p: LogP, rows: Tensor) -> LogP:
    return LogP(*(values[rows] for values in log_p))


class TrainGaps(Gaps):
    """The same of training data."""

    title = "the same gaps of training data"

    @classmethod
    def of(cls, context: Context) -> Gaps:
        """Return the gaps of random training data."""
        run = context.run
        train = context.data.train
        rows = random_subset(len(train), context.requests["gaps"], context.seed)
        _, batch, _ = with_likelihood(run, train, given_y(run, "train"), rows, "train")
        return cls._of(context, batch, context.log_p_of(batch), rows)


_CALIBRATED = 1000  # data that are drawn from the VAE


@dataclass(frozen=True, kw_only=True)
class Coverage(Measure):
    """Whether q(z | x) is calibrated on data drawn from the VAE; see `pvae.marginal.calibration`.

    Args:
        num_images: number of data that were drawn.
        region: how often z is in the region of highest density of q(z | x) of mass 0.9.
        furthest: the largest distance of a share in `latents` from the mass.
        band: how far any share is from the mass at most, at a level of 95 %, if q(z | x) is p(z | x).
        outside: the number of latents with a share that is further from the mass.
        regions: how often z is in the region of highest density of q(z | x) of mass 0.1, 0.2, ..., 0.9.
        latents: for each latent how often z_l is below the quantiles 0.1, 0.2, ..., 0.9 of q(z_l | x).
    """

    title = "calibration of q(z | x)"
    request = Request(
        "calibration",
        "whether q(z | x) is calibrated, on 1,000 data drawn from the VAE; in figures/calibration.png too",
    )

    num_images: int = said("data drawn from the VAE", "whose z are draws from p(z | x)")
    region: float = said("regions of 90 % hold", "this share of them, those of highest density of q")
    furthest: float = said("largest distance", "between a mass, and the share of z_l below that quantile")
    band: float = said("  at most, at 95 %", "of each share from its mass, if q is p(z | x)")
    outside: int = said("  latents beyond it", "whose q(z_l | x) is not calibrated")
    regions: tuple[float, ...]
    latents: tuple[tuple[float, ...], ...]

    @classmethod
    def check(cls, context: Context) -> None:
        """Raise an `InputError` if the latent is not continuous."""
        check_continuous(context.normalised, context.test)

    @classmethod
    def of(cls, context: Context) -> Coverage:
        """Return how often z of data drawn from the VAE is where q(z | x) says."""
        checked = calibration(context.normalised, context.batch, _CALIBRATED)
        of_latents = checked.distances[:-1]
        return cls(
            num_images=_CALIBRATED,
            region=checked.regions[-1].item(),
            furthest=of_latents.max().item(),
            band=checked.band,
            outside=int((of_latents > checked.band).sum()),
            regions=tuple(checked.regions.tolist()),
            latents=tuple(map(tuple, checked.latents.tolist())),
        )
