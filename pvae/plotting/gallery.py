"""Figures of several runs side by side: a sheet of images, and scatter plots of codes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from pvae.core.errors import InputError
from pvae.evaluation.runs_table import progress_of, row_of
from pvae.plotting import figures
from pvae.plotting.figures import ScatterData
from pvae.runs.run import Run
from pvae.trained import codes
from pvae.trained.given import labels_to_sample
from pvae.trained.latent_space import reconstruct, sample

__all__ = ["Entry", "code_figures", "entry_of", "sheet_figure"]

_SHOWN = 8


@dataclass(frozen=True, kw_only=True)
class Entry:
    """The part of a trained run that the figures of several runs show. It does not hold the run's data or VAE.

    Args:
        row: the row of the run in the table.
        title: system, data, epochs and test bound.
        images: test images in [0, 1].
        reconstructions: reconstructions of `images`.
        samples: samples from the prior; empty for an autoencoder.
        codes: means of q(z | x) of the test images, (M, 2), and their classes; None unless there are two latents.
        label_names: names of the classes.
    """

    row: dict[str, Any]
    title: str
    images: Tensor
    reconstructions: Tensor
    samples: Tensor
    codes: ScatterData | None
    label_names: tuple[str, ...]


def entry_of(run: Run) -> Entry:
    """Return the entry of a run.

    Raises:
        InputError: the run has not finished an epoch.
    """
    if not run.data.is_images:
        raise InputError(f"this picture needs images, which {run.path} lacks")
    row, vae, shown = row_of(run, codes.latent_report(run)), run.vae(), run.preparation.shown
    batch = codes.examples(run, _SHOWN)
    with run.seeded():
        samples = sample(vae, 2 * _SHOWN, y=labels_to_sample(run)) if vae.has_density else batch.x[:0]
        reconstructions = reconstruct(vae, batch)
    test = run.test_metrics()
    assert test is not None  # or `row_of` would have raised
    elbo = f" --elbo {row['estimator']}" if vae.has_density else ""
    plane = None
    if codes.is_plane(run):
        has_prior = vae.has_density and codes.has_normal_prior(run)
        plane = ScatterData(codes.codes_of(run, "test"), codes.classes(run)[1], has_prior)
    return Entry(
        row=row,
        title=f"{row['system']}{elbo} on {row['data']}, epoch {progress_of(row)}: {test}{run.bits(test)}",
        images=shown(batch.x),
        reconstructions=shown(reconstructions),
        samples=shown(samples),
        codes=plane,
        label_names=run.dataset().label_names,
    )


def _one_of_each(entries: Sequence[Entry]) -> list[Entry]:
    """Return the first entry of each configuration; its other entries differ only in their seed."""
    firsts: dict[str, Entry] = {}
    for entry in entries:
        firsts.setdefault(entry.row["configuration"], entry)
    return list(firsts.values())


def sheet_figure(entries: Sequence[Entry]) -> Figure:
    """Return a row for each configuration: test images above their reconstructions, and samples from the prior."""
    bands = {
        entry.title: (torch.cat([entry.images, entry.reconstructions]), entry.samples)
        for entry in _one_of_each(entries)
    }
    title = "left: test images above the mean of p(x | z), z ~ q(z | x); right: the mean of p(x | z), z ~ p(z)"
    return figures.band_figure(bands, _SHOWN, f"{title}\nof several seeds the first")


def code_figures(entries: Sequence[Entry]) -> dict[str, Figure]:
    """Return a figure for each data set: the codes of all runs with two latents, side by side."""
    panels: dict[str, dict[str, ScatterData]] = {}
    names = {}
    for entry in _one_of_each(entries):
        if entry.codes is not None:
            data = entry.row["data"]
            title = entry.title.replace(f" on {data}, ", "\n")
            panels.setdefault(data, {})[title] = entry.codes
            names[data] = entry.label_names
    return {
        data: figures.scatter_figure(splits, names[data], f"{data}: means of q(z | x) of the test images")
        for data, splits in panels.items()
    }
