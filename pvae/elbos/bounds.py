"""Importance-weighted bounds, and bounds with other estimators of the encoder's gradient.

`pvae.reference.bounds` has the same bounds and gradients written by hand.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, NamedTuple

import torch
from pyro.distributions.util import sum_rightmost
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import Distribution

from pvae.core.errors import InputError
from pvae.core.options import Option
from pvae.elbos.base import Beta, Draws, PerDatumELBO, constraint_of

_ALPHA = (
    "order of the Renyi bound: 0 is iwae, 1 the ELBO, -inf the largest weight (VR-max); below 0 the objective is not a "
    "lower bound. The reported elbo is the ELBO"
)
_Alpha = Annotated[float, Option(help=_ALPHA, least=-math.inf, most=1e38)]
_Mix = Annotated[float, Option(help="share of the ELBO in the bound, the rest is iwae", most=1.0)]
_LEAST_WEIGHT = 1e-20  # of a draw in the gradient of the model, where the sum is 1: it may be 0 where the path's is not
Groups = Annotated[int, Option(help="number of groups into which the K particles are divided", least=1, most=10**6)]


class ImportanceELBO(PerDatumELBO):
    """Base class of the ELBOs whose loss is a bound computed from the draws in Pyro's traces.

        loss = - mean over the batch of the bound, in nats per datum

    Args:
        num_particles: K, the number of draws of z for each datum.
    """

    is_importance_weighted = True

    def __init__(self, num_particles: int = 1) -> None:
        super().__init__(num_particles)

    def loss_of(self, draws: Draws, distortion: Tensor, rate: Tensor, beta: float | Tensor) -> Tensor:
        """Return the loss, a scalar, of the draws."""
        return -self.bound(draws, beta).mean()

    def bound(self, draws: Draws, beta: float | Tensor) -> Tensor:
        """Return the bound of each datum, (B,); beta weighs the rate in those bounds that have one."""
        raise NotImplementedError


class IWAE(ImportanceELBO, name="iwae", help="the importance-weighted bound"):
    """The importance-weighted bound; `pvae.reference.bounds.iwae` describes its weaknesses.

        L_K(x) = E [ log (1/K) sum_k w_k ],    w_k = p(x, z_k) / q(z_k | x),    L_1 <= L_K <= log p(x)

    L_1 is the ELBO. Pyro's `RenyiELBO(alpha=0)` is the same bound, but has no `differentiable_loss`.

    Args:
        num_particles: K, the number of draws of z for each datum.

    Reference:
        Burda, Grosse and Salakhutdinov, arXiv:1509.00519, equation 8.
    """

    def bound(self, draws: Draws, beta: float | Tensor) -> Tensor:
        """Return L_K of each datum, (B,)."""
        return log_mean_exp(draws.log_w)


class RenyiELBO(ImportanceELBO, name="renyi", help="the Renyi bound of order --alpha"):
    """The variational Renyi bound, between the ELBO and the importance-weighted bound.

        L(x) = E [ 1 / (1 - alpha) log (1/K) sum_k w_k^(1 - alpha) ]

    Args:
        num_particles: K, the number of draws of z for each datum.
        alpha: 0 is the importance-weighted bound, 1 the ELBO; below 0 it is not a lower bound on log p(x); -inf is
            max_k log w_k, "VR-max".

    Reference:
        Li and Turner, arXiv:1602.02311, equation 5; they name VR-max.
    """

    def __init__(self, num_particles: int = 1, alpha: _Alpha = 0.5) -> None:
        super().__init__(num_particles)
        self.alpha = alpha

    def bound(self, draws: Draws, beta: float | Tensor) -> Tensor:
        """Return the bound of each datum, (B,)."""
        if self.alpha == 1:
            return draws.log_w.mean(0)
        if self.alpha < -1e38:  # -inf, or too large for what is below
            return draws.log_w.max(0).values
        log_w = draws.log_w  # in float64, since near alpha = 1 the division makes rounding large
        return (log_mean_exp((1 - self.alpha) * log_w.double()) / (1 - self.alpha)).to(log_w.dtype)


class CIWAE(ImportanceELBO, name="ciwae", help="a mix of the ELBO and iwae"):
    """The convex mix of ELBO and importance-weighted bound.

        L(x) = E [ mix (1/K) sum_k log w_k + (1 - mix) log (1/K) sum_k w_k ]

    Args:
        num_particles: K, the number of draws of z for each datum.
        mix: 1 is the ELBO, 0 the importance-weighted bound.

    Reference:
        Rainforth et al., arXiv:1802.04537.
    """

    def __init__(self, num_particles: int = 1, mix: _Mix = 0.5) -> None:
        super().__init__(num_particles)
        self.mix = mix

    def bound(self, draws: Draws, beta: float | Tensor) -> Tensor:
        """Return the bound of each datum, (B,)."""
        return self.mix * draws.log_w.mean(0) + (1 - self.mix) * log_mean_exp(draws.log_w)


class MIWAE(ImportanceELBO, name="miwae", help="the mean of iwae over --groups groups of draws"):
    """The mean of M importance-weighted bounds of K / M draws each.

        L(x) = E [ (1/M) sum_m log (M/K) sum_{k in group m} w_k ]

    Args:
        num_particles: K, the number of draws of z for each datum, a multiple of M.
        groups: M, the number of groups; 1 is the importance-weighted bound, K the ELBO.

    Reference:
        Rainforth et al., arXiv:1802.04537.
    """

    def __init__(self, num_particles: int = 1, groups: Groups = 1) -> None:
        super().__init__(num_particles)
        self.groups = groups

    def bound(self, draws: Draws, beta: float | Tensor) -> Tensor:
        """Return the bound of each datum, (B,)."""
        return log_mean_exp(draws.log_w.unflatten(0, (self.groups, -1)).transpose(0, 1)).mean(0)


def log_mean_exp(values: Tensor) -> Tensor:
    """Return log (1/K) sum_k exp(values_k), (...), of values (K, ...)."""
    return torch.logsumexp(values, 0) - math.log(len(values))


class NoPathThroughDraws(Messenger):
    """Detach each draw of z from the parameters of its distribution."""

    def _pyro_post_sample(self, msg: Any) -> None:
        if not msg["is_observed"] and isinstance(msg["value"], Tensor) and msg["value"].requires_grad:
            msg["value"] = msg["value"].detach()


class _SeparateDraws(Messenger):
    """Give guide and model each their own alias of a draw, so that their gradients by the draw are separate.

    The site of the guide keeps the draw itself as "drawn".
    """

    def _pyro_post_sample(self, msg: Any) -> None:
        z = msg["value"]
        if msg["is_observed"] or not torch.is_grad_enabled() or not z.is_floating_point():
            return
        if not z.requires_grad:  # q of this site has no parameters
            z = z.detach().requires_grad_()
        msg["infer"] = {**msg["infer"], "drawn": z}
        msg["value"] = z.view_as(z)


class Weights(NamedTuple):
    """The value of a bound, and the weights of the draws in the three parts of its gradient (see `WeightedELBO`).

    Attributes:
        value: the bound of each datum, (B,).
        model: weights of d log p(x, z_k), (K, B), at least 0.
        score: weights of d log q(z_k | x), (K, B), or None where they are 0.
        path: weights of the derivative by z_k, (K, B), or None where z is not reparameterised.
    """

    value: Tensor
    model: Tensor
    score: Tensor | None = None
    path: Tensor | None = None


class WeightedELBO(ImportanceELBO):
    """Base class of bounds whose gradient is a weighted sum over the draws.

        d L  =  sum_k [ model_k d log p(x, z_k) + score_k d log q(z_k | x) + path_k (d log w_k / dz_k) dz_k ]

    The first two terms are derivatives by the parameters at fixed draws. The third is the path derivative: d log w_k /
    dz_k is taken at fixed parameters, and dz_k follows the reparameterised draw. Of several latent sites, z_k is all of
    them together, q is their joint density, and dz_k includes the dependence of a site on the earlier ones. In a bound
    with a beta, prior and q have that weight in log p(x, z_k) and in log w_k.

    A subclass defines `weights`. If it returns a path, q(z | x) may be any reparameterised density whose support does
    not depend on its parameters.

    Raises:
        InputError: (when used) there is a path, and the support of q(z | x) depends on parameters.
        ValueError: (when used) there is a path, and model and guide share a draw, as with Pyro's `GuideMessenger`.
    """

    messenger: type[Messenger] = _SeparateDraws

    def weights(self, log_w: Tensor) -> Weights:
        """Return the bound and the weights of its gradient.

        Args:
            log_w: log w_k, (K, B), without a gradient.
        """
        raise NotImplementedError

    def by_encoder(self, draws: Draws, score: Tensor) -> Tensor:
        """Return (K, B), whose sum over the draws has the gradient of the score function's part."""
        return score * draws.log_q_z

    def bound(self, draws: Draws, beta: float | Tensor) -> Tensor:
        """Return the bound of each datum, (B,), with the gradient in the class's docstring."""
        log_p = draws.log_p_x + beta * draws.log_p_z
        value, model, score, path = self.weights((log_p - beta * draws.log_q_z).detach())
        if not torch.is_grad_enabled():
            return value
        surrogate = torch.zeros_like(log_p) if score is None else self.by_encoder(draws, score)
        if path is not None:
            model = model.clamp(min=_LEAST_WEIGHT)
            _scale_derivatives(draws, path / model)
            surrogate = surrogate - _through_draws(draws, surrogate + beta * path * draws.log_q_z)
        surrogate = (surrogate + model * log_p).sum(0)
        return surrogate - surrogate.detach() + value


class StickingTheLanding(WeightedELBO, name="stl", help="the ELBO without the score function (sticking the landing)"):
    """The ELBO with a gradient that leaves out the score function: no gradient flows to the parameters of log q(z | x).

        d/d phi ELBO  =  E_q [ d/dz (log p(x, z) - log q(z | x)) (dz / d phi) ]

    Args:
        num_particles: K, the number of draws of z for each datum.
        beta: weight of the rate in the loss.

    Reference:
        Roeder, Wu and Duvenaud, arXiv:1703.09194.
    """

    is_importance_weighted = False

    def __init__(self, num_particles: int = 1, beta: Beta = 1.0) -> None:
        super().__init__(num_particles)
        self.beta = beta

    def weights(self, log_w: Tensor) -> Weights:
        """Return the mean of log w, and weights of 1 / K for model and path."""
        each = torch.full_like(log_w, 1 / len(log_w))
        return Weights(log_w.mean(0), model=each, path=each)


class DReG(WeightedELBO, name="dreg", help="iwae with doubly reparameterised gradients"):
    """The importance-weighted bound with the doubly reparameterised gradient of the encoder.

        d/d phi L_K    =  E [ sum_k v_k^2 (d log w_k / dz_k) (dz_k / d phi) ],    v_k = w_k / sum_j w_j
        d/d theta L_K  =  E [ sum_k v_k d/d theta log p(x, z_k) ]

    phi are the parameters of the encoder, and theta those of prior and decoder, whose gradient is that of `IWAE`. A
    parameter that q and p share, as in a ladder or with a VampPrior, gets the sum of the two. In a ladder the variance
    of this sum may be far higher than with `IWAE`, where the gradients of log p and log q nearly cancel.

    Args:
        num_particles: K, the number of draws of z for each datum.

    Reference:
        Tucker, Lawson, Gu and Maddison, arXiv:1810.04152; Bauer and Mnih, arXiv:2101.11046 (several layers).
    """

    needs_separate_draws = True

    def weights(self, log_w: Tensor) -> Weights:
        """Return L_K, and the weights v_k of the model and v_k^2 of the path."""
        v = log_w.softmax(0)
        return Weights(log_mean_exp(log_w), model=v, path=v.square())


class PIWAE(WeightedELBO, name="piwae", help="iwae, with miwae for the encoder"):
    """The importance-weighted bound, whose encoder is trained by the mean of M bounds of K / M draws each.

        encoder            d/d phi    (1/M) sum_m log (M/K) sum_{k in group m} w_k
        prior, decoder     d/d theta  log (1/K) sum_k w_k

    The encoder's gradient is that of `MIWAE`, whose signal-to-noise ratio is higher. The value and the other gradients
    are those of `IWAE`. A parameter that q and p share, as in a ladder or with a VampPrior, gets the sum of two
    gradients: through q and z that of `MIWAE`, through p that of `IWAE`.

    Args:
        num_particles: K, the number of draws of z for each datum, a multiple of M.
        groups: M, the number of groups; 1 is the importance-weighted bound.

    Reference:
        Rainforth et al., arXiv:1802.04537.
    """

    needs_separate_draws = True

    def __init__(self, num_particles: int = 1, groups: Groups = 1) -> None:
        super().__init__(num_particles)
        self.groups = groups

    def weights(self, log_w: Tensor) -> Weights:
        """Return L_K, the weights of all draws for the model, and those of each group, by M, for q."""
        of_group = log_w.unflatten(0, (self.groups, -1)).softmax(1).flatten(0, 1) / self.groups
        return Weights(log_mean_exp(log_w), model=log_w.softmax(0), score=-of_group, path=of_group)


class ScoreELBO(WeightedELBO, name="score", help="the ELBO with the gradient of the score function"):
    """The ELBO with the score-function gradient of the encoder, which needs no derivative of the decoder by z.

        d/d phi ELBO  =  E_q [ (log w - b) d/d phi log q(z | x) ],    b = 0

    Args:
        num_particles: K, the number of draws of z for each datum.
        beta: weight of the rate in the loss.

    Reference:
        Post 002, first half; Ranganath, Gerrish and Blei, arXiv:1401.0118.
    """

    is_importance_weighted = False
    needs_separate_draws = True
    reparameterised = False
    messenger = NoPathThroughDraws

    def __init__(self, num_particles: int = 1, beta: Beta = 1.0) -> None:
        super().__init__(num_particles)
        self.beta = beta

    def weights(self, log_w: Tensor) -> Weights:
        """Return the mean of log w, and the weights 1 / K of the model and log w_k / K of the score function."""
        return Weights(log_w.mean(0), model=torch.full_like(log_w, 1 / len(log_w)), score=log_w / len(log_w))


class LeaveOneOutScoreELBO(ScoreELBO, name="score-loo", help="with a leave-one-out baseline"):
    """`ScoreELBO` with a baseline: b_k is the mean of log w over the K - 1 other draws.

        d/d phi ELBO  =  E_q [ (1/K) sum_k (log w_k - b_k) d/d phi log q(z_k | x) ]
        b_k = 1 / (K - 1) sum_{j != k} log w_j

    Args:
        num_particles: K, the number of draws of z for each datum, at least 2.
        beta: weight of the rate in the loss.

    Reference:
        Mnih and Rezende, arXiv:1602.06725.
    """

    least_particles = 2

    def weights(self, log_w: Tensor) -> Weights:
        """Return what `ScoreELBO` returns, with the weights (log w_k - b_k) / K of the score function."""
        baseline = (log_w.sum(0) - log_w) / (len(log_w) - 1)
        return super().weights(log_w)._replace(score=(log_w - baseline) / len(log_w))


def _scale_derivatives(draws: Draws, ratio: Tensor) -> None:
    """Multiply the derivatives of the model by the draws by a ratio, (K, B), in the backward pass that is to come.

    One pass through the decoder then serves its parameters, with the weights of the model, and the draws, with those of
    the path.
    """
    for name, site in draws.priors.items():
        z = site["value"]
        if z is draws.posteriors[name]["value"]:
            raise ValueError(f"guide and model share the draw of {name!r}: give a guide that is its own function")
        ones = [1] * len(site["fn"].event_shape)
        each = ratio.reshape(*z.shape[: z.dim() - len(ones)], *ones)
        z.register_hook(lambda gradient, each=each: gradient * each)


def _through_draws(draws: Draws, of_q: Tensor) -> Tensor:
    """Return (K, B) with the gradient of a function of log q(z_k | x), (K, B), through the draws alone."""
    for name, site in draws.posteriors.items():
        if _has_moving_support(site["fn"]):
            raise InputError(f"the support of q at {name!r} depends on parameters: use TraceELBO or IWAE")
    sites = [*draws.posteriors.values()]
    at = [site["value"] for site in sites]
    # A draw that depends on an earlier one is held fixed here: the backward pass to come applies the chain rule.
    hooks = [site["infer"]["drawn"].register_hook(torch.zeros_like) for site in sites]
    by_z = torch.autograd.grad(of_q.sum(), at, retain_graph=True, materialize_grads=True)
    for hook in hooks:
        hook.remove()
    parts = [sum_rightmost(gradient * z, len(site["fn"].event_shape)) for gradient, z, site in zip(by_z, at, sites)]
    return sum(parts, torch.zeros_like(of_q))


def _has_moving_support(distribution: Distribution) -> bool:
    """Whether the support depends on parameters: the path derivative would then miss a part of the gradient."""
    return any(
        isinstance(bound, Tensor) and bound.requires_grad for bound in vars(constraint_of(distribution)).values()
    )
