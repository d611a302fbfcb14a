"""Checkpoints as safetensors files: tensors and a JSON text, each with its SHA-256.

The format contains no code and no compression: reading executes nothing and needs no more memory than the file's size.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pvae.core.errors import InputError
from pvae.core.files import open_bounded
from pvae.core.records import from_record, to_json

__all__ = ["NO_ROWS", "Checkpoint", "Counts", "Rows", "UnfinishedEpoch", "read_checkpoint", "to_bytes"]

_FORMAT = "pvae checkpoint 1"


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Progress of a training.

    Args:
        epoch: number of finished and recorded epochs.
        step: number of started steps, over all epochs.
        skipped: number of steps that changed no parameter, because a gradient was not finite.
    """

    epoch: int
    step: int
    skipped: int


class UnfinishedEpoch(NamedTuple):
    """The state of an unfinished epoch: the order of the images, and distortion and rate of the images seen so far.

    Args:
        order: indices of the training images, int64 (N,).
        distortion: distortion of the images in this order, (N,); undefined from `seen` on, NaN for skipped steps.
        rate: rate of the images, as `distortion`.
        total: sum of the losses of the images seen, without skipped steps.
        seen: number of images seen.
        seconds: time spent.
    """

    order: Tensor
    distortion: Tensor
    rate: Tensor
    total: float
    seen: int
    seconds: float


class Rows(NamedTuple):
    """Length and SHA-256 of the valid part of `metrics.jsonl`."""

    num_bytes: int
    sha256: str


NO_ROWS = Rows(0, hashlib.sha256().hexdigest())


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """The complete state of a training between two steps.

    Args:
        counts: progress of the training.
        vae: parameters and buffers of the VAE, by name.
        moments: state of the optimiser, by "<index of the parameter>.<name>".
        rng: states of the random generators.
        unfinished: state of the unfinished epoch, if there is one.
        rows: the part of `metrics.jsonl` that was written before this checkpoint.
        run: identity of the run, as in `config.json`.
    """

    counts: Counts
    vae: dict[str, Tensor]
    moments: dict[str, Tensor]
    rng: dict[str, Tensor]
    unfinished: UnfinishedEpoch | None = None
    rows: Rows = NO_ROWS
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
        f"{group}.{name}": tensor.detach().cpu().contiguous()
        for group, members in groups.items()
        for name, tensor in members.items()
    }
    state = {
        "counts": asdict(checkpoint.counts),
        "pass": None if unfinished is None else list(unfinished[3:]),
        "rows": list(checkpoint.rows),
        "run": checkpoint.run,
        "tensors": {name: _digest(tensor) for name, tensor in tensors.items()},
    }
    text = to_json(state)
    sha256 = hashlib.sha256(text.encode()).hexdigest()
    return safetensors.torch.save(tensors, {"format": _FORMAT, "state": text, "sha256": sha256})


def read_checkpoint(path: Path, like: Mapping[str, Tensor] | None) -> Checkpoint:
    """Return the checkpoint in a file whose content `to_bytes` returned.

    Args:
        path: the file.
        like: tensors with the names, shapes and dtypes of the VAE's state_dict, for instance on the meta device; None
            if they are not known.

    Raises:
        InputError: the file is not such a file, was changed since it was written, or contains another VAE.
        OSError: the file is missing or cannot be read.
    """
    with open_bounded(path, sys.maxsize):  # raises an error for a link or a pipe
        pass
    try:
        with safe_open(path, "pt") as file:  # maps the file into memory
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError:
        raise InputError("it is not a file in safetensors' format") from None
    text = metadata.get("state", "")
    if metadata.get("format") != _FORMAT or metadata.get("sha256") != hashlib.sha256(text.encode()).hexdigest():
        raise InputError("it was not written by this version of pvae, or was changed since")

    def group(prefix: str) -> dict[str, Tensor]:  # clones, so that nothing depends on the mapped file
        return {name.removeprefix(prefix): tensors[name].clone() for name in tensors if name.startswith(prefix)}

    # The runs that come with pvae store half-precision weights.
    vae = {name: tensor.float() if tensor.dtype == torch.float16 else tensor for name, tensor in group("vae.").items()}
    if like is not None and _kinds(vae) != _kinds(like):
        raise InputError("its weights do not fit the networks of config.json")
    try:
        state = json.loads(text)
        if state["tensors"] != {name: _digest(tensor) for name, tensor in tensors.items()}:
            raise InputError("its tensors are not those that were written")
        unfinished = None
        if state["pass"] is not None:
            total, seen, seconds = state["pass"]
            unfinished = UnfinishedEpoch(**group("pass."), total=total, seen=seen, seconds=seconds)
        counts, rows = from_record(Counts, state["counts"]), Rows(*state["rows"])
        moments, rng = group("adam."), group("rng.")
        return Checkpoint(
            counts=counts, vae=vae, moments=moments, rng=rng, unfinished=unfinished, rows=rows, run=state["run"]
        )
    except InputError:
        raise
    except (ValueError, KeyError, TypeError, RecursionError):
        raise InputError("its entries are not those of a checkpoint") from None


def _kinds(tensors: Mapping[str, Tensor]) -> dict[str, tuple[torch.dtype, torch.Size]]:
    return {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()}


def _digest(tensor: Tensor) -> str:
    """Return a SHA-256 of the dtype, shape and values of a tensor."""
    digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)} ".encode())
    digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
