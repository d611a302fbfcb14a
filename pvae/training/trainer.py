"""The training loop: epochs of SVI steps over one VAE in memory, each followed by an evaluation."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

from pvae.compile.compiled_elbo import CompiledELBO, Tensors
from pvae.compile.compiled_svi import CompiledSVI
from pvae.compile.graph import RecordingError, check_engine
from pvae.compile.inductor import missing
from pvae.compile.optimizers import SingleOptimizer
from pvae.config.config import Config
from pvae.config.refusals import Case, refuse
from pvae.core.errors import (
    GradientError,
    InputError,
    NotFiniteError,
    TrainingError,
    brief,
    is_out_of_memory,
    listed,
    naming_refused_parameters,
    no_nan_warnings,
)
from pvae.core.random_state import restore_rng_state, rng_state, seeded
from pvae.core.terminal import progress_bar
from pvae.core.terms import LossAndTerms, Terms
from pvae.core.torch_private import has_bfloat16
from pvae.data.dataset import Dataset, random_subset
from pvae.data.domain import check_domain
from pvae.data.labels import few_labels
from pvae.data.preparation import Preparation
from pvae.data.torch_data import in_random_order
from pvae.elbos.base import PerDatumELBO
from pvae.elbos.registry import ELBO_CLASSES, elbo_of
from pvae.elbos.terms import posterior_mean_loss
from pvae.models.build import build_vae, fit_to, meta_state_dict, sizes_of, start_like_burda
from pvae.models.labels import found_labels
from pvae.runs.checkpoint import Checkpoint, Counts
from pvae.runs.metrics import Metrics, summarise
from pvae.trained.latent_space import reconstruct, sample, sample_given
from pvae.training.divergence import cause_of
from pvae.training.first_steps import FirstSteps, saved_by_inductor, seconds_to_compile
from pvae.training.parallel import ALONE, Share, SharedELBO, World
from pvae.training.schedules import learning_rate, rate_weight
from pvae.vae import VAE

__all__ = ["Trainer"]

_PIXELS = 784_000  # of a batch of an evaluation times particles; with one particle, 1,000 images of 28 x 28


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
        engine: "none", "graph" or "inductor": what an earlier session has chosen for `config.compile` "auto".
        threads: number of threads; by default it is chosen by the first steps.
        note: called with a line on what is chosen.
        beta: the weight of the rate as a function of the number of the step, in place of those options of `config`.

    Attributes:
        engine: how steps are computed now: "none", "graph" or "inductor".
        parameters: the parameters that are trained; those that need no gradient are not.
        optimizer: Adam over them.
        num_steps: steps in an epoch.
        epoch: number of epochs finished, including their tests.
        step: number of steps begun.

    Raises:
        InputError: the batch is larger than the training set, the networks do not fit into memory, BatchNorm would be
            given a batch of one image, or options do not work together or not in several processes.
    """

    def __init__(
        self,
        config: Config,
        data: Dataset,
        device: torch.device,
        world: World = ALONE,
        vae: VAE | None = None,
        engine: str | None = None,
        threads: int | None = None,
        note: Callable[[str], object] = lambda line: None,
        beta: Callable[[int], float] | None = None,
    ) -> None:
        refuse(
            Case(
                config=config,
                elbo=ELBO_CLASSES[config.elbo],
                has_own_beta=beta is not None,
                data=data,
                has_own_vae=vae is not None,
                num_processes=world.size,
            )
        )
        if vae is None:
            _check_memory(config, data.datum_shape, len(data.label_names))
        self.config, self.device, self.world = config, device, world
        self.data, self.preparation = data, Preparation.of(config)
        self.images = {
            split: self.preparation.prepared(images, split, is_redrawn=split == "train").to(device)
            for split, images in data.splits.items()
        }
        self.vae = (build_vae(config, data.datum_shape, len(data.label_names)) if vae is None else vae).to(device)
        self.labels = _labels_of(config, data, self.vae, device, note)
        if config.initialization == "burda" and vae is None:
            start_like_burda(self.vae, self.images["train"])
        if vae is None and not data.is_images:
            fit_to(self.vae, self.images["train"])
        if not data.is_images:
            check = getattr(self.vae.p_x, "check", None)
            for split, values in self.images.items():
                check_domain(check, values, data.name, data.names.get(split, split), data.columns)
        self.parameters = [parameter for parameter in self.vae.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.Adam(self.parameters, lr=config.lr, eps=config.adam_eps, fused=True)
        self.num_steps = math.ceil(len(data.train) / config.batch_size)
        self.epoch = self.step = 0
        known = (self.labels["train"] >= 0).float().mean().item() if config.labels else 1.0
        self._elbo, self._beta = elbo_of(config, known), beta
        self._svis: dict[Share | None, tuple[CompiledSVI, PerDatumELBO]] = {}
        self._is_auto, self._note = config.compile == "auto", note
        self._has_engine = engine is not None or not self._is_auto
        self.engine = engine or ("graph" if self._is_auto else config.compile)
        if self.engine == "inductor":
            check_engine(self.engine, config.precision)
        if config.precision == "bf16" and device.type == "cpu" and not has_bfloat16():
            note("this CPU has no instructions for bfloat16: --precision fp32 is several times as fast here")
        candidates = [threads or torch.get_num_threads()]
        while candidates[-1] > 1 and threads is None and world.size == 1 and device.type == "cpu":
            candidates.append(candidates[-1] // 2)
        self._first_steps = FirstSteps(candidates)

    @property
    def chosen(self) -> dict[str, Any]:
        """The engine and the number of threads, once the first steps have chosen them; empty before."""
        first = self._first_steps
        is_chosen = first.is_chosen or (self._has_engine and len(first.candidates) == 1)
        return {"engine": self.engine, "threads": first.threads} if is_chosen else {}

    def run_epoch(self, quiet: bool = True, on_step: Callable[[], None] = lambda: None) -> list[Metrics]:
        """Train for one epoch, and then evaluate.

        Args:
            quiet: draw no progress bar.
            on_step: called after each step and each batch of an evaluation. It must not edit the model: a compiled
                epoch would not notice.

        Returns:
            The metrics of the training images, of the validation images if there are any, and of the test images.

        Raises:
            TrainingError: a loss or a gradient was not finite, or memory did not suffice.
        """
        rows = [self.train_epoch(quiet, on_step)]
        rows += [self.evaluate(split, on_step) for split in ("valid", "test") if split in self.images]
        self.end_epoch()
        return rows

    def train_epoch(self, quiet: bool = True, on_step: Callable[[], None] = lambda: None) -> Metrics:
        """Do the training of `run_epoch`; `end_epoch` must follow."""
        self.vae.train()
        self._first_steps.begin()
        batch_size, title = self.config.batch_size, f"epoch {self.epoch + 1}/{self.config.epochs}"
        order = in_random_order(self.images["train"]).to(self.device)
        distortion, rate = torch.zeros(2, len(order), device=self.device)
        total, seen, began = 0.0, 0, time.perf_counter()
        bar = progress_bar(title, self.num_steps, "step", quiet)
        with bar, no_nan_warnings():
            for index in order.split(batch_size):
                (loss, terms), share = self.train_step(index), self.world.share(len(index))
                if share.weight:
                    rows = slice(seen + share.start, seen + share.stop)
                    distortion[rows], rate[rows] = terms[:2]
                total, seen = total + loss * share.total, seen + share.total
                bar.set_postfix_str(f"loss {total * self.world.size / seen:.2f}", refresh=False)
                bar.update()
                on_step()
        whole, both = torch.tensor([total], dtype=torch.float64), torch.stack([distortion, rate])
        self.world.sum_([whole])
        self.world.sum_([both])
        return self._metrics("train", Terms(*both), whole.item() / len(order), time.perf_counter() - began)

    def train_step(self, index: Tensor) -> tuple[float, Terms]:
        """Step on one batch of training images.

        Args:
            index: indices of the images, int64 (B,).

        Returns:
            This process's part in the loss, and the terms of its rows.

        Raises:
            TrainingError: the loss or a gradient is not finite, or memory does not suffice; parameters and the
                optimiser's state are as before.
        """
        beta, share = self.rate_weight(), self.world.share(len(index))
        self.optimizer.param_groups[0]["lr"] = learning_rate(self.config, self.step, self.num_steps)
        self.step += 1
        try:
            with _advice_on_memory(f"step {self.step}"), naming_refused_parameters():
                loss, terms = self._step(index, share, beta)
                return loss.item(), terms
        except NotFiniteError as error:
            self.optimizer.zero_grad()
            # If this process failed before the sum of gradients, the others wait for it: NaN makes them fail too.
            if self.world.size > 1 and not isinstance(error, GradientError):
                self.world.sum_([torch.full_like(parameter, math.nan) for parameter in self.parameters])
            where = f"at step {self.step} (batch {(self.step - 1) % self.num_steps + 1} of epoch {self.epoch + 1})"
            self._end_training(f"{error}, {where}", self._batch_of(index), "train", index.tolist(), error)

    def evaluate(self, split: str = "test", on_step: Callable[[], None] = lambda: None) -> Metrics:
        """Return the metrics of the test or validation images, with the same noise after every epoch.

        Args:
            split: "test" or "valid".
            on_step: as for `run_epoch`.

        Raises:
            TrainingError: a metric is not finite.
        """
        self.vae.eval()
        started, images = time.perf_counter(), self.images[split]
        count, world = len(images), self.world
        batch_size = max(1, _PIXELS // max(784, images[0].numel() * self.config.particles))
        sums, terms = torch.zeros(2, dtype=torch.float64), torch.zeros(2, count, device=self.device)
        with seeded(self.config.seed, self.device), no_nan_warnings(), _advice_on_memory(f"step {self.step}"):
            for start in range(0, count, batch_size):
                share = world.share(min(batch_size, count - start))
                rows = slice(start + share.start, start + share.stop)
                loss, measured, at_mean = self._loss(images[rows], share, split, start + share.start)
                if share.weight:
                    sums += torch.tensor([loss * share.total, at_mean], dtype=torch.float64)
                    terms[:, rows] = torch.stack(measured[:2])
                on_step()
            world.sum_([sums])
            world.sum_([terms])
        loss, at_mean = (sums / count).tolist()
        row = self._metrics(split, Terms(*terms), loss, time.perf_counter() - started, at_mean)
        return dataclasses.replace(row, accuracy=self._accuracy(split, batch_size)) if self.config.labels else row

    def _accuracy(self, split: str, batch_size: int) -> float | None:
        """Return the share of the known labels of a split that q(y | x) finds, or None if it has none."""
        parts = map(self.preparation.x, self.images[split].split(batch_size))
        found = found_labels(self.vae.q_z, parts, self.data.labels.get(split))
        return None if found is None else found.double().mean().item()

    def _metrics(self, split: str, terms: Terms, loss: float, seconds: float, at_mean: float = math.nan) -> Metrics:
        try:
            return summarise(
                terms,
                vae=self.vae,
                loss=loss,
                epoch=self.epoch + 1,
                split=split,
                seconds=seconds,
                posterior_mean_loss=None if math.isnan(at_mean) else at_mean,
            )
        except NotFiniteError as error:
            raise TrainingError(f"the {split} metrics of epoch {self.epoch + 1} are not finite: {error}") from error

    def _loss(self, images: Tensor, share: Share, split: str, first: int) -> tuple[float, Terms, float]:
        """Return loss, terms and posterior-mean loss of a part of a batch, without a gradient."""
        x, y = self.preparation.x(images), self.labels.get(split)
        y = None if y is None else y[first : first + len(x)]
        try:
            with naming_refused_parameters():
                _, elbo = self._svi(share)
                batch, beta = (x,) if y is None else (x, y), self.rate_weight()
                result, terms = elbo.evaluate(self.vae.model, self.vae.guide, *batch, beta=beta)
                LossAndTerms(result, terms).check_finite()
        except NotFiniteError as error:
            if self.world.size > 1:  # all processes raise the error together, after their sum
                return math.nan, Terms(*x.new_zeros(2, len(x))), math.nan
            what = f"the {split} loss could not be computed at step {self.step}: {error}"
            self._end_training(what, batch, split, range(first, first + len(x)), error)
        try:
            with torch.no_grad():
                return result.item(), terms, posterior_mean_loss(self.vae.given(y), x).sum().item()
        except NotImplementedError:  # q and p have no closed-form KL
            return result.item(), terms, math.nan

    def dry_run(self) -> None:
        """Compute the loss of two images, to find out before any file is written whether training is possible.

        Raises:
            InputError: the ELBO cannot be computed for these distributions, or not for these images.
            TrainingError: the loss is not finite.
        """
        self.vae.eval()
        images = self.images["test"][:2]
        try:
            with seeded(self.config.seed, self.device), no_nan_warnings(), _advice_on_memory("the first loss"):
                self._loss(images, Share(0, 2, 2, 1.0), "test", 0)
        except (InputError, TrainingError):
            raise
        except (ValueError, RuntimeError, TypeError) as error:
            first_line, _, _ = str(error).partition("\n")
            raise InputError(
                f"the VAE cannot be evaluated on images of shape {tuple(images.shape[1:])} with pixels "
                f"{self.preparation.kind}, on the device {self.device}: {first_line}"
            ) from error

    def end_epoch(self) -> None:
        """Count the epoch as finished; the next `train_epoch` starts a new one."""
        self.epoch += 1

    def rate_weight(self) -> float:
        """Return the weight of the rate in the loss of the next step."""
        if self._beta is not None:
            return float(self._beta(self.step))
        return rate_weight(self.config, self.step, self.num_steps)

    def pictures(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return 8 test images, their reconstructions and 64 samples, in [0, 1], with the same noise in every call.

        Of other data, the samples are 1,000 draws from p(x | z) and not means, to be compared with the data.
        An autoencoder has no prior to sample from: its samples are an empty batch.
        """
        self.vae.eval()
        chosen = random_subset(len(self.images["test"]), 8, seed=0)  # as `trained.codes.examples` has them
        images = self.preparation.x(self.images["test"][chosen])
        with seeded(self.config.seed, self.device):
            vae, y = self.vae, self.labels.get("test")
            samples = images[:0]
            if not self.data.is_images and vae.has_density:
                samples = sample(vae, 1000, draws=True, y=y)
            elif vae.takes_labels and vae.has_density:
                labels: Any = self.data.shown_labels
                samples = sample_given(vae, labels.to(self.device))
            elif vae.has_density:
                samples = sample(vae, 64)
            given = vae.given(None if y is None else y[chosen])
            drawn = [images, reconstruct(given, images), samples]
        images, reconstructions, samples = (self.preparation.shown(part).cpu() for part in drawn)
        return images, reconstructions, samples

    def checkpoint(self) -> Checkpoint:
        """Return everything that the rest of the training depends on; all processes must call this together."""
        moments = self.optimizer.state_dict()["state"]
        return Checkpoint(
            counts=Counts(epoch=self.epoch, step=self.step),
            vae=self.vae.state_dict(),
            moments={f"{index}.{name}": tensor for index, one in moments.items() for name, tensor in one.items()},
            rng=rng_state(self.device),
        )

    def restore(self, checkpoint: Checkpoint) -> None:
        """Continue from a checkpoint, which another number of processes may have written.

        Raises:
            InputError: it is a checkpoint of another training.
        """
        try:
            self.vae.load_state_dict(checkpoint.vae)
            self._restore_moments(checkpoint.moments)
            restore_rng_state(checkpoint.rng, self.device)
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"the checkpoint does not fit config.json or the VAE ({brief(error)}): restore the files of one run"
            ) from None
        self.epoch, self.step = checkpoint.counts.epoch, checkpoint.counts.step

    def _restore_moments(self, moments: dict[str, Tensor]) -> None:
        shapes = {
            f"{index}.{name}": torch.Size() if name == "step" else parameter.shape
            for index, parameter in enumerate(self.parameters)
            for name in ("step", "exp_avg", "exp_avg_sq")
        }
        if not {name: tensor.shape for name, tensor in moments.items()}.items() <= shapes.items():
            raise ValueError("its optimiser's state is that of other parameters")
        state: dict[int, dict[str, Tensor]] = {}
        for key, tensor in moments.items():
            index, name = key.split(".")
            state.setdefault(int(index), {})[name] = tensor
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": state})

    def _batch_of(self, index: Tensor) -> Tensors:
        """Return the training data of an index as model and guide take them: x, or (x, y)."""
        x = self.preparation.batch(self.images["train"], index)
        return (x, self.labels["train"][index]) if self.labels else (x,)

    def _step(self, index: Tensor, share: Share, beta: float) -> LossAndTerms:
        """Take a step on this process's rows of a batch, and time it while threads and engine are chosen."""
        svi, _ = self._svi(share)
        if svi.prepare is not None:  # the recording starts from the index
            batch: Tensors = (index,)
        elif self.preparation.is_dynamic:  # every process draws the pixels of the whole batch
            batch = tuple(part[share.rows] for part in self._batch_of(index))
        else:
            batch = self._batch_of(index[share.rows])
        first, is_usual = self._first_steps, len(index) == self.config.batch_size
        first.begin()
        started = time.perf_counter()
        try:
            result = svi.step(*batch, beta=beta)
        except RecordingError as error:
            if not self._is_auto or self.config.precision != "fp32":
                raise
            self._note(f"steps are computed without --compile {self.engine}, and take longer: {error}")
            self.engine = "graph" if self.engine == "inductor" else "none"
            self._svis.clear()
            return self._step(index, share, beta)
        if is_usual and first.end(time.perf_counter() - started):
            self._choose_engine(svi, batch)
        return result

    def _choose_engine(self, svi: CompiledSVI, batch: Tensors) -> None:
        """Compile recorded steps if their code is kept, or if the steps that are left are expected to repay it."""
        left = self.config.epochs * self.num_steps - self.step
        saved, is_alone = saved_by_inductor(self._first_steps.seconds, left), self.world.size == 1
        if self._has_engine or self.engine != "graph" or saved < 1 or self.device.type != "cpu" or missing():
            return
        is_tried = False

        def may_compile(num_operators: int) -> bool:
            nonlocal is_tried
            cost = seconds_to_compile(num_operators)
            is_tried = is_alone and saved > cost
            if is_tried:
                self._note(f"compiling the step takes about {cost:.0f} s, and saves about {saved:.0f} s")
            return is_tried

        try:
            svi.use_inductor(batch, may_compile)
            self.engine = "inductor"
        except (RecordingError, RuntimeError, MemoryError) as error:
            if not isinstance(error, RecordingError) and not is_out_of_memory(error):
                raise
            if is_tried:
                why = str(error) if isinstance(error, RecordingError) else "out of memory"
                self._note(f"the step is not compiled: {why}")

    def _svi(self, share: Share) -> tuple[CompiledSVI, PerDatumELBO]:
        """Return SVI and ELBO of this process's rows of a batch; a single process has one for batches of any size."""
        config, is_alone = self.config, self.world.size == 1
        key = None if is_alone else share
        if key not in self._svis:
            elbo: PerDatumELBO = self._elbo if is_alone else SharedELBO(self._elbo, share)
            names = dict(self.vae.named_parameters())
            optimizer = SingleOptimizer(self.optimizer, names, config.clip_norm, None if is_alone else self.world.sum_)
            functions = self.vae.model, self.vae.guide
            usual = self.world.share(config.batch_size)
            compiled = CompiledELBO(elbo, self.engine, config.precision, batch_size=usual.stop - usual.start)
            prepare = self._batch_of if is_alone else None
            self._svis[key] = CompiledSVI(*functions, optimizer, compiled, prepare), elbo
        return self._svis[key]

    def _end_training(self, what: str, batch: Any, split: str, rows: Sequence[int], error: NotFiniteError) -> NoReturn:
        """Raise an error that names the cause of a loss or a gradient of a batch that is not finite."""
        files = self.data.names.get(split)
        names = [files[row] if files else f"{split} image {row}" for row in rows]
        vae = self.vae.given(batch[1]) if len(batch) > 1 else self.vae
        raise TrainingError(f"{what}: {cause_of(vae, batch[0], names)}") from error


def _labels_of(
    config: Config, data: Dataset, vae: VAE, device: torch.device, note: Callable[[str], object]
) -> dict[str, Tensor]:
    """Return the labels that model and guide take, by split; {} if they take none."""
    if not vae.takes_labels:
        return {}
    if config.labels:
        few = few_labels(data, config.labels, config.seed)
        if (number := int((few >= 0).sum())) < config.labels:
            note(f"labels of {number:,} training data are known and used")
        return {"train": few.to(device)}
    if lacking := data.splits.keys() - data.labels.keys():
        raise InputError(
            f"the VAE is one given labels, and the {listed(sorted(lacking))} data of {data.name} have none"
        )
    if any(bool((labels < 0).any()) for labels in data.labels.values() if labels.dtype == torch.int64):
        advice = "leave these data out, or give --labels N, which uses all x and N labels"
        raise InputError(f"some labels of {data.name} are not known, and --condition needs all: {advice}")
    return {split: labels.to(device) for split, labels in data.labels.items()}


def _check_memory(config: Config, datum_shape: tuple[int, ...], num_labels: int) -> None:
    """Refuse networks that do not fit into memory before they are built: the system could kill the process."""
    needed = 4 * sum(
        tensor.nbytes for tensor in meta_state_dict(config, datum_shape, num_labels).values()
    )  # gradients and moments
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else math.inf
    if needed > memory:
        raise InputError(f"networks of {sizes_of(config)} do not fit into memory: give smaller ones")


@contextlib.contextmanager
def _advice_on_memory(what: str) -> Iterator[None]:
    """Replace torch's exceptions for missing memory in the operation `what` by one that says what to do."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        advice = "give a smaller --batch-size, fewer --particles or smaller networks"
        raise TrainingError(f"out of memory at {what}: {advice}") from error
