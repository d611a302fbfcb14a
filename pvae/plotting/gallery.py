"""Figures of several runs side by side: a sheet of images, and scatter plots of codes."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any, NamedTuple

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from pvae.evaluation.runs_table import progress_of, row_of
from pvae.plotting import figures
from pvae.plotting.figures import ScatterData
from pvae.runs.run import Run
from pvae.trained import codes
from pvae.trained.latent_space import reconstruct, sample

__all__ = ["Entry", "code_figures", "entry_of", "rate_distortion_figure", "sheet_figure"]

_SHOWN = 8


class Entry(NamedTuple):
    """The part of a trained run that the figures of several runs show. It does not hold the run's data or VAE.

    Args:
        row: the row of the run in the table.
        title: system, data, epochs and test bound.
        images: eight test images, then their reconstructions, in [0, 1]; empty for other data than images.
        samples: samples from the prior; empty for an autoencoder and for other data.
        codes: means of q(z | x) of the test data, (M, 2), and their classes; None unless there are two latents.
        label_names: names of the classes.
    """

    row: dict[str, Any]
    title: str
    images: Tensor
    samples: Tensor
    codes: ScatterData | None
    label_names: tuple[str, ...]


def entry_of(run: Run) -> Entry:
    """Return the entry of a run.

    Raises:
        InputError: the run has not finished an epoch.
    """
    row, vae, test = row_of(run, codes.latent_report(run)), run.vae(), run.test_metrics()
    assert test is not None  # or `row_of` would have raised
    images = samples = torch.empty(0)
    if run.data.is_images:
        batch, shown = codes.examples(run, _SHOWN), run.preparation.shown
        labels = run.dataset().shown_labels if run.is_given_labels else None
        with run.seeded():
            samples = shown(sample(vae, 2 * _SHOWN, y=labels) if vae.has_density else batch.x[:0])
            images = shown(torch.cat([batch.x, reconstruct(vae, batch)]))
    elbo = f" --elbo {row['estimator']}" if vae.has_density else ""
    title = f"{row['system']}{elbo} on {row['data']}, epoch {progress_of(row)}: {test}{run.bits(test)}"
    plane = None
    if codes.is_plane(run):
        has_prior = vae.has_density and codes.has_normal_prior(run)
        plane = ScatterData(codes.codes_of(run, "test"), codes.classes(run)[1], has_prior)
    return Entry(row, title, images, samples, plane, run.dataset().label_names)


def sheet_figure(entries: Sequence[Entry]) -> Figure:
    """Return a row for each entry of images: test images above their reconstructions, and samples from the prior."""
    title = "left: test images above the mean of p(x | z), z ~ q(z | x); right: the mean of p(x | z), z ~ p(z)"
    bands = {entry.title: (entry.images, entry.samples) for entry in entries if len(entry.images)}
    return figures.band_figure(bands, _SHOWN, f"{title}\nof several seeds the first")


def code_figures(entries: Sequence[Entry]) -> dict[str, Figure]:
    """Return a figure for each data set: the codes of all entries with two latents, side by side."""
    names = {entry.row["data"]: entry.label_names for entry in entries if entry.codes is not None}
    found = {}
    for data in names:
        splits = {
            "\n".join(textwrap.fill(line, 44) for line in entry.title.split(f" on {data}, ")): entry.codes
            for entry in entries
            if entry.codes is not None and entry.row["data"] == data
        }
        found[data] = figures.scatter_figure(splits, names[data], f"{data}: means of q(z | x) of the test data")
    return found


def rate_distortion_figure(table: pd.DataFrame, title: str) -> Figure:
    """Return the rate-distortion curve of a sweep over beta: a point for each beta, the mean over its seeds.

    The axes have one scale, so points of equal ELBO, where distortion + rate = -ELBO, lie on lines at 45 degrees; that
    of the best mean is drawn. Bars are standard errors over seeds; of single seeds vertical, of the ELBO over data.

    Args:
        table: of `runs_table`; the runs differ in beta and seed alone.
        title: title of the figure.

    Reference:
        Alemi et al., arXiv:1711.00464, figure 1.
    """
    quantities = ["rate", "distortion", "elbo", "elbo_stderr"]
    runs = table.astype(dict.fromkeys(quantities, float)).groupby("beta")[quantities]
    means, errors = runs.mean(), runs.sem()  # NaN of one seed, for which no bar is drawn
    said = "standard errors over seeds"
    if runs.size().max() == 1:
        errors["distortion"], said = means["elbo_stderr"], "standard errors of the ELBO over data"
    figure, best = figures.titled_figure(title, figures.WIDTH, figures.WIDTH), -means["elbo"].max()
    axes, (x, y) = figure.subplots(), (means["rate"], means["distortion"])
    bars: Any = {"color": figures.PALETTE[0], "markersize": 5, "capsize": 3, "label": f"beta; bars: {said}"}
    axes.errorbar(x, y, errors["distortion"], errors["rate"], fmt="o-", **bars)
    for beta, place in zip(means.index, zip(x, y)):
        axes.annotate(f"{beta:g}", place, (6, 6), textcoords="offset points")
    side = 1.25 * max(x.max() - x.min(), y.max() - y.min() + 2 * errors["distortion"].max())
    left, bottom = max(0.0, (x.min() + x.max() - side) / 2), (y.min() + y.max() - side) / 2
    named = f"distortion + rate = {best:.2f}, the best -ELBO"
    axes.plot((left, left + side), (best - left, best - left - side), "k--", linewidth=1, label=named)
    axes.set(xlim=(left, left + side), ylim=(bottom, bottom + side), aspect="equal")
    axes.set(xlabel="rate, nats per datum", ylabel="distortion, nats per datum")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    return figure
