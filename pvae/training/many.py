"""Train many runs of one architecture at once, such as several seeds or a sweep over beta, each into its own folder."""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import pyro
import torch
from torch import Tensor

from pvae.compile.compiled_svi import CompiledSVI, Done
from pvae.compile.graph import RecordingError
from pvae.compile.members import Members
from pvae.config.config import Config
from pvae.config.options import flag
from pvae.config.presets import as_option
from pvae.core.errors import InputError, InterruptedTrainingError, LostError, TrainingError, listed, total_memory
from pvae.core.files import expanded, locked
from pvae.core.random_state import resolve_device, restore_rng_state, rng_state, seeded
from pvae.core.terminal import Interruptions, is_torchrun, print_line, progress_bar
from pvae.data.dataset import Dataset
from pvae.elbos.registry import elbo_of
from pvae.models.build import meta_state_dict
from pvae.runs import writer
from pvae.runs.data import load_for
from pvae.runs.record import CONFIG
from pvae.runs.run import Run
from pvae.training.callbacks import (
    Checkpointing,
    Console,
    EarlyStopping,
    Figures,
    OnEachRow,
    OnEpoch,
    TensorBoard,
)
from pvae.training.engine import Engine
from pvae.training.fit import check_types, chosen_before, fit, note_of, one_at_a_time, resume, to_epoch
from pvae.training.parallel import ALONE
from pvae.training.schedules import StepValues
from pvae.training.setup import build_trainer, check_first_loss
from pvae.training.trainer import Callback, Trainer, advice_on_memory
from pvae.vae import VAE

__all__ = ["fit_many"]

_MAY_DIFFER = ("seed", "beta", "free_bits", "lr")
_Ended = TrainingError | InputError  # why a run ended
_TRIED = 5  # steps in one call, to find out whether they are faster together


def fit_many(
    configs: Sequence[Config],
    *,
    data: Dataset | None = None,
    data_dir: str | Path | None = None,
    offline: bool = False,
    device: str = "auto",
    threads: int | None = None,
    out: str | Path | None = None,
    quiet: bool = True,
    on_epoch: OnEpoch = lambda run, row: None,
    start: str | Path | Run | None = None,
    make_vae: Callable[[Config], VAE] | None = None,
    code: str = "",
) -> list[Run]:
    """Train configurations that differ in seed, beta, free bits or learning rate, and write a run folder for each.

    They are trained at once where that is faster: parameters, Adam's state and noise have a leading dimension, and a
    step is one function of them. A run equals the one that `fit` trains alone, to rounding: it draws the same initial
    weights, order of the data and noise. A run whose loss becomes NaN ends alone; early stopping is each run's own.
    The same call again goes on with runs that were interrupted, to the same bits with the same engine and threads.

    Args:
        configs: the configurations.
        data: as for `fit`.
        data_dir: as for `fit`.
        offline: as for `fit`.
        device: as for `fit`.
        threads: as for `fit`.
        out: the folder of the run folders; by default `runs/<system>-<elbo>-seeds`, or `runs/<system>-<elbo>-sweep` if
            two have the same seed. Those are seed-0, seed-1 and so on, or beta-4-seed-0 if beta differs.
        quiet: print nothing but what a run could not do.
        on_epoch: as for `fit`.
        start: as for `fit`.
        make_vae: returns your own VAE of a configuration. With one, and with `start`, runs are trained one after the
            other.
        code: as for `fit`.

    Returns:
        The runs that were trained to their end, in the order of their configurations. Why another one was not is
        printed to standard error.

    Raises:
        InputError: (a ValueError) an argument cannot be used, such as configurations that differ in another option.
        TrainingError: no run could be trained to its end.
        LostError: (a RuntimeError) a folder can no longer be written.
        InterruptedTrainingError: (a KeyboardInterrupt) Ctrl-C or SIGTERM; the epochs before are saved.
    """
    if not configs:
        raise InputError("there are no configurations: give one or more")
    if is_torchrun():
        raise InputError("many runs are trained in one process: run it without torchrun")
    check_types(data=data)
    first, names = configs[0], _names(configs)
    for one in configs:
        elbo_of(one)  # refuses what does not go together
    kind = "sweep" if len({one.seed for one in configs}) < len(configs) else "seeds"
    folder = Path("runs") / f"{first.system}-{first.elbo}-{kind}" if out is None else expanded(out, "--out")
    existing = {
        name: _opened(folder / name, one, make_vae is not None)
        for name, one in zip(names, configs)
        if (folder / name / CONFIG).exists()
    }
    for run in existing.values():  # the first one finds the data of all
        data = run.dataset(data, data_dir, offline)
    data = load_for(first, data_dir, offline) if data is None else data.with_valid(first.valid)
    runs = [
        existing.get(name) or Run(writer.check_out(folder / name), one, data.record(), loaded=data)
        for name, one in zip(names, configs)
    ]
    left = [run for run in runs if not (run.sessions and run.is_finished())]
    errors: dict[Path, _Ended] = {}
    if len(left) > 1 or any(map(_was_together, left)):
        try:
            if start is not None or make_vae is not None:
                raise RecordingError("they start from another run, or their VAE is your own")
            errors, left = _train_together(left, data, device, threads, quiet, on_epoch), []
        except RecordingError as error:
            print(f"note: the runs are trained one after the other: {error}", file=sys.stderr)
    for run in left:
        given: dict[str, Any] = {"data": data, "threads": threads, "quiet": quiet, "on_epoch": on_epoch}
        given["vae"] = None if make_vae is None else make_vae(run.config)
        errors |= _train_alone(run, given, {"device": device, "start": start, "code": code})
    for path, found in errors.items():
        print(f"{path.name}: {found}", file=sys.stderr)
    trained = [Run.open(run.path) for run in runs if run.path not in errors]
    if not trained:
        raise next(iter(errors.values()))
    return trained


def _train_alone(run: Run, given: Mapping[str, Any], of_new: Mapping[str, Any]) -> dict[Path, _Ended]:
    """Train a run by itself, with these options of `fit` and `resume`, and those of a new run; return why it ended.

    Raises:
        LostError, InterruptedTrainingError: as `fit_many`, which also trains the runs after it.
    """
    try:
        if run.sessions:
            resume(run, run.config.epochs, **given)
        else:
            fit(run.config, out=run.path, **given, **of_new)
    except TrainingError as error:
        return {run.path: error}
    except (InterruptedTrainingError, LostError) as error:
        status = error.status if isinstance(error, InterruptedTrainingError) else 0
        explained = _explained(error.__cause__ or error, run.path.parent, status)
        if explained is None:
            raise
        raise explained from error
    return {}


def _was_together(run: Run) -> bool:
    """Return whether an earlier session trained the run with others."""
    return any("together" in session for session in run.sessions)


def _names(configs: Sequence[Config]) -> list[str]:
    """Return the names of the run folders, from what differs.

    Raises:
        InputError: two are the same, or they differ in an option in which they may not.
    """
    differing = [one.name for one in fields(Config) if len({getattr(config, one.name) for config in configs}) > 1]
    if refused := [name for name in differing if name not in _MAY_DIFFER]:
        may = listed([flag(name) for name in _MAY_DIFFER])
        raise InputError(f"runs trained at once may differ in {may}, not in {listed([flag(one) for one in refused])}")
    names = [
        "".join(
            f"{name.replace('_', '-')}-{getattr(one, name)!r}".removesuffix(".0") + "-"
            for name in differing
            if name != "seed"
        )
        + f"seed-{one.seed}"
        for one in configs
    ]
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
    if run.has_own_vae and not is_own_vae:
        run.check_vae(None)
    for one in fields(Config):
        ours, theirs = getattr(config, one.name), getattr(run.config, one.name)
        if one.name not in ("epochs", "source", *["system"] * run.has_own_vae) and ours != theirs:
            raise InputError(
                f"{as_option(one.name, ours)} contradicts {path}/config.json, which says "
                f"{as_option(one.name, theirs)}: give the same, or another --out"
            )
    return to_epoch(run, config.epochs)


@dataclass(eq=False)
class _Member:
    """A run among those that are trained together. It is the engine of its trainer, whose steps were taken before.

    Attributes:
        own: its run folder.
        random: its random state.
        done: the steps of an epoch.
        chosen: as of `Engine`.
        error: ended it.
    """

    own: Run
    trainer: Trainer
    svi: CompiledSVI
    saved: Checkpointing
    board: TensorBoard
    callbacks: Sequence[Callback]
    random: dict[str, Tensor]
    done: list[Done] = field(default_factory=list)
    chosen: dict[str, Any] = field(default_factory=dict)
    error: _Ended | None = None

    def run(self, order: Tensor, table: Sequence[StepValues]) -> Iterator[Done]:
        """Yield the steps, and leave the random state as after them."""
        yield from self.done
        restore_rng_state(self.random, self.trainer.device)

    def goes_on(self) -> bool:
        """Return whether it trains another epoch."""
        is_last = self.trainer.epoch >= self.own.config.epochs
        return not (self.error or is_last or any(one.ends(self.trainer) for one in self.callbacks))

    @property
    def tensors(self) -> list[Tensor]:
        """What its steps read beside parameters, and may differ from the others'."""
        labels, free_bits = self.trainer.data.y, self.trainer.elbo.free_bits
        return [
            *self.trainer.vae.buffers(),
            *([] if labels is None else [labels]),
            *([free_bits] if isinstance(free_bits, Tensor) else []),
        ]


def _train_together(
    runs: Sequence[Run], data: Dataset, device: str, threads: int | None, quiet: bool, on_epoch: OnEpoch
) -> dict[Path, _Ended]:
    """Train runs at once, and return why some of them ended early.

    Raises:
        RecordingError: (an InputError) they cannot be trained so, or not faster.
        InputError, TrainingError, LostError, InterruptedTrainingError: as `fit_many`.
    """
    first, where = runs[0].config, resolve_device(device)
    state = meta_state_dict(first, data.datum_shape, len(data.label_names))
    if 4 * len(runs) * sum(one.nbytes for one in state.values()) > total_memory():
        raise InputError(f"{len(runs)} runs do not fit into memory at once: give fewer, or smaller networks")
    if first.compile == "none":
        raise RecordingError("--compile none records no steps")
    with contextlib.ExitStack() as held:
        held.enter_context(one_at_a_time())
        interruptions = held.enter_context(Interruptions())
        held.enter_context(seeded(first.seed, where))
        held.enter_context(pyro.get_param_store().scope())
        note = note_of(quiet, ALONE)
        chosen = chosen_before(runs[0], where, ALONE) | ({"threads": threads} if threads else {})
        members, ours = list[_Member](), list[_Member]()  # ours: whose folders this process holds
        try:
            with advice_on_memory(f"the training of {len(runs)} runs at once", "give fewer runs to one command"):
                for run in runs:
                    members.append(_member(run, data, where, on_epoch, note, interruptions))
                    interruptions.raise_if_received()
                if len({one.own.config.free_bits for one in members}) > 1:
                    for one in members:
                        free_bits = one.own.config.free_bits or -math.inf
                        one.trainer.elbo.free_bits = torch.tensor(free_bits, device=where)
                try:
                    stack = _faster(members, chosen)
                finally:
                    interruptions.raise_if_received()
                for one in members:
                    _hold(one.own, held)
                    ours.append(one)
                if data.note:
                    print(f"note: {data.note}", file=sys.stderr)
                for one in members:
                    restore_rng_state(one.random, where)
                    for callback in one.callbacks:
                        callback.on_train_begin(one.trainer)
                console = Console(runs[0])
                if not quiet:
                    console.on_train_begin(members[0].trainer)
                    print_line(f"{len(members)} runs at once: {listed([run.path.name for run in runs])}")
                _train(members, stack, chosen, note, quiet, interruptions)
                for one in members:
                    for callback in one.callbacks if one.error is None else ():
                        callback.on_train_end(one.trainer)
                    if one.error is None and not quiet:
                        replace(console, run=one.own, name=f"{one.own.path.name}: ").on_train_end(one.trainer)
        except (KeyboardInterrupt, OSError, RuntimeError, InputError) as error:
            for one in ours:
                if one.saved.epoch is None:
                    writer.discard(one.own.path)
            explained = _explained(error, runs[0].path.parent, interruptions.status)
            if explained is None:
                raise
            raise explained from error
        finally:
            for one in members:
                one.board.close()
    return {one.own.path: one.error for one in members if one.error is not None}


def _hold(run: Run, held: contextlib.ExitStack) -> None:
    """Hold the lock of a run folder, which is made if the run is new.

    Raises:
        InputError: another process trains the run, or has trained it since it was opened.
    """
    if not run.sessions:
        writer.new_folder(run.path, run.config)
    held.enter_context(locked(run.path))
    if not run.sessions:
        writer.check_out(run.path)
    elif Run.open(run.path).sessions != run.sessions:
        raise InputError(f"{run.path} was trained by another process since it was opened: give the command again")


def _member(
    run: Run,
    data: Dataset,
    device: torch.device,
    on_epoch: OnEpoch,
    note: Callable[[str], object],
    interruptions: Interruptions,
) -> _Member:
    """Return a run with its trainer, at its start or where it was interrupted."""
    with seeded(run.config.seed, device):
        trainer = build_trainer(run.config, data, device, threads=torch.get_num_threads(), note=note)
        if run.sessions:
            trainer.restore(run.read_checkpoint(), run.metrics())
        random = rng_state(device)
    if not run.sessions:
        check_first_loss(trainer)
    assert isinstance(trainer.engine, Engine)
    saved, board = Checkpointing(run, epoch=trainer.epoch if run.sessions else None), TensorBoard(run)
    others = [OnEachRow(run, on_epoch), Figures(run, interruptions), EarlyStopping(run.config.patience)]
    member = _Member(run, trainer, trainer.engine.make("graph"), saved, board, [saved, board, *others], random)
    trainer.engine = member
    return member


def _stacked(members: Sequence[_Member]) -> Members:
    return Members([one.svi for one in members], [one.tensors for one in members])


def _faster(members: Sequence[_Member], chosen: Mapping[str, Any]) -> Members:
    """Return the members, stacked, after taking some steps of all, and of one alone, and undoing them.

    Raises:
        RecordingError: steps of all take longer than those of each, unless an earlier session has taken them; or they
            cannot be recorded.
    """
    first, times = members[0], list[float]()
    trainer = first.trainer
    trainer.vae.train()
    stack = _stacked(members)
    size, values = min(trainer.batch_size, len(trainer.data)), trainer.schedule(0)
    index = torch.arange(size, device=trainer.device)
    together = [(index.unsqueeze(1).repeat(1, len(members)),)] * _TRIED, [[values] * len(members)] * _TRIED
    torch.set_num_threads(chosen.get("threads", torch.get_num_threads()))
    with stack.kept(), pyro.get_param_store().scope():
        for steps in (lambda: stack.run(*together), lambda: first.svi.run([(index,)] * _TRIED, [values] * _TRIED)):
            seconds = list[float]()
            for _ in range(4):  # the first records
                started = time.perf_counter()
                steps()
                seconds.append(time.perf_counter() - started)
            times.append(min(seconds[1:]))
    is_auto = first.own.config.compile == "auto" and not _was_together(first.own)
    if is_auto and times[0] > len(members) * times[1]:
        raise RecordingError(f"{len(members)} at once take {times[0] / len(members) / times[1]:.1f} times as long")
    return stack


def _train(
    members: Sequence[_Member],
    stack: Members,
    chosen: Mapping[str, Any],
    note: Callable[[str], object],
    quiet: bool,
    interruptions: Interruptions,
) -> None:
    """Train members to their ends, epoch by epoch, those first that have finished the fewest epochs.

    Members that have ended are left out from the next epoch on. One that is ahead of the others, since they were killed
    between two checkpoints, is held for an epoch, so that they are computed as if they had not been killed.
    """
    together, engine = [*members], _engine(stack, members[0], chosen, note)
    while active := [one for one in members if one.goes_on()]:
        epoch = min(one.trainer.epoch for one in active)
        if (now := [one for one in members if one.goes_on() or one.trainer.epoch > epoch]) != together:
            together, stack = now, _stacked(now)
            known = {**chosen, **now[0].chosen}
            engine = _engine(stack, now[0], {"threads": known.get("threads")}, note)  # which asks anew if it compiles
        started, moving = time.perf_counter(), [one for one in active if one.trainer.epoch == epoch]
        orders, tables = [], []
        for place, one in enumerate(together):
            trainer = one.trainer
            trainer.vae.train()
            restore_rng_state(one.random, trainer.device)
            orders.append(torch.randperm(len(trainer.data)).to(trainer.device))
            stack.random[place], one.done = rng_state(trainer.device), []
            stack.is_held[place] = one not in moving
            tables.append([trainer.schedule(trainer.step + step) for step in range(trainer.num_steps)])
        last, num_steps = members[0].own.config.epochs, together[0].trainer.num_steps
        bar = progress_bar(f"epoch {epoch + 1}/{last}", num_steps, "step", quiet)
        with bar:
            for taken in engine.run(torch.stack(orders, 1), list(zip(*tables))):
                for one, done in zip(together, taken.members):
                    one.done.append(done._replace(seconds=taken.seconds / len(together)))
                bar.update(max(len(done.losses) for done in taken.members))
                interruptions.raise_if_received()
        for place, one in enumerate(together):
            if one in moving:
                restore_rng_state(one.random, one.trainer.device)
                one.random, one.chosen = stack.random[place], {**engine.chosen, "together": len(members)}
                try:
                    one.trainer.run_epoch(one.callbacks)
                except (TrainingError, InputError) as error:
                    one.error = error
            interruptions.raise_if_received()
        tests = [one.trainer.rows[-1] for one in moving if one.error is None]
        if tests and not quiet:
            bounds = sorted(-row.loss if row.elbo is None else row.elbo for row in tests)
            seconds = time.perf_counter() - started
            found = f"{tests[0].bound} {bounds[0]:.2f} to {bounds[-1]:.2f}"
            print_line(f"epoch {epoch + 1}/{last}  test {found} of {len(tests)} runs  {seconds:.1f} s")


def _engine(stack: Members, first: _Member, chosen: Mapping[str, Any], note: Callable[[str], object]) -> Engine:
    """Return the engine that takes the steps of a stack."""
    trainer, config = first.trainer, first.own.config

    def make(name: str) -> Any:
        if name == "none":
            raise RecordingError("the steps of several runs cannot be recorded: train them one after the other")
        stack.engine = name
        return stack

    left = config.epochs * trainer.num_steps - trainer.step
    return Engine(make, config, left, chosen.get("engine"), chosen.get("threads"), trainer.device, note=note)


def _explained(error: BaseException, folder: Path, status: int) -> BaseException | None:
    """Return an error that says how to go on, or None for one that says it, or that is an error of the program."""
    is_saved = any(folder.glob(f"*/{CONFIG}"))
    saved = (
        f"goes on from the epochs that are saved in {folder}" if is_saved else "starts anew, since nothing was saved"
    )
    again = f"the same command again {saved}"
    if isinstance(error, OSError):
        return LostError(f"{folder} cannot be written any more ({error.strerror or error}); {again}")
    if isinstance(error, KeyboardInterrupt):
        return InterruptedTrainingError(f"interrupted; {again}", status)
    return None
