"""Train several runs, each with few threads, in as many processes as there are cores for them."""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import torch

from pvae.core.errors import InputError, InterruptedTrainingError, LostError, TrainingError
from pvae.core.terminal import Interruptions, print_line
from pvae.runs.metrics import Metrics
from pvae.runs.record import CONFIG
from pvae.runs.run import Run
from pvae.training.fit import fit, resume

__all__ = ["Ended", "num_processes", "one_after_the_other", "print_epoch", "side_by_side", "train_run"]

Ended = TrainingError | InputError  # why a run ended
_LEAST_STEPS = 2000  # of all runs: fewer do not repay the seconds in which a process imports torch
_SECONDS = 0.2  # between two looks at what ends the processes
_IDLE = 5  # seconds, after which a process without a run ends


def num_processes(runs: Sequence[Run], device: torch.device, threads: int | None) -> int:
    """Return how many processes train the runs: 1 on a GPU, under Windows, and where all is done in seconds.

    Args:
        runs: the runs, of one architecture and with the same data.
        device: where they are trained.
        threads: number of threads of each; by default 1.
    """
    if not runs or device.type != "cpu" or os.name != "posix":
        return 1
    config = runs[0].config
    data = len(runs) * config.epochs * len(runs[0].dataset().train)
    processes = min(torch.get_num_threads() // (threads or 1), len(runs))
    return max(1, processes) if data >= _LEAST_STEPS * config.batch_size else 1


def train_run(run: Run, given: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Train a run to its end, from its start or from where it was interrupted.

    Args:
        run: the run.
        given: arguments of `fit` and of `resume`.
        new: arguments of `fit` alone.
    """
    if run.sessions:
        resume(run, run.config.epochs, data=run.dataset(), **given)
    else:
        fit(run.config, out=run.path, data=run.dataset(), **given, **new)


def print_epoch(run: Run, row: Metrics) -> None:
    """Print the metrics of an epoch of one of several runs."""
    if row.split != "train":
        print_line(f"{run.path.name}  epoch {row.epoch}/{run.config.epochs}  {row}")


def one_after_the_other(
    runs: Sequence[Run], train: Callable[[Run], object], interruptions: Interruptions
) -> dict[Path, Ended]:
    """Train runs in this process, and return why some of them ended early.

    Raises:
        LostError, InterruptedTrainingError: as `fit`.
    """
    errors = dict[Path, Ended]()
    for run in runs:
        interruptions.raise_if_received()
        try:
            train(run)
        except (TrainingError, InputError) as error:
            errors[run.path] = error
    return errors


def side_by_side(
    runs: Sequence[Run], train: Callable[[Run], object], processes: int, threads: int, interruptions: Interruptions
) -> dict[Path, Ended]:
    """Train runs in processes, which joblib starts, and return why some of them ended early.

    Wide networks are trained faster in this way: the threads of one training wait for each other many times in a step.

    Args:
        runs: the runs.
        train: trains one of them; it is sent to the processes.
        processes: number of processes.
        threads: number of threads of each.
        interruptions: signals, which are passed on.

    Raises:
        LostError: a folder can no longer be written.
        InterruptedTrainingError: a signal was received; the epochs before are saved.
    """
    from joblib import Parallel, delayed, parallel_config

    errors, lost = dict[Path, Ended](), list[OSError | None]()
    with tempfile.TemporaryDirectory() as folder:
        stop = Path(folder) / "stop"  # exists from when the processes are to end
        with _watching(lambda: interruptions.received, stop.touch), contextlib.suppress(BrokenProcessPool):
            tasks = [delayed(_train_apart)(run, train, threads, stop, os.getpid()) for run in runs]
            options = {"n_jobs": processes, "inner_max_num_threads": threads, "idle_worker_timeout": _IDLE}
            with parallel_config("loky", **options):
                for path, error, cause in Parallel(return_as="generator_unordered")(tasks):
                    if isinstance(error, LostError):
                        stop.touch()
                        lost.append(cause)
                    elif error is not None:
                        errors[path] = error
    interruptions.raise_if_received()
    if lost:
        raise LostError("") from lost[0]
    early = TrainingError("a process has ended early: the same command again goes on from the epochs that are saved")
    return errors | {run.path: early for run in runs if run.path not in errors and not _is_finished(run)}


def _train_apart(
    run: Run, train: Callable[[Run], object], threads: int, stop: Path, parent: int
) -> tuple[Path, Exception | None, OSError | None]:
    """Train a run in this process, to its end or until another one says stop or is gone; return what ended it early."""
    torch.set_num_threads(threads)
    with (
        Interruptions(at_once=True) as interruptions,  # `fit` ends after a step, and has its own
        contextlib.suppress(InterruptedTrainingError),
        _watching(lambda: stop.exists() or os.getppid() != parent, lambda: os.kill(os.getpid(), signal.SIGTERM)),
    ):
        try:
            for error in one_after_the_other([run], train, interruptions).values():
                plain = InputError if isinstance(error, InputError) else TrainingError
                return run.path, plain(str(error)), None  # of an error with more arguments, pickle loses these
        except LostError as error:
            cause = error.__cause__
            return run.path, LostError(str(error)), cause if isinstance(cause, OSError) else None
    if os.getppid() != parent:  # which was killed, so that nobody reads what this process returns
        os._exit(128 + signal.SIGTERM)
    return run.path, None, None


@contextlib.contextmanager
def _watching(is_so: Callable[[], object], then: Callable[[], object]) -> Iterator[None]:
    """Call a function once, as soon as something is so inside a `with` block."""
    is_over = threading.Event()

    def watch() -> None:
        while not is_so():
            if is_over.wait(_SECONDS):
                return
        then()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


def _is_finished(run: Run) -> bool:
    return (run.path / CONFIG).exists() and Run.open(run.path).is_finished()
