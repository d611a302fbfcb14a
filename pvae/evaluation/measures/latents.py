"""How latents and codes of a codebook are used, and whether none is; `forecast`, before a training."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Independent, Normal, kl_divergence

from pvae.core.batch import Batch
from pvae.core.errors import InputError, listed
from pvae.core.random_state import seeded
from pvae.data.preparation import Pixels
from pvae.distributions.discrete import BitVector, CodeVector, OneHotVector, rate_of_each
from pvae.distributions.normals import NormalMixture
from pvae.evaluation.context import Context, Measure, said
from pvae.evaluation.measures.baselines import Baselines
from pvae.marginal.chunks import CHUNK_VALUES, data_at_once
from pvae.runs.run import Run
from pvae.trained.codes import run_batch
from pvae.trained.latent_space import posteriors
from pvae.trained.scores import Estimate, bits_of
from pvae.vae import VAE

COLLAPSED = 0.01  # nats per datum, below which a rate is that of a latent, or of a VAE, that says nothing about x
_NAMED = 8  # latents whose rate is printed
_UNUSED = 0.5  # share of the codes that no training datum has, above which a codebook is said to have collapsed
_DRAWS = 10  # of z for each datum, where a rate has no closed form
_WIDEST = 1000  # values of a datum, beyond which only some data
_MOST_OF_WIDE = 2000  # are taken for a forecast
_AT_ONCE = 1000  # data that are converted to float64 at a time


@dataclass(frozen=True, kw_only=True)
class LatentsUsed(Measure):
    """How many latents say something about x.

    Args:
        num_latents: L, the number of latent dimensions, or of variables of several categories.
        used: the number of latents whose own rate is above 0.01 nats per datum; None where these are not known.
        rate: of all latents together, in nats per datum.
        rates: the rate of each latent alone, in nats per datum; () where these are not known. Where p(z) is a mixture,
            whose latents depend on each other, their sum may be more than `rate`.
        is_collapsed: whether the total rate is below 0.01 nats per datum.
        collapse: what that means, costs and asks for; "" where it is not.
    """

    num_latents: int = said("latents")
    used: int | None = said("  used", "those whose own rate is above 0.01 nats")
    rate: float
    rates: tuple[float, ...] = said("  rate of each alone", "whose sum is more, if p(z) is a mixture")
    is_collapsed: bool = said("  posterior collapse", "the rate is below 0.01 nats: p(x | z) ignores z")
    collapse: str = ""

    @classmethod
    def of(cls, context: Context) -> LatentsUsed:
        """Return those of the test data."""
        used = latents_used(context.vae, context.seen, context.terms["rate"].mean().item())
        if used.is_collapsed:
            used = replace(used, collapse=said_of_collapse(context.run, context.once(Baselines.of)))
        return used

    def warnings(self) -> Iterator[str]:
        """Yield what a collapse is."""
        if self.collapse:
            yield f"warning: {self.collapse}"

    @property
    def summary(self) -> str:
        """How many are used, and the largest rates, in one line."""
        if self.used is None:
            return f"latents: {self.num_latents}"
        rates = [f"{rate:.2f}" for rate in sorted(self.rates, reverse=True)]
        if len(rates) > _NAMED:
            rates[_NAMED:] = ["..."]
        alone = ", ".join(rates)
        return f"latents used: {self.used} of {self.num_latents}, alone {alone} nats, together {self.rate:.2f}"


@torch.no_grad()
def latents_used(vae: VAE, batch: Batch, total_rate: float) -> LatentsUsed:
    """Return the mean rate of each latent over data, and which are above `COLLAPSED`.

        rate_l = E_x KL(q(z_l | x) || p(z_l))

    For Normals, bits or categories, p and q of independent dimensions, it is exact, and the rates sum to the total
    rate; of categories, a latent is one of the N variables. For a p(z) that is a mixture of Normals it is a mean over
    ten draws of z for each datum, with the exact marginal
    p(z_l) = sum_k weight_k Normal(z_l; loc_kl, scale_kl^2); the sum of these rates may differ from the total rate,
    because the latents of a mixture are dependent. q(z | x) that is the same for all x has a rate above 0 too where
    p(z) is another distribution: a rate of 0 means that a latent says nothing about x, not the reverse.

    Args:
        vae: in eval mode.
        batch: N data with their labels, if there are some.
        total_rate: the rate of the same data in nats per datum, of `elbo_terms` for example.

    Returns:
        Without the rates of the latents for all other pairs of p and q, such as flows, hierarchies and spheres.
        `is_collapsed` is false for an autoencoder, which has no rate. torch's random state is kept.
    """
    with seeded(0, next((parameter.device for parameter in vae.parameters()), None)):
        sums = [_rates(vae.given(part.y), part.x) for part in batch.split(data_at_once(vae, batch, _DRAWS))]
    known = [total for total in sums if total is not None]
    rates = list[float]()
    used = None
    count = math.prod(vae.given(next(batch.split(1)).y).prior().event_shape)
    if known:
        rates = (torch.stack(known).sum(0) / len(batch)).tolist()
        used = sum(rate > COLLAPSED for rate in rates)
        count = len(rates)
    return LatentsUsed(
        num_latents=count,
        used=used,
        rate=total_rate,
        rates=tuple(max(0.0, rate) for rate in rates),  # draws may give less than 0
        is_collapsed=vae.has_density and total_rate < COLLAPSED,
    )


def _rates(vae: VAE, x: Tensor) -> Tensor | None:
    """Return the sum over data of the rate of each latent, float64 (L,), or None if it is not computed."""
    posterior: Any = vae.posterior(x)
    prior: Any = vae.prior()
    if isinstance(posterior, BitVector | OneHotVector):
        return rate_of_each(posterior, prior).double().sum(0)
    if not (isinstance(posterior, Independent) and isinstance(posterior.base_dist, Normal)):
        return None
    q = posterior.base_dist
    if isinstance(prior, Independent) and isinstance(prior.base_dist, Normal):
        return kl_divergence(q, prior.base_dist).double().sum(0)
    if not isinstance(prior, NormalMixture) or prior.batch_shape:
        return None
    p: Any = prior.component_distribution.base_dist  # (K, L)
    log_weights = prior.mixture_distribution.logits[:, None]
    z = q.sample((_DRAWS,))
    parts = z.split(max(1, CHUNK_VALUES // (_DRAWS * p.loc.numel())), 1)
    log_p = torch.cat([(p.log_prob(part.unsqueeze(-2)) + log_weights).logsumexp(-2) for part in parts], 1)
    return (q.log_prob(z) - log_p).mean(0).double().sum(0)


def collapse_text(
    cost: float | None = None, baseline: str = "the linear model", beta: float = 1.0, has_fixed_scale: bool = False
) -> str:
    """Return plain sentences for a VAE that `LatentsUsed.is_collapsed`: what it means, costs, and what to try.

    Args:
        cost: the log-likelihood of a simpler model less the ELBO, in nats per datum of the same data; None if unknown.
        baseline: the name of that model.
        beta: the weight of the rate.
        has_fixed_scale: p(x | z) has a scale that is an option, and not trained.
    """
    said = "no latent is used: p(x | z) ignores z"
    if cost is not None:
        if cost < COLLAPSED:
            return f"{said}; {baseline} is no better, so these data may need no latent"
        said += f", which costs {cost:.2f} nats per datum beside {baseline}"
    flags = []
    if beta > 1:
        flags.append("a smaller --beta")
    if has_fixed_scale:
        flags.append("a smaller --scale")
    return f"{said}; try {listed(flags or ['a smaller --lr', '--warm-up 10', 'a larger decoder (--hidden)'])}"


def said_of_collapse(run: Run, baselines: Baselines | None = None) -> str:
    """Return what posterior collapse is, what it costs beside a simple model, and what to try."""
    cost: dict[str, Any] = {}
    if baselines is not None:
        name, _, gain = min(baselines.models, key=lambda model: model[2].mean)
        cost = {"cost": -gain.mean, "baseline": name}
    has_fixed_scale = run.config.likelihood_class.has_fixed_scale and not run.has_own_vae
    return collapse_text(beta=run.config.beta, has_fixed_scale=has_fixed_scale, **cost)


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What a linear VAE learns of the data; `print` shows it as one sentence.

    Args:
        scale: s, the fixed scale of p(x | z).
        beta: the weight of the rate.
        latent_dim: L, the number of latent dimensions.
        largest_std: the square root of the largest eigenvalue of the covariance of x: the largest standard deviation of
            x along any direction.
        used: the number of latents that are used, at most L.
        rate: KL(q(z | x) || p(z)) in nats per datum, the sum over these latents.
    """

    scale: float
    beta: float
    latent_dim: int
    largest_std: float
    used: int
    rate: float

    def __str__(self) -> str:
        """Return one sentence; where no latent is used, it says which option to change."""
        if self.used:
            return f"a linear VAE uses {self.used} of {self.latent_dim} latents, with a rate of {self.rate:.3g} nats"
        given = "the scale of p(x | z)"
        factor = math.sqrt(self.beta)
        limit = self.largest_std / factor
        advice = f"; give a --scale below {limit:.3g}"
        if factor != 1:
            given = f"sqrt(beta) times {given}"
            advice += f", or a --beta below {(self.largest_std / self.scale) ** 2:.3g}"
        if limit <= 1e-6 * self.scale:
            advice = ""
        return (
            f"{given} is {factor * self.scale:.3g}, and the largest standard deviation of the data along any direction "
            f"is {self.largest_std:.3g}: no latent will be used{advice}"
        )


@torch.no_grad()
def forecast(x: Tensor | Pixels, scale: float, latent_dim: int, beta: float = 1.0) -> Forecast:
    """Forecast which latents are used, for a Normal likelihood of fixed scale s and a weight beta of the rate.

        latent i is used  <=>  l_i > beta s^2,        its rate = 1/2 log(l_i / (beta s^2))

    l_1 >= l_2 >= ... are the eigenvalues of the covariance of x. This is exact for the optimum of a linear VAE. For
    networks it is an estimate. Whether all latents collapse was right for 35 of 35 MLPs, on five data sets at scales
    from 0.1 to 19.8, and for 35 of 35 at 0.5 to 2 times the largest standard deviation of the data. It may be wrong
    just above that: of 20 tight clusters, an MLP learned to use a latent at 1.05 times. The rate is too low where a
    network learns more than a linear VAE, as at small scales.

    Up to a constant, the beta-ELBO of scale s is beta times the ELBO of scale sqrt(beta) s, so its optimum is that of
    probabilistic principal components with the noise beta s^2. With W = U (diag(l) - beta s^2 I)^(1/2), q(z | x) is
    Normal of independent dimensions, of variance beta s^2 / l_i and of a mean whose variance over x is
    1 - beta s^2 / l_i. The two sum to 1, so the logarithm alone is left of the rate.

    Args:
        x: the training data, (N, *D). Of data of more than 1,000 values, at most 2,000 evenly spaced ones are taken:
            the eigenvalues are then those of their Gram matrix.
        scale: s, in the unit of x.
        latent_dim: L, the number of latent dimensions.
        beta: the weight of the rate.

    Returns:
        The rate is in nats per datum. The covariance is divided by N, as the ELBO of N data is.

    Raises:
        InputError: there are no data, or a value is missing or infinite.

    Reference:
        Lucas et al., arXiv:1911.02469, theorem 1 and the analysis of the stationary points before it (beta = 1).
    """
    eigenvalues = _eigenvalues(x)[:latent_dim]
    ratios = eigenvalues / (beta * scale**2)
    used = ratios[ratios > 1]
    return Forecast(
        scale=scale,
        beta=beta,
        latent_dim=latent_dim,
        largest_std=math.sqrt(eigenvalues[0].item()),
        used=len(used),
        rate=used.log().sum().item() / 2,
    )


def _eigenvalues(x: Tensor | Pixels) -> Tensor:
    """Return the eigenvalues of the covariance in falling order, float64, at most as many as x has values."""
    (first,) = x[:1].split(1)
    if first.numel() > _WIDEST:
        x = x[:: math.ceil(len(x) / _MOST_OF_WIDE) or 1]
    values = torch.cat([part.flatten(1).double() for part in x.split(_AT_ONCE)])
    values -= values.mean(0)
    if not (len(values) and values.isfinite().all()):
        raise InputError("there are no data to forecast from, or a value of them is missing or infinite")
    if values.shape[1] > len(values):
        values = values.T  # the Gram matrix has the same eigenvalues above 0
    return torch.linalg.eigvalsh(values.T @ values / len(x)).flip(0).clamp(min=0)


@dataclass(frozen=True, kw_only=True)
class CodesUsed(Measure):
    """The codes of a `QuantizedPosterior`, and a prior that is fitted to them, in nats per datum.

        rate = N log K,    cross-entropy = - sum_n log f_n(c_n),    f_n: frequencies of the training data's codes n

    The codes of the test data, written by a coder with f, have a length of the cross-entropy. The frequencies have 1/2
    added to each count, so that a code that was not seen can be written.

    Args:
        num_variables: N, the number of codes of a datum.
        num_codes: K, the size of the codebook.
        uniform_rate: N log K, the rate.
        cross_entropy: of the test data.
        saved: what the fitted prior saves: rate less cross-entropy.
        fitted_bits: bits per dimension of distortion and cross-entropy; None of a pseudo-ELBO.
        perplexity: exp of the entropy of f_n, the number of codes that are used in effect, a mean over n.
        unused: the share of the K codes that no training datum has at any of its N places.
        is_fixed: whether the codebook is one of levels.
    """

    title = "codes"

    num_variables: int = said("codes of a datum")
    num_codes: int = said("  each one of")
    uniform_rate: float = said("  rate", "N log K: all codes are equally probable by the prior")
    cross_entropy: Estimate = said("  cross-entropy", "the rate by a prior fitted to training codes")
    saved: Estimate = said("  saved by it", "nats per datum")
    fitted_bits: Estimate | None = said("  bits per dimension", "by it")
    perplexity: float = said("perplexity", "codes that are used in effect, a mean over n")
    unused: float = said("share of unused codes", "that no training datum has at any place")
    is_fixed: bool = False

    @classmethod
    def of(cls, context: Context) -> CodesUsed | None:
        """Return that of the test data."""
        prior: Any = context.vae.given(next(context.seen.split(1)).y).prior()
        if not isinstance(prior, CodeVector):
            return None
        train = code_indices(context.vae, run_batch(context.run, "train"))
        log_prior, used = log_prior_of(train, len(prior.codebook))
        test = torch.cat([q.indices for q in context.posteriors])
        cross_entropy = -log_prior.gather(1, test.T).sum(0)
        elbo = -context.terms["distortion"] - cross_entropy.to(context.terms["distortion"])
        rate = prior.num_variables * math.log(len(prior.codebook))
        fitted_bits = None
        if not context.vae.is_pseudo:
            fitted_bits = bits_of(context.vae, elbo, context.seen.x)
        return cls(
            num_variables=prior.num_variables,
            num_codes=len(prior.codebook),
            uniform_rate=rate,
            cross_entropy=Estimate.of(cross_entropy),
            saved=Estimate.of(rate - cross_entropy),
            fitted_bits=fitted_bits,
            perplexity=torch.special.entr(log_prior.exp()).sum(1).exp().mean().item(),
            unused=1 - used.any(0).double().mean().item(),
            is_fixed=not prior.codebook.requires_grad,
        )

    def warnings(self) -> Iterator[str]:
        """Yield what a collapse of the codebook is."""
        if self.unused <= _UNUSED:
            return
        advice = "try more --epochs, fewer --categories, another --lr"
        if not self.is_fixed:
            advice += ", or --posterior fsq, whose codes are fixed"
        yield f"warning: {self.unused:.0%} of the codes are never used: the codebook has collapsed; {advice}"


@torch.no_grad()
def code_indices(vae: VAE, batch: Batch) -> Tensor:
    """Return the indices of the codes of data, int64 (B, N)."""
    return torch.cat([q.indices for q in posteriors(vae, batch)])


def log_prior_of(indices: Tensor, num_codes: int) -> tuple[Tensor, Tensor]:
    """Return log f, float64 (N, K), and which codes occur, (N, K), of indices (M, N)."""
    counts = torch.zeros(indices.shape[1], num_codes, dtype=torch.float64)
    counts.scatter_add_(1, indices.T, torch.ones((), dtype=torch.float64).expand(indices.T.shape))
    return ((counts + 0.5) / (counts.sum(1, keepdim=True) + num_codes / 2)).log(), counts > 0
