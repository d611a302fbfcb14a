"""Train runs that differ in seed, beta, free bits or learning rate, several at once on a CPU."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from pvae.compile.compiled_svi import Done
from pvae.config.build import elbo_of
from pvae.config.choices import load_for, reading_of, split_for
from pvae.config.config import OPTIONS, Config
from pvae.core.errors import InputError, InterruptedTrainingError, LostError, TrainingError, listed
from pvae.core.files import expanded
from pvae.core.random_state import resolve_device
from pvae.core.terminal import Interruptions, is_torchrun
from pvae.data.dataset import Dataset
from pvae.data.read import read
from pvae.runs import writer
from pvae.runs.run import CONFIG, Run
from pvae.training.callbacks import default_callbacks
from pvae.training.fit import fit, resume, to_epoch
from pvae.training.trainer import Callback, Trainer
from pvae.vae import VAE

_MAY_DIFFER = ("seed", "beta", "free_bits", "lr")
_LEAST_STEPS = 2000  # of all runs: fewer do not repay the seconds in which a process imports torch
_EARLY = "a process has ended early: the same command again goes on from what is saved"


def fit_many(
    configs: Sequence[Config],
    data: Any = None,
    *,
    vae: Callable[[Config], VAE] | None = None,
    out: str | Path | None = None,
    start: str | Path | Run | None = None,
    device: str = "auto",
    callbacks: Sequence[Callback] | None = None,
) -> list[Run]:
    """Train configurations that differ in seed, beta, free bits or learning rate, and write a run folder for each.

    On a CPU they are trained in several processes, with one thread each, unless all of them take seconds. A run equals
    the one that `fit` trains alone with one thread. A run whose loss becomes NaN ends alone; early stopping is each
    run's own. The same call again goes on with runs that were interrupted, and leaves those that are finished.

        runs = pvae.fit_many([pvae.Config(latent_dim=2, seed=seed) for seed in range(8)], data)
        elbos = torch.tensor([run.test_metrics().elbo for run in runs])  # elbos.mean(), elbos.std()

    Args:
        configs: the configurations.
        data: as for `fit`, but none that is read in batches.
        vae: a function that returns your own VAE of a configuration, as for `fit`.
        out: the folder of the run folders; by default `runs/<system>-<elbo>-seeds`, or `runs/<system>-<elbo>-sweep` if
            two have the same seed. Those are seed-0, seed-1 and so on, or beta-4-seed-0 if beta differs.
        start: as for `fit`.
        device: as for `fit`; on a GPU runs are trained one after the other.
        callbacks: as for `fit`; each process has copies of its own.

    Returns:
        The runs that were trained to their end, in the order of their configurations. Why another one was not is
        printed to standard error.

    Raises:
        InputError: (a ValueError) an argument cannot be used, such as configurations that differ in another option.
        TrainingError: no run could be trained to its end, and why the first one could not; or a process was killed.
        LostError: (a RuntimeError) a folder can no longer be written.
        InterruptedTrainingError: (a KeyboardInterrupt) Ctrl-C or SIGTERM; the epochs before are saved.
    """
    if not configs:
        raise InputError("there are no configurations: give one or more")
    if is_torchrun():
        raise InputError("many runs need no torchrun: run it without")
    for config in configs:
        elbo_of(config, has_own_vae=vae is not None)  # refuses what does not go together
    if data is None:
        data = load_for(configs[0])
    data = split_for(configs[0], read(data, **reading_of(configs[0])))
    if data.is_in_parts:
        what = f"{data.name} are read in parts, as iterables, data frames of 100,000 rows and large Parquet files are"
        raise InputError(f"{what}, and many runs need a pvae.Dataset in memory: train one at a time")
    runs = _runs(configs, out, data, vae)
    left = [run for run in runs if not (run.sessions and run.is_finished())]
    train = functools.partial(_train, vae=vae, start=start, device=device, callbacks=callbacks)
    errors = dict[Path, Exception]()
    with Interruptions(at_once=True), _explained(runs[0].path.parent):
        for run, error in zip(left, _in_processes(train, left, _num_processes(left, resolve_device(device)))):
            if error is not None:
                errors[run.path] = error
    if len(errors) == len(runs):
        raise errors[runs[0].path]
    for path, error in errors.items():
        print(f"{path.name}: {error}", file=sys.stderr)
    return [Run.open(run.path) for run in runs if run.path not in errors]


def _runs(configs: Sequence[Config], out: str | Path | None, data: Dataset, vae: object) -> list[Run]:
    """Return the run of each configuration with its data, new or as it was interrupted.

    Raises:
        InputError: a folder has another run, or other data.
    """
    if out is not None:
        folder = expanded(out, "--out")
    else:
        kind = "seeds"
        if len({config.seed for config in configs}) < len(configs):
            kind = "sweep"
        folder = Path("runs") / f"{configs[0].system}-{configs[0].elbo}-{kind}"
    runs = []
    for name, config in zip(_names(configs), configs):
        path = folder / name
        if (path / CONFIG).exists():
            run = _opened(path, config, vae)
            run.dataset(data)
        else:
            run = Run(writer.check_out(path), config, data.record(), loaded=data)
        runs.append(run)
    return runs


def _names(configs: Sequence[Config]) -> list[str]:
    """Return the names of the run folders, from what differs.

    Raises:
        InputError: two are the same, or they differ in an option in which they may not.
    """
    options = [option.name for option in fields(Config)]
    differing = [name for name in options if len({getattr(config, name) for config in configs}) > 1]
    refused = [OPTIONS[name].flag for name in differing if name not in _MAY_DIFFER]
    if refused:
        may = listed([OPTIONS[name].flag for name in _MAY_DIFFER])
        raise InputError(f"many runs may differ in {may}, not in {listed(refused)}")
    names = []
    for config in configs:
        parts = [
            f"{OPTIONS[name].flag[2:]}-{getattr(config, name)!r}".removesuffix(".0")
            for name in differing
            if name != "seed"
        ]
        names.append("-".join([*parts, f"seed-{config.seed}"]))
    if len({*names}) < len(names):
        raise InputError("two configurations are the same: give each once")
    return names


def _opened(path: Path, config: Config, vae: object) -> Run:
    """Return the run in a folder, to be trained to the epochs of a configuration, which must be its own otherwise."""
    run = Run.open(path)
    if run.has_own_beta:
        raise InputError(
            f"{path} was trained with beta as a function in Python: resume it by pvae.resume, or give another --out"
        )
    if vae is None:
        run.check_vae(None)
    run.check_options(vars(config))
    return to_epoch(run, config.epochs)


def _num_processes(runs: Sequence[Run], device: torch.device) -> int:
    """Return how many processes train the runs: 1 on a GPU, under Windows, and where all is done in seconds."""
    if not runs or device.type != "cpu" or os.name != "posix":
        return 1
    config = runs[0].config
    if len(runs) * config.epochs * len(runs[0].dataset().train) < _LEAST_STEPS * config.batch_size:
        return 1
    return min(torch.get_num_threads(), len(runs))


def _in_processes(
    train: Callable[[Run], Exception | None], runs: Sequence[Run], processes: int
) -> Iterable[Exception | None]:
    """Train runs, each in a process that joblib starts if there are several, and return why those that did ended early.

    Where one process is killed, joblib ends the others too; an exception here ends them all. The runs are then left as
    they were saved.

    Raises:
        TrainingError: a process was killed.
    """
    from joblib import Parallel, delayed, parallel_config
    from joblib.externals.loky import get_reusable_executor

    if processes == 1:
        return map(train, runs)
    try:
        with parallel_config("loky", inner_max_num_threads=1):
            each = Parallel(processes, batch_size=1, pre_dispatch="n_jobs")
        return each(delayed(train)(run, parent=os.getpid()) for run in runs)
    except BrokenProcessPool:
        raise TrainingError(_EARLY) from None
    finally:
        get_reusable_executor().shutdown(wait=True, kill_workers=True)


def _train(
    run: Run, parent: int | None = None, *, callbacks: Sequence[Callback] | None, **given: Any
) -> Exception | None:
    """Train a run to its end, from its start or from where it was interrupted, and return why it ended early, if so.

    Args:
        run: the run, with its data.
        parent: the process that started this one; the training ends with it.
        callbacks: as for `fit`.
        given: further arguments of `fit`.
    """
    if callbacks is None:
        callbacks = default_callbacks()
    if parent is not None:
        callbacks = [*callbacks, _EndsWith(parent)]
    try:
        if run.sessions:
            del given["start"]
            resume(run, run.config.epochs, callbacks=callbacks, **given)
        else:
            fit(run.config, run.dataset(), out=run.path, callbacks=callbacks, **given)
    except LostError as error:  # without its cause, which pickle loses
        raise LostError(getattr(error.__cause__, "strerror", None) or str(error)) from error
    except TrainingError as error:
        return TrainingError(str(error))  # not of a class with more arguments, which pickle loses
    except InputError as error:
        return InputError(str(error))
    except InterruptedTrainingError:
        if parent is None:
            raise
        return TrainingError(_EARLY)
    return None


@dataclass
class _EndsWith(Callback):
    """Ends this process, after some steps, when the one that started it is gone."""

    parent: int

    def on_steps_end(self, trainer: Trainer, done: Done | None) -> None:
        """End this process, whose run is left as it was saved."""
        if os.getppid() != self.parent:
            os._exit(1)


@contextlib.contextmanager
def _explained(folder: Path) -> Iterator[None]:
    """Say how to go on with all runs of a folder, in place of how to resume the one in which an error was raised."""
    try:
        yield
    except (InterruptedTrainingError, LostError) as error:
        again = f"the same command again goes on from what is saved in {folder}"
        if isinstance(error, InterruptedTrainingError):
            raise InterruptedTrainingError(f"interrupted; {again}", error.status) from error
        raise LostError(f"{folder} cannot be written any more ({error}); {again}") from error
