"""Instants of the training of a VAE with two latents are kept: codes of test images, and a few times the weights."""

from __future__ import annotations

import shutil
import types

import pytest
import torch
from helpers.runs import signal_in_step

from pvae.config.config import Config
from pvae.core.batch import Batch
from pvae.core.errors import InputError, InterruptedTrainingError
from pvae.core.random_state import seeded
from pvae.data.dataset import Dataset
from pvae.runs.run import HISTORY, Run
from pvae.trained.latent_space import encode
from pvae.trained.scores import elbo_terms
from pvae.training import callbacks
from pvae.training.fit import fit, resume, train_in_memory

pytestmark = [pytest.mark.workflow, pytest.mark.usefixtures("no_pictures")]

CONFIG = Config(hidden=(30,), latent_dim=2, batch_size=40, epochs=30, compile="none", lr=0.01)  # a step each


@pytest.fixture(scope="module")
def data():
    pixels = torch.randint(256, (700, 1, 6, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return Dataset("noise", pixels[:40], pixels[40:])


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    """A clock that stands still."""
    clock = types.SimpleNamespace(now=0.0, step=0.0)

    def perf_counter():
        clock.now += clock.step
        return clock.now

    monkeypatch.setattr(callbacks, "time", types.SimpleNamespace(perf_counter=perf_counter))
    return clock


def test_what_is_kept_is_of_the_training_which_it_does_not_change(tmp_path, data):
    """Codes and matrices to 1/254 of their largest value; of 660 test data, the first 500 of a random order."""
    run = fit(CONFIG, data=data, out=tmp_path / "run")
    kept = {one.step: one for one in run.history()}
    assert [*kept] == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 14, 16, 18, 20, 22, 24, 27, 30]
    assert [step for step, one in kept.items() if one.weights] == [2, 3, 4, 6, 8, 11, 16, 22]
    rows = torch.randperm(660, generator=torch.Generator().manual_seed(0))[:500]
    for step, vae, _ in train_in_memory(CONFIG, [*kept], data=data):
        batch = Batch(run.preparation.x_of(data.test, rows=rows), None)
        codes = encode(vae.eval(), batch).detach()
        assert (kept[step].codes - codes).abs().max() <= codes.abs().max() / 253
        with seeded(0, torch.device("cpu")):
            terms = elbo_terms(vae, batch, 1)
        assert kept[step].distortion == pytest.approx(terms["distortion"].mean().item(), rel=1e-5)
        assert kept[step].rate == pytest.approx(terms["rate"].mean().item(), rel=1e-4, abs=1e-6)
        for name, weight in vae.train().state_dict().items() if kept[step].weights else ():
            error = (kept[step].weights[name] - weight).abs().max()
            assert error <= (weight.abs().max() / 253 if weight.dim() > 1 else 0)


def test_it_takes_a_twentieth_of_the_time(tmp_path, data, clock):
    clock.step = 1.0  # of each look at the clock
    slow = fit(CONFIG, data=data, out=tmp_path / "slow").history()
    assert [one.step for one in slow[:2]] == [0, 1]
    assert len(slow) < 10


def test_a_resumed_training_goes_on_with_them(tmp_path, data):
    whole = fit(CONFIG, data=data, out=tmp_path / "whole").history()
    with signal_in_step(14), pytest.raises(InterruptedTrainingError):
        fit(CONFIG, data=data, out=tmp_path / "parts")
    assert 10 <= Run.open(tmp_path / "parts").history()[-1].step <= 14
    parts = resume(tmp_path / "parts", data=data).history()
    assert [one.step for one in parts] == [one.step for one in whole]
    for one, other in zip(parts, whole):
        torch.testing.assert_close(one.codes, other.codes)
        assert one.weights.keys() == other.weights.keys()


@pytest.mark.parametrize("latent_dim", [1, 3])
def test_nothing_is_kept_of_other_latents(tmp_path, data, latent_dim):
    run = fit(CONFIG.replace(latent_dim=latent_dim, epochs=1), data=data, out=tmp_path / "run")
    assert not (run.path / HISTORY).exists()
    assert run.history() == []


def test_a_damaged_file_is_refused(tmp_path, data):
    run = fit(CONFIG.replace(epochs=1), data=data, out=tmp_path / "run")
    file, content = run.path / HISTORY, (run.path / HISTORY).read_bytes()
    for damaged in (content[:-1], content[:-1] + bytes([content[-1] ^ 1])):
        file.write_bytes(damaged)
        with pytest.raises(InputError):
            run.history()
    shutil.copy(run.path / "checkpoint.safetensors", file)
    with pytest.raises(InputError):
        run.history()
