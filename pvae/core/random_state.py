"""Devices, blocks with a seed, and the state of torch's generators."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from pvae.core.errors import InputError, shown


@contextmanager
def seeded(seed: int | None, device: torch.device | None = None) -> Iterator[None]:
    """Run a block with a seed, and restore the state of torch's generators afterwards.

    Args:
        seed: for the generator of the CPU and, if `device` is a GPU, for its generator; None to leave both as they are.
        device: the device on which the block draws random numbers; the CPU by default.
    """
    if seed is None:
        yield
        return
    devices = []
    if device is not None and device.type == "cuda":
        devices.append(device)
    with torch.random.fork_rng(devices=devices):
        # Not torch.manual_seed, which also seeds all other devices; fork_rng would not restore these.
        torch.default_generator.manual_seed(seed)
        if devices:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


def rng_state(device: torch.device) -> dict[str, Tensor]:
    """Return the state of the generators that a training on `device` draws from (Pyro's `get_rng_state` omits CUDA)."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def restore_rng_state(state: dict[str, Tensor], device: torch.device) -> None:
    """Restore a state that `rng_state` returned; the state of a GPU is ignored if the training continues on the CPU."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


def resolve_device(name: str) -> torch.device:
    """Return the device of that name; "auto" is the GPU if there is one, and "cuda" the current GPU.

    Raises:
        InputError: the name is unknown, or this machine has no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise InputError(f"unknown device {shown(name)}: the device is auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(f"device {name}: torch sees {torch.cuda.device_count()} GPUs here; take cpu or auto")
    return device
