"""A linear classifier of attributes, trained on real images and applied to decoded ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from pvae.data.dataset import to_pixels

__all__ = ["Response", "balanced_accuracy", "respond", "train_probe"]

_SIDE = 32
_BATCH_SIZE = 100


@dataclass(frozen=True, kw_only=True)
class Response:
    """A probe's log-odds of an attribute in images decoded along the attribute's direction, z + alpha v.

    Args:
        attribute: its name.
        alphas: the steps.
        log_odds: the probe's log-odds of the attribute at each step, averaged over images.
        stderr: their standard errors over images.
        balanced_accuracy: of the probe on real test images: the mean of its accuracies with and without the attribute.
    """

    attribute: str
    alphas: tuple[float, ...]
    log_odds: tuple[float, ...]
    stderr: tuple[float, ...]
    balanced_accuracy: float

    @property
    def is_monotone(self) -> bool:
        """Whether the log-odds rise at every step."""
        return all(before < after for before, after in pairwise(self.log_odds))

    def __str__(self) -> str:
        """Return the log-odds at both ends, and whether they rise at every step between."""
        ends = (
            f"{self.log_odds[0]:+.2f} to {self.log_odds[-1]:+.2f} over alpha {self.alphas[0]:g} to {self.alphas[-1]:g}"
        )
        rising = "rising at every step" if self.is_monotone else "NOT rising at every step"
        return f"{self.attribute}: log-odds {ends}, {rising}; probe's balanced accuracy {self.balanced_accuracy:.3f}"


def train_probe(images: Tensor, labels: Tensor, num_epochs: int = 10) -> nn.Module:
    """Return a linear classifier of each attribute, trained on real images: logistic regression by Adam.

        log-odds = w . (pixels, averaged over squares so that at most about 32 x 32 are left) + b

    Images with and without an attribute have the same total weight in the cross-entropy, however rare the attribute,
    so that log-odds of 0 are the border between them. The classifier is linear because it has to extrapolate to decoded
    images: a convolutional one is more accurate on real images, but saturates on decoded ones far from them.

    Args:
        images: uint8 (N, C, H, W).
        labels: bool (N, A).
        num_epochs: passes over the images.

    Returns:
        A module in eval mode from pixels in [0, 1] (B, C, H, W) to log-odds (B, A). Its weights and the order of
        the images are drawn from torch's generator.
    """
    channels, height, width = images.shape[1:]
    side = max(1, min(height, width) // _SIDE)
    num_inputs = channels * (height // side) * (width // side)
    probe = nn.Sequential(nn.AvgPool2d(side), nn.Flatten(), nn.Linear(num_inputs, labels.shape[1], dtype=torch.float32))
    optimizer = torch.optim.Adam(probe.parameters(), lr=1e-3, weight_decay=1e-3)
    targets = labels.float()
    count = targets.sum(0)
    weight = (len(targets) - count) / count.clamp(min=1)
    for _ in range(num_epochs):
        for index in torch.randperm(len(images)).split(_BATCH_SIZE):
            log_odds = probe(to_pixels(images[index]))
            loss = binary_cross_entropy_with_logits(log_odds, targets[index], pos_weight=weight)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return probe.eval()


@torch.no_grad()
def balanced_accuracy(probe: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Return the mean of the accuracies among images with and images without each attribute.

    Args:
        probe: as `train_probe` returns it.
        images: uint8 (N, C, H, W).
        labels: bool (N, A).

    Returns:
        (A,); 0.5 is chance. NaN for an attribute that all or none of the images have.
    """
    guesses = torch.cat([probe(to_pixels(part)) > 0 for part in images.split(_BATCH_SIZE)])
    hits = (guesses == labels).float()
    return torch.stack([(hits * side).sum(0) / side.sum(0) for side in (labels, ~labels)]).mean(0)


@torch.no_grad()
def respond(probe: nn.Module, images: Sequence[Tensor], column: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard error of the log-odds of one attribute in several sets of images.

    Args:
        probe: as `train_probe` returns it.
        images: pixels in [0, 1], (N, C, H, W) each.
        column: the attribute's.

    Returns:
        The means and the standard errors, one for each set.
    """
    log_odds = torch.stack([torch.cat([probe(part)[:, column] for part in one.split(_BATCH_SIZE)]) for one in images])
    return tuple(log_odds.mean(1).tolist()), tuple((log_odds.std(1) / log_odds.shape[1] ** 0.5).tolist())
