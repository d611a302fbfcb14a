"""`python -m pvae.train`: its output, and for each bad input one line, exit status 2 and no file written."""

from __future__ import annotations

import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from helpers import commands

import pvae
from pvae.cli.train import main
from pvae.core.errors import InputError
from pvae.training import fit

pytestmark = pytest.mark.workflow

SMALL = ["--hidden", "8", "--latent-dim", "2", "--batch-size", "50", "--epochs", "2", "--device", "cpu"]


@pytest.fixture
def few(monkeypatch, no_pictures, few_digits, tmp_path):
    """Replace every data set by a few digits, work in an empty folder, and draw nothing."""
    monkeypatch.setattr(fit, "load_for", lambda *_, **__: few_digits)
    monkeypatch.chdir(tmp_path)


def refuse(capsys, tmp_path, *arguments):
    return commands.refuse(main, arguments, capsys, tmp_path)


def test_bad_out(few, capsys, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("precious")
    for out in ("full", "full/file", "full/file/below", "/proc/no/such"):
        assert out in refuse(capsys, tmp_path, *SMALL, "--out", out)
    (tmp_path / "runs").symlink_to("missing")
    assert "runs" in refuse(capsys, tmp_path, *SMALL)


def test_bad_data(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("PVAE_DATA", raising=False)
    raw = tmp_path / "data" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    (raw / "train-images-idx3-ubyte").write_bytes(b"no images")
    assert "MNIST" in refuse(capsys, tmp_path, "--data-dir", "data")
    (tmp_path / "faces").mkdir()
    assert "folder:faces" in refuse(capsys, tmp_path, "--dataset", "faces")
    assert "--offline" in refuse(capsys, tmp_path, "--dataset", "fashion-mnist", "--offline")


def test_resume_with_options_that_contradict(few, capsys, tmp_path):
    assert main([*SMALL, "--out", "run"]) == 0
    capsys.readouterr()
    for arguments, says in [
        (["--lr", "0.1"], "--lr 0.001"),
        (["--out", "other"], "--out"),
        (["--epochs", "1"], "--epochs"),
        (["--system", "other"], "--system other"),
    ]:
        assert says in refuse(capsys, tmp_path, "--resume", "run", *arguments)


def test_what_a_run_prints(few, capsys, tmp_path):
    """Its configuration, the figures of its last epoch, and the commands that take its folder."""
    assert main([*SMALL, "--elbo", "analytic", "--out", "my run"]) == 0
    said = capsys.readouterr().out
    assert "--hidden 8 --latent-dim 2 --batch-size 50" in said
    last = pvae.Run.open("my run").metrics()[-1]
    assert f"{last.elbo:.2f} +- {last.elbo_stderr:.2f}" in said
    assert f"(distortion {last.distortion:.2f}, rate {last.rate:.2f})" in said
    assert said.count("'my run'") >= 4
    assert "pseudo" in said


def test_an_array_of_images_gets_the_options_of_images(no_pictures, tmp_path, capsys, monkeypatch):
    """A warning of their ELBO, that one of two layers has no rate in closed form, is one line, once."""
    monkeypatch.chdir(tmp_path)
    np.save("images.npy", np.random.default_rng(0).integers(0, 256, (60, 1, 8, 8), dtype=np.uint8))
    few = ["--hidden", "8", "--epochs", "2", "--upper-latent-dims", "2", "--out"]
    assert main(["--dataset", "array:images.npy", "--binarize", "static", *few, "run"]) == 0
    config = pvae.Run.open("run").config
    assert (config.system, config.likelihood) == ("images", "bernoulli")
    said = capsys.readouterr().err.splitlines()
    assert len([line for line in said if "in closed form" in line]) == 1
    assert next(line for line in said if "in closed form" in line).startswith("note: 1 of 2 layers")


def test_the_printed_command_resumes(no_pictures, tmp_path, capsys, monkeypatch, tiny_mnist, lay_mnist):
    """Nothing is replaced here: the data are found in --data-dir, and when resuming without it."""
    monkeypatch.chdir(tmp_path)
    lay_mnist(tmp_path / "data")
    small = [*SMALL[:-6], "--batch-size", "8", "--epochs", "1"]
    assert main([*small, "--data-dir", "data", "--out", "run"]) == 0
    command = capsys.readouterr().out.splitlines()[-1].split("pvae.train ")[1].split()
    assert main(command) == 0
    assert main([*small[:-1], "2", "--data-dir", "data", "--out", "whole"]) == 0
    ours, theirs = (pvae.load(path).state_dict() for path in ("run", "whole"))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    (tmp_path / "data").rename(tmp_path / "moved")
    assert main(["--resume", "run", "--epochs", "3", "--offline"]) == 2
    assert "--data-dir" in capsys.readouterr().err
    assert main(["--resume", "run", "--epochs", "3", "--offline", "--data-dir", "moved"]) == 0


@pytest.mark.parametrize("shell", ["{} | head -n 1", "{} > /dev/full", "{} >&- 2>&-"])
def test_training_survives_a_closed_standard_output(tmp_path, shell):
    """A closed pipe, a full device, no standard output: the training still finishes."""
    options = "--dataset mnist-5k --epochs 1 --batch-size 1000 --hidden 8 --latent-dim 2 --compile none --out run"
    command = shell.format(f"{sys.executable} -m pvae.train {options}")
    done = subprocess.run(["bash", "-c", f"set -o pipefail; {command}"], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "run" / "figures" / "losses.png").exists()


def test_a_signal_before_a_training(few, monkeypatch, capsys):
    """For instance while the data are loaded."""
    monkeypatch.setattr(fit, "fit", lambda *_, **__: signal.raise_signal(signal.SIGTERM))
    assert main(SMALL) == 143
    assert capsys.readouterr().err.count("\n") == 1


def test_a_training_from_another_run(few, capsys, tmp_path):
    assert main([*SMALL, "--epochs", "1", "--out", "first"]) == 0
    assert main([*SMALL, "--epochs", "1", "--out", "second", "--from", "first", "--elbo", "trace", "--quiet"]) == 0
    assert "weights and buffers are those of first" in capsys.readouterr().err
    assert pvae.Run.open("second").start["path"] == "first"


def test_few_labels_take_the_passes_that_they_need(few, monkeypatch, tmp_path):
    configs = []

    def stop(config, **_):
        configs.append(config)
        raise InputError("seen")

    monkeypatch.setattr(fit, "fit", stop)
    for options in ([], ["--epochs", "3"]):
        assert main(["--labels", "20", *options, "--out", str(tmp_path / "run")]) == 2
    assert [config.epochs for config in configs] == [60, 3]
    assert {config.elbo for config in configs} == {"enumerate"}
