"""Train a configuration into a new run folder, resume a run, or train in memory."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyro
import torch

from pvae.config.build import elbo_of, start_from
from pvae.config.choices import load_for, resolved
from pvae.config.config import Config
from pvae.core.errors import InputError, InterruptedTrainingError, LostError, TrainingError, joined
from pvae.core.files import expanded, locked
from pvae.core.random_state import resolve_device, seeded
from pvae.core.terminal import Interruptions
from pvae.data.dataset import Dataset
from pvae.runs import writer
from pvae.runs.metrics import is_out_of_patience
from pvae.runs.run import CONFIG, Run
from pvae.training.callbacks import Checkpointing, EarlyStopping, Interrupt, default_callbacks
from pvae.training.parallel import World, is_lost_process, joined_processes
from pvae.training.setup import build_trainer, check_first_loss, start_near
from pvae.training.trainer import Callback, Session, Trainer
from pvae.vae import VAE

_TRAINING = threading.Lock()  # held by the one training of this process


def fit(
    config: Config | None = None,
    data: Any = None,
    *,
    vae: VAE | Callable[[Config], VAE] | None = None,
    out: str | Path | None = None,
    start: str | Path | Run | None = None,
    beta: Callable[[int], float] | None = None,
    device: str = "auto",
    callbacks: Sequence[Callback] | None = None,
) -> Run:
    """Train a system and write its run folder, as `python -m pvae.train` does.

    Pyro's parameter store, torch's random state and its number of threads are restored at the end. They belong to the
    whole process: a second training in another thread is refused, and a thread that draws random numbers meanwhile
    changes the training.

    Args:
        config: options of the training; by default the Deep Bayes system, or `images_config(data)` or
            `values_config(data)` for your own data.
        data: your own data, in place of `config.dataset`: a `pvae.Dataset`; a data frame, an array or a tensor
            (N, *shape), or a torch `Dataset`, of which a tenth are test data; or a `DataLoader` or another iterable of
            batches of x, of (x, label) or of data frames, which is written once into a file. Its order is its own.
        vae: your own VAE, which is trained in place, or a function of the configuration that returns one; the options
            of `config` that describe a VAE are then not used. Of a function with a text `place`, FILE.py:FUNCTION, the
            run keeps it, and the text of the file.
        out: the run folder, new or empty; `runs/<time>-<system>-<elbo>` by default.
        start: a run. Weights and buffers that have its names and shapes start from its own; the others, which a note
            names, start as in any training.
        beta: the weight of the rate in the loss as a function of the number of the step, from 0 on, in place of those
            options of `config`. The run notes that there is one, but cannot keep it: give it to `resume` again.
        device: "auto", "cpu", "cuda" or "cuda:N".
        callbacks: what is done beside the training; by default `default_callbacks()`, which prints nothing.

    Returns:
        The run; `run.vae()` is the trained VAE, or `run.vae(vae)` if you gave your own.

    Raises:
        InputError: (a ValueError) an argument cannot be used; nothing was written.
        TrainingError: a loss or a gradient became NaN or infinite; the last good checkpoint is in the folder.
        LostError: (a RuntimeError) the folder can no longer be written, or another process has ended.
        InterruptedTrainingError: (a KeyboardInterrupt) Ctrl-C or SIGTERM; the epochs before are saved.
    """
    _check_type("config", config, Config)
    if config is not None:
        elbo_of(config, has_own_vae=vae is not None)  # refuses what does not go together, before any data are read
    path = None
    if out is not None:
        path = writer.check_out(expanded(out, "--out"))
    config, data = resolved(config, data, has_own_vae=vae is not None)
    place = getattr(vae, "place", "")
    vae = _built(vae, config)
    if isinstance(start, (str, Path)):
        start = Run.open(start)
    if callbacks is None:
        callbacks = default_callbacks()
    with _session(config, data.is_images, device, callbacks) as session:
        run = Run(
            Path(),
            config,
            data.record(),
            has_own_vae=vae is not None,
            has_own_beta=beta is not None,
            vae_place=place,
            loaded=data,
        )
        trainer = build_trainer(config, data, session, vae, beta=beta)
        session.say_data(run)
        taken, record = _started(trainer, start, vae)
        folder = Path(session.world.broadcast(lambda: str(writer.new_folder(path, config))))
        run = dataclasses.replace(run, path=folder, start=record)
        if place:
            run.code = Path(place.rpartition(":")[0]).read_text("utf-8")
        if config.particles == 1 and config.elbo_class.is_importance_weighted:
            taken = joined(f"with --particles 1, --elbo {config.elbo} is the ELBO", taken)
        with _lock_of(run, session.world):
            _train(trainer, run, taken)
    return run


def resume(
    path: str | Path | Run,
    epochs: int | None = None,
    *,
    data: Any = None,
    vae: VAE | Callable[[Config], VAE] | None = None,
    beta: Callable[[int], float] | None = None,
    device: str | None = None,
    callbacks: Sequence[Callback] | None = None,
) -> Run:
    """Resume a run from its last checkpoint, as if it had not been interrupted.

    On the same CPU, with the same number of threads of torch, the result is that of an uninterrupted run, bit for bit.

    Args:
        path: the run folder, or the opened run.
        epochs: the last epoch; that of `config.json` by default. A `schedule` other than "constant" allows no other.
        data: the same data, if the run was trained on data given from Python.
        vae: a VAE of the same modules, or a function that returns one, if the run trains one that was built in Python.
        beta: as for `fit`, the same as before.
        device: as for `fit`, but by default the device of the last session.
        callbacks: as for `fit`.

    Returns:
        The run. A finished run is not changed, except that missing figures are drawn.

    Raises:
        InputError: the folder is not a run, its data set cannot be found or has changed, it has more epochs already, or
            other epochs would change its schedule.
        TrainingError, LostError, InterruptedTrainingError: as for `fit`.
    """
    run = path
    if not isinstance(run, Run):
        run = Run.open(run)
    if run.place != run.path:
        raise InputError(f"{path} comes with pvae and cannot be resumed: train it anew with --system {path}")
    vae = _built(vae, run.config)
    if callbacks is None:
        callbacks = default_callbacks()
    device = device or run.sessions[-1].get("device", "auto")
    with _session(run.config, run.data.is_images, device, callbacks) as session, _lock_of(run, session.world):
        if epochs is not None:
            run = to_epoch(run, epochs)
        run.check_vae(vae)
        if run.has_own_vae and vae is None:
            vae = run.vae()  # the opened run holds it
        if run.has_own_beta and beta is None:
            raise InputError(f"{run.path} was trained with beta as a function in Python: give it again, as beta=")
        if session.world.broadcast(lambda: str(run.is_finished())) == "True":
            last = f"{run.path} is finished, at epoch {run.metrics()[-1].epoch}"
            session.note(f"{last}; to train it further, give --epochs above {run.config.epochs}")
            return run
        data = run.dataset(data)
        checkpoint = run.read_checkpoint()
        engine = run.sessions[-1].get("engine")
        trainer = build_trainer(run.config, data, session, vae, beta=beta, engine=engine)
        session.say_data(run)
        trainer.restore(checkpoint, run.metrics())
        _train(trainer, run)
    return run


def train_in_memory(
    config: Config, epochs: Sequence[int], data: Dataset | None = None
) -> list[tuple[int, VAE, Dataset]]:
    """Train a system in memory, without a run folder, and return a copy of its VAE after each of the given epochs.

    Args:
        config: options of the training.
        epochs: the epochs, in rising order; 0 is before the first step.
        data: the data, in place of those that `config` names.

    Returns:
        For each of them the epoch, the VAE in eval mode on the CPU, and the data.

    Raises:
        InputError: the data set cannot be found, or cannot be trained on.
        TrainingError: the loss became NaN or infinite.
    """
    if data is None:
        data = load_for(config)
    trained = []
    with _session(config, data.is_images, "cpu") as session:
        trainer = build_trainer(config, data, session)
        start_near(trainer)
        for epoch in epochs:
            trainer.train(epoch)
            trained.append((epoch, copy.deepcopy(trainer.vae).eval(), data))
    return trained


def to_epoch(run: Run, epochs: int) -> Run:
    """Return the run, which is to be trained to another epoch than was planned.

    Raises:
        InputError: the run cannot be trained to that epoch.
    """
    planned = run.config
    path = run.path
    if epochs == planned.epochs:
        return run
    if planned.schedule != "constant":
        raise InputError(
            f"--epochs {epochs} would change the --schedule {planned.schedule} of {path}, which runs over its "
            f"{planned.epochs} epochs: start a new run"
        )
    run = dataclasses.replace(run, config=planned.replace(epochs=epochs))
    done = run.read_checkpoint().epoch
    if epochs > planned.epochs and is_out_of_patience(run.metrics(), planned.patience):
        raise InputError(
            f"{path} stopped at epoch {done} by --patience {planned.patience}: start a new run with a larger --patience"
        )
    if done > epochs:
        raise InputError(f"{path} is at epoch {done}: give --epochs above {done} to train it further")
    return run


def _check_type(name: str, value: object, wanted: type) -> None:
    """Refuse an argument that is not of its type; None is an argument that was left out."""
    if value is not None and not isinstance(value, wanted):
        raise InputError(f"{name} must be a pvae.{wanted.__name__}, and is of type {type(value).__name__}")


def _built(vae: Any, config: Config) -> VAE | None:
    """Return your own VAE, which a function may build."""
    if callable(vae) and not isinstance(vae, torch.nn.Module):
        with seeded(config.seed):
            vae = vae(config)
    _check_type("vae", vae, VAE)
    return vae


def _started(trainer: Trainer, parent: Run | None, vae: VAE | None) -> tuple[str, dict[str, str]]:
    """Let a training start from the weights of another run, or at a model that is known exactly; check its first loss.

    Return a note on that run, and its record.
    """
    taken = ""
    record = dict[str, str]()
    if parent is not None:
        weights = parent.best_checkpoint()
        record = {"run": parent.identity, "path": str(parent.path), "at": f"epoch {weights.epoch}"}
        try:
            taken = start_from(trainer.vae, weights.vae, parent.path)
        except InputError:
            if vae is None:  # the run may have a VAE that is to be given again
                parent.check_vae(None)
            raise
    elif vae is None:
        start_near(trainer)
    check_first_loss(trainer)
    if trainer.config.initialization == "exact":
        trainer.evaluate_start()
    return taken, record


@contextlib.contextmanager
def _session(config: Config, is_images: bool, device: str, callbacks: Sequence[Callback] = ()) -> Iterator[Session]:
    """Train inside this block, and restore torch and Pyro.

    Raises:
        InputError: another training runs in this process, which has one parameter store and one random state.
    """
    if not _TRAINING.acquire(blocking=False):
        raise InputError("another training runs in this process: wait for its end, or train in a new process")
    num_threads = torch.get_num_threads()

    try:
        with joined_processes(device) as world:
            where = resolve_device(device)
            if not is_images:  # small networks, whose threads would wait for each other
                torch.set_num_threads(1)
            with seeded(config.seed, where), pyro.get_param_store().scope():
                yield Session(where, world, callbacks)
    finally:
        torch.set_num_threads(num_threads)
        _TRAINING.release()


@contextlib.contextmanager
def _lock_of(run: Run, world: World) -> Iterator[None]:
    """Hold the lock of a run folder, in the first of several processes.

    Raises:
        InputError: another process trains the run, or has trained it since it was opened.
    """
    with contextlib.ExitStack() as stack:
        if world.is_first:
            stack.enter_context(locked(run.path))
        if not run.sessions:
            world.broadcast(lambda: str(writer.check_out(run.path)))
        elif Run.open(run.path).sessions != run.sessions:
            raise InputError(f"{run.path} was trained by another process since it was opened: give the command again")
        yield


def _train(trainer: Trainer, run: Run, note: str = "") -> None:
    """Train a run to its last epoch, with callbacks that write its folder, in the first of several processes.

    The folder of a new run is removed if the training could not start.

    Args:
        trainer: at the state from which to continue.
        run: the run folder.
        note: printed to standard error, whatever the callbacks; or "".

    Raises:
        TrainingError, LostError, InterruptedTrainingError: with what is saved, and how to resume it.
    """
    world = trainer.world
    callbacks = trainer.session.callbacks
    if run.dataset().note:  # what the data lost as they were read
        trainer.session.note(run.dataset().note)
    is_new = not run.sessions
    saved = Checkpointing()
    if not is_new:
        saved.epoch = trainer.epoch
    if not world.is_first:
        callbacks = ()
    elif note:
        print(f"note: {note}", file=sys.stderr)
    # Interruptions are outermost: a signal must not interrupt the explanation of an error.
    with Interruptions() as interruptions, contextlib.ExitStack() as closing:
        every = [saved, *callbacks, EarlyStopping(), Interrupt(interruptions)]
        for callback in every:
            closing.callback(callback.close)
        try:
            trainer.train(run.config.epochs, every, run)
        except (KeyboardInterrupt, OSError, RuntimeError, InputError) as error:
            # After an InputError, a step cannot be recorded or computed.
            has_started = saved.epoch is not None and not (isinstance(error, InputError) and trainer.epoch == 0)
            if is_new and not has_started and world.is_first:
                writer.discard(run.path)
                run.sessions.clear()
            explained = _explained(error, trainer, saved.epoch, interruptions.status)
            if explained is None:
                raise
            raise explained from error


def _explained(error: BaseException, trainer: Trainer, saved: int | None, status: int) -> BaseException | None:
    """Return an error that says what was saved and how to resume, or None for an error of the program.

    Args:
        error: ended the training.
        trainer: at the state of that moment.
        saved: the epoch of the last checkpoint in the run folder; None if there is none.
        status: the exit status of an interrupted training.
    """
    run = trainer.run
    if saved is None:
        kept = advice = "nothing was saved: start it again"
    elif not (run.path / CONFIG).exists():
        kept = advice = f"{run.path} was removed, and the training with it: start it again"
    else:
        kept = f"{run.path} contains the training up to epoch {saved}"
        advice = f"{kept}; go on with: {run.how_to_resume}"
    if isinstance(error, TrainingError):
        return TrainingError(f"{error}; {kept}")
    if isinstance(error, KeyboardInterrupt):
        where = ""
        if saved is not None and trainer.step > saved * trainer.num_steps:
            where = f" in epoch {saved + 1}, which is lost"
        return InterruptedTrainingError(f"interrupted{where}; {advice}", getattr(error, "status", status))
    if isinstance(error, OSError):
        reason = error.strerror or error
        if saved is None:
            return InputError(f"{run.path} cannot be written ({reason}): name another folder with --out")
        return LostError(f"{run.path} cannot be written any more ({reason}); {advice}")
    if trainer.world.size > 1 and is_lost_process(error):
        return LostError(f"another process of this training has ended, and so does this one; {advice}")
    return None
