"""Randomness that leaves no trace: seeded blocks, and the state of torch's generators as tensors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

__all__ = ["restore_rng_state", "rng_state", "seeded"]


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Run a block under its own seed, and give torch's generators back as they were.

    Args:
        seed: for the CPU's generator and, if `device` is a GPU, for that one's.
        device: where the block draws.
    """
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        # Not torch.manual_seed, which would seed every other device too, and give none of them back.
        torch.default_generator.manual_seed(seed)
        if devices:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


def rng_state(device: torch.device) -> dict[str, Tensor]:
    """Return the state of the generators that a training on `device` draws from (Pyro's own leaves CUDA out)."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def restore_rng_state(state: dict[str, Tensor], device: torch.device) -> None:
    """Put the generators where `rng_state` found them; a state from another kind of device is left out."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
