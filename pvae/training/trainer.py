"""One training in memory: the SVI loop over one VAE. It knows no run folder and prints only its progress bar."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from pvae.config.config import Config
from pvae.core.errors import InputError, TrainingError, brief
from pvae.core.finite import NotFiniteError, no_nan_warnings
from pvae.core.memory import no_memory_for
from pvae.core.parallel import ALONE, Share, World
from pvae.core.random_state import restore_rng_state, rng_state, seeded
from pvae.core.terms import Terms
from pvae.data.dataset import Dataset, binarized, padded, to_pixels
from pvae.evaluation.latent_space import reconstruct, sample
from pvae.models.build import build_vae, check_memory, start_like_burda
from pvae.runs.checkpoint import Checkpoint, Counts
from pvae.runs.metrics import Metrics, summarise
from pvae.training.epoch_state import EpochState
from pvae.training.progress import Bar
from pvae.training.schedules import learning_rate, rate_weight
from pvae.training.step import Stepper
from pvae.training.validation import measure
from pvae.vae import VAE

__all__ = ["Trainer"]


class Trainer:
    """One training in memory: the VAE, its optimiser and ELBO, and how far they are.

    Use it inside a scope of Pyro's parameter store and under a seed of its own; `fit` does both.

    Args:
        config: what to train.
        data: on what.
        device: where.
        world: the processes that train it together, this one among them.
        vae: the VAE to train, if it is not the one that `config` describes.

    Attributes:
        num_steps: in an epoch.
        epoch: finished epochs, their test included.
        step: steps begun.
        skipped: steps not taken because a value was not finite.

    Raises:
        InputError: the batch is larger than the training set, the networks do not fit into memory, or the loss is not a
            mean over the batch that processes could share.
    """

    def __init__(
        self, config: Config, data: Dataset, device: torch.device, world: World = ALONE, vae: VAE | None = None
    ) -> None:
        if config.batch_size > len(data.train):
            raise InputError(
                f"--batch-size {config.batch_size} is larger than the {len(data.train):,} training images of "
                f"{data.name}: give at least --batch-size 1 and at most {len(data.train)}"
            )
        if vae is None:
            check_memory(config, data.image_shape)
        self.config = config
        self.device = device
        self.world = world
        self.train_images = padded(binarized(data.train, config.binarize, "train"), config.pad).to(device)
        self.test_images = padded(binarized(data.test, config.binarize, "test"), config.pad).to(device)
        self.symmetric = config.pixels == "symmetric"
        self.vae = (build_vae(config, data.image_shape) if vae is None else vae).to(device)
        if config.initialization == "burda" and vae is None:
            start_like_burda(self.vae, self.train_images)
        self.stepper = Stepper(config, self.vae, self.train_images, world)
        self.num_steps = math.ceil(len(self.train_images) / config.batch_size)
        self.epoch = self.step = self.skipped = 0
        self._state: EpochState | None = None
        self._rng: dict[str, Tensor] | None = None  # of the training, while a test draws from another

    def run_epoch(self, quiet: bool = True, between: Callable[[], None] = lambda: None) -> tuple[Metrics, Metrics]:
        """Pass once over the training images, or on from where a checkpoint was taken, and then test.

        Args:
            quiet: draw no progress bar.
            between: called after each step and each test batch: a checkpoint may be taken there, and nothing edited
                (a compiled epoch would not see it).

        Returns:
            The figures of the two splits.

        Raises:
            TrainingError: a loss or a gradient was not finite, or the memory did not suffice.
        """
        train, test = self.train_epoch(quiet, between), self.test(between)
        self.end_epoch()
        return train, test

    def train_epoch(self, quiet: bool = True, between: Callable[[], None] = lambda: None) -> Metrics:
        """Do the training of `run_epoch`, or the rest of it; `end_epoch` ends it."""
        self.vae.train()
        config, title = self.config, f"epoch {self.epoch + 1}/{self.config.epochs}"
        state = self._state = self._state or EpochState.new(len(self.train_images), self.device)
        bar = Bar(title, self.num_steps, quiet, state.seen // config.batch_size)
        with bar, no_nan_warnings(), self.stepper.unedited():
            for start in range(state.seen, len(state.order), config.batch_size):
                started, index = time.perf_counter(), state.order[start : start + config.batch_size]
                result = self._step(index)
                state.add(self.world.share(len(index)), result, time.perf_counter() - started)
                bar.step(state.running_loss(self.world))
                between()
        whole = state.whole(self.world)
        taken = ~whole.distortion.isnan()  # NaN marks the images of a step that was skipped
        counted = int(taken.sum())
        if counted < 2:
            raise TrainingError(f"all steps of epoch {self.epoch + 1} were skipped, since none had finite gradients")
        terms, loss = Terms(whole.distortion[taken], whole.rate[taken]), whole.total / counted
        with self._refused("the training figures"):
            return summarise(terms, vae=self.vae, loss=loss, epoch=self.epoch + 1, split="train", seconds=whole.seconds)

    def end_epoch(self) -> None:
        """Count the epoch as finished: the next training is the next epoch's."""
        self.epoch, self._state = self.epoch + 1, None

    def _step(self, index: Tensor) -> tuple[float, Terms] | None:
        """Step on the training images of an index; return loss and terms, or None if the step is skipped."""
        beta, lr = self.rate_weight(), learning_rate(self.config, self.step, self.num_steps)
        self.step += 1
        try:
            with no_memory_for(f"step {self.step}"):
                return self.stepper.step(index, beta, lr)
        except NotFiniteError as error:
            self.skipped += 1
            batch = (self.step - 1) % self.num_steps + 1
            images = ", ".join(map(str, index[:3].tolist()))
            where = f"at step {self.step} (batch {batch} of epoch {self.epoch + 1}: training images {images}, ...)"
            if self.config.on_nan == "stop":
                raise TrainingError(f"{error}, {where}") from error
            if self.skipped > self.config.max_skipped:
                skipped = f"{self.config.max_skipped} steps were skipped before: give --max-skipped"
                raise TrainingError(f"{error}, {where}; {skipped}") from error
            return None

    def test(self, between: Callable[[], None] = lambda: None) -> Metrics:
        """Measure the bound on the test images, with the same draws of noise at every epoch.

        Raises:
            TrainingError: a figure was not finite.
        """
        started = time.perf_counter()
        self.vae.eval()
        self._rng = rng_state(self.device)
        try:
            with seeded(self.config.seed, self.device), self._refused("the test loss"):
                found = measure(self.stepper, self.test_images, self.rate_weight(), between)
                return summarise(
                    found.terms,
                    vae=self.vae,
                    loss=found.loss,
                    epoch=self.epoch + 1,
                    split="test",
                    seconds=time.perf_counter() - started,
                    posterior_mean_loss=found.posterior_mean_loss,
                )
        finally:
            self._rng = None

    def dry_run(self) -> None:
        """Compute the loss of two images, so that a training that cannot work is refused before a file is written.

        Raises:
            InputError: the ELBO cannot be computed of these distributions.
            TrainingError: the loss is not finite.
        """
        self.vae.eval()
        x = to_pixels(self.test_images[:2], self.symmetric)
        with seeded(self.config.seed, self.device), self._refused("the loss"):
            self.stepper.evaluate(x, Share(0, 2, 2, 1.0), self.rate_weight())

    def rate_weight(self) -> float:
        """Return the weight of the rate in the loss of the next step."""
        return rate_weight(self.config, self.step, self.num_steps)

    def pictures(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return 8 test images, their reconstructions and 64 images of the prior, in [0, 1]; the same draws every time.

        An autoencoder has no prior to draw from: none of the 64.
        """
        self.vae.eval()
        images = to_pixels(self.test_images[:8], self.symmetric)
        with seeded(self.config.seed, self.device):
            samples = sample(self.vae, 64) if self.vae.has_density else images[:0]
            shown = [images, reconstruct(self.vae, images), samples]
        images, reconstructions, samples = ((0.5 * (part + 1) if self.symmetric else part).cpu() for part in shown)
        return images, reconstructions, samples

    def checkpoint(self) -> Checkpoint:
        """Return everything that the rest of the training depends on; all processes must ask for it together."""
        return Checkpoint(
            counts=Counts(epoch=self.epoch, step=self.step, skipped=self.skipped),
            vae=self.vae.state_dict(),
            moments=self.stepper.moments(),
            rng=self._rng or rng_state(self.device),
            unfinished=None if self._state is None else self._state.whole(self.world),
        )

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go back to where `checkpoint` was taken, by however many processes.

        Raises:
            InputError: it is of another training.
        """
        try:
            self.vae.load_state_dict(checkpoint.vae)
            self.stepper.restore_moments(checkpoint)
            restore_rng_state(checkpoint.rng, self.device)
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(brief(error)) from None
        counts, unfinished = checkpoint.counts, checkpoint.unfinished
        if unfinished is not None and len(unfinished.order) != len(self.train_images):
            raise InputError("its epoch is one over other images")
        self.epoch, self.step, self.skipped = counts.epoch, counts.step, counts.skipped
        self._state = None if unfinished is None else EpochState.resumed(unfinished, self.world, self.device)

    @contextlib.contextmanager
    def _refused(self, what: str) -> Iterator[None]:
        """End the training where something outside of a step is not finite."""
        try:
            with no_nan_warnings(), no_memory_for(f"step {self.step}"):
                yield
        except NotFiniteError as error:
            raise TrainingError(f"{what} could not be computed at step {self.step}: {error}") from error
