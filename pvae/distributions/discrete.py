"""Vectors of categories, and of the codes of a codebook; and all values of a discrete latent, where they are few."""

from __future__ import annotations

import math
from typing import Any, ClassVar, cast

import torch
from pyro.distributions import Bernoulli, Delta, Independent, OneHotCategorical
from pyro.distributions.torch_distribution import TorchDistribution
from pyro.distributions.util import broadcast_shape
from torch import Tensor
from torch.distributions import constraints, register_kl
from torch.nn.functional import softplus

from pvae.core.errors import InputError

__all__ = [
    "MOST_CODES",
    "BitVector",
    "CodeVector",
    "OneHotVector",
    "QuantizedPoint",
    "codes",
    "num_codes",
    "rate_of_each",
    "support_of",
    "values_of",
]

MOST_CODES = 4096


class OneHotVector(TorchDistribution):
    """N independent categorical variables of K classes, as one vector of N K values; one value of each K is 1.

        p(z) = prod_n prod_k probs_nk^(z_nk)

    Args:
        logits: (..., N K), of any scale; those of each variable are normalised.
        num_classes: K, of each variable.
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

    @torch.no_grad()
    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        """Return draws, sample_shape + (..., N K), by operators that can be recorded."""
        probs = self.classes.probs.expand(*sample_shape, *self.classes.probs.shape)
        below = torch.rand_like(probs[..., :1]) >= probs.cumsum(-1)[..., :-1]
        return torch.zeros_like(probs).scatter_(-1, below.sum(-1, keepdim=True), 1.0).flatten(-2)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log p(z) of vectors (..., N K), in nats; of other values than 0 and 1 it is linear in z."""
        logits = self.logits.clamp(min=torch.finfo(value.dtype).min)  # and not 0 times -inf
        return (value * logits).sum(-1)

    def entropy(self) -> Tensor:
        """Return the entropy, in nats."""
        return self.classes.entropy().sum(-1)


class BitVector(Independent):
    """A vector of independent bits, `BitVector(Bernoulli(logits=logits), 1)`.

    It is an `Independent` whose KL divergence is finite also where a probability rounds to 0 or 1 in floats, as that of
    a bit that is 1 for all data, where torch's is infinite.
    """


def rate_of_each(q: Any, p: Any) -> Tensor:
    """Return KL(q || p) of each bit, (..., L), or of each variable of vectors of categories, (..., N), in nats.

        bits  m (a - b) - softplus(a) + softplus(b),  m = sigmoid(a)      categories  sum_k m_k (log m_k - log p_k)

    Args:
        q: a `BitVector` with logits a, or a `OneHotVector` with probabilities m.
        p: of the same class, with logits b, or probabilities p.
    """
    if isinstance(q, OneHotVector):
        ratio = q.classes.logits - p.classes.logits
        return (q.classes.probs * ratio.where(q.classes.probs > 0, 0.0)).sum(-1)
    a = q.base_dist.logits
    b = p.base_dist.logits
    return cast(Tensor, q.mean * (a - b) - softplus(a) + softplus(b))


@register_kl(BitVector, BitVector)  # type: ignore[untyped-decorator]
@register_kl(OneHotVector, OneHotVector)  # type: ignore[untyped-decorator]
def kl_discrete(q: Any, p: Any) -> Tensor:
    """Return KL(q || p), in nats, of the batch shape: the sum of `rate_of_each`."""
    return rate_of_each(q, p).sum(-1)


class _InCodebook(constraints.Constraint):
    """Vectors of codes of a codebook, to rounding."""

    event_dim = 1

    def __init__(self, codebook: Tensor) -> None:
        self.codebook = codebook
        super().__init__()

    def check(self, value: Tensor) -> Tensor:
        """Return whether each vector is one of codes."""
        parts = value.unflatten(-1, (-1, self.codebook.shape[1]))
        near = (parts[..., None, :] - self.codebook).abs().amax(-1).amin(-1)
        return (near < 1e-5 * (1 + self.codebook.abs().max())).all(-1)


class CodeVector(TorchDistribution):
    """N codes, each drawn uniformly from the K codes of a codebook, one after another.

        log p(z) = - N log K,    z of N codes

    Args:
        codebook: the K codes, (K, D).
        num_variables: N, the number of codes.
        batch_shape: the shape of the batch.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(self, codebook: Tensor, num_variables: int, batch_shape: Any = ()) -> None:
        self.codebook = codebook
        self.num_variables = num_variables
        event_shape = torch.Size([num_variables * codebook.shape[1]])
        super().__init__(torch.Size(batch_shape), event_shape, validate_args=False)

    @property
    def support(self) -> _InCodebook:
        """Vectors of codes."""
        return _InCodebook(self.codebook)

    def expand(self, batch_shape: Any, _instance: Any = None) -> CodeVector:
        """Return this distribution expanded to another batch shape."""
        return CodeVector(self.codebook, self.num_variables, batch_shape)

    @property
    def mean(self) -> Tensor:
        """The mean of the codebook, N times, (..., N D)."""
        return self.codebook.mean(0).repeat(self.num_variables).expand(*self.batch_shape, -1)

    @property
    def variance(self) -> Tensor:
        """The variance of the codebook, N times, (..., N D)."""
        return self.codebook.var(0, correction=0).repeat(self.num_variables).expand(*self.batch_shape, -1)

    @torch.no_grad()
    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        """Return draws, sample_shape + (..., N D)."""
        shape = (*sample_shape, *self.batch_shape, self.num_variables)
        return self.codebook[torch.randint(len(self.codebook), shape, device=self.codebook.device)].flatten(-2)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return - N log K of vectors (..., N D) of codes, in nats; other vectors are not looked for."""
        shape = broadcast_shape(value.shape[:-1], self.batch_shape)
        return value.new_full(shape, -self.num_variables * math.log(len(self.codebook)))


class QuantizedPoint(Delta):
    """A vector of codes, as a point whose gradient is that of what was quantized.

    Args:
        point: z, (B, N D).
        indices: of its codes in the codebook, int64 (B, N).
        distance: what is added to the loss of each datum, in nats, and is no part of the ELBO, (B,).
    """

    def __init__(self, point: Tensor, indices: Tensor, distance: Tensor) -> None:
        self.indices = indices
        self.distance = distance
        super().__init__(point, event_dim=1)  # type: ignore[no-untyped-call]

    def expand(self, batch_shape: Any, _instance: Any = None) -> QuantizedPoint:
        """Return this distribution expanded to another batch shape."""
        point = self.v.expand(*batch_shape, *self.event_shape)
        indices = self.indices.expand(*batch_shape, self.indices.shape[-1])
        return QuantizedPoint(point, indices, self.distance.expand(*batch_shape))

    def penalty(self, value: Tensor) -> Tensor:
        """Return what a training adds to the loss of each datum, (B,) nats."""
        return self.distance


def support_of(distribution: Any) -> str:
    """Return "bits", "categories" or "codes" of a vector of them, and "" of any other distribution."""
    if isinstance(distribution, OneHotVector):
        return "categories"
    if isinstance(distribution, CodeVector):
        return "codes"
    if isinstance(getattr(distribution, "base_dist", None), Bernoulli) and len(distribution.event_shape) == 1:
        return "bits"
    return ""


def num_codes(distribution: Any) -> float:
    """Return the number of values of a vector of bits, categories or codes, inf of any other distribution."""
    if not support_of(distribution):
        return math.inf
    each = values_of(distribution)
    return int(len(each) ** (distribution.event_shape[0] // each.shape[1]))


def codes(distribution: Any) -> Tensor:
    """Return all values of a vector of bits, categories or codes, (C, L), in the dtype of its mean.

    Raises:
        InputError: it has more than 4,096 values, or is no such vector.
    """
    number = num_codes(distribution)
    if number > MOST_CODES:
        raise InputError(
            f"a latent of {number:,} codes cannot be summed over: it takes at most {MOST_CODES:,}, as of 12 bits; take "
            "the method importance"
        )
    each = values_of(distribution)
    places = [torch.arange(len(each), device=each.device)] * (distribution.event_shape[0] // each.shape[1])
    return each[torch.cartesian_prod(*places).view(-1, len(places))].flatten(1)


def values_of(distribution: Any) -> Tensor:
    """Return the K values of one of the variables of a vector of bits, categories or codes, (K, D)."""
    support = support_of(distribution)
    if support == "codes":
        return cast(Tensor, distribution.codebook)
    if support == "categories":
        return torch.eye(distribution.num_classes).to(distribution.mean)
    return torch.arange(2.0).to(distribution.mean)[:, None]
