"""What a trained VAE computes for given images: their codes, their likelihoods, and new images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from pvae.core.errors import InputError
from pvae.core.records import markdown_of
from pvae.data.preparation import Pixels
from pvae.distributions.columns import Columns
from pvae.distributions.hierarchy import Hierarchy
from pvae.runs.data import images_for
from pvae.runs.run import Run
from pvae.trained.log_likelihood import (
    bits_per_dimension,
    elbo_terms,
    images_at_once,
    importance_sample,
    with_normalised_likelihood,
)
from pvae.vae import VAE

__all__ = [
    "Codes",
    "GivenImages",
    "Imputed",
    "Score",
    "draw_codes",
    "encode_images",
    "given_images",
    "impute",
    "sample_images",
    "score_images",
    "to_text",
    "with_likelihood",
]

_CHUNK = 100


class GivenImages(NamedTuple):
    """Images to encode or score, in the shape that a run was trained on.

    Args:
        names: the name of each image.
        images: bytes (N, C, H, W).
        note: how the images were changed, or "".
    """

    names: Sequence[str]
    images: Tensor
    note: str = ""


def given_images(run: Run, path: str | Path | None = None, skip_broken: bool = False) -> GivenImages:
    """Return images converted to the shape that a run was trained on.

    Args:
        run: the run.
        path: an image file, a folder of image files, or an .npy or .npz file; None for the run's own test images.
        skip_broken: leave out a file that cannot be decoded.

    Raises:
        InputError: there are no such images, or the run's own images cannot be found.
    """
    if path is None:
        return GivenImages(run.dataset().test_names, run.dataset().test)
    return GivenImages(*images_for(replace(run, config=run.config.replace(skip_broken=skip_broken)), path))


def with_likelihood(run: Run, images: Tensor) -> tuple[VAE, Pixels, str]:
    """Return a VAE whose likelihood is a probability or a density, pixels in its domain, and their kind.

    They are those of `with_normalised_likelihood` for the bytes `images` (N, C, H, W).
    """
    return with_normalised_likelihood(run.config, run.vae(), run.data.datum_shape, images)


class Codes(NamedTuple):
    """Means and standard deviations of q(z | x) for each image, (N, L)."""

    loc: Tensor
    scale: Tensor


@torch.no_grad()
def encode_images(vae: VAE, x: Pixels) -> Codes:
    """Return the mean and the standard deviation of q(z | x) for each image.

    Args:
        vae: in eval mode.
        x: N images.

    Raises:
        InputError: they have no closed form, as with several stochastic layers.
    """
    posteriors = [vae.posterior(part) for part in x.split(images_at_once(vae, x))]
    try:
        loc, scale = (torch.cat([getattr(q, name) for q in posteriors]) for name in ("mean", "stddev"))
    except NotImplementedError:
        raise InputError(
            "q(z | x) has no mean and standard deviation in closed form, as with a flow or several stochastic layers: "
            "draw from it, with --draws or pvae.trained.images.draw_codes"
        ) from None
    return Codes(loc, scale)


@torch.no_grad()
def draw_codes(vae: VAE, x: Pixels) -> dict[str, Tensor]:
    """Return a draw from q(z | x) for each image; the arguments are those of `encode_images`.

    The draw is "z", (N, L), or with several stochastic layers "z1", (N, L_1), "z2", (N, L_2), and so on.
    """
    z = torch.cat([vae.posterior(part).sample() for part in x.split(images_at_once(vae, x))])
    prior = vae.prior()
    return dict(zip(prior.names, z.split(prior.sizes, dim=-1))) if isinstance(prior, Hierarchy) else {"z": z}


@dataclass(frozen=True, kw_only=True)
class Score:
    """How likely an image is, in nats.

    Args:
        name: name of the image.
        log_p: the estimate of log p(x) from K importance weights, in the mean a lower bound.
        stderr: standard error of `log_p` from the draws of z; too small where `effective` is.
        effective: effective sample size of the importance weights, between 1 and K.
        bits_per_dimension: of `log_p`, as in `log_likelihood.bits_per_dimension`.
        elbo: the ELBO, from ten draws of z, with a closed-form rate where there is one.
        distortion: -E_q log p(x | z).
        rate: KL(q(z | x) || p(z)).
    """

    name: str
    log_p: float
    stderr: float
    effective: float
    bits_per_dimension: float
    elbo: float
    distortion: float
    rate: float


@torch.no_grad()
def score_images(
    vae: VAE,
    x: Pixels,
    names: Sequence[str],
    num_particles: int = 200,
    on_images: Callable[[int], object] = lambda count: None,
) -> list[Score]:
    """Return a score for each image, the least likely first.

    The likelihood of a deep generative model is a poor test of whether an image is odd: models give some images of
    another kind higher likelihoods than the images that they were trained on. Of images of many pixels, nearly all of
    log p(x) is the distortion; the rate, which says how far a code is from the prior, can be the better sign.

    Args:
        vae: in eval mode.
        x: N images.
        names: the name of each.
        num_particles: K, the draws of z for each image.
        on_images: called after each part with the number of images in it.

    Raises:
        InputError: the VAE has no density, as an autoencoder.

    Reference:
        Nalisnick et al., arXiv:1810.09136.
    """
    if not vae.has_density:
        raise InputError("an autoencoder has no likelihood to score images by: train with --posterior normal")
    sample = importance_sample(vae, x, num_particles, on_images)
    terms = elbo_terms(vae, x)
    columns = {
        "log_p": sample.log_p,
        "stderr": sample.stderr,
        "effective": sample.effective,
        "bits_per_dimension": bits_per_dimension(vae, sample.log_p, x),
        **{name: terms[name] for name in ("elbo", "distortion", "rate")},
    }
    rows = zip(names, zip(*(column.tolist() for column in columns.values())))
    scores = [Score(name=name, **dict(zip(columns, row))) for name, row in rows]
    return sorted(scores, key=lambda score: score.log_p)


def to_text(scores: Iterable[Score]) -> str:
    """Return the scores as a table."""
    return markdown_of(_COLUMNS, scores, aligned=True)


_COLUMNS: dict[str, Callable[[Score], str]] = {
    "name": lambda score: score.name,
    "log p(x)": lambda score: f"{score.log_p:.2f} +- {score.stderr:.2f}",
    "effective sample": lambda score: f"{score.effective:.1f}",
    "bits per dimension": lambda score: f"{score.bits_per_dimension:.3f}",
    "ELBO": lambda score: f"{score.elbo:.2f}",
    "distortion": lambda score: f"{score.distortion:.2f}",
    "rate": lambda score: f"{score.rate:.2f}",
}


class Imputed(NamedTuple):
    """Data whose missing values are filled in, (N, *shape), and the standard error of each from the draws of z.

    Of a category or a binary column of `Columns` the most likely code is filled in, whose error is NaN.
    """

    filled: Tensor
    stderr: Tensor


@torch.no_grad()
def impute(vae: VAE, x: Pixels, num_particles: int = 200) -> Imputed:
    """Fill in what is missing: the mean of p(x missing | x observed), by self-normalised importance sampling.

        E[x missing | x observed] ~ sum_k w_k E[x | z_k] / sum_k w_k,    w_k = p(x observed, z_k) / q(z_k | x observed)

    Of a category its probabilities are averaged, and the most likely one is taken.

    Args:
        vae: in eval mode, with `Config.missing`.
        x: N data; NaN is missing.
        num_particles: K.

    Returns:
        The data, with means in place of NaN, and the delta-method standard error of these; 0 where nothing is missing.

    Reference:
        Mattei and Frellsen, arXiv:1812.02633, "single imputation".
    """
    filled, stderr = list[Tensor](), list[Tensor]()
    for part in x.split(images_at_once(vae, x, num_particles)):
        q = vae.posterior(part)
        z = q.sample((num_particles,))
        log_w = vae.log_likelihood(part, z) + vae.prior().log_prob(z) - q.log_prob(z)
        weight = log_w.softmax(0).reshape(*log_w.shape, *[1] * (part.dim() - 1))
        p_x = vae.likelihood(z)
        means = p_x.features if isinstance(p_x, Columns) else p_x.mean
        mean, is_missing = (weight * means).sum(0), part.isnan()
        error = (weight * (means - mean)).square().sum(0).sqrt()
        if isinstance(p_x, Columns):
            nan = torch.full_like(part, torch.nan)
            mean, error = p_x.from_features(mean), torch.where(p_x.has_mean, p_x.from_features(error), nan)
        filled.append(torch.where(is_missing, mean, part))
        stderr.append(torch.where(is_missing, error, torch.zeros_like(error)))
    return Imputed(torch.cat(filled), torch.cat(stderr))


@torch.no_grad()
def sample_images(vae: VAE, num_samples: int, draws: bool = False) -> Tensor:
    """Return new images: means of p(x | z), or draws from it, at draws z ~ p(z).

    Args:
        vae: in eval mode.
        num_samples: S.
        draws: draw every pixel too, in place of taking its mean.

    Returns:
        (S, C, H, W), in the range of the VAE's pixels: [0, 1], or [-1, 1] if they are symmetric.

    Raises:
        InputError: the VAE has no prior, as an autoencoder.
    """
    if not vae.has_density:
        raise InputError("an autoencoder has no prior to draw from: train with --posterior normal")
    z = vae.prior().sample((num_samples,))
    likelihoods = (vae.likelihood(part) for part in z.split(_CHUNK))
    return torch.cat([p_x.sample() if draws else p_x.mean for p_x in likelihoods])
