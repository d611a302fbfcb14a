"""`LatentsUsed`: the rate of each latent, how many are used, and whether none is: posterior collapse."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.distributions import Independent, Normal, kl_divergence

from pvae.core.batch import Batch
from pvae.core.errors import listed
from pvae.core.random_state import seeded
from pvae.distributions.discrete import BitVector, OneHotVector, rate_of_each
from pvae.distributions.normal_mixture import NormalMixture
from pvae.evaluation.measures.baselines import Baselines
from pvae.evaluation.measures.measure import Measure
from pvae.marginal.chunks import CHUNK_VALUES, data_at_once
from pvae.runs.run import Run
from pvae.vae import VAE

if TYPE_CHECKING:
    from pvae.evaluation.context import Context

__all__ = ["COLLAPSED", "LatentsUsed", "collapse_text", "latents_used", "said_of_collapse"]

COLLAPSED = 0.01  # nats per datum, below which a rate is that of a latent, or of a VAE, that says nothing about x
_NAMED = 8  # latents whose rate is printed
_DRAWS = 10  # of z for each datum, where a rate has no closed form


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

    num_latents: int = field(metadata={"latents": ""})
    used: int | None = field(metadata={"  used": "those whose own rate is above 0.01 nats"})
    rate: float
    rates: tuple[float, ...] = field(metadata={"  rate of each alone": "whose sum is more, if p(z) is a mixture"})
    is_collapsed: bool = field(metadata={"  posterior collapse": "the rate is below 0.01 nats: p(x | z) ignores z"})
    collapse: str = ""

    @classmethod
    def of(cls, context: Context) -> LatentsUsed:
        """Return those of the test data."""
        found = latents_used(context.vae, context.seen, context.terms["rate"].mean().item())
        said = said_of_collapse(context.run, context.measure(Baselines)) if found.is_collapsed else ""
        return replace(found, collapse=said)

    def warnings(self) -> Iterator[str]:
        """Yield what a collapse is."""
        if self.collapse:
            yield f"warning: {self.collapse}"

    @property
    def summary(self) -> str:
        """How many are used, and the largest rates, in one line."""
        if self.used is None:
            return f"latents: {self.num_latents}"
        rates = ", ".join(f"{one:.2f}" for one in sorted(self.rates, reverse=True)[:_NAMED])
        more = ", ..." * (self.num_latents > _NAMED)
        return f"latents used: {self.used} of {self.num_latents}, alone {rates}{more} nats, together {self.rate:.2f}"


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
    with seeded(0, next((one.device for one in vae.parameters()), None)):
        sums = [_rates(vae.given(part.y), part.x) for part in batch.split(data_at_once(vae, batch, _DRAWS))]
    known = [one for one in sums if one is not None]
    rates = (torch.stack(known).sum(0) / len(batch)).tolist() if known else []
    return LatentsUsed(
        num_latents=len(rates) or math.prod(vae.given(next(batch.split(1)).y).prior().event_shape),
        used=sum(one > COLLAPSED for one in rates) if rates else None,
        rate=total_rate,
        rates=tuple(max(0.0, one) for one in rates),  # draws may give less than 0
        is_collapsed=vae.has_density and total_rate < COLLAPSED,
    )


def _rates(vae: VAE, x: Tensor) -> Tensor | None:
    """Return the sum over data of the rate of each latent, float64 (L,), or None if it is not computed."""
    posterior: Any = vae.posterior(x)
    prior: Any = vae.prior()
    if isinstance(posterior, BitVector | OneHotVector):
        return rate_of_each(posterior, prior).double().sum(0)
    q: Any = posterior.base_dist if isinstance(posterior, Independent) else None
    if not isinstance(q, Normal):
        return None
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
    if cost is not None and cost < COLLAPSED:
        return f"{said}; {baseline} is no better, so these data may need no latent"
    costs = "" if cost is None else f", which costs {cost:.2f} nats per datum beside {baseline}"
    flags = ["a smaller --beta"] * (beta > 1) + ["a smaller --scale"] * has_fixed_scale
    flags = flags or ["a smaller --lr", "--warm-up 10", "a larger decoder (--hidden)"]
    return f"{said}{costs}; try {listed(flags)}"


def said_of_collapse(run: Run, baselines: Baselines | None = None) -> str:
    """Return what posterior collapse is, what it costs beside a simple model, and what to try."""
    cost: dict[str, Any] = {}
    if baselines is not None:
        name, _, gain = min(baselines.models, key=lambda one: one[2].mean)
        cost = {"cost": -gain.mean, "baseline": name}
    has_fixed_scale = run.config.likelihood_class.has_fixed_scale and not run.has_own_vae
    return collapse_text(beta=run.config.beta, has_fixed_scale=has_fixed_scale, **cost)
