"""Priors and posteriors: each density equals its definition, is normalised, and its draws follow it."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import Independent, Laplace, MultivariateNormal, Normal, kl_divergence

from pvae.config.build import build_vae
from pvae.config.config import Config
from pvae.distributions.normals import FullNormal
from pvae.models.posteriors import FullNormalPosterior, Posterior
from pvae.models.priors import MixturePrior, Prior

SHAPE = (1, 3, 2)


def built(latent_dim, **options):
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return build_vae(Config(latent_dim=latent_dim, hidden=(6,), components=4, **options), SHAPE).double()


def grid(dim, reach=9.0, count=361):
    """Points of a grid, (count^dim, dim), and the volume of a cell."""
    axis = torch.linspace(-reach, reach, count, dtype=torch.float64)
    return torch.cartesian_prod(*[axis] * dim).view(-1, dim), (2 * reach / (count - 1)) ** dim


@pytest.mark.parametrize("dim", [1, 2])
@pytest.mark.parametrize("prior", Prior.names_where("support", "real numbers"))
def test_priors_are_normalised(prior, dim):
    vae = built(dim, prior=prior)
    z, cell = grid(dim)
    with torch.no_grad():
        assert vae.prior().log_prob(z).exp().sum().item() * cell == pytest.approx(1.0, abs=1e-9)


@pytest.mark.parametrize("dim", [1, 2])
@pytest.mark.parametrize(
    "posterior",
    Posterior.names_where("closed_forms", ("standard-normal",)),
)
def test_posteriors_are_normalised(posterior, dim):
    z, cell = grid(dim)
    with torch.no_grad():
        q = built(dim, posterior=posterior).posterior(torch.full((1, *SHAPE), 0.5).double())
        assert q.log_prob(z).exp().sum().item() * cell == pytest.approx(1.0, abs=1e-9)


def test_a_mixture_is_the_weighted_sum_of_its_normals():
    prior = MixturePrior(3, 4).double()
    for parameter in prior.parameters():
        parameter.data = torch.randn_like(parameter)
    z = torch.randn(7, 3).double()
    weights = prior.logits.softmax(0)
    by_hand = sum(
        weight * (-0.5 * ((z - loc) / log_scale.exp()).square() - log_scale - 0.5 * math.log(2 * math.pi)).sum(1).exp()
        for weight, loc, log_scale in zip(weights, prior.loc, prior.log_scale)
    )
    assert torch.allclose(prior().log_prob(z).exp(), by_hand, rtol=1e-12)


@pytest.mark.parametrize("pixels", ["unit", "symmetric"])
def test_a_vamp_prior_is_the_mean_of_the_posteriors_at_its_pseudo_inputs(pixels):
    symmetric = {"pixels": "symmetric", "likelihood": "normal"} if pixels == "symmetric" else {}
    vae = built(3, prior="vamp", **symmetric)
    vae.p_z.unclipped.data[0] = 7.0
    vae.p_z.unclipped.data[1] = -7.0
    inputs = vae.p_z.pseudo_inputs
    assert (inputs.min().item(), inputs.max().item()) == (-1.0 if symmetric else 0.0, 1.0)
    z = torch.randn(7, 3).double()
    by_hand = torch.stack([vae.posterior(one[None]).log_prob(z).exp() for one in inputs]).mean(0)
    assert torch.allclose(vae.prior().log_prob(z).exp(), by_hand, rtol=1e-12)


def test_pseudo_inputs_start_where_each_has_a_gradient_and_are_all_that_a_vamp_prior_owns():
    vae = built(3, prior="vamp")
    vae.prior().log_prob(torch.zeros(3).double()).backward()
    assert (vae.p_z.unclipped.grad != 0).all()
    assert [name for name, _ in vae.p_z.named_parameters()] == ["unclipped"]


def test_a_full_normal_has_the_covariance_of_its_encoder():
    encoder = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(6, 2 * 3 + 3)).double()
    x = torch.rand(2, *SHAPE).double()
    q = FullNormalPosterior(encoder, 3).double()(x)
    parameters = encoder(x)
    for image in range(2):
        row = parameters[image]
        factor = torch.diag(row[3:6].exp())
        factor[1, 0], factor[2, 0], factor[2, 1] = row[6:] / 3
        ours = MultivariateNormal(row[:3], factor @ factor.T)
        assert torch.allclose(q.covariance_matrix[image], ours.covariance_matrix, rtol=1e-12)
        z = torch.randn(3).double()
        assert q.log_prob(z)[image].item() == pytest.approx(ours.log_prob(z).item(), rel=1e-10)


def test_the_kl_of_a_full_normal_is_torchs_of_two_full_normals():
    """torch has a closed form where both have a full covariance matrix."""
    generator = torch.Generator().manual_seed(0)
    factor = torch.randn(4, 3, 3, generator=generator).double().tril()
    factor.diagonal(dim1=-2, dim2=-1).exp_()
    q = FullNormal(torch.randn(4, 3, generator=generator).double(), scale_tril=factor)
    loc, scale = torch.randn(3, generator=generator).double(), torch.rand(3, generator=generator).double() + 0.5
    theirs = kl_divergence(q, MultivariateNormal(loc, scale_tril=torch.diag(scale)))
    assert torch.allclose(kl_divergence(q, Independent(Normal(loc, scale), 1)), theirs, rtol=1e-12)
    with pytest.raises(NotImplementedError):
        kl_divergence(q, Independent(Laplace(loc, scale), 1))
    with pytest.raises(NotImplementedError):  # torch's own classes keep the divergences that torch gives them
        kl_divergence(MultivariateNormal(q.loc, scale_tril=factor), Independent(Normal(loc, scale), 1))
