"""The training loop: epochs of SVI steps over one VAE in memory, each followed by an evaluation."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

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
from pvae.data.preparation import TrainingData
from pvae.elbos.base import PerDatumELBO
from pvae.runs.checkpoint import Checkpoint
from pvae.runs.metrics import Metrics
from pvae.trained.scores import posterior_mean_loss
from pvae.training.engine import Engine
from pvae.training.parallel import ALONE, World
from pvae.training.schedules import StepValues
from pvae.vae import VAE

__all__ = ["Callback", "Trainer", "advice_on_memory", "steps_in_epoch"]

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
        return math.sqrt(self.squares / (self.num_data - 1)) if self.num_data > 1 else math.nan

    def with_terms(self, terms: Tensor) -> Means:
        """Return the means with further distortions and rates, float64 (2, N)."""
        number, (distortion, rate), elbo = terms.shape[1], terms.mean(1).tolist(), -terms.sum(0)
        num_data = self.num_data + number
        share, differences = number / num_data, (distortion - self.distortion, rate - self.rate)
        return Means(
            num_data,
            self.distortion + share * differences[0],
            self.rate + share * differences[1],
            self.squares + (elbo - elbo.mean()).square().sum().item() + self.num_data * share * sum(differences) ** 2,
        )


class Callback:
    """Methods that a `Trainer` calls; a subclass has those that it needs. They must not change the VAE."""

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
        accuracy: returns the share of the known labels of a split that q(y | x) finds, or None.
        world: the processes that train together.
        rows: the metrics of all finished epochs.
        epoch: number of finished epochs.
        step: number of taken steps.
    """

    vae: VAE
    elbo: PerDatumELBO
    engine: Engine
    optimizer: torch.optim.Optimizer
    data: TrainingData
    splits: Mapping[str, Batch]
    batch_size: int
    evaluation_size: int
    schedule: Callable[[int], StepValues]
    seed: int
    device: torch.device
    passes: int = 1
    least_draws: int = 0
    accuracy: Callable[[str], float | None] = lambda split: None
    world: World = ALONE
    rows: list[Metrics] = field(default_factory=list)
    epoch: int = 0
    step: int = 0

    @property
    def num_steps(self) -> int:
        """The number of steps in an epoch."""
        return steps_in_epoch(len(self.data), self.batch_size, self.passes)

    @property
    def num_visits(self) -> int:
        """The number of data in the batches of an epoch."""
        return min(self.passes * len(self.data), self.num_steps * self.batch_size)

    def train(self, epochs: int, callbacks: Sequence[Callback] = ()) -> None:
        """Train until that number of epochs is finished, or a callback ends the training.

        Raises:
            TrainingError: a loss or a gradient was not finite, or memory did not suffice.
        """
        for callback in callbacks:
            callback.on_train_begin(self)
        while self.goes_on(epochs, callbacks):
            self.run_epoch(callbacks)
        for callback in callbacks:
            callback.on_train_end(self)

    def goes_on(self, epochs: int, callbacks: Sequence[Callback] = ()) -> bool:
        """Return whether another epoch is to be trained, where `epochs` is the last one."""
        return self.epoch < epochs and not any(callback.ends(self) for callback in callbacks)

    def next_order(self) -> tuple[Tensor, list[StepValues]]:
        """Return the order of the data in the next epoch, int64 (num_visits,), with its steps' values."""
        self.vae.train()
        order = self.data.order(self.passes, self.num_visits)
        num_steps = math.ceil(len(order) / self.batch_size)
        return order.to(self.device), [self.schedule(self.step + number) for number in range(num_steps)]

    def _steps(self) -> Iterator[Done]:
        yield from self.engine.run(*self.next_order())

    def run_epoch(self, callbacks: Sequence[Callback] = (), done: Iterable[Done] | None = None) -> list[Metrics]:
        """Train for one epoch, and then evaluate.

        Args:
            callbacks: are called.
            done: as for `train_epoch`.

        Returns:
            The metrics of the training data, of the validation data if there are any, and of the test data.

        Raises:
            TrainingError: as for `train`.
        """
        rows = [self.train_epoch(callbacks, done)]
        rows += [self.evaluate(split, callbacks) for split in ("valid", "test") if split in self.splits]
        self.epoch += 1
        self.rows += rows
        for callback in callbacks:
            callback.on_epoch_end(self, rows)
        return rows

    def train_epoch(self, callbacks: Sequence[Callback] = (), done: Iterable[Done] | None = None) -> Metrics:
        """Take the steps of an epoch, and return the metrics of the training data.

        Args:
            callbacks: are called.
            done: the steps of `next_order`, if they are taken already, or elsewhere; by default the engine takes them.

        Raises:
            TrainingError: the loss or a gradient of a step is not finite, or memory does not suffice; parameters and
                the optimiser's state are as before that step.
        """
        means, parts, seconds, total, seen = Means(), list[Tensor](), 0.0, 0.0, 0
        with advice_on_memory(f"step {self.step + 1} or later"):
            for some in self._steps() if done is None else done:
                self.step, seconds = self.step + len(some.losses), seconds + some.seconds
                if some.error is not None:
                    raise self._explained(some.error)
                parts.append(torch.stack([*some.terms]).double())
                for loss in some.losses.tolist():
                    total += loss * min(self.batch_size, self.num_visits - seen)
                    seen += self.batch_size
                if sum(one.shape[1] for one in parts) > _TERMS:
                    means, parts = means.with_terms(self._whole(parts)), []
                for callback in callbacks:
                    callback.on_steps_end(self, some)
            means = means.with_terms(self._whole(parts)) if parts else means
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
        started, data, beta = time.perf_counter(), self.splits[split], self.schedule(self.step).beta
        repeats = max(1, round(self.least_draws / len(data)))
        if repeats > 1:
            data = data.rows(torch.arange(len(data), device=self.device).repeat(repeats))
        terms, totals, seen = self._zeros(2, len(data)), self._zeros(2), 0
        memory = advice_on_memory(f"step {self.step}")
        with seeded(self.seed, self.device), memory, pyro.validation_enabled(False):
            for batch in data.split(self.evaluation_size):
                (loss, batch_terms), at_mean = self._evaluate_batch(batch, beta)
                rows = slice(seen, seen + len(batch))
                terms[:, rows], seen = torch.stack([*batch_terms]), rows.stop
                totals += torch.stack([loss.double() * len(batch), at_mean])
                for callback in callbacks:
                    callback.on_steps_end(self, None)
            accuracy = self.accuracy(split)
        self.world.sum_([terms, totals])
        loss, at_mean = (totals / len(data)).tolist()
        terms = terms.view(2, repeats, -1).mean(1)
        return self._metrics(split, Means().with_terms(terms), loss, time.perf_counter() - started, at_mean, accuracy)

    def _evaluate_batch(self, batch: Batch, beta: float) -> tuple[LossAndTerms, Tensor]:
        """Return loss and terms, and the sum of the posterior-mean loss, or NaN if it has no closed form."""
        vae, posteriors = self.vae, list[Any]()
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
        return result, at_mean if share.weight else self._zeros()

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
        self.epoch, self.step = checkpoint.epoch, checkpoint.step
        self.rows = [*rows]

    def _metrics(
        self,
        split: str,
        means: Means,
        loss: float,
        seconds: float,
        at_mean: float = math.nan,
        accuracy: float | None = None,
    ) -> Metrics:
        """Return the metrics of a split."""
        is_bounding, num_data = self.vae.is_bounding, means.num_data
        if split == "train":  # several passes visit them again
            num_data = min(num_data, len(self.data))
        row = Metrics(
            epoch=self.epoch + 1,
            split=split,
            elbo=-(means.distortion + means.rate) if is_bounding else None,
            elbo_stderr=means.std / math.sqrt(num_data) if is_bounding else None,
            distortion=means.distortion,
            rate=means.rate,
            loss=loss,
            seconds=seconds,
            pseudo=self.vae.is_pseudo,
            posterior_mean_loss=None if math.isnan(at_mean) else at_mean,
            accuracy=accuracy,
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
    return math.ceil(num_data / batch_size) if passes == 1 else max(1, passes * num_data // batch_size)


@contextlib.contextmanager
def advice_on_memory(
    what: str, advice: str = "give a smaller --batch-size, fewer --particles or smaller networks"
) -> Iterator[None]:
    """Replace torch's exceptions for missing memory in the operation `what` by one that says what to do."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise TrainingError(f"out of memory at {what}: {advice}") from error
