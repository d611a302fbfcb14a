"""The page of a table in Debian's chromium: it decodes, encodes and imputes as torch does; and what is refused."""

from __future__ import annotations

import csv
import dataclasses
import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.browser import close, needs_browser, wait
from helpers.commands import refuse
from pandas import DataFrame
from scipy.stats import norm
from torch.distributions import Bernoulli, Categorical, LogNormal, Normal

import pvae
import pvae.explore
from pvae.cli.export import explore as main
from pvae.config.choices import load_for, values_config
from pvae.config.config import Config
from pvae.core.errors import InputError
from pvae.core.random_state import seeded
from pvae.data.dataset import Dataset
from pvae.distributions.values import Columns, InSteps, WithAtom
from pvae.explore.networks import Tensors, operations
from pvae.explore.page import explorer_page
from pvae.marginal.log_likelihood import log_likelihood
from pvae.models.networks import BesideLinear, mlp
from pvae.runs.run import Run
from pvae.tables.codec import to_file
from pvae.tables.column import Column
from pvae.tables.parsing import read_frame
from pvae.tables.rule import Rule
from pvae.trained.codes import run_batch
from pvae.trained.imputation import impute
from pvae.training.fit import fit

pytestmark = pytest.mark.workflow

CITIES = ("Aarhus", "<b>Bergen", "Cadiz")
KINDS = {"columns": "pain=ordinal,city=categorical"}
MIXED = ("age", "visits", "smoker", "city", "pain", "seen", "dust", "rain")
CASES = {
    "mixed": (MIXED, KINDS),
    "mixed, missing": (MIXED, {**KINDS, "missing": True}),
    "positive": (("dust", "smoke"), {}),
    "counts": (("visits", "calls"), {}),
    "counts, missing": (("visits", "calls"), {"likelihood": "poisson", "missing": True, "latent_dim": 1}),
    "numbers, an autoencoder": (("age", "seen"), {"posterior": "delta"}),
    "numbers, missing, by Student t and a flow": (
        ("age", "seen"),
        {"likelihood": "student-t", "missing": True, "posterior": "planar"},
    ),
    "binary, on a sphere": (("smoker", "late"), {"latent_dim": 3, "posterior": "power-spherical", "prior": "sphere"}),
}


@pytest.fixture
def train(made_once, no_pictures):
    """A small VAE of some columns of a table in which all depend on one number; a tenth may be missing."""

    def make(out, names, options):
        out.mkdir()
        draw, count = np.random.default_rng(0), 120
        z = draw.normal(size=count)
        dates = np.datetime64("2020-06-01") + (60 * z + 5 * draw.normal(size=count)).astype(int)
        columns = {
            "age": (1e5 + 12 * z + 4 * draw.normal(size=count)).round(1),
            "visits": draw.poisson(draw.gamma(2, np.exp(z))),
            "calls": draw.poisson(draw.gamma(1, np.exp(-z))),
            "smoker": (draw.logistic(size=count) < 2 * z).astype(int),
            "late": (draw.logistic(size=count) < -2 * z).astype(int),
            "city": np.array(CITIES)[(draw.gumbel(size=(count, 3)) + np.outer(z, [-3, 0, 3])).argmax(1)],
            "pain": np.digitize(2 * z + draw.logistic(size=count), [-2, 0, 2]),
            "seen": dates,
            "dust": np.exp(z + 0.4 * draw.normal(size=count)).round(3) + 0.001,
            "smoke": 1000 * np.exp(-z + 0.4 * draw.normal(size=count)).round(3) + 1,
            "rain": np.where(draw.logistic(size=count) < -2 * z, 0.5, 0.6 + np.exp(z).round(1)),
        }
        share = 0.1 * options.get("missing", False)
        rows = zip(*(columns[one] for one in names))
        with (out / "t.csv").open("w", newline="") as file:
            csv.writer(file).writerows(
                [names, *(["" if draw.random() < share else one for one in row] for row in rows)]
            )
        given = {
            "dataset": f"table:{out / 't.csv'}",
            "hidden": (12,),
            "latent_dim": 2,
            "rules": "none",
            "compile": "none",
        } | options
        data = load_for(Config(dataset=given["dataset"], columns=options.get("columns", ""), rules="none"))
        config = values_config(data, **{**given, "epochs": 4, "lr": 0.02, "batch_size": 25, "patience": 0})
        fit(config, data=data, out=out / "run", device="cpu")

    return lambda case, *given: Run.open(made_once(case, lambda out: make(out, *(given or CASES[case]))) / "run")


def distributions(p):
    """What table.js has of p(x | z) of each column: mean and standard deviation, median and ends, or probabilities."""
    found = {}
    parts = zip(p.parts, p.order.split(p._sizes)) if isinstance(p, Columns) else [(p.base_dist, torch.arange(2))]
    for part, places in parts:
        for i, d in enumerate(places.tolist()):
            if isinstance(part, Categorical | Bernoulli):
                shares = part.probs[:, i]
                found[d] = shares if isinstance(part, Categorical) else torch.stack([1 - shares, shares], -1)
            elif isinstance(part, WithAtom):
                found[d] = torch.cat([part.atom[i] + _quantiles(part.rest, i), _share_of_atom(part)[:, i, None]], -1)
            elif isinstance(part, InSteps) and isinstance(part.base.base, LogNormal):
                found[d] = _quantiles(part, i)
            else:
                sd = part.variance[:, i].sqrt()
                found[d] = torch.stack([part.mean[:, i], torch.where(sd.isfinite(), sd, -1.0)], -1)
    return [found[d] for d in sorted(found)]


@needs_browser
def test_quantiles_of_draws_are_those_of_the_mixture(train, opened):
    """Of skewed values, by twenty places of each; of one draw they are its own to 0.03 standard deviations."""
    page = opened(train("mixed"))
    found = page.execute_script(
        "const column = pvae.content.columns[6];"
        "const parts = [[-1, -2], [1, -2]].map((outputs) => COLUMNS.positive(column, outputs));"
        "return [parts[0], mixed(column, parts.slice(0, 1), [1]), mixed(column, parts, [0.4, 0.6]), parts[1]]"
    )
    low, same, both, high = ([math.log(one) for one in (x["ends"][0], x["median"], x["ends"][1])] for x in found)
    (mean, sd), (other, wide) = ((x["log"]["mean"], x["log"]["sd"]) for x in (found[0], found[3]))
    assert np.abs(np.subtract(low, same)).max() < 0.03 * sd
    exact = [0.4 * norm.cdf(x, mean, sd) + 0.6 * norm.cdf(x, other, wide) for x in both]
    close(exact, torch.tensor(norm.cdf([-1, 0, 1])), 0.02)
    close(found[2]["mean"], 0.4 * found[0]["mean"] + 0.6 * found[3]["mean"])
    assert high[0] > low[2]


def _share_of_atom(part):
    return part.log_prob(part.atom).exp() * part.step.where(part.step > 0, 1.0)


def _quantiles(part, i):
    places = Normal(0.0, 1.0).cdf(torch.tensor([0.0, -1.0, 1.0]).double())
    return part.base.base.icdf(places[:, None, None])[..., i].T


@pytest.fixture
def keys():
    return pytest.importorskip("selenium.webdriver").Keys


def shown_x(run, page):
    """The rows that the page has, in its order."""
    data = run.dataset()
    rows = {name: x for split, names in data.names.items() for name, x in zip(names, data.splits[split])}
    return torch.stack([rows[name] for name in page.execute_script("return pvae.content.rows")])


ANSWERED = (
    "return !pvae.state.frame && pvae.state.answer && (pvae.state.answer.isEnough || pvae.state.answer.draws > 9999)"
)
MEANS = "(one) => one.map(({mean, shares}) => shares || mean)"
SHOWN = (
    "(one) => one.map(({mean, sd, shares, median, ends, share}) =>"
    "shares || (ends ? [median, ...ends, ...(share === undefined ? [] : [share])] : [mean, sd ?? -1]))"
)


@needs_browser
@pytest.mark.parametrize("case", CASES)
def test_the_page_computes_what_torch_computes(train, opened, case):
    run = train(case)
    with torch.no_grad():
        _compare(case, run, opened(run))


def _compare(case, run, page):
    vae = run.vae()
    z = torch.randn(20, run.config.latent_dim, generator=torch.Generator().manual_seed(0))
    script = f"const shown = {SHOWN}; return arguments[0].map(z => shown(pvae.decoded(Array.from(pvae.vae.decode(z)))))"
    found = page.execute_script(script, z.tolist())
    for d, expected in enumerate(distributions(vae.likelihood(z))):
        assert expected.std(0).max() > 1e-3, "or the decoder is hardly tested"
        close([one[d] for one in found], expected)
    outputs = 3 * torch.randn(20, *vae.p_x.output_shape, generator=torch.Generator().manual_seed(1))
    outputs[0], outputs[1] = 9, -9  # where a scale is at an end of its range
    found = page.execute_script(f"return arguments[0].map(one => ({SHOWN})(pvae.decoded(one)))", outputs.tolist())
    for d, expected in enumerate(distributions(vae.p_x.given(outputs))):
        close([one[d] for one in found], expected)
    _compare_densities(run, vae.p_x.given(outputs), outputs, page)
    texts = page.execute_script("return pvae.content.texts")
    for row in {7, *[i for i, row in enumerate(texts) if "0.5" in row][:2]}:  # with the least value of rain
        _compare_codes(case, run, page, vae, row)
    assert (run_batch(run, "test").x.images.isnan().any() and run.config.missing) or not run.config.missing


def _compare_densities(run, p, outputs, page):
    """log p(x_d | z) of each column and row, at each output of the decoder; also far in the tails."""
    found = page.execute_script(
        "const {content: {rows, columns}, decoded, xOf} = pvae;"
        "return arguments[0].map(one => decoded(one).map(({logP}, d) => rows.map((_, i) => logP(xOf(d, i)))))",
        outputs.tolist(),
    )  # outputs x columns x rows
    (x,) = run.preparation.x_of(shown_x(run, page)).split(1000)
    p = p.expand((len(x), len(outputs)))
    each = p.log_prob_of_each(x[:, None]) if isinstance(p, Columns) else p.base_dist.log_prob(x[:, None].nan_to_num())
    for d in range(x.shape[1]):
        seen = ~x[:, d].isnan()
        values = torch.from_numpy(np.array([one[d] for one in found], float))[:, seen]  # JSON has null for NaN
        assert each[seen, :, d].min() < -8, "or no tail is tested"
        close(values.T, each[seen, :, d].double(), 2e-5)


def _compare_codes(case, run, page, vae, row):
    (x,) = run.preparation.x_of(shown_x(run, page)[[row]]).split(1)
    for out in ([], *([d] for d in range(x.shape[1]) if run.config.missing)):
        left = x.clone()
        left[:, out] = torch.nan
        page.execute_script("pvae.pick(arguments[0], arguments[1])", row, out)
        loc, state, shown = page.execute_script(f"return [pvae.state.q.loc, pvae.state.z, ({SHOWN})(pvae.decoded())]")
        q = vae.posterior(left)
        if "flow" in case:
            drawn, log_q = page.execute_script("const {z, logQ} = pvae.state.q.at([0.5, -1]); return [z, logQ]")
            close(log_q, q.log_prob(torch.tensor([drawn])), 1e-4)
        else:
            is_on_sphere = run.config.prior_class.support == "points on the unit sphere"
            close(loc, torch.nn.functional.normalize(q.mean, dim=-1)[0] if is_on_sphere else q.mean[0])
            if not left.isnan().any() or run.config.posterior == "delta":
                close(state, loc)
        for one, expected in zip(shown, distributions(vae.likelihood(torch.tensor([state]))), strict=True):
            close(one, expected[0])


@needs_browser
def test_a_network_beside_a_linear_function_on_the_page_is_that_of_torch(train, opened):
    """With weights away from the zeros at which they start; and without the network."""
    page = opened(train("counts"))
    x = torch.randn(5, generator=(generator := torch.Generator().manual_seed(0)))
    for layer in (BesideLinear(5, 3, mlp(5, 6, 3)), BesideLinear(5, 3)):
        for parameter in layer.requires_grad_(False).parameters():
            parameter.normal_(generator=generator)
        tensors = Tensors()
        found = page.execute_script(
            "const bytes = Uint8Array.from(arguments[1]).buffer, read = ({tensor: [, from, to, shape]}) =>"
            "  ({shape, data: new Float32Array(bytes.slice(from, to))});"
            "const reviver = (_, value) => (value && value.tensor ? read(value) : value);"
            "return outputs(JSON.parse(JSON.stringify(arguments[0]), reviver), arguments[2]);",
            operations(layer, tensors),
            list(tensors.bytes),
            x.tolist(),
        )
        close(found, layer(x))


@needs_browser
def test_a_row_is_beside_the_columns_and_its_values_are_taken_out(train, opened, keys):
    """By clicks and keys alone; a value that the table lacks is always imputed."""
    run = train("mixed, missing")
    page = opened(run)
    texts = page.execute_script("return pvae.content.texts")
    lacking = next(i for i, row in enumerate(texts) if row.count("") == 1 and row.index("") != 3)
    box = page.find_element("id", "row")
    box.clear()
    box.send_keys(page.execute_script("return pvae.content.rows[arguments[0]]", lacking), keys.ENTER)
    wait(page, f"return !pvae.state.frame && pvae.state.row === {lacking}")
    items = page.find_elements("css selector", "#columns > li")
    for item, text in zip(items, texts[lacking], strict=True):
        box = item.find_element("css selector", "input")
        assert (text or "missing") in item.text
        assert (box.is_selected(), box.is_enabled()) == ((False, True) if text else (True, False))
    assert "2020-" in items[5].text
    assert [one.text for one in items[3].find_elements("css selector", ".level > :first-child")] == sorted(CITIES)
    wait(page, ANSWERED)
    before = page.execute_script("return pvae.state.z")
    items[3].find_element("css selector", "input").send_keys(keys.SPACE)
    wait(page, ANSWERED)
    assert page.execute_script("return pvae.state.z") != before
    assert f"taken out; row: {texts[lacking][3]}" in items[3].text
    items[3].find_element("css selector", "input").click()
    wait(page, f"return !pvae.state.frame && JSON.stringify(pvae.state.z) === JSON.stringify({before})")


@needs_browser
def test_columns_are_set_to_any_value_that_they_can_have(train, opened, keys):
    """Each card says what was set; the encoder sees it; unset, and all is as before."""
    run = train("mixed, missing")
    page = opened(run)
    wait(page, ANSWERED)
    before, texts = page.execute_script("return [pvae.state.z, pvae.content.texts]")
    items = page.find_elements("css selector", "#columns > li")
    other = next(i for i in range(1, 9) if texts[i][3] and texts[i][3] != texts[0][3])
    option = f"option[value='{sorted(CITIES).index(texts[other][3])}']"
    items[3].find_element("css selector", option).click()
    items[0].find_element("css selector", "input[placeholder]").send_keys("99990.5", keys.ENTER)
    wait(page, "return Object.keys(pvae.state.set).length === 2")
    wait(page, ANSWERED)
    x = shown_x(run, page)[:1].clone()
    x[0, 0], x[0, 3] = 99990.5 - run.data.columns[0].origin, page.execute_script("return pvae.state.set[3]")
    for d, text in ((0, "99990.5"), (3, texts[other][3])):
        head, *more = items[d].text.split("\n")[1:]
        assert head == text
        assert any(f"set; row: {texts[0][d]}; expected: " in one for one in more)
    q = run.vae().posterior(*run.preparation.x_of(x).split(1))
    close(page.execute_script("return pvae.state.q.loc"), q.mean[0], 0.05)  # between the features of two rows
    items[6].find_element("css selector", "input[placeholder]").send_keys("-1", keys.ENTER)  # dust, positive
    valid = "return document.querySelectorAll('#columns > li')[6].querySelector('[placeholder]').validationMessage"
    assert page.execute_script(valid) == "Give a number above 0"
    assert page.execute_script("return Object.keys(pvae.state.set).length") == 2
    page.execute_script("pvae.pick(0, [], {0: 1e200})")
    wait(page, "return document.getElementById('odd').textContent.includes('no draw of z makes these values possible')")
    page.execute_script("pvae.pick(0, [], {0: 1, 3: 1})")
    items[3].find_element("css selector", "option").click()
    box = items[0].find_element("css selector", "input[placeholder]")
    box.clear()
    box.send_keys(keys.TAB)
    wait(page, f"return JSON.stringify(pvae.state.z) === JSON.stringify({before})")


@needs_browser
@pytest.mark.parametrize("case", ["mixed, missing", "numbers, missing, by Student t and a flow"])
def test_what_is_taken_out_is_likely_to_be_what_impute_says(train, opened, case):
    """Both of many draws; it fails about once in ten thousand times. Nothing that is given moves."""
    run = train(case)
    page = opened(run)
    x = shown_x(run, page)
    rows = page.execute_script("return pvae.content.splits.flatMap((one, i) => (one === 'test' ? [i] : []))")[:3]
    for row, d in itertools.product(rows, range(x.shape[1])):
        left = x[[row]].clone()
        if left[0, d].isnan():
            continue
        left[0, d] = torch.nan
        with seeded(0):
            expected = impute(run.vae(), run.preparation.x_of(left), 4000)
        page.execute_script("pvae.pick(...arguments)", row, [d])
        wait(page, ANSWERED)
        found, effective = page.execute_script(
            f"const {{columns, effective}} = pvae.state.answer; return [({MEANS})(columns)[{d}], effective]"
        )
        if isinstance(found, list):
            assert max(range(len(found)), key=found.__getitem__) == expected.filled[0, d] or max(found) < 0.6
        else:
            error = expected.std[0, d].item() / effective**0.5 + expected.stderr[0, d].item()
            assert abs(found - expected.filled[0, d].item()) < 4 * error
        for other, item in enumerate(page.find_elements("css selector", "#columns > li")):
            text = page.execute_script("return pvae.content.texts[arguments[0]][arguments[1]]", row, other)
            assert other == d or not text or item.text.split("\n")[1] == text


@needs_browser
@pytest.mark.parametrize("case", ["mixed, missing", "numbers, missing, by Student t and a flow"])
def test_log_p_of_what_is_given_is_that_of_quadrature(train, opened, case):
    """By 4,000 draws, near p(z | x) or not: it fails about once in a million times, as its error is about 0.02."""
    run = train(case)
    page = opened(run)
    x = shown_x(run, page)
    for row, out in ((0, []), (1, [0]), (2, []), (0, range(1, x.shape[1])), (1, range(x.shape[1] - 1))):
        left = x[[row]].clone()
        left[:, out] = torch.nan
        left[:, 1] = x[5, 1] if row == 2 else left[:, 1]
        expected = log_likelihood(run.vae(), run.preparation.x_of(left), "quadrature").log_p
        for first in ("", "draws.draw(400); draws.renew();"):
            found = page.execute_script(
                "const [row, x] = arguments, draws = pvae.drawsOf(x.map((one) => one ?? NaN), row);"
                f"{first} draws.draw(4000); return pvae.logP(draws)",
                row,
                [None if math.isnan(one) else one for one in left[0].tolist()],
            )
            assert abs(found["log"] - expected[0].item()) < 0.2
            assert 1e-4 < found["stderr"] < 0.2
            assert found["effective"] > (400 if first else 10)


@needs_browser
def test_a_row_is_odd_beside_others(train, opened):
    page = opened(train("numbers, missing, by Student t and a flow"))
    texts, splits = page.execute_script("return [pvae.content.texts, pvae.content.splits]")
    row = next(i for i, one in enumerate(texts) if all(one) and splits[i] == "test")
    page.execute_script("pvae.content.x.data[2 * arguments[0]] += 1e4; pvae.pick(arguments[0])", row)
    text = "document.getElementById('odd').textContent"
    wait(page, f"return {text}.includes('p-value')")
    assert "odder than all" in page.execute_script(f"return {text}")
    page.execute_script("pvae.pick(arguments[0], [0])", row)  # without the value that is odd
    wait(page, f"return {text}.includes('(1 value)') && {text}.includes('p-value') && !{text}.includes('odder than')")
    assert splits.count("train") > splits.count("test")
    page.execute_script("pvae.pick(arguments[0])", splits.index("train"))
    wait(page, f"return {text}.includes('it is a training row itself') && !{text}.includes('p-value')")
    page.execute_script("pvae.pick(arguments[0], [0, 1])", row)
    wait(page, f"return {text} === 'No value is given.'")


@needs_browser
def test_the_address_opens_the_page_as_it_was_and_the_story_is_told(train, opened, keys):
    page = opened(train("mixed, missing"))
    page.execute_script("pvae.pick(3, [1], {0: 5})")
    wait(page, ANSWERED)
    page.find_element("id", "tour").click()
    told = [page.find_element("id", "story").text]
    for _ in range(4):
        page.find_element("id", "next").click()
        told.append(page.find_element("css selector", "#story li.lit").text)
    assert [one[:6] for one in told] == [f"{i} of 6" for i in range(1, 6)]
    page.find_elements("css selector", "#by option")[2].click()
    state = "const {row, out, set, z} = pvae.state; return JSON.stringify([row, out, set, z, pvae.tellStory.number])"
    before = page.execute_script(state)
    wait(page, "return location.hash.includes('step=5') && location.hash.includes('by=2')")
    address = page.current_url
    page.get("about:blank")
    page.get(address)
    wait(page, "return window.pvae")
    wait(page, ANSWERED)
    assert page.execute_script(state) == before
    page.find_element("id", "map").send_keys(keys.ESCAPE)
    wait(page, "return pvae.tellStory.number === 0")


@needs_browser
def test_everything_is_done_by_keys(train, opened, keys):
    page = opened(train("mixed"))
    name = keys.CONTROL + "a" + keys.NULL + page.execute_script("return pvae.content.rows[9]") + keys.ENTER
    state = "return [...pvae.state.z, ...document.getElementById('columns').innerText, pvae.state.row].join()"
    picture = "return document.getElementById('map').toDataURL()"
    for element, key, seen in (
        ("#map", keys.ARROW_LEFT, state),
        ("#map", keys.ENTER, state),
        ("#sliders input", keys.ARROW_RIGHT, state),
        ("#row", name, state),
        ("#by", keys.ARROW_DOWN, picture),
    ):
        before = page.execute_script(seen)
        page.find_element("css selector", element).send_keys(key)
        wait(page, f"return !pvae.state.frame && (() => {{ {seen} }})() !== {before!r}")
    assert not [one for one in page.find_elements("css selector", "#columns input") if one.is_displayed()]
    assert "--missing" in page.find_element("css selector", "main").text


POINT = (
    "const [kind, i, off] = arguments, map = document.getElementById('map'), box = map.getBoundingClientRect();"
    "const {data, shape: [, width]} = pvae.content.points, {middle, range} = pvae.view;"
    "const dot = [0, 1].map(d => data[i * width + d]);"
    "const [u, v] = dot.map((one, d) => (one + off - middle[d]) / range);"
    "const clientX = box.left + (1 + u) * box.width / 2, clientY = box.top + (1 - v) * box.height / 2;"
    "map.dispatchEvent(new PointerEvent(kind, {pointerType: 'mouse', clientX, clientY}));"
    "return [pvae.state.row, pvae.state.z, dot]"
)


@needs_browser
def test_the_pointer_decodes_and_picks(train, opened):
    """Where it leaves the map, z is again what was picked, and only there is a value imputed from the rest of a row."""
    page = opened(train("mixed, missing"))
    page.execute_script("pvae.pick(0, [0, 1, 2, 3, 4, 5, 6])")
    wait(page, ANSWERED)
    picked, answer = page.execute_script("return pvae.state.z"), page.find_element("id", "answer")
    assert "effective sample size" in answer.text
    row, z, dot = page.execute_script(POINT, "pointermove", 3, 0.3)
    assert row == 0
    close(z, torch.tensor(dot) + 0.3, 1e-3)
    wait(page, "return !pvae.state.frame")
    assert not answer.text
    assert page.execute_script(POINT, "pointerleave", 3, 0)[1] == picked
    wait(page, "return !pvae.state.frame")
    assert "effective sample size" in answer.text
    row, z, dot = page.execute_script(POINT, "pointerdown", 3, 0)
    close(page.execute_script("return pvae.state.q.loc"), dot, 2e-3)
    name = page.execute_script("return pvae.content.rows[arguments[0]]", row)
    assert page.find_element("id", "row").get_attribute("value") == name


def table(count=800):
    """Return columns of which each kind of step rewrites one."""
    draw = np.random.RandomState(0)
    choices = ["basic", "plus", "pro"], ["book", "food", "toy"], [0.5, 2.0, 7.5, 11.0], range(4), range(3)
    plan, kind, size, route, way = (draw.choice(one, count) for one in choices)
    fee = np.where(plan == "basic", 0, draw.gamma(2, 20, count).round(1) + 0.1)
    net = draw.gamma(2, 50, count).round(2) + 5
    paid = net * draw.uniform(0.1, 1, count)
    weight, low = draw.uniform(1, 9, count).round(1), draw.normal(50, 10, count).round(1)
    length, width = draw.gamma(3, 2, (2, count)).round(3)
    start = np.datetime64("2020-01-01") + draw.randint(0, 1400, count)
    columns = {
        "plan": plan,
        "price": 5 + 4 * (plan == "plus") + 15 * (plan == "pro"),
        "seat": np.where(plan == "basic", "back", draw.choice(["back", "front", "middle"], count)),
        "fee": fee,
        "extra": fee * draw.uniform(0.1, 1.3, count).clip(0, 1),
        "weight": weight,
        "size": size,
        "cost": weight * size,
        "kind": kind,
        "net": net,
        "gross": net * (1.07 + 0.12 * (kind == "food") + 0.23 * (kind == "toy")),
        "paid": paid,
        "open": net - paid.round(2),
        "length": length,
        "width": width,
        "whole": length + width,
        "low": low,
        "high": low + draw.gamma(1, 4, count).round(1),
        "start": start.astype("datetime64[ns]"),
        "end": (start + draw.gamma(1, 5, count).astype(int)).astype("datetime64[ns]"),
        **{name: (route == code).astype(int) for code, name in enumerate(("is_air", "is_rail", "is_road"))},
        **{name: (way == code).astype(int) for code, name in enumerate(("cash", "card", "check"))},
        "note": np.where(plan == "pro", np.nan, draw.normal(size=count)),
        "remark": np.where(draw.uniform(size=count) < 0.3, np.nan, draw.normal(size=count)),
        "cover": draw.uniform(1, 9, count).clip(3, 7),
    }
    frame = DataFrame(columns).round(dict.fromkeys(("fee", "extra", "high"), 1))
    return frame.round(dict.fromkeys(frame.select_dtypes(float), 2))


def times(count=800):
    """Return dates and times as texts, per cent, floats, and what a class determines in some rows."""
    draw = np.random.RandomState(0)

    def dates(minutes, form):
        return [f"{one:{form}}" for one in minutes.astype("datetime64[s]").astype(object)]

    booked = np.datetime64("2019-03-01T08:00") + draw.randint(0, 60 * 24 * 1200, count)
    due = booked + draw.randint(0, 60 * 24 * 40, count)
    minutes = 1 + draw.gamma(2, 30, count).astype(int)
    kind, colours = draw.choice(["cotton", "silk", "wool"], count), draw.choice(["black", "grey", "white"], count)
    share, net = draw.uniform(0, 100, count).round(1), draw.gamma(2, 50, count).round(2)
    tare = np.where(kind == "silk", np.nan, draw.gamma(2, 5, count).round(2))
    return DataFrame(
        {
            "booked": dates(booked, "%d/%m/%Y %H:%M"),
            "due": dates(due, "%d/%m/%Y %H:%M"),
            "done": dates(due + minutes, "%d/%m/%Y %H:%M"),
            "minutes": minutes,
            "day": dates(booked + 60 * 24 * 3, "%d-%b-%y"),
            "kind": kind,
            "colour": np.where(kind == "silk", "white", colours),
            "share": [f"{one:.1f}%" for one in share],
            "rest": [f"{100 - one:.1f}%" for one in share],
            "net": net,
            "tare": tare,
            "total": np.where(kind == "silk", draw.gamma(2, 50, count), net + tare).round(2),
            "length": draw.gamma(2, 1, count),
        }
    )


def gaps(count=800):
    """Return an order beside empty fields, a column that is 0 where another one is, and numbers of other digits."""
    draw = np.random.RandomState(0)
    upper, share = draw.normal(50, 10, count).round(2), draw.uniform(0, 100, count).round(1)
    tip = (1 + draw.gamma(3, 9, count)).round(2)
    hours = np.where(draw.uniform(size=count) < 0.6, draw.gamma(2, 3, count).round(1) + 0.1, 0).round(1)
    return DataFrame(
        {
            "upper": upper,
            "lower": np.where(share < 20, np.nan, upper - draw.gamma(1, 4, count)).round(2),
            "share": share,
            "twice": (2 * upper).round(2),
            "sum": [f"{one:g}" for one in (upper + share).round(2)],
            "ninths": 5 / 9 * draw.randint(1, 400, count),
            "part": draw.uniform(0, 1, count).round(2),
            "hours": hours,
            "tip": np.where((hours > 0) & (draw.uniform(size=count) < 0.8), tip, 0),
        }
    )


def _texts(schema, x):
    values = to_file(schema, torch.tensor(x, dtype=torch.float64)).tolist()
    return [[column.text(value) for column, value in zip(schema.recorded, row)] for row in values]


@pytest.fixture
def ruled(tmp_path, no_pictures):
    """A VAE trained for a step on a table of which each kind of step rewrites a column."""
    table().to_csv(tmp_path / "t.csv", index=False)
    given = {"dataset": f"table:{tmp_path / 't.csv'}", "hidden": (8,), "latent_dim": 2, "prior": "standard-normal"}
    data = load_for(Config(dataset=given["dataset"]))
    config = values_config(data, **given, epochs=1, passes=1, batch_size=648, initialization="torch")
    return fit(config, data=data, out=tmp_path / "run", device="cpu")


@needs_browser
def test_columns_that_rules_rewrite_are_computed_where_the_others_are_most_likely(ruled, opened):
    """As `recorded` computes them, text for text; a picked row has the fields of its file beside them."""
    schema = ruled.data
    assert {step.rule for step in schema.steps} == {*Rule.members}
    page = opened(ruled)
    outputs = 3 * torch.randn(99, *ruled.vae().p_x.output_shape, generator=torch.Generator().manual_seed(0))
    found, x = page.execute_script(
        "const all = arguments[0].map(one => pvae.centres(pvae.decoded(one))); return [all.map(pvae.fileTexts), all]",
        outputs.flatten(1).tolist(),
    )
    assert found == _texts(schema, x)
    assert min(len({row[place] for row in found}) for place in range(len(schema.recorded))) > 1
    file = {f"line-{place + 2}": row for place, row in enumerate(_plain(table(), schema))}
    names, fields = page.execute_script("return [pvae.content.rows, pvae.content.file_texts]")
    assert fields == [file[name] for name in names]
    shown = page.find_element("id", "rules")
    shown.find_element("css selector", "summary").click()
    assert [one.text for one in shown.find_elements("css selector", "li")] == [str(rule) for rule in schema.rules]
    place = [column.name for column in schema.recorded].index
    row = next(i for i, one in enumerate(fields) if one[place("fee")] == "0.0" and not one[place("remark")])
    page.execute_script("pvae.pick(arguments[0])", row)
    wait(page, "return !pvae.state.frame")
    here = page.execute_script("return pvae.fileTexts(pvae.centres(pvae.decoded(), pvae.state.x))")
    items = page.find_elements("css selector", "#columns > li")
    cards = {one.find_element("css selector", "h3").text: one.text.split("\n") for one in items}
    modelled = {column.name for column in schema.columns}
    computed = {column.name for column in schema.recorded} - modelled
    assert {"price", "gross", "whole", "start", "is_air"} <= computed
    for name in computed:
        head, *_, own = cards[name][1:]
        assert head == here[place(name)]
        assert own == f"row: {fields[row][place(name)]}"
    for step in schema.steps:
        for name in {*getattr(step, "flags", (step.column,))} & {*cards}:
            assert step.says in "\n".join(cards[name]) or step.rule == "levels"
    for name, own in (
        ("seat", "back, by a rule"),
        ("fee - extra", "none (extra is 0.0)"),
        ("remark", "empty"),
    ):
        assert any(line.startswith(f"row: {own}") for line in cards[name])
    for name in ("seat", "note", "cover"):
        assert f"here: {here[place(name)] or 'empty'}" in cards[name]
    options = [one.text for one in page.find_elements("css selector", "#by option")]
    assert {*options} == modelled | computed
    page.find_elements("css selector", "#by option")[options.index("gross")].click()
    assert page.find_element("id", "legend").text


def _plain(frame, schema):
    values = read_frame(frame, dataclasses.replace(schema.reading, rules="none"))
    assert [one.name for one in values.schema.columns] == [one.name for one in schema.recorded]
    x = values.x["train"].tolist()
    return [[column.text(value, is_given=True) for column, value in zip(values.schema.columns, row)] for row in x]


@needs_browser
def test_rules_are_undone_in_the_page_as_in_python(browser, tmp_path):
    """To the last bit, and text for text, of each form of a step, and where labels that are not known decide."""
    browser.get("about:blank")
    folder = Path(pvae.explore.__file__).parent
    lines = (folder / "network.js").read_text().split("\n")
    used = [line for line in lines if line.startswith(("const list ", "const clamp "))]
    scripts = "\n".join([*used, (folder / "rules.js").read_text()])
    gaps().to_csv(tmp_path / "gaps.csv", index=False, sep=";", decimal=",")
    labelled = pvae.read(table(), label_column="plan", rules="not levels").with_valid(0.1, is_given_labels=True)
    for data in (pvae.read(table()), pvae.read(times()), pvae.read(tmp_path / "gaps.csv"), labelled):
        schema, x = data.record(), data.train.double().numpy()
        draw = np.random.RandomState(0)
        alone = np.stack([draw.choice(one[~np.isnan(one)], 400) for one in x.T], 1)
        are_numbers = np.array([not (one.categories or one.kind) for one in schema.columns])
        alone[100:] += are_numbers * draw.uniform(-3, 3, alone[100:].shape)
        alone[200:] = alone[200:].round(1)
        alone[300:320, are_numbers], alone[320:340, are_numbers] = 5, 400  # beyond what a step takes
        alone[340:][draw.uniform(size=alone[340:].shape) < 0.2] = np.nan
        content = {
            "steps": [{**dataclasses.asdict(step), "made": step.made} for step in schema.steps],
            "modelled": [dataclasses.asdict(column) for column in schema.columns],
            "file": [dataclasses.asdict(column) for column in schema.recorded],
        }
        values, found = browser.execute_script(
            f"{scripts}\n"
            "const [content, all] = arguments, {file} = content;"
            "const values = all.map((row) => toFile(content, row.map((one) => one ?? NaN)));"
            "return [values, values.map((row) => row.map((value, place) => textOf(file[place], value)))]",
            json.loads(json.dumps(content, allow_nan=False)),
            [[None if math.isnan(one) else one for one in row] for row in alone.tolist()],
        )
        np.testing.assert_array_equal(np.array(values, float), to_file(schema, torch.from_numpy(alone)))
        assert found == _texts(schema, alone)


def test_what_the_page_of_a_table_cannot_show_is_refused(train, tmp_path, capsys):
    """In one line, which says what to do."""
    run = train("counts")
    other = train("positive")
    refuse(main, [run.path, other.path], capsys, tmp_path)
    layers = train("layers", ("age", "visits"), {"upper_latent_dims": (1,)})
    capsys.readouterr()
    assert "--upper-latent-dims" in refuse(main, [layers.path], capsys, tmp_path)

    def refused(option, size=2, **given):
        columns = [Column(str(d)) for d in range(size)]
        labels = {"train_labels": torch.arange(60) % 2, "test_labels": torch.arange(20) % 2, "label_names": ("a", "b")}
        data = Dataset("unit", torch.rand(60, size), torch.rand(20, size), columns=columns, **labels)
        small = {"likelihood": "normal-diagonal", "hidden": (4,), "latent_dim": 2, "epochs": 1, "compile": "none"}
        config = Config(**(small | given), batch_size=20)
        run = fit(config, data=data, out=tmp_path / option.replace(" ", ""))
        with pytest.raises(InputError, match=option):
            explorer_page(run)

    for likelihood in ("continuous-bernoulli", "bernoulli"):
        refused(f"--likelihood {likelihood}", likelihood=likelihood)
    refused("--condition", condition=True)
    refused("--ignore", size=201)
