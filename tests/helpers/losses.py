"""Losses as they are written in public, by their formulas, and losses that are no ELBO.

Each public one has a source, and what `pvae.identify` says of it: words of the head line, of the likelihood, and beta.
"""

from __future__ import annotations

import math

import torch
from torch.distributions import Bernoulli, Independent, Normal
from torch.nn import functional as F

PUBLIC: dict[str, tuple] = {}
NO_ELBO: dict[str, tuple] = {}


def public(source, head, likelihood, beta="1", **options):
    """Register a loss with what it is."""

    def register(loss):
        PUBLIC[loss.__name__] = (loss, source, head, likelihood, beta, options)
        return loss

    return register


def no_elbo(reason, name=""):
    """Register a loss with words of the reason for which it is none."""

    def register(loss):
        NO_ELBO[name or loss.__name__] = (loss, reason)
        return loss

    return register


def kl(mu, logvar):
    return -0.5 * (1 + logvar - mu**2 - logvar.exp())


BERNOULLI, LOGITS = "Bernoulli(probs", "Bernoulli(logits"


# --- the five posts ---------------------------------------------------------------------------------------------------


@public("post 002, and pytorch/examples/vae", "the negative ELBO of the batch, a sum", BERNOULLI)
def post_002(recon_x, x, mu, logvar):
    bce = F.binary_cross_entropy(recon_x, x.view(-1, 784), size_average=False)
    return bce - 0.5 * torch.sum(1 + logvar - mu.pow(2) - logvar.exp())


@public("post 004", "the negative ELBO of the batch, a mean", LOGITS)
def post_004(x, logits, mean, log_scale, z):
    p_x = Independent(Bernoulli(logits=logits, validate_args=False), 1)
    q_z = Independent(Normal(mean, log_scale.exp()), 1)
    p_z = Independent(Normal(torch.zeros_like(mean), torch.ones_like(mean)), 1)
    return -(p_x.log_prob(x) + p_z.log_prob(z) - q_z.log_prob(z)).mean()


# --- two parts, each weighted and reduced in its own way --------------------------------------------------------------

NEGATIVE = "the negative ELBO of the batch"


def squares(recon, x):
    return (recon - x) ** 2


def distances(recon, x):
    return (recon - x).abs()


def cross_entropies(recon, x):
    return F.binary_cross_entropy(recon, x, reduction="none")


def two_parts(source, errors, reduced, head, likelihood, beta="1"):
    """Register a loss by the errors of the values, and how these and the KL of the latents are reduced."""

    def loss(recon, x, mu, logvar):
        return reduced(errors(recon, x), kl(mu, logvar))

    PUBLIC[source] = (loss, source, head, likelihood, beta, {})


two_parts(
    "post 001", squares, lambda e, r: e.mean() + (1e-3 * r.sum(1)).mean(),
    f"0.001 times {NEGATIVE}, a mean", "scale^2 = 0.0005 D",
)  # fmt: skip
two_parts(
    "post 003, 3.2", cross_entropies, lambda e, r: 500 * e.mean() + r.mean(1).mean(),
    "500 / D times the negative beta-ELBO of the batch, a mean", BERNOULLI, "0.002 D / L",
)  # fmt: skip
two_parts(
    "YannDubs/disentangling-vae, betaH", cross_entropies, lambda e, r: e.sum() / len(e) + 4 * r.mean(0).sum(),
    "the negative beta-ELBO of the batch, a mean", BERNOULLI, "4",
)  # fmt: skip
two_parts(
    "YannDubs/disentangling-vae, laplace", distances, lambda e, r: 3 * e.sum() / len(e) + r.mean(0).sum(),
    f"{NEGATIVE}, a mean", "Laplace(recon, scale = 1 / 3)",
)  # fmt: skip
two_parts(
    "Geron, Hands-On Machine Learning", cross_entropies, lambda e, r: e.mean() + r.sum(-1).mean() / 784.0,
    "a mean", BERNOULLI, "D / 784",
)  # fmt: skip
two_parts(
    "mean over channels and sum over pixels, in many", squares,
    lambda e, r: e.mean(1).sum((1, 2)).mean() + r.sum(1).mean(), f"{NEGATIVE}, a mean", "scale^2 = 0.5 C)",
)  # fmt: skip
two_parts(
    "Foster, Generative Deep Learning, 2nd edition", cross_entropies,
    lambda e, r: (500 * e.mean(1)).mean() + r.sum(1).mean(), "500 / D times the negative beta-ELBO", BERNOULLI,
    "0.002 D",
)  # fmt: skip


# --- repositories -----------------------------------------------------------------------------------------------------


@public("AntixK/PyTorch-VAE, VanillaVAE", "0.005 times the negative ELBO of the batch, a mean", "scale^2 = 0.0025",
        arguments=["reconstruction", "x", "loc", "spread"], M_N=0.005)  # fmt: skip
def antixk_vanilla(*args, **kwargs):
    recons, inputs, mu, log_var = args
    recons_loss = F.mse_loss(recons, inputs)
    kld_loss = torch.mean(-0.5 * torch.sum(1 + log_var - mu**2 - log_var.exp(), dim=1), dim=0)
    total = recons_loss + kwargs["M_N"] * kld_loss
    return {"loss": total, "Reconstruction_Loss": recons_loss.detach(), "KLD": -kld_loss.detach()}


@public(
    "Rybkin et al., arXiv:2006.13202, learned sigma",
    "the negative ELBO of the batch, a sum",
    "scale = exp(log_sigma_x)",
)
def sigma_vae(x_hat, log_sigma_x, x, mu, logvar):
    nll = 0.5 * ((x - x_hat) / log_sigma_x.exp()) ** 2 + log_sigma_x + 0.5 * math.log(2 * math.pi)
    return nll.sum() - 0.5 * torch.sum(1 + logvar - mu.pow(2) - logvar.exp())


@public(
    "Rybkin et al., arXiv:2006.13202, optimal sigma",
    "the negative ELBO of the batch, a sum",
    "the mean squared error of the batch",
)
def optimal_sigma_vae(x_hat, x, mu, logvar):
    log_sigma = ((x - x_hat) ** 2).mean().sqrt().log()
    nll = 0.5 * ((x - x_hat) / log_sigma.exp()) ** 2 + log_sigma + 0.5 * math.log(2 * math.pi)
    return nll.sum() - 0.5 * torch.sum(1 + logvar - mu.pow(2) - logvar.exp())


@public(
    "altosaar/variational-autoencoder, train_variational_autoencoder_pytorch.py", "one value for each image", LOGITS
)
def altosaar(x, logits, loc, scale, z):
    log_p_z = Normal(0.0, 1.0).log_prob(z).sum(-1, keepdim=True)
    log_p_x = Bernoulli(logits=logits, validate_args=False).log_prob(x).sum(-1, keepdim=True)
    log_q_z = Normal(loc, scale).log_prob(z).sum(-1, keepdim=True)
    return -(log_p_x + log_p_z - log_q_z).squeeze(-1)


@public("podgorskiy/VAE, the sum of what its loss returns", "0.1 / L times the negative ELBO of the batch, a mean",
        "scale^2 = 0.05 D / L)")  # fmt: skip
def podgorskiy(recon_x, x, mu, logvar):
    reconstruction, rate = torch.mean((recon_x - x) ** 2), torch.mean(kl(mu, logvar)) * 0.1
    return reconstruction, rate, reconstruction + rate


@public("hwalsuklee/tensorflow-mnist-VAE", "the negative ELBO of the batch, a mean", BERNOULLI)
def hwalsuklee(x, y, mu, sigma):
    likelihood = torch.sum(x * torch.log(y) + (1 - x) * torch.log(1 - y), 1)
    divergence = 0.5 * torch.sum(mu**2 + sigma**2 - torch.log(1e-8 + sigma**2) - 1, 1)
    return -(likelihood.mean() - divergence.mean())


@public(
    "Tomczak, Deep Generative Modeling",
    "the negative ELBO of the batch, a mean",
    "Categorical(logits",
)
def tomczak_categorical(x, logits, mu_e, log_var_e, z):
    log_p_x = F.log_softmax(logits, 1).gather(1, x.unsqueeze(1)).squeeze(1).sum(-1)
    log_q = -0.5 * (math.log(2 * math.pi) + log_var_e + (z - mu_e) ** 2 * torch.exp(-log_var_e))
    log_p = -0.5 * (math.log(2 * math.pi) + z**2)
    return -(log_p_x + (log_p - log_q).sum(-1)).mean()


@public("clementchadebec/benchmark_VAE (pythae), mse", f"{NEGATIVE}, a mean", "scale^2 = 1)")
def pythae_vae(recon_x, x, mu, log_var):
    reconstruction = 0.5 * F.mse_loss(recon_x.reshape(len(x), -1), x.reshape(len(x), -1), reduction="none").sum(-1)
    divergence = -0.5 * torch.sum(1 + log_var - mu.pow(2) - log_var.exp(), dim=-1)
    return (reconstruction + divergence).mean(dim=0), reconstruction.mean(dim=0), divergence.mean(dim=0)


@public("CompVis/latent-diffusion, the loss of its autoencoder without discriminator", "a mean",
        "Laplace(reconstructions, scale = exp(x_logvar))", "1e-06")  # fmt: skip
def latent_diffusion(inputs, reconstructions, x_logvar, mean, logvar):
    nll = torch.abs(inputs - reconstructions) / torch.exp(x_logvar) + x_logvar
    divergence = 0.5 * torch.sum(mean.pow(2) + logvar.exp() - 1.0 - logvar)
    return nll.sum() / len(inputs) + 1e-6 * divergence / len(inputs)


@public("torch.nn.GaussianNLLLoss as reconstruction", "a sum", "Normal(x_mean, scale = sqrt(x_var))")
def gaussian_decoder(x_mean, x, x_var, mu, logvar):
    return F.gaussian_nll_loss(x_mean, x, x_var, reduction="sum", full=True) + kl(mu, logvar).sum()


@public("Kingma et al., inverse autoregressive flow: discretised logistic", "a mean", "DiscretizedLogistic(x_hat")
def discretized(x_hat, x_logscale, x, mu, logvar):
    half = 1 / 510
    upper, lower = (x + half - x_hat) / x_logscale.exp(), (x - half - x_hat) / x_logscale.exp()
    return (-(torch.sigmoid(upper) - torch.sigmoid(lower)).log().sum(1) + kl(mu, logvar).sum(1)).mean()


@public("Loaiza-Ganem and Cunningham, continuous Bernoulli", "a mean", "ContinuousBernoulli(probs",
        arguments={"x": "x", "lam": "reconstruction", "mu": "loc", "logvar": "spread"})  # fmt: skip
def continuous_bernoulli(x, lam, mu, logvar):
    log_c = torch.log(2 * torch.atanh(1 - 2 * lam) / (1 - 2 * lam))
    nll = F.binary_cross_entropy(lam, x, reduction="none") - log_c
    return (nll.sum(1) + kl(mu, logvar).sum(1)).mean()


@public("Bowman et al., arXiv:1511.06349, a KL weight of 0.1", "beta-ELBO of the batch, a mean", "Categorical(logits",
        "0.1", arguments={"logp": "reconstruction", "target": "x", "mean": "loc", "logv": "spread"})  # fmt: skip
def text_vae(logp, target, mean, logv):
    nll = F.cross_entropy(logp.flatten(0, 1), target.flatten(), reduction="sum")
    return (nll + 0.1 * (-0.5 * torch.sum(1 + logv - mean.pow(2) - logv.exp()))) / len(target)


@public("1e-8 in the logarithms, in many", "a mean", "1e-08 added in the logarithms")
def with_epsilon(x, x_hat, mu, logvar):
    cross_entropy = -(x * torch.log(x_hat + 1e-8) + (1 - x) * torch.log(1 - x_hat + 1e-8)).sum(1)
    return (cross_entropy + kl(mu, logvar).sum(1)).mean()


# --- no ELBO ----------------------------------------------------------------------------------------------------------


def bce(y, x):
    return F.binary_cross_entropy(y, x, reduction="sum")


# Rates that are none, each with the sum of the cross-entropies.
WRONG_RATES = {
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
# Distortions that are none, each with the sum of the KL.
WRONG_DISTORTIONS = {
    "depends on the batch size": F.mse_loss,
    "scaled or shifted": lambda recon, x: F.binary_cross_entropy_with_logits(recon, 2 * x - 1, reduction="sum"),
    "means over the batch": lambda recon, x: ((recon.mean(0) - x.mean(0)) ** 2).sum() * len(x),
    "different weights": lambda recon, x: F.binary_cross_entropy_with_logits(
        recon, x, pos_weight=torch.tensor(3.0, dtype=torch.float64), reduction="sum"
    ),
    "is not a likelihood that I know": lambda recon, x: -F.cosine_similarity(recon, x).sum(),
    "likelihood has the wrong sign": lambda recon, x: -F.mse_loss(recon, x, reduction="sum"),
}


def with_rate(reason, rate):
    no_elbo(reason, f"rate: {reason}")(lambda recon, x, mu, logvar: bce(recon, x) + rate(mu, logvar))


def with_distortion(reason, distortion):
    no_elbo(reason, f"distortion: {reason}")(lambda recon, x, mu, logvar: distortion(recon, x) + kl(mu, logvar).sum())


for register, rows in ((with_rate, WRONG_RATES), (with_distortion, WRONG_DISTORTIONS)):
    for row in rows.items():
        register(*row)
no_elbo("is not a rate that I know", "product")(lambda recon, x, mu, logvar: bce(recon, x) * kl(mu, logvar).sum())


@no_elbo("not differentiable")
def returns_a_number(recon, x, mu, logvar):
    return (bce(recon, x) + kl(mu, logvar).sum()).item()


@no_elbo("without a rate")
def autoencoder(recon, x):
    return F.mse_loss(recon, x)


@no_elbo("the rate alone")
def rate_alone(mu, logvar):
    return kl(mu, logvar).sum(1).mean()


@no_elbo("sum")
def two_values(recon, x, mu, logvar):
    return bce(recon, x), kl(mu, logvar).sum()


@no_elbo("at others its values or gradients differ")
def free_bits_by_latent(x, y, mu, logvar):
    return ((x - y) ** 2).sum(1).mean() + kl(mu, logvar).mean(0).clamp(min=0.1).sum()
