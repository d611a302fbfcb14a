"""Values that are missing: bounds on log p of the observed ones, and their imputation."""

from __future__ import annotations

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers.svi import ELBOS
from torch import nn

import pvae
from pvae.cli.data import sample
from pvae.cli.train import main as train
from pvae.config.config import Config
from pvae.core.errors import InputError
from pvae.core.random_state import seeded
from pvae.data.dataset import Dataset
from pvae.data.preparation import Pixels
from pvae.distributions.observed import Observed
from pvae.elbos.registry import build_elbo, elbo_of
from pvae.models.build import build_vae, fit_to
from pvae.reference import elbo as reference
from pvae.trained.imputation import impute
from pvae.training.fit import fit
from pvae.vae import VAE

CPU = torch.device("cpu")
D, L, SCALE = 7, 2, 0.4


def with_missing(x, share=0.3, seed=1):
    """Leave at least one value of each datum."""
    mask = torch.rand(x.shape, generator=torch.Generator().manual_seed(seed)) < share
    mask.flatten(1)[:, 0] = False
    return torch.where(mask, torch.full_like(x, math.nan), x)


class LinearGaussian:
    """x = b + W z + noise, of which some values are missing: everything is Normal and known."""

    def __init__(self):
        generator = torch.Generator().manual_seed(0)
        self.w = torch.randn(D, L, generator=generator, dtype=torch.float64)
        self.b = torch.randn(D, generator=generator, dtype=torch.float64)
        z = torch.randn(30, L, generator=generator, dtype=torch.float64)
        noise = torch.randn(30, D, generator=generator, dtype=torch.float64)
        self.x = with_missing(self.b + z @ self.w.T + SCALE * noise)

    def log_p(self):
        """log p of the observed values of each datum."""
        values = []
        for x in self.x:
            seen = ~x.isnan()
            covariance = self.w[seen] @ self.w[seen].T + SCALE**2 * torch.eye(int(seen.sum()), dtype=torch.float64)
            values.append(torch.distributions.MultivariateNormal(self.b[seen], covariance).log_prob(x[seen]))
        return torch.stack(values)

    def posterior(self, x):
        """p(z | x observed): (B, L) and (B, L, L)."""
        seen = (~x.isnan()).double()
        precision = torch.eye(L, dtype=torch.float64) + (self.w.T * seen[:, None]) @ self.w / SCALE**2
        residual = torch.where(x.isnan(), torch.zeros_like(x), x - self.b)
        covariance = torch.linalg.inv(precision)
        return (covariance @ (residual @ self.w)[..., None]).squeeze(-1) / SCALE**2, covariance

    def vae(self, off=0.0):
        truth = self

        class Prior(nn.Module):
            def forward(self):
                return dist.Normal(torch.zeros(L).double(), torch.ones(L).double()).to_event(1)

        class Posterior(nn.Module):
            def forward(self, x):
                loc, covariance = truth.posterior(x)
                return dist.MultivariateNormal(loc + off, covariance)

        class Likelihood(nn.Module):
            def forward(self, z):
                return Observed(dist.Normal(truth.b + z @ truth.w.T, SCALE), 1)

        return VAE(Prior(), Posterior(), Likelihood())


@pytest.mark.parametrize("name", [name for name in ELBOS if name != "analytic"])
def test_with_the_true_posterior_every_bound_is_log_p_of_the_observed_values(name):
    """At q(z | x) = p(z | x observed) the weights do not vary: exact to 1e-10, for any draws."""
    truth = LinearGaussian()
    vae = truth.vae()
    config = Config(elbo=name, particles=4, groups=2 if name in ("miwae", "piwae") else 1)
    with pyro.get_param_store().scope(), seeded(0, CPU):
        loss, _ = elbo_of(config).loss_and_terms(vae.model, vae.guide, truth.x)
    assert -loss.item() == pytest.approx(truth.log_p().mean().item(), rel=1e-10)


def test_with_another_posterior_the_elbo_is_a_lower_bound():
    """In the mean over 4,000 draws for each datum, and its gap is KL(q, p(z | x observed)), at 4.3 errors."""
    truth = LinearGaussian()
    vae = truth.vae(off=0.3)
    with seeded(0, CPU):
        terms = [reference.monte_carlo(vae, truth.x) for _ in range(4000)]
    bounds = torch.stack([-(one.distortion + one.rate) for one in terms]).mean(1)
    q, p = vae.posterior(truth.x), truth.vae().posterior(truth.x)
    gap = torch.distributions.kl_divergence(q, p).mean().item()
    error = bounds.std().item() / 4000**0.5
    assert 4.3 * error < 0.1 * gap, "this sample could not have seen the gap"
    assert truth.log_p().mean().item() - bounds.mean().item() == pytest.approx(gap, abs=4.3 * error)


def test_what_is_missing_is_imputed_by_its_conditional_mean():
    """At the true posterior the weights are equal: the error is that of a mean of draws, at 4.5 errors of 47 values."""
    truth = LinearGaussian()
    with seeded(0, CPU):
        found = impute(truth.vae(), Pixels(truth.x), 2000)
    loc, _ = truth.posterior(truth.x)
    expected, is_missing = truth.b + loc @ truth.w.T, truth.x.isnan()
    assert torch.equal(found.filled[~is_missing], truth.x[~is_missing])
    assert not found.stderr[~is_missing].any()
    errors = ((found.filled - expected) / found.stderr)[is_missing]
    assert is_missing.sum() > 40
    assert errors.abs().max() < 4.5
    assert errors.std() == pytest.approx(1, abs=0.4), "the stated errors are of the size of the true ones"


KINDS = {"student-t": {}, "negative-binomial": {}, "bernoulli": {"binarize": "threshold"}}


def data_of(likelihood, shape=(5,), count=40):
    x = torch.rand(count, *shape, generator=torch.Generator().manual_seed(0))
    x = (4 * x).floor() if likelihood in ("poisson", "negative-binomial") else x
    x = (x * 255).round() / 255 if likelihood == "discretized-logistic" else x
    return with_missing((x >= 0.5).float() if likelihood == "bernoulli" else x)


@pytest.mark.parametrize(
    ("likelihood", "network"),
    [*((one, "mlp") for one in KINDS), ("normal", "conv"), ("normal-diagonal", "conv-groupnorm")],
)
def test_nothing_depends_on_what_is_missing(likelihood, network):
    """The ELBO is that of the observed values alone, written by hand, and every gradient is finite."""
    shape = (5,) if network == "mlp" else (3, 8, 8)
    x = data_of(likelihood, shape).double()
    config = Config(likelihood=likelihood, network=network, latent_dim=2, missing=True, **KINDS.get(likelihood, {}))
    with seeded(0, CPU):
        vae = build_vae(config.replace(hidden=(8,)), shape)
        fit_to(vae, x.float())
    vae = vae.double()
    with pyro.get_param_store().scope(), seeded(1, CPU):
        loss, terms = build_elbo("trace").loss_and_terms(vae.model, vae.guide, x)
    with seeded(1, CPU):
        q = vae.posterior(x)
        z = q.rsample()
    base, filled = vae.p_x.pixels(vae.p_x.decoder(z)), x.nan_to_num(1.0)
    each = torch.stack([base.log_prob(filled)[row][~x[row].isnan()].sum() for row in range(len(x))])
    torch.testing.assert_close(terms.distortion, -each.detach(), rtol=1e-12, atol=1e-12)
    gradients = torch.autograd.grad(loss, list(vae.parameters()), allow_unused=True)
    assert all(one is None or one.isfinite().all() for one in gradients)


@pytest.mark.parametrize(("network", "shape"), [("mlp", (5,)), ("conv", (3, 8, 8))])
def test_the_encoder_sees_which_values_are_missing(network, shape):
    config = Config(likelihood="normal-diagonal", network=network, hidden=(8,), latent_dim=2, missing=True)
    with seeded(0, CPU):
        vae = build_vae(config, shape)
    x = torch.zeros(2, *shape)
    x[1, 1] = math.nan  # of images, a channel
    one, other = vae.posterior(x).mean
    assert not torch.allclose(one, other)


@pytest.mark.workflow
@pytest.mark.usefixtures("no_pictures")
def test_recorded_steps_train_as_eager_ones(tmp_path):
    x = data_of("normal-diagonal", count=60)
    bounds = []
    for engine in ("none", "graph"):
        config = Config(likelihood="normal-diagonal", hidden=(8,), latent_dim=2, missing=True, epochs=3, batch_size=10)
        run = fit(config.replace(compile=engine), data=Dataset("mine", x[:40], x[40:]), out=tmp_path / engine)
        bounds.append(run.metrics()[-1].elbo)
    assert bounds[0] == pytest.approx(bounds[1], rel=1e-5)


@pytest.mark.workflow
@pytest.mark.usefixtures("no_pictures")
def test_a_table_with_empty_fields(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rows = LinearGaussian().x.repeat(4, 1).numpy()
    text = "\n".join(",".join("" if math.isnan(one) else repr(one) for one in row) for row in rows.tolist())
    (tmp_path / "t.csv").write_text(",".join("abcdefg") + "\n" + text + "\n")
    options = ["--dataset", "table:t.csv", "--epochs", "30", "--lr", "0.01", "--hidden", "16", "--out", "run"]
    assert train(options) == 0
    assert "--missing" in capsys.readouterr().out, "it is chosen, and said"
    assert sample(["run", "--impute", "t.csv"]) == 0
    assert f"{np.isnan(rows).sum()} missing values of 120 rows" in capsys.readouterr().out
    filled, errors = (
        np.genfromtxt(f"run/samples/{name}.csv", delimiter=",", skip_header=1) for name in ("imputed", "imputed-stderr")
    )
    assert np.allclose(filled[~np.isnan(rows)], rows[~np.isnan(rows)], rtol=1e-14)
    assert np.array_equal(errors > 0, np.isnan(rows))
    truth = LinearGaussian()
    expected = (truth.b + truth.posterior(truth.x)[0] @ truth.w.T).repeat(4, 1).numpy()
    error = (filled - expected)[np.isnan(rows)]
    mean = np.nanmean(rows, 0) - expected
    assert (error**2).mean() < 0.5 * (mean[np.isnan(rows)] ** 2).mean(), "no better than the means of the columns"
    assert train([*options[:-1], "other", "--likelihood", "student-t", "--epochs", "1"]) == 0
    for command in (["run-without", "--impute", "t.csv"], ["deep-bayes", "--impute", "t.csv"]):
        assert sample(command) == 2


def test_what_does_not_go_with_missing_values_is_refused(tmp_path):
    x = data_of("normal-diagonal")
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
