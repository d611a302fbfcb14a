"""The joint distribution of a label y and a latent z, and a label of which some values are known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Size, Tensor

from pvae.distributions.hierarchy import Hierarchy

__all__ = ["LabelAndLatent", "PartlyKnownLabel"]

_NEVER = -1e30  # the log-probability of a class that a label is known not to be; its product with 0 is 0


class LabelAndLatent(Hierarchy):
    """The joint distribution of a label y, one of K classes, and a latent z.

        log q(y, z) = log q(y) + log q(z | y)

    A value is one vector: y as K zeros and a one, and then z. In model and guide they are the sites "y" and "z".

    Args:
        label: the distribution of y: event shape (K,).
        latent: a function from y (..., K) to the distribution of z, batch shape (...), event shape (L,).
        latent_dim: L.
    """

    def __init__(
        self, label: dist.OneHotCategorical, latent: Callable[[Tensor], TorchDistribution], latent_dim: int
    ) -> None:
        super().__init__(label, [latent], (label.event_shape[0], latent_dim), top_down=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> LabelAndLatent:
        """Return this distribution expanded to another batch shape."""
        return LabelAndLatent(self.first.expand(batch_shape), self.rest[0], self.sizes[1])

    @property
    def names(self) -> list[str]:
        """The names of the sites."""
        return ["y", "z"]

    def draw(self, draw: Callable[[str, TorchDistribution], Tensor]) -> Tensor:
        """Return y and z as one vector; `draw` is called for "y" with q(y), and then for "z" with q(z | y).

        Where `draw` enumerates y, it returns all K values along a new dimension, to which y is then expanded.
        """
        y = draw("y", self.first)
        z = draw("z", self.rest[0](y))
        return torch.cat([y.expand(*z.shape[:-1], -1), z], dim=-1)

    @property
    def mean(self) -> Tensor:
        """The mean, (..., K + L): the probabilities of the classes, and E[z] = sum_y q(y) E[z | y]."""
        return torch.cat([self.first.probs, self._expected(lambda q: q.mean)], dim=-1)

    @property
    def variance(self) -> Tensor:
        """The variance, (..., K + L): of each element of y, and Var[z] = E[Var[z | y]] + Var[E[z | y]]."""
        mean_square = self._expected(lambda q: q.variance + q.mean.square())
        return torch.cat([self.first.variance, mean_square - self._expected(lambda q: q.mean).square()], dim=-1)

    def _expected(self, of: Callable[[Any], Tensor]) -> Tensor:
        """Return sum_y q(y) of(q(z | y))."""
        probs = self.first.probs
        classes = torch.eye(self.sizes[0], dtype=probs.dtype, device=probs.device)
        every = classes.reshape(-1, *[1] * (probs.dim() - 1), self.sizes[0]).expand(-1, *probs.shape)
        return (probs.movedim(-1, 0).unsqueeze(-1) * of(self.rest[0](every))).sum(0)

    def with_label(self, value: Tensor, y: Tensor) -> Tensor:
        """Return vectors (..., K + L) whose labels are replaced by classes y, int64 (...)."""
        one_hot = y[..., None] == torch.arange(self.sizes[0], device=y.device)
        return torch.cat([one_hot.to(value.dtype), value[..., self.sizes[0] :]], dim=-1)


class PartlyKnownLabel(dist.OneHotCategorical):
    """The distribution of a label: a point mass where it is known, and q(y | x) of a classifier where it is not.

    Args:
        logits: of q(y | x), (..., K).
        y: the known classes, int64 (...); -1 where a class is not known.
    """

    def __init__(self, logits: Tensor, y: Tensor) -> None:
        self.inferred, self.y = logits, y
        known = torch.where(self._one_hot, torch.zeros_like(logits), torch.full_like(logits, _NEVER))
        super().__init__(logits=torch.where((y >= 0)[..., None], known, logits))

    def expand(self, batch_shape: Any, _instance: Any = None) -> PartlyKnownLabel:
        """Return this distribution expanded to another batch shape."""
        return PartlyKnownLabel(self.inferred.expand(*batch_shape, -1), self.y.expand(Size(batch_shape)))

    @property
    def _one_hot(self) -> Tensor:
        return self.y[..., None] == torch.arange(self.inferred.shape[-1], device=self.y.device)

    @property
    def cross_entropy(self) -> Tensor:
        """-log q(y | x) of the classifier at the known labels, (...) nats; 0 where the label is not known."""
        log_q = (self._one_hot * self.inferred.log_softmax(-1)).sum(-1)
        return torch.where(self.y >= 0, -log_q, torch.zeros_like(log_q))
