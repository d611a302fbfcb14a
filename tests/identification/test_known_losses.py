"""`pvae.identify` names likelihoods and priors of other kinds of data with the factor, beta and constant of algebra."""

from __future__ import annotations

import math

import pytest
import torch
from helpers.losses import kl
from torch.distributions import Normal, Poisson, kl_divergence
from torch.nn import functional as F

from pvae.identification.identify import identify

CASES: dict[str, tuple] = {}


def case(factor, likelihood, beta="1", constant="", prior="N(0, I)"):
    """Register a loss with what it is: the factor of the head line, likelihood, beta, constant and prior."""

    def register(loss):
        CASES[loss.__name__] = (loss, factor, likelihood, beta, constant, prior)
        return loss

    return register


def part(distortion, likelihood, beta="1", constant="", factor=""):
    """Register a sum of a distortion and the KL."""

    def loss(recon, x, mu, logvar):
        return distortion(recon, x).sum() + kl(mu, logvar).sum()

    CASES[likelihood] = (loss, factor, likelihood, beta, constant, "N(0, I)")


@case("", "Multinomial(logits = recon_x)", "0.2", "log(N! / prod x!) is left out, for each x")
def mult_vae(recon_x, x, mu, logvar, anneal=0.2):
    distortion = -(F.log_softmax(recon_x, 1) * x).sum(-1).mean()
    return distortion + anneal * kl(mu, logvar).sum(1).mean()


def to_dirichlet(mu, logvar):
    variance = 1 - 1 / mu.shape[1]
    return 0.5 * ((logvar.exp() + mu**2) / variance + math.log(variance) - logvar - 1).sum(1)


@case("", "Multinomial(logits = logits)", "1", "left out", "N(0, c^2 I) with c^2 = (1 - 1 / L)")
def prodlda(inputs, logits, mu, logvar):
    return (to_dirichlet(mu, logvar) - (inputs * F.log_softmax(logits, 1)).sum(1)).mean()


@case("", "Multinomial(logits = logits)", "1", "left out", "N(0, c^2 I) with c^2 = (1 - 1 / L)")
def prodlda_of_a_fixed_vocabulary(inputs, logits, mu, logvar):
    return prodlda(inputs.view(-1, 784), logits, mu, logvar)


@case("", "NegativeBinomial(mean = px_rate, dispersion = exp(px_r), 1e-08 added", "1", "that of the density")
def scvi(x, px_rate, px_r, qz_m, qz_v):
    e, theta = 1e-8, px_r.exp()
    log_sum = torch.log(theta + px_rate + e)
    log_p = theta * (torch.log(theta + e) - log_sum) + x * (torch.log(px_rate + e) - log_sum)
    log_p = log_p + torch.lgamma(x + theta) - torch.lgamma(theta) - torch.lgamma(x + 1)
    return (kl_divergence(Normal(qz_m, qz_v.sqrt()), Normal(0.0, 1.0)).sum(1) - log_p.sum(-1)).mean()


@case("", "Poisson(rate = recon)", "1", "that of the density")
def poisson_of_torch(x, recon, mu, logvar):
    return kl(mu, logvar).sum() - Poisson(recon).log_prob(x).sum()


@case("2 times ", "Normal(tanh(recon_x), scale = sigmas)", "0.5", "log(2 pi scale^2) / 2 is left out")
def tvae(recon_x, x, sigmas, mu, logvar, factor=2):
    errors = x - torch.tanh(recon_x)
    loss = (errors**2 / 2 / sigmas**2).sum() + torch.log(sigmas).sum() * x.shape[0]
    return loss * factor / x.shape[0] + kl(mu, logvar).sum() / x.shape[0]


@case("", "Normal(recon, scale^2 = 0.5)", prior="Normal(loc = prior_mu, scale = exp(prior_logvar / 2))")
def learned_prior(recon, x, mu, logvar, prior_mu, prior_logvar):
    rate = 0.5 * (prior_logvar - logvar - 1 + (logvar.exp() + (mu - prior_mu) ** 2) / prior_logvar.exp())
    return F.mse_loss(recon, x, reduction="sum") + rate.sum()


part(lambda y, x: x / y - (x / y).log() - 1, "Exponential(mean = recon)", constant="a function of x")
part(  # it overflows far out
    lambda y, x: torch.log(torch.cosh(100 * (y - x))) / 100, "LogCosh(recon, of (x - recon) / 0.01, v = 1)",
    constant="log Z is left out",
)  # fmt: skip
part(
    lambda y, x: torch.log(math.pi / 3 * torch.cosh(3 * (y - x))), "LogCosh(recon, of (x - recon) / 0.333333, v = 1 /",
    constant="that of the density",
)  # fmt: skip
part(
    lambda y, x: 4 * F.huber_loss(y, x, reduction="none", delta=0.3) + math.log(0.5),
    "Huber(recon, kink at |x - recon| = 0.3, v = 0.25)", constant="-0.693147 for each value of x",
)  # fmt: skip
part(
    lambda y, x: (1 + (y - x) ** 2 / 3).log() - math.log(math.gamma(1) / math.gamma(0.5) / (3 * math.pi) ** 0.5),
    "StudentT(recon, (1 + (x - recon)^2 / 3)^(-1 / v) / Z, v = 1)", constant="that of the density",
)  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_it_is_named(name):
    loss, factor, likelihood, beta, constant, prior = CASES[name]
    found = identify(loss)
    lines = found.text.splitlines()
    assert found.is_elbo, lines
    assert lines[0].startswith(f"{factor}the negative {'ELBO' if beta == '1' else 'beta-ELBO'} of the batch"), lines
    assert likelihood in lines[1]
    assert f"  beta        {beta}" in lines
    assert constant in next((line for line in lines if line.startswith("  constant")), ""), lines
    assert found.prior == prior
    assert found.residual < 1e-10


def test_logits_that_cannot_be_large_are_named_as_a_mistake():
    def loss(recon, x, mu, logvar):
        return F.binary_cross_entropy_with_logits(torch.tanh(recon), x, reduction="sum") + kl(mu, logvar).sum()

    assert "between 0.27 and 0.73" in identify(loss).text


OPEN = {
    "sums to 1": lambda recon, x: -(x * recon.log()).sum(),
    "and y^2 have": lambda recon, x: ((2 * recon - x) ** 2).sum(),
    "scaled or shifted": lambda recon, x: F.binary_cross_entropy(recon, 0.9 * x + 0.05, reduction="sum"),
    "not a likelihood that I know": lambda recon, x: ((recon - x) ** 4).sum(),
}


@pytest.mark.parametrize("reason", OPEN)
def test_a_part_that_is_not_known_leaves_the_answer_open_with_what_was_found(reason):
    def loss(recon, x, mu, logvar):
        return OPEN[reason](recon, x) + 3 * kl(mu, logvar).sum(1).mean()

    found = identify(loss)
    assert found.is_open
    assert not found.is_elbo
    assert reason in found.reason
    assert "Normal(loc = mu, scale = exp(logvar / 2))" in found.text
    assert "weight      of the rate: 3 / B" in found.text
    assert "prior" not in found.text


def shared_by_all_images(recon, x, sigmas, mu, logvar):
    scale = F.softplus(sigmas)
    assert sigmas.shape == x.shape[1:]
    return kl(mu, logvar).sum() - Normal(recon, scale).log_prob(x).sum()


def test_a_spread_that_all_images_share_is_known():
    found = identify(shared_by_all_images)
    assert found.is_elbo
    assert "Normal(recon, scale = softplus(sigmas))" in found.text
    assert "that of the density" in found.text


def bounded(recon, x, mu, logvar):  # it is that ELBO where the KL was looked at first, and another loss elsewhere
    return F.mse_loss(recon, x, reduction="sum") + kl(mu, logvar.clamp(-0.5, 3)).sum()


def ignores_z(recon, x, mu, logvar, z):
    return F.mse_loss(recon, x, reduction="sum") + kl(mu, logvar).sum()


@pytest.mark.parametrize("loss", [bounded, ignores_z])
def test_what_may_be_an_elbo_called_otherwise_is_open(loss):
    assert identify(loss).is_open


NOT_KNOWN = {  # weights of the values are not known, and are never taken for those of an ELBO
    "weights of a squared error": lambda y, x: (torch.arange(1, 7) * (y - x) ** 2).sum(),
    "weights of a cross-entropy": lambda y, x: (
        torch.arange(1, 7) * F.binary_cross_entropy(y, x, reduction="none")
    ).sum(),
    "a fixed mask": lambda y, x: (torch.tensor([0.0, 1, 1, 0, 1, 1]) * (y - x) ** 2).sum(),
    "ignore_index": lambda y, x: F.cross_entropy(y.flatten(0, 1), x.flatten(), ignore_index=0),
    "pseudo-Huber": lambda y, x: ((1 + (y - x) ** 2).sqrt() - 1).sum(),
}


@pytest.mark.parametrize("name", NOT_KNOWN)
def test_what_is_not_known_is_no_elbo(name):
    def loss(recon, x, mu, logvar):
        return NOT_KNOWN[name](recon, x) + kl(mu, logvar).sum()

    assert identify(loss).is_open


WEIGHT = torch.tensor(0.1, dtype=torch.float32)


def test_a_constant_in_float32_is_read_as_the_number_that_it_rounds():
    def loss(recon, x, mu, logvar):
        return (WEIGHT.double() * (recon - x) ** 2).sum() + WEIGHT.double() * kl(mu, logvar).sum()

    found = identify(loss)
    assert found.is_elbo
    assert found.readings[0].factor.number == 0.1


def small_rate(recon, x, mu, rho):
    scale = F.softplus(rho) + 1e-6
    return 784 * F.mse_loss(recon, x) + 0.00025 * 0.5 * (mu**2 + scale**2 - 1 - 2 * scale.log()).mean()


def test_a_rate_of_small_weight_is_read_in_float64():
    found = identify(small_rate)
    assert "scale = softplus(rho) + 1e-06" in found.text
    assert "in float64" in found.text


def test_the_default_type_of_the_users_file_changes_nothing():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float16)
    try:
        assert "in float64" in identify(small_rate).text
        assert torch.get_default_dtype() is torch.float16
    finally:
        torch.set_default_dtype(before)
