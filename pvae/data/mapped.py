"""The order in which an epoch visits images."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["shuffled"]


def shuffled(images: Tensor) -> Tensor:
    """Return the order in which an epoch visits images: a uniform permutation of (N,), drawn by torch on the CPU."""
    return torch.randperm(len(images))
