"""Matplotlib figures of data that are no images: vectors, tables and series."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from pvae.core.errors import InputError, one_line
from pvae.data.dataset import Column
from pvae.plotting.figures import PALETTE, drawable, titled_figure

__all__ = ["reconstructed_values_figure", "sampled_values_figure"]

_DATA, _MODEL = PALETTE[0], PALETTE[1]
_MOST = 8  # columns of a table, or values of a series at one time, that are drawn
_SHOWN, _TAIL = 0.98, 0.4  # the share of values that is drawn where these take less than such a share of the range
_MISSING: Any = {"facecolor": "#e4e4e4", "edgecolor": "#8a8a8a", "hatch": "////", "linewidth": 0, "label": "missing"}


def reconstructed_values_figure(
    data: Tensor, reconstructions: Tensor, title: str, test: Tensor, columns: Sequence[Column], names: Sequence[str]
) -> Figure:
    """Return a panel for each datum with its reconstruction: bars of a vector, lines of a series.

    Of a table there is a line for each of the first columns: a bar of a standardised number, or the text of a category.
    Where the columns of other vectors have scales that differ by a factor of 20 or more, each is standardised. What is
    missing is grey and hatched.

    Args:
        data: vectors (B, D), or series (B, T, D), of which the first values at each time are drawn.
        reconstructions: of the same shape.
        title: of the figure.
        test: all test data, by which columns are standardised.
        columns: of a table, or ().
        names: of the data, (B,).

    Raises:
        InputError: the data are neither vectors nor series.
    """
    _check_shape(data)
    mean, units, shown = test.float().nanmean(0), "test data", columns[: 2 * _MOST]
    std = (test - mean).square().nanmean(0).sqrt()
    std = torch.where(std > 0, std, torch.ones_like(std))
    standardised = [(one - mean) / std for one in (data, reconstructions)]
    if columns:
        units = f"test data, numbers in standard deviations, {len(shown)} of {len(columns):,} columns"
    elif data.dim() == 2 and std.max() > 20 * std.min():
        (data, reconstructions), units = standardised, "test data, each column standardised"
    text, height = f"{title}\n{units}, and means of p(x | z), z ~ q(z | x)", 0.5 + 0.14 * len(shown)
    figure, panels = _panels(text, len(data), max(1.8, height), sharey=bool(columns), sharex=bool(columns))
    for number, (axes, x, mean) in enumerate(zip(panels, data, reconstructions)):
        if columns:
            _draw_row(axes, x, mean, shown, *(one[number] for one in standardised))
        elif data.dim() == 2:
            axes.bar(range(len(x)), x.tolist(), color=_DATA, alpha=0.6, label="x")
            axes.plot(range(len(x)), mean.tolist(), ".", color=_MODEL, label="reconstruction")
        else:
            _draw_series(axes, x, "-", "x")
            _draw_series(axes, mean, "--", "reconstruction")
        for place in x.isnan().view(len(x), -1).any(1).nonzero()[:, 0].tolist() if not columns else ():
            axes.axvspan(place - 0.4, place + 0.4, **_MISSING)
        axes.set_title(_label(names[number], 40), fontsize=7)
    key = {label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels())}
    figure.legend(key.values(), key.keys(), loc="outside right upper", frameon=False, fontsize=7)
    return figure


def _draw_row(axes: Axes, x: Tensor, mean: Tensor, columns: Sequence[Column], bars: Tensor, points: Tensor) -> None:
    """Draw a row of a table and its reconstruction, x and mean (D,), and both of them standardised, bars and points."""
    for place, column in enumerate(columns):
        if x[place].isnan():
            axes.axhspan(place - 0.4, place + 0.4, **_MISSING)
        if column.categories:
            for left, side, one, colour in ((0.02, "left", x, _DATA), (0.98, "right", mean, _MODEL)):
                style: Any = {"ha": side, "color": colour, "transform": axes.get_yaxis_transform()}
                axes.text(left, place, _label(column.text(one[place].item()), 16), va="center", fontsize=6, **style)
        else:
            axes.barh(place, bars[place].item(), color=_DATA, alpha=0.6, label="x")
            axes.plot(points[place].item(), place, ".", color=_MODEL, label="reconstruction")
    axes.set_yticks(range(len(columns)), [_label(column.name) for column in columns])
    axes.set_ylim(len(columns) - 0.5, -0.5)


def _check_shape(data: Tensor) -> None:
    if data.dim() not in (2, 3):
        shape = tuple(data.shape[1:])
        raise InputError(f"this picture shows images, vectors or series, and not data of the shape {shape}")


def _panels(title: str, count: int, height: float = 1.8, **options: Any) -> tuple[Figure, list[Axes]]:
    """Return a figure and its panels, four in a row, of a height in inches; the options are of `Figure.subplots`."""
    num_rows = -(-count // 4)
    figure = titled_figure(title, 10.0, height * num_rows + 0.6)
    panels = [*figure.subplots(num_rows, 4, squeeze=False, **options).flat]
    for axes in panels:
        axes.tick_params(labelsize=6)
    for axes in panels[count:]:
        axes.set_visible(False)
    return figure, panels[:count]


def _draw_series(axes: Axes, x: Tensor, style: str, label: str) -> None:
    """Draw the first values at each time of a series (T, D)."""
    for number, values in enumerate(x.T[:_MOST]):
        axes.plot(values.tolist(), style, color=PALETTE[number % len(PALETTE)], label=label * (number == 0))


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
        figure, panels = _panels(f"{title}\ndata above samples from {given}", 8, sharey=True)
        for axes, x in [*zip(panels[:4], data), *zip(panels[4:], samples)]:
            _draw_series(axes, x, "-", "")
        return figure
    count = min(_MOST, data.shape[1])
    rows = f"{len(data):,} data of all splits and of {len(samples):,} samples from {given}"
    text = f"{title}\nmarginals of {rows}, {count} of {data.shape[1]:,} columns"
    figure, panels = _panels(text, count)
    for number, axes in enumerate(panels):
        name = _label(columns[number].name) if columns else f"x_{number + 1}"
        if missing := data[:, number].isnan().double().mean().item():
            name += f", {missing:.0%} missing"
        both = [one[:, number][one[:, number].isfinite()].double() for one in (data, samples)]
        column = columns[number] if columns else None
        categories = column.categories if column else ()
        name += _draw_shares(axes, both, categories) if categories else _draw_densities(axes, both, column)
        axes.set_title(name, fontsize=7)
    panels[0].legend(fontsize=6)
    return figure


def _draw_shares(axes: Axes, both: Sequence[Tensor], categories: Sequence[str]) -> str:
    """Draw the shares of the most frequent categories in data and samples; return how many there are."""
    counts = both[0].long().bincount(minlength=len(categories))
    codes = counts.argsort(descending=True, stable=True)[: 2 * _MOST].sort().values.tolist()
    for side, (one, label, colour) in enumerate(zip(both, ("data", "samples"), (_DATA, _MODEL))):
        shares = [(one == code).double().mean().item() for code in codes]
        axes.bar(np.arange(len(shares)) + 0.4 * side - 0.2, shares, 0.4, color=colour, label=label)
    axes.set_xticks(range(len(codes)), [_label(categories[code]) for code in codes], rotation=90)
    return f", {len(codes)} of {len(categories)} categories" * (len(codes) < len(categories))


def _draw_densities(axes: Axes, both: Sequence[Tensor], column: Column | None) -> str:
    """Draw histograms of the numbers in data and samples; return what is not drawn as it is."""
    bins: Any = 20
    values, said = torch.cat([*both]), ""
    low, high = (values.min().item(), values.max().item()) if len(values) else (0.0, 1.0)
    lengths = [len(one) for one in both]
    if (cut := _cut(both[0])) is not None and any(one <= cut for one in both[1].tolist()):
        said = f", {(both[0] <= cut).double().mean():.0%} of the data"
        both, high = [one[one <= cut] for one in both], cut
    # Between large values whose differences are small there are too few floats for bins and bars.
    if is_narrow := (high - low or 1.0) < 1000 * np.spacing(max(abs(low), abs(high))):
        both, said = [one - low for one in both], f"{said}, less {low:.17g}"
    # Of larger numbers float32 holds no fractions.
    if is_whole := len(values) > 0 and bool(((values == values.round()) & (values.abs() < 2**24)).all()):
        width = math.ceil((high - low + 1) / 20)
        bins = np.arange(low - 0.5, high + 0.5 + width, width)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    weights = [[1 / length] * len(one) for one, length in zip(both, lengths)] if is_whole else None
    style: Any = {"color": [_DATA, _MODEL], "label": ["data", "samples"], "density": not is_whole}
    axes.hist([one.tolist() for one in both], bins, weights=weights, **style)
    axes.yaxis.set_major_formatter("{x:g}")  # without a power of ten beside the title
    if column is not None and not is_narrow:
        axes.locator_params(axis="x", nbins=4)
        axes.xaxis.set_major_formatter(partial(_tick, column))
    return said


def _cut(x: Tensor) -> float | None:
    """Return the value above which few data take most of the range, so that nearly all others would be in one bar."""
    if not len(x):
        return None
    low, cut, high = np.quantile(x, (0, _SHOWN, 1)).tolist()
    return cut if 0 < cut - low < _TAIL * (high - low) else None


def _label(text: str, most: int = 20) -> str:
    """Return the name of a column or a category for an axis: an axis writes its labels anew while it is drawn."""
    return drawable(one_line(text if len(text) <= most else f"{text[: most - 3]}..."))


def _tick(column: Column, value: float, _: int | None) -> str:
    """Return the text of a value of a column on an axis."""
    return column.text(value, is_given=True) if column.date_format else f"{column.origin + value:.9g}{column.suffix}"
