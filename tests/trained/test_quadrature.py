"""Quadrature of log p(x) over one or two latents, where it is known exactly, and where q misses a mode."""

from __future__ import annotations

import pytest
import torch
from helpers.linear_gaussian import LinearGaussian
from helpers.squares import squares

from pvae.core.errors import InputError
from pvae.core.random_state import seeded
from pvae.data.batch import Batch
from pvae.trained.quadrature import quadrature


@pytest.mark.parametrize("num_labels", [0, 3])
def test_two_latents_are_integrated_exactly(num_labels):
    truth = LinearGaussian(num_labels=num_labels)
    with seeded(0):
        found = quadrature(truth.vae(off=0.5), Batch(truth.x, truth.y) if num_labels else truth.x, 1e-6)
    assert torch.allclose(found.log_p, truth.log_p(), atol=2e-6)
    assert (found.stderr < 2e-6).all()


@pytest.mark.parametrize("scale", [0.5, 0.01])
def test_a_mode_that_q_misses_is_found(scale):
    vae, x, exact = squares(scale)
    with seeded(0):
        found = quadrature(vae, x)
    assert ((found.log_p - exact).abs() < found.stderr + 1e-8).all()
    assert (found.stderr < 1e-3).all()
    assert found.is_trusted.all()


def test_what_lies_outside_the_grid_is_in_the_error():
    vae, x, _ = squares(0.5, x=(400.0,), slope=0.0)
    with seeded(0):
        found = quadrature(vae, x)
    assert found.stderr > 0.5
    assert not found.is_trusted


def test_three_latents_are_refused(linear, x):
    with pytest.raises(InputError):
        quadrature(linear(), x)
