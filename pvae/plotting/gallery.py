"""Runs side by side: what one sheet shows of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from matplotlib.figure import Figure
from torch import Tensor

from pvae.config.presets import SYSTEMS
from pvae.core.random_state import seeded
from pvae.evaluation.latent_space import reconstruct, sample
from pvae.evaluation.table import Row, groups, row_of
from pvae.evaluation.trained_run import TrainedRun
from pvae.plotting import run_figures

__all__ = ["Entry", "code_figures", "entry_of", "in_order", "one_of_each", "sheet_figure"]

_SHOWN = 8


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What a sheet keeps of a run, small enough to keep many.

    Args:
        row: its figures.
        title: system and test bound.
        images: test images in [0, 1].
        reconstructions: theirs.
        samples: images of the prior; none of an autoencoder.
        codes: means of q(z | x) of the test images (M, 2); None with more latents than two.
        labels: their classes (M,), or None.
        label_names: what each class is called.
    """

    row: Row
    title: str
    images: Tensor
    reconstructions: Tensor
    samples: Tensor
    codes: Tensor | None
    labels: Tensor | None
    label_names: tuple[str, ...]


def entry_of(subject: TrainedRun) -> Entry:
    """Return what a sheet keeps of a run.

    Raises:
        InputError: the run has not finished an epoch.
    """
    row = row_of(subject.run, subject.report())
    x = subject.pixels(subject.test[:_SHOWN])
    with seeded(subject.run.config.seed, torch.device("cpu")):
        samples = sample(subject.vae, 2 * _SHOWN) if subject.vae.has_density else x[:0]
        reconstructions = reconstruct(subject.vae, x)
    tests = [metrics for metrics in subject.run.metrics() if metrics.split == "test"]
    return Entry(
        row=row,
        title=f"{row.system} --elbo {row.estimator}: {tests[-1]}",
        images=subject.shown(x),
        reconstructions=subject.shown(reconstructions),
        samples=subject.shown(samples),
        codes=subject.test_codes if subject.is_plane else None,
        labels=subject.classes[1],
        label_names=subject.data.label_names,
    )


def in_order(entries: Sequence[Entry]) -> list[Entry]:
    """Return the entries in the order of the published systems, those of a system by their seeds, others after them."""
    names = list(SYSTEMS)

    def place(entry: Entry) -> tuple[int, str, str, int]:
        name = entry.row.system.split()[0]
        return (
            names.index(name) if name in names else len(names),
            entry.row.system,
            entry.row.estimator,
            entry.row.seed,
        )

    return sorted(entries, key=place)


def one_of_each(entries: Sequence[Entry]) -> list[Entry]:
    """Return the first entry of each group that differs in the seed alone."""
    firsts = {group[0].run for group in groups(entry.row for entry in entries)}
    return [entry for entry in entries if entry.row.run in firsts]


def sheet_figure(entries: Sequence[Entry]) -> Figure:
    """Return a band for each run: test images above their reconstructions, and images of the prior."""
    bands = {
        entry.title: (torch.cat([entry.images, entry.reconstructions]), entry.samples) for entry in one_of_each(entries)
    }
    title = "left: test images above the mean of p(x | z), z ~ q(z | x); right: the mean of p(x | z), z ~ p(z)"
    if len(bands) < len(entries):
        title += "\nof runs that differ in their seed alone, the first"
    return run_figures.band_figure(bands, _SHOWN, title)


def code_figures(entries: Sequence[Entry]) -> dict[str, Figure]:
    """Return, for each data set, the codes of the runs with two latents beside each other."""
    panels: dict[str, dict[str, tuple[Tensor, Tensor | None]]] = {}
    names = {}
    for entry in one_of_each(entries):
        if entry.codes is not None:
            panels.setdefault(entry.row.data, {})[entry.title.replace(": ", "\n")] = entry.codes, entry.labels
            names[entry.row.data] = entry.label_names
    title = "means of q(z | x) of the test images"
    return {data: run_figures.scatter_figure(panels[data], names[data], f"{data}: {title}") for data in panels}
