"""`Run`, a run folder: configuration, data record, metrics of each epoch, and checkpoints.

A run folder contains config.json (options, data record, versions), metrics.jsonl (one JSON object per line, see
`metrics.Metrics`), checkpoint.safetensors (weights, optimiser, random state, progress), the checkpoint before it, with
validation images best.safetensors (the weights of the epoch with the best bound on them), for images of files
split.csv (the name and the split of each), figures/ and TensorBoard events. The checkpoint stores the length and
SHA-256 of the valid part of metrics.jsonl.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import platform
import subprocess
import uuid
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from pvae.config.config import Config
from pvae.config.presets import system_title
from pvae.core.errors import InputError, brief
from pvae.core.files import (
    append,
    expanded,
    is_report,
    is_temporary,
    not_a_link,
    open_bounded,
    read_bounded,
    write_whole,
)
from pvae.core.records import from_record, to_json
from pvae.data.dataset import DataRecord
from pvae.models.build import build_vae, meta_state_dict
from pvae.runs.checkpoint import NO_ROWS, Checkpoint, Counts, Rows, read_checkpoint, to_bytes
from pvae.runs.metrics import Metrics, best_epoch, is_out_of_patience
from pvae.vae import VAE

__all__ = ["READY_MADE", "Run", "check_out", "load", "provenance"]

READY_MADE = ("deep-bayes", "fashion-vae")  # names of the runs that come with pvae
_READY_MADE = Path(__file__).parents[1] / "pretrained"
_FORMAT = 2
_LINE = 72  # characters of a line of a title
_CHECKPOINT, _PREVIOUS = "checkpoint.safetensors", "checkpoint-previous.safetensors"
_BEST = "best.safetensors"
_MAX_JSON_BYTES = 2**22  # of config.json: enough for some thousands of sessions
_MAX_ROW_BYTES = 2**27  # of metrics.jsonl: enough for some 200,000 epochs
_OWN_VAE = "built in Python: the options of config from network to scale do not describe it"


def check_out(path: Path) -> Path:
    """Return the path of a folder for a new run, which must be missing or empty.

    Raises:
        InputError: the folder exists and is not empty, is not a folder, or cannot be read.
    """
    try:
        taken = path.exists() and (not path.is_dir() or any(not is_temporary(one) for one in path.iterdir()))
    except OSError as error:
        raise InputError(f"--out {path} cannot be read ({error.strerror}): name another folder") from None
    if taken:
        raise InputError(f"--out {path} exists and is not an empty folder: name another, or --resume it")
    return path


def new_folder(path: Path | None, config: Config) -> Path:
    """Make the folder `path`, or `runs/<time>-<system>-<elbo>` if `path` is None, and return its path.

    Raises:
        InputError: the folder cannot be written.
    """
    name = f"{datetime.now():%Y-%m-%d-%H%M%S}-{config.system}-{config.elbo}"
    folder = path or Path("runs") / name
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        if path is not None:
            folder.mkdir(exist_ok=True)
            return folder
        number = 1
        while True:
            with contextlib.suppress(FileExistsError):  # another training started in the same second
                folder.mkdir()
                return folder
            number += 1
            folder = Path("runs") / f"{name}-{number}"
    except OSError as error:
        option = f"--out {path}" if path else "./runs"
        raise InputError(f"{option} cannot be written ({error.strerror}): name a folder with --out") from None


def provenance() -> dict[str, object]:
    """Return threads, package versions, the commit of pvae's checkout ("-dirty" if it was edited), and the time."""
    versions = {"python": platform.python_version()}
    for name in ("pvae", "torch", "pyro-ppl", "torchvision", "numpy"):
        try:
            versions[name] = version("pvae-pyro" if name == "pvae" else name)
        except PackageNotFoundError:  # a source tree that is not installed
            versions[name] = "unknown"
    file, commit = Path(__file__).resolve(), None
    git = partial(subprocess.run, cwd=file.parent, capture_output=True, text=True, timeout=5, check=True)
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        git(["git", "ls-files", "--error-unmatch", file.name])  # fails in the repository of another project
        commit = git(["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]).stdout.strip()
    return {
        "threads": torch.get_num_threads(),
        "versions": versions,
        "commit": commit,
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


@dataclass(eq=False)
class Run:
    """A run folder. `fit` writes it, `Run.open` reads it.

    Args:
        path: the folder.
        config: configuration of the training.
        data: record of the data set.
        sessions: for each process that trained the run: first epoch, device, threads, versions, commit, time.
        identity: a unique name, stored in `config.json` and in the checkpoints.
        has_own_vae: the VAE was built in Python and given to `fit`; `config` does not describe its networks.
    """

    path: Path
    config: Config
    data: DataRecord
    sessions: list[dict[str, Any]] = field(default_factory=list)
    identity: str = field(default_factory=lambda: uuid.uuid4().hex)
    has_own_vae: bool = False
    _rows: Rows = field(default=NO_ROWS, init=False, repr=False)
    _is_whole: bool = field(default=False, init=False, repr=False)  # the last checkpoint is known to be undamaged

    @classmethod
    def open(cls, path: str | Path) -> Run:
        """Return the run in a folder.

        Args:
            path: the folder; or the name of a run that comes with pvae, "deep-bayes" or "fashion-vae", if there is no
                run folder of that name.

        Raises:
            InputError: the path is empty, the folder is not a run folder, or its `config.json` is damaged.
        """
        path = expanded(path, "the run folder")
        if str(path) in READY_MADE and not (path / "config.json").exists():
            path = _READY_MADE / path
        file = path / "config.json"
        try:
            record = json.loads(read_bounded(file, _MAX_JSON_BYTES))
        except InputError:
            raise
        except OSError as error:
            why = f"{file} cannot be read ({error.strerror})"
            if isinstance(error, FileNotFoundError):
                why = "it holds no config.json"
            if not os.path.lexists(path):  # also False for a name that is too long
                why = "there is nothing of that name"
            elif runs := sorted(path.glob("*/config.json")):
                why = f"it is a folder of run folders: give one of them, for instance {runs[0].parent}"
            raise InputError(f"{path} is not a run folder: {why}") from None
        except (ValueError, RecursionError):
            raise InputError(f"{file} is damaged: it is not JSON; restore a copy of it, or train anew") from None
        if not isinstance(record, dict) or record.get("format") != _FORMAT:
            raise InputError(f"{file} is not the record of a run of this version of pvae (format {_FORMAT})")
        try:
            if record.pop("sha256", None) != _digest(record):
                raise InputError("it is not what pvae wrote")
            options = record["config"]
            if isinstance(options, dict):
                options = dict(options)
                if isinstance(size := options.get("image_size"), int):  # of earlier versions, as second_latent_dim
                    options["image_size"] = str(size)
                if options.get("alpha") == "-inf":  # JSON has no infinity
                    options["alpha"] = -math.inf
                if options.get("second_latent_dim") == 0:
                    del options["second_latent_dim"], options["second_hidden"]
            config, data = from_record(Config, options), from_record(DataRecord, record["data"])
            return cls(path, config, data, record["sessions"], record["run"], "own_vae" in record)
        except (InputError, KeyError, RecursionError) as error:
            raise InputError(
                f"{file} is damaged or of another version of pvae ({error}): restore a copy of it, or use the version "
                "that wrote it; to change an option, start a new run"
            ) from None

    @property
    def place(self) -> Path:
        """Where pictures and reports of the run are written: its folder, or runs/NAME for a ready-made run."""
        return Path("runs") / self.path.name if self.path.parent == _READY_MADE else self.path

    def discard(self) -> None:
        """Remove the folder of a new run whose training could not start."""
        with contextlib.suppress(OSError):
            for name in ("config.json", "metrics.jsonl", "split.csv"):
                (self.path / name).unlink(missing_ok=True)
            self.path.rmdir()

    def begin_session(self, counts: Counts, rows: Rows, device: str, num_processes: int = 1) -> None:
        """Record a new session in `config.json`, and remove the rows of `metrics.jsonl` after its checkpoint.

        Args:
            counts: progress at the start of the session.
            rows: the valid part of `metrics.jsonl`.
            device: the device that trains.
            num_processes: number of processes that train together.

        Raises:
            InputError: `metrics.jsonl` is damaged, or figures/ is not a folder.
            OSError: the folder cannot be written.
        """
        not_a_link(self.path / "figures")
        for temporary in filter(is_temporary, self.path.iterdir()):  # left by a process that was killed
            if temporary.is_symlink() or not temporary.is_dir():
                temporary.unlink(missing_ok=True)
        valid, self._rows = self._row_bytes(rows), rows
        session = {"from_epoch": counts.epoch, "from_step": counts.step, "device": device, "processes": num_processes}
        self.sessions.append({**session, **provenance()})
        record = {
            "format": _FORMAT,
            "run": self.identity,
            **({"own_vae": _OWN_VAE} if self.has_own_vae else {}),
            "config": asdict(self.config) | ({"alpha": "-inf"} if self.config.alpha == -math.inf else {}),
            "data": asdict(self.data),
            "sessions": self.sessions,
        }
        record = json.loads(to_json(record))  # lists in place of tuples, as `open` reads them
        text = to_json({**record, "sha256": _digest(record)}, indent=2) + "\n"
        write_whole(self.path / "config.json", text.encode())
        write_whole(self.path / "metrics.jsonl", valid)

    @property
    def title(self) -> str:
        """System, data set and progress of `best_checkpoint`, and its test bound, for titles of figures."""
        checkpoint = self.best_checkpoint()
        if checkpoint.unfinished is not None:  # metrics.jsonl has no bound of these weights
            return self._title(checkpoint.progress)
        chosen = ", the best on the validation images" if self.config.valid and checkpoint.counts.epoch else ""
        return self.title_at(checkpoint.counts.epoch, chosen)

    def title_at(self, epoch: int, chosen: str = "") -> str:
        """Return the title of figures at a finished epoch, or at 0; `chosen` says why it is this epoch."""
        test = next((row for row in self.metrics() if (row.epoch, row.split) == (epoch, "test")), None)
        end = "\n" if chosen else ": "
        return self._title(f"epoch {epoch}{chosen}" + ("" if test is None else f"{end}{test} nats{self.bits(test)}"))

    def _title(self, progress: str) -> str:
        elbo = "" if self.config.posterior == "delta" else f", --elbo {self.config.elbo}"
        first, data = f"{system_title(self.config)}{elbo},", f"on {self.data.title}"
        space = " " if len(first) + len(data) < _LINE else "\n"
        return f"{first}{space}{data}\n{progress}"

    def bits(self, row: Metrics) -> str:
        """Return ", 3.210 bits per dimension" for the bound of a row; "" if the likelihood has no levels of a pixel."""
        if self.config.likelihood != "discretized-logistic" or self.has_own_vae or row.elbo is None:
            return ""
        num_values = math.prod(self.config.padded(self.data.image_shape))
        return f", {-row.elbo / (num_values * math.log(2)):.3f} bits per dimension"

    def metrics(self, rows: Rows | None = None) -> list[Metrics]:
        """Return the rows of `metrics.jsonl` that were written before a checkpoint.

        Args:
            rows: the valid part, as the checkpoint says; by default that of the last checkpoint.

        Raises:
            InputError: `metrics.jsonl` or the checkpoint is damaged.
        """
        content = self._row_bytes(self.read_checkpoint().rows if rows is None else rows)
        return [from_record(Metrics, json.loads(line)) for line in content.splitlines()]

    def test_metrics(self) -> Metrics | None:
        """Return the test metrics of the epoch whose weights `vae` returns, or None if no epoch is finished.

        Raises:
            InputError: `metrics.jsonl` or the checkpoint is damaged.
        """
        rows = self.metrics()
        best = best_epoch(rows)
        tests = (row for row in reversed(rows) if row.split == "test" and best in (None, row.epoch))
        return next(tests, None)

    def record_epoch(self, rows: Iterable[Metrics], checkpoint: Checkpoint) -> None:
        """Append the rows of an epoch, and then write the checkpoint, without which the rows are not valid.

        Args:
            rows: metrics of the epoch.
            checkpoint: the state after the epoch.

        Raises:
            InputError: another process changed `metrics.jsonl`.
            OSError: the folder cannot be written.
        """
        earlier, added = self._row_bytes(self._rows), "".join(to_json(asdict(row)) + "\n" for row in rows).encode()
        append(self.path / "metrics.jsonl", added)
        self._rows = _rows_of(earlier + added)
        self.save_checkpoint(checkpoint)
        self.keep_best(checkpoint)

    def save_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Write the checkpoint, and keep the previous one unless it is damaged."""
        content = to_bytes(replace(checkpoint, rows=self._rows, run=self.identity))
        previous = self.path / _PREVIOUS if self._is_whole else None
        write_whole(self.path / _CHECKPOINT, content, previous=previous)
        self._is_whole = True

    def keep_best(self, checkpoint: Checkpoint) -> None:
        """Write the weights of a checkpoint to best.safetensors if it is that of the best epoch of `metrics.jsonl`."""
        counts = checkpoint.counts
        if checkpoint.unfinished is None and best_epoch(self.metrics(self._rows)) == counts.epoch:
            weights = Checkpoint(
                counts=counts, vae=checkpoint.vae, moments={}, rng={}, rows=self._rows, run=self.identity
            )
            write_whole(self.path / _BEST, to_bytes(weights))

    def best_checkpoint(self) -> Checkpoint:
        """Return the checkpoint of the epoch with the best bound on the validation images; without these, the last one.

        Raises:
            InputError: as for `read_checkpoint`, or `metrics.jsonl` is damaged.
        """
        last, best = self.read_checkpoint(), best_epoch(self.metrics())
        if best is None or (last.counts.epoch == best and last.unfinished is None):
            return last
        checkpoint = self._read(self.path / _BEST)
        if checkpoint.counts.epoch != best:
            raise InputError(
                f"{self.path / _BEST} is of epoch {checkpoint.counts.epoch}, and metrics.jsonl names epoch {best} as "
                "the best: restore the files of one run, or resume the run"
            )
        return checkpoint

    def read_checkpoint(self, previous: bool = False) -> Checkpoint:
        """Return the last checkpoint, on the CPU, without executing anything in it.

        Args:
            previous: return the checkpoint before the last one.

        Raises:
            InputError: the checkpoint is missing, damaged, or of another run.
        """
        checkpoint = self._read(self.path / (_PREVIOUS if previous else _CHECKPOINT))
        self._is_whole = self._is_whole or not previous
        return checkpoint

    def _read(self, file: Path) -> Checkpoint:
        like = None if self.has_own_vae else meta_state_dict(self.config, self.data.image_shape)
        try:
            checkpoint = read_checkpoint(file, like)
        except OSError as error:
            missing = f"{self.path} holds no {file.name}: restore a copy of it, or train anew"
            why = missing if isinstance(error, FileNotFoundError) else f"{file} cannot be read ({error.strerror})"
            raise InputError(why) from None
        except InputError as error:
            raise InputError(f"{file} is damaged, or not a checkpoint of pvae: {error}") from None
        if checkpoint.run != self.identity:
            raise InputError(f"{file} and config.json are of two runs: restore the files of one run")
        return checkpoint

    @property
    def is_begun(self) -> bool:
        """Whether a checkpoint was ever written; a run that was killed before that has no rows either."""
        rows = self.path / "metrics.jsonl"
        has_rows = rows.exists() and rows.stat().st_size > 0
        return has_rows or any(os.path.lexists(self.path / name) for name in (_CHECKPOINT, _PREVIOUS))

    def is_finished(self, checkpoint: Checkpoint | None) -> bool:
        """Return whether the run has all its epochs at this checkpoint, or has run out of patience, and its figures.

        Raises:
            InputError: `metrics.jsonl` is damaged.
        """
        if checkpoint is None or checkpoint.unfinished is not None:
            return False
        rows = self.metrics(checkpoint.rows)  # raises if damaged
        if checkpoint.counts.epoch < self.config.epochs and not is_out_of_patience(rows, self.config.patience):
            return False
        return (self.path / "figures" / "losses.png").exists()  # the last one that training draws

    def vae(self, vae: VAE | None = None) -> VAE:
        """Return the trained VAE with the weights of `best_checkpoint`, in eval mode, on the CPU.

        Args:
            vae: a VAE of the same modules, if the run trained a VAE that was built in Python; it gets the weights.

        Raises:
            InputError: the checkpoint is missing, damaged, or of other networks than those of `config.json` or `vae`;
                a weight is NaN, or so large that its square overflows; or `vae` is missing or given without need.
        """
        self.check_vae(vae)
        weights = self.best_checkpoint().vae
        for name, tensor in weights.items():
            if not tensor.square().isfinite().all():
                values = f"NaN, infinite or beyond {torch.finfo(tensor.dtype).max ** 0.5:.1e}"
                raise InputError(f"the weights of {self.path}: {name} has values that are {values}: train anew")
        if vae is None:
            with torch.random.fork_rng(devices=[]):  # the initial weights are replaced below
                vae = build_vae(self.config, self.data.image_shape)
        try:
            vae.load_state_dict(weights)
        except RuntimeError as error:
            _, _, what = str(error).partition("\n")  # torch names the class in the first line, then parameters
            why = " ".join(what.split())[:150] or brief(error)
            raise InputError(f"the weights of {self.path} do not fit the VAE given ({why})") from None
        return vae.cpu().eval()

    def check_vae(self, vae: VAE | None) -> None:
        """Check that a VAE is given if and only if the run trained one that was built in Python.

        Raises:
            InputError: `vae` is missing, or given without need.
        """
        if self.has_own_vae and vae is None:
            raise InputError(
                f"{self.path} trained a VAE that was built in Python: build it again, and give it as "
                f"pvae.load({str(self.path)!r}, vae=vae); {self.in_python}"
            )
        if vae is not None and not self.has_own_vae:
            raise InputError(f"{self.path} trained the VAE that its config.json describes: leave vae out")

    @property
    def in_python(self) -> str:
        """What to do in Python with a run whose VAE or images no command can find, in words."""
        path, own, is_own_data = repr(str(self.path)), self.has_own_vae, not self.data.dataset
        data = "data" if is_own_data else "pvae.runs.data.data_of(run)"
        return (
            f"in Python, pvae.resume({path}{', vae=vae' * own}{', data=data' * is_own_data}) resumes it, and "
            "pvae.plotting.pictures and pvae.evaluation.report.evaluate take "
            f"pvae.trained.trained_run.TrainedRun(run, run.vae({'vae' * own}), {data}), "
            f"with run = pvae.Run.open({path})"
        )

    def figures(self) -> Path:
        """Return the folder of the run's figures, which is made if it is missing.

        Raises:
            InputError: it is a link, or not a folder.
        """
        folder = not_a_link(self.path / "figures")
        folder.mkdir(exist_ok=True)
        return folder

    def drop_figures(self) -> None:
        """Remove the figures that pvae drew; other files in the folder stay."""
        folder = not_a_link(self.path / "figures")
        for path in filter(is_report, folder.iterdir() if folder.is_dir() else ()):
            path.unlink(missing_ok=True)

    def _row_bytes(self, rows: Rows) -> bytes:
        """Return the valid part of `metrics.jsonl`."""
        file = self.path / "metrics.jsonl"
        content = b""
        if rows.num_bytes and file.exists():
            with open_bounded(file, _MAX_ROW_BYTES) as opened:
                content = opened.read(min(rows.num_bytes, _MAX_ROW_BYTES))
        elif not self.path.is_dir():
            raise InputError(f"{self.path} does not exist any more: was it moved or removed?")
        if _rows_of(content) != rows:
            raise InputError(
                f"{file} is damaged: it is not what was recorded; restore a copy of it, or start a new run"
            )
        return content


def load(path: str | Path, vae: VAE | None = None) -> VAE:
    """Return the trained VAE of a run folder, in eval mode, on the CPU.

    Args:
        path: the run folder, which a training prints at its end; or "deep-bayes" or "fashion-vae", runs that come with
            pvae.
        vae: a VAE of the same modules, if the run trained a VAE that was built in Python; it gets the weights.

    Raises:
        InputError: the folder is not a run folder, its files are damaged, or `vae` is missing.
    """
    return Run.open(path).vae(vae)


def _rows_of(content: bytes) -> Rows:
    return Rows(len(content), hashlib.sha256(content).hexdigest())


def _digest(record: Any) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
