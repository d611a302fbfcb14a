"""Modules whose call returns p(x | z); each states the pixels that it is a distribution over."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import constraints

from pvae.errors import InputError

__all__ = ["BernoulliLikelihood", "PseudoBernoulli", "PseudoBernoulliLikelihood"]


class PseudoBernoulli(dist.Bernoulli):  # type: ignore[misc]  # Pyro makes its classes at run time
    """A Bernoulli whose log-probability is also taken at grey values in [0, 1].

        log_prob(x) = x log p + (1 - x) log(1 - p)

    On 0 and 1 this is the Bernoulli. Between them it is the cross-entropy that most of the source documents
    train with: a pseudo-likelihood, since its exponential does not integrate to 1 over [0, 1]. A bound made of
    it is a pseudo-ELBO: it bounds no log-likelihood of the grey x. Being linear in x it is a mean over
    binarizations, E_{b ~ Bernoulli(x)} [log Bernoulli(b; p)], so what a pseudo-ELBO does bound from below is
    E_b [log p(b)], with an encoder that sees x in place of b.

    Raises:
        ValueError: `log_prob` at a value outside [0, 1] or NaN (torch's own validation).

    Reference:
        Loaiza-Ganem and Cunningham, arXiv:1907.06845, section 1 (the neglected normalising constant).
    """

    support = constraints.unit_interval


class BernoulliLikelihood(nn.Module):
    """The likelihood p(x | z) = prod_d Bernoulli(x_d; sigmoid(decoder(z)_d)) of binary pixels.

    Logits, not probabilities: a sigmoid in between floors log p at about -16 and kills its gradient.

    Args:
        decoder: a network from (..., L) to (..., C, H, W).
        image_shape: (C, H, W), the event of the likelihood.

    Reference:
        Kingma and Welling, arXiv:1312.6114, appendix C.1.
    """

    domain: ClassVar[str] = "exactly 0 or 1"
    pseudo: ClassVar[bool] = False

    def __init__(self, decoder: nn.Module, image_shape: Sequence[int]) -> None:
        super().__init__()
        self.decoder = decoder
        self.image_shape = tuple(image_shape)

    def forward(self, z: Tensor) -> dist.Independent:
        """Return p(x | z): batch shape z.shape[:-1], event shape (C, H, W)."""
        return dist.Bernoulli(logits=self.decoder(z)).to_event(len(self.image_shape))

    def check(self, x: Tensor) -> Tensor:
        """Return `x` if it is a batch of images in the domain.

        Args:
            x: pixels, (B, C, H, W).

        Raises:
            InputError: (a ValueError) wrong shape, no floating-point numbers, pixels outside the domain, or NaN.
        """
        if x.shape[1:] != self.image_shape or x.dim() != len(self.image_shape) + 1:
            wanted = ", ".join(str(size) for size in ("B", *self.image_shape))
            raise InputError(f"x has shape {tuple(x.shape)}, but this VAE takes images of shape ({wanted})")
        if not x.is_floating_point():
            raise InputError(f"x is {x.dtype}, but pixels must be floating-point: x.float() / 255 for uint8")
        if not self._in_domain(x):
            raise InputError(f"x has pixels outside this likelihood's domain: they must be {self.domain}, none NaN")
        return x

    def _in_domain(self, x: Tensor) -> bool:
        return bool(((x == 0) | (x == 1)).all())


class PseudoBernoulliLikelihood(BernoulliLikelihood):
    """The pseudo-likelihood of grey pixels in [0, 1]: `PseudoBernoulli`, asked for on purpose.

    Args:
        decoder: a network from (..., L) to (..., C, H, W).
        image_shape: (C, H, W).
    """

    domain: ClassVar[str] = "in [0, 1]"
    pseudo: ClassVar[bool] = True

    def forward(self, z: Tensor) -> dist.Independent:
        """Return the pseudo-likelihood: batch shape z.shape[:-1], event shape (C, H, W)."""
        return PseudoBernoulli(logits=self.decoder(z)).to_event(len(self.image_shape))

    def _in_domain(self, x: Tensor) -> bool:
        # NaN makes both comparisons false. An empty batch has no extremes.
        if x.numel() == 0:
            return True
        low, high = torch.aminmax(x)
        return bool((low >= 0) & (high <= 1))
