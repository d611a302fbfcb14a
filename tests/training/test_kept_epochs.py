"""A few epochs of a VAE with two latents are kept, small and in the order of their training."""

from __future__ import annotations

import shutil

import pytest
import torch
from helpers.runs import signal_in_step

from pvae.config.config import Config
from pvae.core.errors import InputError, InterruptedTrainingError
from pvae.data.dataset import Dataset
from pvae.runs.run import KEPT, Run
from pvae.training.fit import fit, resume, train_in_memory

pytestmark = [pytest.mark.workflow, pytest.mark.usefixtures("no_pictures")]

CONFIG = Config(hidden=(30,), latent_dim=2, batch_size=10, epochs=8, compile="none")


@pytest.fixture(scope="module")
def data():
    pixels = torch.randint(256, (48, 1, 6, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return Dataset("noise", pixels[:40], pixels[40:])


def test_kept_epochs_are_those_of_the_training(tmp_path, data):
    """To 1/254 of the largest weight of a matrix, in about a quarter of the bytes."""
    run = fit(CONFIG, data=data, out=tmp_path / "run", threads=1)
    kept = run.kept_epochs()
    assert [*kept] == [0, 1, 2, 3, 4, 5, 6]
    for epoch, vae, _ in train_in_memory(CONFIG, [*kept], data=data):
        for name, weight in vae.state_dict().items():
            error = (kept[epoch][name] - weight).abs().max()
            assert error <= (weight.abs().max() / 253 if weight.dim() > 1 else 0)
    size = sum(weight.numel() for weight in run.vae().state_dict().values())
    assert (run.path / KEPT).stat().st_size < 2 * len(kept) * size


def test_a_resumed_training_keeps_the_same_epochs(tmp_path, data):
    whole = fit(CONFIG, data=data, out=tmp_path / "whole", threads=1)
    with signal_in_step(14), pytest.raises(InterruptedTrainingError):  # of 4 an epoch
        fit(CONFIG, data=data, out=tmp_path / "parts", threads=1)
    assert max(Run.open(tmp_path / "parts").kept_epochs()) == 3
    parts = resume(tmp_path / "parts", data=data)
    for epoch, weights in whole.kept_epochs().items():
        for name, weight in weights.items():
            torch.testing.assert_close(parts.kept_epochs()[epoch][name], weight)


def test_nothing_is_kept_of_other_latents(tmp_path, data):
    run = fit(CONFIG.replace(latent_dim=3, epochs=1), data=data, out=tmp_path / "run")
    assert not (run.path / KEPT).exists()
    assert run.kept_epochs() == {}


def test_a_damaged_file_is_refused(tmp_path, data):
    run = fit(CONFIG.replace(epochs=1), data=data, out=tmp_path / "run")
    file, content = run.path / KEPT, (run.path / KEPT).read_bytes()
    for damaged in (content[:-1], content[:-1] + bytes([content[-1] ^ 1])):
        file.write_bytes(damaged)
        with pytest.raises(InputError):
            run.kept_epochs()
    shutil.copy(run.path / "checkpoint.safetensors", file)
    with pytest.raises(InputError):
        run.kept_epochs()
