"""`LogLikelihood`: log p(x) of the test data, each by the method that can be trusted, with its errors."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor

from pvae.core.batch import Batch
from pvae.evaluation.measures.measure import Measure, lines_of
from pvae.marginal.annealing import bracket
from pvae.marginal.log_likelihood import MOST_UNTRUSTED, check_method
from pvae.marginal.log_p import LogP
from pvae.trained.scores import Estimate, bits_of, elbo_terms
from pvae.vae import VAE

if TYPE_CHECKING:
    from pvae.evaluation.context import Context

__all__ = ["LogLikelihood", "methods_of", "pixels_of"]

_SIMULATED = 100  # data that are drawn from the VAE for a bracket
_ADVICE = {
    "quadrature": "--method auto",
    "importance": "more --importance-samples, or --method annealed if z is of real numbers",
    "annealed": "more --temperatures or --chains",
}


@dataclass(frozen=True, kw_only=True)
class LogLikelihood(Measure):
    """The log-likelihood log p(x), in nats per datum, each datum by the method that can be trusted.

    Args:
        pixels: the kind of pixels that it is of, and whether labels are given; "" for data that are no images.
        num_images: number of images whose log p(x) was estimated; fewer than those of the ELBO if time did not suffice.
        seconds: what the time was bounded by; None if it was not.
        elbo: the ELBO of the same pixels.
        estimate: the mean of log p(x) over images; by importance sampling and annealing in the mean a lower bound.
        method: the methods of `estimate`, each with its number of images, as in `pvae.marginal.log_likelihood.METHODS`.
        sampling_stderr: the part of its error that comes from the draws of z, or from quadrature; None where quadrature
            does not know the error of a datum.
        bias: what the estimate is too low by, to first order, since each log p(x) is the logarithm of a mean of draws;
            as in `pvae.marginal.log_likelihood.LogP.bias`. None by quadrature.
        num_particles: K, the number of importance weights for each image.
        effective_median: the median over images of the effective sample size of their weights; None by quadrature.
        effective_least: the least effective sample size of an image; None by quadrature.
        pareto_k: the median over images of the shape of the tail of their importance weights, also where annealing took
            over; None if there are none or few, or all are equal.
        untrusted: the fraction of images whose estimates their diagnostics do not trust.
        annealing: temperatures, chains and start of annealing, if this was taken.
        bracket: upper minus lower bound on log p(x) of images that were drawn from the VAE, by annealing, if this was
            taken: the mean. What the annealed images are too low by may be more, since they are not such draws, but
            those that importance sampling is not trusted with. None otherwise.
        bracket_median: its median.
        bracket_largest: its largest value.
        bracket_images: the number of images that it was computed of.
        bits_per_dimension: of `estimate`, as in `normalised.bits_per_dimension`.
        is_density: whether p(x) is a density.
    """

    pixels: str
    num_images: int = field(metadata={"data": "of which log p(x) was estimated"})
    seconds: float | None
    elbo: Estimate = field(metadata={"ELBO": "of these data"})
    estimate: Estimate = field(metadata={"log-likelihood": "log p(x)"})
    method: str = field(metadata={"  by": ""})
    sampling_stderr: float | None = field(metadata={"  error of the method": "a part of the error above"})
    bias: float | None = field(metadata={"  too low by about": "a log of a mean is; more if chosen by lucky draws"})
    num_particles: int
    effective_median: float | None = field(metadata={"  effective sample size": "the median over the data"})
    effective_least: float | None = field(metadata={"  the least": "of a datum"})
    pareto_k: float | None = field(metadata={"  Pareto k": "median of importance sampling; trusted below 0.7 at most"})
    untrusted: float = field(metadata={"  share of untrusted": "data, whose log p(x) is not reliable"})
    annealing: Mapping[str, Any] | None
    bracket: Estimate | None = field(
        metadata={"  upper - lower bound": "of data drawn from the VAE; test data have no upper one, and may be harder"}
    )
    bracket_median: float | None = field(metadata={"    the median": ""})
    bracket_largest: float | None = field(metadata={"    the largest": "of a datum"})
    bracket_images: int | None = field(metadata={"    of drawn data": "as many as were annealed, at most 100"})
    bits_per_dimension: Estimate | None = field(metadata={"  bits per dimension": ""})
    is_density: bool = field(metadata={"  of a density": "bits are of density times distance of two levels"})

    @classmethod
    def check(cls, context: Context) -> None:
        """Raise an `InputError` if the method cannot be taken for this VAE."""
        check_method(context.normalised, context.test, context.settings.method)

    @classmethod
    def of(cls, context: Context) -> LogLikelihood:
        """Return log p(x) of the test data, or of as many as the time sufficed for."""
        vae, batch, found, annealing = context.normalised, context.batch, context.log_p, context.settings.annealing
        gap = _bracket(vae, batch, found, annealing)
        if len(batch) == len(context.seen) and not context.vae.is_pseudo:
            elbo = context.terms["elbo"]
        else:
            elbo = elbo_terms(vae, batch)["elbo"]
        effective = found.effective[~found.effective.isnan()]
        k = found.pareto_k.nanmedian().item()  # NaN without draws, infinite of few
        return cls(
            pixels=pixels_of(context.kind, batch),
            seconds=context.settings.seconds,
            elbo=Estimate.of(elbo),
            num_particles=context.settings.num_particles,
            num_images=len(found.log_p),
            estimate=Estimate.of(found.log_p),
            method=methods_of(found),
            sampling_stderr=found.mean_stderr if math.isfinite(found.mean_stderr) else None,
            bias=found.bias if len(effective) else None,
            effective_median=effective.median().item() if len(effective) else None,
            effective_least=effective.min().item() if len(effective) else None,
            pareto_k=k if math.isfinite(k) else None,
            untrusted=found.untrusted,
            annealing=dict(annealing) if "annealed" in found.counts else None,
            bracket=None if gap is None else Estimate.of(gap),
            bracket_median=None if gap is None else gap.quantile(0.5).item(),
            bracket_largest=None if gap is None else gap.max().item(),
            bracket_images=None if gap is None else len(gap),
            bits_per_dimension=bits_of(vae, found.log_p, batch.x),
            is_density=batch.x.is_bytes and getattr(vae.p_x, "levels_per_unit", 1.0) != 1,
        )

    def lines(self) -> Iterator[str]:
        """Yield its lines, below the kind of data that it is of."""
        yield ""
        yield f"{self.pixels and 'pixels '}{self.pixels or 'the data as they are'}"
        yield from lines_of(self)
        if self.effective_least is not None:
            yield "  too low, without a sign, where no draw finds a mode of p(z | x): see notebooks/evaluating.md"

    def warnings(self) -> Iterator[str]:
        """Yield what is not reliable, and what may help."""
        if self.untrusted > MOST_UNTRUSTED:
            advice = "; ".join(what for name, what in _ADVICE.items() if name in self.method)
            yield f"warning: the log p(x) of {self.untrusted:.1%} of the data is not reliable"
            yield "reliable: the ELBO and its parts"
            yield f"what may help: {advice}"


def pixels_of(kind: str, batch: Batch) -> str:
    """Return the kind of pixels of a batch, "" for data that are no images, and whether they are given labels."""
    given = "" if batch.y is None else "; given their labels y, so that log p(x) is log p(x | y)"
    return f"{kind}{given}".lstrip("; ")


def _bracket(vae: VAE, batch: Batch, log_p: LogP, annealing: Mapping[str, Any]) -> Tensor | None:
    """Return upper minus lower bounds, of as many simulated data as were annealed, at most 100."""
    if (count := min(_SIMULATED, log_p.counts.get("annealed", 0))) < 2:
        return None
    found = bracket(vae, batch.rows(slice(count)), **annealing)
    return found.upper - found.lower


def methods_of(found: LogP) -> str:
    """Return the methods of log p(x), each with its number of data."""
    return ", ".join(f"{name} {count:,}" for name, count in found.counts.items())
