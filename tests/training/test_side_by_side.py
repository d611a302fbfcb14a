"""Runs in several processes equal those that are trained alone, and are left whole by whatever ends a process."""

from __future__ import annotations

import os
import signal
import threading
import time

import joblib
import pytest
import torch
from helpers.runs import assert_same

import pvae
from pvae.core.errors import InterruptedTrainingError, LostError
from pvae.core.terminal import Interruptions
from pvae.data.dataset import Dataset
from pvae.data.read import read
from pvae.runs.run import Run
from pvae.training import side_by_side
from pvae.training.many import fit_many

CONFIG = pvae.Config(hidden=(16,), latent_dim=3, batch_size=50, epochs=2, elbo="analytic", compile="none")
SEEDS = [CONFIG.replace(seed=seed) for seed in range(3)]


def few():
    digits = read("mnist-5k")
    return Dataset("few digits", digits.train[:130], digits.test[:40])


@pytest.fixture
def two_processes(monkeypatch):
    """Two threads for torch, so that runs of few steps are trained in two processes."""
    monkeypatch.setattr(side_by_side, "_LEAST_STEPS", 1)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.workflow
def test_a_run_in_a_process_of_its_own_is_the_run_that_is_trained_alone(two_processes, capfd, tmp_path):
    runs = fit_many(SEEDS, data=few(), out=tmp_path / "many", device="cpu", quiet=False)
    printed = capfd.readouterr()
    assert "in 2 processes" in printed.err
    for config, run in zip(SEEDS, runs, strict=True):
        assert f"{run.path.name}  epoch 2/2" in printed.out
        assert (run.config, run.sessions[-1]["threads"]) == (config, 1)
        alone = pvae.fit(config, data=few(), out=tmp_path / run.path.name, device="cpu", threads=1)
        assert_same(run.read_checkpoint().vae, alone.read_checkpoint().vae)
    more = [config.replace(epochs=3) for config in SEEDS]
    assert [run.metrics()[-1].epoch for run in fit_many(more, data=few(), out=tmp_path / "many", device="cpu")] == [
        3
    ] * 3


def new_runs(folder):
    data = few()
    return [Run(folder / f"seed-{config.seed}", config, data.record(), loaded=data) for config in SEEDS]


@pytest.mark.workflow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_process_that_ends_alone_leaves_its_runs_whole_to_go_on(number, tmp_path):
    def train(run):
        def end(*_):
            if run.config.seed == 1:
                os.kill(os.getpid(), number)

        pvae.fit(run.config, out=run.path, data=run.dataset(), device="cpu", on_epoch=end)

    runs = new_runs(tmp_path)
    with Interruptions() as interruptions:
        errors = side_by_side.side_by_side(runs, train, 2, 1, interruptions)
    assert "ended early" in str(errors[runs[1].path])
    if number == signal.SIGTERM:
        assert {*errors} == {runs[1].path}
    assert all(Run.open(run.path).is_finished() for run in runs if run.path not in errors)
    opened = [Run.open(path) for path in errors if (path / "config.json").exists()]
    assert all(run.read_checkpoint().epoch == run.metrics()[-1].epoch for run in opened)
    done = fit_many(SEEDS, data=few(), out=tmp_path, device="cpu")
    assert [run.is_finished() for run in done] == [True] * 3


@pytest.mark.workflow
def test_a_defect_in_one_run_leaves_the_others(tmp_path):
    def train(run):
        if run.config.seed == 0:
            raise ZeroDivisionError("by zero")
        pvae.fit(run.config, out=run.path, data=run.dataset(), device="cpu")

    runs = new_runs(tmp_path)
    with Interruptions() as interruptions:
        errors = side_by_side.side_by_side(runs, train, 2, 1, interruptions)
    assert {path.name: str(error) for path, error in errors.items()} == {"seed-0": "ZeroDivisionError: by zero"}
    assert Run.open(runs[2].path).is_finished(), "of the same process"


@pytest.mark.workflow
def test_a_folder_that_is_lost_ends_all_runs(tmp_path):
    def lose(run):
        if run.config.seed == 1:
            raise LostError("another run") from OSError(28, "no space")
        pvae.fit(run.config.replace(epochs=5000), out=run.path, data=run.dataset(), device="cpu")

    runs = new_runs(tmp_path)
    with pytest.raises(LostError) as caught, Interruptions() as interruptions:
        side_by_side.side_by_side(runs, lose, 2, 1, interruptions)
    assert caught.value.__cause__.strerror == "no space"
    assert not any(run.path.exists() and Run.open(run.path).is_finished() for run in runs)


def test_a_thread_that_may_start_no_processes_trains_by_itself(tmp_path):
    runs, trained = new_runs(tmp_path), []
    with Interruptions() as interruptions, joblib.parallel_config("threading"):
        joblib.Parallel(2)(
            joblib.delayed(side_by_side.side_by_side)(part, trained.append, 2, 1, interruptions)
            for part in (runs[:2], runs[2:])
        )
    assert {run.path for run in trained} == {run.path for run in runs}


@pytest.mark.workflow
def test_a_run_that_diverges_in_its_process_leaves_the_others(two_processes, capfd, tmp_path):
    configs = [CONFIG.replace(seed=seed, lr=lr) for seed, lr in ((0, 1e-3), (1, 1e30), (2, 1e-3))]
    runs = fit_many(configs, data=few(), out=tmp_path, device="cpu")
    assert [run.config.seed for run in runs] == [0, 2]
    assert "seed-1: " in capfd.readouterr().err


@pytest.mark.workflow
def test_a_signal_ends_all_processes_and_leaves_their_runs_whole(tmp_path):
    def train(run):
        pvae.fit(run.config.replace(epochs=5000), out=run.path, data=run.dataset(), device="cpu")

    runs = new_runs(tmp_path)
    with Interruptions() as interruptions:
        send = threading.Thread(target=_send_when_begun, args=(runs[1].path,))
        send.start()
        with pytest.raises(InterruptedTrainingError):
            side_by_side.side_by_side(runs, train, 2, 1, interruptions)
        send.join()
    opened = [Run.open(run.path) for run in runs[:2]]
    assert all(run.read_checkpoint().epoch == run.metrics()[-1].epoch > 0 for run in opened)
    assert not runs[2].path.exists()


def _send_when_begun(path):
    while not (path / "checkpoint.safetensors").exists():
        time.sleep(0.05)
    os.kill(os.getpid(), signal.SIGTERM)
