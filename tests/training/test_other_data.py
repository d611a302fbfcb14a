"""Trainings on data that are no images: every way in, and what a run of them can do."""

from __future__ import annotations

import csv
import math

import numpy as np
import pyro
import pytest
import torch

import pvae
from pvae.cli.data import encode, sample, score
from pvae.cli.draw import main as draw
from pvae.cli.evaluate import main as evaluate
from pvae.cli.export import main as export
from pvae.cli.train import main as train
from pvae.config.config import Config
from pvae.core.errors import InputError
from pvae.core.random_state import seeded
from pvae.data.dataset import Dataset
from pvae.elbos.registry import build_elbo
from pvae.models.build import build_vae, fit_to
from pvae.reference import elbo as reference
from pvae.trained.log_likelihood import importance_sample
from pvae.training.fit import fit, resume

pytestmark = pytest.mark.workflow

CPU = torch.device("cpu")
SHAPES = {"normal-diagonal": (6,), "student-t": (5, 2), "poisson": (2, 3, 2, 2), "negative-binomial": (6,)}


def values(likelihood, count=130):
    """Data of two latents."""
    generator = torch.Generator().manual_seed(0)
    size = math.prod(SHAPES[likelihood])
    mean = torch.randn(count, 2, generator=generator) @ torch.randn(2, size, generator=generator)
    is_count = likelihood in ("poisson", "negative-binomial")
    noise = 0.1 * torch.randn(count, size, generator=generator)
    x = torch.poisson(mean.exp(), generator=generator) if is_count else mean + noise
    return x.view(count, *SHAPES[likelihood])


def data_of(likelihood):
    x = values(likelihood)
    return Dataset("mine", x[:100], x[100:])


def small(likelihood, **options):
    return Config(likelihood=likelihood, hidden=(16,), latent_dim=2, epochs=2, batch_size=20).replace(**options)


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("likelihood", SHAPES)
def test_values_are_trained_on_and_the_run_is_read_back(tmp_path, likelihood):
    data = data_of(likelihood)
    run = fit(small(likelihood, elbo="analytic", epochs=5, lr=1e-2), data=data, out=tmp_path / "run")
    first, *_, last = [row for row in run.metrics() if row.split == "test"]
    assert last.elbo > first.elbo
    vae = pvae.load(run.path)
    assert vae.likelihood(vae.prior().sample((3,))).sample().shape == (3, *SHAPES[likelihood])
    with seeded(0, CPU):
        terms = reference.monte_carlo(vae, data.test.float(), 200)
    assert -(terms.distortion + terms.rate).mean().item() == pytest.approx(last.elbo, abs=5 * last.elbo_stderr + 0.1)
    assert resume(run.path, 6, data=data).metrics()[-1].epoch == 6


@pytest.mark.parametrize("likelihood", SHAPES)
@pytest.mark.parametrize("elbo", ["trace", "analytic"])
def test_the_elbo_is_the_one_written_by_hand(likelihood, elbo):
    """Value and gradients in float64, to a relative 1e-10."""
    x = values(likelihood, 7).double()
    with seeded(0, CPU):
        vae = build_vae(small(likelihood), SHAPES[likelihood])
        fit_to(vae, values(likelihood))
    vae = vae.double()
    gradients = []
    for loss in (
        lambda: build_elbo(elbo).loss_and_terms(vae.model, vae.guide, x)[0],
        lambda: reference.loss((reference.monte_carlo if elbo == "trace" else reference.closed_form)(vae, x)),
    ):
        with pyro.get_param_store().scope(), seeded(1, CPU):
            value = loss()
        gradients.append((value, *torch.autograd.grad(value, list(vae.parameters()))))
    for ours, theirs in zip(*gradients):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("likelihood", ["normal-diagonal", "student-t"])
def test_the_units_of_the_data_change_the_density_and_nothing_else(tmp_path, likelihood):
    """log p(1000 x + 7) = log p(x) - D log 1000, after the same training, whose steps do not see the units."""
    x = values(likelihood)
    bounds = []
    for name, one in (("x", x), ("scaled", 1024 * x)):  # a power of two, which rounding does not see
        run = fit(small(likelihood), data=Dataset(name, one[:100], one[100:]), out=tmp_path / name)
        bounds.append(run.metrics()[-1].elbo)
    assert bounds[0] - bounds[1] == pytest.approx(x[0].numel() * math.log(1024), rel=1e-6)


def test_bad_values_are_named(tmp_path):
    counts = values("poisson")
    counts[104, 0, 0, 1, 1] = 1.5
    with pytest.raises(InputError, match=r"x\[0, 0, 1, 1\] of test\[4\] is 1.5, and"):
        fit(small("poisson"), data=Dataset("mine", counts[:100], counts[100:]), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    images = Dataset("images", torch.zeros(30, 1, 8, 8, dtype=torch.uint8), torch.zeros(8, 1, 8, 8, dtype=torch.uint8))
    for options, data in (
        ({"likelihood": "poisson"}, images),
        ({"pad": 1}, data_of("normal-diagonal")),
        ({"likelihood": "normal", "pixels": "symmetric"}, data_of("normal-diagonal")),
        ({"network": "conv", "likelihood": "normal-diagonal"}, data_of("normal-diagonal")),
    ):
        with pytest.raises(InputError):
            fit(Config(batch_size=10, hidden=(8,), epochs=1).replace(**options), data=data, out=tmp_path / "run")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    rows = values("normal-diagonal").numpy()
    np.savetxt("rows.csv", rows, delimiter=",", header="a,b,c,d,e,f", comments="")
    np.savez("counts.npz", X=values("negative-binomial").numpy().astype(int), y=np.arange(130) % 2)
    np.save("series.npy", values("student-t").numpy())
    np.save("volumes.npy", values("poisson").numpy().astype(np.uint8))
    return tmp_path


@pytest.mark.parametrize("dataset", ["table:rows.csv", "array:counts.npz", "array:series.npy", "array:volumes.npy"])
def test_every_command_takes_them(folder, capsys, dataset):
    file = dataset.partition(":")[2]
    assert train(["--dataset", dataset, "--epochs", "2", "--hidden", "8", "--latent-dim", "3", "--out", "run"]) == 0
    assert "chosen for them" in capsys.readouterr().out
    assert evaluate(["run", "--importance-samples", "3"]) == 0
    said = capsys.readouterr().out
    assert "the data as they are" in said
    assert "pixels in" not in said
    assert score(["run", "--importance-samples", "3"]) == 0
    assert score(["run", file, "--importance-samples", "3", "--out", "all"]) == 0
    with (folder / "all" / "scores.csv").open() as scores:
        rows = list(csv.DictReader(scores))
    assert len(rows) == 130
    assert not (folder / "all" / "oddest.png").exists()
    assert encode(["run", file, "--out", "codes.npz"]) == 0
    with np.load("codes.npz") as codes:
        assert codes["loc"].shape == (130, 3)
    for number in (4, 5):  # the second time it replaces its own file
        assert sample(["run", "-n", str(number)]) == 0
    if dataset.startswith("table:"):
        assert np.genfromtxt("run/samples/samples.csv", delimiter=",", names=True).shape == (5,)
    else:
        with np.load("run/samples/samples.npz") as drawn:
            assert drawn["x"].shape == (5, *pvae.Run.open("run").data.datum_shape)
    assert export(["run"]) == 0
    assert draw(["run"]) == 0
    names = {path.stem for path in (folder / "run" / "figures").glob("*.png")}
    drawn = {"reconstructions", "samples"} if dataset != "array:volumes.npy" else set()
    assert {"losses", "histograms", *drawn} <= names
    assert not names & {"manifold", "traversal", "interpolation"}
    assert train(["--resume", "run", "--epochs", "3", "--quiet"]) == 0


def test_a_file_of_another_shape_is_refused(folder, capsys):
    assert train(["--dataset", "table:rows.csv", "--epochs", "1", "--hidden", "8", "--out", "run", "--quiet"]) == 0
    np.save("wide.npy", np.zeros((5, 9)))
    for command in (encode, score):
        assert command(["run", "wide.npy", "--out", "new.csv"]) == 2
        assert "(5, 9)" in capsys.readouterr().err
    assert train(["--dataset", "table:none.csv"]) == 2
    assert "there is no file" in capsys.readouterr().err


@pytest.mark.parametrize("likelihood", ["poisson", "negative-binomial"])
def test_log_p_of_counts_is_that_of_quadrature(likelihood):
    """One latent, so that the integral over z is a sum over a fine grid."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vae = build_vae(Config(likelihood=likelihood, network="linear", latent_dim=1), (6,)).double().eval()
    x = torch.poisson(torch.full((20, 6), 2.0).double(), generator=torch.Generator().manual_seed(1))
    z = torch.linspace(-9, 9, 4001).double()[:, None]
    joint = vae.likelihood(z[:, None]).log_prob(x) + vae.prior().log_prob(z)[:, None]
    log_p = joint.logsumexp(0) + math.log(18 / 4000)
    with seeded(0, CPU):
        found = importance_sample(vae, x, 20_000)
    assert ((found.log_p - log_p).abs() < 5 * found.stderr).all()  # fails once in 10^5
    assert found.stderr.median() < 0.01  # so that it could see an error of 0.05
