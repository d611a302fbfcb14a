"""Convert the name of a device to a `torch.device` that exists on this machine."""

from __future__ import annotations

import os

import torch

from pvae.core.errors import InputError, shown

__all__ = ["resolve_device"]


def resolve_device(name: str) -> torch.device:
    """Return the device of that name; "auto" is the GPU if there is one.

    Raises:
        InputError: the name is unknown, or this machine has no such device.
    """
    local = os.environ.get("LOCAL_RANK", "")  # set by torchrun: the number of the process on this machine
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and local.isdigit():
        name = f"cuda:{local}"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise InputError(f"unknown device {shown(name)}: --device takes auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(f"--device {name}: torch sees {torch.cuda.device_count()} GPUs here; use --device cpu or auto")
    return device
