"""One system with many seeds: the processes, the table, and failures."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time

import pytest
from helpers.runs import assert_same

import pvae
from pvae.cli.draw import main as draw
from pvae.cli.evaluate import main as evaluate
from pvae.cli.seeds import check_seeds
from pvae.cli.train import _without_seeds, main
from pvae.core.errors import InputError
from pvae.runs.run import Run

SMALL = ["--dataset", "mnist-5k", "--hidden", "16", "8", "--latent-dim", "2", "--batch-size", "500", "--device", "cpu"]


@pytest.mark.parametrize(
    "text", ["", "a", "3:3", "4:2", "-1", "0:8:2", "1,1", "0:3,2", "1.5", "0:99999999999999999", ","]
)
def test_bad_seeds_are_refused(text):
    with pytest.raises(InputError, match="--seeds"):
        check_seeds(text)


def test_seeds():
    assert check_seeds("0:8") == list(range(8))
    assert check_seeds("0,3,5") == [0, 3, 5]


def test_arguments_of_one_seed():
    kept = ["--hidden", "400", "200", "--grey", "--lr", "0.1", "--config", "a.toml"]
    assert _without_seeds(["--seeds=0:2", *kept[:3], "--out", "x", "--quiet", "--jobs", "2", *kept[3:]]) == kept


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("--seeds 0:2 --seed 1", "leave --seed out"),
        ("--seeds 0:2 --resume run", "leave --resume out"),
        ("--seeds 2:0", "--seeds must be like"),
        ("--seeds 0:2 --jobs 0", "--jobs must be a whole number of at least 1"),
        ("--jobs 2", "--jobs goes with --seeds"),
        ("--seeds 0:2 --elbo analitic", "did you mean 'analytic'"),
        ("--seeds 0:2 --out full", "neither empty nor a folder of seeds"),
    ],
)
def test_refusals(arguments, says, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("precious")
    assert main(arguments.split()) == 2
    line = capsys.readouterr().err
    assert says in line
    assert line.count("\n") == 1
    assert [one.name for one in tmp_path.iterdir()] == ["full"]


def test_an_interrupted_command_stops_its_processes_and_names_how_to_go_on(capsys, tmp_path, monkeypatch):
    def interrupt():
        rows = tmp_path / "many" / "seed-0" / "metrics.jsonl"
        while not (rows.exists() and rows.read_bytes()):
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.chdir(tmp_path)
    threading.Thread(target=interrupt, daemon=True).start()
    assert main([*SMALL, "--epochs", "1000", "--seeds", "0,3", "--jobs", "1", "--quiet", "--out", "many"]) == 130
    line = capsys.readouterr().err
    assert line.startswith("pvae.train: interrupted; the same command with --out many goes on")
    assert line.count("\n") == 1
    assert 0 < Run.open("many/seed-0").read_checkpoint().counts.epoch < 1000
    assert not (tmp_path / "many" / "seed-3").exists()


def test_seeds_are_runs_of_their_own_and_end_in_a_table(no_pictures, capsys, tmp_path, monkeypatch):
    """Seed 0 has an epoch less and is resumed, seed 3 is new, and 4 cannot be trained; then the command is repeated."""
    monkeypatch.chdir(tmp_path)
    many, two = tmp_path / "many", [*SMALL, "--epochs", "2"]
    assert main([*SMALL, "--epochs", "1", "--seed", "0", "--out", "many/seed-0", "--quiet"]) == 0
    (many / "seed-4").mkdir()
    (many / "seed-4" / "notes.txt").write_text("no run")
    capsys.readouterr()
    assert main([*two, "--seeds", "0,3,4", "--jobs", "3", "--out", "many"]) == 2
    printed = capsys.readouterr()
    first, second = printed.err.splitlines()
    assert first.startswith("pvae.train: seed 4: --out many/seed-4 exists and is not an empty folder")
    assert second == "pvae.train: 1 of 3 seeds failed: 4"
    assert "seed 3  epoch 2/2" in printed.out
    assert "| 2 | 2 |" in printed.out
    assert [session["from_epoch"] for session in Run.open("many/seed-0").sessions] == [0, 1]

    shutil.rmtree(many / "seed-4")
    again, before = [*two, "--seeds", "0,3", "--out", "many", "--quiet"], contents(many)
    assert main(again) == 0
    assert capsys.readouterr().out == "many\n"
    assert contents(many) == before
    assert main([*again, "--lr", "0.5"]) == 2
    assert "seed-0 was trained with --lr 0.001, and --lr 0.5 is given" in capsys.readouterr().err
    assert main([*two, "--seed", "3", "--out", "alone", "--quiet"]) == 0
    if os.cpu_count() <= 3:  # as many threads
        assert_same(*(pvae.load(path).state_dict() for path in ("many/seed-3", "alone")))
    (many / "seed-0").rename(many / "seed-4")
    assert main([*two, "--seeds", "4", "--out", "many"]) == 2
    assert "--seed 0, and --seed 4 is given" in capsys.readouterr().err


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(("command", "name"), [(draw, "draws"), (evaluate, "evaluates")])
def test_commands_of_one_process_are_refused_by_torchrun(command, name, monkeypatch, capsys):
    for variable in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(variable, "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert command(["run"]) == 2
    assert f"one process {name}" in capsys.readouterr().err
