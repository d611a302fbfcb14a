"""Matplotlib figures of images, codes, losses and estimators. Neither models nor pyplot are used."""

from __future__ import annotations

import math
import textwrap
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backend_bases import RendererBase
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.patches import Circle
from matplotlib.patheffects import withStroke
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator, NullFormatter, NullLocator
from torch import Tensor
from torch.distributions import Normal
from torch.nn.functional import pad

from pvae.core.files import write_whole
from pvae.runs.metrics import Metrics

if TYPE_CHECKING:
    from pvae.evaluation.estimators import Gradient, Measurement
    from pvae.trained.scores import Estimate

__all__ = [
    "PALETTE",
    "WIDTH",
    "ScatterData",
    "band_figure",
    "calibration_figure",
    "comparison_figure",
    "deviation_figure",
    "drawable",
    "gaps_figure",
    "histogram_figure",
    "image_figure",
    "loss_figure",
    "named_images_figure",
    "reconstruction_figure",
    "scatter_figure",
    "titled_figure",
    "without_title",
    "write_figure",
]

# Ten colours near those of Okabe and Ito, "Color Universal Design", 2008, https://jfly.uni-koeln.de/color/, moved until
# any two are at least 25 apart in CIE Lab, also as people without red or green cones see them.
PALETTE = (
    "#246FB3", "#C38200", "#037654", "#FF926B", "#4CBFF9", "#CE7BA7", "#7E1D0E", "#E2D524", "#272388", "#010100",
)  # fmt: skip
_DATA, _PRIOR = PALETTE[0], PALETTE[6]
_LINE = 0.17  # inches, the height of a line of a title
_MOST_CLASSES = 50  # beyond which their names would cover a figure
WIDTH = 6.2  # inches: letters of 10 points are of 5.6 where a figure of this width fills a paper's column of 88 mm


class ScatterData(NamedTuple):
    """Codes to be shown in a scatter plot.

    Args:
        codes: two values for each of N data, (N, 2).
        labels: classes (N,), or None.
        is_prior_normal: whether the prior is N(0, I), which is then drawn as circles.
    """

    codes: Tensor
    labels: Tensor | None = None
    is_prior_normal: bool = False


class _PlainFigure(Figure):
    """A figure that draws each text as it was given: "$" does not begin a formula, and any character may occur."""

    def draw(self, renderer: RendererBase) -> None:
        """Draw the figure."""
        for text in self.findobj(Text):
            assert isinstance(text, Text)
            text.set(text=drawable(text.get_text()), parse_math=False)
        super().draw(renderer)


def drawable(text: str) -> str:
    """Return a text with "?" in place of each character that the font of the figures lacks, such as a Chinese one."""
    font = get_font(findfont(FontProperties()))
    # File names on macOS have decomposed characters.
    characters = unicodedata.normalize("NFC", text)
    return "".join(one if one == "\n" or font.get_char_index(ord(one)) else "?" for one in characters)


def titled_figure(title: str, width: float, height: float) -> Figure:
    """Return an empty figure with a title, whose first line is darker than the others.

    Args:
        title: its lines; one that is too long for the figure is broken into as many as three, and then cut.
        width: in inches.
        height: in inches; the small lines are added to it.
    """
    style: Any = {"width": int(12.5 * width), "break_on_hyphens": False, "max_lines": 3, "placeholder": "..."}
    first, *others = [part for line in title.splitlines() for part in textwrap.wrap(line, **style)] or [""]
    height += _LINE * len(others)
    figure = _PlainFigure(figsize=(width, height), dpi=170, label=title)
    # No suptitle: matplotlib measures it as a formula, whatever `parse_math` says, and moves it to the panels.
    figure.text(0.5, 1 - 0.04 / height, first, fontsize=9, ha="center", va="top")
    figure.text(0.5, 1 - 0.23 / height, "\n".join(others), fontsize=9, color="#555555", ha="center", va="top")
    # Compressed, or names of rows would leave a figure that is too low for its images.
    figure.set_layout_engine("compressed", rect=(0, 0, 1, 1 - (0.23 + _LINE * len(others)) / height))
    return figure


def without_title(figure: Figure) -> str:
    """Remove the title of `titled_figure` and its room, and return its lines, and those that a caption adds to them."""
    for one in figure.texts[:2]:
        figure.set_figheight(figure.get_figheight() - _LINE * len(one.get_text().splitlines()))
        one.set_text("")
    figure.set_layout_engine("compressed", rect=(0, 0, 1, 1))
    return str(figure.get_label())


def image_figure(images: Tensor, num_columns: int, title: str, row_labels: Sequence[str] = ()) -> Figure:
    """Return images (N, C, H, W) in [0, 1] in rows, with an optional label for each row."""
    num_rows, ratio = -(-len(images) // num_columns), images.shape[-2] / images.shape[-1]
    cell = min(1.5, (WIDTH - (1.1 if row_labels else 0.2)) / num_columns)
    figure = titled_figure(title, WIDTH, num_rows * cell * min(5.0, max(0.2, ratio)) + 0.4)
    _show_images(figure.add_subplot(), images, num_columns, row_labels)
    return figure


def _show_images(axes: Axes, images: Tensor, num_columns: int, row_labels: Sequence[str] = ()) -> None:
    """Show images (N, C, H, W) in [0, 1] row by row, with grey lines between them; unused places are white."""
    num_rows = -(-len(images) // num_columns)
    unused = images.new_ones(num_rows * num_columns - len(images), *images.shape[1:])
    places = pad(torch.cat([images, unused]).cpu(), (1, 0, 1, 0), value=0.5).unflatten(0, (num_rows, num_columns))
    grid = pad(places.permute(2, 0, 3, 1, 4).flatten(1, 2).flatten(2, 3), (0, 1, 0, 1), value=0.5)  # (C, rows, columns)
    shown = grid.permute(1, 2, 0) if len(grid) == 3 else grid.mean(0)  # neither grey nor colour: the mean over channels
    axes.imshow(shown.clamp(0, 1).numpy(), cmap="gray", vmin=0, vmax=1, interpolation="none")
    axes.set_xticks([])
    labels = [*map(drawable, row_labels)]  # an axis writes its labels anew while it is drawn
    axes.set_yticks([(row + 0.5) * (images.shape[-2] + 1) for row in range(len(labels))], labels)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def named_images_figure(rows: Mapping[str, Sequence[tuple[str, Tensor]]], title: str) -> Figure:
    """Return a row for each label: images (C, H, W) in [0, 1], each above the end of its name."""
    num_columns = max(map(len, rows.values()))
    figure = titled_figure(title, max(1.0 * num_columns + 1.2, 5.0), 1.3 * len(rows) + 0.6)
    for places, (label, row) in zip(figure.subplots(len(rows), num_columns, squeeze=False), rows.items()):
        places[0].set_ylabel(label, fontsize=8)
        for axes, (name, image) in zip(places, row):
            _show_images(axes, image[None], 1)
            axes.set_xlabel(textwrap.fill(name[-45:], 16), fontsize=6)
    return figure


def reconstruction_figure(images: Tensor, reconstructions: Tensor, title: str) -> Figure:
    """Return images (B, C, H, W) in a row above their reconstructions."""
    labels = ("test image", "mean of p(x | z),\nz ~ q(z | x)")
    return image_figure(torch.cat([images, reconstructions]), len(images), title, labels)


def band_figure(bands: Mapping[str, tuple[Tensor, Tensor]], num_columns: int, title: str) -> Figure:
    """Return a band for each title: two sets of images side by side, each in two rows or more.

    Args:
        bands: for each title the images on the left and on the right, (N, C, H, W) in [0, 1]; either may be empty.
        num_columns: the most images in a row.
        title: title of the figure.
    """
    figure = titled_figure(title, 1.1 * num_columns + 1.2, 1.6 * len(bands) + 0.6)
    for band, (name, sides) in zip(figure.subfigures(len(bands), squeeze=False)[:, 0], bands.items()):
        band.suptitle(name, fontsize=8, x=0.01, ha="left")
        for axes, images in zip(band.subplots(1, 2), sides):
            axes.set_axis_off()
            if len(images):
                _show_images(axes, images, min(num_columns, -(-len(images) // 2)))
    return figure


def loss_figure(rows: Sequence[Metrics], title: str) -> Figure:
    """Return the loss of each split against the epoch, and the rate; early values far beyond the others are named."""
    # The distortion, loss - beta rate, needs no panel of its own.
    quantities = ["loss", "rate"] if any(row.rate for row in rows) else ["loss"]  # an autoencoder has no rate
    figure = titled_figure(title, WIDTH, 1.9 * len(quantities) + 1.1)
    panels = figure.subplots(len(quantities), 1, sharex=True, squeeze=False)[:, 0]
    first = rows[-1].epoch // 10
    for axes, name in zip(panels, quantities):
        values = [(getattr(row, name), row) for row in rows]
        # Where losses are nearly equal, the thin line of the test data lies on the wide one of the validation data.
        for split, line, width, place in (("train", "o--", 1.5, 0), ("valid", "o-", 4, 4), ("test", "o-", 1.5, 6)):
            x, y = [row.epoch for row in rows if row.split == split], [y for y, row in values if row.split == split]
            axes.plot(x, y, line, linewidth=width, color=PALETTE[place], markersize=3, label=split * bool(x))
        # The first tenth of the epochs widens the range to three times that of the others at most.
        later = [y for y, row in values if row.epoch > first]
        length = max(later) - min(later) or abs(later[0]) or 1.0
        low, high = min(later) - length, max(later) + length
        inside = [y for y, _ in values if low <= y <= high]
        axes.set_ylim(min(inside) - 0.05 * length, max(inside) + 0.05 * length)
        beyond = [f"{row.split} {y:.5g} at epoch {row.epoch}" for y, row in values if not low <= y <= high]
        head = f"{len(beyond)} beyond the axis:\n" * bool(beyond)
        axes.set_title(head + "\n".join(beyond[:3]), loc="right", fontsize=10)
        axes.set(xlabel="epoch" if axes is panels[-1] else "", ylabel=f"{name}, nats per datum")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
        axes.grid(alpha=0.3)
    panels[0].legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, frameon=False)
    return figure


def scatter_figure(splits: Mapping[str, ScatterData], names: Sequence[str], title: str) -> Figure:
    """Return scatter plots of codes side by side, coloured by class, with each class's name at its median, or near it.

    The fewer the codes, the larger their dots. Names that would cover each other are moved apart.

    Of more than ten classes, those whose numbers end in the same digit share a colour; more than fifty have one colour.

    Args:
        splits: for the title of each plot, the codes; without classes they have one colour.
        names: names of the classes.
        title: title of the figure.
    """
    is_coloured = len(names) <= _MOST_CLASSES and any(split.labels is not None for split in splits.values())
    side, text = (WIDTH, 10) if len(splits) == 1 else (3.5, 7)
    figure = titled_figure(title, side * len(splits), side)
    of_classes = "\nnames of classes stand at the median of their codes, or near it" * is_coloured
    of_prior = "\ncircles of 1, 2 and 3 standard deviations hold 39, 86 and 99 % of the prior, N(0, I)"
    figure.set_label(title + of_classes + of_prior * any(split.is_prior_normal for split in splits.values()))
    panels = figure.subplots(1, len(splits), squeeze=False)[0]
    for axes, (split, (codes, labels, is_prior_normal)) in zip(panels, splits.items()):
        points = codes.cpu().numpy()
        classes = labels.cpu().numpy() if labels is not None and is_coloured else np.zeros(len(points), dtype=int)
        colours = np.asarray(PALETTE)[classes % len(PALETTE)]  # in the order of the images, so that no class is on top
        size = 0.07 * side**2 * min(max(1, 3000 / max(1, len(points))), 18)
        # Opaque and with sharp edges, ten colours stay ten, which can be told apart, and the file is small.
        axes.scatter(*points.T, c=colours, s=size, linewidths=0, rasterized=True, antialiased=len(points) <= 1000)
        halo = [withStroke(linewidth=2, foreground="white")]
        for radius in (1, 2, 3) if is_prior_normal else ():
            axes.add_patch(Circle((0, 0), radius, fill=False, linewidth=0.7, edgecolor="#333333", path_effects=halo))
            axes.text(0, -radius, f"{radius} sd", fontsize=text, ha="center", va="bottom", path_effects=halo)
        axes.set_aspect("equal", adjustable="datalim")
        shown = np.unique(classes) if is_coloured else np.array([], dtype=int)
        middles = np.array([np.median(points[classes == index], axis=0) for index in shown]).reshape(-1, 2)
        written = [names[index].removeprefix(f"{index} - ")[:20] for index in shown]
        # A letter is about as wide as 0.6 of its height; the axes show some `side` inches.
        unit = max(6.0 * is_prior_normal, np.ptp(points, axis=0).max()) * text / (72 * side)
        sizes = unit * np.array([(0.6 * len(name) + 1, 1.8) for name in written]).reshape(-1, 2)
        for index, name, middle in zip(shown, written, _apart(middles, sizes)):
            box = {"facecolor": "white", "edgecolor": PALETTE[index % len(PALETTE)], "pad": 1.5}
            axes.annotate(name, tuple(middle), fontsize=text, ha="center", va="center", bbox=box)
        axes.set_title(split, fontsize=9)
        axes.set(xlabel="z_1", ylabel="z_2")
    return figure


def _apart(places: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Return places (N, 2), moved up and down until boxes of the sizes (N, 2) about them do not overlap."""
    places, order = places.copy(), np.arange(len(places))
    for _ in range(200):
        gaps = places[:, None] - places
        wide, high = np.moveaxis(np.maximum((sizes[:, None] + sizes) / 2 - np.abs(gaps), 0), 2, 0)
        places[:, 1] += 0.3 * (np.sign(gaps[..., 1] + 1e-9 * (order[:, None] - order)) * high * (wide > 0)).sum(1)
    return places


def histogram_figure(codes: Tensor, draws: Tensor, names: Sequence[str], title: str) -> Figure:
    """Return a histogram of codes (N, L) in 2 N^(1/3) bins for each latent, and of draws from the prior (S, L)."""
    columns, drawn = (tensor.cpu().double().numpy().T for tensor in (codes, draws))
    num_columns, num_rows = min(len(columns), 5), -(-len(columns) // 5)
    figure = titled_figure(title, WIDTH, (1.5 if num_columns > 2 else 2.4) * num_rows + 0.5)
    for place, (name, column, of_prior) in enumerate(zip(names, columns, drawn), 1):
        axes = figure.add_subplot(num_rows, num_columns, place)
        margin = 1e-6 * np.abs(column).max()  # without it, hist fails for large codes that are all equal
        limits, bins = (column.min() - margin, column.max() + margin), min(40, math.ceil(2 * len(column) ** (1 / 3)))
        of_draws: dict[str, Any] = {"bins": 30}
        if set(of_prior) <= {0.0, 1.0}:  # bits, of which one may always be 1
            limits, bins = (-0.05, 1.05), 11
            of_draws = {"bins": bins, "range": limits}
        axes.hist(column, bins=bins, range=limits, density=True, color=_DATA, alpha=0.6)
        axes.hist(of_prior, density=True, color=_PRIOR, histtype="step", **of_draws)
        axes.set_title(name, pad=3, fontsize=10)
        axes.locator_params(axis="x", nbins=4, steps=[1, 2, 5, 10])
        axes.set_yticks([])
    return figure


def deviation_figure(draws: Tensor, names: Sequence[str], title: str) -> Figure:
    """Return how far the distribution of each latent is from N(0, 1): F_n(z) - F(z), of the ten that are farthest.

    F_n is the distribution function of draws (N, L), F that of N(0, 1), and the greatest difference the distance of
    Kolmogorov and Smirnov: at most 1.36 / sqrt(N), the grey band, with probability 0.95 if the draws are of N(0, 1).
    """
    z, count = draws.double().sort(0).values, len(draws)
    deviations = (torch.arange(count)[:, None] + 0.5) / count - Normal(0.0, 1.0).cdf(z)
    distances, band = deviations.abs().max(0).values + 0.5 / count, 1.36 / count**0.5
    said = f"grey: the band of N(0, 1) at 95 %, which {int((distances > band).sum())} of {len(names)} latents leave"
    figure = titled_figure(f"{title}\n{said}", WIDTH, 3.6)
    axes = figure.subplots()
    axes.axhspan(-band, band, color="#d8d8d8", linewidth=0)
    for colour, d in zip(PALETTE, distances.argsort(descending=True).tolist()):
        axes.plot(z[:, d], deviations[:, d], color=colour, label=f"{names[d]}: {distances[d]:.3f}")
    axes.set(xlabel="z", ylabel="F_n(z) - F(z)")
    figure.legend(title="distance", loc="outside right center", frameon=False)
    return figure


def comparison_figure(measurements: Sequence[Measurement], title: str) -> Figure:
    """Return bias, signal-to-noise and noise per second of the last stage against the number of particles.

    Both axes are logarithmic; values that are not positive and finite are left out. Bars are standard errors.
    """
    last = [one for one in measurements if one.stage == measurements[-1].stage]
    figure = titled_figure(f"{title}, {last[0].stage}: the same weights, data and noise for all", 16.0, 4.4)

    def ratio(gradient: Gradient) -> tuple[float, float]:
        return gradient.signal_to_noise, gradient.signal_to_noise_stderr

    panels: dict[str, Callable[[Measurement], tuple[float, float]]] = {
        "log p(x) - bound, nats per datum": lambda one: (-one.bias, one.value.stderr),
        "encoder's gradient, signal / noise": lambda one: ratio(one.encoder_gradient),
        "decoder's gradient, signal / noise": lambda one: ratio(one.decoder_gradient),
        "encoder's variance x seconds of a step": lambda one: (one.noise, one.noise_stderr),
    }
    names = list(dict.fromkeys(one.estimator for one in last))
    counts = sorted({one.particles for one in last})
    for axes, (label, value) in zip(figure.subplots(1, 4), panels.items()):
        axes.set(xscale="log", yscale="log", xlabel="particles K", title=label)
        for index, name in enumerate(names):
            shift = 1.03 ** (index - len(names) / 2)  # so that markers of equal values do not overlap
            points = [(one.particles * shift, *value(one)) for one in last if one.estimator == name]
            points = [(x, y, error) for x, y, error in points if 0 < y < float("inf")]
            x, y, error = np.array(points).reshape(-1, 3).T
            # A bar that reached 0 would have no lower end on a logarithmic axis.
            bars = np.minimum(error, 0.9 * y), error
            style = {"color": PALETTE[index % len(PALETTE)], "marker": "osD^vPX*<>"[index % 10]}
            axes.errorbar(x, y, bars, label=name, elinewidth=1, capsize=2, **style)
        low, high = axes.get_ylim()
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("{x:g}" if high < 10 * low else NullFormatter())
        axes.set_xticks(counts, [str(count) for count in counts], minor=False)
        axes.xaxis.set_minor_locator(NullLocator())
        axes.grid(alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right center", frameon=False, fontsize=8)
    return figure


def gaps_figure(bars: Mapping[str, Mapping[str, Estimate]], images: Tensor, names: Sequence[str], title: str) -> Figure:
    """Return a plot for each title: the parts of a sum, each bar starting where the last one ended; images below.

    Args:
        bars: for each title the parts, by their names, in nats.
        images: (N, C, H, W) in [0, 1], or of shape (0,).
        names: of the images.
        title: title of the figure.
    """
    figure = titled_figure(title, 10.0, 3.6 if len(images) else 2.2)
    grid = figure.add_gridspec(2 if len(images) else 1, len(bars))
    panels = [figure.add_subplot(grid[0, 0])]
    panels += [figure.add_subplot(grid[0, place], sharex=panels[0], sharey=panels[0]) for place in range(1, len(bars))]
    for axes, (name, parts) in zip(panels, bars.items()):
        start = 0.0
        for place, one in enumerate(parts.values()):
            axes.barh(place, one.mean, left=start, xerr=one.stderr, color=PALETTE[place], capsize=2)
            end = max(start, start + one.mean) + one.stderr
            axes.annotate(str(one), (end, place), (4, 0), textcoords="offset points", va="center", fontsize=7)
            start += one.mean
        axes.set_yticks(range(len(parts)), [*parts])
        axes.tick_params(labelsize=7, labelleft=axes is panels[0])
        axes.set_title(name, fontsize=8)
        axes.set_xlabel("nats per datum above the ELBO L[q]", fontsize=7)
    low, high = panels[0].get_xlim()
    panels[0].set(xlim=(low, high + 0.35 * (high - low)), ylim=(len(parts) - 0.4, -0.6))
    if len(images):
        axes = figure.add_subplot(grid[1, :])
        _show_images(axes, images, len(images))
        axes.set_xticks([(place + 0.5) * (images.shape[-1] + 1) for place in range(len(images))], names, fontsize=7)
        axes.set_xlabel("log p(x) - L[q] of the test images that lose most, in nats", fontsize=7)
    return figure


def calibration_figure(latents: Sequence[Sequence[float]], regions: Sequence[float], band: float, title: str) -> Figure:
    """Return the shares of z_l below quantiles of q, a line for each latent, and of z in regions of highest density.

    Args:
        latents: for each latent the shares at 0.1, 0.2, ..., 0.9.
        regions: the shares of z in the regions of these masses.
        band: how far a share may be from the mass; lines that leave it are dark red.
        title: title of the figure.
    """
    figure = titled_figure(title, 9.0, 3.6)
    masses = np.arange(0, 11) / 10
    ends = np.array([0, *[band] * 9, 0])
    labels = "mass of q(z_l | x) below a quantile", "mass of a region of highest density of q(z | x)"
    for axes, lines, label in zip(figure.subplots(1, 2), (latents, [regions]), labels):
        axes.fill_between(masses, masses - ends, masses + ends, color="#d8d8d8", linewidth=0)
        for line in lines:
            is_outside = np.abs(np.array(line) - masses[1:-1]).max() > band
            axes.plot(masses, [0, *line, 1], color=PALETTE[6 if is_outside else 0], linewidth=0.9, alpha=0.8)
        axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
        axes.set_xlabel(label, fontsize=8)
    figure.axes[0].set_ylabel("share of data whose z_l is below it", fontsize=8)
    figure.axes[1].set_ylabel("share of data whose z is in it", fontsize=8)
    return figure


def write_figure(path: Path, figure: Figure) -> None:
    """Write a figure as a PNG file, completely or not at all; a link of that name is replaced."""
    content = BytesIO()
    figure.savefig(content, format="png", metadata={"Software": "pvae"})
    write_whole(path, content.getvalue())
