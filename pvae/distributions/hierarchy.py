"""`Hierarchy`, the joint distribution of several layers of latents."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Size, Tensor
from torch.distributions import constraints

__all__ = ["Hierarchy", "layers_of"]


class Hierarchy(TorchDistribution):
    """The joint distribution of layers z1, ..., zL of latents, each drawn given the one drawn before it.

        bottom-up   log q(z) = log q(z1) + sum_l log q(z_l | z_l-1)
        top-down    log p(z) = log p(zL) + sum_l log p(z_l | z_l+1)

    A value is one vector, the layers one after another, z1 first. The KL divergence of two has no closed form.

    Args:
        first: the distribution of the layer that is drawn first, event shape (L_l,).
        rest: for each further layer, in the order in which they are drawn, a function from the layer drawn before it,
            (..., L_before), to its distribution, batch shape (...), which has `rsample` if `first` has it.
        sizes: the lengths of z1, ..., zL.
        top_down: zL is drawn first; otherwise z1.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    support = constraints.real_vector

    def __init__(
        self,
        first: TorchDistribution,
        rest: Sequence[Callable[[Tensor], TorchDistribution]],
        sizes: Sequence[int],
        *,
        top_down: bool,
    ) -> None:
        self.has_rsample = first.has_rsample
        self.first, self.rest, self.sizes, self.top_down = first, tuple(rest), tuple(sizes), top_down
        super().__init__(first.batch_shape, Size([sum(sizes)]), validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Hierarchy:
        """Return this distribution expanded to another batch shape."""
        return Hierarchy(self.first.expand(batch_shape), self.rest, self.sizes, top_down=self.top_down)

    def draw(self, draw: Callable[[str, TorchDistribution], Tensor]) -> Tensor:
        """Return the vector of all layers, each obtained by `draw(name, distribution)`, such as `pyro.sample`.

        Args:
            draw: is given the layer's name, "z1", "z2" and so on, and its distribution given the layer before it.
        """
        layers: list[Tensor] = []
        for name, one in zip(self._in_order(self.names), (lambda _: self.first, *self.rest)):
            layers.append(draw(name, one(layers[-1] if layers else None)))
        return torch.cat(self._in_order(layers), dim=-1)

    @property
    def names(self) -> list[str]:
        """The names of the layers: z1, ..., zL."""
        return [f"z{number + 1}" for number in range(len(self.sizes))]

    def conditionals(self, value: Tensor) -> list[tuple[Tensor, TorchDistribution]]:
        """Return z_l and its distribution given the layer drawn before it, for each layer of a vector, z1 first."""
        layers = self._in_order(value.split(self.sizes, dim=-1))
        given = [self.first, *(one(before) for one, before in zip(self.rest, layers))]
        return self._in_order(list(zip(layers, given)))

    def rsample(self, sample_shape: Any = Size()) -> Tensor:  # noqa: B008
        """Return reparameterised draws, sample_shape + (..., L1 + ... + LL)."""
        return self.draw(lambda _, one: one.rsample(sample_shape if one is self.first else Size()))

    @torch.no_grad()
    def sample(self, sample_shape: Any = Size()) -> Tensor:  # noqa: B008
        """Return draws, sample_shape + (..., L1 + ... + LL), which need no reparameterisation."""
        return self.draw(lambda _, one: one.sample(sample_shape if one is self.first else Size()))

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the joint log-density at vectors (..., L1 + ... + LL), in nats."""
        return torch.stack([one.log_prob(layer) for layer, one in self.conditionals(value)]).sum(0)

    @torch.no_grad()
    def estimate_mean(self, num_samples: int) -> Tensor:
        """Return the mean of the layer drawn first, and estimates of the others' means; all layers must be Normal.

        `mean` has no closed form.
        The mean of a layer given the one before it is averaged over draws of that one. All elements of the batch share
        their noise, so that the means of equal distributions are equal.
        """
        noise_shape = (num_samples, *[1] * len(self.batch_shape))
        draws = self.draw(
            lambda _, one: one.mean + one.stddev * torch.randn(*noise_shape, *one.event_shape).to(one.mean)
        )
        return torch.cat(
            [one.mean if one is self.first else one.mean.mean(0) for _, one in self.conditionals(draws)], -1
        )

    def _in_order(self, layers: Sequence[Any]) -> list[Any]:
        """Return layers z1, ..., zL in the order in which they are drawn, or the other way round."""
        return list(reversed(layers)) if self.top_down else list(layers)


def layers_of(distribution: Any, value: Tensor) -> list[tuple[Tensor, Any]]:
    """Return `Hierarchy.conditionals(value)`, or for any other distribution the one pair of value and distribution."""
    return distribution.conditionals(value) if isinstance(distribution, Hierarchy) else [(value, distribution)]
