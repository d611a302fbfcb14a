"""The training loop: epochs of SVI steps over one VAE in memory, each followed by a test."""

from __future__ import annotations

import contextlib
import functools
import math
import time
from collections.abc import Callable, Iterator

import torch
from pyro.infer import SVI
from torch import Tensor

from pvae.compile.compiled_elbo import CompiledELBO
from pvae.compile.compiled_svi import CompiledSVI
from pvae.compile.optimizers import SingleOptimizer
from pvae.config.config import Config
from pvae.core.errors import (
    GradientError,
    InputError,
    NotFiniteError,
    TrainingError,
    brief,
    listed,
    naming_refused_parameters,
    no_nan_warnings,
)
from pvae.core.random_state import restore_rng_state, rng_state, seeded
from pvae.core.terminal import progress_bar
from pvae.core.terms import LossAndTerms, Terms
from pvae.data.dataset import Dataset, random_subset
from pvae.data.mapped import shuffled
from pvae.data.preparation import Preparation
from pvae.elbos.base import PerDatumELBO
from pvae.elbos.registry import elbo_of
from pvae.models.build import build_vae, start_like_burda
from pvae.reference.elbo import posterior_mean_loss
from pvae.runs.checkpoint import Checkpoint, Counts, UnfinishedEpoch
from pvae.runs.metrics import Metrics, summarise
from pvae.trained.latent_space import reconstruct, sample
from pvae.training.memory import check_memory, no_memory_for
from pvae.training.parallel import ALONE, Share, World
from pvae.training.schedules import learning_rate, rate_weight
from pvae.training.shared_elbo import SharedELBO
from pvae.vae import VAE

__all__ = ["Stepper", "Trainer", "measure"]


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
        self.data, self.preparation = data, Preparation.of(config)
        self.train_images = self.preparation.prepared(data.train, "train", is_redrawn=True).to(device)
        self.test_images = self.preparation.prepared(data.test, "test").to(device)
        self.valid_images: Tensor | None = None
        if data.valid is not None:
            self.valid_images = self.preparation.prepared(data.valid, "valid").to(device)
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
        with bar, no_nan_warnings(), self.stepper.skip_guards():
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
        x = self.preparation.x(self.test_images[:2])
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
        shown = random_subset(len(self.test_images), 8, seed=0)  # as `trained.codes.examples` has them
        images = self.preparation.x(self.test_images[shown])
        with seeded(self.config.seed, self.device):
            samples = sample(self.vae, 64) if self.vae.has_density else images[:0]
            drawn = [images, reconstruct(self.vae, images), samples]
        images, reconstructions, samples = (self.preparation.shown(part).cpu() for part in drawn)
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


class Stepper:
    """Steps a VAE on batches of its training images, alone or as one of several processes.

    Args:
        config: which ELBO, which optimiser, and how a step is compiled.
        vae: on the device of the images.
        images: training images, uint8 (N, C, H, W).
        world: the processes that step together, including this one.

    Attributes:
        optimizer: Adam over all parameters.

    Raises:
        InputError: an option needs the whole batch in one process, or ELBO and likelihood do not go together.
    """

    def __init__(self, config: Config, vae: VAE, images: Tensor, world: World) -> None:
        _check_world(config, world)
        self.config, self.vae, self.world = config, vae, world
        self.optimizer = torch.optim.Adam(vae.parameters(), lr=config.lr, eps=config.adam_eps, fused=True)
        self._elbo = elbo_of(config)
        self.preparation = Preparation.of(config)
        self._pixels_of = functools.partial(self.preparation.batch, images)
        self._images = images
        self._svis: dict[Share | None, tuple[SVI, PerDatumELBO | CompiledELBO]] = {}

    def step(self, index: Tensor, beta: float, lr: float) -> tuple[float, Terms]:
        """Step on one batch of training images.

        Args:
            index: indices of the images, int64 (B,).
            beta: weight of the rate in the loss.
            lr: the learning rate.

        Returns:
            This process's part in the loss, and the terms of its rows.

        Raises:
            NotFiniteError: the loss or a gradient is not finite; parameters and the optimiser's state are as before.
        """
        self.optimizer.param_groups[0]["lr"] = lr
        share = self.world.share(len(index))
        svi, _ = self._svi(share)
        if isinstance(svi, CompiledSVI):  # the recording starts from the index
            batch = index
        elif self.preparation.is_dynamic:  # every process draws the pixels of the whole batch
            batch = self._pixels_of(index)[share.rows]
        else:
            batch = self._pixels_of(index[share.rows])
        results: list[LossAndTerms] = []
        with self._undone_if_not_finite():
            # Checked before the optimiser steps, since gradients may be finite where the loss is not.
            loss = svi.step(batch, beta=beta, on_result=lambda result: results.append(_finite(result)))
        return loss, results[0].terms

    def evaluate(self, x: Tensor, share: Share, beta: float) -> tuple[float, Terms]:
        """Return this process's part in the loss of a batch, and the terms of its rows x, without a step.

        Raises:
            NotFiniteError: the loss is not finite.
        """
        with naming_refused_parameters():
            loss, terms = _finite(self._svi(share)[1].evaluate(self.vae.model, self.vae.guide, x, beta=beta))
            return loss.item(), terms

    @contextlib.contextmanager
    def skip_guards(self) -> Iterator[None]:
        """Let recorded steps skip the check for edits of the model, inside a loop that makes none."""
        with contextlib.ExitStack() as stack:
            for rows in (self.config.batch_size, len(self._images) % self.config.batch_size):
                elbo = self._svi(self.world.share(rows))[1] if rows else None
                if isinstance(elbo, CompiledELBO):
                    stack.enter_context(elbo.skip_guards())
            yield

    def moments(self) -> dict[str, Tensor]:
        """Return the optimiser's state by "<index of the parameter>.<name>"."""
        state = self.optimizer.state_dict()["state"]
        return {f"{index}.{name}": tensor for index, one in state.items() for name, tensor in one.items()}

    def restore_moments(self, moments: dict[str, Tensor]) -> None:
        """Restore the optimiser's state that `moments` returned.

        Raises:
            ValueError: it is the state of other parameters.
        """
        shapes = {
            f"{index}.{name}": torch.Size() if name == "step" else parameter.shape
            for index, parameter in enumerate(self.vae.parameters())
            for name in ("step", "exp_avg", "exp_avg_sq")
        }
        if not {name: tensor.shape for name, tensor in moments.items()}.items() <= shapes.items():
            raise ValueError("its optimiser's state is that of other parameters")
        state: dict[int, dict[str, Tensor]] = {}
        for key, tensor in moments.items():
            index, name = key.split(".")
            state.setdefault(int(index), {})[name] = tensor
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": state})

    def _svi(self, share: Share) -> tuple[SVI, PerDatumELBO | CompiledELBO]:
        """Return SVI and ELBO of this process's rows of a batch; a single process has one for batches of any size."""
        config, is_alone = self.config, self.world.size == 1
        key = None if is_alone else share
        if key not in self._svis:
            elbo: PerDatumELBO | CompiledELBO = self._elbo if is_alone else SharedELBO(self._elbo, share)
            if config.compile != "none":
                usual = self.world.share(config.batch_size)
                elbo = CompiledELBO(elbo, config.compile, config.precision, batch_size=usual.stop - usual.start)
            names = dict(self.vae.named_parameters())
            optimizer = SingleOptimizer(self.optimizer, names, config.clip_norm, None if is_alone else self.world.sum_)
            functions = self.vae.model, self.vae.guide
            if is_alone and not config.clip_norm and isinstance(elbo, CompiledELBO):
                self._svis[key] = CompiledSVI(*functions, optimizer, elbo, prepare=self._pixels_of), elbo
            else:
                self._svis[key] = SVI(*functions, optimizer, elbo), elbo
        return self._svis[key]

    @contextlib.contextmanager
    def _undone_if_not_finite(self) -> Iterator[None]:
        """Restore gradients and random state after a step that is not finite, in all processes."""
        # One process may fail before it draws and another one after; both continue from the state before the step.
        before = rng_state(self._images.device) if self.config.on_nan == "skip" else None
        try:
            with naming_refused_parameters():
                yield
        except NotFiniteError as error:
            self.optimizer.zero_grad()  # or the next gradient would be added to this one
            # If this process failed before the sum of gradients, the others wait for it: NaN makes them fail too.
            if self.world.size > 1 and not isinstance(error, GradientError):
                self.world.sum_([torch.full_like(p, math.nan) for p in self.vae.parameters()])
            if before is not None:
                restore_rng_state(before, self._images.device)
            bad = [name for name, value in self.vae.named_parameters() if not value.isfinite().all()]
            already = f"; {listed(bad)} {'is' if len(bad) == 1 else 'are'} NaN or infinite already" if bad else ""
            raise NotFiniteError(f"{error}{already}") from error


def _finite(result: LossAndTerms) -> LossAndTerms:
    """Return a result whose loss is finite, or raise a `NotFiniteError`."""
    if not math.isfinite(result.loss.item()):
        raise NotFiniteError(f"the loss is {result.loss.item()}")
    return result


def _check_world(config: Config, world: World) -> None:
    """Refuse options that need the whole batch in one process.

    Raises:
        InputError: several processes share it.
    """
    whole_batch = {
        f"--network {config.network}": config.has_batch_norm,
        "--likelihood normal-optimal": config.likelihood == "normal-optimal",
        "--free-bits": config.free_bits > 0,
    }
    for option, is_given in whole_batch.items():
        if is_given and world.size > 1:
            raise InputError(f"{option} needs the whole batch at once: train it in one process")


_PIXELS = 784_000  # of a batch times particles; with one particle, 1,000 images of 28 x 28


def measure(
    stepper: Stepper, images: Tensor, beta: float, between: Callable[[], None] = lambda: None
) -> tuple[Terms, float, float | None]:
    """Return terms and loss of images, with noise from the current state of torch's generators.

    Args:
        stepper: computes the ELBO; all its processes must call this function together.
        images: uint8 (N, C, H, W).
        beta: weight of the rate in the loss.
        between: called after each batch.

    Returns:
        The terms of each image, (N,); the mean of the training loss over the images; and the mean of the loss at the
        mean of q(z | x), or None without a closed-form KL.

    Raises:
        NotFiniteError: the loss of a batch is not finite.
    """
    world, config, count = stepper.world, stepper.config, len(images)
    sums, terms = torch.zeros(2, dtype=torch.float64), torch.zeros(2, count, device=images.device)
    batch_size = max(1, _PIXELS // max(784, images[0].numel() * config.particles))
    for start in range(0, count, batch_size):
        share = world.share(min(batch_size, count - start))
        rows = slice(start + share.start, start + share.stop)
        x = stepper.preparation.x(images[rows])
        try:
            loss, measured = stepper.evaluate(x, share, beta)
            at_mean = _posterior_mean_loss(stepper.vae, x)
        except NotFiniteError:
            if world.size == 1:
                raise
            sums += math.nan  # so that all processes raise the error together, below
        else:
            if share.weight:
                sums += torch.tensor([loss * share.total, at_mean], dtype=torch.float64)
                terms[0, rows], terms[1, rows] = measured[:2]
        between()
    world.sum_([sums])
    world.sum_([terms])
    loss, at_mean = (sums / count).tolist()
    if math.isnan(loss):
        raise NotFiniteError("it is NaN")
    return Terms(*terms), loss, None if math.isnan(at_mean) else at_mean


@torch.no_grad()
def _posterior_mean_loss(vae: VAE, x: Tensor) -> float:
    """Return the sum over a batch, or NaN where q and p have no closed-form KL."""
    try:
        return posterior_mean_loss(vae, x).sum().item()
    except NotImplementedError:
        return math.nan
