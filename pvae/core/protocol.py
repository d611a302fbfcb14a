"""What the three modules of a VAE return: protocols, checks of shapes and domains, and the view of a VAE at labels.

The convention for labels: a module whose attribute `takes_labels` is true is called with the labels y (B, ...) as its
last argument, and every other module without them. Where labels may be missing, its attribute `labels_are_optional` is
true, and it is called without y then.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Protocol

from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn

from pvae.core.errors import InputError


class PriorModule(Protocol):
    """A module that returns the prior p(z), or p(z | y) if it takes labels.

    It may return a `pvae.distributions.joint.Joint`, if q(z | x) is one too. Each of its sites is then a sample site of
    its own in model and guide: "z1", "z2" and so on in place of "z".
    """

    def forward(self) -> TorchDistribution:
        """Return p(z): batch shape (), event shape (L,)."""
        ...


class PosteriorModule(Protocol):
    """A module that returns the approximate posterior q(z | x), or q(z | x, y) if it takes labels.

    If it has an attribute `has_density` that is false, q(z | x) is a point, as in an autoencoder, and there is no bound
    on log p(x).
    """

    def forward(self, x: Tensor, /) -> TorchDistribution:
        """Return q(z | x) of data x (B, *D): batch shape (B,), event shape (L,)."""
        ...


class LikelihoodModule(Protocol):
    """A module that returns the likelihood p(x | z), or p(x | z, y) if it takes labels.

    It may also have `check(x)`, which returns data in its domain and raises an `InputError` for others; `pseudo`, true
    for a pseudo-likelihood; `is_bounding`, false for a distribution that is fitted to the batch; and `levels_per_unit`,
    the number of 8-bit levels per unit of a density's argument. See `pvae.models.likelihoods`.
    """

    def forward(self, z: Tensor, /) -> TorchDistribution:
        """Return p(x | z) of latents z (..., L): batch shape z.shape[:-1], event shape D."""
        ...


def checked_module(name: str, module: object) -> nn.Module:
    """Return the module.

    Raises:
        TypeError: it is not a torch module.
        InputError: its `forward` has a parameter y, and no attribute `takes_labels` says whether y are labels.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"{name} must be a torch.nn.Module that returns a distribution, not {type(module).__name__}")
    if "y" in inspect.signature(type(module).forward).parameters and not hasattr(module, "takes_labels"):
        raise InputError(f"forward of {name} has a parameter y: set takes_labels = True in its class if y are labels")
    return module


def takes_labels(module: nn.Module) -> bool:
    """Return whether a module takes labels y as its last argument."""
    return bool(getattr(module, "takes_labels", False))


def call(vae: Any, module: nn.Module, *given: Tensor, y: Tensor | None) -> Any:
    """Return module(*given, y) if the module takes labels, and module(*given) otherwise.

    Raises:
        InputError: there are labels, and no module of the VAE takes them; or there are none, and this one needs them.
    """
    if y is not None:
        check_takes_labels(vae)
    elif takes_labels(module) and not getattr(module, "labels_are_optional", False):
        raise InputError("this VAE needs labels y: call vae.given(y), or give y to its methods")
    if y is not None and takes_labels(module):
        return module(*given, y)
    return module(*given)


def for_each(y: Tensor | None, count: int) -> Tensor | None:
    """Return labels (B, ...) of B data, of which (1, ...) is the label of all."""
    if y is None or len(y) == count:
        return y
    return y.expand(count, *y.shape[1:])


def check_takes_labels(vae: Any) -> None:
    """Raise an `InputError` if no module of the VAE takes labels."""
    if not vae.takes_labels:
        raise InputError(
            "no module of this VAE takes labels: give one the attribute takes_labels = True, and a forward whose last "
            "argument is y"
        )


def draw(p: Any, sample: Callable[[str, Any], Tensor]) -> Tensor:
    """Return z = sample("z", p), or sample each site of a joint distribution by its name."""
    if hasattr(p, "draw"):
        return p.draw(sample)
    return sample("z", p)


def in_domain(p_x: nn.Module, x: Tensor) -> Tensor:
    """Return `p_x.check(x)`, or x itself if the likelihood has no `check`."""
    check: Callable[[Tensor], Tensor] | None = getattr(p_x, "check", None)
    if check is None:
        return x
    return check(x)


def of_shape(name: str, distribution: TorchDistribution, batch_shape: tuple[int, ...]) -> TorchDistribution:
    """Return a distribution of Pyro's that has this batch shape.

    Raises:
        InputError: it is another object, or has another batch shape; the message says what to return.
    """
    if not callable(distribution):  # pyro.sample calls a distribution to draw from it
        kind = f"{type(distribution).__module__}.{type(distribution).__name__}"
        example = "such as Normal(loc, scale).to_event(1)"
        raise InputError(f"{name} is a {kind}: return a distribution of pyro.distributions, {example}")
    if distribution.batch_shape != batch_shape:
        base: Any = distribution
        while hasattr(base, "reinterpreted_batch_ndims"):
            base = base.base_dist
        shapes = f"batch shape {tuple(distribution.batch_shape)} and event shape {tuple(distribution.event_shape)}"
        message = f"{name} has {shapes}, where its batch shape must be {tuple(batch_shape)}"
        num_event_dims = len(base.batch_shape) - len(batch_shape)
        if num_event_dims >= 0:
            message += f": return it with .to_event({num_event_dims})"
        raise InputError(message)
    return distribution


def of_event(p_x: TorchDistribution, x: Tensor) -> TorchDistribution:
    """Return the likelihood of data x (B, *D).

    Raises:
        InputError: its event has another shape than a datum.
    """
    if p_x.event_shape != x.shape[1:]:
        shapes = f"{tuple(p_x.event_shape)}, and a datum {tuple(x.shape[1:])}"
        raise InputError(f"the event of p(x | z) has shape {shapes}: return a distribution of the datum's shape")
    return p_x


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
        self.vae = vae
        self.y = y

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the VAE; a method that returns the VAE, such as `eval`, returns this view."""
        if name.startswith("__") or name == "vae":  # as `copy` asks before there is a VAE
            raise AttributeError(name)
        attribute = getattr(self.vae, name)
        if not inspect.ismethod(attribute):
            return attribute

        def of_view(*arguments: Any, **named: Any) -> Any:
            result = attribute(*arguments, **named)
            if result is self.vae:
                return self
            return result

        return of_view

    def given(self, y: Tensor | None) -> Any:
        """Return the VAE at other labels y; for None this view itself."""
        if y is None:
            return self
        return self.vae.given(y)

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
