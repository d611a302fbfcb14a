"""Data of an iterable of batches, read once to hold some rows out and again in each pass; and what people hold."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pandas
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from pvae.config.choices import values_config
from pvae.core.errors import InputError, TrainingError
from pvae.data import sources, stream
from pvae.data.preparation import Preparation, TrainingData
from pvae.data.reading import Reading
from pvae.data.sources import as_dataset
from pvae.data.stream import StreamedData, streamed

RNG = np.random.default_rng(0)


def rows_of(x):
    return Counter(tuple(row) for row in np.nan_to_num(np.asarray(x, float), nan=-1e9).tolist())


def visited(data, passes=1, batch_size=7):
    """The rows of the steps of some passes."""
    train = StreamedData.of(data, data.stream, TrainingData(data.train, Preparation(is_exact=True), None), batch_size)
    found = [train.prepared[order].clone() for order in train.orders(passes, passes * data.num_train)]
    return torch.cat(found)


@pytest.fixture
def few_kept(monkeypatch):
    """Keep 100 rows, and 20 as test data; read 30 rows for the next steps, and look at 16 together."""
    for name, value in {"_SAMPLE": 100, "_HELD_OUT": 20, "_NEXT": 30, "_AT_ONCE": 16}.items():
        monkeypatch.setattr(stream, name, value)


@pytest.mark.parametrize("is_shuffled", [False, True])
@pytest.mark.parametrize("x", [torch.randn(500, 3), torch.randint(0, 2, (500, 3)), torch.arange(500).view(-1, 1) % 9.0])
def test_rows_that_are_held_out_are_in_no_step_and_all_others_are(few_kept, x, is_shuffled):
    """Also where rows repeat: as many copies of one are left out as were held out."""
    data = streamed(DataLoader(TensorDataset(x), batch_size=11, shuffle=is_shuffled), "mine").with_valid(0.1)
    assert len(data.test) == 20
    assert len(data.valid) >= 8
    held_out = rows_of(torch.cat([data.test, data.valid]))
    for passes in 1, 3:
        found = rows_of(visited(data, passes))
        assert found == Counter({row: passes * n for row, n in (rows_of(x) - held_out).items()})


def test_the_order_within_what_is_read_is_random_and_the_sample_is_of_all_rows(few_kept):
    x = torch.arange(1000.0).view(-1, 1)
    data = streamed([*x.split(10)], "mine")
    steps = visited(data).flatten()
    assert not torch.equal(steps, steps.sort().values)
    assert steps[:28].amax() < 60
    assert data.train.amax() > 900  # fails once in 1e3 samples, and the sample is always the same


@pytest.mark.parametrize(
    ("value", "kind"), [(0.5, "real"), (-1.0, "real"), (float("nan"), "count"), (3.0, "count")], ids=str
)
def test_a_single_row_that_says_the_kind_of_a_column_is_found(few_kept, value, kind):
    x = torch.from_numpy(RNG.poisson(2, (2000, 2))).float()
    x[1235, 1] = value
    frames = [pandas.DataFrame(part.numpy(), columns=["a", "b"]) for part in x.split(100)]
    for source in frames, [*x.split(100)]:
        data = streamed(source, "mine")
        config = values_config(data)
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
    parts = [frame[start : start + 90] for start in range(0, n, 90)]
    data, whole = streamed(parts, "mine"), as_dataset(frame, Reading())
    assert [replace(one, decimals=None) for one in data.columns] == [
        replace(one, decimals=None) for one in whole.columns
    ]
    assert [one.name for one in data.constants] == ["one"]
    every = torch.cat([data.test, visited(data)])
    assert rows_of(every) == rows_of(torch.cat([*whole.splits.values()]))


def test_labels_come_with_their_rows(few_kept):
    x = torch.randn(300, 2)
    y = (x[:, 0] > 0).long() + 2 * (x[:, 1] > 0).long()
    data = streamed(DataLoader(TensorDataset(x, y), 16, shuffle=True), "mine")
    assert data.label_names == ("0", "1", "2", "3")
    train = StreamedData.of(data, data.stream, TrainingData(data.train, Preparation(), data.train_labels), 7)
    for order in train.orders(1, data.num_train):
        of_x = (train.prepared[order, 0] > 0).long() + 2 * (train.prepared[order, 1] > 0).long()
        assert torch.equal(train.y[order], of_x)


class Changing:
    """An iterable that yields something else in each pass."""

    def __init__(self, *passes):
        self.passes = iter(passes)

    def __iter__(self):
        for one in next(self.passes):
            if isinstance(one, Exception):
                raise one
            yield one


FOUR = [torch.randn(4, 2) for _ in range(5)]


NO_STREAMS = {
    "empty": [],
    "three rows": [torch.randn(3, 2)],
    "an iterator": iter(FOUR),
    "another shape": [*FOUR, torch.randn(4, 3)],
    "another type": [*FOUR, torch.randn(4, 2).double()],
    "lists": [["a", "b"]],
    "too few labels": [(torch.randn(3, 2), torch.ones(2))],
    "one dimension": [torch.randn(3)],
    "infinite": [torch.full((4, 2), torch.inf)],
    "an error": Changing([*FOUR, ValueError("mine")]),
    "other columns": [pandas.DataFrame({"a": [1.0] * 4}), pandas.DataFrame({"b": [1.0] * 4})],
}


@pytest.mark.parametrize("source", NO_STREAMS.values(), ids=NO_STREAMS)
def test_what_is_no_iterable_of_batches_is_refused(source):
    with pytest.raises(InputError) as found:
        streamed(source, "mine")
    assert "mine" in str(found.value)
    assert "\n" not in str(found.value)


class Noisy(Dataset):
    def __len__(self):
        return 400

    def __getitem__(self, row):
        return torch.tensor([float(row), 0.0]) + torch.randn(2)


def test_rows_that_do_not_come_again_are_refused(few_kept):
    """As of a random transformation: others would be trained on that are test data but for their noise."""
    with pytest.raises(TrainingError, match="held out"):
        visited(streamed(DataLoader(Noisy(), 20), "mine"))


def test_what_loaders_yield_is_taken(few_kept):
    """Of an iterable data set, without a length; empty batches; bfloat16; and data frames whose columns are numbers."""

    class Rows(IterableDataset):
        def __iter__(self):
            yield from FOUR[0].repeat(20, 1)

    assert streamed(DataLoader(Rows(), 8), "mine").num_train == 72
    with pytest.raises(InputError, match="DataLoader"):
        as_dataset(Rows(), Reading())
    assert len(visited(streamed([FOUR[0][:0], *FOUR], "mine"))) == 18
    assert streamed([one.bfloat16() for one in FOUR], "mine").train.dtype == torch.float32
    frames = [pandas.DataFrame(RNG.normal(size=(50, 3))) for _ in range(9)]
    assert [one.name for one in streamed([*frames, frames[0][:0]], "mine").columns] == ["0", "1", "2"]


def test_options_are_chosen_for_an_iterable(few_kept):
    frames = [pandas.DataFrame({"a": RNG.normal(size=50), "b": [True, False] * 25}) for _ in range(9)]
    assert values_config(frames, epochs=2).columns == "real,binary"


def test_memory_for_rows_is_bounded_by_their_bytes(monkeypatch):
    monkeypatch.setattr(stream, "_BYTES", 10_000)
    data = streamed([torch.randn(50, 250) for _ in range(20)], "mine")  # 1,000 bytes each
    assert len(data.train) + len(data.test) <= 10
    assert len(data.extremes) <= 4


def test_a_column_of_classes_comes_with_its_rows(few_kept, monkeypatch):
    kind = RNG.choice(["b", "a", "seldom"], 3000, p=[0.5, 0.4996, 0.0004])
    kind[7] = "seldom"
    frame = pandas.DataFrame({"x": np.where(kind == "a", 5.0, -5.0) + RNG.normal(size=3000), "kind": kind})
    monkeypatch.setattr(sources, "_LARGE", 500)
    data = as_dataset(frame, Reading(label_column="kind"))
    assert data.label_names == ("a", "b", "seldom")
    train = StreamedData.of(data, data.stream, TrainingData(data.train, Preparation(), data.train_labels), 7)
    for order in train.orders(1, data.num_train):
        assert torch.equal(train.prepared[order, 0] > 0, train.y[order] == 0)


@pytest.mark.parametrize(
    "second", [FOUR[:3], [], [*FOUR[:2], KeyError("mine")], [one[:, :1] for one in FOUR], [one.int() for one in FOUR]],
    ids=["short", "empty", "raises", "narrow", "whole"],
)  # fmt: skip
def test_a_pass_that_differs_from_the_first_is_refused(second):
    with pytest.raises(TrainingError):
        visited(streamed(Changing(FOUR, second), "mine"))


@pytest.mark.parametrize(
    "data",
    [np.ones((5, 3)), torch.ones(5, 3), pandas.DataFrame(np.eye(5)), TensorDataset(torch.ones(5, 3))],
    ids=lambda one: type(one).__name__,
)
def test_data_in_memory_become_a_data_set(data):
    found = as_dataset(data, Reading())
    assert len(found.train) + len(found.test) == 5
    assert found.stream is None


NO_DATA = {
    "number": 3, "path": "table.csv", "dict": {"x": 1}, "a vector": np.ones(3), "texts": np.array([["a"]]),
    "an empty frame": pandas.DataFrame(),
    "two columns of one name": pandas.DataFrame(np.ones((5, 2)), columns=["a", "a"]),
}  # fmt: skip


@pytest.mark.parametrize("data", NO_DATA.values(), ids=NO_DATA)
def test_what_is_no_data_is_refused(data):
    with pytest.raises(InputError):
        as_dataset(data, Reading())
