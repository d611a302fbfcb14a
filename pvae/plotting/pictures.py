"""The pictures of a run. Each function takes a trained run and returns a figure.

Each raises an `InputError` if the run lacks what the picture needs.
"""

from __future__ import annotations

from importlib.util import find_spec
from io import BytesIO
from shutil import which

import pyro
import torch
from matplotlib.figure import Figure
from matplotlib.image import imread
from torch.distributions import Independent, Normal

from pvae.core.errors import InputError
from pvae.distributions.power_spherical import PowerSpherical
from pvae.plotting import run_figures
from pvae.plotting.run_figures import ScatterData
from pvae.trained import latent_space
from pvae.trained.trained_run import ALPHAS, TrainedRun

__all__ = [
    "attributes",
    "cdf",
    "graph",
    "histograms",
    "interpolation",
    "losses",
    "manifold",
    "reconstructions",
    "samples",
    "scatter",
    "traversal",
]

_PRIOR_DRAWS = 2000


def reconstructions(trained: TrainedRun) -> Figure:
    """Return eight test images above the means of p(x | z), z ~ q(z | x)."""
    images = trained.examples(8)
    with trained.seeded():
        reconstructions = latent_space.reconstruct(trained.vae, images)
    return run_figures.reconstruction_figure(trained.shown(images), trained.shown(reconstructions), trained.title)


def samples(trained: TrainedRun) -> Figure:
    """Return 64 means of p(x | z), z ~ p(z); the run must have a prior."""
    trained.require(trained.vae.has_density, "a prior to draw from")
    with trained.seeded():
        return run_figures.sample_figure(trained.shown(latent_space.sample(trained.vae, 64)), trained.title)


def graph(trained: TrainedRun) -> Figure:
    """Return the graphs of model and guide as `pyro.render_model` draws them; the run must have a prior."""
    trained.require(trained.vae.has_density, "a prior to draw from")
    if find_spec("graphviz") is None or which("dot") is None:
        how = 'pip install -e ".[graph]", and the program dot, for instance by apt install graphviz'
        raise InputError(f"this picture needs Graphviz: {how}")
    x, drawn = trained.examples(1), {}
    for name, function in (("model", trained.vae.model), ("guide", trained.vae.guide)):
        with pyro.get_param_store().scope():
            rendered = pyro.render_model(function, (x,), render_distributions=True)
        rendered.attr(dpi="200")
        drawn[name] = imread(BytesIO(rendered.pipe("png")))
    return run_figures.side_by_side_figure(drawn, f"{trained.title}\ngraphs of the Pyro functions; grey: observed")


def losses(trained: TrainedRun) -> Figure:
    """Return loss, distortion and rate against the epoch, for training and test images."""
    rows = trained.run.metrics()
    trained.require(bool(rows), "a finished epoch")
    return run_figures.loss_figure(rows, trained.title)


def scatter(trained: TrainedRun, with_train: bool = True) -> Figure:
    """Return the codes of training and test images side by side, coloured by class; the run must have two latents.

    Args:
        trained: the run.
        with_train: whether to show the codes of training images beside those of the test images.
    """
    trained.require(trained.is_plane, "two latent dimensions")
    has_prior = trained.vae.has_density and trained.is_prior_normal
    train_labels, test_labels = trained.classes
    splits = {"test images": ScatterData(trained.test_codes, test_labels, has_prior)}
    if with_train:
        count = min(10_000, len(trained.train))
        labels = None if train_labels is None else train_labels[:count]
        train = ScatterData(trained.train_codes[:count], labels, has_prior)
        splits = {f"training images (the first {count:,})": train, **splits}
    title = f"{trained.title}\nmeans of q(z | x); a number stands at the median of its class"
    return run_figures.scatter_figure(splits, trained.data.label_names, title)


def cdf(trained: TrainedRun) -> Figure:
    """Return draws from the aggregate posterior, and their CDF under N(0, 1); the run must have two latents.

    The prior must be N(0, 1), or missing as that of an autoencoder.
    """
    trained.require(trained.is_plane, "two latent dimensions")
    trained.require(trained.is_prior_normal, "the prior N(0, 1)")
    labels, names = trained.classes[1], trained.data.label_names
    splits = {
        "z ~ q(z | x), test images": ScatterData(trained.test_draws, labels, trained.vae.has_density),
        "F(z), F the distribution function of N(0, 1)": ScatterData(
            Normal(0.0, 1.0).cdf(trained.test_draws), labels, quantity="F(z_{})"
        ),
    }
    return run_figures.scatter_figure(splits, names, trained.title)


def manifold(trained: TrainedRun) -> Figure:
    """Return means of p(x | z) on a grid of the prior's quantiles; the run must have two latents and prior N(0, 1)."""
    trained.require(trained.is_plane, "two latent dimensions")
    trained.require(trained.vae.has_density and trained.is_prior_normal, "the prior N(0, 1)")
    title = f"{trained.title}\nmean of p(x | z) at the quantiles of p(z), z_1 to the right, z_2 upward"
    values = [f"{value:+.1f}" for value in latent_space.prior_quantiles(20).tolist()]
    return run_figures.image_figure(trained.shown(latent_space.manifold(trained.vae)), 20, title, values[::-1], values)


def traversal(trained: TrainedRun) -> Figure:
    """Return a row of images along each of the ten dimensions that vary most, from the code of the first test image."""
    spread, config = trained.test_codes.std(0), trained.run.config
    if config.upper_latent_dims and config.inference != "top-down":
        spread = spread[: config.latent_dim]  # of several stochastic layers the decoder reads only the first
    dimensions = spread.argsort(descending=True)[:10].tolist()
    steps = torch.linspace(-3, 3, 11)
    title = f"{trained.title}\nmean of p(x | z), one dimension at a time from -3 to 3"
    every = trained.latent_names
    names = [every[d] for d in dimensions]
    ways = steps.expand(len(dimensions), -1)
    has_layers = trained.vae.prior().event_shape != trained.prior.event_shape
    if has_layers or not (trained.vae.has_density and trained.is_prior_normal):  # the codes may lie anywhere
        title += " standard deviations of the codes about their mean; on the left the values of z at the ends"
        ways = trained.test_codes.mean(0)[dimensions, None] + steps * spread[dimensions, None]
        if isinstance(trained.prior, PowerSpherical):
            title += ", before z is divided by its norm"
        names = [f"{name}\n{way[0]:+.1f} to {way[-1]:+.1f}" for name, way in zip(names, ways)]
    rows = [latent_space.traverse(trained.vae, trained.test_codes[0], d, way) for d, way in zip(dimensions, ways)]
    values = [f"{step:+.1f}" for step in (steps.round(decimals=1) + 0.0).tolist()]  # adding 0.0 turns -0.0 into +0.0
    return run_figures.image_figure(trained.shown(torch.cat(rows)), len(steps), title, names, values)


def interpolation(trained: TrainedRun) -> Figure:
    """Return rows of images decoded along straight lines between the codes of two test images."""
    images = trained.examples(10)
    half = len(images) // 2
    pairs = list(zip(images[:half], images[half:]))  # far apart, so of different classes if the images are sorted
    rows = [torch.cat([a[None], latent_space.interpolate(trained.vae, a, b), b[None]]) for a, b in pairs]
    title = f"{trained.title}\ntest images at the ends; the mean of p(x | z) on the line between their codes"
    title += ", where z is divided by its norm" if isinstance(trained.prior, PowerSpherical) else ""
    return run_figures.image_figure(trained.shown(torch.cat(rows)), 12, title)


def histograms(trained: TrainedRun) -> Figure:
    """Return a histogram of each latent dimension of draws from the aggregate posterior, against the prior.

    The density of the prior is drawn if its dimensions are independent, and a histogram of draws otherwise. Of several
    stochastic layers the top one is shown. The codes of an autoencoder, which has no prior, are compared with N(0, 1).
    """
    prior, density = trained.prior, None
    with trained.seeded(), torch.no_grad():
        draws = prior.sample((_PRIOR_DRAWS,)).sort(0).values
        if isinstance(prior, Independent) and prior.base_dist.batch_shape == prior.event_shape:
            density = prior.base_dist.log_prob(draws).exp()
    name = "N(0, 1)" if trained.is_prior_normal else "p(z)" if density is not None else "p(z), by draws"
    name = f"the prior {name}" if trained.vae.has_density else f"{name} (an autoencoder has no prior)"
    layer = trained.latent_names[-1].split("_")[0]
    title = f"{trained.title}\nblue: each dimension of {layer} ~ q(z | x) over the test images; orange: {name}"
    return run_figures.histogram_figure(trained.last_layer_draws, draws, density, title)


def attributes(trained: TrainedRun) -> Figure:
    """Return a row for each attribute: the first test image without it, moved along the attribute's direction."""
    rows = []
    for name, (_, has) in trained.attribute_labels.items():
        start = int((~has).int().argmax())
        image = trained.shown(trained.preparation.x(trained.test[start : start + 1]))
        rows += [image, *trained.along(name, trained.test_codes[start : start + 1])]
    title = f"{trained.title}\na test image, then the mean of p(x | z + alpha v), alpha from -3 to 3"
    values = ["image", *(f"{alpha:+g}" for alpha in ALPHAS)]
    return run_figures.image_figure(torch.cat(rows), len(ALPHAS) + 1, title, tuple(trained.attribute_labels), values)
