"""A table comes out as it went in: what sample, score and their files hold, and what they refuse."""

from __future__ import annotations

import math
import shutil

import numpy as np
import pandas
import pytest
import torch
from helpers.commands import refuse

from pvae.cli.data import encode, reconstruct, sample, score
from pvae.cli.train import main as train
from pvae.core.random_state import seeded
from pvae.runs.run import Run
from pvae.tables.codec import to_file
from pvae.trained import latent_space
from pvae.trained.given import given_data
from pvae.trained.imputation import impute, num_tries
from pvae.trained.scores import score_images

pytestmark = pytest.mark.workflow

CPU = torch.device("cpu")
CITIES = ["Aarhus", "Bergen", "=SUM(A1)"]
COLUMNS = ["age", "visits", "batch", "city"]


def table(count=300):
    """Rows with a name, a fifth of them of lab B; a tenth of the fields of x are empty."""
    draw = np.random.default_rng(0)
    z = draw.normal(size=count)
    columns = {
        "patient": [f"00{row}" for row in range(count)],
        "age": (45 + 12 * z).round(1).astype(str),
        "visits": draw.poisson(np.exp(1 + z)).astype(str),
        "batch": np.where(np.arange(count) % 5 == 0, "lab B", "lab A"),
        "city": np.array(CITIES)[np.digitize(z, [-0.5, 0.5])],
    }
    frame = pandas.DataFrame(columns)
    for name in ("age", "visits", "city"):
        frame.loc[draw.random(count) < 0.1, name] = ""
    return frame


def read(path):
    return pandas.read_csv(path, dtype=str, keep_default_na=False)


@pytest.fixture
def folder(made_once, no_pictures, tmp_path, monkeypatch):
    """An empty working folder with a copy of the table, and of runs on it given its batches and without them."""

    def make(base):
        base.mkdir()
        table().to_csv(base / "table.csv", index=False)
        table().drop(columns="batch").to_csv(base / "unlabelled.csv", index=False)
        options = ["--epochs", "2", "--hidden", "8", "--latent-dim", "2", "--quiet"]
        given = ["--label-column", "batch", "--condition"]
        options += ["--name-column", "patient"]
        for name, more in (("table", given), ("unlabelled", [])):
            assert train(["--dataset", f"table:{base / name}.csv", *more, *options, "--out", str(base / name)]) == 0

    base = made_once("labelled-table", make)
    monkeypatch.chdir(tmp_path)
    for name in ("table", "unlabelled"):
        shutil.copytree(base / name, tmp_path / name)
        shutil.copy(base / f"{name}.csv", tmp_path)
    return tmp_path


def test_samples_are_a_table_of_the_same_columns_in_the_shares_of_its_classes(folder):
    """Of 2,000 rows 20 % at 4.3 standard errors; each is drawn at the label that it is written with."""
    assert sample(["table", "-n", "2000", "--out", "synthetic.csv"]) == 0
    rows = read("synthetic.csv")
    assert [*rows] == COLUMNS, "the labels too stand where they stood"
    assert (rows == "").any(axis=None), "as in the table"
    assert not (rows["batch"] == "").any()
    assert rows["visits"].str.fullmatch(r"\d*").all()
    assert {*rows["city"]} <= {*CITIES, ""}
    run = Run.open("table")
    train_share = (run.dataset().train_labels == 1).double().mean().item()
    is_second = rows["batch"] == "lab B"
    assert is_second.mean() == pytest.approx(train_share, abs=4.3 * math.sqrt(0.16 / 2000))
    assert not is_second.sort_values(ascending=False).equals(is_second), "in a random order"
    with seeded(0, CPU):
        labels = run.dataset().train_labels
        y = labels[torch.randint(len(labels), (2000,))]
        x = to_file(run.data, latent_space.sample_rows(run.vae(), run.data, 2000, y))
    assert is_second.tolist() == (y == 1).tolist()
    texts = [run.data.file_columns[2].text(value) for value in x[:, 2].tolist()]
    assert rows["city"].tolist() == texts


def test_what_is_there_is_kept_by_imputation_and_what_is_missing_is_drawn(folder):
    known = table().drop(columns="batch")
    is_missing = known == ""
    assert sample(["unlabelled", "--impute", "unlabelled.csv", "--out", "filled.csv"]) == 0
    filled, spread = read("filled.csv"), read("filled-std.csv")
    assert [*filled] == [*known]
    assert (filled == known)[~is_missing].fillna(True).all(axis=None)
    assert not (filled == "").any(axis=None)
    assert (filled["visits"] == filled["visits"].astype(int).astype(str)).all()
    run = Run.open("unlabelled")
    with seeded(0, CPU):
        batch = given_data(run, "unlabelled.csv").batch(run.preparation)
        expected = impute(run.vae(), batch, num_draws=num_tries(run.data))
    assert np.allclose(spread["age"].astype(float), expected.std[:, 0], rtol=1e-5)
    assert spread["patient"].tolist() == known["patient"].tolist()

    assert sample(["unlabelled", "--impute", "unlabelled.csv", "--draws", "20", "--out", "draws.csv"]) == 0
    draws = read("draws.csv")
    assert [*draws] == ["imputation", *known]
    assert draws["imputation"].tolist() == [str(1 + n) for n in range(20) for _ in range(300)]
    of_row = {name: draws[name].to_numpy().reshape(20, 300) for name in known}
    for name, values in of_row.items():
        assert (values == known[name].to_numpy())[:, ~is_missing[name]].all()
    ages = of_row["age"][:, is_missing["age"]].astype(float)
    assert (ages.std(0) > 1).all(), "each imputation is another draw"
    assert sample(["unlabelled", "--draws", "20", "--out", "other.csv"]) == 2


def test_imputed_values_have_the_point_and_the_separator_of_the_file(folder, capsys):
    """And stand beside a column without a name."""
    known = table(40).drop(columns="batch")
    known.assign(age=known["age"].str.replace(".", ",")).to_csv("european.csv", sep=";")
    assert sample(["unlabelled", "--impute", "european.csv", "--out", "filled.csv"]) == 0
    assert "the column without a name" in capsys.readouterr().err
    for name in ("filled.csv", "filled-std.csv"):
        filled = pandas.read_csv(name, dtype=str, keep_default_na=False, sep=";", index_col=0)
        assert [*filled] == [*known]
        assert filled.index.tolist() == [str(row) for row in range(40)]
    assert pandas.read_csv("filled.csv", dtype=str, sep=";")["age"].str.fullmatch(r"-?\d+,\d").all()


def test_an_alarm_marks_rows_by_held_out_ones(folder, capsys):
    options = ["--epochs", "1", "--hidden", "8", "--latent-dim", "2", "--quiet", "--calibration", "0.2"]
    assert train([*options, "--dataset", "table:unlabelled.csv", "--out", "held-out"]) == 0
    data = Run.open("held-out").data
    assert (data.num_train, data.num_valid, data.num_calibration, data.num_test) == (189, 27, 54, 30)
    split = pandas.read_csv("held-out/split.csv")
    assert (split["split"].value_counts()[["train", "calibration"]] == [189, 54]).all()
    assert split["name"].is_unique
    odd = table(60).drop(columns="batch")
    odd.loc[odd.index[:3], ["age", "visits"]] = ["4.1", "900"]
    odd.loc[odd.index[3], "city"] = "Oslo"
    odd.to_csv("odd.csv", index=False)
    few = ["--importance-samples", "5", "--out"]
    assert score(["held-out", "odd.csv", "--alarm", "0.05", *few, "marked"]) == 0
    assert "54 calibration data" in capsys.readouterr().out
    marked = pandas.read_csv("marked/scores.csv")
    assert marked["is_odd"][:4].all()
    assert (marked["p_value"][:4] == 1 / 55).all()
    assert (marked["is_odd"] == (marked["p_value"] <= 0.05)).all()
    assert marked["odd_by"].notna().equals(marked["is_odd"])
    assert marked["values"][:3].str.contains("visits 900").all()
    assert score(["held-out", "unlabelled.csv", "--alarm", "0.05", "--fdr", *few, "fdr"]) == 0
    assert "rows like these" in capsys.readouterr().out
    rows = np.random.default_rng(0).normal(size=(60, 2))
    np.savez("all.npz", train=rows, test=rows)
    assert train([*options[:-2], "--dataset", "array:all.npz", "--out", "all"]) == 0
    capsys.readouterr()
    for wrong, why in {
        ("held-out", "--alarm", "0"): "above 0",
        ("held-out", "--alarm", "1"): "below 1",
        ("held-out", "--alarm", "0.01"): "--alarm 0.01818",
        ("unlabelled", "--alarm", "0.01"): "30 test data",
        ("held-out", "--fdr"): "--alarm",
        ("all", "--alarm", "0.1"): "all rows",
    }.items():
        assert why in refuse(score, wrong, capsys, folder)


def test_scores_have_the_order_of_the_data_and_the_values_of_the_least_likely(folder, capsys):
    assert score(["unlabelled", "unlabelled.csv", "-n", "20", "--importance-samples", "5"]) == 0
    said = capsys.readouterr().out
    written = pandas.read_csv("unlabelled/scores/scores.csv", index_col="name", dtype={"name": str})
    run = Run.open("unlabelled")
    with seeded(0, CPU):
        given = given_data(run, "unlabelled.csv")
        expected = score_images(run.vae(), given.batch(run.preparation), given.names, 5)
    known = table().drop(columns="batch")
    assert written.index.tolist() == known.pop("patient").tolist()
    read, made = (one.drop(columns="method").astype(float) for one in (written, expected))
    assert np.allclose(read, made, rtol=1e-6)
    assert written["missing"].tolist() == (known == "").sum(axis=1).tolist()
    assert "bits_per_dimension" not in written, "age is a density, in years"
    printed = [line.split(" | ") for line in said.splitlines() if line.startswith("| ")][1:]
    least = written["log_p"].argsort()[:20]
    assert [row[0].split()[1] for row in printed] == written.index[least].tolist()
    for row, place in zip(printed, least):
        values = {f"{name} {text}" for name, text in known.iloc[place].items() if text}
        values |= {f"{name} is empty {int(not text)}" for name, text in known.iloc[place].items()}
        shown = row[-1].rstrip(" |").split("; ")
        assert len(shown) == 4
        assert values >= {*shown}
    assert "images" not in said


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ("loc_1,loc_2\n1,1\n1,nan", "row 2"),
        ("loc_1,loc_2\n1,x", "row 1"),
        ("loc_1,loc_2", "shape (0, 2)"),
        ("a,b\n1,1", "loc_1"),
        ("loc_1,loc_2,loc_3\n1,1,1", "(N, 2)"),
    ],
)
def test_codes_that_are_none_are_refused_by_row(folder, capsys, lines, says):
    (folder / "codes.csv").write_text(lines + "\n")
    assert says in refuse(sample, ["unlabelled", "--codes", "codes.csv"], capsys, folder)


@pytest.mark.parametrize(
    ("command", "arguments", "says"),
    [
        (score, ["unlabelled", "photo.png"], "a table, and photo.png is an image"),
        (encode, ["table", "photos"], "a table, and photos is a folder"),
        (reconstruct, ["fashion-vae", "table.csv"], "images, and table.csv is a table"),
        (sample, ["unlabelled", "--out", "x.npz"], ".csv"),
        (sample, ["fashion-vae", "--out", "x.csv"], "folder"),
        (sample, ["fashion-vae", "--label", "3"], " fashion-vae was not trained with labels"),
        (score, ["table", "table.csv", "--label", ""], "lab A, lab B"),
        (sample, ["unlabelled", "--impute", "table.csv", "--codes", "x.csv"], "exclude each other"),
        (sample, ["unlabelled", "--draws", "3"], "-n"),
    ],
)
def test_what_does_not_fit_the_run_is_refused_by_the_name_given(folder, capsys, command, arguments, says):
    (folder / "photos").mkdir()
    (folder / "photo.png").write_bytes(b"\x89PNG")
    assert says in refuse(command, arguments, capsys, folder)


@pytest.fixture
def odd(folder):
    """Ten rows in new.csv: row 2 has another city, row 5 a number below 0, row 3 nothing, row 9 a patient alone."""
    frame = read("unlabelled.csv").iloc[:10]
    frame.loc[2, "city"] = "Oslo"
    frame.loc[5, "visits"] = "-1"
    frame.loc[3] = ""
    frame.loc[9, ["age", "visits", "city"]] = ""
    frame.to_csv("new.csv", index=False)
    frame.assign(batch="lab A").mask(frame.eq("").all(axis=1), "").to_csv("labelled.csv", index=False)
    return frame


def test_each_row_has_a_score_and_one_that_is_none_of_the_table_has_its_reason(odd, capsys):
    assert score(["unlabelled", "new.csv", "--out", "scores"]) == 0
    assert "no finite log p(x) for 3 of 10 rows: 002, city is 'Oslo'" in capsys.readouterr().out
    found = pandas.read_csv("scores/scores.csv", dtype={"name": str})
    assert [*found.name.drop(3)] == [*odd.patient.drop(3)]
    assert [*np.flatnonzero(np.isneginf(found.log_p))] == [2, 5]
    assert [*np.flatnonzero(found.log_p.isna())] == [3]
    assert "'Oslo'" in found.reason[2]
    assert "visits" in found.reason[5]
    assert found.reason[3] == "all fields are empty"
    assert found.reason.drop([2, 3, 5]).isna().all()


@pytest.mark.parametrize(("run", "file"), [("unlabelled", "new.csv"), ("table", "labelled.csv")])
def test_rows_that_cannot_be_encoded_have_empty_codes_in_place(odd, capsys, run, file):
    assert encode([run, file, "--out", "codes.csv"]) == 0
    assert "no codes for 3 of 10 rows: 002, city is 'Oslo'" in capsys.readouterr().out
    codes = pandas.read_csv("codes.csv", dtype={"name": str})
    assert [*codes.name.drop(3)] == [*odd.patient.drop(3)]
    assert [*np.flatnonzero(codes.filter(like="_").isna().all(axis=1))] == [2, 3, 5]
    assert codes.drop([2, 3, 5]).notna().all(axis=None)
    assert reconstruct([run, file, "--out", "means.csv"]) == 0
    means = read("means.csv")
    assert [*np.flatnonzero((means[["age", "city"]] == "").all(axis=1))] == [2, 3, 5]


def test_rows_that_cannot_be_filled_in_stay_and_an_empty_one_is_filled_in(odd, capsys):
    for draws in ([], ["--draws", "2"]):
        file = f"filled-{len(draws)}.csv"
        assert sample(["unlabelled", "--impute", "new.csv", "--out", file, *draws]) == 0
        assert "no imputation for 2 of 10 rows: 002, city is 'Oslo'" in capsys.readouterr().out
        filled = read(file).iloc[-10:].reset_index(drop=True)[[*odd]]
        assert filled.loc[[2, 5]].equals(odd.loc[[2, 5]])
        assert filled.loc[3, "patient"] == ""
        assert not (filled.drop([2, 5])[["age", "visits", "city"]] == "").any(axis=None)


def test_the_rules_of_a_table_hold_in_what_is_drawn_and_filled_in(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    frame = table().drop(columns="patient")
    frame = pandas.concat([frame] * 2, ignore_index=True)
    frame["code"] = frame.batch.str[-1]
    frame.loc[:20, "visits"] = ""
    frame["fee"] = np.where((frame.batch == "lab A") | (frame.index % 7 == 0), "0.0", frame.index.astype(str) + ".5")
    frame.to_csv("t.csv", index=False)
    options = ["--epochs", "1", "--hidden", "8", "--latent-dim", "2", "--initialization", "torch", "--rules", "auto"]
    assert train(["--dataset", "table:t.csv", *options, "--prior", "standard-normal", "--out", "run"]) == 0
    assert "rule: fee is 0 by batch: lab A -> yes" in capsys.readouterr().out
    assert score(["run", "t.csv", "--importance-samples", "5", "--out", "scores"]) == 0
    missing = pandas.read_csv("scores/scores.csv").missing
    assert missing.tolist() == (frame == "").sum(axis=1).tolist(), "a field that a rule fills in is not missing"
    assert sample(["run", "-n", "500", "--out", "drawn.csv"]) == 0
    drawn = read("drawn.csv")
    assert [*drawn] == [*frame]
    assert (drawn.code == drawn.batch.str[-1]).all()
    assert (drawn.visits == "").any()
    assert sample(["run", "--impute", "t.csv", "--out", "full"]) == 0
    filled = read("full/imputed.csv")
    assert not (filled == "").any(axis=None)
    assert (filled[["age", "city"]].where(frame[["age", "city"]] != "", "") == frame[["age", "city"]]).all(axis=None)
    wrong = frame[(frame != "").all(axis=1)].iloc[:1].assign(code=lambda row: "B" if row.code.iloc[0] == "A" else "A")
    wrong.to_csv("wrong.csv", index=False)
    capsys.readouterr()
    assert sample(["run", "--impute", "wrong.csv", "--out", "same.csv"]) == 0
    printed = capsys.readouterr().out
    assert "a rule of the run is broken in 1 of 1 rows" in printed
    assert "stay empty" not in printed, "it lacks nothing"
