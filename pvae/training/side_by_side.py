"""Train several runs, each with few threads, in as many processes as there are cores for them."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch

from pvae.core.errors import InputError, InterruptedTrainingError, LostError, TrainingError
from pvae.core.terminal import Interruptions, print_line
from pvae.runs.metrics import Metrics
from pvae.runs.record import CONFIG
from pvae.runs.run import Run
from pvae.training.fit import fit, resume

__all__ = ["Ended", "num_processes", "one_after_the_other", "side_by_side", "train_run"]

Ended = TrainingError | InputError  # why a run ended
_LEAST_STEPS = 2000  # of all runs: fewer do not repay the seconds in which a process imports torch
_SECONDS = 0.5  # until signals are looked for
_WORK = "import sys; sys.path[:] = sys.argv[2:]; from pvae.training.side_by_side import work; work(int(sys.argv[1]))"


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
    runs: Sequence[Run], options: Mapping[str, Any], quiet: bool, processes: int, interruptions: Interruptions
) -> dict[Path, Ended]:
    """Train runs in processes, each of which gets its share of them, and return why some of them ended early.

    Wide networks are trained faster in this way: the threads of one training wait for each other many times in a step.

    Args:
        runs: the runs.
        options: `threads` and what else `train_run` gives to `fit` alone.
        quiet: do not print the metrics of each epoch.
        processes: number of processes.
        interruptions: signals, which are passed on.

    Raises:
        LostError: a folder can no longer be written.
        InterruptedTrainingError: a signal was received; the epochs before are saved.
    """
    workers = dict[Connection, tuple[subprocess.Popen[bytes], Sequence[Run]]]()
    errors, lost, is_told = dict[Path, Ended](), list[OSError](), False
    try:
        for place in range(processes):
            read, write = os.pipe()
            command, share = [sys.executable, "-c", _WORK, str(write), *sys.path], runs[place::processes]
            with tempfile.TemporaryFile() as file:
                pickle.dump((share, options, quiet), file)
                file.seek(0)
                # In a session of its own, so that Ctrl-C comes from this process alone.
                worker = subprocess.Popen(command, stdin=file, pass_fds=[write], start_new_session=True)
            workers[Connection(read)] = worker, share
            os.close(write)  # so that the end of the process ends the pipe
        while workers:
            ended = wait(list(workers), _SECONDS)
            for connection in [one for one in workers if one in ended]:
                worker, share = workers.pop(connection)
                with contextlib.suppress(EOFError):
                    found, cause = connection.recv()
                    errors |= found
                    lost += [cause] * (cause is not None)
                why = TrainingError(f"its process has ended early, with status {worker.wait()}")
                errors |= {run.path: why for run in share if run.path not in errors and not _is_finished(run)}
            if interruptions.received and not is_told:
                is_told = True
                for worker, _ in workers.values():
                    worker.terminate()  # which it takes for an interruption
    finally:
        for worker, _ in workers.values():
            worker.terminate()
            worker.wait()
    interruptions.raise_if_received()
    if lost:
        raise LostError("") from lost[0]
    return errors


def work(descriptor: int) -> None:
    """Train the runs that another process sends to standard input, and send it why some of them ended early."""
    parent = os.getppid()
    runs, options, quiet = pickle.load(sys.stdin.buffer)
    torch.set_num_threads(options["threads"])

    def end_epoch(run: Run, row: Metrics) -> None:
        if os.getppid() != parent:  # which was killed
            signal.raise_signal(signal.SIGTERM)
        if row.split != "train" and not quiet:
            print_line(f"{run.path.name}  epoch {row.epoch}/{run.config.epochs}  {row}")

    given = {"device": "cpu", "threads": options["threads"], "on_epoch": end_epoch}
    new = {key: value for key, value in options.items() if key != "threads"}
    errors, cause = dict[Path, Ended](), None
    with Interruptions() as interruptions, contextlib.suppress(InterruptedTrainingError):
        try:
            errors = one_after_the_other(runs, lambda run: train_run(run, given, new), interruptions)
        except LostError as error:
            cause = error.__cause__
    plain = {True: InputError, False: TrainingError}  # of an error with more arguments, pickle loses these
    sent = {path: plain[isinstance(error, InputError)](str(error)) for path, error in errors.items()}
    Connection(descriptor).send((sent, cause))


def _is_finished(run: Run) -> bool:
    return (run.path / CONFIG).exists() and Run.open(run.path).is_finished()
