"""Modules that return an approximate posterior q(z | x)."""

from __future__ import annotations

from collections.abc import Sequence

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from pvae.core.errors import InputError
from pvae.distributions.discrete import BitVector, OneHotVector, QuantizedPoint
from pvae.distributions.flow import Flow, Planar
from pvae.distributions.full_normal import FullNormal
from pvae.distributions.power_spherical import PowerSpherical
from pvae.models.flows import autoregressive_transforms, composed

__all__ = [
    "BernoulliPosterior",
    "CategoricalPosterior",
    "DeltaPosterior",
    "FullNormalPosterior",
    "IAFPosterior",
    "NormalPosterior",
    "PlanarPosterior",
    "PowerSphericalPosterior",
    "QuantizedPosterior",
    "bits",
    "bounded_normal",
]


class NormalPosterior(nn.Module):
    """The approximate posterior of independent Normals, whose parameters are the encoder's output.

        q(z | x) = prod_l Normal(z_l; loc_l(x), scale_l(x)^2)

    The encoder's output is (loc, log scale) as in the Deep Bayes course, so that scale = exp(output), or
    (loc, log variance) as in the other posts, so that scale = exp(output / 2). Both give the same family of
    distributions; only the size of a gradient step on the scale differs.

    Args:
        encoder: a network from (B, C, H, W) to (B, 2 L).
        log_variance: the second half of the output is the log variance.

    Raises:
        InputError: (when used) the encoder returns an odd number of values.

    Reference:
        Kingma and Welling, arXiv:1312.6114, equation 9.
    """

    def __init__(self, encoder: nn.Module, log_variance: bool = False) -> None:
        super().__init__()
        self.encoder = encoder
        self.log_variance = log_variance

    def forward(self, x: Tensor) -> dist.Independent:
        """Return q(z | x): batch shape (B,), event shape (L,)."""
        return bounded_normal(self.encoder(x), self.log_variance)


def bounded_normal(parameters: Tensor, log_variance: bool = False) -> dist.Independent:
    """Return Normal(loc, scale) over L dimensions, with the scale between exp(-7) and exp(7), 0.0009 and 1097.

    Without bounds, the scale of a layer with a learned prior can underflow to 0, and log q(z | x) is then infinite.

    Args:
        parameters: the output of a network, (..., 2 L): loc and log scale.
        log_variance: the second half is the log variance.

    Returns:
        Batch shape (...), event shape (L,).

    Raises:
        InputError: the last dimension is odd.

    Reference:
        Tomczak and Welling, arXiv:1705.07120, bound the log variance in their released code, to [-6, 2].
    """
    if parameters.shape[-1] % 2:
        number = parameters.shape[-1]
        raise InputError(f"a network must return an even number of values, loc and log scale, and returned {number}")
    loc, log_scale = parameters.chunk(2, dim=-1)
    if log_variance:
        log_scale = 0.5 * log_scale
    log_scale = log_scale.clamp(-7, 7)
    return dist.Normal(loc, log_scale.exp()).to_event(1)


class BernoulliPosterior(nn.Module):
    """The approximate posterior of independent bits, whose logits are the encoder's output.

        q(z | x) = prod_l Bernoulli(z_l; sigmoid(output_l(x)))

    A draw has no derivative: train it by `--elbo arms`, `disarm`, `score-loo` or `vimco`, or by a relaxation.

    Args:
        encoder: a network from (B, *D) to (B, L).

    Reference:
        Mnih and Gregor, arXiv:1402.0030.
    """

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, x: Tensor) -> dist.Independent:
        """Return q(z | x): batch shape (B,), event shape (L,)."""
        return bits(self.encoder(x))


class CategoricalPosterior(nn.Module):
    """The approximate posterior of N independent variables of K classes, whose logits are the encoder's output.

        q(z | x) = prod_n Categorical(z_n; softmax(output_n(x)))

    A draw is a vector of N K values, and has no derivative, as that of `BernoulliPosterior`.

    Args:
        encoder: a network from (B, *D) to (B, N K).
        num_classes: K, of each variable.

    Reference:
        Jang, Gu and Poole, arXiv:1611.01144.
    """

    def __init__(self, encoder: nn.Module, num_classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.num_classes = num_classes

    def forward(self, x: Tensor) -> OneHotVector:
        """Return q(z | x): batch shape (B,), event shape (N K,)."""
        return OneHotVector(self.encoder(x), self.num_classes)


def bits(logits: Tensor) -> BitVector:
    """Return independent bits with these logits (..., L): event shape (L,)."""
    return BitVector(dist.Bernoulli(logits=logits), 1)


class FullNormalPosterior(nn.Module):
    """The approximate posterior of a Normal whose latent dimensions are correlated.

        q(z | x) = Normal(z; loc(x), T(x) T(x)^T)

    T is lower triangular. Its diagonal is exp(output), between exp(-7) and exp(7); the elements below it are outputs of
    the encoder, divided by L.

    Args:
        encoder: a network from (B, C, H, W) to (B, 2 L + L (L - 1) / 2): loc, log of the diagonal, the other elements
            of T by rows.
        latent_dim: L, the number of latent dimensions.

    Reference:
        Kingma and Welling, arXiv:1906.02691, section 2.5.1.
    """

    rows: Tensor

    def __init__(self, encoder: nn.Module, latent_dim: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.latent_dim = latent_dim
        self.register_buffer("rows", torch.tril_indices(latent_dim, latent_dim, -1), persistent=False)

    def forward(self, x: Tensor) -> FullNormal:
        """Return q(z | x): batch shape (B,), event shape (L,)."""
        length = self.latent_dim
        loc, log_diagonal, below = self.encoder(x).split([length, length, self.rows.shape[1]], dim=-1)
        scale_tril = torch.diag_embed(log_diagonal.clamp(-7, 7).exp())
        scale_tril[..., self.rows[0], self.rows[1]] = below / length
        return FullNormal(loc, scale_tril=scale_tril)


class IAFPosterior(nn.Module):
    """An approximate posterior by inverse autoregressive flow: a diagonal Normal, transformed T times.

        e ~ Normal(loc(x), scale(x)^2),    z = f_T(... f_1(e, h(x)) ..., h(x))

    Each f_t is masked autoregressive, with affine functions or splines of each dimension (see `pvae.models.flows`), and
    taken in the direction in which a draw is one pass. The density of other points than a draw takes L passes through
    each f_t. With --elbo stl, dreg, score and score-loo, which evaluate log q at a detached draw, a step takes L
    backward passes through each f_t (see `Flow`).

    Args:
        encoder: a network from (B, C, H, W) to (B, 2 L + num_context): loc, log scale, h.
        latent_dim: L, the number of latent dimensions.
        num_transforms: T, the number of transforms.
        hidden: widths of the hidden layers of each masked network.
        num_context: length of h.
        num_bins: of each spline; 0 for affine functions.

    Raises:
        InputError: zuko is not installed.

    Reference:
        Kingma et al., arXiv:1606.04934; Durkan et al., arXiv:1906.04032 (splines).
    """

    def __init__(
        self,
        encoder: nn.Module,
        latent_dim: int,
        num_transforms: int,
        hidden: Sequence[int],
        num_context: int,
        num_bins: int = 0,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.latent_dim = latent_dim
        self.num_context = num_context
        self.transforms = autoregressive_transforms(latent_dim, num_transforms, hidden, num_context, num_bins)

    def forward(self, x: Tensor) -> Flow:
        """Return q(z | x): batch shape (B,), event shape (L,)."""
        parameters, context = self.encoder(x).split([2 * self.latent_dim, self.num_context], dim=-1)
        return Flow(bounded_normal(parameters), composed(self.transforms, context))


class PlanarPosterior(nn.Module):
    """An approximate posterior by planar flows: a diagonal Normal, transformed T times.

        e ~ Normal(loc(x), scale(x)^2),    z = f_T(... f_1(e)),    f_t(e) = e + u_t(x) tanh(w_t(x) e + b_t(x))

    All parameters of the transforms are outputs of the encoder. Those of u_t are divided by L, so that the flow starts
    near the identity. See `pvae.distributions.flow` on what makes each transform invertible.

    Args:
        encoder: a network from (B, C, H, W) to (B, 2 L + T (2 L + 1)): loc, log scale, and u, w and b of each f_t.
        latent_dim: L, the number of latent dimensions.

    Reference:
        Rezende and Mohamed, arXiv:1505.05770, section 4.
    """

    def __init__(self, encoder: nn.Module, latent_dim: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.latent_dim = latent_dim

    def forward(self, x: Tensor) -> Flow:
        """Return q(z | x): batch shape (B,), event shape (L,)."""
        length, output = self.latent_dim, self.encoder(x)
        parameters, transforms = output.split([2 * length, output.shape[-1] - 2 * length], dim=-1)
        u, w, b = transforms.unflatten(-1, (-1, 2 * length + 1)).tensor_split([length, 2 * length], dim=-1)
        return Flow(bounded_normal(parameters), Planar(u / length, w, b.squeeze(-1)))


class PowerSphericalPosterior(nn.Module):
    """An approximate posterior on the unit sphere in R^L, around the direction loc(x).

        q(z | x) = PowerSpherical(z; loc(x), k(x)),    log q(z | x) = k(x) log(1 + loc(x)^T z) + log C(k(x))

    C(k) normalises it. The concentration k is exp(output), between exp(-7) and exp(11), 0.0009 and 60,000.

    Args:
        encoder: a network from (B, C, H, W) to (B, L + 1): loc before it is divided by its norm, log concentration.

    Reference:
        De Cao and Aziz, arXiv:2006.04437.
    """

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, x: Tensor) -> PowerSpherical:
        """Return q(z | x): batch shape (B,), event shape (L,)."""
        loc, log_concentration = self.encoder(x).tensor_split([-1], dim=-1)
        loc = normalize(loc + 1e-6, dim=-1)  # 0 has no direction
        return PowerSpherical(loc, log_concentration.squeeze(-1).clamp(-7, 11).exp())


class QuantizedPosterior(nn.Module):
    """A point: N vectors of the encoder's output, each replaced by the nearest of the K codes of a codebook.

        z_n = argmin_{e in codebook} |h_n - e|^2,    dz_n / dh_n := 1
        penalty = sum_n |sg(h_n) - e_n|^2 + 0.25 |h_n - sg(e_n)|^2,  sg without a gradient: codebook and commitment

    It is a q(z | x) over K^N codes without entropy, so that with a uniform prior the rate is N log K whatever x is, and
    the ELBO is a bound. The penalty trains the codebook; it is no rate. A codebook that is fixed is the K levels from
    -1 to 1, at equal distances, of single values, of h = tanh(output), and has no penalty.

    Args:
        encoder: a network from (B, *D) to (B, N D).
        num_codes: K, the size of the codebook.
        code_dim: D, the length of a code.
        is_fixed: the codebook is that of levels, and D is 1.

    Reference:
        van den Oord, Vinyals and Kavukcuoglu, arXiv:1711.00937, equation 3; Mentzer et al., arXiv:2309.15505 (levels).
    """

    def __init__(self, encoder: nn.Module, num_codes: int, code_dim: int = 1, is_fixed: bool = False) -> None:
        super().__init__()
        self.encoder = encoder
        self.is_fixed = is_fixed
        first = torch.linspace(-1, 1, num_codes)[:, None] if is_fixed else torch.randn(num_codes, code_dim) / 10
        self.codebook = nn.Parameter(first, requires_grad=not is_fixed)

    def forward(self, x: Tensor) -> QuantizedPoint:
        """Return q(z | x): batch shape (B,), event shape (N D,)."""
        h = self.encoder(x).unflatten(-1, (-1, self.codebook.shape[1]))
        h = h.tanh() if self.is_fixed else h
        indices = (self.codebook.square().sum(-1) - 2 * h @ self.codebook.T).argmin(-1)
        code = self.codebook[indices]
        off = (code - h.detach()).square() + 0.25 * (h - code.detach()).square()
        penalty = (off * (not self.is_fixed)).sum((-2, -1))
        return QuantizedPoint((code.detach() + (h - h.detach())).flatten(-2), indices, penalty)  # the code to the bit


class DeltaPosterior(nn.Module):
    """A point mass: the deterministic code of an autoencoder.

        q(z | x) = Delta(z - encoder(x))

    Args:
        encoder: a network from (B, C, H, W) to (B, L).
    """

    has_density = False

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, x: Tensor) -> dist.Delta:
        """Return the point mass: batch shape (B,), event shape (L,)."""
        return dist.Delta(self.encoder(x), event_dim=1)
