"""The table of runs over their seeds, and several runs compared on the same test images."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import torch

from pvae.cli.evaluate import main
from pvae.config.config import Config
from pvae.core.errors import InputError
from pvae.core.random_state import seeded
from pvae.data.dataset import Dataset
from pvae.evaluation.report import evaluate
from pvae.evaluation.runs_table import (
    compare_runs,
    comparison_to_latex,
    comparison_to_markdown,
    over_seeds,
    runs_table,
    to_markdown,
)
from pvae.marginal.importance import importance_sample
from pvae.runs.run import Run
from pvae.trained.scores import elbo_terms, with_likelihood
from pvae.training.fit import fit

pytestmark = pytest.mark.workflow

CONFIG = Config(hidden=(16,), latent_dim=3, batch_size=50, epochs=1, binarize="static", compile="none")


@pytest.fixture
def runs(made_once, digits):
    """Runs on the same digits, of two configurations, other pixels or likelihoods, and a run on other digits."""
    data, other = (
        Dataset(name, digits.train[:130], test, dataset="mnist-5k")
        for name, test in (("few", digits.test[:40]), ("other", digits.test[40:80]))
    )
    configs = {"short": (CONFIG, data), "longer_1": (CONFIG.replace(epochs=4), data)}
    configs |= {"grey": (CONFIG.replace(binarize="none", likelihood="normal"), data), "other": (CONFIG, other)}
    configs["levels"] = (CONFIG.replace(binarize="none", likelihood="discretized-logistic"), data)
    configs["pseudo"] = (CONFIG.replace(binarize="none", beta=4.0), data)
    configs["autoencoder"] = (CONFIG.replace(binarize="none", posterior="delta", likelihood="normal"), data)

    def train(out):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("pvae.plotting.pictures.save_figures", lambda run, *_: run.figures())
            for name, (config, given) in configs.items():
                fit(config, data=given, out=out / name)

    folder = made_once("runs table", train)
    found = {name: Run.open(folder / name) for name in configs}
    for name, (_, given) in configs.items():
        found[name].dataset(given)
    return found


def test_differences_are_paired(runs):
    short, longer = runs["short"], runs["longer_1"]
    results = compare_runs([short, longer], 20, num_images=30, seed=1, method="importance")
    log_p = []
    for run, result in zip((short, longer), results.itertuples()):
        vae, batch, _ = with_likelihood(run, run.dataset().test)
        report = evaluate(run, 20, 30, seed=1, method="importance")
        assert result.elbo == pytest.approx(report.log_likelihood.elbo.mean, abs=3 * result.elbo_stderr)
        rows = torch.randperm(40, generator=torch.Generator().manual_seed(1))[:30].sort().values
        with seeded(1, torch.device("cpu")):
            log_p.append(importance_sample(vae, batch.rows(rows), 20).log_p)
        assert result.log_p == pytest.approx(log_p[-1].mean().item())
    difference = log_p[0] - log_p[1]
    first, best = results.itertuples()
    assert first.log_p_difference == pytest.approx(difference.mean().item())
    assert first.log_p_difference_stderr == pytest.approx(difference.std().item() / 30**0.5)
    assert first.log_p_difference_stderr < (log_p[0].var() + log_p[1].var()).sqrt() / 30**0.5
    assert (best.log_p_difference, best.log_p_difference_stderr) == (0, 0)
    assert [row.distortion + row.rate for row in results.itertuples()] == pytest.approx([*-results["elbo"]], rel=1e-6)


@pytest.mark.parametrize(
    ("first", "second", "says"),
    [
        ("short", "grey", "--pad"),
        ("short", "other", "same data"),
        ("levels", "grey", "kind"),
        ("short", "autoencoder", "autoencoder"),
    ],
)
def test_runs_that_cannot_be_compared_are_refused_by_the_reason_that_applies(runs, first, second, says):
    with pytest.raises(InputError, match=second) as refused:
        compare_runs([runs[first], runs[second]], 2, progress=lambda *_: pytest.fail("before the first draws"))
    reasons = ("--pad", "same data", "kind", "--condition", "autoencoder")
    assert [reason for reason in reasons if reason in str(refused.value)] == [says]


@pytest.mark.usefixtures("no_pictures")
def test_columns_of_one_kind_are_compared_with_one_likelihood_of_all(tmp_path):
    """A density of a column is not compared with a probability."""
    x = torch.arange(60.0).view(30, 2)
    data = Dataset("rows", x[:20], x[20:])
    small = Config(latent_dim=1, hidden=(4,), epochs=1, batch_size=10, compile="none")
    options = [{"likelihood": "columns", "columns": kinds} for kinds in ("count*2", "real*2", "real,count")]
    options += {"likelihood": "negative-binomial"}, {"likelihood": "normal-diagonal"}
    runs = [fit(small.replace(**one), data=data, out=tmp_path / str(n)) for n, one in enumerate(options)]
    for first, second in (0, 3), (1, 4):
        assert len(compare_runs([runs[first], runs[second]], 2)) == 2
    for first, second in (0, 4), (1, 2), (2, 3), (3, 4):
        with pytest.raises(InputError, match="kind"):
            compare_runs([runs[first], runs[second]], 2)


def test_a_run_on_grey_pixels_is_compared_on_binary_ones(runs):
    """Its ELBO is then that of the binary pixels, and not its pseudo-ELBO; beta is shown where runs differ in it."""
    short, pseudo = runs["short"], runs["pseudo"]
    results = compare_runs([short, pseudo], 20, method="importance")
    vae, batch, kind = with_likelihood(pseudo, pseudo.dataset().test)
    assert {*batch.x.images.unique().tolist()} == {0, 255}
    with seeded(0, torch.device("cpu")):
        assert results["log_p"][1] == pytest.approx(importance_sample(vae, batch, 20).log_p.mean().item())
        assert results["elbo"][1] == pytest.approx(elbo_terms(vae, batch)["elbo"].mean().item())
    table = comparison_to_markdown(results)
    assert table.splitlines()[2].split("|")[2].strip() == "1"
    assert table.splitlines()[3].split("|")[2].strip() == "4"
    assert kind in table
    assert "beta |" not in comparison_to_markdown(compare_runs([short, runs["longer_1"]], 20, method="importance"))


def test_the_command_prints_one_table(runs, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("pvae.runs.run.read_again", lambda record, *_: runs["short"].dataset())
    paths = [str(runs[name].path) for name in ("short", "longer_1")]
    few = ["--importance-samples", "5", "--images", "20"]
    assert main([paths[0], *few, "--out", str(tmp_path / "table.md"), paths[1]]) == 0
    table = capsys.readouterr().out
    body = [line.split("|")[1].strip() for line in table.splitlines() if "+-" in line and "|" in line]
    assert body == ["short", "longer_1"]
    assert (tmp_path / "table.md").read_text() == table
    assert main([*paths, *few, "--latex"]) == 0
    latex = capsys.readouterr().out.splitlines()
    (line,) = (line for line in latex if r"longer\_1" in line)
    assert line.count(r"\pm") == 4, "no errors of differences of the run that the others are compared with"
    assert all(line.startswith("%") for line in latex[latex.index(r"\end{tabular}") + 1 :]), "a comment"
    assert not list(runs["short"].path.glob("evaluation.json"))
    assert main([paths[0], str(runs["other"].path), *few]) == 2
    assert capsys.readouterr().err.count("\n") == 1


ROW = {
    "run": "a", "configuration": "1", "system": "mlp-2d", "estimator": "trace", "beta": 1.0, "data": "MNIST", "seed": 0,
    "epochs": 3, "planned_epochs": 3, "chosen_epoch": 3, "pseudo": True, "elbo": -100.0, "elbo_stderr": 0.25,
    "distortion": 1.0, "rate": 1.0, "log_likelihood": None, "log_likelihood_stderr": None, "importance_samples": None,
    "accuracy": None, "kolmogorov_smirnov": 1.0, "seconds_per_epoch": 2.0,
}  # fmt: skip


def cells_of(rows):
    lines = to_markdown(runs_table(rows)).split("\n\n")[0].splitlines()
    header, _, *body = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    return [dict(zip(header, row, strict=True)) for row in body]


def test_the_table_is_over_seeds():
    rows = [ROW, ROW | {"run": "b", "seed": 1, "elbo": -102.0}, ROW | {"run": "c", "configuration": "2"}]
    both, alone = cells_of(rows)
    assert (both["seeds"], both["epochs"], both["ELBO"]) == ("2", "3", "-101.00 +- 1.00 (pseudo)"), "sqrt(2) / sqrt(2)"
    assert (alone["seeds"], alone["ELBO"]) == ("1", "-100.00 +- 0.25 (pseudo)")
    assert (both["SD of ELBO"], alone["SD of ELBO"]) == ("1.41", "-")
    evaluated = [ROW | {"seed": seed, "log_likelihood": -90.0 - seed, "log_likelihood_stderr": 0.3} for seed in (0, 1)]
    assert [row["log p(x)"] for row in cells_of(evaluated)] == ["-90.50 +- 0.50"]
    assert [row["log p(x)"] for row in cells_of(evaluated[1:])] == ["-91.00 +- 0.30"]


LOG_P, ELBO = [-10.0, -12.0, -20.0, -21.0, -22.0], [-11.0, -14.0, -30.0, -31.0, -35.0]  # of two runs, and of three
FOLDERS = [Path("some_a")] * 2 + [Path("b")] * 3


def compared(log_p=LOG_P, elbo=ELBO, seeds=(0, 1, 0, 1, 2), untrusted=(0, 0, 0, 0.5, 0)):
    table = {"run": [*"vwxyzt"[: len(log_p)]], "log_p": log_p, "elbo": elbo, "untrusted": untrusted, "seed": seeds}
    return pd.DataFrame(table).assign(beta=1.0, by="importance", pixels="", distortion=[-one for one in elbo], rate=0.0)


def test_a_folder_is_the_mean_of_its_runs_with_an_error_over_seeds():
    best, other = over_seeds(compared(), FOLDERS).to_dict("records")
    assert (best["run"], best["seeds"], best["log_p"], best["elbo"]) == ("some_a", 2, -11, -12.5)
    assert (best["log_p_stderr"], best["elbo_stderr"]) == pytest.approx((1, 1.5)), "sqrt(2) / sqrt(2); 2.12 / sqrt(2)"
    assert (best["log_p_difference"], best["log_p_difference_stderr"], best["untrusted"]) == (0, 0, 0)
    assert (other["seeds"], other["log_p"], other["log_p_difference"]) == (3, -21, -10)
    assert other["log_p_stderr"] == pytest.approx(1 / 3**0.5)
    assert other["log_p_difference_stderr"] == pytest.approx((1 + 1 / 3) ** 0.5), "that of two independent means"
    assert other["untrusted"] == 0.5, "the worst of its runs"
    row = comparison_to_markdown(over_seeds(compared(), FOLDERS)).splitlines()[3]
    assert [cell.strip() for cell in row.split("|")[1:4]] == ["b", "3", "-21.00 +- 0.58 (not reliable)"]
    latex = comparison_to_latex(over_seeds(compared(), FOLDERS))
    assert r"b & 3 & $-21.00 \pm 0.58$ (not reliable) & $-10.00 \pm 1.15$" in latex


def test_folders_of_equal_seeds_are_compared_seed_by_seed():
    """The runs of the second folder are listed in another order; three differences of 10, 11 and 12 are left."""
    table = compared([-10.0, -20.0, -30.0, -42.0, -20.0, -31.0], [-1.0] * 6, (0, 1, 2, 2, 0, 1), (0,) * 6)
    best, other = over_seeds(table, [Path("a")] * 3 + [Path("b")] * 3).to_dict("records")
    assert (best["log_p_difference"], best["log_p_difference_stderr"]) == (0, 0)
    assert other["log_p_difference"] == pytest.approx(-11)
    assert other["log_p_difference_stderr"] == pytest.approx(1 / 3**0.5), "their standard deviation is 1"
    others = over_seeds(table.assign(seed=(0, 1, 2, 3, 0, 1)), [Path("a")] * 3 + [Path("b")] * 3)
    assert others["log_p_difference_stderr"][1] == pytest.approx((100 / 3 + 121 / 3) ** 0.5), "not paired"
    assert comparison_to_markdown(others) != comparison_to_markdown(others.assign(paired=True)), "it says which"


def best_of(table):
    return [line.split("|")[1].strip() for line in comparison_to_markdown(table).splitlines() if "| best " in line]


@pytest.mark.parametrize(("spread", "best"), [(0.39, ["a"]), (0.41, [])])
def test_the_best_of_three_seeds_is_4_3_errors_above_the_other(spread, best):
    """The difference is 1, with an error of spread / sqrt(3)."""
    log_p = [-10.0, -10.0, -10.0, -11.0 - spread, -11.0, -11.0 + spread]
    table = over_seeds(compared(log_p, log_p, (0, 1, 2) * 2, (0,) * 6), [Path("a")] * 3 + [Path("b")] * 3)
    assert best_of(table) == best
    assert best_of(table.assign(untrusted=[0, 0.02])) == [], "a log p(x) that is too low"


@pytest.mark.parametrize(("error", "best"), [(0.50, ["v"]), (0.52, [])])
def test_the_best_of_runs_is_two_errors_above_each_other_one(error, best):
    table = compared([-10.0, -12.0, -11.0], [-1.0] * 3, (0,) * 3, (0,) * 3).assign(paired=True)
    for name in ("log_p", "elbo", "distortion", "rate"):
        table[f"{name}_stderr"] = 1.0
        table[f"{name}_difference"] = table[name] - table[name][0]
        table[f"{name}_difference_stderr"] = [0.0, 0.1, error]
    assert best_of(table) == best
    assert best_of(table[:1]) == [], "of one"


@pytest.fixture
def seeds(made_once, digits, monkeypatch):
    """Two folders of two seeds each, "odd" where two runs differ in more, "twice" with a seed twice, "one"."""
    data = Dataset("few", digits.train[:100], digits.test[:40], dataset="mnist-5k")
    monkeypatch.setattr("pvae.runs.run.read_again", lambda *_: data)
    runs = {f"{name}/seed-{seed}": {"elbo": name, "seed": seed} for name in ("trace", "analytic") for seed in (0, 1)}
    runs |= {"odd/a": {}, "odd/b": {"elbo": "stl", "seed": 1}, "twice/a": {}, "twice/b": {}, "one/a": {}}

    def train(out):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("pvae.plotting.pictures.save_figures", lambda run, *_: run.figures())
            for name, options in runs.items():
                fit(CONFIG.replace(**options), data=data, out=out / name)

    return made_once("folders of seeds", train)


FEW = ["--importance-samples", "5", "--images", "20"]


def test_the_command_takes_folders_of_seeds(seeds, capsys):
    paths = [str(seeds / name) for name in ("trace", "analytic")]
    assert main([*paths, *FEW, "--quiet"]) == 0
    said = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.split("|")] for line in said.splitlines() if line.startswith("|")][2:]
    assert [row[1:3] for row in rows] == [["trace", "2"], ["analytic", "2"]]
    runs = [Run.open(seeds / name / f"seed-{seed}") for name in ("trace", "analytic") for seed in (0, 1)]
    alone = compare_runs(runs, 5, 20, method="importance")
    assert list(alone["run"]) == ["trace/seed-0", "trace/seed-1", "analytic/seed-0", "analytic/seed-1"]
    for row, values in zip(rows, (alone["elbo"][:2], alone["elbo"][2:])):
        mean, error = row[5].split(" +- ")
        assert float(mean) == pytest.approx(values.mean(), abs=0.006)
        assert float(error) == pytest.approx(abs(values.diff().iloc[-1]) / 2, abs=0.006), "of two values"


@pytest.mark.parametrize(
    ("given", "says"),
    [(["odd"], "odd"), (["twice"], "twice"), (["one"], "one/a"), (["trace", "one/a"], "folders")],
)
def test_other_folders_are_refused(seeds, capsys, given, says):
    assert main([*(str(seeds / name) for name in given), *FEW]) == 2
    line = capsys.readouterr().err
    assert says in line
    assert line.count("\n") == 1


def test_a_run_that_was_stopped_in_its_first_epoch_is_refused(seeds, capsys, tmp_path, monkeypatch):
    """Its figures would be those of initial weights. Without config.json there is nothing to go on with."""

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("pvae.training.callbacks.EarlyStopping.on_train_begin", stop)
    with pytest.raises(KeyboardInterrupt):
        fit(CONFIG, data=Run.open(seeds / "one" / "a").dataset(), out=tmp_path / "run")
    for says in ("--resume", "start again"):
        assert main([str(tmp_path / "run"), *FEW]) == 2
        line = capsys.readouterr().err
        assert says in line
        assert line.count("\n") == 1
        (tmp_path / "run" / "config.json").unlink(missing_ok=True)
