"""One system with many seeds: the processes, the table, and failures."""

from __future__ import annotations

import os
import signal
import time

import pytest
from helpers.processes import Group
from helpers.runs import assert_same

import pvae
from pvae.cli.draw import main as draw
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


def test_seeds_are_runs_of_their_own_and_end_in_a_table(capsys, tmp_path, monkeypatch):
    """Interrupted, continued by the same command, then repeated: same weights as single runs, same table as draw."""
    monkeypatch.chdir(tmp_path)
    command = [*SMALL, "--epochs", "20", "--seeds", "0,3", "--jobs", "2", "--out", "many"]
    group = Group(1, main, command, folder=tmp_path)
    group.wait_for(tmp_path / "many" / "seed-0" / "metrics.jsonl")
    group.kill(0, signal.SIGINT)
    started = time.monotonic()
    assert group.join(60) == [130]
    assert time.monotonic() - started < 10  # the documentation promises 2 s; the machine may be busy
    assert group.err.startswith("pvae.train: interrupted; the same command with --out many goes on")
    assert group.err.count("\n") == 1
    assert 0 < Run.open("many/seed-0").read_checkpoint().counts.epoch < 20

    assert main(command) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert "seed 3  epoch 20/20" in printed.out
    assert "| 2 | 20 |" in printed.out
    before = [(tmp_path / "many" / f"seed-{seed}" / "config.json").read_bytes() for seed in (0, 3)]
    assert main([*command, "--quiet"]) == 0
    assert capsys.readouterr().out == "many\n"
    assert before == [(tmp_path / "many" / f"seed-{seed}" / "config.json").read_bytes() for seed in (0, 3)]

    table = (tmp_path / "many" / "table.md").read_text()
    assert draw(["many"]) == 0
    assert (tmp_path / "many" / "table.md").read_text() == table
    assert main([*SMALL, "--epochs", "20", "--seed", "3", "--out", "alone", "--quiet"]) == 0
    if os.cpu_count() <= 3:  # as many threads
        assert_same(*(pvae.load(path).state_dict() for path in ("many/seed-3", "alone")))


def test_runs_of_other_options_are_refused_and_more_epochs_resume(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = [*SMALL, "--seeds", "0", "--out", "many", "--quiet"]
    assert main([*SMALL, "--epochs", "1", "--seed", "0", "--out", "many/seed-0", "--quiet"]) == 0
    assert main([*command, "--epochs", "1", "--lr", "0.5"]) == 2
    assert "seed-0 was trained with --lr 0.001, and --lr 0.5 is given" in capsys.readouterr().err
    assert main([*command, "--epochs", "2"]) == 0
    assert [session["from_epoch"] for session in Run.open("many/seed-0").sessions] == [0, 1]
    (tmp_path / "many" / "seed-0").rename(tmp_path / "many" / "seed-4")
    assert main([*command, "--epochs", "2", "--seeds", "4"]) == 2
    assert "--seed 0, and --seed 4 is given" in capsys.readouterr().err


def test_a_seed_that_fails_is_named_and_the_table_has_the_others(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main([*SMALL, "--epochs", "1", "--seed", "0", "--out", "many/seed-0"]) == 0
    (tmp_path / "many" / "seed-1").mkdir(parents=True)
    (tmp_path / "many" / "seed-1" / "notes.txt").write_text("no run")
    capsys.readouterr()
    assert main([*SMALL, "--epochs", "1", "--seeds", "0:2", "--out", "many"]) == 2
    printed = capsys.readouterr()
    first, second = printed.err.splitlines()
    assert first.startswith("pvae.train: seed 1: --out many/seed-1 exists and is not an empty folder")
    assert second == "pvae.train: 1 of 2 seeds failed: 1"
    assert "| 1 | 1 |" in printed.out
