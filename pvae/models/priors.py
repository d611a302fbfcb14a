"""Modules that return a prior p(z).

To add one, write a subclass of `Prior` with a name here, and a test of its density.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn
from torch.distributions import Independent, Normal, constraints

from pvae.core.options import Family, Option
from pvae.distributions.discrete import CodeVector, OneHotVector
from pvae.distributions.flow import Flow
from pvae.distributions.normals import NormalMixture
from pvae.distributions.power_spherical import SphereUniform
from pvae.models.posteriors import (
    Categories,
    FlowHidden,
    FlowLength,
    autoregressive_transforms,
    bits,
    bounded_normal,
    composed,
)

__all__ = [
    "BernoulliPrior",
    "CategoricalPrior",
    "CodebookPrior",
    "FlatPrior",
    "FlowPrior",
    "MixturePrior",
    "Prior",
    "SpherePrior",
    "StandardNormalPrior",
    "UniformBernoulliPrior",
    "UniformCategoricalPrior",
    "VampPrior",
]


_COMPONENTS = "number of Normals of a prior that is a mixture, or of pseudo-inputs"
_Components = Annotated[int, Option(help=_COMPONENTS, least=1, most=10**6)]


class Prior(nn.Module, Family):
    """A prior p(z).

    Attributes:
        support: what z is made of, which is the same for the posterior.
        is_of_posterior: it is made of posteriors at data of its own.
        has_exact_start: `pvae.models.start` can set it to a model in closed form.
        page: its name in `PRIORS` of `explore/network.js`; "" if the page does not compute it.
    """

    support = "real numbers"
    is_of_posterior = False
    has_exact_start = False
    page = ""


class StandardNormalPrior(Prior, name="standard-normal", help="N(0, I)"):
    """The standard Normal prior, whose dimensions are independent.

        p(z) = prod_l Normal(z_l; 0, 1)

    Args:
        latent_dim: L, the number of latent dimensions.
    """

    has_exact_start = True
    page = "normal"
    loc: Tensor
    scale: Tensor

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        # Buffers, so that .to(device) and .double() convert them; not persistent, because they are constants.
        self.register_buffer("loc", torch.zeros(latent_dim), persistent=False)
        self.register_buffer("scale", torch.ones(latent_dim), persistent=False)

    def forward(self) -> dist.Independent:
        """Return p(z): batch shape (), event shape (L,)."""
        return dist.Normal(self.loc, self.scale).to_event(1)


class BernoulliPrior(Prior, name="bits", help="learned, with --posterior bernoulli"):
    """The prior of independent bits, whose logits are learned, and start at 0.

        p(z) = prod_l Bernoulli(z_l; sigmoid(logit_l))

    Args:
        latent_dim: L, the number of bits.

    Attributes:
        is_learned: train the logits.
    """

    support = "bits"
    page = "bits"
    is_learned = True

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(latent_dim), requires_grad=self.is_learned)

    def forward(self) -> dist.Independent:
        """Return p(z): batch shape (), event shape (L,)."""
        return bits(self.logits)


class UniformBernoulliPrior(BernoulliPrior, name="uniform-bits", help="each bit 1 with probability 1/2"):
    """The same as `BernoulliPrior`, where each bit is 1 with probability 1/2."""

    is_learned = False


class CategoricalPrior(Prior, name="categories", help="learned, with --posterior categorical"):
    """The prior of N independent variables of K classes, whose logits are learned, and start at 0.

        p(z) = prod_n Categorical(z_n; softmax(logits_n))

    Args:
        latent_dim: N K, the length of z.
        categories: K, of each variable.

    Attributes:
        is_learned: train the logits.
    """

    support = "categories"
    is_learned = True

    def __init__(self, latent_dim: int, categories: Categories = 10) -> None:
        super().__init__()
        self.num_classes = categories
        self.logits = nn.Parameter(torch.zeros(latent_dim), requires_grad=self.is_learned)

    def forward(self) -> OneHotVector:
        """Return p(z): batch shape (), event shape (N K,)."""
        return OneHotVector(self.logits, self.num_classes)


class UniformCategoricalPrior(CategoricalPrior, name="uniform-categories", help="all classes equally probable"):
    """The same as `CategoricalPrior`, where all classes are equally probable."""

    is_learned = False


class CodebookPrior(Prior, name="uniform-codes", help="all codes equally probable, with --posterior vq or fsq"):
    """The uniform prior of N codes of the codebook of a posterior.

        log p(z) = - N log K

    Args:
        posterior: a `QuantizedPosterior`, whose codebook it is; it stays a part of the posterior.
        latent_dim: N D, the length of z.
    """

    support = "codes"

    def __init__(self, posterior: nn.Module, latent_dim: int) -> None:
        super().__init__()
        self._posterior = (posterior,)  # torch does not register modules in a tuple
        self.latent_dim = latent_dim

    def forward(self) -> CodeVector:
        """Return p(z): batch shape (), event shape (N D,)."""
        codebook: Tensor = self._posterior[0].get_parameter("codebook")
        return CodeVector(codebook, self.latent_dim // codebook.shape[1])


class FlatPrior(Prior):
    """An improper prior, from which no z can be drawn.

        log p(z) = 0

    With a `DeltaPosterior` the rate is then 0 and the loss is the distortion: an autoencoder.

    Args:
        latent_dim: L, the number of latent dimensions.
    """

    page = "flat"

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.latent_dim = latent_dim

    def forward(self) -> dist.ImproperUniform:
        """Return the improper prior: batch shape (), event shape (L,)."""
        return _Flat(constraints.real_vector, (), (self.latent_dim,))  # type: ignore[no-untyped-call]


class _Flat(dist.ImproperUniform):
    """Pyro's improper uniform distribution, with a log-density on the device and in the dtype of z."""

    def log_prob(self, value: Tensor) -> Tensor:
        return value.new_zeros(value.shape[:-1])


class MixturePrior(Prior, name="mixture", help="a learned mixture of Normals"):
    """A learned mixture of Normals.

        p(z) = sum_k weight_k prod_l Normal(z_l; loc_kl, scale_kl^2)

    The KL divergence from a posterior to it has no closed form. The locations start as draws from N(0, I),
    the scales at 1, and the weights equal. The scales have the bounds of `bounded_normal`.

    Args:
        latent_dim: L, the number of latent dimensions.
        components: K, the number of components.

    Reference:
        Tomczak and Welling, arXiv:1705.07120, section 2, compare it with the VampPrior ("MoG").
    """

    has_exact_start = True
    page = "mixture"

    def __init__(self, latent_dim: int, components: _Components = 500) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.randn(components, latent_dim))
        self.log_scale = nn.Parameter(torch.zeros(components, latent_dim))
        self.logits = nn.Parameter(torch.zeros(components))

    def forward(self) -> NormalMixture:
        """Return p(z): batch shape (), event shape (L,)."""
        components = bounded_normal(torch.cat([self.loc, self.log_scale], dim=-1))
        return NormalMixture(dist.Categorical(logits=self.logits), components)


class VampPrior(Prior, name="vamp", help="a mixture of the posteriors at learned pseudo-inputs"):
    """The mean of the approximate posteriors at K learned pseudo-inputs u_k.

        p(z) = (1/K) sum_k q(z | u_k)

    It changes as the encoder does, so the encoder's gradient has a part from the prior. The KL divergence to it has no
    closed form. Each step encodes the K pseudo-inputs too, and computes log q(z | u_k) of each draw, which is slow if
    that takes the inverse of a flow (see `IAFPosterior`).

    Args:
        posterior: returns q(z | x) of images (K, C, H, W): the VAE's posterior, or of a hierarchy a function that
            returns the distribution of its top layer. Its parameters are not registered here: they are trained and
            saved once, with the posterior.
        datum_shape: (C, H, W) of an image, after padding.
        components: K, the number of components.
        symmetric: pixels in [-1, 1] in place of [0, 1].

    Reference:
        Tomczak and Welling, arXiv:1705.07120, equation 9. Pseudo-inputs start near black here, inside the range of the
        pixels; a pixel that leaves the range has no gradient and stays there, as in the authors' code, which by default
        starts all of them at Normal(-0.05, 0.01^2), below the range.
    """

    is_of_posterior = True
    page = "mixture"
    logits: Tensor

    def __init__(
        self,
        posterior: Callable[[Tensor], TorchDistribution],
        datum_shape: Sequence[int],
        components: _Components = 500,
        symmetric: bool = False,
    ) -> None:
        super().__init__()
        # A method, and not its module, which torch would register here too.
        self._posterior = getattr(posterior, "forward", posterior)
        self.lowest = 0.0
        if symmetric:
            self.lowest = -1.0
        self.unclipped = nn.Parameter(self.lowest + 0.1 * torch.rand(components, *datum_shape))
        self.register_buffer("logits", torch.zeros(components), persistent=False)

    @property
    def pseudo_inputs(self) -> Tensor:
        """u_1..u_K, (K, C, H, W), in the range of the pixels."""
        return self.unclipped.clamp(self.lowest, 1.0)

    def forward(self) -> dist.MixtureSameFamily:
        """Return p(z): batch shape (), event shape (L,)."""
        components = self._posterior(self.pseudo_inputs)
        is_normal = isinstance(components, Independent) and isinstance(components.base_dist, Normal)
        mixture = NormalMixture if is_normal else dist.MixtureSameFamily
        return mixture(dist.Categorical(logits=self.logits), components)


class FlowPrior(Prior, name="flow", help="learned, by masked autoregressive flow, which needs zuko"):
    """A learned prior by masked autoregressive flow: p(z) is the density of z = f^-1(e) with e ~ N(0, I).

        log p(z) = log N(f(z); 0, I) + log |det df/dz|,    f = f_T(... f_1(z))

    Each f_t is taken in the direction in which the density is one pass, because training needs only that. A draw takes
    L passes through each f_t. The KL divergence from a posterior to it has no closed form.

    Args:
        latent_dim: L, the number of latent dimensions.
        flow_length: T, the number of transforms.
        flow_hidden: widths of the hidden layers of each masked network.

    Raises:
        InputError: zuko is not installed.

    Reference:
        Papamakarios et al., arXiv:1705.07057, section 3.1; Chen et al., arXiv:1611.02731, as the prior of a VAE.
    """

    page = "flow"

    def __init__(self, latent_dim: int, flow_length: FlowLength = 2, flow_hidden: FlowHidden = (100, 100)) -> None:
        super().__init__()
        self.base = StandardNormalPrior(latent_dim)
        self.transforms = autoregressive_transforms(latent_dim, flow_length, flow_hidden)

    def forward(self) -> Flow:
        """Return p(z): batch shape (), event shape (L,)."""
        return Flow(self.base(), composed(self.transforms).inv)


class SpherePrior(Prior, name="sphere", help="uniform on the unit sphere, with --posterior power-spherical"):
    """The uniform prior on the unit sphere in R^L, for a `PowerSphericalPosterior`.

        log p(z) = log Gamma(L / 2) - log 2 - (L / 2) log pi

    Args:
        latent_dim: L, the number of latent dimensions, at least 2.
    """

    support = "points on the unit sphere"
    page = "sphere"
    loc: Tensor

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.register_buffer("loc", torch.cat([torch.ones(1), torch.zeros(latent_dim - 1)]), persistent=False)

    def forward(self) -> SphereUniform:
        """Return p(z): batch shape (), event shape (L,)."""
        return SphereUniform(self.loc)
