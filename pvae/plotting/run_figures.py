"""The three pictures that a training draws into its run folder."""

from __future__ import annotations

import sys
from collections.abc import Callable

from pvae.core.errors import InputError, brief
from pvae.core.files import is_temporary
from pvae.plotting import pictures
from pvae.plotting.figures import write_figure
from pvae.runs.run import Run

__all__ = ["save_figures"]


def save_figures(run: Run, before_each: Callable[[], None] = lambda: None) -> None:
    """Draw reconstructions, samples and losses of a run into its folder, without those that it cannot have.

    Args:
        run: the run, with its metrics.
        before_each: called before each picture; it may raise.
    """
    folder = run.figures()
    for leftover in filter(is_temporary, folder.iterdir()):  # of a process that was killed
        leftover.unlink(missing_ok=True)
    for name in ("reconstructions", "samples", "losses"):
        before_each()
        try:
            write_figure(folder / f"{name}.png", getattr(pictures, name)(run))
        except InputError:  # an autoencoder has no samples, and not all data can be drawn
            pass
        except (ArithmeticError, ValueError) as error:  # of matplotlib, at extreme values; the training is finished
            print(f"{name}.png cannot be drawn: {brief(error)}", file=sys.stderr)
