"""Recorded values: in float64, in steps, of which many are one and the same, missing, and of different kinds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Size, Tensor
from torch.distributions import constraints
from torch.nn.functional import logsigmoid
from torch.special import log_ndtr, ndtri

__all__ = [
    "Censored",
    "Columns",
    "InFloat64",
    "InSteps",
    "Observed",
    "WithAtom",
    "is_atom",
    "is_below",
    "log_tail_of_t",
    "log_tails",
    "ordered_logits",
]


class _Wrapped(TorchDistribution):
    """A distribution of one value whose draws and moments are those of `base`, which checks its own parameters."""

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012

    def __init__(self, base: TorchDistribution) -> None:
        self.base = base
        super().__init__(base.batch_shape, base.event_shape)

    @property
    def support(self) -> Any:
        """The support of `base`."""
        return self.base.support

    def sample(self, sample_shape: Any = Size()) -> Tensor:  # noqa: B008
        """Return draws of `base`, which have no gradient."""
        return self.base.sample(sample_shape)

    @property
    def mean(self) -> Tensor:
        """The mean of `base`."""
        return self.base.mean

    @property
    def variance(self) -> Tensor:
        """The variance of `base`."""
        return self.base.variance


class InFloat64(_Wrapped):
    """A distribution with float64 parameters whose log-probability returns to the dtype of a network's outputs.

        log_prob(x) = log p(x),    computed in float64 and rounded once

    In float32 the terms of a density may cancel: lgamma(x + theta) - lgamma(theta) - lgamma(x + 1) of a negative
    binomial at x = 5 and theta = e^15 is wrong by 2, and a Poisson at x = 50,000 by 0.06. Draws and means are float64,
    so that whole numbers of any size stay whole.

    Args:
        base: the distribution, of event shape ().
        dtype: of the log-probability.
    """

    def __init__(self, base: TorchDistribution, dtype: torch.dtype) -> None:
        super().__init__(base)
        self.dtype = dtype

    def expand(self, batch_shape: Any, _instance: Any = None) -> InFloat64:
        """Return the same distribution over a larger batch shape."""
        return InFloat64(self.base.expand(batch_shape), self.dtype)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log p(value), of the batch shape, in nats."""
        return self.base.log_prob(value.double()).to(self.dtype)


_POINTS = 44
_RANGE = (-3.4, 4.0)  # of s


def log_tails(p: Any, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Return log P(X <= high) and log P(X <= low), or log P(X > low) and log P(X > high) where these are less.

    Their difference of exponentials is P(low < X <= high), without cancellation in either tail.

    Args:
        p: a Normal, a log-Normal, Student's t, or another one with a cdf, which rounds the upper tail; also as
            `InFloat64`.
        low: values, below the support too.
        high: greater values.
    """
    if isinstance(p, InFloat64):
        return log_tails(p.base, low.double(), high.double())
    if isinstance(p, dist.LogNormal):
        low, high = (bound.clamp(min=torch.finfo(bound.dtype).tiny).log() for bound in (low, high))
        return log_tails(p.base_dist, low, high)
    if not isinstance(p, (dist.Normal, dist.StudentT)):
        return p.cdf(high).log(), p.cdf(low).log()
    low, high = ((bound - p.loc) / p.scale for bound in (low, high))
    is_right = low + high > 0  # both are symmetric
    more = torch.where(is_right, -low, high)
    less = torch.where(is_right, -high, low)
    if isinstance(p, dist.Normal):
        return log_ndtr(more), log_ndtr(less)
    return log_tail_of_t(more, p.df), log_tail_of_t(less, p.df)


def log_tail_of_t(t: Tensor, df: Tensor) -> Tensor:
    """Return log P(T <= t) of Student's t, in nats, to 1e-11 in float64 (1e-8 above 10^5 degrees); it has derivatives.

        P(T > t) = I(x) / (2 I(0)),    I(x) = int_x^inf cosh(a)^-df da,    x = arcsinh(t / sqrt(df)),    t > 0
        2 I(0) = sqrt(pi) Gamma(df / 2) / Gamma((df + 1) / 2)

    The integrand falls like a Normal density, and further out like an exponential. The integral is a sum over 44 points
    a = x + w exp(s - exp(-s)), whose s have equal distances, with w the length over which the integrand falls.

    Args:
        t: values.
        df: degrees of freedom, at least 1, which broadcast with t.

    Reference:
        Takahasi and Mori, "Double exponential formulas for numerical integration", 1974 (the points).
    """
    with torch.no_grad():
        x = torch.asinh(t.abs() / df.sqrt())
        length = (df + (df * x.tanh()).square()).rsqrt()
        s = torch.linspace(*_RANGE, _POINTS, dtype=x.dtype, device=x.device)
        distance = torch.exp(s - torch.exp(-s))
        log_cosh = _log_cosh(x)
        of_points = _log_cosh(x.unsqueeze(-1) + length.unsqueeze(-1) * distance)
        ratio = (df.unsqueeze(-1) * (log_cosh.unsqueeze(-1) - of_points)).exp()
        ratio = ratio * (distance * (1 + torch.exp(-s)) * s.diff()[0])
        total = ratio.sum(-1)
        half = df / 2
        log_whole = torch.lgamma(half) - torch.lgamma(half + 0.5) + math.log(math.pi) / 2
        log_tail = (length * total).log() - df * log_cosh - log_whole
        by_t = (-(df + 1) * log_cosh - log_whole - df.log() / 2 - log_tail).exp()
        by_df = x.tanh() / (2 * df * length * total)  # since x depends on df
        by_df = by_df - (ratio * of_points).sum(-1) / total - (torch.digamma(half) - torch.digamma(half + 0.5)) / 2
        is_right = t > 0
        odds = torch.where(is_right, 1 / torch.expm1(-log_tail), 1.0)
        log_cdf = torch.where(is_right, torch.log1p(-log_tail.exp()), log_tail)
        by_df = torch.where(is_right, -by_df, by_df)
    # The added terms are 0. Their derivatives are those of the sum, which needs no graph.
    return log_cdf + odds * (by_t * (t - t.detach()) + by_df * (df - df.detach()))


def _log_cosh(a: Tensor) -> Tensor:
    more = torch.expm1(a)
    return torch.log1p(more * more / (2 * (1 + more)))


class InSteps(_Wrapped):
    """Values that were recorded in steps of u, each with the probability of its step, as a density.

        log_prob(x) = log [ (F(x + u/2) - F(x - u/2)) / u ],    F the cdf of `base`

    It is at most -log u, so that no scale of `base` makes a value that occurs twice infinitely likely. In units of x it
    is the logarithm of a density, equal to that of `base` where u is small beside its scale, and a change of units
    changes both by the same constant; a sum over the steps of exp(log_prob(x)) u is 1. Where u is 0 it is the
    log-density of `base`. The difference is taken in the tail in which F is small, and where it would cancel, the
    density of `base` is taken, which it equals there to about eps^(2/3).

    Draws and means are those of `base`, which are not rounded.

    Args:
        base: a distribution of event shape () that `log_tails` takes.
        step: u, which broadcasts over the batch shape.

    Reference:
        Heitjan, "Inference from grouped continuous data: a review", Statistical Science 4(2), 1989.
    """

    def __init__(self, base: TorchDistribution, step: Tensor) -> None:
        super().__init__(base)
        self.step = step

    @property
    def support(self) -> Any:
        """All numbers: a step may reach over the end of the support of `base`."""
        return constraints.real

    def expand(self, batch_shape: Any, _instance: Any = None) -> InSteps:
        """Return the same distribution over a larger batch shape."""
        return InSteps(self.base.expand(batch_shape), self.step)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-probability of the step of a value, less log u, of the batch shape, in nats."""
        half = self.step / 2
        return log_of_step(self._log_density(value), self.base, value - half, value + half, self.step)

    def _log_density(self, value: Tensor) -> Tensor:
        """Return log p(value) of `base`, -inf outside its support, where there may be a step but no gradient."""
        support: Any = self.base.support
        is_inside = support.check(value)
        density = self.base.log_prob(torch.where(is_inside, value, 1.0))
        return torch.where(is_inside, density, torch.where(value.isnan(), math.nan, -math.inf))


def log_of_step(density: Tensor, p: Any, low: Tensor, high: Tensor, step: Tensor) -> Tensor:
    """Return log [(F(high) - F(low)) / u], F the cdf of `p`; or a log-density where u is 0, or the difference cancels.

    Args:
        density: in units of u.
        p: a distribution that `log_tails` takes.
        low: the lower end of the step of each value.
        high: its upper end.
        step: u, which broadcasts.
    """
    more, less = log_tails(p, low, high)
    change = -torch.expm1(less - more)  # of F, as a share
    is_exact = (change > torch.finfo(change.dtype).eps ** (1 / 3)) & (step > 0)
    # Each branch is given harmless values where the other one is taken, so that no gradient is NaN.
    mass = torch.where(is_exact, more, 0.0) + torch.where(is_exact, change, 1.0).log()
    mass = mass - torch.where(step > 0, step, 1.0).log()
    return torch.where(is_exact, mass.to(density.dtype), density)


def is_below(value: Tensor, limit: float) -> Tensor:
    """Return whether values lie below a limit, by more than float32 loses of it."""
    return value.double() < limit - abs(limit) * torch.finfo(torch.float32).eps


_LEAST_BOUND = -35.0  # standard deviations, below which the cdf of a Normal is nearly 0 in float64


class Censored(_Wrapped):
    """Values in steps of which those below a limit L are known only to be below it, as below a detection limit.

        log_prob(x) = log F(h) - log u,    x < L;    that of `InSteps`,    x >= L
        h = the first multiple of u from L on, less u/2;    L if u is 0

    F is the cdf of `base`. So a sum over the steps from L on of exp(log_prob(x)) u, and the same of one x below L, is
    1. Where u is 0, an x below L has its probability, and not a density.

    Draws and means are those of `base`, or where `are_below` is true, those of the part of it below l = min(h, L):

        E[X | X < l] = m - s phi(a) / Phi(a),                  a = (l - m) / s,        X ~ Normal(m, s^2)
        E[X | X < l] = exp(m + s^2/2) Phi(a - s) / Phi(a),     a = (log l - m) / s,    log X ~ Normal(m, s^2)

    Args:
        base: a Normal or a log-Normal in steps, as `InFloat64`.
        limit: L, above 0 of a log-Normal.
        are_below: which values are known to lie below L; None if that is not known.

    Reference:
        Tobin, "Estimation of relationships for limited dependent variables", Econometrica 26, 1958 (the likelihood);
        the mean mu of `scipy.stats.truncnorm` in SciPy's manual, at A = -inf.
    """

    base: InSteps

    def __init__(self, base: InSteps, limit: float, are_below: Tensor | None = None) -> None:
        super().__init__(base)
        self.limit = limit
        self.are_below = are_below
        p: Any = base.base
        self.p = p.base
        self.is_log = isinstance(self.p, dist.LogNormal)
        self.unit = torch.where(base.step > 0, base.step, 1.0)
        first = (limit / self.unit - 0.01).ceil() * self.unit  # u is rounded to float32
        end = torch.where(base.step > 0, first - self.unit / 2, limit)
        self.end = self._scaled(end)
        self.bound = self._scaled(end.clamp(max=limit))  # a

    def _scaled(self, value: Tensor) -> Tensor:
        if self.is_log:
            value = value.log()
        return (value - self.p.loc) / self.p.scale

    def expand(self, batch_shape: Any, _instance: Any = None) -> Censored:
        """Return the same distribution over a larger batch shape."""
        return Censored(self.base.expand(batch_shape), self.limit, self.are_below)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-density, of the batch shape, in nats; of all values below L the same."""
        are_below = is_below(value, self.limit)
        above = self.base.log_prob(torch.where(are_below, self.limit, value))
        below = log_ndtr(self.end) - self.unit.log()
        return torch.where(are_below, below.to(above.dtype), above)

    def sample(self, sample_shape: Any = Size()) -> Tensor:  # noqa: B008
        """Return draws, which have no gradient."""
        draws = self.base.sample(sample_shape)
        if self.are_below is None:
            return draws
        bound = self.bound.expand_as(draws)
        share = log_ndtr(bound.clamp(min=_LEAST_BOUND)).exp() * (1 - torch.rand_like(bound))  # above 0; ndtr cancels
        below = self.p.loc + self.p.scale * torch.minimum(ndtri(share), bound)
        if self.is_log:
            below = below.exp()
        return torch.where(self.are_below, below, draws)

    @property
    def mean(self) -> Tensor:
        """The mean."""
        mean, bound, scale = self.base.mean, self.bound, self.p.scale
        if self.are_below is None:
            return mean
        if self.is_log:
            below = (self.p.loc + scale.square() / 2 + log_ndtr(bound - scale) - log_ndtr(bound)).exp()
        else:
            below = mean - scale * (-bound.square() / 2 - log_ndtr(bound)).exp() / math.sqrt(2 * math.pi)
        return torch.where(self.are_below, below, mean)


def is_atom(value: Tensor, atom: Tensor, step: Tensor | float = 0.0) -> Tensor:
    """Return whether values are the least one, a: at most half a step from it, or what float32 loses of a."""
    lost = atom.abs() * torch.finfo(torch.float32).eps
    return (value - atom).abs() <= torch.maximum(lost, torch.as_tensor(step / 2, device=atom.device))


class WithAtom(TorchDistribution):
    """Values of which a share is exactly a, the least one, and the others lie above it.

        log_prob(a) = log [ (pi + (1 - pi) F(u/2)) / u ],    log_prob(x) = log (1 - pi) + log p(x - a),    x > a

    F is the cdf of `rest`. With u the step of the values this is a density in units of x, as of `InSteps`, and a sum
    over the steps of exp(log_prob(x)) u is 1: what lies less than half a step above a was recorded as a. Draws and
    moments are those before this rounding. Where u is 0, log_prob(a) is log pi, a probability and not a density.

    Args:
        rest: p, of x - a, of event shape () and positive values; in steps of u where u is above 0.
        atom: a, which broadcasts over the batch shape.
        logits: log pi / (1 - pi), of the batch shape.
        step: u, which broadcasts over the batch shape.

    Reference:
        Aitchison, "On the distribution of a positive random variable having a discrete probability mass at the
        origin", JASA 50, 1955.
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012  # `rest` checks its own

    def __init__(self, rest: TorchDistribution, atom: Tensor, logits: Tensor, step: Tensor) -> None:
        self.rest = rest
        self.atom = atom
        self.logits = logits
        self.step = step
        super().__init__(rest.batch_shape, rest.event_shape)

    @property
    def support(self) -> Any:
        """The values from a on."""
        return constraints.greater_than_eq(self.atom)

    def expand(self, batch_shape: Any, _instance: Any = None) -> WithAtom:
        """Return the same distribution over a larger batch shape."""
        logits = self.logits.expand(batch_shape)
        return WithAtom(self.rest.expand(batch_shape), self.atom, logits, self.step)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-density, of the batch shape, in nats; -inf below a."""
        are_atoms = is_atom(value, self.atom, self.step)
        above = (value - self.atom).where(~are_atoms, 0.0)
        has_step = self.step > 0
        is_of_rest = torch.where(are_atoms, has_step, ~(above <= 0))  # elsewhere 1, which has a gradient
        of_rest = self.rest.log_prob(torch.where(is_of_rest, above, 1.0))
        of_others = torch.where(above < 0, -math.inf, logsigmoid(-self.logits) + of_rest)
        of_atom = logsigmoid(self.logits) - torch.where(has_step, self.step, 1.0).log()
        of_atom = of_atom.logaddexp(of_others.where(has_step, -math.inf))
        return torch.where(are_atoms, of_atom, of_others).to(of_rest.dtype)

    def sample(self, sample_shape: Any = Size()) -> Tensor:  # noqa: B008
        """Return draws, which have no gradient."""
        rest = self.rest.sample(sample_shape)
        return self.atom + torch.where(torch.rand_like(rest) < self.logits.sigmoid(), 0.0, rest)

    @property
    def mean(self) -> Tensor:
        """The mean of x, a + (1 - pi) E[x - a]."""
        return self.atom + (-self.logits).sigmoid() * self.rest.mean

    @property
    def variance(self) -> Tensor:
        """The variance of x, (1 - pi) (Var[x - a] + pi E[x - a]^2)."""
        share = (-self.logits).sigmoid()
        return share * (self.rest.variance + (1 - share) * self.rest.mean.square())


class Observed(dist.Independent):
    """Independent values as one event, of which those that are NaN are not observed.

        log_prob(x) = sum over d with x_d observed of log p(x_d)

    That is the logarithm of the marginal density of the observed values, since the others integrate to 1. An ELBO or an
    importance-weighted bound made of it bounds log p(x observed).

    Args:
        base_distribution: of each value; 0 must be in its support.
        reinterpreted_batch_ndims: number of its batch dimensions that become the event.

    Reference:
        Mattei and Frellsen, arXiv:1812.02633, for values that are missing at random.
    """

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-probability of the observed values, of the batch shape, in nats."""
        is_missing = value.isnan()
        each = self.base_dist.log_prob(torch.where(is_missing, 0.0, value))
        return torch.where(is_missing, 0.0, each).flatten(-self.reinterpreted_batch_ndims).sum(-1)


class Columns(TorchDistribution):
    """A row of D columns, each with its own distribution, as one event of shape (D,).

        log_prob(x) = sum over d with x_d observed of log p_d(x_d)

    A category is its code 0, ..., K - 1. A value that is NaN is not observed, as in `Observed`.

    Args:
        parts: distributions of batch shape (..., n) and event shape (), each of n columns of one kind: any with a mean,
            or a `Categorical`. The sum of the n is D. 0 must be in the support of each.
        order: the columns of x that the parts describe, part by part; int64 (D,), a permutation.

    Reference:
        Nazabal et al., arXiv:1807.03653, for the likelihoods of columns of different kinds.
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012  # each part checks its own

    def __init__(self, parts: Sequence[TorchDistribution], order: Tensor) -> None:
        self.parts = tuple(parts)
        self.order = order
        self._sizes = [part.batch_shape[-1] for part in parts]
        super().__init__(parts[0].batch_shape[:-1], Size([sum(self._sizes)]))

    def expand(self, batch_shape: Any, _instance: Any = None) -> Columns:
        """Return the same distribution over a larger batch shape."""
        parts = [part.expand(Size((*batch_shape, size))) for part, size in zip(self.parts, self._sizes)]
        return Columns(parts, self.order)

    def given(self, value: Tensor) -> tuple[Columns, Tensor]:
        """Return the distribution given which of some values (..., D) are below a limit, and which are that or NaN."""
        value = value[..., self.order]
        parts, are_below = [], []
        for part, x in zip(self.parts, value.split(self._sizes, -1)):
            are_below.append(is_below(x, getattr(part, "limit", -math.inf)))
            if isinstance(part, Censored):
                part = Censored(part.base, part.limit, are_below[-1])
            parts.append(part)
        return Columns(parts, self.order), self._in_order(torch.cat(are_below, -1) | value.isnan())

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-probability of the values (..., D) that are observed, of the batch shape, in nats."""
        return self._each(value).sum(-1)

    def log_prob_of_each(self, value: Tensor) -> Tensor:
        """Return the log-probability of each of the values (..., D), 0 where it is not observed, in nats."""
        return self._in_order(self._each(value))

    def _each(self, value: Tensor) -> Tensor:
        """Return the log-probability of each value, part by part."""
        value = value[..., self.order]
        is_missing = value.isnan()
        values = torch.where(is_missing, 0.0, value).split(self._sizes, -1)
        parts = []
        for part, x in zip(self.parts, values):
            if isinstance(part, dist.Bernoulli):
                x = x.to(part.logits.dtype)  # the only one that it takes
            parts.append(part.log_prob(x))
        each = torch.cat(parts, -1)
        return torch.where(is_missing, 0.0, each)

    @torch.no_grad()
    def sample(self, sample_shape: Any = Size()) -> Tensor:  # noqa: B008
        """Return draws, sample_shape + (..., D), which have no gradient."""
        draws = torch.cat([part.sample(Size(sample_shape)) for part in self.parts], -1)
        return self._in_order(draws.to(self.features.dtype))

    @property
    def features(self) -> Tensor:
        """The K probabilities of each category, and the means of the other columns, part by part: (..., F).

        Unlike codes, they can be averaged, over draws of z for instance; `from_features` returns to columns.
        """
        features = []
        for part in self.parts:
            if _is_coded(part):
                features.append(part.probs.flatten(-2))
            else:
                features.append(part.mean)
        return torch.cat(features, -1)

    def from_features(self, features: Tensor) -> Tensor:
        """Return the most likely code of each category and binary column, and the means of the others, (..., D).

        Args:
            features: as `features`, or an average of such, (..., F).
        """
        columns = []
        start = 0
        for part, size in zip(self.parts, self._sizes):
            if _is_coded(part):
                width = part.param_shape[-2:].numel()
                values = features[..., start : start + width].unflatten(-1, (size, -1)).argmax(-1).to(features.dtype)
            else:
                width = size
                values = features[..., start : start + width]
                if isinstance(part, dist.Bernoulli):
                    values = (values > 0.5).to(features.dtype)
            columns.append(values)
            start += width
        return self._in_order(torch.cat(columns, -1))

    @property
    def mean(self) -> Tensor:
        """The means; of a category or a binary column the most likely code, since its mean is none of its values."""
        return self.from_features(self.features)

    @property
    def has_mean(self) -> Tensor:
        """Whether `from_features` gives the mean of a column, and not its most likely code; bool (D,)."""
        kinds = [not (_is_coded(part) or isinstance(part, dist.Bernoulli)) for part in self.parts]
        of_part = [torch.full((size,), kind) for size, kind in zip(self._sizes, kinds)]
        return self._in_order(torch.cat(of_part).to(self.order.device))

    def _in_order(self, values: Tensor) -> Tensor:
        return values[..., self.order.argsort()]


def _is_coded(part: TorchDistribution) -> bool:
    return isinstance(part, dist.Categorical)


def ordered_logits(location: Tensor, cutpoints: Tensor) -> Tensor:
    """Return the log-probabilities of K levels that are in an order: an ordered logistic.

        log P(k) = log [ sigmoid(c_k - l) - sigmoid(c_{k-1} - l) ]
                 = log sigmoid(c_k - l) + log sigmoid(l - c_{k-1}) + log(1 - exp(c_{k-1} - c_k)),    0 < k < K - 1

    with c_{-1} = -inf and c_{K-1} = inf. The second line is exact where the difference of the first would be 0;
    `pyro.distributions.OrderedLogistic` takes the first.

    Args:
        location: l, of the batch shape (...).
        cutpoints: increasing, (..., K - 1).

    Returns:
        (..., K) nats.
    """
    below = logsigmoid(cutpoints - location[..., None])
    above = logsigmoid(location[..., None] - cutpoints)
    between = (-torch.expm1(cutpoints[..., :-1] - cutpoints[..., 1:])).log()
    return torch.cat([below[..., :1], below[..., 1:] + above[..., :-1] + between, above[..., -1:]], -1)
