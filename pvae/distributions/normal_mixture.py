"""`NormalMixture`, a mixture of diagonal Normals whose draws have gradients."""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import torch
from torch import Size, Tensor
from torch.nn.functional import linear, pad

__all__ = ["NormalMixture"]


class NormalMixture(dist.MixtureSameFamily):  # type: ignore[misc]
    """A mixture of M Normals over L independent dimensions, whose draws have gradients by all parameters.

        q(z) = sum_m weight_m Normal(z; loc_m, scale_m^2)

    The gradient dz of a draw moves z such that q changes as its parameters do, at fixed noise. By loc_m and scale_m it
    is that of a draw from the component, times the probability r_m(z) that z came from it:

        dz = sum_m r_m(z) (dloc_m + dscale_m (z - loc_m) / scale_m)

    By the weights it is implicit. The values u_l = P(Z_l <= z_l | z_1..z_(l-1)) of the conditional distribution
    functions are uniform and stay fixed: dz = -(du/dz)^-1 du/dweights dweights, with a triangular du/dz.

    Where components lie far apart, few draws have a gradient by the weights, and theirs is large. Unlike
    `pyro.distributions.MixtureOfDiagNormals`, no density of all dimensions is computed outside the logarithm, which
    overflows in float32 from about 30 dimensions on.

    The log-density of a single mixture at many z is a matrix product, in float64 because its terms cancel:

        sum_l (z_l - loc_ml)^2 / s_ml  =  sum_l z_l^2 / s_ml - 2 z_l loc_ml / s_ml + loc_ml^2 / s_ml,    s = scale^2

    Args:
        mixture_distribution: `Categorical`, batch shape (..., M).
        component_distribution: `Normal(...).to_event(1)`, batch shape (..., M), event shape (L,).

    Reference:
        Figurnov, Mohamed and Mnih, arXiv:1805.08498; Jankowiak and Karaletsos, arXiv:1806.01856.
    """

    has_rsample = True
    _unexpanded: NormalMixture | None = None

    def expand(self, batch_shape: Any, _instance: Any = None) -> NormalMixture:
        """Return the same mixture over a larger batch shape."""
        new: NormalMixture = super().expand(batch_shape, _instance)
        new._unexpanded = self._unexpanded or self
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log q(value), of the broadcast batch shape, in nats."""
        mixture = self._unexpanded or self
        if mixture.batch_shape:
            log_prob: Tensor = super().log_prob(value)
            return log_prob
        if self._validate_args:
            self._validate_sample(value)
        normal: Any = mixture.component_distribution.base_dist
        z, loc, scale = value.double(), normal.loc.double(), normal.scale.double()
        precision = scale.square().reciprocal()
        by_component = mixture.mixture_distribution.logits - (0.5 * loc.square() * precision + scale.log()).sum(-1)
        by_component = by_component - 0.5 * math.log(2 * math.pi) * value.shape[-1]
        weight = torch.cat([loc * precision, -0.5 * precision], -1)
        log_terms = linear(torch.cat([z, z.square()], -1), weight, by_component)
        log_density = log_terms.to(value.dtype).logsumexp(-1)
        return log_density.expand(torch.broadcast_shapes(value.shape[:-1], self.batch_shape))

    def rsample(self, sample_shape: Any = Size()) -> Tensor:  # noqa: B008
        """Return reparameterised draws, sample_shape + (..., L)."""
        normal: Any = self.component_distribution.base_dist
        shape = self._extended_shape(Size(sample_shape))
        with torch.no_grad():
            # Inversion and not `multinomial`, which draws other values for an expanded distribution.
            uniform = torch.rand(*shape[:-1], 1, dtype=normal.loc.dtype, device=normal.loc.device)
            below = (uniform > self.mixture_distribution.probs.cumsum(-1)[..., :-1]).sum(-1)[..., None, None]
            index = below.expand(*shape[:-1], 1, shape[-1])
            loc, scale = (one.expand(*index.shape[:-2], *one.shape[-2:]) for one in (normal.loc, normal.scale))
            z = (loc.gather(-2, index) + scale.gather(-2, index) * torch.randn_like(index, dtype=loc.dtype)).squeeze(-2)
        return self.reparameterised(z)

    def sample(self, sample_shape: Any = Size()) -> Tensor:  # noqa: B008
        """Return draws without a gradient, sample_shape + (..., L)."""
        with torch.no_grad():
            return self.rsample(sample_shape)

    def reparameterised(self, z: Tensor) -> Tensor:
        """Return given draws z, (..., L), with the gradient by the parameters of the mixture."""
        if not torch.is_grad_enabled():
            return z
        normal: Any = self.component_distribution.base_dist
        logits = self.mixture_distribution.logits  # (..., M), normalised
        with torch.no_grad():
            e = (z.unsqueeze(-2) - normal.loc) / normal.scale  # (..., M, L), as all below
            log_density, below = normal.log_prob(z.unsqueeze(-2)), torch.special.ndtr(e)
            posterior = (logits + log_density.sum(-1)).softmax(-1).unsqueeze(-1)
        by_components = (posterior * (normal.loc + normal.scale * e)).sum(-2)
        # Of each component, the probability given the dimensions before l.
        before = pad(log_density[..., :-1].cumsum(-1), (1, 0))
        share = (logits.unsqueeze(-1) + before).softmax(-2)
        u = (share * below).sum(-2)
        with torch.no_grad():
            excess = share * (below - u.unsqueeze(-2))
            density = (share * log_density.exp()).sum(-2)  # of z_l given the dimensions before
            by_z = (excess.mT @ (-e / normal.scale)).tril(-1) + torch.diag_embed(density)
        by_weights = torch.linalg.solve_triangular(by_z, (u - u.detach()).unsqueeze(-1), upper=False).squeeze(-1)
        return z + (by_components - by_components.detach()) - by_weights
