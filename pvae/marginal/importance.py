"""log p(x) by importance sampling, from q(z | x), p(z) and a Normal near p(z | x); and Pareto k of the weights."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Independent, MultivariateNormal

from pvae.compile.graph import Function, check_engine, missing, record
from pvae.core.batch import Batch, Data
from pvae.core.errors import InputError
from pvae.core.random_state import seeded
from pvae.core.tracing import deferred
from pvae.distributions.joint import Joint
from pvae.marginal.chunks import at_once, data_at_once, draw_for_each, widest
from pvae.marginal.log_p import LogP, is_continuous
from pvae.vae import VAE

_LEAST = 5  # weights in a tail, below which none is fitted
_ROUNDING = 1e-4  # nats, of log-weights that float32 sums give


def num_in_tail(num_particles: int) -> int:
    """Return how many of K weights are their tail: min(K / 5, 3 sqrt(K)), rounded up."""
    return math.ceil(min(num_particles / 5, 3 * math.sqrt(num_particles)))


def trusted_below(num_particles: int) -> float:
    """Return the Pareto k below which the mean of K weights can be trusted: min(1 - 1 / log10 K, 0.7).

    Reference:
        Vehtari et al., arXiv:1507.02646v9, section 3.
    """
    return min(1 - 1 / math.log10(max(2, num_particles)), 0.7)


def pareto_k(largest: Tensor) -> Tensor:
    """Return the shape k of the generalised Pareto distribution of the largest importance weights.

        p(w - u > t) = (1 + k t / sigma)^(-1 / k),     u the largest weight that is not in the tail

    A moment E[w^m] is finite for m < 1 / k. From k = 0.5 the variance of the weights is infinite, and from 1 their
    mean. The fit is the mean of a posterior, drawn towards 0.5 as if by ten more weights. It describes the weights that
    were drawn: it cannot see a mode of p(z | x) from which none came.

    Args:
        largest: the logarithms of the M + 1 largest of K weights, (M + 1, N), in any order; M = `num_in_tail(K)`.

    Returns:
        k, float64 (N,); -inf where the weights are equal to rounding, inf where fewer than 5 are above u, as where they
        tie or underflow, NaN where a weight is NaN.

    Reference:
        Zhang and Stephens, Technometrics 51, 2009, section 3 (the fit); Vehtari et al., arXiv:1507.02646v9, section 3
        (its use) and appendix H (the size of the tail).
    """
    log_w = largest.double().sort(0).values
    is_nan = log_w.isnan().any(0)
    log_w = log_w - log_w[-1]
    log_cutoff = log_w[0].clamp(min=math.log(torch.finfo(torch.float64).tiny))
    is_tail = log_w > log_cutoff
    num_tail = is_tail.sum(0)  # (N,)
    tail = (log_w.exp() - log_cutoff.exp()).where(is_tail, 0.0)  # (M + 1, N), ascending; log1p(0) adds nothing
    # A grid of theta = -k / sigma, whose posterior has the profile likelihood and a prior from the lower quartile.
    size = 30 + num_tail.sqrt().long()
    steps = torch.arange(int(size.max()), device=tail.device)[:, None]
    grid = 1 - (size / (steps + 0.5)).sqrt()
    quartile = tail.gather(0, (len(tail) - num_tail + (num_tail / 4 + 0.5).long() - 1).clamp(0, len(tail) - 1)[None])
    theta = (1 / tail[-1] + grid / (3 * quartile)).where(steps < size, -1.0)
    k = _shape(theta[:, None], tail, num_tail)
    posterior = (num_tail * ((-theta / k).log() - k - 1)).where(steps < size, -math.inf).softmax(0)
    shape = _shape((posterior * theta).sum(0)[None], tail, num_tail)
    shape = ((num_tail * shape + 10 * 0.5) / (num_tail + 10)).where(num_tail >= _LEAST, math.inf)
    is_equal = log_w[0] > -_ROUNDING
    return shape.where(~is_equal | (len(tail) <= _LEAST), -math.inf).where(~is_nan, math.nan)


def _shape(theta: Tensor, tail: Tensor, num_tail: Tensor) -> Tensor:
    return (-theta * tail).log1p().sum(-2) / num_tail


TRUSTED = 10.0  # the effective sample size below which the importance weights of a datum cannot be trusted
_ONE_IN = 10  # draws of z is from p(z)
_OF_NEAR = 0.7  # of the draws are from a Normal near p(z | x), where there is one
_ROUNDS = (200, 400, 800, 1600)  # draws by which that Normal is found
LEAST_NEAR = _ROUNDS[-1]  # draws of an estimate, below which it is not sought
_MOST_LATENTS = 16  # of such a Normal, for whose covariance the draws of a round suffice
_EFFECTIVE = 0.3  # of the draws, from which on q(z | x) needs none
_SPREAD = 1.5  # of its covariance, so that the tails of p(z | x) are drawn
_VISITS_TO_RECORD = 3
DECODED_TO_COMPILE = 10_000_000  # decoded data from which compiling saves more time than it takes


class Mixture:
    """The proposal r(z) = (1 - d) q(z | x) + d p(z), which bounds the weights where q(z | x) is too narrow.

        r(z) = 0.2 q(z | x) + 0.7 n(z) + 0.1 p(z),     with a Normal n

    Of a label that is a latent, the draws from p are of z given the label that q(y | x) draws, since q knows given
    labels, which a draw from p(y) would miss.

    Args:
        vae: the three distributions, given labels; an autoencoder has no d.
        x: data (B, *D).
        num_particles: K, of which a tenth, rounded down, are from p(z).
        near: n, with the batch shape (B,), as `near_posterior` finds it, or None.

    Reference:
        Owen and Zhou, Safe and effective importance sampling, 2000.
    """

    def __init__(self, vae: VAE, x: Tensor, num_particles: int, near: MultivariateNormal | None = None) -> None:
        p: Any = vae.prior()
        self.prior = p
        self.q = vae.posterior(x)
        self.near = near
        self.count = len(x)
        self.wide = p
        if isinstance(p, Joint) and p.is_enumerable:
            self.wide = Joint(self.q.first, p.rest, p.sizes, p.names)
        num_wide = num_near = 0
        if vae.has_density:
            num_wide = num_particles // _ONE_IN
        if near is not None:
            num_near = int(_OF_NEAR * num_particles)
        self.counts = {"q": num_particles - num_wide - num_near, "near": num_near, "wide": num_wide}
        self.log_share = {name: math.log(count / num_particles) for name, count in self.counts.items() if count}

    def draw(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Return draws number start to stop of K, z (stop - start, B, L), and log q(z); the last of K are from p."""
        drawn = list[tuple[Tensor, Tensor]]()
        before = 0
        for name, count in self.counts.items():
            size = min(stop, before + count) - max(start, before)
            before += count
            if size <= 0:
                continue
            if name == "q":
                z = self.q.sample((size,))
                drawn.append((z, self.q.log_prob(z)))  # of the draw itself, whose density a flow knows
            else:
                z = draw_for_each(getattr(self, name), size, self.count)
                drawn.append((z, self._log_q(z)))
        z, log_q = (torch.cat(parts) for parts in zip(*drawn))
        return z, log_q

    def _log_q(self, z: Tensor) -> Tensor:
        """Return log q of z of another distribution, some of which may be outside of the support of q."""
        try:
            return self.q.log_prob(z)
        except ValueError:
            support: Any = self.q.support
            inside = support.check(z)
            log_q = self.q.log_prob(torch.where(inside[..., None], z, self.q.sample((len(z),))))
            return log_q.where(inside, -math.inf)

    def log_weights(self, log_likelihood: Tensor, z: Tensor, log_q: Tensor) -> Tensor:
        """Return log p(x | z) p(z) / r(z) of draws z, (K, B) in float64."""
        log_prior = self.prior.log_prob(z)
        log_r = log_q + self.log_share["q"]
        if "near" in self.log_share and self.near is not None:
            log_r = torch.logaddexp(log_r, self.near.log_prob(z) + self.log_share["near"])
        if "wide" in self.log_share:
            log_wide = log_prior
            if self.wide is not self.prior:
                log_wide = self.wide.log_prob(z)
            log_r = torch.logaddexp(log_r, log_wide + self.log_share["wide"])
        return (log_likelihood + log_prior - log_r).double()


def near_posterior(
    vae: VAE, batch: Batch, num_particles: int, log_likelihood: Callable[..., Tensor], width: int
) -> tuple[MultivariateNormal | None, Tensor]:
    """Return a Normal near p(z | x) of each datum, and the effective share of draws that `Mixture` has with it.

        n(z) = Normal(z; m, 1.5 C),     m, C the mean and the covariance of draws with the weights p(x, z) / r(z)

    The first 200 draws are from q(z | x) and p(z), and those of three further rounds, of twice as many, with the Normal
    of the round before. Where few of the draws have all weight, the weights are raised to a power below 1; where few
    have any, all have the same. q(z | x) of a row with gaps, or with columns in fine steps, is often far from p(z | x).

    Args:
        vae: in eval mode, given no labels.
        batch: B data.
        num_particles: K of the draws that follow.
        log_likelihood: returns log p(x | z) of z, x and perhaps y.
        width: as for `_log_sums`.

    Returns:
        The Normal, with the batch shape (B,); None if 0.3 of the first draws of each datum are effective, if z is not a
        vector of at most 16 real values, or if K is below 1,600. The share is of the last round, float64 (B,), or 0.

    Reference:
        Cappe et al., Population Monte Carlo, J. Comput. Graph. Stat. 13, 2004: proposals that are fitted to weighted
        draws, each round an importance sample of its own.
    """
    given = vae.given(batch.y)
    prior: Any = given.prior()
    near = None
    share = torch.zeros(len(batch), dtype=torch.float64, device=batch.x.device)
    is_vector = is_continuous(vae, batch) and vae.has_density
    if not is_vector or prior.event_shape[0] > _MOST_LATENTS or num_particles < LEAST_NEAR:
        return near, share
    for count in _ROUNDS:
        mixture = Mixture(given, batch.x, count, near)
        parts = _weighted(mixture, batch, count, log_likelihood, width)
        z, log_w = (torch.cat(some) for some in zip(*parts))
        share = (1 / (len(z) * log_w.softmax(0).square().sum(0))).nan_to_num()
        if near is None and (share > _EFFECTIVE).all():
            break
        near = _normal_of(z, log_w)
    return near, share


def _normal_of(z: Tensor, log_w: Tensor) -> MultivariateNormal:
    """Return the Normal of weighted draws z (K, B, L), by a covariance that is wider, computed in float64."""
    size = z.shape[-1]
    dtype = z.dtype
    z = z.double()
    power = torch.ones_like(log_w[0])
    log_w = log_w.where(~log_w.isnan(), -math.inf)
    least = min(5 * size, len(z))
    log_w = log_w.where(log_w.isfinite().sum(0) >= least, 0.0)
    for _ in range(40):
        weight = (power * log_w).softmax(0)
        is_few = weight.square().sum(0) > 1 / least
        if not is_few.any():
            break
        power = torch.where(is_few, power / 1.5, power)
    weight = weight[..., None]
    loc = (weight * z).sum(0)
    deviation = weight.sqrt() * (z - loc)
    covariance = _SPREAD * torch.einsum("kbi,kbj->bij", deviation, deviation)
    identity = torch.eye(size, dtype=z.dtype, device=z.device)
    factor, failed = torch.linalg.cholesky_ex(covariance + 1e-6 * identity)
    is_right = ((failed == 0) & (factor.abs().amax((1, 2)) < 1e6))[:, None]  # else N(0, I)
    loc = loc.where(is_right, 0.0)
    factor = factor.where(is_right[..., None], identity)
    return MultivariateNormal(loc.to(dtype), scale_tril=factor.to(dtype), validate_args=False)


@torch.no_grad()
def importance_sample(
    vae: VAE,
    data: Data,
    num_particles: int = 5000,
    on_images: Callable[[int], object] = lambda count: None,
    engine: str = "auto",
    seed: int | None = None,
) -> LogP:
    """Estimate log p(x) from importance weights, with q(z | x) and, a tenth of the draws, p(z) as the proposal.

        log p(x)  ~  log (1/K) sum_k p(x | z_k) p(z_k) / r(z_k),     z_k ~ r(z) = 0.9 q(z | x) + 0.1 p(z)

    or with the Normal of `near_posterior` in r, which other draws find, where q(z | x) is far from p(z | x).

    The expectation of the estimate is a lower bound, which to first order is Var[w / p(x)] / (2 K) below log p(x). No
    weight exceeds 10 p(x | z). Where q(z | x) misses a mode of p(z | x), and no draw from p(z) finds it, the estimate
    is too low, and no diagnostic of the weights shows it. The encoder runs once for each datum. The sums are kept in
    log space, and the memory for data and draws depends on neither N nor K: of the rounds that find a Normal, 1,600
    draws of z for 100 data are kept.

    Args:
        vae: in eval mode.
        data: N data x, or a `Batch` of them with their labels.
        num_particles: K, the number of draws of z for each datum.
        on_images: called after each part with the number of data in it.
        engine: how to compute log p(x | z): "graph" or "inductor" as in `pvae.compile.graph.record`, or "none" for
            ordinary calls. "auto" is "inductor" if it is available and the work is large, else "graph"; it falls back
            to "none" if the decoder cannot be recorded or compiled.
        seed: of the draws for each datum, which is then computed alone: its estimate does not depend on the others.

    Returns:
        Estimates and errors, nats; trusted as `from_weights` says.

    Raises:
        InputError: log p(x | z) cannot be recorded with the given engine, or K is less than 1.

    Reference:
        Burda, Grosse and Salakhutdinov, arXiv:1509.00519, equation 8; `Mixture`, `near_posterior` and `pareto_k`.
    """
    if num_particles < 1:
        raise InputError(f"num_particles is {num_particles}: give K, at least 1")
    batch = Batch.of(data)
    parts = []
    log_likelihood = _recorded_log_likelihood(vae, engine, len(batch) * num_particles)
    width = widest(vae, batch)
    size = min(100, data_at_once(vae, batch))
    if seed is not None:
        size = 1
    for part in batch.split(size):
        with seeded(seed, part.x.device):
            parts.append(_log_sums(vae, part, num_particles, log_likelihood, width))
        on_images(len(part))
    log_sum, log_sum_squares, k = torch.cat(parts, dim=1)
    return from_weights(log_sum, log_sum_squares, num_particles, k)


def from_weights(log_sum: Tensor, log_sum_squares: Tensor, num_particles: int, k: Tensor) -> LogP:
    """Return log p(x) from the weights of independent draws, as `LogP.of_weights`, and whether it is trusted.

    It is where the effective sample size is at least 10, and k below min(1 - 1 / log10 K, 0.7). So are weights of which
    more than half are effective, whatever k is: among them, a tail has little weight.

    Args:
        log_sum: log sum_k w_k, (N,).
        log_sum_squares: log sum_k w_k^2, (N,).
        num_particles: K, the number of draws of z for each datum.
        k: the shape of the tail of the weights, (N,), as in `pareto_k`.
    """
    estimate = LogP.of_weights("importance", log_sum, log_sum_squares, num_particles)
    is_even = estimate.effective > max(TRUSTED, num_particles / 2)
    is_light = (estimate.effective >= TRUSTED) & (k < trusted_below(num_particles))
    return estimate._replace(pareto_k=k, is_trusted=is_even | is_light)


def from_all_weights(log_w: Tensor) -> LogP:
    """Return `from_weights` of the logarithms of all weights, (K, N)."""
    k = pareto_k(log_w.topk(num_in_tail(len(log_w)) + 1, 0).values)
    return from_weights(log_w.logsumexp(0), (2 * log_w).logsumexp(0), len(log_w), k)


def engine_of(engine: str, is_large: bool) -> str:
    """Return the engine that "auto" stands for: "inductor" where it is available and the work is large, or "graph"."""
    if engine != "auto":
        return engine
    if is_large and not missing():
        return "inductor"
    return "graph"


def _recorded_log_likelihood(vae: VAE, engine: str, decoded: int) -> Callable[..., Tensor]:
    """Return log p(x | z) as a function of z, x and perhaps y that records the decoder for each shape of z that recurs.

    A recording is faster than the modules. The shape of z, (draws, B, L), determines that of x.
    """
    may_fail = engine == "auto"  # the caller did not ask for compilation: fall back silently
    engine = engine_of(engine, decoded >= DECODED_TO_COMPILE)
    if engine != "none":
        check_engine(engine)
    visits: Counter[torch.Size] = Counter()
    recorded: dict[torch.Size, Function] = {}

    def unrecorded(z: Tensor, x: Tensor, *y: Tensor) -> list[Tensor]:
        return [vae.log_likelihood(x, z, *y)]

    def log_likelihood(z: Tensor, *batch: Tensor) -> Tensor:
        visits[z.shape] += 1
        if engine != "none" and visits[z.shape] == _VISITS_TO_RECORD:
            try:
                with deferred():  # the checks of labels, which read values, were made before
                    recorded[z.shape] = record(unrecorded, [z, *batch], engine)
            except InputError:
                if not may_fail:
                    raise
        return recorded.get(z.shape, unrecorded)(z, *batch)[0]

    return log_likelihood


def _log_sums(vae: VAE, batch: Batch, num_particles: int, log_likelihood: Callable[..., Tensor], width: int) -> Tensor:
    """Return log sum_k w_k, log sum_k w_k^2 and Pareto k of a few data, (3, B) in float64.

    Args:
        vae: in eval mode.
        batch: the data.
        num_particles: K, the number of draws of z for each datum.
        log_likelihood: returns log p(x | z) of z, x and perhaps y.
        width: the number of values in the largest output of a layer, for one datum.
    """
    near, _ = near_posterior(vae, batch, num_particles, log_likelihood, width)
    mixture = Mixture(vae.given(batch.y), batch.x, num_particles, near)
    sums = torch.full((2, len(batch)), -math.inf, dtype=torch.float64)
    largest = torch.full((num_in_tail(num_particles) + 1, len(batch)), -math.inf, dtype=torch.float64)
    for _, log_w in _weighted(mixture, batch, num_particles, log_likelihood, width):
        sums = torch.logaddexp(sums, torch.stack([log_w.logsumexp(0), (2 * log_w).logsumexp(0)]))
        largest = torch.cat([largest, log_w]).topk(len(largest), 0).values
    return torch.cat([sums, pareto_k(largest)[None]])


def _weighted(
    mixture: Mixture, batch: Batch, num_particles: int, log_likelihood: Callable[..., Tensor], width: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield draws z of a proposal, (C, B, L), and their log-weights, (C, B), in chunks; as for `_log_sums`."""
    size = at_once(len(batch) * width)
    # Latents are small compared with images, so several chunks are drawn together and decoded one after another. Other
    # posteriors than independent ones are drawn chunk by chunk, because networks may compute them, which may be wide.
    together = size
    if isinstance(mixture.q, Independent):
        values = math.prod(mixture.q.batch_shape + mixture.q.event_shape)
        together *= at_once(size * values)
    for start in range(0, num_particles, together):
        drawn = mixture.draw(start, min(start + together, num_particles))
        parts = list(zip(*(values.split(size) for values in drawn)))
        log_w = [mixture.log_weights(log_likelihood(z, *batch), z, log_q) for z, log_q in parts]
        yield torch.cat([z for z, _ in parts]), torch.cat(log_w)
