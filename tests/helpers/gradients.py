"""A loss and its gradients at a seed, and two of them compared."""

from __future__ import annotations

import pyro
import pytest
import torch


def value_and_gradients(vae, loss_of, seed=7):
    """Compute a loss at a seed; return its value, and the gradient of each parameter that has one."""
    vae.zero_grad()
    with torch.random.fork_rng(), pyro.get_param_store().scope():
        torch.manual_seed(seed)
        loss = loss_of()
        if loss.requires_grad:  # SVI's own way has added the gradients by itself
            loss.backward()
    return loss.item(), {name: one.grad.clone() for name, one in vae.named_parameters() if one.grad is not None}


def assert_same_gradients(ours, theirs, rel=1e-10):
    """Compare two results of `value_and_gradients`; a value that is None is not compared."""
    if theirs[0] is not None:
        assert ours[0] == pytest.approx(theirs[0], rel=rel)
    assert ours[1].keys() == theirs[1].keys()
    for name, gradient in theirs[1].items():
        assert gradient.norm() > 1e-8, f"{name} has no gradient to compare"
        difference = (ours[1][name] - gradient).norm() / gradient.norm()
        assert difference < rel, f"gradient of {name}: relative difference {difference:.1e}"
