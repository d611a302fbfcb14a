"""Images of a file that may be larger than memory: the order of an epoch, and what stays in memory."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import pyro
import pytest
import torch

import pvae
from pvae.core.random_state import seeded
from pvae.data import mapped
from pvae.data.dataset import Dataset
from pvae.data.mapped import map_images, release, shuffled
from pvae.data.preparation import Pixels, Preparation
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


def resident(images):
    """Return how many bytes of the file are in this process's memory."""
    address, found = images.untyped_storage().data_ptr(), False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        words = line.split()
        if "-" in words[0] and not words[0].endswith(":"):
            start, stop = (int(word, 16) for word in words[0].split("-"))
            found = start <= address < stop
        elif found and words[0] == "Rss:":
            return 1024 * int(words[1])
    raise AssertionError("it is not mapped")


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


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="Linux tells what is in memory")
def test_what_was_read_leaves_the_memory(large):
    copy = large.clone()
    assert resident(large) > COUNT * BYTES / 2
    release(large[7:9])
    assert resident(large) == 0
    assert torch.equal(large, copy), "it is read again"
    data = Dataset("large", large[:29_000], large[29_000:])
    digest = data.record().sha256
    assert resident(large) == 0, "the checksum reads all"
    assert digest == Dataset("copy", copy[:29_000], copy[29_000:]).record().sha256
    for _ in Pixels(large).split(100):
        assert resident(large) < COUNT * BYTES / 4
    release(copy)
    release(torch.zeros(3))
    assert torch.equal(large, copy)


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="Linux tells what is in memory")
def test_a_training_keeps_little_of_a_large_file_in_memory(large, tmp_path, no_pictures, monkeypatch):
    seen = []

    batch_of = Preparation.batch

    def batch(preparation, images, index):
        seen.append(resident(large))
        return batch_of(preparation, images, index)

    monkeypatch.setattr(Preparation, "batch", batch)
    data = Dataset("large", large[:2500], large[2500:3000])
    config = pvae.Config(epochs=1, hidden=(4,), batch_size=50, binarize="none")
    run = pvae.fit(config, data=data, out=tmp_path / "run")
    assert len(seen) == 50
    assert set(seen[1:]) == {0}, "what a step has read is released"
    assert resident(large) < COUNT * BYTES / 4, "a few images were drawn"
    assert run.data.num_train == 2500


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
