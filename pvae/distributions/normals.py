"""Normals with a full covariance matrix, and mixtures of Normals whose log-density is a matrix product."""

from __future__ import annotations

import math
from typing import Any

import torch
from pyro.distributions import MixtureSameFamily, MultivariateNormal
from pyro.distributions.util import broadcast_shape
from torch import Size, Tensor
from torch.distributions import Independent, Normal, register_kl
from torch.nn.functional import linear

__all__ = ["FullNormal", "NormalMixture", "kl_full_normal"]

_EXACT = 8  # components
_FEW = 2**15  # values by components, for which fewer operators take less time than a matrix product


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


class NormalMixture(MixtureSameFamily):  # type: ignore[misc]
    """A mixture of M Normals, each over L independent dimensions.

        q(z) = sum_m weight_m Normal(z; loc_m, scale_m^2)

    The log-density of a single mixture at many z is a matrix product, in float64 as its terms cancel:

        sum_l (z_l - loc_ml)^2 / s_ml  =  sum_l z_l^2 / s_ml - 2 z_l loc_ml / s_ml + loc_ml^2 / s_ml,    s = scale^2

    If a term may exceed 10^8, as for narrow components far from 0, the left side is computed for the 8 components that
    contribute most to each z.

    Args:
        mixture_distribution: `Categorical`, batch shape (..., M).
        component_distribution: `Normal(...).to_event(1)`, batch shape (..., M), event shape (L,).
    """

    _unexpanded: NormalMixture | None = None

    def expand(self, batch_shape: Any, _instance: Any = None) -> NormalMixture:
        """Return the same mixture over a larger batch shape."""
        new: NormalMixture = super().expand(batch_shape, _instance)
        new._unexpanded = self._unexpanded or self
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log q(value), of the broadcast batch shape, in nats."""
        mixture = self._unexpanded or self
        normal: Any = mixture.component_distribution.base_dist
        shape = broadcast_shape(value.shape[:-1], self.batch_shape)
        if self._validate_args:
            self._validate_sample(value)
        is_trained = torch.is_grad_enabled()  # otherwise a density does not depend on how many others are asked for
        if mixture.batch_shape or len(normal.loc) <= _EXACT or (is_trained and value.numel() * len(normal.loc) <= _FEW):
            squares = ((value.unsqueeze(-2) - normal.loc) / normal.scale).square().sum(-1)
            log_scale = (normal.scale.log() + 0.5 * math.log(2 * math.pi)).sum(-1)
            log_terms = mixture.mixture_distribution.logits - log_scale - 0.5 * squares
            return log_terms.logsumexp(-1).expand(shape)
        z = value.double()
        loc = normal.loc.double()
        scale = normal.scale.double()
        precision = scale.square().reciprocal()
        by_component = mixture.mixture_distribution.logits - (0.5 * loc.square() * precision + scale.log()).sum(-1)
        by_component = by_component - 0.5 * math.log(2 * math.pi) * value.shape[-1]
        weight = torch.cat([loc * precision, -0.5 * precision], -1)
        log_terms = linear(torch.cat([z, z.square()], -1), weight, by_component)
        cancels = precision.amax() * torch.maximum(loc.abs().amax(), z.abs().amax()).square() > 1e8
        if not (is_trained or torch.compiler.is_compiling()) and not cancels:  # these refuse to read it
            return log_terms.to(value.dtype).logsumexp(-1).expand(shape)
        nearest = log_terms.topk(min(_EXACT, len(loc))).indices
        exact = Normal(loc[nearest], scale[nearest]).log_prob(z.unsqueeze(-2)).sum(-1)
        exact = exact + mixture.mixture_distribution.logits[nearest]
        log_terms = torch.where(cancels, log_terms.scatter(-1, nearest, exact), log_terms)
        log_density = log_terms.to(value.dtype).logsumexp(-1)
        return log_density.expand(shape)

    @torch.no_grad()
    def sample(self, sample_shape: Any = Size()) -> Tensor:  # noqa: B008
        """Return draws, sample_shape + (..., L), which have no gradient."""
        normal: Any = self.component_distribution.base_dist
        shape = self._extended_shape(Size(sample_shape))
        # Inversion and not `multinomial`, which draws other values for an expanded distribution.
        uniform = torch.rand(*shape[:-1], 1, dtype=normal.loc.dtype, device=normal.loc.device)
        below = (uniform > self.mixture_distribution.probs.cumsum(-1)[..., :-1]).sum(-1)[..., None, None]
        index = below.expand(*shape[:-1], 1, shape[-1])
        loc, scale = (each.expand(*index.shape[:-2], *each.shape[-2:]) for each in (normal.loc, normal.scale))
        z = loc.gather(-2, index) + scale.gather(-2, index) * torch.randn_like(index, dtype=loc.dtype)
        return z.squeeze(-2)
