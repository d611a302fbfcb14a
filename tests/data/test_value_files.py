"""Data that are no images: tensors of any shape and type, and files of them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from pvae.core.errors import InputError
from pvae.data.choices import values_config
from pvae.data.dataset import Dataset
from pvae.data.preparation import Preparation
from pvae.data.sources import load_dataset

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int16, torch.int64, torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(5,), (4, 3), (2, 3, 4, 2)])
def test_values_become_float32_and_nothing_else(dtype, shape):
    data = (10 * torch.rand(6, *shape)).to(dtype)
    found = Dataset("mine", data[:4], data[4:])
    preparation = Preparation()
    assert not found.is_images
    assert found.datum_shape == shape
    assert torch.equal(preparation.x(preparation.prepared(found.train, "train")), data[:4].float())
    assert found.record().sha256 != Dataset("mine", data[:4].double() + 1, data[4:].double() + 1).record().sha256


def test_the_first_value_that_is_infinite_is_named():
    data = torch.rand(6, 3)
    data[4, 1] = -math.inf
    with pytest.raises(InputError, match=r"test\[1\] holds -inf"):
        Dataset("mine", data[:3], data[3:])


def test_binarized_values():
    x = torch.tensor([[0.2, 0.5, 0.9]])
    assert torch.equal(Preparation("threshold").prepared(x, "test"), torch.tensor([[0.0, 1, 1]]))
    for binarize in ("static", "dynamic"):
        with pytest.raises(InputError, match=binarize):
            Preparation(binarize).check(is_images=False, likelihood="bernoulli")


def save(path, **arrays):
    np.savez(path, **arrays)
    return path


def test_files_of_arrays(tmp_path):
    rows = RNG.random((40, 5))
    np.save(tmp_path / "rows.npy", rows)
    save(
        tmp_path / "split.npz",
        train=rows[:30],
        test=rows[30:],
        train_labels=np.arange(30) % 3,
        test_labels=np.arange(10) % 3,
    )
    save(tmp_path / "named.npz", X=RNG.integers(0, 9, (40, 6, 2), dtype=np.uint16), y=np.array(["a", "b"] * 20))
    one = load_dataset(f"array:{tmp_path / 'rows.npy'}")
    assert (len(one.train), len(one.test), one.datum_shape) == (36, 4, (5,))
    order = [int(name.removeprefix("train-")) for name in [*one.names["train"], *one.names["test"]]]
    assert np.array_equal(torch.cat([one.train, one.test]).numpy(), rows[order])
    two = load_dataset(f"array:{tmp_path / 'split.npz'}")
    assert np.array_equal(two.test.numpy(), rows[30:])
    assert two.test_labels.tolist() == [row % 3 for row in range(10)]
    three = load_dataset(f"array:{tmp_path / 'named.npz'}")
    assert (three.datum_shape, three.label_names) == ((6, 2), ("a", "b"))


def test_a_table_of_numbers(tmp_path):
    (tmp_path / "t.csv").write_text("a,b\n" + "".join(f"{i},{i / 2}\n" for i in range(20)))
    data = load_dataset(f"table:{tmp_path / 't.csv'}")
    assert torch.equal(data.train[:, 0], 2 * data.train[:, 1])
    assert sorted(torch.cat([data.train, data.test])[:, 0].tolist()) == list(range(20))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("a,b\n1,2\n3\n", ["line 3", "1 fields"]),
        ("a,b\n1,2\n3,x\n", ["line 3", "b is the text 'x'"]),
        ("a,b\n", ["no rows"]),
        ("", ["no rows"]),
        ("a,b\n" + "1,2\n" * 9 + "3,inf\n", ["holds inf"]),
        ("a,b\n" + "1,\n" * 9, ["value 2", "missing in all"]),
    ],
)
def test_bad_tables_are_refused_by_line_and_column(tmp_path, content, words):
    (tmp_path / "t.csv").write_text(content)
    with pytest.raises(InputError) as refused:
        load_dataset(f"table:{tmp_path / 't.csv'}")
    assert all(word in str(refused.value) for word in words), refused.value


def test_bad_arrays_are_refused(tmp_path):
    np.save(tmp_path / "text.npy", np.array([["a", "b"]] * 4))
    np.save(tmp_path / "objects.npy", np.array([{}, {}], dtype=object))
    save(tmp_path / "two.npz", first=np.zeros((4, 2)), second=np.zeros((4, 2)))
    save(tmp_path / "labels.npz", X=np.zeros((4, 2)), y=np.zeros(3))
    (tmp_path / "damaged.npy").write_bytes(b"\x93NUMPY")
    for name in ("text.npy", "objects.npy", "two.npz", "labels.npz", "damaged.npy", "missing.npy", "t.txt"):
        with pytest.raises(InputError):
            load_dataset(f"array:{tmp_path / name}")


def test_what_is_chosen_for_values():
    counts = torch.randint(0, 30, (200, 7))
    for data, likelihood in (
        (torch.randn(200, 7), "normal-diagonal"), (counts, "negative-binomial"), ((counts > 9).float(), "bernoulli")
    ):  # fmt: skip
        config = values_config(Dataset("mine", data[:150], data[150:]))
        assert (config.likelihood, config.latent_dim) == (likelihood, 3)
        assert (config.binarize == "threshold") == (likelihood == "bernoulli"), "a true bound"
    assert values_config(Dataset("mine", counts[:150], counts[150:]), likelihood="poisson").likelihood == "poisson"


def test_datasets_and_loaders_of_torch():
    x, y = torch.randn(40, 3), torch.arange(40) % 4
    one = Dataset.from_torch("mine", TensorDataset(x, y))
    assert (len(one.train), len(one.test), one.label_names) == (36, 4, ("0", "1", "2", "3"))
    together = torch.cat([one.train, one.test])
    rows = [int((x == row).all(1).nonzero()) for row in together]
    assert sorted(rows) == list(range(40))
    assert torch.equal(torch.cat([one.train_labels, one.test_labels]), y[rows])
    loader = DataLoader(TensorDataset(x), batch_size=7, drop_last=True)
    two = Dataset.from_torch("mine", loader, TensorDataset(x[:9]))
    assert torch.equal(two.train, x[:35])
    assert torch.equal(two.test, x[:9])
    assert "5 train data are left out" in two.note


class Texts(torch.utils.data.Dataset):
    def __len__(self):
        return 5

    def __getitem__(self, index):
        return "text"


class Ragged(Texts):
    def __getitem__(self, index):
        return torch.zeros(index + 1)


class Fails(Texts):
    def __getitem__(self, index):
        raise KeyError("no such row")


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (TensorDataset(torch.zeros(5, 2), torch.zeros(5), torch.zeros(5)), "yields 3 tensors"),
        (Texts(), "yields a str"),
        (Ragged(), "cannot be read"),
        (Fails(), "no such row"),
        (TensorDataset(torch.zeros(0, 2)), "holds no data"),
    ],
)
def test_sources_of_something_else_are_refused(source, words):
    with pytest.raises(InputError) as refused:
        Dataset.from_torch("mine", source)
    assert words in str(refused.value)
