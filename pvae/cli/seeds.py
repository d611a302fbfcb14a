"""One system over many seeds: a process of `python -m pvae.train` for each, several at a time, and their table.

A signal to this process is passed on to the others. If it is killed by SIGKILL, they train on to their ends.
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
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path

from pvae.cli.command import result_folder
from pvae.config.config import Config
from pvae.config.presets import as_option
from pvae.core.errors import InputError, InterruptedTrainingError, TrainingError
from pvae.core.files import own_folder, write_whole
from pvae.core.terminal import say
from pvae.evaluation.table import Row, row_of, to_csv, to_markdown
from pvae.evaluation.trained_run import TrainedRun
from pvae.plotting.run_figures import figures_are_drawn
from pvae.runs.run import Run

__all__ = ["check_seeds", "train_seeds"]

_Inform = Callable[[object], None]
_MOST = 10_000
_LINGER = 1.5  # seconds that processes have to save their state after a Ctrl-C


def check_seeds(text: str) -> list[int]:
    """Return the seeds that "0:8" (0 to 7), "0,3,5" or both together name.

    Raises:
        InputError: they are no such list, or one is named twice.

    >>> check_seeds("0:3,7")
    [0, 1, 2, 7]
    """
    seeds: list[int] = []
    for part in text.split(","):
        found = re.fullmatch(r"(\d{1,18})(?::(\d{1,18}))?", part.strip(), re.ASCII)
        first, end = (int(found[1]), int(found[2] or int(found[1]) + 1)) if found else (0, 0)
        if not 0 < end - first <= _MOST:
            raise InputError(f"--seeds must be like 0:8 (0 to 7) or 0,3,5, of at most {_MOST:,} seeds, not {text!r}")
        seeds += range(first, end)
    if len(set(seeds)) < len(seeds):
        raise InputError(f"--seeds {text} names a seed twice")
    return seeds


def train_seeds(
    config: Config,
    seeds: Sequence[int],
    folder: Path,
    *,
    begin: Sequence[str],
    resume: Sequence[str],
    jobs: int | None = None,
    data: tuple[Path | None, bool] = (None, False),
    quiet: bool = False,
) -> None:
    """Train what is not trained yet, and print and write the table over the seeds.

    Args:
        config: the system; its seed is not read.
        seeds: each has a run folder `seed-S`.
        folder: holds them.
        begin: arguments that begin a run, without --seed and --out.
        resume: arguments that go on with one, without --resume.
        jobs: processes at a time; as many as there are cores if left out.
        data: the folder and `offline` of `load_dataset`, for the table.
        quiet: print the folder only.

    Raises:
        InputError: the folder holds something else, or no seed could be trained as asked.
        TrainingError: some seeds failed; the table has the others.
        InterruptedTrainingError: Ctrl-C or SIGTERM; the same command goes on.
    """
    paths = {seed: folder / f"seed-{seed}" for seed in seeds}
    try:
        with result_folder(folder, ["table.csv", "table.md"]), own_folder(folder):
            if any(folder.iterdir()) and not any(folder.glob("seed-*")):
                raise InputError(f"--out {folder} exists and is neither empty nor a folder of seeds: name another")
            commands = {}
            for seed, path in paths.items():
                if not (path / "config.json").exists():
                    commands[seed] = [*begin, "--seed", str(seed), "--out", str(path)]
                elif not _is_finished(path, config.replace(seed=seed)):
                    commands[seed] = [*resume, "--resume", str(path)]
            failures = _train(commands, folder, len(seeds), jobs, quiet) if commands else {}
            finished = [seed for seed in seeds if seed not in failures]
            if finished:
                runs = (TrainedRun.of(paths[seed], *data) for seed in finished)
                _write_table(folder, [row_of(trained.run, trained.report()) for trained in runs], quiet)
    except InterruptedTrainingError as error:
        how = f"interrupted; the same command with --out {shlex.quote(str(folder))} goes on where each seed was"
        raise InterruptedTrainingError(how, error.status) from None
    if failures:
        print("\n".join(f"pvae.train: seed {seed}: {why}" for seed, why in failures.items()), file=sys.stderr)
        raise TrainingError(f"{len(failures)} of {len(seeds)} seeds failed: {', '.join(map(str, failures))}")


def _is_finished(path: Path, config: Config) -> bool:
    """Whether a run has all its epochs and figures.

    Raises:
        InputError: it is of another configuration.
    """
    run = Run.open(path)
    if run.config.seed != config.seed:
        raise InputError(
            f"{path} holds the seed {run.config.seed}: put back the folder of seed {config.seed}, or remove it"
        )
    ours, theirs = asdict(config.replace(source="")), asdict(run.config.replace(source=""))
    other = [name for name in ours if ours[name] != theirs[name]]
    if other:
        was, given = (", ".join(as_option(name, of[name]) for name in other) for of in (theirs, ours))
        more = f", or train it on first: python -m pvae.train --resume {shlex.quote(str(path))} {given}"
        is_longer = other == ["epochs"] and config.epochs > run.config.epochs
        onward = more if is_longer and run.config.schedule == "constant" else ""
        raise InputError(f"{path} was trained with {was}, and {given} is given: name another --out{onward}")
    try:
        return run.read_checkpoint().counts.epoch >= run.config.epochs and figures_are_drawn(run)
    except InputError:  # its own process will go on from the one before it, or say why not
        return False


def _write_table(folder: Path, rows: Sequence[Row], quiet: bool) -> None:
    write_whole(folder / "table.csv", to_csv(rows).encode())
    write_whole(folder / "table.md", to_markdown(rows).encode())
    say(folder if quiet else f"\n{to_markdown(rows)}\n{folder / 'table.csv'}")


def _train(
    commands: Mapping[int, Sequence[str]], folder: Path, num_seeds: int, jobs: int | None, quiet: bool
) -> dict[int, str]:
    """Run a process for each seed that is not finished, and return why some failed.

    Raises:
        InputError: all seeds failed for the same reason.
    """
    inform: _Inform = (lambda _: None) if quiet else say
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    jobs = min(jobs or cores, num_seeds)
    threads = max(1, cores // jobs)  # counted from all seeds, finished or not, since it decides the last digits
    kept = num_seeds - len(commands)
    inform(
        f"{len(commands)} seeds{f', beside {kept} that are finished,' if kept else ''} into {folder}: "
        f"{jobs} at a time, {threads} {'threads' if threads > 1 else 'thread'} each"
    )
    processes, pool, failures = _Processes(threads, inform), ThreadPoolExecutor(jobs), dict[int, str]()
    try:
        futures = {pool.submit(processes.train, seed, command): seed for seed, command in commands.items()}
        for count, future in enumerate(as_completed(futures), 1):
            seed, why = futures[future], future.result()
            if why:
                failures[seed] = why
            inform(f"seed {seed} {'failed' if why else 'is finished'}; {len(commands) - count} to go")
        reasons = {why.replace(f"{folder}/seed-{seed}", "") for seed, why in failures.items()}
        if len(failures) == num_seeds and len(reasons) == 1:
            raise InputError(f"{min(failures.items())[1]} (all of the {num_seeds} seeds)")
        return dict(sorted(failures.items()))
    finally:
        processes.stop()
        pool.shutdown(wait=False, cancel_futures=True)


class _Processes:
    """The processes of the seeds, each started and listened to by a thread of the pool."""

    def __init__(self, threads: int, inform: _Inform) -> None:
        self.threads, self.inform = threads, inform
        self.started: list[subprocess.Popen[str]] = []
        self.notes: set[str] = set()
        self.is_stopping = False
        self.lock = threading.Lock()  # so that no process is started after the last one was stopped

    def train(self, seed: int, arguments: Sequence[str]) -> str:
        """Run `python -m pvae.train`, and return why it failed, in its own words; empty if it did not."""
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
                start_new_session=True,  # a terminal sends Ctrl-C to this process alone, which passes it on
            )
            self.started.append(process)
        assert process.stdout is not None
        said = ""
        for line in map(str.rstrip, process.stdout):
            if line.startswith("epoch "):
                self.inform(f"seed {seed}  {line}")
            elif line.startswith("note: ") and line not in self.notes:
                self.notes.add(line)
                print(line, file=sys.stderr, flush=True)
            elif line.startswith("pvae.train: "):
                said = line.removeprefix("pvae.train: ")
        status = process.wait()
        how = f"it was killed by signal {-status}" if status < 0 else f"it ended with exit status {status}"
        return (said or how) if status else ""

    def stop(self) -> None:
        """Let the processes save their state, and kill those that take too long: their last checkpoints stand."""
        with self.lock:
            self.is_stopping = True
        for process in self.started:
            process.terminate()
        ends = time.monotonic() + _LINGER
        for process in self.started:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, ends - time.monotonic()))
            process.kill()
