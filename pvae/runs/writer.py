"""Write a run folder: called by `training.fit` alone.

config.json is written last: a folder that has one has a checkpoint, from which the training can be resumed.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from pvae import __version__
from pvae.config.config import Config
from pvae.core.errors import InputError
from pvae.core.files import is_report, is_temporary, write_whole
from pvae.core.records import to_json
from pvae.runs.checkpoint import Checkpoint, to_bytes
from pvae.runs.metrics import Metrics, best_epoch
from pvae.runs.run import BEST, CHECKPOINT, FORMAT, OWN_CODE, PREVIOUS, Run

__all__ = ["begin", "check_out", "discard", "new_folder", "record_choice", "restore_previous", "save", "set_aside"]

_FIRST = ("metrics.jsonl", CHECKPOINT, PREVIOUS)  # files that are written before config.json
_REPORTS = ("", "figures", "scores", "samples", "onnx", "torch", "comparison")  # folders of a run that hold reports
_OWN_VAE = "built in Python: the options of config from network to scale do not describe it"


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
        resume = f", or go on with --resume {path}" if (path / "config.json").exists() else ""
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
    folder, number = path or Path("runs") / name, 1
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=path is not None)
            return folder
        except OSError as error:
            if path is not None or not folder.is_dir():
                option = f"--out {path}" if path else "./runs"
                raise InputError(f"{option} cannot be written ({error.strerror}): name a folder with --out") from None
        number += 1  # another training started in the same second
        folder = Path("runs") / f"{name}-{number}"


def restore_previous(run: Run) -> str:
    """Replace the last checkpoint, if it is damaged, by the one before it; return a note for the user, or "".

    Raises:
        InputError: both are damaged or missing.
    """
    try:
        run.read_checkpoint()
        return ""
    except InputError as error:
        with contextlib.suppress(InputError):
            run.read(PREVIOUS)
            (run.path / PREVIOUS).replace(run.path / CHECKPOINT)
            return f"going on from the checkpoint before the last one: {error}"
        raise


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
    if run.code:
        write_whole(run.path / OWN_CODE, run.code.encode())
    counts = start.counts
    session = {"from_epoch": counts.epoch, "from_step": counts.step, "device": device, "processes": num_processes}
    run.sessions.append({**session, **_provenance()})
    _write_config(run)


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
        (run.path / "config.json").stat()  # raises an OSError if the folder is not the run's any more
    checkpoint = replace(checkpoint, run=run.identity)
    lines = "".join(to_json(asdict(row)) + "\n" for row in rows)
    write_whole(run.path / "metrics.jsonl", lines.encode())
    write_whole(run.path / CHECKPOINT, to_bytes(checkpoint), previous=run.path / PREVIOUS)
    if checkpoint.unfinished is None and best_epoch(rows) == checkpoint.counts.epoch:
        write_whole(run.path / BEST, to_bytes(replace(checkpoint, moments={}, rng={})))
    run.forget()


def record_choice(run: Run, chosen: Mapping[str, Any]) -> None:
    """Record the engine and the number of threads that the first steps have chosen; nothing if it is empty."""
    session = run.sessions[-1]
    if {**session, **chosen} != session:
        session.update(chosen)
        _write_config(run)


def _write_config(run: Run) -> None:
    record = {
        "format": FORMAT,
        "run": run.identity,
        **({"own_vae": _OWN_VAE} if run.has_own_vae else {}),
        **({"own_beta": "a function of the step, given to fit"} if run.has_own_beta else {}),
        **({"start": run.start} if run.start else {}),
        "config": asdict(run.config) | ({"alpha": "-inf"} if run.config.alpha == -math.inf else {}),
        "data": asdict(run.data),
        "sessions": run.sessions,
    }
    write_whole(run.path / "config.json", f"{to_json(record, indent=2)}\n".encode())


def discard(path: Path) -> None:
    """Remove the folder of a new run whose training could not start."""
    with contextlib.suppress(OSError):
        for name in (*_FIRST, "config.json", "split.csv"):
            (path / name).unlink(missing_ok=True)
        path.rmdir()


def set_aside(path: Path, epoch: int) -> str:
    """Move the pictures and reports that pvae wrote of earlier weights into a new folder; other files stay.

    The folder is `of-epoch-<epoch>`, or the first free one of `of-epoch-<epoch>-2` and so on.

    Args:
        path: the run folder.
        epoch: number of epochs of the earlier weights.

    Returns:
        A note for the user, or "" if there are none.

    Raises:
        OSError: the folder cannot be written.
    """
    reports = [file for name in _REPORTS for file in (path / name).glob("*") if is_report(file)]
    numbers = (f"-{number}" if number > 1 else "" for number in itertools.count(1))
    folder = next(one for suffix in numbers if not os.path.lexists(one := path / f"of-epoch-{epoch}{suffix}"))
    for file in reports:
        kept = folder / file.relative_to(path)
        kept.parent.mkdir(parents=True, exist_ok=True)
        file.replace(kept)
    return f"the pictures and reports of the earlier weights are now in {folder}" if reports else ""


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
