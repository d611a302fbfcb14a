"""Images of a file that may be larger than memory: the order of an epoch."""

from __future__ import annotations

import gc

import numpy as np
import pyro
import pytest
import torch

import pvae
from pvae.core.random_state import seeded
from pvae.data import mapped
from pvae.data.dataset import Dataset
from pvae.data.mapped import map_images, shuffled
from pvae.training.trainer import Trainer

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


def test_a_resumed_epoch_visits_a_large_file_in_the_same_order(large):
    data = Dataset("large", large[:2000], large[2000:2100])
    config = pvae.Config(epochs=2, hidden=(4,), batch_size=50)

    class StopError(Exception):
        pass

    def train(checkpoint=None, stop_at=None):
        """Train to the end, or return a checkpoint at a step."""
        with seeded(0, torch.device("cpu")), pyro.get_param_store().scope():
            trainer = Trainer(config, data, torch.device("cpu"))
            if checkpoint is not None:
                torch.rand(100)
                trainer.restore(checkpoint)

            def between():
                if trainer.step == stop_at:
                    raise StopError

            try:
                while trainer.epoch < 2:
                    trainer.run_epoch(between=between)
            except StopError:
                return trainer.checkpoint()
            return trainer.vae.state_dict()

    whole = train()
    for stop_at in (17, 57):
        resumed = train(train(stop_at=stop_at))
        assert all(torch.equal(resumed[name], tensor) for name, tensor in whole.items())


def test_the_mapping_ends_with_the_last_tensor(tmp_path, monkeypatch):
    monkeypatch.setattr(mapped, "_LARGE", 1)
    np.save(tmp_path / "images.npy", np.zeros((4, 1, 2, 2), np.uint8))
    images = torch.from_numpy(map_images(tmp_path / "images.npy"))[2:]
    address = images.untyped_storage().data_ptr()
    assert address in mapped._MAPPINGS
    del images
    gc.collect()
    assert address not in mapped._MAPPINGS
