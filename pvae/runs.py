"""A run folder: what was trained on what, its figures epoch by epoch, and its checkpoint.

A folder holds config.json (everything needed to repeat the run), metrics.jsonl (one JSON object a line, see
`metrics.Metrics`), checkpoint.pt (weights, optimiser, random state, position), figures/ and TensorBoard events.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import pickle
from collections.abc import Iterable
from dataclasses import asdict
from datetime import datetime, timezone
from io import BytesIO
from pathlib import Path
from typing import Any, TypedDict

import torch
from torch import Tensor

from pvae.building import build_vae
from pvae.config import Config
from pvae.data import DataRecord
from pvae.errors import InputError, brief
from pvae.metrics import Metrics
from pvae.provenance import commit, versions
from pvae.records import from_record
from pvae.vae import VAE

__all__ = ["Checkpoint", "Run", "check_out", "load", "write_whole"]

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
        data: what is known of the data.
        sessions: for each process that trained it: from which epoch on, device, threads, versions, commit, time.
    """

    def __init__(self, path: Path, config: Config, data: DataRecord, sessions: list[dict[str, Any]]) -> None:
        self.path = path
        self.config = config
        self.data = data
        self.sessions = sessions

    @classmethod
    def create(cls, path: Path | None, config: Config, data: DataRecord) -> Run:
        """Make the folder, `runs/<time>-<system>-<elbo>` where none is named.

        Raises:
            InputError: the folder exists and is not empty, or cannot be written.
        """
        try:
            if path is None:
                path = _make_new(Path("runs") / f"{datetime.now():%Y-%m-%d-%H%M%S}-{config.system}-{config.elbo}")
            else:
                check_out(path)
                path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            named = f"--out {path}" if path else "./runs"
            raise InputError(f"{named} cannot be written ({error.strerror}): name a folder with --out") from None
        return cls(path, config, data, [])

    @classmethod
    def open(cls, path: str | Path) -> Run:
        """Return the run that lies in a folder.

        Raises:
            InputError: the folder is no run, or its `config.json` is damaged.
        """
        if not isinstance(path, (str, Path)) or not str(path):
            raise InputError(f"a run is named by its folder, not by {path!r}")
        file = Path(path) / "config.json"
        try:
            record = json.loads(file.read_text(encoding="utf-8"))
        except OSError:
            raise InputError(f"{path} is no run folder: there is no config.json to read in it") from None
        except (ValueError, RecursionError):
            raise InputError(f"{file} is damaged: it is not JSON") from None
        if not isinstance(record, dict) or record.get("format") != FORMAT:
            raise InputError(f"{file} is not the record of a run of this version of pvae (format {FORMAT})")
        try:
            config, data = from_record(Config, record.get("config")), from_record(DataRecord, record.get("data"))
        except InputError as error:
            raise InputError(f"{file} is damaged: {brief(error)}") from None
        sessions = record.get("sessions")
        if not (isinstance(sessions, list) and sessions and all(isinstance(session, dict) for session in sessions)):
            raise InputError(f"{file} is damaged: it names no session that trained it")
        return cls(Path(path), config, data, sessions)

    def discard(self) -> None:
        """Take away what was written before there was anything to resume."""
        (self.path / "checkpoint.pt").unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.path.rmdir()

    def begin_session(self, epoch: int, device: str) -> None:
        """Record that a process goes on from an epoch, and with what; the rows of later epochs are dropped.

        Raises:
            InputError: `metrics.jsonl` is damaged, or the folder cannot be written.
        """
        rows = [row for row in self.metrics() if row.epoch <= epoch]
        session = {
            "from_epoch": epoch,
            "device": device,
            "threads": torch.get_num_threads(),
            "versions": versions(),
            "commit": commit(),
            "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        }
        self.sessions.append(session)
        record = {
            "format": FORMAT,
            "config": asdict(self.config),
            "data": asdict(self.data),
            "sessions": self.sessions,
        }
        try:
            write_whole(self.path / "config.json", (json.dumps(record, indent=2) + "\n").encode())
            write_whole(self.path / "metrics.jsonl", _lines(rows))
        except OSError as error:
            raise InputError(f"{self.path} cannot be written ({error.strerror})") from None

    def metrics(self) -> list[Metrics]:
        """Return all rows of `metrics.jsonl`, in order; a last line that was not written to its end is left out.

        Raises:
            InputError: another line is damaged.
        """
        file = self.path / "metrics.jsonl"
        if not file.exists():
            return []
        rows = []
        *lines, _torn = file.read_bytes().split(b"\n")
        for number, line in enumerate(lines, start=1):
            try:
                rows.append(from_record(Metrics, json.loads(line)))
            except ValueError as error:
                raise InputError(f"{file}, line {number} is damaged: {brief(error)}") from None
        return rows

    def record_epoch(self, train: Metrics, test: Metrics, checkpoint: Checkpoint) -> None:
        """Add the two rows of an epoch, then its checkpoint: a row without one is dropped on resumption."""
        with (self.path / "metrics.jsonl").open("ab") as file:
            file.write(_lines([train, test]))
            file.flush()
            os.fsync(file.fileno())
        self.save_checkpoint(checkpoint)

    def save_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Replace `checkpoint.pt`, whole."""
        buffer = BytesIO()
        torch.save(checkpoint, buffer)
        write_whole(self.path / "checkpoint.pt", buffer.getvalue())

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
        except pickle.UnpicklingError:
            raise InputError(f"{file} is damaged or no checkpoint of pvae: it holds more than tensors") from None
        except (OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
            raise InputError(f"{file} is damaged or no checkpoint of pvae ({brief(error)})") from None
        if not isinstance(checkpoint, dict) or set(checkpoint) != set(Checkpoint.__annotations__):
            raise InputError(f"{file} is no checkpoint of pvae: its entries are not those of one")
        if not all(isinstance(checkpoint[key], int) and checkpoint[key] >= 0 for key in ("epoch", "step")):
            raise InputError(f"{file} is damaged: its epoch and step are no counts")
        return checkpoint

    def vae(self) -> VAE:
        """Return the trained VAE, in eval mode, on the CPU.

        Raises:
            InputError: the checkpoint is missing, damaged, or of other networks than `config.json` says.
        """
        with torch.random.fork_rng(devices=[]):  # the weights drawn here are thrown away
            vae = build_vae(self.config, self.data.image_shape)
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


def _make_new(path: Path) -> Path:
    """Make a folder that no one else has: of two processes that want one name, the second takes `<name>-2`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for number in itertools.count(1):
        new = path if number == 1 else path.with_name(f"{path.name}-{number}")
        try:
            new.mkdir()
            return new
        except FileExistsError:
            continue
    raise AssertionError


def _lines(rows: Iterable[Metrics]) -> bytes:
    return "".join(json.dumps(asdict(row)) + "\n" for row in rows).encode()


def write_whole(path: Path, content: bytes) -> None:
    """Write a file whole or not at all: to a temporary name, flushed to the disk, then renamed."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
