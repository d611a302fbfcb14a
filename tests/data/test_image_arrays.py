"""Arrays of images in .npy and .npz files."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.commands import refuse

from pvae.cli.train import main
from pvae.core.errors import InputError
from pvae.data.read import read

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (20, 7, 5), dtype=np.uint8)
COLOUR = RNG.integers(0, 256, (20, 7, 5, 3), dtype=np.uint8)
SHUFFLED = np.random.RandomState(20).permutation(20)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def load(tmp_path):
    """Save arrays, and load them as a data set."""

    def save_and_load(image_size="auto", **arrays):
        path = tmp_path / ("images.npy" if list(arrays) == ["npy"] else "images.npz")
        np.save(path, arrays["npy"]) if path.suffix == ".npy" else np.savez(path, **arrays)
        return read(f"folder:{path}", image_size=image_size)

    return save_and_load


def pixels_of(data):
    return torch.cat([data.train, data.test]).numpy()


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (GREY, GREY[:, None]),
        (np.asfortranarray(GREY), GREY[:, None]),
        (COLOUR, COLOUR.transpose(0, 3, 1, 2)),
    ],
    ids=["grey", "Fortran", "colour"],
)
def test_arrays_of_every_kind_become_bytes_in_a_fixed_shuffled_order(load, array, expected):
    data = load(npy=array)
    assert data.title == "images.npy (18 train / 2 test)"
    assert np.array_equal(pixels_of(data), expected[SHUFFLED])
    assert torch.equal(load(npy=array).train, data.train), "from the cache"
    assert data.found == f"20 images of 7 x 5 pixels, {'grey' if expected.shape[1] == 1 else 'colour'}"


def test_images_with_labels_or_alone(load):
    data = load(images=GREY, labels=np.array(["shoe", "bag"] * 10))
    assert data.label_names == ("bag", "shoe")
    assert data.train_labels.tolist() == [1 - index % 2 for index in SHUFFLED[:18]]
    assert load(faces=GREY).train_labels is None


def test_arrays_are_resized_and_made_grey_like_files(load):
    white = np.zeros((8, 30, 40, 3), np.uint8)
    white[:, 10:20, 15:25] = 255
    assert load("5x4", npy=white).datum_shape == (1, 5, 4), "all of them are grey"
    assert load(npy=RNG.integers(0, 256, (8, 300, 200, 3), dtype=np.uint8)).datum_shape == (3, 64, 43)


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"npy": GREY.astype(np.complex64)}, "complex64"),
        ({"npy": GREY[0]}, "of shape (7, 5): give (N, H, W)"),
        ({"npy": COLOUR[..., :2]}, "cannot be told"),
        ({"npy": GREY[:3]}, "only 3 of 3 images can be used: give at least 4"),
        ({"images": GREY, "labels": np.array([{}] * 20)}, "objects, which"),
        ({"images": GREY, "labels": np.arange(19)}, "give 20 whole numbers"),
        ({"train": GREY, "test": GREY, "train_labels": np.arange(20)}, "give labels for all or none"),
        ({"train": GREY, "test": GREY[:1]}, "at least 2 in each split"),
        ({"x": GREY, "y": GREY}, "it holds x, y"),
    ],
)
def test_other_arrays_are_an_error_of_one_line(tmp_path, arrays, says, capsys):
    path = tmp_path / ("images.npy" if list(arrays) == ["npy"] else "images.npz")
    np.save(path, arrays["npy"]) if path.suffix == ".npy" else np.savez_compressed(path, **arrays)
    assert says in refuse(main, ["--dataset", f"folder:{path}", "--out", tmp_path / "run"], capsys, tmp_path)


@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_a_damaged_file_is_named(tmp_path, suffix):
    path = tmp_path / f"images.{suffix}"
    np.save(path, GREY) if suffix == "npy" else np.savez(path, images=GREY)
    whole = path.read_bytes()
    for content in (whole[:-100], b"", b"<html>not found</html>"):
        path.write_bytes(content)
        with pytest.raises(InputError, match=rf"images\.{suffix}"):
            read(f"folder:{path}")


def test_arrays_that_are_not_read_are_named(load):
    data = load(images=GREY, labels=np.arange(20) % 2, test_images=GREY, fold=np.arange(20))
    assert "fold, test_images" in data.note
    assert load(train=GREY, test=GREY, val_labels=np.arange(3)).note.endswith("val_labels")
    assert load(images=GREY).note == ""
