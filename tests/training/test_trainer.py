"""The loop without files: how often an epoch visits each datum, how often an evaluation draws, metrics of the start."""

from __future__ import annotations

import dataclasses

import pyro
import pytest
import torch
from helpers.runs import Noted

from pvae.config.choices import values_config
from pvae.config.config import Config
from pvae.core.batch import Batch
from pvae.core.random_state import seeded
from pvae.data.dataset import Dataset
from pvae.data.preparation import Pixels
from pvae.training.setup import build_trainer, start_near
from pvae.training.trainer import Session

CPU = torch.device("cpu")
CONFIG = Config(likelihood="normal-diagonal", hidden=(4,), latent_dim=2, batch_size=8, valid=0.0, compile="none")


def data(count=40, num_test=5):
    x = torch.randn(count + num_test, 3, generator=torch.Generator().manual_seed(0))
    return Dataset("rows", x[:count], x[count:])


def trainer_of(config=CONFIG, given=None, **options):
    """A trainer at its start; call it within a scope of Pyro's parameters."""
    trainer = build_trainer(config, data() if given is None else given)
    return dataclasses.replace(trainer, **options)


@pytest.mark.parametrize(
    ("count", "passes", "sizes", "visits"),
    [
        (40, 1, [8] * 5, {1}),
        (42, 1, [8] * 5 + [2], {1}),
        (40, 3, [8] * 15, {3}),
        (42, 3, [8] * 15, {2, 3}),  # 6 of 126, which fill no batch, are left out
        (9, 5, [8] * 5, {4, 5}),
    ],
)
def test_an_epoch_visits_each_datum_in_each_of_its_passes(count, passes, sizes, visits):
    """No datum a second time before all were visited once; the metrics are means over all visits."""
    given = data(count)
    with seeded(0, CPU), pyro.get_param_store().scope():
        trainer = trainer_of(CONFIG.replace(passes=passes), given)
        order = trainer.data.order(passes, trainer.num_visits)
        assert {*order.bincount(minlength=count).tolist()} <= visits
        assert len(order) == sum(sizes)
        for first in range(0, len(order) - count + 1, count):
            assert order[first : first + count].sort().values.tolist() == [*range(count)]
        assert passes == 1 or not torch.equal(order[:count], order[count : 2 * count]), "each pass has its order"
        assert trainer.num_steps == len(sizes)
        taken = []

        class Noted:
            def on_steps_end(self, trainer, done):
                taken.extend([] if done is None else done.losses.tolist())

            def on_epoch_end(self, trainer, rows):
                pass

        rows = trainer.run_epoch([Noted()])
        assert (trainer.step, trainer.epoch, len(taken)) == (len(sizes), 1, len(sizes))
        mean = sum(size * loss for size, loss in zip(sizes, taken)) / sum(sizes)
        assert rows[0].loss == pytest.approx(mean, rel=1e-12)
        assert rows[0].distortion + rows[0].rate == pytest.approx(mean, rel=1e-6)


def test_an_evaluation_that_draws_several_times_is_the_mean_of_that_many(monkeypatch):
    """As of the same data several times over."""
    given = data(num_test=30)
    config = CONFIG.replace(initialization="exact", prior="standard-normal")
    monkeypatch.setattr("pvae.training.trainer._LEAST_DRAWS", 120)
    with seeded(0, CPU), pyro.get_param_store().scope():
        trainer = dataclasses.replace(trainer_of(given=given), config=config)
        several = {"test": Batch(Pixels(given.test.repeat(4, 1), trainer.data.preparation), None)}
        monkeypatch.setattr("pvae.training.trainer._PIXELS", 12 * 784)
        other = trainer.evaluate()
        monkeypatch.setattr("pvae.training.trainer._PIXELS", 30 * 784)
        found = trainer.evaluate()
        monkeypatch.setattr("pvae.training.trainer._LEAST_DRAWS", 0)
        each = dataclasses.replace(trainer, splits=several).evaluate()
    assert other.elbo != each.elbo, "in other batches it is another noise"
    assert found.elbo_stderr > 1.5 * each.elbo_stderr, "that of the means of 30 data, and not of 120 draws"
    for name in ("elbo", "distortion", "rate", "loss", "posterior_mean_loss"):
        assert getattr(found, name) == pytest.approx(getattr(each, name), rel=1e-12), name


def test_the_metrics_of_the_start_are_those_of_epoch_0():
    """Those of the weights before the first step, with the noise of every evaluation."""
    given = data(100).with_valid(0.2)
    config = values_config(given, hidden=(4,), valid=0.2, compile="none", epochs=1, passes=2)
    assert config.initialization == "exact"
    notes = []
    with seeded(0, CPU), pyro.get_param_store().scope():
        trainer = build_trainer(config, given, Session(callbacks=[Noted(notes)]))
        start_near(trainer)
        assert any("starts at" in one for one in notes)
        assert trainer.step == 0, "what was tried leaves weights alone"
        assert all(not one.any() for state in trainer.optimizer.state.values() for one in state.values())
        assert trainer.config.initialization == "exact"
        trainer.evaluate_start()
        again = [trainer.evaluate(split) for split in ("valid", "test")]
        assert [(row.epoch, row.split) for row in trainer.rows] == [(0, "valid"), (0, "test")]
        assert [row.elbo for row in trainer.rows] == [row.elbo for row in again]
        trainer.run_epoch()
        assert [row.epoch for row in trainer.rows] == [0, 0, 1, 1, 1]
        assert trainer.rows[-1].elbo != trainer.rows[1].elbo
