"""Checkpoints as safetensors files: tensors and a JSON text, with one SHA-256 of both.

The format contains no code and no compression: reading executes nothing and needs no more memory than the file's size.
safetensors refuses a truncated file; the SHA-256 shows values that changed since, as in a copy with gaps.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pvae.core.errors import InputError
from pvae.core.files import to_json

_FORMAT = "pvae checkpoint 1"


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """The complete state of a training between two epochs.

    Args:
        epoch: number of finished and recorded epochs.
        step: number of steps in them.
        vae: parameters and buffers of the VAE, by name.
        moments: state of the optimiser, by "<index of the parameter>.<name>".
        rng: states of the random generators.
        run: identity of the run, as in `config.json`.
    """

    epoch: int
    step: int
    vae: dict[str, Tensor]
    moments: dict[str, Tensor]
    rng: dict[str, Tensor]
    run: str = ""


def in_8_bits(values: Tensor, most: int = 127) -> tuple[Tensor, float]:
    """Return int8 values up to `most` and a step, whose products are the given values to half a step.

    The step is the largest of the values divided by `most`.
    """
    step = values.abs().max().item() / most or 1.0
    return (values / step).round().to(torch.int8), step


def to_bytes(checkpoint: Checkpoint, is_small: bool = False) -> bytes:
    """Return the content of a checkpoint file.

    Args:
        checkpoint: the checkpoint.
        is_small: store floats in 8 bits where they have two or more dimensions.
    """
    groups = {"vae": checkpoint.vae, "adam": checkpoint.moments, "rng": checkpoint.rng}
    tensors = {
        # A copy, since safetensors refuses tensors that share memory, as tied weights do.
        f"{group}.{name}": tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for group, members in groups.items()
        for name, tensor in members.items()
    }
    steps = dict[str, float]()
    for name in [
        name for name, tensor in tensors.items() if is_small and tensor.dim() > 1 and tensor.is_floating_point()
    ]:
        tensors[name], steps[name] = in_8_bits(tensors[name])
    state: dict[str, Any] = {"counts": {"epoch": checkpoint.epoch, "step": checkpoint.step}, "run": checkpoint.run}
    if is_small:
        state["int8"] = steps
    text = to_json(state)
    return safetensors.torch.save(tensors, {"format": _FORMAT, "state": text, "sha256": _digest(text, tensors)})


def read_checkpoint(path: Path) -> Checkpoint:
    """Return the checkpoint in a file whose content `to_bytes` returned.

    Raises:
        InputError: the file is not such a file, or was changed since it was written.
        OSError: the file is missing or cannot be read.
    """
    try:
        with safe_open(path, "pt") as file:  # maps the file into memory
            metadata = file.metadata()
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        state = json.loads(metadata["state"])
        is_whole = metadata["format"] == _FORMAT and metadata["sha256"] == _digest(metadata["state"], tensors)
        groups: dict[str, dict[str, Tensor]] = {"vae": {}, "adam": {}, "rng": {}}
        tensors |= {name: tensors[name] * float(step) for name, step in state.get("int8", {}).items()}
        for name, tensor in tensors.items():
            group, _, name_in_group = name.partition(".")
            if tensor.dtype == torch.float16:  # as of the runs that come with pvae
                tensor = tensor.float()
            groups[group][name_in_group] = tensor
        checkpoint = Checkpoint(
            **state["counts"], vae=groups["vae"], moments=groups["adam"], rng=groups["rng"], run=state["run"]
        )
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError):
        raise InputError("it is not a whole file in safetensors' format, with the entries of a checkpoint") from None
    if not is_whole:
        raise InputError("its values are not those that were written")
    if state.get("pass"):
        raise InputError("it was taken within an epoch: finish the epoch with the version of pvae that wrote it")
    return checkpoint


def _digest(text: str, tensors: Mapping[str, Tensor]) -> str:
    """Return a SHA-256 of a text and the values of tensors."""
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        digest.update(tensors[name].reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
