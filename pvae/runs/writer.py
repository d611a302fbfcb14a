"""Write a run folder: called by `training` alone, but for its card."""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import platform
import re
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from pvae.config.config import Config
from pvae.config.presets import command_line
from pvae.core import __version__
from pvae.core.errors import InputError
from pvae.core.files import is_temporary, to_json, write_whole
from pvae.runs.checkpoint import Checkpoint, to_bytes
from pvae.runs.metrics import Metrics, best_epoch
from pvae.runs.run import BEST, CHECKPOINT, CONFIG, HISTORY, METRICS, OWN_CODE, Instant, Run

CARD = "README.md"
_PICTURES = ("reconstructions", "samples", "losses")
_FIRST = (METRICS, CHECKPOINT)  # files that are written before config.json


def check_out(path: Path) -> Path:
    """Return the path of a folder for a new run: missing, empty, or of a training that was killed as it began.

    Raises:
        InputError: the folder has other files, is not a folder, or cannot be read.
    """
    try:
        left = [file for file in path.iterdir() if not is_temporary(file) and file.name not in _FIRST]
    except FileNotFoundError:
        return path
    except OSError as error:
        raise InputError(f"--out {path} cannot be read ({error.strerror}): name a folder, new or empty") from None
    if left:
        advice = "name a new one"
        if (path / CONFIG).exists():
            advice += f", or go on with --resume {path}"
        raise InputError(f"--out {path} is a folder that is not empty: {advice}")
    return path


def new_folder(path: Path | None, config: Config) -> Path:
    """Make the folder `path`, or `runs/<time>-<system>-<elbo>` if `path` is None, and return its path.

    Raises:
        InputError: the folder cannot be written.
    """
    name = f"{datetime.now():%Y-%m-%d-%H%M%S}-{config.system}-{config.elbo}"
    names = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
    folder = path or next(folder for folder in map(Path("runs").joinpath, names) if not folder.exists())
    try:
        folder.mkdir(parents=True, exist_ok=path is not None)
    except OSError as error:
        raise InputError(f"{folder} cannot be written ({error.strerror}): name a folder with --out") from None
    return folder


def begin(run: Run, rows: Sequence[Metrics], start: Checkpoint, session: Mapping[str, Any]) -> None:
    """Save the state at the start of a session, and record the session in `config.json`.

    Args:
        run: the run.
        rows: metrics of the finished epochs.
        start: the state at the start.
        session: device, number of processes and of threads, and the engine that takes the steps.

    Raises:
        OSError: the folder cannot be written.
    """
    for temporary in filter(is_temporary, run.path.iterdir()):  # left by a process that was killed
        temporary.unlink(missing_ok=True)
    save(run, rows, start)
    if run.code:
        write_whole(run.path / OWN_CODE, run.code.encode())
    run.sessions.append({"from_epoch": start.epoch, "from_step": start.step, **session, **_provenance()})
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
    run.cache.clear()


def write_history(run: Run, instants: Sequence[Instant]) -> None:
    """Write the instants of a training that `Run.history` returns.

    Raises:
        OSError: the folder cannot be written.
    """
    tensors = {f"{instant.step}.{name}": tensor for instant in instants for name, tensor in instant.weights.items()}
    for instant in instants:
        tensors |= {
            f"{instant.step}.codes": instant.codes,
            f"{instant.step}.terms": torch.tensor([instant.distortion, instant.rate]),
        }
    checkpoint = Checkpoint(epoch=0, step=instants[-1].step, vae=tensors, moments={}, rng={}, run=run.identity)
    write_whole(run.path / HISTORY, to_bytes(checkpoint, is_small=True))


def discard(path: Path) -> None:
    """Remove the folder of a new run whose training could not start."""
    with contextlib.suppress(OSError):
        for file in path.iterdir():
            file.unlink()
        path.rmdir()


def _provenance() -> dict[str, object]:
    """Return package versions, the commit of pvae's checkout ("-dirty" if it was edited), and the time."""
    packages = ("torch", "pyro-ppl", "torchvision", "numpy")
    commit = None
    file = Path(__file__).resolve()
    git = functools.partial(subprocess.run, cwd=file.parent, capture_output=True, text=True, timeout=5, check=True)
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        git(["git", "ls-files", "--error-unmatch", file.name])  # fails in the repository of another project
        commit = git(["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]).stdout.strip()
    return {
        "versions": {"python": platform.python_version(), "pvae": __version__}
        | {package: version(package) for package in packages},
        "commit": commit,
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def _command(run: Run) -> str:
    """Return the command that trains a run, without its options."""
    name, _, path = run.data.dataset.partition(":")
    if not name or (run.has_own_vae and not run.vae_place):
        return "pvae.fit in Python, with options"
    if path:
        name += f":{Path(path).name}"
    train = f"python -m pvae.train --dataset {shlex.quote(name)}"
    if run.vae_place:
        train += f" --vae {shlex.quote(Path(run.vae_place).name)}"
    return train


def _figures(run: Run) -> dict[str, str]:
    """Return what the test data say of the best weights, by what each figure is."""
    test = run.test_metrics()
    if test is None:
        return {}
    rows = {"epoch": f"{test.epoch} of {run.config.epochs}"}
    if test.elbo is not None:
        rows[f"test {test.bound}"] = f"{test.elbo:.2f} +- {test.elbo_stderr:.2f} {run.data.of_possible}".strip()
    rows["distortion, rate"] = f"{test.distortion:.2f}, {test.rate:.2f}"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # no such file, or none of these weights
        report = json.loads((run.place / "evaluation.json").read_bytes())
        estimate = report["log_likelihood"]["estimate"]
        if report["epoch"] == test.epoch:
            error = f"{estimate['stderr']:.2f} of {report['num_images']:,} test data"
            rows["log p(x)"] = f"{estimate['mean']:.2f} +- {error}"
    return rows


def write_card(run: Run) -> None:
    """Write the card, with the figures of evaluation.json if it is of these weights; an older one's licence stays.

    Raises:
        OSError: it cannot be written.
    """
    data = run.data
    versions = [pair for session in run.sessions[-1:] for pair in session["versions"].items()]
    rows = {
        "data": f"{data.title}, each ({', '.join(map(str, data.datum_shape))}), SHA-256 {data.sha256[:16]}...",
        "command": f"`{_command(run)} --seed {run.config.seed} {command_line(run.config)}`",
        "versions": ", ".join(f"{package} {version}" for package, version in versions),
        **_figures(run),
    }
    table = "\n".join(f"| {name} | {value.replace('|', chr(92) + '|')} |" for name, value in rows.items())
    pictures = [picture for picture in _PICTURES if (run.path / "figures" / f"{picture}.png").exists()]
    licence = "unknown"
    with contextlib.suppress(OSError, UnicodeDecodeError, AttributeError):
        before = re.search(r"^license: *(.+)$", (run.path / CARD).read_text("utf-8"), re.MULTILINE)
        licence = before[1]  # type: ignore[index]
    given = "x"
    if run.is_given_labels:
        given += ", y"
    load = '"FOLDER"'
    if run.has_own_vae:
        load += ", vae"
    text = f"""---
library_name: pvae
license: {licence}
tags: [variational-autoencoder, pyro]
---

# A variational autoencoder of {data.name}

| | |
|---|---|
{table}

Values are in nats per datum, with standard errors over the test data.

```python
import pvae  # pip install pvae-pyro

vae = pvae.load({load})  # the folder of this file
z = vae.posterior({given}).sample()  # of data x, ({", ".join(["N", *map(str, data.datum_shape)])})
```

"""
    if licence == "unknown":
        text += "No licence is stated: before you share the weights, name one in `license` above, as the data allow.\n"
    text += "".join(f"\n![{picture}](figures/{picture}.png)\n" for picture in pictures)
    write_whole(run.path / CARD, text.encode("utf-8", "replace"))  # a name may be any bytes
