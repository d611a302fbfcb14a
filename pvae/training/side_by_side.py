"""Train several runs, each with few threads, in as many processes as there are cores for them."""

from __future__ import annotations

import contextlib
import os
import pickle
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
_WORK = "import sys; from pvae.training.side_by_side import work; work(int(sys.argv[1]))"


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

    Wide networks are trained faster so than one after the other with all threads, which wait for each other many times
    in a step.

    Args:
        runs: the runs.
        options: `threads` and what else `train_run` gives to `fit` alone.
        quiet: do not print the metrics of each epoch.
        processes: number of processes.
        interruptions: signals, which are passed on.

    Raises:
        InterruptedTrainingError: a signal was received; the epochs before are saved.
    """
    workers = dict[Connection, tuple[subprocess.Popen[bytes], Sequence[Run]]]()
    errors, is_told = dict[Path, Ended](), False
    try:
        for place in range(processes):
            read, write = os.pipe()
            command, share = [sys.executable, "-c", _WORK, str(write)], runs[place::processes]
            with tempfile.TemporaryFile() as file:
                pickle.dump((share, options, quiet), file)
                file.seek(0)
                workers[Connection(read)] = subprocess.Popen(command, stdin=file, pass_fds=[write]), share
            os.close(write)  # so that the end of the process ends the pipe
        while workers:
            ended = wait(list(workers), _SECONDS)
            for connection in [one for one in workers if one in ended]:
                worker, share = workers.pop(connection)
                try:
                    errors |= connection.recv()
                except EOFError:
                    why = TrainingError(f"its process has ended with status {worker.wait()}, see above")
                    errors |= {run.path: why for run in share if not _is_finished(run)}
                worker.wait()
            if interruptions.received and not is_told:
                is_told = True
                for worker, _ in workers.values():
                    worker.terminate()  # which it takes for an interruption
    finally:
        for worker, _ in workers.values():
            worker.terminate()
    interruptions.raise_if_received()
    return errors


def work(descriptor: int) -> None:
    """Train the runs that another process sends to standard input, and send it why some of them ended early."""
    runs, options, quiet = pickle.load(sys.stdin.buffer)
    torch.set_num_threads(options["threads"])

    def print_epoch(run: Run, row: Metrics) -> None:
        if row.split != "train" and not quiet:
            print_line(f"{run.path.name}  epoch {row.epoch}/{run.config.epochs}  {row}")

    def train(run: Run) -> None:
        try:
            given = {"device": "cpu", "threads": options["threads"], "on_epoch": print_epoch}
            train_run(run, given, {key: value for key, value in options.items() if key != "threads"})
        except LostError as error:
            raise TrainingError(str(error)) from error

    errors = dict[Path, Ended]()
    with Interruptions() as interruptions, contextlib.suppress(InterruptedTrainingError):
        errors = one_after_the_other(runs, train, interruptions)
    plain = {True: InputError, False: TrainingError}  # of an error with more arguments, pickle loses these
    sent = {path: plain[isinstance(error, InputError)](str(error)) for path, error in errors.items()}
    Connection(descriptor).send(sent)


def _is_finished(run: Run) -> bool:
    return (run.path / CONFIG).exists() and Run.open(run.path).is_finished()
