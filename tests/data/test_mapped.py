"""Images of a file that may be larger than memory: the order of an epoch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pvae.data import mapped
from pvae.data.mapped import map_images, shuffled

COUNT, BYTES = 30_000, 3 * 16 * 16


@pytest.fixture
def large(tmp_path, monkeypatch):
    """30,000 images of a file that counts as large, in blocks of 10, of which 20 are shuffled together."""
    monkeypatch.setattr(mapped, "_LARGE", 1)
    monkeypatch.setattr(mapped, "_BLOCK", 10 * BYTES)
    monkeypatch.setattr(mapped, "_BLOCKS", 20)
    np.save(tmp_path / "images.npy", np.random.default_rng(0).integers(0, 256, (COUNT, 3, 16, 16), dtype=np.uint8))
    return torch.from_numpy(map_images(tmp_path / "images.npy"))


def test_large_files_are_visited_in_shuffled_blocks(large):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        first, second = shuffled(large[5:]), shuffled(large[5:])
        torch.manual_seed(0)
        assert torch.equal(shuffled(large[5:]), first), "the seed decides"
    for order in (first, second):
        assert torch.equal(order.sort().values, torch.arange(COUNT - 5)), "each image is visited once"
        for part in order.split(200):
            assert len((part // 10).unique()) <= 21, "a part of an epoch reads whole blocks"
            assert (part.diff() == 1).float().mean() < 0.1, "a part is shuffled"
    assert not torch.equal(first, second)
    assert len((first[:200] // 10_000).unique()) == 3, "blocks come from the whole file"


def test_other_images_are_visited_in_any_order_as_before(large, tmp_path, monkeypatch):
    monkeypatch.setattr(mapped, "_LARGE", 2**30)
    for images in (torch.zeros(50, 1, 2, 2, dtype=torch.uint8), torch.from_numpy(map_images(tmp_path / "images.npy"))):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            order = shuffled(images)
            torch.manual_seed(0)
            assert torch.equal(order, torch.randperm(len(images)))
