"""`Flow`, the distribution of transformed draws."""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple, Protocol

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


class _Draw(NamedTuple):
    """The last draw z = f(e) of a flow, log q(z), and whether both have the graph of their gradients."""

    e: Tensor
    z: Tensor
    log_q: Tensor
    has_graph: bool


class Flow(TorchDistribution):
    """The distribution of z = f(e) with e from a base distribution: a normalising flow.

        log q(z) = log base(e) - log |det J|,    e = f^-1(z),    J = df/de

    `log_prob` inverts f, which may take L passes and is inexact in float32 where f is steep. At the last draw, or a
    detached copy that shares its memory, e is known and nothing is inverted: the derivative by z at fixed parameters is
    J^-T d/de (log base(e) - log |det J|), which takes L backward passes through f. Do not change a draw in place:
    `log_prob` would return the density of the draw.

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
        self._drawn: _Draw | None = None
        super().__init__(base.batch_shape, base.event_shape, validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Flow:
        """Return this distribution expanded to another batch shape."""
        return Flow(self.base.expand(batch_shape), self.bijection)

    def rsample(self, sample_shape: Any = Size()) -> Tensor:  # noqa: B008
        """Return reparameterised draws, sample_shape + (..., L)."""
        e = self.base.rsample(sample_shape)
        z, log_det = self.bijection.call_and_ladj(e)
        self._drawn = _Draw(e, z, self.base.log_prob(e) - log_det, torch.is_grad_enabled())
        return z

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log q(z) of vectors (..., L), in nats."""
        draw, has_grad = self._drawn, torch.is_grad_enabled()
        if draw is not None and (draw.has_graph or not has_grad):
            if value is draw.z:
                return draw.log_q
            if value.dtype == draw.z.dtype and value.is_set_to(draw.z):  # the same memory
                # The added term is 0. It gives the derivative by `value`, and takes that by the draw from log q(z).
                return draw.log_q + (self._derivative(draw.e) * (value - draw.z)).sum(-1) if has_grad else draw.log_q
        e, log_det = self.bijection.inv.call_and_ladj(value)
        return self.base.log_prob(e) + log_det

    def _derivative(self, e: Tensor) -> Tensor:
        """Return the derivative of log q(z) by z = f(e) at fixed parameters, (..., L).

        For each transform h -> f_t(h) in turn, that by f_t(h) is J_t^-T (that by h - d/dh log |det J_t|).
        """
        with torch.enable_grad():
            h = e.detach().requires_grad_()
            (by_h,) = torch.autograd.grad(self.base.log_prob(h).sum(), h)
            for transform in getattr(self.bijection, "transforms", [self.bijection]):
                y, log_det = transform.call_and_ladj(h)
                (by_h,) = torch.autograd.grad(((by_h * h).sum(-1) - log_det).sum(), h, retain_graph=True)
                rows = [torch.autograd.grad(one.sum(), h, retain_graph=True)[0] for one in y.unbind(-1)]
                by_h = torch.linalg.solve(torch.stack(rows, -1).double(), by_h.double()).to(e.dtype)
                h = y.detach().requires_grad_()
        return by_h

    @torch.no_grad()
    def estimate_mean(self, num_samples: int) -> Tensor:
        """Return an estimate of the mean from draws, since `mean` has no closed form; the base must be Normal.

        All elements of the batch share their noise, so that the means of equal distributions are equal.
        """
        mean, scale = self.base.mean, self.base.stddev
        noise = torch.randn(num_samples, *[1] * len(self.batch_shape), *self.event_shape).to(mean)
        return self.bijection.call_and_ladj(mean + scale * noise)[0].mean(0)
