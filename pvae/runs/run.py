"""`Run`, an opened run folder: configuration, data, metrics of each epoch, and weights, each read once.

A run folder contains config.json (options, data record, versions), metrics.jsonl (one JSON object per line, see
`metrics.Metrics`), checkpoint.safetensors (weights, optimiser, random state, progress), the checkpoint before it, with
validation images best.safetensors (the weights of the epoch with the best bound on them), for images of files
split.csv (the name and the split of each), figures/ and TensorBoard events.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import math
import os
import platform
import shlex
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

import torch

from pvae.config.config import Config
from pvae.config.options import without_removed
from pvae.config.presets import system_title
from pvae.core.errors import InputError
from pvae.core.files import append, expanded, is_report, is_temporary, write_whole
from pvae.core.random_state import seeded
from pvae.core.records import from_record, to_json
from pvae.data.dataset import DataRecord, Dataset
from pvae.data.preparation import Preparation
from pvae.models.build import build_vae
from pvae.runs.checkpoint import Checkpoint, Counts, read_checkpoint, to_bytes
from pvae.runs.data import data_of
from pvae.runs.metrics import Metrics, best_epoch, is_out_of_patience
from pvae.vae import VAE

__all__ = ["READY_MADE", "Run", "check_out", "kept", "load", "new_folder", "provenance"]

READY_MADE = ("deep-bayes", "fashion-vae")  # names of the runs that come with pvae
_READY_MADE = Path(__file__).parents[1] / "pretrained"
_FORMAT = 2
_LINE = 72  # characters of a line of a title
_CHECKPOINT, _PREVIOUS = "checkpoint.safetensors", "checkpoint-previous.safetensors"
_BEST = "best.safetensors"
_REPORTS = ("", "figures", "scores", "samples", "onnx", "comparison")  # folders of a run that hold reports
_OWN_VAE = "built in Python: the options of config from network to scale do not describe it"

T = TypeVar("T")


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
    git = functools.partial(subprocess.run, cwd=file.parent, capture_output=True, text=True, timeout=5, check=True)
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        git(["git", "ls-files", "--error-unmatch", file.name])  # fails in the repository of another project
        commit = git(["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]).stdout.strip()
    return {
        "threads": torch.get_num_threads(),
        "versions": versions,
        "commit": commit,
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def kept(function: Callable[[Run], T]) -> Callable[[Run], T]:
    """Decorate a function of a run: its value is computed once and kept with the run, until its weights change."""

    @functools.wraps(function)
    def once(run: Run) -> T:
        return run.keep(function)

    return once


@dataclass(eq=False)
class Run:
    """An opened run folder. `fit` writes it, `Run.open` reads it.

    Metrics, weights, the VAE and the data set are read when they are first asked for, and kept. To see what another
    process has written since, open the run again.

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
    _dataset: Dataset | None = field(default=None, init=False, repr=False)
    _history: list[Metrics] | None = field(default=None, init=False, repr=False)
    _values: dict[Any, Any] = field(default_factory=dict, init=False, repr=False)  # of `kept` functions, and the VAE
    _is_whole: bool = field(default=False, init=False, repr=False)  # the last checkpoint is known to be undamaged

    @classmethod
    def new(cls, path: Path, config: Config, data: Dataset, has_own_vae: bool = False) -> Run:
        """Return a run that is not written yet; the other arguments are those of the class."""
        run = cls(path, config, data.record(), has_own_vae=has_own_vae)
        run._dataset = data
        return run

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
            content = file.read_bytes()
        except OSError as error:
            why = f"config.json cannot be read ({error.strerror})"
            if not os.path.lexists(path):  # also False for a name that is too long
                why = "there is nothing of that name"
            elif runs := sorted(path.glob("*/config.json")):
                why = f"it is a folder of run folders: give one of them, for instance {runs[0].parent}"
            raise InputError(f"{path} is not a run folder: {why}") from None
        try:
            record = json.loads(content)
            if record["format"] != _FORMAT:
                raise InputError(f"its format is not {_FORMAT}")
            options = without_removed(dict(record["config"]))
            if isinstance(size := options.get("image_size"), int):  # of earlier versions, as second_latent_dim
                options["image_size"] = str(size)
            if options.get("alpha") == "-inf":  # JSON has no infinity
                options["alpha"] = -math.inf
            if options.get("second_latent_dim") == 0:
                del options["second_latent_dim"], options["second_hidden"]
            config, data = from_record(Config, options), from_record(DataRecord, record["data"])
            return cls(path, config, data, record["sessions"], record["run"], "own_vae" in record)
        except (InputError, KeyError, TypeError, ValueError, RecursionError) as error:
            raise InputError(
                f"{file} is damaged or of another version of pvae ({error}): restore a copy of it, or use the version "
                "that wrote it"
            ) from None

    @property
    def place(self) -> Path:
        """Where pictures and reports of the run are written: its folder, or runs/NAME for a ready-made run."""
        return Path("runs") / self.path.name if self.path.parent == _READY_MADE else self.path

    # Reading: what was trained.

    def keep(self, function: Callable[[Run], T]) -> T:
        """Return function(self), which is computed at the first call and then kept; `kept` calls it."""
        if function not in self._values:
            self._values[function] = function(self)
        return self._values[function]

    def dataset(
        self, data: Dataset | None = None, data_dir: str | Path | None = None, offline: bool = False
    ) -> Dataset:
        """Return the data set that the run was trained on, after comparing its SHA-256 with the run's record.

        The arguments are used at the first call; later calls return the same data set.

        Args:
            data: the images, if the run was trained on images given from Python.
            data_dir: the folder to search first; by default the one in the run's record.
            offline: do not download.

        Raises:
            InputError: the data set cannot be found, or its images differ from those in the run's record.
        """
        if self._dataset is None:
            self._dataset = data_of(self, data, data_dir, offline)
        return self._dataset

    @property
    def preparation(self) -> Preparation:
        """How the bytes of images become the x of the VAE."""
        return Preparation.of(self.config)

    def seeded(self) -> contextlib.AbstractContextManager[None]:
        """Return a context manager that seeds torch's generator with the run's seed, and restores its state at exit."""
        return seeded(self.config.seed, torch.device("cpu"))

    def metrics(self, epoch: int | None = None) -> list[Metrics]:
        """Return the metrics of the finished epochs.

        Args:
            epoch: the last of these epochs, at the first call; by default that of the last checkpoint.

        Raises:
            InputError: `metrics.jsonl` or the checkpoint is damaged.
        """
        if self._history is None:
            self._history = self._read_metrics(self.last_checkpoint().counts.epoch if epoch is None else epoch)
        return list(self._history)

    def _read_metrics(self, epoch: int) -> list[Metrics]:
        file, rows = self.path / "metrics.jsonl", list[Metrics]()
        if not self.path.is_dir():
            raise InputError(f"{self.path} does not exist any more: was it moved or removed?")
        with contextlib.suppress(InputError, ValueError, RecursionError):  # a line that was not written to its end
            for line in file.read_bytes().splitlines() if file.exists() else ():
                row = from_record(Metrics, json.loads(line))
                if row.epoch > epoch:  # the process was killed before it wrote the checkpoint of this epoch
                    break
                rows.append(row)
        if [row.epoch for row in rows if row.split == "test"] != list(range(1, epoch + 1)):
            raise InputError(
                f"{file} is damaged: it lacks rows of the {epoch} finished epochs; restore a copy of it, or train anew"
            )
        return rows

    def test_metrics(self) -> Metrics | None:
        """Return the test metrics of the epoch whose weights `vae` returns, or None if no epoch is finished.

        Raises:
            InputError: `metrics.jsonl` or a checkpoint is damaged.
        """
        epoch = self.best_checkpoint().counts.epoch
        return next((row for row in self.metrics() if (row.epoch, row.split) == (epoch, "test")), None)

    @property
    def title(self) -> str:
        """System, data set and progress of `best_checkpoint`, and its test bound, for titles of figures."""
        checkpoint = self.best_checkpoint()
        elbo = "" if self.config.posterior == "delta" else f", --elbo {self.config.elbo}"
        first, data = f"{system_title(self.config)}{elbo},", f"on {self.data.title}"
        title = f"{first}{' ' if len(first) + len(data) < _LINE else chr(10)}{data}\n{checkpoint.progress}"
        if checkpoint.unfinished is not None:  # metrics.jsonl has no bound of these weights
            return title
        test, is_best = self.test_metrics(), checkpoint.counts.epoch == best_epoch(self.metrics())
        title += ", the best on the validation images" if is_best else ""
        return title + ("" if test is None else f"{chr(10) if is_best else ': '}{test} nats{self.bits(test)}")

    def bits(self, row: Metrics) -> str:
        """Return ", 3.210 bits per dimension" for the bound of a row; "" if the likelihood has no levels of a pixel."""
        if self.config.likelihood != "discretized-logistic" or self.has_own_vae or row.elbo is None:
            return ""
        num_values = math.prod(self.config.padded(self.data.image_shape))
        return f", {-row.elbo / (num_values * math.log(2)):.3f} bits per dimension"

    def read_checkpoint(self, previous: bool = False) -> Checkpoint:
        """Read the last checkpoint, or the one before it, onto the CPU, without executing anything in it.

        Raises:
            InputError: the checkpoint is missing, damaged, or of another run.
        """
        checkpoint = self._read(_PREVIOUS if previous else _CHECKPOINT)
        self._is_whole = self._is_whole or not previous
        return checkpoint

    def _read(self, name: str) -> Checkpoint:
        file = self.path / name
        try:
            checkpoint = read_checkpoint(file)
        except OSError as error:
            why = f"{file} cannot be read ({error.strerror})"
            raise InputError(f"{why}: restore a copy of it, or train anew") from None
        except InputError as error:
            raise InputError(f"{file} is damaged, or not a checkpoint of pvae: {error}") from None
        if checkpoint.run != self.identity:
            raise InputError(f"{file} and config.json are of two runs: restore the files of one run")
        return checkpoint

    @kept
    def last_checkpoint(self) -> Checkpoint:
        """Return the last checkpoint, from which a training is resumed.

        Raises:
            InputError: it is missing, damaged, or of another run; the message says if the one before it is intact.
        """
        try:
            return self.read_checkpoint()
        except InputError as error:
            try:
                self.read_checkpoint(previous=True)
            except InputError:
                raise error from None
            how = f"python -m pvae.train --resume {shlex.quote(str(self.path))}"
            raise InputError(f"{error}; {how} goes on from the one before it") from None

    @kept
    def best_checkpoint(self) -> Checkpoint:
        """Return the checkpoint of the epoch with the best bound on the validation images; without these, the last one.

        If best.safetensors is missing or damaged, it is the last one, and a note says so.

        Raises:
            InputError: as for `last_checkpoint`, or `metrics.jsonl` is damaged.
        """
        last, best = self.last_checkpoint(), best_epoch(self.metrics())
        if best is None or (last.counts.epoch == best and last.unfinished is None):
            return last
        try:
            checkpoint = self._read(_BEST)
            if checkpoint.counts.epoch != best:
                raise InputError(f"{self.path / _BEST} is not of epoch {best}, the best on the validation images")
            return checkpoint
        except InputError as error:
            print(f"note: {error}; the weights are those of the last checkpoint, {last.progress}", file=sys.stderr)
            return last

    def vae(self, vae: VAE | None = None) -> VAE:
        """Return the trained VAE with the weights of `best_checkpoint`, in eval mode, on the CPU.

        Each call returns the same object.

        Args:
            vae: a VAE of the same modules, if the run trained a VAE that was built in Python; it gets the weights. It
                may be left out of later calls.

        Raises:
            InputError: the checkpoint is missing, damaged, or of other networks than those of `config.json` or `vae`;
                a weight is NaN, or so large that its square overflows; or `vae` is missing or given without need.
        """
        if vae is None and "vae" in self._values:
            return self._values["vae"]
        self.check_vae(vae)
        if vae is not None:
            self._values.clear()  # what was computed with another VAE
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
            why = " ".join(str(error).split())[:200]  # torch names the class, and then each parameter
            raise InputError(f"the weights of {self.path} do not fit the VAE: {why}") from None
        self._values["vae"] = vae.cpu().eval()
        return vae

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
        """What to do in Python with a run whose VAE or images no command can find."""
        path, given = repr(str(self.path)), ", vae=vae" * self.has_own_vae + ", data=data" * (not self.data.dataset)
        calls = ["run.vae(vae)"] * self.has_own_vae + ["run.dataset(data)"] * (not self.data.dataset)
        return (
            f"in Python, pvae.resume({path}{given}) resumes it, and after run = pvae.Run.open({path}); "
            f"{'; '.join(calls)}, pvae.plotting.pictures and pvae.evaluation.report.evaluate take run"
        )

    @property
    def is_begun(self) -> bool:
        """Whether a checkpoint was ever written; a run that was killed before that has no rows either."""
        rows = self.path / "metrics.jsonl"
        has_rows = rows.exists() and rows.stat().st_size > 0
        return has_rows or any((self.path / name).exists() for name in (_CHECKPOINT, _PREVIOUS))

    def is_finished(self, checkpoint: Checkpoint | None) -> bool:
        """Return whether the run has all its epochs at this checkpoint, or has run out of patience, and its figures.

        Raises:
            InputError: `metrics.jsonl` is damaged.
        """
        if checkpoint is None or checkpoint.unfinished is not None:
            return False
        rows = self.metrics(checkpoint.counts.epoch)  # raises if damaged
        if checkpoint.counts.epoch < self.config.epochs and not is_out_of_patience(rows, self.config.patience):
            return False
        return (self.path / "figures" / "losses.png").exists()  # the last one that training draws

    # Writing: called by `training.fit` alone.

    def begin_session(self, counts: Counts, device: str, num_processes: int = 1) -> None:
        """Record a new session in `config.json`, and remove rows of `metrics.jsonl` after its checkpoint.

        Args:
            counts: progress at the start of the session.
            device: the device that trains.
            num_processes: number of processes that train together.

        Raises:
            InputError: `metrics.jsonl` is damaged.
            OSError: the folder cannot be written.
        """
        for temporary in filter(is_temporary, self.path.iterdir()):  # left by a process that was killed
            temporary.unlink(missing_ok=True)
        rows = self.metrics(counts.epoch)
        session = {"from_epoch": counts.epoch, "from_step": counts.step, "device": device, "processes": num_processes}
        self.sessions.append({**session, **provenance()})
        self._write_config()
        write_whole(self.path / "metrics.jsonl", _lines(rows))

    def record_choice(self, chosen: dict[str, Any]) -> None:
        """Record the engine and the number of threads that the first steps have chosen; nothing if it is empty."""
        if {**self.sessions[-1], **chosen} != self.sessions[-1]:
            self.sessions[-1].update(chosen)
            self._write_config()

    def _write_config(self) -> None:
        record = {
            "format": _FORMAT,
            "run": self.identity,
            **({"own_vae": _OWN_VAE} if self.has_own_vae else {}),
            "config": asdict(self.config) | ({"alpha": "-inf"} if self.config.alpha == -math.inf else {}),
            "data": asdict(self.data),
            "sessions": self.sessions,
        }
        write_whole(self.path / "config.json", f"{to_json(record, indent=2)}\n".encode())

    def record_epoch(self, rows: Iterable[Metrics], checkpoint: Checkpoint) -> None:
        """Append the rows of an epoch, and then write the checkpoint, without which the rows are not valid.

        Args:
            rows: metrics of the epoch.
            checkpoint: the state after the epoch.

        Raises:
            OSError: the folder cannot be written.
        """
        rows, file = list(rows), self.path / "metrics.jsonl"
        if not file.is_file():  # the folder was emptied or replaced
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(file))
        self._history = [*self.metrics(checkpoint.counts.epoch - 1), *rows]
        append(file, _lines(rows))
        self.save_checkpoint(checkpoint)
        self.keep_best(checkpoint)

    def save_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Write the checkpoint, and keep the previous one unless it is damaged."""
        previous = self.path / _PREVIOUS if self._is_whole else None
        write_whole(self.path / _CHECKPOINT, to_bytes(replace(checkpoint, run=self.identity)), previous=previous)
        self._is_whole = True
        self._values.clear()

    def keep_best(self, checkpoint: Checkpoint) -> None:
        """Write the weights of a checkpoint to best.safetensors if it is that of the best epoch of the metrics."""
        counts = checkpoint.counts
        if checkpoint.unfinished is None and best_epoch(self.metrics(counts.epoch)) == counts.epoch:
            weights = Checkpoint(counts=counts, vae=checkpoint.vae, moments={}, rng={}, run=self.identity)
            write_whole(self.path / _BEST, to_bytes(weights))

    def discard(self) -> None:
        """Remove the folder of a new run whose training could not start."""
        with contextlib.suppress(OSError):
            for name in ("config.json", "metrics.jsonl", "split.csv"):
                (self.path / name).unlink(missing_ok=True)
            self.path.rmdir()

    def figures(self) -> Path:
        """Return the folder of the run's figures, which is made if it is missing."""
        folder = self.path / "figures"
        folder.mkdir(exist_ok=True)
        return folder

    def drop_reports(self) -> None:
        """Remove the pictures and reports that pvae wrote of earlier weights; other files stay."""
        for folder in (self.path / name for name in _REPORTS):
            for path in filter(is_report, folder.iterdir() if folder.is_dir() else ()):
                path.unlink(missing_ok=True)


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


def _lines(rows: Iterable[Metrics]) -> bytes:
    return "".join(to_json(asdict(row)) + "\n" for row in rows).encode()
