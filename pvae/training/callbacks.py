"""What `fit` lets a `Trainer` call: progress, interruptions, the run folder, codes that move, TensorBoard, figures."""

from __future__ import annotations

import contextlib
import copy
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from torch import Tensor
from tqdm import tqdm

from pvae.compile.compiled_svi import Done
from pvae.config.presets import command_line, system_title
from pvae.core.batch import Batch
from pvae.core.errors import InputError, TrainingError, listed
from pvae.core.files import write_whole
from pvae.core.random_state import seeded
from pvae.core.terminal import Interruptions, print_line, progress_bar
from pvae.data.dataset import random_subset
from pvae.data.preparation import Pixels
from pvae.evaluation.measures.baselines import Floor
from pvae.evaluation.measures.latents import COLLAPSED, forecast, said_of_collapse
from pvae.evaluation.report import what_was_learned
from pvae.runs import writer
from pvae.runs.metrics import Metrics, best_epoch, is_out_of_patience
from pvae.runs.run import HISTORY_ROWS, Instant, Run, shown_rows
from pvae.runs.writer import write_card
from pvae.tables.column import Column
from pvae.trained.latent_space import encode, reconstruct, sample, sample_given
from pvae.trained.scores import elbo_terms
from pvae.training.trainer import Callback, Trainer
from pvae.vae import VAE

_LEAST_SECONDS = 0.5  # of training between two lines of metrics
_FORECAST = 10_000  # training data, evenly spaced, by which a collapse is forecast
_SHOWN = 20  # letters of a level of a column
_INSTANTS, _WITH_WEIGHTS = 40, 8  # of a training that are kept, at most
_KEPT_WEIGHTS, _MOST_WEIGHTS = 750_000, 3_000_000  # of all instants, but at least of two; and of a VAE


@dataclass
class Interrupt(Callback):
    """Ends the training after the steps in which a signal came to one of its processes."""

    interruptions: Interruptions

    def on_steps_end(self, trainer: Trainer, done: Done | None) -> None:
        """Raise a KeyboardInterrupt, in all processes after the same step."""
        if trainer.world.any(bool(self.interruptions.received)):
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
        epoch: the epoch of the last checkpoint in the folder, or None.
    """

    epoch: int | None = None

    def on_train_begin(self, trainer: Trainer) -> None:
        """Write a folder that can be resumed."""
        session = {
            "device": str(trainer.device),
            "processes": trainer.world.size,
            "threads": torch.get_num_threads(),
            "engine": trainer.engine.name,
        }
        if trainer.world.size > 1:  # each has its own GPU, and a resumption may have others: record no number
            session["device"] = trainer.device.type
        if trainer.world.is_first:
            writer.begin(trainer.run, trainer.rows, trainer.checkpoint(), session)
            data = trainer.run.dataset()
            if data.names:
                write_whole(trainer.run.path / "split.csv", data.split_csv())
        self.epoch = trainer.epoch

    def on_epoch_end(self, trainer: Trainer, rows: Sequence[Metrics]) -> None:
        """Write metrics and checkpoint."""
        if trainer.world.is_first:
            writer.save(trainer.run, trainer.rows, trainer.checkpoint())
        self.epoch = trainer.epoch


class History(Callback):
    """Keeps codes of test images as they move in the training of a VAE with two latents, for `pvae explore`.

    Up to 40 instants are kept, after steps in equal ratios, and at a few of them the weights; fewer where they would
    take more than half a second and a twentieth of the time that the steps of the session take.
    """

    instants: list[Instant]
    size: int  # of the VAE, in weights; 0 where nothing is kept
    written: int
    first: int  # step of the session
    started: float
    spent: float

    def on_train_begin(self, trainer: Trainer) -> None:
        """Read what an earlier session kept, and keep the codes before the first step."""
        run = trainer.run
        self.instants = []
        self.size = 0
        self.written = 0
        self.first = trainer.step
        self.spent = 0.0
        self.started = time.perf_counter()
        is_map = run.config.latent_dims == (2,) and run.config.prior_class.support not in ("categories", "codes")
        size = sum(map(torch.numel, trainer.vae.state_dict().values()))
        if not (is_map and run.data.is_images and size <= _MOST_WEIGHTS) or run.config.labels or run.has_own_vae:
            return
        with contextlib.suppress(InputError):  # a damaged file is replaced
            self.instants = [instant for instant in run.history() if instant.step <= trainer.step]
        self.size = size
        self._keep(trainer)

    def on_steps_end(self, trainer: Trainer, done: Done | None) -> None:
        """Keep an instant, if it is time for one."""
        if done is not None:
            self._keep(trainer)

    def on_epoch_end(self, trainer: Trainer, rows: Sequence[Metrics]) -> None:
        """Keep an instant, if it is time for one, and write what was kept."""
        self._keep(trainer)
        if len(self.instants) > self.written:
            writer.write_history(trainer.run, self.instants)
            self.written = len(self.instants)

    def _keep(self, trainer: Trainer) -> None:
        now = time.perf_counter()
        steps = max(2, trainer.num_steps * trainer.run.config.epochs)
        ratio = steps ** (1 / _INSTANTS)
        taken = trainer.step - self.first
        if not self.size or (self.instants and trainer.step < max(1, ratio * self.instants[-1].step)):
            return
        expected = (now - self.started - self.spent) * (steps - self.first) / max(1, taken)  # of all steps, in seconds
        if self.spent > 0.5 + 0.05 * expected:
            return
        test = trainer.splits["test"]
        terms = _codes_and_terms(trainer.vae, test.rows(shown_rows(len(test), HISTORY_ROWS).to(trainer.device)))
        if all(map(math.isfinite, terms[1:])):  # or the next step says why not
            number = max(2, min(_WITH_WEIGHTS, _KEPT_WEIGHTS // self.size))
            count = sum(bool(instant.weights) for instant in self.instants)
            weights = {}
            if count < number and trainer.step >= ratio ** (_INSTANTS * (2 + count) / (2 + number)):
                weights = {name: tensor.clone() for name, tensor in trainer.vae.state_dict().items()}
            self.instants.append(Instant(trainer.step, *terms, weights))
        if taken:  # the first evaluation of a process takes longer
            self.spent += time.perf_counter() - now


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
    """Draws the steps of each epoch, with the mean of their losses, if standard error is a terminal."""

    bar: Any = None
    total: float = 0.0

    def on_steps_end(self, trainer: Trainer, done: Done | None) -> None:
        """Draw some steps, and remove the bar after the last one."""
        if done is None:
            return
        if self.bar is None:
            self.total = 0.0
            self.bar = progress_bar(f"epoch {trainer.epoch + 1}/{trainer.run.config.epochs}", trainer.num_steps, "step")
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


class Console(Callback):
    """Prints what is trained, what it must exceed, a line for each epoch, and which epoch was the best.

    Attributes:
        floor: what a model without a latent reaches on the held-out data; None where it is not known.
        held_out: the split of these data.
        seconds: of training since the last line.
        is_collapsed: whether a warning of it was printed.
    """

    floor: Floor | None
    held_out: str
    seconds: float
    is_collapsed: bool

    def on_note(self, line: str) -> None:
        """Print the note to standard error, beside a progress bar."""
        tqdm.write(f"note: {line}", file=sys.stderr)

    def on_data(self, run: Run) -> None:
        """Print which data a run is trained on, what was found in them, and what was chosen for them."""
        _print_data(run)
        if run.config.system in ("images", "values"):
            _print_chosen(run)

    def on_train_begin(self, trainer: Trainer) -> None:
        """Print what is trained, the folder it is written to, and what it must exceed."""
        self.floor = None
        self.seconds = 0.0
        self.is_collapsed = False
        self.held_out = "test"
        if "valid" in trainer.splits:
            self.held_out = "valid"
        run = trainer.run
        system = system_title(run.config)
        if run.config.system in ("images", "values"):
            system = run.config.system
        epochs = f"epochs {trainer.epoch + 1} to {run.config.epochs}"
        how = f"by SVI with --elbo {run.config.elbo}, {epochs}, on {trainer.device}"
        print_line(f"training {system} {how}, into {run.path}")
        self._print_floor(trainer)

    def on_epoch_end(self, trainer: Trainer, rows: Sequence[Metrics]) -> None:
        """Print the metrics of the epoch, with the loss where it differs from the negated bound.

        Of epochs that take less than half a second, those within half a second after a printed one are left out.
        """
        run = trainer.run
        test = rows[-1]
        epochs = run.config.epochs
        is_full = test.epoch > run.config.warm_up and trainer.vae.has_density
        if is_full and not self.is_collapsed and test.rate < COLLAPSED:
            self.is_collapsed = True
            print_line(f"warning: epoch {test.epoch}: {said_of_collapse(run)}")
        seconds = sum(row.seconds for row in rows)
        self.seconds += seconds
        if self.seconds < _LEAST_SECONDS and 1 < test.epoch < epochs:
            return
        self.seconds = 0.0
        terms = f"distortion {test.distortion:.2f}, rate {test.rate:.2f}"
        if abs(test.loss - test.distortion - test.rate) > max(0.005, 1e-6 * abs(test.loss)):  # beyond rounding
            terms += f", loss {test.loss:.2f}"
        if test.accuracy is not None:
            num_known = int((trainer.classes["test"] >= 0).sum())
            terms += f", classes found of {test.accuracy:.2%} of {num_known:,}"
        number = f"{test.epoch:{len(str(epochs))}}/{epochs}"
        bounds = "  ".join(map(str, rows))
        print_line(f"epoch {number}  {bounds} ({terms}{run.bits(test)})  {seconds:.1f} s")

    def on_train_end(self, trainer: Trainer) -> None:
        """Print which epoch was the best on the validation data, why the training ended, and what is amiss."""
        best = best_epoch(trainer.rows)
        chosen = trainer.epoch
        if best is not None:
            chosen = best
        for row in trainer.rows:
            if (row.split, row.epoch) == (self.held_out, chosen) and self.floor is not None:
                warning = self.floor.below(row)
                if warning:
                    print_line(f"warning: {warning}")
        if best is not None:
            _print_best(trainer, best)
        for line in what_was_learned(trainer.run):
            print_line(line)

    def _print_floor(self, trainer: Trainer) -> None:
        """Print the bound that a model without a latent reaches, and a warning if no latent will be used."""
        run = trainer.run
        if trainer.vae.has_density and not run.config.labels:  # whose bound is one on log p(x, y)
            train = Pixels(trainer.data.sample, trainer.data.preparation)
            self.floor = Floor.before_training(trainer.vae, train, trainer.splits[self.held_out].x)
        if self.floor is not None:
            print_line(self.floor.announced(self.held_out))
        has_fixed_scale = run.config.likelihood_class.has_fixed_scale and not run.has_own_vae
        if has_fixed_scale and trainer.vae.has_density and not (trainer.epoch or run.dataset().has_missing):
            sample = trainer.data.sample
            x = Pixels(sample[:: math.ceil(len(sample) / _FORECAST)], trainer.data.preparation)
            ahead = forecast(x, run.config.scale, run.config.latent_dim, run.config.beta)
            if not ahead.used:
                print_line(f"warning: {ahead}")


def _print_data(run: Run) -> None:
    """Print which data a run is trained on, where they were found, and their values."""
    data = run.data
    line = f"data: {data.title}"
    if data.folder:
        line += f" (found in {data.folder})"
    line += ","
    found = run.dataset().found
    if found:
        line += f" {found};"
    if data.is_images:
        line += f" pixels {run.preparation.kind}"
    else:
        line += f" each of {' x '.join(map(str, data.datum_shape))} values"
    if run.config.binarize != "none":
        line += f", binary by --binarize {run.config.binarize}"
    elif data.is_images and run.config.is_pseudo and not run.has_own_vae:
        line += ", so the bound is a pseudo-ELBO"
    print_line(line)


def _print_chosen(run: Run) -> None:
    """Print what was found in a user's own data, and the options that were given or chosen for them."""
    config = run.config
    columns = run.data.columns
    data = run.dataset()
    if data.train_labels is not None and data.train_labels.dim() == 1:
        use = ""
        if not (config.condition or config.labels):
            use = ", for pictures and measures only"
        print_line(f"classes{use}: {listed(data.label_names)}")
    names: dict[str, list[str]] = {}
    for column, kind in zip(columns, config.column_kinds or [config.likelihood] * len(columns)):
        name = column.name
        levels = listed([text[:_SHOWN] for text in column.categories])
        if levels:
            name += f" ({levels})"
        names.setdefault(str(kind), []).append(name)
    for kind, of_kind in names.items():
        print_line(f"columns read as {kind}: {listed(of_kind)}")
    for rule in run.data.rules:
        print_line(f"rule: {rule}")
    if data.is_images:
        config = config.replace(image_size="x".join(map(str, data.datum_shape[1:])))
    config = config.replace(columns=_given_kinds(run.data.file_columns) or config.columns)
    print_line(f"options, given or chosen for the data: {command_line(config)}")


def _print_best(trainer: Trainer, best: int) -> None:
    """Print which epoch was the best on the validation data, and whether the training was stopped after it."""
    last = trainer.epoch
    config = trainer.run.config
    if best == 1 < last and config.initialization != "exact":
        advice = "give a smaller --lr, or smaller networks"
        print_line(f"warning: epoch 1 is the best on the validation data: {advice}")
    line = f"epoch {best} is the best on the validation data: load, evaluate and draw take its weights"
    if best == 0:
        line = "the start is the best on the validation data: load, evaluate and draw take it"
    if last < config.epochs:
        line = f"stopped after epoch {last}, {last - best} epochs without a better bound; {line}"
    if best == last:
        line += "; it is the last one: more epochs may give a better one"
    print_line(line)


def _given_kinds(columns: Sequence[Column]) -> str:
    """Return the text of `--columns` that names the given kinds and levels; "" if a list of kinds says as much."""
    given = [column for column in columns if column.kind]
    are_codes = all(column.categories == tuple(map(str, range(len(column.categories)))) for column in given)
    are_codes = are_codes and all(column.kind != "below" for column in given)
    if are_codes or any({*column.name} & {*",=\n"} for column in given):
        return ""
    texts = []
    for column in given:
        text = f"{column.name}={column.kind}"
        if column.kind == "ordinal":
            text += ":" + "<".join(column.categories)
        if column.kind == "below":
            text += f":{column.limit!r}"
        texts.append(text)
    return ",".join(texts)


@dataclass
class RunLine(Callback):
    """Prints one line at the end of a run, one of many."""

    def on_train_end(self, trainer: Trainer) -> None:
        """Print the last epoch, and the bound of the best one."""
        run = trainer.run
        print_line(f"{run.path.name}  epoch {trainer.epoch}/{run.config.epochs}  {run.test_metrics()}")


@dataclass
class TensorBoard(Callback):
    """Writes the metrics of each epoch, and pictures of images, as TensorBoard events, as post 000 does."""

    writer: Any = None  # a SummaryWriter

    def on_epoch_end(self, trainer: Trainer, rows: Sequence[Metrics]) -> None:
        """Write the events of the epoch; TensorBoard hides those of this and later epochs by an earlier session."""
        if self.writer is None:
            from torch.utils.tensorboard import SummaryWriter  # slow to import

            self.writer = SummaryWriter(str(trainer.run.path), purge_step=trainer.epoch)
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
        if trainer.run.data.is_images:
            for name, images in _pictures(trainer).items():
                self.writer.add_images(name, images, trainer.epoch)
        self.writer.flush()

    def close(self) -> None:
        """Close the file."""
        if self.writer is not None:
            with contextlib.suppress(OSError):  # a full disk, which `on_epoch_end` has reported
                self.writer.close()
            self.writer = None


def _pictures(trainer: Trainer) -> dict[str, Tensor]:
    """Return pictures (N, C, H, W) in [0, 1] by their title, with the same noise after every epoch."""
    vae = trainer.vae.eval()
    test = trainer.splits["test"]
    (few,) = test.rows(random_subset(len(test), 8, seed=0)).split(8)  # as `trained.codes.examples` has them
    pictures = {}
    with seeded(trainer.config.seed, trainer.device):
        if vae.has_density and vae.takes_labels:
            labels = trainer.run.dataset().shown_labels
            assert labels is not None  # or it could not be trained
            pictures["latent to image"] = sample_given(vae, labels.to(few.x.device))
        elif vae.has_density:
            pictures["latent to image"] = sample(vae, 64)
        pictures["test images above, reconstructions below"] = torch.cat([few.x, reconstruct(vae, few)], dim=2)
    shown = {}
    for name, images in pictures.items():
        pixels = trainer.run.preparation.shown(images).cpu()
        if pixels.shape[1] not in (1, 3):
            pixels = pixels.mean(1, keepdim=True)
        shown[name] = pixels
    return shown


@dataclass
class OnEachRow(Callback):
    """Calls a function as function(run, row) for each row of `run.metrics()` when it was written, to log it elsewhere.

    Args:
        function: `fit(config, data, callbacks=[*default_callbacks(), OnEachRow(function)])` calls it.
    """

    function: Callable[[Run, Metrics], object]

    def on_epoch_end(self, trainer: Trainer, rows: Sequence[Metrics]) -> None:
        """Call the function for each split."""
        try:
            for row in rows:
                self.function(trainer.run, row)
        except OSError as error:  # otherwise reported as an error of the run folder
            raise TrainingError(f"the function of OnEachRow raised {type(error).__name__}: {error}") from error


@dataclass
class EarlyStopping(Callback):
    """Ends the training after `Config.patience` epochs without a better bound on the validation data."""

    def ends(self, trainer: Trainer) -> bool:
        """Return whether there has been no better bound for that many epochs."""
        return is_out_of_patience(trainer.rows, trainer.run.config.patience)


@dataclass
class Figures(Callback):
    """Draws the figures of a run at its end, of the weights of its best epoch."""

    def on_train_end(self, trainer: Trainer) -> None:
        """Draw the figures, until a signal comes."""
        from pvae.plotting.pictures import save_figures  # imports matplotlib, which is slow

        run = trainer.run
        if run.config.valid:  # the VAE that the caller gave ends with the best weights too
            trainer.vae.load_state_dict(run.best_checkpoint().vae)
        if run.has_own_vae:
            run.vae(copy.deepcopy(trainer.vae))
        write_card(run)  # before the last figure, by which a run is finished
        with Interruptions() as interruptions:
            save_figures(run, interruptions.raise_if_received)
        write_card(run)  # with the figures
        run.cache.clear()


def default_callbacks(quiet: bool = True) -> list[Callback]:
    """Return what `fit` does beside the training: codes as they move, TensorBoard events, and figures at the end.

    Args:
        quiet: without the lines and the progress bar that the command prints.
    """
    printed: list[Callback] = []
    if not quiet:
        printed = [Console(), ProgressBar()]
    return [History(), TensorBoard(), *printed, Figures()]
