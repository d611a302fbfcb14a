"""Statistics of codes: the aggregate posterior beside N(0, 1), and how well the codes tell classes apart."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["LatentReport", "latent_statistics", "nearest_neighbour_accuracy"]

_CHUNK = 1000


def nearest_neighbour_accuracy(
    train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor, num_neighbours: int = 10
) -> float:
    """Return the accuracy of a k-nearest-neighbour classifier, from training codes to test codes.

    Args:
        train: training codes (N, L).
        train_labels: classes of the training codes (N,).
        test: test codes (M, L).
        test_labels: classes of the test codes (M,).
        num_neighbours: k; all N training codes where there are fewer.
    """
    hits = 0
    for part, labels in zip(test.split(_CHUNK), test_labels.split(_CHUNK)):
        nearest = torch.cdist(part, train).topk(min(num_neighbours, len(train)), largest=False).indices
        hits += int((train_labels[nearest].mode(dim=1).values == labels).sum())
    return hits / len(test)


@dataclass(frozen=True, kw_only=True)
class LatentReport:
    """Statistics of codes, to compare each latent dimension with N(0, 1) and the codes with classes.

    Args:
        mean: the mean of each latent dimension.
        std: the standard deviation of each latent dimension.
        kolmogorov_smirnov: the largest distance between the CDF of each dimension and that of N(0, 1); None if the
            prior is another one.
        accuracy: accuracy of a 10-nearest-neighbour classifier from training to test codes; None without classes.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    kolmogorov_smirnov: tuple[float, ...] | None
    accuracy: float | None

    def __str__(self) -> str:
        """Return the greatest distance from N(0, 1) and the accuracy, each if there is one."""
        parts = []
        if distances := self.kolmogorov_smirnov:
            parts.append(f"Kolmogorov-Smirnov distance of a dimension from N(0, 1) {max(distances):.3f} at most")
        if self.accuracy is not None:
            parts.append(f"10-nearest-neighbour accuracy {self.accuracy:.3f}")
        return "; ".join(parts)


def latent_statistics(codes: Tensor, accuracy: float | None = None, is_prior_normal: bool = True) -> LatentReport:
    """Return statistics of draws from the aggregate posterior.

    Args:
        codes: the draws, (N, L).
        accuracy: a classifier's accuracy, for the report.
        is_prior_normal: whether the prior is N(0, 1), so that the draws are compared with it.
    """
    from scipy.stats import kstest  # slow to import, and needed only here

    distances = (float(kstest(column.numpy(), "norm").statistic) for column in codes.T)
    return LatentReport(
        mean=tuple(codes.mean(0).tolist()),
        std=tuple(codes.std(0).tolist()),
        kolmogorov_smirnov=tuple(distances) if is_prior_normal else None,
        accuracy=accuracy,
    )
