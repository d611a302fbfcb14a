"""The pictures in a run folder: reconstructions, samples and curves, each saying what was trained on what."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.distributions import Normal

from pvae.core.files import is_temporary, write_whole
from pvae.evaluation.attribute_probe import Response
from pvae.plotting.axes import (
    add_title,
    against_particles,
    curves,
    histograms,
    image_figure,
    lines,
    plain_text,
    scatter,
    show_images,
)
from pvae.runs.metrics import Metrics
from pvae.runs.run import Run

if TYPE_CHECKING:
    from pvae.evaluation.estimators import Measurement

__all__ = [
    "band_figure",
    "comparison_figure",
    "figures_are_drawn",
    "histogram_figure",
    "loss_figure",
    "probe_figure",
    "reconstruction_figure",
    "row_figure",
    "sample_figure",
    "save_figures",
    "scatter_figure",
    "write_figure",
]

_CURVES = {
    "loss": "loss, what is minimised",
    "distortion": "distortion, -E_q log p(x | z)",
    "rate": "rate, KL(q || p)",
}


def reconstruction_figure(images: Tensor, reconstructions: Tensor, title: str) -> Figure:
    """Return images (B, C, H, W) in a row above their reconstructions."""
    both = torch.cat([images, reconstructions]).cpu().numpy()
    return image_figure(both, len(images), title, ("test image", "mean of p(x | z),\nz ~ q(z | x)"))


def sample_figure(samples: Tensor, title: str) -> Figure:
    """Return images of the prior (S, C, H, W), eight in a row."""
    return image_figure(samples.cpu().numpy(), 8, f"{title}\nmean of p(x | z), z ~ p(z)")


def loss_figure(rows: Sequence[Metrics], title: str) -> Figure:
    """Return loss, distortion and rate against the epoch, training and test in each."""
    figure = Figure(figsize=(10.5, 3.4), dpi=120, layout="constrained")
    for axes, (name, label) in zip(figure.subplots(1, 3), _CURVES.items()):
        series = {}
        for split in ("train", "test"):
            mine = [row for row in rows if row.split == split]
            series[split] = ([row.epoch for row in mine], [getattr(row, name) for row in mine])
        curves(axes, series, label, "nats per datum")
    add_title(figure, title)
    return figure


def row_figure(
    images: Tensor, num_columns: int, title: str, row_labels: Sequence[str] = (), column_labels: Sequence[str] = ()
) -> Figure:
    """Return images (N, C, H, W) in rows, each row and column with a label."""
    return image_figure(images.cpu().numpy(), num_columns, title, row_labels, column_labels)


def scatter_figure(splits: Mapping[str, tuple[Tensor, Tensor | None]], names: Sequence[str], title: str) -> Figure:
    """Return the codes of each split side by side, coloured by class.

    Args:
        splits: what stands over the axes, to codes (N, 2) and classes (N,) or None.
        names: of the classes.
        title: above the figure.
    """
    figure = Figure(figsize=(5.5 * len(splits) + 1.2, 5.6), dpi=120, layout="constrained")
    for axes, (name, (codes, labels)) in zip(figure.subplots(1, len(splits), squeeze=False)[0], splits.items()):
        scatter(axes, codes.cpu().numpy(), None if labels is None else labels.numpy(), names, name)
    if any(labels is not None for _, labels in splits.values()):
        handles, _ = axes.get_legend_handles_labels()
        entries, families = plain_text(
            name if name.startswith(str(index)) else f"{index}: {name}" for index, name in enumerate(names)
        )
        font = {"family": families, "size": 8}
        legend = figure.legend(handles, entries, loc="outside right center", frameon=False, prop=font, markerscale=5)
        for handle in legend.legend_handles:
            if handle is not None:
                handle.set_alpha(1)
    add_title(figure, title)
    return figure


def histogram_figure(codes: Tensor, title: str) -> Figure:
    """Return a histogram of each latent dimension of codes (N, L), the first 100, against N(0, 1)."""
    shown = codes[:, :100]
    num_rows = -(-shown.shape[1] // 10)
    figure = Figure(
        figsize=(max(1.1 * min(shown.shape[1], 10), 7.0), 1.0 * num_rows + 0.8), dpi=120, layout="constrained"
    )
    x = torch.linspace(-4, 4, 100)
    histograms(figure, shown.cpu().numpy(), torch.stack([x, Normal(0.0, 1.0).log_prob(x).exp()]).numpy())
    add_title(figure, f"{title}\neach latent dimension of z ~ q(z | x) over the test images, and N(0, 1)")
    return figure


def probe_figure(responses: Sequence[Response], title: str) -> Figure:
    """Return a probe's log-odds of each attribute against alpha."""
    figure = Figure(figsize=(7.0, 4.6), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    series = {
        f"{one.attribute} (probe's balanced accuracy {one.balanced_accuracy:.3f})": (one.log_odds, one.stderr)
        for one in responses
    }
    lines(axes, responses[0].alphas, series)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_xlabel("alpha, of z + alpha v")
    axes.set_ylabel("log-odds of the attribute, to a probe trained on real images")
    add_title(figure, f"{title}\nmean over test images of what a probe sees in the mean of p(x | z + alpha v)")
    return figure


def band_figure(bands: Mapping[str, tuple[Tensor, Tensor]], num_columns: int, title: str) -> Figure:
    """Return a band of two sets of images for each name, side by side.

    Args:
        bands: what stands over a band, to its images on the left and on the right, (N, C, H, W) in [0, 1] each;
            either may be empty.
        num_columns: images in a row.
        title: above the figure.
    """
    figure = Figure(figsize=(1.1 * num_columns + 1.2, 1.6 * len(bands) + 0.6), dpi=120, layout="constrained")
    for band, (name, sides) in zip(figure.subfigures(len(bands), squeeze=False)[:, 0], bands.items()):
        (text,), families = plain_text([name])
        band.suptitle(text, fontsize=8, x=0.01, ha="left", family=families)
        for axes, images in zip(band.subplots(1, 2), sides):
            axes.set_axis_off()
            if len(images):
                show_images(axes, images.cpu().numpy(), num_columns)
            else:
                axes.text(0.5, 0.5, "none: there is no prior to draw from", ha="center", fontsize=8)
    add_title(figure, title)
    return figure


def comparison_figure(measurements: Sequence[Measurement], title: str) -> Figure:
    """Return, for the last stage, bias, encoder's and decoder's signal-to-noise against the number of particles."""
    last = [one for one in measurements if one.stage == measurements[-1].stage]
    figure = Figure(figsize=(12.5, 4.4), dpi=120, layout="constrained")
    panels: dict[str, Callable[[Measurement], float]] = {
        "log p(x) - bound, nats per datum": lambda one: max(-one.bias, 0.0),
        "encoder's gradient, signal / noise": lambda one: one.encoder_gradient.signal_to_noise,
        "decoder's gradient, signal / noise": lambda one: one.decoder_gradient.signal_to_noise,
    }
    names = list(dict.fromkeys(one.estimator for one in last))
    for axes, (label, value) in zip(figure.subplots(1, 3), panels.items()):
        series = {name: [(one.particles, value(one)) for one in last if one.estimator == name] for name in names}
        against_particles(axes, series, label)
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", frameon=False, fontsize=8)
    add_title(figure, f"{title}, {last[0].stage}: the same weights, images and noise for all")
    return figure


def save_figures(
    run: Run,
    images: Tensor,
    reconstructions: Tensor,
    samples: Tensor,
    between: Callable[[], None] = lambda: None,
) -> Path:
    """Draw the three figures of a run into its folder.

    Args:
        run: the run, with its metrics.
        images: test images (B, C, H, W).
        reconstructions: theirs.
        samples: images of the prior (S, C, H, W); none of an autoencoder.
        between: called before each figure; it may raise.

    Returns:
        The folder of the figures.
    """
    folder = run.figures()
    title = run.title
    for leftover in filter(is_temporary, folder.iterdir()):  # of a process that was killed
        leftover.unlink(missing_ok=True)
    figures: dict[str, Callable[[], Figure]] = {
        "reconstructions.png": lambda: reconstruction_figure(images, reconstructions, title),
        "samples.png": lambda: sample_figure(samples, title),
        "losses.png": lambda: loss_figure(run.metrics(), title),
    }
    for name, draw in figures.items():
        if name == "samples.png" and not len(samples):
            continue
        between()
        write_figure(folder / name, draw())
    return folder


def write_figure(path: Path, figure: Figure) -> None:
    """Write a figure as a PNG that says who drew it, whole or not at all; a link of that name is replaced."""
    content = BytesIO()
    figure.savefig(content, format="png", metadata={"Software": "pvae"})  # whatever matplotlib's default format is
    write_whole(path, content.getvalue())


def figures_are_drawn(run: Run) -> bool:
    """Return whether the last figure that `save_figures` draws is there."""
    return (run.path / "figures" / "losses.png").exists()
