"""One training in memory: the SVI loop over one VAE. It knows no folder and prints nothing but its bar."""

from __future__ import annotations

import contextlib
import functools
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from pyro.infer import SVI
from torch import Tensor

from pvae.building import build_vae, start_like_burda, unmade_state
from pvae.checkpoints import Checkpoint, Counts, Pass
from pvae.compiled import CompiledELBO
from pvae.config import Config
from pvae.data import Dataset, batch_of, binarized, padded, to_pixels
from pvae.elbos import build_elbo
from pvae.errors import InputError, TrainingError, brief, shown
from pvae.failures import NotFiniteError, listed, named, no_memory_for
from pvae.handwritten import Terms, posterior_mean_loss
from pvae.latentspace import reconstruct, sample
from pvae.memory import available_memory
from pvae.metrics import Metrics, summarise
from pvae.optimizers import SingleOptimizer
from pvae.parallel import ALONE, Share, World
from pvae.perdatum import PerDatumELBO
from pvae.progress import Bar
from pvae.rng import restore_rng_state, rng_state, seeded
from pvae.schedules import learning_rate
from pvae.sharedelbo import SharedELBO
from pvae.svi import CompiledSVI

__all__ = ["Training"]

# Test batches are of 1,000 images of 28 x 28; larger images, or more particles, come in smaller ones.
_TEST_PIXELS = 784_000


class Training:
    """One training in memory: the VAE, its optimiser and ELBO, and how far they are.

    Use it inside a scope of Pyro's parameter store and under a seed of its own; `fit` does both.

    Args:
        config: what to train.
        data: on what.
        device: where.
        world: the processes that train it together, this one among them.

    Attributes:
        epoch: epochs that were finished, their test included.
        step: steps that were begun.
        skipped: those that were not taken, since a number was not finite.
        is_stopping: some process was asked to stop, and all know of it.

    Raises:
        InputError: the batch is larger than the training set, the networks do not fit into memory, or the loss is no
            mean over the batch that processes could share.
    """

    def __init__(self, config: Config, data: Dataset, device: torch.device, world: World = ALONE) -> None:
        if config.batch_size > len(data.train):
            raise InputError(
                f"--batch-size {config.batch_size} is larger than the {len(data.train):,} training images of "
                f"{data.name}: give at most --batch-size {len(data.train)}"
            )
        if world.size > 1:
            _refuse_whole_batches(config)
        _refuse_what_does_not_fit(config, data.image_shape)
        self.config = config
        self.device = device
        self.world = world
        self.train_images = padded(binarized(data.train, config.binarize, "train"), config.pad).to(device)
        self.test_images = padded(binarized(data.test, config.binarize, "test"), config.pad).to(device)
        self.symmetric = config.pixels == "symmetric"
        self.vae = build_vae(config, data.image_shape).to(device)
        if config.initialization == "burda":
            start_like_burda(self.vae, self.train_images)
        self.elbo = self._elbo()
        self.optimizer = torch.optim.Adam(self.vae.parameters(), lr=config.lr, eps=config.adam_eps, fused=True)
        self._pixels_of = functools.partial(
            batch_of, self.train_images, dynamic=config.binarize == "dynamic", symmetric=self.symmetric
        )
        self.svi = self._svi()
        self.epoch = self.step = self.skipped = 0
        self.is_stopping = False
        self._asked_to_stop: Callable[[], bool] = lambda: False
        self._pass: Pass | None = None

    def dry_run(self) -> None:
        """Compute the loss of two images, so that what cannot be trained is refused before a file is written.

        Raises:
            InputError: the ELBO cannot be computed of these distributions.
            TrainingError: the loss is no finite number.
        """
        self.vae.eval()
        self._take(Share(0, 2, 2, 1.0))
        with seeded(self.config.seed, self.device), self._refused("the loss"):
            _checked(self.svi.evaluate_loss(to_pixels(self.test_images[:2], self.symmetric)))

    def run_epoch(
        self,
        quiet: bool = True,
        between: Callable[[], None] = lambda: None,
        asked_to_stop: Callable[[], bool] = lambda: False,
    ) -> tuple[Metrics, Metrics]:
        """Pass once over the training images, or on from where a checkpoint was taken, and then test.

        Args:
            quiet: draw no bar.
            between: called after each step and each test batch: a checkpoint may be taken there.
            asked_to_stop: whether this process was; `is_stopping` then says so in all of them.

        Returns:
            The figures of the two splits.

        Raises:
            TrainingError: a loss or a gradient was no finite number, or the memory did not suffice.
        """
        self._asked_to_stop = asked_to_stop
        train = self.train_epoch(quiet, between)
        test = self.test(between)
        self.epoch, self._pass = self.epoch + 1, None
        return train, test

    def train_epoch(self, quiet: bool = True, between: Callable[[], None] = lambda: None) -> Metrics:
        """Do the training of `run_epoch`."""
        self.vae.train()
        config, under_way = self.config, self._pass or self._new_pass()
        title = f"epoch {self.epoch + 1}/{config.epochs}"
        with Bar(title, self.num_steps, quiet, under_way.seen // config.batch_size) as bar:
            for start in range(under_way.seen, len(under_way.order), config.batch_size):
                started, index = time.perf_counter(), under_way.order[start : start + config.batch_size]
                loss = self._step(index, under_way)
                seen = under_way.seen + len(index)
                seconds = under_way.seconds + time.perf_counter() - started
                under_way = under_way._replace(total=under_way.total + loss, seen=seen, seconds=seconds)
                self._pass = under_way
                bar.step(under_way.total * self.world.size / seen)
                between()
        self._pass = under_way
        whole = self._whole(under_way)
        terms = Terms(whole.distortion, whole.rate)
        counted = int(whole.distortion.isfinite().sum())
        if counted < 2:
            raise TrainingError(f"all steps of epoch {self.epoch + 1} were skipped, since none had finite gradients")
        return summarise(
            terms,
            vae=self.vae,
            loss=whole.total / counted,
            epoch=self.epoch + 1,
            split="train",
            seconds=under_way.seconds,
        )

    def take_step(self, index: Tensor) -> float:
        """Step on the training images of an index (B,), and return this process's part in their loss.

        Raises:
            NotFiniteError: a loss or a gradient is not finite; no parameter was stepped.
        """
        share = self.world.share(len(index))
        self._take(share)
        if isinstance(self.svi, CompiledSVI):
            given = index
        elif self.config.binarize == "dynamic":  # the draws are those of the whole batch
            given = self._pixels_of(index)[share.rows]
        else:
            given = self._pixels_of(index[share.rows])
        try:
            with named():
                loss: float = self.svi.step(given)
        except NotFiniteError:
            if self.world.size > 1 and not self._has_summed:
                self._sum([torch.full_like(p, math.nan) for p in self.optimizer.param_groups[0]["params"]])
            raise
        return loss

    @property
    def num_steps(self) -> int:
        """The number of steps in an epoch."""
        return math.ceil(len(self.train_images) / self.config.batch_size)

    def rate_weight(self) -> float:
        """Return what the rate is weighed with in the loss of the next step.

            beta min(1, step / steps of the warm-up),   over L where the rate is a mean over latent dimensions

        The first step of a warm-up has a weight of exactly 0.
        """
        weight = self.config.beta
        if self.config.rate_reduction == "mean":
            weight /= self.config.latent_dim
        warm_up = self.config.warm_up * self.num_steps
        return weight * min(1.0, self.step / warm_up) if warm_up else weight

    def test(self, between: Callable[[], None] = lambda: None) -> Metrics:
        """Measure the bound on the test images, with the same draws of noise at every epoch.

        Raises:
            TrainingError: the loss was no finite number.
        """
        self.vae.eval()
        started = time.perf_counter()
        self.elbo.beta = self.rate_weight()
        count = len(self.test_images)
        sums, terms = torch.zeros(2, dtype=torch.float64), torch.zeros(2, count, device=self.device)
        pixels = self.test_images[0].numel() * self.config.particles
        batch_size = max(1, _TEST_PIXELS // max(784, pixels))
        with seeded(self.config.seed, self.device), self._refused("the test loss"):
            for start in range(0, count, batch_size):
                share = self.world.share(min(batch_size, count - start))
                self._take(share)
                rows = slice(start + share.start, start + share.stop)
                x = to_pixels(self.test_images[rows], self.symmetric)
                loss, at_mean = _checked(self.svi.evaluate_loss(x)), self._posterior_mean_loss(x)
                if share.weight:
                    sums += torch.tensor([loss * share.total, at_mean], dtype=torch.float64)
                    terms[0, rows], terms[1, rows] = self.elbo.terms[:2]
                between()
        self.world.sum_([sums])
        self.world.sum_([terms])
        loss, at_mean = (sums / count).tolist()
        return summarise(
            Terms(*terms),
            vae=self.vae,
            loss=loss,
            epoch=self.epoch + 1,
            split="test",
            seconds=time.perf_counter() - started,
            posterior_mean_loss=None if math.isnan(at_mean) else at_mean,
        )

    def pictures(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return 8 test images, their reconstructions and 64 images of the prior, in [0, 1]; the same draws every time.

        An autoencoder has no prior to draw from, and so none of the 64.
        """
        self.vae.eval()
        images = to_pixels(self.test_images[:8], self.symmetric)
        with seeded(self.config.seed, self.device):
            samples = sample(self.vae, 64) if self.vae.q_z.has_density else images[:0]
            shown = [images, reconstruct(self.vae, images), samples]
        images, reconstructions, samples = ((0.5 * (part + 1) if self.symmetric else part).cpu() for part in shown)
        return images, reconstructions, samples

    def checkpoint(self) -> Checkpoint:
        """Return everything that the rest of the training depends on; all processes must ask for it together."""
        state = self.optimizer.state_dict()["state"]
        return Checkpoint(
            counts=Counts(epoch=self.epoch, step=self.step, skipped=self.skipped),
            vae=self.vae.state_dict(),
            moments={f"{index}.{name}": tensor for index, one in state.items() for name, tensor in one.items()},
            rng=rng_state(self.device),
            unfinished=None if self._pass is None else self._whole(self._pass),
        )

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go back to where `checkpoint` was taken, by however many processes.

        Raises:
            InputError: it is of another training.
        """
        try:
            self.vae.load_state_dict(checkpoint.vae)
            self._restore_moments(checkpoint)
            restore_rng_state(checkpoint.rng, self.device)
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(brief(error)) from None
        counts, under_way = checkpoint.counts, checkpoint.unfinished
        if under_way is not None and len(under_way.order) != len(self.train_images):
            raise InputError("its epoch is one over other images")
        self.epoch, self.step, self.skipped = counts.epoch, counts.step, counts.skipped
        self._pass = under_way
        if under_way is not None:
            share = 1.0 if self.world.is_first else 0.0  # what was seen is the first process's part
            order, distortion, rate = (tensor.to(self.device) for tensor in under_way[:3])
            self._pass = under_way._replace(
                order=order, distortion=distortion, rate=rate, total=share * under_way.total
            )
            if not self.world.is_first:
                distortion.zero_(), rate.zero_()

    def _restore_moments(self, checkpoint: Checkpoint) -> None:
        state: dict[int, dict[str, Tensor]] = {}
        parameters = self.optimizer.param_groups[0]["params"]
        for name, tensor in checkpoint.moments.items():
            index, _, kind = name.partition(".")
            if not 0 <= int(index) < len(parameters):
                raise ValueError(f"there is no parameter {index}")
            like = parameters[int(index)]
            if tensor.shape != (like.shape if kind in ("exp_avg", "exp_avg_sq") else ()):
                raise ValueError(f"{kind} of parameter {index} has another shape")
            if tensor.dtype != (like.dtype if tensor.dim() else torch.float32):
                raise ValueError(f"{kind} of parameter {index} has another dtype")
            state.setdefault(int(index), {})[kind] = tensor
        if any(set(one) != {"step", "exp_avg", "exp_avg_sq"} for one in state.values()):
            raise ValueError("the optimiser's state is not Adam's")
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": state})

    def _new_pass(self) -> Pass:
        """Return a pass in a new order; its terms lie in one piece: many small ones would leave holes in the memory."""
        count = len(self.train_images)
        order = torch.randperm(count).to(self.device)
        distortion, rate = torch.zeros(2, count, device=self.device)
        return Pass(order, distortion, rate, total=0.0, seen=0, seconds=0.0)

    def _whole(self, part: Pass) -> Pass:
        """Return what all processes together know of a pass."""
        total = torch.tensor([part.total], dtype=torch.float64)
        terms = [part.distortion, part.rate]
        if self.world.size > 1:
            terms = [tensor.clone() for tensor in terms]
            self.world.sum_([total])
            self.world.sum_(terms)
        return part._replace(distortion=terms[0], rate=terms[1], total=total.item())

    def _step(self, index: Tensor, under_way: Pass) -> float:
        """Step on a batch and return the sum of its losses, or skip it; note its terms in the pass."""
        share = self.world.share(len(index))
        rows = slice(under_way.seen + share.start, under_way.seen + share.stop)
        self.elbo.beta = self.rate_weight()
        self.optimizer.param_groups[0]["lr"] = learning_rate(self.config, self.step, self.num_steps)
        self.step += 1
        self._has_summed = False
        terms = None
        try:
            with no_memory_for(f"step {self.step}"):
                loss = _checked(self.take_step(index)) * len(index)
            terms = self.elbo.terms
        except NotFiniteError as error:
            self.optimizer.zero_grad()  # or the next gradient would be added to this one
            self._skip(f"{error}, {self._where(index)}{self._spoiled()}")
            loss = 0.0
        if share.weight:
            under_way.distortion[rows] = terms.distortion if terms else math.nan
            under_way.rate[rows] = terms.rate if terms else math.nan
        return loss

    def _skip(self, why: str) -> None:
        """Count a step that was not taken.

        Raises:
            TrainingError: no step may be skipped, or no more of them.
        """
        self.skipped += 1
        if self.config.on_nan == "stop":
            raise TrainingError(why)
        if self.skipped > self.config.max_skipped:
            raise TrainingError(f"{why}; {self.config.max_skipped} steps were skipped before: give --max-skipped")

    def _where(self, index: Tensor) -> str:
        """Name a batch by its step and its images."""
        batch = (self.step - 1) % self.num_steps + 1
        images = ", ".join(str(one) for one in index[:3].tolist())
        return f"at step {self.step} (batch {batch} of epoch {self.epoch + 1}: training images {images}, ...)"

    def _spoiled(self) -> str:
        """Name the parameters that are not finite themselves: no step that is skipped helps then."""
        names = [name for name, one in self.vae.named_parameters() if not one.isfinite().all()]
        return f"; {listed(names)} {'is' if len(names) == 1 else 'are'} NaN or infinite already" if names else ""

    def _take(self, share: Share) -> None:
        """Let the ELBO know which rows it is given next."""
        elbo = self.elbo.elbo if isinstance(self.elbo, CompiledELBO) else self.elbo
        if isinstance(elbo, SharedELBO):
            elbo.share = share

    def _sum(self, gradients: list[Tensor]) -> None:
        """Sum gradients over the processes, and whether one of them was asked to stop."""
        self._has_summed = True
        flag = torch.full((1,), float(self._asked_to_stop()), dtype=gradients[0].dtype, device=gradients[0].device)
        self.world.sum_([*gradients, flag])
        self.is_stopping = bool(flag.item())

    def _elbo(self) -> PerDatumELBO | CompiledELBO:
        config = self.config
        elbo = build_elbo(
            config.elbo,
            config.particles,
            free_bits=config.free_bits,
            alpha=config.alpha,
            mix=config.mix,
            num_groups=config.groups,
        )
        shared = elbo if self.world.size == 1 else SharedELBO(elbo)
        return shared if config.compile == "none" else CompiledELBO(shared, config.compile, config.precision)

    def _svi(self) -> SVI:
        """Return what steps the VAE; where all operators are compiled together, so are the batch and the update."""
        functions, alone = (self.vae.model, self.vae.guide), self.world.size == 1
        names = dict(self.vae.named_parameters())
        optimizer = SingleOptimizer(self.optimizer, names, self.config.clip_norm, None if alone else self._sum)
        is_whole = alone and not self.config.clip_norm
        if is_whole and isinstance(self.elbo, CompiledELBO) and self.elbo.engine == "inductor":
            return CompiledSVI(*functions, optimizer, self.elbo, prepare=self._pixels_of)
        svi = SVI(*functions, optimizer, loss=self.elbo)
        svi.loss_and_grads = _checked_before_the_update(svi.loss_and_grads)
        return svi

    def _posterior_mean_loss(self, x: Tensor) -> float:
        """Return the sum over a batch, or NaN where q and p have no closed-form KL."""
        try:
            with torch.no_grad():
                return posterior_mean_loss(self.vae, x).sum().item()
        except NotImplementedError:
            return math.nan

    @contextlib.contextmanager
    def _refused(self, what: str) -> Iterator[None]:
        """Let what cannot be computed outside of a step end the training."""
        try:
            with no_memory_for(f"step {self.step}"), named():
                yield
        except NotFiniteError as error:
            raise TrainingError(f"{what} could not be computed at step {self.step}: {error}") from error


def _checked_before_the_update(loss_and_grads: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Refuse a loss that is not finite, though its gradients may be, before the optimiser has stepped by them."""

    def checked(*arguments: Any, **options: Any) -> Tensor:
        loss = loss_and_grads(*arguments, **options)
        _checked(float(loss))
        return loss

    return checked


def _checked(loss: float) -> float:
    if not math.isfinite(loss):
        raise NotFiniteError(f"the loss is {loss}")
    return loss


def _refuse_what_does_not_fit(config: Config, image_shape: tuple[int, ...]) -> None:
    """Refuse networks before they are made where the system would end the process that makes them.

    Raises:
        InputError: weights, gradients and Adam's two moments are more than there is memory.
    """
    needed = 4 * sum(tensor.nbytes for tensor in unmade_state(config, image_shape).values())
    if needed > available_memory():
        sizes = f"--hidden {' '.join(map(str, config.hidden))} --latent-dim {config.latent_dim}"
        raise InputError(f"networks of {shown(sizes)[1:-1]} do not fit into memory: give smaller ones")


def _refuse_whole_batches(config: Config) -> None:
    """Refuse what looks at a whole batch at once, of which each process has a part.

    Raises:
        InputError: it does.
    """
    if config.network == "conv-batchnorm":
        raise InputError("--network conv-batchnorm looks at the statistics of a whole batch: train it in one process")
    if config.likelihood == "normal-optimal":
        raise InputError("--likelihood normal-optimal fits its scale to a whole batch: train it in one process")
