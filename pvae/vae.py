"""The whole idea: three distributions, and the two Pyro functions made of them."""

from __future__ import annotations

import pyro
from pyro.distributions.torch_distribution import TorchDistribution
from pyro.params import param_with_module_name
from torch import Tensor, nn

from pvae.hierarchy import ChainPosterior, ChainPrior
from pvae.latents import DeltaPosterior, FlatPrior, NormalPosterior, StandardNormalPrior
from pvae.likelihoods import Likelihood

__all__ = ["VAE"]


class VAE(nn.Module):
    """A variational autoencoder: p(z), q(z | x) and p(x | z).

        model:  z ~ p(z),  x ~ p(x | z)          guide:  z ~ q(z | x)

    Args:
        p_z: returns the prior.
        q_z: returns the approximate posterior of a batch.
        p_x: returns the likelihood of a latent.

    Reference:
        Kingma and Welling, arXiv:1312.6114, section 2.
    """

    def __init__(
        self,
        p_z: StandardNormalPrior | FlatPrior | ChainPrior,
        q_z: NormalPosterior | DeltaPosterior | ChainPosterior,
        p_x: Likelihood,
    ) -> None:
        super().__init__()
        self.p_z = p_z
        self.q_z = q_z
        self.p_x = p_x

    def prior(self) -> TorchDistribution:
        """Return p(z): batch shape (), event shape (L,)."""
        return self.p_z()

    def posterior(self, x: Tensor) -> TorchDistribution:
        """Return q(z | x) for images x (B, C, H, W): batch shape (B,), event shape (L,).

        Raises:
            InputError: (a ValueError) x is no batch of images in the likelihood's domain.
        """
        return self.q_z(self.p_x.check(x))

    def likelihood(self, z: Tensor) -> TorchDistribution:
        """Return p(x | z) for latents z (..., L): batch shape z.shape[:-1], event shape (C, H, W)."""
        return self.p_x(z)

    @property
    def is_bounding(self) -> bool:
        """Whether its ELBO is a bound on a log-likelihood: not that of an autoencoder, whose posterior is a point."""
        return self.q_z.has_density and self.p_x.is_bounding

    def model(self, x: Tensor) -> None:
        """Pyro's generative function over images x (B, C, H, W): sites "z" and "x"."""
        self.register("p_z", "p_x")
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", self.prior())
            pyro.sample("x", self.likelihood(z), obs=x)

    def guide(self, x: Tensor) -> None:
        """Pyro's variational function over images x (B, C, H, W): site "z"."""
        self.register("q_z")
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", self.posterior(x))

    def register(self, *names: str) -> None:
        """Hand the parameters of the named modules to Pyro, so that `pyro.infer.SVI` trains them.

        Raises:
            RuntimeError: another VAE's parameters stand in Pyro's store under these names. Pyro itself
                would run this network and let the optimiser step the other one, silently.
        """
        for name in names:
            # What pyro.module does, which leaves it at that where the store gives another parameter back.
            for key, parameter in getattr(self, name).named_parameters():
                known_as = param_with_module_name(name, key)
                if parameter.requires_grad and pyro.param(known_as, parameter) is not parameter:
                    raise RuntimeError(
                        "another VAE is in Pyro's parameter store, and this one would not be trained: train each "
                        "inside `with pyro.get_param_store().scope():`, or call pyro.clear_param_store() first"
                    )
