"""The pictures of a run. Each function takes a run and returns a figure; those of `OF_REPORTS` take its report too.

Each raises an `InputError` if the run lacks what the picture needs.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Sequence

import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.distributions import Normal

from pvae.core.errors import InputError, brief, check_name
from pvae.core.files import is_temporary
from pvae.data.dataset import random_subset
from pvae.distributions.discrete import support_of, values_of
from pvae.evaluation.report import Report
from pvae.plotting import figures, value_figures
from pvae.plotting.figures import ScatterData
from pvae.runs.run import Run
from pvae.trained import codes, latent_space
from pvae.trained.given import label_texts

__all__ = [
    "OF_REPORTS",
    "attributes",
    "calibration",
    "cdf",
    "gaps",
    "histograms",
    "interpolation",
    "losses",
    "manifold",
    "reconstructions",
    "samples",
    "save_figures",
    "scatter",
    "traversal",
]

_PRIOR_DRAWS = 20_000
_MOST_ROWS = 5_000  # of data beside samples
_MOST_VALUES = 16  # of a discrete variable
_PLANE = "two latent dimensions (--latent-dim 2)"
_ALPHAS = (-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0)  # the steps alpha of z + alpha v along the direction of an attribute
_SHOWN_ATTRIBUTES = ("Blond_Hair", "Smiling", "Male", "Eyeglasses")


def reconstructions(run: Run) -> Figure:
    """Return eight test images above the means of p(x | z), z ~ q(z | x); or vectors as bars, series as lines."""
    batch, shown = codes.examples(run, 8), run.preparation.shown
    with run.seeded():
        means = latent_space.reconstruct(run.vae(), batch)
    if not run.data.is_images:
        data = run.dataset()
        rows = random_subset(len(data.test), 8, seed=0).tolist()  # as `codes.examples`
        names = [": ".join(filter(None, (data.test_names[row], _class_of(run, row)))) for row in rows]
        return value_figures.reconstructed_values_figure(batch.x, means, run.title, data.test, data.columns, names)
    return figures.reconstruction_figure(shown(batch.x), shown(means), run.title)


def samples(run: Run) -> Figure:
    """Return 64 means of p(x | z), z ~ p(z), or draws from it beside data of all splits: marginals of vectors, series.

    The run needs a prior.

    With labels there is a row for each class, or for the labels of the first test images, and one z in a column.
    """
    _require(run, run.vae().has_density, "a prior to draw from")
    with run.seeded():
        if not run.data.is_images:
            parts = [codes.run_batch(run, split) for split in run.dataset().splits]
            rows = random_subset(sum(map(len, parts)), _MOST_ROWS, seed=0)
            shown, given = torch.cat([part.x.images for part in parts])[rows], "p(x | z), z ~ p(z)"
            given_labels = [part.y for part in parts if part.y is not None]
            y = torch.cat(given_labels)[rows] if given_labels else None
            drawn = latent_space.sample(run.vae(), len(rows), draws=True, y=y)
            if y is not None:
                given = "p(x | z, y), z ~ p(z), y the labels of these data"
                if run.data.label_names:
                    classes = Counter(label_texts(run, y)).most_common(5)
                    given += f" ({', '.join(f'{count} {name}' for name, count in classes)})"
            return value_figures.sampled_values_figure(shown, drawn, run.title, run.data.columns, given)
        if not run.vae().takes_labels:
            title = f"{run.title}\nmean of p(x | z), z ~ p(z)"
            return figures.image_figure(run.preparation.shown(latent_space.sample(run.vae(), 64)), 8, title)
        data = run.dataset()
        labels = data.shown_labels
        assert labels is not None  # or it could not have been trained
        images = run.preparation.shown(latent_space.sample_given(run.vae(), labels))
        names = () if data.has_attributes else data.label_names[:10]
        title = f"{run.title}\nmeans of p(x | z, y): a label in a row, a z in a column"
        return figures.image_figure(images, 8, title, names)


def _require(run: Run, has: bool, what: str) -> None:
    """Raise an `InputError` that names what a picture needs, unless `has` is true."""
    if not has:
        raise InputError(f"this picture needs {what}, which {run.path} lacks")


def _label_of(run: Run, row: int) -> Tensor | None:
    """Return the label of a test datum, (1, ...), at which latents are decoded, if the run was trained given labels."""
    y = codes.given_y(run, "test")
    return None if y is None else y[row : row + 1]


def _class_of(run: Run, row: int) -> str:
    """Return the name of the class of a test datum, or "" if there is none or it is not known."""
    labels, data = codes.classes(run)[1], run.dataset()
    return data.label_names[labels[row]] if labels is not None and labels[row] >= 0 else ""


def losses(run: Run) -> Figure:
    """Return loss, distortion and rate against the epoch, for training and test images."""
    rows = run.metrics()
    _require(run, bool(rows), "a finished epoch")
    return figures.loss_figure(rows, run.title)


def scatter(run: Run) -> Figure:
    """Return the codes of training and test images side by side, coloured by class; the run must have two latents."""
    _require(run, codes.is_plane(run), _PLANE)
    has_prior = run.vae().has_density and codes.has_normal_prior(run)
    train_labels, test_labels = codes.classes(run)
    shown = codes.codes_of(run, "train")[:10_000]
    train_labels = None if train_labels is None else train_labels[: len(shown)]
    splits = {
        f"training data (the first {len(shown):,})": ScatterData(shown, train_labels, has_prior),
        "test data": ScatterData(codes.codes_of(run, "test"), test_labels, has_prior),
    }
    return figures.scatter_figure(splits, run.dataset().label_names, f"{run.title}\nmeans of q(z | x)")


def cdf(run: Run) -> Figure:
    """Return draws from the aggregate posterior, and their CDF under N(0, 1); the run must have two latents.

    The prior must be N(0, 1), or the VAE an autoencoder, which has no prior.
    """
    _require(run, codes.is_plane(run), _PLANE)
    _require(run, codes.has_normal_prior(run), "the prior N(0, 1)")
    draws, labels = codes.test_draws(run), codes.classes(run)[1]
    splits = {
        "z ~ q(z | x), test data": ScatterData(draws, labels, run.vae().has_density),
        "F(z), F the distribution function of N(0, 1)": ScatterData(
            Normal(0.0, 1.0).cdf(draws), labels, quantity="F(z_{})"
        ),
    }
    figure = figures.scatter_figure(splits, run.dataset().label_names, run.title)
    figure.axes[1].set_aspect("equal", adjustable="box")
    figure.axes[1].set(xlim=(0, 1), ylim=(0, 1))
    return figure


def manifold(run: Run) -> Figure:
    """Return means of p(x | z) on a grid of the prior's quantiles; the run must have two latents and prior N(0, 1)."""
    _require(run, run.data.is_images, "images")
    _require(run, codes.is_plane(run), _PLANE)
    _require(run, run.vae().has_density and codes.has_normal_prior(run), "the prior N(0, 1)")
    title = f"{run.title}\nmean of p(x | z) at the quantiles of p(z), z_1 to the right, z_2 upward"
    images = latent_space.manifold(run.vae(), 20, _label_of(run, 0))
    return figures.image_figure(run.preparation.shown(images), 20, title)


def traversal(run: Run) -> Figure:
    """Return a row of images along each of the ten dimensions that vary most, from the code of the first test image.

    A dimension moves from -3 to 3 if its prior is N(0, 1), and else by 3 standard deviations about the mean of the
    codes, which may lie anywhere. A bit, a category or a code is set to each of its values, of which 16 are shown.
    """
    _require(run, run.data.is_images, "images")
    if support_of(codes.prior(run)) and not run.config.upper_latent_dims:
        return _values_of_each(run)
    means = codes.codes_of(run, "test")
    spread = means.std(0)
    if run.config.upper_latent_dims and run.config.inference != "top-down":
        spread = spread[: run.config.latent_dim]  # of several stochastic layers, the decoder reads the first alone
    dimensions, every = spread.argsort(descending=True)[:10].tolist(), codes.latent_names(run)
    ways = torch.linspace(-3, 3, 11).expand(len(dimensions), -1)
    has_layers = run.vae().prior().event_shape != codes.prior(run).event_shape
    if has_layers or not (run.vae().has_density and codes.has_normal_prior(run)):
        ways = means.mean(0)[dimensions, None] + ways * spread[dimensions, None]
    vae, y = run.vae(), _label_of(run, 0)
    rows = [latent_space.traverse(vae, means[0], d, way, y) for d, way in zip(dimensions, ways)]
    names = [f"{every[d]}\n{way[0]:+.1f} to {way[-1]:+.1f}" for d, way in zip(dimensions, ways)]
    title = (
        f"{run.title}\nmean of p(x | z), one dimension of z at a time, between the values on the left\n"
        f"{len(dimensions)} of {len(every)} dimensions, the one whose codes vary most first"
    )
    return figures.image_figure(run.preparation.shown(torch.cat(rows)), 11, title, names)


def _values_of_each(run: Run) -> Figure:
    """Return a row of images for each of ten discrete variables, which is set to each of its values."""
    vae, support = run.vae(), support_of(codes.prior(run))
    spread = codes.codes_of(run, "test").var(0).unflatten(-1, (-1, values_of(codes.prior(run)).shape[1])).sum(-1)
    chosen, first = spread.argsort(descending=True)[:10].tolist(), next(codes.run_batch(run, "test").split(1))
    rows = [latent_space.set_each(vae, first, variable)[:_MOST_VALUES] for variable in chosen]
    title = (
        f"{run.title}\nmean of p(x | z), the likeliest code of a test image; one of its {support} at a time is set to "
        f"each of its values\n{len(chosen)} of {len(spread)} {support}, the one that varies most first"
    )
    names = [f"z_{variable + 1}" for variable in chosen]
    return figures.image_figure(run.preparation.shown(torch.cat(rows)), len(rows[0]), title, names)


def interpolation(run: Run) -> Figure:
    """Return rows of images decoded along straight lines between the codes of two test images."""
    _require(run, run.data.is_images, "images")
    _require(run, not support_of(codes.prior(run)), "a latent of real numbers")
    batch = codes.examples(run, 10)
    half = len(batch) // 2
    rows = []
    for one in range(half):  # of images far apart, so of different classes if they are sorted
        pair = batch.rows(torch.tensor([one, one + half]))
        rows.append(torch.cat([pair.x[:1], latent_space.interpolate(run.vae(), pair), pair.x[1:]]))
    title = f"{run.title}\ntest images at the ends; the mean of p(x | z) on the line between their codes"
    return figures.image_figure(run.preparation.shown(torch.cat(rows)), 12, title)


def histograms(run: Run) -> Figure:
    """Return a histogram of each latent dimension of draws from the aggregate posterior, and of draws from the prior.

    Of several stochastic layers the top one is shown. The codes of an autoencoder, which has no prior, are compared
    with N(0, 1).
    """
    with run.seeded(), torch.no_grad():
        draws = codes.prior(run).sample((_PRIOR_DRAWS,))
    name = "N(0, 1)" if codes.has_normal_prior(run) else "p(z)"
    name = f"the prior {name}" if run.vae().has_density else f"{name} (an autoencoder has no prior)"
    layer = codes.latent_names(run)[-1].split("_")[0]
    title = f"{run.title}\nblue: each dimension of {layer} ~ q(z | x) over the test data; dark red: {name}"
    return figures.histogram_figure(codes.top_layer_draws(run), draws, title)


def attributes(run: Run, names: Sequence[str] = ()) -> Figure:
    """Return a row for each attribute: the first test image without it, moved along the attribute's direction.

    The direction is the mean code of the training images with it minus the mean code of those without it.

    Args:
        run: the run; its data have attributes.
        names: names of the attributes; by default a few of CelebA's.
    """
    _require(run, run.data.is_images, "images")
    data = run.dataset()
    train, test = data.train_labels, data.test_labels
    if train is None or test is None or train.dim() != 2:
        raise InputError(f"this picture needs attributes of its images, which {run.path} lacks")
    names = names or [name for name in _SHOWN_ATTRIBUTES if name in data.label_names]
    _require(run, bool(names), "attributes to show: give --attribute")
    rows = []
    for name in names:
        column = data.label_names.index(check_name("attribute", name, data.label_names))
        in_train, in_test = train[:, column].bool(), test[:, column].bool()
        has_both = all(has.any() and not has.all() for has in (in_train, in_test))
        _require(run, has_both, f"training and test images with and without {name}")
        start = int((~in_test).int().argmax())
        vector = latent_space.attribute_vector(codes.codes_of(run, "train"), in_train)
        z = codes.codes_of(run, "test")[start] + torch.tensor(_ALPHAS)[:, None] * vector
        rows += [
            *(part.x for part in codes.run_batch(run, "test").rows(slice(start, start + 1)).split(1)),
            latent_space.decode(run.vae(), z, _label_of(run, start)),
        ]
    title = f"{run.title}\na test image, then the mean of p(x | z + alpha v), alpha from -3 to 3"
    images = run.preparation.shown(torch.cat(rows))
    return figures.image_figure(images, len(_ALPHAS) + 1, title, names)


def gaps(run: Run, report: Report) -> Figure | None:
    """Return how log p(x) - ELBO falls into parts, of test and training data, above the test images that lose most.

    None where it was not computed, or too few data are trusted.
    """
    if not (report.gaps and report.gaps.rest):
        return None
    both = {"test data": report.gaps, "training data": report.train_gaps}
    found = {f"{part.num_images:,} {name}": part for name, part in both.items() if part and part.rest}
    parts = {
        "amortisation": "by the encoder: L[q*] - L[q]",
        "correlations": "by independence: L of full covariance - L[q*]",
        "shape": "by the shape: L of a flow - L of full covariance",
        "rest": "by the rest: log p(x) - L of a flow",
    }
    bars = {name: {label: getattr(one, part) for part, label in parts.items()} for name, one in found.items()}
    images, lost = torch.empty(0), list[str]()
    if run.data.is_images:
        places, nats = zip(*report.gaps.largest)
        (x,) = codes.run_batch(run, "test").rows(torch.tensor(places)).x.split(len(places))
        images = run.preparation.shown(x)
        lost = [f"{one:.1f}" for one in nats]
    title = f"{run.title.splitlines()[0]}\nfrom the ELBO L[q] to log p(x); q* is the best Normal for each datum alone"
    return figures.gaps_figure(bars, images, lost, title)


def calibration(run: Run, report: Report) -> Figure | None:
    """Return how often z is below quantiles of q(z | x), for each latent, and in regions of its highest density.

    None where it was not computed.
    """
    coverage = report.coverage
    if coverage is None:
        return None
    title = (
        f"{run.title.splitlines()[0]}\n{coverage.num_images:,} data drawn from the VAE; grey: the band that holds "
        "all points at 95 % if q(z | x) is p(z | x)"
    )
    return figures.calibration_figure(coverage.latents, coverage.regions, coverage.band, title)


OF_REPORTS = {"gaps": gaps, "calibration": calibration}  # of a run and its report; None where it lacks what is drawn


def save_figures(run: Run, before_each: Callable[[], None] = lambda: None) -> None:
    """Draw reconstructions, samples and losses of a run into its folder, without those that it cannot have.

    Args:
        run: the run, with its metrics.
        before_each: called before each picture; it may raise.
    """
    folder = run.figures()
    for leftover in filter(is_temporary, folder.iterdir()):  # of a process that was killed
        leftover.unlink(missing_ok=True)
    for name, picture in {"reconstructions": reconstructions, "samples": samples, "losses": losses}.items():
        before_each()
        try:
            figures.write_figure(folder / f"{name}.png", picture(run))
        except InputError:  # an autoencoder has no samples, and not all data can be drawn
            pass
        except (ArithmeticError, ValueError) as error:  # of matplotlib, at extreme values; the training is finished
            print(f"{name}.png cannot be drawn: {brief(error)}", file=sys.stderr)
