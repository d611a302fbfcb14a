"""Many runs equal those that are trained alone; what ends one of them, or a process, leaves the others whole."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from helpers.runs import assert_same, assert_same_rows, weights

import pvae
from pvae.config.build import build_vae
from pvae.core.errors import InputError, InterruptedTrainingError, LostError, TrainingError
from pvae.data.dataset import Dataset
from pvae.data.read import read
from pvae.runs.run import Run
from pvae.training import many
from pvae.training.callbacks import RunLine
from pvae.training.many import fit_many
from pvae.training.trainer import Callback

SMALL = pvae.Config(hidden=(16,), latent_dim=3, batch_size=50, epochs=3, elbo="analytic", compile="none")
PAIR = [SMALL.replace(seed=seed) for seed in (0, 1)]
THREE = [SMALL.replace(seed=seed) for seed in range(3)]


def few():
    digits = read("mnist-5k")
    return Dataset("few digits", digits.train[:130], digits.test[:40])


@pytest.fixture(params=[1, 2])
def processes(request, monkeypatch):
    """One process; and two threads for torch, so that runs of few steps are trained in two processes."""
    if request.param == 1:
        yield 1
        return
    monkeypatch.setattr(many, "_LEAST_STEPS", 1)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield 2
    torch.set_num_threads(before)


@dataclass
class Ends(Callback):
    """Does something to the process, or raises, in the first epoch of one seed."""

    seed: int
    what: object

    def on_steps_end(self, trainer, done):
        if trainer.config.seed != self.seed or done is None:
            return
        if isinstance(self.what, Exception):
            raise self.what
        os.kill(os.getpid(), self.what)


@pytest.mark.workflow
def test_a_run_among_many_is_the_run_that_is_trained_alone(processes, capfd, tmp_path):
    runs = fit_many(THREE, few(), out=tmp_path / "many", device="cpu", callbacks=[RunLine()])
    said = capfd.readouterr().out
    torch.set_num_threads(1)
    for config, run in zip(THREE, runs, strict=True):
        assert run.config == config
        assert said.count(f"{run.path.name}  epoch 3/3  test pseudo-ELBO") == 1
        alone = pvae.fit(config, few(), out=tmp_path / run.path.name, device="cpu", callbacks=[])
        assert_same(weights(run), weights(alone))
        assert_same_rows(run.metrics(), alone.metrics())
    more = [config.replace(epochs=4) for config in THREE]
    again = fit_many(more, few(), out=tmp_path / "many", device="cpu", callbacks=[])
    assert [run.metrics()[-1].epoch for run in again] == [4, 4, 4]


@pytest.mark.workflow
@pytest.mark.parametrize(
    ("options", "names"),
    [
        ([{"seed": 4}, {"seed": 5}], ["seed-4", "seed-5"]),
        ([{"beta": 0.0}, {"beta": 1.0000002}], ["beta-0-seed-0", "beta-1.0000002-seed-0"]),
        (
            [{"free_bits": 0.0, "lr": 1e-3}, {"free_bits": 0.3, "lr": 1e-2}],
            ["lr-0.001-free-bits-0-seed-0", "lr-0.01-free-bits-0.3-seed-0"],
        ),
    ],
)
def test_runs_are_named_by_what_differs(options, names, tmp_path):
    configs = [SMALL.replace(epochs=1, **one) for one in options]
    runs = fit_many(configs, few(), out=tmp_path, device="cpu", callbacks=[])
    assert [run.path.name for run in runs] == names
    assert [run.config for run in runs] == configs


@pytest.mark.parametrize(
    ("configs", "says"),
    [
        ([], "configurations"),
        ([SMALL, SMALL.replace(hidden=(8,))], "--hidden"),
        ([SMALL, SMALL], "same"),
        ([SMALL.replace(elbo="iwae", particles=2, beta=beta) for beta in (1.0, 4.0)], "--beta"),
    ],
)
def test_what_does_not_go_together_is_refused(configs, says, tmp_path):
    with pytest.raises(InputError, match=says):
        fit_many(configs, few(), out=tmp_path / "many")
    with pytest.raises(InputError, match="data"):
        fit_many([SMALL], [torch.randn(20, 4), torch.randn(20, 4)], out=tmp_path / "many")
    assert not (tmp_path / "many").exists()


@pytest.mark.workflow
def test_a_run_that_diverges_or_is_refused_leaves_the_others(processes, capfd, tmp_path):
    configs = [PAIR[0], *(PAIR[1].replace(lr=lr) for lr in (1e-3, 1e30)), THREE[2]]
    end = Ends(0, InputError("a datum is outside the domain"))
    runs = fit_many(configs, few(), out=tmp_path / "many", device="cpu", callbacks=[end])
    assert [(run.config.seed, run.config.lr) for run in runs] == [(1, 1e-3), (2, 1e-3)]
    said = capfd.readouterr().err
    assert "lr-1e+30-seed-1: " in said
    assert "at step 2" in said
    assert "seed-0: a datum is outside" in said


@pytest.mark.workflow
def test_runs_that_all_diverge_are_an_error(tmp_path):
    with pytest.raises(TrainingError, match="at step 2"):
        fit_many([one.replace(lr=1e30) for one in PAIR], few(), out=tmp_path / "none", device="cpu", callbacks=[])


@pytest.mark.workflow
@pytest.mark.parametrize("processes", [2], indirect=True)
@pytest.mark.parametrize("number", [pytest.param(signal.SIGTERM, marks=pytest.mark.slow), signal.SIGKILL])
def test_a_process_that_ends_alone_leaves_its_runs_whole_to_go_on(number, processes, capfd, tmp_path):
    if number == signal.SIGTERM:
        done = fit_many(THREE, few(), out=tmp_path, device="cpu", callbacks=[Ends(1, number)])
        assert [run.config.seed for run in done] == [0, 2]
        assert "seed-1: a process has ended early" in capfd.readouterr().err
    else:
        with pytest.raises(TrainingError, match="a process has ended early"):
            fit_many(PAIR, few(), out=tmp_path, device="cpu", callbacks=[Ends(1, number)])
    opened = [Run.open(file.parent) for file in tmp_path.glob("*/config.json")]
    assert all(run.read_checkpoint().epoch == run.metrics()[-1].epoch for run in opened if run.metrics())
    again = fit_many(THREE, few(), out=tmp_path, device="cpu")
    assert [run.is_finished() for run in again] == [True] * 3


@pytest.mark.workflow
def test_a_folder_that_is_lost_ends_all_runs_which_go_on_by_the_same_call(processes, tmp_path):
    lost = Ends(1, OSError(errno.ENOSPC, "No space"))
    configs = [one.replace(epochs=3 + 5000 * (processes == 2)) for one in PAIR]
    with pytest.raises(LostError, match="No space") as error:
        fit_many(configs, few(), out=tmp_path / "many", device="cpu", callbacks=[lost])
    assert "same command" in str(error.value)
    assert "--resume" not in str(error.value)
    if processes == 1:
        runs = fit_many(configs, few(), out=tmp_path / "many", device="cpu", callbacks=[])
        assert [run.read_checkpoint().epoch for run in runs] == [3, 3]


@pytest.mark.workflow
def test_a_signal_ends_all_runs_and_leaves_them_whole(processes, tmp_path):
    def send():
        while not (tmp_path / "seed-0/config.json").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    sender = threading.Thread(target=send)
    sender.start()
    started = time.monotonic()
    with pytest.raises(InterruptedTrainingError, match="same command") as error:
        fit_many([one.replace(epochs=5000) for one in PAIR], few(), out=tmp_path, device="cpu", callbacks=[])
    sender.join()
    assert time.monotonic() - started < 60
    assert error.value.status == 128 + signal.SIGTERM
    runs = [Run.open(file.parent) for file in tmp_path.glob("*/config.json")]
    epoch = max(run.read_checkpoint().epoch for run in runs)
    assert epoch < 5000
    again = fit_many([one.replace(epochs=epoch + 1) for one in PAIR], few(), out=tmp_path)
    assert [one.is_finished() for one in again] == [True, True]


ORPHANED = """
import sys
sys.path.insert(0, sys.argv[1])
import torch
from test_many import PAIR, few, many
torch.set_num_threads(2)
many.fit_many([one.replace(epochs=10**6) for one in PAIR], few(), out=sys.argv[2], device="cpu", callbacks=[])
"""


@pytest.mark.workflow
def test_processes_end_with_the_one_that_started_them(tmp_path):
    """Then the same command finds no lock."""
    here = Path(__file__).parent
    path = os.pathsep.join([str(here.parent), *sys.path])
    command = [sys.executable, "-c", ORPHANED, str(here), str(tmp_path)]
    with subprocess.Popen(command, env={**os.environ, "PYTHONPATH": path}) as process:
        while len([*tmp_path.glob("*/config.json")]) < 2:
            assert process.poll() is None
            time.sleep(0.1)
        process.kill()
    time.sleep(3)
    epochs = [Run.open(tmp_path / f"seed-{seed}").read_checkpoint().epoch for seed in (0, 1)]
    time.sleep(2)
    assert epochs == [Run.open(tmp_path / f"seed-{seed}").read_checkpoint().epoch for seed in (0, 1)]


@pytest.mark.workflow
def test_early_stopping_is_each_runs_own(tmp_path):
    configs = [SMALL.replace(valid=0.2, patience=1, epochs=6, lr=lr) for lr in (1e-3, 0.3)]
    good, bad = fit_many(configs, few(), out=tmp_path, device="cpu", callbacks=[])
    assert bad.metrics()[-1].epoch < 6
    assert good.metrics()[-1].epoch == 6


@pytest.mark.workflow
def test_runs_with_what_a_configuration_does_not_describe_are_not_continued_without_it(tmp_path):
    data = few()
    for name, own in (("beta", {"beta": lambda step: 100.0}), ("vae", {"vae": build_vae(SMALL, data.datum_shape)})):
        pvae.fit(SMALL.replace(epochs=1), data, out=tmp_path / name / "seed-0", callbacks=[], **own)
        with pytest.raises(InputError, match=name):
            fit_many(PAIR, data, out=tmp_path / name, device="cpu")
        assert Run.open(tmp_path / name / "seed-0").read_checkpoint().epoch == 1


@pytest.mark.workflow
def test_runs_of_your_own_vae_go_on_where_it_is_given_again(processes, tmp_path):
    data = few()
    for epochs in (1, 2):
        configs = [one.replace(epochs=epochs) for one in PAIR]
        own = {"vae": lambda config: build_vae(config, data.datum_shape)}
        runs = fit_many(configs, data, out=tmp_path / "many", device="cpu", callbacks=[], **own)
        assert [run.read_checkpoint().epoch for run in runs] == [epochs, epochs]
