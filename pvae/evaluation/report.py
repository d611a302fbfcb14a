"""The report of a trained VAE: every figure that can be cited, each with its error, as a record and as text."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributions import kl_divergence

from pvae.core.errors import InputError
from pvae.core.parallel import ALONE, World
from pvae.core.random_state import seeded
from pvae.data.dataset import Pixels
from pvae.evaluation.log_likelihood import Estimate, ImportanceSample, images_at_once, importance_sample
from pvae.evaluation.rate_decomposition import active_units, split_rate
from pvae.evaluation.trained_run import TrainedRun, proper
from pvae.models.hierarchy import ChainPosterior
from pvae.reference import elbo as reference_elbo
from pvae.vae import VAE

__all__ = ["Anatomy", "LogLikelihood", "RateDecomposition", "Report", "evaluate", "to_text"]

_PARTICLES = 10
_TRUSTED = 10.0  # effective samples of an image, below which its weights cannot be trusted


@dataclass(frozen=True, kw_only=True)
class RateDecomposition:
    """The parts of the rate at one draw of z for each of M test images, in nats per datum; see `RateSplit`.

    Args:
        num_images: M, chosen at random from the report's seed, or all.
        rate: log q(z | x) - log p(z), the sum of the three parts at the same draws.
        rate_closed_form: KL(q(z | x) || p(z)) of the same images.
        sampling_stderr: the share of the error of `rate` that is due to the draws of z.
        mutual_information: of an image's index and its code, at most `log_images`; in the mean a lower bound on
            I(x; z) over the whole distribution of images.
        mutual_information_upper: in the mean an upper bound on it: with q(z) over the other images, or the rate,
            whichever is less. The distance between the two bounds the bias.
        total_correlation: KL(q(z) || prod_l q(z_l)).
        dimension_wise_kl: sum_l KL(q(z_l) || p(z_l)).
        log_images: log of the number of images in q(z), that is of all images.
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
        """Return the parts of the rate of a random subset of images, or None if they are not defined for the VAE.

        Args:
            vae: in eval mode.
            x: images.
            seed: of the subset.
            rates: the closed-form rate of each image, (N,).
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
class Anatomy:
    """The ELBO and its parts, in nats per datum, means over test images and ten draws of z for each.

    Args:
        elbo: the bound, or pseudo-ELBO.
        distortion: -E_q log p(x | z).
        rate: KL(q(z | x) || p(z)).
        posterior_entropy: H(q(z | x)), exact; None where it has no closed form.
        cross_entropy: H(q(z | x), p(z)); with distortion and posterior entropy the three parts of post 004.
        posterior_mean_loss: the loss at the mean of q(z | x), which bounds nothing; None without a closed-form KL.
        rate_decomposition: the parts of the rate; None where q(z | x) is not independent over dimensions.
        active_units: for each stochastic layer, the number of latent dimensions whose mean varies over images.
        latent_dims: for each stochastic layer, the number of latent dimensions.
    """

    elbo: Estimate
    distortion: Estimate
    rate: Estimate
    posterior_entropy: Estimate | None
    cross_entropy: Estimate
    posterior_mean_loss: Estimate | None
    rate_decomposition: RateDecomposition | None
    active_units: tuple[int, ...]
    latent_dims: tuple[int, ...]

    @classmethod
    def of(cls, vae: VAE, x: Pixels, seed: int, world: World) -> Anatomy:
        """Return the ELBO and its parts of images x.

        Args:
            vae: in eval mode.
            x: images that the VAE was trained to model.
            seed: of the random subset of images whose rate is decomposed.
            world: processes that share the images.
        """
        terms = _of_each_image(vae, x, _terms, world)
        estimates: dict[str, Any] = {"posterior_entropy": None, "posterior_mean_loss": None}
        estimates |= {name: Estimate.of(values) for name, values in terms.items()}
        second = vae.q_z.latent_dim if isinstance(vae.q_z, ChainPosterior) else 0
        active = active_units(vae, x)
        layers = [layer for layer in active.split([len(active) - second, second]) if len(layer)]
        return cls(
            **estimates,
            rate_decomposition=RateDecomposition.of(vae, x, seed, terms["rate"].double()),
            active_units=tuple(int(layer.sum()) for layer in layers),
            latent_dims=tuple(map(len, layers)),
        )


@dataclass(frozen=True, kw_only=True)
class LogLikelihood:
    """The log-likelihood log p(x) by importance sampling, in nats per datum.

    Args:
        elbo: the ELBO of the same pixels.
        estimate: mean over images of log (1/K) sum_k w_k; a lower bound on log p(x) in the mean.
        sampling_stderr: the share of its error that is due to the draws of z, and would shrink with K.
        num_particles: K, importance weights for each image.
        effective_median: the median over images of the effective sample size.
        effective_least: the least.
        untrusted: the share of images whose effective sample size is below 10: their estimates depend on a few draws.
        bits_per_dimension: -log p(x) / (D log 2); where p is a density of 8-bit pixels, of the density times the
            distance of two levels, which is not the probability of the byte, and wrong for scales near that distance.
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
    def of(cls, vae: VAE, x: Pixels, sample: ImportanceSample, world: World) -> LogLikelihood:
        """Return the log-likelihood of images x, with the ELBO of the same pixels.

        Args:
            vae: in eval mode.
            x: images.
            sample: their importance sample.
            world: processes that share the images.
        """
        elbo = _of_each_image(vae, x, _elbo, world)["elbo"]
        effective = sample.effective
        levels: float = getattr(vae.p_x, "levels_per_unit", 1.0)
        bits = -sample.log_p / x.images[0].numel() + math.log(levels)
        return cls(
            elbo=Estimate.of(elbo),
            estimate=Estimate.of(sample.log_p),
            sampling_stderr=sample.mean_stderr,
            num_particles=sample.num_particles,
            effective_median=effective.median().item(),
            effective_least=effective.min().item(),
            untrusted=(~(effective >= _TRUSTED)).double().mean().item(),  # NaN counts as untrusted
            bits_per_dimension=Estimate.of(bits / math.log(2)),
            is_density=levels != 1,
        )


@dataclass(frozen=True, kw_only=True)
class Report:
    """What `python -m pvae.evaluate` writes.

    Args:
        run: name of the run's folder.
        epoch: the epoch after which the run was evaluated.
        data: name and sizes of the data.
        num_images: test images evaluated.
        pixels: the pixels that `log_likelihood` is of, in words.
        pseudo: the ELBO of `anatomy` is a pseudo-ELBO, since the pixels that the VAE was trained on are grey.
        seed: of every draw, and of the images of the rate's decomposition.
        precision: of the matrix products of `log_likelihood`, "fp32" or "bf16".
        anatomy: the ELBO and its parts, of the pixels that the VAE was trained on.
        log_likelihood: of the same pixels, or of binarized ones if the VAE is a Bernoulli's trained on grey pixels.
    """

    run: str
    epoch: int
    data: str
    num_images: int
    pixels: str
    pseudo: bool
    seed: int
    precision: str
    anatomy: Anatomy
    log_likelihood: LogLikelihood


def evaluate(
    trained: TrainedRun,
    num_particles: int = 5000,
    num_images: int | None = None,
    seed: int = 0,
    on_images: Callable[[int], object] = lambda count: None,
    *,
    engine: str = "auto",
    precision: str = "fp32",
    world: World = ALONE,
) -> Report:
    """Evaluate a trained VAE on test images.

    Args:
        trained: the run with its VAE and data.
        num_particles: K, importance weights for each image, at least 2.
        num_images: how many test images, from the first on; all if left out.
        seed: of every draw.
        on_images: called with the number of images done in the importance sampling, part by part.
        engine: of `importance_sample`: "auto", "none", "graph" or "inductor".
        precision: of `importance_sample`: "fp32" or "bf16".
        world: processes that share the images; all return the same report.

    Raises:
        InputError: the run is an autoencoder, which has no likelihood, or there are fewer than two images.
    """
    run, vae = trained.run, trained.vae
    if not vae.has_density:
        raise InputError(f"{run.path} is an autoencoder: a point posterior has no bound and no log-likelihood")
    images = trained.data.test[:num_images]
    if len(images) < 2 or num_particles < 2:
        raise InputError("an evaluation needs at least 2 test images and 2 importance samples")
    with seeded(seed, torch.device("cpu")):
        seen = Pixels(trained.test[: len(images)], run.config.pixels == "symmetric")
        anatomy = Anatomy.of(vae, seen, seed, world)
        binary, x, kind = proper(run.config, vae, run.data.image_shape, images)
        sample = importance_sample(binary, x, num_particles, on_images, engine=engine, precision=precision, world=world)
        log_likelihood = LogLikelihood.of(binary, x, sample, world)
    return Report(
        run=run.path.resolve().name,
        epoch=run.read_checkpoint().counts.epoch,
        data=trained.data.title,
        num_images=len(images),
        pixels=kind,
        pseudo=vae.is_pseudo,
        seed=seed,
        precision=precision,
        anatomy=anatomy,
        log_likelihood=log_likelihood,
    )


@torch.no_grad()
def _of_each_image(
    vae: VAE, x: Pixels, of: Callable[[VAE, Tensor], dict[str, Tensor]], world: World
) -> dict[str, Tensor]:
    """Return what `of` returns, values of each image by name, computed part by part by the processes that share them.

    Every process draws the noise of every part, so that the values do not depend on the number of processes.
    """
    with torch.random.fork_rng(devices=[]):
        names = list(of(vae, next(iter(x.split(1)))))
    parts = []
    for number, part in enumerate(x.split(images_at_once(vae, x, _PARTICLES))):
        if world.takes(number):
            parts.append(torch.stack(list(of(vae, part).values())))
        else:
            parts.append(vae.posterior(part).sample((_PARTICLES,)).new_zeros(len(names), len(part)))
    values = torch.cat(parts, dim=1)
    world.sum_([values])
    return dict(zip(names, values))


def _elbo(vae: VAE, x: Tensor) -> dict[str, Tensor]:
    return {"elbo": reference_elbo.monte_carlo(vae, x, _PARTICLES).elbo}


def _terms(vae: VAE, x: Tensor) -> dict[str, Tensor]:
    """Return the terms of each image, (B,) each, without those that have no closed form for this VAE."""
    posterior = vae.posterior(x)
    z = posterior.sample((_PARTICLES,))
    distortion, cross_entropy = -vae.likelihood(z).log_prob(x).mean(0), -vae.prior().log_prob(z).mean(0)
    terms = {"distortion": distortion, "cross_entropy": cross_entropy}
    try:
        terms["posterior_entropy"] = posterior.entropy()
        terms["rate"] = kl_divergence(posterior, vae.prior())
        terms["posterior_mean_loss"] = reference_elbo.posterior_mean_loss(vae, x)
    except NotImplementedError:
        terms["rate"] = (posterior.log_prob(z) - vae.prior().log_prob(z)).mean(0)
    return {**terms, "elbo": -distortion - terms["rate"]}


def to_text(report: Report) -> str:
    """Return the report as a table, with notes on what each figure means."""
    anatomy, found = report.anatomy, report.log_likelihood
    grey = ", which are grey" if report.pseudo else ""
    products = "; matrix products in bfloat16" if report.precision == "bf16" else ""
    density = "of the density times the distance of two levels: no probability of bytes" if found.is_density else ""
    active, of = ("+".join(map(str, counts)) for counts in (anatomy.active_units, anatomy.latent_dims))
    effective = f"{found.effective_median:.0f} of {found.num_particles:,} in the median, {found.effective_least:.1f}"
    rows: list[_Row] = [
        (f"{report.run}, epoch {report.epoch}, {report.num_images:,} test images of {report.data}", "", ""),
        ("nats per datum, mean +- standard error over images and draws", "", ""),
        ("", "", ""),
        ("pseudo-ELBO" if report.pseudo else "ELBO", anatomy.elbo, f"of the pixels that it was trained on{grey}"),
        ("  distortion", anatomy.distortion, "-E_q log p(x | z); post 004's reconstruction error"),
        ("  rate", anatomy.rate, "KL(q(z | x) || p(z))"),
        ("    posterior entropy", anatomy.posterior_entropy, "the rate is cross entropy less posterior entropy"),
        ("    cross entropy", anatomy.cross_entropy, ""),
        ("posterior-mean loss", anatomy.posterior_mean_loss, "no bound"),
        ("active units", f"{active} of {of}, whose mean has a variance above 0.01", ""),
        ("", "", ""),
        *_decomposition_rows(report),
        (f"log p(x), {found.num_particles:,} importance samples an image; pixels {report.pixels}{products}", "", ""),
        ("  ELBO", found.elbo, "of the same pixels"),
        ("  log-likelihood", found.estimate, f"{found.sampling_stderr:.2g} nats of the error are from the draws"),
        ("  bits per dimension", found.bits_per_dimension, density),
        ("  effective sample size", f"{effective} at least", ""),
    ]
    if found.untrusted > 0.01:
        warning = (
            f"warning: {found.untrusted:.1%} of the images have an effective sample size below {_TRUSTED:.0f}: their "
            "importance weights cannot be trusted, and the log-likelihood is too low; give more --importance-samples"
        )
        rows.append((warning, "", ""))
    return "\n".join(f"{name:24}{value!s:22}{note}".rstrip() for name, value, note in rows if value is not None)


_Row = tuple[str, Estimate | str | None, str]  # name, value and note; left out where the value is None


def _decomposition_rows(report: Report) -> list[_Row]:
    found = report.anatomy.rate_decomposition
    if found is None:
        return []
    subset = f"random test images (seed {report.seed})" if found.num_images < report.num_images else "test images"
    draws = f"log q(z | x) - log p(z); {found.sampling_stderr:.2g} nats of the error are from the draws"
    most = f"of an image's index and its code; at most log N = {found.log_images:.2f}, N = {report.num_images:,}"
    between = f"{found.mutual_information.mean:.2f} to {found.mutual_information_upper.mean:.2f}"
    return [
        (f"rate of {found.num_images:,} {subset}, one draw of z each, and its three parts", "", ""),
        ("  rate", found.rate, draws),
        ("  in closed form", found.rate_closed_form, "KL(q(z | x) || p(z)) of the same images"),
        ("  mutual information", found.mutual_information, most),
        ("  over all images", between, "bounds on I(x; z), over all images there could be"),
        ("  total correlation", found.total_correlation, "KL(q(z) || prod_l q(z_l))"),
        ("  dimension-wise KL", found.dimension_wise_kl, "sum_l KL(q(z_l) || p(z_l))"),
        ("", "", ""),
    ]
