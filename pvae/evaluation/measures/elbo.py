"""The ELBO and its parts, the latent dimensions that are active, and the parts of the rate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import Independent, Normal

from pvae.core.errors import InputError
from pvae.data.dataset import random_subset
from pvae.distributions.joint import Joint
from pvae.evaluation.context import Context, Measure, said
from pvae.marginal.chunks import CHUNK_VALUES
from pvae.trained.latent_space import mean_of
from pvae.trained.scores import LAYER_RATE, Estimate, bits_of


@dataclass(frozen=True, kw_only=True)
class ElboParts(Measure):
    """The ELBO and its parts, in nats per datum: means over test images, with ten draws of z for each image.

    Args:
        is_pseudo: whether the ELBO is a pseudo-ELBO, because the VAE was trained on grey pixels.
        elbo: the ELBO or pseudo-ELBO.
        bits_per_dimension: of the ELBO, as in `bits_per_dimension`; None also of a pseudo-ELBO.
        distortion: -E_q log p(x | z).
        rate: KL(q(z | x) || p(z)); without a closed form, its mean over the draws of z.
        layer_rates: the rate of each stochastic layer z1, z2, ..., means over the draws of z; empty for one layer.
        posterior_entropy: H(q(z | x)), exact; None if it has no closed form.
        cross_entropy: H(q(z | x), p(z)); distortion, posterior entropy and cross entropy are post 004's three parts.
        posterior_mean_loss: the loss at the mean of q(z | x), which is not a bound; None without a closed-form KL.
        active_units: for each stochastic layer, the number of latent dimensions whose mean varies over images.
        latent_dims: for each stochastic layer, the number of latent dimensions.
        of_possible: of which test rows, if some break a rule of the table.
    """

    is_pseudo: bool
    elbo: Estimate = said("ELBO", "of data as it was trained on")
    bits_per_dimension: Estimate | None = said("  bits per dimension")
    distortion: Estimate = said("  distortion", "-E_q log p(x | z), the reconstruction error")
    rate: Estimate = said("  rate", "KL(q(z | x) || p(z)), in closed form")
    layer_rates: tuple[Estimate, ...] = said("    of each layer")
    posterior_entropy: Estimate | None = said("    posterior entropy", "H(q(z | x))", default=None)
    cross_entropy: Estimate = said("    cross entropy", "H(q(z | x), p(z))")
    posterior_mean_loss: Estimate | None = said("posterior-mean loss", "not a bound", default=None)
    active_units: tuple[int, ...] = said("active units", "means with a variance above 0.01")
    latent_dims: tuple[int, ...] = said("  of latent dimensions")
    of_possible: str | None = said("  of the test rows", "those that break no rule", default=None)

    @classmethod
    def of(cls, context: Context) -> ElboParts:
        """Return the ELBO of the test data as the VAE was trained on them."""
        vae = context.vae
        terms = dict(context.terms)
        layer_rates = tuple(Estimate.of(terms.pop(name)) for name in [*terms] if name.startswith(LAYER_RATE))
        active = active_units(torch.cat([mean_of(part) for part in context.posteriors]))
        first = context.posteriors[0]
        sizes = [len(active)]
        if isinstance(first, Joint):
            sizes = [*first.sizes]
        bits = None
        if not vae.is_pseudo:
            bits = bits_of(vae, terms["elbo"], context.seen.x)
        return cls(
            **{name: Estimate.of(values) for name, values in terms.items()},
            is_pseudo=vae.is_pseudo,
            layer_rates=layer_rates,
            bits_per_dimension=bits,
            active_units=tuple(int(layer.sum()) for layer in active.split(sizes)),
            latent_dims=tuple(sizes),
            of_possible=context.run.data.of_possible or None,
        )

    def words(self) -> dict[str, tuple[str, str]]:
        """Return its words; a pseudo-ELBO, and a rate without a closed form, are named."""
        words = super().words()
        if self.is_pseudo:
            words["elbo"] = ("pseudo-ELBO", "of the grey pixels that it was trained on")
        if self.posterior_mean_loss is None:  # as without a closed form of the rate
            words["rate"] = ("  rate", "KL(q(z | x) || p(z)), from ten draws of z")
        return words


def active_units(means: Tensor, threshold: float = 0.01) -> Tensor:
    """Return which latent dimensions are active, that is, whose mean E_{q(z | x)}[z_l] varies over data.

        Var_x ( E_{q(z | x)} [z_l] )  >  threshold

    It is the variance of the means, because draws of z vary in unused dimensions too, with the variance of the prior.

    Args:
        means: of q(z | x) of N data, (N, L), as `latent_space.encode` returns them.
        threshold: 0.01, as published.

    Returns:
        bool (L,).

    Reference:
        Burda, Grosse and Salakhutdinov, arXiv:1509.00519, on the representation of the latent space.
    """
    return means.var(0) > threshold


@dataclass(frozen=True, kw_only=True)
class RateDecomposition(Measure):
    """The parts of the rate at one draw of z for each of M test images, in nats per datum; see `RateSplit`.

    Args:
        num_images: M: all test images, or a random subset that the report's seed selects.
        rate: log q(z | x) - log p(z), the sum of the three parts at the same draws.
        rate_closed_form: KL(q(z | x) || p(z)) of the same images; without a closed form, its mean over ten draws of z.
        sampling_stderr: the part of the error of `rate` that comes from the draws of z, if there is a closed form.
        mutual_information: between the index of an image and its code, at most `log_images`; in the mean a lower
            bound on I(x; z) over the whole distribution of images.
        mutual_information_upper: the smaller of two estimates, each in the mean an upper bound on I(x; z): the one
            with q(z) over the other images, and the rate. The difference from `mutual_information` bounds the bias.
        total_correlation: KL(q(z) || prod_l q(z_l)).
        dimension_wise_kl: sum_l KL(q(z_l) || p(z_l)).
        log_images: log N, where N is the number of images in q(z): all test images that are evaluated.
    """

    title = "parts of the rate"
    absent = "not computed: they need a Normal q(z | x) and p(z) whose dimensions are independent"

    num_images: int = said("test data", "a random subset, if there are more; one draw of z each")
    rate: Estimate = said("rate", "log q(z | x) - log p(z), the sum of the three parts")
    rate_closed_form: Estimate = said("  KL(q(z | x) || p(z))", "of the same data, computed as above")
    sampling_stderr: float = said("  error from the draws", "of z, a part of the error of the rate")
    mutual_information: Estimate = said("mutual information", "I(x; z) over all data is at least this")
    mutual_information_upper: Estimate = said(
        "  I(x; z) at most", "over all data; less than the line above only by noise"
    )
    total_correlation: Estimate = said("total correlation", "KL(q(z) || prod_l q(z_l))")
    dimension_wise_kl: Estimate = said("dimension-wise KL", "sum_l KL(q(z_l) || p(z_l))")
    log_images: float = said("log N", "the most that the mutual information of N data can be")

    @classmethod
    def of(cls, context: Context) -> RateDecomposition | None:
        """Return the means of the parts of the rate, beside those of the rates of all data that were evaluated."""
        try:
            split = split_rate(context.posteriors, context.vae.given(context.seen.y).prior(), seed=context.seed)
        except InputError:
            return None
        names = ("rate", "mutual_information", "total_correlation", "dimension_wise_kl")
        estimates = {name: Estimate.of(getattr(split, name)) for name in names}
        rates = context.terms["rate"].double()
        closed_form = rates[split.rows]
        least = min(Estimate.of(split.leave_one_out), estimates["rate"], key=lambda bound: bound.mean)
        return cls(
            num_images=len(split.rows),
            **estimates,
            rate_closed_form=Estimate.of(closed_form),
            sampling_stderr=Estimate.of(split.rate - closed_form).stderr,
            mutual_information_upper=least,
            log_images=math.log(len(rates)),
        )


@dataclass(frozen=True, eq=False)
class RateSplit:
    """The three parts of the rate, (M,) nats each, at one draw z ~ q(z | x_m) for each of M of the N data.

        rate = I(n; z)                       mutual information between index and code, at most log N
             + KL(q(z) || prod_l q(z_l))     total correlation
             + sum_l KL(q(z_l) || p(z_l))    dimension-wise KL

    The aggregate posterior is q(z) = (1/N) sum_n q(z | x_n), over these N data. If the M data are a random subset of
    the N, the means over the draws are unbiased for the N data. The mean of the mutual information is a lower bound on
    I(x; z) over the whole distribution of data. If it is near log N, it is far too low, and the two other
    parts are too large by the difference. The means of `leave_one_out` and of `rate` are upper bounds on I(x; z).

    The standard error of a mean over the M draws needs no term for q(z), although q(z) is estimated from the same
    data: to first order a datum changes the mean of log q(z) by E_q(z)[q(z | x_n) / q(z)] - 1 = 0, and the same
    holds for each log q(z_l). The standard error covers data and draws, but not the bias; for a statement about the N
    data alone it is somewhat too large.

    Args:
        rows: indices of the M data, int64 (M,), in rising order.
        mutual_information: log q(z | x) - log q(z).
        leave_one_out: log q(z | x) - log q(z) with q(z) over the N - 1 other data.
        total_correlation: log q(z) - log prod_l q(z_l).
        dimension_wise_kl: log prod_l q(z_l) - log p(z).

    Reference:
        Hoffman and Johnson, ELBO surgery, 2016; Chen et al., arXiv:1802.04942, equation 2; both bounds on I(x; z):
        Poole et al., arXiv:1905.06922, section 2.5.
    """

    rows: Tensor
    mutual_information: Tensor
    leave_one_out: Tensor
    total_correlation: Tensor
    dimension_wise_kl: Tensor

    @property
    def rate(self) -> Tensor:
        """Log q(z | x) - log p(z) at the draws, (M,)."""
        return self.mutual_information + self.total_correlation + self.dimension_wise_kl


@torch.no_grad()
def split_rate(
    posteriors: Sequence[TorchDistribution], prior: TorchDistribution, num_data: int = 2000, seed: int = 0
) -> RateSplit:
    """Split the rate at one draw z ~ q(z | x) for each datum of a random subset.

    Args:
        posteriors: q(z | x) of N data, at least 2, in one part or several, as `latent_space.posteriors` returns them;
            Normal with independent dimensions.
        prior: p(z) with independent dimensions.
        num_data: the largest M; M is N if N is smaller.
        seed: selects the subset; z is drawn from torch's generator.

    Raises:
        InputError: q(z | x) is not Normal, or q(z | x) or p(z) is not independent over dimensions.
    """
    parts: list[Any] = [posterior.base_dist for posterior in posteriors if isinstance(posterior, Independent)]
    are_normal = len(parts) == len(posteriors) and all(isinstance(part, Normal) for part in parts)
    if not (are_normal and isinstance(prior, Independent) and not prior.batch_shape):
        raise InputError("the rate can be split only for a Normal q(z | x) and a p(z) of independent latent dimensions")
    loc, scale = (torch.cat([getattr(part, name) for part in parts]).double() for name in ("loc", "scale"))
    rows = random_subset(len(loc), num_data, seed).to(loc.device)
    q = Normal(loc, scale)
    z = q.sample()[rows]
    own = Normal(loc[rows], scale[rows]).log_prob(z).sum(1)
    # Written into, because small tensors that are allocated between large ones would fragment the memory.
    log_q_z, log_others, log_product = z.new_empty(3, len(z))
    size = max(1, CHUNK_VALUES // loc.numel())
    for start in range(0, len(z), size):
        part = slice(start, start + size)
        log_q = q.log_prob(z[part].unsqueeze(1))  # (draws, N, L)
        log_product[part] = (log_q.logsumexp(1) - math.log(len(loc))).sum(1)
        joint = log_q.sum(2)
        log_q_z[part] = joint.logsumexp(1) - math.log(len(loc))
        joint.scatter_(1, rows[part, None], -math.inf)
        log_others[part] = joint.logsumexp(1) - math.log(len(loc) - 1)
    return RateSplit(
        rows=rows,
        mutual_information=own - log_q_z,
        leave_one_out=own - log_others,
        total_correlation=log_q_z - log_product,
        dimension_wise_kl=log_product - prior.log_prob(z.to(parts[0].loc.dtype)).double(),
    )
