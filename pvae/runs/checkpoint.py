"""Checkpoints as safetensors files: tensors and a JSON text, with one SHA-256 of both.

The format contains no code and no compression: reading executes nothing and needs no more memory than the file's size.
safetensors refuses a truncated file; the SHA-256 shows values that changed since, as in a copy with gaps.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pvae.core.errors import InputError
from pvae.core.records import from_record, to_json

__all__ = ["Checkpoint", "Counts", "read_checkpoint", "to_bytes"]

_FORMAT = "pvae checkpoint 1"


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Progress of a training.

    Args:
        epoch: number of finished and recorded epochs.
        step: number of started steps, over all epochs.
    """

    epoch: int
    step: int


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """The complete state of a training between two epochs.

    Args:
        counts: progress of the training.
        vae: parameters and buffers of the VAE, by name.
        moments: state of the optimiser, by "<index of the parameter>.<name>".
        rng: states of the random generators.
        run: identity of the run, as in `config.json`.
    """

    counts: Counts
    vae: dict[str, Tensor]
    moments: dict[str, Tensor]
    rng: dict[str, Tensor]
    run: str = ""

    @property
    def progress(self) -> str:
        """The last finished epoch, for instance "epoch 3"."""
        return f"epoch {self.counts.epoch}"


def to_bytes(checkpoint: Checkpoint) -> bytes:
    """Return the content of a checkpoint file."""
    groups = {"vae": checkpoint.vae, "adam": checkpoint.moments, "rng": checkpoint.rng}
    tensors = {
        # A copy, since safetensors refuses tensors that share memory, as tied weights do.
        f"{group}.{name}": tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for group, members in groups.items()
        for name, tensor in members.items()
    }
    text = to_json({"counts": asdict(checkpoint.counts), "run": checkpoint.run})
    return safetensors.torch.save(tensors, {"format": _FORMAT, "state": text, "sha256": _digest(text, tensors)})


def read_checkpoint(path: Path) -> Checkpoint:
    """Return the checkpoint in a file whose content `to_bytes` returned.

    Raises:
        InputError: the file is not such a file, or was changed since it was written.
        OSError: the file is missing or cannot be read.
    """
    try:
        with safe_open(path, "pt") as file:  # maps the file into memory
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except SafetensorError:
        raise InputError("it is not a whole file in safetensors' format") from None
    text = metadata.get("state", "")

    def group(prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): tensors[name] for name in tensors if name.startswith(prefix)}

    try:
        if metadata["format"] != _FORMAT or metadata["sha256"] != _digest(text, tensors):
            raise InputError("its values are not those that were written")
        state = json.loads(text)
        if state.get("pass") is not None:
            raise InputError(
                "it was taken within an epoch, which this version of pvae cannot continue: finish the epoch with the "
                "version that wrote it"
            )
        vae = group("vae.")
        return Checkpoint(
            counts=from_record(Counts, state["counts"]),
            # The runs that come with pvae store half-precision weights.
            vae={name: vae[name].float() if vae[name].dtype == torch.float16 else vae[name] for name in vae},
            moments=group("adam."),
            rng=group("rng."),
            run=state["run"],
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        why = error if isinstance(error, InputError) else "its entries are not those of a checkpoint"
        raise InputError(str(why)) from None


def _digest(text: str, tensors: Mapping[str, Tensor]) -> str:
    """Return a SHA-256 of a text and the values of tensors."""
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        digest.update(tensors[name].reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
