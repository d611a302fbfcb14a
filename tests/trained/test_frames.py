"""Rows of a table as data frames with the columns of its file, in their order."""

from __future__ import annotations

import numpy as np
import pandas
import pytest

import pvae
from pvae.data.read import other_rows
from pvae.tables.codec import to_file
from pvae.tables.parsing import read_frame
from pvae.trained.frames import as_file, filled_in, missing_fields


def table(count=60):
    rng = np.random.default_rng(0)
    columns = {
        "unit": "mg",
        "age": rng.normal(40, 9, count).round(1),
        "kind": rng.choice(["a", "b"], count),
        "site": "north",
        "city": rng.choice(["Oslo", "Rome"], count),
        "end": "x",
    }
    return pandas.DataFrame(columns)


@pytest.fixture(scope="module")
def data():
    return pvae.read(table(), label_column="kind")


def test_labels_and_constant_columns_stand_where_they_stood(data):
    x = to_file(data, data.train)
    codes = data.train_labels
    found = as_file(data, [], x, [data.label_names[code] for code in codes])
    assert [*found] == [*table()]
    assert {*map(tuple, found.to_numpy())} <= {*map(tuple, table().astype(str).to_numpy())}
    assert [*as_file(data, [], x)] == [name for name in table() if name != "kind"]


def test_arrays_keep_their_names_and_labels():
    data = pvae.read(np.random.default_rng(0).normal(size=(20, 3)))
    found = as_file(data, data.names["train"], data.train, ["a"] * len(data.train))
    assert [*found] == ["names", "x", "labels"]
    assert [*as_file(data, data.names["train"], data.train)] == ["names", "x"]


def test_what_is_missing_is_filled_in_but_for_rows_that_are_outside(data):
    """Row 1 has an unknown city; a missing constant is filled in there too."""
    frame = table(4).astype(str)
    frame.loc[[0, 1], "age"] = ""
    frame.loc[1, ["city", "unit"]] = ["Paris", ""]
    frame.loc[2, "site"] = "NA"
    given = other_rows(data, read_frame(frame, data.reading, "rows", data))
    assert [*given.outside] == [1]
    is_missing = missing_fields(data, given, frame, ["", "NA"])
    new = as_file(data, [], to_file(data, data.train[:4]))
    filled = filled_in(frame, new, is_missing)
    assert filled["age"].tolist() == [new["age"][0], "", *frame["age"][2:]]
    assert filled["city"].tolist() == frame["city"].tolist()
    assert filled["unit"].tolist() == ["mg"] * 4
    assert filled["site"].tolist() == ["north"] * 4
    assert filled["kind"].tolist() == frame["kind"].tolist()
    assert frame["age"][0] == "", "a copy is filled in"
