"""Bernoullis of logits: over binary pixels, over grey ones as a pseudo-likelihood, and over a whole image at once."""

from __future__ import annotations

import math
from typing import ClassVar

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from pvae.core.torch_private import is_followed

__all__ = ["JointBernoulli", "LogitBernoulli", "PseudoBernoulli"]

_MOST_FACTORS = 64  # each at least 1/2: 2^-64 is far from the smallest float32
_LANES = 16  # of a vector register


def _lies_within(low: float, values: Tensor, high: float) -> Tensor:
    """Return whether all values do, none NaN, from one pass over them: one flag, where torch makes one for each."""
    least, greatest = torch.aminmax(values.detach())  # NaN makes both comparisons false
    return (least >= low) & (greatest <= high)


class _Real(constraints.Constraint):
    """torch's `constraints.real`, but for a whole tensor at once."""

    def check(self, value: Tensor) -> Tensor:
        """Return one flag."""
        if torch.compiler.is_compiling():
            return torch.tensor(True)  # torch before 2.15 cannot export its look at what is found
        return _lies_within(-math.inf, value, math.inf) if value.numel() else value.new_ones((), dtype=torch.bool)


class LogitBernoulli(dist.Bernoulli):  # type: ignore[misc]  # Pyro makes its classes at run time
    """Pyro's Bernoulli of logits l, of which many may be one event: an image.

    What torch.compile and torch.export trace of it looks at no values: it is not validated.
    """

    arg_constraints: ClassVar = {**dist.Bernoulli.arg_constraints, "logits": _Real()}

    def _validate_sample(self, value: Tensor) -> None:
        if not torch.compiler.is_compiling():  # as above
            super()._validate_sample(value)

    def to_event(self, reinterpreted_batch_ndims: int | None = None) -> TorchDistribution:
        """Return the distribution of which the last dimensions are one event."""
        count = len(self.batch_shape) if reinterpreted_batch_ndims is None else reinterpreted_batch_ndims
        return JointBernoulli(self, count) if count > 0 else super().to_event(count)


class JointBernoulli(dist.Independent):
    """Independent Bernoullis of logits l as one event of D numbers, with one logarithm for many of them.

        log_prob(x) = sum_d (x_d l_d - max(l_d, 0))  +  sum over groups of  log prod_{d in group} sigmoid(|l_d|)

    since log(1 + exp(l)) = max(l, 0) - log sigmoid(|l|). Each factor is at least 1/2 and a group has at most 64, so no
    product underflows. It is computed so without gradients, where the logarithms would be most of the work beside the
    products of matrices; with gradients it is the sum of the elementwise log-probabilities.
    """

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log p(value), of the batch shape."""
        base, count = self.base_dist, self.reinterpreted_batch_ndims
        log_prob: Tensor
        if torch.is_grad_enabled() or base.logits.dtype not in (torch.float32, torch.float64):
            log_prob = super().log_prob(value)  # type: ignore[no-untyped-call]
            return log_prob
        if base._validate_args:
            base._validate_sample(value)
        logits = base.logits
        linear = (value * logits).sub_(logits.relu()).flatten(-count).sum(-1)
        size = _group_size(self.event_shape.numel())
        factors = logits.abs().sigmoid_().flatten(-count).unflatten(-1, (size, -1))
        log_prob = linear + factors.prod(-2).log_().sum(-1)
        return log_prob


def _group_size(count: int) -> int:
    """Return how many of so many factors are multiplied: a divisor of them, which leaves whole registers if it can."""
    divisors = [size for size in range(1, _MOST_FACTORS + 1) if count % size == 0]
    return max([size for size in divisors if count // size % _LANES == 0] or divisors)


class PseudoBernoulli(LogitBernoulli):
    """A Bernoulli whose log-probability is also taken at grey values in [0, 1].

        log_prob(x) = x log p + (1 - x) log(1 - p)

    On 0 and 1 this is the Bernoulli. Between them it is the cross-entropy that most of the source documents
    train with: a pseudo-likelihood, since its exponential does not integrate to 1 over [0, 1]. A bound made of
    it is a pseudo-ELBO: it bounds no log-likelihood of the grey x. Being linear in x it is a mean over
    binarizations, E_{b ~ Bernoulli(x)} [log Bernoulli(b; p)], so what a pseudo-ELBO does bound from below is
    E_b [log p(b)], with an encoder that sees x in place of b.

    Raises:
        ValueError: `log_prob` at a value outside [0, 1] or NaN (torch's own validation).

    Reference:
        Loaiza-Ganem and Cunningham, arXiv:1907.06845, section 1 (the neglected normalising constant).
    """

    support = constraints.unit_interval

    def _validate_sample(self, value: Tensor) -> None:
        """Refuse what torch refuses, which looks at all pixels several times before it says that all is well."""
        if not self._holds(value):
            super()._validate_sample(value)

    def _holds(self, value: Tensor) -> bool:
        """Whether a value of its own shape, or of the last dimensions of it, is plainly within [0, 1]."""
        if not isinstance(value, Tensor) or not value.numel() or is_followed(value, self.logits):
            return False  # under torch.vmap and torch.export a look at the numbers is torch's own affair
        shape = self.batch_shape[len(self.batch_shape) - value.dim() :]
        return value.shape == shape and bool(_lies_within(0, value, 1))
