"""The training loop: epochs of SVI steps over one VAE in memory, each followed by a test."""

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
from pvae.core.terminal import progress_bar
from pvae.core.terms import Terms
from pvae.data.dataset import Dataset, binarized, padded, random_subset, to_pixels
from pvae.data.mapped import release, shuffled
from pvae.evaluation.latent_space import reconstruct, sample
from pvae.models.build import build_vae, check_memory, start_like_burda
from pvae.runs.checkpoint import Checkpoint, Counts, UnfinishedEpoch
from pvae.runs.metrics import Metrics, summarise
from pvae.training.schedules import learning_rate, rate_weight
from pvae.training.step import Stepper
from pvae.training.validation import measure
from pvae.vae import VAE

__all__ = ["Trainer"]


class Trainer:
    """Trains one VAE in memory, epoch by epoch.

        trainer = Trainer(config, data, device)
        while trainer.epoch < config.epochs:
            rows = trainer.run_epoch()

    It writes no files. Use it inside a scope of Pyro's parameter store and with a seed, as `fit` does.

    Args:
        config: options of the training.
        data: training and test images.
        device: where to train.
        world: the processes that train together, including this one.
        vae: the VAE to train, in place of the one that `config` describes.

    Attributes:
        num_steps: steps in an epoch.
        epoch: number of epochs finished, including their tests.
        step: number of steps begun.
        skipped: number of steps skipped because a value was not finite.

    Raises:
        InputError: the batch is larger than the training set, the networks do not fit into memory, BatchNorm would be
            given a batch of one image, or options do not work together or not in several processes.
    """

    def __init__(
        self, config: Config, data: Dataset, device: torch.device, world: World = ALONE, vae: VAE | None = None
    ) -> None:
        if config.batch_size > len(data.train):
            raise InputError(
                f"--batch-size {config.batch_size} is larger than the {len(data.train):,} training images of "
                f"{data.name}: give at least --batch-size 1 and at most {len(data.train)}"
            )
        last = len(data.train) % config.batch_size or config.batch_size
        if last == 1 and config.has_batch_norm and vae is None:
            raise InputError(
                f"--network {config.network} cannot normalise a batch of one image, the last of {len(data.train):,} by "
                f"--batch-size {config.batch_size}: give another --batch-size"
            )
        if vae is None:
            check_memory(config, data.image_shape)
        self.config, self.device, self.world = config, device, world
        self.train_images = padded(binarized(data.train, config.binarize, "train"), config.pad).to(device)
        self.test_images = padded(binarized(data.test, config.binarize, "test"), config.pad).to(device)
        self.valid_images: Tensor | None = None
        if data.valid is not None:
            self.valid_images = padded(binarized(data.valid, config.binarize, "valid"), config.pad).to(device)
        self.symmetric = config.pixels == "symmetric"
        self.vae = (build_vae(config, data.image_shape) if vae is None else vae).to(device)
        if config.initialization == "burda" and vae is None:
            start_like_burda(self.vae, self.train_images)
        self.stepper = Stepper(config, self.vae, self.train_images, world)
        self.num_steps = math.ceil(len(self.train_images) / config.batch_size)
        self.epoch = self.step = self.skipped = 0
        self._unfinished: UnfinishedEpoch | None = None  # with this process's part of the sums alone

    def run_epoch(self, quiet: bool = True, between: Callable[[], None] = lambda: None) -> list[Metrics]:
        """Train for one epoch, or for the rest of the one that a checkpoint was taken in, and then test.

        Args:
            quiet: draw no progress bar.
            between: called after each step and each test batch. It may take a checkpoint, and must not edit the model:
                a compiled epoch would not notice.

        Returns:
            The metrics of the training images, of the validation images if there are any, and of the test images.

        Raises:
            TrainingError: a loss or a gradient was not finite, or memory did not suffice.
        """
        rows = [self.train_epoch(quiet, between)]
        if self.valid_images is not None:
            rows.append(self.test(between, "valid"))
        rows.append(self.test(between))
        self.end_epoch()
        return rows

    def train_epoch(self, quiet: bool = True, between: Callable[[], None] = lambda: None) -> Metrics:
        """Do the training of `run_epoch`; `end_epoch` must follow."""
        self.vae.train()
        batch_size, title = self.config.batch_size, f"epoch {self.epoch + 1}/{self.config.epochs}"
        if self._unfinished is None:
            order = shuffled(self.train_images).to(self.device)
            distortion, rate = torch.zeros(2, len(order), device=self.device)
            self._unfinished = UnfinishedEpoch(order, distortion, rate, total=0.0, seen=0, seconds=0.0)
        state = self._unfinished
        bar = progress_bar(title, self.num_steps, "step", quiet, state.seen // batch_size)
        with bar, no_nan_warnings(), self.stepper.unedited():
            while state.seen < len(state.order):
                started, index = time.perf_counter(), state.order[state.seen : state.seen + batch_size]
                (loss, terms), share = self._step(index), self.world.share(len(index))
                if share.weight:
                    rows = slice(state.seen + share.start, state.seen + share.stop)
                    state.distortion[rows], state.rate[rows] = terms[:2]
                total, seen = state.total + loss * share.total, state.seen + share.total
                seconds = state.seconds + time.perf_counter() - started
                state = self._unfinished = state._replace(total=total, seen=seen, seconds=seconds)
                bar.set_postfix_str(f"loss {state.total * self.world.size / state.seen:.2f}", refresh=False)
                bar.update()
                release(self.train_images)
                between()
        whole = self._summed(state)
        taken = ~whole.distortion.isnan()  # NaN marks the images of skipped steps
        num_taken = int(taken.sum())
        if num_taken < 2:
            raise TrainingError(f"all steps of epoch {self.epoch + 1} were skipped, since none had finite gradients")
        terms, loss = Terms(whole.distortion[taken], whole.rate[taken]), whole.total / num_taken
        with self._not_finite_ends_training("the training figures"):
            return summarise(terms, vae=self.vae, loss=loss, epoch=self.epoch + 1, split="train", seconds=whole.seconds)

    def end_epoch(self) -> None:
        """Count the epoch as finished; the next `train_epoch` starts a new one."""
        self.epoch, self._unfinished = self.epoch + 1, None

    def _step(self, index: Tensor) -> tuple[float, Terms]:
        """Step on the training images of an index; return loss and terms: 0 and NaN if the step is skipped."""
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
            return 0.0, Terms(*torch.full((2, 1), math.nan))

    def test(self, between: Callable[[], None] = lambda: None, split: str = "test") -> Metrics:
        """Measure the bound on the test images, with the same noise after every epoch.

        Args:
            between: as for `run_epoch`.
            split: "test" or "valid".

        Raises:
            TrainingError: a metric was not finite.
        """
        started, rng = time.perf_counter(), rng_state(self.device)
        self.vae.eval()

        def between_batches() -> None:  # a checkpoint stores the random state of the training, not that of the test
            of_test = rng_state(self.device)
            restore_rng_state(rng, self.device)
            between()
            restore_rng_state(of_test, self.device)

        images = self.test_images if split == "test" else self.valid_images
        assert images is not None
        with seeded(self.config.seed, self.device), self._not_finite_ends_training(f"the {split} loss"):
            terms, loss, at_mean = measure(self.stepper, images, self.rate_weight(), between_batches)
            return summarise(
                terms,
                vae=self.vae,
                loss=loss,
                epoch=self.epoch + 1,
                split=split,
                seconds=time.perf_counter() - started,
                posterior_mean_loss=at_mean,
            )

    def dry_run(self, has_own_vae: bool = False) -> None:
        """Compute the loss of two images, to find out before any file is written whether training is possible.

        Args:
            has_own_vae: the VAE was built in Python, so that its modules may not fit the images.

        Raises:
            InputError: the ELBO cannot be computed for these distributions, or not for these images.
            TrainingError: the loss is not finite.
        """
        self.vae.eval()
        x = to_pixels(self.test_images[:2], self.symmetric)
        try:
            with seeded(self.config.seed, self.device), self._not_finite_ends_training("the loss"):
                self.stepper.evaluate(x, Share(0, 2, 2, 1.0), self.rate_weight())
        except (ValueError, RuntimeError) as error:
            is_outside = "to be within the support" in str(error) and "at site 'x'" in str(error)
            is_outside |= "outside this likelihood's domain" in str(error)
            if not has_own_vae or (isinstance(error, (InputError, TrainingError)) and not is_outside):
                raise
            if is_outside:
                raise InputError(
                    "the pixels are outside the support of p(x | z) of the VAE given: give "
                    'pvae.Config(binarize="dynamic") for binary pixels, or the VAE a likelihood of grey values'
                ) from error
            shape, reason, advice = tuple(x.shape[1:]), str(error).partition("\n")[0], ""
            if isinstance(error, RuntimeError) and ("shape" in reason or "size" in reason):
                advice = "; check that its modules take images of this shape"
            elif any(words in reason for words in (".to_event", "event_dims", "inside plate")):  # ours or Pyro's
                advice = "; return q(z | x) and p(z) with .to_event(1), and p(x | z) with .to_event(3)"
            raise InputError(
                f"the VAE given cannot be evaluated on images of shape {shape}, on the device {self.device}: "
                f"{reason}{advice}"
            ) from error

    def rate_weight(self) -> float:
        """Return the weight of the rate in the loss of the next step."""
        return rate_weight(self.config, self.step, self.num_steps)

    def pictures(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return 8 test images, their reconstructions and 64 samples, in [0, 1], with the same noise in every call.

        An autoencoder has no prior to sample from: its samples are an empty batch.
        """
        self.vae.eval()
        shown = random_subset(len(self.test_images), 8, seed=0)  # as `TrainedRun.examples` has them
        images = to_pixels(self.test_images[shown], self.symmetric)
        with seeded(self.config.seed, self.device):
            samples = sample(self.vae, 64) if self.vae.has_density else images[:0]
            drawn = [images, reconstruct(self.vae, images), samples]
        images, reconstructions, samples = ((0.5 * (part + 1) if self.symmetric else part).cpu() for part in drawn)
        return images, reconstructions, samples

    def checkpoint(self) -> Checkpoint:
        """Return everything that the rest of the training depends on; all processes must call this together."""
        return Checkpoint(
            counts=Counts(epoch=self.epoch, step=self.step, skipped=self.skipped),
            vae=self.vae.state_dict(),
            moments=self.stepper.moments(),
            rng=rng_state(self.device),
            unfinished=None if self._unfinished is None else self._summed(self._unfinished),
        )

    def restore(self, checkpoint: Checkpoint) -> None:
        """Continue from a checkpoint, which another number of processes may have written.

        Raises:
            InputError: it is a checkpoint of another training.
        """
        try:
            self.vae.load_state_dict(checkpoint.vae)
            self.stepper.restore_moments(checkpoint.moments)
            restore_rng_state(checkpoint.rng, self.device)
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"the checkpoint does not fit config.json or the VAE ({brief(error)}): restore the files of one run"
            ) from None
        counts, unfinished = checkpoint.counts, checkpoint.unfinished
        self.epoch, self.step, self.skipped = counts.epoch, counts.step, counts.skipped
        if unfinished is not None:
            order, distortion, rate = (tensor.to(self.device) for tensor in unfinished[:3])
            total = unfinished.total
            if not self.world.is_first:  # the first process alone keeps the sums of all processes
                distortion, rate, total = torch.zeros_like(rate), torch.zeros_like(rate), 0.0
            unfinished = UnfinishedEpoch(order, distortion, rate, total, unfinished.seen, unfinished.seconds)
        self._unfinished = unfinished

    def _summed(self, state: UnfinishedEpoch) -> UnfinishedEpoch:
        """Return the state of an epoch summed over all processes."""
        total, terms = torch.tensor([state.total], dtype=torch.float64), torch.stack([state.distortion, state.rate])
        self.world.sum_([total])
        self.world.sum_([terms])
        return state._replace(distortion=terms[0], rate=terms[1], total=total.item())

    @contextlib.contextmanager
    def _not_finite_ends_training(self, what: str) -> Iterator[None]:
        """Turn a value that is not finite, outside of a step, into an error that ends the training."""
        try:
            with no_nan_warnings(), no_memory_for(f"step {self.step}"):
                yield
        except NotFiniteError as error:
            raise TrainingError(f"{what} could not be computed at step {self.step}: {error}") from error
