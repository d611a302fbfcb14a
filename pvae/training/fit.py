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
from tqdm import tqdm

from pvae.compile.inductor import missing
from pvae.config.build import elbo_of, start_from
from pvae.config.choices import images_config, load_for, reading_of, values_config
from pvae.config.config import Config
from pvae.config.presets import SYSTEMS
from pvae.core.errors import InputError, InterruptedTrainingError, LostError, TrainingError
from pvae.core.files import expanded, locked
from pvae.core.random_state import resolve_device, seeded
from pvae.core.terminal import Interruptions, print_line
from pvae.data.dataset import Dataset
from pvae.data.read import read
from pvae.runs import writer
from pvae.runs.metrics import is_out_of_patience
from pvae.runs.record import CONFIG
from pvae.runs.run import Run
from pvae.training.callbacks import (
    Checkpointing,
    Console,
    EarlyStopping,
    Figures,
    History,
    Interrupt,
    OnEachRow,
    OnEpoch,
    ProgressBar,
    TensorBoard,
)
from pvae.training.parallel import ALONE, World, is_lost_process, joined
from pvae.training.setup import build_trainer, check_first_loss
from pvae.training.trainer import Callback, Trainer
from pvae.vae import VAE

__all__ = ["check_types", "chosen_before", "fit", "note_of", "one_at_a_time", "resume", "to_epoch", "train_in_memory"]

_TRAINING = threading.Lock()  # held by the one training of this process
_TYPES = {"config": Config, "vae": VAE}


def fit(
    config: Config | None = None,
    *,
    vae: VAE | None = None,
    data: Any = None,
    data_dir: str | Path | None = None,
    offline: bool = False,
    device: str = "auto",
    threads: int | None = None,
    out: str | Path | None = None,
    quiet: bool = True,
    on_epoch: OnEpoch = lambda run, row: None,
    start: str | Path | Run | None = None,
    code: str = "",
    beta: Callable[[int], float] | None = None,
    has_figures: bool = True,
) -> Run:
    """Train a system and write its run folder, as `python -m pvae.train` does.

    Pyro's parameter store, torch's random state and its number of threads are restored at the end. They belong to the
    whole process: a second training in another thread is refused, and a thread that draws random numbers meanwhile
    changes the training.

    Args:
        config: options of the training; by default the Deep Bayes system, or `images_config(data)` or
            `values_config(data)` for your own data.
        vae: your own VAE, which is trained in place; the options of `config` that describe a VAE are then not used.
        data: your own data, in place of `config.dataset`: a `pvae.Dataset`; a data frame, an array or a tensor
            (N, *shape), or a torch `Dataset`, of which a tenth are test data; or a `DataLoader` or another iterable of
            batches of x, of (x, label) or of data frames, which is read once, and again in each epoch, and is never
            held in memory. The order of its rows is its own; that of a `DataLoader` without a generator depends on
            `config.seed`.
        data_dir: searched first for the data set; for "folder:PATH", where those images are now if PATH is gone.
        offline: do not download.
        device: "auto", "cpu", "cuda" or "cuda:N".
        threads: number of threads; by default the fastest in the first steps, which depends on what else the machine
            computes, and which may change last digits.
        out: the run folder, new or empty; `runs/<time>-<system>-<elbo>` by default.
        quiet: print nothing.
        on_epoch: called as on_epoch(run, row) for each row of `run.metrics()` when it was written, to log it elsewhere:
            `lambda run, row: tracker.log({f"{row.split}/elbo": row.elbo}, step=row.epoch)`. Of several processes
            only the first calls it.
        start: a run. Weights and buffers that have its names and shapes start from its own; the others, which a note
            names, start as in any training.
        code: FILE.py:FUNCTION, which built your own VAE; the run keeps it, and the text of the file.
        beta: the weight of the rate in the loss as a function of the number of the step, from 0 on, in place of those
            options of `config`. The run notes that there is one, but cannot keep it: give it to `resume` again.
        has_figures: draw the figures of the run at its end.

    Returns:
        The run; `run.vae()` is the trained VAE, or `run.vae(vae)` if you gave your own.

    Raises:
        InputError: (a ValueError) an argument cannot be used; nothing was written.
        TrainingError: a loss or a gradient became NaN or infinite; the last good checkpoint is in the folder.
        LostError: (a RuntimeError) the folder can no longer be written, or another process has ended.
        InterruptedTrainingError: (a KeyboardInterrupt) Ctrl-C or SIGTERM; the epochs before are saved.
    """
    check_types(config=config, vae=vae)
    if config is not None:
        elbo_of(config)  # refuses what does not go together, before any data are read
    path = expanded(out, "--out") if out is not None else None
    if data is not None:
        if path is not None:
            writer.check_out(path)  # before what may take long
        data = read(data, quiet=quiet, **(reading_of(config) if config is not None else {}))
    if config is None:
        configure = values_config if data is not None and not data.is_images else images_config
        config = configure(data) if data is not None and vae is None else Config()
    if vae is not None and config.system in SYSTEMS:
        config = config.replace(system="own-vae", source="")
    parent = start if start is None or isinstance(start, Run) else Run.open(start)
    with one_at_a_time(), joined(device) as world:
        if path is not None:
            world.broadcast(lambda: str(writer.check_out(path)))
        where = resolve_device(device)
        data = data.with_valid(config.valid) if data is not None else load_for(config, data_dir, offline)
        with seeded(config.seed, where), pyro.get_param_store().scope():
            options: dict[str, Any] = {"threads": threads, "note": note_of(quiet, world), "beta": beta}
            options["has_weights"] = parent is not None
            trainer = build_trainer(config, data, where, world, vae, **options)
            taken, started_from = _started(trainer, parent, vae) if parent is not None else ("", {})
            check_first_loss(trainer)
            if config.initialization == "exact":
                trainer.evaluate_start()
            folder = Path(world.broadcast(lambda: str(writer.new_folder(path, config))))
            run = Run(
                folder,
                config,
                data.record(),
                has_own_vae=vae is not None,
                has_own_beta=beta is not None,
                start=started_from,
                vae_place=code,
                code=Path(code.rpartition(":")[0]).read_text("utf-8") if code else "",
                loaded=data,
            )
            with lock_of(run, world):
                same = config.particles == 1 and config.elbo_class.is_importance_weighted
                note = f"with --particles 1, --elbo {config.elbo} is the ELBO" if same else ""
                _train(trainer, run, (note, taken, data.note), quiet, on_epoch, has_figures)
    return run


def resume(
    path: str | Path | Run,
    epochs: int | None = None,
    *,
    vae: VAE | None = None,
    data: Any = None,
    data_dir: str | Path | None = None,
    offline: bool = False,
    device: str | None = None,
    threads: int | None = None,
    quiet: bool = True,
    on_epoch: OnEpoch = lambda run, row: None,
    beta: Callable[[int], float] | None = None,
) -> Run:
    """Resume a run from its last checkpoint, as if it had not been interrupted.

    On the CPU the result is, bit for bit, that of an uninterrupted run which has computed with the same engine and
    number of threads: give `threads`, and a `compile` other than "auto", where that matters. Otherwise the first steps
    choose them by the clock, and last digits may differ.

    Args:
        path: the run folder, or the opened run.
        epochs: the last epoch; that of `config.json` by default. A `schedule` other than "constant" allows no other.
        vae: a VAE of the same modules, if the run trains one that was built in Python.
        data: the same data, if the run was trained on data given from Python. Of an iterable of batches the result is
            that of an uninterrupted run if it yields in each epoch what it would have yielded then.
        data_dir: as for `fit`, but by default the folder where the data set was found before.
        offline: as for `fit`.
        device: as for `fit`, but by default the device of the last session.
        threads: as for `fit`, but by default the number of the last session; so is the engine of `compile` "auto".
        quiet: as for `fit`.
        on_epoch: as for `fit`.
        beta: as for `fit`, the same as before.

    Returns:
        The run. A finished run is not changed, except that missing figures are drawn.

    Raises:
        InputError: the folder is not a run, its data set cannot be found or has changed, it has more epochs already, or
            other epochs would change its schedule.
        TrainingError, LostError, InterruptedTrainingError: as for `fit`.
    """
    check_types(vae=vae)
    run = path if isinstance(path, Run) else Run.open(path)
    if run.place != run.path:
        raise InputError(f"{path} comes with pvae and cannot be resumed: train it anew with --system {path}")
    device = device or str(run.sessions[-1].get("device", "auto"))
    with one_at_a_time(), joined(device) as world, lock_of(run, world):
        run = run if epochs is None else to_epoch(run, epochs)
        run.check_vae(vae)
        vae = run.vae() if run.has_own_vae and vae is None else vae  # the opened run may hold its VAE
        if run.has_own_beta and beta is None:
            raise InputError(f"{run.path} was trained with beta as a function in Python: give it again, as beta=")
        if world.broadcast(lambda: "yes" if run.is_finished() else ""):
            if world.is_first and not quiet:
                last = f"{run.path} is finished, at epoch {run.metrics()[-1].epoch}"
                print_line(f"{last}; to train it further, give --epochs above {run.config.epochs}")
            return run
        where = resolve_device(device)
        data = run.dataset(data, data_dir, offline)
        with seeded(run.config.seed, where), pyro.get_param_store().scope():
            checkpoint, options = run.read_checkpoint(), chosen_before(run, where, world)
            options |= {"threads": threads} if threads else {}
            options |= {"note": note_of(quiet, world), "beta": beta, "steps_done": checkpoint.step}
            options["has_weights"] = True
            trainer = build_trainer(run.config, data, where, world, vae, **options)
            trainer.restore(checkpoint, run.metrics())
            _train(trainer, run, (data.note,), quiet, on_epoch)
    return run


def chosen_before(run: Run, device: torch.device, world: World) -> dict[str, Any]:
    """Return the engine and the number of threads that the first steps of an earlier session have chosen, if any."""
    chosen: dict[str, Any] = {}
    for session in run.sessions:
        if "engine" not in session:  # it ended before its choice
            continue
        if run.config.compile == "auto" and (
            session["engine"] != "inductor" or (device.type == "cpu" and not missing())
        ):
            chosen["engine"] = session["engine"]
        if session["processes"] == world.size == 1 and session["threads"] <= torch.get_num_threads():
            chosen["threads"] = session["threads"]
    return chosen


def to_epoch(run: Run, epochs: int) -> Run:
    """Return the run, which is to be trained to another epoch than was planned.

    Raises:
        InputError: the run cannot be trained to that epoch.
    """
    planned, path = run.config, run.path
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


def _started(trainer: Trainer, parent: Run, vae: VAE | None) -> tuple[str, dict[str, str]]:
    """Let a training start from the weights of another run; return a note on it, and the record of that run."""
    weights = parent.best_checkpoint()
    try:
        taken = start_from(trainer.vae, weights.vae, parent.path)
    except InputError:
        if vae is None:  # the run may have a VAE that is to be given again
            parent.check_vae(None)
        raise
    return taken, {"run": parent.identity, "path": str(parent.path), "at": f"epoch {weights.epoch}"}


@contextlib.contextmanager
def lock_of(run: Run, world: World = ALONE) -> Iterator[None]:
    """Hold the lock of a run folder, in the first of several processes.

    Raises:
        InputError: another process trains the run, or has trained it since it was opened.
    """
    with locked(run.path) if world.is_first else contextlib.nullcontext():
        if not run.sessions:
            world.broadcast(lambda: str(writer.check_out(run.path)))
        elif Run.open(run.path).sessions != run.sessions:
            raise InputError(f"{run.path} was trained by another process since it was opened: give the command again")
        yield


@contextlib.contextmanager
def one_at_a_time() -> Iterator[None]:
    """Refuse a second training in this process, which has one parameter store and one random state."""
    if not _TRAINING.acquire(blocking=False):
        raise InputError("another training runs in this process: wait for its end, or train in a new process")
    num_threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)
        _TRAINING.release()


def note_of(quiet: bool, world: World) -> Callable[[str], object]:
    """Return a function that prints a note on how steps are computed, beside a progress bar."""
    if quiet or not world.is_first:
        return lambda line: None
    return lambda line: tqdm.write(f"note: {line}", file=sys.stderr)


def check_types(**arguments: object) -> None:
    """Refuse arguments that are not of their type; None is an argument that was left out."""
    for name, value in arguments.items():
        if not isinstance(value, (_TYPES[name], type(None))):
            wanted = f"pvae.{_TYPES[name].__name__}"
            raise InputError(f"{name} must be a {wanted}, and is of type {type(value).__name__}")


def train_in_memory(
    config: Config,
    epochs: Sequence[int],
    data_dir: str | Path | None = None,
    offline: bool = False,
    data: Dataset | None = None,
) -> list[tuple[int, VAE, Dataset]]:
    """Train a system in memory, without a run folder, and return a copy of its VAE after each of the given epochs.

    Args:
        config: options of the training.
        epochs: the epochs, in rising order; 0 is before the first step.
        data_dir: searched first for the data set.
        offline: do not download.
        data: the data, in place of those that `config` names.

    Returns:
        For each of them the epoch, the VAE in eval mode on the CPU, and the data.

    Raises:
        InputError: the data set cannot be found, or cannot be trained on.
        TrainingError: the loss became NaN or infinite.
    """
    data, device = data if data is not None else load_for(config, data_dir, offline), torch.device("cpu")
    found = []
    with one_at_a_time(), seeded(config.seed, device), pyro.get_param_store().scope():
        trainer = build_trainer(config, data, device, threads=torch.get_num_threads())
        for epoch in epochs:
            trainer.train(epoch)
            found.append((epoch, copy.deepcopy(trainer.vae).eval(), data))
    return found


def _train(
    trainer: Trainer, run: Run, notes: Sequence[str], quiet: bool, on_epoch: OnEpoch, has_figures: bool = True
) -> None:
    """Train a run to its last epoch, write its folder and draw its figures.

    Args:
        trainer: at the state from which to continue.
        run: the run folder.
        notes: printed to standard error, even if quiet; empty ones are left out.
        quiet: print nothing else.
        on_epoch: as for `fit`.
        has_figures: draw them.
    """
    epochs = run.config.epochs
    if trainer.world.is_first and any(notes):
        print(f"note: {'; '.join(filter(None, notes))}", file=sys.stderr)
    # Interruptions are outermost: a signal must not interrupt the explanation of an error.
    with Interruptions() as interruptions, contextlib.closing(ProgressBar(epochs)) as bar:
        printed = [] if quiet else [Console(run), bar]
        with writing_folder(trainer, run, on_epoch, interruptions, printed, has_figures) as callbacks:
            trainer.train(epochs, callbacks)


@contextlib.contextmanager
def writing_folder(
    trainer: Trainer,
    run: Run,
    on_epoch: OnEpoch,
    interruptions: Interruptions,
    printed: Sequence[Callback] = (),
    has_figures: bool = True,
    has_steps: bool = True,
) -> Iterator[list[Callback]]:
    """Yield the callbacks that write the folder of a run, in the first of several processes; explain an error.

    The folder of a new run is removed if the training could not start.

    Args:
        trainer: at the state from which to continue.
        run: the run folder.
        on_epoch: as for `fit`.
        interruptions: signals, which end the training after a step.
        printed: further callbacks.
        has_figures: draw the figures at the end.
        has_steps: as for `History`.

    Raises:
        TrainingError, LostError, InterruptedTrainingError: in place of the error that was raised in the block, with
            what is saved, and how to resume it.
    """
    is_new, world = not run.sessions, trainer.world
    saved = Checkpointing(run, epoch=None if is_new else trainer.epoch)
    callbacks: list[Callback] = [saved, EarlyStopping(run.config.patience), Interrupt(interruptions, world)]
    with contextlib.closing(TensorBoard(run)) as board:
        if world.is_first:
            figures = [Figures(run, interruptions)] * has_figures
            callbacks[1:1] = [History(run, has_steps), board, *printed, OnEachRow(run, on_epoch), *figures]
        try:
            yield callbacks
        except (KeyboardInterrupt, OSError, RuntimeError, InputError) as error:
            # After an InputError, a step cannot be recorded or computed.
            has_started = saved.epoch is not None and not (isinstance(error, InputError) and trainer.epoch == 0)
            if is_new and not has_started and world.is_first:
                writer.discard(run.path)
                run.sessions.clear()
            explained = _explained(error, trainer, run, saved.epoch, interruptions.status)
            if explained is None:
                raise
            raise explained from error


def _explained(
    error: BaseException, trainer: Trainer, run: Run, saved: int | None, status: int
) -> BaseException | None:
    """Return an error that says what was saved and how to resume, or None for an error of the program.

    Args:
        error: ended the training.
        trainer: at the state of that moment.
        run: the run folder.
        saved: the epoch of the last checkpoint in it; None if there is none.
        status: the exit status of an interrupted training.
    """
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
        is_within = trainer.step > (saved or 0) * trainer.num_steps
        where = f" in epoch {saved + 1}, which is lost" if saved is not None and is_within else ""
        return InterruptedTrainingError(f"interrupted{where}; {advice}", status)
    if isinstance(error, OSError):
        reason = error.strerror or error
        if saved is None:
            return InputError(f"{run.path} cannot be written ({reason}): name another folder with --out")
        return LostError(f"{run.path} cannot be written any more ({reason}); {advice}")
    if trainer.world.size > 1 and is_lost_process(error):
        return LostError(f"another process of this training has ended, and so does this one; {advice}")
    return None
