"""The pictures of a run, by name: each takes the run with its VAE and data, and returns a figure."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.distributions import Normal

from pvae import figures
from pvae.data import Dataset, binarized, padded, to_pixels
from pvae.errors import InputError, check_name
from pvae.fitting import check_same_data, load_again
from pvae.latentspace import (
    LatentReport,
    attribute_vector,
    decode,
    encode,
    interpolate,
    manifold,
    nearest_neighbour_accuracy,
    reconstruct,
    report,
    sample,
    traverse,
)
from pvae.rng import seeded
from pvae.runs import Run
from pvae.vae import VAE

__all__ = ["DRAWERS", "Subject"]

_SHOWN_ATTRIBUTES = ("Blond_Hair", "Smiling", "Male", "Eyeglasses")


@dataclass(frozen=True)
class Subject:
    """What is drawn: a run, its trained VAE, and the data as the VAE saw them.

    Args:
        run: the run.
        vae: its VAE, in eval mode, on the CPU.
        data: its data, as bytes.
        attributes: which of the data's attributes to draw; a few well-known ones if left out.
    """

    run: Run
    vae: VAE
    data: Dataset
    attributes: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        path: str | Path,
        data_dir: str | Path | None = None,
        offline: bool = False,
        attributes: tuple[str, ...] = (),
    ) -> Subject:
        """Return the subject of a run folder.

        Raises:
            InputError: the folder is no run, its data are not to be had, or have no such attribute.
        """
        run = Run.open(path)
        data = load_again(run, data_dir, offline)
        check_same_data(run, data)
        for name in attributes:
            check_name("attribute", name, data.label_names)
        return cls(run, run.vae(), data, attributes)

    @property
    def title(self) -> str:
        """System, data and test bound."""
        return figures.run_title(self.run)

    @cached_property
    def train(self) -> Tensor:
        """The training images as pixels."""
        return self._pixels(self.data.train, "train")

    @cached_property
    def test(self) -> Tensor:
        """The test images as pixels."""
        return self._pixels(self.data.test, "test")

    @cached_property
    def train_codes(self) -> Tensor:
        """Means of q(z | x) of the training images."""
        return encode(self.vae, self.train)

    @cached_property
    def test_codes(self) -> Tensor:
        """Means of q(z | x) of the test images."""
        return encode(self.vae, self.test)

    @cached_property
    def test_draws(self) -> Tensor:
        """One draw of q(z | x) for each test image: the aggregate posterior."""
        with seeded(self.run.config.seed, torch.device("cpu")), torch.no_grad():
            return torch.cat([self.vae.posterior(part).sample() for part in self.test.split(1000)])

    @property
    def classes(self) -> tuple[Tensor | None, Tensor | None]:
        """The classes of training and test images; None where there are none, or attributes in their place."""
        labels = self.data.train_labels, self.data.test_labels
        return labels if all(part is not None and part.dim() == 1 for part in labels) else (None, None)

    def shown(self, pixels: Tensor) -> Tensor:
        """Return pixels in [0, 1], for the eye."""
        return 0.5 * (pixels + 1) if self.run.config.pixels == "symmetric" else pixels

    def report(self) -> LatentReport:
        """Return how the codes lie."""
        accuracy = None
        if self.classes[0] is not None and self.data.train_labels is not None and self.data.test_labels is not None:
            accuracy = nearest_neighbour_accuracy(
                self.train_codes, self.data.train_labels, self.test_codes, self.data.test_labels
            )
        return report(self.test_draws, accuracy)

    def needs(self, what: str, has: bool) -> None:
        """Raise an `InputError` that names what the picture needs, unless the run has it."""
        if not has:
            raise InputError(f"this picture needs {what}, which {self.run.path} has not")

    def _pixels(self, images: Tensor, split: str) -> Tensor:
        config = self.run.config
        mode = "static" if config.binarize == "dynamic" else config.binarize
        return to_pixels(padded(binarized(images, mode, split), config.pad), config.pixels == "symmetric")


def _reconstructions(subject: Subject) -> Figure:
    images = subject.test[:8]
    with seeded(subject.run.config.seed, torch.device("cpu")):
        reconstructions = reconstruct(subject.vae, images)
    return figures.reconstruction_figure(subject.shown(images), subject.shown(reconstructions), subject.title)


def _samples(subject: Subject) -> Figure:
    subject.needs("a prior to draw from", subject.vae.q_z.has_density)
    with seeded(subject.run.config.seed, torch.device("cpu")):
        return figures.sample_figure(subject.shown(sample(subject.vae, 64)), subject.title)


def _losses(subject: Subject) -> Figure:
    rows = subject.run.metrics()
    subject.needs("a finished epoch", bool(rows))
    return figures.loss_figure(rows, subject.title)


def _scatter(subject: Subject) -> Figure:
    subject.needs("two latent dimensions", subject.run.config.latent_dim == 2)
    splits = {
        "training images (the first 10,000)": (subject.train_codes[:10_000], _first(subject.classes[0])),
        "test images": (subject.test_codes, subject.classes[1]),
    }
    return figures.scatter_figure(splits, subject.data.label_names, f"{subject.title}\nmeans of q(z | x)")


def _cdf(subject: Subject) -> Figure:
    subject.needs("two latent dimensions", subject.run.config.latent_dim == 2)
    labels, names = subject.classes[1], subject.data.label_names
    splits = {
        "z ~ q(z | x), test images": (subject.test_draws, labels),
        "F(z), F the distribution function of N(0, 1)": (Normal(0.0, 1.0).cdf(subject.test_draws), labels),
    }
    return figures.scatter_figure(splits, names, subject.title)


def _manifold(subject: Subject) -> Figure:
    subject.needs("two latent dimensions", subject.run.config.latent_dim == 2)
    subject.needs("a prior", subject.vae.q_z.has_density)
    title = f"{subject.title}\nmean of p(x | z) at the quantiles of p(z), z_1 to the right, z_2 upward"
    return figures.row_figure(subject.shown(manifold(subject.vae)), 20, title)


def _traversal(subject: Subject) -> Figure:
    """Traverse the dimensions in which the codes vary most; the rest of z is the first test image's."""
    spread = subject.test_codes.std(0)
    dimensions = spread.argsort(descending=True)[:10].tolist()
    scale = spread if not subject.vae.q_z.has_density else torch.ones_like(spread)
    steps = torch.linspace(-3, 3, 11)
    rows = [traverse(subject.vae, subject.test_codes[0], d, steps * scale[d]) for d in dimensions]
    title = f"{subject.title}\nmean of p(x | z), one dimension at a time from -3 to 3"
    if not subject.vae.q_z.has_density:
        title += " standard deviations of the codes"
    return figures.row_figure(subject.shown(torch.cat(rows)), len(steps), title, [f"z_{d + 1}" for d in dimensions])


def _interpolation(subject: Subject) -> Figure:
    pairs = list(zip(subject.test[0:10:2], subject.test[1:10:2]))
    rows = [torch.cat([a[None], interpolate(subject.vae, a, b), b[None]]) for a, b in pairs]
    title = f"{subject.title}\ntest images at the ends; the mean of p(x | z) on the way between their codes"
    return figures.row_figure(subject.shown(torch.cat(rows)), 12, title)


def _histograms(subject: Subject) -> Figure:
    return figures.histogram_figure(subject.test_draws, subject.title)


def _attributes(subject: Subject) -> Figure:
    """Rows of one test image along each attribute's direction; the image is the first that has it not."""
    labels, test_labels = subject.data.train_labels, subject.data.test_labels
    subject.needs("attributes of its images", labels is not None and labels.dim() == 2)
    assert labels is not None
    assert test_labels is not None
    names = subject.attributes or tuple(name for name in _SHOWN_ATTRIBUTES if name in subject.data.label_names)
    subject.needs("attributes to show: give --attribute", bool(names))
    alphas = torch.linspace(-3, 3, 7)
    rows = []
    for name in names:
        column = subject.data.label_names.index(name)
        subject.needs(f"training images with and without {name}", bool(0 < labels[:, column].sum() < len(labels)))
        vector = attribute_vector(subject.train_codes, labels[:, column].bool())
        start = int((~test_labels[:, column].bool()).int().argmax())
        codes = subject.test_codes[start] + alphas.unsqueeze(1) * vector
        rows.append(torch.cat([subject.test[start : start + 1], decode(subject.vae, codes)]))
    title = f"{subject.title}\na test image, then the mean of p(x | z + alpha v), alpha from -3 to 3"
    return figures.row_figure(subject.shown(torch.cat(rows)), len(alphas) + 1, title, names)


def _first(labels: Tensor | None) -> Tensor | None:
    return None if labels is None else labels[:10_000]


DRAWERS = {
    "reconstructions": _reconstructions,
    "samples": _samples,
    "losses": _losses,
    "scatter": _scatter,
    "cdf": _cdf,
    "manifold": _manifold,
    "traversal": _traversal,
    "interpolation": _interpolation,
    "histograms": _histograms,
    "attributes": _attributes,
}
