"""Arrays to matplotlib axes; nothing here knows a model, and nothing here touches pyplot's global state."""

from __future__ import annotations

import functools
import re
import textwrap
import unicodedata
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from matplotlib import rcParams
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, fontManager
from matplotlib.ft2font import FT2Font
from matplotlib.ticker import MaxNLocator, NullFormatter, NullLocator
from numpy.typing import NDArray

__all__ = [
    "add_title",
    "against_particles",
    "curves",
    "histograms",
    "image_figure",
    "image_grid",
    "lines",
    "plain_text",
    "scatter",
    "show_images",
]

# Okabe and Ito's palette: told apart by readers with any kind of colour vision.
_COLOURS = {"train": "#0072B2", "test": "#D55E00"}
# Tol's muted scheme, for up to ten classes.
_CLASSES = (
    "#332288", "#88CCEE", "#44AA99", "#117733", "#999933", "#DDCC77", "#CC6677", "#882255", "#AA4499", "#888888",
)  # fmt: skip


def plain_text(texts: Iterable[str]) -> tuple[list[str], list[str]]:
    r"""Return texts that may be a user's as matplotlib is to take them, and the font families to write them in.

    "$" begins no formula. A character that the default font lacks is written in an installed font that has it, and
    left out where none has.
    """
    texts = [unicodedata.normalize("NFC", text) for text in texts]  # macOS takes the syllables of Hangul apart
    families, absent = _fallback_fonts(frozenset("".join(texts)) - {"\n"}, tuple(rcParams["font.family"]))
    return ["".join(one for one in text if one not in absent).replace("$", r"\$") for text in texts], list(families)


@functools.cache
def _fallback_fonts(characters: frozenset[str], default: tuple[str, ...]) -> tuple[tuple[str, ...], frozenset[str]]:
    """Return the default font families and those that have what they lack, and the characters that none has."""
    families, absent = default, characters
    upright = (font for font in fontManager.ttflist if font.style == "normal" and font.weight == 400)
    fonts = [(name, str(findfont(FontProperties(family=[name])))) for name in default]
    fonts += sorted((font.name, font.fname) for font in upright)
    for family, path in fonts:
        if absent and not re.match(r"\.?last ?resort", family, re.IGNORECASE):  # which has a box for every character
            font = FT2Font(path)
            found = {one for one in absent if one.isprintable() and font.get_char_index(ord(one))}
            absent -= found
            families += (family,) if found and family not in families else ()
    return families, absent


def image_grid(images: NDArray[np.float32], num_columns: int) -> NDArray[np.float32]:
    """Lay images (N, C, H, W) with values in [0, 1] out row by row, one pixel of grey between them.

    Returns:
        (rows (H + 1) + 1, columns (W + 1) + 1, C); places without an image are white.
    """
    count, channels, height, width = images.shape
    num_rows = -(-count // num_columns)
    canvas = np.ones((num_rows * (height + 1) + 1, num_columns * (width + 1) + 1, channels), dtype=np.float32)
    canvas[:: height + 1] = 0.5
    canvas[:, :: width + 1] = 0.5
    for place, image in enumerate(images):
        top = place // num_columns * (height + 1) + 1
        left = place % num_columns * (width + 1) + 1
        canvas[top : top + height, left : left + width] = image.transpose(1, 2, 0)
    return canvas


def image_figure(
    images: NDArray[np.float32],
    num_columns: int,
    title: str,
    row_labels: Sequence[str] = (),
    column_labels: Sequence[str] = (),
) -> Figure:
    """Return a figure of images (N, C, H, W) in [0, 1], with a title and, if given, a label for each row and column."""
    num_rows = -(-len(images) // num_columns)
    size = max(0.75 * num_columns + 1.2, 5.0), 0.75 * num_rows + 0.6
    figure = Figure(figsize=size, dpi=120, layout="constrained")
    show_images(figure.add_subplot(), images, num_columns, row_labels, column_labels)
    add_title(figure, title)
    return figure


def show_images(
    axes: Axes,
    images: NDArray[np.float32],
    num_columns: int,
    row_labels: Sequence[str] = (),
    column_labels: Sequence[str] = (),
) -> None:
    """Show images (N, C, H, W) in [0, 1] row by row, with a label for each row and column if given."""
    grid = image_grid(images, num_columns)
    shown = grid if grid.shape[-1] == 3 else grid.mean(-1)  # neither grey nor colour: the mean over channels
    axes.imshow(shown, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    step = grid.shape[0] / -(-len(images) // num_columns)
    width = grid.shape[1] / num_columns
    axes.set_xticks([(column + 0.5) * width for column in range(len(column_labels))], column_labels, fontsize=7)
    labels, families = plain_text(row_labels)
    axes.set_yticks([(row + 0.5) * step for row in range(len(labels))], labels, family=families)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def add_title(figure: Figure, title: str) -> None:
    """Write a title above a figure, its lines wrapped to the figure's width."""
    num_characters = int(figure.get_figwidth() * 12)
    (text,), families = plain_text([title])
    lines = [wrapped for line in text.splitlines() for wrapped in textwrap.wrap(line, num_characters)]
    figure.suptitle("\n".join(lines), fontsize=9, family=families)


def curves(axes: Axes, series: Mapping[str, tuple[Sequence[float], Sequence[float]]], title: str, unit: str) -> None:
    """Draw one curve a split, against the epoch.

    Args:
        axes: where.
        series: split ("train" or "test") to (epochs, values).
        title: what the values are.
        unit: their unit.
    """
    for split, (epochs, values) in series.items():
        style = "-" if split == "test" else "--"
        axes.plot(epochs, values, style, color=_COLOURS[split], marker="o", markersize=3, label=split)
    axes.set_xlabel("epoch")
    axes.set_ylabel(unit)
    axes.set_title(title, fontsize=10)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    last = max((epoch for epochs, _ in series.values() for epoch in epochs), default=1)
    axes.set_xlim(0.5, last + 0.5)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)


def scatter(
    axes: Axes, points: NDArray[np.float32], labels: NDArray[np.int64] | None, names: Sequence[str], title: str
) -> None:
    """Draw points (N, 2), coloured by class, each class numbered at the median of its points.

    Args:
        axes: where.
        points: (N, 2).
        labels: the classes (N,), or None for one colour.
        names: of the classes.
        title: above the axes.
    """
    for index in range(len(names)) if labels is not None else [0]:
        mine = points if labels is None else points[labels == index]
        colour = _CLASSES[index % len(_CLASSES)]
        name = str(index) if labels is not None else None
        axes.scatter(mine[:, 0], mine[:, 1], s=3, alpha=0.5, color=colour, linewidths=0, rasterized=True, label=name)
        if labels is not None and len(mine):
            middle = (float(np.median(mine[:, 0])), float(np.median(mine[:, 1])))
            box = {"facecolor": "white", "alpha": 0.8, "edgecolor": colour, "boxstyle": "circle,pad=0.15"}
            axes.annotate(str(index), middle, fontsize=7, ha="center", va="center", bbox=box)
    axes.set_xlabel("z_1")
    axes.set_ylabel("z_2")
    (text,), families = plain_text([title])
    axes.set_title(text, fontsize=10, family=families)


def lines(axes: Axes, x: Sequence[float], series: Mapping[str, tuple[Sequence[float], Sequence[float]]]) -> None:
    """Draw a line with error bars of one standard error for each name, told apart by colour, mark and legend.

    Args:
        axes: where.
        x: of every line.
        series: name to (values, standard errors).
    """
    names, families = plain_text(series)
    for index, (name, (values, errors)) in enumerate(zip(names, series.values())):
        colour, mark = _CLASSES[2 * index % len(_CLASSES)], "osD^v"[index % 5]
        # The space: of a label that begins with an underscore matplotlib makes no entry of the legend.
        axes.errorbar(x, values, errors, label=f" {name}", color=colour, marker=mark, markersize=4, capsize=2)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, prop={"family": families, "size": 8})


def against_particles(axes: Axes, series: Mapping[str, Sequence[tuple[int, float]]], title: str) -> None:
    """Draw a line for each name against the number of particles, both on logarithmic axes.

    Args:
        axes: where.
        series: name to points (K, value); what is not above 0 and finite is left out.
        title: above the axes.
    """
    for index, (name, points) in enumerate(series.items()):
        shown = [(count, value) for count, value in points if 0 < value < float("inf")]
        shift = 1.03 ** (index - len(series) / 2)  # marks that would lie on one another stand side by side
        x, y = [count * shift for count, _ in shown], [value for _, value in shown]
        style = ("-", "--", ":", "-.")[index % 4]  # lines that lie on one another show through
        axes.plot(x, y, style, label=name, color=_CLASSES[index % len(_CLASSES)], marker="osD^vPX*<>"[index % 10])
    axes.set_xscale("log")
    if any(0 < value < float("inf") for points in series.values() for _, value in points):
        axes.set_yscale("log")
        low, high = axes.get_ylim()
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("{x:g}" if high < 10 * low else NullFormatter())
    counts = sorted({count for points in series.values() for count, _ in points})
    axes.set_xticks(counts, [str(count) for count in counts], minor=False)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("particles K")
    axes.set_title(title, fontsize=9)
    axes.grid(alpha=0.3)


def histograms(figure: Figure, columns: NDArray[np.float32], density: NDArray[np.float32]) -> None:
    """Draw a histogram of each column (N, L), ten in a row, with a density (2, G) of x and values over each."""
    count = columns.shape[1]
    num_columns = min(count, 10)
    num_rows = -(-count // num_columns)
    for index, axes in enumerate(figure.subplots(num_rows, num_columns, squeeze=False).flat):
        axes.set_yticks([])
        axes.set_xticks([-3, 0, 3])
        axes.tick_params(labelsize=5, length=2, pad=1)
        axes.spines[["left", "right", "top"]].set_visible(False)
        axes.set_visible(index < count)
        if index < count:
            column = columns[:, index].astype(np.float64)
            low, high = np.percentile(column, [0.1, 99.9])
            axes.set_xlim(min(-4.2, low), max(4.2, high))
            margin = 1e-6 * np.abs(column).max()  # codes that are all the same, and large, have no bins otherwise
            limits = column.min() - margin, column.max() + margin
            axes.hist(column, bins=30, range=limits, density=True, color=_COLOURS["train"], alpha=0.6)
            axes.plot(*density, color=_COLOURS["test"], linewidth=1)
            axes.set_title(str(index + 1), fontsize=6, pad=1)
