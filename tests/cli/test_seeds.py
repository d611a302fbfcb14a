"""One system with many seeds, `python -m pvae.train --seeds`."""

from __future__ import annotations

import os
import shlex
import signal
import threading
import time

import numpy as np
import pytest
import torch
from helpers.commands import contents, refuse

import pvae
from pvae.__main__ import command_of
from pvae.cli.train import main
from pvae.core.errors import TrainingError
from pvae.runs.run import Run
from pvae.training.trainer import Trainer

pytestmark = pytest.mark.workflow

SMALL = ["--dataset", "mnist-5k", "--hidden", "16", "8", "--latent-dim", "2", "--batch-size", "500", "--device", "cpu"]


@pytest.mark.parametrize("text", ["", "a", "3:3", "2:0", "-1", "0:8:2", "0:99999999999999999"])
def test_bad_seeds_are_refused(text, capsys, tmp_path):
    assert "0:8" in refuse(main, ["--seeds", text], capsys, tmp_path)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("--seeds 0:2 --seed 1", "--seed"),
        ("--beta 1,2 --resume run", "--resume"),
        ("--beta 1,", "0.25,1,4, not 1,"),
        ("--beta -1,2", "--beta must be a number of at least 0"),
        ("--beta 1,2 --elbo iwae --particles 2", "--beta"),
        ("--seeds 0:2 --elbo analitic", "'analytic'"),
    ],
)
def test_refusals(arguments, says, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert says in refuse(main, arguments.split(), capsys, tmp_path)


def test_several_processes_are_refused(monkeypatch, capsys):
    for variable in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(variable, "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["--seeds", "0:2"]) == 2
    assert "torchrun" in capsys.readouterr().err


def test_an_interrupted_command_saves_its_seed_and_names_how_to_go_on(capsys, tmp_path, monkeypatch):
    def interrupt():
        rows = tmp_path / "many" / "seed-0" / "metrics.jsonl"
        while not (rows.exists() and rows.read_bytes()):
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.chdir(tmp_path)
    threading.Thread(target=interrupt, daemon=True).start()
    small = [*SMALL, "--compile", "graph"]  # at once, whether it is faster or not
    assert main([*small, "--epochs", "1000", "--seeds", "0,3", "--quiet", "--out", "many"]) == 130
    line = capsys.readouterr().err
    assert line.startswith("pvae train: interrupted")
    assert "same command" in line
    assert line.count("\n") == 1
    assert 0 <= Run.open("many/seed-0").read_checkpoint().epoch < 1000


def test_a_seed_that_diverges_is_named_and_the_others_are_trained(no_pictures, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    usual = Trainer.evaluate

    def evaluate(self, *arguments):
        if self.config.seed == 1:
            raise TrainingError("the loss is nan")
        return usual(self, *arguments)

    monkeypatch.setattr(Trainer, "evaluate", evaluate)
    assert main([*SMALL, "--epochs", "1", "--seeds", "0:3", "--out", "many", "--quiet"]) == 2
    said = capsys.readouterr()
    assert "seed-1: the loss is nan" in said.err
    assert said.out == "many/figures\n"
    assert (tmp_path / "many/figures/table.csv").read_text().count("\n") == 3, "a header and two runs"


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


def test_seeds_of_a_table_end_in_a_table_and_name_what_takes_a_table(
    no_pictures, quick_start, capsys, tmp_path, monkeypatch
):
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
