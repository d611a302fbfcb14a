"""A label of which some values are known, and labels as vectors of zeros and a one."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from torch import Size, Tensor

__all__ = ["PartlyKnownLabel", "one_hot"]

_NEVER = -1e30  # the log-probability of a class that a label is known not to be; its product with 0 is 0


class PartlyKnownLabel(dist.OneHotCategorical):
    """The distribution of a label: a point mass where it is known, and q(y | x) of a classifier where it is not.

    Args:
        logits: of q(y | x), (..., K).
        y: the known classes, int64 (...); -1 where a class is not known.
    """

    def __init__(self, logits: Tensor, y: Tensor) -> None:
        self.inferred, self.y = logits, y
        self._known = one_hot(y, logits.shape[-1])
        known = torch.where(self._known, torch.zeros_like(logits), torch.full_like(logits, _NEVER))
        super().__init__(logits=torch.where((y >= 0)[..., None], known, logits))

    def expand(self, batch_shape: Any, _instance: Any = None) -> PartlyKnownLabel:
        """Return this distribution expanded to another batch shape."""
        return PartlyKnownLabel(self.inferred.expand(*batch_shape, -1), self.y.expand(Size(batch_shape)))

    @property
    def cross_entropy(self) -> Tensor:
        """-log q(y | x) of the classifier at the known labels, (...) nats; 0 where the label is not known."""
        log_q = (self._known * self.inferred.log_softmax(-1)).sum(-1)
        return torch.where(self.y >= 0, -log_q, torch.zeros_like(log_q))


def one_hot(y: Tensor, num_classes: int) -> Tensor:
    """Return classes y, int64 (...), as vectors of zeros and a one, bool (..., K); -1 as zeros alone.

    torch's own one_hot reads values, and cannot be recorded.
    """
    return y[..., None] == torch.arange(num_classes, device=y.device)
