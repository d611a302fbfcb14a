"""Held-out images choose the epoch: the weights that are loaded, and when a training stops."""

from __future__ import annotations

import dataclasses
import math
import shutil

import pytest
import safetensors.torch
from helpers.runs import assert_same, assert_same_rows

import pvae
from pvae.config.config import Config
from pvae.core.errors import InputError, InterruptedTrainingError
from pvae.data.dataset import Dataset
from pvae.evaluation.runs_table import progress_of, row_of
from pvae.plotting import pictures
from pvae.plotting.figures import write_figure
from pvae.runs import writer
from pvae.runs.metrics import best_epoch, is_out_of_patience
from pvae.runs.run import Run
from pvae.trained.codes import latent_report
from pvae.training.fit import fit, resume, train_in_memory

pytestmark = [pytest.mark.workflow, pytest.mark.usefixtures("no_pictures")]

PATIENCE = 3


@pytest.fixture
def config() -> Config:
    """A training whose bound on held-out images falls again after a few epochs: 104 images, and large steps."""
    return Config(hidden=(32,), latent_dim=3, batch_size=26, epochs=60, lr=0.02, valid=0.2, patience=PATIENCE)


def weights_of(file):
    return {name: tensor for name, tensor in safetensors.torch.load_file(file).items() if name.startswith("vae.")}


def test_the_best_epoch_is_loaded_and_patience_ends_the_training(tmp_path, few_digits, config):
    run = fit(config, data=few_digits, out=tmp_path / "run")
    rows = run.metrics()
    assert [row.split for row in rows[:3]] == ["train", "valid", "test"]
    bounds = [row.elbo for row in rows if row.split == "valid"]
    best = 1 + max(range(len(bounds)), key=bounds.__getitem__)
    assert 1 < best < len(bounds) < 60
    assert len(bounds) == best + PATIENCE
    ((_, vae, _),) = train_in_memory(config, [best], data=few_digits.with_valid(config.valid))
    assert_same(pvae.load(run.path).state_dict(), vae.state_dict())
    assert run.test_metrics().epoch == best
    assert f"epoch {best}, the best on the validation data" in run.title
    row = row_of(run, latent_report(run))
    assert progress_of(row) == f"{len(bounds)}, best {best}"
    assert row["elbo"] == run.test_metrics().elbo
    assert resume(run.path, data=few_digits).metrics() == rows  # it is finished


@pytest.mark.parametrize("where", ["epoch", "best"])
def test_a_training_interrupted_at_every_epoch_keeps_the_same_best_weights(
    tmp_path, few_digits, config, monkeypatch, where
):
    """Interrupted after each epoch, or between an epoch's checkpoint and its best weights."""
    whole = fit(config, data=few_digits, out=tmp_path / "whole")
    write, count = writer.write_whole, 0

    def interrupted(*_):
        nonlocal count
        count += 1
        if count < 100:
            raise KeyboardInterrupt

    if where == "best":
        is_due = [False]

        def write_or_stop(path, *given, **named):
            if path.name == "best.safetensors":
                is_due[0] = not is_due[0]
                if is_due[0]:
                    raise KeyboardInterrupt
            write(path, *given, **named)

        monkeypatch.setattr(writer, "write_whole", write_or_stop)
    options = {"data": few_digits, "on_epoch": interrupted}
    with pytest.raises(InterruptedTrainingError):
        fit(config, out=tmp_path / "parts", **options)
    while True:
        pvae.load(tmp_path / "parts")  # can be read at every moment
        try:
            parts = resume(tmp_path / "parts", **options)
            break
        except InterruptedTrainingError:
            continue
    assert_same_rows(parts.metrics(), whole.metrics())
    assert_same(weights_of(parts.path / "best.safetensors"), weights_of(whole.path / "best.safetensors"))
    assert_same(pvae.load(parts.path).state_dict(), pvae.load(whole.path).state_dict())


def test_the_pictures_are_of_the_best_epoch_as_their_title_says(tmp_path, few_digits, config, monkeypatch):
    monkeypatch.undo()  # the pictures are drawn
    run = fit(config, data=few_digits, out=tmp_path / "run")
    for name in ("reconstructions", "samples", "losses"):
        write_figure(tmp_path / "again.png", getattr(pictures, name)(run))
        assert (tmp_path / "again.png").read_bytes() == (run.figures() / f"{name}.png").read_bytes()


def test_a_training_that_ran_out_of_patience_says_so_when_more_epochs_are_asked_for(tmp_path, few_digits, config):
    run = fit(config, data=few_digits, out=tmp_path / "run")
    with pytest.raises(InputError, match="--patience 3"):
        resume(run.path, 100, data=few_digits)
    assert Run.open(run.path).config.epochs == 60


def test_each_row_is_given_to_on_epoch_when_it_is_written(tmp_path, few_digits, config):
    """An error of it is not reported as one of the run folder."""
    seen = []

    def on_epoch(run, row):
        seen.append((row, row in run.metrics()))
        if (row.epoch, row.split) == (2, "test"):
            raise ConnectionError("tracker unreachable")

    with pytest.raises(pvae.TrainingError, match="on_epoch raised ConnectionError"):
        fit(config, data=few_digits, out=tmp_path / "run", on_epoch=on_epoch)
    assert [row for row, _ in seen] == Run.open(tmp_path / "run").metrics()
    assert all(is_written for _, is_written in seen)


def test_test_images_choose_nothing(tmp_path, few_digits, config):
    other = Dataset("few digits", few_digits.train, 255 - few_digits.test)
    runs = [fit(config, data=data, out=tmp_path / str(index)) for index, data in enumerate((few_digits, other))]
    assert len(runs[0].metrics()) == len(runs[1].metrics())
    assert_same(pvae.load(runs[0].path).state_dict(), pvae.load(runs[1].path).state_dict())


def test_best_weights_of_another_epoch_are_not_used(tmp_path, few_digits, config, capsys):
    run = fit(config, data=few_digits, out=tmp_path / "run")
    best, last = best_epoch(run.metrics()), run.read_checkpoint().counts.epoch
    shutil.copy(run.path / "checkpoint.safetensors", run.path / "best.safetensors")
    pvae.load(run.path)
    note = capsys.readouterr().err
    assert f"epoch {best}" in note
    assert f"epoch {last}" in note


def test_without_held_out_images_the_last_epoch_is_loaded(tmp_path, few_digits, small_config):
    run = fit(small_config, data=few_digits, out=tmp_path / "run")
    assert best_epoch(run.metrics()) is None
    assert not (run.path / "best.safetensors").exists()
    assert run.test_metrics().epoch == 2


def test_patience_counts_epochs_without_a_better_bound(few_digits, tmp_path, small_config):
    (row,) = (row for row in fit(small_config, data=few_digits, out=tmp_path / "r").metrics()[-1:])
    bounds = [-5.0, -3.0, -3.0, -4.0, -2.5]
    rows = [dataclasses.replace(row, epoch=index + 1, split="valid", elbo=elbo) for index, elbo in enumerate(bounds)]
    assert [best_epoch(rows[:count]) for count in range(6)] == [None, 1, 2, 2, 2, 5]
    assert [is_out_of_patience(rows[:count], 2) for count in range(6)] == [False, False, False, False, True, False]
    assert not any(is_out_of_patience(rows[:count], 0) for count in range(6))
    autoencoder = [dataclasses.replace(one, elbo=None, loss=-one.elbo) for one in rows]
    assert best_epoch(autoencoder) == 5


def test_bits_per_dimension_stand_beside_nats_of_pixels_that_have_levels(tmp_path, few_digits, config, capsys):
    levels = config.replace(likelihood="discretized-logistic", epochs=1, patience=0)
    run = fit(levels, data=few_digits, out=tmp_path / "levels", quiet=False)
    bits = -run.test_metrics().elbo / (784 * math.log(2))
    assert f", {bits:.3f} bits per dimension)" in capsys.readouterr().out
    fit(config.replace(epochs=1, patience=0), data=few_digits, out=tmp_path / "grey", quiet=False)
    assert "bits per dimension" not in (said := capsys.readouterr().out)
    assert "; it is the last one: more epochs may give a better one" in said
