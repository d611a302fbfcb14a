"""Vectors of categories, each as values of which one is 1; and all codes of a discrete latent, where they are few."""

from __future__ import annotations

import itertools
from typing import Any, ClassVar

import torch
from pyro.distributions import Bernoulli, OneHotCategorical
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import constraints, kl_divergence, register_kl

from pvae.core.errors import InputError

__all__ = ["MOST_CODES", "OneHotVector", "codes", "num_codes"]

MOST_CODES = 4096


class OneHotVector(TorchDistribution):
    """N independent categorical variables of K classes, as one vector of N K values; one value of each K is 1.

        p(z) = prod_n prod_k probs_nk^(z_nk)

    Args:
        logits: (..., N K), of any scale; those of each variable are normalised.
        num_classes: K.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    support = constraints.independent(constraints.boolean, 1)

    def __init__(self, logits: Tensor, num_classes: int) -> None:
        self.classes = OneHotCategorical(logits=logits.unflatten(-1, (-1, num_classes)), validate_args=False)
        super().__init__(logits.shape[:-1], logits.shape[-1:], validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> OneHotVector:
        """Return this distribution expanded to another batch shape."""
        logits = self.logits.expand(*batch_shape, *self.event_shape)
        return OneHotVector(logits, self.num_classes)

    @property
    def num_classes(self) -> int:
        """K, the number of classes of each variable."""
        return self.classes.event_shape[0]

    @property
    def logits(self) -> Tensor:
        """The normalised logits, log probs, (..., N K)."""
        return self.classes.logits.flatten(-2)

    @property
    def probs(self) -> Tensor:
        """The probabilities, (..., N K)."""
        return self.classes.probs.flatten(-2)

    @property
    def mean(self) -> Tensor:
        """The probabilities, (..., N K)."""
        return self.probs

    @property
    def variance(self) -> Tensor:
        """The variances, (..., N K)."""
        return self.classes.variance.flatten(-2)

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        """Return draws, sample_shape + (..., N K)."""
        return self.classes.sample(sample_shape).flatten(-2)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log p(z) of vectors (..., N K), in nats; of other values than 0 and 1 it is linear in z."""
        logits = self.logits.clamp(min=torch.finfo(value.dtype).min)  # and not 0 times -inf
        return (value * logits).sum(-1)

    def entropy(self) -> Tensor:
        """Return the entropy, in nats."""
        return self.classes.entropy().sum(-1)


@register_kl(OneHotVector, OneHotVector)  # type: ignore[untyped-decorator]
def kl_one_hot_vectors(q: OneHotVector, p: OneHotVector) -> Tensor:
    """Return KL(q || p), in nats, of the batch shape: the sum over the variables."""
    return kl_divergence(q.classes, p.classes).sum(-1)


def num_codes(distribution: Any) -> float:
    """Return the number of values of a vector of bits or categories, inf of any other distribution."""
    if isinstance(distribution, OneHotVector):
        return distribution.num_classes ** (distribution.event_shape[0] // distribution.num_classes)
    if isinstance(getattr(distribution, "base_dist", None), Bernoulli) and len(distribution.event_shape) == 1:
        return 2 ** distribution.event_shape[0]
    return float("inf")


def codes(distribution: Any) -> Tensor:
    """Return all values of a vector of bits or categories, (C, L), in the dtype of its probabilities.

    Raises:
        InputError: it has more than 4,096 values, or is no such vector.
    """
    if (number := num_codes(distribution)) > MOST_CODES:
        what = f"{distribution.event_shape[0]} latent values" if number < float("inf") else "a latent of real numbers"
        raise InputError(f"the codes of {what} cannot be summed over: it takes at most {MOST_CODES:,}, as of 12 bits")
    size, probs = distribution.event_shape[0], distribution.mean
    if isinstance(distribution, OneHotVector):
        each = [*torch.eye(distribution.num_classes).to(probs)]
        return torch.stack([torch.cat(one) for one in itertools.product(each, repeat=size // len(each))])
    return torch.cartesian_prod(*[torch.arange(2.0).to(probs)] * size).view(-1, size)
