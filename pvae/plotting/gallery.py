"""Several runs side by side: a table of their results, a sheet of images, and scatter plots of codes."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from pvae.evaluation.runs_table import progress_of, row_of, runs_table, to_markdown, without_beta
from pvae.plotting import figures
from pvae.plotting.figures import ScatterData
from pvae.plotting.pictures import plane, reconstructed_images
from pvae.runs.run import Run
from pvae.trained import codes
from pvae.trained.latent_space import sample

_SHOWN = 8
_SHEET = """\
left: test images above the mean of p(x | z), z ~ q(z | x); right: the mean of p(x | z), z ~ p(z)
of several seeds the first"""


class Entry(NamedTuple):
    """The part of a trained run that the figures of several runs show. It does not hold the run's data or VAE.

    Args:
        row: the row of the run in the table.
        title: system, data, epochs and test bound.
        images: eight test images, then their reconstructions, in [0, 1]; empty for other data than images.
        samples: samples from the prior; empty for an autoencoder and for other data.
        codes: means of q(z | x) of the test data, (M, 2), and their classes; None unless there are two latents.
        label_names: names of the classes.
        sweep: what the runs of a sweep over beta have in common.
    """

    row: dict[str, Any]
    title: str
    images: Tensor
    samples: Tensor
    codes: ScatterData | None
    label_names: tuple[str, ...]
    sweep: Any


def entry_of(run: Run) -> Entry:
    """Return the entry of a run.

    Raises:
        InputError: the run has not finished an epoch.
    """
    row = row_of(run, codes.latent_report(run))
    vae = run.vae()
    data = run.dataset()
    images = torch.empty(0)
    samples = images
    if run.data.is_images:
        images = torch.cat(reconstructed_images(run, _SHOWN))
    if run.data.is_images and vae.has_density:
        labels = data.shown_labels if run.is_given_labels else None
        with run.seeded():
            samples = run.preparation.shown(sample(vae, 2 * _SHOWN, y=labels))
    system = row["system"]
    if vae.has_density:
        system += f" --elbo {row['estimator']}"
    test: Any = run.test_metrics()
    title = f"{system} on {row['data']}, epoch {progress_of(row)}: {test}{run.bits(test)}"
    sweep = (run.config.replace(seed=0, beta=1.0, source=""), run.data.sha256, run.has_own_vae)
    return Entry(row, title, images, samples, plane(run), data.label_names, sweep)


def side_by_side(entries: Sequence[Entry]) -> dict[str, str | Figure]:
    """Return the files of several runs by their names: the table, the sheet, the curve of a sweep over beta, the codes.

    Args:
        entries: of runs that differ in their configuration or seed. Of several seeds the first is drawn.
    """
    table = runs_table([entry.row for entry in entries])
    shown = [entries[place] for place in table.drop_duplicates("configuration").index]
    files: dict[str, str | Figure] = {
        "table.csv": table.to_csv(index=False, lineterminator="\n"),
        "table.md": to_markdown(table),
    }
    bands = {entry.title: (entry.images, entry.samples) for entry in shown if len(entry.images)}
    if bands:
        files["sheet.png"] = figures.band_figure(bands, _SHOWN, _SHEET)
    is_sweep = len({entry.sweep for entry in entries}) == 1 and table["beta"].nunique() > 1
    if is_sweep and table["elbo"].notna().all():
        title = f"{without_beta(table['system']).iloc[0]} on {table['data'].iloc[0]}"
        files["rate-distortion.png"] = rate_distortion_figure(table, title)
    for data, figure in code_figures(shown).items():
        files[f"codes-{re.sub('[^a-z0-9]+', '-', data.lower())}.png"] = figure
    return files


def code_figures(entries: Sequence[Entry]) -> dict[str, Figure]:
    """Return a figure for each data set: the codes of all entries with two latents, side by side."""
    splits: dict[str, dict[str, ScatterData]] = {}
    names = {}
    for entry in entries:
        if entry.codes is None:
            continue
        data = entry.row["data"]
        lines = [textwrap.fill(line, 44) for line in entry.title.split(f" on {data}, ")]
        splits.setdefault(data, {})["\n".join(lines)] = entry.codes
        names[data] = entry.label_names
    title = "means of q(z | x) of the test data"
    return {data: figures.scatter_figure(splits[data], names[data], f"{data}: {title}") for data in splits}


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
    means = runs.mean()
    errors = runs.sem()  # NaN of one seed, for which no bar is drawn
    said = "standard errors over seeds"
    if runs.size().max() == 1:
        errors["distortion"] = means["elbo_stderr"]
        said = "standard errors of the ELBO over data"
    x = means["rate"]
    y = means["distortion"]
    figure = figures.titled_figure(title, figures.WIDTH, figures.WIDTH)
    axes = figure.subplots()
    bars: Any = {"color": figures.PALETTE[0], "markersize": 5, "capsize": 3, "label": f"beta; bars: {said}"}
    axes.errorbar(x, y, errors["distortion"], errors["rate"], fmt="o-", **bars)
    for beta, place in zip(means.index, zip(x, y)):
        axes.annotate(f"{beta:g}", place, (6, 6), textcoords="offset points")
    best = -means["elbo"].max()
    ends = np.array([x.min(), x.max()])
    axes.plot(ends, best - ends, "k--", linewidth=1, label=f"distortion + rate = {best:.2f}, the best -ELBO")
    axes.margins(0.1)
    axes.set(aspect="equal", xlabel="rate, nats per datum", ylabel="distortion, nats per datum")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", frameon=False)
    return figure
