"""From a configuration to a run folder, and from a run folder onward."""

from __future__ import annotations

import contextlib
import copy
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyro
import torch

from pvae.config.config import Config
from pvae.config.presets import SYSTEMS
from pvae.core.devices import resolve_device
from pvae.core.errors import InputError, shown
from pvae.core.files import expanded, own_folder
from pvae.core.parallel import World, joined
from pvae.core.random_state import restore_rng_state, rng_state, seeded
from pvae.data.dataset import DataRecord, Dataset
from pvae.runs.checkpoint import NO_ROWS, Checkpoint, Rows
from pvae.runs.data import data_of, load_for
from pvae.runs.run import Run, check_out
from pvae.training.progress import Console
from pvae.training.session import train_on
from pvae.training.trainer import Trainer
from pvae.vae import VAE

__all__ = ["fit", "resume", "trained_at"]


_TRAINING: set[int] = set()  # the processes that train: this one, and of a fork the one that it came from


def fit(
    config: Config | None = None,
    *,
    vae: VAE | None = None,
    data: Dataset | None = None,
    data_dir: str | Path | None = None,
    offline: bool = False,
    device: str = "auto",
    out: str | Path | None = None,
    checkpoint_every: int = 0,
    quiet: bool = True,
) -> Run:
    """Train a system and write its run folder: what `python -m pvae.train` does.

    Pyro's parameter store and torch's random state are as before when it returns. Both are the process's: a thread that
    draws random numbers meanwhile changes the training, and a second training is refused.

    Args:
        config: what to train; the Deep Bayes system if left out.
        vae: your own VAE, which is trained in place; the options of `config` that describe a VAE are then not read.
        data: your own images; `config.dataset` is then not read.
        data_dir: where to look for the data set first.
        offline: do not download.
        device: "auto", "cpu", "cuda" or "cuda:N".
        out: the run folder, new or empty; `runs/<time>-<system>-<elbo>` if left out.
        checkpoint_every: steps after which a checkpoint is written too, beside the one of each epoch; 0 for none.
        quiet: print nothing.

    Returns:
        The run; `run.vae()` is the trained VAE.

    Raises:
        InputError: (a ValueError) something given cannot be used; nothing was written.
        TrainingError: a loss or a gradient became NaN or infinite; the last good checkpoint is on disk.
        LostError: (a RuntimeError) the folder cannot be written any more, or another process has gone.
        InterruptedTrainingError: (a KeyboardInterrupt) Ctrl-C or SIGTERM; the state is saved.
    """
    _check_types(config, vae, data, checkpoint_every, out=out, data_dir=data_dir)
    config = config if config is not None else Config()
    if vae is not None and config.system in SYSTEMS:
        config = config.replace(system="own-vae", source="")
    path = expanded(out, "--out") if out is not None else None
    with _one_at_a_time(), joined(device) as world:
        if path is not None and world.is_first:
            check_out(path)
        where = resolve_device(device)
        data = data if data is not None else load_for(config, data_dir, offline)
        with seeded(config.seed, where), pyro.get_param_store().scope():
            training = Trainer(config, data, where, world, vae)
            training.dry_run()
            with _new_run(world, path, config, data.record(), vae is not None) as run:
                console = Console(quiet or not world.is_first)
                train_on(training, run, console, note=data.note, checkpoint_every=checkpoint_every)
    return run


def resume(
    path: str | Path,
    epochs: int | None = None,
    *,
    vae: VAE | None = None,
    data: Dataset | None = None,
    data_dir: str | Path | None = None,
    offline: bool = False,
    device: str | None = None,
    checkpoint_every: int = 0,
    quiet: bool = True,
) -> Run:
    """Go on with a run from its last checkpoint; on the CPU the end is, bit for bit, that of an undisturbed run.

    Args:
        path: the run folder.
        epochs: train to this epoch; to the one that `config.json` names if left out.
        vae: a VAE of the same modules, if the run trains one that was built in Python.
        data: your own images again, if the run was trained on such.
        data_dir: where to look for the data set first; where it was found, if left out.
        offline: do not download.
        device: "auto", "cpu", "cuda" or "cuda:N"; the device that trained it so far, if left out.
        checkpoint_every: steps after which a checkpoint is written too, beside the one of each epoch; 0 for none.
        quiet: print nothing.

    Returns:
        The run. Where only its figures are missing, they are drawn; one that is finished is left as it is.

    Raises:
        InputError: (a ValueError) the folder is no run, its data are not to be had or have changed, or
            it has more epochs already.
        TrainingError: a loss or a gradient became NaN or infinite; the last good checkpoint is on disk.
        LostError: (a RuntimeError) the folder cannot be written any more, or another process has gone.
        InterruptedTrainingError: (a KeyboardInterrupt) Ctrl-C or SIGTERM; the state is saved.
    """
    _check_types(None, vae, data, checkpoint_every, path=path, data_dir=data_dir)
    recorded = Run.open(path).sessions[-1].get("device", "auto")
    device = device or str(recorded)
    with _one_at_a_time(), joined(device) as world, _owned(Path(path), world):
        run, checkpoint, note = _reopened(path, epochs)
        run.check_vae(vae)
        console = Console(quiet or not world.is_first)
        if world.agreed("finished", "yes" if world.is_first and _is_finished(run, checkpoint) else ""):
            console.finished(run)
            return run
        where = resolve_device(device)
        data = data_of(run, data, data_dir, offline)
        with seeded(run.config.seed, where), pyro.get_param_store().scope():
            training = Trainer(run.config, data, where, world, vae)
            rows = _restore(training, run, checkpoint)
            note = "; ".join(filter(None, (note, data.note)))
            train_on(training, run, console, rows=rows, note=note, checkpoint_every=checkpoint_every)
    return run


def _reopened(path: str | Path, epochs: int | None) -> tuple[Run, Checkpoint | None, str]:
    """Return a run, to be trained to that epoch, and where it is; and a note.

    It is read while its lock is held: what another process writes meanwhile would not be what this one goes on from.

    Raises:
        InputError: it cannot be gone on with.
    """
    run = Run.open(path)
    if epochs not in (None, run.config.epochs) and run.config.schedule != "constant":
        raise InputError(
            f"--epochs {epochs} would change the --schedule {run.config.schedule} of {path}, which runs over its "
            f"{run.config.epochs} epochs: start a new run"
        )
    run.config = run.config.replace(epochs=epochs if epochs is not None else run.config.epochs)
    checkpoint, note = _last(run)
    done = checkpoint.counts.epoch if checkpoint is not None else 0
    if done > run.config.epochs:
        raise InputError(f"{run.path} is finished, at epoch {done}: give --epochs above {done} to train it further")
    return run, checkpoint, note


def _restore(training: Trainer, run: Run, checkpoint: Checkpoint | None) -> Rows:
    """Go back to a checkpoint, if there is one, and return what stands of the run's figures."""
    if checkpoint is None:
        return NO_ROWS
    try:
        training.restore(checkpoint)
    except InputError as error:
        raise InputError(f"the checkpoint of {run.path} does not fit its config.json: {error}") from None
    return checkpoint.rows


def _is_finished(run: Run, checkpoint: Checkpoint | None) -> bool:
    if checkpoint is None or checkpoint.counts.epoch < run.config.epochs:
        return False
    run.metrics()  # refused if damaged
    from pvae.plotting.run_figures import (
        figures_are_drawn,  # it takes matplotlib, which is slow to import, and no step needs it
    )

    return figures_are_drawn(run)


@contextlib.contextmanager
def _new_run(world: World, path: Path | None, config: Config, record: DataRecord, has_own_vae: bool) -> Iterator[Run]:
    """Let the first process make the folder and hold its lock, and the others know of it."""
    made = refusal = ""
    if world.is_first:
        try:
            made = str(Run.create(path, config, record, has_own_vae).path)
        except InputError as error:
            refusal = str(error)
    if refusal := world.agreed("refusal", refusal):
        raise InputError(refusal)
    run = Run(Path(world.agreed("folder", made)), config, record, [], has_own_vae=has_own_vae)
    with _owned(run.path, world):
        if world.is_first:
            check_out(run.path)  # another process may have been quicker
        yield run


def _last(run: Run) -> tuple[Checkpoint | None, str]:
    """Return the last checkpoint that can be read, or none of a run that was killed before its first; and a note."""
    if not run.is_begun:
        return None, ""
    try:
        return run.read_checkpoint(), ""
    except InputError as error:
        try:
            return run.read_checkpoint(previous=True), f"{error}: going on from the one before it"
        except InputError:
            raise error from None


def _owned(path: Path, world: World) -> contextlib.AbstractContextManager[None]:
    """Hold the lock of a folder, which the first process does for all."""
    return own_folder(path) if world.is_first else contextlib.nullcontext()


@contextlib.contextmanager
def _one_at_a_time() -> Iterator[None]:
    """Refuse a second training in this process: Pyro's store and torch's generator are there once."""
    process = os.getpid()
    if process in _TRAINING:
        raise InputError("another training runs in this process, by another thread: train in a process of its own")
    _TRAINING.add(process)
    try:
        yield
    finally:
        _TRAINING.discard(process)


def _check_types(config: object, vae: object, data: object, checkpoint_every: object, **paths: object) -> None:
    """Refuse arguments of a wrong type; None stands for one that was left out."""
    if vae is not None and not isinstance(vae, VAE):
        raise InputError(f"vae must be a pvae.VAE, not a {type(vae).__name__}")
    if config is not None and not isinstance(config, Config):
        raise InputError(f"config must be a pvae.Config, not a {type(config).__name__}")
    if not isinstance(checkpoint_every, int) or checkpoint_every < 0:
        raise InputError(f"checkpoint_every must be a whole number of at least 0, not {shown(checkpoint_every)}")
    if data is not None and not isinstance(data, Dataset):
        raise InputError(f"data must be a pvae.Dataset, not a {type(data).__name__}")
    for name, path in paths.items():
        if path is not None and not isinstance(path, (str, Path)):
            raise InputError(f"{name} must be a path, not a {type(path).__name__}")


def trained_at(
    config: Config, epochs: Sequence[int], data_dir: str | Path | None = None, offline: bool = False
) -> Iterator[tuple[int, VAE, Dataset]]:
    """Train a system in memory, leave no run folder, and yield a copy of its VAE after each of the epochs.

    Args:
        config: what to train.
        epochs: when to stop, in order; 0 is before the first step.
        data_dir: where to look for the data set first.
        offline: do not download.

    Yields:
        The epoch, the VAE in eval mode on the CPU, and the data.

    Raises:
        InputError: the data are not to be had, or cannot be trained on.
        TrainingError: the loss became NaN or infinite.
    """
    data, device = load_for(config, data_dir, offline), torch.device("cpu")
    with seeded(config.seed, device):
        training = Trainer(config, data, device)
        state = rng_state(device)
    for epoch in epochs:
        with seeded(config.seed, device), pyro.get_param_store().scope():
            restore_rng_state(state, device)
            while training.epoch < epoch:
                training.run_epoch()
            state = rng_state(device)
        yield epoch, copy.deepcopy(training.vae).eval(), data
