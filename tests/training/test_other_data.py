"""Trainings on data that are no images: every way in, and what a run of them can do."""

from __future__ import annotations

import math
import shlex

import numpy as np
import pyro
import pytest
import torch
from helpers.families import config_with, data_for, shape_for

import pvae
from pvae.cli.data import encode, sample, score
from pvae.cli.draw import main as draw
from pvae.cli.evaluate import main as evaluate
from pvae.cli.export import export
from pvae.cli.train import main as train
from pvae.cli.train import train_parser
from pvae.config.build import build_elbo, build_vae
from pvae.config.config import OPTIONS, Config
from pvae.config.presets import command_line
from pvae.core.errors import InputError
from pvae.core.random_state import seeded
from pvae.data.dataset import Dataset
from pvae.models.features import fit_to
from pvae.models.likelihoods import Likelihood
from pvae.reference import elbo as reference
from pvae.training.fit import fit

pytestmark = pytest.mark.workflow

CPU = torch.device("cpu")
SHAPES = {"normal-diagonal": (6,), "negative-binomial": (6,), "student-t": (5, 2), "poisson": (2, 3, 2, 2)}


def values(likelihood):
    """Whole numbers for counts, and others; without any structure."""
    return data_for(small(likelihood), 130, SHAPES[likelihood])


def data_of(likelihood):
    x = values(likelihood)
    return Dataset("mine", x[:100], x[100:])


@pytest.mark.parametrize("row", [*map(Likelihood.members.get, Likelihood.names_where("is_of_images", False))])
@pytest.mark.parametrize("name", ["trace", "analytic", "iwae"])
def test_the_bounds_are_those_written_by_hand(row, name):
    """Value and gradients in float64, with vectorised particles, to a relative 1e-10; of columns, some are missing."""
    config = config_with(row, missing=bool(config_with(row).column_kinds))
    x, shape = data_for(config, 40), shape_for(config)
    if config.missing:
        x[torch.arange(40), torch.arange(40) % len(config.column_kinds)] = torch.nan
    with seeded(0, CPU):
        vae = build_vae(config, shape)
        fit_to(vae, x)
    vae, x = vae.double(), x[:9].double()
    by_hand = {"trace": reference.monte_carlo, "analytic": reference.closed_form}

    def importance_weighted():
        q = vae.posterior(x)
        z = q.rsample((3,))
        log_w = vae.likelihood(z).log_prob(x) + vae.prior().log_prob(z) - q.log_prob(z)
        return -(log_w.logsumexp(0) - math.log(3)).mean()

    elbo = build_elbo(name, 3 if name == "iwae" else 1)
    found = []
    for loss in (
        lambda: elbo.loss_and_terms(vae.model, vae.guide, x)[0],
        lambda: importance_weighted() if name == "iwae" else reference.loss(by_hand[name](vae, x)),
    ):
        with pyro.get_param_store().scope(), seeded(1, CPU):
            value = loss()
        found.append((value, *torch.autograd.grad(value, list(vae.parameters()))))
    for ours, theirs in zip(*found):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def small(likelihood, **options):
    return Config(likelihood=likelihood, hidden=(16,), latent_dim=2, epochs=2, batch_size=20).replace(**options)


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("likelihood", ["normal-diagonal", "student-t", "columns"])
def test_the_units_of_the_data_change_the_density_and_nothing_else(tmp_path, likelihood):
    """log p(u x + c) = log p(x) - D log u after the same training, whose weights are equal to the bit.

    u is a power of 2, which rounding does not see, from 1e-9 to 1e12; c is 2^50 u, about 1e15, where float32 does not
    see x at all.
    """
    x = values("normal-diagonal").mul(2**20).round().double() / 2**20
    kinds = {"likelihood": "columns", "columns": "real*6"} if likelihood == "columns" else {}
    config = small("normal-diagonal" if kinds else likelihood).replace(**kinds)
    bounds, weights = [], []
    for unit, offset in ((1, 0), (2.0**-30, 0), (2.0**40, 0), (1024, 2.0**50 - 2.0**49)):
        given = unit * (x.round() if offset else x) + unit * offset
        data = Dataset("mine", given[:100], given[100:])
        run = fit(config, data=data, out=tmp_path / f"{unit}-{offset}")
        bounds.append(run.metrics()[-1].elbo + 6 * math.log(unit))
        weights.append([parameter for _, parameter in run.vae().named_parameters()])
    for bound, those in zip(bounds[1:3], weights[1:3]):
        assert bound == pytest.approx(bounds[0], rel=1e-5)
        assert all(map(torch.equal, those, weights[0]))
    assert bounds[3] == pytest.approx(bounds[0], abs=0.1)  # of x rounded to whole numbers, of spread 29


def test_bad_values_are_named(tmp_path):
    counts = values("poisson")
    counts[104, 0, 0, 1, 1] = 1.5
    with pytest.raises(InputError, match=r"x\[0, 0, 1, 1\] of test\[4\]"):
        fit(small("poisson"), data=Dataset("mine", counts[:100], counts[100:]), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.fixture
def folder(tmp_path, monkeypatch, quick_start):
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
