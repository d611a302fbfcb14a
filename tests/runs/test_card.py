"""The README.md of a run folder."""

from __future__ import annotations

import pytest
import torch

import pvae
from pvae.cli.evaluate import main as evaluate
from pvae.runs.run import Run
from pvae.runs.writer import CARD, write_card

pytestmark = pytest.mark.workflow


def test_it_names_data_command_and_figures_and_evaluation_adds_log_p(tmp_path):
    data = pvae.Dataset("rows | of mine", torch.randn(60, 3), torch.randn(20, 3))
    config = pvae.values_config(data, latent_dim=2, epochs=1, prior="standard-normal", seed=3)
    run = pvae.fit(config, data=data, out=tmp_path / "run")
    text = (run.path / CARD).read_text()
    test = run.test_metrics()
    assert f"{test.elbo:.2f} +- {test.elbo_stderr:.2f}" in text
    assert "--seed 3" in text
    assert str(tmp_path) not in text
    assert "log p(x)" not in text
    names = [line.split("(")[1][:-1] for line in text.splitlines() if line.startswith("![")]
    assert names
    (run.path / CARD).write_text(text.replace("license: unknown", "license: mit"))
    write_card(run)
    assert "license: mit" in (run.path / CARD).read_text()
    assert all((run.path / name).exists() for name in names)


def test_evaluation_of_a_run_on_a_data_set_writes_its_log_p(tmp_path, capsys):
    config = pvae.Config(dataset="linear-gaussian", hidden=(8,), latent_dim=2, epochs=1, likelihood="normal")
    run = pvae.fit(config.replace(system="images", source=""), out=tmp_path / "run", callbacks=[])
    assert not (run.path / CARD).exists()
    evaluate([str(run.path), "--images", "20", "--importance-samples", "50"])
    text = (run.path / CARD).read_text()
    assert "| log p(x) |" in text
    assert "20 test data" in text
    assert Run.open(run.path).vae()
