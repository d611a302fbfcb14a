"""Held-out images choose the epoch: the weights that are loaded, and when a training stops."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
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
from pvae.runs.metrics import Metrics, best_epoch, is_out_of_patience
from pvae.runs.run import Run
from pvae.trained.codes import latent_report
from pvae.training.callbacks import OnEachRow, default_callbacks
from pvae.training.fit import fit, resume, train_in_memory

pytestmark = [pytest.mark.workflow, pytest.mark.usefixtures("no_pictures")]

PATIENCE = 3
SAVE_FIGURES = pictures.save_figures


# A training whose bound on held-out images falls again after a few epochs: 104 images, and large steps.
CONFIG = Config(
    hidden=(32,), latent_dim=3, batch_size=26, epochs=60, lr=0.02, valid=0.2, patience=PATIENCE, compile="none"
)


@pytest.fixture
def run(made_once, few_digits, tmp_path, monkeypatch):
    """A run that patience has ended, with figures."""
    with monkeypatch.context() as patch:
        patch.setattr(pictures, "save_figures", SAVE_FIGURES)
        path = made_once("held out", lambda out: fit(CONFIG, data=few_digits, out=out))
    run = Run.open(shutil.copytree(path, tmp_path / "run"))
    run.dataset(few_digits)
    return run


def of_vae(tensors):
    return {name: tensor for name, tensor in tensors.items() if name.startswith("vae.")}


def test_the_best_epoch_is_loaded_and_drawn_and_patience_ends_the_training(run, tmp_path, few_digits):
    rows = run.metrics()
    assert [row.split for row in rows[:3]] == ["train", "valid", "test"]
    bounds = [row.elbo for row in rows if row.split == "valid"]
    best = 1 + max(range(len(bounds)), key=bounds.__getitem__)
    assert 1 < best < len(bounds) < 60
    assert len(bounds) == best + PATIENCE
    ((_, vae, _),) = train_in_memory(CONFIG, [best], data=few_digits.with_valid(CONFIG.valid))
    assert_same(pvae.load(run.path).state_dict(), vae.state_dict())
    assert run.test_metrics().epoch == best
    row = row_of(run, latent_report(run))
    assert progress_of(row) == f"{len(bounds)}, best {best}"
    assert row["elbo"] == run.test_metrics().elbo
    for name in ("reconstructions", "samples", "losses"):
        write_figure(tmp_path / "again.png", getattr(pictures, name)(run))
        assert (tmp_path / "again.png").read_bytes() == (run.figures() / f"{name}.png").read_bytes()
    assert resume(run.path, data=few_digits).metrics() == rows  # it is finished
    with pytest.raises(InputError, match="--patience"):
        resume(run.path, 100, data=few_digits)
    assert Run.open(run.path).config.epochs == 60


@pytest.mark.parametrize("where", ["epoch", "best"])
def test_a_training_interrupted_at_every_epoch_keeps_the_same_best_weights(
    run, tmp_path, few_digits, monkeypatch, where
):
    """Interrupted after each epoch, or between an epoch's checkpoint and its best weights."""
    write, calls, parts = writer.write_whole, itertools.count(), tmp_path / "parts"

    def interrupted(*_):
        if where == "epoch" and next(calls) < 100:
            raise KeyboardInterrupt

    def write_or_stop(path, *given):
        if where == "best" and path.name == "best.safetensors" and next(calls) % 2 == 0:
            raise KeyboardInterrupt
        write(path, *given)

    monkeypatch.setattr(writer, "write_whole", write_or_stop)
    options = {"data": few_digits, "callbacks": [*default_callbacks(), OnEachRow(interrupted)]}
    with pytest.raises(InterruptedTrainingError):
        fit(CONFIG, out=parts, **options)
    while not (parts / "figures").exists():
        pvae.load(parts)  # can be read at every moment
        with contextlib.suppress(InterruptedTrainingError):
            resume(parts, **options)
    assert_same_rows(Run.open(parts).metrics(), run.metrics())
    assert_same(*(of_vae(safetensors.torch.load_file(path / "best.safetensors")) for path in (parts, run.path)))
    assert_same(pvae.load(parts).state_dict(), pvae.load(run.path).state_dict())


def test_each_row_is_given_to_on_epoch_when_it_is_written(tmp_path, few_digits):
    """An error of it is not reported as one of the run folder."""
    seen = []

    def on_epoch(run, row):
        assert row in run.metrics()
        seen.append(row)
        if (row.epoch, row.split) == (2, "test"):
            raise ConnectionError("tracker unreachable")

    with pytest.raises(pvae.TrainingError, match="tracker unreachable"):
        fit(CONFIG, data=few_digits, out=tmp_path / "run", callbacks=[OnEachRow(on_epoch)])
    assert seen == Run.open(tmp_path / "run").metrics()


def test_test_images_choose_nothing(run, tmp_path, few_digits):
    data = Dataset("few digits", few_digits.train, 255 - few_digits.test)
    other = fit(CONFIG, data=data, out=tmp_path / "other")
    assert len(run.metrics()) == len(other.metrics())
    assert_same(pvae.load(run.path).state_dict(), pvae.load(other.path).state_dict())


def test_best_weights_of_another_epoch_are_refused(run):
    shutil.copy(run.path / "checkpoint.safetensors", run.path / "best.safetensors")
    with pytest.raises(InputError, match=r"best\.safetensors"):
        pvae.load(run.path)


def test_patience_counts_epochs_without_a_better_bound():
    zeros = dict.fromkeys(("distortion", "rate", "loss", "seconds", "elbo_stderr"), 0.0)
    bounds = [-5.0, -3.0, -3.0, -4.0, -2.5]
    rows = [Metrics(epoch=1 + i, split="valid", elbo=elbo, pseudo=False, **zeros) for i, elbo in enumerate(bounds)]
    assert [best_epoch(rows[:count]) for count in range(6)] == [None, 1, 2, 2, 2, 5]
    assert [is_out_of_patience(rows[:count], 2) for count in range(6)] == [False, False, False, False, True, False]
    assert not any(is_out_of_patience(rows[:count], 0) for count in range(6))
    assert best_epoch([dataclasses.replace(one, elbo=None, loss=-one.elbo) for one in rows]) == 5  # an autoencoder
