"""The report of a trained VAE: every figure that can be cited, each with its error."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pvae import handwritten
from pvae.building import build_vae
from pvae.errors import InputError
from pvae.evaluation import Estimate, ImportanceSample, active_units, importance_sample, split_rate
from pvae.rng import seeded
from pvae.subjects import Subject
from pvae.vae import VAE

__all__ = ["Anatomy", "Likelihood", "Report", "evaluate", "to_text"]

_CHUNK = 500
_PARTICLES = 10
_TRUSTED = 10.0


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
        mutual_information: of an image's index and its code, at most `log_images`; None where the rate cannot be split.
        total_correlation: KL(q(z) || prod_l q(z_l)).
        dimension_wise_kl: sum_l KL(q(z_l) || p(z_l)).
        log_images: log of the number of images in q(z), where the mutual information ends.
        active_units: latent dimensions whose mean varies over images.
        latent_dim: of how many.
    """

    elbo: Estimate
    distortion: Estimate
    rate: Estimate
    posterior_entropy: Estimate | None
    cross_entropy: Estimate
    posterior_mean_loss: Estimate | None
    mutual_information: Estimate | None
    total_correlation: Estimate | None
    dimension_wise_kl: Estimate | None
    log_images: float
    active_units: int
    latent_dim: int


@dataclass(frozen=True, kw_only=True)
class Likelihood:
    """log p(x) by importance sampling, in nats per datum.

    Args:
        elbo: the ELBO of the same pixels.
        log_likelihood: mean over images of log (1/S) sum_s w_s; a lower bound on log p(x) in the mean.
        sampling_stderr: the share of its error that is due to the draws of z, and would shrink with S.
        num_samples: S.
        effective_median: the median over images of the effective sample size.
        effective_least: the least.
        untrusted: the share of images whose effective sample size is below 10: their estimates hang on a few draws.
        bits_per_dimension: -log p(x) / (D log 2); for a density of 8-bit pixels, of the bytes.
    """

    elbo: Estimate
    log_likelihood: Estimate
    sampling_stderr: float
    num_samples: int
    effective_median: float
    effective_least: float
    untrusted: float
    bits_per_dimension: Estimate


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
        seed: of every draw.
        anatomy: of the pixels that it was trained on.
        likelihood: of the same pixels; where they are grey and the likelihood a Bernoulli's, of the binarized test set.
    """

    run: str
    epoch: int
    data: str
    num_images: int
    pixels: str
    pseudo: bool
    seed: int
    anatomy: Anatomy
    likelihood: Likelihood


def evaluate(
    subject: Subject,
    num_samples: int = 5000,
    num_images: int | None = None,
    seed: int = 0,
    on_images: Callable[[int], object] = lambda count: None,
) -> Report:
    """Evaluate a trained VAE on test images.

    Args:
        subject: the run with its VAE and data.
        num_samples: S, importance weights for each image.
        num_images: the first so many test images; all if left out.
        seed: of every draw.
        on_images: called with the number of images done in the importance sampling, part by part.

    Raises:
        InputError: it is an autoencoder, which has no likelihood, or there are fewer than two images.
    """
    if not subject.vae.q_z.has_density:
        raise InputError(f"{subject.run.path} is an autoencoder: a point posterior has no bound and no log-likelihood")
    images = subject.test[:num_images]
    if len(images) < 2:
        raise InputError("an evaluation needs at least 2 test images")
    with seeded(seed, torch.device("cpu")):
        anatomy = _anatomy(subject.vae, subject.pixels(images))
        vae, x, pixels = _proper(subject, images)
        likelihood = _likelihood(vae, x, importance_sample(vae, x, num_samples, on_images))
    return Report(
        run=subject.run.path.name,
        epoch=subject.run.read_checkpoint()["epoch"],
        data=subject.data.title,
        num_images=len(images),
        pixels=pixels,
        pseudo=subject.vae.p_x.pseudo,
        seed=seed,
        anatomy=anatomy,
        likelihood=likelihood,
    )


def _anatomy(vae: VAE, x: Tensor) -> Anatomy:
    columns: dict[str, list[Tensor]] = {}
    with torch.no_grad():
        for part in x.split(_CHUNK):
            for name, values in _terms(vae, part).items():
                columns.setdefault(name, []).append(values)
    estimates = {name: Estimate.of(torch.cat(values)) for name, values in columns.items()}
    active = active_units(vae, x)
    return Anatomy(
        elbo=estimates["elbo"],
        distortion=estimates["distortion"],
        rate=estimates["rate"],
        posterior_entropy=estimates.get("posterior_entropy"),
        cross_entropy=estimates["cross_entropy"],
        posterior_mean_loss=estimates.get("posterior_mean_loss"),
        **_split(vae, x),
        log_images=math.log(len(x)),
        active_units=int(active.sum()),
        latent_dim=len(active),
    )


def _terms(vae: VAE, x: Tensor) -> dict[str, Tensor]:
    """Return what can be said of each image, (B,) each; a closed form that q has not is left out."""
    posterior = vae.posterior(x)
    z = posterior.sample((_PARTICLES,))
    distortion, cross_entropy = -vae.likelihood(z).log_prob(x).mean(0), -vae.prior().log_prob(z).mean(0)
    terms = {"distortion": distortion, "cross_entropy": cross_entropy}
    try:
        terms["posterior_entropy"] = posterior.entropy()
        terms["rate"] = handwritten.closed_form(vae, x).rate
        terms["posterior_mean_loss"] = handwritten.posterior_mean_loss(vae, x)
    except NotImplementedError:
        terms["rate"] = (posterior.log_prob(z) - vae.prior().log_prob(z)).mean(0)
    return {**terms, "elbo": -distortion - terms["rate"]}


def _split(vae: VAE, x: Tensor) -> dict[str, Estimate | None]:
    try:
        split = split_rate(vae, x)
    except InputError:
        return dict.fromkeys(("mutual_information", "total_correlation", "dimension_wise_kl"))
    return {
        "mutual_information": Estimate.of(split.mutual_information),
        "total_correlation": Estimate.of(split.total_correlation),
        "dimension_wise_kl": Estimate.of(split.dimension_wise),
    }


def _proper(subject: Subject, images: Tensor) -> tuple[VAE, Tensor, str]:
    """Return a VAE whose likelihood is a probability, the pixels it is one of, and their name.

    A Bernoulli that was trained on grey pixels is one of binary pixels with the same networks.
    """
    config = subject.run.config
    if not subject.vae.p_x.pseudo:
        name = {"none": "as trained, in [-1, 1]" if config.pixels == "symmetric" else "as trained, in [0, 1]"}
        return subject.vae, subject.pixels(images), name.get(config.binarize, f"binary (--binarize {config.binarize})")
    with torch.random.fork_rng(devices=[]):
        vae = build_vae(config.replace(binarize="static"), subject.run.data.image_shape)
    vae.load_state_dict(subject.vae.state_dict())
    binary = subject.binary_test[: len(images)]
    return vae.eval(), subject.pixels(binary), "binarized, each pixel drawn once with its grey value as probability"


def _likelihood(vae: VAE, x: Tensor, sample: ImportanceSample) -> Likelihood:
    with torch.no_grad():
        elbo = torch.cat([handwritten.monte_carlo(vae, part, _PARTICLES).elbo for part in x.split(_CHUNK)])
    effective = sample.effective
    return Likelihood(
        elbo=Estimate.of(elbo),
        log_likelihood=Estimate.of(sample.log_p),
        sampling_stderr=(sample.stderr.square().sum().sqrt() / len(x)).item(),
        num_samples=sample.num_samples,
        effective_median=effective.median().item(),
        effective_least=effective.min().item(),
        untrusted=(effective < min(_TRUSTED, 0.5 * sample.num_samples)).double().mean().item(),
        bits_per_dimension=_bits(vae, sample.log_p, x[0].numel()),
    )


def _bits(vae: VAE, log_p: Tensor, num_dimensions: int) -> Estimate:
    """Return -log p(x) in bits for each dimension; a density of bytes gains the bits of their grid."""
    grid = vae.p_x.levels_per_unit
    return Estimate.of((-log_p / num_dimensions + math.log(grid)) / math.log(2))


def to_text(report: Report) -> str:
    """Return the report as a table, with what must be known of each figure."""
    anatomy, likelihood = report.anatomy, report.likelihood
    bound = "pseudo-ELBO" if report.pseudo else "ELBO"
    lines = [
        f"{report.run}, epoch {report.epoch}, {report.num_images:,} test images of {report.data}",
        "nats per datum, mean +- standard error over images and draws",
        "",
        *_row(bound, anatomy.elbo, "of the pixels that it was trained on" + (", which are grey" * report.pseudo)),
        *_row("  distortion", anatomy.distortion, "-E_q log p(x | z); document 004's reconstruction error"),
        *_row("  rate", anatomy.rate, "KL(q(z | x) || p(z))"),
        *_row("    posterior entropy", anatomy.posterior_entropy, "rate = cross entropy - posterior entropy"),
        *_row("    cross entropy", anatomy.cross_entropy),
        *_row("    mutual information", anatomy.mutual_information, _on_information(anatomy)),
        *_row("    total correlation", anatomy.total_correlation, "KL(q(z) || prod_l q(z_l))"),
        *_row("    dimension-wise KL", anatomy.dimension_wise_kl, "sum_l KL(q(z_l) || p(z_l)): the three are the rate"),
        *_row("posterior-mean loss", anatomy.posterior_mean_loss, "no bound"),
        f"{'active units':24}{anatomy.active_units} of {anatomy.latent_dim}",
        "",
        f"log p(x) of pixels {report.pixels}, {likelihood.num_samples:,} importance samples an image:",
        *_row("  ELBO", likelihood.elbo, "of the same pixels"),
        *_row("  log-likelihood", likelihood.log_likelihood, f"{likelihood.sampling_stderr:.2g} of it from the draws"),
        *_row("  bits per dimension", likelihood.bits_per_dimension),
        f"{'  effective sample':24}{likelihood.effective_median:.0f} in the median, "
        f"{likelihood.effective_least:.1f} at least",
    ]
    return "\n".join([*lines, *_warnings(likelihood)])


def _row(name: str, estimate: Estimate | None, note: str = "") -> list[str]:
    return [] if estimate is None else [f"{name:24}{estimate!s:22}{note}".rstrip()]


def _on_information(anatomy: Anatomy) -> str:
    limit = f"at most log N = {anatomy.log_images:.2f}"
    if anatomy.mutual_information is not None and anatomy.mutual_information.mean > anatomy.log_images - 1:
        return f"{limit}, and so near it that the true one may be larger"
    return f"of an image's index and its code; {limit}"


def _warnings(likelihood: Likelihood) -> list[str]:
    if likelihood.untrusted <= 0.01:
        return []
    return [
        f"warning: {likelihood.untrusted:.1%} of the images have an effective sample size below {_TRUSTED:.0f}: their "
        "importance weights cannot be trusted, and the log-likelihood is too low; give more --importance-samples"
    ]
