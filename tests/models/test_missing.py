"""Values that are missing: bounds on log p of the observed ones, and their imputation."""

from __future__ import annotations

import copy
import math

import numpy as np
import pyro
import pytest
import torch
from helpers.families import config_with, data_for, shape_for
from helpers.linear_gaussian import LinearGaussian, with_missing
from helpers.svi import ELBOS, assert_trained_alike, trained

import pvae
from pvae.cli.data import sample
from pvae.cli.train import main as train
from pvae.compile.compiled_svi import CompiledSVI
from pvae.config.build import build_elbo, build_vae, elbo_of
from pvae.config.config import Config
from pvae.core.errors import InputError
from pvae.core.random_state import seeded
from pvae.data.dataset import Dataset
from pvae.models.likelihoods import Likelihood
from pvae.training.fit import fit

CPU = torch.device("cpu")


@pytest.mark.parametrize("num_labels", [0, 3])
@pytest.mark.parametrize("name", [name for name in ELBOS if name != "analytic"])
def test_with_the_true_posterior_every_bound_is_log_p_of_the_observed_values(name, num_labels):
    """At q(z | x) = p(z | x observed) the weights do not vary: exact to 1e-10, for any draws, also given labels."""
    truth = LinearGaussian(num_labels=num_labels)
    vae, labels = truth.vae(), [truth.y] if num_labels else []
    config = Config(elbo=name, particles=4, groups=2 if name in ("miwae", "piwae") else 1)
    with pyro.get_param_store().scope(), seeded(0, CPU):
        loss, _ = elbo_of(config).loss_and_terms(vae.model, vae.guide, truth.x, *labels)
    assert -loss.item() == pytest.approx(truth.log_p().mean().item(), rel=1e-10)


def some_missing(count=40):
    return with_missing(torch.rand(count, 5, generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize(("network", "shape"), [("mlp", (5,)), ("conv", (3, 8, 8))])
def test_the_encoder_sees_which_values_are_missing(network, shape):
    config = Config(likelihood="normal-diagonal", network=network, hidden=(8,), latent_dim=2, missing=True)
    with seeded(0, CPU):
        vae = build_vae(config, shape)
    x = torch.zeros(2, *shape)
    x[1, 1] = math.nan  # of images, a channel
    one, other = vae.posterior(x).mean
    assert other.isfinite().all()
    assert not torch.allclose(one, other)


@pytest.mark.parametrize(
    ("likelihood", "name"),
    [("normal-diagonal", "analytic"), pytest.param("columns", "dreg", marks=pytest.mark.workflow)],
)
def test_recorded_steps_equal_eager_ones(likelihood, name):
    config = config_with(Likelihood.members[likelihood], missing=True)
    with seeded(0, CPU):
        vae = build_vae(config, shape_for(config))
    batches, elbo = with_missing(data_for(config, 40)).double().split(10), build_elbo(name, 3)
    ours = trained(copy.deepcopy(vae).double(), elbo, batches, CompiledSVI)
    assert_trained_alike(ours, trained(vae.double(), elbo, batches))


@pytest.mark.workflow
@pytest.mark.usefixtures("no_pictures")
def test_a_table_with_empty_fields(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rows = LinearGaussian().x.repeat(4, 1).numpy()
    text = "\n".join(",".join("" if math.isnan(one) else repr(one) for one in row) for row in rows.tolist())
    (tmp_path / "t.csv").write_text(",".join("abcdefg") + "\n" + text + "\n")
    options = "--rules none --epochs 30 --passes 3 --lr 0.01 --hidden 16 --out run"  # each row stands four times
    assert train(["--dataset", "table:t.csv", *options.split()]) == 0
    assert "--missing" in capsys.readouterr().out, "it is chosen, and said"
    assert sample(["run", "--impute", "t.csv"]) == 0
    assert f"{np.isnan(rows).sum()} missing values of 120 rows" in capsys.readouterr().out
    filled, errors = (
        np.genfromtxt(f"run/samples/{name}.csv", delimiter=",", skip_header=1) for name in ("imputed", "imputed-std")
    )
    assert np.allclose(filled[~np.isnan(rows)], rows[~np.isnan(rows)], rtol=1e-14)
    assert np.array_equal(errors > 0, np.isnan(rows))
    truth = LinearGaussian()
    expected = (truth.b + truth.posterior(truth.x)[0] @ truth.w.T).repeat(4, 1).numpy()
    error = (filled - expected)[np.isnan(rows)]
    mean = np.nanmean(rows, 0) - expected
    assert (error**2).mean() < 0.5 * (mean[np.isnan(rows)] ** 2).mean(), "no better than the means of the columns"
    assert sample(["deep-bayes", "--impute", "t.csv"]) == 2


def test_what_does_not_go_with_missing_values_is_refused(tmp_path):
    x = some_missing()
    never = x.clone()
    never[:, 2] = math.nan
    with pytest.raises(InputError):
        Dataset("mine", never[:30], never[30:])
    data = Dataset("mine", x[:30], x[30:])
    with pytest.raises(InputError, match=r"--missing"):
        fit(Config(likelihood="normal-diagonal", epochs=1, batch_size=10), data=data, out=tmp_path / "run")
    with pytest.raises(InputError, match="--missing"):
        Config(missing=True, likelihood="normal-optimal")
    assert pvae.values_config(data).missing
    assert not pvae.values_config(Dataset("mine", x[:30].nan_to_num(), x[30:].nan_to_num())).missing
