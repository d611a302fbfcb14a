"""A run folder: what was trained on what, its figures epoch by epoch, and its checkpoint.

A folder holds config.json (everything needed to repeat the run), metrics.jsonl (one JSON object a line, see
`metrics.Metrics`), checkpoint.safetensors (weights, optimiser, random state, position) and the one before it, figures/
and TensorBoard events. The checkpoint is what counts: of metrics.jsonl as much stands as it says, under a checksum.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import uuid
from collections.abc import Iterable
from dataclasses import asdict, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import torch

from pvae.models.build import build_vae, unmade_state
from pvae.runs.checkpoint import NO_ROWS, Checkpoint, Counts, Rows, from_file, to_bytes
from pvae.config.config import Config
from pvae.config.presets import system_title
from pvae.data.dataset import DataRecord
from pvae.core.errors import InputError, brief
from pvae.core.files import append, is_report, is_temporary, not_a_link, open_bounded, read_bounded, write_whole
from pvae.runs.metrics import Metrics
from pvae.runs.provenance import provenance
from pvae.core.records import from_record, to_json
from pvae.runs.folder import new_folder, what_is_missing
from pvae.vae import VAE

__all__ = ["Run", "load"]

FORMAT = 2
_CHECKPOINT, _PREVIOUS = "checkpoint.safetensors", "checkpoint-previous.safetensors"
_MOST_JSON = 2**22  # bytes of config.json: some thousands of sessions
_MOST_ROWS = 2**27  # of metrics.jsonl: some 200,000 epochs


class Run:
    """One run folder; `Run.create` makes it, `Run.open` finds it again.

    Attributes:
        path: the folder.
        config: what was trained.
        data: what is known of the data.
        identity: a name that no other run has, under which its files know each other.
        sessions: for each process that trained it: from which epoch on, device, threads, versions, commit, time.
    """

    def __init__(
        self,
        path: Path,
        config: Config,
        data: DataRecord,
        sessions: list[dict[str, Any]],
        identity: str | None = None,
    ) -> None:
        self.path = path
        self.identity = identity or uuid.uuid4().hex
        self.config = config
        self.data = data
        self.sessions = sessions
        self._rows = NO_ROWS
        self._is_whole = False  # the last checkpoint, as far as is known

    @classmethod
    def create(cls, path: Path | None, config: Config, data: DataRecord) -> Run:
        """Make the folder, `runs/<time>-<system>-<elbo>` where none is named.

        Raises:
            InputError: the folder exists and is not empty, or cannot be written.
        """
        return cls(new_folder(path, f"{config.system}-{config.elbo}"), config, data, [])

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
            record = json.loads(read_bounded(file, _MOST_JSON))
            digest = record.pop("sha256", None) if isinstance(record, dict) else None
            is_whole = digest == _digest(record)
        except PermissionError as error:
            raise InputError(f"{file} cannot be read ({error.strerror})") from None
        except OSError:
            raise InputError(f"{path} is no run folder: {what_is_missing(Path(path))}") from None
        except (InputError, ValueError, RecursionError) as error:
            reason = str(error) if isinstance(error, InputError) else f"{file} is damaged: it is not JSON"
            raise InputError(reason) from None
        if not isinstance(record, dict) or record.get("format") != FORMAT:
            raise InputError(f"{file} is not the record of a run of this version of pvae (format {FORMAT})")
        if not is_whole:
            raise InputError(
                f"{file} is not what pvae wrote there: bring a copy back; other options are a run of their own"
            )
        try:
            config, data = from_record(Config, record.get("config")), from_record(DataRecord, record.get("data"))
        except InputError as error:
            raise InputError(f"{file} is damaged: {brief(error)}") from None
        sessions = record.get("sessions")
        if not (isinstance(sessions, list) and sessions and all(isinstance(session, dict) for session in sessions)):
            raise InputError(f"{file} is damaged: it names no session that trained it")
        return cls(Path(path), config, data, sessions, str(record.get("run")))

    def discard(self) -> None:
        """Take away the folder, in which a session had no more than begun."""
        with contextlib.suppress(OSError):
            for name in ("config.json", "metrics.jsonl"):
                self._file(name).unlink(missing_ok=True)
            self.path.rmdir()

    def begin_session(self, counts: Counts, rows: Rows, device: str, num_processes: int = 1) -> None:
        """Record that processes go on, and with what.

        Args:
            counts: from where.
            rows: what stands of `metrics.jsonl`; later rows are dropped.
            device: on which.
            num_processes: that train it together.

        Raises:
            InputError: `metrics.jsonl` is damaged, or figures/ is no folder.
            OSError: the folder cannot be written.
        """
        not_a_link(self._file("figures"))
        for leftover in filter(is_temporary, self.path.iterdir()):  # of a process that was killed
            if leftover.is_symlink() or not leftover.is_dir():
                leftover.unlink(missing_ok=True)
        standing, self._rows = self._row_bytes(rows), rows
        session = {"from_epoch": counts.epoch, "from_step": counts.step, "device": device, "processes": num_processes}
        self.sessions.append({**session, **provenance()})
        record = {
            "format": FORMAT,
            "run": self.identity,
            "config": asdict(self.config),
            "data": asdict(self.data),
            "sessions": self.sessions,
        }
        record = json.loads(to_json(record))  # as it will be read
        text = to_json({**record, "sha256": _digest(record)}, indent=2) + "\n"
        write_whole(self._file("config.json"), text.encode())
        write_whole(self._file("metrics.jsonl"), standing)

    @property
    def title(self) -> str:
        """System, data and test bound of the run, for the top of a figure."""
        title = f"{system_title(self.config)}, --elbo {self.config.elbo}, on {self.data.title}"
        tests = [row for row in self.metrics() if row.split == "test"]
        return f"{title}\nepoch {tests[-1].epoch}: {tests[-1]} nats" if tests else title

    def metrics(self) -> list[Metrics]:
        """Return the rows of `metrics.jsonl` up to the checkpoint, in order.

        Raises:
            InputError: one of the two is damaged.
        """
        rows = []
        for number, line in enumerate(BytesIO(self._row_bytes(self.read_checkpoint().rows)), start=1):
            try:
                rows.append(from_record(Metrics, json.loads(line)))
            except (ValueError, RecursionError) as error:
                file = self._file("metrics.jsonl")
                raise InputError(f"{file}, line {number} is damaged: {brief(error)}") from None
        return rows

    def record_epoch(self, rows: Iterable[Metrics], checkpoint: Checkpoint) -> None:
        """Add the rows of an epoch, then its checkpoint: a row without one is dropped on resumption.

        Args:
            rows: of the epoch.
            checkpoint: taken after it.

        Raises:
            InputError: `metrics.jsonl` was changed by somebody else.
            OSError: the folder cannot be written.
        """
        earlier, added = self._row_bytes(self._rows), _lines(rows)
        append(self._file("metrics.jsonl"), added)
        self._rows = _rows_of(earlier + added)
        self.save_checkpoint(checkpoint)

    def save_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Replace the checkpoint, whole, and keep the one that it replaces beside it, unless that is a damaged one."""
        content = to_bytes(replace(checkpoint, rows=self._rows, run=self.identity))
        previous = self._file(_PREVIOUS) if self._is_whole else None
        write_whole(self._file(_CHECKPOINT), content, previous=previous)
        self._is_whole = True

    def read_checkpoint(self, previous: bool = False) -> Checkpoint:
        """Return the checkpoint, on the CPU; nothing in it is executed.

        Args:
            previous: the one before it.

        Raises:
            InputError: it is missing, damaged, or no checkpoint of this run.
        """
        checkpoint = self._read(_PREVIOUS if previous else _CHECKPOINT)
        self._is_whole = self._is_whole or not previous
        return checkpoint

    @property
    def is_begun(self) -> bool:
        """Whether there ever was a checkpoint; a run that was killed before its first one has no rows either."""
        has_rows = self._file("metrics.jsonl").exists() and self._file("metrics.jsonl").stat().st_size > 0
        return has_rows or any(os.path.lexists(self._file(name)) for name in (_CHECKPOINT, _PREVIOUS))

    def vae(self) -> VAE:
        """Return the trained VAE, in eval mode, on the CPU.

        Raises:
            InputError: the checkpoint is missing, damaged, or of other networks than `config.json` says, or holds
                weights that float32 cannot square.
        """
        weights = self.read_checkpoint().vae
        for name, tensor in weights.items():
            if not tensor.square().isfinite().all():
                values = f"NaN, infinite or beyond {torch.finfo(tensor.dtype).max ** 0.5:.1e}"
                raise InputError(f"{self._file(_CHECKPOINT)}: {name} has values that are {values}: train anew")
        with torch.random.fork_rng(devices=[]):  # the weights drawn here are thrown away
            vae = build_vae(self.config, self.data.image_shape)
        vae.load_state_dict(weights)
        return vae.eval()

    def figures(self) -> Path:
        """Return the folder of its figures, made if it is missing.

        Raises:
            InputError: it is a link, or no folder.
        """
        folder = not_a_link(self._file("figures"))
        folder.mkdir(exist_ok=True)
        return folder

    def drop_figures(self) -> None:
        """Remove the figures, which will be of another epoch; files of the user's own stay."""
        folder = not_a_link(self._file("figures"))
        for path in filter(is_report, folder.iterdir() if folder.is_dir() else ()):
            path.unlink(missing_ok=True)

    def _file(self, name: str) -> Path:
        return self.path / name

    def _read(self, name: str) -> Checkpoint:
        """Read a checkpoint, as large as it may be; nothing is made of it that it does not hold."""
        file, state = self._file(name), unmade_state(self.config, self.data.image_shape)
        most = 3 * 8 * sum(tensor.numel() for tensor in state.values()) + 24 * self.data.num_train + 2**24
        try:
            with open_bounded(file, most) as opened:
                checkpoint = from_file(opened, state)
        except FileNotFoundError:
            raise InputError(f"{self.path} holds no {name}: it cannot be loaded or resumed") from None
        except OSError as error:
            raise InputError(f"{file} cannot be read ({error.strerror})") from None
        except InputError as error:
            raise InputError(f"{file} is damaged or no checkpoint of pvae: {error}") from None
        if checkpoint.run != self.identity:
            raise InputError(f"{file} and config.json are of two runs: put back the files of one")
        return checkpoint

    def _row_bytes(self, rows: Rows) -> bytes:
        """Return what stands of `metrics.jsonl`."""
        file = self._file("metrics.jsonl")
        try:
            content = b""
            if rows.num_bytes:
                with open_bounded(file, _MOST_ROWS) as opened:
                    content = opened.read(min(rows.num_bytes, _MOST_ROWS))
        except FileNotFoundError:
            if not self.path.is_dir():
                raise InputError(f"{self.path} is gone: was it moved, or removed?") from None
            content = b""
        if _rows_of(content) != rows:
            raise InputError(f"{file} is damaged: it is not what was recorded; bring a copy back, or train anew")
        return content


def load(path: str | Path) -> VAE:
    """Return the trained VAE of a run folder, in eval mode, on the CPU.

    Args:
        path: the folder that a training named at its end.

    Raises:
        InputError: the folder is no run, or its files are damaged.
    """
    return Run.open(path).vae()


def _lines(rows: Iterable[Metrics]) -> bytes:
    return "".join(to_json(asdict(row)) + "\n" for row in rows).encode()


def _rows_of(content: bytes) -> Rows:
    return Rows(len(content), hashlib.sha256(content).hexdigest())


def _digest(record: Any) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
