"""A VAE of one's own as a system: --vae FILE.py:FUNCTION."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.commands import refuse

import pvae
from pvae.cli.compare import main as compare
from pvae.cli.data import encode, sample, score
from pvae.cli.draw import main as draw
from pvae.cli.evaluate import main as evaluate
from pvae.cli.train import main as train

pytestmark = pytest.mark.workflow

FILE = """
import torch, pyro.distributions as dist
from torch import nn
from pvae import VAE
class Prior(nn.Module):
    def forward(self):
        return dist.Normal(torch.zeros(2), torch.ones(2)).to_event(1)
class Posterior(nn.Sequential):
    def forward(self, x):
        loc, log_scale = super().forward(x).chunk(2, dim=-1)
        return dist.Normal(loc, log_scale.exp()).to_event(1)
class Likelihood(nn.Sequential):
    def forward(self, z):
        return dist.Normal(super().forward(z), 0.5).to_event(1)
def mine(config, datum_shape):
    (size,) = datum_shape
    return VAE(Prior(), Posterior(nn.Linear(size, 4)), Likelihood(nn.Linear(2, size)))
def other(config, datum_shape):
    return 3
def wrong(config, datum_shape):
    return VAE(Prior(), Posterior(nn.Linear(1, 4)), Likelihood(nn.Linear(2, 1)))
def fails(config, datum_shape):
    raise KeyError("no")
"""
VAE = ["--vae", "mine.py:mine"]
DATA = ["--dataset", "array:rows.npy", "--epochs", "1", "--batch-size", "20"]


@pytest.fixture
def folder(tmp_path, monkeypatch, no_pictures):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(FILE)
    np.save("rows.npy", np.random.default_rng(0).normal(size=(100, 5)))
    return tmp_path


def test_every_command_takes_it(folder, capsys):
    assert train([*DATA, *VAE, "--out", "run", "--quiet"]) == 0
    assert (folder / "run" / "vae.py").read_text() == FILE
    assert pvae.Run.open("run").has_own_vae
    few = ["--importance-samples", "3"]
    for command, arguments in (
        (evaluate, few), (score, few), (encode, []), (sample, ["-n", "3"]), (draw, ["--what", "losses"]),
        (compare, ["--particles", "2", "--repetitions", "3", "--elbo", "trace,iwae"]),
    ):  # fmt: skip
        assert command(["run", *VAE, *arguments]) == 0, capsys.readouterr().err
        capsys.readouterr()
        assert command(["run", *arguments]) == 2
        assert "--vae FILE.py:FUNCTION" in capsys.readouterr().err
    assert train(["--resume", "run", "--epochs", "2", *VAE, "--quiet"]) == 0
    assert pvae.Run.open("run").metrics()[-1].epoch == 2


def test_the_file_in_the_run_is_never_run(folder, capsys):
    """A changed copy there has no effect; another file that is named is used, and the difference is said."""
    assert train([*DATA, *VAE, "--out", "run", "--quiet"]) == 0
    (folder / "run" / "vae.py").write_text("raise SystemExit('it was run')")
    assert encode(["run", *VAE]) == 0
    assert "differs from" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("mine.py:none", "none"),
        ("none.py:mine", "none.py"),
        ("mine.py:other", "int"),
        ("mine.py:fails", "KeyError"),
        ("mine.py:wrong", ""),
    ],
)
def test_what_is_no_vae_is_refused(folder, capsys, place, words):
    assert words in refuse(train, [*DATA, "--vae", place, "--out", "run"], capsys, folder)


def test_several_seeds_end_in_a_table(folder, capsys):
    text = FILE.replace("(z), 0.5).to_event(1)", "(z).unflatten(-1, (1, 28, 28)), 0.5).to_event(3)")
    text = text.replace("(size,) = datum_shape", "size = 784").replace("Posterior(", "Posterior(nn.Flatten(), ")
    (folder / "mine.py").write_text(text.replace("Posterior(nn.Flatten(), nn.Seq", "Posterior(nn.Seq"))
    digits = ["--dataset", "mnist-5k", "--epochs", "1", "--batch-size", "1000", "--likelihood", "normal"]
    assert train([*digits, *VAE, "--seeds", "0:2", "--out", "many", "--quiet"]) == 0
    (row,) = [
        line for line in (folder / "many" / "figures" / "table.md").read_text().splitlines() if "mnist" in line.lower()
    ]
    assert [cell.strip() for cell in row.split("|")][4:6] == ["2", "1"], "seeds and epochs"
    assert draw(["many", *VAE]) == 0


def test_a_run_without_it_takes_none(folder, capsys):
    assert train([*DATA, "--hidden", "8", "--out", "run", "--quiet"]) == 0
    assert encode(["run", *VAE]) == 2
    assert "vae" in capsys.readouterr().err
    assert torch.get_default_dtype() == torch.float32
