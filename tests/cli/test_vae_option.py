"""A VAE of one's own as a system: --vae FILE.py:FUNCTION."""

from __future__ import annotations

import shlex

import numpy as np
import pytest
from helpers.commands import refuse

import pvae
from pvae.cli.compare import main as compare
from pvae.cli.data import encode, sample, score
from pvae.cli.draw import main as draw
from pvae.cli.evaluate import main as evaluate
from pvae.cli.own_code import own_vae
from pvae.cli.train import main as train
from pvae.core.errors import InputError

pytestmark = pytest.mark.workflow

FILE = """
from helpers.own import NormalLikelihood, own_vae
def mine(config, datum_shape):
    return own_vae(likelihood=NormalLikelihood)
def other(config, datum_shape):
    return 3
def sized(config, datum_shape):
    return own_vae(config.hidden[0], NormalLikelihood)
def fails(config, datum_shape):
    raise KeyError("no")
"""
VAE = ["--vae", "mine.py:mine"]
DATA = ["--dataset", "array:images.npy", "--elbo", "trace", "--epochs", "1", "--batch-size", "20"]


@pytest.fixture
def folder(tmp_path, monkeypatch, no_pictures):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(FILE)
    np.save("images.npy", np.random.default_rng(0).normal(size=(100, 1, 28, 28)))
    np.save("rows.npy", np.zeros((100, 5)))
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
        assert shlex.join(VAE) in capsys.readouterr().err, "what is to be given"
    assert train(["--resume", "run", "--epochs", "2", *VAE, "--quiet"]) == 0
    assert pvae.Run.open("run").metrics()[-1].epoch == 2


def test_the_file_in_the_run_is_never_run(folder, capsys):
    """A changed copy there has no effect; another file that is named is used, and the difference is said."""
    assert train([*DATA, *VAE, "--out", "run", "--quiet"]) == 0
    (folder / "run" / "vae.py").write_text("raise SystemExit('it was run')")
    assert encode(["run", *VAE]) == 0
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--vae", "mine.py:none"], "none"),
        (["--vae", "none.py:mine"], "none.py"),
        (["--vae", "mine.py:other"], "int"),
        (["--vae", "mine.py:fails"], "KeyError"),
        ([*VAE, "--dataset", "array:rows.npy"], "pvae train"),
        ([*VAE, "--latent-dim", "3"], "--latent-dim"),
        ([*VAE, "--likelihood", "normal-diagonal"], "--likelihood"),
    ],
)
def test_what_is_no_vae_is_refused(folder, capsys, options, words):
    assert words in refuse(train, [*DATA, *options, "--out", "run"], capsys, folder)


def test_the_commands_that_are_named_next_name_it(folder, capsys):
    """And the weights of its run are taken by the same VAE alone."""
    assert train([*DATA, *VAE, "--out", "run"]) == 0
    said = capsys.readouterr().out.partition("next:")[2].splitlines()
    assert [line for line in said if "tensorboard" not in line and not line.endswith("run --vae mine.py:mine")] == [
        "   or  python -m pvae.train --resume run --epochs 2 --vae mine.py:mine"
    ]
    line = [*DATA, "--from", "run", "--out", "more"]
    assert shlex.join(VAE) in refuse(train, line, capsys, folder)
    assert train([*line, *VAE]) == 0


@pytest.mark.parametrize("options", [{}, {"posterior": "iaf"}, {"prior": "vamp"}, {"upper_latent_dims": (2,)}])
def test_each_option_of_networks_and_distributions_that_it_does_not_read_is_refused(folder, options):
    for name in {"network", "likelihood", "latent_dim", *options} - {"columns"}:
        with pytest.raises(InputError, match=f"--{name.replace('_', '-')}"):
            own_vae("mine.py:mine", pvae.Config(), (4,), [name])
