"""Matplotlib figures of images, codes, losses and estimators. Neither models nor pyplot are used."""

from __future__ import annotations

import math
import re
import textwrap
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.backend_bases import RendererBase
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from matplotlib.patheffects import withStroke
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator, NullFormatter, NullLocator
from torch import Tensor
from torch.distributions import Normal

from pvae.core.errors import InputError
from pvae.core.files import write_whole
from pvae.runs.metrics import Metrics

# Ten colours near those of Okabe and Ito, "Color Universal Design", 2008, https://jfly.uni-koeln.de/color/, moved until
# any two are at least 25 apart in CIE Lab, also as people without red or green cones see them.
PALETTE = (
    "#246FB3", "#C38200", "#037654", "#FF926B", "#4CBFF9", "#CE7BA7", "#7E1D0E", "#E2D524", "#272388", "#010100",
)  # fmt: skip
_DATA = PALETTE[0]
_PRIOR = PALETTE[6]
_LINE = 0.17  # inches, the height of a line of a title
_MOST_CLASSES = 50  # beyond which their names would cover a figure
WIDTH = 6.2  # inches: letters of 10 points are of 5.6 where a figure of this width fills a paper's column of 88 mm
_INDICES = {ord(str(digit)): chr(0x2080 + digit) for digit in range(10)}  # subscripts


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
        with warnings.catch_warnings():  # of a character that the font lacks, which is drawn as a box
            warnings.filterwarnings("ignore", "Glyph")
            super().draw(renderer)


def drawable(text: str) -> str:
    """Return a text with "?" in place of each byte that is of no character, as in a file's name."""
    return text.encode(errors="replace").decode()


def indexed(name: str) -> str:
    """Return the name of a latent, such as z_6, with its number as an index."""
    return re.sub("_([0-9]+)", lambda found: found[1].translate(_INDICES), name)


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
    num_rows = math.ceil(len(images) / num_columns)
    ratio = images.shape[-2] / images.shape[-1]
    margin = 0.2
    if row_labels:
        margin = 1.1
    cell = min(1.5, (WIDTH - margin) / num_columns)
    figure = titled_figure(title, WIDTH, num_rows * cell * min(5.0, max(0.2, ratio)) + 0.4)
    show_images(figure.add_subplot(), images, num_columns, row_labels)
    return figure


def show_images(axes: Axes, images: Tensor, num_columns: int, row_labels: Sequence[str] = ()) -> None:
    """Show images (N, C, H, W) in [0, 1] row by row, with grey lines between them; unused places are white."""
    from torchvision.utils import make_grid  # slow to import

    if images.shape[1] != 3:  # neither grey nor colour: the mean over channels
        images = images.mean(1, keepdim=True)
    unused = images.new_ones(-len(images) % num_columns, *images.shape[1:])
    grid = make_grid(torch.cat([images, unused]).cpu(), num_columns, padding=1, pad_value=0.5)[: images.shape[1]]
    axes.imshow(grid.permute(1, 2, 0).clamp(0, 1).numpy(), cmap="gray", vmin=0, vmax=1, interpolation="none")
    axes.set_xticks([])
    labels = [*map(drawable, row_labels)]  # an axis writes its labels anew while it is drawn
    axes.set_yticks(middles(len(labels), images.shape[-2]), labels)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def middles(count: int, size: int) -> list[float]:
    """Return the places of images of a size in a row or column of `show_images`."""
    return [(place + 0.5) * (size + 1) for place in range(count)]


def named_images_figure(rows: Mapping[str, Sequence[tuple[str, Tensor]]], title: str) -> Figure:
    """Return a row for each label: images (C, H, W) in [0, 1], each above the end of its name."""
    num_columns = max(map(len, rows.values()))
    figure = titled_figure(title, max(1.0 * num_columns + 1.2, 5.0), 1.3 * len(rows) + 0.6)
    for places, (label, row) in zip(figure.subplots(len(rows), num_columns, squeeze=False), rows.items()):
        places[0].set_ylabel(label, fontsize=8)
        for axes, (name, image) in zip(places, row):
            show_images(axes, image[None], 1)
            axes.set_xlabel(textwrap.fill(name[-45:], 16), fontsize=6)
    return figure


def reconstruction_figure(
    images: Tensor,
    reconstructions: Tensor,
    title: str,
    labels: Sequence[str] = ("test image", "mean of p(x | z),\nz ~ q(z | x)"),
) -> Figure:
    """Return images (B, C, H, W) in a row above their reconstructions, with a label of each row."""
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
                show_images(axes, images, min(num_columns, math.ceil(len(images) / 2)))
    return figure


_LINES = {  # of the splits: style, width and colour; where losses are nearly equal, a thin line lies on a wide one
    "train": ("o--", 1.5, PALETTE[0]),
    "valid": ("o-", 4, PALETTE[4]),
    "test": ("o-", 1.5, PALETTE[6]),
}


def loss_figure(rows: Sequence[Metrics], title: str) -> Figure:
    """Return the loss of each split against the epoch, and the rate; early values far beyond the others are named."""
    table = pd.DataFrame([asdict(row) for row in rows])
    quantities = ["loss"]
    if table["rate"].any():  # an autoencoder has no rate; the distortion, loss - beta rate, needs no panel
        quantities.append("rate")
    figure = titled_figure(title, WIDTH, 1.9 * len(quantities) + 1.1)
    panels = figure.subplots(len(quantities), 1, sharex=True, squeeze=False)[:, 0]
    for axes, name in zip(panels, quantities):
        for split, (line, width, colour) in _LINES.items():
            part = table[table["split"] == split]
            if len(part):
                axes.plot("epoch", name, line, data=part, linewidth=width, color=colour, markersize=3, label=split)
        _limit(axes, table, name)
        axes.set_ylabel(f"{name}, nats per datum")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
        axes.grid(alpha=0.3)
    panels[-1].set_xlabel("epoch")
    panels[0].legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, frameon=False)
    return figure


def _limit(axes: Axes, table: pd.DataFrame, name: str) -> None:
    """Let the first tenth of the epochs make the range at most three times as wide; name what is beyond."""
    values = table[name]
    later = values[table["epoch"] > table["epoch"].max() // 10]
    length = np.ptp(later) or abs(later.iloc[0]) or 1.0
    is_inside = values.between(later.min() - length, later.max() + length)
    inside = values[is_inside]
    axes.set_ylim(inside.min() - 0.05 * length, inside.max() + 0.05 * length)
    beyond = [f"{row.split} {getattr(row, name):.5g} at epoch {row.epoch}" for row in table[~is_inside].itertuples()]
    if beyond:
        axes.set_title("\n".join([f"{len(beyond)} beyond the axis:", *beyond[:3]]), loc="right", fontsize=10)


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
    side = 3.5
    text = 7
    if len(splits) == 1:
        side = WIDTH
        text = 10
    figure = titled_figure(title, side * len(splits), side)
    caption = [title]
    if is_coloured:
        caption.append("names of classes stand at the median of their codes, or near it")
    if any(split.is_prior_normal for split in splits.values()):
        caption.append("circles of 1, 2 and 3 standard deviations hold 39, 86 and 99 % of the prior, N(0, I)")
    figure.set_label("\n".join(caption))
    halo = [withStroke(linewidth=2, foreground="white")]
    for axes, (split, (codes, labels, is_prior_normal)) in zip(
        figure.subplots(1, len(splits), squeeze=False)[0], splits.items()
    ):
        points = codes.numpy(force=True)
        classes = np.zeros(len(points), dtype=int)
        if labels is not None and is_coloured:
            classes = labels.numpy(force=True)
        colours = np.asarray(PALETTE)[classes % len(PALETTE)]  # in the order of the images, so that no class is on top
        size = 0.07 * side**2 * min(max(1, 3000 / max(1, len(points))), 18)
        # Opaque and with sharp edges, ten colours stay ten, which can be told apart, and the file is small.
        axes.scatter(*points.T, c=colours, s=size, linewidths=0, rasterized=True, antialiased=len(points) <= 1000)
        width = np.ptp(points, axis=0).max()
        if is_prior_normal:
            width = max(6.0, width)
            for radius in (1, 2, 3):
                axes.add_patch(Circle((0, 0), radius, fill=False, linewidth=0.7, path_effects=halo))
                axes.text(0, -radius, f"{radius} sd", fontsize=text, ha="center", va="bottom", path_effects=halo)
        axes.set_aspect("equal", adjustable="datalim")
        medians = pd.DataFrame(points).groupby(classes).median()
        if not is_coloured:
            medians = medians[:0]
        written = [names[index].removeprefix(f"{index} - ")[:20] for index in medians.index]
        # A letter is about as wide as 0.6 of its height; the axes show some `side` inches.
        letters = np.array([(0.6 * len(name) + 1, 1.8) for name in written]).reshape(-1, 2)
        for index, name, place in zip(
            medians.index, written, _apart(medians.to_numpy(), width * text / (72 * side) * letters)
        ):
            box = {"facecolor": "white", "edgecolor": PALETTE[index % len(PALETTE)], "pad": 1.5}
            axes.annotate(name, tuple(place), fontsize=text, ha="center", va="center", bbox=box)
        axes.set_title(split, fontsize=9)
        axes.set(xlabel=indexed("z_1"), ylabel=indexed("z_2"))
    return figure


def _apart(places: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Return places (N, 2), moved up and down until boxes of the sizes (N, 2) about them do not overlap."""
    places = places.copy()
    order = np.arange(len(places))
    for _ in range(200):
        gaps = places[:, None] - places
        wide, high = np.moveaxis(np.maximum((sizes[:, None] + sizes) / 2 - np.abs(gaps), 0), 2, 0)
        places[:, 1] += 0.3 * (np.sign(gaps[..., 1] + 1e-9 * (order[:, None] - order)) * high * (wide > 0)).sum(1)
    return places


def histogram_figure(codes: Tensor, draws: Tensor, names: Sequence[str], title: str) -> Figure:
    """Return a histogram of codes (N, L) in 2 N^(1/3) bins for each latent, and of draws from the prior (S, L)."""
    num_columns = min(len(names), 5)
    num_rows = math.ceil(len(names) / 5)
    height = 2.4
    if num_columns > 2:
        height = 1.5
    figure = titled_figure(title, WIDTH, height * num_rows + 0.5)
    columns, of_prior = (one.double().numpy(force=True).T for one in (codes, draws))
    for place, (name, column, drawn) in enumerate(zip(names, columns, of_prior), 1):
        axes = figure.add_subplot(num_rows, num_columns, place)
        of_codes: Any = {"bins": min(40, math.ceil(2 * len(column) ** (1 / 3)))}
        of_draws: Any = {"bins": 30}
        if set(drawn) <= {0.0, 1.0}:  # bits, of which one may always be 1
            of_codes = {"bins": 11, "range": (-0.05, 1.05)}
            of_draws = of_codes
        axes.hist(column, density=True, color=_DATA, alpha=0.6, **of_codes)
        axes.hist(drawn, density=True, color=_PRIOR, histtype="step", **of_draws)
        axes.set_title(name, pad=3, fontsize=10)
        axes.locator_params(axis="x", nbins=4, steps=[1, 2, 5, 10])
        axes.set_yticks([])
    return figure


def deviation_figure(draws: Tensor, names: Sequence[str], title: str) -> Figure:
    """Return how far the distribution of each latent is from N(0, 1): F_n(z) - F(z), of the ten that are farthest.

    F_n is the distribution function of draws (N, L), F that of N(0, 1), and the greatest difference the distance of
    Kolmogorov and Smirnov: at most 1.36 / sqrt(N), the grey band, with probability 0.95 if the draws are of N(0, 1).
    """
    z = draws.double().sort(0).values
    count = len(draws)
    deviations = (torch.arange(count)[:, None] + 0.5) / count - Normal(0.0, 1.0).cdf(z)
    distances = deviations.abs().max(0).values + 0.5 / count
    band = 1.36 / count**0.5
    said = f"grey: the band of N(0, 1) at 95 %, which {int((distances > band).sum())} of {len(names)} latents leave"
    figure = titled_figure(f"{title}\n{said}", WIDTH, 3.6)
    axes = figure.subplots()
    axes.axhspan(-band, band, color="#d8d8d8", linewidth=0)
    for colour, d in zip(PALETTE, distances.argsort(descending=True).tolist()):
        axes.plot(z[:, d], deviations[:, d], color=colour, label=f"{names[d]}: {distances[d]:.3f}")
    axes.set(xlabel="z", ylabel="F_n(z) - F(z)")
    figure.legend(title="distance", loc="outside right center", frameon=False)
    return figure


def comparison_figure(measurements: pd.DataFrame, title: str) -> Figure:
    """Return bias, signal-to-noise and noise per second of the last stage against the number of particles.

    Both axes are logarithmic; values that are not positive and finite are left out. Bars are standard errors.

    Args:
        measurements: a row for each `Measurement`, as `pvae compare` writes them.
        title: of the figure.
    """
    *_, stage = measurements["stage"]
    table = measurements[measurements["stage"] == stage]
    table = table.assign(bias=-table["bias"], bias_stderr=table["value_stderr"])
    panels = {
        "log p(x) - bound, nats per datum": "bias",
        "encoder's gradient, signal / noise": "encoder_gradient_signal_to_noise",
        "decoder's gradient, signal / noise": "decoder_gradient_signal_to_noise",
        "encoder's variance x seconds of a step": "noise",
    }
    figure = titled_figure(f"{title}, {stage}: the same weights, data and noise for all", 16.0, 4.4)
    groups = [*table.groupby("estimator", sort=False)]
    counts = sorted({*table["particles"]})
    for axes, (label, name) in zip(figure.subplots(1, len(panels)), panels.items()):
        axes.set(xscale="log", yscale="log", xlabel="particles K", title=label)
        for index, (estimator, rows) in enumerate(groups):
            shown = rows[(rows[name] > 0) & (rows[name] < np.inf)]
            x = shown["particles"] * 1.03 ** (index - len(groups) / 2)  # so that markers do not overlap
            y = shown[name]
            errors = shown[f"{name}_stderr"]
            # A bar that reached 0 would have no lower end on a logarithmic axis.
            bars = [np.minimum(errors, 0.9 * y), errors]
            style: Any = {"color": PALETTE[index % len(PALETTE)], "marker": "osD^vPX*<>"[index % 10]}
            axes.errorbar(x, y, bars, label=estimator, elinewidth=1, capsize=2, **style)
        low, high = axes.get_ylim()
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
        if high < 10 * low:
            axes.yaxis.set_minor_formatter("{x:g}")
        axes.set_xticks(counts, [*map(str, counts)], minor=False)
        axes.set_xlim(min(counts) / 1.5, 1.5 * max(counts))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.grid(alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right center", frameon=False, fontsize=8)
    return figure


def write_figure(path: Path, figure: Figure) -> None:
    """Write a figure as a PNG file, completely or not at all; a link of that name is replaced."""
    content = BytesIO()
    figure.savefig(content, format="png", metadata={"Software": "pvae"})
    write_whole(path, content.getvalue())


def write_images(folder: Path, prefix: str, images: Tensor) -> list[str]:
    """Write images (N, C, H, W) in [0, 1] as PNG files in place of earlier ones, and return their names.

    Raises:
        InputError: they have another number of channels than 1 or 3.
    """
    from torchvision.transforms.functional import to_pil_image  # slow to import, and needed only here

    if images.shape[1] not in (1, 3):
        raise InputError(f"a PNG has 1 or 3 channels, and these images have {images.shape[1]}")
    for earlier in folder.glob(f"{prefix}-[0-9]*.png"):
        earlier.unlink()
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"{prefix}-{number:04}.png" for number in range(1, len(images) + 1)]
    for name, image in zip(names, images.mul(255).round().to(torch.uint8)):
        content = BytesIO()
        to_pil_image(image).save(content, "PNG")
        write_whole(folder / name, content.getvalue())
    return names
