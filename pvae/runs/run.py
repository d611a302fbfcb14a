"""`Run`, an opened run folder: configuration, data, metrics of each epoch, and weights, each read once.

A run folder contains config.json (options, data record, versions), metrics.jsonl (one JSON object per line, see
`metrics.Metrics`), checkpoint.safetensors (weights, optimiser, random state, progress), the checkpoint before it, with
validation images best.safetensors (the weights of the epoch with the best bound on them), for images of files
split.csv (the name and the split of each), figures/ and TensorBoard events.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import json
import math
import os
import shlex
import sys
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch

from pvae.config.config import Config
from pvae.config.options import without_removed
from pvae.config.presets import system_title
from pvae.core.errors import InputError
from pvae.core.files import expanded
from pvae.core.random_state import seeded
from pvae.core.records import from_record
from pvae.data.dataset import DataRecord, Dataset
from pvae.data.preparation import Preparation
from pvae.models.build import build_vae
from pvae.runs.checkpoint import Checkpoint, read_checkpoint
from pvae.runs.data import data_of
from pvae.runs.metrics import Metrics, best_epoch, is_out_of_patience, read_metrics
from pvae.vae import VAE

__all__ = ["BEST", "CHECKPOINT", "FORMAT", "OWN_CODE", "PREVIOUS", "READY_MADE", "Run", "kept", "load"]

READY_MADE = ("deep-bayes", "fashion-vae")  # names of the runs that come with pvae
_READY_MADE = Path(__file__).parents[1] / "pretrained"
FORMAT = 2  # of config.json
CHECKPOINT, PREVIOUS = "checkpoint.safetensors", "checkpoint-previous.safetensors"
BEST = "best.safetensors"
OWN_CODE = "vae.py"  # the text of the file that --vae named; it is never run from here

T = TypeVar("T")


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
        sessions: for each session that trained the run: its first epoch and step, device, number of processes and of
            threads, engine, versions, commit and time.
        identity: a unique name, stored in `config.json` and in the checkpoints.
        has_own_vae: the VAE was built in Python and given to `fit`; `config` does not describe its networks.
        start: of a training that started from another run: its identity, its folder, and its progress then; else {}.
        code: the text of the file of your own VAE, which is kept in the run folder as vae.py; "" if it has none.
        loaded: the data set, once it was read.
        has_own_beta: the weight of the rate was a function that was given to `fit`.
    """

    path: Path
    config: Config
    data: DataRecord
    sessions: list[dict[str, Any]] = field(default_factory=list)
    identity: str = field(default_factory=lambda: uuid.uuid4().hex)
    has_own_vae: bool = False
    start: dict[str, str] = field(default_factory=dict)
    code: str = field(default="", repr=False)
    loaded: Dataset | None = field(default=None, repr=False)
    has_own_beta: bool = False
    _values: dict[Any, Any] = field(default_factory=dict, init=False, repr=False)  # of `kept` functions, and the VAE

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
                near = difflib.get_close_matches(str(path), READY_MADE, n=1)
                why = "there is nothing of that name" + "".join(f"; did you mean {name}?" for name in near)
            elif runs := sorted(path.glob("*/config.json")):
                why = f"it is a folder of run folders: give one of them, for instance {runs[0].parent}"
            raise InputError(f"{path} is not a run folder: {why}") from None
        try:
            record = json.loads(content)
            if record["format"] != FORMAT:
                raise InputError(f"its format is not {FORMAT}")
            options = without_removed(dict(record["config"]))
            data = {"datum_shape" if name == "image_shape" else name: one for name, one in dict(record["data"]).items()}
            if isinstance(size := options.get("image_size"), int):  # of earlier versions, as second_latent_dim
                options["image_size"] = str(size)
            if options.get("alpha") == "-inf":  # JSON has no infinity
                options["alpha"] = -math.inf
            if options.get("second_latent_dim") == 0:
                del options["second_latent_dim"], options["second_hidden"]
            return cls(
                path,
                from_record(Config, options),
                from_record(DataRecord, data),
                record["sessions"],
                record["run"],
                "own_vae" in record,
                record.get("start", {}),
                has_own_beta="own_beta" in record,
            )
        except (InputError, KeyError, TypeError, ValueError, RecursionError) as error:
            raise InputError(
                f"{file} is damaged or of another version of pvae ({error}): restore a copy of it, or use the version "
                "that wrote it"
            ) from None

    @property
    def place(self) -> Path:
        """Where pictures and reports of the run are written: its folder, or runs/NAME for a ready-made run."""
        return Path("runs") / self.path.name if self.path.parent == _READY_MADE else self.path

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
        if self.loaded is None:
            self.loaded = data_of(self, data, data_dir, offline)
        return self.loaded

    @property
    def preparation(self) -> Preparation:
        """How the bytes of images become the x of the VAE."""
        return Preparation.of(self.config)

    def seeded(self) -> contextlib.AbstractContextManager[None]:
        """Return a context manager that seeds torch's generator with the run's seed, and restores its state at exit."""
        return seeded(self.config.seed, torch.device("cpu"))

    @kept
    def metrics(self) -> list[Metrics]:
        """Return the metrics of the finished epochs.

        Raises:
            InputError: `metrics.jsonl` or the checkpoint is damaged.
        """
        return read_metrics(self.path / "metrics.jsonl", self.read_checkpoint().counts.epoch)

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
        elbo = "" if self.config.is_autoencoder else f", --elbo {self.config.elbo}"
        title = f"{system_title(self.config)}{elbo}, on {self.data.title}\n{checkpoint.progress}"
        test = self.test_metrics()
        if checkpoint.unfinished is not None or test is None:  # metrics.jsonl has no bound of these weights
            return title
        best = ", the best on the validation data\n" if test.epoch == best_epoch(self.metrics()) else ": "
        return f"{title}{best}{test} nats{self.bits(test)}"

    def bits(self, row: Metrics) -> str:
        """Return ", 3.210 bits per dimension" for the bound of a row; "" if the likelihood has no levels of a pixel."""
        if not self.config.likelihood_family.has_levels or self.has_own_vae or row.elbo is None:
            return ""
        num_values = math.prod(self.config.padded(self.data.datum_shape))
        return f", {-row.elbo / (num_values * math.log(2)):.3f} bits per dimension"

    @kept
    def read_checkpoint(self) -> Checkpoint:
        """Return the last checkpoint, from which a training is resumed, on the CPU, without executing anything in it.

        Raises:
            InputError: it is missing, damaged, or of another run.
        """
        try:
            return self.read(CHECKPOINT)
        except InputError as error:
            raise InputError(f"{error}; {self.how_to_resume} goes on from {PREVIOUS} if that is whole") from None

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

    @kept
    def best_checkpoint(self) -> Checkpoint:
        """Return the checkpoint of the epoch with the best bound on the validation images; without these, the last one.

        If best.safetensors is missing or damaged, it is the last one, and a note says so.

        Raises:
            InputError: as for `read_checkpoint`, or `metrics.jsonl` is damaged.
        """
        last, best = self.read_checkpoint(), best_epoch(self.metrics())
        if best is None or (last.counts.epoch == best and last.unfinished is None):
            return last
        try:
            checkpoint = self.read(BEST)
            if checkpoint.counts.epoch != best:
                raise InputError(f"{self.path / BEST} is not of epoch {best}, the best on the validation data")
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
                vae = build_vae(self.config, self.data.datum_shape, len(self.data.label_names))
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
        if self.has_own_vae and vae is None and "vae" not in self._values:
            raise InputError(
                f"{self.path} trained a VAE of your own: name it by --vae FILE.py:FUNCTION, or build it in Python, and "
                f"give it as pvae.load({str(self.path)!r}, vae=vae); {self.in_python}"
            )
        if vae is not None and not self.has_own_vae:
            raise InputError(f"{self.path} trained the VAE that its config.json describes: leave vae out")

    @property
    def is_given_labels(self) -> bool:
        """Whether its VAE is one given the labels of the data: each datum needs its own."""
        return self.config.condition or (self.has_own_vae and self.vae().takes_labels and not self.config.labels)

    @property
    def how_to_resume(self) -> str:
        """The command that resumes the run, or the call in Python if a command cannot find its VAE or images."""
        given = ", vae=vae" * self.has_own_vae + ", data=data" * (not self.data.dataset)
        path = str(self.path)
        return f"pvae.resume({path!r}{given})" if given else f"python -m pvae.train --resume {shlex.quote(path)}"

    @property
    def in_python(self) -> str:
        """What to do in Python with a run whose VAE or images no command can find."""
        calls = ["run.vae(vae)"] * self.has_own_vae + ["run.dataset(data)"] * (not self.data.dataset)
        return (
            f"in Python, {self.how_to_resume} resumes it, and after run = pvae.Run.open({str(self.path)!r}); "
            f"{'; '.join(calls)}, pvae.plotting.pictures and pvae.evaluation.report.evaluate take run"
        )

    def is_finished(self) -> bool:
        """Return whether the run has all its epochs, or has run out of patience, and its figures.

        Raises:
            InputError: `metrics.jsonl` or the checkpoint is damaged.
        """
        checkpoint, rows = self.read_checkpoint(), self.metrics()
        is_last = checkpoint.counts.epoch >= self.config.epochs or is_out_of_patience(rows, self.config.patience)
        has_figures = (self.path / "figures" / "losses.png").exists()  # the last one that a training draws
        return is_last and checkpoint.unfinished is None and has_figures

    def forget(self) -> None:
        """Forget the metrics and checkpoints that were read, and what was computed from them."""
        self._values.clear()

    def figures(self) -> Path:
        """Return the folder of the run's figures, which is made if it is missing."""
        folder = self.path / "figures"
        folder.mkdir(exist_ok=True)
        return folder


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
