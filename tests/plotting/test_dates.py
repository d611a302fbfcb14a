"""Dates on the axes of small panels."""

from __future__ import annotations

import itertools
import warnings

import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg

from pvae.plotting.value_figures import sampled_values_figure
from pvae.tables.column import Column


@pytest.mark.parametrize("days", [0.12, 1.5, 6, 50, 150, 500, 700, 1100, 33_000])
def test_ticks_of_dates_do_not_overlap(days):
    x = torch.linspace(0, days, 400).double()[:, None].expand(-1, 3)
    columns = [Column(name, date_format="%Y-%m-%d %H:%M:%S", origin=18_640.0) for name in "abc"]
    figure = sampled_values_figure(x, x, "title", columns)
    canvas = FigureCanvasAgg(figure)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        canvas.draw()
    axes = figure.axes[1]
    low, high = axes.get_xlim()
    assert low <= 18_640 <= high
    ticks = [(place, text) for place, text in zip(axes.get_xticks(), axes.get_xticklabels()) if low <= place <= high]
    boxes = [text.get_window_extent() for _, text in ticks]
    assert len(boxes) > 1
    assert all(one.x1 < other.x0 for one, other in itertools.pairwise(boxes))
