"""The whole idea: three distributions, and the two Pyro functions made of them."""

from __future__ import annotations

from typing import cast

import pyro
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn

from pvae.core import protocol
from pvae.core.tracing import register


class VAE(nn.Module):
    """A variational autoencoder: p(z), q(z | x) and p(x | z), each any module that returns a distribution.

        model:  z ~ p(z),  x ~ p(x | z)          guide:  z ~ q(z | x)

    Any of the three may depend on labels y too, (B, ...) or (1, ...) for all data: its attribute `takes_labels` is then
    true, and its `forward` takes y as its last argument. The bounds are then on log p(x | y). README.md builds a VAE of
    three modules by hand.

    Args:
        p_z: returns the prior (a `protocol.PriorModule`).
        q_z: returns the approximate posterior of a batch (a `protocol.PosteriorModule`).
        p_x: returns the likelihood of a latent (a `protocol.LikelihoodModule`).

    Raises:
        InputError: (a ValueError, by all methods) a module returned another shape, x is outside the domain of p_x, or
            labels are given and no module takes them.

    Reference:
        Kingma and Welling, arXiv:1312.6114, section 2; Sohn, Lee and Yan, NeurIPS 2015, given labels.
    """

    def __init__(self, p_z: nn.Module, q_z: nn.Module, p_x: nn.Module) -> None:
        super().__init__()
        self.p_z = protocol.checked_module("p_z", p_z)
        self.q_z = protocol.checked_module("q_z", q_z)
        self.p_x = protocol.checked_module("p_x", p_x)

    def prior(self, y: Tensor | None = None) -> TorchDistribution:
        """Return p(z): batch shape (), or given labels perhaps (B,); event shape (L,)."""
        p_z = protocol.call(self, self.p_z, y=y)
        batch_shape = () if y is None or getattr(p_z, "batch_shape", ()) == () else y.shape[:1]
        return protocol.of_shape("p(z)", p_z, batch_shape)

    def posterior(self, x: Tensor, y: Tensor | None = None) -> TorchDistribution:
        """Return q(z | x) for data x (B, *D): batch shape (B,), event shape (L,)."""
        q_z = protocol.call(self, self.q_z, protocol.in_domain(self.p_x, x), y=protocol.for_each(y, len(x)))
        return protocol.of_shape("q(z | x)", q_z, x.shape[:1])

    def likelihood(self, z: Tensor, y: Tensor | None = None) -> TorchDistribution:
        """Return p(x | z) for latents z (..., L), given labels (..., B, L): batch shape z.shape[:-1], event shape D."""
        y = y if z.dim() < 2 else protocol.for_each(y, z.shape[-2])
        return protocol.of_shape("p(x | z)", protocol.call(self, self.p_x, z, y=y), z.shape[:-1])

    def log_likelihood(self, x: Tensor, z: Tensor, y: Tensor | None = None) -> Tensor:
        """Return log p(x | z) of x (B, *D) and latents z (..., B, L): (..., B) nats."""
        return protocol.of_event(self.likelihood(z, y), x).log_prob(x)

    def model(self, x: Tensor, y: Tensor | None = None) -> None:
        """Pyro's generative function: the sites "z" and "x"; of a joint prior its own sites in place of "z"."""
        register("p_z", self.p_z)
        register("p_x", self.p_x)
        with pyro.plate("data", x.shape[0]):
            z = protocol.draw(self.prior(y), pyro.sample)
            pyro.sample("x", protocol.of_event(self.likelihood(z, y), x), obs=x)

    def guide(self, x: Tensor, y: Tensor | None = None) -> None:
        """Pyro's variational function: the latent sites of `model`."""
        register("q_z", self.q_z)
        with pyro.plate("data", x.shape[0]):
            protocol.draw(self.posterior(x, y), pyro.sample)

    def given(self, y: Tensor | None) -> VAE:
        """Return a view of this VAE at labels y (B, ...), or (1, ...) for all data; for None the VAE itself."""
        return self if y is None else cast(VAE, protocol.Given(self, y))

    @property
    def takes_labels(self) -> bool:
        """Whether prior, posterior or likelihood depends on labels y."""
        return any(map(protocol.takes_labels, (self.p_z, self.q_z, self.p_x)))

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
