"""The forecast of collapse, against linear VAEs that are trained to their optimum, and against MLPs."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.datasets import load_breast_cancer, load_digits, load_wine
from torch import nn
from torch.distributions import kl_divergence

from pvae.config.build import build_vae
from pvae.config.config import Config
from pvae.core.errors import InputError
from pvae.core.random_state import seeded
from pvae.data.preparation import Pixels
from pvae.evaluation.measures.latents import forecast
from pvae.reference import linear_gaussian

LATENTS = 3
STDS = (3.0, 2.0, 0.7, 0.3)  # of the data along orthogonal directions


@pytest.fixture(scope="module")
def x():
    """40 data, whose covariance has the squares of `STDS` as eigenvalues, exactly."""
    generator = torch.Generator().manual_seed(0)
    codes, rotation = (torch.randn(n, 4, generator=generator, dtype=torch.float64) for n in (40, 4))
    white = torch.linalg.qr(codes - codes.mean(0))[0] * 40**0.5
    return white @ torch.diag(torch.tensor(STDS, dtype=torch.float64)) @ torch.linalg.qr(rotation)[0] + 0.3


def linear_vae(scale, seed=0):
    config = Config(network="linear", likelihood="normal-linear", latent_dim=LATENTS, scale=scale)
    with seeded(seed):
        return build_vae(config, (len(STDS),)).double()


def rates(vae, x):
    """The rate of each latent, by torch."""
    return kl_divergence(vae.posterior(x).base_dist, vae.prior().base_dist).mean(0)


def loss(vae, x, beta):
    """The exact loss: minus the ELBO, with the weight beta of the rate."""
    return (beta - 1) * rates(vae, x).sum() - linear_gaussian.elbo(vae, x).mean()


@torch.no_grad()
def in_closed_form(x, scale, beta):
    """Principal components with the noise beta s^2, as the docstring of `forecast` derives them."""
    mean, noise = x.mean(0), beta * scale**2
    eigenvalues, directions = torch.linalg.eigh(torch.cov(x.T, correction=0))
    eigenvalues, directions = eigenvalues.flip(0)[:LATENTS], directions.flip(1)[:, :LATENTS]
    excess = (eigenvalues - noise).clamp(min=0)
    vae, to_mean = linear_vae(scale), (excess.sqrt() / (excess + noise))[:, None] * directions.T
    vae.p_x.decoder[0].weight.copy_(directions * excess.sqrt())
    vae.p_x.decoder[0].bias.copy_(mean)
    vae.q_z.encoder[1].weight.copy_(torch.cat([to_mean, torch.zeros_like(to_mean)]))
    vae.q_z.encoder[1].bias.copy_(torch.cat([-to_mean @ mean, (noise / (excess + noise)).log() / 2]))
    return vae


CASES = [(0.1, 1.0, 3), (0.5, 1.0, 3), (0.5, 4.0, 2), (2.5, 1.0, 1), (0.15, 401.0, 0), (19.8, 1.0, 0)]


@pytest.mark.parametrize(("scale", "beta", "used"), CASES)
def test_principal_components_are_a_stationary_point_with_the_rate_that_is_forecast(x, scale, beta, used):
    said = forecast(x, scale, LATENTS, beta)
    assert (said.used, said.largest_std) == (used, pytest.approx(3.0))
    vae = in_closed_form(x, scale, beta)
    each = rates(vae, x)
    assert int((each > 1e-9).sum()) == used
    assert each.sum().item() == pytest.approx(said.rate, abs=1e-9)
    loss(vae, x, beta).backward()
    assert max(one.grad.abs().max() for one in vae.parameters()) < 1e-9 * max(1, 1 / scale**2)


def test_the_rate_of_each_latent_is_that_of_its_eigenvalue(x):
    expected = sum(math.log(std / 0.5) for std in STDS[:LATENTS])
    assert forecast(x, 0.5, LATENTS).rate == pytest.approx(expected, abs=1e-9)
    assert forecast(x, 0.5, 2).rate == pytest.approx(math.log(6) + math.log(4), abs=1e-9)
    assert forecast(x, 0.1, 10).used == len(STDS)  # no more than there are directions


@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_parts_and_a_large_mean_change_nothing(offset):
    x = torch.randn(2500, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + offset
    expected = torch.linalg.eigvalsh(torch.cov(x.T, correction=0))[-1].sqrt().item()
    assert forecast(x, 1.0, 3).largest_std == pytest.approx(expected, rel=1e-9)


def test_bytes_of_images_are_pixels(few_digits):
    x = few_digits.train.flatten(1).double() / 255
    expected = torch.linalg.eigvalsh(torch.cov(x.T, correction=0)).flip(0)[:5].log().sum().item() / 2
    said = forecast(Pixels(few_digits.train), 0.1, 5)
    assert said.rate == pytest.approx(expected + 5 * math.log(10), rel=1e-5)  # they are float32


def test_wide_data_have_the_eigenvalues_of_their_gram_matrix():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, 3, generator=generator) @ torch.randn(3, 1500, generator=generator) + 5
    expected = torch.linalg.svdvals((x - x.mean(0)).double())[:3].square() / 60
    said = forecast(x.view(60, 3, 20, 25), 1.0, 10)
    assert said.used == 3
    assert said.rate == pytest.approx(expected.log().sum().item() / 2, rel=1e-6)
    many = x.repeat(75, 1)  # 4,500, of which 1,500 are taken: each third one
    assert forecast(many, 1.0, 10).rate == pytest.approx(forecast(many[::3], 1.0, 10).rate)


def test_it_says_which_option_to_change(x):
    assert "no latent will be used; give a --scale below 3" in str(forecast(x, 19.8, LATENTS))
    assert "a --scale below 0.15, or a --beta below 4" in str(forecast(x, 1.5, LATENTS, beta=400.0))
    assert "give" not in str(forecast(torch.full((20, 3), 0.1), 1.0, LATENTS))  # no scale helps for constant data
    assert (forecast(x, 2.999, LATENTS).used, forecast(x, 3.001, LATENTS).used) == (1, 0)


SPOILED = [torch.full((5, 3), math.nan), torch.full((5, 1001), math.inf), torch.ones(0, 3), torch.ones(0, 1001)]


@pytest.mark.parametrize("spoiled", SPOILED, ids=lambda one: f"{one.shape}")
def test_data_without_a_covariance_are_refused(spoiled):
    with pytest.raises(InputError):
        forecast(spoiled, 1.0, 2)


def standardized(values):
    return torch.tensor((values - values.mean(0)) / values.std(0), dtype=torch.float32)


def three_factors():
    """A table like factor.csv: 20 columns of three factors and noise."""
    draw = np.random.default_rng(0)
    return draw.normal(size=(5000, 3)) @ draw.normal(size=(3, 20)) + draw.normal(0, 0.5, (5000, 20))


def mlp_rate(x, scale, latents, squash):
    """The rate of an MLP of 100 units, by plain torch, after 2,500 steps of Adam."""
    encoder = nn.Sequential(nn.Linear(x.shape[1], 100), nn.ReLU(), nn.Linear(100, 2 * latents))
    decoder = nn.Sequential(nn.Linear(latents, 100), nn.ReLU(), nn.Linear(100, x.shape[1]), squash)
    optimiser = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=1e-3)

    def encoded(x):
        loc, log_scale = encoder(x).chunk(2, -1)
        return loc, log_scale.exp(), 0.5 * (loc**2 + (2 * log_scale).exp() - 1 - 2 * log_scale).sum(-1)

    for _ in range(2500):
        batch = x[torch.randint(len(x), (100,))]
        loc, spread, rate = encoded(batch)
        output = decoder(loc + spread * torch.randn_like(loc))
        optimiser.zero_grad()
        ((batch - output).square().sum(-1) / (2 * scale**2) + rate).mean().backward()
        optimiser.step()
    with torch.no_grad():
        return encoded(x)[2].mean().item()


@pytest.mark.slow
def test_collapse_of_mlps_is_forecast_in_nine_of_ten(digits):
    """Ten minutes; the docstring of `forecast` has the result."""
    data = {
        "mnist-5k": (digits.train.flatten(1) / 255, 10, nn.Sigmoid()),
        "digits": (torch.tensor(load_digits().data / 16, dtype=torch.float32), 10, nn.Sigmoid()),
        "breast-cancer": (standardized(load_breast_cancer().data), 10, nn.Identity()),
        "wine": (standardized(load_wine().data), 8, nn.Identity()),
        "three factors": (standardized(three_factors()), 8, nn.Identity()),
    }
    right = []
    for name, (x, latents, squash) in data.items():
        for scale in (19.8, 4.43, 2.0, 1.0, 0.71, 0.3, 0.1):
            with seeded(0):
                rate = mlp_rate(x, scale, latents, squash)
            said = forecast(x, scale, latents)
            right.append((said.used == 0) == (rate < 0.01))
            print(f"{name:14} {scale:5} {said.used:3} of {latents}, {said.rate:7.3f}; trained {rate:7.3f}")
    assert sum(right) >= 0.9 * len(right)
