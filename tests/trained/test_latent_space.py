"""Codes and what they decode to, and measures of codes."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import Normal

from pvae.config.build import build_vae
from pvae.config.config import Config
from pvae.trained import latent_space
from pvae.trained.codes import latent_statistics, nearest_neighbour_accuracy


@pytest.fixture
def transparent():
    """A VAE whose decoder returns the latent itself, so that an image shows where it was drawn."""
    with torch.random.fork_rng():
        vae = build_vae(Config(hidden=(4,), latent_dim=2), (1, 1, 2)).eval()
    vae.p_x.decoder = torch.nn.Unflatten(-1, (1, 1, 2))
    return vae


def latents(pixels):
    """Undo the sigmoid of the mean."""
    return torch.logit(pixels).view(-1, 2)


def test_the_manifold_is_drawn_at_the_quantiles(transparent):
    z = latents(latent_space.manifold(transparent, 4)).view(4, 4, 2)
    quantiles = Normal(0.0, 1.0).icdf(torch.tensor([0.125, 0.375, 0.625, 0.875]))
    assert torch.allclose(z[:, :, 0], quantiles.expand(4, 4), atol=1e-4), "z_1 grows to the right"
    assert torch.allclose(z[:, :, 1], quantiles.flip(0)[:, None].expand(4, 4), atol=1e-4), "z_2 grows upward"


def test_traversal_moves_one_dimension(transparent):
    values = torch.linspace(-3, 3, 5)
    z = latents(latent_space.traverse(transparent, torch.tensor([0.5, -0.25]), 1, values))
    assert torch.allclose(z, torch.stack([torch.full((5,), 0.5), values], dim=1), atol=1e-4)


@pytest.mark.parametrize(
    ("posterior", "prior", "options"),
    [
        ("bernoulli", "uniform-bits", {}),
        ("categorical", "uniform-categories", {"categories": 3}),
    ],
)
def test_each_value_of_one_variable_is_set(posterior, prior, options):
    with torch.random.fork_rng():
        config = Config(hidden=(4,), latent_dim=6, posterior=posterior, prior=prior, elbo="score", **options)
        vae = build_vae(config, (1, 1, 6)).eval()
    vae.p_x.decoder = torch.nn.Unflatten(-1, (1, 1, 6))
    x = torch.rand(1, 1, 1, 6, generator=torch.Generator().manual_seed(0))
    found = torch.logit(latent_space.set_each(vae, x, 1)).round().view(-1, 6)
    code = vae.posterior(x).mean.view(-1, options.get("categories", 1))
    likeliest = code.round() if posterior == "bernoulli" else torch.eye(3)[code.argmax(-1)]
    for value, row in zip(torch.eye(3) if posterior == "categorical" else torch.tensor([[0.0], [1.0]]), found):
        expected = likeliest.clone()
        expected[1] = value
        assert torch.equal(row, expected.flatten())


def test_interpolation_ends_at_the_codes(transparent):
    x = torch.rand(2, 1, 1, 2, generator=torch.Generator().manual_seed(0))
    z = latents(latent_space.interpolate(transparent, x, 5))
    codes = latent_space.encode(transparent, x)
    assert torch.allclose(z[[0, -1]], codes, atol=1e-4)
    assert torch.allclose(z[2], codes.mean(0), atol=1e-4)


def test_attribute_vector_is_the_difference_of_means():
    codes = torch.tensor([[1.0, 0.0], [3.0, 0.0], [0.0, 5.0]])
    assert latent_space.attribute_vector(codes, torch.tensor([True, True, False])).tolist() == [2.0, -5.0]


def test_nearest_neighbours():
    train = torch.tensor([[0.0, 0.0], [0.1, 0.0], [5.0, 5.0], [5.1, 5.0]])
    labels = torch.tensor([3, 3, 7, 7])
    test = torch.tensor([[0.05, 0.0], [5.0, 5.1], [0.0, 0.1]])
    assert nearest_neighbour_accuracy(train, labels, test, torch.tensor([3, 7, 7]), 2) == pytest.approx(2 / 3)
    one_class = torch.full((4,), 3)
    assert nearest_neighbour_accuracy(train, one_class, test, torch.tensor([3, 7, 3]), 10) == 2 / 3


def test_the_report_compares_codes_with_the_prior():
    generator = torch.Generator().manual_seed(0)
    codes = torch.randn(20_000, 2, generator=generator) * torch.tensor([1.0, 2.0]) + torch.tensor([0.0, 1.0])
    report = latent_statistics(codes)
    assert report.kolmogorov_smirnov[0] < 0.015
    assert report.kolmogorov_smirnov[1] > 0.2
    assert report.std[1] == pytest.approx(2, rel=0.03)
    assert report.mean[1] == pytest.approx(1, abs=0.1)
