"""The pictures of a run. Each function takes a run and returns a figure; those of `OF_REPORTS` take its report too.

Each raises an `InputError` if the run lacks what the picture needs.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import pandas
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.distributions import Normal

from pvae.core.errors import InputError, brief, check_name
from pvae.core.files import is_temporary
from pvae.data.dataset import random_subset
from pvae.data.preparation import Preparation
from pvae.data.read import OtherData
from pvae.distributions.discrete import support_of, values_of
from pvae.evaluation.measures.latents import latents_used
from pvae.evaluation.report import Report
from pvae.plotting import figures, value_figures
from pvae.plotting.figures import ScatterData
from pvae.runs.run import Run
from pvae.tables.codec import to_file
from pvae.trained import codes, latent_space
from pvae.trained.given import label_texts

_PRIOR_DRAWS = 20_000
_ROW_DRAWS = 400  # from p(x | z) for each row of a table
_MOST_ROWS = 5_000  # of data beside samples
_MOST_VALUES = 16  # of a discrete variable
_ODDEST = 10  # images in a row
_STEPS = 10  # of the grid of a manifold
_PLANE = "two latent dimensions (--latent-dim 2)"
_ALPHAS = (-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0)  # the steps alpha of z + alpha v along the direction of an attribute
_SHOWN_ATTRIBUTES = ("Blond_Hair", "Smiling", "Male", "Eyeglasses")


def reconstructions(run: Run) -> Figure:
    """Return eight test images, vectors or series with means of p(x | z); four rows of a table over its intervals."""
    if run.data.is_images:
        return figures.reconstruction_figure(*reconstructed_images(run), run.title)
    data = run.dataset()
    batch = codes.examples(run, 8)
    times = 1
    if data.columns:
        batch = codes.examples(run, 4)
        times = _ROW_DRAWS
    with run.seeded():
        repeated = batch.rows(torch.arange(len(batch)).repeat(times))
        found = latent_space.reconstruct(run.vae(), repeated, draws=times > 1).unflatten(0, (times, -1))
    rows = random_subset(len(data.test), len(batch), seed=0).tolist()  # as `codes.examples`
    names = [": ".join(filter(None, (data.test_names[row], _class_of(run, row)))) for row in rows]
    if data.columns:
        given, test = (to_file(run.data, x) for x in (batch.x, data.test))
        drawn = to_file(run.data, found.flatten(0, 1)).unflatten(0, (times, -1))
        return value_figures.reconstructed_rows_figure(given, drawn, run.title, test, run.data.file_columns, names)
    return value_figures.reconstructed_values_figure(batch.x, found[0], run.title, data.test, names)


def reconstructed_images(run: Run, count: int = 8) -> tuple[Tensor, Tensor]:
    """Return random test images and the means of p(x | z), z ~ q(z | x), in [0, 1], (count, C, H, W) each."""
    batch = codes.examples(run, count)
    shown = run.preparation.shown
    with run.seeded():
        return shown(batch.x), shown(latent_space.reconstruct(run.vae(), batch))


def samples(run: Run) -> Figure:
    """Return 64 means of p(x | z), z ~ p(z), or draws from it beside data of all splits: marginals of vectors, series.

    The run needs a prior.

    With labels there is a row for each class, or for the labels of the first test images, and one z in a column.
    """
    vae = run.vae()
    _require(run, vae.has_density, "a prior to draw from")
    with run.seeded():
        if not run.data.is_images:
            return _sampled_values(run)
        if not vae.takes_labels:
            title = f"{run.title}\nmean of p(x | z), z ~ p(z)"
            return figures.image_figure(run.preparation.shown(latent_space.sample(vae, 64)), 8, title)
        data = run.dataset()
        assert data.shown_labels is not None  # or it could not have been trained
        images = run.preparation.shown(latent_space.sample_given(vae, data.shown_labels))
        names = data.label_names[:10]
        if data.has_attributes:
            names = ()
        title = f"{run.title}\nmeans of p(x | z, y): a label in a row, a z in a column"
        return figures.image_figure(images, 8, title, names)


def _sampled_values(run: Run) -> Figure:
    """Return draws from p(x | z), or given labels p(x | z, y), beside data of all splits."""
    parts = [codes.run_batch(run, split) for split in run.dataset().splits]
    rows = random_subset(sum(map(len, parts)), _MOST_ROWS, seed=0)
    shown = torch.cat([part.x.images for part in parts])[rows]
    y = None
    given = "p(x | z), z ~ p(z)"
    labels = [part.y for part in parts if part.y is not None]
    if labels:
        y = torch.cat(labels)[rows]
        given = "p(x | z, y), z ~ p(z), y the labels of these data"
        if run.data.label_names:
            classes = Counter(label_texts(run, y)).most_common(5)
            given += f" ({', '.join(f'{count} {name}' for name, count in classes)})"
    drawn = to_file(run.data, latent_space.sample_rows(run.vae(), run.data, len(rows), y))
    shown = to_file(run.data, shown)
    return value_figures.sampled_values_figure(shown, drawn, run.title, run.data.file_columns, given)


def _require(run: Run, has: bool, what: str) -> None:
    """Raise an `InputError` that names what a picture needs, unless `has` is true."""
    if not has:
        raise _lacking(run, what)


def _lacking(run: Run, what: str) -> InputError:
    return InputError(f"this picture needs {what}, which {run.path} lacks")


def _label_of(run: Run, row: int) -> Tensor | None:
    """Return the label of a test datum, (1, ...), at which latents are decoded, if the run was trained given labels."""
    y = codes.given_y(run, "test")
    if y is None:
        return None
    return y[row : row + 1]


def _class_of(run: Run, row: int) -> str:
    """Return the name of the class of a test datum, or "" if there is none or it is not known."""
    _, labels = codes.classes(run)
    if labels is None or labels[row] < 0:
        return ""
    return run.dataset().label_names[labels[row]]


def losses(run: Run) -> Figure:
    """Return loss and rate against the epoch, for each split."""
    rows = run.metrics()
    _require(run, bool(rows), "a finished epoch")
    return figures.loss_figure(rows, run.title)


def scatter(run: Run) -> Figure:
    """Return the codes of the test data, coloured by class; the run must have two latents."""
    shown = plane(run)
    if shown is None:
        raise _lacking(run, _PLANE)
    return figures.scatter_figure({"means of q(z | x), test data": shown}, run.dataset().label_names, run.title)


def plane(run: Run) -> ScatterData | None:
    """Return the codes of the test data and their classes; None unless there are two latents."""
    if not codes.is_plane(run):
        return None
    has_prior = run.vae().has_density and codes.has_normal_prior(run)
    return ScatterData(codes.codes_of(run, "test"), codes.classes(run)[1], has_prior)


def cdf(run: Run) -> Figure:
    """Return how far each latent of the aggregate posterior, of the top layer, is from N(0, 1), the prior if any."""
    _require(run, codes.has_normal_prior(run), "the prior N(0, 1)")
    draws = codes.top_layer_draws(run)
    names = [*map(figures.indexed, codes.latent_names(run)[-draws.shape[1] :])]
    return figures.deviation_figure(draws, names, f"{run.title}\nz ~ q(z | x) over the test data")


def manifold(run: Run) -> Figure:
    """Return means of p(x | z) on a grid of the prior's quantiles; the run must have two latents and prior N(0, 1)."""
    _require(run, run.data.is_images, "images")
    _require(run, codes.is_plane(run), _PLANE)
    _require(run, run.vae().has_density and codes.has_normal_prior(run), "the prior N(0, 1)")
    images = run.preparation.shown(latent_space.manifold(run.vae(), _STEPS, _label_of(run, 0)))
    ticks = [f"{z:.2f}" for z in Normal(0.0, 1.0).icdf((torch.arange(_STEPS) + 0.5) / _STEPS)]
    figure = figures.image_figure(images, _STEPS, f"{run.title}\nmean of p(x | z) at quantiles of p(z)", ticks[::-1])
    places = figures.middles(_STEPS, images.shape[-1])
    figure.axes[0].set(xlabel=figures.indexed("z_1"), ylabel=figures.indexed("z_2"), xticks=places, xticklabels=ticks)
    return figure


def _most_used(run: Run, places: range) -> tuple[list[int], list[str], str]:
    """Return ten latents in the order of their rates, or where unknown of the variance of codes; names; the order."""
    every = [*map(figures.indexed, codes.latent_names(run))]
    use: Sequence[float] = latents_used(run.vae(), codes.run_batch(run, "test"), 0.0).rates
    names = []
    said = "sorted by rate, in nats"
    if len(use) == len(every):
        names = [f"{name}: {rate:.2f}" for name, rate in zip(every, use)]
    else:
        names = every
        use = codes.codes_of(run, "test").var(0).tolist()
        said = "sorted by the variance of their codes"
    chosen = sorted(places, key=lambda place: -use[place])
    if len(chosen) > 10:
        said += f"; the {len(chosen) - 10} others have {use[chosen[10]]:.2g} or less"
    return chosen[:10], [names[place] for place in chosen[:10]], said


def traversal(run: Run) -> Figure:
    """Return a row of images along each of the ten most used dimensions, from the code of the first test image.

    A dimension moves from -3 to 3 if its prior is N(0, 1), and else by 3 standard deviations about the mean of the
    codes, which may lie anywhere. A bit, a category or a code is set to each of its values, of which 16 are shown.
    """
    _require(run, run.data.is_images, "images")
    if support_of(codes.prior(run)) and not run.config.upper_latent_dims:
        return _values_of_each(run)
    vae = run.vae()
    y = _label_of(run, 0)
    means = codes.codes_of(run, "test")
    spread = means.std(0)
    num_read = len(spread)
    if run.config.upper_latent_dims and run.config.inference != "top-down":  # by the decoder, the first layer alone
        num_read = run.config.latent_dim
    dimensions, each, order = _most_used(run, range(num_read))
    ways = torch.linspace(-3, 3, 11).expand(len(dimensions), -1)
    has_layers = vae.prior().event_shape != codes.prior(run).event_shape
    if has_layers or not (vae.has_density and codes.has_normal_prior(run)):
        ways = means.mean(0)[dimensions, None] + ways * spread[dimensions, None]
    rows = [latent_space.traverse(vae, means[0], d, way, y) for d, way in zip(dimensions, ways)]
    names = [f"{name}\n{way[0]:+.1f} to {way[-1]:+.1f}" for name, way in zip(each, ways)]
    title = (
        f"{run.title}\nmean of p(x | z), one dimension of z at a time, between the values on the left\n"
        f"{len(each)} of {len(spread)} dimensions, {order}"
    )
    return figures.image_figure(run.preparation.shown(torch.cat(rows)), 11, title, names)


def _values_of_each(run: Run) -> Figure:
    """Return a row of images for each of ten discrete variables, which is set to each of its values."""
    prior = codes.prior(run)
    support = support_of(prior)
    spread = codes.codes_of(run, "test").var(0).unflatten(-1, (-1, values_of(prior).shape[1])).sum(-1)
    chosen = spread.argsort(descending=True)[:10].tolist()
    first = next(codes.run_batch(run, "test").split(1))
    rows = [latent_space.set_each(run.vae(), first, variable)[:_MOST_VALUES] for variable in chosen]
    title = (
        f"{run.title}\nmean of p(x | z), the likeliest code of a test image; one of its {support} at a time is set to "
        f"each of its values\n{len(chosen)} of {len(spread)} {support}, the one that varies most first"
    )
    names = [figures.indexed(f"z_{variable + 1}") for variable in chosen]
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
    """Return histograms of the ten most used latents, of draws from the aggregate posterior and from the prior.

    Of several stochastic layers the top one is shown. The codes of an autoencoder, which has no prior, are compared
    with N(0, 1).
    """
    with run.seeded(), torch.no_grad():
        draws = codes.prior(run).sample((_PRIOR_DRAWS,))
    name = "p(z)"
    if codes.has_normal_prior(run):
        name = "N(0, 1)"
    if run.vae().has_density:
        name = f"the prior {name}"
    else:
        name += " (an autoencoder has no prior)"
    raw = codes.latent_names(run)
    layer, _, _ = raw[-1].partition("_")
    every = [*map(figures.indexed, raw)]
    first = len(every) - draws.shape[1]
    chosen, names, order = _most_used(run, range(first, len(every)))
    title = f"{run.title}\nblue: {layer} ~ q(z | x) over the test data; dark red: {name}\nlatents {order}"
    drawn = draws[:, [place - first for place in chosen]]
    return figures.histogram_figure(codes.test_draws(run)[:, chosen], drawn, names, title)


def attributes(run: Run, names: Sequence[str] = ()) -> Figure:
    """Return a row for each attribute: the first test image without it, moved along the attribute's direction.

    The direction is the mean code of the training images with it minus the mean code of those without it.

    Args:
        run: the run; its data have attributes.
        names: names of the attributes; by default a few of CelebA's.
    """
    _require(run, run.data.is_images, "images")
    data = run.dataset()
    train = data.train_labels
    test = data.test_labels
    if train is None or test is None or train.dim() != 2:
        raise _lacking(run, "attributes of its images")
    names = names or [name for name in _SHOWN_ATTRIBUTES if name in data.label_names]
    _require(run, bool(names), "attributes to show: give --attribute")
    rows = []
    for name in names:
        column = data.label_names.index(check_name("attribute", name, data.label_names))
        in_train = train[:, column].bool()
        in_test = test[:, column].bool()
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


_PARTS = {  # of a gap, in the order in which they are added
    "amortisation": "by the encoder: L[q*] - L[q]",
    "correlations": "by independence: L of full covariance - L[q*]",
    "shape": "by the shape: L of a flow - L of full covariance",
    "rest": "by the rest: log p(x) - L of a flow",
}


def gaps(run: Run, report: Report) -> Figure | None:
    """Return how log p(x) - ELBO falls into parts, of test and training data, above the test images that lose most.

    Each bar starts where the last one ended. None where it was not computed, or too few data are trusted.
    """
    if not (report.gaps and report.gaps.rest):
        return None
    both = {"test data": report.gaps, "training data": report.train_gaps}
    shown = {name: part for name, part in both.items() if part and part.rest}
    title = f"{run.title.splitlines()[0]}\nfrom the ELBO L[q] to log p(x); q* is the best Normal for each datum alone"
    height = 2.2
    if run.data.is_images:
        height = 3.6
    figure = figures.titled_figure(title, 10.0, height)
    upper, *lower = figure.subfigures(1 + run.data.is_images, squeeze=False)[:, 0]
    for axes, (name, found) in zip(
        upper.subplots(1, len(shown), sharex=True, sharey=True, squeeze=False)[0], shown.items()
    ):
        parts = [getattr(found, part) for part in _PARTS]
        means = np.array([one.mean for one in parts])
        errors = [one.stderr for one in parts]
        colours = figures.PALETTE[: len(parts)]
        bars = axes.barh([*_PARTS.values()], means, left=means.cumsum() - means, xerr=errors, color=colours, capsize=2)
        axes.bar_label(bars, [*map(str, parts)], padding=4, fontsize=7)
        axes.margins(x=0.35)
        axes.tick_params(labelsize=7)
        axes.set_title(f"{found.num_images:,} {name}", fontsize=8)
        axes.set_xlabel("nats per datum above the ELBO L[q]", fontsize=7)
    axes.invert_yaxis()
    for part in lower:
        rows, lost = zip(*report.gaps.largest)
        (x,) = codes.run_batch(run, "test").rows(torch.tensor(rows)).x.split(len(rows))
        axes = part.subplots()
        figures.show_images(axes, run.preparation.shown(x), len(rows))
        axes.set_xticks(figures.middles(len(rows), x.shape[-1]), [f"{one:.1f}" for one in lost], fontsize=7)
        axes.set_xlabel("log p(x) - L[q] of the test images that lose most, in nats", fontsize=7)
    return figure


def calibration(run: Run, report: Report) -> Figure | None:
    """Return how often z is below quantiles of q(z | x), for each latent, and in regions of its highest density.

    A line that leaves the band is dark red. None where it was not computed.
    """
    coverage = report.coverage
    if coverage is None:
        return None
    title = (
        f"{run.title.splitlines()[0]}\n{coverage.num_images:,} data drawn from the VAE; grey: the band that holds "
        "all points at 95 % if q(z | x) is p(z | x)"
    )
    figure = figures.titled_figure(title, 9.0, 3.6)
    masses = np.arange(0, 11) / 10
    ends = np.array([0, *[coverage.band] * 9, 0])
    panels = [
        (coverage.latents, "mass of q(z_l | x) below a quantile", "share of data whose z_l is below it"),
        ([coverage.regions], "mass of a region of highest density of q(z | x)", "share of data whose z is in it"),
    ]
    for axes, (lines, mass, share) in zip(figure.subplots(1, 2), panels):
        axes.fill_between(masses, masses - ends, masses + ends, color="#d8d8d8", linewidth=0)
        for line in lines:
            colour = figures.PALETTE[0]
            if np.abs(np.array(line) - masses[1:-1]).max() > coverage.band:
                colour = figures.PALETTE[6]
            axes.plot(masses, [0, *line, 1], color=colour, linewidth=0.9, alpha=0.8)
        axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal", xlabel=mass, ylabel=share)
    return figure


def oddest(run: Run, given: OtherData, scores: pandas.DataFrame) -> Figure:
    """Return the images of the lowest log p(x), and those of the highest distortion and rate, a row each.

    Args:
        run: the run.
        given: the images.
        scores: of all of them, as of `score_data`.
    """
    orders = {"lowest log p(x)": scores["log_p"].to_numpy().argsort(kind="stable")}
    for name in ("distortion", "rate"):
        orders[f"highest {name}"] = (-scores[name].to_numpy()).argsort()
    image = Preparation().x
    bands = {}
    for title, order in orders.items():
        bands[title] = [(given.names[row], image(given.x[row])) for row in order[:_ODDEST]]
    return figures.named_images_figure(bands, f"{run.title}\nthe oddest of {len(scores):,}")


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
