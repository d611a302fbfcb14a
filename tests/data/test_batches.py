"""Data in batches, which are written once into a mapped file; and what people hold."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pandas
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import pvae
from pvae.config.choices import values_config
from pvae.core.errors import InputError
from pvae.data import batches
from pvae.data import read as reading_of_python

RNG = np.random.default_rng(0)


def rows_of(x):
    return Counter(tuple(row) for row in np.nan_to_num(np.asarray(x, float), nan=-1e9).tolist())


@pytest.fixture
def few_kept(monkeypatch):
    """At most 20 rows are test data, and kinds of columns are read off 100."""
    monkeypatch.setattr(batches, "_SAMPLE", 100)
    monkeypatch.setattr(batches, "_MOST_TEST", 20)


@pytest.mark.parametrize("x", [torch.randn(500, 3), torch.randint(0, 2, (500, 3)), torch.rand(500, 1, 4, 4) < 0.5])
def test_all_rows_are_read_once_and_split(few_kept, x):
    before = torch.get_rng_state()
    data = pvae.read(DataLoader(TensorDataset(x), batch_size=11, shuffle=True)).with_valid(0.1)
    assert torch.equal(torch.get_rng_state(), before)
    assert [len(one) for one in data.splits.values()] == [432, 20, 48]
    assert rows_of(torch.cat([*data.splits.values()]).flatten(1)) == rows_of(x.flatten(1))
    again = pvae.read(DataLoader(TensorDataset(x), batch_size=11, shuffle=True)).with_valid(0.1)
    assert again.sha256 == data.sha256, "the same draws of torch's generator"


def test_rows_that_are_sorted_are_in_a_random_order():
    data = pvae.read(part for part in torch.arange(1000.0).view(-1, 1).split(10))
    assert data.test.mean() > 400
    assert data.train[:100].amax() > 900  # each fails once in 1e4 orders, and the order is always the same


@pytest.mark.parametrize(
    ("value", "kind"), [(0.5, "real"), (-1.0, "real"), (float("nan"), "count"), (3.0, "count")], ids=str
)
def test_a_single_row_that_says_the_kind_of_a_column_is_found(few_kept, value, kind):
    x = torch.from_numpy(RNG.poisson(2, (2000, 2))).float()
    x[1235, 1] = value
    frames = [pandas.DataFrame(part.numpy(), columns=["a", "b"]) for part in x.split(100)]
    for source in frames, [*x.split(100)]:
        config = values_config(pvae.read(source))
        kinds = [one.name for one in config.column_kinds] or ["count" if "binomial" in config.likelihood else "real"]
        assert kinds[-1] == kind
        assert config.missing == (value != value)


def test_frames_in_parts_are_read_as_the_whole_frame_is(few_kept):
    n = 2000
    frame = pandas.DataFrame({
        "amount": RNG.gamma(2, 1, n).round(2), "city": RNG.choice(["Oslo", "Rome", "Lima"], n),
        "day": pandas.date_range("2020-01-01", periods=n), "one": "same", "late": ["seldom"] + ["often"] * (n - 1),
    })  # fmt: skip
    frame.loc[5, "amount"] = np.nan
    data, whole = pvae.read([frame[start : start + 90] for start in range(0, n, 90)]), pvae.read(frame, rules="none")
    ours, theirs = ([replace(one, decimals=None) for one in read.columns] for read in (data, whole))
    assert ours == theirs
    assert [one.name for one in data.constants] == ["one"]
    assert rows_of(torch.cat([*data.splits.values()])) == rows_of(torch.cat([*whole.splits.values()]))


def test_labels_come_with_their_rows(monkeypatch):
    x = torch.randn(300, 2)
    y = (x[:, 0] > 0).long() + 2 * (x[:, 1] > 0).long()
    data = pvae.read(DataLoader(TensorDataset(x, y), 16, shuffle=True))
    assert data.label_names == ("0", "1", "2", "3")
    for split, part in data.splits.items():
        assert torch.equal(data.labels[split], (part[:, 0] > 0).long() + 2 * (part[:, 1] > 0).long())
    kind = RNG.choice(["b", "a", "seldom"], 3000, p=[0.5, 0.4996, 0.0004])
    kind[7] = "seldom"
    frame = pandas.DataFrame({"x": np.where(kind == "a", 5.0, -5.0) + RNG.normal(size=3000), "kind": kind})
    monkeypatch.setattr(reading_of_python, "_LARGE", 500)
    data = pvae.read(frame, label_column="kind")
    assert data.label_names == ("a", "b", "seldom")
    assert torch.equal(data.train[:, 0] > 0, data.train_labels == 0)


FOUR = [torch.randn(4, 2) for _ in range(5)]
FRAMES = [pandas.DataFrame({"a": RNG.normal(size=8)})] * 3


def raising():
    yield FOUR[0]
    raise ValueError("mine")


REFUSED = {
    "empty": [],
    "three rows": [torch.randn(3, 2)],
    "an iterator of frames": iter(FRAMES),
    "another shape": [*FOUR, torch.randn(4, 3)],
    "another type": [*FOUR, torch.randn(4, 2).double()],
    "too few labels": [(torch.randn(3, 2), torch.ones(2))],
    "infinite": [torch.full((4, 2), torch.inf)],
    "an error": raising(),
    "other columns": [FRAMES[0], pandas.DataFrame({"b": [1.0] * 4})],
    "number": 3,
    "a vector": np.ones(3),
    "texts": np.array([["a"]]),
    "an empty frame": pandas.DataFrame(),
    "two columns of one name": pandas.DataFrame(np.ones((5, 2)), columns=["a", "a"]),
    "no such path": "no-such-table.csv",
}


@pytest.mark.parametrize("source", REFUSED.values(), ids=REFUSED)
def test_what_is_no_data_is_refused_in_one_line(source):
    with pytest.raises(InputError) as found:
        pvae.read(source)
    assert "\n" not in str(found.value)


def test_an_unknown_argument_is_refused():
    with pytest.raises(InputError, match="label_column"):
        pvae.read(FRAMES[0], label_colum="a")
    with pytest.raises(InputError, match="image-size"):
        pvae.read("mnist-5k", image_size="large")


def test_what_loaders_yield_is_taken():
    """Of an iterable data set, without a length; empty batches; bfloat16; and data frames whose columns are numbers."""

    class Rows(IterableDataset):
        def __iter__(self):
            yield from FOUR[0].repeat(20, 1)

    assert pvae.read(DataLoader(Rows(), 8)).num_train == 72
    assert pvae.read([FOUR[0][:0], *FOUR]).num_train == 18
    assert pvae.read([one.bfloat16() for one in FOUR]).train.dtype == torch.float32
    frames = [pandas.DataFrame(RNG.normal(size=(50, 3))) for _ in range(9)]
    assert [one.name for one in pvae.read([*frames, frames[0][:0]]).columns] == ["0", "1", "2"]


def test_a_path_says_what_it_holds(tmp_path):
    frame = pandas.DataFrame({"a": RNG.normal(size=20), "b": RNG.normal(size=20)})
    frame.to_csv(tmp_path / "t.csv", index=False)
    np.save(tmp_path / "x.npy", frame.to_numpy())
    for name, dataset in {"t.csv": "table", "x.npy": "array"}.items():
        data = pvae.read(tmp_path / name)
        assert data.dataset == f"{dataset}:{tmp_path / name}"
        assert pvae.read(data) is data
        assert data.sha256 == pvae.read(str(tmp_path / name)).sha256


@pytest.mark.parametrize(
    "data",
    [np.ones((5, 3)), torch.ones(5, 3), pandas.DataFrame(np.eye(5)), TensorDataset(torch.ones(5, 3))],
    ids=lambda one: type(one).__name__,
)
def test_data_in_memory_become_a_data_set(data):
    found = pvae.read(data)
    assert len(found.train) + len(found.test) == 5
    assert not found.is_in_parts
