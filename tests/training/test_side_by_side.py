"""Runs in several processes equal those that are trained alone; what ends one process leaves the others."""

from __future__ import annotations

import signal

import pytest
import torch
from helpers.runs import assert_same

import pvae
from pvae.core.errors import InterruptedTrainingError, LostError, TrainingError
from pvae.core.terminal import Interruptions
from pvae.data.dataset import Dataset
from pvae.data.sources import load_dataset
from pvae.runs.run import Run
from pvae.training import side_by_side
from pvae.training.many import fit_many

CONFIG = pvae.Config(hidden=(16,), latent_dim=3, batch_size=50, epochs=2, elbo="analytic", compile="none")
SEEDS = [CONFIG.replace(seed=seed) for seed in range(3)]


def few():
    digits = load_dataset("mnist-5k")
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


@pytest.mark.workflow
def test_a_process_that_is_interrupted_alone_has_not_trained_its_runs(two_processes, monkeypatch, tmp_path):
    work = "signal.setitimer(signal.ITIMER_REAL, 0.01)"  # SIGALRM comes in the first steps, after the import
    handler = "signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGTERM))"
    monkeypatch.setattr(
        side_by_side, "_WORK", side_by_side._WORK.replace("work(", f"import os, signal; {handler}; {work}; work(")
    )
    with pytest.raises(TrainingError, match="ended early"):
        fit_many([one.replace(epochs=500) for one in SEEDS], data=few(), out=tmp_path, device="cpu")


@pytest.mark.workflow
def test_a_folder_that_is_lost_ends_all_runs(two_processes, monkeypatch, tmp_path):
    lose = """import pvae.training.side_by_side as module, pvae.core.errors as errors
def lose(*_): raise errors.LostError("another run") from OSError(28, "no space")
module.train_run = lose"""
    monkeypatch.setattr(side_by_side, "_WORK", f"{side_by_side._WORK.replace('; work(', f'; exec({lose!r}); work(')}")
    with pytest.raises(LostError, match="no space"):
        fit_many(SEEDS, data=few(), out=tmp_path, device="cpu")


@pytest.mark.workflow
def test_a_run_that_diverges_in_its_process_leaves_the_others(two_processes, capfd, tmp_path):
    configs = [CONFIG.replace(seed=seed, lr=lr) for seed, lr in ((0, 1e-3), (1, 1e30), (2, 1e-3))]
    runs = fit_many(configs, data=few(), out=tmp_path, device="cpu")
    assert [run.config.seed for run in runs] == [0, 2]
    assert "seed-1: " in capfd.readouterr().err


def test_the_end_of_a_process_is_told(two_processes, monkeypatch, tmp_path):
    monkeypatch.setattr(side_by_side, "_WORK", "import os; os.kill(os.getpid(), 9)")
    with pytest.raises(TrainingError, match="-9"):
        fit_many(SEEDS, data=few(), out=tmp_path, device="cpu")


def test_a_signal_is_passed_on(two_processes, tmp_path):
    data = few()
    runs = [Run(tmp_path / str(config.seed), config, data.record(), loaded=data) for config in SEEDS]
    with Interruptions() as interruptions:
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(InterruptedTrainingError):
            side_by_side.side_by_side(runs, {"threads": 1}, True, 2, interruptions)
    assert not any(run.path.exists() for run in runs)
