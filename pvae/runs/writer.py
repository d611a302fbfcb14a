"""Write a run folder: called by `training` alone.

config.json is written last: a folder that has one has a checkpoint, from which the training can be resumed.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from pvae.config.config import Config
from pvae.core import __version__
from pvae.core.errors import InputError
from pvae.core.files import is_temporary, write_whole
from pvae.core.records import to_json
from pvae.runs.checkpoint import Checkpoint, to_bytes
from pvae.runs.data import ROWS, kept_rows
from pvae.runs.metrics import Metrics, best_epoch
from pvae.runs.record import CONFIG
from pvae.runs.run import BEST, CHECKPOINT, HISTORY, METRICS, OWN_CODE, Instant, Run

__all__ = ["begin", "check_out", "discard", "new_folder", "record_choice", "save", "write_history"]

_FIRST = (METRICS, CHECKPOINT, ROWS)  # files that are written before config.json


def check_out(path: Path) -> Path:
    """Return the path of a folder for a new run: missing, empty, or of a training that was killed as it began.

    Raises:
        InputError: the folder has other files, is not a folder, or cannot be read.
    """
    try:
        taken = path.exists() and not (path.is_dir() and all(map(_is_leftover, path.iterdir())))
    except OSError as error:
        raise InputError(f"--out {path} cannot be read ({error.strerror}): name another folder") from None
    if taken and not path.is_dir():
        raise InputError(f"--out {path} is a file: name a folder, new or empty")
    if taken:
        resume = f", or go on with --resume {path}" if (path / CONFIG).exists() else ""
        raise InputError(f"--out {path} is a folder that is not empty: name a new one{resume}")
    return path


def _is_leftover(file: Path) -> bool:
    return is_temporary(file) or file.name in _FIRST


def new_folder(path: Path | None, config: Config) -> Path:
    """Make the folder `path`, or `runs/<time>-<system>-<elbo>` if `path` is None, and return its path.

    Raises:
        InputError: the folder cannot be written.
    """
    name = f"{datetime.now():%Y-%m-%d-%H%M%S}-{config.system}-{config.elbo}"
    names = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
    folder = path or next(one for one in map(Path("runs").joinpath, names) if not one.exists())
    try:
        folder.mkdir(parents=True, exist_ok=path is not None)
    except OSError as error:
        raise InputError(f"{folder} cannot be written ({error.strerror}): name a folder with --out") from None
    return folder


def begin(run: Run, rows: Sequence[Metrics], start: Checkpoint, device: str, num_processes: int) -> None:
    """Save the state at the start of a session, and record the session in `config.json`.

    Args:
        run: the run.
        rows: metrics of the finished epochs.
        start: the state at the start.
        device: the device that trains.
        num_processes: number of processes that train together.

    Raises:
        OSError: the folder cannot be written.
    """
    for temporary in filter(is_temporary, run.path.iterdir()):  # left by a process that was killed
        temporary.unlink(missing_ok=True)
    save(run, rows, start)
    if run.loaded is not None and run.loaded.num_streamed:
        write_whole(run.path / ROWS, kept_rows(run.loaded))
    if run.code:
        write_whole(run.path / OWN_CODE, run.code.encode())
    session = {"from_epoch": start.epoch, "from_step": start.step, "device": device, "processes": num_processes}
    run.sessions.append({**session, **_provenance()})
    run.write()


def save(run: Run, rows: Sequence[Metrics], checkpoint: Checkpoint) -> None:
    """Write metrics and checkpoint, and best.safetensors if the checkpoint is that of the best epoch.

    Metrics are written first: those of an epoch later than that of the checkpoint are not valid.

    Args:
        run: the run.
        rows: metrics of the finished epochs.
        checkpoint: the state to resume from.

    Raises:
        OSError: the folder cannot be written, or was removed, emptied or replaced.
    """
    if run.sessions:
        (run.path / CONFIG).stat()  # raises an OSError if the folder is not the run's any more
    checkpoint = replace(checkpoint, run=run.identity)
    lines = "".join(to_json(asdict(row)) + "\n" for row in rows)
    write_whole(run.path / METRICS, lines.encode())
    write_whole(run.path / CHECKPOINT, to_bytes(checkpoint))
    if best_epoch(rows) == checkpoint.epoch:
        write_whole(run.path / BEST, to_bytes(replace(checkpoint, moments={}, rng={})))
    run.forget()


def write_history(run: Run, instants: Sequence[Instant]) -> None:
    """Write the instants of a training that `Run.history` returns.

    Raises:
        OSError: the folder cannot be written.
    """
    tensors = {f"{one.step}.{name}": tensor for one in instants for name, tensor in one.weights.items()}
    for one in instants:
        tensors |= {f"{one.step}.codes": one.codes, f"{one.step}.terms": torch.tensor([one.distortion, one.rate])}
    checkpoint = Checkpoint(epoch=0, step=instants[-1].step, vae=tensors, moments={}, rng={}, run=run.identity)
    write_whole(run.path / HISTORY, to_bytes(checkpoint, is_small=True))


def record_choice(run: Run, chosen: Mapping[str, Any]) -> None:
    """Record the engine and the number of threads that the first steps have chosen; nothing if it is empty."""
    session = run.sessions[-1]
    if {**session, **chosen} != session:
        session.update(chosen)
        run.write()


def discard(path: Path) -> None:
    """Remove the folder of a new run whose training could not start."""
    with contextlib.suppress(OSError):
        for name in (*_FIRST, CONFIG, HISTORY, "split.csv"):
            (path / name).unlink(missing_ok=True)
        path.rmdir()


def _provenance() -> dict[str, object]:
    """Return threads, package versions, the commit of pvae's checkout ("-dirty" if it was edited), and the time."""
    packages = ("torch", "pyro-ppl", "torchvision", "numpy")
    file, commit = Path(__file__).resolve(), None
    git = functools.partial(subprocess.run, cwd=file.parent, capture_output=True, text=True, timeout=5, check=True)
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        git(["git", "ls-files", "--error-unmatch", file.name])  # fails in the repository of another project
        commit = git(["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]).stdout.strip()
    return {
        "threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version(), "pvae": __version__}
        | {one: version(one) for one in packages},
        "commit": commit,
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
