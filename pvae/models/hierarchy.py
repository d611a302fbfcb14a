"""Priors and posteriors of several stochastic layers z1, ..., zL, each of Normals, or of bits, given another layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Annotated, Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pvae.core.options import Family, Option
from pvae.core.protocol import PriorModule
from pvae.core.tracing import call_once
from pvae.distributions.joint import Joint
from pvae.models.networks import Activation, mlp
from pvae.models.posteriors import Posterior, bits, bounded_normal

Layer = Callable[[Tensor], dist.Independent]

__all__ = ["BottomUpPosterior", "FirstLayer", "HierarchyPrior", "Inference", "LadderPosterior", "TopDownPosterior"]

_HIDDEN = "widths of the hidden layers between two stochastic layers"
_UpperHidden = Annotated[Sequence[int], Option(help=_HIDDEN, needs="upper_latent_dims")]


class HierarchyPrior(nn.Module):
    """The prior of several layers: each lower one is Normal, or of bits, given the layer above it.

        p(z_1, ..., z_L) = p(z_L) prod_{l < L} Normal(z_l; loc_l(z_{l+1}), scale_l(z_{l+1})^2)

    Args:
        top: a module that returns p(zL).
        networks: for l = 1, ..., L - 1, from (..., L_l+1) to what `layer` takes: (..., 2 L_l), or of bits (..., L_l).
        sizes: L_1, ..., L_L, the number of latent dimensions of each layer.
        layer: from the output of a network to the distribution of z_l.

    Reference:
        Burda, Grosse and Salakhutdinov, arXiv:1509.00519.
    """

    def __init__(
        self, top: PriorModule, networks: Sequence[nn.Module], sizes: Sequence[int], layer: Layer = bounded_normal
    ) -> None:
        super().__init__()
        self.top = top
        self.networks = nn.ModuleList(networks)
        self.sizes = sizes
        self.layer = layer

    def forward(self) -> Joint:
        """Return p(z1, ..., zL): batch shape (), event shape (L_1 + ... + L_L,)."""
        return Joint(self.top.forward(), _given(reversed(self.networks), self.layer), self.sizes, top_down=True)


class BottomUpPosterior(nn.Module):
    """The approximate posterior of several layers, inferred from z_1 upward.

        q(z | x) = q(z_1 | x) prod_{l < L} q(z_{l+1} | z_l)

    Args:
        first: a module that returns q(z1 | x).
        networks: for l = 2, ..., L, from (..., L_l-1) to what `layer` takes: (..., 2 L_l), or of bits (..., L_l).
        sizes: L_1, ..., L_L, the number of latent dimensions of each layer.
        layer: from the output of a network to the distribution of z_l.

    Reference:
        Burda, Grosse and Salakhutdinov, arXiv:1509.00519.
    """

    def __init__(
        self, first: nn.Module, networks: Sequence[nn.Module], sizes: Sequence[int], layer: Layer = bounded_normal
    ) -> None:
        super().__init__()
        self.first = first
        self.networks = nn.ModuleList(networks)
        self.sizes = sizes
        self.layer = layer

    def forward(self, x: Tensor) -> Joint:
        """Return q(z1, ..., zL | x): batch shape (B,), event shape (L_1 + ... + L_L,)."""
        return Joint(self.first(x), _given(self.networks, self.layer), self.sizes)


class TopDownPosterior(nn.Module):
    """The approximate posterior of several layers, inferred from z_L downward.

        q(z | x) = q(z_L | x) prod_{l < L} q(z_l | z_{l+1}, x)

    The encoder gives the parameters of q(z_L | x) and a context h(x), which the other layers take beside z_{l+1}.

    Args:
        encoder: from (B, C, H, W) to (B, 2 L_L + num_context).
        networks: for l = 1, ..., L - 1, from (..., num_context + L_l+1) to (..., 2 L_l): loc and log scale of z_l.
        sizes: L_1, ..., L_L, the number of latent dimensions of each layer.

    Reference:
        Tomczak and Welling, arXiv:1705.07120: L = 2. Their z1 has an encoder of its own in place of h(x).
    """

    def __init__(self, encoder: nn.Module, networks: Sequence[nn.Module], sizes: Sequence[int]) -> None:
        super().__init__()
        self.encoder = encoder
        self.networks = nn.ModuleList(networks)
        self.sizes = sizes

    def top(self, x: Tensor) -> dist.Independent:
        """Return q(zL | x): batch shape (B,), event shape (L_L,)."""
        return bounded_normal(self._encoded(x)[0])

    def forward(self, x: Tensor) -> Joint:
        """Return q(z1, ..., zL | x): batch shape (B,), event shape (L_1 + ... + L_L,)."""
        parameters, context = self._encoded(x)
        rest = [lambda above, net=net: bounded_normal(net(_beside(context, above))) for net in reversed(self.networks)]
        return Joint(bounded_normal(parameters), rest, self.sizes, top_down=True)

    def _encoded(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.encoder(x).tensor_split([2 * self.sizes[-1]], dim=-1)


class LadderPosterior(nn.Module):
    """The approximate posterior of the ladder VAE: each layer is the prior's Normal times one that x gives.

        q(z | x) = q(z_L | x) prod_{l < L} q(z_l | z_{l+1}, x),    q(z_l | z_{l+1}, x) = Normal(z_l; loc_q, scale_q^2)
        1 / scale_q^2 = 1 / scale_up^2 + 1 / scale_p^2,    loc_q = scale_q^2 (loc_up / scale_up^2 + loc_p / scale_p^2)

    A deterministic way up gives loc_up(x) and scale_up(x) of each layer. The way down shares loc_p and scale_p, as
    functions of z_{l+1}, with the prior, so that the posterior corrects the prior by what x says. The top layer uses
    loc_up and scale_up alone. The ELBOs of this package compute the shared networks once for guide and model; stl, dreg
    and piwae, which need separate gradients for the two, compute them twice, but update running averages once.

    Args:
        encoder: from (B, C, H, W) to (B, 2 L_1 + num_context): loc, log scale, context for the next layer.
        up: for l = 2, ..., L, from (B, num_context) to (B, 2 L_l + num_context), the last one to (B, 2 L_L).
        down: the networks of the `HierarchyPrior`. They stay a part of it: their parameters are saved once.
        sizes: L_1, ..., L_L, the number of latent dimensions of each layer.

    Reference:
        Sonderby et al., arXiv:1602.02282, equations 18 and 19.
    """

    def __init__(
        self, encoder: nn.Module, up: Sequence[nn.Module], down: Sequence[nn.Module], sizes: Sequence[int]
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.up = nn.ModuleList(up)
        self._down = tuple(down)  # torch does not register modules in a tuple
        self.sizes = sizes

    def top(self, x: Tensor) -> dist.Independent:
        """Return q(zL | x): batch shape (B,), event shape (L_L,)."""
        return self._from_below(x)[-1]

    def forward(self, x: Tensor) -> Joint:
        """Return q(z1, ..., zL | x): batch shape (B,), event shape (L_1 + ... + L_L,)."""
        *below, top = self._from_below(x)
        layers = reversed([*zip(below, _given(self._down))])
        rest = [lambda above, up=up, prior=prior: _product(up, prior(above)) for up, prior in layers]
        return Joint(top, rest, self.sizes, top_down=True)

    def _from_below(self, x: Tensor) -> list[dist.Independent]:
        """Return Normal(loc_up, scale_up^2) of each layer."""
        layers, context = [], x
        for network, size in zip((self.encoder, *self.up), self.sizes):
            parameters, context = network(context).tensor_split([2 * size], dim=-1)
            layers.append(bounded_normal(parameters))
        return layers


class FirstLayer(nn.Module):
    """Return z1, the first part of z = (z1, ..., zL): the input of a decoder with p(x | z) = p(x | z1).

    Args:
        size: L_1, the number of dimensions of z_1.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, z: Tensor) -> Tensor:
        """Return (..., L_1) of (..., L_1 + ... + L_L)."""
        return z[..., : self.size]


def _given(networks: Any, layer: Layer = bounded_normal) -> list[Any]:
    """Return for each network the function from its input to the distribution with the parameters that it computes."""
    return [lambda given, network=network: layer(call_once(network, given)) for network in networks]


def _beside(context: Tensor, above: Tensor) -> Tensor:
    return torch.cat([context.expand(*above.shape[:-1], -1), above], dim=-1)


def _product(first: dist.Independent, other: dist.Independent) -> dist.Independent:
    """Return the normalised product of the densities of two Normals."""
    precisions = [q.base_dist.scale**-2 for q in (first, other)]
    variance = 1 / (precisions[0] + precisions[1])
    loc = variance * (first.base_dist.loc * precisions[0] + other.base_dist.loc * precisions[1])
    return dist.Normal(loc, variance.sqrt()).to_event(1)


class Inference(Family):
    """In which order a posterior draws several stochastic layers, and the networks between them.

    Args:
        sizes: L_1, ..., L_L, the number of latent dimensions of each layer.
        posterior: the class of the posterior of a layer.
        num_context: length of h(x).
        batch_norm: the networks have BatchNorm.
        upper_hidden: widths of the hidden layers of each network.
        activation: as for `mlp`.

    Attributes:
        decodes_all: the decoder takes all layers, and not z_1 alone.
        has_closed_forms: each lower layer is drawn given the one above it, so that its rate has a closed form.
    """

    decodes_all = False
    has_closed_forms = True

    def __init__(
        self,
        sizes: Sequence[int],
        posterior: type[Posterior],
        num_context: int,
        batch_norm: bool = False,
        upper_hidden: _UpperHidden = (100, 100),
        activation: Activation = "relu",
    ) -> None:
        self.sizes = sizes
        self.num_context = num_context
        self.batch_norm = batch_norm
        self.hidden = upper_hidden
        self.activation = activation
        self.layer: Layer = bounded_normal
        self.each = 2  # outputs for each dimension
        if posterior.support == "bits":
            self.layer = bits
            self.each = 1

    def num_outputs(self, of_first: int) -> int:
        """Return the number of outputs of the encoder, where q(z_1 | x) alone needs `of_first`."""
        return 2 * self.sizes[0] + self.num_context

    def networks_up(self) -> list[nn.Module]:
        """Return the networks of the posterior beside the encoder."""
        raise NotImplementedError

    def networks_down(self) -> list[nn.Module]:
        """Return the networks of the prior, for l = 1, ..., L - 1."""
        return [self._network(above, self.each * size, self.hidden[::-1]) for size, above in pairwise(self.sizes)]

    def posterior(self, encoder: nn.Module, first: nn.Module, up: list[nn.Module], down: list[nn.Module]) -> Any:
        """Return the posterior.

        Args:
            encoder: has `num_outputs`.
            first: a module that returns q(z_1 | x), which has this encoder.
            up: `networks_up`.
            down: `networks_down`.
        """
        raise NotImplementedError

    def prior(self, top: nn.Module, down: list[nn.Module]) -> HierarchyPrior:
        """Return the prior, of which `top` is p(z_L)."""
        return HierarchyPrior(top, down, self.sizes, self.layer)

    def _network(self, width: int, num_outputs: int, hidden: Sequence[int]) -> nn.Module:
        return mlp(width, *hidden, num_outputs, activation=self.activation, batch_norm=self.batch_norm)


class BottomUp(Inference, name="bottom-up", help="z1 given x, then each layer given the one below (Burda et al.)"):
    """`BottomUpPosterior`."""

    has_closed_forms = False  # the posterior draws the layer above later

    def num_outputs(self, of_first: int) -> int:
        """Return the number of outputs for q(z_1 | x)."""
        return of_first

    def networks_up(self) -> list[nn.Module]:
        """Return a network for each layer above z_1."""
        return [self._network(below, self.each * size, self.hidden) for below, size in pairwise(self.sizes)]

    def posterior(self, encoder: nn.Module, first: nn.Module, up: list[nn.Module], down: list[nn.Module]) -> Any:
        """Return the posterior."""
        return BottomUpPosterior(first, up, self.sizes, self.layer)


class Ladder(
    Inference,
    name="ladder",
    help="the top layer given x, then each layer from the product of its prior and a Normal computed from x (Sonderby "
    "et al.)",
):
    """`LadderPosterior`."""

    def networks_up(self) -> list[nn.Module]:
        """Return a network for each layer above z_1; the last gives no context."""
        outputs = [2 * size + self.num_context for size in self.sizes[1:]]
        outputs[-1] -= self.num_context
        return [self._network(self.num_context, count, self.hidden) for count in outputs]

    def posterior(self, encoder: nn.Module, first: nn.Module, up: list[nn.Module], down: list[nn.Module]) -> Any:
        """Return the posterior."""
        return LadderPosterior(encoder, up, down, self.sizes)


class TopDown(
    Inference,
    name="top-down",
    help="the top layer given x, then each layer given x and the one above, and the decoder takes all layers (the HVAE "
    "of Tomczak and Welling)",
):
    """`TopDownPosterior`."""

    decodes_all = True

    def num_outputs(self, of_first: int) -> int:
        """Return the number of outputs for q(z_L | x) and h(x)."""
        return 2 * self.sizes[-1] + self.num_context

    def networks_up(self) -> list[nn.Module]:
        """Return a network for each layer below z_L."""
        return [
            self._network(self.num_context + above, 2 * size, self.hidden[::-1]) for size, above in pairwise(self.sizes)
        ]

    def posterior(self, encoder: nn.Module, first: nn.Module, up: list[nn.Module], down: list[nn.Module]) -> Any:
        """Return the posterior."""
        return TopDownPosterior(encoder, up, self.sizes)
