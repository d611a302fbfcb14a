"""Data that are no images: tensors of any shape and type, and files of them."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math

import numpy as np
import pandas
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from pvae.core.errors import InputError
from pvae.core.records import from_record, to_json
from pvae.data import torch_data
from pvae.data.choices import values_config
from pvae.data.dataset import Column, DataRecord, Dataset
from pvae.data.preparation import Preparation
from pvae.data.sources import load_dataset
from pvae.data.tables import table_text
from pvae.data.value_files import read_values

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
    with pytest.raises(InputError, match=r"x\[1\] of test\[1\]"):
        Dataset("mine", data[:3], data[3:])


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


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("a,b\n1,2\n3\n", ["line 3", "1 fields"]),
        ("a,b\n1,2\n3,x\n", ["line 3", "b is the text 'x'"]),
        ("a,b\n" + "1,NA\n" * 4 + "1,2\n" * 5, ["line 2", "b is the text 'NA'"]),
        ("a,id\n" + "".join(f"1,p{row}\n" for row in range(90)), ["column id", "90 different texts"]),
        ("", ["no rows"]),
        ("a,b\n" + "1,2\n" * 9 + "3,inf\n", ["column b of line-11 is inf"]),
        ("a,b\n" + "1,\n" * 9, ["column b", "missing in all"]),
        ("a,b\n1,2,3\n", ["line 2", "3"]),
        ('a,b\n1,"2\n' + "1,2\n" * 9, ["cannot be read"]),
        ("a,b\n" + "1,2\n" * 9 + "1_000,2\n", ["line 11", "1_000"]),
    ],
)
def test_bad_tables_are_refused_by_line_and_column(tmp_path, content, words):
    (tmp_path / "t.csv").write_text(content)
    with pytest.raises(InputError) as refused:
        load_dataset(f"table:{tmp_path / 't.csv'}")
    assert all(word in str(refused.value) for word in words), refused.value


def test_blank_lines_and_a_column_without_a_name_are_no_data(tmp_path):
    (tmp_path / "t.csv").write_text(",a,b\n0,1,2\n\n1,3,\n\n")  # as pandas writes the numbers of its rows
    values = read_values(tmp_path / "t.csv")
    assert np.array_equal(values.x["train"], [[1, 2], [3, math.nan]], equal_nan=True)
    assert values.names == {"train": ["line-2", "line-4"]}
    assert values.columns == (Column("a"), Column("b"))
    assert "without a name" in values.note


def mixed(path, count=60):
    cities = ["Rome", "", "Oslo", " Oslo", "7"]
    rows = [f"{i / 4},{i % 2},{cities[i % 5]},{'' if i % 9 == 4 else i % 30 // 29 * 90}" for i in range(count)]
    path.write_text("\ufeffage,is_new,city,visits\n" + "\n".join(rows) + "\n")
    return path


def test_a_table_of_numbers_and_texts(tmp_path):
    data = load_dataset(f"table:{mixed(tmp_path / 't.csv')}")
    assert data.columns == (Column("age"), Column("is_new"), Column("city", ("7", "Oslo", "Rome")), Column("visits"))
    for split in ("train", "test"):
        for name, (age, _, city, visits) in zip(data.names[split], data.splits[split].tolist()):
            row = int(name.removeprefix("line-")) - 2
            assert age == row / 4
            assert math.isnan(visits) == (row % 9 == 4)
            assert city == [2, math.nan, 1, 1, 0][row % 5] or (row % 5 == 1 and math.isnan(city))
    renamed = dataclasses.replace(
        data, columns=(*data.columns[:2], Column("city", ("7", "Oslo", "Rom")), *data.columns[3:])
    )
    assert renamed.record().sha256 != data.record().sha256, "other texts are other data"
    with pytest.raises(InputError, match="3 columns"):
        dataclasses.replace(data, columns=data.columns[:3])


def test_what_is_chosen_for_a_table(tmp_path):
    data = load_dataset(f"table:{mixed(tmp_path / 't.csv')}")
    config = values_config(data)
    assert (config.likelihood, config.columns, config.missing) == ("columns", "real,binary,categorical:3,count", True)
    given = "real*2,categorical:3,count"
    assert values_config(data, likelihood="columns", columns=given).columns == given
    draw = np.random.default_rng(1)
    for values, likelihood in (
        (draw.normal(size=(90, 3)), "normal-diagonal"),
        (draw.geometric(0.2, (90, 3)), "negative-binomial"),
        (draw.integers(0, 2, (90, 3)), "bernoulli"),
    ):
        table = Dataset("t", torch.tensor(values[:80]), torch.tensor(values[80:]), columns=tuple(map(Column, "abc")))
        assert values_config(table).likelihood == likelihood
    even = np.stack([draw.integers(20, 23, 90), draw.geometric(0.2, 90)], 1)  # a count varies more than a Poisson
    table = Dataset("t", torch.tensor(even[:80]), torch.tensor(even[80:]), columns=tuple(map(Column, "ab")))
    assert values_config(table).columns == "real,count"


def test_the_columns_of_a_run_are_those_of_other_files_too(tmp_path):
    columns = read_values(mixed(tmp_path / "t.csv")).columns
    few = tmp_path / "few.csv"
    few.write_text("age,is_new,city,visits\n,1,Rome,3\n2,0,,\n")
    values = read_values(few, columns)
    assert np.array_equal(values.x["train"], [[np.nan, 1, 2, 3], [2, 0, np.nan, np.nan]], equal_nan=True)
    assert values.names == {"train": ["line-2", "line-3"]}
    few.write_text("city,visits,age,is_new\n,3,4,1\n")  # in another order
    assert np.array_equal(read_values(few, columns).x["train"], [[4, 1, np.nan, 3]], equal_nan=True)
    for content, words in (
        ("age,is_new,city,visits\n1,1,Rome,1\n1,1,Paris,1\n", ["line 3", "city is 'Paris'", "7, Oslo, Rome"]),
        ("age,is_new,city,visits\n1,1,Rome,1\n1,1,Oslo,many\n", ["line 3", "visits is the text 'many'"]),
        ("age,is_new,city\n1,1,Rome\n", ["no column visits"]),
        ("age,new,city,visits\n1,1,Rome,1\n", ["no column is_new"]),
        ("age,is_new,city,visits,more\n1,1,Rome,1,1\n", ["the column more"]),
        ("age,age,city,visits\n1,1,Rome,1\n", ["columns named age"]),
    ):
        few.write_text(content)
        with pytest.raises(InputError) as refused:
            read_values(few, columns)
        assert all(word in str(refused.value) for word in words), refused.value


@pytest.mark.parametrize(
    ("column", "value", "drawn", "given"),
    [
        (Column("a"), 1 / 3, "0.333333", "0.333333333333333"),
        (Column("a", decimals=2), 12.125, "12.12", "12.125"),
        (Column("a", decimals=2), -0.001, "0.00", "-0.001"),
        (Column("a", decimals=2), 37.5, "37.50", "37.50"),
        (Column("a", decimals=16), float(np.float32(0.1)), "0.1", "0.1"),
        (Column("a", decimals=17), 0.1 + 0.2, "0.30000000000000004", "0.30000000000000004"),
        (Column("a", decimals=0, least=18, greatest=82), 108.4, "82", "108.4"),
        (Column("a", decimals=0, least=18, greatest=82), 31.7, "32", "31.7"),
        (Column("a", decimals=0, origin=1.6e9, least=0, greatest=1e6), 5.2, "1600000005", "1600000005.2"),
        (Column("a", decimals=5, origin=2458849.0), 0.12345, "2458849.12345", "2458849.12345"),
        (Column("a", ("x", "y", "z")), 1.0, "y", "y"),
        (Column("a", ("x", "y", "z")), 2.8, "z", "z"),
        (Column("a", decimals=1, suffix="%"), 4.96, "5.0%", "4.96%"),
        (Column("a", decimals=1, point=","), 1.5, "1,5", "1,5"),
        (Column("a", origin=18262, least=0, greatest=9, date_format="%Y-%m-%d"), 1.6, "2020-01-03", "2020-01-03"),
        (Column("a", origin=18262, least=0, greatest=9, date_format="%d.%m.%Y"), 31.0, "10.01.2020", "01.02.2020"),
        (Column("a", origin=18262, date_format="%Y-%m-%d %H:%M"), 0.5 + 1e-5, "2020-01-01 12:00", "2020-01-01 12:00"),
        (Column("a", decimals=0), math.nan, "", ""),
    ],
)
def test_a_value_becomes_the_text_that_the_file_had(column, value, drawn, given):
    assert column.text(value) == drawn
    assert column.text(value, is_given=True) == given


def test_a_table_is_written_as_it_was_read():
    columns = (Column("age", decimals=1), Column("city, town", ("Oslo", "Rome")))
    values = torch.tensor([[1 / 3, 1], [2, math.nan]]).double()
    assert table_text(columns, values) == 'age,"city, town"\n0.3,Rome\n2.0,\n'
    given = torch.tensor([[math.nan, 0], [12.25, math.nan]]).double()
    assert table_text(columns, values, given) == 'age,"city, town"\n0.3,Oslo\n12.25,\n'
    columns = (dataclasses.replace(columns[0], point=","), columns[1])
    assert table_text(columns, values) == "age;city, town\n0,3;Rome\n2,0;\n"


def test_the_columns_of_a_run_are_kept_and_those_of_older_runs_open():
    columns = (Column("day", origin=18262.0, date_format="%Y", least=0.0), Column("city", ("Oslo",), decimals=None))
    data = Dataset("t", torch.ones(4, 2), torch.ones(2, 2), columns=columns, left_out=("id",))
    record = dataclasses.asdict(data.record())
    assert from_record(DataRecord, json.loads(to_json(record))) == data.record()
    record["columns"] = [{"name": "day", "categories": []}, {"name": "city", "categories": ["Oslo"]}]
    del record["left_out"]
    old = from_record(DataRecord, json.loads(to_json(record)))
    assert old.columns == (Column("day"), Column("city", ("Oslo",)))
    assert dataclasses.replace(data, columns=old.columns).sha256 == data.sha256


def test_a_table_in_a_parquet_file(tmp_path):
    pytest.importorskip("pyarrow")
    frame = pandas.DataFrame(
        {"a": [1.5, None, 0.1 + 0.2] * 7, "b": [True, False, None] * 7, "c": ["x", "y, z", None] * 7, "d": range(21)}
    ).assign(e=np.float32(0.1))
    frame.to_parquet(tmp_path / "t.parquet")
    values, _, names, columns, _ = read_values(tmp_path / "t.parquet")
    assert columns == (Column("a"), Column("b"), Column("c", ("x", "y, z")), Column("d"), Column("e"))
    assert names["train"][:2] == ["row-1", "row-2"]
    assert np.array_equal(values["train"][1], [np.nan, 0, 1, 1, np.float32(0.1)], equal_nan=True)
    assert values["train"][2, 0] == 0.1 + 0.2
    (tmp_path / "t.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match="cannot be read"):
        read_values(tmp_path / "t.parquet")


def test_arrays_in_an_hdf5_file(tmp_path):
    h5py = pytest.importorskip("h5py")
    rows = RNG.random((40, 5))
    with h5py.File(tmp_path / "t.h5", "w") as file:
        file["X"], file["y"] = rows, ["a", "b", "c", "a"] * 10
    data = load_dataset(f"array:{tmp_path / 't.h5'}")
    assert data.datum_shape == (5,)
    assert data.label_names == ("a", "b", "c")
    (tmp_path / "t.h5").write_bytes(b"no HDF5")
    with pytest.raises(InputError, match="damaged"):
        load_dataset(f"array:{tmp_path / 't.h5'}")


@pytest.mark.parametrize(("name", "package"), [("t.parquet", "pyarrow"), ("t.h5", "h5py")])
def test_a_package_that_is_missing_is_named(tmp_path, monkeypatch, name, package):
    for module in ("arrays", "tables"):
        monkeypatch.setattr(f"pvae.data.{module}.find_spec", lambda name: None)
    (tmp_path / name).write_bytes(b"any")
    with pytest.raises(InputError, match=f"{package}.*pip install"):
        read_values(tmp_path / name)


def test_bad_arrays_are_refused(tmp_path):
    np.save(tmp_path / "text.npy", np.array([["a", "b"]] * 4))
    np.save(tmp_path / "objects.npy", np.array([{}, {}], dtype=object))
    save(tmp_path / "two.npz", first=np.zeros((4, 2)), second=np.zeros((4, 2)))
    save(tmp_path / "labels.npz", X=np.zeros((4, 2)), y=np.zeros(3))
    (tmp_path / "damaged.npy").write_bytes(b"\x93NUMPY")
    for name in ("text.npy", "objects.npy", "two.npz", "labels.npz", "damaged.npy", "missing.npy", "t.txt"):
        with pytest.raises(InputError):
            load_dataset(f"array:{tmp_path / name}")


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


def test_data_larger_than_memory_are_refused(monkeypatch):
    source = TensorDataset(torch.zeros(50, 4))
    monkeypatch.setattr(torch_data, "total_memory", lambda: 2 * 50 * 4 * 4 - 1)
    with pytest.raises(InputError, match="memory"):
        Dataset.from_torch("mine", source)
    monkeypatch.setattr(torch_data, "total_memory", lambda: 2 * 50 * 4 * 4)
    assert len(Dataset.from_torch("mine", source).train) == 45


class Texts(torch.utils.data.Dataset):
    def __len__(self):
        return 5

    def __getitem__(self, index):
        return "text"


class Fails(Texts):
    def __getitem__(self, index):
        raise KeyError("no such row")


class EndsEarly(DataLoader):
    def __iter__(self):
        yield from itertools.islice(super().__iter__(), 2)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (Texts(), "yields a str"),
        (Fails(), "no such row"),
        (TensorDataset(torch.zeros(0, 2)), "holds no data"),
        (EndsEarly(TensorDataset(torch.zeros(50, 2)), batch_size=10), "ends after 2 of its 5 batches"),
    ],
)
def test_sources_of_something_else_are_refused(source, words):
    with pytest.raises(InputError) as refused:
        Dataset.from_torch("mine", source)
    assert words in str(refused.value)
