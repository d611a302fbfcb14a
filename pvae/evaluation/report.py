"""The report of a trained VAE: every figure that can be cited, each with its error."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

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

__all__ = ["TRUSTED", "Anatomy", "LogLikelihood", "RateDecomposition", "Report", "evaluate"]

_PARTICLES = 10
TRUSTED = 10.0  # effective samples of an image, below which its weights cannot be trusted


@dataclass(frozen=True, kw_only=True)
class RateDecomposition:
    """The parts of the rate at one draw of z for each of M test images, in nats per datum; see `RateSplit`.

    Args:
        num_images: M, chosen at random by the report's seed, or all.
        rate: log q(z | x) - log p(z), the sum of the three parts at the same draws.
        rate_closed_form: KL(q(z | x) || p(z)) of the same images.
        sampling_stderr: the error of `rate` as an estimate of `rate_closed_form`: its share that is due to the draws.
        mutual_information: of an image's index and its code, at most `log_images`; for I(x; z) over all images that
            there could be, a lower bound in the mean.
        mutual_information_upper: an upper bound on that in the mean: with q(z) over the other images, or the rate,
            whichever is less. Their distance bounds the bias.
        total_correlation: KL(q(z) || prod_l q(z_l)).
        dimension_wise_kl: sum_l KL(q(z_l) || p(z_l)).
        log_images: log of the number of images in q(z), which are all.
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


@dataclass(frozen=True, kw_only=True)
class Anatomy:
    """The ELBO and its parts, in nats per datum, means over test images and ten draws of z for each.

    Args:
        elbo: the bound, or pseudo-ELBO.
        distortion: -E_q log p(x | z).
        rate: KL(q(z | x) || p(z)).
        posterior_entropy: H(q(z | x)), exact; None where it has no closed form.
        cross_entropy: H(q(z | x), p(z)); with the distortion the three parts of document 004.
        posterior_mean_loss: the loss at the mean of q(z | x), which bounds nothing; None without a closed-form KL.
        rate_decomposition: the parts of the rate; None where q(z | x) is not independent over dimensions.
        active_units: of each stochastic layer the latent dimensions whose mean varies over images.
        latent_dims: of how many.
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


@dataclass(frozen=True, kw_only=True)
class LogLikelihood:
    """log p(x) by importance sampling, in nats per datum.

    Args:
        elbo: the ELBO of the same pixels.
        estimate: mean over images of log (1/K) sum_k w_k; a lower bound on log p(x) in the mean.
        sampling_stderr: the share of its error that is due to the draws of z, and would shrink with K.
        num_particles: K, importance weights for each image.
        effective_median: the median over images of the effective sample size.
        effective_least: the least.
        untrusted: the share of images whose effective sample size is below 10: their estimates hang on a few draws.
        bits_per_dimension: -log p(x) / (D log 2); where p is a density of 8-bit pixels, of the density times the
            distance of two levels, which is no probability of the byte, and wrong for scales near that distance.
        is_density: p(x) is a density.
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


@dataclass(frozen=True, kw_only=True)
class Report:
    """All that `python -m pvae.evaluate` writes.

    Args:
        run: the run's folder.
        epoch: after which it was evaluated.
        data: name and sizes of the data.
        num_images: test images evaluated.
        pixels: what the likelihood is of.
        pseudo: the ELBO of `anatomy` is a pseudo-ELBO, since the pixels it was trained on are grey.
        seed: of every draw, and of the images of the rate's decomposition.
        anatomy: of the pixels that it was trained on.
        log_likelihood: of the same pixels; where they are grey and the likelihood a Bernoulli's, of the binarized ones.
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
    subject: TrainedRun,
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
        subject: the run with its VAE and data.
        num_particles: K, importance weights for each image, at least 2.
        num_images: the first so many test images; all if left out.
        seed: of every draw.
        on_images: called with the number of images done in the importance sampling, part by part.
        engine: "auto", "none", "graph" or "inductor", of `importance_sample`.
        precision: "fp32" or "bf16", likewise.
        world: processes that share the images; all get the same report.

    Raises:
        InputError: it is an autoencoder, which has no likelihood, or there are fewer than two images.
    """
    run, vae = subject.run, subject.vae
    if not vae.has_density:
        raise InputError(f"{run.path} is an autoencoder: a point posterior has no bound and no log-likelihood")
    images = subject.data.test[:num_images]
    if len(images) < 2 or num_particles < 2:
        raise InputError("an evaluation needs at least 2 test images and 2 importance samples")
    with seeded(seed, torch.device("cpu")):
        anatomy = _anatomy(vae, Pixels(subject.test[: len(images)], run.config.pixels == "symmetric"), seed, world)
        binary, x, kind = proper(run.config, vae, run.data.image_shape, images)
        ways = {"engine": engine, "precision": precision}
        sample = importance_sample(binary, x, num_particles, on_images, **ways, world=world)
        log_likelihood = _log_likelihood(binary, x, sample, world)
    return Report(
        run=run.path.resolve().name,
        epoch=run.read_checkpoint().counts.epoch,
        data=subject.data.title,
        num_images=len(images),
        pixels=kind,
        pseudo=vae.is_pseudo,
        seed=seed,
        precision=precision,
        anatomy=anatomy,
        log_likelihood=log_likelihood,
    )


def _anatomy(vae: VAE, x: Pixels, seed: int, world: World) -> Anatomy:
    with torch.random.fork_rng(devices=[]):
        names = list(_terms(vae, next(iter(x.split(1)))))
    parts = []
    for number, part in enumerate(x.split(max(1, images_at_once(vae, x) // _PARTICLES))):
        if world.takes(number):
            terms = _terms(vae, part)
            parts.append(torch.stack([terms[name] for name in names]))
        else:
            parts.append(_drawn_elsewhere(vae, part).expand(len(names), -1))
    whole = torch.cat(parts, dim=1)
    world.sum_([whole])
    estimates = {name: Estimate.of(values) for name, values in zip(names, whole)}
    second = vae.q_z.latent_dim if isinstance(vae.q_z, ChainPosterior) else 0
    active = active_units(vae, x)
    layers = [layer for layer in active.split([len(active) - second, second]) if len(layer)]
    return Anatomy(
        elbo=estimates["elbo"],
        distortion=estimates["distortion"],
        rate=estimates["rate"],
        posterior_entropy=estimates.get("posterior_entropy"),
        cross_entropy=estimates["cross_entropy"],
        posterior_mean_loss=estimates.get("posterior_mean_loss"),
        rate_decomposition=_rate_decomposition(vae, x, seed, whole[names.index("rate")].double()),
        active_units=tuple(int(layer.sum()) for layer in layers),
        latent_dims=tuple(map(len, layers)),
    )


@torch.no_grad()
def _drawn_elsewhere(vae: VAE, x: Tensor) -> Tensor:
    """Draw the noise of images that are another process's, and return a zero for each."""
    z = vae.posterior(x).sample((_PARTICLES,))
    return z.new_zeros(len(x))


@torch.no_grad()
def _terms(vae: VAE, x: Tensor) -> dict[str, Tensor]:
    """Return what can be said of each image, (B,) each; a closed form that q has not is left out."""
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


def _rate_decomposition(vae: VAE, x: Pixels, seed: int, rates: Tensor) -> RateDecomposition | None:
    """Return the parts of the rate; `rates` (N,) is its closed form for each image."""
    try:
        split = split_rate(vae, x, seed=seed)
    except InputError:
        return None
    rate, closed_form = Estimate.of(split.rate), rates[split.images]
    return RateDecomposition(
        num_images=len(split.images),
        rate=rate,
        rate_closed_form=Estimate.of(closed_form),
        sampling_stderr=Estimate.of(split.rate - closed_form).stderr,
        mutual_information=Estimate.of(split.mutual_information),
        mutual_information_upper=min(Estimate.of(split.leave_one_out), rate, key=lambda bound: bound.mean),
        total_correlation=Estimate.of(split.total_correlation),
        dimension_wise_kl=Estimate.of(split.dimension_wise),
        log_images=math.log(len(x)),
    )


@torch.no_grad()
def _log_likelihood(vae: VAE, x: Pixels, sample: ImportanceSample, world: World) -> LogLikelihood:
    parts = enumerate(x.split(max(1, images_at_once(vae, x) // _PARTICLES)))
    elbo = torch.cat(
        [
            reference_elbo.monte_carlo(vae, part, _PARTICLES).elbo
            if world.takes(number)
            else _drawn_elsewhere(vae, part)
            for number, part in parts
        ]
    )
    world.sum_([elbo])
    effective = sample.effective
    levels: float = getattr(vae.p_x, "levels_per_unit", 1.0)
    bits = -sample.log_p / x.images[0].numel() + math.log(levels)
    return LogLikelihood(
        elbo=Estimate.of(elbo),
        estimate=Estimate.of(sample.log_p),
        sampling_stderr=(sample.stderr.square().sum().sqrt() / len(x)).item(),
        num_particles=sample.num_particles,
        effective_median=effective.median().item(),
        effective_least=effective.min().item(),
        untrusted=(~(effective >= TRUSTED)).double().mean().item(),  # NaN is not trusted either
        bits_per_dimension=Estimate.of(bits / math.log(2)),
        is_density=levels != 1,
    )
