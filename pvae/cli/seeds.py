"""Train one system with many seeds, each in a process of `python -m pvae.train`, and write a table over the seeds.

Ctrl-C and SIGTERM also stop the processes of the seeds. After a SIGKILL of this process they train to their ends.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
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
        InputError: the folder holds other files, or runs with other options.
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
                    commands[seed] = [*arguments, "--seed", str(seed), "--out" if is_new else "--resume", str(path)]
            failures = _train(commands, jobs, quiet)
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
    if set(differing) - {"epochs"}:
        ours, theirs = (", ".join(as_option(name, of[name]) for name in differing) for of in (given, recorded))
        raise InputError(f"{path} was trained with {theirs}, and {ours} is given: name another --out")
    try:
        return not differing and run.is_finished()
    except InputError:  # the process that resumes it takes the checkpoint before, or prints the reason
        return False


def _train(commands: Mapping[int, Sequence[str]], jobs: int | None, quiet: bool) -> dict[int, str]:
    """Run a process for each seed, several at a time, and return the reasons of those that failed."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    jobs = min(jobs or cores, max(1, len(commands)))
    threads = max(1, cores // jobs)
    if commands and not quiet:
        print_line(f"{len(commands)} seeds, {jobs} at a time, OMP_NUM_THREADS={threads} each")
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONIOENCODING": "utf-8", "PYTHONUNBUFFERED": "1"}
    failures: dict[int, str] = {}
    processes: list[subprocess.Popen[str]] = []
    is_stopped = threading.Event()

    def train(seed: int) -> None:
        process = subprocess.Popen(
            [sys.executable, "-m", "pvae.train", *commands[seed]],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="backslashreplace",
            start_new_session=True,  # a terminal sends Ctrl-C to this process alone, which then tells the others
        )
        processes.append(process)
        if is_stopped.is_set():
            process.terminate()
        for line in map(str.rstrip, process.stdout or ()):
            if line.startswith("epoch ") and not quiet:
                print_line(f"seed {seed}  {line}")
            elif line.startswith("note: "):
                print(f"seed {seed}  {line}", file=sys.stderr, flush=True)
            elif line.startswith("pvae.train: "):
                failures[seed] = line.removeprefix("pvae.train: ")
        if process.wait():
            failures.setdefault(seed, f"exit status {process.returncode}")

    with ThreadPoolExecutor(jobs) as pool:
        try:
            list(pool.map(train, commands))
        finally:  # after Ctrl-C: the processes save their states, and this one waits for them
            is_stopped.set()
            pool.shutdown(wait=False, cancel_futures=True)
            for process in processes:
                process.terminate()
    return dict(sorted(failures.items()))
