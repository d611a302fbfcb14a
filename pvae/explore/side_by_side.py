"""`side_by_side_page`: two or three runs on the same images as one page, whose maps share one pointer."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path

from pvae.config.presets import differences
from pvae.core.errors import InputError
from pvae.data.dataset import Dataset
from pvae.explore.page import check_run, explorer_page
from pvae.runs.run import Run

__all__ = ["check_runs", "side_by_side_page"]

_MOST_RUNS = 3


def check_runs(runs: Sequence[Run]) -> None:
    """Check that runs can be shown side by side.

    Raises:
        InputError: as for `check_run`; or there are more than three, one is given twice, one has not two latents, so
            that a place on one map is no place on another, or their data differ.
    """
    if not 2 <= len(runs) <= _MOST_RUNS:
        raise InputError(f"the page shows one, two or three runs, not {len(runs)}: leave some out")
    for place, run in enumerate(runs):
        check_run(run)
        if run.data.columns:
            raise InputError(
                f"{run.path} was trained on a table, and only runs on images stand side by side: show it alone"
            )
        if any(run.path.resolve() == other.path.resolve() for other in runs[:place]):
            raise InputError(f"{run.path} is given twice: give runs that differ")
        if run.config.latent_dims != (2,):
            size = sum(run.config.latent_dims)
            raise InputError(f"{run.path} has {size} latents, and linked maps need --latent-dim 2: show it alone")
        if (run.data.sha256, run.data.labels_sha256) != (runs[0].data.sha256, runs[0].data.labels_sha256):
            raise InputError(f"{run.path} was trained on other data than {runs[0].path}: give runs on the same data")


def side_by_side_page(runs: Sequence[Run], data: Sequence[Dataset], num_codes: int = 2000) -> str:
    """Return the text of an HTML file with a frame for each run, which decode the same z and show the same image.

    Args:
        runs: two or three runs with two latents, on the same images.
        data: of each run, as in `explorer_page`.
        num_codes: as in `explorer_page`.

    Raises:
        InputError: as for `check_runs` and `explorer_page`.
    """
    check_runs(runs)
    frames = []
    for name, run, images in zip(differences([run.config for run in runs]), runs, data):
        name = name or run.path.resolve().name
        page = explorer_page(run, images, name, num_codes)
        frames.append(f'<iframe title="{html.escape(name)}" srcdoc="{html.escape(page)}"></iframe>')
    page = (Path(__file__).parent / "side_by_side.html").read_text("utf-8")
    title = html.escape(f"{runs[0].data.title.rpartition(' (')[0]}: {len(runs)} runs side by side")
    page = page.replace("{{ title }}", title).replace("{{ count }}", str(len(runs)))
    return page.replace("{{ frames }}", "\n".join(frames))
