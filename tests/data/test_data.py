"""Data sets: search and download, damaged files, binarization, and batches."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import socket
import threading

import numpy as np
import pytest
import torch
from conftest import FILES, lay
from torchvision.datasets import MNIST

from pvae.core.errors import InputError
from pvae.data import sources
from pvae.data.dataset import Dataset, random_subset
from pvae.data.preparation import Preparation
from pvae.data.read import read


@pytest.fixture
def server(monkeypatch, tiny_mnist):
    """Serve the four files of the tiny MNIST from a local server, the only mirror that torchvision knows."""
    _, files = tiny_mnist
    served = {f"/{name}.gz": gzip.compress(content) for name, content in files.items()}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            content = served.get(self.path)
            self.send_response(200 if content or self.path == "/" else 404)
            self.send_header("Content-Length", str(len(content or b"")))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content or b"")

        do_HEAD = do_GET

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(MNIST, "mirrors", [f"http://127.0.0.1:{server.server_port}/"])
    resources = [(f"{name}.gz", hashlib.md5(served[f"/{name}.gz"]).hexdigest()) for name in FILES]
    monkeypatch.setattr(MNIST, "resources", resources)
    yield served
    server.shutdown()


def test_folders_are_searched_in_order(tiny_mnist, tmp_path, monkeypatch):
    images, files = tiny_mnist
    with pytest.raises(InputError, match="--offline"):
        read("mnist", offline=True)
    lay(tmp_path / "cache" / "pvae", files)
    assert str(tmp_path / "cache") in read("auto", offline=True).folder
    monkeypatch.setenv("PVAE_DATA", str(lay(tmp_path / "variable", files)))
    assert str(tmp_path / "variable") in read("auto", offline=True).folder
    found = read("auto", lay(tmp_path / "given", files), offline=True)
    assert str(tmp_path / "given") in found.folder
    assert found.record().title == "MNIST (20 train / 10 test)"
    assert np.array_equal(found.train.squeeze(1).numpy(), images[0])
    assert np.array_equal(found.test.squeeze(1).numpy(), images[1])
    assert found.train.dtype == torch.uint8
    assert "published" in found.note


def test_auto_falls_back_to_mnist_5k_with_a_note(tiny_mnist, digits, tmp_path):
    found = read("auto", offline=True)
    assert torch.equal(found.train, digits.train)
    assert found.record().title == "MNIST-5k (4,000 train / 1,000 test)"
    assert "--data-dir" in found.note
    with pytest.raises(InputError, match="--data-dir"):
        read("auto", tmp_path, offline=True)


def test_a_missing_folder_is_named(tiny_mnist, tmp_path, monkeypatch):
    for name in ("mnist", f"folder:{tmp_path}"):
        with pytest.raises(InputError, match="nowhere"):
            read(name, tmp_path / "nowhere")
    (lay(tmp_path / "given", tiny_mnist[1]) / "MNIST" / "raw" / FILES[1]).unlink()
    with pytest.raises(InputError, match=str(tmp_path / "given")):
        read("auto", tmp_path / "given")
    monkeypatch.setenv("PVAE_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match="PVAE_DATA"):
        read("auto")
    with pytest.raises(InputError, match="mnist"):
        read("mnits")


def test_a_download_goes_to_the_cache(tiny_mnist, server, tmp_path):
    images, _ = tiny_mnist
    found = read("auto")
    assert found.folder == str(tmp_path / "cache" / "pvae")
    assert np.array_equal(found.test.squeeze(1).numpy(), images[1])
    server.clear()  # the second time nothing is fetched
    assert torch.equal(read("mnist").train, found.train)


def test_a_broken_download_leaves_nothing(tiny_mnist, server, tmp_path):
    server[f"/{FILES[1]}.gz"] = b"broken"
    with pytest.raises(InputError, match="downloaded"):
        read("mnist")
    assert not list((tmp_path / "cache" / "pvae").iterdir())


def test_a_download_from_a_server_that_sends_nothing_fails_soon(tiny_mnist, monkeypatch):
    monkeypatch.setattr(sources, "_NETWORK_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        monkeypatch.setattr(MNIST, "mirrors", [f"http://127.0.0.1:{mute.getsockname()[1]}/"])
        with pytest.raises(InputError, match="--data-dir"):
            read("mnist")
    assert socket.getdefaulttimeout() is None


def test_mnist_5k_is_a_fixed_shuffled_split(digits):
    assert (len(digits.train), len(digits.test)) == (4000, 1000)
    assert digits.test_labels.bincount(minlength=10).min() > 70, "the test digits are not shuffled"
    assert torch.equal(digits.test, read("mnist-5k").test)
    assert digits.label_names == tuple(MNIST.classes)
    digest = digits.record().sha256
    assert digest == "7d8e3b09bfb57f5c183656c327bba99e0e1d56f68c7d54c654373e03ccfaa29b", (
        "the split has moved: stored runs on MNIST-5k could not be resumed"
    )


def test_threshold_is_at_one_half():
    images = torch.tensor([0, 127, 128, 255], dtype=torch.uint8)
    assert Preparation("threshold").binarized(images, "train").tolist() == [0, 0, 255, 255]
    assert (Preparation().x(images) >= 0.5).tolist() == [False, False, True, True]


def test_static_binarization_is_the_same_in_all_runs(digits):
    torch.manual_seed(1)
    first = Preparation("static").binarized(digits.train, "train")
    torch.manual_seed(2)
    assert torch.equal(first, Preparation("static").binarized(digits.train, "train"))
    assert set(first.unique().tolist()) == {0, 255}
    assert not torch.equal(first[:1000], Preparation("static").binarized(digits.train[:1000], "test"))
    # Each pixel is Bernoulli(x): the mean over all is off by 4.3 standard errors once in 59,000 draws.
    x = Preparation().x(digits.train).double()
    error = (x * (1 - x)).sum().sqrt() / x.numel()
    assert abs(Preparation().x(first).double().mean() - x.mean()) < 4.3 * error
    assert not torch.equal(first, Preparation("threshold").binarized(digits.train, "train"))


def test_dynamic_binarization_draws_train_images_anew_and_test_images_once(few_digits):
    images, dynamic = few_digits.train, Preparation("dynamic")
    assert torch.equal(dynamic.prepared(images, "train", is_redrawn=True), images)
    assert torch.equal(dynamic.binarized(images, "test"), Preparation("static").binarized(images, "test"))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        visits = [dynamic.batch(images, torch.arange(len(images))) for _ in range(2)]
    assert not torch.equal(*visits)
    assert set(visits[0].unique().tolist()) == {0.0, 1.0}


def test_wrong_tensors_are_refused():
    images = torch.zeros(4, 1, 3, 3, dtype=torch.uint8)
    channels_last = [torch.zeros(4, 8, 8, 3, dtype=torch.uint8)] * 2
    for train, test, says in (
        (images.float(), images, "mine"),
        (images[:1], images, "mine"),
        (images[0, 0, 0], images, "mine"),
        (images, images[..., :2], "mine"),
        (images.to(torch.complex64), images.to(torch.complex64), "mine"),
        (images.numpy(), images, "from_numpy"),
        (*channels_last, "permute"),
    ):
        with pytest.raises(InputError, match=says):
            Dataset("mine", train, test)
    with pytest.raises(InputError, match="as_tensor"):
        Dataset("mine", torch.rand(6, 3), torch.rand(4, 3), np.zeros(6, int))


def test_binarization_does_not_depend_on_the_default_dtype(few_digits):
    first = Preparation("static").binarized(few_digits.test, "test")
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(Preparation("static").binarized(few_digits.test, "test"), first)
        assert Preparation().x(few_digits.test).dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)
    digest = hashlib.sha256(first.numpy().tobytes()).hexdigest()
    assert digest == "cd1d3bf254d4ab740c8e54779e93817e0ea5eff08eda0b7c12f7ce618e54673c", "of every run"


def test_a_random_subset_represents_sorted_images():
    """Of 1,000 sorted images, 100 in order from both halves: fewer than 20 from one fail once in 10^9 seeds."""
    found = random_subset(1000, 100, seed=0)
    assert found.tolist() == sorted(set(found.tolist()))
    assert len(found) == 100
    assert 20 < (found < 500).sum() < 80
    assert random_subset(5, 9, seed=0).tolist() == [0, 1, 2, 3, 4]
    assert random_subset(1000, 100, seed=1).tolist() != found.tolist()
