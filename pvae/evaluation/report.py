"""The evaluation of a trained VAE on test images, each value with its standard error, as a record and as text."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from pvae.core.errors import InputError
from pvae.core.random_state import seeded
from pvae.data.dataset import random_subset
from pvae.data.preparation import Pixels
from pvae.distributions.hierarchy import Hierarchy
from pvae.evaluation.rate_decomposition import active_units, split_rate
from pvae.runs.run import Run
from pvae.trained.codes import test_images
from pvae.trained.log_likelihood import (
    LAYER_RATE,
    MOST_UNTRUSTED,
    TRUSTED,
    Estimate,
    ImportanceSample,
    bits_per_dimension,
    elbo_terms,
    importance_sample,
    with_normalised_likelihood,
)
from pvae.vae import VAE

__all__ = ["ElboParts", "LogLikelihood", "RateDecomposition", "Report", "evaluate", "to_text"]

_ACTIVE = "those whose posterior mean varies (variance above 0.01)"


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

    num_images: int
    rate: Estimate
    rate_closed_form: Estimate
    sampling_stderr: float
    mutual_information: Estimate
    mutual_information_upper: Estimate
    total_correlation: Estimate
    dimension_wise_kl: Estimate
    log_images: float

    @classmethod
    def of(cls, vae: VAE, x: Pixels, seed: int, rates: Tensor) -> RateDecomposition | None:
        """Return the parts of the rate of a random subset of images, or None if the VAE's rate cannot be split.

        Args:
            vae: in eval mode.
            x: N images.
            seed: selects the subset.
            rates: `rate_closed_form` of each image, (N,).
        """
        try:
            split = split_rate(vae, x, seed=seed)
        except InputError:
            return None
        names = ("rate", "mutual_information", "total_correlation", "dimension_wise_kl")
        estimates = {name: Estimate.of(getattr(split, name)) for name in names}
        upper, closed_form = Estimate.of(split.leave_one_out), rates[split.images]
        return cls(
            num_images=len(split.images),
            **estimates,
            rate_closed_form=Estimate.of(closed_form),
            sampling_stderr=Estimate.of(split.rate - closed_form).stderr,
            mutual_information_upper=min(upper, estimates["rate"], key=lambda bound: bound.mean),
            log_images=math.log(len(x)),
        )


@dataclass(frozen=True, kw_only=True)
class ElboParts:
    """The ELBO and its parts, in nats per datum: means over test images, with ten draws of z for each image.

    Args:
        elbo: the ELBO or pseudo-ELBO.
        bits_per_dimension: of the ELBO, as in `log_likelihood.bits_per_dimension`; None of a pseudo-ELBO.
        distortion: -E_q log p(x | z).
        rate: KL(q(z | x) || p(z)); without a closed form, its mean over the draws of z.
        layer_rates: the rate of each stochastic layer z1, z2, ..., means over the draws of z; empty for one layer.
        posterior_entropy: H(q(z | x)), exact; None if it has no closed form.
        cross_entropy: H(q(z | x), p(z)); distortion, posterior entropy and cross entropy are post 004's three parts.
        posterior_mean_loss: the loss at the mean of q(z | x), which is not a bound; None without a closed-form KL.
        rate_decomposition: the parts of the rate; None if q(z | x) is not Normal with independent dimensions.
        active_units: for each stochastic layer, the number of latent dimensions whose mean varies over images.
        latent_dims: for each stochastic layer, the number of latent dimensions.
    """

    elbo: Estimate
    bits_per_dimension: Estimate | None
    distortion: Estimate
    rate: Estimate
    layer_rates: tuple[Estimate, ...] = ()
    posterior_entropy: Estimate | None = None
    cross_entropy: Estimate
    posterior_mean_loss: Estimate | None = None
    rate_decomposition: RateDecomposition | None
    active_units: tuple[int, ...]
    latent_dims: tuple[int, ...]

    @classmethod
    def of(cls, vae: VAE, x: Pixels, seed: int) -> ElboParts:
        """Return the ELBO of images and its parts.

        Args:
            vae: in eval mode.
            x: images, with the pixels that the VAE was trained on.
            seed: selects the random subset of images whose rate is split.
        """
        terms = elbo_terms(vae, x)
        active, prior = active_units(vae, x), vae.prior()
        layer_rates = tuple(Estimate.of(terms.pop(name)) for name in [*terms] if name.startswith(LAYER_RATE))
        bits = None if vae.is_pseudo else Estimate.of(bits_per_dimension(vae, terms["elbo"], x))
        layers = active.split(prior.sizes if isinstance(prior, Hierarchy) else [len(active)])
        return cls(
            **{name: Estimate.of(values) for name, values in terms.items()},
            layer_rates=layer_rates,
            bits_per_dimension=bits,
            rate_decomposition=RateDecomposition.of(vae, x, seed, terms["rate"].double()),
            active_units=tuple(int(layer.sum()) for layer in layers),
            latent_dims=tuple(map(len, layers)),
        )


@dataclass(frozen=True, kw_only=True)
class LogLikelihood:
    """The log-likelihood log p(x) by importance sampling, in nats per datum.

    Args:
        elbo: the ELBO of the same pixels.
        estimate: the mean over images of log (1/K) sum_k w_k; in the mean a lower bound on log p(x).
        sampling_stderr: the part of its error that comes from the draws of z, which shrinks as K grows.
        num_particles: K, the number of importance weights for each image.
        effective_median: the median over images of the effective sample size.
        effective_least: the least effective sample size of an image.
        untrusted: the fraction of images whose effective sample size is below 10: a few draws dominate their estimates.
        bits_per_dimension: of `estimate`, as in `log_likelihood.bits_per_dimension`.
        is_density: whether p(x) is a density.
    """

    elbo: Estimate
    estimate: Estimate
    sampling_stderr: float
    num_particles: int
    effective_median: float
    effective_least: float
    untrusted: float
    bits_per_dimension: Estimate
    is_density: bool

    @classmethod
    def of(cls, vae: VAE, x: Pixels, sample: ImportanceSample, elbo: Estimate) -> LogLikelihood:
        """Return the log-likelihood of images, with the ELBO of the same pixels.

        Args:
            vae: in eval mode.
            x: images.
            sample: the importance sample of the images.
            elbo: the ELBO of the same pixels.
        """
        effective = sample.effective
        return cls(
            elbo=elbo,
            estimate=Estimate.of(sample.log_p),
            sampling_stderr=sample.mean_stderr,
            num_particles=sample.num_particles,
            effective_median=effective.median().item(),
            effective_least=effective.min().item(),
            untrusted=sample.untrusted,
            bits_per_dimension=Estimate.of(bits_per_dimension(vae, sample.log_p, x)),
            is_density=getattr(vae.p_x, "levels_per_unit", 1.0) != 1,
        )


@dataclass(frozen=True, kw_only=True)
class Report:
    """The content of the file that `python -m pvae.evaluate` writes.

    Args:
        run: name of the run folder.
        epoch: number of epochs after which the run was evaluated.
        data: name and sizes of the data.
        progress: "epoch 3", or "epoch 3 and step 60" of a training that was stopped in its fourth epoch.
        num_images: number of test images that were evaluated.
        is_subset: whether they are a random subset of the test images.
        pixels: the kind of pixels that `log_likelihood` was computed on.
        pseudo: whether the ELBO of `elbo_parts` is a pseudo-ELBO, because the VAE was trained on grey pixels.
        seed: the seed of all draws and of the random subsets of images.
        precision: precision of the matrix products in `log_likelihood`: "fp32" or "bf16".
        elbo_parts: the ELBO and its parts, for the pixels that the VAE was trained on.
        log_likelihood: of the same pixels; of binarized ones if a Bernoulli was trained on grey pixels.
    """

    run: str
    epoch: int
    data: str
    progress: str
    num_images: int
    is_subset: bool
    pixels: str
    pseudo: bool
    seed: int
    precision: str
    elbo_parts: ElboParts
    log_likelihood: LogLikelihood


def evaluate(
    run: Run,
    num_particles: int = 5000,
    num_images: int | None = None,
    seed: int = 0,
    on_images: Callable[[int], object] = lambda count: None,
    *,
    engine: str = "auto",
    precision: str = "fp32",
    seconds: float = 0,
    on_sample: Callable[[ImportanceSample, float], object] = lambda sample, taken: None,
) -> Report:
    """Evaluate a trained VAE on test images.

    While the importance weights of more than 1 % of the images cannot be trusted, as many draws again are added, as
    long as all draws together take at most `seconds`.

    Args:
        run: the run.
        num_particles: K, the number of importance weights for each image, at least 2, before any are added.
        num_images: number of test images, a random subset; all if None.
        seed: seed of the subset and of all draws.
        on_images: called after each part of the importance sampling with the number of images in it.
        engine: "auto", "none", "graph" or "inductor", as in `importance_sample`.
        precision: "fp32" or "bf16", as in `importance_sample`.
        seconds: for the importance sampling; 0 to add no draws.
        on_sample: called with the importance sample after the first draws and after each addition, and with the seconds
            that it has taken.

    Raises:
        InputError: the run is an autoencoder, which has no likelihood, or there are fewer than two images.
    """
    vae, data = run.vae(), run.dataset()
    if not vae.has_density:
        raise InputError(f"{run.path} is an autoencoder: a point posterior has no bound and no log-likelihood")
    seen = test_images(run)
    binary, x, kind = with_normalised_likelihood(run.config, vae, run.data.image_shape, data.test)
    if num_images is not None:
        subset = random_subset(len(seen), num_images, seed)  # some data sets are sorted by class
        seen, x = (replace(pixels, images=pixels.images[subset]) for pixels in (seen, x))
    if len(seen) < 2 or num_particles < 2:
        raise InputError("an evaluation needs at least 2 test images and 2 importance samples")
    checkpoint = run.best_checkpoint()
    with seeded(seed, torch.device("cpu")):
        parts = ElboParts.of(vae, seen, seed)
        draw = partial(importance_sample, binary, x, on_images=on_images, engine=engine, precision=precision)
        start = time.perf_counter()
        sample, taken = draw(num_particles), time.perf_counter() - start
        on_sample(sample, taken)
        while sample.untrusted > MOST_UNTRUSTED and 2 * taken <= seconds:
            sample, taken = sample.merged(draw(sample.num_particles)), time.perf_counter() - start
            on_sample(sample, taken)
        elbo = Estimate.of(elbo_terms(binary, x)["elbo"]) if vae.is_pseudo else parts.elbo
        log_likelihood = LogLikelihood.of(binary, x, sample, elbo)
    return Report(
        run=run.path.resolve().name,
        epoch=checkpoint.counts.epoch,
        progress=checkpoint.progress,
        data=data.title,
        num_images=len(seen),
        is_subset=len(seen) < len(data.test),
        pixels=kind,
        pseudo=vae.is_pseudo,
        seed=seed,
        precision=precision,
        elbo_parts=parts,
        log_likelihood=log_likelihood,
    )


_Row = tuple[str, Estimate | str | None, str]  # name, value and note; a row without a value is left out


def to_text(report: Report) -> str:
    """Return the report as a table, with a note on the meaning of each value."""
    images = f"{'random ' if report.is_subset else ''}test images"
    rows: list[_Row] = [
        (f"{report.run}, {report.progress}, {report.num_images:,} {images} of {report.data}", "", ""),
        ("nats per datum, mean +- standard error over images and draws", "", ""),
        ("", "", ""),
        *_elbo_rows(report),
        ("", "", ""),
        *_decomposition_rows(report),
        ("", "", ""),
        *_log_likelihood_rows(report),
    ]
    cells = [(name, str(value), note) for name, value, note in rows if value is not None]
    width = max(22, *(2 + len(value) for _, value, note in cells if note))  # of the values, which end before the notes
    return "\n".join(f"{name:24}{value:{width}}{note}".rstrip() for name, value, note in cells)


def _elbo_rows(report: Report) -> list[_Row]:
    parts = report.elbo_parts
    grey = ", which are grey" if report.pseudo else ""
    of_rate = "KL(q(z | x) || p(z))" + ("" if _has_closed_form(parts) else ", from ten draws of z")
    active, dims = ("+".join(map(str, counts)) for counts in (parts.active_units, parts.latent_dims))
    return [
        ("pseudo-ELBO" if report.pseudo else "ELBO", parts.elbo, f"of the pixels that it was trained on{grey}"),
        ("  bits per dimension", parts.bits_per_dimension, _note_on_bits(report)),
        ("  distortion", parts.distortion, "-E_q log p(x | z), the reconstruction error"),
        ("  rate", parts.rate, of_rate),
        *((f"    of z{number}", rate, "") for number, rate in enumerate(parts.layer_rates, 1)),
        ("    posterior entropy", parts.posterior_entropy, "the rate is cross entropy less posterior entropy"),
        ("    cross entropy", parts.cross_entropy if parts.posterior_entropy is not None else None, ""),
        ("posterior-mean loss", parts.posterior_mean_loss, "not a bound"),
        ("active units", f"{active} of {dims} latent dimensions, {_ACTIVE}", ""),
    ]


def _decomposition_rows(report: Report) -> list[_Row]:
    split = report.elbo_parts.rate_decomposition
    if split is None:
        needs = "they need a Normal q(z | x) and p(z) whose dimensions are independent"
        return [("parts of the rate", "not computed", needs)]
    subset = f"random test images (seed {report.seed})" if split.num_images < report.num_images else "test images"
    is_exact = _has_closed_form(report.elbo_parts)
    draws = f"; {split.sampling_stderr:.2g} nats of the error are from the draws" if is_exact else ""
    most = (
        f"between the index of an image and its code; at most log N = {split.log_images:.2f}, N = {report.num_images:,}"
    )
    return [
        (f"rate of {split.num_images:,} {subset}, one draw of z each, and its three parts", "", ""),
        ("  rate", split.rate, f"log q(z | x) - log p(z){draws}"),
        (
            "  in closed form" if is_exact else "  from ten draws",
            split.rate_closed_form,
            "KL(q(z | x) || p(z)) of the same images",
        ),
        ("  mutual information", split.mutual_information, most),
        ("    I(x; z) at least", split.mutual_information, "over all possible images, not only these"),
        ("    I(x; z) at most", split.mutual_information_upper, ""),
        ("  total correlation", split.total_correlation, "KL(q(z) || prod_l q(z_l))"),
        ("  dimension-wise KL", split.dimension_wise_kl, "sum_l KL(q(z_l) || p(z_l))"),
    ]


def _log_likelihood_rows(report: Report) -> list[_Row]:
    log_p = report.log_likelihood
    products = "; matrix products in bfloat16" if report.precision == "bf16" else ""
    effective = (
        f"{log_p.effective_median:.0f} of {log_p.num_particles:,} in the median, {log_p.effective_least:.1f} at least"
    )
    rows: list[_Row] = [
        (f"log p(x), {log_p.num_particles:,} importance samples an image; pixels {report.pixels}{products}", "", ""),
        ("  ELBO", log_p.elbo if report.pseudo else None, "of the same pixels"),
        ("  log-likelihood", log_p.estimate, f"{log_p.sampling_stderr:.2g} nats of the error are from the draws"),
        ("  bits per dimension", log_p.bits_per_dimension, _note_on_bits(report)),
        ("  effective sample size", effective, ""),
    ]
    if log_p.untrusted > MOST_UNTRUSTED:
        what = f"the importance weights of {log_p.untrusted:.1%} of the images cannot be trusted"
        rows += [
            ("", "", ""),
            (f"warning: {what}: their effective sample size is below {TRUSTED:.0f}", "", ""),
            ("reliable", "the ELBO, its parts and its bits per dimension: they use no importance weights", ""),
            ("unreliable", "the log-likelihood, too low by an unknown amount, and its bits per dimension", ""),
            ("what may help", "more --importance-samples, or --seconds T, which doubles them within T seconds", ""),
        ]
    return rows


def _note_on_bits(report: Report) -> str:
    is_density = report.log_likelihood.is_density
    return "of the density times the distance between two levels, not of the bytes" if is_density else ""


def _has_closed_form(parts: ElboParts) -> bool:
    """Whether the rate is a closed form and not a mean over draws; only then there is a posterior-mean loss."""
    return parts.posterior_mean_loss is not None
