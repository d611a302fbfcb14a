"""`to_arviz`, against a model whose p(z | x) and log p(x) are exact."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock
from helpers.linear_gaussian import LinearGaussian

import pvae
from pvae.core.batch import Batch
from pvae.core.errors import InputError

with FileLock(Path(tempfile.gettempdir()) / "pvae-arviz.lock"):  # two imports at once, of a new cache, fail
    arviz = pytest.importorskip("arviz")


@pytest.mark.parametrize("num_labels", [0, 3])
def test_draws_are_of_the_true_posterior_where_q_is_not(num_labels):
    """q is moved by 0.1, which the resampling undoes; each comparison fails once in 3e6 samples, which are fixed."""
    truth = LinearGaussian(num_labels=num_labels)
    data = Batch(truth.x, truth.y if num_labels else None)
    found = pvae.to_arviz(truth.vae(0.1), data, draws=500)
    z = torch.from_numpy(found.posterior.z.values)
    assert found.posterior.z.dims == ("chain", "draw", "row", "latent")
    assert z.shape == (4, 500, 30, 2)
    mean, covariance = truth.posterior(truth.x, truth.y if num_labels else 0)
    errors = (covariance.diagonal(dim1=-2, dim2=-1) / 2000).sqrt() * 2  # draws repeat
    assert ((z.mean((0, 1)) - mean).abs() < 5 * errors).all()
    exact = truth.log_p()
    log_p = torch.from_numpy(found.constant_data.log_p.values)
    assert ((log_p - exact).abs() < 5 * torch.from_numpy(found.constant_data.log_p_stderr.values) + 1e-12).all()


def test_densities_are_of_the_draws_beside_them():
    truth = LinearGaussian()
    vae = truth.vae(0.1)
    found = pvae.to_arviz(vae, truth.x, draws=5, chains=2)
    z = torch.from_numpy(found.posterior.z.values)
    log_x, log_prior = vae.log_likelihood(truth.x, z), vae.prior().log_prob(z)
    stats = found.sample_stats
    np.testing.assert_allclose(found.log_likelihood.x.values, log_x)
    np.testing.assert_allclose(stats.log_prior.values, log_prior)
    np.testing.assert_allclose(stats.log_q.values, vae.posterior(truth.x).log_prob(z))
    np.testing.assert_allclose(stats.lp.values, log_x + log_prior)
    np.testing.assert_array_equal(found.observed_data.x.values, truth.x)
    assert found.posterior_predictive.x.shape == found.prior_predictive.x.shape == (2, 5, *truth.x.shape)


def test_arviz_takes_it():
    truth = LinearGaussian()
    found = pvae.to_arviz(truth.vae(), truth.x)
    loo = arviz.loo(found, pointwise=True)
    is_off = np.abs(loo.loo_i.values - truth.log_p().numpy()) > 1
    assert (loo.pareto_k.values[is_off] > 0.5).all()
    assert (loo.pareto_k.values > found.constant_data.pareto_k.values).all()
    assert len(arviz.summary(found, var_names=["z"])) == 60


@pytest.mark.workflow
@pytest.mark.usefixtures("no_pictures")
def test_a_run_names_its_rows_and_columns(tmp_path):
    import pandas

    frame = pandas.DataFrame(torch.randn(60, 3).numpy(), columns=["a", "b", "c"])
    run = pvae.fit(data=frame, config=pvae.Config(
        system="values", likelihood="normal-diagonal", latent_dim=2, epochs=1, batch_size=10, source="",
    ), out=tmp_path / "run")  # fmt: skip
    found = pvae.to_arviz(run, draws=10)
    assert [*found.observed_data.column.values] == ["a", "b", "c"]
    assert found.observed_data.row.values[0].startswith("row-")


def test_without_arviz_or_data_one_line_says_what_to_do(monkeypatch):
    truth = LinearGaussian()
    with pytest.raises(InputError, match="data"):
        pvae.to_arviz(truth.vae())
    monkeypatch.setitem(sys.modules, "arviz", None)
    with pytest.raises(InputError, match="pip install"):
        pvae.to_arviz(truth.vae(), truth.x)
