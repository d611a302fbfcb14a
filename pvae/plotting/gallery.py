"""Figures of several runs side by side: a sheet of images, and scatter plots of codes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from matplotlib.figure import Figure
from torch import Tensor

from pvae.config.presets import SYSTEMS
from pvae.evaluation.table import Row, row_of
from pvae.plotting import run_figures
from pvae.plotting.run_figures import ScatterData
from pvae.runs.run import Run
from pvae.trained import codes
from pvae.trained.latent_space import reconstruct, sample

__all__ = ["Entry", "code_figures", "entry_of", "in_order", "sheet_figure"]

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

    row: Row
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
    row, vae, shown = row_of(run, codes.latent_report(run)), run.vae(), run.preparation.shown
    x = codes.examples(run, _SHOWN)
    with run.seeded():
        samples = sample(vae, 2 * _SHOWN) if vae.has_density else x[:0]
        reconstructions = reconstruct(vae, x)
    test = run.test_metrics()
    bits = run.bits(test) if test is not None else ""
    elbo = f" --elbo {row.estimator}" if vae.has_density else ""
    plane = None
    if codes.is_plane(run):
        plane = ScatterData(
            codes.test_codes(run), codes.classes(run)[1], vae.has_density and codes.has_normal_prior(run)
        )
    return Entry(
        row=row,
        title=f"{row.system}{elbo} on {row.data}, epoch {row.progress}: {test}{bits}",
        images=shown(x),
        reconstructions=shown(reconstructions),
        samples=shown(samples),
        codes=plane,
        label_names=run.dataset().label_names,
    )


def in_order(entries: Sequence[Entry]) -> list[Entry]:
    """Return the entries in the order of the published systems, then by seed; other systems come last."""
    order = {name: place for place, name in enumerate(SYSTEMS)}

    def place(entry: Entry) -> tuple[int, str, str, int]:
        row = entry.row
        return order.get(row.system.split()[0], len(order)), row.system, row.estimator, row.seed

    return sorted(entries, key=place)


def _one_of_each(entries: Sequence[Entry]) -> list[Entry]:
    """Return the first entry of each configuration; its other entries differ only in their seed."""
    firsts = {entry.row.configuration: entry for entry in reversed(entries)}
    return [entry for entry in entries if firsts[entry.row.configuration] is entry]


def sheet_figure(entries: Sequence[Entry]) -> Figure:
    """Return a row for each configuration: test images above their reconstructions, and samples from the prior."""
    shown = _one_of_each(entries)
    bands = {entry.title: (torch.cat([entry.images, entry.reconstructions]), entry.samples) for entry in shown}
    title = "left: test images above the mean of p(x | z), z ~ q(z | x); right: the mean of p(x | z), z ~ p(z)"
    if len(bands) < len(entries):
        title += "\nthe first of the runs that differ only in their seed"
    return run_figures.band_figure(bands, _SHOWN, title)


def code_figures(entries: Sequence[Entry]) -> dict[str, Figure]:
    """Return a figure for each data set: the codes of all runs with two latents, side by side."""
    panels: dict[str, dict[str, ScatterData]] = {}
    names = {}
    for entry in _one_of_each(entries):
        if entry.codes is not None:
            title = entry.title.replace(f" on {entry.row.data}, ", "\n")
            panels.setdefault(entry.row.data, {})[title] = entry.codes
            names[entry.row.data] = entry.label_names
    title = "means of q(z | x) of the test images"
    return {data: run_figures.scatter_figure(panels[data], names[data], f"{data}: {title}") for data in panels}
