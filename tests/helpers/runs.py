"""The weights of runs, compared."""

from __future__ import annotations

import torch

from pvae.runs.run import Run


def weights(run: Run) -> dict[str, torch.Tensor]:
    return run.read_checkpoint().vae


def assert_same(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name
