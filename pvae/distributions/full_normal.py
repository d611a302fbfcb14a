"""`FullNormal`, the Normal distribution with a full covariance matrix."""

from __future__ import annotations

from typing import Any

from pyro.distributions import MultivariateNormal
from torch import Tensor
from torch.distributions import Independent, Normal, register_kl

__all__ = ["FullNormal", "kl_full_normal"]


class FullNormal(MultivariateNormal):
    """Pyro's `MultivariateNormal`, with a KL divergence in closed form from independent Normals.

    The divergence, `kl_full_normal`, is registered for this class alone: importing it must not change what
    `kl_divergence` returns for distributions of others.
    """


@register_kl(FullNormal, Independent)  # type: ignore[untyped-decorator]
def kl_full_normal(q: FullNormal, p: Independent[Any]) -> Tensor:
    """Return KL(q || p) of a Normal with full covariance T T^T from independent Normals, in nats, of the batch shape.

        sum_l [ log scale_l - log T_ll + (sum_j T_lj^2 + (loc_q - loc_p)_l^2) / (2 scale_l^2) - 1/2 ]

    Args:
        q: with an event of L dimensions.
        p: `Normal(...).to_event(1)` of the same event shape.

    Raises:
        NotImplementedError: p is independent in other than L Normals.
    """
    base = p.base_dist
    if not isinstance(base, Normal) or p.event_shape != q.event_shape:
        raise NotImplementedError(f"KL of a full Normal from {type(base).__name__} over {tuple(p.event_shape)}")
    scale_tril = q.scale_tril
    spread = scale_tril.square().sum(-1) + (q.loc - base.loc).square()
    logs = base.scale.log() - scale_tril.diagonal(dim1=-2, dim2=-1).log()
    return (logs + spread / (2 * base.scale.square()) - 0.5).sum(-1)
