"""One system over many seeds: a process of `python -m pvae.train` for each, several at a time, and their table."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO

from pvae.cli.command import result_folder
from pvae.config.config import Config
from pvae.config.presets import as_option
from pvae.core.errors import InputError, InterruptedTrainingError, TrainingError
from pvae.core.files import own_folder, write_whole
from pvae.evaluation.table import row_of, to_csv, to_markdown
from pvae.evaluation.trained_run import TrainedRun
from pvae.plotting.run_figures import figures_are_drawn
from pvae.runs.run import Run

__all__ = ["Plan", "check_seeds", "train_seeds"]

_MOST = 10_000
_LINGER = 1.2  # seconds that processes have to save their state, of the two that Ctrl-C may take
_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of Linux


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is trained over which seeds.

    Args:
        config: the system; its seed is not read.
        seeds: as `check_seeds` reads them.
        folder: holds a run folder `seed-S` for each.
        train: arguments of the command that begin a run, but for --seed and --out.
        resume: those that go on with one, but for --resume.
        jobs: processes at a time; 0 for as many as there are cores.
        data_dir: where the data are looked for first, for the table.
        offline: do not download.
        quiet: print the folder alone.
    """

    config: Config
    seeds: Sequence[int]
    folder: Path
    train: Sequence[str]
    resume: Sequence[str]
    jobs: int = 0
    data_dir: Path | None = None
    offline: bool = False
    quiet: bool = False

    def run(self, seed: int) -> Path:
        """Return the run folder of a seed."""
        return self.folder / f"seed-{seed}"


@dataclass
class _Child:
    """A process under way, and what it said."""

    seed: int
    process: subprocess.Popen[str]
    readers: list[threading.Thread] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def reason(self) -> str:
        """Return why it failed, in its own words; empty if it did not."""
        status = self.process.returncode
        for reader in self.readers:
            reader.join()
        if status == 0:
            return ""
        said = [line for line in self.errors if line.startswith("pvae.train: ")]
        how = f"it was killed by signal {-status}" if status < 0 else f"it ended with exit status {status}"
        return said[-1].removeprefix("pvae.train: ") if said else how


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


def train_seeds(plan: Plan) -> None:
    """Train what is not trained yet, and print and write the table of means and spreads over the seeds.

    Raises:
        InputError: the folder holds something else, or no seed could be trained as asked.
        TrainingError: some seeds failed; the others are in the table.
        InterruptedTrainingError: Ctrl-C or SIGTERM; the same command goes on.
    """
    if plan.folder.exists() and (
        not plan.folder.is_dir() or (any(plan.folder.iterdir()) and not any(plan.folder.glob("seed-*")))
    ):
        raise InputError(f"--out {plan.folder} exists and is neither empty nor a folder of seeds: name another")
    with result_folder(plan.folder, ["table.csv", "table.md"]), own_folder(plan.folder):
        todo = [seed for seed in plan.seeds if not _is_finished(plan, seed)]
        failures = _Pool(plan).train(todo) if todo else {}
        finished = [seed for seed in plan.seeds if seed not in failures]
        if not finished and len({why.replace(str(plan.run(seed)), "") for seed, why in failures.items()}) == 1:
            raise InputError(f"{failures[plan.seeds[0]]} (all of the {len(failures)} seeds)")
        if finished:
            _write_table(plan, finished)
    for seed, why in failures.items():
        print(f"pvae.train: seed {seed}: {why}", file=sys.stderr)
    if failures:
        raise TrainingError(f"{len(failures)} of {len(plan.seeds)} seeds failed: {', '.join(map(str, failures))}")


def _is_finished(plan: Plan, seed: int) -> bool:
    """Whether a run has all its epochs and figures.

    Raises:
        InputError: it is of other options.
    """
    path = plan.run(seed)
    if not (path / "config.json").exists():
        return False
    run = Run.open(path)
    if run.config.seed != seed:
        raise InputError(f"{path} holds the seed {run.config.seed}: put back the folder of seed {seed}, or remove it")
    ours, theirs = asdict(plan.config.replace(seed=seed, source="")), asdict(run.config.replace(source=""))
    other = [name for name in ours if ours[name] != theirs[name]]
    if other:
        was, given = (", ".join(as_option(name, of[name]) for name in other) for of in (theirs, ours))
        more = f", or train it on first: python -m pvae.train --resume {shlex.quote(str(path))} {given}"
        is_longer = other == ["epochs"] and plan.config.epochs > run.config.epochs
        onward = more if is_longer and run.config.schedule == "constant" else ""
        raise InputError(f"{path} was trained with {was}, and {given} is given: name another --out{onward}")
    try:
        return run.read_checkpoint().counts.epoch >= run.config.epochs and figures_are_drawn(run)
    except InputError:  # its own process will go on from the one before it, or say why not
        return False


def _write_table(plan: Plan, seeds: Sequence[int]) -> None:
    subjects = (TrainedRun.of(plan.run(seed), plan.data_dir, plan.offline) for seed in seeds)
    rows = [row_of(subject.run, subject.report()) for subject in subjects]
    write_whole(plan.folder / "table.csv", to_csv(rows).encode())
    write_whole(plan.folder / "table.md", to_markdown(rows).encode())
    print(plan.folder if plan.quiet else f"\n{to_markdown(rows)}\n{plan.folder / 'table.csv'}")


class _Pool:
    """The processes of a plan, so many at a time, the cores shared out among them."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.children: list[_Child] = []
        self.notes: set[str] = set()

    def train(self, seeds: Sequence[int]) -> dict[int, str]:
        """Train the seeds, and return why some failed.

        Raises:
            InterruptedTrainingError: Ctrl-C or SIGTERM.
        """
        plan, waiting, failures = self.plan, list(seeds), dict[int, str]()
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        jobs = min(plan.jobs or cores, len(plan.seeds))
        threads = max(1, cores // jobs)  # of all seeds, were they finished or not: their number decides the last digits
        kept = len(plan.seeds) - len(waiting)
        self._say(
            f"{len(waiting)} seeds{f', beside {kept} that are finished,' if kept else ''} into {plan.folder}: "
            f"{jobs} at a time, {threads} {'threads' if threads > 1 else 'thread'} each"
        )
        try:
            while waiting or self.children:
                while waiting and len(self.children) < jobs:
                    self.children.append(self._start(waiting.pop(0), threads))
                for child in [child for child in self.children if child.process.poll() is not None]:
                    self.children.remove(child)
                    if why := child.reason():
                        failures[child.seed] = why
                    left = len(waiting) + len(self.children)
                    self._say(f"seed {child.seed} {'failed' if why else 'is finished'}; {left} to go")
                time.sleep(0.05)
        except KeyboardInterrupt as error:
            raise self._stopped(error) from None
        except BaseException:
            self._stop()
            raise
        return dict(sorted(failures.items()))

    def _stopped(self, error: KeyboardInterrupt) -> InterruptedTrainingError:
        self._stop()
        folder = shlex.quote(str(self.plan.folder))
        return InterruptedTrainingError(
            f"interrupted; the same command with --out {folder} goes on where each seed was",
            getattr(error, "status", 130),
        )

    def _stop(self) -> None:
        for child in self.children:
            child.process.terminate()
        ends = time.monotonic() + _LINGER
        for child in self.children:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.process.wait(max(0.0, ends - time.monotonic()))

    def _start(self, seed: int, threads: int) -> _Child:
        path = self.plan.run(seed)
        if (path / "config.json").exists():
            options = [*self.plan.resume, "--resume", str(path)]
        else:
            options = [*self.plan.train, "--seed", str(seed), "--out", str(path)]
        process = subprocess.Popen(
            [sys.executable, "-m", "pvae.train", *options],
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="backslashreplace",
            start_new_session=True,  # Ctrl-C is this process's to hand on
            preexec_fn=_end_with_the_parent(),
        )
        child = _Child(seed, process)
        for stream, hear in ((process.stdout, self._hear), (process.stderr, self._hear_errors)):
            assert stream is not None
            child.readers.append(threading.Thread(target=_read, args=(stream, child, hear), daemon=True))
            child.readers[-1].start()
        return child

    def _hear(self, child: _Child, line: str) -> None:
        if line.startswith("epoch "):
            self._say(f"seed {child.seed}  {line}")

    def _hear_errors(self, child: _Child, line: str) -> None:
        child.errors.append(line)
        if line.startswith("note: ") and line not in self.notes:
            self.notes.add(line)
            print(line, file=sys.stderr, flush=True)

    def _say(self, line: str) -> None:
        if not self.plan.quiet and sys.stdout is not None:
            with contextlib.suppress(OSError):  # where no one reads any more, the training goes on
                print(line, flush=True)


def _read(stream: IO[str], child: _Child, hear: Callable[[_Child, str], None]) -> None:
    for line in stream:
        hear(child, line.rstrip("\n"))


def _end_with_the_parent() -> Callable[[], None] | None:
    """Return what lets a process have SIGTERM when its parent dies, were it by SIGKILL; None where that cannot be."""
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None)
    return lambda: libc.prctl(_DEATH_SIGNAL, int(signal.SIGTERM))
