"""Bernoulli distributions of logits, for binary pixels, whole images and (as a pseudo-likelihood) grey pixels."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

__all__ = ["JointBernoulli", "LogitBernoulli", "PseudoBernoulli"]

_MOST_FACTORS = 64  # each at least 1/2: 2^-64 is far from the smallest float32
_LANES = 16  # values in a vector register


class LogitBernoulli(dist.Bernoulli):  # type: ignore[misc]  # Pyro makes its classes at run time
    """Pyro's Bernoulli of logits l, whose `to_event` returns a `JointBernoulli`: an image as one event."""

    def to_event(self, reinterpreted_batch_ndims: int | None = None) -> TorchDistribution:
        """Return the distribution whose event is the last dimensions of the batch shape."""
        count = len(self.batch_shape) if reinterpreted_batch_ndims is None else reinterpreted_batch_ndims
        return JointBernoulli(self, count) if count > 0 else super().to_event(count)


class JointBernoulli(dist.Independent):
    """Independent Bernoullis of logits l as one event of D values, with one logarithm for up to 64 of them.

        log_prob(x) = sum_d (x_d l_d - max(l_d, 0))  +  sum over groups of  log prod_{d in group} sigmoid(|l_d|)

    since log(1 + exp(l)) = max(l, 0) - log sigmoid(|l|). Each factor is at least 1/2 and a group has at most 64, so no
    product underflows. This formula is used where no gradients are computed, because there the logarithms would take
    most of the time; with gradients `log_prob` is the sum of the elementwise log-probabilities.
    """

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log p(value), of the batch shape."""
        base, count = self.base_dist, self.reinterpreted_batch_ndims
        if torch.is_grad_enabled() or base.logits.dtype not in (torch.float32, torch.float64):
            return super().log_prob(value)  # type: ignore[no-untyped-call]
        if base._validate_args:
            base._validate_sample(value)
        logits = base.logits
        linear = (value * logits).sub_(logits.relu()).flatten(-count).sum(-1)
        num_factors = self.event_shape.numel()
        sizes = [size for size in range(1, _MOST_FACTORS + 1) if num_factors % size == 0]
        # Prefer a size that fills whole vector registers.
        size = max([size for size in sizes if num_factors // size % _LANES == 0] or sizes)
        factors = logits.abs().sigmoid_().flatten(-count).unflatten(-1, (size, -1))
        return linear + factors.prod(-2).log_().sum(-1)


class PseudoBernoulli(LogitBernoulli):
    """A Bernoulli whose log-probability is also taken at grey values in [0, 1].

        log_prob(x) = x log p + (1 - x) log(1 - p)

    On 0 and 1 this is the Bernoulli. Between them it is the cross-entropy that most of the posts train with: a
    pseudo-likelihood, since its exponential does not integrate to 1 over [0, 1]. An ELBO made of it is a pseudo-ELBO,
    which is not a bound on a log-likelihood of the grey x. Since the log-probability is linear in x, it is the mean
    E_{b ~ Bernoulli(x)} [log Bernoulli(b; p)] over binarizations; a pseudo-ELBO is therefore a lower bound on
    E_b [log p(b)], with an encoder that sees x instead of b.

    Raises:
        ValueError: `log_prob` at a value outside [0, 1] or NaN (torch's own validation).

    Reference:
        Loaiza-Ganem and Cunningham, arXiv:1907.06845, section 1 (the neglected normalising constant).
    """

    support = constraints.unit_interval
