"""Modules that return an approximate posterior q(z | x).

To add one, write a subclass of `Posterior` with a name here, and a test of its density: flags, `Config`, refusals, the
book and the tests over all families read the class.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, ClassVar

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.nn.functional import normalize

from pvae.core.errors import InputError, brief
from pvae.core.options import Family, Option
from pvae.distributions.discrete import BitVector, OneHotVector, QuantizedPoint
from pvae.distributions.flow import Flow, Planar
from pvae.distributions.normals import FullNormal
from pvae.distributions.power_spherical import PowerSpherical

__all__ = [
    "BernoulliPosterior",
    "CategoricalPosterior",
    "Categories",
    "DeltaPosterior",
    "FlowHidden",
    "FlowLength",
    "FullNormalPosterior",
    "IAFPosterior",
    "LevelsPosterior",
    "LogVarianceNormalPosterior",
    "NormalPosterior",
    "PlanarPosterior",
    "Posterior",
    "PowerSphericalPosterior",
    "QuantizedPosterior",
    "SplinePosterior",
    "autoregressive_transforms",
    "bits",
    "bounded_normal",
    "composed",
]


_K_HELP = (
    "K, the number of classes of each latent variable: --latent-dim 200 --categories 10 are 20 variables; or of codes, "
    "or levels"
)
Categories = Annotated[int, Option(help=_K_HELP, least=2, most=10**4)]

_CodeDim = Annotated[
    int, Option(help="length of a code: --latent-dim 64 --code-dim 8 are 8 codes", least=1, most=10**6)
]

_LENGTH = "number of transforms of a flow, of the posterior's and of the prior's"
FlowLength = Annotated[int, Option(help=_LENGTH, least=1, most=1000)]
_HIDDEN = "widths of the hidden layers of each transform of an autoregressive flow"
FlowHidden = Annotated[Sequence[int], Option(help=_HIDDEN)]


class Posterior(nn.Module, Family):
    """An approximate posterior q(z | x), whose parameters are the outputs of an encoder.

    Args:
        encoder: a network from (B, *D) to (B, num_outputs).

    Attributes:
        support: what z is made of, which is the same for the prior.
        closed_forms: the names of the priors from which its KL divergence has a closed form.
        is_normal: a Normal of independent dimensions: each has a rate of its own.
        of_layers: the names of the inferences (`pvae.models.hierarchy`) in which it may be of several layers.
        has_density: it is a density; False for a point.
        has_exact_start: `pvae.models.start` can set it to a model in closed form.
        page: its kind in `POSTERIORS` of `explore/network.js`, and what else that takes; empty if the page does not
            compute it.
    """

    support = "real numbers"
    closed_forms: tuple[str, ...] = ()
    is_normal = False
    of_layers: tuple[str, ...] = ()
    has_density = True
    has_exact_start = False
    page: ClassVar[Mapping[str, Any]] = {}

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    @classmethod
    def num_outputs(cls, latent_dim: int) -> int:
        """Return the number of outputs of the encoder; a subclass may take more of its options."""
        return latent_dim


class NormalPosterior(Posterior, name="normal", help="the encoder's output is (loc, log scale)"):
    """The approximate posterior of independent Normals, whose parameters are the encoder's output.

        q(z | x) = prod_l Normal(z_l; loc_l(x), scale_l(x)^2)

    The encoder's output is (loc, log scale) as in the Deep Bayes course, so that scale = exp(output), or
    (loc, log variance) as in the other posts, so that scale = exp(output / 2). Both give the same family of
    distributions; only the size of a gradient step on the scale differs.

    Args:
        encoder: a network from (B, C, H, W) to (B, 2 L).

    Attributes:
        log_variance: the second half of the output is the log variance.

    Raises:
        InputError: (when used) the encoder returns an odd number of values.

    Reference:
        Kingma and Welling, arXiv:1312.6114, equation 9.
    """

    closed_forms = ("standard-normal",)
    is_normal = True
    of_layers: tuple[str, ...] = ("bottom-up", "ladder", "top-down")
    has_exact_start = True
    page: ClassVar[Mapping[str, Any]] = {"kind": "normal"}
    log_variance = False

    @classmethod
    def num_outputs(cls, latent_dim: int) -> int:
        """Return 2 L."""
        return 2 * latent_dim

    def forward(self, x: Tensor) -> dist.Independent:
        """Return q(z | x): batch shape (B,), event shape (L,)."""
        return bounded_normal(self.encoder(x), self.log_variance)


class LogVarianceNormalPosterior(NormalPosterior, name="normal-log-variance", help="(loc, log variance)"):
    """The same as `NormalPosterior`, where the encoder's output is (loc, log variance)."""

    of_layers = ("bottom-up",)
    page: ClassVar[Mapping[str, Any]] = {"kind": "normal", "log_variance": True}
    log_variance = True


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


class BernoulliPosterior(
    Posterior,
    name="bernoulli",
    help="bits, with --prior bits or uniform-bits, and --elbo score, score-loo, vimco or one of bits",
):
    """The approximate posterior of independent bits, whose logits are the encoder's output.

        q(z | x) = prod_l Bernoulli(z_l; sigmoid(output_l(x)))

    A draw has no derivative: train it by `ARMS`, `DisARM`, `LeaveOneOutScoreELBO` or `VIMCO`, or by a relaxation.

    Args:
        encoder: a network from (B, *D) to (B, L).

    Reference:
        Mnih and Gregor, arXiv:1402.0030.
    """

    support = "bits"
    closed_forms = ("bits", "uniform-bits")
    of_layers = ("bottom-up",)
    page: ClassVar[Mapping[str, Any]] = {"kind": "bits"}

    def forward(self, x: Tensor) -> dist.Independent:
        """Return q(z | x): batch shape (B,), event shape (L,)."""
        return bits(self.encoder(x))


class CategoricalPosterior(
    Posterior,
    name="categorical",
    help="--latent-dim / --categories variables of as many classes, with --prior categories or uniform-categories, and "
    "--elbo score, score-loo, vimco or one of categories",
):
    """The approximate posterior of N independent variables of K classes, whose logits are the encoder's output.

        q(z | x) = prod_n Categorical(z_n; softmax(output_n(x)))

    A draw is a vector of N K values, and has no derivative, as that of `BernoulliPosterior`.

    Args:
        encoder: a network from (B, *D) to (B, N K).
        categories: K, of each variable.

    Reference:
        Jang, Gu and Poole, arXiv:1611.01144.
    """

    support = "categories"
    closed_forms = ("categories", "uniform-categories")

    def __init__(self, encoder: nn.Module, categories: Categories = 10) -> None:
        super().__init__(encoder)
        self.num_classes = categories

    def forward(self, x: Tensor) -> OneHotVector:
        """Return q(z | x): batch shape (B,), event shape (N K,)."""
        return OneHotVector(self.encoder(x), self.num_classes)


def bits(logits: Tensor) -> BitVector:
    """Return independent bits with these logits (..., L): event shape (L,)."""
    return BitVector(dist.Bernoulli(logits=logits), 1)


class FullNormalPosterior(Posterior, name="normal-full", help="with a full covariance matrix"):
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

    closed_forms = ("standard-normal",)
    has_exact_start = True
    page: ClassVar[Mapping[str, Any]] = {"kind": "normal-full"}
    rows: Tensor

    def __init__(self, encoder: nn.Module, latent_dim: int) -> None:
        super().__init__(encoder)
        self.latent_dim = latent_dim
        self.register_buffer("rows", torch.tril_indices(latent_dim, latent_dim, -1), persistent=False)

    @classmethod
    def num_outputs(cls, latent_dim: int) -> int:
        """Return 2 L + L (L - 1) / 2."""
        return 2 * latent_dim + latent_dim * (latent_dim - 1) // 2

    def forward(self, x: Tensor) -> FullNormal:
        """Return q(z | x): batch shape (B,), event shape (L,)."""
        length = self.latent_dim
        loc, log_diagonal, below = self.encoder(x).split([length, length, self.rows.shape[1]], dim=-1)
        scale_tril = torch.diag_embed(log_diagonal.clamp(-7, 7).exp())
        scale_tril[..., self.rows[0], self.rows[1]] = below / length
        return FullNormal(loc, scale_tril=scale_tril)


def autoregressive_transforms(
    latent_dim: int, num_transforms: int, hidden: Sequence[int], num_context: int = 0, num_bins: int = 0
) -> nn.ModuleList:
    """Return T masked autoregressive transforms f_t; the order of the dimensions is reversed from one to the next.

        f_t(e, h)_l = g(e_l),    where the parameters of g depend on e_1..e_(l-1) and h

    Here g is affine, or a monotonic rational-quadratic spline on [-5, 5] and the identity outside. The transforms start
    near the identity: the last layer of each network has a hundredth of its usual weights.

    Args:
        latent_dim: L, the number of latent dimensions.
        num_transforms: T, the number of transforms.
        hidden: widths of the hidden layers of each masked network.
        num_context: length of h.
        num_bins: of each spline; 0 for an affine g.

    Raises:
        InputError: zuko is not installed.

    Reference:
        Papamakarios et al., arXiv:1705.07057; Durkan et al., arXiv:1906.04032 (splines).
    """
    forward, device, zuko = list(range(latent_dim)), torch.empty(0).device, _zuko()
    options: dict[str, Any] = {"hidden_features": hidden}
    if num_bins:
        options["univariate"] = zuko.transforms.MonotonicRQSTransform
        options["shapes"] = [(num_bins,), (num_bins,), (num_bins - 1,)]
    # On the CPU first, since zuko's masks cannot be computed on the meta device.
    with torch.device("cpu"), torch.random.fork_rng(devices=[], enabled=device.type == "meta"):
        transforms = [
            zuko.flows.MaskedAutoregressiveTransform(
                latent_dim, num_context, order=forward[::-1] if number % 2 else forward, **options
            )
            for number in range(num_transforms)
        ]
        for transform in transforms:
            last = transform.hyper[-1] if hasattr(transform, "hyper") else transform  # zuko has no network for L = 1
            for parameter in last.parameters():
                parameter.data.mul_(0.01)
    return nn.ModuleList(transforms).to(device)


def composed(transforms: Iterable[Any], context: Tensor | None = None) -> Any:
    """Return the `Bijection` f_T(... f_1(e, h) ..., h) of transforms at a context h, (..., num_context)."""
    return _zuko().transforms.ComposedTransform(*(transform(context) for transform in transforms))


def _zuko() -> Any:
    """Return zuko. Its import switches off the checks of all distributions, which are switched on again."""
    before = Distribution._validate_args  # noqa: SLF001 - torch has no public name for it
    try:
        return importlib.import_module("zuko")
    except ImportError as error:
        why = f"({brief(error)})"
        raise InputError(f"inverse and masked autoregressive flows need zuko: pip install zuko {why}") from None
    finally:
        Distribution.set_default_validate_args(before)


class IAFPosterior(Posterior, name="iaf", help="inverse autoregressive flow, which needs zuko"):
    """An approximate posterior by inverse autoregressive flow: a diagonal Normal, transformed T times.

        e ~ Normal(loc(x), scale(x)^2),    z = f_T(... f_1(e, h(x)) ..., h(x))

    Each f_t is one of `autoregressive_transforms`, with affine functions of each dimension, and taken in the direction
    in which a draw is one pass. The density of other points than a draw takes L passes through each f_t. Bounds that
    evaluate log q at draws without their path, as `DReG` and `ScoreELBO`, take L backward passes through each f_t in a
    step (see `Flow`).

    Args:
        encoder: a network from (B, C, H, W) to (B, 2 L + num_context): loc, log scale, h.
        latent_dim: L, the number of latent dimensions.
        num_context: length of h.
        flow_length: T, the number of transforms.
        flow_hidden: widths of the hidden layers of each masked network.

    Attributes:
        num_bins: of each spline; 0 for affine functions.

    Raises:
        InputError: zuko is not installed.

    Reference:
        Kingma et al., arXiv:1606.04934.
    """

    page: ClassVar[Mapping[str, Any]] = {"kind": "flow"}
    num_bins = 0

    def __init__(
        self,
        encoder: nn.Module,
        latent_dim: int,
        num_context: int,
        flow_length: FlowLength = 2,
        flow_hidden: FlowHidden = (100, 100),
    ) -> None:
        super().__init__(encoder)
        self.latent_dim = latent_dim
        self.num_context = num_context
        self.transforms = autoregressive_transforms(latent_dim, flow_length, flow_hidden, num_context, self.num_bins)

    @classmethod
    def num_outputs(cls, latent_dim: int, num_context: int) -> int:  # type: ignore[override]
        """Return 2 L + num_context."""
        return 2 * latent_dim + num_context

    def forward(self, x: Tensor) -> Flow:
        """Return q(z | x): batch shape (B,), event shape (L,)."""
        parameters, context = self.encoder(x).split([2 * self.latent_dim, self.num_context], dim=-1)
        return Flow(bounded_normal(parameters), composed(self.transforms, context))


class SplinePosterior(IAFPosterior, name="spline", help="the same with splines"):
    """The same as `IAFPosterior`, with monotonic rational-quadratic splines of each dimension.

    Reference:
        Durkan et al., arXiv:1906.04032.
    """

    num_bins = 8  # as in zuko's neural spline flow


class PlanarPosterior(Posterior, name="planar", help="planar flow"):
    """An approximate posterior by planar flows: a diagonal Normal, transformed T times.

        e ~ Normal(loc(x), scale(x)^2),    z = f_T(... f_1(e)),    f_t(e) = e + u_t(x) tanh(w_t(x) e + b_t(x))

    All parameters of the transforms are outputs of the encoder. Those of u_t are divided by L, so that the flow starts
    near the identity. See `pvae.distributions.flow` on what makes each transform invertible.

    Args:
        encoder: a network from (B, C, H, W) to (B, 2 L + T (2 L + 1)): loc, log scale, and u, w and b of each f_t.
        latent_dim: L, the number of latent dimensions.
        flow_length: T, the number of transforms.

    Reference:
        Rezende and Mohamed, arXiv:1505.05770, section 4.
    """

    page: ClassVar[Mapping[str, Any]] = {"kind": "planar"}

    def __init__(self, encoder: nn.Module, latent_dim: int, flow_length: FlowLength = 2) -> None:
        super().__init__(encoder)
        self.latent_dim = latent_dim
        self.flow_length = flow_length

    @classmethod
    def num_outputs(cls, latent_dim: int, flow_length: int) -> int:  # type: ignore[override]
        """Return 2 L + T (2 L + 1)."""
        return 2 * latent_dim + flow_length * (2 * latent_dim + 1)

    def forward(self, x: Tensor) -> Flow:
        """Return q(z | x): batch shape (B,), event shape (L,)."""
        length = self.latent_dim
        parameters, transforms = self.encoder(x).tensor_split([2 * length], dim=-1)
        u, w, b = transforms.unflatten(-1, (self.flow_length, 2 * length + 1)).tensor_split(
            [length, 2 * length], dim=-1
        )
        return Flow(bounded_normal(parameters), Planar(u / length, w, b.squeeze(-1)))


class PowerSphericalPosterior(Posterior, name="power-spherical", help="on the unit sphere, with --prior sphere"):
    """An approximate posterior on the unit sphere in R^L, around the direction loc(x).

        q(z | x) = PowerSpherical(z; loc(x), k(x)),    log q(z | x) = k(x) log(1 + loc(x)^T z) + log C(k(x))

    C(k) normalises it. The concentration k is exp(output), between exp(-7) and exp(11), 0.0009 and 60,000.

    Args:
        encoder: a network from (B, C, H, W) to (B, L + 1): loc before it is divided by its norm, log concentration.

    Reference:
        De Cao and Aziz, arXiv:2006.04437.
    """

    support = "points on the unit sphere"
    closed_forms = ("sphere",)
    page: ClassVar[Mapping[str, Any]] = {"kind": "power-spherical"}

    @classmethod
    def num_outputs(cls, latent_dim: int) -> int:
        """Return L + 1."""
        return latent_dim + 1

    def forward(self, x: Tensor) -> PowerSpherical:
        """Return q(z | x): batch shape (B,), event shape (L,)."""
        loc, log_concentration = self.encoder(x).tensor_split([-1], dim=-1)
        loc = normalize(loc + 1e-6, dim=-1)  # 0 has no direction
        return PowerSpherical(loc, log_concentration.squeeze(-1).clamp(-7, 11).exp())


class QuantizedPosterior(
    Posterior,
    name="vq",
    help="the nearest of --categories codes of --code-dim values, a codebook that is learned, with --prior "
    "uniform-codes",
):
    """A point: N vectors of the encoder's output, each replaced by the nearest of the K codes of a codebook.

        z_n = argmin_{e in codebook} |h_n - e|^2,    dz_n / dh_n := 1
        penalty = sum_n |sg(h_n) - e_n|^2 + 0.25 |h_n - sg(e_n)|^2,  sg without a gradient: codebook and commitment

    It is a q(z | x) over K^N codes without entropy, so that with a uniform prior the rate is N log K whatever x is, and
    the ELBO is a bound. The penalty trains the codebook; it is no rate.

    Args:
        encoder: a network from (B, *D) to (B, N D).
        categories: K, the size of the codebook.
        code_dim: D, the length of a code.

    Reference:
        van den Oord, Vinyals and Kavukcuoglu, arXiv:1711.00937, equation 3.
    """

    support = "codes"
    closed_forms = ("uniform-codes",)

    def __init__(self, encoder: nn.Module, categories: Categories = 10, code_dim: _CodeDim = 1) -> None:
        super().__init__(encoder)
        self.codebook = nn.Parameter(torch.randn(categories, code_dim) / 10)

    def forward(self, x: Tensor) -> QuantizedPoint:
        """Return q(z | x): batch shape (B,), event shape (N D,)."""
        h = self.values(self.encoder(x)).unflatten(-1, (-1, self.codebook.shape[1]))
        indices = (self.codebook.square().sum(-1) - 2 * h @ self.codebook.T).argmin(-1)
        code = self.codebook[indices]
        z = code.detach() + (h - h.detach())  # the code to the bit
        return QuantizedPoint(z.flatten(-2), indices, self.penalty(h, code).sum((-2, -1)))

    def values(self, output: Tensor) -> Tensor:
        """Return h, of the same shape, of the encoder's output."""
        return output

    def penalty(self, h: Tensor, code: Tensor) -> Tensor:
        """Return the penalty of each value, (B, N, D)."""
        return (code - h.detach()).square() + 0.25 * (h - code.detach()).square()


class LevelsPosterior(
    QuantizedPosterior, name="fsq", help="the same with the codebook of --categories levels of each latent dimension"
):
    """The same as `QuantizedPosterior`, with a codebook that is fixed, and no penalty.

    It is the K levels from -1 to 1, at equal distances, of single values, of h = tanh(output).

    Args:
        encoder: a network from (B, *D) to (B, N).
        categories: K, the number of levels.

    Reference:
        Mentzer et al., arXiv:2309.15505.
    """

    def __init__(self, encoder: nn.Module, categories: Categories = 10) -> None:
        Posterior.__init__(self, encoder)
        self.codebook = nn.Parameter(torch.linspace(-1, 1, categories)[:, None], requires_grad=False)

    def values(self, output: Tensor) -> Tensor:
        """Return tanh(output)."""
        return output.tanh()

    def penalty(self, h: Tensor, code: Tensor) -> Tensor:
        """Return zeros, (B, N, 1)."""
        return torch.zeros_like(h)


class DeltaPosterior(Posterior, name="delta", help="a point, without a prior, which makes an autoencoder"):
    """A point mass: the deterministic code of an autoencoder.

        q(z | x) = Delta(z - encoder(x))

    Args:
        encoder: a network from (B, C, H, W) to (B, L).
    """

    closed_forms = ("flat",)
    has_density = False
    page: ClassVar[Mapping[str, Any]] = {"kind": "delta"}

    def forward(self, x: Tensor) -> dist.Delta:
        """Return the point mass: batch shape (B,), event shape (L,)."""
        return dist.Delta(self.encoder(x), event_dim=1)
