"""Tests of the exact start: the ELBO before the first step is the log-likelihood of the model that it starts at."""

import numpy as np
import pytest
import torch

from pvae.config.build import build_vae
from pvae.config.choices import values_config
from pvae.config.config import Config
from pvae.data.dataset import Dataset
from pvae.models import start
from pvae.models.features import features_seen, fit_to
from pvae.tables.column import Column


def factors(num_columns=6, num_rows=400):
    """Return rows of three factors, float64."""
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(3, num_columns)) * np.geomspace(0.1, 50, num_columns)
    noise = rng.normal(size=(num_rows, num_columns)) * np.geomspace(0.05, 20, num_columns)
    return torch.from_numpy(rng.normal(size=(num_rows, 3)) @ weight + noise + np.arange(num_columns) * 7)


def vae_at(x, latent_dim=6, **options):
    """Return a VAE in float64 of the configuration that suits rows, and the configuration."""
    data = Dataset("rows", x, x[:50], valid=x[:50], columns=tuple(Column(f"c{i}") for i in range(x.shape[1])))
    config = values_config(data, latent_dim=latent_dim, **options)
    torch.manual_seed(0)
    vae = build_vae(config, data.datum_shape).double()
    fit_to(vae, x)
    return vae, config


def elbo(vae, x):
    """Return the ELBO of each row, with an exact rate, at so many z that their mean is exact for a linear VAE."""
    q = vae.posterior(x)
    rate = torch.distributions.kl_divergence(q, vae.prior().expand(q.batch_shape))
    half = q.stddev.unsqueeze(1) * torch.eye(q.event_shape[0], dtype=x.dtype) * q.event_shape[0] ** 0.5
    z = torch.cat([q.mean.unsqueeze(1) + half, q.mean.unsqueeze(1) - half], 1).transpose(0, 1)
    return vae.log_likelihood(x, z).mean(0) - rate


@pytest.mark.parametrize("posterior", ["normal", "normal-log-variance", "normal-full"])
def test_the_elbo_before_the_first_step_is_the_log_likelihood_of_factor_analysis(posterior):
    x = factors()
    vae, _ = vae_at(x, prior="standard-normal", posterior=posterior)
    features = features_seen(vae.q_z, x).numpy()
    analysis = start.factor_analysis(features, features, 6, np.full(6, 1e-5))
    with torch.no_grad():
        start._set_linear(vae, analysis, x)
        reached = elbo(vae, x)
    covariance = torch.from_numpy(analysis.weight @ analysis.weight.T + np.diag(analysis.noise))
    normal = torch.distributions.MultivariateNormal(torch.from_numpy(analysis.bias), covariance)
    exact = normal.log_prob(torch.from_numpy(features)) - vae.p_x.units.scale.log().sum()
    if posterior == "normal-full":
        q, z = vae.posterior(x), vae.posterior(x).rsample()
        reached = vae.log_likelihood(x, z) + vae.prior().log_prob(z) - q.log_prob(z)  # the same at every z
    assert torch.allclose(reached, exact, rtol=0, atol=1e-9)


@pytest.mark.parametrize(("num_rows", "num_columns"), [(400, 6), (12, 20)])
def test_factor_analysis_has_the_variances_of_the_features(num_rows, num_columns):
    f = factors(num_columns, num_rows).numpy()
    analysis = start.factor_analysis(f, f, 2, np.full(num_columns, 1e-12))
    assert np.allclose((analysis.weight**2).sum(1) + analysis.noise, f.var(0), rtol=0.05)


def elbo_of_start(x, **options):
    """Return the validation ELBO of the exact start of the first 300 rows, of the others."""
    vae, _ = vae_at(x, **options)
    start.set_exact_start(vae, x[:300], x[300:])
    return start.mean_elbo(vae, x[300:])


def test_columns_of_0_and_1_that_are_equal_are_coded_at_no_loss():
    x = factors()
    coin = (torch.rand(len(x), 1, generator=torch.Generator().manual_seed(0)) < 0.5).double()
    both = torch.cat([x, coin, coin], 1)
    with_coins, alone = (elbo_of_start(part, prior="standard-normal") for part in (both, x))
    assert with_coins > alone - 2 * np.log(2), "as independent columns"


def test_a_ring_starts_at_a_mixture_of_normals_that_no_linear_model_is():
    """Its columns are not correlated: factor analysis has no factors, and its codes say nothing of the rows."""
    generator = torch.Generator().manual_seed(0)
    angle = 2 * torch.pi * torch.rand(2000, 1, generator=generator, dtype=torch.float64)
    x = 3 * torch.cat([angle.cos(), angle.sin()], 1)
    x += 0.15 * torch.randn(x.shape, generator=generator, dtype=torch.float64)
    assert elbo_of_start(x, prior="mixture") > elbo_of_start(x, prior="standard-normal") + 0.5


def test_a_code_unlike_all_others_is_not_alone_in_the_prior():
    """The next such row would have a rate of thousands of nats."""
    vae, _ = vae_at(factors(), prior="mixture", components=4)
    codes = np.random.default_rng(0).normal(size=(300, 6))
    codes[0] = 30
    with torch.no_grad():
        start._set_prior(vae.p_z, codes)
        of_own, of_next = vae.prior().log_prob(torch.tensor([[30.0] * 6, [31.0] * 6]).double())
    assert of_own - of_next < 6 / 0.01


def test_real_columns_behind_categories_start_at_their_own_outputs():
    """The linear model of two real columns is the decoder's, whatever the columns before them take of its outputs."""
    torch.manual_seed(0)
    real = torch.randn(200, 1) @ torch.ones(1, 2) + 0.1 * torch.randn(200, 2)
    x = torch.cat([torch.randint(4, (200, 1)), torch.randint(2, (200, 1)), real], 1).double()
    config = Config(likelihood="columns", columns="categorical:4,binary,real*2", latent_dim=2, initialization="exact")
    vae = build_vae(config, (4,))
    fit_to(vae, x)
    assert [place[:2] for place in start._real_features(vae).values()] == [(5, 7), (6, 8)]
    assert [vae.p_x.table_page(d)["outputs"] for d in range(4)] == [[0, 1, 2, 3], [4], [5, 7], [6, 8]]
    start.set_exact_start(vae, x[:150], x[150:])
    with torch.no_grad():
        reached = vae.likelihood(vae.posterior(x).mean).mean[:, 2:]
    assert (reached - x[:, 2:]).square().mean() < 0.03
