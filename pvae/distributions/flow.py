"""`Flow`, the distribution of transformed draws."""

from __future__ import annotations

from typing import Any, ClassVar, Protocol

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Size, Tensor
from torch.distributions import constraints

__all__ = ["Bijection", "Flow"]


class Bijection(Protocol):
    """A differentiable bijection of vectors, as in `zuko.transforms`."""

    @property
    def inv(self) -> Bijection:
        """The inverse."""
        ...

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return y = f(x), (..., L), and log |det df/dx|, (...)."""
        ...


class Flow(TorchDistribution):
    """The distribution of z = f(e) with e from a base distribution: a normalising flow.

        log q(z) = log base(e) - log |det df/de|,    e = f^-1(z)

    At the last draw, `log_prob` takes the e that z was drawn with, and does not invert f, which may take L passes. At
    any other z, a detached copy of the draw among them, it inverts f; it also inverts f where gradients are enabled
    now but were not when z was drawn. Do not change a draw in place: `log_prob` would return the density of the draw.

    Args:
        base: a reparameterised distribution of vectors, event shape (L,), of the batch shape of the context of f.
        bijection: f, which may depend on a context for each element of the batch.

    Reference:
        Rezende and Mohamed, arXiv:1505.05770.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, base: TorchDistribution, bijection: Bijection) -> None:
        self.base, self.bijection = base, bijection
        self._drawn: tuple[Tensor, Tensor, bool] | None = None  # the last draw, its log-density, whether by autograd
        super().__init__(base.batch_shape, base.event_shape, validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Flow:
        """Return this distribution expanded to another batch shape."""
        return Flow(self.base.expand(batch_shape), self.bijection)

    def rsample(self, sample_shape: Any = Size()) -> Tensor:  # noqa: B008
        """Return reparameterised draws, sample_shape + (..., L)."""
        e = self.base.rsample(sample_shape)
        z, log_det = self.bijection.call_and_ladj(e)
        self._drawn = z, self.base.log_prob(e) - log_det, torch.is_grad_enabled()
        return z

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log q(z) of vectors (..., L), in nats."""
        if self._drawn is not None:
            drawn, log_q, has_gradient = self._drawn
            if value is drawn and (has_gradient or not torch.is_grad_enabled()):
                return log_q
        e, log_det = self.bijection.inv.call_and_ladj(value)
        return self.base.log_prob(e) + log_det

    @property
    def mean(self) -> Tensor:
        """Raise a `NotImplementedError`: it has no closed form."""
        raise NotImplementedError("the mean of a flow has no closed form: use estimate_mean(num_samples)")

    @torch.no_grad()
    def estimate_mean(self, num_samples: int) -> Tensor:
        """Return an estimate of the mean from draws, since it has no closed form; the base must be Normal.

        All elements of the batch share their noise, so that the means of equal distributions are equal.
        """
        mean, scale = self.base.mean, self.base.stddev
        noise = torch.randn(num_samples, *[1] * len(self.batch_shape), *self.event_shape).to(mean)
        return self.bijection.call_and_ladj(mean + scale * noise)[0].mean(0)
