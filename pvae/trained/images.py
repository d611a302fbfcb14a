"""What a trained VAE computes for given images: their codes, their likelihoods, and new images."""

from __future__ import annotations

import contextlib
import csv
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pvae.core.errors import InputError, brief, check_name
from pvae.core.records import markdown_of
from pvae.data.dataset import Column, value_name
from pvae.data.preparation import Pixels
from pvae.distributions.columns import Columns
from pvae.distributions.hierarchy import Hierarchy
from pvae.runs.data import images_for
from pvae.runs.run import Run
from pvae.trained.latent_space import decode, encode
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
    "check_domain",
    "draw_codes",
    "encode_images",
    "given_images",
    "impute",
    "label_of",
    "labels_to_sample",
    "read_codes",
    "reconstruct_images",
    "score_images",
    "to_text",
    "with_likelihood",
]


_ROWS = 1000  # that are checked at once


class GivenImages(NamedTuple):
    """Images to encode or score, in the shape that a run was trained on.

    Args:
        names: the name of each image.
        images: bytes (N, C, H, W).
        note: how the images were changed, or "".
        y: their labels, (N, ...), or one for all, (1, ...), if the run was trained given labels.
        labels: the name of the class of each, "" where it is not known; empty if they have no classes.
    """

    names: Sequence[str]
    images: Tensor
    note: str = ""
    y: Tensor | None = None
    labels: Sequence[str] = ()


def given_images(
    run: Run, path: str | Path | None = None, skip_broken: bool = False, label: str | None = None
) -> GivenImages:
    """Return images converted to the shape that a run was trained on.

    Args:
        run: the run.
        path: an image file, a folder of image files, or an .npy or .npz file; None for the run's own test images.
        skip_broken: leave out a file that cannot be decoded.
        label: of all of them, as for `label_of`; by default the run's own test images have their own.

    Raises:
        InputError: there are no such images, or the run's own images cannot be found; or a run that was trained given
            labels is given none.
    """
    y = None if label is None else label_of(run, label)
    if path is None:
        data = run.dataset()
        classes = ("", *data.label_names)  # from -1 on
        is_named = bool(data.label_names) and not data.has_attributes and "test" in data.labels
        numbers = data.labels["test"].tolist() if is_named else []
        y = data.labels["test"] if y is None and run.is_given_labels else y
        return GivenImages(data.test_names, data.test, "", y, [classes[label + 1] for label in numbers])
    found = images_for(replace(run, config=run.config.replace(skip_broken=skip_broken)), path)
    names, images, note, labels = found
    if run.is_given_labels and y is None:
        unknown = [place for place, label in enumerate(labels) if label not in run.data.label_names]
        if unknown or not labels:
            named = f"the label {labels[unknown[0]]!r} ({names[unknown[0]]})" if labels else ""
            what = f"{named}, which the training has not" if labels else "no labels"
            raise InputError(f"{run.path} was trained given labels, and {path} has {what}: give --label NAME")
        y = torch.tensor([run.data.label_names.index(label) for label in labels])
    if not run.data.is_images:
        check_domain(run.vae(), run.preparation.prepared(images, "test"), str(path), names, run.data.columns)
    return GivenImages(names, images, note, y, labels)


def labels_to_sample(run: Run, label: str | None = None) -> Tensor | None:
    """Return the labels (R, ...) of which images are drawn in turn: one, or every class, or those of the test data.

    Args:
        run: the run; None is returned if it takes no labels.
        label: as for `label_of`.

    Raises:
        InputError: as for `label_of`, or the run's data cannot be found.
    """
    if label is not None:
        return label_of(run, label)
    if run.config.condition and not run.data.has_attributes and not run.has_own_vae:
        return torch.arange(len(run.data.label_names))
    return run.dataset().labels["test"] if run.is_given_labels else None


def label_of(run: Run, text: str) -> Tensor:
    """Return the label of that name, (1, ...), for a run that was trained given labels.

    Args:
        run: the run.
        text: the name of a class, or a prefix that no other class has; or names of attributes, with commas in between.

    Raises:
        InputError: the run takes no labels, or the name is unknown.
    """
    names = run.data.label_names
    if not names or not (run.config.condition or run.config.labels):
        raise InputError(f"{run.path} was not trained with labels: leave --label out")
    if run.data.has_attributes:
        has = {check_name("--label", name, names) for name in text.split(",")}
        return torch.tensor([[name in has for name in names]])
    found = [name for name in names if name == text] or [name for name in names if name.startswith(text)]
    return torch.tensor([names.index(found[0] if len(found) == 1 else check_name("--label", text, names))])


def with_likelihood(run: Run, images: Tensor, y: Tensor | None = None) -> tuple[VAE, Pixels, str]:
    """Return a VAE whose likelihood is a probability or a density, pixels in its domain, and their kind.

    They are those of `with_normalised_likelihood` for bytes `images` (N, C, H, W), given labels y if there are some.
    """
    return with_normalised_likelihood(
        run.config, run.vae().given(y), run.data.datum_shape, images, len(run.data.label_names)
    )


def check_domain(
    vae: VAE, values: Tensor, source: str, names: str | Sequence[str], columns: Sequence[Column] = ()
) -> None:
    """Check that data can be values of a VAE's likelihood.

    Args:
        vae: its likelihood may have a method `check`.
        values: x, (N, *shape).
        source: where they are from, for the message.
        names: the name of each datum, or of their split.
        columns: of a table.

    Raises:
        InputError: one is outside the domain; the message names the first one, and its value.
    """
    check: Callable[[Tensor], Tensor] = getattr(vae.p_x, "check", lambda x: x)
    for start in range(0, len(values), _ROWS):
        with contextlib.suppress(InputError):
            check(values[start : start + _ROWS])
            continue
        for row in range(start, start + _ROWS):
            try:
                check(values[row : row + 1])
            except InputError as error:
                name = f"{names}[{row}]" if isinstance(names, str) else names[row]
                place = _first_outside(check, values[row])
                where = f"{value_name(place, values.shape[1:], columns)} of {name} is {values[row].flatten()[place]:g}"
                raise InputError(f"{source}: {where}, and {error}") from None


def _first_outside(check: Callable[[Tensor], Tensor], datum: Tensor) -> int:
    """Return the flat index of the first value that is outside the domain, of which 0 is part, by bisection."""
    low, high = 0, datum.numel()  # with the first `high` values, and 0 for the others, the check fails
    while low + 1 < high:
        middle = (low + high) // 2
        part = torch.where(torch.arange(datum.numel(), device=datum.device).view(datum.shape) < middle, datum, 0)
        try:
            check(part[None])
            low = middle
        except InputError:
            high = middle
    return low


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
    posteriors = [one.posterior(part) for one, part in vae.split(x, images_at_once(vae, x))]
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
    z = torch.cat([one.posterior(part).sample() for one, part in vae.split(x, images_at_once(vae, x))])
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
    for one, part in vae.split(x, images_at_once(vae, x, num_particles)):
        q = one.posterior(part)
        z = q.sample((num_particles,))
        log_w = one.log_likelihood(part, z) + one.prior().log_prob(z) - q.log_prob(z)
        weight = log_w.softmax(0).reshape(*log_w.shape, *[1] * (part.dim() - 1))
        p_x = one.likelihood(z)
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
def reconstruct_images(vae: VAE, x: Pixels) -> Tensor:
    """Return the mean of p(x | z) at the mean of q(z | x) for each image, (N, C, H, W).

    Args:
        vae: in eval mode.
        x: N images.
    """
    return decode(vae, encode(vae, x))


def read_codes(run: Run, file: Path) -> Tensor:
    """Return the codes z (N, L) of a file of `pvae encode`: z, z1 and so on, or else the means loc.

    Raises:
        InputError: the file cannot be read, or holds no codes of this run's length.
    """
    width = run.vae().prior().event_shape[0]
    try:
        if file.suffix == ".csv":
            with file.open(newline="", encoding="utf-8") as lines:
                rows = [*csv.DictReader(lines)]
            columns = [name for name in rows[0] if re.fullmatch(r"(loc|y|z\d*)_\d+", name)]
            columns.sort(key=lambda name: (name.partition("_")[0], int(name.partition("_")[2])))
            z = torch.tensor([[float(row[name]) for name in columns] for row in rows])
        else:
            stored = np.load(file, allow_pickle=False)
            arrays = {"z": stored} if isinstance(stored, np.ndarray) else stored
            names = sorted(name for name in arrays if re.fullmatch(r"loc|y|z\d*", name))
            z = torch.cat([torch.from_numpy(arrays[name]).float() for name in names], dim=1)
    except Exception as error:  # of damaged files numpy and zipfile raise many types
        raise InputError(f"{file} cannot be read as codes ({brief(error)}): give what pvae encode wrote") from None
    if z.dim() != 2 or z.shape[1] != width or not len(z):
        raise InputError(
            f"{file} holds codes of shape {tuple(z.shape)}, and {run.path} has latents of shape ({width},)"
        )
    return z
