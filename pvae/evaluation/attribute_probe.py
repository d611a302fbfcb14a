"""A probe: a linear classifier of attributes that is trained on real images and applied to decoded images."""

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
    """A probe's log-odds of an attribute in images decoded along the direction of the attribute, z + alpha v.

    Args:
        attribute: name of the attribute.
        alphas: the values of alpha.
        log_odds: the log-odds of the attribute at each alpha, mean over images.
        stderr: standard errors of `log_odds` over images.
        balanced_accuracy: the mean of the probe's accuracies on real test images with and without the attribute.
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
        """Return the log-odds at the first and last alpha, and whether they rise at every step."""
        log_odds = f"{self.log_odds[0]:+.2f} to {self.log_odds[-1]:+.2f}"
        alphas = f"alpha {self.alphas[0]:g} to {self.alphas[-1]:g}"
        rising = f"{'' if self.is_monotone else 'NOT '}rising at every step"
        accuracy = f"probe's balanced accuracy {self.balanced_accuracy:.3f}"
        return f"{self.attribute}: log-odds {log_odds} over {alphas}, {rising}; {accuracy}"


def train_probe(images: Tensor, labels: Tensor, num_epochs: int = 10) -> nn.Module:
    """Return a linear classifier of each attribute: logistic regression on real images, trained by Adam.

        log-odds = w . (pixels, averaged over squares so that about 32 x 32 are left) + b

    Images with and without an attribute have the same total weight in the cross-entropy, however rare the attribute is.
    The classifier is linear because it has to extrapolate to decoded images: a convolutional one is more accurate on
    real images, but it saturates on decoded images that are far from them.

    Args:
        images: uint8 (N, C, H, W).
        labels: bool (N, A).
        num_epochs: passes over the images.

    Returns:
        A module in eval mode from pixels in [0, 1] (B, C, H, W) to log-odds (B, A). Its initial weights and the order
        of the images are drawn from torch's generator.
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
    """Return the mean of the accuracies on images with and on images without each attribute.

    Args:
        probe: a module that `train_probe` returned.
        images: uint8 (N, C, H, W).
        labels: bool (N, A).

    Returns:
        (A,); 0.5 for a random guess, NaN for an attribute that all or none of the images have.
    """
    guesses = torch.cat([probe(to_pixels(part)) > 0 for part in images.split(_BATCH_SIZE)])
    hits = (guesses == labels).float()
    return torch.stack([(hits * side).sum(0) / side.sum(0) for side in (labels, ~labels)]).mean(0)


@torch.no_grad()
def respond(probe: nn.Module, images: Sequence[Tensor], column: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return means and standard errors of the log-odds of one attribute, one for each of several sets of images.

    Args:
        probe: a module that `train_probe` returned.
        images: sets of pixels in [0, 1], (N, C, H, W) each.
        column: index of the attribute.
    """
    log_odds = torch.stack([torch.cat([probe(part)[:, column] for part in one.split(_BATCH_SIZE)]) for one in images])
    return tuple(log_odds.mean(1).tolist()), tuple((log_odds.std(1) / log_odds.shape[1] ** 0.5).tolist())
