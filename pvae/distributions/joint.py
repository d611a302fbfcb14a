"""`Joint`, the joint distribution of several latent sites: layers z1, z2, ..., or a label y and a latent z."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from pyro.distributions.util import broadcast_shape
from torch import Size, Tensor
from torch.distributions import constraints

__all__ = ["Joint", "PartlyKnownLabel", "one_hot", "sites_of"]


class Joint(TorchDistribution):
    """The joint distribution of several sites, each drawn given the site drawn before it.

        bottom-up   log q(z) = log q(z1) + sum_l log q(z_l | z_l-1)
        top-down    log p(z) = log p(zL) + sum_l log p(z_l | z_l+1)

    A value is one vector, the sites one after another, in the order of `names`. In model and guide, each is a sample
    site of its own. The KL divergence of two joint distributions has no closed form.

    A label y, one of K classes, and a latent z are two sites: y is a vector of K zeros and a one. Where `draw`
    enumerates y, it returns all K values along a new dimension, to which y is then expanded.

    Args:
        first: the distribution of the site that is drawn first, event shape (L_l,).
        rest: for each further site, in the order in which they are drawn, a function from the value drawn before it,
            (..., L_before), to its distribution, batch shape (...), which has `rsample` if `first` has it.
        sizes: the lengths of the sites, in the order of `names`.
        names: the names of the sites; by default "z1", "z2" and so on.
        top_down: the last site is drawn first; otherwise the first one.

    Reference:
        Burda, Grosse and Salakhutdinov, arXiv:1509.00519 (several layers); Kingma et al., arXiv:1406.5298 (a label).
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    support = constraints.real_vector

    def __init__(
        self,
        first: TorchDistribution,
        rest: Sequence[Callable[[Tensor], TorchDistribution]],
        sizes: Sequence[int],
        names: Sequence[str] = (),
        *,
        top_down: bool = False,
    ) -> None:
        self.has_rsample = first.has_rsample
        self.first = first
        self.rest = tuple(rest)
        self.sizes = tuple(sizes)
        self.top_down = top_down
        self.names = tuple(names) or tuple(f"z{number + 1}" for number in range(len(sizes)))
        super().__init__(first.batch_shape, Size([sum(sizes)]), validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Joint:
        """Return this distribution expanded to another batch shape."""
        return Joint(self.first.expand(batch_shape), self.rest, self.sizes, self.names, top_down=self.top_down)

    @property
    def top(self) -> TorchDistribution:
        """The distribution of the last site: of the layer drawn first, or of z at the mean of a label y."""
        if self.top_down:
            return self.first
        return self.rest[-1](self.first.mean)

    @property
    def is_enumerable(self) -> bool:
        """Whether the site drawn first is a class, so that `mean` and `variance` are sums over all classes."""
        return bool(self.first.has_enumerate_support)

    def draw(self, draw: Callable[[str, TorchDistribution], Tensor]) -> Tensor:
        """Return the vector of all sites (..., L1 + ... + LL), each by `draw(name, distribution)`, as `pyro.sample`.

        Args:
            draw: is given the site's name, and its distribution given the value drawn before it.
        """
        first, *later = self._in_order(self.names)
        drawn = [draw(first, self.first)]
        for name, conditional in zip(later, self.rest):
            drawn.append(draw(name, conditional(drawn[-1])))
        shape = broadcast_shape(*(part.shape[:-1] for part in drawn))
        return torch.cat([part.expand(*shape, -1) for part in self._in_order(drawn)], dim=-1)

    def conditionals(self, value: Tensor) -> list[tuple[Tensor, TorchDistribution]]:
        """Return for each site of a vector its value, and its distribution given the value drawn before it."""
        values = self._in_order(value.split(self.sizes, dim=-1))
        given = [self.first, *(conditional(before) for conditional, before in zip(self.rest, values))]
        return self._in_order(list(zip(values, given)))

    def replaced(self, value: Tensor, name: str, part: Tensor) -> Tensor:
        """Return vectors (..., L1 + ... + LL) in which the site of that name has other values (..., L_l)."""
        parts = dict(zip(self.names, value.split(self.sizes, dim=-1))) | {name: part.to(value.dtype)}
        return torch.cat([parts[name] for name in self.names], dim=-1)

    def rsample(self, sample_shape: Any = Size()) -> Tensor:  # noqa: B008
        """Return reparameterised draws, sample_shape + (..., L1 + ... + LL)."""
        first = self.first.rsample(sample_shape)
        return self.draw(lambda _, site: first if site is self.first else site.rsample())

    @torch.no_grad()
    def sample(self, sample_shape: Any = Size()) -> Tensor:  # noqa: B008
        """Return draws, sample_shape + (..., L1 + ... + LL), which need no reparameterisation."""
        first = self.first.sample(sample_shape)
        return self.draw(lambda _, site: first if site is self.first else site.sample())

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the joint log-density at vectors (..., L1 + ... + LL), in nats."""
        return torch.stack([p.log_prob(part) for part, p in self.conditionals(value)]).sum(0)

    @property
    def mean(self) -> Tensor:
        """The mean, (..., K + L): the probabilities of the classes, and E[z] = sum_y q(y) E[z | y].

        Raises:
            NotImplementedError: the first site is no class, so that the mean has no closed form.
        """
        return torch.cat([self._classes().probs, self._expected(lambda q: q.mean)], dim=-1)

    @property
    def variance(self) -> Tensor:
        """The variance, (..., K + L): of each element of y, and Var[z] = E[Var[z | y]] + Var[E[z | y]].

        Raises:
            NotImplementedError: as for `mean`.
        """
        variance = self._classes().variance
        mean_square = self._expected(lambda q: q.variance + q.mean.square())
        return torch.cat([variance, mean_square - self._expected(lambda q: q.mean).square()], dim=-1)

    @torch.no_grad()
    def estimate_mean(self, num_samples: int) -> Tensor:
        """Return the mean of the site drawn first, and estimates of the others' means; of Normals or bits.

        For each later site, its conditional mean is averaged over draws of the site before it. All elements of the
        batch share their noise, so that the means of equal distributions are equal; (..., L1 + ... + LL).
        """
        noise_shape = (num_samples, *[1] * len(self.batch_shape))

        def drawn(_: str, p: Any) -> Tensor:
            if p.has_rsample:
                return p.mean + p.stddev * torch.randn(*noise_shape, *p.event_shape).to(p.mean)
            return (torch.rand(*noise_shape, *p.event_shape).to(p.mean) < p.mean).to(p.mean)

        means = []
        for _, p in self.conditionals(self.draw(drawn)):
            if p is self.first:
                means.append(p.mean)
            else:
                means.append(p.mean.mean(0))
        return torch.cat(means, -1)

    def _classes(self) -> Any:
        if not self.is_enumerable:
            raise NotImplementedError("the mean of several layers has no closed form: `estimate_mean` estimates it")
        return self.first

    def _expected(self, of: Callable[[Any], Tensor]) -> Tensor:
        """Return sum_y q(y) of(q(z | y))."""
        probs = self.first.probs
        classes = torch.eye(self.sizes[0], dtype=probs.dtype, device=probs.device)
        every = classes.reshape(-1, *[1] * (probs.dim() - 1), self.sizes[0]).expand(-1, *probs.shape)
        return (probs.movedim(-1, 0).unsqueeze(-1) * of(self.rest[0](every))).sum(0)

    def _in_order(self, sites: Sequence[Any]) -> list[Any]:
        """Convert between the order of `names` and the order of drawing: reversed if top-down."""
        if self.top_down:
            return [*reversed(sites)]
        return [*sites]


def sites_of(distribution: Any, value: Tensor) -> list[tuple[Tensor, Any]]:
    """Return `Joint.conditionals(value)`, or for any other distribution the one pair of value and distribution."""
    if isinstance(distribution, Joint):
        return distribution.conditionals(value)
    return [(value, distribution)]


_NEVER = -1e30  # the log-probability of a class that a label is known not to be; its product with 0 is 0


class PartlyKnownLabel(dist.OneHotCategorical):
    """The distribution of a label: a point mass where it is known, and q(y | x) of a classifier where it is not.

    Args:
        logits: of q(y | x), (..., K).
        y: the known classes, int64 (...); -1 where a class is not known.
    """

    def __init__(self, logits: Tensor, y: Tensor) -> None:
        self.inferred = logits
        self.y = y
        self._known = one_hot(y, logits.shape[-1])
        known = torch.where(self._known, torch.zeros_like(logits), torch.full_like(logits, _NEVER))
        super().__init__(logits=torch.where((y >= 0)[..., None], known, logits))

    def expand(self, batch_shape: Any, _instance: Any = None) -> PartlyKnownLabel:
        """Return this distribution expanded to another batch shape."""
        return PartlyKnownLabel(self.inferred.expand(*batch_shape, -1), self.y.expand(Size(batch_shape)))

    @property
    def cross_entropy(self) -> Tensor:
        """-log q(y | x) of the classifier at the known labels, (...) nats; 0 where the label is not known."""
        log_q = (self._known * self.inferred.log_softmax(-1)).sum(-1)
        return torch.where(self.y >= 0, -log_q, torch.zeros_like(log_q))


def one_hot(y: Tensor, num_classes: int) -> Tensor:
    """Return classes y, int64 (...), as vectors of zeros and a one, bool (..., K); -1 as zeros alone.

    torch's own one_hot reads values, and cannot be recorded.
    """
    return y[..., None] == torch.arange(num_classes, device=y.device)
