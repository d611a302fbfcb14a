"""Figures of several runs."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from pvae.plotting.gallery import rate_distortion_figure


def table_of(rows):
    keys = ("beta", "rate", "distortion", "elbo", "elbo_stderr")
    return pd.DataFrame([dict(zip(keys, (beta, r, d, -r - d, 1.5))) for beta, r, d in rows])


def test_the_rate_distortion_curve_has_means_and_errors_and_the_line_of_the_best_elbo():
    rows = [(0.5, 10.0, 90.0), (0.5, 12.0, 92.0), (4.0, 3.0, 97.0)]
    (axes,) = rate_distortion_figure(table_of(rows), "title").axes
    curve, line = axes.get_lines()[0], axes.get_lines()[-1]
    assert np.allclose(curve.get_xydata(), [(11, 91), (3, 97)])
    assert np.allclose(line.get_xydata().sum(1), 100), "the mean of beta 4, whose ELBO is -100, and not -102"
    (bars,) = axes.containers
    ends = bars[2][0].get_segments()[0][:, 0]
    assert np.allclose(ends, (10, 12)), "the standard error of 10 and 12, which is 1, to each side of their mean"


def test_lines_of_equal_elbo_are_at_45_degrees_and_bars_of_single_seeds_are_errors_over_data():
    """The bars are vertical, since the ELBO falls by what is added to the distortion."""
    figure = rate_distortion_figure(table_of([(0.5, 11.0, 91.0), (1.0, 8.0, 92.0), (4.0, 3.0, 97.0)]), "title")
    (axes,) = figure.axes
    figure.draw_without_rendering()
    (x, y), (right, lower) = axes.transData.transform(axes.get_lines()[-1].get_xydata())
    assert right - x == pytest.approx(y - lower)
    (bars,) = axes.containers
    _, vertical = bars[2]
    for segment, distortion in zip(vertical.get_segments(), (91, 92, 97)):
        assert np.allclose(segment[:, 1], (distortion - 1.5, distortion + 1.5))
    bottom, top = axes.get_ylim()
    assert axes.get_xlim()[0] >= 0, "there is no rate below 0"
    assert bottom < 89.5 < 98.5 < top
    assert "over data" in figure.legends[0].get_texts()[1].get_text()
