"""Pyro ELBOs that are functions of importance weights, or the ELBO with another estimator of its gradient.

Each runs the guide and the replayed model under Pyro's tracing, with the particles as one more batch dimension, and
forms its loss from the two traces. `bounds` holds the same written by hand.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pvae.elbos.base import PerDatumELBO, PyroFunction
from pvae.elbos.sites import Draws

__all__ = ["CIWAE", "IWAE", "MIWAE", "DReG", "RenyiELBO", "ScoreELBO", "StickingTheLanding"]


class ImportanceELBO(PerDatumELBO):
    """An ELBO whose loss is made of the draws that Pyro's two traces hold.

        loss = - mean over the batch of the bound, in nats per datum

    Args:
        num_particles: K.
    """

    def loss_of(self, draws: Draws, distortion: Tensor, rate: Tensor) -> Tensor:
        """Return the loss, a scalar, of what was drawn."""
        return -self.bound(draws).mean()

    def bound(self, draws: Draws) -> Tensor:
        """Return the bound of each datum, (B,)."""
        raise NotImplementedError


class IWAE(ImportanceELBO):
    """The importance-weighted bound L_K = E log (1/K) sum_k w_k; `bounds.iwae` says where it is weak.

    Pyro's `RenyiELBO(alpha=0)` is the same bound, with one `.item()` a step and no `differentiable_loss`.

    Args:
        num_particles: K.

    Reference:
        Burda, Grosse and Salakhutdinov, arXiv:1509.00519, equation 8.
    """

    def bound(self, draws: Draws) -> Tensor:
        """Return L_K of each datum, (B,)."""
        return _log_mean_exp(draws.log_w)


class RenyiELBO(ImportanceELBO):
    """The variational Renyi bound, 1 / (1 - alpha) log (1/K) sum_k w_k^(1 - alpha).

    Args:
        num_particles: K.
        alpha: 0 is the importance-weighted bound, 1 the ELBO; below 0 it is no lower bound on log p(x).

    Reference:
        Li and Turner, arXiv:1602.02311, equation 5.
    """

    def __init__(self, num_particles: int = 1, alpha: float = 0.5) -> None:
        super().__init__(num_particles)
        self.alpha = alpha

    def bound(self, draws: Draws) -> Tensor:
        """Return the bound of each datum, (B,)."""
        if self.alpha == 1:
            return draws.log_w.mean(0)
        log_w = draws.log_w  # in float64, since near alpha = 1 the division makes rounding large
        return (_log_mean_exp((1 - self.alpha) * log_w.double()) / (1 - self.alpha)).to(log_w.dtype)


class CIWAE(ImportanceELBO):
    """The convex mix of ELBO and importance-weighted bound, mix ELBO + (1 - mix) L_K.

    Args:
        num_particles: K.
        mix: 1 is the ELBO, 0 the importance-weighted bound.

    Reference:
        Rainforth et al., arXiv:1802.04537.
    """

    def __init__(self, num_particles: int = 1, mix: float = 0.5) -> None:
        super().__init__(num_particles)
        self.mix = mix

    def bound(self, draws: Draws) -> Tensor:
        """Return the bound of each datum, (B,)."""
        return self.mix * draws.log_w.mean(0) + (1 - self.mix) * _log_mean_exp(draws.log_w)


class MIWAE(ImportanceELBO):
    """The mean of M importance-weighted bounds of K / M draws each.

    Args:
        num_particles: K, a multiple of M.
        num_groups: M; 1 is the importance-weighted bound, K the ELBO.

    Reference:
        Rainforth et al., arXiv:1802.04537.
    """

    def __init__(self, num_particles: int = 1, num_groups: int = 1) -> None:
        super().__init__(num_particles)
        self.num_groups = num_groups

    def bound(self, draws: Draws) -> Tensor:
        """Return the bound of each datum, (B,)."""
        return _log_mean_exp(draws.log_w.unflatten(0, (self.num_groups, -1)).transpose(0, 1)).mean(0)


class PathDerivativeELBO(ImportanceELBO):
    """A bound whose encoder's gradient follows the path through z alone: log q(z | x) is taken at fixed parameters.

    It takes any reparameterised q(z | x), and any order of several latent sites, each of which may depend on those
    before it: z is then all of them together, and q(z | x) their joint density.
    """

    def differentiable_loss(self, model: PyroFunction, guide: PyroFunction, x: Tensor) -> Tensor:
        """Return the loss of a batch x (B, C, H, W): a scalar in nats per datum, to be made small."""
        with _SeparateModelDraws():
            return super().differentiable_loss(model, guide, x)

    def _draws(self, model: PyroFunction, guide: PyroFunction, x: Tensor) -> Draws:
        draws = super()._draws(model, guide, x)
        for name, site in draws.priors.items():
            if site["value"] is draws.posteriors[name]["value"]:
                raise ValueError(f"guide and model share the draw of {name!r}: give a guide that is its own function")
        return draws


class StickingTheLanding(PathDerivativeELBO):
    """The ELBO, whose gradient leaves out the score: log q(z | x) at parameters through which none flows.

    Args:
        num_particles: K.
        beta: weight of the rate in the loss.

    Reference:
        Roeder, Wu and Duvenaud, arXiv:1703.09194.
    """

    def bound(self, draws: Draws) -> Tensor:
        """Return distortion + beta rate of each datum, negated: (B,)."""
        log_q_z = draws.log_q_z.detach() + _log_q_z_path(draws)
        return (draws.log_p_x + self.beta * (draws.log_p_z - log_q_z)).mean(0)


class DReG(PathDerivativeELBO):
    """The importance-weighted bound, whose encoder's gradient is doubly reparameterised.

        d/d phi L_K  =  E [ sum_k (w_k / sum_j w_j)^2  d log w_k / dz_k  dz_k / d phi ]

    Here z_k is the joint draw of all latent sites: d log w_k / dz_k holds phi fixed, also where log q of one site
    depends on the draw of another, and dz_k / d phi includes the way through the sites drawn before.

    Args:
        num_particles: K.

    Reference:
        Tucker, Lawson, Gu and Maddison, arXiv:1810.04152; Bauer and Mnih, arXiv:2101.11046, on several layers.
    """

    def bound(self, draws: Draws) -> Tensor:
        """Return L_K of each datum, (B,)."""
        log_w = draws.log_p_x + draws.log_p_z - draws.log_q_z.detach()
        weight = log_w.detach().softmax(0)
        for latent in draws.latents:
            if latent.z.requires_grad:
                # The bound weighs the gradient of log p(x, z) by z once, and the estimator weighs it twice.
                latent.z.register_hook(lambda gradient: gradient * weight.reshape(*gradient.shape[:-1], 1))
        return _log_mean_exp(log_w) - (weight.square() * _log_q_z_path(draws)).sum(0)


class ScoreELBO(ImportanceELBO):
    """The ELBO, whose encoder's gradient is the score function's, with no derivative of the decoder by z.

        d/d phi ELBO  =  E_q [ (log w - b) d/d phi log q(z | x) ]

    Args:
        num_particles: K.
        beta: weight of the rate in the loss.
        leave_one_out: take for the baseline b_k the mean of log w over the other draws (K at least 2), not 0.

    Reference:
        Document 002, first half; Ranganath, Gerrish and Blei, arXiv:1401.0118; Mnih and Rezende, arXiv:1602.06725.
    """

    reparameterised = False

    def __init__(self, num_particles: int = 1, beta: float = 1.0, leave_one_out: bool = False) -> None:
        super().__init__(num_particles, beta)
        self.leave_one_out = leave_one_out

    def differentiable_loss(self, model: PyroFunction, guide: PyroFunction, x: Tensor) -> Tensor:
        """Return the loss of a batch x (B, C, H, W): a scalar in nats per datum, to be made small."""
        with _NoPathThroughDraws():
            return super().differentiable_loss(model, guide, x)

    def bound(self, draws: Draws) -> Tensor:
        """Return the bound of each datum, (B,), with the score function's gradient."""
        log_p = draws.log_p_x + self.beta * draws.log_p_z
        value = (log_p - self.beta * draws.log_q_z).detach()
        signal = value - (value.sum(0) - value) / (len(value) - 1) if self.leave_one_out else value
        surrogate = log_p + signal * draws.log_q_z
        return (surrogate - surrogate.detach() + value).mean(0)


class _NoPathThroughDraws(Messenger):
    """Cut the gradient from each draw of z back to the parameters that it was drawn with."""

    def _pyro_post_sample(self, msg: Any) -> None:
        if not msg["is_observed"] and isinstance(msg["value"], Tensor):
            msg["value"] = msg["value"].detach()


class _SeparateModelDraws(Messenger):
    """Give the model an alias of each draw of the guide, so that the two can have gradients of their own.

    The gradient by the alias is that of log p(x, z); the gradient by the draw itself also has what comes back through
    the sites of the guide that depend on it.
    """

    def __enter__(self) -> Any:
        self._drawn: set[str] = set()
        return super().__enter__()

    def _pyro_post_sample(self, msg: Any) -> None:
        if msg["is_observed"] or not isinstance(msg["value"], Tensor):
            return
        if msg["name"] in self._drawn:
            msg["value"] = msg["value"].view_as(msg["value"])
        self._drawn.add(msg["name"])


def _log_mean_exp(values: Tensor) -> Tensor:
    return torch.logsumexp(values, 0) - math.log(len(values))


def _log_q_z_path(draws: Draws) -> Tensor:
    """Return zeros (K, B) with the gradient of log q(z | x) by the path through z, at fixed parameters."""
    paths = [(z * by_z).sum(-1) for z, by_z in zip(*_log_q_z_by_z(draws))] if torch.is_grad_enabled() else []
    path = sum(paths, torch.zeros_like(draws.log_q_z))
    return path - path.detach()


def _log_q_z_by_z(draws: Draws) -> tuple[list[Tensor], list[Tensor]]:
    """Return the draws of the guide, each (K, B, L), and the derivatives of the joint log q(z | x) by each of them.

    A derivative by one draw holds the others and the parameters of the guide fixed. It has two parts: of the
    site's own density, and of the densities of later sites, whose parameters depend on the draw.
    """
    drawn = [site["value"] for site in draws.posteriors.values()]  # in the guide's order
    at = [z.detach().requires_grad_() for z in drawn]
    densities = [site["fn"].log_prob(z).sum() for site, z in zip(draws.posteriors.values(), at)]
    by_z = list(torch.autograd.grad(densities, at, retain_graph=True))
    if len(drawn) == 1:
        return drawn, by_z
    # Of a draw that has no gradient, nothing depends on the parameters of the guide.
    places = [place for place, z in enumerate(drawn) if z.requires_grad]
    through = {place: _derivative(sum(densities), drawn[place]) for place in places}
    for later in reversed(places):
        if through[later] is None:
            continue
        by_z[later] = by_z[later] + through[later]
        # Autograd's derivative by an earlier draw includes the way through this one, which is to be held fixed.
        for earlier in places[: places.index(later)]:
            way = _derivative(drawn[later], drawn[earlier], through[later])
            through[earlier] = through[earlier] if way is None else through[earlier] - way
    return drawn, by_z


def _derivative(of: Any, by: Tensor, weights: Tensor | None = None) -> Any:
    return torch.autograd.grad(of, by, weights, retain_graph=True, allow_unused=True)[0]
