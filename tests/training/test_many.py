"""Runs that are trained at once equal those that are trained alone; what ends one of them leaves the others."""

from __future__ import annotations

import errno
import itertools
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pyro
import pytest
import torch
from helpers.runs import assert_same

import pvae
from pvae.compile.graph import RecordingError
from pvae.compile.members import Members
from pvae.config.build import build_vae
from pvae.core.errors import InputError, InterruptedTrainingError, LostError, TrainingError
from pvae.data.dataset import Dataset
from pvae.data.preparation import Preparation
from pvae.data.read import read
from pvae.runs.run import Run
from pvae.training import engine, fit, many
from pvae.training.many import fit_many

SMALL = pvae.Config(
    hidden=(16,), latent_dim=3, batch_size=50, epochs=3, elbo="analytic", binarize="dynamic", compile="graph"
)
HOW = {"device": "cpu", "threads": 1}


def few():
    digits = read("mnist-5k")
    return Dataset("few digits", digits.train[:130], digits.test[:40])


def weights(path):
    checkpoint = Run.open(path).read_checkpoint()
    return {**checkpoint.vae, **checkpoint.moments, **checkpoint.rng}


def assert_close(ours, theirs, tolerance=1e-4):
    assert ours.keys() == theirs.keys()
    for name, one in ours.items():
        assert torch.allclose(one.double(), theirs[name].double(), rtol=tolerance, atol=tolerance), name


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ([{"seed": 4}, {"seed": 5}], ["seed-4", "seed-5"]),
        ([{"beta": 1.0000001}, {"beta": 1.0000002}], ["beta-1.0000001-seed-0", "beta-1.0000002-seed-0"]),
        ([{"beta": 0.0}, {"beta": 4.0}], ["beta-0-seed-0", "beta-4-seed-0"]),
        (
            [{"free_bits": 0.0, "lr": 1e-3}, {"free_bits": 0.3, "lr": 1e-2}],
            ["free-bits-0-lr-0.001-seed-0", "free-bits-0.3-lr-0.01-seed-0"],
        ),
    ],
)
@pytest.mark.workflow
def test_a_run_among_many_is_the_run_that_is_trained_alone(options, names, no_pictures, tmp_path):
    """In float32: 9 steps with a short last batch in each epoch, so that rounding has little time to grow."""
    configs = [SMALL.replace(**one) for one in options]
    runs = fit_many(configs, data=few(), out=tmp_path / "many", **HOW)
    assert [run.path.name for run in runs] == names
    for config, run in zip(configs, runs):
        assert run.config == config
        assert run.sessions[-1]["together"] == 2
        alone = pvae.fit(config, data=few(), out=tmp_path / run.path.name, **HOW)
        assert_close(weights(run.path), weights(alone.path))
        for ours, theirs in zip(run.metrics(), alone.metrics()):
            assert (ours.split, ours.epoch) == (theirs.split, theirs.epoch)
            assert (ours.loss, ours.elbo) == pytest.approx((theirs.loss, theirs.elbo), rel=1e-5)
            assert ours.seconds > 0


@pytest.mark.workflow
def test_early_stopping_is_each_runs_own(no_pictures, tmp_path):
    """The run with a large learning rate ends early, and is left out; the other one goes on as if it were alone."""
    configs = [SMALL.replace(valid=0.2, patience=1, epochs=6, lr=lr) for lr in (1e-3, 0.3)]
    good, bad = fit_many(configs, data=few(), out=tmp_path / "many", **HOW)
    assert bad.metrics()[-1].epoch < 6
    assert good.metrics()[-1].epoch == 6
    for run in (good, bad):
        alone = pvae.fit(run.config, data=few(), out=tmp_path / run.path.name, **HOW)
        assert len(alone.metrics()) == len(run.metrics())
        if run is good:
            assert_close(weights(run.path), weights(alone.path))


@pytest.mark.workflow
def test_a_run_that_diverges_leaves_the_others(no_pictures, capsys, tmp_path):
    rates = (1e-3, 1e-2, 1e30)
    runs = fit_many([SMALL.replace(lr=lr) for lr in rates], data=few(), out=tmp_path / "many", **HOW)
    assert [run.config.lr for run in runs] == [1e-3, 1e-2]
    assert "lr-1e+30-seed-0: " in (said := capsys.readouterr().err)
    assert "at step 2" in said
    alone = fit_many([SMALL.replace(lr=lr) for lr in rates[:2]], data=few(), out=tmp_path / "two", **HOW)
    for ours, theirs in zip(runs, alone):
        assert_close(weights(ours.path), weights(theirs.path), 1e-5)
    with pytest.raises(TrainingError, match="at step 2"):
        fit_many([SMALL.replace(lr=1e30, seed=seed) for seed in (0, 1)], data=few(), out=tmp_path / "none", **HOW)


@pytest.mark.parametrize(
    ("configs", "says"),
    [
        ([], "configurations"),
        ([SMALL, SMALL.replace(hidden=(8,))], "--hidden"),
        ([SMALL, SMALL.replace(seed=1, epochs=2)], "--epochs"),
        ([SMALL, SMALL], "same"),
        ([SMALL.replace(elbo="iwae", particles=2, beta=beta, compile="none") for beta in (1.0, 4.0)], "--beta"),
    ],
)
def test_what_cannot_be_trained_at_once_is_refused(configs, says, tmp_path):
    with pytest.raises(InputError, match=says):
        fit_many(configs, data=few(), out=tmp_path / "many")
    assert not (tmp_path / "many").exists()


@pytest.mark.parametrize("data", [3, [torch.randn(20, 4), torch.randn(20, 4)]], ids=["number", "batches"])
def test_data_of_another_type_are_refused(tmp_path, data):
    with pytest.raises(InputError, match="data"):
        fit_many([SMALL], data=data, out=tmp_path / "many")
    assert not (tmp_path / "many").exists()


def test_more_runs_than_memory_are_refused(monkeypatch, tmp_path):
    monkeypatch.setattr("pvae.training.setup.total_memory", lambda: 100_000)
    with pytest.raises(InputError, match="memory"):
        fit_many([SMALL.replace(seed=seed) for seed in range(8)], data=few(), out=tmp_path / "many", **HOW)
    assert not (tmp_path / "many").exists()


@pytest.mark.parametrize(
    ("options", "says"),
    [({"compile": "none"}, "--compile none"), ({"network": "conv-batchnorm", "hidden": (3, 4)}, "BatchNorm")],
)
@pytest.mark.workflow
def test_what_cannot_be_mapped_is_trained_one_after_the_other(options, says, no_pictures, capsys, tmp_path):
    configs = [SMALL.replace(epochs=1, seed=seed, **options) for seed in (0, 1)]
    runs = fit_many(configs, data=few(), out=tmp_path / "many", **HOW)
    assert says in capsys.readouterr().err
    assert ["together" in run.sessions[-1] for run in runs] == [False, False]


KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
from test_many import HOW, SMALL, few
import pvae.runs.writer
from pvae.training.many import fit_many

saved, original = 0, pvae.runs.writer.save
def save(run, rows, checkpoint):
    global saved
    original(run, rows, checkpoint)
    saved += 1
    if saved == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
pvae.runs.writer.save = save
configs = [SMALL.replace(hidden=(13,), batch_size=7, seed=seed) for seed in range(8)]
fit_many(configs, data=few(), out=sys.argv[2], **HOW)
"""


@pytest.mark.workflow
def test_a_killed_training_of_eight_goes_on_to_the_same_bits(no_pictures, tmp_path):
    """Killed after 3 of the 8 checkpoints of epoch 1, and then after 5 of those of epoch 3."""

    def train(folder, killed_after):
        here = Path(__file__).parent
        path = os.pathsep.join([str(here.parent), *sys.path])
        command = [sys.executable, "-c", KILLED, str(here), str(folder), str(killed_after)]
        return subprocess.run(command, check=False, capture_output=True, env={**os.environ, "PYTHONPATH": path})

    assert train(tmp_path / "whole", -1).returncode == 0
    assert train(tmp_path / "killed", 8 + 3).returncode == -signal.SIGKILL
    assert [Run.open(tmp_path / f"killed/seed-{seed}").read_checkpoint().epoch for seed in (0, 7)] == [1, 0]
    assert train(tmp_path / "killed", 8 + 5 + 8 + 5).returncode == -signal.SIGKILL
    assert [Run.open(tmp_path / f"killed/seed-{seed}").read_checkpoint().epoch for seed in (0, 7)] == [3, 2]
    assert train(tmp_path / "killed", -1).returncode == 0
    for seed in range(8):
        assert_same(weights(tmp_path / f"killed/seed-{seed}"), weights(tmp_path / f"whole/seed-{seed}"))


@pytest.mark.workflow
def test_slower_runs_at_once_are_trained_one_after_the_other(no_pictures, capsys, tmp_path, monkeypatch):
    """Steps at once wait a tenth of a second."""
    configs = [SMALL.replace(epochs=1, seed=seed, compile="auto") for seed in (0, 1)]
    usual = Members.run

    def slow(self, *given):
        time.sleep(0.1)
        return usual(self, *given)

    monkeypatch.setattr(Members, "run", slow)
    runs = fit_many(configs, data=few(), out=tmp_path / "many", **HOW)
    assert "times as long" in capsys.readouterr().err
    assert ["together" in run.sessions[-1] for run in runs] == [False, False]


PAIR = [SMALL.replace(seed=seed) for seed in (0, 1)]


@pytest.mark.parametrize("is_slower", [False, True])
@pytest.mark.workflow
def test_a_signal_during_the_first_measurement_ends_the_training(is_slower, no_pictures, tmp_path, monkeypatch):
    usual = many._check_faster

    def interrupted(*given):
        signal.raise_signal(signal.SIGTERM)
        if is_slower:
            raise RecordingError("slower")
        return usual(*given)

    monkeypatch.setattr(many, "_check_faster", interrupted)
    with pytest.raises(InterruptedTrainingError) as error:
        fit_many(PAIR, data=few(), out=tmp_path / "many", **HOW)
    assert error.value.status == 128 + signal.SIGTERM
    assert not (tmp_path / "many").exists()


@pytest.mark.parametrize("is_resumed", [False, True])
@pytest.mark.workflow
def test_runs_that_another_process_has_trained_meanwhile_are_left(is_resumed, no_pictures, tmp_path, monkeypatch):
    """The other process trains seed 1 while this one measures its first steps."""
    if is_resumed:
        fit_many([one.replace(epochs=1) for one in PAIR], data=few(), out=tmp_path, **HOW)
    usual, path = many._check_faster, tmp_path / "seed-1"

    def measured(*given):
        with pyro.get_param_store().scope():
            fit._TRAINING.release()  # which another process does not share
            try:
                if is_resumed:
                    pvae.resume(path, 3, data=few(), **HOW)
                else:
                    pvae.fit(PAIR[1], data=few(), out=path, **HOW)
            finally:
                fit._TRAINING.acquire()
        return usual(*given)

    monkeypatch.setattr(many, "_check_faster", measured)
    with pytest.raises(InputError, match="seed-1"):
        fit_many(PAIR, data=few(), out=tmp_path, **HOW)
    run = Run.open(path)
    assert len(run.sessions) == 1 + is_resumed
    assert run.read_checkpoint().epoch == 3
    assert (tmp_path / "seed-0").exists() == is_resumed


@pytest.mark.workflow
def test_runs_with_what_a_configuration_does_not_describe_are_not_continued_without_it(no_pictures, tmp_path):
    data = few()
    for name, own in (("beta", {"beta": lambda step: 100.0}), ("vae", {"vae": build_vae(SMALL, data.datum_shape)})):
        pvae.fit(SMALL.replace(epochs=1), data=data, out=tmp_path / name / "seed-0", **own, **HOW)
        with pytest.raises(InputError, match=name):
            fit_many(PAIR, data=data, out=tmp_path / name, **HOW)
        assert Run.open(tmp_path / name / "seed-0").read_checkpoint().epoch == 1


@pytest.mark.workflow
def test_runs_one_after_the_other_that_are_interrupted_go_on_by_the_same_call(no_pictures, tmp_path):
    def interrupt(run, row):
        if (run.config.seed, row.epoch) == (0, 2):
            signal.raise_signal(signal.SIGINT)

    configs = [one.replace(compile="none") for one in PAIR]
    with pytest.raises(InterruptedTrainingError) as error:
        fit_many(configs, data=few(), out=tmp_path / "many", on_epoch=interrupt, **HOW)
    assert "same command" in str(error.value)
    assert "--resume" not in str(error.value)
    assert error.value.status == 130
    runs = fit_many(configs, data=few(), out=tmp_path / "many", **HOW)
    assert [run.read_checkpoint().epoch for run in runs] == [3, 3]


@pytest.mark.parametrize("engine", ["graph", "none"])
@pytest.mark.workflow
def test_a_run_that_is_refused_leaves_the_others(engine, no_pictures, capsys, tmp_path):
    """The first loss of one run is infinite, and another one ends with its first epoch."""

    def refuse(run, row):
        if run.config.free_bits == 1.0:
            raise InputError("a datum is outside the domain")

    configs = [SMALL.replace(beta=4.0, free_bits=bits, compile=engine) for bits in (1e38, 1.0, 0.0)]
    (left,) = fit_many(configs, data=few(), out=tmp_path / "many", on_epoch=refuse, **HOW)
    assert (left.config.free_bits, left.read_checkpoint().epoch) == (0.0, 3)
    said = capsys.readouterr().err
    assert "free-bits-1e+38-seed-0: " in said
    assert "free-bits-1-seed-0: a datum" in said
    assert not (tmp_path / "many/free-bits-1e+38-seed-0").exists()
    with pytest.raises(InputError, match="loss is inf"):
        fit_many(configs[:1], data=few(), out=tmp_path / "one", **HOW)
    assert capsys.readouterr().err == ""


@pytest.mark.workflow
def test_the_data_of_all_runs_are_prepared_once(no_pictures, tmp_path, monkeypatch):
    usual, prepared = Preparation.prepared, []

    def count(self, images, split, **options):
        prepared.append(split)
        return usual(self, images, split, **options)

    monkeypatch.setattr(Preparation, "prepared", count)
    fit_many([one.replace(epochs=1) for one in PAIR], data=few(), out=tmp_path / "many", **HOW)
    assert prepared.count("train") == 1


@pytest.mark.workflow
def test_a_full_disk_ends_all_runs_which_go_on_by_the_same_call(no_pictures, tmp_path, monkeypatch):
    writes, real = itertools.count(), os.fsync

    def fsync(descriptor):
        if stat.S_ISREG(os.fstat(descriptor).st_mode) and next(writes) > 12:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        with pytest.raises(LostError, match="No space") as error:
            fit_many(PAIR, data=few(), out=tmp_path / "many", **HOW)
    assert "same command" in str(error.value)
    assert "--resume" not in str(error.value)
    runs = fit_many(PAIR, data=few(), out=tmp_path / "many", **HOW)
    assert [(run.read_checkpoint().epoch, len(run.sessions)) for run in runs] == [(3, 2), (3, 2)]


@pytest.mark.workflow
def test_too_many_runs_for_memory_are_told_so(no_pictures, tmp_path, monkeypatch):
    def fails(*_):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(Members, "run", fails)
    with pytest.raises(TrainingError, match="fewer runs"):
        fit_many(PAIR, data=few(), out=tmp_path / "many", **HOW)
    assert not (tmp_path / "many").exists()


@pytest.mark.workflow
def test_what_cannot_be_recorded_later_on_is_trained_alone_and_told(no_pictures, capsys, tmp_path, monkeypatch):
    """The short last batch, which the first measurement does not see."""
    usual = Members.run

    def refuses(self, batches, values):
        if len(batches[-1][0]) < SMALL.batch_size:
            raise RecordingError("the true cause")
        return usual(self, batches, values)

    monkeypatch.setattr(Members, "run", refuses)
    monkeypatch.setattr(many, "_was_together", lambda run: True)  # whether it is faster or not
    runs = fit_many([one.replace(compile="auto") for one in PAIR], data=few(), out=tmp_path / "many", **HOW)
    assert [run.read_checkpoint().epoch for run in runs] == [3, 3]
    assert "the true cause" in capsys.readouterr().err


@pytest.mark.workflow
def test_fewer_runs_are_not_compiled_before_that_is_repaid(no_pictures, tmp_path, monkeypatch):
    """After the third run has diverged, steps of two are recorded, and only then may be compiled."""
    monkeypatch.setattr(engine, "missing", str)
    monkeypatch.setattr(engine, "_SAVED_BY_INDUCTOR", 1e9)
    monkeypatch.setattr(many, "_was_together", lambda run: True)
    monkeypatch.setattr(Members, "use_inductor", lambda self, batch, may_compile: asked.append(len(self.svis)))
    asked, usual = [], Members.run

    def run(self, *given):
        assert self.engine == "graph"
        return usual(self, *given)

    monkeypatch.setattr(Members, "run", run)
    configs = [SMALL.replace(lr=lr, batch_size=10, compile="auto") for lr in (1e-3, 1e-2, 1e30)]
    assert len(fit_many(configs, data=few(), out=tmp_path / "many", **HOW)) == 2
    assert asked == [3, 2]


@pytest.mark.workflow
def test_the_end_of_each_run_is_printed(no_pictures, capsys, tmp_path):
    configs = [one.replace(valid=0.2, patience=1, epochs=6, lr=0.3) for one in PAIR]
    runs = fit_many(configs, data=few(), out=tmp_path / "many", quiet=False, **HOW)
    said = capsys.readouterr().out
    for run in runs:
        assert said.count(f"{run.path.name}: stopped after epoch {run.metrics()[-1].epoch}") == 1


@pytest.mark.workflow
def test_runs_of_your_own_vae_go_on_where_it_is_given_again(no_pictures, tmp_path):
    data = few()
    for epochs in (1, 2):
        configs = [one.replace(epochs=epochs) for one in PAIR]
        own = {"make_vae": lambda config: build_vae(config, data.datum_shape)}
        runs = fit_many(configs, data=data, out=tmp_path / "many", **own, **HOW)
        assert [run.read_checkpoint().epoch for run in runs] == [epochs, epochs]
