"""The pictures of a run: each takes the run with its VAE and data, and returns a figure.

Each raises an `InputError` where the run has not what it shows.
"""

from __future__ import annotations

import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.distributions import Normal

from pvae.core.random_state import seeded
from pvae.evaluation import latent_space
from pvae.evaluation.trained_run import ALPHAS, TrainedRun
from pvae.plotting import run_figures

__all__ = [
    "DRAWERS",
    "attributes",
    "cdf",
    "histograms",
    "interpolation",
    "losses",
    "manifold",
    "probe",
    "reconstructions",
    "samples",
    "scatter",
    "traversal",
]


def reconstructions(subject: TrainedRun) -> Figure:
    """Return eight test images above the means of p(x | z), z ~ q(z | x)."""
    images = subject.pixels(subject.test[:8])
    with seeded(subject.run.config.seed, torch.device("cpu")):
        reconstructions = latent_space.reconstruct(subject.vae, images)
    return run_figures.reconstruction_figure(subject.shown(images), subject.shown(reconstructions), subject.title)


def samples(subject: TrainedRun) -> Figure:
    """Return 64 means of p(x | z), z ~ p(z); an autoencoder has none."""
    subject.needs("a prior to draw from", subject.vae.has_density)
    with seeded(subject.run.config.seed, torch.device("cpu")):
        return run_figures.sample_figure(subject.shown(latent_space.sample(subject.vae, 64)), subject.title)


def losses(subject: TrainedRun) -> Figure:
    """Return loss, distortion and rate against the epoch."""
    rows = subject.run.metrics()
    subject.needs("a finished epoch", bool(rows))
    return run_figures.loss_figure(rows, subject.title)


def scatter(subject: TrainedRun) -> Figure:
    """Return the codes of training and test images side by side, coloured by class; of two latents only."""
    subject.needs("two latent dimensions", subject.is_plane)
    count = min(10_000, len(subject.train))
    train_labels, test_labels = subject.classes
    splits = {
        f"training images (the first {count:,})": (subject.train_codes[:count], _first(train_labels)),
        "test images": (subject.test_codes, test_labels),
    }
    title = f"{subject.title}\nmeans of q(z | x); a number stands at the median of its class"
    return run_figures.scatter_figure(splits, subject.data.label_names, title)


def cdf(subject: TrainedRun) -> Figure:
    """Return draws of the aggregate posterior, and the same through the CDF of N(0, 1); of two latents only."""
    subject.needs("two latent dimensions", subject.is_plane)
    labels, names = subject.classes[1], subject.data.label_names
    splits = {
        "z ~ q(z | x), test images": (subject.test_draws, labels),
        "F(z), F the distribution function of N(0, 1)": (Normal(0.0, 1.0).cdf(subject.test_draws), labels),
    }
    return run_figures.scatter_figure(splits, names, subject.title)


def manifold(subject: TrainedRun) -> Figure:
    """Return the means of p(x | z) on the grid of the prior's quantiles; of two latents and a prior only."""
    subject.needs("two latent dimensions", subject.is_plane)
    subject.needs("a prior", subject.vae.has_density)
    title = f"{subject.title}\nmean of p(x | z) at the quantiles of p(z), z_1 to the right, z_2 upward"
    values = [f"{value:+.1f}" for value in latent_space.prior_quantiles(20).tolist()]
    return run_figures.row_figure(subject.shown(latent_space.manifold(subject.vae)), 20, title, values[::-1], values)


def traversal(subject: TrainedRun) -> Figure:
    """Return rows of images along the ten dimensions that vary most; the rest of z is the first test image's."""
    spread = subject.test_codes.std(0)[: subject.run.config.latent_dim]  # of two layers the decoder reads the first
    dimensions = spread.argsort(descending=True)[:10].tolist()
    scale = spread if not subject.vae.has_density else torch.ones_like(spread)
    steps = torch.linspace(-3, 3, 11)
    rows = [latent_space.traverse(subject.vae, subject.test_codes[0], d, steps * scale[d]) for d in dimensions]
    title = f"{subject.title}\nmean of p(x | z), one dimension at a time from -3 to 3"
    if not subject.vae.has_density:
        title += " standard deviations of the codes"
    names = [f"z_{d + 1}" for d in dimensions]
    values = [f"{step:+.1f}" for step in (steps.round(decimals=1) + 0.0).tolist()]  # 0.0 makes +0.0 of -0.0
    return run_figures.row_figure(subject.shown(torch.cat(rows)), len(steps), title, names, values)


def interpolation(subject: TrainedRun) -> Figure:
    """Return rows of images on the straight way between the codes of two test images."""
    images = subject.pixels(subject.test[:10])
    pairs = list(zip(images[0::2], images[1::2]))
    rows = [torch.cat([a[None], latent_space.interpolate(subject.vae, a, b), b[None]]) for a, b in pairs]
    title = f"{subject.title}\ntest images at the ends; the mean of p(x | z) on the way between their codes"
    return run_figures.row_figure(subject.shown(torch.cat(rows)), 12, title)


def histograms(subject: TrainedRun) -> Figure:
    """Return a histogram of each latent dimension of the aggregate posterior against N(0, 1)."""
    return run_figures.histogram_figure(subject.normal_draws, subject.title)


def attributes(subject: TrainedRun) -> Figure:
    """Return rows of a test image along each attribute's direction; it is the first image without the attribute."""
    rows = []
    for name, (_, has) in subject.attribute_labels.items():
        start = int((~has).int().argmax())
        image = subject.shown(subject.pixels(subject.test[start : start + 1]))
        rows += [image, *subject.along(name, subject.test_codes[start : start + 1])]
    title = f"{subject.title}\na test image, then the mean of p(x | z + alpha v), alpha from -3 to 3"
    values = ["image", *(f"{alpha:+g}" for alpha in ALPHAS)]
    return run_figures.row_figure(torch.cat(rows), len(ALPHAS) + 1, title, tuple(subject.attribute_labels), values)


def probe(subject: TrainedRun) -> Figure:
    """Return what a probe, trained on real images, sees along each attribute's direction."""
    return run_figures.probe_figure(subject.responses, subject.title)


def _first(labels: Tensor | None) -> Tensor | None:
    return None if labels is None else labels[:10_000]


DRAWERS = {
    "reconstructions": reconstructions,
    "samples": samples,
    "losses": losses,
    "scatter": scatter,
    "cdf": cdf,
    "manifold": manifold,
    "traversal": traversal,
    "interpolation": interpolation,
    "histograms": histograms,
    "attributes": attributes,
    "probe": probe,
}
