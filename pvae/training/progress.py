"""The lines that a training prints: what is trained, and the metrics of each epoch."""

from __future__ import annotations

from collections.abc import Sequence

from pvae.config.config import Config
from pvae.config.presets import system_title
from pvae.data.preparation import Preparation
from pvae.runs.metrics import Metrics, best_epoch
from pvae.runs.run import Run

__all__ = ["best_line", "epoch_line", "start_lines"]


def start_lines(run: Run, device: str, epoch: int) -> str:
    """Return what is trained on what data, and the folder it is written to."""
    config, data = run.config, run.data
    folder = f" (found in {data.folder})" if data.folder else ""
    rate = "" if run.has_own_vae else _estimated_rate(config)
    lines = [
        f"data: {data.title}{folder}, {_values(run)}",
        f"training {system_title(config)} by SVI with --elbo {config.elbo}{rate}, "
        f"epochs {epoch + 1} to {config.epochs}, on {device}, into {run.path}",
    ]
    if config.warm_up > config.epochs:
        share = f"{config.epochs / config.warm_up:.0%}"
        lines.append(f"the warm-up takes {config.warm_up} epochs: the weight of the rate rises to {share} of --beta")
    return "\n".join(lines)


def epoch_line(run: Run, rows: Sequence[Metrics]) -> str:
    """Return the metrics of one epoch.

    The loss is included where it differs from the negated bound (beta, importance weights).

    Args:
        run: the run.
        rows: metrics of the training images, of the validation images if there are any, and of the test images.
    """
    test, epochs = rows[-1], run.config.epochs
    terms = f"distortion {test.distortion:.2f}, rate {test.rate:.2f}"
    if abs(test.loss - test.distortion - test.rate) > max(0.005, 1e-6 * abs(test.loss)):  # beyond rounding
        terms += f", loss {test.loss:.2f}"
    if test.accuracy is not None:
        terms += f", {test.accuracy:.2%} of the labels found"
    seconds, number = sum(row.seconds for row in rows), f"{test.epoch:{len(str(epochs))}}/{epochs}"
    return f"epoch {number}  {'  '.join(map(str, rows))} ({terms}{run.bits(test)})  {seconds:.1f} s"


def best_line(rows: Sequence[Metrics], epochs: int) -> str:
    """Return which epoch was the best on the validation data, and why the training ended; "" without such images.

    Args:
        rows: metrics of all epochs.
        epochs: number of the planned epochs.
    """
    best, last = best_epoch(rows), rows[-1].epoch
    if best is None:
        return ""
    why = f"stopped after epoch {last}, {last - best} epochs without a better bound; " if last < epochs else ""
    more = "; it is the last one: more epochs may give a better one" if best == last else ""
    return f"{why}epoch {best} is the best on the validation data: load, evaluate and draw take its weights{more}"


def _values(run: Run) -> str:
    """Return what the VAE sees of the data."""
    if run.data.is_images:
        return f"pixels {_pixels(run.config, run.has_own_vae)}"
    shape = " x ".join(map(str, run.data.datum_shape))
    binarized = "" if run.config.binarize == "none" else f", binary by --binarize {run.config.binarize}"
    return f"each of {shape} values{binarized}"


def _pixels(config: Config, has_own_vae: bool) -> str:
    """Return the values of the pixels, how they are binarized, and the bound if a Bernoulli scores grey ones."""
    kind = Preparation.of(config).kind
    if config.binarize != "none":
        return f"{kind} by --binarize {config.binarize}"
    return f"{kind}, so the bound is a pseudo-ELBO" if config.is_pseudo and not has_own_vae else kind


def _estimated_rate(config: Config) -> str:
    """Return a note on the layers whose rate has no closed form."""
    layers = [f"z{number}" for number, is_closed in enumerate(config.closed_forms, 1) if not is_closed]
    rate = f"the rate of {' and '.join(layers)}" if config.upper_latent_dims else "its rate"
    return f" ({rate} is a mean over the draws: it has no closed form)" if layers else ""
