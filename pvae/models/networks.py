"""Encoder and decoder networks, from tensors to tensors; `Network` is the base class of their kinds.

To add a kind, write a subclass of `Network` with a name here, and a test.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import Linear

from pvae.core.errors import InputError
from pvae.core.options import Family, Option

__all__ = [
    "Activation",
    "BesideLinear",
    "ChannelsLast",
    "FlatBatch",
    "Network",
    "Sizes",
    "mlp",
]

_ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh, "softplus": nn.Softplus, "elu": nn.ELU, "gated": nn.GLU}
_HIDDEN = "widths of the encoder's hidden layers, or channels of its convolutions; the decoder takes them in reverse"
_Hidden = Annotated[Sequence[int], Option(help=_HIDDEN)]
_ACTIVATION = "{choices}, of the hidden layers; a gated layer is h * sigmoid(g), of two linear layers"
Activation = Annotated[str, Option(help=_ACTIVATION, choices=tuple(_ACTIVATIONS))]
Pair = tuple[nn.Module, nn.Module]


class Sizes(NamedTuple):
    """The sizes of an encoder and a decoder.

    Args:
        shape: of what the encoder takes.
        num_outputs: of the encoder.
        latent_dim: the width of what the decoder takes, with the labels.
        decoded_shape: of the decoder's output.
        num_labels: number of classes or attributes; 0 without labels. The encoder takes them beside x, as
            `EncoderJoin` gives them.
        has_linear_path: each network has a linear function beside it, `BesideLinear`.
    """

    shape: tuple[int, ...]
    num_outputs: int
    latent_dim: int
    decoded_shape: tuple[int, ...]
    num_labels: int = 0
    has_linear_path: bool = False


class Network(Family):
    """A kind of encoder and decoder.

    Attributes:
        is_conv: they are convolutions, of images (C, H, W).
        has_batch_norm: they have BatchNorm.
        can_have_linear_path: they take `Sizes.has_linear_path`.
    """

    is_conv = False
    has_batch_norm = False
    can_have_linear_path = False

    def pair(self, sizes: Sizes) -> Pair:
        """Return an encoder from (..., *shape) to (..., num_outputs), and a decoder to (..., *decoded_shape)."""
        raise NotImplementedError


class LinearNetwork(Network, name="linear", help="no hidden layers"):
    """Linear functions, of which log p(x) is known exactly with `--likelihood normal-linear`."""

    can_have_linear_path = True
    hidden: Sequence[int] = ()
    activation = "relu"

    def pair(self, sizes: Sizes) -> Pair:
        """Return encoder and decoder, each beside a linear function if `sizes` says so."""
        width = math.prod(sizes.shape) + sizes.num_labels
        num_decoded = math.prod(sizes.decoded_shape)
        encoder = self._mlp(width, *self.hidden, sizes.num_outputs)
        decoder = self._mlp(sizes.latent_dim, *reversed(self.hidden), num_decoded)
        if sizes.has_linear_path:
            encoder = self._beside_linear(width, sizes.num_outputs, encoder)
            decoder = self._beside_linear(sizes.latent_dim, num_decoded, decoder)
        num_dims = len(sizes.shape)
        if sizes.num_labels:
            num_dims = 1
        flat = nn.Flatten(-num_dims)
        return nn.Sequential(flat, *encoder), nn.Sequential(*decoder, nn.Unflatten(-1, sizes.decoded_shape))

    def _mlp(self, *widths: int) -> nn.Sequential:
        return mlp(*widths, activation=self.activation, batch_norm=self.has_batch_norm)

    def _beside_linear(self, width: int, num_outputs: int, network: nn.Sequential) -> nn.Sequential:
        return nn.Sequential(BesideLinear(width, num_outputs, network if self.hidden else None))


class MLPNetwork(LinearNetwork, name="mlp"):
    """Multilayer perceptrons, by `mlp`: linear layers with an activation between them."""

    def __init__(self, hidden: _Hidden = (100, 100), activation: Activation = "relu") -> None:
        self.hidden = hidden
        self.activation = activation


class BatchNormMLPNetwork(
    MLPNetwork, name="mlp-batchnorm", help="the same with BatchNorm, also in the networks between stochastic layers"
):
    """Multilayer perceptrons with BatchNorm before each activation."""

    can_have_linear_path = False
    has_batch_norm = True


class ConvNetwork(Network, name="conv", help="3x3 convolutions that each halve the image"):
    """3x3 convolutions of stride 2, each halving the image, and ReLU; and the mirror image of these as a decoder.

    Half of an odd height or width is rounded up.

    Args:
        hidden: the number of channels of each convolution; the decoder's are in reverse order.

    Attributes:
        kernel: the size of the convolutions.
        rounds_up: half of an odd side is rounded up; otherwise down.

    Raises:
        InputError: (when used) a side of the images becomes 0.
    """

    is_conv = True
    kernel = 3
    rounds_up = True

    def __init__(self, hidden: _Hidden = (100, 100)) -> None:
        self.hidden = hidden

    def pair(self, sizes: Sizes) -> Pair:
        """Return encoder and decoder."""
        return self._encoder(sizes), self._decoder(sizes.latent_dim, self._shapes(sizes.decoded_shape))

    def _after(self, width: int) -> list[nn.Module]:
        """Return what follows a convolution of that number of channels."""
        return [nn.ReLU()]

    def _encoder(self, sizes: Sizes) -> nn.Module:
        """Return convolutions and a linear layer, from (B, C, H, W) to (B, num_outputs)."""
        num_channels, height, width = sizes.shape
        if sizes.num_labels:
            num_channels += 1
        shapes = self._shapes((num_channels, height, width))
        layers: list[nn.Module] = [ChannelsLast()]
        for (before, *_), (after, *_) in pairwise(shapes):
            layers += [nn.Conv2d(before, after, self.kernel, stride=2, padding=1), *self._after(after)]
        network = nn.Sequential(*layers, nn.Flatten(), Linear(math.prod(shapes[-1]), sizes.num_outputs))
        if sizes.num_labels:
            return FlatBatch(network, 3)
        return network

    def _decoder(self, latent_dim: int, shapes: list[tuple[int, int, int]]) -> nn.Module:
        """Return a linear layer, transposed convolutions and a 3x3 convolution, from (..., L) to (..., C, H, W)."""
        layers = self._bottom(latent_dim, shapes[-1])
        before = shapes[-1][0]
        for (after, *_), (_, height, width) in zip(shapes[:0:-1], shapes[-2::-1]):
            more = (1 - height % 2, 1 - width % 2)  # a stride of 2 gives 2 n - 1 pixels; one more makes the size even
            layers.append(nn.ConvTranspose2d(before, after, 3, stride=2, padding=1, output_padding=more))
            layers += self._after(after)
            before = after
        return FlatBatch(nn.Sequential(*layers, nn.Conv2d(shapes[1][0], shapes[0][0], 3, padding=1)))

    def _bottom(self, latent_dim: int, shape: tuple[int, int, int]) -> list[nn.Module]:
        return [Linear(latent_dim, math.prod(shape)), nn.Unflatten(-1, shape), ChannelsLast()]

    def _shapes(self, shape: Sequence[int]) -> list[tuple[int, int, int]]:
        """Return the shapes (C, H, W) of the image and after each convolution, which halves the sides."""
        first, height, width = shape
        shapes = [(first, height, width)]
        for after in self.hidden:
            shapes.append((after, (shapes[-1][1] + self.rounds_up) // 2, (shapes[-1][2] + self.rounds_up) // 2))
        if min(shapes[-1]) < 1:
            raise InputError(
                f"{len(self.hidden)} convolutions each halve the image, and {height} x {width} pixels are too few for "
                "that: give hidden fewer widths, or network mlp"
            )
        return shapes


class BatchNormConvNetwork(ConvNetwork, name="conv-batchnorm", help="with BatchNorm and LeakyReLU"):
    """The same as `ConvNetwork`, with BatchNorm and LeakyReLU of slope 0.3, the default of Keras."""

    has_batch_norm = True

    def _after(self, width: int) -> list[nn.Module]:
        return [nn.BatchNorm2d(width), nn.LeakyReLU(0.3)]

    def _bottom(self, latent_dim: int, shape: tuple[int, int, int]) -> list[nn.Module]:
        linear, *rest = super()._bottom(latent_dim, shape)
        return [linear, nn.BatchNorm1d(math.prod(shape)), nn.LeakyReLU(0.3), *rest]


class GroupNormConvNetwork(
    ConvNetwork, name="conv-groupnorm", help="4x4 convolutions with GroupNorm and SiLU, the fastest"
):
    """4x4 convolutions with GroupNorm and SiLU, where half of an odd side is rounded down."""

    kernel = 4
    rounds_up = False

    def pair(self, sizes: Sizes) -> Pair:
        """Return encoder and decoder, which draws its weights first."""
        decoder = self._decoder(sizes.latent_dim, self._shapes(sizes.decoded_shape))
        return self._encoder(sizes), decoder

    def _after(self, width: int) -> list[nn.Module]:
        # At least four channels in a group, because a group of one value has no variance.
        return [nn.GroupNorm(max(1, math.gcd(width, 32) // 4), width), nn.SiLU()]

    def _decoder(self, latent_dim: int, shapes: list[tuple[int, int, int]]) -> nn.Module:
        layers = self._bottom(latent_dim, shapes[-1])
        for (before, *_), (after, height, width) in pairwise(shapes[::-1]):
            layers += self._after(before)
            layers.append(nn.ConvTranspose2d(before, after, 4, 2, 1, output_padding=(height % 2, width % 2)))
        return FlatBatch(nn.Sequential(*layers))


def mlp(*widths: int, activation: str = "relu", batch_norm: bool = False) -> nn.Sequential:
    """Return linear layers of the given widths, with an activation between them.

    A gated layer is h * sigmoid(g), where h and g are linear in its input.

    Args:
        widths: input width, hidden widths, output width.
        activation: "relu", "tanh", "softplus", "elu" or "gated".
        batch_norm: BatchNorm before each activation, over all leading dimensions.

    Returns:
        A module that maps (..., widths[0]) to (..., widths[-1]).

    >>> len(mlp(784, 100, 100, 64))
    5
    """
    layers: list[nn.Module] = []
    for width_in, width_out in pairwise(widths[:-1]):
        width = width_out * (2 if activation == "gated" else 1)
        norm = [FlatBatch(nn.BatchNorm1d(width))] if batch_norm else []
        layers += [Linear(width_in, width, bias=not batch_norm), *norm, _ACTIVATIONS[activation]()]
    return nn.Sequential(*layers, Linear(widths[-2], widths[-1]))


class ChannelsLast(nn.Module):
    """Convert images to the channels_last memory format, in which convolutions are fastest.

    The weights stay contiguous: Pyro's parameter store copies parameters that are not, and then trains the copies.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return x with the channels last in memory."""
        return x.contiguous(memory_format=torch.channels_last)


class FlatBatch(nn.Module):
    """Flatten the leading dimensions of (..., L) into one batch dimension, as convolutions and BatchNorm need it.

    Args:
        network: takes one batch dimension.
        num_dims: number of dimensions that are not flattened.
    """

    def __init__(self, network: nn.Module, num_dims: int = 1) -> None:
        super().__init__()
        self.network = network
        self.num_dims = num_dims

    def forward(self, z: Tensor) -> Tensor:
        """Return the outputs of the network, with the leading dimensions of z."""
        outputs = self.network(z.reshape(-1, *z.shape[-self.num_dims :]))
        return outputs.reshape(*z.shape[: -self.num_dims], *outputs.shape[1:])


class BesideLinear(nn.Module):
    """A linear function with a network beside it, W x + b + network(x).

    The last layer of the network starts at zero, and `pvae.models.start` sets W and b.

    Args:
        num_inputs: the width of x.
        num_outputs: the width of the sum.
        network: an MLP; None for the linear function alone.
    """

    def __init__(self, num_inputs: int, num_outputs: int, network: nn.Sequential | None = None) -> None:
        super().__init__()
        self.linear = Linear(num_inputs, num_outputs)
        self.network = network
        if network is not None:
            for parameter in network[-1].parameters():
                nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum, (..., num_outputs), of x (..., num_inputs)."""
        outputs: Tensor = self.linear(x)
        if self.network is not None:
            outputs = outputs + self.network(x)
        return outputs
