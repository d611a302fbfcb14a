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
    short_names,
    to_markdown,
)
from pvae.runs import data as data_module
from pvae.runs.run import Run
from pvae.trained.log_likelihood import importance_sample
from pvae.trained.normalised import with_likelihood
from pvae.training.fit import fit

pytestmark = pytest.mark.workflow

CONFIG = Config(hidden=(16,), latent_dim=3, batch_size=50, epochs=1, binarize="static")


@pytest.fixture
def runs(made_once, digits):
    """Three runs on the same digits, the last with other pixels, an autoencoder, and a run on other digits."""
    data, other = (
        Dataset(name, digits.train[:130], test, dataset="mnist-5k")
        for name, test in (("few", digits.test[:40]), ("other", digits.test[40:80]))
    )
    configs = {"short": (CONFIG, data), "longer_1": (CONFIG.replace(epochs=4), data)}
    configs |= {"grey": (CONFIG.replace(binarize="none", likelihood="normal"), data), "other": (CONFIG, other)}
    configs["autoencoder"] = (CONFIG.replace(binarize="none", posterior="delta", likelihood="normal"), data)

    def train(out):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("pvae.plotting.run_figures.save_figures", lambda run, *_: run.figures())
            for name, (config, given) in configs.items():
                fit(config, data=given, out=out / name)

    folder = made_once("runs table", train)
    found = {name: Run.open(folder / name) for name in configs}
    for name, (_, given) in configs.items():
        found[name].dataset(given)
    return found


def test_differences_are_paired(runs):
    short, longer = runs["short"], runs["longer_1"]
    results = compare_runs([short, longer], 20, num_images=30, seed=1)
    log_p = []
    for run, result in zip((short, longer), results.itertuples()):
        vae, batch, _ = with_likelihood(run, run.dataset().test)
        report = evaluate(run, 20, 30, seed=1)
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


@pytest.mark.parametrize("name", ["grey", "other", "autoencoder"])
def test_runs_that_cannot_be_compared_are_refused(runs, name):
    with pytest.raises(InputError, match=name):
        compare_runs([runs["short"], runs[name]], 2, on_images=lambda _: pytest.fail("before the first draws"))


def test_the_command_prints_one_table(runs, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(data_module, "load_again", lambda run, *_: runs[run.path.name].dataset())
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
    assert line.count(r"\pm") == 2, "no errors of the run that the others are compared with"
    assert all(line.startswith("%") for line in latex[latex.index(r"\end{tabular}") + 1 :]), "a comment"
    assert not list(runs["short"].path.glob("evaluation.json"))
    assert main([paths[0], str(runs["other"].path), *few]) == 2
    assert capsys.readouterr().err.count("\n") == 2, "what is evaluated, and the refusal"


ROW = {
    "run": "a", "configuration": "1", "system": "mlp-2d", "estimator": "trace", "data": "MNIST", "seed": 0, "epochs": 3,
    "planned_epochs": 3, "chosen_epoch": 3, "pseudo": True, "elbo": -100.0, "elbo_stderr": 0.25, "distortion": 1.0,
    "rate": 1.0, "log_likelihood": None, "log_likelihood_stderr": None, "importance_samples": None,
    "accuracy": None, "kolmogorov_smirnov": 1.0, "seconds_per_epoch": 2.0,
}  # fmt: skip


def cells_of(rows):
    lines = to_markdown(runs_table(rows)).split("\n\n")[0].splitlines()
    header, _, *body = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    return [dict(zip(header, row, strict=True)) for row in body]


def test_the_table_is_over_seeds():
    rows = [
        ROW,
        ROW | {"run": "b", "seed": 1, "elbo": -102.0, "seconds_per_epoch": 1.5},
        ROW | {"run": "c", "configuration": "2"},
    ]
    both, alone = cells_of(rows)
    assert (both["seeds"], both["epochs"], both["ELBO"]) == ("2", "3", "-101.00 +- 1.41 (pseudo)")
    assert both["s an epoch"] == "1.5", "of the fastest run"
    assert (alone["seeds"], alone["ELBO"]) == ("1", "-100.00 +- 0.25 (pseudo)")
    (none,) = cells_of([ROW | {"elbo": None, "elbo_stderr": None}])
    assert (none["ELBO"], none["log p(x)"], none["distortion"]) == ("-", "-", "1.00")
    evaluated = [ROW | {"seed": seed, "log_likelihood": -90.0 - seed, "log_likelihood_stderr": 0.3} for seed in (0, 1)]
    assert [row["log p(x)"] for row in cells_of(evaluated)] == ["-90.50 +- 0.71"]
    assert [row["log p(x)"] for row in cells_of(evaluated[1:])] == ["-91.00 +- 0.30"]


def test_the_table_is_sorted_and_counts_are_integers():
    evaluated = ROW | {"run": "c", "seed": 1, "importance_samples": 7}
    table = runs_table([evaluated, ROW | {"run": "b", "system": "z"}, ROW])
    assert list(table["run"]) == ["a", "c", "b"]
    place = table.columns.get_loc("importance_samples")
    assert [line.split(",")[place] for line in table.to_csv(index=False).split()[1:]] == ["", "7", ""]


def test_a_folder_may_have_a_name_of_undecodable_bytes():
    table = runs_table([ROW | {"run": "caf\udce9", "data": "caf\udce9"}])
    assert "caf\udce9" in table.to_csv()
    assert "caf\udce9" in to_markdown(table)
    names = ("log_p", "log_p_difference", "elbo", "elbo_difference")
    row = {"run": "caf\udce9", "untrusted": 0.0} | {f"{name}{part}": 1.0 for name in names for part in ("", "_stderr")}
    assert "caf\udce9" in comparison_to_latex(pd.DataFrame([row], dtype=object))


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["runs/a"], ["a"]),
        (["a/seed-0", "b/seed-0", "c"], ["a/seed-0", "b/seed-0", "c"]),
        (["a/seed-0", "a/seed-1"], ["seed-0", "seed-1"]),
        (["x/a/run", "y/a/run", "b/run"], ["x/a/run", "y/a/run", "b/run"]),
        (["a", "./a"], ["a", "a"]),
        (["/a/b", "/c/a/b"], ["/a/b", "c/a/b"]),
    ],
)
def test_a_run_has_the_shortest_name_that_no_other_has(paths, names):
    assert short_names([*map(Path, paths)]) == names


LOG_P, ELBO = [-10.0, -12.0, -20.0, -21.0, -22.0], [-11.0, -14.0, -30.0, -31.0, -35.0]  # of two runs, and of three
FOLDERS = [Path("some_a")] * 2 + [Path("b")] * 3


def compared():
    zeros = dict.fromkeys(("log_p_stderr", "elbo_stderr"), 9.0)
    table = {"run": [*"vwxyz"], "log_p": LOG_P, "elbo": ELBO, "untrusted": [0, 0, 0, 0.5, 0]}
    return pd.DataFrame(table).assign(**zeros)


def test_a_folder_is_the_mean_of_its_runs_with_an_error_over_seeds():
    best, other = over_seeds(compared(), FOLDERS).to_dict("records")
    assert (best["run"], best["seeds"], best["log_p"], best["elbo"]) == ("some_a", 2, -11, -12.5)
    assert (best["log_p_stderr"], best["elbo_stderr"]) == pytest.approx((1, 1.5)), "sqrt(2) / sqrt(2); 2.12 / sqrt(2)"
    assert (best["log_p_difference"], best["log_p_difference_stderr"], best["untrusted"]) == (0, 0, 0)
    assert (other["seeds"], other["log_p"], other["log_p_difference"]) == (3, -21, -10)
    assert other["log_p_stderr"] == pytest.approx(1 / 3**0.5)
    assert other["log_p_difference_stderr"] == pytest.approx((1 + 1 / 3) ** 0.5), "that of two independent means"
    assert (other["elbo_difference"], other["elbo_difference_stderr"]) == pytest.approx((-19.5, (2.25 + 7 / 3) ** 0.5))
    assert other["untrusted"] == 0.5, "the worst of its runs"


def test_both_forms_of_the_table_have_the_number_of_seeds():
    table = over_seeds(compared(), FOLDERS)
    row = comparison_to_markdown(table).splitlines()[3]
    assert [cell.strip() for cell in row.split("|")[1:4]] == ["b", "3", "-21.00 +- 0.58 (too low)"]
    latex = comparison_to_latex(table)
    assert r"some\_a & 2 & $-11.00 \pm 1.00$ & best & $-12.50 \pm 1.50$ & - \\" in latex
    assert r"b & 3 & $-21.00 \pm 0.58$ (too low) & $-10.00 \pm 1.15$" in latex


@pytest.fixture
def seeds(made_once, digits, monkeypatch):
    """Two folders of two seeds each, "odd" where two runs differ in more, "twice" with a seed twice, "one"."""
    data = Dataset("few", digits.train[:100], digits.test[:40], dataset="mnist-5k")
    monkeypatch.setattr(data_module, "load_again", lambda *_: data)
    runs = {f"{name}/seed-{seed}": {"elbo": name, "seed": seed} for name in ("trace", "analytic") for seed in (0, 1)}
    runs |= {"odd/a": {}, "odd/b": {"elbo": "stl", "seed": 1}, "twice/a": {}, "twice/b": {}, "one/a": {}}

    def train(out):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("pvae.plotting.run_figures.save_figures", lambda run, *_: run.figures())
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
    alone = compare_runs(runs, 5, 20)
    assert list(alone["run"]) == ["trace/seed-0", "trace/seed-1", "analytic/seed-0", "analytic/seed-1"]
    for row, values in zip(rows, (alone["elbo"][:2], alone["elbo"][2:])):
        mean, error = row[5].split(" +- ")
        assert float(mean) == pytest.approx(values.mean(), abs=0.006)
        assert float(error) == pytest.approx(abs(values.diff().iloc[-1]) / 2, abs=0.006), "of two values"


def test_a_folder_that_is_given_twice_is_counted_once(seeds, capsys):
    said = []
    for names in (["trace", "analytic"], ["trace", "trace/../trace", "analytic"]):
        assert main([*(str(seeds / name) for name in names), *FEW, "--quiet"]) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1]


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
