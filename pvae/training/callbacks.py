"""What `fit` lets a `Trainer` call: progress, interruptions, the run folder, TensorBoard, pictures, patience."""

from __future__ import annotations

import contextlib
import copy
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pvae.config.config import Config
from pvae.config.presets import system_title
from pvae.core.errors import TrainingError
from pvae.core.files import write_whole
from pvae.core.random_state import seeded
from pvae.core.signals import Interruptions
from pvae.core.terminal import print_line, progress_bar
from pvae.data.dataset import random_subset
from pvae.data.preparation import Preparation
from pvae.runs import writer
from pvae.runs.metrics import Metrics, best_epoch, is_out_of_patience
from pvae.runs.run import Run
from pvae.runs.tensorboard import write_events
from pvae.trained.latent_space import reconstruct, sample, sample_given
from pvae.training.engine import Engine
from pvae.training.parallel import World
from pvae.training.trainer import Callback, Trainer

__all__ = [
    "Figures",
    "Interrupt",
    "OnEachRow",
    "OnEpoch",
    "Patience",
    "Printed",
    "ProgressBar",
    "Saved",
    "TensorBoard",
    "best_line",
    "epoch_line",
    "pictures",
    "start_lines",
]

OnEpoch = Callable[[Run, Metrics], object]


@dataclass
class Interrupt(Callback):
    """Ends the training after the step in which a signal came to one of its processes."""

    interruptions: Interruptions
    world: World

    def on_step_end(self, trainer: Trainer, loss: Tensor | None) -> None:
        """Raise a KeyboardInterrupt, in all processes after the same step."""
        if self.world.any(bool(self.interruptions.received)):
            raise KeyboardInterrupt

    def on_epoch_end(self, trainer: Trainer, rows: Sequence[Metrics]) -> None:
        """Raise a KeyboardInterrupt, for a signal that came while the epoch was saved."""
        self.on_step_end(trainer, None)

    def on_train_end(self, trainer: Trainer) -> None:
        """Raise a KeyboardInterrupt, for a signal that came while figures were drawn."""
        self.on_step_end(trainer, None)


@dataclass
class Saved(Callback):
    """Writes metrics and checkpoint into the run folder after each epoch.

    Args:
        run: the run.
        engine: takes the steps.
        num_processes: number of processes that train.
        is_first: whether this process writes; the others only count.

    Attributes:
        epoch: the epoch of the last checkpoint in the folder, or None.
    """

    run: Run
    engine: Engine
    num_processes: int
    is_first: bool
    epoch: int | None = None

    def on_train_begin(self, trainer: Trainer) -> None:
        """Write a folder that can be resumed."""
        if self.is_first:
            # Each of several processes has its own GPU, and a resumption may have others: record no number.
            device = trainer.device.type if self.num_processes > 1 else str(trainer.device)
            writer.begin(self.run, trainer.rows, trainer.checkpoint(), device, self.num_processes)
            if (data := self.run.dataset()).names:
                write_whole(self.run.path / "split.csv", data.split_csv())
        self.epoch = trainer.epoch

    def on_epoch_end(self, trainer: Trainer, rows: Sequence[Metrics]) -> None:
        """Write metrics, checkpoint, and what the first steps have chosen."""
        if self.is_first:
            writer.save(self.run, trainer.rows, trainer.checkpoint())
            writer.record_choice(self.run, self.engine.chosen)
        self.epoch = trainer.epoch


@dataclass
class ProgressBar(Callback):
    """Draws the steps of each epoch, with the mean of their losses, if standard error is a terminal.

    Args:
        epochs: the last epoch.
        num_processes: number of processes, whose parts in a loss are about equal.
    """

    epochs: int
    num_processes: int = 1
    bar: Any = None
    total: float = 0.0

    def on_step_end(self, trainer: Trainer, loss: Tensor | None) -> None:
        """Draw a step, and remove the bar after the last one."""
        if loss is None:
            return
        if self.bar is None:
            title = f"epoch {trainer.epoch + 1}/{self.epochs}"
            is_read = sys.stdout is not None  # which `print_line` sets to None where nothing reads it
            self.bar, self.total = progress_bar(title, trainer.num_steps, "step", quiet=not is_read), 0.0
        self.total += loss.item() * self.num_processes
        self.bar.set_postfix_str(f"loss {self.total / (self.bar.n + 1):.2f}", refresh=False)
        self.bar.update()
        if self.bar.n == trainer.num_steps:
            self.close()

    def close(self) -> None:
        """Remove the bar."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None


@dataclass
class Printed(Callback):
    """Prints what is trained, a line for each epoch, and which epoch was the best."""

    run: Run

    def on_train_begin(self, trainer: Trainer) -> None:
        """Print what is trained on what data."""
        print_line(start_lines(self.run, str(trainer.device), trainer.epoch))

    def on_epoch_end(self, trainer: Trainer, rows: Sequence[Metrics]) -> None:
        """Print the metrics of the epoch."""
        print_line(epoch_line(self.run, rows))

    def on_train_end(self, trainer: Trainer) -> None:
        """Print which epoch was the best on the validation data."""
        if line := best_line(trainer.rows, self.run.config.epochs):
            print_line(line)


@dataclass
class TensorBoard(Callback):
    """Writes scalars and pictures of each epoch as TensorBoard events."""

    run: Run
    writer: Any = None  # a SummaryWriter

    def on_epoch_end(self, trainer: Trainer, rows: Sequence[Metrics]) -> None:
        """Write the events of the epoch; TensorBoard hides those of this and later epochs by an earlier session."""
        if self.writer is None:
            from torch.utils.tensorboard import SummaryWriter  # slow to import

            self.writer = SummaryWriter(str(self.run.path), purge_step=trainer.epoch)
        write_events(self.writer, rows, *pictures(trainer, self.run))

    def close(self) -> None:
        """Close the file."""
        if self.writer is not None:
            with contextlib.suppress(OSError):  # a full disk, which `on_epoch_end` has reported
                self.writer.close()


@dataclass
class OnEachRow(Callback):
    """Calls the caller's function for each row of metrics."""

    run: Run
    function: OnEpoch

    def on_epoch_end(self, trainer: Trainer, rows: Sequence[Metrics]) -> None:
        """Call the function for each split."""
        try:
            for row in rows:
                self.function(self.run, row)
        except OSError as error:  # otherwise reported as an error of the run folder
            raise TrainingError(f"on_epoch raised {type(error).__name__}: {error}") from error


@dataclass
class Patience(Callback):
    """Ends the training after a number of epochs without a better bound on the validation data."""

    epochs: int

    def ends(self, trainer: Trainer) -> bool:
        """Return whether there has been no better bound for that many epochs."""
        return is_out_of_patience(trainer.rows, self.epochs)


@dataclass
class Figures(Callback):
    """Draws the figures of a run at its end, of the weights of its best epoch."""

    run: Run
    interruptions: Interruptions

    def on_train_end(self, trainer: Trainer) -> None:
        """Draw the figures, unless a signal came."""
        self.interruptions.raise_if_received()
        from pvae.plotting.run_figures import save_figures  # imports matplotlib, which is slow

        if self.run.config.valid:  # the VAE that the caller gave ends with the best weights too
            trainer.vae.load_state_dict(self.run.best_checkpoint().vae)
        if self.run.has_own_vae:
            self.run.vae(copy.deepcopy(trainer.vae))
        save_figures(self.run, self.interruptions.raise_if_received)
        self.run.forget()


def pictures(trainer: Trainer, run: Run) -> tuple[Tensor, Tensor, Tensor]:
    """Return 8 test images, their reconstructions and 64 samples, in [0, 1], with the same noise after every epoch.

    Of other data, the samples are 1,000 draws from p(x | z) and not means, to be compared with the data. An autoencoder
    has no prior to sample from: its samples are an empty batch.
    """
    vae, test, data = trainer.vae.eval(), trainer.splits["test"], run.dataset()
    chosen = random_subset(len(test), 8, seed=0)  # as `trained.codes.examples` has them
    (few,) = test.rows(chosen).split(8)
    with seeded(trainer.seed, trainer.device):
        samples = few.x[:0]
        if not data.is_images and vae.has_density:
            samples = sample(vae, 1000, draws=True, y=test.y)
        elif vae.takes_labels and vae.has_density:
            labels: Any = data.shown_labels
            samples = sample_given(vae, labels.to(trainer.device))
        elif vae.has_density:
            samples = sample(vae, 64)
        parts = few.x, reconstruct(vae, few), samples
    images, reconstructions, samples = (run.preparation.shown(part).cpu() for part in parts)
    return images, reconstructions, samples


def start_lines(run: Run, device: str, epoch: int) -> str:
    """Return what is trained on what data, and the folder it is written to."""
    config, data = run.config, run.data
    folder = f" (found in {data.folder})" if data.folder else ""
    rate = "" if run.has_own_vae else _estimated_rate(config)
    lines = [
        f"data: {data.title}{folder}, {_values(run)}",
        f"training {system_title(config)} by SVI with --elbo {config.elbo}{rate}, "
        f"epochs {epoch + 1} to {config.epochs}, on {device}, into {run.path}",
    ]
    if config.warm_up > config.epochs:
        share = f"{config.epochs / config.warm_up:.0%}"
        lines.append(f"the warm-up takes {config.warm_up} epochs: the weight of the rate rises to {share} of --beta")
    return "\n".join(lines)


def epoch_line(run: Run, rows: Sequence[Metrics]) -> str:
    """Return the metrics of one epoch.

    The loss is included where it differs from the negated bound (beta, importance weights).

    Args:
        run: the run.
        rows: metrics of the training images, of the validation images if there are any, and of the test images.
    """
    test, epochs = rows[-1], run.config.epochs
    terms = f"distortion {test.distortion:.2f}, rate {test.rate:.2f}"
    if abs(test.loss - test.distortion - test.rate) > max(0.005, 1e-6 * abs(test.loss)):  # beyond rounding
        terms += f", loss {test.loss:.2f}"
    if test.accuracy is not None:
        terms += f", {test.accuracy:.2%} of the labels found"
    seconds, number = sum(row.seconds for row in rows), f"{test.epoch:{len(str(epochs))}}/{epochs}"
    return f"epoch {number}  {'  '.join(map(str, rows))} ({terms}{run.bits(test)})  {seconds:.1f} s"


def best_line(rows: Sequence[Metrics], epochs: int) -> str:
    """Return which epoch was the best on the validation data, and why the training ended; "" without such images.

    Args:
        rows: metrics of all epochs.
        epochs: number of the planned epochs.
    """
    best, last = best_epoch(rows), rows[-1].epoch
    if best is None:
        return ""
    why = f"stopped after epoch {last}, {last - best} epochs without a better bound; " if last < epochs else ""
    more = "; it is the last one: more epochs may give a better one" if best == last else ""
    return f"{why}epoch {best} is the best on the validation data: load, evaluate and draw take its weights{more}"


def _values(run: Run) -> str:
    """Return what the VAE sees of the data."""
    if run.data.is_images:
        return f"pixels {_pixels(run.config, run.has_own_vae)}"
    shape = " x ".join(map(str, run.data.datum_shape))
    binarized = "" if run.config.binarize == "none" else f", binary by --binarize {run.config.binarize}"
    return f"each of {shape} values{binarized}"


def _pixels(config: Config, has_own_vae: bool) -> str:
    """Return the values of the pixels, how they are binarized, and the bound if a Bernoulli scores grey ones."""
    kind = Preparation.of(config).kind
    if config.binarize != "none":
        return f"{kind} by --binarize {config.binarize}"
    return f"{kind}, so the bound is a pseudo-ELBO" if config.is_pseudo and not has_own_vae else kind


def _estimated_rate(config: Config) -> str:
    """Return a note on the layers whose rate has no closed form."""
    layers = [f"z{number}" for number, is_closed in enumerate(config.closed_forms, 1) if not is_closed]
    rate = f"the rate of {' and '.join(layers)}" if config.upper_latent_dims else "its rate"
    return f" ({rate} is a mean over the draws: it has no closed form)" if layers else ""
