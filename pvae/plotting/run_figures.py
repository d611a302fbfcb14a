"""The three figures that a training draws into its run folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from matplotlib.figure import Figure
from torch import Tensor

from pvae.core.files import is_temporary
from pvae.plotting.figures import loss_figure, reconstruction_figure, sample_figure, write_figure
from pvae.plotting.value_figures import reconstructed_values_figure, sampled_values_figure
from pvae.runs.run import Run

__all__ = ["save_figures"]


def save_figures(
    run: Run, images: Tensor, reconstructions: Tensor, samples: Tensor, before_each: Callable[[], None] = lambda: None
) -> Path:
    """Draw the three figures of a run into its folder.

    Args:
        run: the run, with its metrics.
        images: test images (B, C, H, W), or other test data.
        reconstructions: reconstructions of `images`.
        samples: samples from the prior (S, C, H, W); empty for an autoencoder.
        before_each: called before each figure; it may raise.

    Returns:
        The folder of the figures.
    """
    folder, title = run.figures(), run.title
    for leftover in filter(is_temporary, folder.iterdir()):  # of a process that was killed
        leftover.unlink(missing_ok=True)
    figures: dict[str, Callable[[], Figure | None]] = {
        "reconstructions": lambda: reconstruction_figure(images, reconstructions, title),
        "samples": lambda: sample_figure(samples, title) if len(samples) else None,
        "losses": lambda: loss_figure(run.metrics(), title),
    }
    if not run.data.is_images:
        data, columns = run.dataset().test[:1000], run.data.columns
        figures["reconstructions"] = lambda: reconstructed_values_figure(images, reconstructions, title, data, columns)
        figures["samples"] = lambda: sampled_values_figure(data, samples, title, columns) if len(samples) else None
    for name, draw in figures.items():
        before_each()
        if (figure := draw()) is not None:
            write_figure(folder / f"{name}.png", figure)
    return folder
