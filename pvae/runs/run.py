"""`Run`, an opened run folder: configuration, data, metrics of each epoch, and weights, each read once.

A run folder contains config.json (options, data record, versions), metrics.jsonl (one JSON object per line, see
`metrics.Metrics`), checkpoint.safetensors (weights, optimiser, random state, progress), with validation images
best.safetensors (the weights of the epoch with the best bound on them), of images and two latents history.safetensors
(instants of the training), for images of files split.csv (the name and the split of each), figures/ and TensorBoard
events.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import json
import math
import os
import re
import shlex
import uuid
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Concatenate, NamedTuple, ParamSpec, TypeVar

import numpy as np
import torch
from torch import Tensor

from pvae.config.build import build_vae, preparation_of
from pvae.config.config import Config
from pvae.config.presets import as_option, system_title
from pvae.core import __version__
from pvae.core.errors import InputError
from pvae.core.files import expanded, from_record, to_json, write_whole
from pvae.core.random_state import seeded
from pvae.data.dataset import Dataset
from pvae.data.files import NotFoundError
from pvae.data.preparation import Preparation
from pvae.data.read import read, read_again
from pvae.data.sources import SETS
from pvae.runs.checkpoint import Checkpoint, read_checkpoint
from pvae.runs.metrics import Metrics, best_epoch, is_out_of_patience, read_metrics
from pvae.tables.schema import DataRecord
from pvae.vae import VAE

CONFIG = "config.json"
CHECKPOINT = "checkpoint.safetensors"
METRICS = "metrics.jsonl"
BEST = "best.safetensors"
HISTORY = "history.safetensors"
HISTORY_ROWS = 500
OWN_CODE = "vae.py"  # the text of the file that --vae named; it is never run from here
READY_MADE = ("deep-bayes", "fashion-vae")  # names of the runs that come with pvae
_READY_MADE = Path(__file__).parents[1] / "pretrained"
_FORMAT = 3
_OWN_VAE = "built in Python: the options of config from network to scale do not describe it"
_OWN_BETA = "a function of the step, given to fit"

T = TypeVar("T")
P = ParamSpec("P")


def cached(function: Callable[Concatenate[Run, P], T]) -> Callable[Concatenate[Run, P], T]:
    """Decorate a function of a run: its value is computed once and kept with the run, until its weights change."""

    @functools.wraps(function)
    def once(run: Run, /, *arguments: P.args, **named: P.kwargs) -> T:
        key = (function, *arguments, *named.items())
        if key not in run.cache:
            run.cache[key] = function(run, *arguments, **named)
        return run.cache[key]

    return once


class Instant(NamedTuple):
    """What is kept of a training after some steps.

    Args:
        step: number of steps.
        codes: of the first `HISTORY_ROWS` of the `shown_rows` of the test data, (N, 2).
        distortion: the mean distortion of these data, nats, from one draw of z for each.
        rate: their mean rate, nats.
        weights: the state of the VAE, at a few of the instants; {} at the others.
    """

    step: int
    codes: Tensor
    distortion: float
    rate: float
    weights: Mapping[str, Tensor]


@dataclass(eq=False)
class Run:
    """An opened run folder. `fit` writes it, `Run.open` reads it.

    Metrics, weights, the VAE and the data set are read when they are first asked for, and kept. To see what another
    process has written since, open the run again.

    Args:
        path: the folder.
        config: configuration of the training.
        data: record of the data set.
        sessions: for each session that trained the run: its first epoch and step, device, number of processes and of
            threads, engine, versions, commit and time.
        identity: a unique name, stored in `config.json` and in the checkpoints.
        has_own_vae: the VAE was built in Python and given to `fit`; `config` does not describe its networks.
        has_own_beta: the weight of the rate was a function that was given to `fit`.
        start: of a training that started from another run: its identity, its folder, and its progress then; else {}.
        vae_place: FILE.py:FUNCTION, which built that VAE, or "".
        code: the text of that file, which is kept in the run folder as vae.py; "" if there is none.
        loaded: the data set, once it was read.

    Attributes:
        cache: what `cached` functions have returned, and the VAE.
    """

    path: Path
    config: Config
    data: DataRecord
    sessions: list[dict[str, Any]] = field(default_factory=list)
    identity: str = field(default_factory=lambda: uuid.uuid4().hex)
    has_own_vae: bool = False
    has_own_beta: bool = False
    start: dict[str, str] = field(default_factory=dict)
    vae_place: str = ""
    code: str = field(default="", repr=False)
    loaded: Dataset | None = field(default=None, repr=False)
    cache: dict[Any, Any] = field(default_factory=dict, init=False, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        """Return what another process gets, which reads the folder itself."""
        return {**vars(self), "cache": {}}

    @classmethod
    def open(cls, path: str | Path) -> Run:
        """Return the run in a folder.

        Args:
            path: the folder; or the name of a run that comes with pvae, "deep-bayes" or "fashion-vae", if there is no
                run folder of that name.

        Raises:
            InputError: the path is empty, the folder is not a run folder, or its `config.json` is damaged, or of a
                version that this one does not read.
        """
        path = expanded(path, "the run folder")
        if str(path) in READY_MADE and not (path / CONFIG).exists():
            path = _READY_MADE / path
        file = path / CONFIG
        try:
            content = file.read_text("utf-8", "replace")
        except OSError as error:
            raise InputError(f"{path} is not a run folder: {_why_no_run(path, error)}") from None
        try:
            record = json.loads(content)
            if record["format"] != _FORMAT:
                raise InputError(f"its format is not {_FORMAT}")
            options = dict(record["config"])
            if options.get("alpha") == "-inf":  # JSON has no infinity
                options["alpha"] = -math.inf
            return cls(
                path,
                from_record(Config, options),
                from_record(DataRecord, record["data"]),
                record["sessions"],
                record["run"],
                has_own_vae="own_vae" in record,
                has_own_beta="own_beta" in record,
                start=record.get("start", {}),
                vae_place=record.get("vae_place", ""),
            )
        except (InputError, KeyError, TypeError, ValueError, RecursionError) as error:
            what = f"damaged or of another version of pvae ({error})"
            how = "restore a copy of it, or use that version"
            versions = re.findall('"pvae": "(.*?)"', content)  # of each session
            if versions and versions[-1] != __version__:
                what = f"of pvae {versions[-1]}, and this is {__version__}, which does not read it ({error})"
                how = f"use pvae {versions[-1]}, or train anew"
            raise InputError(f"{file} is {what}: {how}") from None

    def write(self) -> None:
        """Write `config.json`.

        Raises:
            OSError: it cannot be written.
        """
        optional = {
            "own_vae": self.has_own_vae and _OWN_VAE,
            "vae_place": self.vae_place,
            "own_beta": self.has_own_beta and _OWN_BETA,
            "start": self.start,
        }
        config = asdict(self.config)
        if self.config.alpha == -math.inf:
            config["alpha"] = "-inf"
        record = {
            "format": _FORMAT,
            "run": self.identity,
            **{name: value for name, value in optional.items() if value},
            "config": config,
            "data": asdict(self.data),
            "sessions": self.sessions,
        }
        write_whole(self.path / CONFIG, f"{to_json(record, indent=2)}\n".encode())

    def check_options(self, options: Mapping[str, Any]) -> None:
        """Check that options of a configuration, but for the number of epochs, are those of the run.

        Raises:
            InputError: one is not.
        """
        free = {"epochs", "source"}
        if self.has_own_vae:
            free.add("system")
        for name in options.keys() - free:
            own = getattr(self.config, name)
            if options[name] != own:
                raise InputError(
                    f"{as_option(name, options[name])} contradicts {self.path / CONFIG}, which says "
                    f"{as_option(name, own)}: give the same, or start a new run in another --out"
                )

    @property
    def name(self) -> str:
        """How messages name the run: by its folder, or by its name if it came with pvae."""
        return self.path.name if self.path.parent == _READY_MADE else str(self.path)

    @property
    def place(self) -> Path:
        """Where pictures and reports of the run are written: its folder, or runs/NAME for a ready-made run."""
        return Path("runs") / self.path.name if self.path.parent == _READY_MADE else self.path

    @property
    def how_to_resume(self) -> str:
        """The command that resumes the run, or the call in Python if its VAE or data were given from Python."""
        needs_vae = self.has_own_vae and not self.vae_place
        if needs_vae or not self.data.dataset:
            given = {"vae=vae": needs_vae, "data=data": not self.data.dataset}
            return f"pvae.resume({', '.join([repr(str(self.path)), *(name for name in given if given[name])])})"
        command = ["python", "-m", "pvae.train", "--resume", str(self.path)]
        if self.vae_place:
            command += ["--vae", self.vae_place]
        return shlex.join(command)

    def dataset(self, data: Any = None, data_dir: str | Path | None = None, offline: bool = False) -> Dataset:
        """Return the data set that the run was trained on, after comparing its SHA-256 with the run's record.

        The arguments are used at the first call; later calls return the same data set.

        Args:
            data: the data, if the run was trained on data given from Python.
            data_dir: the folder to search first; by default the one in the run's record.
            offline: do not download.

        Raises:
            InputError: the data set cannot be found, or its images differ from those in the run's record.
        """
        if self.loaded is None:
            if data is None:
                whole = read_again(self.data, data_dir, offline)
            else:
                whole = read(data, **asdict(self.data.reading))
            config = self.config
            self.loaded = whole.with_valid(config.valid, config.calibration, config.condition, self.data)
            self._check_data(self.loaded.record(), data is None)
        return self.loaded

    def _check_data(self, record: DataRecord, is_from_files: bool) -> None:
        """Check that data are those that the run was trained on.

        Raises:
            InputError: they are not.
        """
        if record.sha256 != self.data.sha256:
            recorded, given = (f"{each.title}, SHA-256 {each.sha256[:16]}..." for each in (self.data, record))
            advice = "give the same data"
            if is_from_files:
                advice = "name the folder that holds the same files with --data-dir"
            raise InputError(f"{self.name} was trained on other data, {recorded}, not {given}: {advice}")
        uses_labels = self.config.condition or self.config.labels or self.has_own_vae
        if uses_labels and self.data.labels_sha256 not in ("", record.labels_sha256):
            raise InputError(f"{self.name} was trained on data with other labels: give the same ones")

    @property
    def preparation(self) -> Preparation:
        """How the bytes of images become the x of the VAE."""
        return preparation_of(self.config, self.has_own_vae)

    def seeded(self) -> contextlib.AbstractContextManager[None]:
        """Return a context manager that seeds torch's generator with the run's seed, and restores its state at exit."""
        return seeded(self.config.seed, torch.device("cpu"))

    @cached
    def metrics(self) -> list[Metrics]:
        """Return the metrics of the finished epochs.

        Raises:
            InputError: `metrics.jsonl` or the checkpoint is damaged.
        """
        return read_metrics(self.path / METRICS, self.read_checkpoint().epoch)

    def test_metrics(self) -> Metrics | None:
        """Return the test metrics of the epoch whose weights `vae` returns, or None if no epoch is finished.

        Raises:
            InputError: `metrics.jsonl` or a checkpoint is damaged.
        """
        epoch = self.best_checkpoint().epoch
        return next((row for row in self.metrics() if (row.epoch, row.split) == (epoch, "test")), None)

    @property
    def title(self) -> str:
        """Two lines for figures: system, data, epoch of `best_checkpoint`, its test bound; options, number of data."""
        epoch = self.best_checkpoint().epoch
        test = self.test_metrics()
        system, _, options = system_title(self.config).partition(" with ")
        if not self.config.is_autoencoder:
            options += f" --elbo {self.config.elbo}"
        data, _, counts = self.data.title.rpartition(" (")
        if len(data) > 40:
            data = data[:37] + "..."
        title = f"{system} on {data}, epoch {epoch}"
        if test is not None:  # an epoch is finished
            title += f": {test} nats{self.bits(test)}"
            if test.epoch == best_epoch(self.metrics()):
                counts += ", the best epoch on the validation data"
        return f"{title}\n{options.strip()} ({counts}"

    def bits(self, row: Metrics) -> str:
        """Return ", 3.210 bits per dimension" for the bound of a row; "" if the likelihood has no levels of a pixel."""
        if not self.config.likelihood_class.has_levels or self.has_own_vae or row.elbo is None:
            return ""
        num_values = math.prod(self.config.padded(self.data.datum_shape))
        return f", {-row.elbo / (num_values * math.log(2)):.3f} bits per dimension"

    @cached
    def read_checkpoint(self) -> Checkpoint:
        """Return the last checkpoint, from which a training is resumed, on the CPU, without executing anything in it.

        Raises:
            InputError: it is missing, damaged, or of another run.
        """
        return self.read(CHECKPOINT)

    def read(self, name: str) -> Checkpoint:
        """Return the checkpoint in one of the run's files; it raises what `read_checkpoint` raises."""
        file = self.path / name
        try:
            checkpoint = read_checkpoint(file)
        except (OSError, InputError) as error:
            raise InputError(f"{file} is missing, damaged, or not a checkpoint of pvae: {error}") from None
        if checkpoint.run != self.identity:
            raise InputError(f"{file} and config.json are of two runs: restore the files of one run")
        return checkpoint

    @cached
    def best_checkpoint(self) -> Checkpoint:
        """Return the checkpoint of the epoch with the best bound on the validation images; without these, the last one.

        Raises:
            InputError: as for `read_checkpoint`, or `metrics.jsonl` is damaged.
        """
        last = self.read_checkpoint()
        best = best_epoch(self.metrics())
        if best in (None, last.epoch):
            return last
        checkpoint = self.read(BEST)
        if checkpoint.epoch != best:
            raise InputError(f"{self.path / BEST} is not of epoch {best}, the best: restore the files of one run")
        return checkpoint

    def history(self) -> list[Instant]:
        """Return the instants of the training that were kept, in order; [] if none were.

        `fit` keeps them of images and two latents; codes and matrices are in 8 bits.

        Raises:
            InputError: as for `read_checkpoint`.
        """
        if not (self.path / HISTORY).exists():
            return []
        by_step: dict[int, dict[str, Tensor]] = {}
        for key, tensor in self.read(HISTORY).vae.items():
            step, _, name = key.partition(".")
            if not step.isdecimal():
                raise InputError(f"{self.path / HISTORY} does not hold instants of a training: remove it")
            by_step.setdefault(int(step), {})[name] = tensor
        instants = []
        for after, weights in sorted(by_step.items()):
            distortion, rate = weights.pop("terms").tolist()
            instants.append(Instant(after, weights.pop("codes"), distortion, rate, weights))
        return instants

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
        if vae is None and "vae" in self.cache:
            return self.cache["vae"]
        self.check_vae(vae)
        if vae is not None:
            self.cache.clear()  # what was computed with another VAE
        weights = self.best_checkpoint().vae
        for name, tensor in weights.items():
            if not tensor.square().isfinite().all():
                values = f"NaN, infinite or beyond {torch.finfo(tensor.dtype).max ** 0.5:.1e}"
                raise InputError(f"the weights of {self.path}: {name} has values that are {values}: train anew")
        if vae is None:
            with torch.random.fork_rng(devices=[]):  # the initial weights are replaced below
                vae = build_vae(self.config, self.data.datum_shape, len(self.data.label_names))
        try:
            vae.load_state_dict(weights)
        except RuntimeError as error:
            why = " ".join(str(error).split())[:200]  # torch names the class, and then each parameter
            raise InputError(f"the weights of {self.path} do not fit the VAE: {why}") from None
        self.cache["vae"] = vae.cpu().eval()
        return vae

    def check_vae(self, vae: VAE | None) -> None:
        """Check that a VAE is given if and only if the run trained one that was built in Python.

        Raises:
            InputError: `vae` is missing, or given without need.
        """
        if self.has_own_vae and vae is None and "vae" not in self.cache:
            option = f"--vae {shlex.quote(self.vae_place or 'FILE.py:FUNCTION')}"
            raise InputError(f"{self.path} trained a VAE of your own: give {option}, or vae=vae in Python")
        if vae is not None and not self.has_own_vae:
            raise InputError(f"{self.path} trained the VAE that its config.json describes: leave vae out")

    @property
    def is_given_labels(self) -> bool:
        """Whether its VAE is conditional on the labels of the data, so that each datum needs a label."""
        return self.config.condition or (self.has_own_vae and self.vae().takes_labels and not self.config.labels)

    def is_finished(self) -> bool:
        """Return whether the run has all its epochs, or has run out of patience, and its figures.

        Raises:
            InputError: `metrics.jsonl` or the checkpoint is damaged.
        """
        rows = self.metrics()
        if not (self.path / "figures" / "losses.png").exists():  # the last one that a training draws
            return False
        return self.read_checkpoint().epoch >= self.config.epochs or is_out_of_patience(rows, self.config.patience)

    def figures(self) -> Path:
        """Return the folder of the run's figures, which is made if it is missing."""
        folder = self.path / "figures"
        folder.mkdir(exist_ok=True)
        return folder


def _why_no_run(path: Path, error: OSError) -> str:
    """Return why a path is not a run folder, as its config.json cannot be read."""
    rows = path / METRICS
    if not os.path.lexists(path):  # also False for a name that is too long
        near = difflib.get_close_matches(str(path), READY_MADE, n=1)
        return "there is nothing of that name" + "".join(f"; did you mean {name}?" for name in near)
    if rows.is_file() and not rows.read_bytes():  # written before config.json
        return "its training was killed before the first epoch: remove it and start again"
    if runs := sorted(path.glob(f"*/{CONFIG}")):
        return (
            f"it is a folder of run folders: give one of them, for instance {runs[0].parent}; to go on with all of "
            "them, repeat the command that began them"
        )
    return f"{CONFIG} cannot be read ({error.strerror})"


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


def shown_rows(num_test: int, most: int) -> Tensor:
    """Return the rows of the test data that a page shows, at most this number, in a random order: int64 (M,)."""
    return torch.randperm(num_test, generator=torch.Generator().manual_seed(0))[:most]


def shown_data(run: Run, data_dir: str | Path | None = None, offline: bool = False) -> Dataset:
    """Return the data set of a run; of a run that comes with pvae, and without its data, test images that come with it.

    Args:
        run: the run.
        data_dir: the folder to search first. The images that come with pvae are then not taken.
        offline: do not download anything. For a run that comes with pvae, nothing is downloaded.

    Raises:
        InputError: the data set cannot be found, or is not that of the run.
    """
    kept = run.path / "test-images.npz"
    try:
        return run.dataset(None, data_dir, offline or kept.exists())
    except NotFoundError:
        if data_dir is not None or not kept.exists():
            raise
    with np.load(kept) as arrays:
        names = {"test": [f"test-{row}" for row in arrays["rows"]]}
        images, labels = (torch.from_numpy(arrays[name]) for name in ("images", "labels"))
    classes = SETS[run.data.dataset].classes
    return Dataset(run.data.name, images, images, labels, labels, classes, names=names)
