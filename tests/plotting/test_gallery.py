"""Figures of several runs."""

from __future__ import annotations

import numpy as np
import pandas as pd

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
