"""Encoder and decoder networks, from tensors to tensors."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from pvae.core.onednn import Linear

__all__ = ["conv_decoder", "conv_encoder", "mlp", "mlp_decoder", "mlp_encoder"]


_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh}


def mlp(*widths: int, activation: str = "relu") -> nn.Sequential:
    """Return linear layers of the given widths, with an activation between them.

    Args:
        widths: input width, hidden widths, output width.
        activation: "relu" or "tanh".

    Returns:
        A module that maps (..., widths[0]) to (..., widths[-1]).

    >>> len(mlp(784, 100, 100, 64))
    5
    """
    layers: list[nn.Module] = []
    for width_in, width_out in pairwise(widths):
        layers += [Linear(width_in, width_out), _ACTIVATIONS[activation]()]
    return nn.Sequential(*layers[:-1])


def mlp_encoder(
    image_shape: Sequence[int], hidden: Sequence[int], num_outputs: int, activation: str = "relu"
) -> nn.Sequential:
    """Return a network from images to the parameters of a posterior.

    Args:
        image_shape: (C, H, W).
        hidden: widths of the hidden layers.
        num_outputs: P.
        activation: "relu" or "tanh".

    Returns:
        A module that maps (..., C, H, W) to (..., P).
    """
    return nn.Sequential(nn.Flatten(-3), *mlp(math.prod(image_shape), *hidden, num_outputs, activation=activation))


def mlp_decoder(
    latent_dim: int, hidden: Sequence[int], image_shape: Sequence[int], activation: str = "relu"
) -> nn.Sequential:
    """Return a network from latents to one value per pixel.

    Args:
        latent_dim: L.
        hidden: widths of the encoder's hidden layers; the decoder's are in reverse order.
        image_shape: (C, H, W).
        activation: "relu" or "tanh".

    Returns:
        A module that maps (..., L) to (..., C, H, W).
    """
    layers = mlp(latent_dim, *reversed(hidden), math.prod(image_shape), activation=activation)
    return nn.Sequential(*layers, nn.Unflatten(-1, tuple(image_shape)))


def conv_encoder(
    image_shape: Sequence[int], channels: Sequence[int], num_outputs: int, batch_norm: bool = False
) -> nn.Sequential:
    """Return 3x3 convolutions of stride 2, each halving the image, and a linear layer.

    Args:
        image_shape: (C, H, W); each layer's input must have an even height and width.
        channels: number of channels of each layer.
        num_outputs: P.
        batch_norm: BatchNorm and LeakyReLU with slope 0.3 (the default of Keras) after each layer, in place of ReLU.

    Returns:
        A module that maps (B, C, H, W) to (B, P).
    """
    layers: list[nn.Module] = [_ChannelsLast()]
    for before, after in pairwise((image_shape[0], *channels)):
        layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), *_activation(batch_norm, nn.BatchNorm2d, after)]
    return nn.Sequential(*layers, nn.Flatten(), Linear(math.prod(_bottom(image_shape, channels)), num_outputs))


def conv_decoder(
    latent_dim: int, channels: Sequence[int], image_shape: Sequence[int], batch_norm: bool = False
) -> nn.Module:
    """Return the mirror image of `conv_encoder`: a linear layer, transposed convolutions, a last 3x3 convolution.

    Args:
        latent_dim: L.
        channels: channels of the encoder's layers; the decoder's are in reverse order.
        image_shape: (C, H, W).
        batch_norm: as in `conv_encoder`.

    Returns:
        A module that maps (..., L) to (..., C, H, W).
    """
    bottom = _bottom(image_shape, channels)
    layers: list[nn.Module] = [Linear(latent_dim, math.prod(bottom))]
    if batch_norm:
        layers += _activation(batch_norm, nn.BatchNorm1d, math.prod(bottom))
    layers += [nn.Unflatten(-1, bottom), _ChannelsLast()]
    for before, after in pairwise((channels[-1], *reversed(channels))):
        layers.append(nn.ConvTranspose2d(before, after, 3, stride=2, padding=1, output_padding=1))
        layers += _activation(batch_norm, nn.BatchNorm2d, after)
    return _FlatBatch(nn.Sequential(*layers, nn.Conv2d(channels[0], image_shape[0], 3, padding=1)))


class _ChannelsLast(nn.Module):
    """Convert images to the channels_last memory format, in which convolutions are fastest.

    The weights stay contiguous: Pyro's parameter store copies parameters that are not, and then trains the copies.
    """

    def forward(self, x: Tensor) -> Tensor:
        return x.contiguous(memory_format=torch.channels_last)


class _FlatBatch(nn.Module):
    """Flatten the leading dimensions of (..., L) into one batch dimension, as convolutions and BatchNorm need it."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, z: Tensor) -> Tensor:
        pixels = self.network(z.reshape(-1, z.shape[-1]))
        return pixels.reshape(*z.shape[:-1], *pixels.shape[1:])


def _bottom(image_shape: Sequence[int], channels: Sequence[int]) -> tuple[int, int, int]:
    """Return the shape (C, H, W) after the last convolution of the encoder."""
    shrink = 2 ** len(channels)
    return channels[-1], image_shape[1] // shrink, image_shape[2] // shrink


def _activation(batch_norm: bool, norm: Callable[[int], nn.Module], width: int) -> list[nn.Module]:
    return [norm(width), nn.LeakyReLU(0.3)] if batch_norm else [nn.ReLU()]
