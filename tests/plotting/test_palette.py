"""The ten colours of pictures and of the page can be told apart, also by people without red or green cones."""

from __future__ import annotations

import re
from importlib.resources import files

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from pvae.plotting import figures


def in_lab(colours, seen_by=None):
    """CIE Lab (N, 3) under D65 of sRGB colours, as people see them whose cones are given by a matrix in linear RGB."""
    encoded = np.array([to_rgb(one) for one in colours])
    linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    seen = linear if seen_by is None else (linear @ np.array(seen_by).T).clip(0, 1)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    ratio = seen @ to_xyz.T / to_xyz.sum(1)
    x, y, z = np.where(ratio > (6 / 29) ** 3, np.cbrt(ratio), ratio / (3 * (6 / 29) ** 2) + 4 / 29).T
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], 1)


SEEN_BY = {  # Machado, Oliveira and Fernandes, 2009, doi:10.1109/TVCG.2009.113, severity 1
    "all cones": None,
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
}


@pytest.mark.parametrize("cones", SEEN_BY)
@pytest.mark.parametrize("place", ["light", "dark"])
def test_ten_colours_can_be_told_apart(place, cones):
    """Any two of pictures and of the page, and each and its background, are at least 25 apart in CIE Lab."""
    script = files("pvae.explore").joinpath("common.js").read_text("utf-8")
    of_page = re.findall("#[0-9A-F]{6}", re.search(rf"{place}: \[(.*)\]", script)[1])
    assert place == "dark" or tuple(of_page) == figures.PALETTE
    assert len(of_page) == 10
    lab = in_lab([*of_page, {"light": "#FFFFFF", "dark": "#14181D"}[place]], SEEN_BY[cones])
    distances = np.linalg.norm(lab[:, None] - lab, axis=-1) + 1000 * np.eye(11)
    assert distances.min() >= 25
