"""The training loop: epochs of SVI steps over one VAE in memory, each followed by an evaluation."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import pyro
import torch
from torch import Tensor

from pvae.compile.compiled_svi import Done
from pvae.core.batch import Batch, LossAndTerms
from pvae.core.errors import (
    InputError,
    NotFiniteError,
    TrainingError,
    brief,
    check_finite,
    is_out_of_memory,
)
from pvae.core.random_state import restore_rng_state, rng_state, seeded
from pvae.elbos.base import PerDatumELBO
from pvae.runs.checkpoint import Checkpoint
from pvae.runs.metrics import Metrics
from pvae.runs.run import Run
from pvae.trained.scores import posterior_mean_loss
from pvae.training.engine import Engine
from pvae.training.parallel import ALONE, World
from pvae.training.schedules import StepValues
from pvae.vae import VAE

_TERMS = 2**20  # data whose terms are kept until their means are taken
_SMALLER_STEPS = "train anew with a smaller --lr, or with --clip-norm 100"


class Means(NamedTuple):
    """Means over data that come in parts.

    Args:
        num_data: number of data.
        distortion: mean of the distortion.
        rate: mean of the rate.
        squares: sum of the squared deviations of the ELBO from its mean.
    """

    num_data: int = 0
    distortion: float = 0.0
    rate: float = 0.0
    squares: float = 0.0

    @property
    def std(self) -> float:
        """The standard deviation of the ELBO over the data; NaN of one."""
        if self.num_data == 1:
            return math.nan
        return math.sqrt(self.squares / (self.num_data - 1))

    def with_terms(self, terms: Tensor) -> Means:
        """Return the means with further distortions and rates, float64 (2, N)."""
        distortion, rate = terms.mean(1).tolist()
        elbo = -terms.sum(0)
        num_data = self.num_data + len(elbo)
        share = len(elbo) / num_data
        more_distortion = distortion - self.distortion
        more_rate = rate - self.rate
        between = self.num_data * share * (more_distortion + more_rate) ** 2
        return Means(
            num_data,
            self.distortion + share * more_distortion,
            self.rate + share * more_rate,
            self.squares + (elbo - elbo.mean()).square().sum().item() + between,
        )


class Callback:
    """Methods that a `Trainer` calls; a subclass has those that it needs. They must not change the VAE.

    `trainer.run` is the run folder. Of several processes the first one alone calls those of `fit(callbacks=...)`.
    """

    def on_note(self, line: str) -> None:
        """Do something with a note on how the training starts, or how its steps are computed."""

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


class InEpochs(Protocol):
    """Training data: their number, their order in each epoch, and some for callbacks."""

    @property
    def preparation(self) -> Any:
        """How x is made of what is kept in memory."""

    @property
    def sample(self) -> Tensor:
        """Data that are kept for callbacks: all, or the first ones."""

    def __len__(self) -> int:
        """Return their number."""

    def order(self, passes: int, num_visits: int) -> Tensor:
        """Return the order of the data in an epoch, int64 (num_visits,)."""


@dataclass(kw_only=True)
class Trainer:
    """Trains one VAE in memory.

        trainer = build_trainer(config, data, device)
        trainer.train(config.epochs, callbacks)

    What is not the loop (files, pictures, progress, interruptions) is a callback. Use it inside a scope of Pyro's
    parameter store and with a seed, as `fit` does.

    Args:
        vae: the VAE.
        elbo: evaluates it.
        engine: takes the steps.
        optimizer: the optimiser of the steps.
        data: the training data.
        splits: "test", and perhaps "valid", evaluated after each epoch.
        batch_size: of a step.
        passes: number of passes over the training data in an epoch.
        least_draws: number of draws of z in an evaluation: of a split of fewer data several for each; 0 for one each.
        evaluation_size: number of data that are evaluated at a time.
        schedule: returns learning rate and beta of a step, counted from 0.
        seed: of the noise of each evaluation.
        device: where the VAE and the data are.
        more: returns further fields of the `Metrics` of a split.
        world: the processes that train together.
        rows: the metrics of all finished epochs.
        epoch: number of finished epochs.
        step: number of taken steps.
    """

    vae: VAE
    elbo: PerDatumELBO
    engine: Engine
    optimizer: torch.optim.Optimizer
    data: InEpochs
    splits: Mapping[str, Batch]
    batch_size: int
    evaluation_size: int
    schedule: Callable[[int], StepValues]
    seed: int
    device: torch.device
    passes: int = 1
    least_draws: int = 0
    more: Callable[[str], Mapping[str, Any]] = lambda split: {}
    world: World = ALONE
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
    def num_steps(self) -> int:
        """The number of steps in an epoch."""
        return steps_in_epoch(len(self.data), self.batch_size, self.passes)

    @property
    def num_visits(self) -> int:
        """The number of data in the batches of an epoch."""
        return min(self.passes * len(self.data), self.num_steps * self.batch_size)

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
        means = Means()
        parts = list[Tensor]()
        seconds = total = 0.0
        seen = 0
        with advice_on_memory(f"step {self.step + 1} or later"):
            self.vae.train()
            order = self.data.order(self.passes, self.num_visits).to(self.device)
            values = [self.schedule(self.step + number) for number in range(self.num_steps)]
            for some in self.engine.run(order, values):
                self.step += len(some.losses)
                seconds += some.seconds
                if some.error is not None:
                    raise self._explained(some.error)
                parts.append(torch.stack([*some.terms]).double())
                for loss in some.losses.tolist():
                    total += loss * min(self.batch_size, self.num_visits - seen)
                    seen += self.batch_size
                if sum(one.shape[1] for one in parts) > _TERMS:
                    means = means.with_terms(self._whole(parts))
                    parts = []
                for callback in callbacks:
                    callback.on_steps_end(self, some)
            if parts:
                means = means.with_terms(self._whole(parts))
        totals = self._zeros(1) + total
        self.world.sum_([totals])
        return self._metrics("train", means, totals.item() / means.num_data, seconds)

    def _whole(self, parts: Sequence[Tensor]) -> Tensor:
        """Return the terms of some steps, (2, N), of which each process has computed its share."""
        terms = torch.cat([*parts], 1)
        self.world.sum_([terms])
        return terms

    def _explained(self, error: Exception) -> Exception:
        """Return the error of the next step as one that names the step."""
        if not isinstance(error, NotFiniteError):
            return error
        where = f"at step {self.step + 1} (batch {self.step % self.num_steps + 1} of epoch {self.epoch + 1})"
        return TrainingError(f"{error}, {where}: {_SMALLER_STEPS}")

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
        beta = self.schedule(self.step).beta
        repeats = max(1, round(self.least_draws / len(data)))
        if repeats > 1:
            data = data.rows(torch.arange(len(data), device=self.device).repeat(repeats))
        terms = self._zeros(2, len(data))
        totals = self._zeros(2)
        seen = 0
        with (
            seeded(self.seed, self.device),
            advice_on_memory(f"step {self.step}"),
            pyro.validation_enabled(False),
        ):
            for batch in data.split(self.evaluation_size):
                (loss, batch_terms), at_mean = self._evaluate_batch(batch, beta)
                terms[:, seen : seen + len(batch)] = torch.stack([*batch_terms])
                seen += len(batch)
                totals += torch.stack([loss.double() * len(batch), at_mean])
                for callback in callbacks:
                    callback.on_steps_end(self, None)
            more = dict(self.more(split))
        self.world.sum_([terms, totals])
        loss, at_mean = (totals / len(data)).tolist()
        if not math.isnan(at_mean):
            more["posterior_mean_loss"] = at_mean
        means = Means().with_terms(terms.view(2, repeats, -1).mean(1))
        return self._metrics(split, means, loss, time.perf_counter() - started, more)

    def _evaluate_batch(self, batch: Batch, beta: float) -> tuple[LossAndTerms, Tensor]:
        """Return loss and terms, and the sum of the posterior-mean loss, or NaN if it has no closed form."""
        vae = self.vae
        posteriors: list[Any] = []
        # The hook keeps q(z | x), so that data are encoded once for both.
        hook = vae.q_z.register_forward_hook(lambda module, given, posterior: posteriors.append(posterior))
        try:
            result = self.elbo.evaluate(vae.model, vae.guide, *batch, beta=beta)
        finally:
            hook.remove()
        share = self.world.share(len(batch))
        own = batch.rows(share.rows)
        try:
            with torch.no_grad():
                at_mean = posterior_mean_loss(vae.given(own.y), own.x, next(iter(posteriors), None)).sum().double()
        except NotImplementedError:
            at_mean = self._zeros() * math.nan
        if not share.weight:
            at_mean = self._zeros()
        return result, at_mean

    def checkpoint(self) -> Checkpoint:
        """Return everything that the rest of the training depends on."""
        moments = self.optimizer.state_dict()["state"]
        return Checkpoint(
            epoch=self.epoch,
            step=self.step,
            vae=self.vae.state_dict(),
            moments={f"{index}.{name}": tensor for index, one in moments.items() for name, tensor in one.items()},
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
        self, split: str, means: Means, loss: float, seconds: float, more: Mapping[str, Any] = MappingProxyType({})
    ) -> Metrics:
        """Return the metrics of a split, with further fields."""
        elbo = stderr = None
        if self.vae.is_bounding:
            num_data = means.num_data
            if split == "train":  # several passes visit them again
                num_data = min(num_data, len(self.data))
            elbo = -(means.distortion + means.rate)
            stderr = means.std / math.sqrt(num_data)
        row = Metrics(
            epoch=self.epoch + 1,
            split=split,
            elbo=elbo,
            elbo_stderr=stderr,
            distortion=means.distortion,
            rate=means.rate,
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


def steps_in_epoch(num_data: int, batch_size: int, passes: int) -> int:
    """Return the number of steps in an epoch; of several passes, data that do not fill a batch are left out."""
    if passes == 1:
        return math.ceil(num_data / batch_size)
    return max(1, passes * num_data // batch_size)


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
