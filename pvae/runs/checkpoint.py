"""A checkpoint as a file in safetensors' format: tensors and a JSON text, each with its SHA-256.

The format contains no code and no compression, so reading executes nothing and takes no more memory than the file has
bytes.
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
from pvae.core.files import open_bounded
from pvae.core.records import to_json

__all__ = ["NO_ROWS", "Checkpoint", "Counts", "Pass", "Rows", "read_checkpoint", "to_bytes"]

_FORMAT = "pvae checkpoint 1"


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Progress of a training.

    Args:
        epoch: epochs that were finished and recorded.
        step: steps that were begun, over all epochs.
        skipped: those steps that changed no parameter, because a gradient was not finite.
    """

    epoch: int
    step: int
    skipped: int


class Pass(NamedTuple):
    """An unfinished epoch: the order of its images, and the terms of those that were seen.

    Args:
        order: indices of the training images, int64 (N,).
        distortion: at each position of that order, (N,); undefined from `seen` on, and NaN for skipped steps.
        rate: as `distortion`.
        total: sum of the losses of the seen images, without those of skipped steps.
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
    """The valid part of `metrics.jsonl`: its length and SHA-256."""

    num_bytes: int
    sha256: str


NO_ROWS = Rows(0, hashlib.sha256().hexdigest())


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """The whole state of a training between two steps.

    Args:
        counts: its progress.
        vae: the VAE's parameters and buffers, by name.
        moments: the optimiser's state: "<index of the parameter>.<name>".
        rng: states of the random generators.
        unfinished: the unfinished epoch, if there is one.
        rows: the part of `metrics.jsonl` that was written before it.
        run: the identity of its run, as in `config.json`.
    """

    counts: Counts
    vae: dict[str, Tensor]
    moments: dict[str, Tensor]
    rng: dict[str, Tensor]
    unfinished: Pass | None = None
    rows: Rows = NO_ROWS
    run: str = ""


def to_bytes(checkpoint: Checkpoint) -> bytes:
    """Return the content of the file."""
    unfinished = checkpoint.unfinished
    groups = {
        "vae": checkpoint.vae,
        "adam": checkpoint.moments,
        "rng": checkpoint.rng,
        "pass": {} if unfinished is None else dict(zip(Pass._fields, unfinished[:3])),
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


def read_checkpoint(path: Path, like: Mapping[str, Tensor] | None, max_bytes: int) -> Checkpoint:
    """Return the checkpoint in a file that `to_bytes` made.

    Args:
        path: the file.
        like: tensors with the names, shapes and dtypes that the VAE's must have, for instance on the meta device; None
            if they are not known.
        max_bytes: the size that a larger file cannot have.

    Raises:
        InputError: it is not such a file, it was changed since it was written, or its VAE is another one.
        OSError: it is missing or cannot be read.
    """
    with open_bounded(path, max_bytes):  # refuses a link, a pipe and a file that is too large
        pass
    try:
        with safe_open(path, "pt") as file:  # maps the file: no memory is taken before the tensors are known to fit
            about = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError:
        raise InputError("it is not a file in safetensors' format") from None
    text = about.get("state", "")
    if about.get("format") != _FORMAT or about.get("sha256") != hashlib.sha256(text.encode()).hexdigest():
        raise InputError("it was not written by this version of pvae, or was changed since")
    found = {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items() if name.startswith("vae.")}
    wanted = {f"vae.{name}": (tensor.dtype, tensor.shape) for name, tensor in (like or {}).items()}
    if like is not None and found != wanted:
        raise InputError("its weights do not fit the networks of config.json")
    groups: dict[str, dict[str, Tensor]] = {"vae": {}, "adam": {}, "rng": {}, "pass": {}}
    try:
        state = json.loads(text)
        if tensors.keys() != state["tensors"].keys():
            raise InputError("its tensors are not those that were written")
        for name, tensor in tensors.items():
            if _digest(tensor) != state["tensors"][name]:
                raise InputError(f"{name} is not what was written")
            group, _, member = name.partition(".")
            groups[group][member] = tensor.clone()  # so that nothing depends on the mapped file
        counts, rows = Counts(**state["counts"]), Rows(*state["rows"])
        if not all(type(count) is int and 0 <= count < 2**63 for count in (*vars(counts).values(), rows.num_bytes)):
            raise InputError("its counts are negative or not whole numbers")
        unfinished = None
        if state["pass"] is not None:
            total, seen, seconds = state["pass"]
            unfinished = Pass(**groups["pass"], total=total, seen=seen, seconds=seconds)
        vae, moments, rng = groups["vae"], groups["adam"], groups["rng"]
        return Checkpoint(
            counts=counts, vae=vae, moments=moments, rng=rng, unfinished=unfinished, rows=rows, run=str(state["run"])
        )
    except (KeyError, TypeError, AttributeError, RecursionError):
        raise InputError("its entries are not those of a checkpoint") from None
    except ValueError as error:
        raise error if isinstance(error, InputError) else InputError("its state is not JSON") from None


def _digest(tensor: Tensor) -> str:
    """Return a SHA-256 of dtype, shape and values."""
    digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)} ".encode())
    digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
