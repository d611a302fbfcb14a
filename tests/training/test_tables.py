"""A table of numbers and texts with empty fields: trained on, and read, drawn and filled in by every command."""

from __future__ import annotations

import csv
import math
import re
import shlex
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from helpers.fixed import Fixed

import pvae
from pvae.cli.data import encode, sample, score
from pvae.cli.draw import main as draw
from pvae.cli.evaluate import main as evaluate
from pvae.cli.export import export
from pvae.cli.train import main as train
from pvae.core.random_state import seeded
from pvae.data.preparation import Pixels
from pvae.distributions.values import Columns
from pvae.plotting import pictures
from pvae.plotting.pictures import save_figures
from pvae.plotting.value_figures import (
    reconstructed_rows_figure,
    sampled_values_figure,
)
from pvae.runs.run import Run
from pvae.tables.column import Column
from pvae.trained.given import given_data
from pvae.trained.imputation import impute
from pvae.vae import VAE

pytestmark = pytest.mark.workflow

CPU = torch.device("cpu")
NAMES = ["age", "visits", "smoker", "city, town", "pain"]
CITIES = ["Aarhus", "Bergen", "Cadiz"]


def rows(count=400, seed=0):
    """Columns that all depend on one latent, of which a tenth of the fields are empty."""
    draws = np.random.default_rng(seed)
    z = draws.normal(size=count)
    columns = [
        (40 + 10 * z + draws.normal(size=count)).round(1),
        draws.poisson(draws.gamma(2, np.exp(0.5 + z) / 2)),
        (draws.logistic(size=count) < 3 * z).astype(int),
        np.array(CITIES)[(draws.gumbel(size=(count, 3)) + np.outer(z, [-4, 0, 4])).argmax(1)],
        np.digitize(3 * z + draws.logistic(size=count), [-2, 2]),
    ]
    missing = draws.random((count, 5)) < 0.1
    missing[:, 1] &= ~missing[:, 0]
    return [["" if gone else str(one) for one, gone in zip(row, out)] for row, out in zip(zip(*columns), missing)]


def write(path, table):
    with path.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([NAMES, *table])
    return path


def read(path):
    with Path(path).open(newline="") as file:
        return list(csv.reader(file))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write(tmp_path / "t.csv", rows())
    return tmp_path


def test_every_command_takes_a_table_of_numbers_and_texts(folder, capsys):
    kinds = ["--likelihood", "columns", "--columns", "real,count,binary,categorical:3,ordinal:3"]
    options = ["--hidden", "32", "--latent-dim", "2", "--epochs", "40", "--lr", "0.01", "--batch-size", "32"]
    options += ["--passes", "1", "--patience", "0", "--out", "run"]
    assert train(["--dataset", "table:t.csv", *kinds, *options]) == 0
    run = pvae.Run.open("run")
    assert [column.name for column in run.data.columns] == NAMES
    assert [column.categories for column in run.data.columns[3:]] == [tuple(CITIES), ("0", "1", "2")]
    assert evaluate(["run", "--importance-samples", "3"]) == 0
    assert encode(["run", "t.csv", "--out", "codes.csv"]) == 0
    assert len(read("codes.csv")) == 401
    assert draw(["run"]) == 0
    assert {"reconstructions", "samples"} <= {path.stem for path in (folder / "run" / "figures").glob("*.png")}

    for number in (3, 50):  # the second time it replaces its own file
        assert sample(["run", "-n", str(number)]) == 0
    header, *drawn = read("run/samples/samples.csv")
    assert (header, len(drawn)) == (NAMES, 50)
    assert {row[3] for row in drawn} <= {*CITIES}
    assert {row[4] for row in drawn} <= {"0", "1", "2"}

    given = rows()
    hidden = [row.copy() for row in given]
    for number, row in enumerate(hidden):
        row[(3, 4, 0)[number % 3]] = ""
    write(folder / "hidden.csv", hidden)
    assert sample(["run", "--impute", "hidden.csv"]) == 0
    _, *filled = read("run/samples/imputed.csv")
    right = []
    for truth, known, row in zip(given, hidden, filled):
        assert all(one in ("", shown) or float(one) == float(shown) for one, shown in zip(known, row))  # 37 for 37.0
        right += [row[place] == truth[place] for place in (3, 4) if known[place] == "" and truth[place]]
    assert np.mean(right) > 0.65, "more than by the most frequent text"
    (folder / "out").mkdir()
    (folder / "out" / "imputed.csv").write_text("of the user")
    assert sample(["run", "--impute", "hidden.csv", "--out", "out"]) == 2
    assert (folder / "out" / "imputed.csv").read_text() == "of the user"

    for row, words in (
        (["1", "1", "1", "Paris", "1"], "line.2.*city, town is 'Paris'"),
        (["1", "1.5", "1", "Cadiz", "1"], "visits.*whole numbers from 0 on(?!.*0 or 1)"),
    ):
        write(folder / "other.csv", [row])
        for command in (encode, score):
            capsys.readouterr()
            assert command(["run", "other.csv", "--out", "new.csv"]) == 2
            assert re.search(words, capsys.readouterr().err)
    assert export(["run"]) == 0
    assert train(["--resume", "run", "--epochs", "41", "--quiet"]) == 0


@pytest.mark.usefixtures("no_pictures")
def test_texts_need_a_likelihood_of_columns(folder, capsys):
    columns = ["--likelihood", "columns", "--columns"]
    for options in (
        ["--likelihood", "normal-diagonal"],
        [*columns, "real*4"],
        [*columns, "real,count,binary,categorical:2,real"],
    ):
        assert train(["--dataset", "table:t.csv", *options, "--out", "run"]) == 2
    assert not (folder / "run").exists()


def test_what_is_missing_is_imputed_by_probabilities_and_not_by_codes():
    """One latent, and integrals over it on a grid: the likeliest category, and the mean at 4.5 errors."""

    def likelihood(z):
        first = torch.where(z > 0, 0.2, -3.0)  # a little likelier than the last for z > 0, and else much less so
        logits = torch.cat([first, 0 * z - 6, 0 * z], -1)[..., None, :]
        return Columns([dist.Categorical(logits=logits), dist.Normal(z, 0.8)], torch.tensor([1, 0]))

    zero = torch.zeros(1).double()
    vae = VAE(
        Fixed(lambda: dist.Normal(zero, 1.0).to_event(1)),
        Fixed(lambda x: dist.Normal(zero.expand(len(x), 1), 1.2).to_event(1)),
        Fixed(likelihood),
    )
    x = torch.tensor([[math.nan, 0], [math.nan, 2], [3, math.nan], [0.4, math.nan], [0.2, math.nan]]).double()
    z = torch.linspace(-8, 8, 4001, dtype=torch.float64)[:, None, None]
    weight = (vae.log_likelihood(x, z.expand(-1, len(x), 1)) + vae.prior().log_prob(z)).softmax(0)
    with seeded(0, CPU):
        found = impute(vae, Pixels(x), 4000)
    means = (weight[:, :2] * z[:, 0]).sum(0)
    errors = (found.filled[:2, 0] - means) / found.stderr[:2, 0]
    assert errors.abs().max() < 4.5
    assert found.stderr[:2, 0].max() < 0.05
    shares = (weight[:, 2:, None] * vae.likelihood(z).parts[0].probs[:, :, 0]).sum(0)
    assert found.filled[2:, 1].tolist() == shares.argmax(-1).tolist() == [0, 2, 2]
    votes = (weight[:, 2:] * (z[:, 0] > 0)).sum(0)
    assert (votes > 0.55).all(), "of most draws the likeliest category is 0"
    codes = (shares * torch.arange(3)).sum(-1).round()
    assert codes.tolist() == [1, 1, 1], "their mean is a category that hardly occurs"
    assert found.stderr[2:, 1].isnan().all()
    second = (weight[:, :2] * (z[:, 0].square() + 0.8**2)).sum(0)
    assert torch.allclose(found.std[:2, 0], (second - means.square()).sqrt(), rtol=0.1), "5 errors of 4,000 draws"


def test_pictures_name_columns_and_show_the_shares_of_categories():
    columns = (Column("age"), Column("city", ("Rome", "Oslo", "$" + 40 * "x")))
    data = torch.tensor([[1.0, 0], [2, 0], [3, 1], [4, math.nan], [math.nan, 2]])
    figure = sampled_values_figure(data, torch.tensor([[2.0, 2], [3, 2]]), "title", columns)
    ages, cities = figure.axes[:2]
    assert [ages.get_title(), cities.get_title()] == ["age, 20% missing", "city, 20% missing"]
    assert [text.get_text() for text in cities.get_xticklabels()] == ["Rome", "Oslo", "$" + 16 * "x" + "..."]
    assert [bar.get_height() for bar in cities.patches] == [0.5, 0.25, 0.25, 0, 0, 1]
    heights = [bar.get_height() for bar in ages.patches]
    assert heights == [0.25] * 4 + [0, 0.5, 0.5, 0], "whole numbers have shares"


def test_a_picture_that_cannot_be_drawn_is_named_and_the_others_are_drawn(tmp_path, monkeypatch, capsys):
    figure = sampled_values_figure(torch.eye(2), torch.eye(2), "title")
    for name in ("reconstructions", "losses"):
        monkeypatch.setattr(pictures, name, lambda _: figure)
    monkeypatch.setattr(pictures, "samples", lambda _: np.histogram([1e18, 1e18 + 128], 20))
    save_figures(SimpleNamespace(figures=lambda: tmp_path))
    assert {path.name for path in tmp_path.iterdir()} == {"reconstructions.png", "losses.png"}
    assert capsys.readouterr().err.startswith("samples.png")


def test_pictures_of_rows_show_intervals_probabilities_and_mark_what_is_missing():
    """Numbers and categories have axes of their own; numbers are in standard deviations of the test data."""
    columns = (Column("age"), Column("city", ("Rome", "Oslo")))
    data = torch.tensor([[1.0, 0], [3, 1], [math.nan, 1], [2, math.nan]])
    ages = torch.arange(101.0)[:, None].expand(-1, 4) + torch.tensor([0.0, 1, 2, 60])
    draws = torch.stack([ages, (torch.arange(101)[:, None] < torch.tensor([101, 0, 25, 7])).float()], -1)
    figure = reconstructed_rows_figure(data, draws, "title", data, columns, ["a", "b: old", "c", "d"])
    numbers, texts = figure.axes[:4], figure.axes[4:]
    assert [axes.get_title() for axes in numbers] == ["a", "b: old", "c", "d"]
    assert [[text.get_text() for text in axes.texts] for axes in texts] == [["Rome"], ["Oslo"], ["Oslo"], []]
    std = (2 / 3) ** 0.5
    for shift, axes in enumerate(numbers[:2]):
        (interval,), (point,) = axes.patches, axes.lines
        ends = [interval.get_x(), interval.get_x() + interval.get_width()]
        np.testing.assert_allclose(ends, (np.array([5, 95]) + shift - 2) / std, rtol=1e-5)
        np.testing.assert_allclose(point.get_xdata(), [(2 * shift - 1) / std], rtol=1e-6)
    shares = [axes.patches[0].get_width() for axes in texts[:3]]
    np.testing.assert_allclose(shares, [0, 0, 25 / 101], err_msg="draws of Rome for the first row are none")
    low, high = numbers[0].get_xlim()
    assert low < (5 - 2) / std < (155 - 2) / std < high, "the axis has room for the intervals of all rows"
    missing = [[bool(patch.get_hatch()) for patch in axes.patches] for axes in figure.axes]
    assert missing == [[False], [False], [True], [False], [False], [False], [False], [True]]


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("labels", [["a", "b", ""], ["2", "5", ""]], ids=["texts", "numbers"])
def test_a_column_of_labels_is_no_part_of_x(tmp_path, capsys, labels):
    """Half of the rows have the second class, which moves the values, and every third label is missing."""
    draw = np.random.RandomState(0)
    is_second = draw.rand(300) < 0.5
    kinds = [labels[2] if row % 3 == 0 else labels[int(second)] for row, second in enumerate(is_second)]
    rows = [f"{draw.randn() + 4 * second:.3f},{kind},{draw.randn():.3f}" for kind, second in zip(kinds, is_second)]
    known = [(row, kind) for row, kind in zip(rows, kinds) if kind]
    file, run, conditional = tmp_path / "labelled.csv", tmp_path / "run", tmp_path / "given"
    file.write_text("\n".join(["u,kind,v", *rows]) + "\n")
    given = ["--dataset", f"table:{file}", "--label-column", "kind", "--epochs", "20", "--passes", "2"]
    assert train([*given, "--labels", "60", "--out", str(run)]) == 0
    opened = Run.open(run)
    assert opened.data.label_names == tuple(labels[:2])
    assert opened.data.datum_shape == (2,)
    assert opened.metrics()[-1].accuracy > 0.9
    assert encode([str(run), "--out", str(tmp_path / "codes.csv")]) == 0
    assert {row[1] for row in read(tmp_path / "codes.csv")[1:]} == set(labels)
    assert score([str(run), str(file), "--importance-samples", "5"]) == 0  # the column of labels may be there
    file.write_text("\n".join(["u,kind,v", *(row for row, _ in known)]) + "\n")
    assert train([*given[:-1], "1", "--condition", "--out", str(conditional)]) == 0
    file.write_text(file.read_text().replace(",2,", ",2.0,"))
    found = given_data(Run.open(conditional), file)
    assert [labels[number] for number in found.y] == [kind for _, kind in known]
    assert score([str(conditional), str(file), "--importance-samples", "5"]) == 0
    file.write_text("\n".join(["u,kind,v", *rows]) + "\n")
    capsys.readouterr()
    assert score([str(conditional), str(file)]) == 2
    assert "has the label ''" in capsys.readouterr().err
    for column, wanted in (("knd", "kind"), ("u", "classes")):
        assert train([*given[:3], column, "--out", str(tmp_path / "other")]) == 2
        assert wanted in capsys.readouterr().err


@pytest.mark.usefixtures("no_pictures")
def test_a_small_table_is_trained_until_its_samples_are_as_correlated_as_its_rows(tmp_path):
    """Two columns of correlation -0.99, in 216 rows: by the chosen options below -0.95 in 20,000 samples."""
    x = torch.randn(243, 2, generator=torch.Generator().manual_seed(0)).double()
    x[:, 1] = 1e9 * (3 - 0.99 * x[:, 0] + math.sqrt(1 - 0.99**2) * x[:, 1])
    run = pvae.fit(data=pvae.Dataset("two", x[:216], x[216:]), out=tmp_path / "run")
    with seeded(0, torch.device("cpu")), torch.no_grad():
        drawn = run.vae().likelihood(run.vae().prior().sample((20_000,))).sample()
    assert torch.corrcoef(drawn.T)[0, 1] < -0.95
    assert drawn[:, 1].mean() == pytest.approx(3e9, rel=0.1)


@pytest.mark.usefixtures("no_pictures")
def test_the_printed_options_can_be_given_again(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [f"{row % 7},{'SML'[row % 3]},{5 + row % 2},{row % 3 + 1}" for row in range(60)]
    Path("t.csv").write_text("\n".join(["a,size,flag,stage", *rows]) + "\n")
    base = ["--dataset", "table:t.csv", "--out"]
    kinds = "size=ordinal:S<M<L,flag=categorical,stage=ordinal"
    assert train([*base, "one", "--columns", kinds, "--epochs", "1"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("options")]
    assert train([*base, "two", *shlex.split(line.partition(": ")[2])]) == 0
    one, two = Run.open("one"), Run.open("two")
    assert one.config == two.config
    assert one.data.columns == two.data.columns
