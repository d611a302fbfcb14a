"""The pictures of a report: where log p(x) - ELBO is lost, and whether q(z | x) is calibrated."""

from __future__ import annotations

import torch
from matplotlib.figure import Figure

from pvae.evaluation.report import Coverage, Report
from pvae.plotting import figures
from pvae.runs.run import Run
from pvae.trained import codes

__all__ = ["calibration", "gaps"]


def gaps(run: Run, report: Report) -> Figure:
    """Return how log p(x) - ELBO falls into parts, of test and training data, above the test images that lose most."""
    both = {"test data": report.gaps, "training data": report.train_gaps}
    found = {f"{part.num_images:,} {name}": part for name, part in both.items() if part and part.rest}
    parts = {
        "amortisation": "by the encoder: L[q*] - L[q]",
        "correlations": "by independence: L of full covariance - L[q*]",
        "shape": "by the shape: L of a flow - L of full covariance",
        "rest": "by the rest: log p(x) - L of a flow",
    }
    bars = {name: {label: getattr(one, part) for part, label in parts.items()} for name, one in found.items()}
    images, lost = torch.empty(0), list[str]()
    if run.data.is_images and report.gaps:
        places, nats = zip(*report.gaps.largest)
        (x,) = codes.run_batch(run, "test").rows(torch.tensor(places)).x.split(len(places))
        images = run.preparation.shown(x)
        lost = [f"{one:.1f}" for one in nats]
    title = f"{run.title.splitlines()[0]}\nfrom the ELBO L[q] to log p(x); q* is the best Normal for each datum alone"
    return figures.gaps_figure(bars, images, lost, title)


def calibration(run: Run, coverage: Coverage) -> Figure:
    """Return how often z is below quantiles of q(z | x), for each latent, and in regions of its highest density."""
    title = (
        f"{run.title.splitlines()[0]}\n{coverage.num_images:,} data drawn from the VAE; grey: the band that holds "
        "all points at 95 % if q(z | x) is p(z | x)"
    )
    return figures.calibration_figure(coverage.latents, coverage.regions, coverage.band, title)
