"""A checkpoint as a file: tensors and a few numbers in safetensors' format, each under its checksum.

The format holds no code and no compression: reading executes nothing, and takes some times the memory of the file.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from pvae.errors import InputError, brief

__all__ = ["NO_ROWS", "Checkpoint", "Counts", "Pass", "Rows", "from_bytes", "to_bytes"]

_FORMAT = "pvae checkpoint 1"


@dataclass(frozen=True, kw_only=True)
class Counts:
    """How far a training is.

    Args:
        epoch: epochs that were finished and recorded.
        step: steps that were begun, over all epochs.
        skipped: those of them that were not taken, since a gradient was not finite.
    """

    epoch: int
    step: int
    skipped: int


class Pass(NamedTuple):
    """An epoch under way: the order of its images, and what is known of those that it has seen.

    Args:
        order: indices of the training images, int64 (N,).
        distortion: of each place in that order, (N,); meaningless beyond `seen`, and NaN where a step was skipped.
        rate: likewise.
        total: sum of the losses of the images that were seen, those of skipped steps left out.
        seen: how many images it has seen.
        seconds: that it took so far.
    """

    order: Tensor
    distortion: Tensor
    rate: Tensor
    total: float
    seen: int
    seconds: float


class Rows(NamedTuple):
    """How much of `metrics.jsonl` stands, and its SHA-256."""

    num_bytes: int
    sha256: str


NO_ROWS = Rows(0, hashlib.sha256().hexdigest())


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """All of a training's state between two steps.

    Args:
        counts: how far it is.
        vae: the VAE's parameters and buffers, by name.
        moments: the optimiser's state: "<index of the parameter>.<name>".
        rng: states of the generators.
        unfinished: the epoch that is under way, if one is.
        rows: what was recorded when it was taken.
    """

    counts: Counts
    vae: dict[str, Tensor]
    moments: dict[str, Tensor]
    rng: dict[str, Tensor]
    unfinished: Pass | None = None
    rows: Rows = NO_ROWS


def to_bytes(checkpoint: Checkpoint) -> bytes:
    """Return the file's content."""
    tensors = {
        f"{group}.{name}": tensor.detach().cpu().contiguous()
        for group, members in (
            ("vae", checkpoint.vae),
            ("adam", checkpoint.moments),
            ("rng", checkpoint.rng),
            ("pass", _tensors_of(checkpoint.unfinished)),
        )
        for name, tensor in members.items()
    }
    state = {
        "counts": asdict(checkpoint.counts),
        "pass": None if checkpoint.unfinished is None else list(checkpoint.unfinished[3:]),
        "rows": list(checkpoint.rows),
        "tensors": {name: _digest(tensor) for name, tensor in tensors.items()},
    }
    text = json.dumps(state, sort_keys=True)
    return safetensors.torch.save(tensors, {"format": _FORMAT, "state": text, "sha256": _sha256(text.encode())})


def from_bytes(content: bytes) -> Checkpoint:
    """Return the checkpoint that `to_bytes` wrote.

    Raises:
        InputError: it did not, or something was changed since.
    """
    state = _state_of(content)
    try:
        tensors = safetensors.torch.load(content)
    except (safetensors.SafetensorError, ValueError, KeyError, RuntimeError, AttributeError) as error:
        raise InputError(f"it is no file of tensors ({brief(error)})") from None
    if set(tensors) != set(state["tensors"]):
        raise InputError("its tensors are not those that were written")
    for name, tensor in tensors.items():
        if _digest(tensor) != state["tensors"][name]:
            raise InputError(f"{name} is not what was written")
    groups: dict[str, dict[str, Tensor]] = {"vae": {}, "adam": {}, "rng": {}, "pass": {}}
    try:
        for name, tensor in tensors.items():
            group, _, member = name.partition(".")
            groups[group][member] = tensor
        return Checkpoint(
            counts=_checked_counts(state["counts"]),
            vae=groups["vae"],
            moments=groups["adam"],
            rng=groups["rng"],
            unfinished=_checked_pass(groups["pass"], state["pass"]),
            rows=_checked_rows(state["rows"]),
        )
    except (KeyError, TypeError, ValueError):
        raise InputError("its entries are not those of a checkpoint") from None


def _state_of(content: bytes) -> dict[str, Any]:
    """Return the numbers, once it is clear that they are those that were written."""
    try:
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        about = header["__metadata__"]
        is_whole = about["format"] == _FORMAT and about["sha256"] == _sha256(about["state"].encode())
        state: dict[str, Any] = json.loads(about["state"]) if is_whole else {}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise InputError("it is no checkpoint of this version of pvae") from None
    if not is_whole or not isinstance(state, dict) or not isinstance(state.get("tensors"), dict):
        raise InputError("its numbers are not those that were written")
    return state


def _checked_counts(record: dict[str, Any]) -> Counts:
    counts = Counts(**record)
    if not all(_is_count(value) for value in asdict(counts).values()):
        raise ValueError
    return counts


def _checked_pass(tensors: dict[str, Tensor], numbers: list[Any] | None) -> Pass | None:
    if numbers is None:
        return None
    unfinished = Pass(**tensors, total=numbers[0], seen=numbers[1], seconds=numbers[2])
    size, order = len(unfinished.order), unfinished.order
    is_order = order.dtype == torch.int64 and torch.equal(order.sort().values, torch.arange(size))
    terms = (unfinished.distortion, unfinished.rate)
    is_whole = all(one.shape == (size,) and one.is_floating_point() for one in terms)
    is_counted = _is_count(unfinished.seen) and unfinished.seen <= size
    if not (is_order and is_whole and is_counted and all(math.isfinite(one) for one in (numbers[0], numbers[2]))):
        raise ValueError
    return unfinished


def _checked_rows(record: list[Any]) -> Rows:
    rows = Rows(*record)
    if not _is_count(rows.num_bytes) or not isinstance(rows.sha256, str):
        raise ValueError
    return rows


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _tensors_of(unfinished: Pass | None) -> dict[str, Tensor]:
    return {} if unfinished is None else dict(zip(Pass._fields, unfinished[:3]))


def _digest(tensor: Tensor) -> str:
    """Return a SHA-256 over dtype, shape and numbers."""
    digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)} ".encode())
    digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
