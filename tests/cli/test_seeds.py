"""One system with many seeds, `python -m pvae.train --seeds`."""

from __future__ import annotations

import shlex

import numpy as np
import pytest
import torch
from helpers.commands import contents

import pvae
from pvae.__main__ import command_of
from pvae.cli.train import main
from pvae.runs.run import Run

pytestmark = pytest.mark.workflow

SMALL = ["--dataset", "mnist-5k", "--hidden", "16", "8", "--latent-dim", "2", "--batch-size", "500", "--device", "cpu"]


def test_several_processes_are_refused(monkeypatch, capsys):
    for variable in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(variable, "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["--seeds", "0:2"]) == 2
    assert "torchrun" in capsys.readouterr().err


def test_seeds_are_runs_of_their_own_and_end_in_a_table(no_pictures, capsys, tmp_path, monkeypatch):
    """Seed 0 has an epoch less and is resumed, and seed 3 is new; then the command is repeated."""
    monkeypatch.chdir(tmp_path)
    many, two = tmp_path / "many", [*SMALL, "--epochs", "2"]
    assert main([*SMALL, "--epochs", "1", "--seed", "0", "--out", "many/seed-0", "--quiet"]) == 0
    assert main([*two, "--seeds", "0,3", "--out", "many"]) == 0
    said = capsys.readouterr().out
    (row,) = [line for line in said.splitlines() if line.startswith("| deep-bayes")]
    assert [cell.strip() for cell in row.split("|")].count("2") == 2, "seeds and epochs"
    assert (many / "figures" / "table.md").read_text() in said
    assert [session["from_epoch"] for session in Run.open("many/seed-0").sessions] == [0, 1]

    again, before = [*two, "--seeds", "0,3", "--out", "many", "--quiet"], contents(many)
    assert main(again) == 0
    assert capsys.readouterr().out == "many/figures\n"
    assert contents(many) == before
    assert main([*again, "--lr", "0.5"]) == 2
    assert "many/seed-0" in capsys.readouterr().err
    assert main([*two, "--seed", "3", "--out", "alone", "--quiet"]) == 0
    many_, alone = (pvae.load(path).state_dict() for path in ("many/seed-3", "alone"))
    assert all(torch.allclose(many_[name], alone[name], rtol=1e-4, atol=1e-5) for name in alone), "to rounding"
    (many / "seed-0").rename(many / "seed-4")
    assert main([*two, "--seeds", "4", "--out", "many"]) == 2
    assert "--seed 0" in capsys.readouterr().err


def test_seeds_of_a_table_end_in_a_table_and_name_what_takes_a_table(no_pictures, capsys, tmp_path, monkeypatch):
    """There are no images for a sheet. The commands that are named next take the run as they stand."""
    monkeypatch.chdir(tmp_path)
    x = np.random.default_rng(0).normal(size=(60, 3)).round(2)
    x[::7, 0] = np.nan
    np.savetxt("t.csv", x, delimiter=",", header="a,b,c", comments="", fmt="%g")
    table = ["--dataset", "table:t.csv", "--missing", "--hidden", "4", "--latent-dim", "2", "--epochs", "1"]
    assert main([*table, "--seeds", "0:2", "--out", "many", "--quiet"]) == 0, capsys.readouterr().err
    assert "| 2 " in (tmp_path / "many/figures/table.md").read_text()
    assert not (tmp_path / "many/figures/sheet.png").exists()
    capsys.readouterr()
    assert main([*table, "--out", "alone"]) == 0
    said = capsys.readouterr().out.partition("next:")[2]
    commands = [shlex.split(line.replace("or  ", "").replace("FILE", "t.csv")) for line in said.splitlines()]
    named = {name: rest for _, name, *rest in commands if name in ("sample", "score")}
    assert named == {"score": ["alone", "t.csv"], "sample": ["alone", "--impute", "t.csv"]}, "the last of two"
    for name, rest in named.items():
        assert command_of(name)(rest) == 0, capsys.readouterr().err


def test_a_sweep_over_beta_ends_in_its_rate_distortion_curve(no_pictures, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sweep = [*SMALL, "--epochs", "1", "--elbo", "analytic", "--beta", "4,0.5", "--seeds", "0:2", "--out", "sweep"]
    assert main([*sweep, "--quiet"]) == 0, capsys.readouterr().err
    names = {f"beta-{beta}-seed-{seed}" for beta in ("0.5", "4") for seed in (0, 1)}
    assert {path.name for path in (tmp_path / "sweep").iterdir()} == {*names, "figures"}
    assert (tmp_path / "sweep/figures/rate-distortion.png").exists()
    assert main([*sweep, "--quiet"]) == 0
