"""Log p(x) of the test data, by the method that can be trusted, and of a part of x given the other part."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pvae.core.batch import Batch
from pvae.evaluation.context import Context, Measure, Request, said
from pvae.marginal.annealing import bracket
from pvae.marginal.log_likelihood import (
    ANNEALING,
    MOST_UNTRUSTED,
    check_method,
    conditional_log_likelihood,
    hidden,
)
from pvae.marginal.log_p import LogP
from pvae.runs.run import Run
from pvae.trained.given import given_values
from pvae.trained.scores import Estimate, bits_of, elbo_terms

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
        method: the methods of `estimate`, each with its number of images, as in `pvae.marginal.log_p.NAMES`.
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
        bits_per_dimension: of `estimate`, as in `bits_per_dimension`.
        is_density: whether p(x) is a density.
    """

    pixels: str
    num_images: int = said("data", "of which log p(x) was estimated")
    seconds: float | None
    elbo: Estimate = said("ELBO", "of these data")
    estimate: Estimate = said("log-likelihood", "log p(x)")
    method: str = said("  by")
    sampling_stderr: float | None = said("  error of the method", "a part of the error above")
    bias: float | None = said("  too low by about", "a log of a mean is; more if chosen by lucky draws", default=None)
    num_particles: int
    effective_median: float | None = said("  effective sample size", "the median over the data", default=None)
    effective_least: float | None = said("  the least", "of a datum", default=None)
    pareto_k: float | None = said("  Pareto k", "median of importance sampling; trusted below 0.7 at most")
    untrusted: float = said("  share of untrusted", "data, whose log p(x) is not reliable")
    annealing: Mapping[str, Any] | None = None
    bracket: Estimate | None = said(
        "  upper - lower bound",
        "of data drawn from the VAE; test data have no upper one, and may be harder",
        default=None,
    )
    bracket_median: float | None = said("    the median", default=None)
    bracket_largest: float | None = said("    the largest", "of a datum", default=None)
    bracket_images: int | None = said("    of drawn data", "as many as were annealed, at most 100", default=None)
    bits_per_dimension: Estimate | None = said("  bits per dimension")
    is_density: bool = said("  of a density", "bits are of density times distance of two levels")

    @classmethod
    def check(cls, context: Context) -> None:
        """Raise an `InputError` if the method cannot be taken for this VAE."""
        check_method(context.normalised, context.test, context.how.get("method", "auto"))

    @classmethod
    def of(cls, context: Context) -> LogLikelihood:
        """Return log p(x) of the test data, or of as many as the time sufficed for."""
        vae = context.normalised
        batch = context.batch
        log_p = context.log_p
        known: dict[str, Any] = {}
        num_simulated = min(_SIMULATED, log_p.counts.get("annealed", 0))
        if num_simulated > 0:
            known["annealing"] = dict(context.how.get("annealing", ANNEALING))
        if num_simulated > 1:
            with context.how.get("progress", hidden)("bounds of drawn data", num_simulated) as bar:
                like = batch.rows(slice(num_simulated))
                bounds = bracket(vae, like, **known["annealing"], on_data=bar.update)
            gap = bounds.upper - bounds.lower
            known["bracket"] = Estimate.of(gap)
            known["bracket_median"] = gap.quantile(0.5).item()
            known["bracket_largest"] = gap.max().item()
            known["bracket_images"] = num_simulated
        effective = log_p.effective[~log_p.effective.isnan()]
        if len(effective):
            known["bias"] = log_p.bias
            known["effective_median"] = effective.median().item()
            known["effective_least"] = effective.min().item()
        if len(batch) == len(context.seen) and not context.vae.is_pseudo:
            elbo = context.terms["elbo"]
        else:
            elbo = elbo_terms(vae, batch)["elbo"]
        return cls(
            pixels=pixels_of(context.kind, batch),
            seconds=context.seconds,
            elbo=Estimate.of(elbo),
            num_particles=context.how["num_particles"],
            num_images=len(log_p.log_p),
            estimate=Estimate.of(log_p.log_p),
            method=methods_of(log_p),
            sampling_stderr=finite(log_p.mean_stderr),
            pareto_k=finite(log_p.pareto_k.nanmedian().item()),  # NaN without draws, infinite of few
            untrusted=log_p.untrusted,
            bits_per_dimension=bits_of(vae, log_p.log_p, batch.x),
            is_density=batch.x.is_bytes and getattr(vae.p_x, "levels_per_unit", 1.0) != 1,
            **known,
        )

    def lines(self) -> Iterator[str]:
        """Yield its lines, below the kind of data that it is of."""
        yield ""
        if self.pixels:
            yield f"pixels {self.pixels}"
        else:
            yield "the data as they are"
        yield from super().lines()
        if self.effective_least is not None:
            yield "  too low, without a sign, where no draw finds a mode of p(z | x): see notebooks/evaluating.md"

    def warnings(self) -> Iterator[str]:
        """Yield what is not reliable, and what may help."""
        if self.untrusted > MOST_UNTRUSTED:
            advice = "; ".join(what for name, what in _ADVICE.items() if name in self.method)
            yield f"warning: the log p(x) of {self.untrusted:.1%} of the data is not reliable"
            yield "reliable: the ELBO and its parts"
            yield "the mean is over all data, since trust by lucky draws would choose those that lie low"
            yield f"what may help: {advice}"


def pixels_of(kind: str, batch: Batch) -> str:
    """Return the kind of pixels of a batch, "" for data that are no images, and whether they are given labels."""
    if batch.y is not None:
        kind += "; given their labels y, so that log p(x) is log p(x | y)"
    return kind.lstrip("; ")


def finite(value: float) -> float | None:
    """Return a value, or None if it is NaN or infinite."""
    if math.isfinite(value):
        return value
    return None


def methods_of(log_p: LogP) -> str:
    """Return the methods of log p(x), each with its number of data."""
    return ", ".join(f"{name} {count:,}" for name, count in log_p.counts.items())


@dataclass(frozen=True, kw_only=True)
class Conditional(Measure):
    """The log-likelihood of a part of x given the other part; see `conditional_log_likelihood`.

    Args:
        given: the names of the columns that are given, or how many values of a datum are.
        estimate: the mean of log p(x_a | x_b) over data, x_b what is given, x_a the rest.
        method: the methods of log p(x_b), each with its number of data.
        sampling_stderr: the part of its error that comes from the draws of z, or from quadrature, if that is known.
        untrusted: the fraction of data where an estimate of log p(x) or log p(x_b) is not trusted.
    """

    title = "a part of x given another"
    request = Request(
        "given",
        "the log-likelihood of all other values of x given these: names of columns, with commas in between, or an .npy "
        "file of booleans in the shape of a datum, true where given; of a run with --missing",
        "COLUMNS|MASK",
        needs_all=True,
    )

    given: str = said("given")
    estimate: Estimate = said("log p(x_a | x_b)", "log p(x) - log p(x_b), x_b what is given; no bound")
    method: str = said("  log p(x_b) by")
    sampling_stderr: float | None = said("  error of the methods", "a part of the error above")
    untrusted: float = said("  share of untrusted", "data, whose log p(x_a | x_b) is not reliable")

    @classmethod
    def check(cls, context: Context) -> None:
        """Raise an `InputError` if the text does not name some values of x."""
        context.once(_is_given)

    @classmethod
    def of(cls, context: Context) -> Conditional:
        """Return log p of the values that are not given."""
        is_given = context.once(_is_given)
        joint = context.log_p
        values, _, given = conditional_log_likelihood(context.normalised, context.batch, is_given, joint, **context.how)
        error = math.hypot(joint.mean_stderr, given.mean_stderr)
        return cls(
            given=_name_of(is_given, context.run),
            estimate=Estimate.of(values),
            method=methods_of(given),
            sampling_stderr=finite(error),
            untrusted=(~(joint.is_trusted & given.is_trusted)).double().mean().item(),
        )


def _is_given(context: Context) -> Tensor:
    """Return which values are given, bool (*D)."""
    value: Tensor | str = context.requests["given"]
    if isinstance(value, str):
        return given_values(context.run, value)
    return value


def _name_of(is_given: Tensor, run: Run) -> str:
    """Return the names of the columns that are given, or how many values are."""
    names = [column.name for column, has in zip(run.data.columns, is_given.tolist()) if has]
    if names:
        return ", ".join(names)
    if run.data.is_images:
        unpadded = slice(run.config.pad, -run.config.pad or None)
        is_given = is_given[..., unpadded, unpadded]
    return f"{int(is_given.sum()):,} of {is_given.numel():,} values"
