"""Columns of which some values are known only to be below a limit: how they are read, written and refused."""

from __future__ import annotations

import math

import numpy as np
import pandas
import pytest
import torch
from helpers.tables import table_text

from pvae.config.build import build_vae
from pvae.config.choices import values_config
from pvae.config.config import Config
from pvae.config.refusals import refuse
from pvae.core.errors import InputError
from pvae.data.read import read
from pvae.data.sources import read_values
from pvae.models.columns import column_kinds, columns_text
from pvae.models.features import fit_to
from pvae.tables.parsing import read_frame
from pvae.tables.reading import Reading

A = ["0.71", "<0.50", "1.40", "2.05", "<0.50", "0.50", "3.30", "5.12", "0.93", "1.12", "0.61", "<0.50"]
B = [f"{row * row % 7}.{90 - row}" for row in range(12)]


def table(path, a=A, name="t.csv", **others):
    """A file with a column a, in which each field may be below a limit, b of numbers, and others."""
    file = path / name
    pandas.DataFrame({"a": a, "b": B, **others}).to_csv(file, index=False)
    return file


def rows(file, known=None, **reading):
    return read_values(file, Reading(**{"rules": "none", **reading}), known)


def test_texts_name_a_limit_and_come_back_as_they_are(tmp_path):
    file = table(tmp_path)
    found = rows(file)
    a, b = found.schema.columns
    assert (a.limit, a.kind, b.limit) == (0.5, "", None)
    assert found.x["train"][:3, 0].tolist() == [0.71, 0.25, 1.4]
    assert "a (<0.50 in 3 rows)" in found.schema.note
    assert table_text(found.schema.columns, torch.from_numpy(found.x["train"])) == file.read_text()
    gaps = rows(table(tmp_path, [*A[:3], "", *A[4:]]))
    assert math.isnan(gaps.x["train"][3, 0]), "an empty field is missing, where texts name what is below"


def test_empty_fields_are_below_a_limit_that_an_option_names(tmp_path):
    a = ["" if text.startswith("<") else text for text in A]
    found = rows(table(tmp_path, a), columns="a=below:0.5")
    assert found.schema.columns[0].kind == "below"
    assert found.x["train"][:3, 0].tolist() == [0.71, 0.25, 1.4]
    again = rows(table(tmp_path, a), columns="positive<0.5,real")
    assert again.x["train"].tolist() == found.x["train"].tolist(), "as a run prints it"
    other = rows(table(tmp_path, ["", "<0.5", "0.3", *A[3:]]), found.schema)
    assert other.x["train"][:3, 0].tolist() == [0.25] * 3, "what another file says of the same"
    for empty in (math.nan, "<0.5"):
        frame = pandas.DataFrame({"a": [float(text or "nan") for text in a], "b": map(float, B)}).astype(object)
        x = read_frame(frame.fillna(empty), found.schema.reading).x["train"]
        assert x[:, 0].tolist() == found.x["train"][:, 0].tolist()


def test_the_largest_of_several_limits_is_that_of_all_below_it(tmp_path):
    several = table(tmp_path, ["0.71", "<0.9", *A[2:]])
    found = rows(several, columns="a=below:0.9")
    assert (found.x["train"][:, 0] < 0.9).tolist() == [
        float(text.strip("<")) < 0.9 or text == "<0.9" for text in ["0.71", "<0.9", *A[2:]]
    ]
    with pytest.raises(InputError, match=r"a=below:0\.9"):
        rows(several)


@pytest.mark.parametrize(
    ("a", "columns", "says"),
    [
        (["0.1", *A[1:]], "", "value 0.1 below its limit 0.5"),
        (["0.3", *A[2:], "7"], "a=below:0.6", "below its limit 0.6"),
        (A, "a=below:0.4", "a=below:0.5"),
        (["red", "blue"] * 6, "a=below:0.5", "no numbers"),
        ([f"2020-03-{day + 1:02}" for day in range(12)], "a=below:0.5", "no numbers"),
        ([""] * 12, "a=below:0.5", "no numbers"),
        (["7", "oops", *A[2:]], "", "'oops', and not a number"),
        (A, "a=count", "'<0.50', and not a number"),
    ],
)
def test_limits_that_contradict_the_column_are_refused_in_a_line(tmp_path, a, columns, says):
    with pytest.raises(InputError) as refused:
        rows(table(tmp_path, a), columns=columns)
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)


def test_groups_of_ages_are_categories(tmp_path):
    found = rows(table(tmp_path, ["<18", "18-30", "31+"] * 4))
    assert found.schema.columns[0].categories == ("18-30", "31+", "<18")


@pytest.mark.parametrize("text", ["a=below:x", "positive<0,real", "positive<-1", "count<3", "a=below:"])
def test_limits_that_are_none_are_refused(text):
    with pytest.raises(InputError, match="--columns"):
        Reading(columns=text) and Config(columns=text, likelihood="columns", dataset="table:t.csv")


def test_kinds_have_limits_that_a_run_keeps(tmp_path):
    text = "positive<0.5*2,real<-1.5,real<1e-05,real"
    assert columns_text(column_kinds(text)) == text
    data = read(f"table:{table(tmp_path)}")
    config = values_config(data)
    assert config.columns.split(",")[0] in ("positive<0.5", "real<0.5")
    refuse(config, data=data)
    for other in ({"likelihood": "normal-diagonal"}, {"columns": "real*2"}):
        with pytest.raises(InputError, match="leave --likelihood out"):
            refuse(values_config(data, **other), data=data)


def test_no_rule_depends_on_a_column_with_a_limit():
    """Whose values below it are not known."""
    draw = np.random.default_rng(0)
    low = np.exp(draw.normal(size=900)).round(2)
    a = [f"{value:.2f}" if value >= 0.4 else "<0.4" for value in low]
    frame = pandas.DataFrame({"a": a, "b": (low + draw.uniform(0, 3, 900)).round(2)})
    assert read(frame).rules == ()
    assert read(frame.assign(a=low)).rules
    assert read(frame.assign(a=low), rules="not a").rules == ()


def test_codes_have_no_steps(tmp_path):
    found = rows(table(tmp_path))
    x = torch.from_numpy(found.x["train"])
    x[x[:, 0] < 0.5, 0] = 0.123456
    vae = build_vae(Config(system="values", columns="positive<0.5,real", likelihood="columns"), (2,))
    fit_to(vae, x)
    assert vae.p_x.parts[0].units.step.item() == pytest.approx(0.01)


def test_a_drawn_value_is_below_the_limit_or_in_the_steps_of_the_file(tmp_path):
    (a, _) = rows(table(tmp_path)).schema.columns
    assert [a.text(value) for value in (0.3, 0.494, 0.496, 0.503, -2.0)] == ["<0.50", "<0.50", "0.50", "0.50", "<0.50"]
    assert [a.text(value, is_filled=True) for value in (0.31234567, 0.494, 0.61234)] == ["0.312346", "0.494", "0.61"]
    assert [a.rounded(value) for value in (0.3, 0.503)] == [0.25, 0.5]
    whole = ["20", "<15", "25", "15", "40", "35", "<15", "30", "15", "20", "25", "60"]
    (a, _) = rows(table(tmp_path, whole)).schema.columns
    assert [a.text(value) for value in (3.0, 12.0, 13.0, 18.2, 99.0)] == ["<15", "<15", "15", "20", "100"]


def test_limits_and_truth_values_of_the_dtype_category():
    leads = pandas.Categorical(["<0.5", "0.7", "1.2"] * 4)
    frame = pandas.DataFrame({"lead": leads, "is": pandas.Categorical([True, False, True] * 4), "a": np.arange(12) % 5})
    lead, truth, _ = read_frame(frame, Reading()).schema.columns
    assert (lead.limit, lead.categories) == (0.5, ())
    assert truth.categories == ()
