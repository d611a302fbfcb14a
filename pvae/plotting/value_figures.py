"""Matplotlib figures of data that are no images: vectors, tables and series."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from pvae.core.errors import InputError, one_line
from pvae.plotting.figures import PALETTE, WIDTH, drawable, titled_figure
from pvae.tables.column import Column

_DATA = PALETTE[0]
_MODEL = PALETTE[1]
_MOST = 8  # columns of a table, or values of a series at one time, that are drawn
_SHOWN = 0.98  # the share of values that is drawn,
_TAIL = 0.4  # where they take less than this share of the range
_MISSING: Any = {"facecolor": "#e4e4e4", "edgecolor": "#8a8a8a", "hatch": "////", "linewidth": 0, "label": "missing"}


def reconstructed_values_figure(data: Tensor, means: Tensor, title: str, test: Tensor, names: Sequence[str]) -> Figure:
    """Return a panel for each datum with its reconstruction: bars of a vector, lines of a series.

    Columns of vectors whose scales differ by a factor of 20 or more are standardised. What is missing is hatched.

    Args:
        data: vectors (B, D), or series (B, T, D), of which the first values at each time are drawn.
        means: of p(x | z), of the same shape.
        title: of the figure.
        test: all test data, by which columns are standardised.
        names: of the data, (B,).

    Raises:
        InputError: the data are neither vectors nor series.
    """
    _check_shape(data)
    mean, std = _moments(test)
    units = "test data"
    if data.dim() == 2 and std.max() > 20 * std.min():
        data = (data - mean) / std
        means = (means - mean) / std
        units = "test data, each column standardised"
    figure, panels = _panels(f"{title}\n{units}, and means of p(x | z), z ~ q(z | x)", len(data))
    for axes, x, mean, name in zip(panels, data, means, names):
        if data.dim() == 2:
            axes.bar(range(len(x)), x.tolist(), color=_DATA, alpha=0.6, label="x")
            axes.plot(range(len(x)), mean.tolist(), ".", color=_MODEL, label="reconstruction")
        else:
            _draw_series(axes, x, "-", "x")
            _draw_series(axes, mean, "--", "reconstruction")
        for place in x.isnan().view(len(x), -1).any(1).nonzero()[:, 0].tolist():
            axes.axvspan(place - 0.4, place + 0.4, **_MISSING)
        axes.set_title(_label(name))
    _add_key(figure, panels)
    return figure


def reconstructed_rows_figure(
    data: Tensor, draws: Tensor, title: str, test: Tensor, columns: Sequence[Column], names: Sequence[str]
) -> Figure:
    """Return a panel for each row of a table: its numbers, in standard deviations, over the middle 90 % of p(x | z).

    Below is the probability of its category in each column of categories. Of more columns, 16 are shown. Arguments as
    of `reconstructed_values_figure`, but draws from p(x | z), z ~ q(z | x), for each row, (S, B, D).
    """
    shown = columns[: 2 * _MOST]
    data, draws, test = (one[..., : len(shown)] for one in (data, draws, test))
    mean, std = _moments(test)
    values = ((data - mean) / std).tolist()
    low, high = ((draws - mean) / std).nanquantile(torch.tensor([0.05, 0.95]).to(draws), 0).tolist()
    shares = (draws == data).double().mean(0).tolist()
    texts = [d for d, column in enumerate(shown) if column.categories]
    parts = [part for part in ([d for d in range(len(shown)) if d not in texts], texts) if part]
    said = f"test data, {len(shown)} of {len(columns):,} columns; {len(draws)} draws of p(x | z), z ~ q(z | x)"
    figure = titled_figure(f"{title}\n{said}", WIDTH, 0.2 * len(shown) + 0.3 * len(parts) + 0.9)
    heights = [len(part) + 1.5 for part in parts]
    grid = figure.subplots(len(parts), len(data), sharex="row", sharey="row", squeeze=False, height_ratios=heights)
    bar: Any = {"color": _MODEL, "edgecolor": _MODEL, "height": 0.6}
    for panels, part in zip(grid, parts):
        for row, (axes, x) in enumerate(zip(panels, data)):
            for y, d in enumerate(part):
                if x[d].isnan():
                    axes.axhspan(y - 0.4, y + 0.4, **_MISSING)
                elif part is texts:
                    axes.barh(y, shares[row][d], label="probability", **bar)
                    axes.text(0.03, y, _label(shown[d].text(x[d].item()), 10), va="center")
                else:
                    width = high[row][d] - low[row][d]
                    axes.barh(y, width, left=low[row][d], label="90 % of p(x | z)", **bar)
                    axes.plot(values[row][d], y, "o", color=_DATA, markersize=4, label="x")
            axes.set_yticks(range(len(part)), [_label(shown[d].name) for d in part])
            axes.set_ylim(len(part) - 0.5, -0.5)
            axes.use_sticky_edges = part is texts  # an interval does not end at the edge of the panel
        if part is texts:
            panels[0].set_xlim(0, 1)
            panels[0].set_xlabel("probability of the category", loc="left")
        else:
            panels[0].set_xlabel("standard deviations", loc="left")
    for axes, name in zip(grid[0], names):
        axes.set_title(_label(name, 14), fontsize=10)
    _add_key(figure, [*grid.flat])
    return figure


def _moments(test: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of each column; 1 for one that is constant."""
    mean = test.float().nanmean(0)
    std = (test - mean).square().nanmean(0).sqrt()
    return mean, torch.where(std > 0, std, torch.ones_like(std))


def _add_key(figure: Figure, panels: Sequence[Axes]) -> None:
    """Add a legend of all panels."""
    key = {label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels())}
    figure.legend(key.values(), key.keys(), loc="outside lower center", ncols=4, frameon=False)


def _check_shape(data: Tensor) -> None:
    if data.dim() not in (2, 3):
        shape = tuple(data.shape[1:])
        raise InputError(f"this picture shows images, vectors or series, and not data of the shape {shape}")


def _panels(title: str, count: int, num_columns: int = 4) -> tuple[Figure, list[Axes]]:
    """Return a figure and its panels in rows."""
    num_rows = math.ceil(count / num_columns)
    figure = titled_figure(title, WIDTH, 1.5 * num_rows + 0.6)
    return figure, [figure.add_subplot(num_rows, num_columns, place + 1) for place in range(count)]


def _draw_series(axes: Axes, x: Tensor, style: str, label: str) -> None:
    """Draw the first values at each time of a series (T, D)."""
    lines = axes.plot(x[:, :_MOST].numpy(force=True), style)
    for line, colour in zip(lines, PALETTE):
        line.set_color(colour)
    lines[0].set_label(label)


def sampled_values_figure(
    data: Tensor, samples: Tensor, title: str, columns: Sequence[Column] = (), given: str = "p(x | z), z ~ p(z)"
) -> Figure:
    """Return the marginals of vectors and of samples from p(x | z), z ~ p(z), or four series above four samples.

    There is a histogram for each of the first columns: of whole numbers their shares, of others the density. Of a
    column of categories, bars are the shares of the most frequent ones; its title says how many there are. It also says
    which share of the data is missing.

    A column of data of which few are far above the others is drawn without these, and its title says so.

    Args:
        data: of all splits: vectors (N, D), or series (N, T, D), of which the first values at each time are drawn.
        samples: (S, D) or (S, T, D).
        title: of the figure.
        columns: of a table.
        given: of which distribution the samples are, and at which labels.

    Raises:
        InputError: the data are neither vectors nor series.
    """
    _check_shape(data)
    if data.dim() == 3:
        figure, panels = _panels(f"{title}\ndata above samples from {given}", 8)
        for axes, x in [*zip(panels[:4], data), *zip(panels[4:], samples)]:
            axes.sharey(panels[0])
            _draw_series(axes, x, "-", "")
        return figure
    count = min(_MOST, data.shape[1])
    rows = f"{len(data):,} data of all splits and of {len(samples):,} samples from {given}"
    text = f"{title}\nmarginals of {rows}, {count} of {data.shape[1]:,} columns"
    figure, panels = _panels(text, count, 3)
    columns = columns or [Column(f"x_{number + 1}") for number in range(count)]
    for number, (axes, column) in enumerate(zip(panels, columns)):
        values = [one[:, number][one[:, number].isfinite()].double() for one in (data, samples)]
        name = _label(column.name)
        missing = data[:, number].isnan().double().mean().item()
        if missing:
            name += f", {missing:.0%} missing"
        if column.categories:
            name += _draw_shares(axes, values, column.categories)
        else:
            name += _draw_densities(axes, values, column)
        axes.set_title(textwrap.fill(name, 26), fontsize=9)
    _add_key(figure, panels)
    return figure


def _draw_shares(axes: Axes, both: Sequence[Tensor], categories: Sequence[str]) -> str:
    """Draw the shares of the most frequent categories in data and samples; return how many there are."""
    counts = both[0].long().bincount(minlength=len(categories))
    codes = counts.argsort(descending=True, stable=True)[: 2 * _MOST].sort().values.tolist()
    for values, label, colour, shift in zip(both, ("data", "samples"), (_DATA, _MODEL), (-0.2, 0.2)):
        shares = [(values == code).double().mean().item() for code in codes]
        axes.bar(np.arange(len(shares)) + shift, shares, 0.4, color=colour, label=label)
    axes.set_xticks(range(len(codes)), [_label(categories[code]) for code in codes], rotation=90)
    if len(codes) == len(categories):
        return ""
    return f", {len(codes)} of {len(categories)} categories"


def _draw_densities(axes: Axes, both: Sequence[Tensor], column: Column) -> str:
    """Draw histograms of the numbers in data and samples; return what is not drawn as it is."""
    data, samples = (one + column.origin for one in both)
    said = ""
    every = torch.cat([data, samples])
    if not len(every):
        every = torch.tensor([0.0, 0.5, 1.0])
    low = every.min().item()
    high = every.max().item()
    x = every - column.origin
    is_whole = bool(((x == x.round()) & (x.abs() < 2**24)).all())  # of larger ones float32 has no fractions
    shown = [data, samples]
    cut = _cut(data)
    if cut is not None and (samples <= cut).any():
        said = f", {(data <= cut).double().mean():.0%} of the data"
        shown = [one[one <= cut] for one in shown]
        high = cut
    style: Any = {"color": [_DATA, _MODEL], "label": ["data", "samples"], "bins": 20, "density": True}
    if is_whole:
        width = math.ceil((high - low + 1) / 20)
        style["bins"] = np.arange(low - 0.5, high + 0.5 + width, width)
        style["weights"] = [[1 / len(whole)] * len(one) for whole, one in zip(both, shown)]
        style["density"] = False
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.hist([one.tolist() for one in shown], **style)
    axes.yaxis.set_major_formatter("{x:g}")  # without a power of ten beside the title
    axes.locator_params(axis="x", nbins=3)
    axes.xaxis.set_major_formatter(f"{{x:.9g}}{column.suffix}")
    if column.date_format:
        locator = AutoDateLocator(minticks=2, maxticks=5)  # type: ignore[no-untyped-call]
        axes.xaxis.set_major_locator(locator)
        axes.tick_params(axis="x", labelsize="small")
        axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))  # type: ignore[no-untyped-call]
    return said


def _cut(x: Tensor) -> float | None:
    """Return the value above which few data take most of the range, so that nearly all others would be in one bar."""
    if not len(x):
        return None
    low, cut, high = np.quantile(x, (0, _SHOWN, 1)).tolist()
    if 0 < cut - low < _TAIL * (high - low):
        return float(cut)
    return None


def _label(text: str, most: int = 20) -> str:
    """Return the name of a column or a category for an axis: an axis writes its labels anew while it is drawn."""
    if len(text) > most:
        text = f"{text[: most - 3]}..."
    return drawable(one_line(text))
