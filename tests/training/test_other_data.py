"""Trainings on data that are no images: every way in, and what a run of them can do."""

from __future__ import annotations

import shlex

import numpy as np
import pytest
from helpers.families import data_for

import pvae
from pvae.cli.data import encode, sample, score
from pvae.cli.draw import main as draw
from pvae.cli.evaluate import main as evaluate
from pvae.cli.export import export
from pvae.cli.train import main as train
from pvae.cli.train import train_parser
from pvae.config.config import OPTIONS, Config
from pvae.config.presets import command_line
from pvae.core.errors import InputError
from pvae.data.dataset import Dataset
from pvae.training.fit import fit

pytestmark = pytest.mark.workflow

SHAPES = {"normal-diagonal": (6,), "negative-binomial": (6,), "student-t": (5, 2), "poisson": (2, 3, 2, 2)}


def values(likelihood):
    """Whole numbers for counts, and others; without any structure."""
    return data_for(small(likelihood), 130, SHAPES[likelihood])


def small(likelihood, **options):
    return Config(likelihood=likelihood, hidden=(16,), latent_dim=2, epochs=2, batch_size=20).replace(**options)


def test_bad_values_are_named(tmp_path):
    counts = values("poisson")
    counts[104, 0, 0, 1, 1] = 1.5
    with pytest.raises(InputError, match=r"x\[0, 0, 1, 1\] of test\[4\]"):
        fit(small("poisson"), data=Dataset("mine", counts[:100], counts[100:]), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    table, counts, series, volumes = (values(likelihood).numpy() for likelihood in SHAPES)
    np.savetxt("rows.csv", table, delimiter=",", header="a,b,c,d,e,f", comments="")
    np.savez("counts.npz", X=counts.astype(int), y=np.arange(130) % 2)
    np.save("series.npy", series)
    np.save("volumes.npy", volumes.astype(np.uint8))
    return tmp_path


@pytest.mark.parametrize(
    "dataset", ["array:counts.npz", "array:series.npy", pytest.param("array:volumes.npy", marks=pytest.mark.slow)]
)
def test_every_command_takes_them(folder, capsys, dataset):
    file, few = dataset.partition(":")[2], ["--importance-samples", "3"]
    assert train(["--dataset", dataset, "--epochs", "2", "--hidden", "8", "--latent-dim", "3", "--out", "run"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("options")]
    options = train_parser().parse_args([*shlex.split(line.partition(": ")[2]), "--dataset", dataset])
    chosen = {name: value for name, value in vars(options).items() if name in OPTIONS}
    assert command_line(Config(**chosen)) == command_line(pvae.Run.open("run").config)
    assert evaluate(["run", *few]) == score(["run", *few]) == score(["run", file, *few, "--out", "all"]) == 0
    assert len((folder / "all" / "scores.csv").read_text().splitlines()) == 131
    assert not (folder / "all" / "oddest.png").exists()
    assert encode(["run", file, "--out", "codes.npz"]) == 0
    with np.load("codes.npz") as codes:
        assert codes["loc"].shape == (130, 3)
    assert sample(["run", "-n", "5"]) == 0
    with np.load("run/samples/samples.npz") as drawn:
        assert drawn["x"].shape == (5, *pvae.Run.open("run").data.datum_shape)
    assert export(["run"]) == 0
    assert draw(["run"]) == 0
    names = {path.stem for path in (folder / "run" / "figures").glob("*.png")}
    assert {"losses", "histograms"} <= names
    assert not names & {"manifold", "traversal", "interpolation"}
    assert train(["--resume", "run", "--epochs", "3", "--quiet"]) == 0
    np.save("wide.npy", np.zeros((5, 9)))
    assert encode(["run", "wide.npy", "--out", "new.csv"]) == 2
    assert "(5, 9)" in capsys.readouterr().err
