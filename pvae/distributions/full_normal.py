"""`FullNormal`, the Normal distribution with a full covariance matrix."""

from __future__ import annotations

from pyro.distributions import MultivariateNormal

__all__ = ["FullNormal"]


class FullNormal(MultivariateNormal):
    """Pyro's `MultivariateNormal`, with a KL divergence in closed form from independent Normals.

    The divergence (`pvae.distributions.kl`) is registered for this class alone: importing it must not change what
    `kl_divergence` returns for distributions of others.
    """
