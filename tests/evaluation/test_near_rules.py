"""Rules of a table in a report: kept by draws, compared in the columns of the file; and near rules."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pytest
from pandas import DataFrame

import pvae
from pvae.config.choices import values_config
from pvae.evaluation.context import Context
from pvae.evaluation.measures.rules import NearRule, Rules
from pvae.evaluation.measures.samples import SampleQuality
from pvae.plotting import pictures
from pvae.runs.run import Run
from pvae.training.fit import fit


def test_near_rules_are_named_with_their_shares():
    near = NearRule(says="returns <= orders", share=0.002, share_of_draws=0.02)
    assert str(near) == "returns <= orders: broken by 0.2% of the rows, 2.0% of the draws"


@pytest.fixture
def run(made_once, no_pictures):
    """A run on a table of which rules leave out two columns, and whether a third is empty."""
    draw = np.random.default_rng(0)
    start = np.datetime64("2021-01-01") + draw.integers(0, 300, 500)
    nights = 1 + draw.poisson(2, 500)
    frame = DataFrame({"start": start.astype("datetime64[ns]"), "end": (start + nights).astype("datetime64[ns]")})
    frame["nights"] = nights
    frame["price"] = draw.gamma(9, 9, 500).round(2)
    frame["total"] = (frame.price * nights).round(2)
    frame["room"] = draw.choice(["single", "double"], 500)
    frame["paid"] = (frame.total + draw.gamma(3, 3, 500).round(2)).round(2)
    frame["tip"] = (frame.paid - frame.total).round(2)
    frame["fee"] = np.where(frame.room == "single", np.nan, draw.normal(9, 2, 500).round(1))
    trained_on = [int(name[4:]) for name in pvae.read(frame).with_valid(0.1).names["train"]]
    frame.loc[trained_on[:2], "tip"] += 1
    frame.loc[int(pvae.read(frame).names["test"][0][4:]), "nights"] += 1
    data = pvae.read(frame, rules=["nights = end - start", "total = nights x price"])
    config = values_config(data, epochs=1)
    opened = Run.open(made_once("a table with rules", lambda out: fit(config, data=data, out=out)))
    opened.dataset(data)
    return opened


@pytest.mark.workflow
def test_a_report_and_pictures_are_of_the_columns_of_the_file(run, monkeypatch):
    names = [one.name for one in run.data.file_columns]
    assert names != [one.name for one in run.data.columns]
    context = Context(run)
    quality, rules = context.once(SampleQuality.of), context.once(Rules.of)
    assert {*quality.worst_columns[0].names, *quality.worst_pairs[0].names} <= {*names}
    assert quality.left_out is None
    assert quality.column_shapes > 0.8
    assert (rules.found, rules.broken, rules.impossible) == (len(run.data.rules), 0.0, 1)
    (near,) = rules.near
    assert near.says == "paid = tip + total"
    assert near.share == pytest.approx(2 / len(run.dataset().train))
    assert near.share_of_draws > 0.1
    assert f"of {run.data.num_test} of {run.data.num_test + 1} rows" in run.data.of_possible
    assert json.loads(json.dumps(asdict(rules)))["found"] == rules.found
    titles = [axes.get_title().partition(",")[0] for axes in pictures.samples(run).axes]
    assert titles == names[: len(titles)]
    shown = {text.get_text() for axes in pictures.reconstructions(run).axes for text in axes.get_yticklabels()}
    assert shown <= {*names}
