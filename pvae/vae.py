"""The whole idea: three distributions, and the two Pyro functions made of them."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import pyro
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn

from pvae.core.errors import InputError
from pvae.core.tracing import register

__all__ = ["VAE", "LikelihoodModule", "PosteriorModule", "PriorModule", "draw_layers"]


class PriorModule(Protocol):
    """A module that returns the prior p(z), or p(z | y) if `forward` has a parameter y.

    It may be a `pvae.distributions.hierarchy.Hierarchy`, if q(z | x) is one too. Each of its layers is then a sample
    site of its own in model and guide: "z1", "z2" and so on in place of "z".
    """

    def forward(self) -> TorchDistribution:
        """Return p(z): batch shape (), event shape (L,)."""
        ...


class PosteriorModule(Protocol):
    """A module that returns the approximate posterior q(z | x).

    If `forward` has a second parameter y, it returns q(z | x, y) given labels. If it has an attribute `has_density`
    that is False, q(z | x) is a point, as in an autoencoder, and there is no bound on log p(x).
    """

    def forward(self, x: Tensor, /) -> TorchDistribution:
        """Return q(z | x) of images x (B, C, H, W): batch shape (B,), event shape (L,)."""
        ...


class LikelihoodModule(Protocol):
    """A module that returns the likelihood p(x | z), or p(x | z, y) if `forward` has a second parameter y.

    It may also have `check(x)`, which returns images in its domain and raises an `InputError` for others; `pseudo`,
    True for a pseudo-likelihood; `is_bounding`, False for a distribution that is fitted to the batch; and
    `levels_per_unit`, the number of 8-bit levels per unit of a density's argument. See `pvae.models.likelihoods`.
    """

    def forward(self, z: Tensor, /) -> TorchDistribution:
        """Return p(x | z) of latents z (..., L): batch shape z.shape[:-1], event shape (C, H, W)."""
        ...


class VAE(nn.Module):
    """A variational autoencoder: p(z), q(z | x) and p(x | z), each any module that returns a distribution.

        model:  z ~ p(z),  x ~ p(x | z)          guide:  z ~ q(z | x)

    Any of the three may depend on labels y too: its module's `forward` then has a parameter of that name, and the
    methods take y, or `given(y)` is the VAE of these labels. Its bounds are on log p(x | y).

    Example: a VAE of binary images of 4 x 4, trained by SVI, and its loss written by hand:

    >>> import torch, pyro, pyro.distributions as dist
    >>> from torch import nn
    >>> from pyro.infer import SVI, Trace_ELBO
    >>> from pvae import VAE
    >>> class Prior(nn.Module):
    ...     def forward(self):
    ...         return dist.Normal(torch.zeros(2), torch.ones(2)).to_event(1)
    >>> class Posterior(nn.Sequential):
    ...     def forward(self, x):
    ...         loc, log_scale = super().forward(x).chunk(2, dim=-1)
    ...         return dist.Normal(loc, log_scale.exp()).to_event(1)
    >>> class Likelihood(nn.Sequential):
    ...     def forward(self, z):
    ...         return dist.Bernoulli(logits=super().forward(z)).to_event(3)
    >>> _ = torch.manual_seed(0)
    >>> encoder, decoder = [nn.Flatten(), nn.Linear(16, 4)], [nn.Linear(2, 16), nn.Unflatten(-1, (1, 4, 4))]
    >>> vae = VAE(p_z=Prior(), q_z=Posterior(*encoder), p_x=Likelihood(*decoder))
    >>> x = torch.bernoulli(torch.full((8, 1, 4, 4), 0.3))
    >>> with pyro.get_param_store().scope():
    ...     svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.01}), loss=Trace_ELBO())
    ...     losses = [svi.step(x) for _ in range(200)]  # each the sum over the batch
    ...     with torch.random.fork_rng():  # so that the same z is drawn below
    ...         loss = svi.evaluate_loss(x)
    >>> q = vae.posterior(x)
    >>> z = q.rsample()
    >>> elbo = vae.likelihood(z).log_prob(x) + vae.prior().log_prob(z) - q.log_prob(z)
    >>> torch.allclose(torch.tensor(loss), -elbo.sum()), loss < losses[0]
    (True, True)

    Args:
        p_z: returns the prior.
        q_z: returns the approximate posterior of a batch.
        p_x: returns the likelihood of a latent.

    Attributes:
        y: the labels of `given`, (B, ...); None otherwise.

    Reference:
        Kingma and Welling, arXiv:1312.6114, section 2; Sohn, Lee and Yan, NeurIPS 2015, given labels.
    """

    def __init__(self, p_z: PriorModule, q_z: PosteriorModule, p_x: LikelihoodModule) -> None:
        super().__init__()
        self.p_z = _module("p_z", p_z)
        self.q_z = _module("q_z", q_z)
        self.p_x = _module("p_x", p_x)
        self.y: Tensor | None = None

    def given(self, y: Tensor | None = None) -> VAE:
        """Return the VAE of the same modules at labels y, one for each datum (B, ...), or one for all (1, ...).

        Its prior, posterior and likelihood are p(z | y), q(z | x, y) and p(x | z, y), so that whatever takes a VAE
        computes what it computes given y. None leaves it as it is. Call `train` and `eval`
        before, and not on the result.

        Raises:
            InputError: (a ValueError) no module of the VAE takes labels.
        """
        if y is None:
            return self
        if not self.takes_labels:
            raise InputError("no module of this VAE takes labels: give one a parameter y, as in forward(z, y)")
        vae = copy.copy(self)
        vae.y = y
        return vae

    def split(self, x: Any, size: int) -> Iterator[tuple[VAE, Tensor]]:
        """Yield data x (N, *D) in parts of `size`, each with this VAE given their labels if it has labels (N, ...).

        Args:
            x: a tensor, or `Pixels`.
            size: data in a part.

        Raises:
            InputError: (a ValueError) there is another number of labels.
        """
        y, start = self.y, 0
        if y is not None and len(y) not in (1, len(x)):
            raise InputError(f"there are {len(y)} labels for {len(x)} data: give one for each, or one for all")
        for part in x.split(size):
            yield self if y is None or len(y) == 1 else self.given(y[start : start + len(part)]), part
            start += len(part)

    @property
    def takes_labels(self) -> bool:
        """Whether prior, posterior or likelihood depends on labels y."""
        return any(map(_takes_labels, (self.p_z, self.q_z, self.p_x)))

    def prior(self) -> TorchDistribution:
        """Return p(z): batch shape (), or given labels perhaps (B,); event shape (L,).

        Raises:
            InputError: (a ValueError; so do the two methods below) the module returned another batch shape, or it needs
                labels, and there are none.
        """
        p_z = self._call(self.p_z)
        is_of_batch = bool(getattr(p_z, "batch_shape", None))
        return _checked("p(z)", p_z, self.y.shape[:1] if self.y is not None and is_of_batch else ())

    def posterior(self, x: Tensor) -> TorchDistribution:
        """Return q(z | x) for data x (B, *D): batch shape (B,), event shape (L,).

        Raises:
            InputError: (a ValueError) x is not a batch of data in the likelihood's domain.
        """
        check: Callable[[Tensor], Tensor] | None = getattr(self.p_x, "check", None)
        return _checked("q(z | x)", self._call(self.q_z, x if check is None else check(x)), x.shape[:1])

    def likelihood(self, z: Tensor) -> TorchDistribution:
        """Return p(x | z) for latents z (..., L): batch shape z.shape[:-1], event shape D.

        Given labels (B, ...), z is (..., B, L).
        """
        return _checked("p(x | z)", self._call(self.p_x, z), z.shape[:-1])

    def _call(self, module: nn.Module, *given: Tensor) -> Any:
        """Return the module's distribution, given labels too if it takes them."""
        if self.y is not None and _takes_labels(module):
            return module(*given, self.y)
        if self.y is None and _takes_labels(module, required=True):
            raise InputError("this VAE is one given labels y: call it as vae.given(y)")
        return module(*given)

    def log_likelihood(self, x: Tensor, z: Tensor) -> Tensor:
        """Return log p(x | z) of x (B, *D) and latents z (..., B, L): (..., B) nats.

        Raises:
            InputError: (a ValueError) the event of p(x | z) has another shape than a datum.
        """
        return self._likelihood_of(x, z).log_prob(x)

    def _likelihood_of(self, x: Tensor, z: Tensor) -> TorchDistribution:
        p_x = self.likelihood(z)
        if p_x.event_shape != x.shape[1:]:
            shapes = f"{tuple(p_x.event_shape)}, and a datum {tuple(x.shape[1:])}"
            raise InputError(f"the event of p(x | z) has shape {shapes}: return a distribution of the datum's shape")
        return p_x

    def model(self, x: Tensor, y: Tensor | None = None) -> None:
        """Pyro's generative function over data x (B, *D), perhaps given labels y (B, ...).

        Its sites are "z" and "x"; of several layers, "z1", "z2" and so on in place of "z"; and "y", a label that is a
        latent.
        """
        if y is not None:
            return self.given(y).model(x)
        register("p_z", self.p_z)
        register("p_x", self.p_x)
        with pyro.plate("data", x.shape[0]):
            z = draw_layers(self.prior(), pyro.sample)
            pyro.sample("x", self._likelihood_of(x, z), obs=x)

    def guide(self, x: Tensor, y: Tensor | None = None) -> None:
        """Pyro's variational function over data x (B, *D), perhaps given labels y (B, ...): the latent sites."""
        if y is not None:
            return self.given(y).guide(x)
        register("q_z", self.q_z)
        with pyro.plate("data", x.shape[0]):
            draw_layers(self.posterior(x), pyro.sample)

    @property
    def has_density(self) -> bool:
        """Whether q(z | x) is a density and not a point, as it is in an autoencoder."""
        return getattr(self.q_z, "has_density", True)

    @property
    def is_pseudo(self) -> bool:
        """Whether p(x | z) is a pseudo-likelihood, so that the ELBO is a pseudo-ELBO."""
        return getattr(self.p_x, "pseudo", False)

    @property
    def is_bounding(self) -> bool:
        """Whether the ELBO is a bound on a log-likelihood, or on a pseudo-likelihood's logarithm."""
        return self.has_density and getattr(self.p_x, "is_bounding", True)


def draw_layers(latent: Any, draw: Callable[[str, Any], Tensor]) -> Tensor:
    """Return z = draw("z", latent), or draw each layer of a hierarchy: "z1", "z2" and so on."""
    return latent.draw(draw) if hasattr(latent, "draw") else draw("z", latent)


@functools.cache
def _parameter_y(forward: Any) -> inspect.Parameter | None:
    return inspect.signature(forward).parameters.get("y")


def _takes_labels(module: nn.Module, required: bool = False) -> bool:
    """Whether the module's `forward` has a parameter y, or one that has no default."""
    y = _parameter_y(type(module).forward)
    return y is not None and not (required and y.default is not y.empty)


def _checked(name: str, one: TorchDistribution, batch_shape: tuple[int, ...]) -> TorchDistribution:
    """Return a distribution of Pyro's that has this batch shape, or raise an `InputError` that says what to return."""
    if not callable(one):  # pyro.sample calls a distribution to draw from it
        kind = f"{type(one).__module__}.{type(one).__name__}"
        example = "such as Normal(loc, scale).to_event(1)"
        raise InputError(f"{name} is a {kind}: return a distribution of pyro.distributions, {example}")
    if one.batch_shape != batch_shape:
        base: Any = one
        while hasattr(base, "reinterpreted_batch_ndims"):
            base = base.base_dist
        shapes = f"batch shape {tuple(one.batch_shape)} and event shape {tuple(one.event_shape)}"
        num_event_dims = len(base.batch_shape) - len(batch_shape)
        how = f": return it with .to_event({num_event_dims})" if num_event_dims >= 0 else ""
        raise InputError(f"{name} has {shapes}, where its batch shape must be {tuple(batch_shape)}{how}")
    return one


def _module(name: str, module: object) -> nn.Module:
    if not isinstance(module, nn.Module):
        raise TypeError(f"{name} must be a torch.nn.Module that returns a distribution, not {type(module).__name__}")
    return module
