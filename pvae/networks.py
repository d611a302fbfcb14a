"""Networks: tensors to tensors, no probability."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import nn

__all__ = ["mlp", "mlp_decoder", "mlp_encoder"]


def mlp(*widths: int) -> nn.Sequential:
    """Return linear layers of the given widths, with a ReLU between each two.

    Args:
        widths: input width, hidden widths, output width.

    Returns:
        A module that maps (..., widths[0]) to (..., widths[-1]).

    >>> len(mlp(784, 100, 100, 64))
    5
    """
    layers: list[nn.Module] = []
    for width_in, width_out in pairwise(widths):
        layers += [nn.Linear(width_in, width_out), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def mlp_encoder(image_shape: Sequence[int], hidden: Sequence[int], latent_dim: int) -> nn.Sequential:
    """Return a network from images to the two parameters of a diagonal Normal.

    Args:
        image_shape: (C, H, W).
        hidden: widths of the hidden layers.
        latent_dim: L.

    Returns:
        A module that maps (..., C, H, W) to (..., 2 L).
    """
    channels, height, width = image_shape
    return nn.Sequential(nn.Flatten(-3), *mlp(channels * height * width, *hidden, 2 * latent_dim))


def mlp_decoder(latent_dim: int, hidden: Sequence[int], image_shape: Sequence[int]) -> nn.Sequential:
    """Return a network from latents to one number per pixel.

    Args:
        latent_dim: L.
        hidden: widths of the hidden layers, in the order that z meets them.
        image_shape: (C, H, W).

    Returns:
        A module that maps (..., L) to (..., C, H, W).
    """
    channels, height, width = image_shape
    layers = mlp(latent_dim, *hidden, channels * height * width)
    return nn.Sequential(*layers, nn.Unflatten(-1, (channels, height, width)))
