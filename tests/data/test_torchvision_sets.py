"""Data sets that torchvision reads, from files of its layout."""

from __future__ import annotations

import bz2
import hashlib
import pickle

import numpy as np
import pytest
import torch
from conftest import idx_bytes
from PIL import Image
from scipy.io import savemat
from torchvision import datasets

from pvae.core.errors import InputError
from pvae.data.image_cache import ImageTransform
from pvae.data.sources import load_dataset

RNG = np.random.default_rng(0)
COUNTS = {"train": 12, "test": 7}
PIXELS = {split: RNG.integers(0, 256, (count, 28, 28), dtype=np.uint8) for split, count in COUNTS.items()}
COLOUR = {split: RNG.integers(0, 256, (count, 3, 32, 32), dtype=np.uint8) for split, count in COUNTS.items()}
LABELS = {split: np.arange(count, dtype=np.uint8) % 10 for split, count in COUNTS.items()}


@pytest.fixture(autouse=True)
def _no_other_data(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("PVAE_DATA", raising=False)


def write_idx(folder, title, names, labels="labels-idx1-ubyte", classes=LABELS):
    raw = folder / title / "raw"
    raw.mkdir(parents=True)
    for split, name in zip(("train", "test"), names):
        (raw / f"{name}-images-idx3-ubyte").write_bytes(idx_bytes(PIXELS[split]))
        (raw / f"{name}-{labels}").write_bytes(classes[split])


def write_kmnist(folder, monkeypatch):
    write_idx(folder, "KMNIST", ("train", "t10k"), classes={s: idx_bytes(y) for s, y in LABELS.items()})
    return PIXELS, "wo"


def write_emnist(folder, monkeypatch):
    names = ("emnist-balanced-train", "emnist-balanced-test")
    write_idx(folder, "EMNIST", names, classes={s: idx_bytes(y) for s, y in LABELS.items()})
    return {split: images.transpose(0, 2, 1) for split, images in PIXELS.items()}, "t"


def write_qmnist(folder, monkeypatch):
    classes = {}
    for split, labels in LABELS.items():
        columns = np.stack([labels.astype(">i4")] + [np.full(len(labels), 7, ">i4")] * 7, axis=1)
        head = bytes([0, 0, 12, 2]) + len(labels).to_bytes(4, "big") + (8).to_bytes(4, "big")
        classes[split] = head + columns.astype(">i4").tobytes()
    write_idx(folder, "QMNIST", ("qmnist-train", "qmnist-test"), "labels-idx2-int", classes)
    return PIXELS, "9 - nine"


def write_usps(folder, monkeypatch):
    small = {split: images[:, :16, :16] for split, images in PIXELS.items()}
    for split, name in (("train", "usps.bz2"), ("test", "usps.t.bz2")):
        lines = [
            f"{label + 1} " + " ".join(f"{k + 1}:{value / 127.5 - 1 + 1e-4:.6f}" for k, value in enumerate(image.flat))
            for label, image in zip(LABELS[split], small[split])
        ]
        (folder / name).write_bytes(bz2.compress("\n".join(lines).encode()))
    return small, "9"


def write_svhn(folder, monkeypatch):
    listed = {}
    for split in COUNTS:
        file = folder / f"{split}_32x32.mat"
        labels = np.where(LABELS[split] == 0, 10, LABELS[split])[:, None]
        savemat(file, {"X": COLOUR[split].transpose(2, 3, 1, 0), "y": labels})
        listed[split] = ["", file.name, hashlib.md5(file.read_bytes()).hexdigest()]
    monkeypatch.setattr(datasets.SVHN, "split_list", listed)
    return COLOUR, "9"


def write_cifar10(folder, monkeypatch):
    folder = folder / "cifar-10-batches-py"
    folder.mkdir()

    def write(name, content):
        (folder / name).write_bytes(pickle.dumps(content))
        return [name, hashlib.md5((folder / name).read_bytes()).hexdigest()]

    train, labels = COLOUR["train"].reshape(12, -1), LABELS["train"].tolist()
    parts = [slice(start, stop) for start, stop in ((0, 3), (3, 5), (5, 8), (8, 11), (11, 12))]
    batches = [
        write(f"data_batch_{number}", {"data": train[part], "labels": labels[part]})
        for number, part in enumerate(parts, start=1)
    ]
    test = write("test_batch", {"data": COLOUR["test"].reshape(7, -1), "labels": LABELS["test"].tolist()})
    name, md5 = write("batches.meta", {"label_names": [f"class {number}" for number in range(10)]})
    monkeypatch.setattr(datasets.CIFAR10, "train_list", batches)
    monkeypatch.setattr(datasets.CIFAR10, "test_list", [test])
    monkeypatch.setattr(datasets.CIFAR10, "meta", {"filename": name, "key": "label_names", "md5": md5})
    return COLOUR, "class 9"


WRITERS = {
    "kmnist": write_kmnist,
    "emnist": write_emnist,
    "qmnist": write_qmnist,
    "usps": write_usps,
    "svhn": write_svhn,
    "cifar10": write_cifar10,
}


@pytest.mark.parametrize("name", WRITERS)
def test_files_in_the_layout_of_torchvision_are_read(tmp_path, monkeypatch, name):
    folder = tmp_path / "data"
    folder.mkdir()
    pixels, last_class = WRITERS[name](folder, monkeypatch)
    data = load_dataset(name, folder)
    assert (data.dataset, data.folder) == (name, str(folder))
    assert data.name == name.upper()
    assert data.label_names[-1] == last_class
    for split in COUNTS:
        images = pixels[split]
        assert np.array_equal(data.splits[split].numpy(), images if images.ndim == 4 else images[:, None])
        labels = getattr(data, f"{split}_labels")
        assert labels.dtype == torch.int64
        assert labels.tolist() == LABELS[split].tolist()


@pytest.mark.parametrize("name", [*WRITERS, "omniglot"])
def test_missing_and_damaged_files_are_an_error_of_one_line(tmp_path, monkeypatch, name):
    folder = tmp_path / "data"
    folder.mkdir()
    with pytest.raises(InputError, match=rf"is not in {folder}/.*--data-dir DIR") as caught:
        load_dataset(name, folder)
    assert "\n" not in str(caught.value)
    if name in WRITERS:
        WRITERS[name](folder, monkeypatch)
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        content = files[-1].read_bytes()
        files[-1].write_bytes(content[: len(content) // 2])
        with pytest.raises(InputError, match=f"in {folder} cannot be read") as caught:
            load_dataset(name, folder)
        assert "\n" not in str(caught.value)


def test_pickles_of_cifar10_are_loaded_only_if_they_are_the_published_ones(tmp_path, monkeypatch):
    folder = tmp_path / "data"
    folder.mkdir()
    with monkeypatch.context() as patch:
        write_cifar10(folder, patch)

    def load(*_, **__):
        raise AssertionError("a pickle was loaded")

    monkeypatch.setattr(pickle, "load", load)
    with pytest.raises(InputError, match=r"CIFAR10 in .* cannot be read \(Dataset not found or corrupted"):
        load_dataset("cifar10", folder)


def test_omniglot_trains_on_some_alphabets_and_is_tested_on_others(tmp_path):
    for split, alphabets in (("background", ("Greek", "Latin")), ("evaluation", ("Tengwar",))):
        for alphabet in alphabets:
            for character in ("character01", "character02"):
                folder = tmp_path / "data" / "omniglot-py" / f"images_{split}" / alphabet / character
                folder.mkdir(parents=True)
                for number in range(2):
                    Image.new("1", (105, 105), len(alphabet) % 2).save(folder / f"{number}.png")
    data = load_dataset("omniglot", tmp_path / "data", transform=ImageTransform(size=(28, 28)))
    assert data.title == "Omniglot (8 train / 4 test)"
    assert data.datum_shape == (1, 28, 28)
    assert data.label_names == ("Greek", "Latin", "Tengwar")
    assert data.train_labels.tolist() == [0] * 4 + [1] * 4
    assert data.test_labels.tolist() == [2] * 4
