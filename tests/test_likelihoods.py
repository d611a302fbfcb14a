"""What each likelihood is a distribution over."""

from __future__ import annotations

import itertools

import torch

from pvae.building import build_vae
from pvae.config import Config
from pvae.likelihoods import PseudoBernoulli


def binary_images(shape):
    pixels = torch.tensor(list(itertools.product([0.0, 1.0], repeat=shape.numel())), dtype=torch.float64)
    return pixels.view(-1, 1, *shape)


def test_bernoulli_sums_to_one():
    """One z, all 2^12 binary images of 3 x 4 pixels: the event is the whole image."""
    config = Config(hidden=(8,), latent_dim=3, binarize="static")
    vae = build_vae(config, (1, 3, 4)).double()
    likelihood = vae.likelihood(torch.linspace(-2, 2, 3, dtype=torch.float64))
    assert likelihood.batch_shape == ()
    total = likelihood.log_prob(binary_images(torch.Size((3, 4)))).exp().sum()
    assert torch.allclose(total, torch.ones((), dtype=torch.float64), rtol=1e-12)


def test_pseudo_bernoulli_is_the_bernoulli_on_binary_pixels(small_vae, small_images):
    z = torch.randn(6, 3, dtype=torch.float64)
    x = small_images(6, binary=True)
    grey, binary = small_vae("none").likelihood(z), small_vae("static").likelihood(z)
    assert torch.equal(grey.log_prob(x), binary.log_prob(x))


def test_pseudo_log_likelihood_is_the_mean_over_binarizations():
    """E_{b ~ Bernoulli(x)} [log Bernoulli(b; p)], enumerated over all 2^6 images, in float64."""
    generator = torch.Generator().manual_seed(0)
    x, logits = (torch.rand(6, generator=generator, dtype=torch.float64) for _ in range(2))
    images = binary_images(torch.Size((6,))).view(-1, 6)
    probability = torch.distributions.Bernoulli(x).log_prob(images).sum(-1).exp()
    mean = (probability * torch.distributions.Bernoulli(logits=logits).log_prob(images).sum(-1)).sum()
    assert torch.allclose(PseudoBernoulli(logits=logits).to_event(1).log_prob(x), mean, rtol=1e-12)


def test_pseudo_bernoulli_does_not_integrate_to_one():
    """Why it is no likelihood: its exponential integrates over [0, 1] to (2 p - 1) / logit(p), 0.46 at logit 1."""
    grid = torch.linspace(0, 1, 100_001, dtype=torch.float64)
    integral = torch.trapezoid(PseudoBernoulli(logits=torch.ones_like(grid)).log_prob(grid).exp(), grid)
    assert torch.allclose(integral, (2 * torch.sigmoid(torch.ones((), dtype=torch.float64)) - 1), rtol=1e-8)
    assert integral < 0.5
