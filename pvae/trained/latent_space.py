"""Codes, reconstructions, samples and interpolations of a trained VAE."""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import Normal
from torch.nn.functional import normalize

from pvae.core.batch import Batch, Data
from pvae.core.errors import InputError
from pvae.core.random_state import seeded
from pvae.distributions.discrete import values_of
from pvae.distributions.joint import Joint, one_hot
from pvae.distributions.power_spherical import PowerSpherical
from pvae.marginal.chunks import data_at_once, draw_for_each, latents_at_once
from pvae.tables.codec import can_be
from pvae.tables.schema import Schema
from pvae.vae import VAE

_MOST_TRIES = 100  # of drawing a row


@torch.no_grad()
def posteriors(vae: VAE, data: Data) -> list[TorchDistribution]:
    """Return q(z | x) of data (N, *D), or of a `Batch` with labels, in parts that fit into memory."""
    batch = Batch.of(data)
    return [vae.posterior(*part) for part in batch.split(data_at_once(vae, batch))]


def encode(vae: VAE, data: Data) -> Tensor:
    """Return the codes of data (N, *D), or of a `Batch` with labels: the mean of q(z | x) for each datum, (N, L)."""
    return torch.cat([mean_of(posterior) for posterior in posteriors(vae, data)])


@torch.no_grad()
def mean_of(posterior: Any) -> Tensor:
    """Return the mean of q(z | x), (B, L).

    The mean of a flow or of several stochastic layers has no closed form. It is then estimated from 100 draws, with the
    same noise for all data, so that it varies over data only as q(z | x) does. For a distribution of your own that has
    no mean, the estimate is from 1,000 draws, whose noise differs from datum to datum.
    """
    try:
        return posterior.mean
    except NotImplementedError:
        with seeded(0, torch.device("cpu")):
            if hasattr(posterior, "estimate_mean"):
                return posterior.estimate_mean(100)
            return torch.stack([posterior.sample((100,)).mean(0) for _ in range(10)]).mean(0)


@torch.no_grad()
def decode(vae: VAE, z: Tensor, y: Tensor | None = None, *, draws: bool = False) -> Tensor:
    """Return the mean of p(x | z), or a draw from it, for each latent z (N, L): (N, *D).

    Where the prior is on the unit sphere, z is divided by its norm first.

    Args:
        vae: in eval mode.
        z: latents (N, L).
        y: labels (N, ...), or one for all (1, ...), if the VAE takes labels.
        draws: draw every value of x too, in place of taking its mean.
    """
    if isinstance(vae.given(y).prior(), PowerSpherical):
        z = normalize(z, dim=-1)  # the mean of several points on a sphere is not on it
    latents = Batch(z, y)
    likelihoods = [vae.likelihood(*part) for part in latents.split(latents_at_once(vae, latents))]
    if draws:
        return torch.cat([p_x.sample() for p_x in likelihoods])
    return torch.cat([p_x.mean for p_x in likelihoods])


class Codes(NamedTuple):
    """Means and standard deviations of q(z | x) for each datum, (N, L)."""

    loc: Tensor
    scale: Tensor


@torch.no_grad()
def encode_images(vae: VAE, data: Data) -> Codes:
    """Return the mean and the standard deviation of q(z | x) for each datum.

    Args:
        vae: in eval mode.
        data: N data x, or a `Batch` of them with their labels.

    Raises:
        InputError: they have no closed form, as with several stochastic layers.
    """
    parts = posteriors(vae, data)
    try:
        loc, scale = (torch.cat([getattr(q, name) for q in parts]) for name in ("mean", "stddev"))
    except NotImplementedError:
        raise InputError(
            "q(z | x) has no mean and standard deviation in closed form, as with a flow or several stochastic layers: "
            "draw from it, with --draws or pvae.trained.latent_space.draw_codes"
        ) from None
    return Codes(loc, scale)


@torch.no_grad()
def draw_codes(vae: VAE, data: Data) -> dict[str, Tensor]:
    """Return a draw from q(z | x) for each datum; the arguments are those of `encode_images`.

    The draw is "z", (N, L), or with several stochastic layers "z1", (N, L_1), "z2", (N, L_2), and so on.
    """
    parts = posteriors(vae, data)
    z = torch.cat([q.sample() for q in parts])
    if isinstance(parts[0], Joint):
        return dict(zip(parts[0].names, z.split(parts[0].sizes, dim=-1)))
    return {"z": z}


@torch.no_grad()
def reconstruct(vae: VAE, data: Data, *, draws: bool = False) -> Tensor:
    """Return the mean of p(x | z) at one draw z ~ q(z | x) for each of a few data, (B, *D), as posts 000 and 004 do.

    Args:
        vae: in eval mode.
        data: x (B, *D), or a `Batch` of them with their labels.
        draws: draw every value of x too, in place of taking its mean.
    """
    batch = Batch.of(data)
    return decode(vae, vae.posterior(*batch).sample(), batch.y, draws=draws)


@torch.no_grad()
def sample(vae: VAE, num_samples: int, draws: bool = False, y: Tensor | None = None) -> Tensor:
    """Return new data: means of p(x | z), or draws from it, at draws z ~ p(z).

    Args:
        vae: in eval mode.
        num_samples: S, the number of new data.
        draws: draw every value of x too, in place of taking its mean.
        y: labels (R, ...) for a VAE given labels: one after the other, and again from the first one.

    Returns:
        (S, *D); of images in the range of the VAE's pixels, [0, 1], or [-1, 1] if they are symmetric.

    Raises:
        InputError: the VAE has no prior, as an autoencoder.
    """
    if not vae.has_density:
        raise InputError("an autoencoder has no prior to draw from: train with --posterior normal")
    if y is not None:
        y = y[torch.arange(num_samples) % len(y)]
    prior = vae.given(y).prior()
    z = draw_for_each(prior, 1, num_samples)[0]
    return decode(vae, with_labels(prior, z, y), y, draws=draws)


def sample_rows(vae: VAE, schema: Schema, num_rows: int, y: Tensor | None = None) -> Tensor:
    """Return draws from p(x | z), z ~ p(z), as `sample`, of a table: a row that breaks a rule is drawn again.

    So is one in which a computed column lies below 0, where none does. A warning says how many rows break one still.
    """
    x = sample(vae, num_rows, True, y)
    if y is not None:
        y = y[torch.arange(num_rows) % len(y)]
    places = torch.arange(num_rows, device=x.device)
    for _ in range(_MOST_TRIES):
        of_places = None if y is None else y[places]
        places = places[~can_be(schema, x[places].cpu().double(), of_places).to(x.device)]
        if not len(places):
            break
        of_places = None if y is None else y[places]
        x[places] = sample(vae, len(places), True, of_places)
    else:
        why = f"{_MOST_TRIES} draws of each break a rule, or have a value below 0 that no row has"
        warnings.warn(f"{len(places):,} rows of {num_rows:,} may not be rows of the table: {why}", stacklevel=2)
    return x


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
    z = draw_for_each(prior, 1, num_columns)[0]
    if not prior.batch_shape:
        z = z.repeat(len(y), 1)
    return decode(vae, with_labels(prior, z, rows), rows)


def manifold(vae: VAE, num_steps: int = 20, y: Tensor | None = None) -> Tensor:
    """Return images decoded on a grid over a 2-dimensional latent space.

    The grid has equal steps in probability: z = (F^-1(u), F^-1(v)) with u and v = (i + 1/2) / n, i = 0..n-1, where F is
    the CDF of N(0, 1).

    Args:
        vae: with two latent dimensions.
        num_steps: n, the number of rows and of columns.
        y: a label (1, ...), if the VAE takes labels.

    Returns:
        (n n, C, H, W), row by row; z_1 grows to the right and z_2 upward.

    Reference:
        Kingma and Welling, arXiv:1312.6114, whose figures of learned manifolds are such grids.
    """
    z = Normal(0.0, 1.0).icdf((torch.arange(num_steps) + 0.5) / num_steps)
    up, right = torch.meshgrid(z.flip(0), z, indexing="ij")
    return decode(vae, torch.stack([right.flatten(), up.flatten()], dim=1), y)


def traverse(vae: VAE, z: Tensor, dimension: int, values: Tensor, y: Tensor | None = None) -> Tensor:
    """Return images decoded from a latent z (L,) whose `dimension` is set to each of the values (V,): (V, C, H, W).

    The VAE is given the label y (1, ...), if it takes labels.
    """
    codes = z.repeat(len(values), 1)
    codes[:, dimension] = values
    return decode(vae, codes, y)


def set_each(vae: VAE, data: Data, variable: int) -> Tensor:
    """Return images decoded from the likeliest code of a datum, with each value of one bit, category or code.

    Args:
        vae: in eval mode, of a discrete latent.
        data: (1, C, H, W), or a `Batch` of it with its label.
        variable: which one is set.

    Returns:
        (K, C, H, W), of the K values of the variable.
    """
    batch = Batch.of(data)
    each = values_of(vae.given(batch.y).prior())
    z = encode(vae, batch).unflatten(-1, (-1, each.shape[1]))
    z = each[torch.cdist(z, each).argmin(-1)].repeat(len(each), 1, 1)
    z[:, variable] = each
    return decode(vae, z.flatten(1), batch.y)


def interpolate(vae: VAE, data: Data, num_steps: int = 10) -> Tensor:
    """Return images decoded along the straight line between the codes of two images, z = (1 - a) z_1 + a z_2.

    Args:
        vae: in eval mode.
        data: the images at a = 0 and at a = 1, (2, C, H, W), or a `Batch` of them with their labels; all images are
            decoded given the label of the first.
        num_steps: n, including both ends.

    Returns:
        (n, C, H, W).
    """
    batch = Batch.of(data)
    start, end = encode(vae, batch)
    alpha = torch.linspace(0, 1, num_steps).unsqueeze(1)
    return decode(vae, (1 - alpha) * start + alpha * end, batch.rows(slice(1)).y)


def attribute_vector(codes: Tensor, has: Tensor) -> Tensor:
    """Return the direction of an attribute: the mean code with it minus the mean code without it.

    Args:
        codes: the codes of N data, (N, L).
        has: bool (N,), neither all true nor all false.

    Returns:
        v (L,); post 003 draws images of z + alpha v.
    """
    return codes[has].mean(0) - codes[~has].mean(0)
