"""Rules of a table in a report: kept by draws, compared in the columns of the file; and near rules."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pytest
from pandas import DataFrame

import pvae
from pvae.config.choices import values_config
from pvae.data.column import Column
from pvae.evaluation.context import Context
from pvae.evaluation.measures.rules import Rules, near_rules
from pvae.evaluation.measures.samples import SampleQuality
from pvae.plotting import pictures
from pvae.runs.run import Run
from pvae.training.fit import fit

COLUMNS = [
    Column("orders", decimals=0),
    Column("returns", decimals=0),
    Column("plan", ("basic", "plus", "pro")),
    Column("price", decimals=0, origin=5.0),
    Column("note", decimals=2),
    Column("start", date_format="%Y-%m-%d"),
]


def rows(seed, exceptions, count=2000):
    """Rows of which some break each of three near rules, one after the other."""
    draw = np.random.default_rng(seed)
    orders = draw.poisson(3, count).astype(float)
    returns = np.minimum(draw.poisson(1, count), orders)
    returns[:exceptions] = orders[:exceptions] + 1
    plan = np.arange(count) % 3.0
    price = np.array([0.0, 4, 15])[plan.astype(int)]
    price[2 : 3 * exceptions : 3] = 4  # of pro
    note = np.where(plan == 1, np.nan, draw.normal(size=count))
    note[1 : 3 * exceptions : 3] = 7.0  # of plus
    return np.stack([orders, returns, plan, price, note, draw.integers(0, 300, count)], 1)


def test_near_rules_are_found_and_named_with_their_shares():
    found = {one.says: one for one in near_rules(rows(0, 4), rows(1, 40), COLUMNS)}
    shares = {says: (one.share, one.share_of_draws) for says, one in found.items()}
    assert shares["returns <= orders"] == (1 - 4 / 2000, 1 - 40 / 2000)
    assert shares["price is 20 where plan is pro"] == (1 - 4 / 666, 1 - 40 / 666)
    assert shares["note is empty where plan is plus"] == (1 - 4 / 667, 1 - 40 / 667)
    drops = [one.share - one.share_of_draws for one in found.values()]
    assert drops == sorted(drops, reverse=True)
    assert str(found["returns <= orders"]) == "returns <= orders: 99.8% of the rows, 98.0% of the draws"
    assert sum("plan" in says and "price" in says for says in found) == 1, "one of two columns"


def test_what_holds_in_all_rows_in_too_few_of_them_or_too_seldom_is_no_near_rule():
    for exceptions, count, is_found in ((0, 2000, False), (1, 597, False), (1, 600, True), (8, 2000, False)):
        found = near_rules(rows(0, exceptions, count), rows(1, 40), COLUMNS)
        assert ("note is empty where plan is plus" in [one.says for one in found]) == is_found


def independent(seed):
    """Columns of all kinds, in which some values are in nearly all rows, and some numbers above nearly all others."""
    draw = np.random.default_rng(seed)
    count = draw.choice([300, 1000, 3000])
    share = draw.uniform(0.98, 1)
    kinds = [
        (draw.random(count) < share).astype(float),
        np.where(draw.random(count) < share, 0, draw.gamma(2, 20, count).round(1)),
        draw.choice(3, count, p=[share, 0.6 - 0.6 * share, 0.4 - 0.4 * share]).astype(float),
        draw.normal(size=count).round(2),
        draw.normal(4, 1, count).round(2),
        np.where(draw.random(count) < share, np.nan, draw.poisson(1, count)),
    ]
    texts = [("a", "b", "c") if place == 2 else () for place in range(6)]
    return np.stack(kinds, 1), [Column(f"c{place}", one, decimals=2) for place, one in enumerate(texts)]


def test_independent_columns_have_no_near_rules():
    for seed in range(30):
        x, columns = independent(seed)
        assert near_rules(x, x, columns) == []


@pytest.fixture
def run(made_once, no_pictures, quick_start):
    """A run on a table of which rules leave out two columns, and whether a third is empty."""
    draw = np.random.default_rng(0)
    start = np.datetime64("2021-01-01") + draw.integers(0, 300, 500)
    nights = 1 + draw.poisson(2, 500)
    frame = DataFrame({"start": start.astype("datetime64[ns]"), "end": (start + nights).astype("datetime64[ns]")})
    frame["nights"] = nights
    frame["price"] = draw.gamma(9, 9, 500).round(2)
    frame["total"] = (frame.price * nights).round(2)
    frame["room"] = draw.choice(["single", "double"], 500)
    frame["fee"] = np.where(frame.room == "single", np.nan, draw.normal(9, 2, 500).round(1))
    data = pvae.read(frame)
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
    assert (rules.found, rules.broken) == (len(run.data.rules), 0.0)
    assert json.loads(json.dumps(asdict(rules)))["found"] == rules.found
    assert [axes.get_title().partition(",")[0] for axes in pictures.samples(run).axes] == names
    shown = {text.get_text() for axes in pictures.reconstructions(run).axes for text in axes.get_yticklabels()}
    assert shown == {*names}
