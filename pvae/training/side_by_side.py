"""Train several runs, each with few threads, in as many processes as there are cores for them."""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
import threading
import warnings
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
    """Train runs in processes, which joblib starts, each its share, and return why some of them ended early.

    Wide networks are trained faster in this way: the threads of one training wait for each other many times in a step.
    Where one process is killed, joblib ends the others too, and the runs are left as they were saved.

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
    from joblib import Parallel, delayed, effective_n_jobs, parallel_config

    options = {"n_jobs": processes, "inner_max_num_threads": threads, "idle_worker_timeout": _IDLE}
    errors, lost = dict[Path, Ended](), list[OSError | None]()
    with contextlib.ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore", UserWarning)  # that idle processes have ended, or that there can be none
        with parallel_config("loky"):
            if effective_n_jobs(processes) == 1:  # as in a thread
                return one_after_the_other(runs, train, interruptions)
        stop = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "stop"  # exists once all are to end
        stack.enter_context(_watching(lambda: interruptions.received, stop.touch))
        stack.enter_context(contextlib.suppress(BrokenProcessPool))
        stack.enter_context(parallel_config("loky", **options))
        shares = [runs[place::processes] for place in range(processes)]
        tasks = [delayed(_train_apart)(share, train, threads, stop, os.getpid()) for share in shares]
        for found, is_lost, cause in Parallel(return_as="generator_unordered")(tasks):
            errors |= found
            if is_lost:
                stop.touch()
                lost.append(cause)
    interruptions.raise_if_received()
    if lost:
        raise LostError("") from lost[0]
    early = TrainingError("a process has ended early: the same command again goes on from what is saved")
    return errors | {run.path: early for run in runs if run.path not in errors and not _is_finished(run)}


def _train_apart(
    runs: Sequence[Run], train: Callable[[Run], object], threads: int, stop: Path, parent: int
) -> tuple[dict[Path, Ended], bool, OSError | None]:
    """Train runs in this process, to their ends or until it is to stop, or the process that started it is gone.

    Returns:
        Why some of them ended early; whether a folder can no longer be written; and why.
    """
    torch.set_num_threads(threads)
    errors = dict[Path, Ended]()
    with (
        Interruptions(at_once=True) as interruptions,  # `fit` ends after a step, and has its own
        contextlib.suppress(InterruptedTrainingError),
        _watching(lambda: stop.exists() or os.getppid() != parent, lambda: os.kill(os.getpid(), signal.SIGTERM)),
    ):
        for run in runs:
            try:
                errors |= one_after_the_other([run], train, interruptions)
            except LostError as error:
                return {}, True, error.__cause__ if isinstance(error.__cause__, OSError) else None
            except Exception as error:  # a defect, which the other runs need not share
                errors[run.path] = TrainingError(f"{type(error).__name__}: {error}")
    if os.getppid() != parent:  # nobody reads what this process returns
        os._exit(128 + signal.SIGTERM)
    plain = {True: InputError, False: TrainingError}  # of an error with more arguments, pickle loses these
    return {path: plain[isinstance(error, InputError)](str(error)) for path, error in errors.items()}, False, None


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
