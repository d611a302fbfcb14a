"""Train one system with many seeds, each in a process of `python -m pvae.train`, and write a table over the seeds.

Ctrl-C and SIGTERM also stop the processes of the seeds. After a SIGKILL of this process they train to their ends.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path

from pvae.cli.command import result_folder
from pvae.config.config import Config
from pvae.config.presets import as_option
from pvae.core.errors import InputError, InterruptedTrainingError, TrainingError
from pvae.core.files import locked, write_whole
from pvae.core.records import csv_of
from pvae.core.terminal import print_line
from pvae.evaluation.table import row_of, to_markdown
from pvae.runs.run import Run
from pvae.trained.codes import latent_report

__all__ = ["check_seeds", "train_seeds"]

_MAX_SEEDS = 10_000
_GRACE_SECONDS = 1.5  # for the processes to save their states after Ctrl-C


def check_seeds(text: str) -> list[int]:
    """Return the seeds of "0:8" (0 to 7), of "0,3,5", or of a list of both.

    Raises:
        InputError: it is not such a list, or a seed occurs twice.

    >>> check_seeds("0:3,7")
    [0, 1, 2, 7]
    """
    seeds: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d{1,18})(?::(\d{1,18}))?", part.strip(), re.ASCII)
        first, end = (int(match[1]), int(match[2] or int(match[1]) + 1)) if match else (0, 0)
        if not 0 < end - first <= _MAX_SEEDS:
            limit = f"of at most {_MAX_SEEDS:,} seeds"
            raise InputError(f"--seeds must be like 0:8 (0 to 7) or 0,3,5, {limit}, not {text!r}")
        seeds += range(first, end)
    if len(set(seeds)) < len(seeds):
        raise InputError(f"--seeds {text} names a seed twice")
    return seeds


def train_seeds(
    config: Config,
    seeds: Sequence[int],
    folder: Path,
    arguments: Sequence[str],
    *,
    jobs: int | None = None,
    data: tuple[Path | None, bool] = (None, False),
    quiet: bool = False,
) -> None:
    """Train all seeds that are not finished, then print and write the table over all seeds.

    Args:
        config: the system; its seed is not used.
        seeds: each has a run folder `seed-S`.
        folder: holds the run folders.
        arguments: of `python -m pvae.train`, without --seed, --out and --resume.
        jobs: number of processes at a time; one for each core by default.
        data: `data_dir` and `offline` of `load_dataset`, for the table.
        quiet: print the folder only.

    Raises:
        InputError: the folder holds other files, or all seeds failed for the same reason.
        TrainingError: some seeds failed; the table has the others.
        InterruptedTrainingError: Ctrl-C or SIGTERM; the same command continues.
    """
    paths = {seed: folder / f"seed-{seed}" for seed in seeds}
    try:
        with result_folder(folder, ["table.csv", "table.md"]), locked(folder):
            if any(folder.iterdir()) and not any(folder.glob("seed-*")):
                raise InputError(f"--out {folder} exists and is neither empty nor a folder of seeds: name another")
            commands = {}
            for seed, path in paths.items():
                is_new = not (path / "config.json").exists()
                if is_new or not _is_finished(path, config.replace(seed=seed)):
                    where = "--out" if is_new else "--resume"
                    commands[seed] = [*arguments, "--seed", str(seed), where, str(path)]
            failures = _train(commands, folder, len(seeds), jobs, quiet) if commands else {}
            rows = []
            for run in (Run.open(path) for seed, path in paths.items() if seed not in failures):
                run.dataset(None, *data)
                rows.append(row_of(run, latent_report(run)))
            if rows:
                write_whole(folder / "table.csv", csv_of(rows).encode())
                write_whole(folder / "table.md", to_markdown(rows).encode())
                print_line(folder if quiet else f"\n{to_markdown(rows)}\n{folder / 'table.csv'}")
    except InterruptedTrainingError as error:
        how = f"interrupted; the same command with --out {shlex.quote(str(folder))} goes on where each seed was"
        raise InterruptedTrainingError(how, error.status) from None
    if failures:
        print("\n".join(f"pvae.train: seed {seed}: {why}" for seed, why in failures.items()), file=sys.stderr)
        raise TrainingError(f"{len(failures)} of {len(seeds)} seeds failed: {', '.join(map(str, failures))}")


def _is_finished(path: Path, config: Config) -> bool:
    """Return whether a run has all its epochs and figures.

    Raises:
        InputError: it has another configuration.
    """
    run = Run.open(path)
    given, recorded = asdict(config.replace(source="")), asdict(run.config.replace(source=""))
    differing = [name for name in given if given[name] != recorded[name]]
    if differing:
        ours, theirs = (", ".join(as_option(name, of[name]) for name in differing) for of in (given, recorded))
        is_longer = differing == ["epochs"] and config.epochs > run.config.epochs and config.schedule == "constant"
        longer = f", or train each seed on first: python -m pvae.train --resume {shlex.quote(str(path))} {ours}"
        advice = f"name another --out{longer if is_longer else ''}"
        raise InputError(f"{path} was trained with {theirs}, and {ours} is given: {advice}")
    try:
        return run.is_finished(run.read_checkpoint())
    except InputError:  # the process that resumes it takes the checkpoint before, or prints the reason
        return False


def _train(
    commands: Mapping[int, Sequence[str]], folder: Path, num_seeds: int, jobs: int | None, quiet: bool
) -> dict[int, str]:
    """Run a process for each seed that is not finished, and return the reasons of those that failed.

    Raises:
        InputError: all seeds failed for the same reason.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    jobs = min(jobs or cores, num_seeds)
    threads = max(1, cores // jobs)  # also when resuming, since it decides the last digits
    processes, pool, failures = _Processes(threads, quiet), ThreadPoolExecutor(jobs), dict[int, str]()
    num_finished = num_seeds - len(commands)
    seeds = f"{len(commands)} {'seed' if len(commands) == 1 else 'seeds'}"
    processes.print(
        f"{seeds}{f', beside {num_finished} that are finished,' if num_finished else ''} into {folder}: "
        f"{jobs} at a time, {threads} {'threads' if threads > 1 else 'thread'} each"
    )
    try:
        futures = {pool.submit(processes.train, seed, command): seed for seed, command in commands.items()}
        for count, future in enumerate(as_completed(futures), 1):
            seed, why = futures[future], future.result()
            if why:
                failures[seed] = why
            processes.print(f"seed {seed} {'failed' if why else 'is finished'}; {len(commands) - count} to go")
        reasons = {why.replace(f"{folder}/seed-{seed}", "") for seed, why in failures.items()}
        if len(failures) == num_seeds and len(reasons) == 1:
            raise InputError(f"{min(failures.items())[1]} (all of the {num_seeds} seeds)")
        return dict(sorted(failures.items()))
    finally:
        processes.stop()
        pool.shutdown(wait=False, cancel_futures=True)


class _Processes:
    """The processes of the seeds; a thread of the pool starts each of them and reads its output."""

    def __init__(self, threads: int, quiet: bool) -> None:
        self.threads, self.quiet = threads, quiet
        self.started: list[subprocess.Popen[str]] = []
        self.notes: set[str] = set()
        self.is_stopping = False
        self.lock = threading.Lock()  # so that no process starts after `stop` has ended the others

    def print(self, line: str) -> None:
        if not self.quiet:
            print_line(line)

    def train(self, seed: int, arguments: Sequence[str]) -> str:
        """Run `python -m pvae.train`; return the error that it printed, or an empty text if it succeeded."""
        with self.lock:
            if self.is_stopping:
                return "it was not started"
            process = subprocess.Popen(
                [sys.executable, "-m", "pvae.train", *arguments],
                env={**os.environ, "OMP_NUM_THREADS": str(self.threads)},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="backslashreplace",
                start_new_session=True,  # a terminal sends Ctrl-C to this process alone, and `stop` tells the others
            )
            self.started.append(process)
        assert process.stdout is not None
        last_error = ""
        for line in map(str.rstrip, process.stdout):
            if line.startswith("epoch "):
                self.print(f"seed {seed}  {line}")
            elif line.startswith("note: ") and line not in self.notes:
                self.notes.add(line)
                print(line, file=sys.stderr, flush=True)
            elif line.startswith("pvae.train: "):
                last_error = line.removeprefix("pvae.train: ")
        status = process.wait()
        ended = f"it was killed by signal {-status}" if status < 0 else f"it ended with exit status {status}"
        return (last_error or ended) if status else ""

    def stop(self) -> None:
        """Ask all processes to save their states and end, and kill those that take longer."""
        with self.lock:
            self.is_stopping = True
        for process in self.started:
            process.terminate()
        deadline = time.monotonic() + _GRACE_SECONDS
        for process in self.started:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))
            process.kill()
