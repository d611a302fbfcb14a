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
from typing import NamedTuple

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pvae.core.errors import InputError
from pvae.core.records import from_record, to_json

__all__ = ["Checkpoint", "Counts", "UnfinishedEpoch", "read_checkpoint", "to_bytes"]

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


class UnfinishedEpoch(NamedTuple):
    """The state of an unfinished epoch: the order of the images, and distortion and rate of the images seen so far.

    Args:
        order: indices of the training images, int64 (N,).
        distortion: distortion of the images in this order, (N,); undefined from `seen` on.
        rate: rate of the images, as `distortion`.
        total: sum of the losses of the images seen.
        seen: number of images seen.
        seconds: time spent.
    """

    order: Tensor
    distortion: Tensor
    rate: Tensor
    total: float
    seen: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """The complete state of a training between two steps.

    Args:
        counts: progress of the training.
        vae: parameters and buffers of the VAE, by name.
        moments: state of the optimiser, by "<index of the parameter>.<name>".
        rng: states of the random generators.
        unfinished: state of the unfinished epoch, if there is one.
        run: identity of the run, as in `config.json`.
    """

    counts: Counts
    vae: dict[str, Tensor]
    moments: dict[str, Tensor]
    rng: dict[str, Tensor]
    unfinished: UnfinishedEpoch | None = None
    run: str = ""

    @property
    def progress(self) -> str:
        """The last finished epoch, "epoch 3", and the step in an unfinished one, "epoch 3 and step 60"."""
        return f"epoch {self.counts.epoch}" + ("" if self.unfinished is None else f" and step {self.counts.step}")


def to_bytes(checkpoint: Checkpoint) -> bytes:
    """Return the content of a checkpoint file."""
    unfinished = checkpoint.unfinished
    groups = {
        "vae": checkpoint.vae,
        "adam": checkpoint.moments,
        "rng": checkpoint.rng,
        "pass": {} if unfinished is None else dict(zip(UnfinishedEpoch._fields, unfinished[:3])),
    }
    tensors = {
        # A copy, since safetensors refuses tensors that share memory, as tied weights do.
        f"{group}.{name}": tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for group, members in groups.items()
        for name, tensor in members.items()
    }
    text = to_json(
        {
            "counts": asdict(checkpoint.counts),
            "pass": None if unfinished is None else list(unfinished[3:]),
            "run": checkpoint.run,
        }
    )
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
        state = json.loads(text)
        has_other_sums = "tensors" in state  # written by an earlier version, with a sum of each tensor
        if metadata.get("format") != _FORMAT or not (has_other_sums or metadata["sha256"] == _digest(text, tensors)):
            raise InputError("its values are not those that were written")
        unfinished = None
        if state["pass"] is not None:
            total, seen, seconds = state["pass"]
            unfinished = UnfinishedEpoch(**group("pass."), total=total, seen=seen, seconds=seconds)
        counts = {name: count for name, count in state["counts"].items() if name != "skipped"}  # of earlier versions
        vae = group("vae.")
        return Checkpoint(
            counts=from_record(Counts, counts),
            # The runs that come with pvae store half-precision weights.
            vae={name: vae[name].float() if vae[name].dtype == torch.float16 else vae[name] for name in vae},
            moments=group("adam."),
            rng=group("rng."),
            unfinished=unfinished,
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
