"""`Observed`, values of which some may be missing; `Columns`, a row of different kinds of them; an ordered logistic."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Size, Tensor
from torch.nn.functional import logsigmoid

__all__ = ["Columns", "Observed", "ordered_logits"]


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
        each = self.base_dist.log_prob(torch.where(is_missing, torch.zeros_like(value), value))
        return torch.where(is_missing, torch.zeros_like(each), each).flatten(-self.reinterpreted_batch_ndims).sum(-1)


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

    def __init__(self, parts: Sequence[TorchDistribution], order: Tensor, validate_args: bool | None = None) -> None:
        self.parts = tuple(parts)
        self.order = order
        self._sizes = [part.batch_shape[-1] for part in parts]
        super().__init__(parts[0].batch_shape[:-1], Size([sum(self._sizes)]), validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Columns:
        """Return the same distribution over a larger batch shape."""
        parts = [part.expand(Size((*batch_shape, size))) for part, size in zip(self.parts, self._sizes)]
        return Columns(parts, self.order, validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-probability of the values (..., D) that are observed, of the batch shape, in nats."""
        return self._each(value[..., self.order]).sum(-1)

    def log_prob_of_each(self, value: Tensor) -> Tensor:
        """Return the log-probability of each of the values (..., D), 0 where it is not observed, in nats."""
        return self._in_order(self._each(value[..., self.order]))

    def _each(self, value: Tensor) -> Tensor:
        is_missing = value.isnan()
        values = torch.where(is_missing, torch.zeros_like(value), value).split(self._sizes, -1)
        parts = []
        for part, x in zip(self.parts, values):
            if isinstance(part, dist.Bernoulli):
                x = x.to(part.logits.dtype)  # the only one that it takes
            parts.append(part.log_prob(x))
        each = torch.cat(parts, -1)
        return torch.where(is_missing, torch.zeros_like(each), each)

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
                one = features[..., start : start + width].unflatten(-1, (size, -1)).argmax(-1).to(features.dtype)
            else:
                width = size
                one = features[..., start : start + width]
                if isinstance(part, dist.Bernoulli):
                    one = (one > 0.5).to(features.dtype)
            columns.append(one)
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
