"""What a training says while it runs: a bar for the steps, a line for each epoch, and what to type next."""

from __future__ import annotations

import sys
from types import TracebackType

from tqdm import tqdm

from pvae.config.config import Config
from pvae.config.presets import system_title
from pvae.core.terminal import say
from pvae.runs.metrics import Metrics
from pvae.runs.run import Run

__all__ = ["Bar", "Console"]


class Bar:
    """A tqdm bar over the steps of one epoch, with the running loss; nothing where no one watches.

    Args:
        title: stands before the bar.
        total: number of steps.
        quiet: draw nothing.
        done: steps of it that were done before.
    """

    def __init__(self, title: str, total: int, quiet: bool, done: int = 0) -> None:
        # None: tqdm draws only on a terminal.
        silent = quiet or sys.stderr is None or None
        self._bar = tqdm(total=total, initial=done, desc=title, unit="step", leave=False, disable=silent)

    def __enter__(self) -> Bar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()

    def step(self, running_loss: float) -> None:
        """Move by one step."""
        self._bar.set_postfix_str(f"loss {running_loss:.2f}", refresh=False)
        self._bar.update()


class Console:
    """The lines of one training.

    Args:
        quiet: print nothing.
    """

    def __init__(self, quiet: bool) -> None:
        self.quiet = quiet

    def say(self, line: str) -> None:
        """Print one line."""
        if not self.quiet:
            say(line)
            self.quiet = sys.stdout is None  # no one reads, or watches a bar

    def start(self, run: Run, device: str, epoch: int) -> None:
        """Say what is trained on what, and where it is written."""
        config, data = run.config, run.data
        found = f" (found in {data.folder})" if data.folder else ""
        self.say(f"data: {data.title}{found}, pixels {_pixels(config)}")
        self.say(
            f"training {system_title(config)} by SVI with --elbo {config.elbo}, "
            f"epochs {epoch + 1} to {config.epochs}, on {device}, into {run.path}"
        )
        if config.compile == "inductor":
            self.say("the first step is compiled, for some seconds, unless the same was compiled here before")

    def finished(self, run: Run) -> None:
        """Say that a run is not to be trained any more."""
        last = run.config.epochs
        self.say(f"{run.path} is finished, at epoch {last}; to train it further, give --epochs above {last}")

    def epoch(self, train: Metrics, test: Metrics, epochs: int, skipped: int = 0) -> None:
        """Print the line of one epoch.

        The loss too, where it is not the negated bound (beta, importance weights), and the steps skipped so far.
        """
        terms = f"distortion {test.distortion:.2f}, rate {test.rate:.2f}"
        if abs(test.loss - test.distortion - test.rate) > 0.005:
            terms += f", loss {test.loss:.2f}"
        seconds = train.seconds + test.seconds
        line = f"epoch {train.epoch:{len(str(epochs))}}/{epochs}  {train}  {test} ({terms})  {seconds:.1f} s"
        self.say(f"{line}, {skipped} steps skipped so far" if skipped else line)


_BINARY = {
    "threshold": "binary by a threshold at 0.5",
    "static": "binary, drawn once",
    "dynamic": "binary, drawn at every visit",
}


def _pixels(config: Config) -> str:
    """Say what the pixels are, and what follows where a Bernoulli scores grey ones."""
    if config.binarize != "none":
        return _BINARY[config.binarize]
    grey = "grey in [-1, 1]" if config.pixels == "symmetric" else "grey in [0, 1]"
    return f"{grey}, so the bound is a pseudo-ELBO" if config.likelihood == "bernoulli" else grey
