"""`Flow`, the distribution of transformed draws; and `Planar`, planar transforms with an exact inverse."""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple, Protocol

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Size, Tensor
from torch.distributions import constraints
from torch.nn.functional import elu

__all__ = ["Bijection", "Flow", "Planar"]


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
        self.base = base
        self.bijection = bijection
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
        draw = self._drawn
        has_grad = torch.is_grad_enabled()
        if draw is not None and (draw.has_graph or not has_grad):
            if value is draw.z:
                return draw.log_q
            if value.dtype == draw.z.dtype and value.is_set_to(draw.z):  # the same memory
                if not has_grad:
                    return draw.log_q
                # The added term is 0. It gives the derivative by `value`, and takes that by the draw from log q(z).
                return draw.log_q + (self._derivative(draw.e) * (value - draw.z)).sum(-1)
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
                rows = [torch.autograd.grad(output.sum(), h, retain_graph=True)[0] for output in y.unbind(-1)]
                by_h = torch.linalg.solve(torch.stack(rows, -1).double(), by_h.double()).to(e.dtype)
                h = y.detach().requires_grad_()
        return by_h

    @torch.no_grad()
    def estimate_mean(self, num_samples: int) -> Tensor:
        """Return an estimate of the mean from draws, since `mean` has no closed form; the base must be Normal.

        All elements of the batch share their noise, so that the means of equal distributions are equal.
        """
        mean = self.base.mean
        shared = torch.Size([1] * len(self.batch_shape))
        noise = torch.randn(num_samples, *shared, *self.event_shape).to(mean)
        return self.bijection.call_and_ladj(mean + self.base.stddev * noise)[0].mean(0)


_STEPS = 12  # of Newton's method; for w u' up to 10^5 the root is then exact to rounding in float64


class Planar:
    """T planar transforms, one after another: a `Bijection` of vectors with parameters for each element of the batch.

        f_t(z) = z + u'_t tanh(w_t z + b_t),    log |det| = log(1 + (1 - tanh(w_t z + b_t)^2) w_t u'_t)

    Each is invertible where w u' > -1. So u' is u with its part along w changed, such that w u' = elu(w u): it is u
    where w u >= 0, and u = 0 gives the identity. (The paper takes log(1 + exp(w u)) - 1 in place of elu; u = 0 is then
    far from the identity.) The product w u is clamped to [-7, 10^5], so that the determinant of each transform is
    at least exp(-7), and its inverse is exact to rounding.

    Args:
        u: the direction in which each transform moves z, (..., T, L).
        w: the direction along which it looks at z, (..., T, L).
        b: its offset, (..., T).

    Reference:
        Rezende and Mohamed, arXiv:1505.05770, equations 10 to 12 and appendix A.1.
    """

    def __init__(self, u: Tensor, w: Tensor, b: Tensor) -> None:
        product = (w * u).sum(-1)
        self.slope = elu(product.clamp(-7, 1e5))  # w u', greater than -1
        norm = w.square().sum(-1).clamp(min=torch.finfo(w.dtype).tiny)
        self.u = u + ((self.slope - product) / norm).unsqueeze(-1) * w
        self.w = w
        self.b = b

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return y = f_T(... f_1(x)), (..., L), and log |det dy/dx|, (...)."""
        log_det = x.new_zeros(x.shape[:-1])
        for u, w, b, slope in self._transforms():
            t = torch.tanh((w * x).sum(-1) + b)
            x = x + u * t.unsqueeze(-1)
            log_det = log_det + torch.log1p(slope * (1 - t.square()))
        return x, log_det

    @property
    def inv(self) -> _InversePlanar:
        """The inverse, which finds one root for each transform."""
        return _InversePlanar(self)

    def _transforms(self) -> list[tuple[Tensor, ...]]:
        return list(zip(self.u.unbind(-2), self.w.unbind(-2), self.b.unbind(-1), self.slope.unbind(-1)))


class _InversePlanar:
    def __init__(self, inv: Planar) -> None:
        self.inv = inv

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        log_det = x.new_zeros(x.shape[:-1])
        for u, w, b, slope in reversed(self.inv._transforms()):
            t = torch.tanh(_root(slope, (w * x).sum(-1) + b))
            x = x - u * t.unsqueeze(-1)
            log_det = log_det - torch.log1p(slope * (1 - t.square()))
        return x, log_det


def _root(slope: Tensor, target: Tensor) -> Tensor:
    """Return the v with v + slope tanh(v) = target, for slope > -1, with its gradient.

    The left side is odd, and for v > 0 concave (slope > 0) or convex (slope < 0). From a bound on the root on the
    proper side, Newton's method approaches it from this side only.
    """
    with torch.no_grad():
        size = target.abs()
        far = size - slope
        near = size / (1 + slope)
        v = torch.where(slope > 0, torch.maximum(far, near), torch.minimum(far, near)).copysign(target)
        for _ in range(_STEPS):
            v = v - _step(v, slope, target)
    return v - _step(v, slope, target)  # the last step has the gradient of the root


def _step(v: Tensor, slope: Tensor, target: Tensor) -> Tensor:
    t = torch.tanh(v)
    return (v + slope * t - target) / (1 + slope * (1 - t.square()))
