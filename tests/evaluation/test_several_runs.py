"""Several runs evaluated on the same test images, by `evaluate_runs` and by the command."""

from __future__ import annotations

import pytest
import torch

from pvae.cli.evaluate import main
from pvae.config.config import Config
from pvae.core.errors import InputError
from pvae.core.random_state import seeded
from pvae.data.dataset import Dataset
from pvae.evaluation.report import evaluate
from pvae.evaluation.several_runs import evaluate_runs, to_latex
from pvae.runs import data as data_module
from pvae.trained.log_likelihood import importance_sample
from pvae.trained.normalised import with_likelihood
from pvae.training.fit import fit

pytestmark = pytest.mark.workflow

CONFIG = Config(hidden=(16,), latent_dim=3, batch_size=50, epochs=1, binarize="static")


@pytest.fixture(scope="module")
def runs(tmp_path_factory, digits):
    """Three runs on the same digits, the last with other pixels, and one on other digits."""
    folder, data = (
        tmp_path_factory.mktemp("runs"),
        Dataset("few", digits.train[:130], digits.test[:40], dataset="mnist-5k"),
    )
    other = Dataset("other", digits.train[:130], digits.test[40:80], dataset="mnist-5k")
    configs = {"short": (CONFIG, data), "longer_1": (CONFIG.replace(epochs=4), data)}
    configs |= {"grey": (CONFIG.replace(binarize="none", likelihood="normal"), data), "other": (CONFIG, other)}
    configs["autoencoder"] = (CONFIG.replace(binarize="none", posterior="delta", likelihood="normal"), data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pvae.plotting.run_figures.save_figures", lambda run, *_: run.figures())
        return {name: fit(config, data=given, out=folder / name) for name, (config, given) in configs.items()}


def test_differences_are_paired(runs):
    short, longer = runs["short"], runs["longer_1"]
    results = evaluate_runs([short, longer], 20, num_images=30, seed=1)
    log_p = []
    for run, result in zip((short, longer), results):
        vae, x, _ = with_likelihood(run, run.dataset().test)
        report = evaluate(run, 20, 30, seed=1)
        assert result.elbo.mean == pytest.approx(report.log_likelihood.elbo.mean, abs=3 * result.elbo.stderr)
        images = x.images[torch.randperm(40, generator=torch.Generator().manual_seed(1))[:30].sort().values]
        with seeded(1, torch.device("cpu")):
            log_p.append(importance_sample(vae, type(x)(images, x.preparation), 20).log_p)
        assert result.log_p.mean == pytest.approx(log_p[-1].mean().item())
    difference = log_p[0] - log_p[1]
    assert results[0].difference.mean == pytest.approx(difference.mean().item())
    assert results[0].difference.stderr == pytest.approx(difference.std().item() / 30**0.5)
    assert results[0].difference.stderr < (log_p[0].var() + log_p[1].var()).sqrt() / 30**0.5
    assert (results[1].difference.mean, results[1].difference.stderr) == (0, 0)


@pytest.mark.parametrize("name", ["grey", "other", "autoencoder"])
def test_runs_that_cannot_be_compared_are_refused(runs, name):
    with pytest.raises(InputError, match=name):
        evaluate_runs([runs["short"], runs[name]], 2)


def test_the_command_prints_one_table(runs, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(data_module, "load_again", lambda run, *_: runs[run.path.name].dataset())
    paths = [str(runs[name].path) for name in ("short", "longer_1")]
    few = ["--importance-samples", "5", "--images", "20"]
    assert main([paths[0], *few, "--out", str(tmp_path / "table.md"), paths[1]]) == 0
    table = capsys.readouterr().out
    assert [line.split("|")[1].strip() for line in table.splitlines() if "+-" in line and "|" in line] == [
        "short",
        "longer_1",
    ]
    assert (tmp_path / "table.md").read_text() == table
    assert main([*paths, *few, "--latex"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert r"longer\_1 & $" in lines[4]
    assert lines[4].count(r"\pm") == 2, "no errors of the run that the others are compared with"
    assert not list(runs["short"].path.glob("evaluation.json"))
    assert main([*paths, *few, "--seconds", "5"]) == 2
    assert "--seconds" in capsys.readouterr().err
    assert main([paths[0], str(runs["other"].path), *few]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_names_are_escaped_for_latex(runs):
    (result,) = evaluate_runs([runs["longer_1"]], 2)
    assert to_latex([result]).count(r"\_") == 1
