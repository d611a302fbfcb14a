"""KL divergences in closed form that torch lacks, registered for `torch.distributions.kl_divergence`.

Each is from a class of this package, so that no other divergence in the process changes.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.distributions import Independent, Normal, register_kl

from pvae.distributions.full_normal import FullNormal
from pvae.distributions.power_spherical import PowerSpherical, SphereUniform

__all__ = ["kl_full_normal", "kl_power_spherical"]


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


@register_kl(PowerSpherical, SphereUniform)  # type: ignore[untyped-decorator]
def kl_power_spherical(q: PowerSpherical, p: SphereUniform) -> Tensor:
    """Return KL(q || p) = H(p) - H(q), the difference of the entropies, in nats, of the batch shape.

    Args:
        q: on the sphere in R^L.
        p: the uniform distribution on the same sphere.

    Reference:
        De Cao and Aziz, arXiv:2006.04437.
    """
    return p.entropy() - q.entropy()
