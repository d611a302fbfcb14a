"""`pvae.identify` names discrete rates, codes, zero-inflated counts and unused arguments, or leaves them open."""

from __future__ import annotations

import math

import pytest
import torch
from helpers.losses import kl
from torch.distributions import Beta, LogNormal, NegativeBinomial, StudentT
from torch.nn import functional as F

from pvae.core.errors import InputError
from pvae.identification.identify import identify

SAYS: dict[str, tuple] = {}


def says(verdict, *words, slow=False):
    """Register a loss with the verdict "elbo", "not" or "open", and what the answer says."""

    def register(loss):
        marks = pytest.mark.workflow if slow else ()
        SAYS[loss.__name__] = pytest.param(loss, verdict, words, marks=marks, id=loss.__name__)
        return loss

    return register


def bce(recon, x):
    return F.binary_cross_entropy(recon, x, reduction="none").sum(-1)


def of_classes(q):
    return (q * (q * q.shape[-1]).log()).sum(-1)


def of_bits(q):
    return (q * q.log() + (1 - q) * (1 - q).log() + math.log(2)).sum(-1)


def rate(mu, logvar):
    return kl(mu, logvar).sum(-1)


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


@says(
    "elbo", "0.3 times", "StudentT(recon, (1 + (x - recon)^2 / 1)^(-1 / v) / Z, v = 1)"
)  # a weight with which (1 + r^2)^-w is no density
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


@says("elbo", "1 / sqrt(L)")
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


@pytest.mark.parametrize(("loss", "verdict", "words"), SAYS.values())
def test_each_role_is_named_or_left_open(loss, verdict, words):
    found = identify(loss)
    assert (found.is_elbo, found.is_open) == (verdict == "elbo", verdict == "open"), found.text
    for word in words:
        assert word in found.text


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
