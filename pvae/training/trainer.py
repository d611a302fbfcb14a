"""The training loop: epochs of SVI steps over one VAE in memory, each followed by an evaluation."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple

import pyro
import torch
from torch import Tensor

from pvae.compile.compiled_svi import CompiledSVI, Done
from pvae.compile.graph import RecordingError
from pvae.config.config import Config
from pvae.core.batch import Batch
from pvae.core.errors import (
    InputError,
    NotFiniteError,
    TrainingError,
    brief,
    check_finite,
    is_out_of_memory,
)
from pvae.core.random_state import restore_rng_state, rng_state, seeded
from pvae.data.preparation import TrainingData
from pvae.elbos.base import PerDatumELBO
from pvae.models.labels import found_labels
from pvae.runs.checkpoint import Checkpoint
from pvae.runs.metrics import Metrics
from pvae.runs.run import Run
from pvae.trained.scores import posterior_mean_loss
from pvae.training.parallel import ALONE, World
from pvae.vae import VAE

_SECONDS = 0.25  # of steps that are taken in one call, between which progress is drawn and Ctrl-C is obeyed
_MOST = 50  # steps in one call
_PIXELS = 784_000  # of a batch of an evaluation times particles; with one particle, 1,000 images of 28 x 28
_LEAST_DRAWS = 1000  # of z in an evaluation, of all data together
_SMALLER_STEPS = "train anew with a smaller --lr, or with --clip-norm 100"


class Callback:
    """Methods that a `Trainer` calls; a subclass has those that it needs. They must not change the VAE before the end.

    `trainer.run` is the run folder. Of several processes the first one alone calls those of `fit(callbacks=...)`.
    """

    def on_note(self, line: str) -> None:
        """Do something with a note on how the training starts, or how its steps are computed."""

    def on_data(self, run: Run) -> None:
        """Do something before a start is chosen, which takes long of some data; a new run has no folder yet."""

    def on_train_begin(self, trainer: Trainer) -> None:
        """Do something before the first epoch."""

    def ends(self, trainer: Trainer) -> bool:
        """Return whether the training ends before its next epoch."""
        return False

    def on_steps_end(self, trainer: Trainer, done: Done | None) -> None:
        """Do something after some steps (with this process's part of the losses), or a batch of an evaluation."""

    def on_epoch_end(self, trainer: Trainer, rows: Sequence[Metrics]) -> None:
        """Do something after an epoch, of which these are the metrics of each split."""

    def on_train_end(self, trainer: Trainer) -> None:
        """Do something after the last epoch."""

    def close(self) -> None:
        """Do something at the end, by whatever the training was ended."""


class Session(NamedTuple):
    """Where one training computes, and whom it tells of it.

    Args:
        device: where the VAE and the data are.
        world: the processes that train together, including this one.
        callbacks: of the training; those of the first process alone are called.
    """

    device: torch.device = torch.device("cpu")
    world: World = ALONE
    callbacks: Sequence[Callback] = ()

    def note(self, line: str) -> None:
        """Tell the callbacks a line on what is chosen."""
        if self.world.is_first:
            for callback in self.callbacks:
                callback.on_note(line)

    def say_data(self, run: Run) -> None:
        """Tell the callbacks which data a run is trained on."""
        if self.world.is_first:
            for callback in self.callbacks:
                callback.on_data(run)


SILENT = Session()  # on the CPU, in one process, without callbacks


class Engine:
    """Takes the steps of a training, some in each call.

    Where a step cannot be compiled it is recorded, and where it cannot be recorded it is computed eagerly, if it may
    fall back. None of this depends on the clock, so that a resumed training computes as before.

    Args:
        make: returns an SVI with the engine "none", "graph" or "inductor", whose steps take the index of a batch.
        name: the engine at first.
        batch_size: of a step.
        may_fall_back: compute steps in a way that takes longer where they cannot be recorded or compiled.
        session: is told of it.

    Attributes:
        name: how steps are computed now.

    Raises:
        InputError: steps cannot be compiled here.
    """

    def __init__(
        self,
        make: Callable[[str], CompiledSVI],
        name: str,
        batch_size: int,
        may_fall_back: bool = False,
        session: Session = SILENT,
    ) -> None:
        self.name = name
        self._make = make
        self._svi = make(name)
        self._batch_size = batch_size
        self._may_fall_back = may_fall_back
        self._session = session
        self._seconds = math.inf  # of a step in the last call

    def run(self, order: Tensor, values: Sequence[tuple[float, float]]) -> Iterator[Done]:
        """Take the steps of an epoch, some in each call, and yield what each call has done; end after an error.

        Args:
            order: indices of the data, int64 (N,).
            values: learning rate and weight of the rate of each step.

        Raises:
            RecordingError: (an InputError) a step cannot be recorded or compiled, and the caller asked for it.
        """
        batches = [(index,) for index in order.split(self._batch_size)]
        taken = 0
        while taken < len(batches):
            steps = slice(taken, taken + max(1, min(_MOST, int(_SECONDS / self._seconds))))
            started = time.perf_counter()
            try:
                done = self._svi.run(batches[steps], values[steps])
            except RecordingError as error:
                if not self._may_fall_back:
                    raise
                self._fall_back(error)
                continue
            seconds = time.perf_counter() - started
            yield done._replace(seconds=seconds)
            if done.error is not None:
                return
            taken += len(done.losses)
            mean = torch.tensor([seconds]) / len(done.losses)
            self._session.world.sum_([mean])  # so that all processes take as many steps in the next call
            self._seconds = max(mean.item() / self._session.world.size, 1e-9)

    def _fall_back(self, error: RecordingError) -> None:
        """Compute steps in a way that takes longer."""
        before = self.name
        self.name = "none"
        if before == "inductor":
            self.name = "graph"
        self._session.note(f"steps are computed without --compile {before}, and take longer: {error}")
        self._svi = self._make(self.name)


@dataclass(kw_only=True)
class Trainer:
    """Trains one VAE in memory.

        trainer = build_trainer(config, data, Session(device))
        trainer.train(config.epochs, callbacks)

    What is not the loop (files, pictures, progress, interruptions) is a callback. Use it inside a scope of Pyro's
    parameter store and with a seed, as `fit` does.

    Args:
        config: options of the training.
        vae: the VAE.
        elbo: evaluates it.
        engine: takes the steps.
        optimizer: the optimiser of the steps.
        data: the training data.
        splits: "test", and perhaps "valid", evaluated after each epoch.
        schedule: returns the learning rate of a step, counted from 0, and its weight of the rate.
        session: where it computes.
        classes: of each split whose classes are known, if they are latents of the VAE.
        rows: the metrics of all finished epochs.
        epoch: number of finished epochs.
        step: number of taken steps.
    """

    config: Config
    vae: VAE
    elbo: PerDatumELBO
    engine: Engine
    optimizer: torch.optim.Optimizer
    data: TrainingData
    splits: Mapping[str, Batch]
    schedule: Callable[[int], tuple[float, float]]
    session: Session = SILENT
    classes: Mapping[str, Tensor] = field(default_factory=dict)
    rows: list[Metrics] = field(default_factory=list)
    epoch: int = 0
    step: int = 0
    _run: Run | None = None

    @property
    def run(self) -> Run:
        """The run folder that callbacks write.

        Raises:
            InputError: the training is in memory.
        """
        if self._run is None:
            raise InputError("this training has no run folder: train it by pvae.fit")
        return self._run

    @property
    def device(self) -> torch.device:
        """Where the VAE and the data are."""
        return self.session.device

    @property
    def world(self) -> World:
        """The processes that train together."""
        return self.session.world

    @property
    def num_steps(self) -> int:
        """The number of steps in an epoch."""
        return self.config.steps_in_epoch(len(self.data))

    @property
    def num_visits(self) -> int:
        """The number of data in the batches of an epoch."""
        return min(self.config.passes * len(self.data), self.num_steps * self.config.batch_size)

    @property
    def num_evaluated(self) -> int:
        """The number of data that are evaluated at a time."""
        values = self.splits["test"].x.images[0].numel()
        return max(1, _PIXELS // max(784, values * self.config.particles))

    def train(self, epochs: int, callbacks: Sequence[Callback] = (), run: Run | None = None) -> None:
        """Train until that number of epochs is finished, or a callback ends the training.

        Args:
            epochs: the last epoch.
            callbacks: are called.
            run: the run folder that they write.

        Raises:
            TrainingError: a loss or a gradient was not finite, or memory did not suffice.
        """
        self._run = run
        for callback in callbacks:
            callback.on_train_begin(self)
        while self.epoch < epochs and not any(callback.ends(self) for callback in callbacks):
            self.run_epoch(callbacks)
        for callback in callbacks:
            callback.on_train_end(self)

    def run_epoch(self, callbacks: Sequence[Callback] = ()) -> list[Metrics]:
        """Train for one epoch, and then evaluate.

        Returns:
            The metrics of the training data, of the validation data if there are any, and of the test data.

        Raises:
            TrainingError: as for `train`.
        """
        rows = [self.train_epoch(callbacks)]
        rows += [self.evaluate(split, callbacks) for split in ("valid", "test") if split in self.splits]
        self.epoch += 1
        self.rows += rows
        for callback in callbacks:
            callback.on_epoch_end(self, rows)
        return rows

    def train_epoch(self, callbacks: Sequence[Callback] = ()) -> Metrics:
        """Take the steps of an epoch, and return the metrics of the training data.

        Raises:
            TrainingError: the loss or a gradient of a step is not finite, or memory does not suffice; parameters and
                the optimiser's state are as before that step.
        """
        terms = self._zeros(2, self.num_visits)
        seconds = total = 0.0
        seen = 0
        with advice_on_memory(f"step {self.step + 1} or later"):
            self.vae.train()
            order = self.data.order(self.config.passes, self.num_visits).to(self.device)
            values = [self.schedule(self.step + number) for number in range(self.num_steps)]
            for some in self.engine.run(order, values):
                self.step += len(some.losses)
                seconds += some.seconds
                if isinstance(some.error, NotFiniteError):
                    where = (
                        f"at step {self.step + 1} (batch {self.step % self.num_steps + 1} of epoch {self.epoch + 1})"
                    )
                    raise TrainingError(f"{some.error}, {where}: {_SMALLER_STEPS}")
                if some.error is not None:
                    raise some.error
                start = seen
                for loss in some.losses.tolist():
                    size = min(self.config.batch_size, self.num_visits - seen)
                    total += loss * size
                    seen += size
                terms[:, start:seen] = torch.stack([*some.terms])
                for callback in callbacks:
                    callback.on_steps_end(self, some)
        totals = self._zeros(1) + total
        self.world.sum_([terms, totals])
        return self._metrics("train", terms, totals.item() / seen, seconds)

    def evaluate_start(self) -> None:
        """Add the metrics of the validation and test data before the first step, as those of epoch 0."""
        splits = [split for split in ("valid", "test") if split in self.splits]
        self.rows += [dataclasses.replace(self.evaluate(split), epoch=0) for split in splits]

    def evaluate(self, split: str = "test", callbacks: Sequence[Callback] = ()) -> Metrics:
        """Return the metrics of the test or validation data, with the same noise after every epoch.

        Raises:
            TrainingError: a metric is not finite.
        """
        self.vae.eval()
        started = time.perf_counter()
        data = self.splits[split]
        _, beta = self.schedule(self.step)
        repeats = 1  # the figures of published systems are from one draw of z
        if self.config.initialization == "exact":  # the best epoch is chosen by few data
            repeats = max(1, round(_LEAST_DRAWS / len(data)))
        if repeats > 1:
            data = data.rows(torch.arange(len(data), device=self.device).repeat(repeats))
        terms = self._zeros(2, len(data))
        totals = self._zeros(2)
        seen = 0
        with (
            seeded(self.config.seed, self.device),
            advice_on_memory(f"step {self.step}"),
            pyro.validation_enabled(False),
        ):
            for batch in data.split(self.num_evaluated):
                loss, batch_terms = self.elbo.evaluate(self.vae.model, self.vae.guide, *batch, beta=beta)
                terms[:, seen : seen + len(batch)] = torch.stack([*batch_terms])
                seen += len(batch)
                totals += torch.stack([loss.double() * len(batch), self._posterior_mean_loss(batch)])
                for callback in callbacks:
                    callback.on_steps_end(self, None)
            more = self._accuracy(split)
        self.world.sum_([terms, totals])
        loss, at_mean = (totals / len(data)).tolist()
        if not math.isnan(at_mean):
            more["posterior_mean_loss"] = at_mean
        return self._metrics(split, terms.view(2, repeats, -1).mean(1), loss, time.perf_counter() - started, more)

    def _accuracy(self, split: str) -> dict[str, float]:
        """Return the share of the known classes of a split that q(z | x) finds, if there are some."""
        if split not in self.classes:
            return {}
        parts = (batch.x for batch in self.splits[split].split(self.num_evaluated))
        are_found = found_labels(self.vae.q_z, parts, self.classes[split])
        if are_found is None:
            return {}
        return {"accuracy": are_found.double().mean().item()}

    def _posterior_mean_loss(self, batch: Batch) -> Tensor:
        """Return the sum of the posterior-mean loss over this process's data; NaN if it has no closed form."""
        share = self.world.share(len(batch))
        if not share.weight:
            return self._zeros()
        own = batch.rows(share.rows)
        try:
            with torch.no_grad():
                return posterior_mean_loss(self.vae.given(own.y), own.x).sum().double()
        except NotImplementedError:
            return self._zeros() * math.nan

    def checkpoint(self) -> Checkpoint:
        """Return everything that the rest of the training depends on."""
        moments = self.optimizer.state_dict()["state"]
        return Checkpoint(
            epoch=self.epoch,
            step=self.step,
            vae=self.vae.state_dict(),
            moments={f"{index}.{name}": tensor for index, state in moments.items() for name, tensor in state.items()},
            rng=rng_state(self.device),
        )

    def restore(self, checkpoint: Checkpoint, rows: Sequence[Metrics]) -> None:
        """Continue from a checkpoint, which another number of processes may have written.

        Args:
            checkpoint: of the end of an epoch.
            rows: the metrics of the epochs until then.

        Raises:
            InputError: it is a checkpoint of another training.
        """
        state: dict[int, dict[str, Tensor]] = {}
        for key, tensor in checkpoint.moments.items():
            index, _, name = key.partition(".")
            state.setdefault(int(index), {})[name] = tensor
        try:
            self.vae.load_state_dict(checkpoint.vae)
            self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": state})
            restore_rng_state(checkpoint.rng, self.device)
        except (RuntimeError, ValueError, KeyError) as error:
            raise InputError(
                f"the checkpoint does not fit config.json or the VAE ({brief(error)}): restore the files of one run"
            ) from None
        self.epoch = checkpoint.epoch
        self.step = checkpoint.step
        self.rows = [*rows]

    def _metrics(
        self, split: str, terms: Tensor, loss: float, seconds: float, more: Mapping[str, Any] = MappingProxyType({})
    ) -> Metrics:
        """Return the metrics of a split, given the terms of its data (2, N), with further fields."""
        distortion, rate = terms.mean(1).tolist()
        elbo = stderr = None
        if self.vae.is_bounding:
            num_data = terms.shape[1]
            if split == "train":  # several passes visit them again
                num_data = min(num_data, len(self.data))
            elbo = -(distortion + rate)
            stderr = terms.sum(0).std().item() / math.sqrt(num_data)
        row = Metrics(
            epoch=self.epoch + 1,
            split=split,
            elbo=elbo,
            elbo_stderr=stderr,
            distortion=distortion,
            rate=rate,
            loss=loss,
            seconds=seconds,
            pseudo=self.vae.is_pseudo,
            **more,
        )
        try:
            check_finite(dataclasses.asdict(row))
        except NotFiniteError as error:
            where = f"of epoch {row.epoch} (step {self.step})"
            raise TrainingError(f"the {split} {error}, {where}: {_SMALLER_STEPS}") from error
        return row

    def _zeros(self, *shape: int) -> Tensor:
        return torch.zeros(shape, dtype=torch.float64, device=self.device)


@contextlib.contextmanager
def advice_on_memory(what: str) -> Iterator[None]:
    """Replace torch's exceptions for missing memory in the operation `what` by one that says what to do."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        advice = "give a smaller --batch-size, fewer --particles or smaller networks"
        raise TrainingError(f"out of memory at {what}: {advice}") from error
