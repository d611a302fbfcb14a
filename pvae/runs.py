"""A run folder: what was trained on what, its figures epoch by epoch, and its checkpoint.

A folder holds config.json (everything needed to repeat the run), metrics.jsonl (one JSON object a line, see
`metrics.Metrics`), checkpoint.pt (weights, optimiser, random state, position), figures/ and TensorBoard events.
"""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Iterable, Mapping
from datetime import datetime, timezone
from io import BytesIO
from pathlib import Path
from typing import Any, TypedDict

import torch
from torch import Tensor

from pvae.building import build_vae
from pvae.config import Config
from pvae.errors import InputError, brief
from pvae.metrics import Metrics
from pvae.provenance import commit, versions
from pvae.vae import VAE

__all__ = ["Checkpoint", "Run", "check_out", "default_out", "load"]

FORMAT = 1


class Checkpoint(TypedDict):
    """All of a training's state at the end of an epoch."""

    epoch: int
    step: int
    vae: dict[str, Tensor]
    optimizer: dict[str, Any]
    rng: dict[str, Tensor]


class Run:
    """One run folder; `Run.create` makes it, `Run.open` finds it again.

    Attributes:
        path: the folder.
        config: what was trained.
        data: name, sizes, image shape, source and SHA-256 of the data.
        record: all of `config.json`.
    """

    def __init__(self, path: Path, record: dict[str, Any]) -> None:
        self.path = path
        self.record = record
        self.config = Config.from_dict(record["config"])
        self.data: dict[str, Any] = record["data"]

    @classmethod
    def create(cls, path: Path, config: Config, data: Mapping[str, object], device: str) -> Run:
        """Make the folder and write its `config.json`.

        Raises:
            InputError: the folder exists and is not empty, or cannot be written.
        """
        record = {
            "format": FORMAT,
            "config": config.to_dict(),
            "data": dict(data),
            "device": device,
            "threads": torch.get_num_threads(),
            "versions": versions(),
            "commit": commit(),
            "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        }
        check_out(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
            run = cls(path, record)
            run.write_record()
        except OSError as error:
            raise InputError(f"--out {path} cannot be written ({error.strerror}): name another folder") from None
        return run

    @classmethod
    def open(cls, path: str | Path) -> Run:
        """Return the run that lies in a folder.

        Raises:
            InputError: the folder is no run, or its `config.json` is damaged.
        """
        file = Path(path) / "config.json"
        try:
            record = json.loads(file.read_text(encoding="utf-8"))
        except OSError:
            raise InputError(f"{path} is no run folder: there is no config.json to read in it") from None
        except ValueError:
            raise InputError(f"{file} is damaged: it is not JSON") from None
        if not isinstance(record, dict) or record.get("format") != FORMAT:
            raise InputError(f"{file} is not the record of a run of this version of pvae (format {FORMAT})")
        try:
            return cls(Path(path), record)
        except (KeyError, TypeError, InputError) as error:
            raise InputError(f"{file} is damaged: {brief(error)}") from None

    def write_record(self) -> None:
        """Write `config.json` anew, whole."""
        self.record["config"] = self.config.to_dict()
        _write(self.path / "config.json", (json.dumps(self.record, indent=2) + "\n").encode())

    def metrics(self) -> list[Metrics]:
        """Return all rows of `metrics.jsonl`, in order.

        Raises:
            InputError: a line is damaged.
        """
        file = self.path / "metrics.jsonl"
        if not file.exists():
            return []
        rows = []
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
            try:
                rows.append(Metrics.from_dict(json.loads(line)))
            except ValueError as error:
                raise InputError(f"{file}, line {number} is damaged: {brief(error)}") from None
        return rows

    def write_metrics(self, rows: Iterable[Metrics]) -> None:
        """Write `metrics.jsonl` anew, whole."""
        lines = "".join(json.dumps(row.to_dict()) + "\n" for row in rows)
        _write(self.path / "metrics.jsonl", lines.encode())

    def record_epoch(self, train: Metrics, test: Metrics, checkpoint: Checkpoint) -> None:
        """Add the two rows of an epoch, then its checkpoint: a row without one is dropped on resumption."""
        self.write_metrics([*self.metrics(), train, test])
        self.save_checkpoint(checkpoint)

    def save_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Replace `checkpoint.pt`, whole."""
        buffer = BytesIO()
        torch.save(checkpoint, buffer)
        _write(self.path / "checkpoint.pt", buffer.getvalue())

    def read_checkpoint(self) -> Checkpoint:
        """Return the checkpoint, on the CPU; nothing in it is executed.

        Raises:
            InputError: it is missing, damaged, or no checkpoint.
        """
        file = self.path / "checkpoint.pt"
        try:
            checkpoint: Checkpoint = torch.load(file, map_location="cpu", weights_only=True)
        except FileNotFoundError:
            raise InputError(f"{self.path} holds no checkpoint.pt: it cannot be loaded or resumed") from None
        except (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
            raise InputError(f"{file} is damaged or no checkpoint of pvae ({brief(error)})") from None
        if not isinstance(checkpoint, dict) or set(checkpoint) != set(Checkpoint.__annotations__):
            raise InputError(f"{file} is no checkpoint of pvae: its entries are not those of one")
        return checkpoint

    def vae(self) -> VAE:
        """Return the trained VAE, in eval mode, on the CPU.

        Raises:
            InputError: the checkpoint is missing, damaged, or of other networks than `config.json` says.
        """
        with torch.random.fork_rng(devices=[]):  # the weights drawn here are thrown away
            vae = build_vae(self.config, self.data["image_shape"])
        try:
            vae.load_state_dict(self.read_checkpoint()["vae"])
        except (RuntimeError, TypeError, AttributeError) as error:
            reason = f"its weights do not fit the networks of config.json ({brief(error)})"
            raise InputError(f"{self.path / 'checkpoint.pt'}: {reason}") from None
        return vae.eval()


def load(path: str | Path) -> VAE:
    """Return the trained VAE of a run folder, in eval mode, on the CPU.

    Args:
        path: the folder that a training named at its end.

    Raises:
        InputError: the folder is no run, or its files are damaged.
    """
    return Run.open(path).vae()


def default_out(config: Config) -> Path:
    """Return a new folder's name, `runs/<time>-<system>-<elbo>`."""
    stem = f"{datetime.now():%Y-%m-%d-%H%M%S}-{config.system}-{config.elbo}"
    path = Path("runs") / stem
    twin = 2
    while path.exists():
        path = Path("runs") / f"{stem}-{twin}"
        twin += 1
    return path


def check_out(path: Path) -> None:
    """Refuse a folder for a new run before anything is computed.

    Raises:
        InputError: it exists and is not an empty folder, or cannot be looked into.
    """
    try:
        taken = path.exists() and (not path.is_dir() or any(path.iterdir()))
    except OSError as error:
        raise InputError(f"--out {path} cannot be read ({error.strerror}): name another folder") from None
    if taken:
        raise InputError(f"--out {path} exists and is not an empty folder: name another, or --resume it")


def _write(path: Path, content: bytes) -> None:
    """Write a file whole or not at all: to a temporary name, flushed to the disk, then renamed."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
