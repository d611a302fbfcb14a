"""Damaged files of data sets are refused in one line, and execute nothing."""

from __future__ import annotations

import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import FILES

from pvae.core.errors import InputError
from pvae.data.read import read


class Hostile:
    """Writes a file when it is unpickled."""

    def __reduce__(self):
        return (open, ("owned", "w"))


def refused(name, folder, says):
    with pytest.raises(InputError, match=says) as caught:
        read(name, folder)
    assert str(caught.value).isprintable()


def test_damaged_idx_files_are_refused(lay_mnist, tmp_path):
    """Files that are shorter or longer than their header says."""
    raw = lay_mnist(tmp_path / "data") / "MNIST" / "raw"
    labels = (raw / FILES[2]).read_bytes()
    for name in FILES:
        whole = (raw / name).read_bytes()
        promise = b"\0\0\x08\x03" + struct.pack(">III", 2**31, 2**31, 2**31) + whole[16:]
        for content in (promise, whole + b"\0", whole[:-1], b"", labels if "images" in name else b"<html>"):
            (raw / name).write_bytes(content)
            refused("mnist", tmp_path / "data", "put")
        (raw / name).write_bytes(whole)
    assert len(read("mnist", tmp_path / "data").train) == 20


def test_damaged_files_of_binarized_mnist_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "data" / "binarized_mnist"
    folder.mkdir(parents=True)
    packed, text = folder / "binarized_mnist.npz", folder / "binarized_mnist_train.amat"
    bits = np.random.default_rng(0).integers(0, 256, (3, 98), dtype=np.uint8)
    np.savez_compressed(packed, train=bits, test=bits, valid=bits[:2])
    data = read("binarized-mnist", tmp_path / "data")
    assert data.title == "binarized MNIST (3 train / 2 valid / 3 test)"
    assert torch.equal(data.with_valid(0.1).valid, data.train[:2])
    contents = [(packed, packed.read_bytes()[:-30]), (packed, pickle.dumps(Hostile()))]
    for wrong in (np.array([Hostile()] * 3, dtype=object), bits.astype(np.float64), bits[:, :5]):
        np.savez_compressed(packed, train=wrong, test=bits, valid=bits)
        contents.append((packed, packed.read_bytes()))
    contents += [(text, content) for content in (b"0 1 2\n" * 784, b"", b"\xff" * 784 * 3)]
    for file, content in contents:
        packed.unlink(missing_ok=True)
        file.write_bytes(content)
        refused("binarized-mnist", tmp_path / "data", "binarized")
    assert not Path("owned").exists()
