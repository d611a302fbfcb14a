"""The lines that a training prints: what is trained, and the metrics of each epoch."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from pvae.config.config import Config
from pvae.config.presets import system_title
from pvae.core.terminal import print_line
from pvae.data.preparation import Preparation
from pvae.runs.metrics import Metrics, best_epoch
from pvae.runs.run import Run

__all__ = ["Console"]


class Console:
    """Prints the lines of one training.

    Args:
        quiet: print nothing.
    """

    def __init__(self, quiet: bool) -> None:
        self.quiet = quiet

    def print(self, line: str) -> None:
        """Print one line."""
        if not self.quiet:
            print_line(line)
            self.quiet = sys.stdout is None  # `print_line` found that nothing reads it: draw no progress bar either

    def start(self, run: Run, device: str, epoch: int) -> None:
        """Print what is trained on what data, and the folder it is written to."""
        config, data = run.config, run.data
        folder = f" (found in {data.folder})" if data.folder else ""
        self.print(f"data: {data.title}{folder}, pixels {_pixels(config, run.has_own_vae)}")
        rate = "" if run.has_own_vae else _estimated_rate(config)
        self.print(
            f"training {system_title(config)} by SVI with --elbo {config.elbo}{rate}, "
            f"epochs {epoch + 1} to {config.epochs}, on {device}, into {run.path}"
        )
        if config.warm_up > config.epochs:
            share = f"{config.epochs / config.warm_up:.0%}"
            self.print(f"the warm-up takes {config.warm_up} epochs: the weight of the rate rises to {share} of --beta")
        if config.compile == "inductor":
            self.print("the first step is compiled, if it was not before: for some seconds, with flows a minute or so")

    def epoch(self, run: Run, rows: Sequence[Metrics]) -> None:
        """Print the metrics of one epoch.

        The loss is included where it differs from the negated bound (beta, importance weights).

        Args:
            run: the run.
            rows: metrics of the training images, of the validation images if there are any, and of the test images.
        """
        test = rows[-1]
        terms = f"distortion {test.distortion:.2f}, rate {test.rate:.2f}"
        if abs(test.loss - test.distortion - test.rate) > max(0.005, 1e-6 * abs(test.loss)):  # beyond rounding
            terms += f", loss {test.loss:.2f}"
        terms += run.bits(test)
        seconds, epochs = sum(row.seconds for row in rows), run.config.epochs
        number = f"{test.epoch:{len(str(epochs))}}/{epochs}"
        self.print(f"epoch {number}  {'  '.join(map(str, rows))} ({terms})  {seconds:.1f} s")

    def end(self, rows: Sequence[Metrics], epochs: int) -> None:
        """Print which epoch was the best on the validation images, if there are any, and why the training ended.

        Args:
            rows: metrics of all epochs.
            epochs: number of the planned epochs.
        """
        best = best_epoch(rows)
        if best is not None:
            last = rows[-1].epoch
            why = f"stopped after epoch {last}, {last - best} epochs without a better bound; " if last < epochs else ""
            more = "; it is the last one: more epochs may give a better one" if best == last else ""
            chosen = f"epoch {best} is the best on the validation images"
            self.print(f"{why}{chosen}: load, evaluate and draw take its weights{more}")


_BINARY = {
    "threshold": "binary by a threshold at 0.5",
    "static": "binary, drawn once",
    "dynamic": "binary, drawn at every visit",
}


def _pixels(config: Config, has_own_vae: bool) -> str:
    """Return a description of the pixels, and of the bound if a Bernoulli scores grey ones."""
    if config.binarize != "none":
        return _BINARY[config.binarize]
    domain = Preparation.of(config).kind
    return (
        f"{domain}, so the bound is a pseudo-ELBO" if config.likelihood == "bernoulli" and not has_own_vae else domain
    )


def _estimated_rate(config: Config) -> str:
    """Return a note on the layers whose rate has no closed form."""
    layers = [f"z{number}" for number, is_closed in enumerate(config.closed_forms, 1) if not is_closed]
    rate = f"the rate of {' and '.join(layers)}" if config.upper_latent_dims else "its rate"
    return f" ({rate} is a mean over the draws: it has no closed form)" if layers else ""
