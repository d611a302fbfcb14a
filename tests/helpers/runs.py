"""The weights of runs, compared; and trainings that are interrupted at a chosen moment."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
from collections.abc import Iterator

import pytest
import torch

from pvae.compile import compiled_svi
from pvae.runs.run import Run
from pvae.training.trainer import Callback


class Noted(Callback):
    """Keeps the notes of a training in a list."""

    def __init__(self, notes: list[str]) -> None:
        self.notes = notes

    def on_note(self, line: str) -> None:
        self.notes.append(line)


def weights(run: Run) -> dict[str, torch.Tensor]:
    return run.read_checkpoint().vae


def assert_same(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name


def assert_same_rows(ours, theirs):
    """But for the time that they took."""
    one, other = ([dataclasses.replace(row, seconds=0) for row in rows] for rows in (ours, theirs))
    assert one == other


@contextlib.contextmanager
def signal_in_step(number: int, is_training: bool = True, which: int = signal.SIGINT) -> Iterator[None]:
    """Send a signal to this process in the n-th training step of this block, or in the n-th call that evaluates."""
    calls = {True: 0, False: 0}

    def count(kind):
        calls[kind] += 1
        if kind == is_training and calls[kind] == number:
            signal.raise_signal(which)

    def on_forward(module, *_):
        # The first layer of an encoder; before the first step, it is the trial of two images.
        if type(module).__name__ == "Flatten" and not module.training and calls[True]:
            count(False)

    state_before = compiled_svi.rng_state

    def on_step(device):
        count(True)
        return state_before(device)

    handle = torch.nn.modules.module.register_module_forward_hook(on_forward)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                compiled_svi, "rng_state", on_step
            )  # it is called before each step, and before one is recorded
            yield
    finally:
        handle.remove()
