"""The evaluation of a trained VAE on test images, each value with its standard error, as a record and as text."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

from pvae.core.errors import InputError, one_line
from pvae.core.random_state import seeded
from pvae.data.batch import Batch
from pvae.data.dataset import random_subset
from pvae.data.preparation import Pixels
from pvae.distributions.joint import Joint
from pvae.evaluation.baselines import Baselines
from pvae.evaluation.collapse import LatentsUsed, latents_used
from pvae.evaluation.floor import log_prob_of_each
from pvae.evaluation.learned import baselines_of, floor_of, said_of_collapse, sample_quality_of
from pvae.evaluation.rate_decomposition import RateSplit, active_units, split_rate
from pvae.evaluation.samples import SampleQuality
from pvae.models.labels import found_labels
from pvae.runs.run import Run
from pvae.trained.annealing import bracket, check_continuous
from pvae.trained.calibration import calibration
from pvae.trained.chunks import data_at_once
from pvae.trained.codes import given_y
from pvae.trained.conditional import conditional_log_likelihood
from pvae.trained.elbo_terms import LAYER_RATE, elbo_terms
from pvae.trained.gaps import best_elbo
from pvae.trained.latent_space import mean_of, posteriors
from pvae.trained.log_likelihood import (
    ANNEALING,
    MOST_UNTRUSTED,
    Estimate,
    LogP,
    Progress,
    check_method,
    hidden,
    log_likelihood,
)
from pvae.trained.normalised import bits_per_dimension, with_likelihood
from pvae.vae import VAE

__all__ = [
    "ElboParts",
    "LogLikelihood",
    "RateDecomposition",
    "Report",
    "check_density",
    "evaluate",
    "pixels_of",
    "to_text",
]

_SIMULATED = 100  # data that are drawn from the VAE for a bracket
_FIRST, _MOST_AT_A_TIME = 10, 160  # data whose log p(x) is estimated between two looks at the clock
_CALIBRATED = 1000  # data that are drawn from the VAE for the calibration of q(z | x)
_MOST_LOST = 10  # data that are named

# The metadata of a field below are its label and its note in `to_text`; its name is its key in evaluation.json.


@dataclass(frozen=True, kw_only=True)
class RateDecomposition:
    """The parts of the rate at one draw of z for each of M test images, in nats per datum; see `RateSplit`.

    Args:
        num_images: M: all test images, or a random subset that the report's seed selects.
        rate: log q(z | x) - log p(z), the sum of the three parts at the same draws.
        rate_closed_form: KL(q(z | x) || p(z)) of the same images; without a closed form, its mean over ten draws of z.
        sampling_stderr: the part of the error of `rate` that comes from the draws of z, if there is a closed form.
        mutual_information: between the index of an image and its code, at most `log_images`; in the mean a lower
            bound on I(x; z) over the whole distribution of images.
        mutual_information_upper: the smaller of two estimates, each in the mean an upper bound on I(x; z): the one
            with q(z) over the other images, and the rate. The difference from `mutual_information` bounds the bias.
        total_correlation: KL(q(z) || prod_l q(z_l)).
        dimension_wise_kl: sum_l KL(q(z_l) || p(z_l)).
        log_images: log N, where N is the number of images in q(z): all test images that are evaluated.
    """

    num_images: int = field(metadata={"test data": "a random subset, if there are more; one draw of z each"})
    rate: Estimate = field(metadata={"rate": "log q(z | x) - log p(z), the sum of the three parts"})
    rate_closed_form: Estimate = field(metadata={"  KL(q(z | x) || p(z))": "of the same data, computed as above"})
    sampling_stderr: float = field(metadata={"  error from the draws": "of z, a part of the error of the rate"})
    mutual_information: Estimate = field(metadata={"mutual information": "I(x; z) over all data is at least this"})
    mutual_information_upper: Estimate = field(
        metadata={"  I(x; z) at most": "over all data; less than the line above only by noise"}
    )
    total_correlation: Estimate = field(metadata={"total correlation": "KL(q(z) || prod_l q(z_l))"})
    dimension_wise_kl: Estimate = field(metadata={"dimension-wise KL": "sum_l KL(q(z_l) || p(z_l))"})
    log_images: float = field(metadata={"log N": "the most that the mutual information of N data can be"})


@dataclass(frozen=True, kw_only=True)
class ElboParts:
    """The ELBO and its parts, in nats per datum: means over test images, with ten draws of z for each image.

    Args:
        elbo: the ELBO or pseudo-ELBO.
        bits_per_dimension: of the ELBO, as in `normalised.bits_per_dimension`; None also of a pseudo-ELBO.
        distortion: -E_q log p(x | z).
        rate: KL(q(z | x) || p(z)); without a closed form, its mean over the draws of z.
        layer_rates: the rate of each stochastic layer z1, z2, ..., means over the draws of z; empty for one layer.
        posterior_entropy: H(q(z | x)), exact; None if it has no closed form.
        cross_entropy: H(q(z | x), p(z)); distortion, posterior entropy and cross entropy are post 004's three parts.
        posterior_mean_loss: the loss at the mean of q(z | x), which is not a bound; None without a closed-form KL.
        rate_decomposition: the parts of the rate; None if q(z | x) is not Normal with independent dimensions.
        active_units: for each stochastic layer, the number of latent dimensions whose mean varies over images.
        latent_dims: for each stochastic layer, the number of latent dimensions.
        accuracy: the share of the known labels that are the likeliest by q(y | x); None without `Config.labels`.
    """

    elbo: Estimate = field(metadata={"ELBO": "of data as it was trained on"})
    bits_per_dimension: Estimate | None = field(metadata={"  bits per dimension": ""})
    distortion: Estimate = field(metadata={"  distortion": "-E_q log p(x | z), the reconstruction error"})
    rate: Estimate = field(metadata={"  rate": "KL(q(z | x) || p(z)), in closed form"})
    layer_rates: tuple[Estimate, ...] = field(metadata={"    of each layer": ""})
    posterior_entropy: Estimate | None = field(metadata={"    posterior entropy": "H(q(z | x))"}, default=None)
    cross_entropy: Estimate = field(metadata={"    cross entropy": "H(q(z | x), p(z))"})
    posterior_mean_loss: Estimate | None = field(metadata={"posterior-mean loss": "not a bound"}, default=None)
    rate_decomposition: RateDecomposition | None
    active_units: tuple[int, ...] = field(metadata={"active units": "means with a variance above 0.01"})
    latent_dims: tuple[int, ...] = field(metadata={"  of latent dimensions": ""})
    accuracy: Estimate | None = field(metadata={"accuracy": "share of the labels that q(y | x) finds"}, default=None)


@dataclass(frozen=True, kw_only=True)
class LogLikelihood:
    """The log-likelihood log p(x), in nats per datum, each datum by the method that can be trusted.

    Args:
        num_images: number of images whose log p(x) was estimated; fewer than those of the ELBO if time did not suffice.
        seconds: what the time was bounded by; None if it was not.
        elbo: the ELBO of the same pixels.
        estimate: the mean of log p(x) over images; by importance sampling and annealing in the mean a lower bound.
        method: the methods of `estimate`, each with its number of images, as in `pvae.trained.log_likelihood.METHODS`.
        sampling_stderr: the part of its error that comes from the draws of z, or from quadrature; None where quadrature
            does not know the error of a datum.
        bias: what the estimate is too low by, to first order, since each log p(x) is the logarithm of a mean of draws;
            as in `pvae.trained.log_likelihood.LogP.bias`. None by quadrature.
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


@dataclass(frozen=True, kw_only=True)
class Gaps:
    """Where log p(x) - L[q] is lost, in nats per datum; see `pvae.trained.gaps.best_elbo`.

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


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """Whether q(z | x) is calibrated on data drawn from the VAE; see `pvae.trained.calibration`.

    Args:
        num_images: number of data that were drawn.
        region: how often z is in the region of highest density of q(z | x) of mass 0.9.
        furthest: the largest distance of a share in `latents` from the mass.
        band: how far any share is from the mass at most, at a level of 95 %, if q(z | x) is p(z | x).
        outside: the number of latents with a share that is further from the mass.
        regions: how often z is in the region of highest density of q(z | x) of mass 0.1, 0.2, ..., 0.9.
        latents: for each latent how often z_l is below the quantiles 0.1, 0.2, ..., 0.9 of q(z_l | x).
    """

    num_images: int = field(metadata={"data drawn from the VAE": "whose z are draws from p(z | x)"})
    region: float = field(metadata={"regions of 90 % hold": "this share of them, those of highest density of q"})
    furthest: float = field(metadata={"largest distance": "between a mass, and the share of z_l below that quantile"})
    band: float = field(metadata={"  at most, at 95 %": "of each share from its mass, if q is p(z | x)"})
    outside: int = field(metadata={"  latents beyond it": "whose q(z_l | x) is not calibrated"})
    regions: tuple[float, ...]
    latents: tuple[tuple[float, ...], ...]


@dataclass(frozen=True, kw_only=True)
class Conditional:
    """The log-likelihood of a part of x given the other part; see `pvae.trained.conditional`.

    Args:
        given: the names of the columns that are given, or how many values of a datum are.
        estimate: the mean of log p(x_a | x_b) over data, x_b what is given, x_a the rest.
        method: the methods of log p(x_b), each with its number of data.
        sampling_stderr: the part of its error that comes from the draws of z, or from quadrature, if that is known.
        untrusted: the fraction of data where an estimate of log p(x) or log p(x_b) is not trusted.
    """

    given: str = field(metadata={"given": ""})
    estimate: Estimate = field(metadata={"log p(x_a | x_b)": "log p(x) - log p(x_b), x_b what is given; no bound"})
    method: str = field(metadata={"  log p(x_b) by": ""})
    sampling_stderr: float | None = field(metadata={"  error of the methods": "a part of the error above"})
    untrusted: float = field(metadata={"  share of untrusted": "data, whose log p(x_a | x_b) is not reliable"})


@dataclass(frozen=True, kw_only=True)
class ColumnDistortion:
    """The distortion of a column of a table, in nats per row.

    Args:
        name: of the column.
        distortion: -E_q log p(x_d | z), from one draw of z for each row.
        without_latent: -log p(x_d) by the best distribution of the column alone, as in `floor`.
    """

    name: str
    distortion: Estimate
    without_latent: float


@dataclass(frozen=True, kw_only=True)
class Report:
    """The content of the file that `pvae evaluate` writes.

    Args:
        run: name of the run folder.
        epoch: number of epochs after which the run was evaluated.
        data: name and sizes of the data.
        num_images: number of test images that were evaluated.
        is_subset: whether they are a random subset of the test images.
        pixels: the kind of pixels that `log_likelihood` was computed on; "" for data that are no images.
        pseudo: whether the ELBO of `elbo_parts` is a pseudo-ELBO, because the VAE was trained on grey pixels.
        seed: the seed of all draws and of the random subsets of images.
        elbo_parts: the ELBO and its parts, for the pixels that the VAE was trained on.
        log_likelihood: of the same pixels; of binarized ones if a Bernoulli was trained on grey pixels.
        floor: the ELBO, of `elbo_parts`, that a model without a latent reaches; None if it is not known.
        columns: the distortion of each column of a table.
        gaps: where log p(x) - ELBO is lost, if that was computed.
        train_gaps: the same of training data.
        coverage: whether q(z | x) is calibrated, if that was computed.
        conditional: the log-likelihood of a part of x given the other one, if that was computed.
    """

    run: str
    epoch: int
    data: str
    num_images: int
    is_subset: bool
    pixels: str
    pseudo: bool
    seed: int
    elbo_parts: ElboParts
    log_likelihood: LogLikelihood
    floor: float | None = None
    baselines: Baselines | None = None
    latents: LatentsUsed | None = None
    collapse: str = ""
    samples: SampleQuality | None = None
    columns: tuple[ColumnDistortion, ...] = ()
    gaps: Gaps | None = None
    train_gaps: Gaps | None = None
    coverage: Coverage | None = None
    conditional: Conditional | None = None


def check_density(run: Run) -> None:
    """Check that a run has a likelihood, which was trained.

    Raises:
        InputError: it is an autoencoder, or has not finished an epoch.
    """
    if not run.vae().has_density:
        raise InputError(f"{run.path} is an autoencoder: a point posterior has no bound and no log-likelihood")
    if run.read_checkpoint().epoch == 0:
        raise InputError(f"{run.path} has not finished an epoch; go on with: {run.how_to_resume}")


def evaluate(
    run: Run,
    num_particles: int = 5000,
    num_images: int | None = None,
    seed: int = 0,
    method: str = "auto",
    annealing: Mapping[str, Any] = ANNEALING,
    engine: str = "auto",
    progress: Progress = hidden,
    num_gaps: int = 0,
    has_coverage: bool = False,
    is_given: Tensor | None = None,
    seconds: float | None = None,
) -> Report:
    """Evaluate a trained VAE on test images.

    Args:
        run: the run.
        num_particles: K, the number of importance weights for each image, at least 2.
        num_images: number of test images, a random subset; all if None.
        seed: seed of the subset and of all draws.
        method: of log p(x), as in `log_likelihood`.
        annealing: as in `log_likelihood`.
        engine: "auto", "none", "graph" or "inductor", as in `importance_sample`.
        progress: as in `log_likelihood`.
        num_gaps: number of test images, and of training images, whose gaps are computed, or 0.
        has_coverage: compute whether q(z | x) is calibrated.
        is_given: values of x given which the log-likelihood of the others is computed, as of `given_values`.
        seconds: estimate log p(x) of images in random order, some at a time, until these seconds have passed.

    Raises:
        InputError: the run is an autoencoder, which has no likelihood, or there are fewer than two images, or the
            method cannot be taken for this VAE, or its latent has no gaps.
    """
    check_density(run)
    vae, data = run.vae(), run.dataset()
    rows = None if num_images is None and seconds is None else _rows(len(data.test), num_images, seed, seconds)
    normalised, batch, kind = with_likelihood(run, data.test, given_y(run, "test"), rows)
    seen = Batch(run.preparation.pixels(data.test, rows=rows), batch.y) if vae.is_pseudo else batch
    if len(seen) < 2 or num_particles < 2:
        raise InputError("an evaluation needs at least 2 test images and 2 importance samples")
    check_method(normalised, batch, method)
    if num_gaps or has_coverage:
        check_continuous(normalised, batch)
    how: dict[str, Any] = {"method": method, "num_particles": num_particles, "annealing": annealing}
    how |= {"engine": engine, "progress": progress}
    with seeded(seed, torch.device("cpu")):
        parts = replace(_elbo_parts(vae, seen, seed), accuracy=_accuracy(run, seen, rows))
        log_p = (
            log_likelihood(normalised, batch, **how) if seconds is None else _within(seconds, normalised, batch, how)
        )
        is_same = len(log_p.log_p) == len(batch) and not vae.is_pseudo
        batch = batch.rows(slice(len(log_p.log_p)))
        gap = _bracket(normalised, batch, log_p, annealing)
        elbo = parts.elbo if is_same else Estimate.of(elbo_terms(normalised, batch)["elbo"])
        reached = floor_of(run, seen.x)
        baselines = baselines_of(run, seen)
        latents = latents_used(vae, seen, parts.rate.mean)
        columns = _columns(run, vae, seen, reached)
        places = torch.arange(len(data.test)) if rows is None else rows
        further = _further(run, normalised, batch, log_p, places, how, num_gaps, has_coverage, is_given, seed)
    return Report(
        run=run.path.resolve().name,
        epoch=run.best_checkpoint().epoch,
        data=data.title,
        num_images=len(seen),
        is_subset=len(seen) < len(data.test),
        pixels=pixels_of(kind, batch),
        pseudo=vae.is_pseudo,
        seed=seed,
        elbo_parts=parts,
        log_likelihood=_log_likelihood(normalised, batch.x, log_p, num_particles, gap, elbo, annealing, seconds),
        floor=None if reached is None else reached.sum().item(),
        baselines=baselines,
        latents=latents,
        collapse=said_of_collapse(run, baselines) if latents.is_collapsed else "",
        samples=sample_quality_of(run),
        columns=columns,
        **further,
    )


def _rows(total: int, num_images: int | None, seed: int, seconds: float | None) -> Tensor:
    """Return the places of test data: a random subset, as some are sorted by class; shuffled for `seconds`."""
    rows = random_subset(total, num_images or total, seed)
    return rows if seconds is None else rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))]


def _within(seconds: float, vae: VAE, batch: Batch, how: Mapping[str, Any]) -> LogP:
    """Estimate log p(x) of the data of a batch in their order, some at a time, until the seconds have passed."""
    parts, started, count, size = list[LogP](), time.monotonic(), 0, _FIRST
    while count < len(batch) and (not parts or time.monotonic() - started < seconds):
        parts.append(log_likelihood(vae, batch.rows(slice(count, count + size)), **how))
        count, size = count + size, min(2 * size, _MOST_AT_A_TIME)
    return LogP(*map(torch.cat, zip(*parts)))


def pixels_of(kind: str, batch: Batch) -> str:
    """Return the kind of pixels of a batch, "" for data that are no images, and whether they are given labels."""
    given = "" if batch.y is None else "; given their labels y, so that log p(x) is log p(x | y)"
    return f"{kind}{given}".lstrip("; ")


@torch.no_grad()
def _columns(run: Run, vae: VAE, batch: Batch, reached: Tensor | None) -> tuple[ColumnDistortion, ...]:
    if reached is None or not run.data.columns:
        return ()
    parts = list[Tensor]()
    for part in batch.split(data_at_once(vae, batch)):
        given = vae.given(part.y)
        parts.append(-log_prob_of_each(given.likelihood(given.posterior(part.x).sample()), part.x))
    each = zip(run.data.columns, torch.cat(parts).T, (-reached).tolist())
    return tuple(
        ColumnDistortion(name=one.name, distortion=Estimate.of(values), without_latent=alone)
        for one, values, alone in each
    )


def _accuracy(run: Run, batch: Batch, rows: Tensor | None) -> Estimate | None:
    """Return the share of the known labels that q(y | x) finds; None if no label is a latent."""
    labels = run.dataset().test_labels if run.config.labels else None
    labels = labels if labels is None or rows is None else labels[rows]
    parts = batch.split(data_at_once(run.vae(), batch))
    found = found_labels(run.vae().q_z, (part.x for part in parts), labels)
    return None if found is None else Estimate.of(found)


def _elbo_parts(vae: VAE, batch: Batch, seed: int) -> ElboParts:
    terms, parts = elbo_terms(vae, batch), posteriors(vae, batch)
    layer_rates = tuple(Estimate.of(terms.pop(name)) for name in [*terms] if name.startswith(LAYER_RATE))
    active, first = active_units(torch.cat([mean_of(part) for part in parts])), parts[0]
    layers = active.split(first.sizes if isinstance(first, Joint) else [len(active)])
    try:
        split = split_rate(parts, vae.given(batch.y).prior(), seed=seed)
    except InputError:
        split = None
    return ElboParts(
        **{name: Estimate.of(values) for name, values in terms.items()},
        layer_rates=layer_rates,
        bits_per_dimension=None if vae.is_pseudo else _bits(vae, terms["elbo"], batch.x),
        rate_decomposition=None if split is None else _rate_decomposition(split, terms["rate"].double()),
        active_units=tuple(int(layer.sum()) for layer in layers),
        latent_dims=tuple(map(len, layers)),
    )


def _rate_decomposition(split: RateSplit, rates: Tensor) -> RateDecomposition:
    """Return the means of the parts of the rate, beside those of the rates (N,) of all data that were evaluated."""
    names = ("rate", "mutual_information", "total_correlation", "dimension_wise_kl")
    estimates = {name: Estimate.of(getattr(split, name)) for name in names}
    closed_form = rates[split.rows]
    return RateDecomposition(
        num_images=len(split.rows),
        **estimates,
        rate_closed_form=Estimate.of(closed_form),
        sampling_stderr=Estimate.of(split.rate - closed_form).stderr,
        mutual_information_upper=min(Estimate.of(split.leave_one_out), estimates["rate"], key=lambda bound: bound.mean),
        log_images=math.log(len(rates)),
    )


def _bracket(vae: VAE, batch: Batch, log_p: LogP, annealing: Mapping[str, Any]) -> Tensor | None:
    """Return upper minus lower bounds, of as many simulated data as were annealed, at most 100."""
    if (count := min(_SIMULATED, log_p.counts.get("annealed", 0))) < 2:
        return None
    found = bracket(vae, batch.rows(slice(count)), **annealing)
    return found.upper - found.lower


def _further(
    run: Run,
    vae: VAE,
    batch: Batch,
    log_p: LogP,
    places: Tensor,
    how: Mapping[str, Any],
    num_gaps: int,
    has_coverage: bool,
    is_given: Tensor | None,
    seed: int,
) -> dict[str, Any]:
    """Return what is computed on request, by the fields of `Report`; `places` (N,) are those of a batch in its data."""
    further = dict[str, Any]()
    if num_gaps:
        rows, train = random_subset(len(batch), num_gaps, seed), run.dataset().train
        further["gaps"] = _gaps(vae, batch, log_p, rows, places[rows])
        rows = random_subset(len(train), num_gaps, seed)
        _, batch_of_train, _ = with_likelihood(run, train, given_y(run, "train"), rows, "train")
        found = log_likelihood(vae, batch_of_train, **how)
        further["train_gaps"] = _gaps(vae, batch_of_train, found, torch.arange(len(rows)), rows)
    if has_coverage:
        further["coverage"] = _coverage(vae, batch)
    if is_given is not None:
        further["conditional"] = _conditional(run, vae, batch, is_given, log_p, how)
    return further


def _gaps(vae: VAE, batch: Batch, log_p: LogP, rows: Tensor, places: Tensor) -> Gaps:
    """Return the gaps of some rows of a batch, int64 (M,), whose places among all data are (M,)."""
    trusted = log_p.is_trusted[rows]
    rows, places = rows[trusted], places[trusted]
    if len(rows) < 2:
        return Gaps(num_images=len(rows), method="none: too few are trusted")
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
    return Gaps(num_images=len(rows), method=_methods(found), **estimates, largest=largest)


def _coverage(vae: VAE, batch: Batch) -> Coverage:
    found = calibration(vae, batch, _CALIBRATED)
    of_latents = found.distances[:-1]
    return Coverage(
        num_images=_CALIBRATED,
        region=found.regions[-1].item(),
        furthest=of_latents.max().item(),
        band=found.band,
        outside=int((of_latents > found.band).sum()),
        regions=tuple(found.regions.tolist()),
        latents=tuple(map(tuple, found.latents.tolist())),
    )


def _conditional(
    run: Run, vae: VAE, batch: Batch, is_given: Tensor, joint: LogP, how: Mapping[str, Any]
) -> Conditional:
    values, _, given = conditional_log_likelihood(vae, batch, is_given, joint, **how)
    error = math.hypot(joint.mean_stderr, given.mean_stderr)
    names = ", ".join(column.name for column, has in zip(run.data.columns, is_given.tolist()) if has)
    inner = is_given[(..., *[slice(run.config.pad, -run.config.pad or None)] * 2)] if run.data.is_images else is_given
    return Conditional(
        given=names or f"{int(inner.sum()):,} of {inner.numel():,} values",
        estimate=Estimate.of(values),
        method=_methods(given),
        sampling_stderr=error if math.isfinite(error) else None,
        untrusted=(~(joint.is_trusted & given.is_trusted)).double().mean().item(),
    )


def _methods(found: LogP) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in found.counts.items())


def _log_likelihood(
    vae: VAE,
    x: Pixels,
    found: LogP,
    num_particles: int,
    gap: Tensor | None,
    elbo: Estimate,
    annealing: Mapping[str, Any],
    seconds: float | None,
) -> LogLikelihood:
    effective = found.effective[~found.effective.isnan()]
    k = found.pareto_k.nanmedian().item()  # NaN without draws, infinite of few
    return LogLikelihood(
        num_images=len(found.log_p),
        seconds=seconds,
        elbo=elbo,
        estimate=Estimate.of(found.log_p),
        method=_methods(found),
        sampling_stderr=found.mean_stderr if math.isfinite(found.mean_stderr) else None,
        bias=found.bias if len(effective) else None,
        num_particles=num_particles,
        effective_median=effective.median().item() if len(effective) else None,
        effective_least=effective.min().item() if len(effective) else None,
        pareto_k=k if math.isfinite(k) else None,
        untrusted=found.untrusted,
        annealing=dict(annealing) if "annealed" in found.counts else None,
        bracket=None if gap is None else Estimate.of(gap),
        bracket_median=None if gap is None else gap.quantile(0.5).item(),
        bracket_largest=None if gap is None else gap.max().item(),
        bracket_images=None if gap is None else len(gap),
        bits_per_dimension=_bits(vae, found.log_p, x),
        is_density=x.is_bytes and getattr(vae.p_x, "levels_per_unit", 1.0) != 1,
    )


def _bits(vae: VAE, log_p: Tensor, x: Pixels) -> Estimate | None:
    bits = bits_per_dimension(vae, log_p, x)
    return None if bits is None else Estimate.of(bits)


_UNSEEN = """\
  too low, without a sign, where no draw finds a mode of p(z | x): see notebooks/bounds.md"""


_ADVICE = {
    "quadrature": "--method auto",
    "importance": "more --importance-samples, or --method annealed",
    "annealed": "more --temperatures or --chains",
}


def to_text(report: Report) -> str:
    """Return the report as a table, with a note on the meaning of each value."""
    parts, log_p = report.elbo_parts, report.log_likelihood
    tested = f"{'random ' if report.is_subset else ''}test data"
    special = {}
    if report.pseudo:
        special["elbo"] = "pseudo-ELBO", "of the grey pixels that it was trained on"
    if parts.posterior_mean_loss is None:  # as without a closed form of the rate
        special["rate"] = "  rate", "KL(q(z | x) || p(z)), from ten draws of z"
    lines = [
        f"{report.run}, epoch {report.epoch}, {report.num_images:,} {tested} of {report.data}",
        "nats per datum; +- is the standard error over data; another seed may change a run by more",
        "",
        *_lines(parts, **special),
    ]
    if report.floor is not None:
        note = f"test {'pseudo-' * report.pseudo}ELBO, by the best distribution of each value alone"
        lines.append(f"{'without a latent':26}{report.floor:<22.2f}  {note}")
    if report.baselines is not None:
        lines += _lines(report.baselines)
    if report.latents is not None:
        lines += _lines(report.latents)
    if report.columns:
        lines += ["", f"{'distortion of each column':48}  without a latent"]
    for one in report.columns:
        lines.append(f"  {one_line(one.name):24}{one.distortion!s:22}  {one.without_latent:.4g}")
    if (samples := report.samples) is not None:
        lines += ["", "draws from the VAE beside the test rows", *_lines(samples)]
        for what, worst in (("columns", samples.worst_columns), ("pairs", samples.worst_pairs)):
            lines += [f"  most distant {what}"] * bool(worst) + [f"    {one}" for one in worst]
    lines += ["", "parts of the rate"]
    if parts.rate_decomposition is None:
        lines.append("not computed: they need a Normal q(z | x) and p(z) whose dimensions are independent")
    else:
        lines += _lines(parts.rate_decomposition)
    lines += [
        "",
        f"{report.pixels and 'pixels '}{report.pixels or 'the data as they are'}",
        *_lines(log_p),
        *[_UNSEEN] * (log_p.effective_least is not None),
    ]
    further = {
        "gaps between log p(x) and the ELBO L[q]": report.gaps,
        "the same gaps of training data": report.train_gaps,
        "calibration of q(z | x)": report.coverage,
        "a part of x given another": report.conditional,
    }
    for title, part in further.items():
        if part is not None:
            lines += ["", title, *_lines(part)]
    if report.collapse:
        lines += ["", f"warning: {report.collapse}"]
    if log_p.untrusted > MOST_UNTRUSTED:
        advice = "; ".join(what for name, what in _ADVICE.items() if name in log_p.method)
        lines += [
            "",
            f"warning: the log p(x) of {log_p.untrusted:.1%} of the data is not reliable",
            "reliable: the ELBO and its parts",
            f"what may help: {advice}",
        ]
    return "\n".join(lines)


def _lines(part: Any, **special: tuple[str, str]) -> Iterator[str]:
    """Yield a line for each field that has a label and a value; `special` has other labels and notes of fields."""
    for one in fields(part):
        value = getattr(part, one.name)
        if one.metadata and value is not None and value is not False and value != ():
            label, note = special.get(one.name, *one.metadata.items())
            values = value if isinstance(value, tuple) else (value,)
            shown = ", ".join(f"{one:.4g}" if isinstance(one, float) else str(one) for one in values)
            yield f"{label:26}{shown:22}  {note}".rstrip()
