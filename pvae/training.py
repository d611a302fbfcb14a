"""One training in memory: the SVI loop over one VAE. It knows no folder and prints nothing but its bar."""

from __future__ import annotations

import contextlib
import functools
import math
import re
import time
import warnings
from collections.abc import Iterator

import torch
from pyro.infer import SVI
from torch import Tensor

from pvae.building import build_vae, start_like_burda
from pvae.compiled import CompiledELBO
from pvae.config import Config
from pvae.data import Dataset, batch_of, batches, binarized, padded, to_pixels
from pvae.elbos import build_elbo
from pvae.errors import InputError, TrainingError
from pvae.handwritten import Terms, posterior_mean_loss
from pvae.latentspace import reconstruct, sample
from pvae.metrics import Metrics, summarise
from pvae.optimizers import SingleOptimizer
from pvae.perdatum import PerDatumELBO
from pvae.progress import Bar
from pvae.rng import restore_rng_state, rng_state, seeded
from pvae.runs import Checkpoint
from pvae.schedules import learning_rate
from pvae.svi import CompiledSVI

__all__ = ["Training"]

# Test batches are of 1,000 images of 28 x 28; larger images, or more particles, come in smaller ones.
_TEST_PIXELS = 784_000


class _NotFiniteError(ValueError):
    """A loss that is NaN or infinite."""


class Training:
    """One training in memory: the VAE, its optimiser and ELBO, and how far they are.

    Use it inside a scope of Pyro's parameter store and under a seed of its own; `fit` does both.

    Args:
        config: what to train.
        data: on what.
        device: where.

    Raises:
        InputError: the batch is larger than the training set, or the networks do not fit into memory.
    """

    def __init__(self, config: Config, data: Dataset, device: torch.device) -> None:
        if config.batch_size > len(data.train):
            raise InputError(
                f"--batch-size {config.batch_size} is larger than the {len(data.train):,} training images of "
                f"{data.name}: give at most --batch-size {len(data.train)}"
            )
        self.config = config
        self.device = device
        self.train_images = padded(binarized(data.train, config.binarize, "train"), config.pad).to(device)
        self.test_images = padded(binarized(data.test, config.binarize, "test"), config.pad).to(device)
        self.symmetric = config.pixels == "symmetric"
        self.vae = build_vae(config, data.image_shape).to(device)
        if config.initialization == "burda":
            start_like_burda(self.vae, self.train_images)
        elbo = build_elbo(
            config.elbo,
            config.particles,
            free_bits=config.free_bits,
            alpha=config.alpha,
            mix=config.mix,
            num_groups=config.groups,
        )
        self.elbo: PerDatumELBO | CompiledELBO = elbo
        if config.compile != "none":
            self.elbo = CompiledELBO(elbo, config.compile, config.precision)
        self.optimizer = torch.optim.Adam(self.vae.parameters(), lr=config.lr, eps=config.adam_eps, fused=True)
        dynamic = config.binarize == "dynamic"
        self._batch_of = functools.partial(batch_of, self.train_images, dynamic=dynamic, symmetric=self.symmetric)
        self.svi = self._svi()
        self.epoch = 0
        self.step = 0

    def dry_run(self) -> None:
        """Compute the loss of two images, so that what cannot be trained is refused before a file is written.

        Raises:
            InputError: the ELBO cannot be computed of these distributions.
            TrainingError: the loss is no finite number.
        """
        self.vae.eval()
        with seeded(self.config.seed, self.device), self._finite("the loss"):
            self._checked(self.svi.evaluate_loss(to_pixels(self.test_images[:2], self.symmetric)))

    def train_epoch(self, quiet: bool = True) -> Metrics:
        """Pass once over the training images.

        Args:
            quiet: draw no bar.

        Raises:
            TrainingError: a loss was no finite number.
        """
        self.vae.train()
        config = self.config
        started = time.perf_counter()
        terms, total, seen = self._no_terms(len(self.train_images)), 0.0, 0
        order = torch.randperm(len(self.train_images)).to(self.device)
        with self._finite("the loss"), Bar(f"epoch {self.epoch + 1}/{config.epochs}", self.num_steps, quiet) as bar:
            for index in order.split(config.batch_size):
                self.elbo.beta = self.rate_weight()
                self.optimizer.param_groups[0]["lr"] = learning_rate(config, self.step, self.num_steps)
                self.step += 1
                total += self._checked(self.take_step(index)) * len(index)
                _keep(self.elbo.terms, terms, seen)
                seen += len(index)
                bar.step(total / seen)
        self.epoch += 1
        seconds = time.perf_counter() - started
        return summarise(terms, vae=self.vae, loss=total / seen, epoch=self.epoch, split="train", seconds=seconds)

    def take_step(self, index: Tensor) -> float:
        """Step on the training images of an index (B,), and return their loss."""
        given = index if isinstance(self.svi, CompiledSVI) else self._batch_of(index)
        loss: float = self.svi.step(given)
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

    def test(self) -> Metrics:
        """Measure the bound on the test images, with the same draws of noise at every epoch.

        Raises:
            TrainingError: the loss was no finite number.
        """
        self.vae.eval()
        started = time.perf_counter()
        self.elbo.beta = self.rate_weight()
        terms, total, at_mean, seen = self._no_terms(len(self.test_images)), 0.0, 0.0, 0
        pixels = self.test_images[0].numel() * self.config.particles
        batch_size = max(1, _TEST_PIXELS // max(784, pixels))
        with seeded(self.config.seed, self.device), self._finite("the test loss"):
            for x in batches(self.test_images, batch_size, symmetric=self.symmetric):
                total += self._checked(self.svi.evaluate_loss(x)) * len(x)
                _keep(self.elbo.terms, terms, seen)
                seen += len(x)
                at_mean += self._posterior_mean_loss(x)
        return summarise(
            terms,
            vae=self.vae,
            loss=total / len(self.test_images),
            epoch=self.epoch,
            split="test",
            seconds=time.perf_counter() - started,
            posterior_mean_loss=None if math.isnan(at_mean) else at_mean / len(self.test_images),
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
        """Return everything that the rest of the training depends on."""
        return Checkpoint(
            epoch=self.epoch,
            step=self.step,
            vae=self.vae.state_dict(),
            optimizer=self.optimizer.state_dict(),
            rng=rng_state(self.device),
        )

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go back to where `checkpoint` was taken."""
        self.epoch, self.step = checkpoint["epoch"], checkpoint["step"]
        self.vae.load_state_dict(checkpoint["vae"])
        self.optimizer.load_state_dict(checkpoint["optimizer"])
        restore_rng_state(checkpoint["rng"], self.device)

    def _no_terms(self, count: int) -> Terms:
        """Return where the terms of an epoch are kept: many small tensors would leave holes in the memory."""
        return Terms(*torch.empty(2, count, device=self.device))

    def _svi(self) -> SVI:
        """Return what steps the VAE; where all operators are compiled together, so are the batch and the update."""
        functions, optimizer = (self.vae.model, self.vae.guide), SingleOptimizer(self.optimizer)
        if isinstance(self.elbo, CompiledELBO) and self.elbo.engine == "inductor":
            return CompiledSVI(*functions, optimizer, self.elbo, prepare=self._batch_of)
        return SVI(*functions, optimizer, loss=self.elbo)

    def _posterior_mean_loss(self, x: Tensor) -> float:
        """Return the sum over a batch, or NaN where q and p have no closed-form KL."""
        try:
            with torch.no_grad():
                return posterior_mean_loss(self.vae, x).sum().item()
        except NotImplementedError:
            return math.nan

    def _checked(self, loss: float) -> float:
        if not math.isfinite(loss):
            raise _NotFiniteError(f"became {loss}")
        return loss

    @contextlib.contextmanager
    def _finite(self, what: str) -> Iterator[None]:
        """Name the step at which a loss was not finite, or a distribution refused its parameters, NaN among them.

        Pyro only warns of a NaN; here it ends the training, so its warning would be a second voice.
        """
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Encountered ")
                yield
        except _NotFiniteError as error:
            raise TrainingError(f"{what} {error} at step {self.step}") from None
        except ValueError as error:
            refusal = re.match(r"Expected parameter (\w+) .* of distribution (\w+)\(", str(error))
            if refusal is None:
                raise
            reason = f"the {refusal[1]} of a {refusal[2]} is NaN, infinite or out of its range"
            raise TrainingError(f"{what} could not be computed at step {self.step}: {reason}") from error
        except RuntimeError as error:
            if not isinstance(error, torch.OutOfMemoryError) and "allocate memory" not in str(error):
                raise
            raise TrainingError(
                f"out of memory at step {self.step}: give a smaller --batch-size or fewer --particles"
            ) from error


def _keep(terms: Terms, kept: Terms, start: int) -> None:
    """Write the terms of a batch into those of the epoch."""
    part = slice(start, start + len(terms.distortion))
    kept.distortion[part] = terms.distortion
    kept.rate[part] = terms.rate
