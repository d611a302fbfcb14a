"""One training session on a run folder, which at every moment holds what is needed to resume the training."""

from __future__ import annotations

import contextlib
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence

from pvae.core.errors import InputError, InterruptedTrainingError, LostError, TrainingError
from pvae.core.memory import is_out_of_memory
from pvae.core.parallel import is_lost_process
from pvae.core.signals import Interruptions
from pvae.runs.checkpoint import NO_ROWS, Checkpoint, Rows
from pvae.runs.metrics import Metrics, is_out_of_patience
from pvae.runs.run import Run
from pvae.runs.tensorboard import Events
from pvae.training.progress import Console
from pvae.training.trainer import Trainer

__all__ = ["Session"]


class Session:
    """Trains a run to its last epoch, writes its folder and draws its figures.

    Of several processes only the first one, which holds the folder's lock, writes and prints.

    Args:
        trainer: at the state from which to continue.
        run: the run folder.
        quiet: print nothing.
        checkpoint_every: number of steps after which to write a checkpoint, besides those after epochs; 0 for none.
        on_epoch: called with the run and each row of metrics, after they are written, in the first process.
    """

    def __init__(
        self,
        trainer: Trainer,
        run: Run,
        quiet: bool = True,
        checkpoint_every: int = 0,
        on_epoch: Callable[[Run, Metrics], object] = lambda run, row: None,
    ) -> None:
        self.trainer, self.run, self.checkpoint_every, self.on_epoch = trainer, run, checkpoint_every, on_epoch
        self.is_first = trainer.world.is_first
        self.console = Console(quiet or not self.is_first)
        self.interruptions = Interruptions()
        self.saved: Checkpoint | None = None  # the last checkpoint in the folder

    def train(self, rows: Rows = NO_ROWS, note: str = "") -> None:
        """Train to the last epoch.

        Args:
            rows: the valid part of `metrics.jsonl`.
            note: printed to standard error, even if quiet.

        Raises:
            InputError: the folder cannot be written, or its `metrics.jsonl` is damaged.
            TrainingError: a loss or a gradient was not finite; the last good checkpoint is in the folder.
            LostError: the folder can no longer be written, or another process of the training has ended.
            InterruptedTrainingError: Ctrl-C or SIGTERM; the state is saved.
        """
        if note and self.is_first:
            print(f"note: {note}", file=sys.stderr)
        trainer, run, epochs, patience = self.trainer, self.run, self.run.config.epochs, self.run.config.patience
        with self.interruptions, self._errors_explained():  # in this order: a signal must not interrupt an explanation
            history = run.metrics(rows)
            self._begin(rows)
            events = Events(run.path, trainer.epoch) if self.is_first and trainer.epoch < epochs else None
            while trainer.epoch < epochs and not is_out_of_patience(history, patience):
                metrics = trainer.run_epoch(self.console.quiet, self._between_steps)
                history += metrics
                checkpoint = trainer.checkpoint()
                if self.is_first:
                    try:
                        run.record_epoch(metrics, checkpoint)
                    except InputError as error:  # another program changed the rows of earlier epochs
                        raise LostError(f"{error}; {self._place()}") from error
                self.saved = checkpoint
                if events is not None:
                    events.epoch(metrics, *trainer.pictures())
                self.console.epoch(run, metrics, trainer.skipped)
                if self.is_first:
                    self._call_on_epoch(metrics)
            self.console.end(history, epochs)
            self.interruptions.stop_if_asked()
            if self.is_first:
                from pvae.plotting.run_figures import save_figures  # imports matplotlib, which is slow

                if run.config.valid:
                    trainer.vae.load_state_dict(run.best_checkpoint().vae)
                save_figures(run, *trainer.pictures(), self.interruptions.stop_if_asked)
            self.interruptions.stop_if_asked()

    def _begin(self, rows: Rows) -> None:
        """Record the session in `config.json`, and write a first checkpoint of a new run."""
        trainer, run = self.trainer, self.run
        checkpoint = trainer.checkpoint()
        self.saved = checkpoint if run.sessions else None
        if self.is_first:
            # Each of several processes has its own GPU, and a resumption may have others: record no number.
            device = trainer.device.type if trainer.world.size > 1 else str(trainer.device)
            run.begin_session(checkpoint.counts, rows, device, trainer.world.size)
            run.keep_best(checkpoint)
            if trainer.epoch < run.config.epochs:
                run.drop_figures()
        self.saved = checkpoint
        self.console.start(run, str(trainer.device), trainer.epoch)
        if trainer.step == 0:
            self._save(checkpoint)

    def _between_steps(self) -> None:
        """Save the state if a checkpoint is due, and stop if a signal came."""
        trainer = self.trainer
        is_stopping = trainer.world.any(bool(self.interruptions.received))
        is_new = self.saved is None or trainer.step != self.saved.counts.step
        if is_stopping or (is_new and self.checkpoint_every and trainer.step % self.checkpoint_every == 0):
            self._save(trainer.checkpoint())
        if is_stopping:
            raise KeyboardInterrupt

    def _call_on_epoch(self, rows: Sequence[Metrics]) -> None:
        try:
            for row in rows:
                self.on_epoch(self.run, row)
        except OSError as error:  # which would be explained as one of the run folder
            raise RuntimeError(f"on_epoch raised {type(error).__name__}: {error}; {self._place()}") from error

    def _save(self, checkpoint: Checkpoint) -> None:
        if self.is_first:
            self.run.save_checkpoint(checkpoint)
        self.saved = checkpoint

    @contextlib.contextmanager
    def _errors_explained(self) -> Iterator[None]:
        """Add to each error what was saved and how to resume; remove the folder of a session that saved nothing."""
        path, world = self.run.path, self.trainer.world
        given = ", vae=..." * self.run.has_own_vae + ", data=..." * (not self.run.data.dataset)
        in_shell = f"python -m pvae.train --resume {shlex.quote(str(path))}"
        how = f"go on with: {f'pvae.resume({str(path)!r}{given})' if given else in_shell}"
        try:
            yield
        except TrainingError as error:
            advice = (
                "train anew, into another --out"
                if is_out_of_memory(error)
                else "a smaller --lr, into another --out, may help"
            )
            raise TrainingError(f"{error}; {self._place()}; {advice}") from error
        except KeyboardInterrupt:
            self._discard_if_empty()
            done = f"; {self._place()}; {how}" if self.saved is not None else " before anything was done"
            raise InterruptedTrainingError(f"interrupted{done}", self.interruptions.status) from None
        except OSError as error:
            self._discard_if_empty()
            reason = error.strerror or error
            if self.saved is None:
                raise InputError(f"{path} cannot be written ({reason}): name another folder with --out") from None
            raise LostError(f"{path} cannot be written any more ({reason}); {self._place()}; {how}") from error
        except RuntimeError as error:
            if world.size == 1 or not is_lost_process(error):
                raise
            why = f"another process of this training has ended, and so does this one; {self._place()}; {how}"
            raise LostError(why if world.reports_first() else "") from error

    def _discard_if_empty(self) -> None:
        if self.saved is None and self.is_first:
            self.run.discard()

    def _place(self) -> str:
        """Return a description of the last checkpoint."""
        if self.saved is None:
            return "nothing was saved"
        return f"{self.run.path} contains the training up to {self.saved.progress}"
