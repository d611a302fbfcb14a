"""Where a command writes its results, and how: arrays as .npz, figures as .png, and texts."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pvae.core.errors import InputError
from pvae.core.files import write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame


def output_path(out: Path | None, default: Path) -> Path:
    """Return where a command writes; nothing is made there yet, so that a command that fails leaves nothing.

    Files are replaced in the default place alone, where only pvae writes.

    Args:
        out: --out, which must name a new file, or a new or empty folder.
        default: the place without --out, in the folder of the run.

    Raises:
        InputError: --out names something else, or the place cannot be written to.
    """
    place = out or default
    is_empty = place.is_dir() and not any(place.iterdir())
    if out is not None and os.path.lexists(out) and not is_empty and out.resolve() != default.resolve():
        raise InputError(f"--out {out} exists and is not replaced: remove it, or name another place")
    folder = place.absolute()
    if place.is_file():
        folder = folder.parent
    while not os.path.lexists(folder):
        folder = folder.parent
    if not (folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)):
        raise InputError(f"{place} cannot be written, as {folder} is read-only or no folder: name a place with --out")
    return place


def write(path: Path, content: str | Mapping[str, Any] | Figure | DataFrame) -> None:
    """Write a text, a table, arrays or a figure as a whole file, in a folder that is made if it is missing.

    The index of a table is written if it has a name.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    raw = io.BytesIO()
    if isinstance(content, str):
        raw.write(content.encode("utf-8", "surrogateescape"))  # as names of files may be
    elif isinstance(content, Mapping):
        import numpy as np

        np.savez(raw, **content)
    elif hasattr(content, "savefig"):
        from matplotlib import rc_context

        with rc_context({"pdf.fonttype": 42}):  # TrueType: some journals refuse the fonts of type 3
            content.savefig(raw, format=path.suffix[1:])
    else:
        frame: Any = content
        text = frame.to_csv(index=frame.index.name is not None, lineterminator="\n")
        raw.write(text.encode("utf-8", "surrogateescape"))
    write_whole(path, raw.getvalue())
