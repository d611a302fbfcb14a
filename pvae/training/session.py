"""One session on a run: epochs are trained, and the folder holds at every moment what a resumption needs."""

from __future__ import annotations

import contextlib
import shlex
import sys
from collections.abc import Iterable, Iterator

from pvae.core.errors import InputError, InterruptedTrainingError, LostError, TrainingError
from pvae.core.parallel import is_of_processes
from pvae.core.signals import Interruptions
from pvae.runs.checkpoint import NO_ROWS, Checkpoint, Rows
from pvae.runs.metrics import Metrics
from pvae.runs.run import Run
from pvae.runs.tensorboard import Events
from pvae.training.progress import Console
from pvae.training.trainer import Trainer

__all__ = ["train_on"]


def train_on(
    training: Trainer,
    run: Run,
    console: Console,
    *,
    rows: Rows = NO_ROWS,
    note: str = "",
    checkpoint_every: int = 0,
) -> None:
    """Train to the last epoch, and draw the run's figures.

    Of several processes the first one alone writes and prints; it holds the folder's lock.

    Args:
        training: where it goes on from.
        run: its folder, as `training` was taken from it.
        console: says how it goes.
        rows: what stands of its figures.
        note: what is said even where all else is quiet.
        checkpoint_every: steps after which a checkpoint is written, beside the one of each epoch; 0 for none.

    Raises:
        InputError: the folder cannot be written, or its `metrics.jsonl` is damaged.
        TrainingError: a loss or a gradient was not finite; the last good checkpoint is on disk.
        LostError: the folder cannot be written any more, or another process of the training has gone.
        InterruptedTrainingError: Ctrl-C or SIGTERM; the state is saved.
    """
    is_first = training.world.is_first
    if note and is_first:  # said even where quiet: other data than were asked for are no detail
        print(f"note: {note}", file=sys.stderr)
    session = _Session(training, run, console, checkpoint_every)
    with session.explained(), session.interruptions:
        session.begin(rows)
        session.train()
        session.draw()


class _Session:
    def __init__(self, training: Trainer, run: Run, console: Console, checkpoint_every: int) -> None:
        self.training, self.run, self.console, self.every = training, run, console, checkpoint_every
        self.interruptions = Interruptions()
        self.kept: Checkpoint | None = None  # what a resumption would go on from
        self.is_done = False

    def begin(self, rows: Rows) -> None:
        training, run = self.training, self.run
        checkpoint = training.checkpoint()
        self.kept = checkpoint if run.sessions else None
        if training.world.is_first:
            # Of several processes each has a GPU of its own, and a resumption may have other ones.
            device = training.device.type if training.world.size > 1 else str(training.device)
            run.begin_session(checkpoint.counts, rows, device, training.world.size)
            if training.epoch < run.config.epochs:
                run.drop_figures()
        self.kept = checkpoint
        self.console.start(run, str(training.device), training.epoch)
        if training.step == 0:
            self._save(checkpoint)

    def train(self) -> None:
        training, run = self.training, self.run
        is_first = training.world.is_first
        events = Events(run.path, training.epoch) if is_first and training.epoch < run.config.epochs else None
        while training.epoch < run.config.epochs:
            rows = training.run_epoch(self.console.quiet, self._between)
            checkpoint = training.checkpoint()
            if is_first:
                self._record(rows, checkpoint)
            self.kept = checkpoint
            if events is not None:
                events.epoch(rows, *training.pictures())
            self.console.epoch(*rows, run.config.epochs, training.skipped)

    def draw(self) -> None:
        from pvae.plotting.run_figures import (
            save_figures,  # it takes matplotlib, which is slow to import, and no step needs it
        )

        stop_if_asked = self.interruptions.stop_if_asked
        stop_if_asked()
        if self.training.world.is_first:
            save_figures(self.run, *self.training.pictures(), stop_if_asked)
        self.is_done = True
        stop_if_asked()  # the caller learns of a signal that came while the figures were drawn

    def _between(self) -> None:
        """Save the state if that is due, and stop if that was asked for."""
        training = self.training
        is_stopping = training.world.any(bool(self.interruptions.received))
        is_new = self.kept is None or training.step != self.kept.counts.step
        if is_stopping or (is_new and self.every and training.step % self.every == 0):
            self._save(training.checkpoint())
        if is_stopping:
            raise KeyboardInterrupt

    def _record(self, rows: Iterable[Metrics], checkpoint: Checkpoint) -> None:
        try:
            self.run.record_epoch(rows, checkpoint)
        except InputError as error:  # somebody changed the rows that this process had written
            raise LostError(f"{error}; {self._place()}") from error

    def _save(self, checkpoint: Checkpoint) -> None:
        if self.training.world.is_first:
            self.run.save_checkpoint(checkpoint)
        self.kept = checkpoint

    @contextlib.contextmanager
    def explained(self) -> Iterator[None]:
        """Say of what ends a session what is on disk, and how to go on."""
        run = self.run
        try:
            yield
        except TrainingError as error:
            raise TrainingError(f"{error}; {self._place()}; a smaller --lr, into another --out, may help") from error
        except KeyboardInterrupt:
            status = self.interruptions.status
            if self.is_done:
                raise InterruptedTrainingError(f"interrupted, when {run.path} was finished", status) from None
            if self.kept is None:  # nothing was recorded: there is nothing to resume
                self._discard()
                raise InterruptedTrainingError("interrupted before anything was done", status) from None
            why = f"interrupted; {self._place()}; go on with: {_how_to_resume(run)}"
            raise InterruptedTrainingError(why, status) from None
        except InputError:
            raise
        except OSError as error:
            if self.kept is None:
                self._discard()
                reason = error.strerror or error
                raise InputError(f"{run.path} cannot be written ({reason}): name another folder with --out") from None
            raise LostError(
                f"{run.path} cannot be written any more ({error.strerror or error}); {self._place()}; "
                f"go on with: {_how_to_resume(run)}"
            ) from error
        except RuntimeError as error:
            if self.training.world.size == 1 or not is_of_processes(error):
                raise
            why = f"another process of this training has ended, and so does this one; {self._place()}; "
            how = f"go on with: {_how_to_resume(run)}"
            raise LostError(why + how if self.training.world.reports_first() else "") from error

    def _discard(self) -> None:
        if self.training.world.is_first:
            self.run.discard()

    def _place(self) -> str:
        if self.kept is None:
            return "nothing was saved"
        counts = self.kept.counts
        step = "" if self.kept.unfinished is None else f" and step {counts.step}"
        return f"{self.run.path} holds all up to epoch {counts.epoch}{step}"


def _how_to_resume(run: Run) -> str:
    if not run.data.dataset:
        return f"pvae.resume({str(run.path)!r}, data=...)"
    return f"python -m pvae.train --resume {shlex.quote(str(run.path))}"
