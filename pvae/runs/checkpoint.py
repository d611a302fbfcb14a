"""A checkpoint as a file: tensors and a few numbers in safetensors' format, each under its checksum.

The format holds no code and no compression: reading executes nothing, and takes the memory of the file, once it is
clear that the file is whole.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, BinaryIO, NamedTuple

import safetensors.torch
import torch
from torch import Tensor

from pvae.core.errors import InputError
from pvae.core.memory import available_memory
from pvae.core.records import to_json

__all__ = ["NO_ROWS", "Checkpoint", "Counts", "Pass", "Rows", "from_file", "to_bytes"]

_FORMAT = "pvae checkpoint 1"
_MOST_HEADER = 2**23  # bytes: some 200 for each tensor
_CHUNK = 2**20
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


class _Place(NamedTuple):
    """A tensor in a file, and where its bytes lie."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    stop: int


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
        run: of which run, by the name that `config.json` has for it.
    """

    counts: Counts
    vae: dict[str, Tensor]
    moments: dict[str, Tensor]
    rng: dict[str, Tensor]
    unfinished: Pass | None = None
    rows: Rows = NO_ROWS
    run: str = ""


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
        "run": checkpoint.run,
        "tensors": {name: _digest(tensor) for name, tensor in tensors.items()},
    }
    text = to_json(state)
    return safetensors.torch.save(tensors, {"format": _FORMAT, "state": text, "sha256": _sha256(text.encode())})


def from_file(file: BinaryIO, like: Mapping[str, Tensor]) -> Checkpoint:
    """Return the checkpoint whose content `to_bytes` made.

    No tensor is made before the file's head is known to be whole and to name the VAE's own parameters, and what was
    written under each checksum is known to be there still: so a file cannot have memory taken that it does not fill.

    Args:
        file: an open file, at its start.
        like: tensors of the names, shapes and dtypes that the VAE's must have; on no device.

    Raises:
        InputError: it is none, something was changed since, it is of another VAE, or it does not fit into memory.
    """
    places, state = _head_of(file)
    if set(places) != set(state["tensors"]):
        raise InputError("its tensors are not those that were written")
    if {name: (one.dtype, one.shape) for name, one in places.items() if name.startswith("vae.")} != {
        f"vae.{name}": (one.dtype, tuple(one.shape)) for name, one in like.items()
    }:
        raise InputError("its weights do not fit the networks of config.json")
    if sum(one.stop - one.start for one in places.values()) > available_memory():
        raise InputError("there is not enough memory for it: free some, or take a larger machine")
    for name, place in places.items():
        if _digest_of(file, place) != state["tensors"][name]:
            raise InputError(f"{name} is not what was written")
    return _assembled({name: _read(file, place) for name, place in places.items()}, state)


def _assembled(tensors: dict[str, Tensor], state: dict[str, Any]) -> Checkpoint:
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
            run=str(state["run"]),
        )
    except (KeyError, TypeError, ValueError, IndexError, OverflowError):
        raise InputError("its entries are not those of a checkpoint") from None


def _head_of(file: BinaryIO) -> tuple[dict[str, _Place], dict[str, Any]]:
    """Return where the tensors lie, and the numbers, once it is clear that they are those that were written."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    try:
        header = json.loads(file.read(length)) if length <= min(_MOST_HEADER, size - 8) else {}
        about = header.pop("__metadata__")
        is_whole = about["format"] == _FORMAT and about["sha256"] == _sha256(about["state"].encode())
        state: dict[str, Any] = json.loads(about["state"]) if is_whole else {}
        places = _places(header, 8 + length, size)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise InputError("it is no checkpoint of this version of pvae") from None
    if not is_whole or not isinstance(state, dict) or not isinstance(state.get("tensors"), dict):
        raise InputError("its numbers are not those that were written")
    return places, state


def _places(header: dict[str, Any], start: int, size: int) -> dict[str, _Place]:
    """Return where the tensors lie: one after the other, up to the end of the file."""
    places = {}
    for name, entry in header.items():
        dtype, shape, offsets = _DTYPES[entry["dtype"]], tuple(entry["shape"]), entry["data_offsets"]
        if not all(_is_count(number) for number in (*shape, *offsets)):
            raise ValueError
        first, last = offsets
        if last - first != math.prod(shape) * dtype.itemsize:
            raise ValueError
        places[name] = _Place(dtype, shape, start + first, start + last)
    ordered = sorted(places.values(), key=lambda place: (place.start, place.stop))
    if [start, *(place.stop for place in ordered)] != [*(place.start for place in ordered), size]:
        raise ValueError
    return places


def _digest_of(file: BinaryIO, place: _Place) -> str:
    """Return what `_digest` gives of a tensor in a file, a part of it at a time."""
    digest = hashlib.sha256(f"{place.dtype} {place.shape} ".encode())
    file.seek(place.start)
    for first in range(place.start, place.stop, _CHUNK):
        digest.update(file.read(min(_CHUNK, place.stop - first)))
    return digest.hexdigest()


def _read(file: BinaryIO, place: _Place) -> Tensor:
    tensor = torch.empty(place.shape, dtype=place.dtype)
    file.seek(place.start)
    if tensor.numel():
        count = file.readinto(tensor.reshape(-1).view(torch.uint8).numpy().data)  # type: ignore[attr-defined]
        if count != tensor.nbytes:
            raise InputError("it was cut while it was read")
    return tensor


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
