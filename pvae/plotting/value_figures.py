"""Matplotlib figures of data that are no images: vectors, tables and series."""

from __future__ import annotations

import math
from collections.abc import Sequence
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


def reconstructed_values_figure(
    data: Tensor, reconstructions: Tensor, title: str, test: Tensor, columns: Sequence[Column] = ()
) -> Figure:
    """Return a panel for each datum with its reconstruction: bars of a vector, lines of a series.

    Where the columns of vectors have scales that differ by a factor of 20 or more, each is standardised.

    Args:
        data: vectors (B, D), or series (B, T, D), of which the first values at each time are drawn.
        reconstructions: of the same shape.
        title: of the figure.
        test: all test data, by which columns are standardised.
        columns: of a table, whose names are shown if they are few.

    Raises:
        InputError: the data are neither vectors nor series.
    """
    _check_shape(data)
    mean, units = test.float().nanmean(0), "test data"
    std = (test - mean).square().nanmean(0).sqrt()
    if data.dim() == 2 and std.max() > 20 * std.min():
        std, units = torch.where(std > 0, std, torch.ones_like(std)), "test data, each column standardised"
        data, reconstructions = ((one - mean) / std for one in (data, reconstructions))
    figure, panels = _panels(f"{title}\n{units}, and means of p(x | z), z ~ q(z | x)", len(data))
    for axes, x, mean in zip(panels, data, reconstructions):
        if data.dim() == 2:
            axes.bar(range(len(x)), x.tolist(), color=_DATA, alpha=0.6, label="x")
            axes.plot(range(len(x)), mean.tolist(), ".", color=_MODEL, label="reconstruction")
            if 0 < len(columns) <= 2 * _MOST:
                axes.set_xticks(range(len(x)), [_label(column.name) for column in columns], rotation=90)
        else:
            _draw_series(axes, x, "-", "x")
            _draw_series(axes, mean, "--", "reconstruction")
    panels[0].legend(fontsize=6)
    return figure


def _check_shape(data: Tensor) -> None:
    if data.dim() not in (2, 3):
        shape = tuple(data.shape[1:])
        raise InputError(f"this picture shows images, vectors or series, and not data of the shape {shape}")


def _panels(title: str, count: int, **options: Any) -> tuple[Figure, list[Axes]]:
    """Return a figure and its panels, four in a row; the options are those of `Figure.subplots`."""
    num_rows = -(-count // 4)
    figure = titled_figure(title, 10.0, 1.8 * num_rows + 0.6)
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


def sampled_values_figure(data: Tensor, samples: Tensor, title: str, columns: Sequence[Column] = ()) -> Figure:
    """Return the marginals of vectors and of samples from p(x | z), z ~ p(z), or four series above four samples.

    There is a histogram for each of the first columns: of whole numbers their shares, of others the density. Of a
    column of categories, bars are the shares of the first ones.

    Args:
        data: vectors (N, D), or series (N, T, D), of which the first values at each time are drawn.
        samples: (S, D) or (S, T, D).
        title: of the figure.
        columns: of a table.

    Raises:
        InputError: the data are neither vectors nor series.
    """
    _check_shape(data)
    if data.dim() == 3:
        figure, panels = _panels(f"{title}\ntest data above samples from p(x | z), z ~ p(z)", 8, sharey=True)
        for axes, x in [*zip(panels[:4], data), *zip(panels[4:], samples)]:
            _draw_series(axes, x, "-", "")
        return figure
    text = f"{title}\nmarginals of data and of samples from p(x | z), z ~ p(z)"
    figure, panels = _panels(text, min(_MOST, data.shape[1]))
    for number, axes in enumerate(panels):
        both = [one[:, number][~one[:, number].isnan()] for one in (data, samples)]
        categories = columns[number].categories[: 2 * _MOST] if columns else ()
        if categories:
            for side, (one, label, colour) in enumerate(zip(both, ("data", "samples"), (_DATA, _MODEL))):
                shares = [(one == code).double().mean().item() for code in range(len(categories))]
                places = np.arange(len(shares)) + 0.4 * side - 0.2
                axes.bar(places, shares, 0.4, color=colour, label=label)
            axes.set_xticks(range(len(categories)), [_label(text) for text in categories], rotation=90)
        else:
            values = torch.cat(both)
            bins: Any = 20
            # Of larger numbers float32 holds no fractions.
            if is_whole := len(values) > 0 and bool(((values == values.round()) & (values.abs() < 2**24)).all()):
                low, high = values.min().item(), values.max().item()
                width = math.ceil((high - low + 1) / 20)
                bins = np.arange(low - 0.5, high + 0.5 + width, width)
                axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            weights = [[1 / len(one)] * len(one) for one in both] if is_whole else None
            style: Any = {"color": [_DATA, _MODEL], "label": ["data", "samples"], "density": not is_whole}
            axes.hist([one.tolist() for one in both], bins, weights=weights, **style)
        axes.set_title(_label(columns[number].name) if columns else f"x_{number + 1}", fontsize=7)
    panels[0].legend(fontsize=6)
    return figure


def _label(text: str) -> str:
    """Return the name of a column or a category for an axis: an axis writes its labels anew while it is drawn."""
    return drawable(one_line(text if len(text) <= 20 else f"{text[:17]}..."))
