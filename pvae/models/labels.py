"""Modules for labels: q and p given labels, and a label that is a latent of which some values are known."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from pyro.distributions.util import broadcast_shape
from torch import Tensor, nn

from pvae.core.errors import InputError
from pvae.core.tracing import require
from pvae.distributions.joint import Joint, PartlyKnownLabel, one_hot

__all__ = [
    "EncoderJoin",
    "LabelPosterior",
    "LabelPrior",
    "LikelihoodGivenLabels",
    "PosteriorGivenLabels",
    "found_labels",
    "label_values",
]


def label_values(y: Tensor, num_labels: int, dtype: torch.dtype) -> Tensor:
    """Return labels as floats (..., K): classes (...) as zeros and a one, attributes (..., K) as they are."""
    if y.dtype == torch.int64:
        error = f"labels y must be classes from 0 to {num_labels - 1}"
        require(lambda y: ((y >= 0) & (y < num_labels)).all(), y, lambda: InputError(error))
        y = one_hot(y, num_labels)
    return y.to(dtype)


class EncoderJoin(nn.Module):
    """What an encoder given labels sees: the values of x and y side by side, or for convolutions x and one plane more.

    The plane is a linear function of y, learned with the network.

    Args:
        datum_shape: of x, as the encoder's first layer takes it.
        num_labels: K, the number of classes.
        is_conv: the encoder takes images.
    """

    def __init__(self, datum_shape: Sequence[int], num_labels: int, is_conv: bool) -> None:
        super().__init__()
        self.datum_shape = tuple(datum_shape)
        self.num_labels = num_labels
        self.plane = nn.Linear(num_labels, math.prod(self.datum_shape[1:])) if is_conv else None

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return x (..., *D) and labels y, whose leading dimensions are broadcast, as one tensor."""
        y = label_values(y, self.num_labels, x.dtype)
        num_dims = len(self.datum_shape)
        batch_shape = broadcast_shape(x.shape[:-num_dims], y.shape[:-1])
        x = x.expand(*batch_shape, *self.datum_shape)
        if self.plane is None:
            return torch.cat([x.flatten(-num_dims), y.expand(*batch_shape, -1)], dim=-1)
        plane = self.plane(y).unflatten(-1, (1, *self.datum_shape[1:]))
        return torch.cat([x, plane.expand(*batch_shape, -1, -1, -1)], dim=-3)


class PosteriorGivenLabels(nn.Module):
    """The approximate posterior q(z | x, y) given labels y: a posterior whose encoder sees both.

    Args:
        seen: from x to what an encoder sees of it, for example standardised.
        join: from that and y to the input of the posterior.
        posterior: returns q(z | x, y) of this input.

    Reference:
        Sohn, Lee and Yan, NeurIPS 2015; Kingma et al., arXiv:1406.5298 (the model M2).
    """

    takes_labels = True

    def __init__(self, seen: nn.Module, join: EncoderJoin, posterior: nn.Module) -> None:
        super().__init__()
        self.seen, self.join, self.posterior = seen, join, posterior

    @property
    def has_density(self) -> bool:
        """Whether q(z | x, y) is a density, as in `PosteriorModule`."""
        return getattr(self.posterior, "has_density", True)

    def forward(self, x: Tensor, y: Tensor) -> TorchDistribution:
        """Return q(z | x, y): batch shape (B,), event shape (L,)."""
        return self.posterior(self.join(self.seen(x), y))


class LikelihoodGivenLabels(nn.Module):
    """The likelihood p(x | z, y) given labels y: a likelihood whose decoder sees z and, beside it, y.

    It has the attributes of that likelihood.

    Args:
        likelihood: returns p(x | z, y) of (..., L + K).
        num_labels: K, the number of classes.

    Reference:
        Sohn, Lee and Yan, NeurIPS 2015.
    """

    takes_labels = True

    def __init__(self, likelihood: nn.Module, num_labels: int) -> None:
        super().__init__()
        self.likelihood = likelihood
        self.num_labels = num_labels

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the likelihood."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("likelihood"), name)

    def forward(self, z: Tensor, y: Tensor) -> TorchDistribution:
        """Return p(x | z, y) of latents z (..., B, L) and labels y of the batch: batch shape (..., B)."""
        y = label_values(y, self.num_labels, z.dtype)
        return self.likelihood(torch.cat([z, y.expand(*z.shape[:-1], -1)], dim=-1))


class LabelPrior(nn.Module):
    """The prior of a label, uniform over K classes, and of a latent: p(y, z) = p(z) / K.

    Args:
        num_labels: K, the number of classes.
        prior: returns p(z).
        latent_dim: L, the number of latent dimensions.

    Reference:
        Kingma et al., arXiv:1406.5298 (the model M2).
    """

    logits: Tensor

    def __init__(self, num_labels: int, prior: nn.Module, latent_dim: int) -> None:
        super().__init__()
        self.prior = prior
        self.latent_dim = latent_dim
        self.register_buffer("logits", torch.zeros(num_labels), persistent=False)

    def forward(self) -> Joint:
        """Return p(y, z): batch shape (), event shape (K + L,)."""
        p_z = self.prior()
        label = dist.OneHotCategorical(logits=self.logits)
        return Joint(label, [lambda y: p_z.expand(y.shape[:-1])], (len(self.logits), self.latent_dim), ("y", "z"))


class LabelPosterior(nn.Module):
    """The approximate posterior of a label and a latent, q(y, z | x) = q(y | x) q(z | x, y).

    Where the label of a datum is known, q(y | x) is a point mass at it, so that the bound is one on log p(x, y).

    Args:
        classifier: from x to the logits of q(y | x), (B, K).
        posterior: returns q(z | x, y).
        latent_dim: L, the number of latent dimensions.

    Reference:
        Kingma et al., arXiv:1406.5298 (the model M2).
    """

    takes_labels = True
    labels_are_optional = True

    def __init__(self, classifier: nn.Module, posterior: nn.Module, latent_dim: int) -> None:
        super().__init__()
        self.classifier, self.posterior = classifier, posterior
        self.latent_dim = latent_dim

    def forward(self, x: Tensor, y: Tensor | None = None) -> Joint:
        """Return q(y, z | x): batch shape (B,), event shape (K + L,).

        Args:
            x: data (B, *D).
            y: the known labels, int64 (B,), -1 where one is not known; None if none is known.
        """
        logits = self.classifier(x)
        label = dist.OneHotCategorical(logits=logits) if y is None else PartlyKnownLabel(logits, y)
        sizes = (label.event_shape[0], self.latent_dim)
        return Joint(label, [lambda drawn: self.posterior(x, drawn)], sizes, ("y", "z"))


@torch.no_grad()
def found_labels(posterior: nn.Module, parts: Iterable[Tensor], labels: Tensor | None) -> Tensor | None:
    """Return for each known label whether it is the likeliest by q(y | x), bool (M,); None if there are none.

    Args:
        posterior: returns q(y, z | x).
        parts: the data x, in parts.
        labels: int64 (N,), -1 where one is not known.
    """
    if labels is None or not (labels >= 0).any():
        return None
    likeliest = torch.cat([posterior(x).first.probs.argmax(-1) for x in parts]).cpu()
    return (likeliest == labels)[labels >= 0]
