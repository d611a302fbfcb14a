"""The ELBO written by hand, three ways, from the three distributions alone.

    L(x) = E_{z ~ q(z | x)} [ log p(x | z) + log p(z) - log q(z | x) ]  <=  log p(x)

Nothing here uses Pyro's inference, so these functions check the ELBOs independently. All values are nats per datum.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import Bernoulli, MultivariateNormal, Normal, kl_divergence
from torch.nn.functional import logsigmoid

from pvae.core.batch import Terms
from pvae.vae import VAE


def loss(terms: Terms, beta: float = 1.0, free_bits: float = 0.0, rates: Tensor | None = None) -> Tensor:
    """Return the scalar that training minimises.

        mean_b distortion_b  +  beta mean_b rate_b
        mean_b distortion_b  +  beta sum_l max( free_bits, mean_b rate_bl )      with free bits

    With free bits the first nats of each latent dimension cost nothing, which keeps the dimension from collapsing
    early in training. Neither beta nor free bits change the reported ELBO.

    Args:
        terms: distortion and rate.
        beta: weight of the rate.
        free_bits: nats per dimension.
        rates: with free bits, the rate of each dimension, (B, L), as `rate_by_dimension` returns it.

    Reference:
        Kingma et al., arXiv:1606.04934, who introduce free bits under this name.
    """
    if rates is None:
        return (terms.distortion + beta * terms.rate).mean()
    return terms.distortion.mean() + beta * rates.mean(0).clamp(min=free_bits).sum()


def rate_by_dimension(posterior: Any, prior: Any, z: Tensor | None = None) -> Tensor:
    """Return the rate of each latent dimension, (B, L) nats; the rates sum to the rate of the datum.

        mean_k [ log q(z_kl | x) - log p(z_kl) ],    or without draws    KL(q(z_l | x) || p(z_l))

    Args:
        posterior: q(z | x), independent over dimensions, or a `Joint` of sites that are, given another layer.
        prior: p(z), as q.
        z: draws (K, B, L), or None for the closed form, which a `Joint` does not have.
    """
    if z is None:
        return kl_of_each(posterior.base_dist, prior.base_dist)
    rates = []
    for (layer, q), (_, p) in zip(sites(posterior, z), sites(prior, z)):
        log_ratio = q.base_dist.log_prob(layer) - p.base_dist.log_prob(layer)
        rates.append(log_ratio.mean(0))
    return torch.cat(rates, dim=-1)


def sites(distribution: Any, value: Tensor) -> list[tuple[Tensor, Any]]:
    """Return each site's value in a vector (..., L1 + ... + LL), and its distribution given the site drawn before it.

    A distribution that is no `Joint` is one site.
    """
    if not hasattr(distribution, "rest"):
        return [(value, distribution)]
    values = [*value.split(distribution.sizes, dim=-1)]
    if distribution.top_down:
        values.reverse()
    pairs = [(values[0], distribution.first)]
    for conditional, before, own in zip(distribution.rest, values, values[1:]):
        pairs.append((own, conditional(before)))
    if distribution.top_down:
        pairs.reverse()
    return pairs


def kl_of_each(q: Any, p: Any) -> Tensor:
    """Return KL(q || p) of Normals or bits, of their shape, in nats.

        Normals    log(scale_p / scale_q) + (scale_q^2 + (loc_q - loc_p)^2) / (2 scale_p^2) - 1/2
        bits       m log(m / r) + (1 - m) log((1 - m) / (1 - r)),    m = sigmoid(a),  r = sigmoid(b)

    Raises:
        NotImplementedError: they are others, and torch.distributions has no closed form.
    """
    if isinstance(q, Normal) and isinstance(p, Normal):
        spread = q.scale.square() + (q.loc - p.loc).square()
        return (p.scale / q.scale).log() + spread / (2 * p.scale.square()) - 0.5
    if isinstance(q, Bernoulli) and isinstance(p, Bernoulli):
        of_one = q.probs * (logsigmoid(q.logits) - logsigmoid(p.logits))
        return of_one + (1 - q.probs) * (logsigmoid(-q.logits) - logsigmoid(-p.logits))
    return kl_divergence(q, p)


def kl(q: Any, p: Any) -> Tensor:
    """Return KL(q || p), (B,) nats, of independent Normals or bits, of categories, or from a Normal with covariances.

        categories    sum_k m_k (log m_k - log r_k)

    Raises:
        NotImplementedError: they are others, and torch.distributions has no closed form.
    """
    is_independent = hasattr(p, "base_dist")
    if is_independent and hasattr(q, "base_dist"):
        return kl_of_each(q.base_dist, p.base_dist).sum(-1)
    if is_independent and isinstance(q, MultivariateNormal):
        dense = MultivariateNormal(p.mean, scale_tril=torch.diag_embed(p.stddev))
        return kl_divergence(MultivariateNormal(q.loc, scale_tril=q.scale_tril), dense)
    if hasattr(q, "num_classes"):
        return (q.probs * (q.logits - p.logits)).sum(-1)
    return kl_divergence(q, p.expand(q.batch_shape))


class Parts(NamedTuple):
    """The three parts of post 004's loss, each of shape (B,), in nats per datum."""

    reconstruction_error: Tensor
    posterior_entropy: Tensor
    cross_entropy: Tensor

    @property
    def elbo(self) -> Tensor:
        """The lower bound on log p(x), (B,): -reconstruction_error + posterior_entropy - cross_entropy."""
        return -self.reconstruction_error + self.posterior_entropy - self.cross_entropy


def monte_carlo(vae: VAE, x: Tensor, num_particles: int = 1) -> Terms:
    """Return the Monte Carlo form, where every expectation is a mean over z_1..z_K ~ q(z | x).

        (1/K) sum_k [ log p(x | z_k) + log p(z_k) - log q(z_k | x) ]

    Unbiased; it needs no closed form. At q(z | x) = p(z | x) its variance is zero.

    Args:
        vae: the three distributions.
        x: images (B, C, H, W).
        num_particles: K, the number of draws of z for each datum.

    Returns:
        distortion = -mean_k log p(x | z_k) and rate = mean_k [log q(z_k | x) - log p(z_k)].

    Reference:
        Kingma and Welling, arXiv:1312.6114, equation 6; post 004's `loss_fun`.
    """
    posterior = vae.posterior(x)
    z = posterior.rsample((num_particles,))
    log_p_x = vae.log_likelihood(x, z)
    log_p_z = vae.prior().log_prob(z)
    log_q_z = posterior.log_prob(z)
    return Terms(distortion=-log_p_x.mean(0), rate=(log_q_z - log_p_z).mean(0))


def enumerated(vae: VAE, x: Tensor, num_particles: int = 1) -> Terms:
    """Return the form of a VAE with a label y as a latent, where the expectation over y is a sum.

        sum_y q(y | x) [ (1/K) sum_k log p(x, z_yk | y) - log q(z_yk | x, y) + log p(y) - log q(y | x) ]

    Args:
        vae: whose prior and posterior are a `Joint` of a label and a latent; given labels, q(y | x) is a point mass
            where a label is known.
        x: data (B, *D).
        num_particles: K draws z_yk ~ q(z | x, y) for each class.

    Returns:
        Distortion and rate, (B,) each.

    Reference:
        Kingma et al., arXiv:1406.5298 (the model M2).
    """
    posterior: Any = vae.posterior(x)
    prior: Any = vae.prior()
    if not getattr(prior, "is_enumerable", False):
        raise TypeError("prior and posterior must be those of a label and a latent")
    num_classes = posterior.sizes[0]
    classes = torch.eye(num_classes, dtype=x.dtype, device=x.device)
    y = classes[:, None, None].expand(num_classes, num_particles, len(x), num_classes)
    q_z = posterior.rest[0](y)
    z = q_z.rsample()
    log_q_y = posterior.first.logits.log_softmax(-1).T  # (classes, B)
    log_p_y = prior.first.logits.log_softmax(-1)[:, None]
    log_p_x = vae.log_likelihood(x, torch.cat([y, z], dim=-1)).mean(1)
    rate = (q_z.log_prob(z) - prior.rest[0](y).log_prob(z)).mean(1) + log_q_y - log_p_y
    return Terms(distortion=-(log_q_y.exp() * log_p_x).sum(0), rate=(log_q_y.exp() * rate).sum(0))


def closed_form(vae: VAE, x: Tensor, num_particles: int = 1) -> Terms:
    """Return the form with the Kullback-Leibler divergence in closed form.

        (1/K) sum_k log p(x | z_k) - KL(q(z | x) || p(z))

    Unbiased. Its variance is usually, but not always, lower than that of `monte_carlo`: near the true posterior the
    noise of log p(z) - log q(z | x) cancels that of log p(x | z).

    Args:
        vae: the three distributions.
        x: images (B, C, H, W).
        num_particles: K, the number of draws of z for each datum.

    Returns:
        distortion as in `monte_carlo`, and rate = KL(q, p), exact.

    Raises:
        NotImplementedError: the pair (q, p) has no closed form here or in torch.distributions.

    Reference:
        Kingma and Welling, arXiv:1312.6114, equation 7 and appendix B.
    """
    posterior = vae.posterior(x)
    z = posterior.rsample((num_particles,))
    return Terms(distortion=-vae.log_likelihood(x, z).mean(0), rate=kl(posterior, vae.prior()))


def three_parts(vae: VAE, x: Tensor, num_particles: int = 1) -> Parts:
    """Return post 004's three parts: the loss is reconstruction error - entropy + cross entropy.

        - E_q log p(x | z)  -  H(q(z | x))  +  H(q(z | x), p(z))

    The entropy is exact; the other two are means over z_1..z_K ~ q(z | x).

    Args:
        vae: the three distributions.
        x: images (B, C, H, W).
        num_particles: K, the number of draws of z for each datum.

    Returns:
        The three parts; their `elbo` estimates the same bound as the two other forms.

    Raises:
        NotImplementedError: q has no closed-form entropy in torch.distributions.
    """
    posterior = vae.posterior(x)
    z = posterior.rsample((num_particles,))
    return Parts(
        reconstruction_error=-vae.log_likelihood(x, z).mean(0),
        posterior_entropy=posterior.entropy(),
        cross_entropy=-vae.prior().log_prob(z).mean(0),
    )
