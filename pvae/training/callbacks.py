"""What `fit` lets a `Trainer` call: progress, interruptions, the run folder, TensorBoard, figures, patience."""

from __future__ import annotations

import contextlib
import copy
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyro
import torch
from torch import Tensor

from pvae.compile.compiled_svi import Done
from pvae.config.presets import command_line, system_title
from pvae.core.batch import Batch
from pvae.core.errors import InputError, TrainingError, listed
from pvae.core.files import write_whole
from pvae.core.random_state import seeded
from pvae.core.terminal import Interruptions, print_line, progress_bar
from pvae.data.dataset import random_subset
from pvae.data.preparation import Pixels
from pvae.data.schema import Column
from pvae.evaluation.measures.floor import Floor
from pvae.evaluation.measures.latents import COLLAPSED, forecast, said_of_collapse
from pvae.evaluation.report import what_was_learned
from pvae.runs import writer
from pvae.runs.metrics import Metrics, best_epoch, is_out_of_patience
from pvae.runs.run import HISTORY_ROWS, Instant, Run, shown_rows
from pvae.runs.writer import write_card
from pvae.trained.latent_space import encode, reconstruct, sample, sample_given
from pvae.trained.scores import elbo_terms
from pvae.training.parallel import World
from pvae.training.trainer import Callback, Trainer
from pvae.vae import VAE

__all__ = [
    "Checkpointing",
    "Console",
    "EarlyStopping",
    "Figures",
    "History",
    "Interrupt",
    "OnEachRow",
    "OnEpoch",
    "ProgressBar",
    "TensorBoard",
]

OnEpoch = Callable[[Run, Metrics], object]
_LEAST_SECONDS = 0.5  # of training between two lines of metrics
_FORECAST = 10_000  # training data, evenly spaced, by which a collapse is forecast
_SHOWN = 20  # letters of a level of a column
_INSTANTS, _WITH_WEIGHTS = 40, 8  # of a training that are kept, at most
_KEPT_WEIGHTS, _MOST_WEIGHTS = 750_000, 3_000_000  # of all instants, but at least of two; and of a VAE


@dataclass
class Interrupt(Callback):
    """Ends the training after the steps in which a signal came to one of its processes."""

    interruptions: Interruptions
    world: World

    def on_steps_end(self, trainer: Trainer, done: Done | None) -> None:
        """Raise a KeyboardInterrupt, in all processes after the same step."""
        if self.world.any(bool(self.interruptions.received)):
            raise KeyboardInterrupt

    def on_epoch_end(self, trainer: Trainer, rows: Sequence[Metrics]) -> None:
        """Raise a KeyboardInterrupt, for a signal that came while the epoch was saved."""
        self.on_steps_end(trainer, None)

    def on_train_end(self, trainer: Trainer) -> None:
        """Raise a KeyboardInterrupt, for a signal that came while figures were drawn."""
        self.on_steps_end(trainer, None)


@dataclass
class Checkpointing(Callback):
    """Writes metrics and checkpoint into the run folder after each epoch, in the first process; the others only count.

    Args:
        run: the run.

    Attributes:
        epoch: the epoch of the last checkpoint in the folder, or None.
    """

    run: Run
    epoch: int | None = None

    def on_train_begin(self, trainer: Trainer) -> None:
        """Write a folder that can be resumed."""
        num_processes = trainer.world.size
        if trainer.world.is_first:
            # Each of several processes has its own GPU, and a resumption may have others: record no number.
            device = trainer.device.type if num_processes > 1 else str(trainer.device)
            writer.begin(self.run, trainer.rows, trainer.checkpoint(), device, num_processes)
            if (data := self.run.dataset()).names:
                write_whole(self.run.path / "split.csv", data.split_csv())
        self.epoch = trainer.epoch

    def on_epoch_end(self, trainer: Trainer, rows: Sequence[Metrics]) -> None:
        """Write metrics, checkpoint, and what the first steps have chosen."""
        if trainer.world.is_first:
            writer.save(self.run, trainer.rows, trainer.checkpoint())
            writer.record_choice(self.run, trainer.engine.chosen)
        self.epoch = trainer.epoch


@dataclass
class History(Callback):
    """Keeps codes of test images as they move in the training of a VAE with two latents, for `pvae explore`.

    Up to 40 instants are kept, after steps in equal ratios, and at a few of them the weights; fewer where they would
    take more than half a second and a twentieth of the time that the steps of the session take.

    Args:
        run: the run.
        has_steps: whether the trainer takes the steps itself, so that the weights are those of the step that ends;
            otherwise instants are ends of epochs.
    """

    run: Run
    has_steps: bool = True
    instants: list[Instant] = field(default_factory=list)
    size: int = 0  # of the VAE, in weights; 0 where nothing is kept
    written: int = 0
    first: int = 0  # step of the session
    started: float = 0.0
    spent: float = 0.0

    def on_train_begin(self, trainer: Trainer) -> None:
        """Read what an earlier session kept, and keep the codes before the first step."""
        config, data = self.run.config, self.run.data
        is_map = config.latent_dims == (2,) and config.prior_class.support not in ("categories", "codes")
        size = sum(map(torch.numel, trainer.vae.state_dict().values()))
        if not (is_map and data.is_images and size <= _MOST_WEIGHTS) or config.labels or self.run.has_own_vae:
            return
        with contextlib.suppress(InputError):  # a damaged file is replaced
            self.instants = [one for one in self.run.history() if one.step <= trainer.step]
        self.size, self.first, self.started = size, trainer.step, time.perf_counter()
        self._keep(trainer)

    def on_steps_end(self, trainer: Trainer, done: Done | None) -> None:
        """Keep an instant, if it is time for one."""
        if done is not None and self.has_steps:
            self._keep(trainer)

    def on_epoch_end(self, trainer: Trainer, rows: Sequence[Metrics]) -> None:
        """Keep an instant, if it is time for one, and write what was kept."""
        self._keep(trainer)
        if len(self.instants) > self.written:
            writer.write_history(self.run, self.instants)
            self.written = len(self.instants)

    def _keep(self, trainer: Trainer) -> None:
        now, steps = time.perf_counter(), max(2, trainer.num_steps * self.run.config.epochs)
        ratio, taken = steps ** (1 / _INSTANTS), trainer.step - self.first
        if not self.size or (self.instants and trainer.step < max(1, ratio * self.instants[-1].step)):
            return
        expected = (now - self.started - self.spent) * (steps - self.first) / max(1, taken)  # of all steps, in seconds
        if self.spent > 0.5 + 0.05 * expected:
            return
        test, number = trainer.splits["test"], max(2, min(_WITH_WEIGHTS, _KEPT_WEIGHTS // self.size))
        found = _codes_and_terms(trainer.vae, test.rows(shown_rows(len(test), HISTORY_ROWS).to(trainer.device)))
        if all(map(math.isfinite, found[1:])):  # or the next step says why not
            count = sum(bool(one.weights) for one in self.instants)
            is_due = count < number and trainer.step >= ratio ** (_INSTANTS * (2 + count) / (2 + number))
            weights = {name: one.clone() for name, one in trainer.vae.state_dict().items()} if is_due else {}
            self.instants.append(Instant(trainer.step, *found, weights))
        self.spent += (time.perf_counter() - now) * (taken > 0)  # the first evaluation of a process takes longer


@torch.no_grad()
def _codes_and_terms(vae: VAE, batch: Batch) -> tuple[Tensor, float, float]:
    """Return codes of data, and the means of their distortion and rate from one draw of z; the VAE's mode stays."""
    is_training = vae.training
    vae.eval()
    try:
        with pyro.validation_enabled(False), seeded(0, next(vae.parameters()).device):
            terms = elbo_terms(vae, batch, 1)
            return encode(vae, batch).cpu(), terms["distortion"].mean().item(), terms["rate"].mean().item()
    finally:
        vae.train(is_training)


@dataclass
class ProgressBar(Callback):
    """Draws the steps of each epoch, with the mean of their losses, if standard error is a terminal.

    Args:
        epochs: the last epoch.
    """

    epochs: int
    bar: Any = None
    total: float = 0.0

    def on_steps_end(self, trainer: Trainer, done: Done | None) -> None:
        """Draw some steps, and remove the bar after the last one."""
        if done is None:
            return
        if self.bar is None:
            self.total = 0.0
            self.bar = progress_bar(f"epoch {trainer.epoch + 1}/{self.epochs}", trainer.num_steps, "step")
        self.total += done.losses.sum().item() * trainer.world.size  # the parts of the processes are about equal
        self.bar.set_postfix_str(f"loss {self.total / (self.bar.n + len(done.losses)):.2f}", refresh=False)
        self.bar.update(len(done.losses))
        if self.bar.n == trainer.num_steps:
            self.close()

    def close(self) -> None:
        """Remove the bar."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None


@dataclass
class Console(Callback):
    """Prints what is trained, what it must exceed, a line for each epoch, and which epoch was the best.

    Args:
        run: the run.
        name: printed before the lines at the end of the training.

    Attributes:
        floor: what a model without a latent reaches on the held-out data; None where it is not known.
        held_out: the split of these data.
        seconds: of training since the last line.
        is_collapsed: whether a warning of it was printed.
    """

    run: Run
    name: str = ""
    floor: Floor | None = None
    held_out: str = "test"
    seconds: float = 0.0
    is_collapsed: bool = False

    def on_train_begin(self, trainer: Trainer) -> None:
        """Print what is trained on what data, and the folder it is written to."""
        run, config, data = self.run, self.run.config, self.run.data
        folder = f" (found in {data.folder})" if data.folder else ""
        loaded, is_own = run.dataset(), config.system in ("images", "values")
        found = f", {loaded.found};" if loaded.found else ","
        values = run.preparation.kind if data.is_images else f"each of {' x '.join(map(str, data.datum_shape))} values"
        if config.binarize != "none":
            values += f", binary by --binarize {config.binarize}"
        elif data.is_images and config.is_pseudo and not run.has_own_vae:
            values += ", so the bound is a pseudo-ELBO"
        print_line(f"data: {data.title}{folder}{found} {'pixels ' * data.is_images}{values}")
        if is_own and loaded.train_labels is not None and loaded.train_labels.dim() == 1:
            use = "" if config.condition or config.labels else ", for pictures and measures only"
            print_line(f"classes{use}: {listed(loaded.label_names)}")
        kinds = config.column_kinds or [config.likelihood] * len(data.columns)
        for kind in dict.fromkeys(map(str, kinds)) if is_own and data.columns else ():
            columns = [column for column, one in zip(data.columns, kinds) if str(one) == kind]
            levels = [listed([text[:_SHOWN] for text in column.categories]) for column in columns]
            names = [column.name + f" ({texts})" * bool(texts) for column, texts in zip(columns, levels)]
            print_line(f"columns read as {kind}: {listed(names)}")
        if is_own:
            size = "x".join(map(str, data.datum_shape[1:])) if data.is_images else config.image_size
            given = config.replace(image_size=size, columns=_given_kinds(data.columns) or config.columns)
            print_line(f"options, given or chosen for the data: {command_line(given)}")
        epochs = f"epochs {trainer.epoch + 1} to {config.epochs}"
        system = f"{config.system if is_own else system_title(config)} by SVI with --elbo {config.elbo}"
        print_line(f"training {system}, {epochs}, on {trainer.device}, into {run.path}")
        self.held_out = "valid" if "valid" in trainer.splits else "test"
        if trainer.vae.has_density and not config.labels:  # whose bound is one on log p(x, y)
            train = Pixels(trainer.data.sample, trainer.data.preparation)
            self.floor = Floor.before_training(trainer.vae, train, trainer.splits[self.held_out].x)
        if self.floor is not None:
            what = "pixel" if data.is_images else "column" if data.columns else "value"
            print_line(self.floor.announced(self.held_out, what))
        has_fixed_scale = config.likelihood_class.has_fixed_scale and not run.has_own_vae
        if has_fixed_scale and trainer.vae.has_density and not (trainer.epoch or loaded.has_missing):
            sample = trainer.data.sample
            x = Pixels(sample[:: math.ceil(len(sample) / _FORECAST)], trainer.data.preparation)
            ahead = forecast(x, config.scale, config.latent_dim, config.beta)
            if not ahead.used:
                print_line(f"{self.name}warning: {ahead}")

    def on_epoch_end(self, trainer: Trainer, rows: Sequence[Metrics]) -> None:
        """Print the metrics of the epoch, with the loss where it differs from the negated bound.

        Of epochs that take less than half a second, those within half a second after a printed one are left out.
        """
        test, epochs, config = rows[-1], self.run.config.epochs, self.run.config
        is_full = test.epoch > config.warm_up and trainer.vae.has_density
        if is_full and not self.is_collapsed and test.rate < COLLAPSED:
            self.is_collapsed = True
            print_line(f"{self.name}warning: epoch {test.epoch}: {said_of_collapse(self.run)}")
        self.seconds += sum(row.seconds for row in rows)
        if self.seconds < _LEAST_SECONDS and 1 < test.epoch < epochs:
            return
        self.seconds = 0.0
        terms = f"distortion {test.distortion:.2f}, rate {test.rate:.2f}"
        if abs(test.loss - test.distortion - test.rate) > max(0.005, 1e-6 * abs(test.loss)):  # beyond rounding
            terms += f", loss {test.loss:.2f}"
        if test.accuracy is not None:
            terms += f", {test.accuracy:.2%} of the labels found"
        seconds, number = sum(row.seconds for row in rows), f"{test.epoch:{len(str(epochs))}}/{epochs}"
        bounds = "  ".join(map(str, rows))
        print_line(f"epoch {number}  {bounds} ({terms}{self.run.bits(test)})  {seconds:.1f} s")

    def on_train_end(self, trainer: Trainer) -> None:
        """Print which epoch was the best on the validation data, why the training ended, and what is amiss."""
        best, last = best_epoch(trainer.rows), trainer.epoch
        chosen = last if best is None else best
        held_out = [row for row in trainer.rows if row.split == self.held_out and row.epoch == chosen]
        for row in held_out:
            if self.floor is not None and (warning := self.floor.below(row)):
                print_line(f"{self.name}warning: {warning}")
        if best is not None:
            self._print_best(best, last)
        for line in what_was_learned(self.run):
            print_line(f"{self.name}{line}")

    def _print_best(self, best: int, last: int) -> None:
        if best == 1 < last and self.run.config.initialization != "exact":
            advice = "give a smaller --lr, or smaller networks"
            print_line(f"{self.name}warning: epoch 1 is the best on the validation data: {advice}")
        is_early = last < self.run.config.epochs
        why = f"stopped after epoch {last}, {last - best} epochs without a better bound; " if is_early else ""
        more = "; it is the last one: more epochs may give a better one" if best == last else ""
        chosen = f"epoch {best} is the best on the validation data: load, evaluate and draw take its weights"
        if best == 0:
            chosen = "the start is the best on the validation data: load, evaluate and draw take it"
        print_line(f"{self.name}{why}{chosen}{more}")


def _given_kinds(columns: Sequence[Column]) -> str:
    """Return the text of `--columns` that names the given kinds and levels; "" if a list of kinds says as much."""
    given = [column for column in columns if column.kind]
    are_codes = all(column.categories == tuple(map(str, range(len(column.categories)))) for column in given)
    if are_codes or any({*column.name} & {*",=\n"} for column in given):
        return ""
    levels = [":" + "<".join(column.categories) if column.kind == "ordinal" else "" for column in given]
    return ",".join(f"{column.name}={column.kind}{texts}" for column, texts in zip(given, levels))


@dataclass
class TensorBoard(Callback):
    """Writes the metrics of each epoch, and pictures of images, as TensorBoard events, as post 000 does."""

    run: Run
    writer: Any = None  # a SummaryWriter

    def on_epoch_end(self, trainer: Trainer, rows: Sequence[Metrics]) -> None:
        """Write the events of the epoch; TensorBoard hides those of this and later epochs by an earlier session."""
        if self.writer is None:
            from torch.utils.tensorboard import SummaryWriter  # slow to import

            self.writer = SummaryWriter(str(self.run.path), purge_step=trainer.epoch)
        for row in rows:  # values of a quantity are in one section for all splits
            values = {
                row.bound: row.elbo,
                "distortion (reconstruction error)": row.distortion,
                "rate (KL divergence)": row.rate,
                "loss": row.loss,
                "seconds": row.seconds,
            }
            for name, value in values.items():
                if value is not None:
                    self.writer.add_scalar(f"{name}/{row.split}", value, trainer.epoch)
        if self.run.data.is_images:
            for name, images in _pictures(trainer, self.run).items():
                self.writer.add_images(name, images, trainer.epoch)
        self.writer.flush()

    def close(self) -> None:
        """Close the file."""
        if self.writer is not None:
            with contextlib.suppress(OSError):  # a full disk, which `on_epoch_end` has reported
                self.writer.close()


def _pictures(trainer: Trainer, run: Run) -> dict[str, Tensor]:
    """Return pictures (N, C, H, W) in [0, 1] by their title, with the same noise after every epoch."""
    vae, test = trainer.vae.eval(), trainer.splits["test"]
    (few,) = test.rows(random_subset(len(test), 8, seed=0)).split(8)  # as `trained.codes.examples` has them
    found = {}
    with seeded(trainer.seed, trainer.device):
        if vae.has_density:
            labels = run.dataset().shown_labels if vae.takes_labels else None
            found["latent to image"] = sample(vae, 64) if labels is None else sample_given(vae, labels.to(few.x.device))
        found["test images above, reconstructions below"] = torch.cat([few.x, reconstruct(vae, few)], dim=2)
    shown = {name: run.preparation.shown(images).cpu() for name, images in found.items()}
    return {name: x if x.shape[1] in (1, 3) else x.mean(1, keepdim=True) for name, x in shown.items()}


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
class EarlyStopping(Callback):
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
        from pvae.plotting.pictures import save_figures  # imports matplotlib, which is slow

        if self.run.config.valid:  # the VAE that the caller gave ends with the best weights too
            trainer.vae.load_state_dict(self.run.best_checkpoint().vae)
        if self.run.has_own_vae:
            self.run.vae(copy.deepcopy(trainer.vae))
        save_figures(self.run, self.interruptions.raise_if_received)
        write_card(self.run)
        self.run.forget()
