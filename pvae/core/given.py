"""`Given`, the view of a VAE at labels y that `VAE.given` returns."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
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
        """Return an attribute of the VAE; a method that returns the VAE, such as `eval`, returns this view."""
        if name.startswith("__") or name == "vae":  # as `copy` asks before there is a VAE
            raise AttributeError(name)
        attribute = getattr(self.vae, name)
        return self._of_view(attribute) if inspect.ismethod(attribute) else attribute

    def _of_view(self, method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def of_view(*arguments: Any, **named: Any) -> Any:
            result = method(*arguments, **named)
            return self if result is self.vae else result

        return of_view

    def given(self, y: Tensor | None) -> Any:
        """Return the VAE at other labels y; for None this view itself."""
        return self if y is None else self.vae.given(y)

    def prior(self) -> TorchDistribution:
        """Return p(z | y): batch shape () or (B,), event shape (L,)."""
        return self.vae.prior(self.y)

    def posterior(self, x: Tensor) -> TorchDistribution:
        """Return q(z | x, y) of data x (B, *D): batch shape (B,), event shape (L,)."""
        return self.vae.posterior(x, self.y)

    def likelihood(self, z: Tensor) -> TorchDistribution:
        """Return p(x | z, y) of latents z (..., B, L): batch shape (..., B), event shape D."""
        return self.vae.likelihood(z, self.y)

    def log_likelihood(self, x: Tensor, z: Tensor) -> Tensor:
        """Return log p(x | z, y) of x (B, *D) and z (..., B, L): (..., B) nats."""
        return self.vae.log_likelihood(x, z, self.y)

    def model(self, x: Tensor) -> None:
        """Pyro's generative function at y."""
        self.vae.model(x, self.y)

    def guide(self, x: Tensor) -> None:
        """Pyro's variational function at y."""
        self.vae.guide(x, self.y)
