"""One training in memory: the SVI loop over one VAE. It knows no folder and prints nothing but its bar."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from pvae.config.config import Config
from pvae.core.errors import InputError, TrainingError, brief
from pvae.core.finite import NotFiniteError, no_memory_for, one_voice
from pvae.core.parallel import ALONE, Share, World
from pvae.core.random_state import restore_rng_state, rng_state, seeded
from pvae.core.terms import Terms
from pvae.data.dataset import Dataset, binarized, padded, to_pixels
from pvae.evaluation.latent_space import reconstruct, sample
from pvae.models.build import build_vae, refuse_what_does_not_fit, start_like_burda
from pvae.runs.checkpoint import Checkpoint, Counts
from pvae.runs.metrics import Metrics, summarise
from pvae.training.epoch_state import UnderWay
from pvae.training.progress import Bar
from pvae.training.schedules import learning_rate, rate_weight
from pvae.training.step import Stepper
from pvae.training.validation import measure

__all__ = ["Training"]


class Training:
    """One training in memory: the VAE, its optimiser and ELBO, and how far they are.

    Use it inside a scope of Pyro's parameter store and under a seed of its own; `fit` does both.

    Args:
        config: what to train.
        data: on what.
        device: where.
        world: the processes that train it together, this one among them.

    Attributes:
        num_steps: in an epoch.
        epoch: epochs that were finished, their test included.
        step: steps that were begun.
        skipped: those that were not taken, since a number was not finite.
        stepper: its ELBO and optimiser.

    Raises:
        InputError: the batch is larger than the training set, the networks do not fit into memory, or the loss is no
            mean over the batch that processes could share.
    """

    def __init__(self, config: Config, data: Dataset, device: torch.device, world: World = ALONE) -> None:
        if config.batch_size > len(data.train):
            raise InputError(
                f"--batch-size {config.batch_size} is larger than the {len(data.train):,} training images of "
                f"{data.name}: give at least --batch-size 1 and at most {len(data.train)}"
            )
        refuse_what_does_not_fit(config, data.image_shape)
        self.config = config
        self.device = device
        self.world = world
        self.train_images = padded(binarized(data.train, config.binarize, "train"), config.pad).to(device)
        self.test_images = padded(binarized(data.test, config.binarize, "test"), config.pad).to(device)
        self.symmetric = config.pixels == "symmetric"
        self.vae = build_vae(config, data.image_shape).to(device)
        if config.initialization == "burda":
            start_like_burda(self.vae, self.train_images)
        self.stepper = Stepper(config, self.vae, self.train_images, world)
        self.num_steps = math.ceil(len(self.train_images) / config.batch_size)
        self.epoch = self.step = self.skipped = 0
        self._pass: UnderWay | None = None
        self._rng: dict[str, Tensor] | None = None  # the training's, while a test draws from another

    def dry_run(self) -> None:
        """Compute the loss of two images, so that what cannot be trained is refused before a file is written.

        Raises:
            InputError: the ELBO cannot be computed of these distributions.
            TrainingError: the loss is no finite number.
        """
        self.vae.eval()
        x = to_pixels(self.test_images[:2], self.symmetric)
        with seeded(self.config.seed, self.device), self._refused("the loss"):
            self.stepper.evaluate(x, Share(0, 2, 2, 1.0))

    def run_epoch(
        self,
        quiet: bool = True,
        between: Callable[[], None] = lambda: None,
        asked_to_stop: Callable[[], bool] = lambda: False,
    ) -> tuple[Metrics, Metrics]:
        """Pass once over the training images, or on from where a checkpoint was taken, and then test.

        Args:
            quiet: draw no bar.
            between: called after each step and each test batch: a checkpoint may be taken there, and nothing edited
                (a compiled epoch would not see it).
            asked_to_stop: whether this process was; the stepper's `is_stopping` then says so in all of them.

        Returns:
            The figures of the two splits.

        Raises:
            TrainingError: a loss or a gradient was no finite number, or the memory did not suffice.
        """
        self.stepper.asked_to_stop = asked_to_stop
        train = self.train_epoch(quiet, between)
        test = self.test(between)
        self.end_epoch()
        return train, test

    def end_epoch(self) -> None:
        """Count the epoch that was trained, and tested if that is wanted: the next training is the next epoch's."""
        self.epoch, self._pass = self.epoch + 1, None

    def train_epoch(self, quiet: bool = True, between: Callable[[], None] = lambda: None) -> Metrics:
        """Do the training of `run_epoch`, or what is left of it; `end_epoch` ends it."""
        self.vae.train()
        config, under_way = self.config, self._pass or self._new_pass()
        self._pass, order, seen = under_way, under_way.order, under_way.seen
        bar = Bar(f"epoch {self.epoch + 1}/{config.epochs}", self.num_steps, quiet, seen // config.batch_size)
        with bar, one_voice(), self.stepper.unedited():
            for start in range(seen, len(order), config.batch_size):
                started = time.perf_counter()
                self._step(order[start : start + config.batch_size], under_way)
                if start + config.batch_size >= len(order):
                    self._look()
                under_way.took(time.perf_counter() - started)
                bar.step(under_way.running_loss(self.world))
                between()
        whole = under_way.whole(self.world)
        taken = ~whole.distortion.isnan()  # NaN marks the images of a step that was skipped
        counted = int(taken.sum())
        if counted < 2:
            raise TrainingError(f"all steps of epoch {self.epoch + 1} were skipped, since none had finite gradients")
        with self._refused("the training figures"):
            return summarise(
                Terms(whole.distortion[taken], whole.rate[taken]),
                vae=self.vae,
                loss=whole.total / counted,
                epoch=self.epoch + 1,
                split="train",
                seconds=whole.seconds,
            )

    def take_step(self, index: Tensor) -> list[float]:
        """Step on the training images of an index (B,).

        Returns:
            This process's parts in the losses of the steps that were looked at: on a CPU this one's.

        Raises:
            NotFiniteError: a loss or a gradient is not finite, of this step or of one before it that nobody had looked
                at; no parameter was stepped by it, nor after it.
        """
        return self.stepper.step(index)

    def rate_weight(self) -> float:
        """Return what the rate is weighed with in the loss of the next step."""
        return rate_weight(self.config, self.step, self.num_steps)

    def test(self, between: Callable[[], None] = lambda: None) -> Metrics:
        """Measure the bound on the test images, with the same draws of noise at every epoch.

        Raises:
            TrainingError: a figure was no finite number.
        """
        started = time.perf_counter()
        self.vae.eval()
        self.stepper.elbo.beta = self.rate_weight()
        self._rng = rng_state(self.device)
        try:
            with seeded(self.config.seed, self.device), self._refused("the test loss"):
                found = measure(self.stepper, self.test_images, between)
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

    def pictures(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return 8 test images, their reconstructions and 64 images of the prior, in [0, 1]; the same draws every time.

        An autoencoder has no prior to draw from, and so none of the 64.
        """
        self.vae.eval()
        images = to_pixels(self.test_images[:8], self.symmetric)
        with seeded(self.config.seed, self.device):
            samples = sample(self.vae, 64) if self.vae.has_density else images[:0]
            shown = [images, reconstruct(self.vae, images), samples]
        images, reconstructions, samples = ((0.5 * (part + 1) if self.symmetric else part).cpu() for part in shown)
        return images, reconstructions, samples

    def checkpoint(self) -> Checkpoint:
        """Return everything that the rest of the training depends on; all processes must ask for it together.

        Raises:
            TrainingError: a step that was taken ahead is refused.
        """
        self._look()
        return Checkpoint(
            counts=Counts(epoch=self.epoch, step=self.step, skipped=self.skipped),
            vae=self.vae.state_dict(),
            moments=self.stepper.moments(),
            rng=self._rng or rng_state(self.device),
            unfinished=None if self._pass is None else self._pass.whole(self.world),
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
        counts, under_way = checkpoint.counts, checkpoint.unfinished
        if under_way is not None and len(under_way.order) != len(self.train_images):
            raise InputError("its epoch is one over other images")
        self.epoch, self.step, self.skipped = counts.epoch, counts.step, counts.skipped
        self._pass = None if under_way is None else UnderWay.resumed(under_way, self.world, self.device)

    def _new_pass(self) -> UnderWay:
        return UnderWay.new(len(self.train_images), self.device)

    def _step(self, index: Tensor, under_way: UnderWay) -> None:
        """Step on the next batch of the pass, or skip it; note its terms."""
        self.stepper.elbo.beta = self.rate_weight()
        self.stepper.optimizer.param_groups[0]["lr"] = learning_rate(self.config, self.step, self.num_steps)
        self.step += 1
        under_way.begin(len(index))
        terms = None
        with self._skipping(under_way), no_memory_for(f"step {self.step}"):
            under_way.count(self.take_step(index))
            terms = self.stepper.elbo.terms
        under_way.end(len(index), self.world.share(len(index)), terms)

    def _look(self) -> None:
        """Look at the steps that were taken ahead."""
        if self._pass is not None:
            with self._skipping(self._pass):
                self._pass.count(self.stepper.look())

    @contextlib.contextmanager
    def _skipping(self, under_way: UnderWay) -> Iterator[None]:
        """Count a step that was not taken.

        Raises:
            TrainingError: no step may be skipped, or no more of them.
        """
        try:
            yield
        except NotFiniteError as error:
            under_way.forget()
            self.skipped += 1
            why, most = f"{error}, {self._where(self.step - error.steps_since, under_way)}", self.config.max_skipped
            if self.config.on_nan == "stop":
                raise TrainingError(why) from error
            if self.skipped > most:
                raise TrainingError(f"{why}; {most} steps were skipped before: give --max-skipped") from error

    def _where(self, step: int, under_way: UnderWay) -> str:
        """Name the batch of a step, by its images too."""
        batch = (step - 1) % self.num_steps
        images = ", ".join(map(str, under_way.order[batch * self.config.batch_size :][:3].tolist()))
        return f"at step {step} (batch {batch + 1} of epoch {self.epoch + 1}: training images {images}, ...)"

    @contextlib.contextmanager
    def _refused(self, what: str) -> Iterator[None]:
        """Let what cannot be computed outside of a step end the training."""
        try:
            with one_voice(), no_memory_for(f"step {self.step}"):
                yield
        except NotFiniteError as error:
            raise TrainingError(f"{what} could not be computed at step {self.step}: {error}") from error
