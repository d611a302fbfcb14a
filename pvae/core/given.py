"""`Given`, the view of a VAE at labels y that `VAE.given` returns."""

from __future__ import annotations

from typing import Any

from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor

from pvae.core.protocol import check_takes_labels

__all__ = ["Given"]


class Given:
    """A VAE at labels y: p(z | y), q(z | x, y) and p(x | z, y), by methods that take no y.

    It holds y and no state of its own: parameters, mode and every other attribute are those of the VAE.

    Args:
        vae: the VAE.
        y: its labels, one for each datum (B, ...), or one for all (1, ...).

    Raises:
        InputError: no module of the VAE takes labels.
    """

    def __init__(self, vae: Any, y: Tensor) -> None:
        check_takes_labels(vae)
        self.vae, self.y = vae, y

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the VAE."""
        return getattr(self.vae, name)

    def given(self, y: Tensor | None) -> Any:
        """Return the VAE at other labels y; for None this view itself."""
        return self if y is None else self.vae.given(y)

    def prior(self) -> TorchDistribution:
        """Return p(z | y)."""
        return self.vae.prior(self.y)

    def posterior(self, x: Tensor) -> TorchDistribution:
        """Return q(z | x, y)."""
        return self.vae.posterior(x, self.y)

    def likelihood(self, z: Tensor) -> TorchDistribution:
        """Return p(x | z, y)."""
        return self.vae.likelihood(z, self.y)

    def log_likelihood(self, x: Tensor, z: Tensor) -> Tensor:
        """Return log p(x | z, y) in nats."""
        return self.vae.log_likelihood(x, z, self.y)

    def model(self, x: Tensor) -> None:
        """Pyro's generative function at y."""
        self.vae.model(x, self.y)

    def guide(self, x: Tensor) -> None:
        """Pyro's variational function at y."""
        self.vae.guide(x, self.y)
