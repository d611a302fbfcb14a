"""Tests of the choice of a start by a few steps of the trainer."""

import math

import pandas
import pytest
import torch

import pvae
from pvae.config.choices import values_config
from pvae.training import setup
from pvae.training.fit import _session


@pytest.mark.workflow
@pytest.mark.parametrize(("tried", "taken"), [(4, 4), (1, 2)])
def test_steps_that_compare_starts_leave_nothing_but_weights(monkeypatch, tried, taken):
    """Moments of Adam are 0 and no step is counted; the training starts at the one of the best forecast."""
    monkeypatch.setattr(setup, "_TRIED", tried)
    torch.manual_seed(0)
    kind = torch.randint(3, (600,))
    x = torch.tensor([[0.0, 9, 0], [9, 0, 0], [0, 0, 9]])[kind] + torch.randn(600, 3)
    frame = pandas.DataFrame(x.numpy(), columns=["a", "b", "c"]).assign(bit=(torch.rand(600) < 0.5).int().numpy())
    data = pvae.read(frame).with_valid(0.1)
    config = values_config(data)
    notes, compared = [], []
    forecast = setup._forecast_elbo

    def seen(num_steps, trainer, weights, held_out):
        assert num_steps == taken
        compared.append((forecast(num_steps, trainer, weights, held_out), weights))
        return compared[-1][0]

    monkeypatch.setattr(setup, "_forecast_elbo", seen)
    with _session(config, False, "cpu") as (_, device, _):
        trainer = setup.build_trainer(config, data, device)
        setup.start_near(trainer, config, notes.append)
        assert trainer.step == 0
        assert all(not one.any() for state in trainer.optimizer.state.values() for one in state.values())
    assert len(compared) > 1, "a mixture of products is the best at first"
    _, best = max(compared, key=lambda one: one[0])
    state = trainer.vae.state_dict()
    assert all(torch.equal(state[name], value) for name, value in best.items())
    assert len(notes) == 1


def test_a_start_that_gains_is_forecast_to_gain_more():
    """By a third of what the second half of the steps gained; NaN is the worst of all."""
    assert setup.forecast([-3.5, -2.0]) == -1.5
    assert setup.forecast([math.nan, -2.0]) == setup.forecast([-2.0, math.nan]) == -math.inf
