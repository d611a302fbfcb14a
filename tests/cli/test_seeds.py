"""One system with many seeds: the processes, the table, and failures."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from helpers.processes import run_group

import pvae
from pvae.cli.draw import main as draw
from pvae.cli.seeds import check_seeds
from pvae.cli.train import _without_seeds, main
from pvae.core.errors import InputError
from pvae.runs.run import Run

SMALL = ["--dataset", "mnist-5k", "--hidden", "16", "8", "--latent-dim", "2", "--batch-size", "500", "--device", "cpu"]
COMMAND = [sys.executable, "-m", "pvae.train", *SMALL]


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


def test_a_reason_that_all_seeds_share_is_printed_once(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["--seeds", "0:2", "--data-dir", "nowhere", "--out", "new/many", "--quiet"]) == 2
    assert capsys.readouterr().err == "pvae.train: --data-dir: there is no folder nowhere (all of the 2 seeds)\n"
    assert not list(tmp_path.iterdir())


def test_seeds_are_runs_of_their_own_and_end_in_a_table(capsys, tmp_path, monkeypatch):
    """Interrupted, continued by the same command, then repeated: same weights as single runs, same table as draw."""
    monkeypatch.chdir(tmp_path)
    command = [*SMALL, "--epochs", "20", "--seeds", "0,3", "--jobs", "2", "--out", "many"]
    process = subprocess.Popen(
        [*COMMAND[:3], *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    while "epoch  3/20" not in process.stdout.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    started = time.monotonic()
    _, errors = process.communicate(timeout=60)
    assert time.monotonic() - started < 10  # the documentation promises 2 s; the machine may be busy
    assert process.returncode == 130
    assert errors.startswith("pvae.train: interrupted; the same command with --out many goes on")
    assert errors.count("\n") == 1
    assert any(Run.open(path).read_checkpoint().counts.epoch < 20 for path in (tmp_path / "many").glob("seed-*"))

    assert main(command) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert "| 2 | 20 |" in printed.out
    before = [(tmp_path / "many" / f"seed-{seed}" / "config.json").read_bytes() for seed in (0, 3)]
    assert main([*command, "--quiet"]) == 0
    assert capsys.readouterr().out == "many\n"
    assert before == [(tmp_path / "many" / f"seed-{seed}" / "config.json").read_bytes() for seed in (0, 3)]

    table = (tmp_path / "many" / "table.md").read_text()
    assert draw(["many"]) == 0
    assert (tmp_path / "many" / "table.md").read_text() == table
    run_group(1, main, [*SMALL, "--epochs", "20", "--seed", "3", "--out", "alone", "--quiet"], folder=tmp_path)
    ours, theirs = (pvae.load(path).state_dict() for path in ("many/seed-3", "alone"))
    if os.cpu_count() <= 3:  # as many threads
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    capsys.readouterr()
    assert main([*command, "--lr", "0.5"]) == 2
    assert "many/seed-0 was trained with --lr 0.001, and --lr 0.5 is given: name another" in capsys.readouterr().err
    assert main([*command, "--epochs", "40"]) == 2
    error = capsys.readouterr().err
    assert "or train each seed on first: python -m pvae.train --resume many/seed-0 --epochs 40" in error


def test_a_seed_that_fails_is_named_and_the_others_go_on(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "many" / "seed-1").mkdir(parents=True)
    (tmp_path / "many" / "seed-1" / "notes.txt").write_text("no run")
    assert main([*SMALL, "--epochs", "1", "--seeds", "0:2", "--out", "many"]) == 2
    printed = capsys.readouterr()
    first, second = printed.err.splitlines()
    assert first.startswith("pvae.train: seed 1: --out many/seed-1 exists and is not an empty folder")
    assert second == "pvae.train: 1 of 2 seeds failed: 1"
    assert "| 1 | 1 |" in printed.out


def test_a_folder_of_another_seed_is_refused(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = ["--dataset", "mnist-5k", "--hidden", "8", "--latent-dim", "2", "--epochs", "1", "--quiet"]
    assert main([*command, "--seed", "1", "--out", "many/seed-0"]) == 0
    capsys.readouterr()
    assert main([*command, "--seeds", "0:2", "--out", "many"]) == 2
    assert "many/seed-0 was trained with --seed 1, and --seed 0 is given" in capsys.readouterr().err
