"""The weights of runs, compared; and trainings that are interrupted at a chosen moment."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
from collections.abc import Iterator

import torch

from pvae.runs.run import Run


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

    def hook(module, *_):
        if type(module).__name__ == "Flatten" and (module.training or calls[True]):  # the first layer of an encoder
            calls[module.training] += 1
            if module.training == is_training and calls[is_training] == number:
                signal.raise_signal(which)

    handle = torch.nn.modules.module.register_module_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
