"""Losses as they are written in public, by their formulas, and losses that are no ELBO.

Each public one has a source, and what `pvae.identify` says of it: words of the head line, of the likelihood, and beta.
"""

from __future__ import annotations

import math

import torch
from torch.nn import functional as F

PUBLIC: dict[str, tuple] = {}
NO_ELBO: dict[str, tuple] = {}


def public(source, head, likelihood, beta="1", **options):
    """Register a loss with what it is."""

    def register(loss):
        PUBLIC[loss.__name__] = (loss, source, head, likelihood, beta, options)
        return loss

    return register


def no_elbo(reason, **options):
    """Register a loss with words of the reason for which it is none."""

    def register(loss):
        NO_ELBO[loss.__name__] = (loss, reason, options)
        return loss

    return register


def kl(mu, logvar):
    return -0.5 * (1 + logvar - mu**2 - logvar.exp())


BERNOULLI, LOGITS = "Bernoulli(probs", "Bernoulli(logits"


# --- the five posts ---------------------------------------------------------------------------------------------------


@public("post 000", "the negative ELBO of the batch, a sum", BERNOULLI)
def post_000(recon_x, x, mu, logvar):
    return F.binary_cross_entropy(recon_x, x.view(-1, 784), reduction="sum") + kl(mu, logvar).sum()


@public("post 001", "0.001 times the negative ELBO of the batch, a mean", "scale^2 = 0.0005 D")
def post_001(x, output, mu, log_var):
    return F.mse_loss(output, x) + (1e-3 * torch.sum(kl(mu, log_var), dim=1)).mean()


@public("post 002, and pytorch/examples/vae", "the negative ELBO of the batch, a sum", BERNOULLI)
def post_002(recon_x, x, mu, logvar):
    bce = F.binary_cross_entropy(recon_x, x.view(-1, 784), size_average=False)
    return bce - 0.5 * torch.sum(1 + logvar - mu.pow(2) - logvar.exp())


@public("post 003, 3.2", "500 / D times the negative beta-ELBO of the batch, a mean", BERNOULLI, "0.002 D / L")
def post_003_fashion(data, reconstruction, z_mean, z_log_var):
    return (500 * F.binary_cross_entropy(reconstruction, data)) + kl(z_mean, z_log_var).mean(1).mean()


@public("post 003, 3.3", "the negative ELBO of the batch, a mean", "scale^2 = 0.00025 D")
def post_003_faces(data, reconstruction, z_mean, z_log_var):
    return (2000 * (data - reconstruction) ** 2).mean() + kl(z_mean, z_log_var).sum(1).mean()


@public("post 004", "the negative ELBO of the batch, a mean", LOGITS)
def post_004(x, logits, mean, log_scale, z):
    normal = torch.distributions.Normal
    p_x = torch.distributions.Independent(torch.distributions.Bernoulli(logits=logits, validate_args=False), 1)
    q_z = torch.distributions.Independent(normal(mean, log_scale.exp()), 1)
    p_z = torch.distributions.Independent(normal(torch.zeros_like(mean), torch.ones_like(mean)), 1)
    return -(p_x.log_prob(x) + p_z.log_prob(z) - q_z.log_prob(z)).mean()


# --- frameworks' tutorials --------------------------------------------------------------------------------------------


@public("Keras code example vae", "the negative ELBO of the batch, a mean", BERNOULLI)
def keras_example(data, reconstruction, z_mean, z_log_var):
    cross_entropy = F.binary_cross_entropy(reconstruction, data, reduction="none").mean(1)  # over channels
    return (cross_entropy * data.shape[1]).sum((1, 2)).mean() + kl(z_mean, z_log_var).sum(1).mean()


@public(
    "Keras examples, variational_autoencoder.py with --mse", "the negative ELBO of the batch, a mean", "scale^2 = 0.5)"
)
def keras_mse(inputs, outputs, z_mean, z_log_var):
    reconstruction = ((inputs - outputs) ** 2).mean(-1) * inputs.shape[-1]
    return (reconstruction + kl(z_mean, z_log_var).sum(-1)).mean()


@public("TensorFlow tutorial, Convolutional VAE", "the negative ELBO of the batch, a mean", LOGITS)
def tensorflow_tutorial(x, x_logit, mean, logvar, z):
    def log_normal(sample, mean, logvar):
        return torch.sum(-0.5 * ((sample - mean) ** 2 * torch.exp(-logvar) + logvar + math.log(2 * math.pi)), 1)

    cross_entropy = F.binary_cross_entropy_with_logits(x_logit, x, reduction="none")
    log_p_x = -cross_entropy.sum([1, 2, 3])
    zero = torch.zeros_like(z)
    return -(log_p_x + log_normal(z, zero, zero) - log_normal(z, mean, logvar)).mean()


@public("Pyro tutorial vae, with TraceMeanField_ELBO", "the negative ELBO of the batch, a sum", BERNOULLI)
def pyro_tutorial(x, decoded, z_loc, z_scale):
    p_x = torch.distributions.Bernoulli(decoded, validate_args=False).log_prob(x).sum()
    q_z = torch.distributions.Normal(z_loc, z_scale)
    return torch.distributions.kl_divergence(q_z, torch.distributions.Normal(0.0, 1.0)).sum() - p_x


@public(
    "Falcon, Variational autoencoder demystified with PyTorch", "the negative ELBO of the batch, a mean", "scale^2 = 1)"
)
def falcon(x_hat, x, mu, std, z):
    log_p_x = torch.distributions.Normal(x_hat, 1.0).log_prob(x).sum(1)
    log_q, log_p = torch.distributions.Normal(mu, std).log_prob(z), torch.distributions.Normal(0.0, 1.0).log_prob(z)
    return ((log_q - log_p).sum(-1) - log_p_x).mean()


# --- repositories -----------------------------------------------------------------------------------------------------


@public("AntixK/PyTorch-VAE, VanillaVAE", "0.005 times the negative ELBO of the batch, a mean", "scale^2 = 0.0025",
        arguments=["reconstruction", "x", "loc", "spread"], M_N=0.005)  # fmt: skip
def antixk_vanilla(*args, **kwargs):
    recons, inputs, mu, log_var = args
    recons_loss = F.mse_loss(recons, inputs)
    kld_loss = torch.mean(-0.5 * torch.sum(1 + log_var - mu**2 - log_var.exp(), dim=1), dim=0)
    total = recons_loss + kwargs["M_N"] * kld_loss
    return {"loss": total, "Reconstruction_Loss": recons_loss.detach(), "KLD": -kld_loss.detach()}


@public("YannDubs/disentangling-vae, betaH", "the negative beta-ELBO of the batch, a mean", BERNOULLI, "4")
def disentangling_beta_h(data, recon_data, mean, logvar):
    reconstruction = F.binary_cross_entropy(recon_data, data, reduction="sum") / len(data)
    return reconstruction + 4 * (0.5 * (-1 - logvar + mean.pow(2) + logvar.exp())).mean(dim=0).sum()


@public("YannDubs/disentangling-vae, laplace", "the negative ELBO of the batch, a mean",
        "Laplace(recon_data, scale = 1 / 3)")  # fmt: skip
def disentangling_laplace(data, recon_data, mean, logvar):
    return 3 * F.l1_loss(recon_data, data, reduction="sum") / len(data) + kl(mean, logvar).mean(0).sum()


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
    log_p_z = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(-1, keepdim=True)
    log_p_x = torch.distributions.Bernoulli(logits=logits, validate_args=False).log_prob(x).sum(-1, keepdim=True)
    log_q_z = torch.distributions.Normal(loc, scale).log_prob(z).sum(-1, keepdim=True)
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


@public("ethanluoyc/pytorch-vae", "1 / L times the negative ELBO of the batch, a mean", "scale^2 = 0.5 D / L)")
def ethanluoyc(x, dec, z_mean, z_stddev):
    latent = 0.5 * torch.mean(z_mean * z_mean + z_stddev * z_stddev - torch.log(z_stddev * z_stddev) - 1)
    return F.mse_loss(dec, x) + latent


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


@public("clementchadebec/benchmark_VAE (pythae), mse", "the negative ELBO of the batch, a mean", "scale^2 = 1)")
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


@public("means of both parts, in many", "a mean", BERNOULLI, "D / L")
def mean_of_both(recon, img, mu, logvar):
    return F.binary_cross_entropy(recon, img) - 0.5 * torch.mean(1 + logvar - mu.pow(2) - logvar.exp())


@public("Geron, Hands-On Machine Learning", "a mean", BERNOULLI, "D / 784")
def geron(inputs, outputs, codings_mean, codings_log_var):
    latent = -0.5 * torch.sum(1 + codings_log_var - torch.exp(codings_log_var) - codings_mean**2, -1)
    return F.binary_cross_entropy(outputs, inputs) + latent.mean() / 784.0


@public("Foster, Generative Deep Learning, 1st edition", "the negative ELBO of the batch, a mean", "scale^2 = 0.0005 D")
def foster_mse(y_true, y_pred, mu, log_var):
    r_loss = 1000 * ((y_true - y_pred) ** 2).mean([1, 2, 3])
    return (r_loss - 0.5 * torch.sum(1 + log_var - mu**2 - torch.exp(log_var), 1)).mean()


@public("Foster, Generative Deep Learning, 2nd edition", "500 / D times the negative beta-ELBO", BERNOULLI, "0.002 D")
def foster_bce(data, reconstruction, z_mean, z_log_var):
    reconstruction_loss = torch.mean(500 * F.binary_cross_entropy(reconstruction, data, reduction="none").mean(1))
    return reconstruction_loss + torch.mean(torch.sum(kl(z_mean, z_log_var), 1))


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


@public("torch.nn.PoissonNLLLoss of rates, for counts", "a mean", "Poisson(rate = rate",
        arguments={"x": "x", "rate": "reconstruction", "qz_m": "loc", "qz_v": "spread"})  # fmt: skip
def poisson_counts(x, rate, qz_m, qz_v):
    q = torch.distributions.Normal(qz_m, torch.sqrt(qz_v))
    nll = F.poisson_nll_loss(rate, x, log_input=False, reduction="none")
    return (nll.sum(-1) + torch.distributions.kl_divergence(q, torch.distributions.Normal(0.0, 1.0)).sum(1)).mean()


@public("torch.nn.PoissonNLLLoss of log rates, for counts", "a mean", "Poisson(rate = exp(")
def poisson_log_rates(x, decoded, mu, logvar):
    return F.poisson_nll_loss(decoded, x, reduction="sum") / len(x) + kl(mu, logvar).sum() / len(x)


@public("Bowman et al., arXiv:1511.06349, a KL weight of 0.1", "beta-ELBO of the batch, a mean", "Categorical(logits",
        "0.1", arguments={"logp": "reconstruction", "target": "x", "mean": "loc", "logv": "spread"})  # fmt: skip
def text_vae(logp, target, mean, logv):
    nll = F.cross_entropy(logp.flatten(0, 1), target.flatten(), reduction="sum")
    return (nll + 0.1 * (-0.5 * torch.sum(1 + logv - mean.pow(2) - logv.exp()))) / len(target)


@public("softplus of the encoder's second output, in many", "a sum", "scale^2 = 1)")
def softplus_scales(x, x_hat, loc, rho):
    q = torch.distributions.Normal(loc, F.softplus(rho))
    p = torch.distributions.Normal(0.0, 1.0)
    return -torch.distributions.Normal(x_hat, 1.0).log_prob(x).sum() + torch.distributions.kl_divergence(q, p).sum()


@public("1e-8 in the logarithms, in many", "a mean", "1e-08 added in the logarithms")
def with_epsilon(x, x_hat, mu, logvar):
    cross_entropy = -(x * torch.log(x_hat + 1e-8) + (1 - x) * torch.log(1 - x_hat + 1e-8)).sum(1)
    return (cross_entropy + kl(mu, logvar).sum(1)).mean()


@public("variance as the encoder's second output, in many", "a mean", LOGITS)
def variance_output(x, logits, mu, var):
    divergence = 0.5 * (var + mu**2 - 1 - var.log()).sum(1)
    return (F.binary_cross_entropy_with_logits(logits, x, reduction="none").sum(1) + divergence).mean()


@public("mean over channels and sum over pixels, in many", "the negative ELBO of the batch, a mean", "scale^2 = 0.5 C)")
def channels_mean(x, recon, mu, logvar):
    return ((recon - x) ** 2).mean(1).sum((1, 2)).mean() + kl(mu, logvar).sum(1).mean()


# --- no ELBO ----------------------------------------------------------------------------------------------------------


def bce(y, x):
    return F.binary_cross_entropy(y, x, reduction="sum")


@no_elbo("wrong sign")
def wrong_sign(recon, x, mu, logvar):
    return bce(recon, x) + 0.5 * torch.sum(1 + logvar - mu**2 - logvar.exp())


@no_elbo("perhaps without the factor 1/2")
def half_of_one(recon, x, mu, logvar):
    return bce(recon, x) + (mu**2).sum() + 0.5 * torch.sum(logvar.exp() - 1 - logvar)


@no_elbo("a sign is wrong")
def one_sign(recon, x, mu, logvar):
    return bce(recon, x) - 0.5 * torch.sum(1 + logvar + mu**2 - logvar.exp())


@no_elbo("a log variance in one term, and a log scale in another")
def mixed_scale(recon, x, mu, logvar):
    return bce(recon, x) - 0.5 * torch.sum(1 + logvar - mu**2 - logvar.exp() ** 2)


@no_elbo("a log variance in one term, and a log scale in another")
def mixed_variance(recon, x, mu, log_sigma):
    return bce(recon, x) - 0.5 * torch.sum(1 + 2 * log_sigma - mu**2 - log_sigma.exp())


@no_elbo("- 1 in the sum")
def no_minus_one(recon, x, mu, logvar):
    return bce(recon, x) + 0.5 * torch.sum(mu**2 + logvar.exp() - logvar)


@no_elbo("-2 log scale is missing")
def no_logarithm(recon, x, mu, logvar):
    return bce(recon, x) + 0.5 * torch.sum(mu**2 + logvar.exp() - 1)


@no_elbo("scale^2 is missing")
def no_variance(recon, x, mu, logvar):
    return bce(recon, x) + 0.5 * torch.sum(mu**2 - logvar)


@no_elbo("depends on the batch size")
def mean_of_rate(recon, x, mu, logvar):
    return bce(recon, x) + kl(mu, logvar).sum(1).mean()


@no_elbo("depends on the batch size")
def mean_of_distortion(recon, x, mu, logvar):
    return F.mse_loss(recon, x) + kl(mu, logvar).sum()


@no_elbo("tanh")
def tanh_as_logits(recon, x, mu, logvar):
    return F.binary_cross_entropy_with_logits(torch.tanh(recon), x, reduction="sum") + kl(mu, logvar).sum()


@no_elbo("scaled or shifted")
def pixels_of_both_signs(logits, x, mu, logvar):
    return F.binary_cross_entropy_with_logits(logits, 2 * x - 1, reduction="sum") + kl(mu, logvar).sum()


@no_elbo("norm without its square")
def norm_of_images(recon, x, mu, logvar):
    return torch.norm(recon - x, dim=1).mean() + kl(mu, logvar).sum(1).mean()


@no_elbo("norm without its square")
def norm_of_batch(recon, x, mu, logvar):
    return torch.dist(recon, x) + kl(mu, logvar).sum()


@no_elbo("means over the batch")
def means_over_the_batch(recon, x, mu, logvar):
    return ((recon.mean(0) - x.mean(0)) ** 2).sum() + kl(mu, logvar).sum(1).mean()


@no_elbo("no sum of a function")
def product(recon, x, mu, logvar):
    return bce(recon, x) * kl(mu, logvar).sum()


@no_elbo("not deterministic")
def draws_inside(recon, x, mu, logvar):
    return bce(recon, x) + (torch.rand(()) * kl(mu, logvar)).sum()


@no_elbo("not differentiable")
def returns_a_number(recon, x, mu, logvar):
    return (bce(recon, x) + kl(mu, logvar).sum()).item()


@no_elbo("not differentiable")
def detached(recon, x, mu, logvar):
    return (bce(recon, x) + kl(mu, logvar).sum()).detach()


@no_elbo("not depend on logvar")
def ignores_logvar(recon, x, mu, logvar):
    return bce(recon, x) + 0.5 * (mu**2).sum()


@no_elbo("ordinary point")
def not_a_number(recon, x, mu, logvar):
    return bce(recon, x) + (kl(mu, logvar) - 100).sqrt().sum()


@no_elbo("without a rate")
def autoencoder(recon, x):
    return F.mse_loss(recon, x)


@no_elbo("the rate alone")
def rate_alone(mu, logvar):
    return kl(mu, logvar).sum(1).mean()


@no_elbo("capacity")
def capacity(data, recon_data, mean, logvar):
    reconstruction = bce(recon_data, data) / len(data)
    return reconstruction + 1000 * torch.abs(kl(mean, logvar).mean(0).sum() - 25)


@no_elbo("free bits")
def world_models(x, y, mu, logvar):
    reconstruction = ((x - y) ** 2).sum(1).mean()
    return reconstruction + torch.clamp(kl(mu, logvar).sum(1), min=0.5 * mu.shape[1]).mean()


@no_elbo("free bits")
def free_bits_by_latent(x, y, mu, logvar):
    return ((x - y) ** 2).sum(1).mean() + kl(mu, logvar).mean(0).clamp(min=0.1).sum()


@no_elbo("different weights")
def weighted_cross_entropy(logits, x, mu, logvar):
    weight = torch.tensor(3.0, dtype=torch.float64)
    return F.binary_cross_entropy_with_logits(logits, x, pos_weight=weight, reduction="sum") + kl(mu, logvar).sum()


@no_elbo("is no likelihood (Bernoulli")
def cosine(recon, x, mu, logvar):
    return -F.cosine_similarity(recon, x).sum() + kl(mu, logvar).sum()


@no_elbo("likelihood has the wrong sign")
def maximised_error(recon, x, mu, logvar):
    return -F.mse_loss(recon, x, reduction="sum") + kl(mu, logvar).sum()


@no_elbo("is no rate")
def absolute_means(recon, x, mu, logvar):
    return bce(recon, x) + (mu.abs() + 0.5 * (logvar.exp() - 1 - logvar)).sum()
