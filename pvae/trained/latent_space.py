"""Codes, reconstructions, samples and interpolations of a trained VAE, and statistics of codes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import Normal
from torch.nn.functional import normalize

from pvae.core.errors import InputError
from pvae.core.random_state import seeded
from pvae.data.batch import given_parts, given_rows
from pvae.data.preparation import Pixels
from pvae.distributions.joint import Joint
from pvae.distributions.labels import one_hot
from pvae.distributions.power_spherical import PowerSpherical
from pvae.trained.chunks import images_at_once
from pvae.vae import VAE

__all__ = [
    "Codes",
    "LatentReport",
    "attribute_vector",
    "decode",
    "draw_codes",
    "encode",
    "encode_images",
    "interpolate",
    "latent_statistics",
    "manifold",
    "nearest_neighbour_accuracy",
    "prior_quantiles",
    "reconstruct",
    "reconstruct_images",
    "sample",
    "sample_given",
    "traverse",
    "with_labels",
]

_CHUNK = 1000


@torch.no_grad()
def encode(vae: VAE, x: Tensor | Pixels) -> Tensor:
    """Return the codes of images x (N, C, H, W): the mean of q(z | x) for each image, (N, L).

    The mean of a flow or of several stochastic layers has no closed form. It is then estimated from 100 draws, with the
    same noise for all images, so that it varies over images only as q(z | x) does. For a distribution of your own that
    has no mean, the estimate is from 1,000 draws, whose noise differs from image to image.
    """
    return torch.cat([_mean(one.posterior(part)) for one, part in given_parts(vae, x, images_at_once(vae, x))])


def _mean(posterior: Any) -> Tensor:
    try:
        return posterior.mean
    except NotImplementedError:
        with seeded(0, torch.device("cpu")):
            if hasattr(posterior, "estimate_mean"):
                return posterior.estimate_mean(100)
            return torch.stack([posterior.sample((100,)).mean(0) for _ in range(10)]).mean(0)


@torch.no_grad()
def decode(vae: VAE, z: Tensor, draws: bool = False) -> Tensor:
    """Return the mean image of p(x | z), or a draw from it, for each latent z (N, L): (N, C, H, W).

    Where the prior is on the unit sphere, z is divided by its norm first.
    """
    if isinstance(vae.prior(), PowerSpherical):
        z = normalize(z, dim=-1)  # the mean of several points on a sphere is not on it
    likelihoods = [one.likelihood(part) for one, part in given_parts(vae, z, _CHUNK)]
    return torch.cat([p_x.sample() if draws else p_x.mean for p_x in likelihoods])


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
    posteriors = [one.posterior(part) for one, part in given_parts(vae, x, images_at_once(vae, x))]
    try:
        loc, scale = (torch.cat([getattr(q, name) for q in posteriors]) for name in ("mean", "stddev"))
    except NotImplementedError:
        raise InputError(
            "q(z | x) has no mean and standard deviation in closed form, as with a flow or several stochastic layers: "
            "draw from it, with --draws or pvae.trained.latent_space.draw_codes"
        ) from None
    return Codes(loc, scale)


@torch.no_grad()
def draw_codes(vae: VAE, x: Pixels) -> dict[str, Tensor]:
    """Return a draw from q(z | x) for each image; the arguments are those of `encode_images`.

    The draw is "z", (N, L), or with several stochastic layers "z1", (N, L_1), "z2", (N, L_2), and so on.
    """
    z = torch.cat([one.posterior(part).sample() for one, part in given_parts(vae, x, images_at_once(vae, x))])
    prior = vae.prior()
    return dict(zip(prior.names, z.split(prior.sizes, dim=-1))) if isinstance(prior, Joint) else {"z": z}


@torch.no_grad()
def reconstruct(vae: VAE, x: Tensor) -> Tensor:
    """Return the mean image of p(x | z) at one draw z ~ q(z | x) for each image, as posts 000 and 004 do.

    Args:
        vae: the VAE.
        x: images (B, C, H, W).

    Returns:
        (B, C, H, W).
    """
    return decode(vae, vae.posterior(x).sample())


@torch.no_grad()
def reconstruct_images(vae: VAE, x: Pixels) -> Tensor:
    """Return the mean of p(x | z) at the mean of q(z | x) for each image, (N, C, H, W).

    Args:
        vae: in eval mode.
        x: N images.
    """
    return decode(vae, encode(vae, x))


@torch.no_grad()
def sample(vae: VAE, num_samples: int, draws: bool = False, y: Tensor | None = None) -> Tensor:
    """Return new data: means of p(x | z), or draws from it, at draws z ~ p(z).

    Args:
        vae: in eval mode.
        num_samples: S.
        draws: draw every value of x too, in place of taking its mean.
        y: labels (R, ...) for a VAE given labels: one after the other, and again from the first one.

    Returns:
        (S, *D); of images in the range of the VAE's pixels, [0, 1], or [-1, 1] if they are symmetric.

    Raises:
        InputError: the VAE has no prior, as an autoencoder.
    """
    if not vae.has_density:
        raise InputError("an autoencoder has no prior to draw from: train with --posterior normal")
    labels = None if y is None else y[torch.arange(num_samples) % len(y)]
    vae = vae.given(labels)
    prior: Any = vae.prior()
    z = prior.sample() if prior.batch_shape else prior.sample((num_samples,))
    return decode(vae, with_labels(prior, z, labels), draws)


def with_labels(prior: Any, z: Tensor, y: Tensor | None) -> Tensor:
    """Return latents whose label is replaced by classes y, int64 (...), if p(z) has a label, and z itself otherwise."""
    if y is None or not (isinstance(prior, Joint) and prior.is_enumerable):
        return z
    return prior.replaced(z, prior.names[0], one_hot(y, prior.sizes[0]))


@torch.no_grad()
def sample_given(vae: VAE, y: Tensor, num_columns: int = 8) -> Tensor:
    """Return a row of samples for each label: means of p(x | z, y), with the same z in a column if p(z) is free of y.

    Args:
        vae: takes labels, or has a label as a latent.
        y: labels (R, ...).
        num_columns: n.

    Returns:
        (R n, *D).
    """
    rows = y.repeat_interleave(num_columns, 0)
    prior: Any = vae.given(rows).prior()
    z = prior.sample() if prior.batch_shape else prior.sample((num_columns,)).repeat(len(y), 1)
    return decode(vae.given(rows), with_labels(prior, z, rows))


def prior_quantiles(num_steps: int) -> Tensor:
    """Return the quantiles of N(0, 1) at (i + 1/2) / n, i = 0..n-1: (n,)."""
    return Normal(0.0, 1.0).icdf((torch.arange(num_steps) + 0.5) / num_steps)


def manifold(vae: VAE, num_steps: int = 20) -> Tensor:
    """Return images decoded on a grid over a 2-dimensional latent space.

    The grid has equal steps in probability: z = (F^-1(u), F^-1(v)), where F is the CDF of N(0, 1).

    Args:
        vae: with two latent dimensions.
        num_steps: n, the number of rows and of columns.

    Returns:
        (n n, C, H, W), row by row; z_1 grows to the right and z_2 upward.

    Reference:
        Kingma and Welling, arXiv:1312.6114, whose figures of learned manifolds are such grids.
    """
    z = prior_quantiles(num_steps)
    up, right = torch.meshgrid(z.flip(0), z, indexing="ij")
    return decode(vae, torch.stack([right.flatten(), up.flatten()], dim=1))


def traverse(vae: VAE, z: Tensor, dimension: int, values: Tensor) -> Tensor:
    """Return images decoded from a latent z (L,) whose `dimension` is set to each of the values (V,): (V, C, H, W)."""
    codes = z.repeat(len(values), 1)
    codes[:, dimension] = values
    return decode(vae, codes)


def interpolate(vae: VAE, first: Tensor, second: Tensor, num_steps: int = 10) -> Tensor:
    """Return images decoded along the straight line between the codes of two images, z = (1 - a) z_1 + a z_2.

    Args:
        vae: the VAE; given labels of the two images, all are decoded given that of the first one.
        first: the image (C, H, W) at a = 0.
        second: the image (C, H, W) at a = 1.
        num_steps: n, including both ends.

    Returns:
        (n, C, H, W).
    """
    start, end = encode(vae, torch.stack([first, second]))
    alpha = torch.linspace(0, 1, num_steps).unsqueeze(1)
    return decode(given_rows(vae, slice(1)), (1 - alpha) * start + alpha * end)


def attribute_vector(codes: Tensor, has: Tensor) -> Tensor:
    """Return the direction of an attribute: the mean code with it minus the mean code without it.

    Args:
        codes: (N, L).
        has: bool (N,), neither all true nor all false.

    Returns:
        v (L,); post 003 draws images of z + alpha v.
    """
    return codes[has].mean(0) - codes[~has].mean(0)


def nearest_neighbour_accuracy(
    train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor, num_neighbours: int = 10
) -> float:
    """Return the accuracy of a k-nearest-neighbour classifier, from training codes to test codes.

    Args:
        train: training codes (N, L).
        train_labels: classes of the training codes (N,).
        test: test codes (M, L).
        test_labels: classes of the test codes (M,).
        num_neighbours: k; all N training codes where there are fewer.
    """
    hits = 0
    for part, labels in zip(test.split(_CHUNK), test_labels.split(_CHUNK)):
        nearest = torch.cdist(part, train).topk(min(num_neighbours, len(train)), largest=False).indices
        hits += int((train_labels[nearest].mode(dim=1).values == labels).sum())
    return hits / len(test)


@dataclass(frozen=True, kw_only=True)
class LatentReport:
    """Statistics of codes, to compare each latent dimension with N(0, 1) and the codes with classes.

    Args:
        mean: the mean of each latent dimension.
        std: the standard deviation of each latent dimension.
        kolmogorov_smirnov: the largest distance between the CDF of each dimension and that of N(0, 1); None if the
            prior is another one.
        accuracy: accuracy of a 10-nearest-neighbour classifier from training to test codes; None without classes.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    kolmogorov_smirnov: tuple[float, ...] | None
    accuracy: float | None

    def __str__(self) -> str:
        """Return the greatest distance from N(0, 1) and the accuracy, each if there is one."""
        parts = []
        if distances := self.kolmogorov_smirnov:
            parts.append(f"Kolmogorov-Smirnov distance of a dimension from N(0, 1) {max(distances):.3f} at most")
        if self.accuracy is not None:
            parts.append(f"10-nearest-neighbour accuracy {self.accuracy:.3f}")
        return "; ".join(parts)


def latent_statistics(codes: Tensor, accuracy: float | None = None, is_prior_normal: bool = True) -> LatentReport:
    """Return statistics of draws from the aggregate posterior.

    Args:
        codes: the draws, (N, L).
        accuracy: a classifier's accuracy, for the report.
        is_prior_normal: whether the prior is N(0, 1), so that the draws are compared with it.
    """
    from scipy.stats import kstest  # slow to import, and needed only here

    distances = (float(kstest(column.numpy(), "norm").statistic) for column in codes.T)
    return LatentReport(
        mean=tuple(codes.mean(0).tolist()),
        std=tuple(codes.std(0).tolist()),
        kolmogorov_smirnov=tuple(distances) if is_prior_normal else None,
        accuracy=accuracy,
    )
