"""What is known of data before the first layer: in which steps they were recorded, their units and least values."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from pvae.models.columns import ColumnFeatures, ColumnKind
from pvae.models.features import LogUnits, RealUnits, steps_of
from pvae.models.likelihoods import ZeroInflatedLikelihood

NAN = math.nan
STEPS = {  # values, and the greatest step of which all their differences are multiples; 0 of none
    "whole numbers": ([7, 1, 4, 10], 3),
    "tenths": ([5.1, 4.9, 6.4, 7.0], 0.1),
    "steps of a quarter": ([-0.75, 0.5, 12.25, 3], 0.25),
    "one value and another": ([0.3, 0.3, 1.75], 1.45),
    "some are missing": ([NAN, 5.5, 2.5, NAN, 8.5], 3),
    "continuous": ([0.1, math.pi, 7.3, math.e], 0),
    "a step that one row does not have": ([*range(200), math.pi], 0),
    "a step that the last row has not": ([*range(200), 7.5], 0.5),
    "ninths of 5": ([5 / 9 * one for one in (3, 10, 14, 5, 90, 4)], 5 / 9),
    "a least gap of two steps": ([5 / 9 * one for one in (0, 2, 5, 7, 12, 90)], 5 / 9),
    "few ninths of 5, often": ([5 / 9, 5 / 3, 20 / 9] * 40, 5 / 9),
    "few values, each once": ([5 / 9, 5 / 3, 20 / 9], 0),
    "one value": ([2.5, 2.5, 2.5], 0),
    "missing": ([NAN, NAN], 0),
    "small": ([1e-20, 3e-20, 2e-20], 1e-20),
    "large": ([1e20, 3e20, 2e20], 1e20),
    "small and large": ([math.pi * 1e-9, 1e20, 1e19 * math.pi], 0),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", STEPS)
def test_steps_of_values(name, dtype):
    values, step = STEPS[name]
    x = torch.tensor(values, dtype=torch.float64)
    wanted = pytest.approx(step, rel=1e-6 if step == 5 / 9 else 1e-9, abs=0)
    assert steps_of(x.to(dtype)[:, None]).tolist() == [wanted]
    together = torch.stack([x.to(dtype), torch.linspace(0, 1, len(x), dtype=dtype).exp()], 1)
    assert steps_of(together[:, :, None]).tolist() == [[wanted], [0.0]]


def test_steps_of_values_far_from_0():
    """In float64, in which data come that float32 does not hold."""
    x = 1e6 + torch.tensor([0.1, 0.4, 2.3, 1.1, 0.2], dtype=torch.float64)
    assert steps_of(x[:, None]).item() == pytest.approx(0.1, rel=1e-12)
    assert steps_of((x + 1e-4 * torch.arange(5))[:, None]).item() == pytest.approx(1e-4, rel=1e-9)


@pytest.mark.parametrize("has_atom", [False, True])
def test_units_of_logarithms(has_atom):
    """What is missing counts nowhere, and the least value, if it has a share of its own, in no mean."""
    logs = torch.tensor([0.5, 1.5, 2.5, 3.5], dtype=torch.float64)
    x = logs.exp() + (2 if has_atom else 0)
    x = torch.cat([x, torch.tensor([NAN, *[2.0] * 4 * has_atom])])[:, None]
    units = LogUnits((1,), has_atom).double()
    units.fit_to(x)
    assert units.loc.item() == pytest.approx(2)
    assert units.scale.item() == pytest.approx(logs.std(correction=0).item())
    assert (units.atom.item(), units.share.item(), units.step.item()) == ((2, 0.5, 0) if has_atom else (0, 0, 0))


def test_units_of_one_column_among_others():
    units = RealUnits((2,))
    units.columns = [2, 0]
    units.fit_to(torch.tensor([[1.0, 0.1, 10], [1.5, 0.7, 30], [3.5, 0.9, NAN]]))
    assert units.step.tolist() == [20, 0.5]
    assert units.mean.tolist() == [20, 2]


@pytest.mark.parametrize("least", [0.1, 0.7])
def test_the_least_value_of_data_in_float64_is_its_own(least):
    """Tables of tenths come in float64: half of their values are the least one, whatever float32 makes of it."""
    x = torch.tensor([least, 2.0, least, 3.5], dtype=torch.float64)[:, None]
    likelihood = ZeroInflatedLikelihood(nn.Identity(), (1,))
    likelihood.units.fit_to(x)
    assert likelihood.units.share.item() == 0.5
    likelihood.check(x)
    at_least = likelihood(torch.zeros(4, 3)).log_prob(x)[::2]
    assert at_least.tolist() == pytest.approx([math.log(0.5 / likelihood.units.step.item())] * 2)
    features = ColumnFeatures([ColumnKind("zero-inflated")], has_mask=False)
    features.fit_to(x)
    assert features(x)[:, 1].tolist() == [1, 0, 1, 0]
