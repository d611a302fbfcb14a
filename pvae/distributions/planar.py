"""`Planar`, a composition of planar transforms, each with an exact inverse."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import elu

__all__ = ["Planar"]

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
        self.u, self.w, self.b = u + ((self.slope - product) / norm).unsqueeze(-1) * w, w, b

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
        far, near = size - slope, size / (1 + slope)
        v = torch.where(slope > 0, torch.maximum(far, near), torch.minimum(far, near)).copysign(target)
        for _ in range(_STEPS):
            v = v - _step(v, slope, target)
    return v - _step(v, slope, target)  # the last step has the gradient of the root


def _step(v: Tensor, slope: Tensor, target: Tensor) -> Tensor:
    t = torch.tanh(v)
    return (v + slope * t - target) / (1 + slope * (1 - t.square()))
