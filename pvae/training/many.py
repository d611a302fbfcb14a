"""Train many runs of one architecture at once, such as several seeds or a sweep over beta, each into its own folder."""

from __future__ import annotations

import contextlib
import copy
import functools
import math
import sys
import time
import timeit
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import pyro
import torch
from torch import Tensor

from pvae.compile.compiled_svi import CompiledSVI, Done
from pvae.compile.graph import RecordingError
from pvae.compile.members import Members
from pvae.config.build import elbo_of
from pvae.config.choices import load_for, reading_of
from pvae.config.config import OPTIONS, Config
from pvae.core.errors import InputError, InterruptedTrainingError, LostError, TrainingError, listed
from pvae.core.files import expanded
from pvae.core.random_state import resolve_device, restore_rng_state, rng_state, seeded
from pvae.core.terminal import Interruptions, is_torchrun, print_line, progress_bar
from pvae.data.dataset import Dataset
from pvae.data.read import read
from pvae.runs import writer
from pvae.runs.metrics import Metrics
from pvae.runs.record import CONFIG
from pvae.runs.run import Run
from pvae.training.callbacks import Console, OnEpoch
from pvae.training.engine import Engine
from pvae.training.fit import (
    chosen_before,
    lock_of,
    note_of,
    one_at_a_time,
    to_epoch,
    writing_folder,
)
from pvae.training.parallel import ALONE
from pvae.training.schedules import StepValues
from pvae.training.setup import build_trainer, check_first_loss, check_memory, prepare
from pvae.training.side_by_side import (
    Ended,
    num_processes,
    one_after_the_other,
    print_epoch,
    side_by_side,
    train_run,
)
from pvae.training.trainer import Callback, Trainer, advice_on_memory
from pvae.vae import VAE

__all__ = ["fit_many"]

_MAY_DIFFER = ("seed", "beta", "free_bits", "lr")
_TRIED = 5  # steps in one call, to find out whether they are faster together


def fit_many(
    configs: Sequence[Config],
    *,
    data: Any = None,
    data_dir: str | Path | None = None,
    offline: bool = False,
    device: str = "auto",
    threads: int | None = None,
    out: str | Path | None = None,
    quiet: bool = True,
    on_epoch: OnEpoch | None = None,
    start: str | Path | Run | None = None,
    make_vae: Callable[[Config], VAE] | None = None,
    code: str = "",
) -> list[Run]:
    """Train configurations that differ in seed, beta, free bits or learning rate, and write a run folder for each.

    They are trained at once where that is faster: parameters, Adam's state and noise have a leading dimension, and a
    step is one function of them. Otherwise, on a CPU, they are trained in several processes, with one thread each by
    default. A run equals the one that `fit` trains alone, to rounding: it draws the same initial weights, order of the
    data and noise. A run whose loss becomes NaN ends alone; early stopping is each run's own. The same call again goes
    on with runs that were interrupted, to the same bits with the same engine and threads.

        runs = pvae.fit_many([pvae.Config(latent_dim=2, seed=seed) for seed in range(8)], data=data)
        elbos = torch.tensor([run.test_metrics().elbo for run in runs])  # elbos.mean(), elbos.std()

    Args:
        configs: the configurations.
        data: as for `fit`, but none that is read in batches.
        data_dir: as for `fit`.
        offline: as for `fit`.
        device: as for `fit`.
        threads: as for `fit`.
        out: the folder of the run folders; by default `runs/<system>-<elbo>-seeds`, or `runs/<system>-<elbo>-sweep` if
            two have the same seed. Those are seed-0, seed-1 and so on, or beta-4-seed-0 if beta differs.
        quiet: print nothing but what a run could not do.
        on_epoch: as for `fit`. With one, runs are not trained in several processes.
        start: as for `fit`.
        make_vae: returns your own VAE of a configuration. With one, runs are trained one after the other; with `start`,
            in processes.
        code: as for `fit`.

    Returns:
        The runs that were trained to their end, in the order of their configurations. Why another one was not is
        printed to standard error.

    Raises:
        InputError: (a ValueError) an argument cannot be used, such as configurations that differ in another option.
        TrainingError: no run could be trained to its end; why the first one could not.
        LostError: (a RuntimeError) a folder can no longer be written.
        InterruptedTrainingError: (a KeyboardInterrupt) Ctrl-C or SIGTERM; the epochs before are saved.
    """
    if not configs:
        raise InputError("there are no configurations: give one or more")
    if is_torchrun():
        raise InputError("many runs need no torchrun: run it without")
    for one in configs:
        elbo_of(one)  # refuses what does not go together
    if data is not None:
        data = read(data, quiet=quiet, **reading_of(configs[0]))
    runs = _runs(configs, out, data, data_dir, offline, make_vae is not None)
    if (loaded := runs[0].dataset()).is_in_parts:
        what = f"{loaded.name} are read in parts, as iterables, data frames of 100,000 rows and large Parquet files are"
        raise InputError(f"{what}, and many runs need a pvae.Dataset in memory: train one at a time")
    left = [run for run in runs if not (run.sessions and run.is_finished())]
    errors: dict[Path, Ended] = {}
    new = {"device": device, "start": start, "code": code}
    own: dict[str, Any] = {"threads": threads, "quiet": quiet, "on_epoch": on_epoch or _nothing}

    def train(run: Run) -> None:
        train_run(run, {**own, "vae": None if make_vae is None else make_vae(run.config)}, new)

    with Interruptions() as interruptions, _explained(runs[0].path.parent):
        where = resolve_device(device)
        processes = num_processes(left, where, threads) if make_vae is None and on_epoch is None else 1
        if len(left) > 1 or any(map(_was_together, left)):
            try:
                if start is not None or make_vae is not None:
                    raise RecordingError("they start from another run, or their VAE is your own")
                how = _How(where, threads, quiet, own["on_epoch"], interruptions, processes)
                errors, left = _train_together(left, how), []
            except RecordingError as error:
                way = "one after the other" if processes == 1 else f"in {processes} processes"
                print(f"note: the runs are trained {way}: {error}", file=sys.stderr)
        if processes > 1 and left:
            number = threads or 1
            apart = {"device": "cpu", "threads": number, "on_epoch": _nothing if quiet else print_epoch}
            each = functools.partial(train_run, given=apart, new={"start": start, "code": code})
            errors |= side_by_side(left, each, processes, number, interruptions)
        else:
            errors |= one_after_the_other(left, train, interruptions)
    last = errors.pop(runs[0].path) if len(errors) == len(runs) else None  # is raised
    for path, found in errors.items():
        if str(found) != str(last):
            print(f"{path.name}: {found}", file=sys.stderr)
    if last is not None:
        raise last
    return [Run.open(run.path) for run in runs if run.path not in errors]


def _runs(
    configs: Sequence[Config],
    out: str | Path | None,
    data: Dataset | None,
    data_dir: str | Path | None,
    offline: bool,
    is_own_vae: bool,
) -> list[Run]:
    """Return the run of each configuration with its data, new or as it was interrupted.

    Raises:
        InputError: a folder has another run, or the data cannot be found.
    """
    names, first = _names(configs), configs[0]
    kind = "sweep" if len({one.seed for one in configs}) < len(configs) else "seeds"
    folder = Path("runs") / f"{first.system}-{first.elbo}-{kind}" if out is None else expanded(out, "--out")
    opened = [
        _opened(folder / name, one, is_own_vae) if (folder / name / CONFIG).exists() else None
        for name, one in zip(names, configs)
    ]
    for run in filter(None, opened):  # the first one finds the data of all
        data = run.dataset(data, data_dir, offline)
    data = load_for(first, data_dir, offline) if data is None else data.with_valid(first.valid)
    return [
        run or Run(writer.check_out(folder / name), one, data.record(), loaded=data)
        for run, name, one in zip(opened, names, configs)
    ]


def _names(configs: Sequence[Config]) -> list[str]:
    """Return the names of the run folders, from what differs.

    Raises:
        InputError: two are the same, or they differ in an option in which they may not.
    """
    differing = [one.name for one in fields(Config) if len({getattr(config, one.name) for config in configs}) > 1]
    if refused := [name for name in differing if name not in _MAY_DIFFER]:
        may = listed([OPTIONS[name].flag for name in _MAY_DIFFER])
        raise InputError(
            f"runs trained at once may differ in {may}, not in {listed([OPTIONS[one].flag for one in refused])}"
        )

    def name(config: Config) -> str:
        parts = [
            f"{OPTIONS[one].flag[2:]}-{getattr(config, one)!r}".removesuffix(".0") for one in differing if one != "seed"
        ]
        return "-".join([*parts, f"seed-{config.seed}"])

    names = [name(one) for one in configs]
    if len({*names}) < len(names):
        raise InputError("two configurations are the same: give each once")
    return names


def _opened(path: Path, config: Config, is_own_vae: bool) -> Run:
    """Return the run in a folder, to be trained to the epochs of a configuration, which must be its own otherwise."""
    run = Run.open(path)
    if run.has_own_beta:
        raise InputError(
            f"{path} was trained with beta as a function in Python: resume it by pvae.resume, or give another --out"
        )
    if not is_own_vae:
        run.check_vae(None)
    run.check_options(vars(config))
    return to_epoch(run, config.epochs)


def _was_together(run: Run) -> bool:
    """Return whether an earlier session trained the run with others."""
    return any("together" in session for session in run.sessions)


@contextlib.contextmanager
def _explained(folder: Path) -> Iterator[None]:
    """Say how to go on with all runs of a folder, in place of how to resume the one in which an error was raised."""
    try:
        yield
    except (InterruptedTrainingError, LostError) as error:
        is_saved = any(folder.glob(f"*/{CONFIG}"))
        goes_on = f"goes on from the epochs that are saved in {folder}"
        again = f"the same command again {goes_on if is_saved else 'starts anew, since nothing was saved'}"
        if isinstance(error, InterruptedTrainingError):
            raise InterruptedTrainingError(f"interrupted; {again}", error.status) from error
        reason = getattr(error.__cause__, "strerror", None) or error.__cause__
        raise LostError(f"{folder} cannot be written any more ({reason}); {again}") from error


class _How(NamedTuple):
    """How runs are trained at once: arguments of `fit_many`, the signals that end it, and processes it may have."""

    device: torch.device
    threads: int | None
    quiet: bool
    on_epoch: OnEpoch
    interruptions: Interruptions
    processes: int


@dataclass(eq=False)
class _Member:
    """A run among those that are trained together.

    Attributes:
        svi: takes its steps while they are timed, and explains a bad one.
        random: its random state.
        error: ended it.
    """

    run: Run
    trainer: Trainer
    svi: CompiledSVI
    random: dict[str, Tensor]
    callbacks: list[Callback] = field(default_factory=list)
    error: Ended | None = None

    @property
    def goes_on(self) -> bool:
        """Whether it trains another epoch."""
        return self.error is None and self.trainer.goes_on(self.run.config.epochs, self.callbacks)


def _nothing(run: Run, row: Metrics) -> None:
    """Do nothing after an epoch."""


def _train_together(runs: Sequence[Run], how: _How) -> dict[Path, Ended]:
    """Train runs at once, and return why some of them ended early.

    Raises:
        RecordingError: (an InputError) they cannot be trained so, or not faster.
        InputError, TrainingError, LostError, InterruptedTrainingError: as `fit_many`.
    """
    config, data = runs[0].config, runs[0].dataset()
    check_memory(config, data, len(runs))
    if config.compile == "none":
        raise RecordingError("--compile none records no steps")
    memory = advice_on_memory(f"the training of {len(runs)} runs at once", "give fewer runs to one command")
    with one_at_a_time(), seeded(config.seed, how.device), pyro.get_param_store().scope(), memory:
        prepared, members, errors = prepare(config, data, how.device), list[_Member](), dict[Path, Ended]()
        for run in runs:
            how.interruptions.raise_if_received()
            try:
                members.append(_member(run, prepared, how))
            except InputError as error:
                errors[run.path] = error
        if not members:
            return errors
        _check_faster(members, how)
        how.interruptions.raise_if_received()
        with contextlib.ExitStack() as folders:
            for one in members:
                if not one.run.sessions:
                    writer.new_folder(one.run.path, one.run.config)
                folders.enter_context(lock_of(one.run))
                folder = writing_folder(one.trainer, one.run, how.on_epoch, how.interruptions, has_steps=False)
                one.callbacks = folders.enter_context(folder)
            if data.note:
                print(f"note: {data.note}", file=sys.stderr)
            _train(members, how)
    return errors | {one.run.path: one.error for one in members if one.error is not None}


def _member(run: Run, prepared: Mapping[str, Tensor], how: _How) -> _Member:
    """Return a run with its trainer, at its start or where it was interrupted.

    Raises:
        InputError: it cannot be trained.
    """
    options: dict[str, Any] = {"threads": torch.get_num_threads(), "note": note_of(how.quiet, ALONE)}
    with seeded(run.config.seed, how.device):
        options["has_weights"] = bool(run.sessions)
        trainer = build_trainer(run.config, run.dataset(), how.device, prepared=prepared, **options)
        if run.sessions:
            trainer.restore(run.read_checkpoint(), run.metrics())
        random = rng_state(how.device)
    if not run.sessions:
        check_first_loss(trainer)
        if run.config.initialization == "exact":
            trainer.evaluate_start()
    return _Member(run, trainer, trainer.engine.make("graph"), random)


def _stacked(members: Sequence[_Member]) -> Members:
    """Return members as a stack; their steps read tensors beside parameters, which may differ between them."""
    trainers = [one.trainer for one in members]
    if len({one.run.config.free_bits for one in members}) > 1:
        for one in members:
            free_bits = one.run.config.free_bits or -math.inf
            one.trainer.elbo.free_bits = torch.tensor(free_bits, device=one.trainer.device)
    read = [[*one.vae.buffers(), one.data.y, one.elbo.free_bits] for one in trainers]
    return Members([one.svi for one in members], [[one for one in own if isinstance(one, Tensor)] for own in read])


def _check_faster(members: Sequence[_Member], how: _How) -> None:
    """Take some steps of all members, and of the first one as it would be trained without the others, and undo them.

    Raises:
        RecordingError: steps of all take longer than those of each, one after the other or in processes, unless an
            earlier session has taken them; or they cannot be recorded.
    """
    before = copy.deepcopy([one.trainer.checkpoint() for one in members])
    count, first, trainer, stack = len(members), members[0], members[0].trainer, _stacked(members)
    trainer.vae.train()
    index, values = torch.arange(min(trainer.batch_size, len(trainer.data))).to(trainer.device), trainer.schedule(0)
    threads, times = how.threads or torch.get_num_threads(), list[float]()
    with pyro.get_param_store().scope():
        ways: Any = [(stack, index.unsqueeze(1).repeat(1, count), [values] * count, threads, count)]
        ways += [(first.svi, index, values, threads, 1)]
        at_a_time = count / math.ceil(count / how.processes)
        ways += [(first.svi, index, values, how.threads or 1, at_a_time)] * (how.processes > 1)
        for svi, batch, row, number, runs in ways:
            torch.set_num_threads(number)
            run = functools.partial(svi.run, [(batch,)] * _TRIED, [row] * _TRIED)
            run()  # records
            times.append(min(timeit.repeat(run, number=1, repeat=3)) / runs)
    torch.set_num_threads(threads)
    share = times[0] / min(times[1:])
    if share > 1 and first.run.config.compile == "auto" and not _was_together(first.run):
        raise RecordingError(f"{count} at once take {share:.1f} times as long")
    for one, checkpoint in zip(members, before):
        one.trainer.restore(checkpoint, one.trainer.rows)


def _train(members: Sequence[_Member], how: _How) -> None:
    """Train members to their ends, epoch by epoch, those first that have finished the fewest epochs.

    Members that have ended are left out from the next epoch on. One that is ahead of the others, since they were killed
    between two checkpoints, is held for an epoch, so that they are computed as if they had not been killed.
    """
    first, last = members[0], members[0].run.config.epochs
    chosen = chosen_before(first.run, how.device, ALONE) | ({"threads": how.threads} if how.threads else {})
    for one in members:
        restore_rng_state(one.random, how.device)
        for callback in one.callbacks:
            callback.on_train_begin(one.trainer)
        writer.record_choice(one.run, {"together": len(members)})
    console = Console(first.run)
    if not how.quiet:
        console.on_train_begin(first.trainer)
        print_line(f"{len(members)} runs at once: {listed([one.run.path.name for one in members])}")
    together = list[_Member]()
    while active := [one for one in members if one.goes_on]:
        started, epoch = time.perf_counter(), min(one.trainer.epoch for one in active)
        if (now := [one for one in members if one in active or one.trainer.epoch > epoch]) != together:
            together, (stack, engine) = now, _engine(now, chosen, how)
        moving = [one for one in active if one.trainer.epoch == epoch]
        taken = _steps(together, moving, stack, engine, how)
        chosen = {**chosen, **engine.chosen, "engine": None}  # fewer members ask anew if they compile
        for one, done, random in zip(together, taken, stack.random):
            if one in moving:
                one.random = random
                restore_rng_state(random, how.device)
                try:
                    one.trainer.run_epoch(one.callbacks, done)
                except TrainingError as error:
                    saved = f"{one.run.path} contains the training up to epoch {one.trainer.epoch}"
                    one.error = TrainingError(f"{error}; {saved}")
                except InputError as error:
                    one.error = error
        tests = [one.trainer.rows[-1] for one in moving if one.error is None]
        if tests and not how.quiet:
            bounds = sorted(-row.loss if row.elbo is None else row.elbo for row in tests)
            found = f"{tests[0].bound} {bounds[0]:.2f} to {bounds[-1]:.2f} of {len(tests)} runs"
            print_line(f"epoch {epoch + 1}/{last}  test {found}  {time.perf_counter() - started:.1f} s")
    for one in members:
        for callback in one.callbacks if one.error is None else ():
            callback.on_train_end(one.trainer)
        if one.error is None and not how.quiet:
            replace(console, run=one.run, name=f"{one.run.path.name}: ").on_train_end(one.trainer)


def _engine(members: Sequence[_Member], chosen: Mapping[str, Any], how: _How) -> tuple[Members, Engine]:
    """Return members as a stack, and the engine that takes its steps, which becomes that of their trainers."""
    stack, trainer, config = _stacked(members), members[0].trainer, members[0].run.config

    def make(name: str) -> Members:
        if name == "none":
            raise RecordingError("the steps of several runs cannot be recorded: train them one after the other")
        stack.engine = name
        return stack

    left, note = config.epochs * trainer.num_steps - trainer.step, note_of(how.quiet, ALONE)
    engine = Engine(make, config, left, chosen.get("engine"), chosen.get("threads"), how.device, note=note)
    for one in members:
        one.trainer.engine = engine
    return stack, engine


def _steps(
    together: Sequence[_Member], moving: Sequence[_Member], stack: Members, engine: Engine, how: _How
) -> list[list[Done]]:
    """Take the steps of an epoch of those members that move, with the others held; return those of each member."""
    orders, tables, done = list[Tensor](), list[list[StepValues]](), [list[Done]() for _ in together]
    for place, one in enumerate(together):
        restore_rng_state(one.random, how.device)
        order, table = one.trainer.next_order()
        orders.append(order)
        tables.append(table)
        stack.random[place], stack.is_held[place] = rng_state(how.device), one not in moving
    title = f"epoch {moving[0].trainer.epoch + 1}/{moving[0].run.config.epochs}"
    with progress_bar(title, len(tables[0]), "step", how.quiet) as bar:
        for taken in engine.run(torch.stack(orders, 1), list(zip(*tables))):
            for own, one in zip(done, taken.members):
                own.append(one._replace(seconds=taken.seconds / len(together)))
            bar.update(max(len(one.losses) for one in taken.members))
            how.interruptions.raise_if_received()
    return done
