"""Losses as they are written in public, and losses that are no ELBO: each is named, refused or left open."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import (
    Bernoulli,
    Beta,
    Independent,
    LogNormal,
    NegativeBinomial,
    Normal,
    Poisson,
    StudentT,
    kl_divergence,
)
from torch.nn import functional as F

from pvae.core.errors import InputError
from pvae.identification.identify import identify

SAYS: list = []


def says(verdict, *words, slow=False, name="", **options):
    """Register a loss with the verdict "elbo", "not" or "open", and what the answer says."""

    def register(loss):
        marks = pytest.mark.workflow if slow else ()
        SAYS.append(pytest.param(loss, verdict, words, options, marks=marks, id=name or loss.__name__))
        return loss

    return register


def kl(mu, logvar):
    return -0.5 * (1 + logvar - mu**2 - logvar.exp())


def bce(recon, x):
    return F.binary_cross_entropy(recon, x, reduction="none").sum(-1)


def of_classes(q):
    return (q * (q * q.shape[-1]).log()).sum(-1)


def of_bits(q):
    return (q * q.log() + (1 - q) * (1 - q).log() + math.log(2)).sum(-1)


def rate(mu, logvar):
    return kl(mu, logvar).sum(-1)


def cross_entropies(recon, x):
    return F.binary_cross_entropy(recon, x, reduction="none")


def squares(recon, x):
    return (recon - x) ** 2


# --- two parts, each weighted and reduced in its own way --------------------------------------------------------------

NEGATIVE, BERNOULLI = "the negative ELBO of the batch", "Bernoulli(probs"
REDUCED = {  # the errors of the values, how these and the KL of the latents are reduced, and what is said
    "post 001": (squares, lambda e, r: e.mean() + (1e-3 * r.sum(1)).mean(),
                 f"0.001 times {NEGATIVE}, a mean", "scale^2 = 0.0005 D"),
    "post 003, 3.2": (cross_entropies, lambda e, r: 500 * e.mean() + r.mean(1).mean(), BERNOULLI,
                      "500 / D times the negative beta-ELBO of the batch, a mean", "beta        0.002 D / L"),
    "YannDubs/disentangling-vae, betaH": (cross_entropies, lambda e, r: e.sum() / len(e) + 4 * r.mean(0).sum(),
                                          "the negative beta-ELBO of the batch, a mean", BERNOULLI, "beta        4"),
    "YannDubs/disentangling-vae, laplace": (lambda recon, x: (recon - x).abs(),
                                            lambda e, r: 3 * e.sum() / len(e) + r.mean(0).sum(),
                                            f"{NEGATIVE}, a mean", "Laplace(recon, scale = 1 / 3)"),
    "Geron, Hands-On Machine Learning": (cross_entropies, lambda e, r: e.mean() + r.sum(-1).mean() / 784.0,
                                         "a mean", BERNOULLI, "beta        D / 784"),
    "mean over channels and sum over pixels": (squares, lambda e, r: e.mean(1).sum((1, 2)).mean() + r.sum(1).mean(),
                                               f"{NEGATIVE}, a mean", "scale^2 = 0.5 C)"),
    "Foster, Generative Deep Learning": (cross_entropies, lambda e, r: (500 * e.mean(1)).mean() + r.sum(1).mean(),
                                         "500 / D times the negative beta-ELBO", BERNOULLI, "beta        0.002 D"),
}  # fmt: skip
DISTORTIONS = {  # a distortion, whose sum is added to that of the KL, and what is said of it
    "Exponential(mean = recon)": (lambda y, x: x / y - (x / y).log() - 1, "a function of x"),
    "LogCosh(recon, of (x - recon) / 0.01, v = 1)": (  # it overflows far out
        lambda y, x: torch.log(torch.cosh(100 * (y - x))) / 100, "log Z is left out"),
    "LogCosh(recon, of (x - recon) / 0.333333, v = 1 /": (
        lambda y, x: torch.log(math.pi / 3 * torch.cosh(3 * (y - x))), "that of the density"),
    "Huber(recon, kink at |x - recon| = 0.3, v = 0.25)": (
        lambda y, x: 4 * F.huber_loss(y, x, reduction="none", delta=0.3) + math.log(0.5),
        "-0.693147 for each value of x"),
    "StudentT(recon, (1 + (x - recon)^2 / 3)^(-1 / v) / Z, v = 1)": (
        lambda y, x: (1 + (y - x) ** 2 / 3).log() - math.log(math.gamma(1) / math.gamma(0.5) / (3 * math.pi) ** 0.5),
        "that of the density"),
}  # fmt: skip
WRONG_RATES = {  # rates that are none, with the sum of the cross-entropies
    "wrong sign": lambda mu, logvar: -kl(mu, logvar).sum(),
    "perhaps without the factor 1/2": lambda mu, logvar: (mu**2 + 0.5 * (logvar.exp() - 1 - logvar)).sum(),
    "a sign is wrong": lambda mu, logvar: -0.5 * (1 + logvar + mu**2 - logvar.exp()).sum(),
    "a log variance in one term, and a log": lambda mu, logvar: -0.5 * (1 + logvar - mu**2 - logvar.exp() ** 2).sum(),
    "- 1 in the sum": lambda mu, logvar: 0.5 * (mu**2 + logvar.exp() - logvar).sum(),
    "-2 log scale is missing": lambda mu, logvar: 0.5 * (mu**2 + logvar.exp() - 1).sum(),
    "scale^2 is missing": lambda mu, logvar: 0.5 * (mu**2 - logvar).sum(),
    "depends on the batch size": lambda mu, logvar: kl(mu, logvar).sum(1).mean(),
    "not deterministic": lambda mu, logvar: (torch.rand(()) * kl(mu, logvar)).sum(),
    "not depend on logvar": lambda mu, logvar: 0.5 * (mu**2).sum(),
    "ordinary point": lambda mu, logvar: (kl(mu, logvar) - 100).sqrt().sum(),
    "is not a rate that I know": lambda mu, logvar: (mu.abs() + 0.5 * (logvar.exp() - 1 - logvar)).sum(),
}
WRONG_DISTORTIONS = {  # distortions that are none, with the sum of the KL
    "depends on the batch size": F.mse_loss,
    "scaled or shifted": lambda recon, x: F.binary_cross_entropy_with_logits(recon, 2 * x - 1, reduction="sum"),
    "means over the batch": lambda recon, x: ((recon.mean(0) - x.mean(0)) ** 2).sum() * len(x),
    "different weights": lambda recon, x: F.binary_cross_entropy_with_logits(
        recon, x, pos_weight=torch.tensor(3.0, dtype=torch.float64), reduction="sum"
    ),
    "is not a likelihood that I know": lambda recon, x: -F.cosine_similarity(recon, x).sum(),
    "likelihood has the wrong sign": lambda recon, x: -F.mse_loss(recon, x, reduction="sum"),
}
OPEN = {  # distortions that are not known, as weights of the values, and are never taken for those of an ELBO
    "weights of a squared error": lambda y, x: (torch.arange(1, 7) * (y - x) ** 2).sum(),
    "weights of a cross-entropy": lambda y, x: (
        torch.arange(1, 7) * F.binary_cross_entropy(y, x, reduction="none")
    ).sum(),
    "a fixed mask": lambda y, x: (torch.tensor([0.0, 1, 1, 0, 1, 1]) * (y - x) ** 2).sum(),
    "ignore_index": lambda y, x: F.cross_entropy(y.flatten(0, 1), x.flatten(), ignore_index=0),
    "pseudo-Huber": lambda y, x: ((1 + (y - x) ** 2).sqrt() - 1).sum(),
}
OPEN_FOR = {  # and the reason that is said
    "sums to 1": lambda recon, x: -(x * recon.log()).sum(),
    "and y^2 have": lambda recon, x: ((2 * recon - x) ** 2).sum(),
    "not a likelihood that I know": lambda recon, x: ((recon - x) ** 4).sum(),
}


def add(verdict, words, distortion, divergence=lambda mu, logvar: kl(mu, logvar).sum(), name=""):
    """Register the sum of a distortion and a rate."""
    says(verdict, *words, name=name)(lambda recon, x, mu, logvar: distortion(recon, x) + divergence(mu, logvar))


def add_reduced(name, errors, reduced, *words):
    says("elbo", *words, name=name)(lambda recon, x, mu, logvar: reduced(errors(recon, x), kl(mu, logvar)))


for name, row in REDUCED.items():
    add_reduced(name, *row)
for name, (of_x, constant) in DISTORTIONS.items():
    add("elbo", (name, constant), lambda y, x, of_x=of_x: of_x(y, x).sum(), name=name)
for reason, of_z in WRONG_RATES.items():
    add("no", (reason,), lambda recon, x: cross_entropies(recon, x).sum(), of_z, f"rate: {reason}")
for reason, of_x in WRONG_DISTORTIONS.items():
    add("no", (reason,), of_x, name=f"distortion: {reason}")
for reason, of_x in OPEN.items():
    add("open", (), of_x, name=reason)
for reason, of_x in OPEN_FOR.items():
    add("open", (reason,), of_x, name=reason)


# --- as they are written in public ------------------------------------------------------------------------------------


# post 002, and pytorch/examples/vae
@says("elbo", "the negative ELBO of the batch, a sum", "Bernoulli(probs")
def post_002(recon_x, x, mu, logvar):
    bce = F.binary_cross_entropy(recon_x, x.view(-1, 784), size_average=False)
    return bce - 0.5 * torch.sum(1 + logvar - mu.pow(2) - logvar.exp())


# post 004
@says("elbo", "the negative ELBO of the batch, a mean", "Bernoulli(logits")
def post_004(x, logits, mean, log_scale, z):
    p_x = Independent(Bernoulli(logits=logits, validate_args=False), 1)
    q_z = Independent(Normal(mean, log_scale.exp()), 1)
    p_z = Independent(Normal(torch.zeros_like(mean), torch.ones_like(mean)), 1)
    return -(p_x.log_prob(x) + p_z.log_prob(z) - q_z.log_prob(z)).mean()


# AntixK/PyTorch-VAE, VanillaVAE
@says(
    "elbo",
    "0.005 times the negative ELBO of the batch, a mean",
    "scale^2 = 0.0025",
    arguments=["reconstruction", "x", "loc", "spread"],
    M_N=0.005,
)
def antixk_vanilla(*args, **kwargs):
    recons, inputs, mu, log_var = args
    recons_loss = F.mse_loss(recons, inputs)
    kld_loss = torch.mean(-0.5 * torch.sum(1 + log_var - mu**2 - log_var.exp(), dim=1), dim=0)
    total = recons_loss + kwargs["M_N"] * kld_loss
    return {"loss": total, "Reconstruction_Loss": recons_loss.detach(), "KLD": -kld_loss.detach()}


# Rybkin et al., arXiv:2006.13202, learned sigma
@says("elbo", "the negative ELBO of the batch, a sum", "scale = exp(log_sigma_x)")
def sigma_vae(x_hat, log_sigma_x, x, mu, logvar):
    nll = 0.5 * ((x - x_hat) / log_sigma_x.exp()) ** 2 + log_sigma_x + 0.5 * math.log(2 * math.pi)
    return nll.sum() - 0.5 * torch.sum(1 + logvar - mu.pow(2) - logvar.exp())


# Rybkin et al., arXiv:2006.13202, optimal sigma
@says("elbo", "the negative ELBO of the batch, a sum", "the mean squared error of the batch")
def optimal_sigma_vae(x_hat, x, mu, logvar):
    log_sigma = ((x - x_hat) ** 2).mean().sqrt().log()
    nll = 0.5 * ((x - x_hat) / log_sigma.exp()) ** 2 + log_sigma + 0.5 * math.log(2 * math.pi)
    return nll.sum() - 0.5 * torch.sum(1 + logvar - mu.pow(2) - logvar.exp())


# altosaar/variational-autoencoder, train_variational_autoencoder_pytorch.py
@says("elbo", "one value for each image", "Bernoulli(logits")
def altosaar(x, logits, loc, scale, z):
    log_p_z = Normal(0.0, 1.0).log_prob(z).sum(-1, keepdim=True)
    log_p_x = Bernoulli(logits=logits, validate_args=False).log_prob(x).sum(-1, keepdim=True)
    log_q_z = Normal(loc, scale).log_prob(z).sum(-1, keepdim=True)
    return -(log_p_x + log_p_z - log_q_z).squeeze(-1)


# podgorskiy/VAE, the sum of what its loss returns
@says("elbo", "0.1 / L times the negative ELBO of the batch, a mean", "scale^2 = 0.05 D / L)")
def podgorskiy(recon_x, x, mu, logvar):
    reconstruction, rate = torch.mean((recon_x - x) ** 2), torch.mean(kl(mu, logvar)) * 0.1
    return reconstruction, rate, reconstruction + rate


# hwalsuklee/tensorflow-mnist-VAE
@says("elbo", "the negative ELBO of the batch, a mean", "Bernoulli(probs")
def hwalsuklee(x, y, mu, sigma):
    likelihood = torch.sum(x * torch.log(y) + (1 - x) * torch.log(1 - y), 1)
    divergence = 0.5 * torch.sum(mu**2 + sigma**2 - torch.log(1e-8 + sigma**2) - 1, 1)
    return -(likelihood.mean() - divergence.mean())


# Tomczak, Deep Generative Modeling
@says("elbo", "the negative ELBO of the batch, a mean", "Categorical(logits")
def tomczak_categorical(x, logits, mu_e, log_var_e, z):
    log_p_x = F.log_softmax(logits, 1).gather(1, x.unsqueeze(1)).squeeze(1).sum(-1)
    log_q = -0.5 * (math.log(2 * math.pi) + log_var_e + (z - mu_e) ** 2 * torch.exp(-log_var_e))
    log_p = -0.5 * (math.log(2 * math.pi) + z**2)
    return -(log_p_x + (log_p - log_q).sum(-1)).mean()


# clementchadebec/benchmark_VAE (pythae), mse
@says("elbo", "the negative ELBO of the batch, a mean", "scale^2 = 1)")
def pythae_vae(recon_x, x, mu, log_var):
    reconstruction = 0.5 * F.mse_loss(recon_x.reshape(len(x), -1), x.reshape(len(x), -1), reduction="none").sum(-1)
    divergence = -0.5 * torch.sum(1 + log_var - mu.pow(2) - log_var.exp(), dim=-1)
    return (reconstruction + divergence).mean(dim=0), reconstruction.mean(dim=0), divergence.mean(dim=0)


# CompVis/latent-diffusion, the loss of its autoencoder without discriminator
@says("elbo", "a mean", "Laplace(reconstructions, scale = exp(x_logvar))", "beta        1e-06")
def latent_diffusion(inputs, reconstructions, x_logvar, mean, logvar):
    nll = torch.abs(inputs - reconstructions) / torch.exp(x_logvar) + x_logvar
    divergence = 0.5 * torch.sum(mean.pow(2) + logvar.exp() - 1.0 - logvar)
    return nll.sum() / len(inputs) + 1e-6 * divergence / len(inputs)


# torch.nn.GaussianNLLLoss as reconstruction
@says("elbo", "a sum", "Normal(x_mean, scale = sqrt(x_var))")
def gaussian_decoder(x_mean, x, x_var, mu, logvar):
    return F.gaussian_nll_loss(x_mean, x, x_var, reduction="sum", full=True) + kl(mu, logvar).sum()


# Kingma et al., inverse autoregressive flow: discretised logistic
@says("elbo", "a mean", "DiscretizedLogistic(x_hat")
def discretized(x_hat, x_logscale, x, mu, logvar):
    half = 1 / 510
    upper, lower = (x + half - x_hat) / x_logscale.exp(), (x - half - x_hat) / x_logscale.exp()
    return (-(torch.sigmoid(upper) - torch.sigmoid(lower)).log().sum(1) + kl(mu, logvar).sum(1)).mean()


# Loaiza-Ganem and Cunningham, continuous Bernoulli
@says(
    "elbo",
    "a mean",
    "ContinuousBernoulli(probs",
    arguments={"x": "x", "lam": "reconstruction", "mu": "loc", "logvar": "spread"},
)
def continuous_bernoulli(x, lam, mu, logvar):
    log_c = torch.log(2 * torch.atanh(1 - 2 * lam) / (1 - 2 * lam))
    nll = F.binary_cross_entropy(lam, x, reduction="none") - log_c
    return (nll.sum(1) + kl(mu, logvar).sum(1)).mean()


# Bowman et al., arXiv:1511.06349, a KL weight of 0.1
@says(
    "elbo",
    "beta-ELBO of the batch, a mean",
    "Categorical(logits",
    "beta        0.1",
    arguments={"logp": "reconstruction", "target": "x", "mean": "loc", "logv": "spread"},
)
def text_vae(logp, target, mean, logv):
    nll = F.cross_entropy(logp.flatten(0, 1), target.flatten(), reduction="sum")
    return (nll + 0.1 * (-0.5 * torch.sum(1 + logv - mean.pow(2) - logv.exp()))) / len(target)


# 1e-8 in the logarithms, in many
@says("elbo", "a mean", "1e-08 added in the logarithms")
def with_epsilon(x, x_hat, mu, logvar):
    cross_entropy = -(x * torch.log(x_hat + 1e-8) + (1 - x) * torch.log(1 - x_hat + 1e-8)).sum(1)
    return (cross_entropy + kl(mu, logvar).sum(1)).mean()


@says("elbo", "Multinomial(logits = recon_x)", "beta        0.2", "log(N! / prod x!) is left out, for each x")
def mult_vae(recon_x, x, mu, logvar, anneal=0.2):
    distortion = -(F.log_softmax(recon_x, 1) * x).sum(-1).mean()
    return distortion + anneal * kl(mu, logvar).sum(1).mean()


def to_dirichlet(mu, logvar):
    variance = 1 - 1 / mu.shape[1]
    return 0.5 * ((logvar.exp() + mu**2) / variance + math.log(variance) - logvar - 1).sum(1)


@says("elbo", "Multinomial(logits = logits)", "left out", "N(0, c^2 I) with c^2 = (1 - 1 / L)")
def prodlda(inputs, logits, mu, logvar):
    return (to_dirichlet(mu, logvar) - (inputs * F.log_softmax(logits, 1)).sum(1)).mean()


@says("elbo", "Multinomial(logits = logits)", "left out", "N(0, c^2 I) with c^2 = (1 - 1 / L)")
def prodlda_of_a_fixed_vocabulary(inputs, logits, mu, logvar):
    return prodlda(inputs.view(-1, 784), logits, mu, logvar)


@says("elbo", "NegativeBinomial(mean = px_rate, dispersion = exp(px_r), 1e-08 added", "that of the density")
def scvi(x, px_rate, px_r, qz_m, qz_v):
    e, theta = 1e-8, px_r.exp()
    log_sum = torch.log(theta + px_rate + e)
    log_p = theta * (torch.log(theta + e) - log_sum) + x * (torch.log(px_rate + e) - log_sum)
    log_p = log_p + torch.lgamma(x + theta) - torch.lgamma(theta) - torch.lgamma(x + 1)
    return (kl_divergence(Normal(qz_m, qz_v.sqrt()), Normal(0.0, 1.0)).sum(1) - log_p.sum(-1)).mean()


@says("elbo", "Poisson(rate = recon)", "that of the density")
def poisson_of_torch(x, recon, mu, logvar):
    return kl(mu, logvar).sum() - Poisson(recon).log_prob(x).sum()


@says(
    "elbo",
    "2 times the negative",
    "Normal(tanh(recon_x), scale = sigmas)",
    "beta        0.5",
    "log(2 pi scale^2) / 2 is left out",
)
def tvae(recon_x, x, sigmas, mu, logvar, factor=2):
    errors = x - torch.tanh(recon_x)
    loss = (errors**2 / 2 / sigmas**2).sum() + torch.log(sigmas).sum() * x.shape[0]
    return loss * factor / x.shape[0] + kl(mu, logvar).sum() / x.shape[0]


@says("elbo", "Normal(recon, scale^2 = 0.5)", "Normal(loc = prior_mu, scale = exp(prior_logvar / 2))")
def learned_prior(recon, x, mu, logvar, prior_mu, prior_logvar):
    rate = 0.5 * (prior_logvar - logvar - 1 + (logvar.exp() + (mu - prior_mu) ** 2) / prior_logvar.exp())
    return F.mse_loss(recon, x, reduction="sum") + rate.sum()


# --- no ELBO ----------------------------------------------------------------------------------------------------------


@says("no", "not differentiable")
def returns_a_number(recon, x, mu, logvar):
    return (cross_entropies(recon, x).sum() + kl(mu, logvar).sum()).item()


@says("no", "without a rate")
def autoencoder(recon, x):
    return F.mse_loss(recon, x)


@says("no", "the rate alone")
def rate_alone(mu, logvar):
    return kl(mu, logvar).sum(1).mean()


@says("no", "sum")
def two_values(recon, x, mu, logvar):
    return cross_entropies(recon, x).sum(), kl(mu, logvar).sum()


@says("no", "at others its values or gradients differ")
def free_bits_by_latent(x, y, mu, logvar):
    return ((x - y) ** 2).sum(1).mean() + kl(mu, logvar).mean(0).clamp(min=0.1).sum()


@says("no", "is not a rate that I know")
def a_product(recon, x, mu, logvar):
    return cross_entropies(recon, x).sum() * kl(mu, logvar).sum()


# --- other roles ------------------------------------------------------------------------------------------------------


@says("elbo", "Categorical(probs = qy)", "uniform", "e-08 to 1")
def classes(recon, x, qy):
    return (bce(recon, x) + of_classes(qy)).mean()


@says("elbo", "Categorical(logits = logits)", "scale^2 = 4 / D", slow=True)
def class_logits(recon, x, logits):
    return F.mse_loss(recon, x) / 2 + 4 * of_classes(logits.softmax(-1)).mean() / x.shape[1] ** 2


@says("elbo", "of 10 classes only")
def ten_classes(recon, x, qy):
    return (bce(recon, x) + (qy * (10 * qy).log()).sum(-1)).mean()


@says("elbo", "of 10 classes only", "D = 784 only")  # where the constants of x and of classes cannot be told apart
def ten_classes_of_pixels(recon, x, qy):
    return (bce(recon, x.view(-1, 784)) + (qy * (10 * qy).log()).sum(-1)).mean()


@says("not", "log K of the rate is missing")
def no_constant_of_pixels(recon, x, qy):
    return (bce(recon, x.view(-1, 784)) + (qy * qy.log()).sum(-1)).mean() + 1000


@says("not", "log K of the rate is missing")
def no_constant(recon, x, qy):
    return (bce(recon, x) + (qy * qy.log()).sum(-1)).mean()


@says("not", "wrong sign")
def minus(recon, x, qy):
    return (bce(recon, x) - of_classes(qy)).mean()


@says("not", "both parts have the wrong sign; minus the loss is the negative ELBO of the batch, a mean")
def maximised(recon, x, mu, logvar):
    return (-bce(recon, x) - rate(mu, logvar)).mean()


@says("not", "both parts have the wrong sign", "batch size")
def maximised_mean(recon, x, mu, logvar):
    return -bce(recon, x).sum() - rate(mu, logvar).mean()


@says("not", "swapped")
def swapped(recon, x, qy):
    return (bce(recon, x) + F.kl_div(qy.log(), torch.full_like(qy, 1 / qy.shape[-1]), reduction="none").sum(-1)).mean()


@says("not", "swapped", "Normal(loc = mu, scale = exp(logvar / 2))")
def swapped_normal(recon, x, mu, logvar):
    return (bce(recon, x) + 0.5 * ((1 + mu**2) / logvar.exp() + logvar - 1).sum(-1)).mean()


@says("open", "of bits, the part of 1 - q is missing")
def half_of_bits(recon, x, q):
    return (bce(recon, x) + (q * (2 * q).log()).sum(-1)).mean()


@says("open")  # the loss of a discriminator has the gradient of a swapped divergence
def generator(recon, x, third):
    return (bce(recon, x) - third.log().mean(-1)).mean()


@says("open", "swapped")
def swapped_up_to_a_constant(recon, x, log_q):
    return (bce(recon, x) - log_q.mean(-1)).mean()


@says("open", "its function of q is not a rate")  # of values below 0, as log probabilities are, it is linear
def penalty(recon, x, q):
    return bce(recon, x).mean() + 1e-3 * q.abs().mean()


@says("elbo", "Bernoulli(logits = q)", "Bernoulli(probs = recon)", slow=True)
def bits(x, recon, q):
    return (bce(recon, x) + of_bits(q.sigmoid())).mean()


@says("elbo", "Bernoulli(probs = c)", "scale^2 = 0.25", slow=True)
def without_names(a, b, c):
    return (2 * (a - b) ** 2).sum() + of_bits(c).sum()


@says("open", "kl is handed in", "weight      of kl: 3")
def handed_in(recon, x, kl):
    return bce(recon, x).mean() + 3 * kl.mean()


@says("not", "the loss is no ELBO", "weight      of kl: -1")
def handed_in_with_a_minus(recon, x, kl):
    return bce(recon, x).mean() - kl.mean()


@says("open", slow=True)
def unknown(recon, x, third):
    return bce(recon, x).mean() + (third**3).mean()


@says("open", slow=True)
def product(recon, x, weight):
    return (weight * (recon - x) ** 2).mean()


@says("not", "of the codebook: 1 / (B L)", "of the commitment: 0.25 / (B L)")
def codes(x, recon, quantized, encoded):
    return F.mse_loss(recon, x) + F.mse_loss(quantized, encoded.detach()) + F.mse_loss(quantized.detach(), encoded) / 4


@says("not", "it has the commitment of", "of the commitment: 0.25 / (B L)")
def moving_average(x, recon, quantized, encoded):
    return F.mse_loss(recon, x) + F.mse_loss(quantized.detach(), encoded) / 4


@says("elbo", "StudentT(recon, (1 + (x - recon)^2 / 1.47)^(-1 / v) / Z, v = 0.5)", "that of the density")
def student(x, recon, mu, logvar):
    return (rate(mu, logvar) - StudentT(3.0, recon, 0.7).log_prob(x).sum(-1)).mean()


# a weight with which (1 + r^2)^-w is no density
@says("elbo", "0.3 times", "StudentT(recon, (1 + (x - recon)^2 / 1)^(-1 / v) / Z, v = 1)", "beta        10 / 3")
def cauchy(x, recon, mu, logvar):
    return (rate(mu, logvar) + 0.3 * (1 + (x - recon) ** 2).log().sum(-1)).mean()


@says("elbo", "log-Normal(loc = recon, scale^2 = 0.25)", "that of the density")
def log_normal(x, recon, mu, logvar):
    return (rate(mu, logvar) - LogNormal(recon, 0.5).log_prob(x).sum(-1)).mean()


@says("elbo", "Beta(alpha = recon, beta = theta)", slow=True)
def of_beta(x, recon, theta, mu, logvar):
    return (rate(mu, logvar) - Beta(recon, theta).log_prob(x).sum(-1)).mean()


@says("elbo", "zero-inflated NegativeBinomial(mean = mean, dispersion = total, logits of a zero = logit)")
def zero_inflated(x, mean, total, logit, mu, logvar):
    counts = NegativeBinomial(total, logits=(mean / total).log())
    zero = torch.logaddexp(F.logsigmoid(logit), F.logsigmoid(-logit) + counts.log_prob(torch.zeros_like(x)))
    log_p = torch.where(x == 0, zero, F.logsigmoid(-logit) + counts.log_prob(x))
    return (rate(mu, logvar) - log_p.sum(-1)).mean()


@says("elbo", "beta        1", "beta is not used")
def unused(x, recon, mu, logvar, beta=4.0):
    return ((x - recon) ** 2).sum(-1).mean() + rate(mu, logvar).mean()


@says("not", "root", "1 / (B sqrt(D))")
def root(x, recon, mu, logvar):
    return ((x - recon) ** 2).mean(-1).sqrt().mean() + rate(mu, logvar).mean()


@says("elbo", "beta        1 / sqrt(L)")
def root_of_latents(x, recon, mu, logvar):
    return (bce(recon, x) + rate(mu, logvar) / mu.shape[1] ** 0.5).mean()


@says("not", "the constant of the rate", "square is missing", "batch size")
def graph(recon, x, mu, logstd):
    return F.binary_cross_entropy(recon, x) + 0.5 / len(x) * (logstd.exp() + mu**2 - 1 - 2 * logstd).sum(1).mean()


@says("open", "gamma = 3", "c = 25")
def capacity(x, recon, mu, logvar, gamma=3.0, c=25.0):
    return ((x - recon) ** 2).sum(-1).mean() + gamma * (rate(mu, logvar).mean() - c).abs()


@says("open", "gradient")
def free_nats(x, recon, mu, logvar):
    return ((x - recon) ** 2).sum(-1).mean() + rate(mu, logvar).mean().clamp(min=30)


@says("open", "mask", "the negative ELBO", "Normal(recon, scale^2 = 0.5)")
def masked(x, recon, mu, logvar, mask):
    return ((x - recon) ** 2 * mask).sum() + rate(mu, logvar).sum()


@says("open", "what observed does", "where it is 1 everywhere", "Bernoulli(probs = recon)", "logvar -8 to 8")
def masked_in_another_order(observed, recon, x, logvar, mu):
    return (bce(recon, x) * observed.mean(-1)).sum() + rate(mu, logvar).sum()


@says("open", "does not depend on mask")
def mask_that_is_not_used(x, recon, mu, logvar, mask):
    return ((x - recon) ** 2).sum() + rate(mu, logvar).sum()


@says("elbo", "Normal(recon, scale = softplus(sigmas))", "that of the density")
def shared_by_all_images(recon, x, sigmas, mu, logvar):
    scale = F.softplus(sigmas)
    assert sigmas.shape == x.shape[1:]
    return kl(mu, logvar).sum() - Normal(recon, scale).log_prob(x).sum()


@says("open")  # it is that ELBO where the KL was looked at first, and another loss elsewhere
def bounded(recon, x, mu, logvar):
    return F.mse_loss(recon, x, reduction="sum") + kl(mu, logvar.clamp(-0.5, 3)).sum()


@says("open")
def ignores_z(recon, x, mu, logvar, z):
    return F.mse_loss(recon, x, reduction="sum") + kl(mu, logvar).sum()


@says("elbo", "scale = softplus(rho) + 1e-06", "in float64", "beta")
def small_rate(recon, x, mu, rho):
    scale = F.softplus(rho) + 1e-6
    return 784 * F.mse_loss(recon, x) + 0.00025 * 0.5 * (mu**2 + scale**2 - 1 - 2 * scale.log()).mean()


@says("elbo", "between 0.27 and 0.73")
def logits_that_cannot_be_large(recon, x, mu, logvar):
    return F.binary_cross_entropy_with_logits(torch.tanh(recon), x, reduction="sum") + kl(mu, logvar).sum()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("loss", "verdict", "words", "options"), SAYS)
def test_each_loss_is_named_refused_or_left_open(loss, verdict, words, options):
    found = identify(loss, **options)
    assert found.is_elbo == (verdict == "elbo"), found.text
    assert verdict == "no" or found.is_open == (verdict == "open"), found.text
    for word in words:
        assert word in found.text
    if found.is_elbo:
        assert found.residual < 1e-10
        assert any("beta" in word for word in words) or "  beta        1\n" in found.text
    else:
        with pytest.raises(InputError):
            found.config()


def test_what_is_not_known_leaves_the_answer_open_with_what_was_found():
    def loss(recon, x, mu, logvar):
        return ((recon - x) ** 4).sum() + 3 * kl(mu, logvar).sum(1).mean()

    found = identify(loss)
    assert "Normal(loc = mu, scale = exp(logvar / 2))" in found.text
    assert "weight      of the rate: 3 / B" in found.text
    assert "prior" not in found.text


WEIGHT = torch.tensor(0.1, dtype=torch.float32)


def test_a_constant_in_float32_is_read_as_the_number_that_it_rounds():
    def loss(recon, x, mu, logvar):
        return (WEIGHT.double() * (recon - x) ** 2).sum() + WEIGHT.double() * kl(mu, logvar).sum()

    assert identify(loss).readings[0].factor.number == 0.1


def test_the_default_type_of_the_users_file_changes_nothing():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float16)
    try:
        assert "in float64" in identify(small_rate).text
        assert torch.get_default_dtype() is torch.float16
    finally:
        torch.set_default_dtype(before)


def of_torch(x, recon, mu, logvar):
    return torch.ones(3) @ torch.ones(4)


def not_written(x, recon, mu, logvar):
    raise NotImplementedError


def of_an_object(x, recon, mu, logvar):
    return x.view(-1, 784) * object().beta


@pytest.mark.parametrize(
    ("loss", "arguments", "said", "unsaid"),
    [
        (of_torch, None, "arguments=", "RuntimeError"),
        (of_torch, ["x", "reconstruction", "loc"], "arguments=", "RuntimeError"),
        (not_written, None, "itself", "shape"),
        (of_an_object, None, "beta", "shape"),
        (lambda x, recon, mu, logvar, beta: 0, None, "--constant beta=1", "shape"),
    ],
)
def test_what_keeps_a_loss_from_being_called_is_said(loss, arguments, said, unsaid):
    with pytest.raises(InputError) as refused:
        identify(loss, arguments)
    assert said in str(refused.value)
    assert unsaid not in str(refused.value)
