"""Importance-weighted bounds, and bounds with other estimators of the encoder's gradient.

`pvae.reference.bounds` has the same bounds and gradients written by hand.
"""

from __future__ import annotations

import math
from typing import Annotated, Any

import torch
from pyro.distributions.util import sum_rightmost
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import Distribution, Independent, Normal

from pvae.core.errors import InputError
from pvae.core.options import Option
from pvae.elbos.base import Beta, Draws, Latent, PerDatumELBO, PyroFunction, constraint_of

_ALPHA = (
    "order of the Renyi bound: 0 is iwae, 1 the ELBO, -inf the largest weight (VR-max); below 0 the objective is not a "
    "lower bound. The reported elbo is the ELBO"
)
_Alpha = Annotated[float, Option(help=_ALPHA, least=-math.inf, most=1e38)]
_Mix = Annotated[float, Option(help="share of the ELBO in the bound, the rest is iwae", most=1.0)]
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


class _SeparateModelDraws(Messenger):
    """Give the model an alias of each draw of the guide, so that model and guide have separate gradients.

    The gradient by the alias is that of log p(x, z). The gradient by the draw itself also includes the path through
    later sites of the guide that depend on it.
    """

    def __enter__(self) -> Any:
        self._drawn: set[str] = set()
        return super().__enter__()

    def _pyro_post_sample(self, msg: Any) -> None:
        if msg["is_observed"] or not isinstance(msg["value"], Tensor):
            return
        is_real = msg["value"].is_floating_point()
        if torch.is_grad_enabled() and is_real and not msg["value"].requires_grad:  # q of this site has no parameters
            msg["value"] = msg["value"].detach().requires_grad_()
        if msg["name"] in self._drawn:
            msg["value"] = msg["value"].view_as(msg["value"])
        self._drawn.add(msg["name"])


class PathDerivativeELBO(ImportanceELBO):
    """Base class of bounds whose encoder gradient is the path derivative: log q(z | x) is taken at fixed parameters.

    q(z | x) may be any reparameterised density whose support does not depend on its parameters. With several latent
    sites, each of which may depend on the earlier ones, z is all of them together and q(z | x) their joint density.

    Raises:
        InputError: (when used) the path derivative is not the gradient of the bound, because the support of q(z | x)
            depends on parameters.
    """

    messenger = _SeparateModelDraws

    def _draws(self, model: PyroFunction, guide: PyroFunction, batch: tuple[Tensor, ...]) -> Draws:
        draws = super()._draws(model, guide, batch)
        for name, site in draws.priors.items():
            if site["value"] is draws.posteriors[name]["value"]:
                raise ValueError(f"guide and model share the draw of {name!r}: give a guide that is its own function")
        for name, site in draws.posteriors.items():
            if _has_moving_support(site["fn"]):
                raise InputError(f"the support of q at {name!r} depends on parameters: use TraceELBO or IWAE")
        return draws


class StickingTheLanding(
    PathDerivativeELBO, name="stl", help="the ELBO without the score function (sticking the landing)"
):
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

    def bound(self, draws: Draws, beta: float | Tensor) -> Tensor:
        """Return distortion + beta rate of each datum, negated: (B,)."""
        log_q_z = draws.log_q_z.detach() + _log_q_z_path(draws)
        return (draws.log_p_x + beta * (draws.log_p_z - log_q_z)).mean(0)


class DReG(PathDerivativeELBO, name="dreg", help="iwae with doubly reparameterised gradients"):
    """The importance-weighted bound with the doubly reparameterised gradients of the encoder and of Normal priors.

        d/d phi L_K  =  E [ sum_k v_k^2 (d log w_k / dz_k) (dz_k / d phi) ],    v_k = w_k / sum_j w_j
        d/d theta L_K  =  E [ sum_k (v_k d log p(x | z_k) / dz_k - v_k^2 d log w_k / dz_k) (dT(e_k) / d theta) ]

    Here z_k is the joint draw of all latent sites. The derivative d log w_k / dz_k holds phi fixed, also where log q of
    one site depends on the draw of another; dz_k / d phi includes the dependence on the earlier sites.

    The second line is for the parameters of a learned prior p(z) = Normal(loc, scale^2): T(e) = loc + scale e, at the e
    with T(e_k) = z_k. Of several such sites, T is their joint draw: dT / d theta includes the dependence of loc and
    scale on the sites that the model draws before. The parameters of other learned priors and of the decoder have the
    gradient of L_K itself; log p(x | z) in the second line then includes the log-densities of these priors.

    The gradient by the parameters of a prior that is much wider than q(z | x) may have a higher variance than that of
    L_K, since d log p(x | z) / dz is then of the order of 1 / the scale of q.

    Args:
        num_particles: K, the number of draws of z for each datum.

    Reference:
        Tucker, Lawson, Gu and Maddison, arXiv:1810.04152; Bauer and Mnih, arXiv:2101.11046 (several layers
        and priors).
    """

    needs_separate_draws = True

    def bound(self, draws: Draws, beta: float | Tensor) -> Tensor:
        """Return L_K of each datum, (B,)."""
        log_w = draws.log_p_x + draws.log_p_z - draws.log_q_z.detach()
        weight, value = log_w.detach().softmax(0), log_mean_exp(log_w)
        if torch.is_grad_enabled() and any(_learned_normal(latent.prior) for latent in draws.latents):
            return self._with_learned_priors(draws, weight, value.detach())
        for latent in draws.latents:
            if latent.z.requires_grad:
                # The bound applies the weight once to the gradient of log p(x, z) by z; the estimator needs it twice.
                each = _by_particle(weight, latent)
                latent.z.register_hook(lambda gradient, each=each: gradient * each)
        return value - (weight.square() * _log_q_z_path(draws)).sum(0)

    def _with_learned_priors(self, draws: Draws, weight: Tensor, value: Tensor) -> Tensor:
        """Return a tensor of the given value, with the gradients of the class's docstring."""
        of_q = dict(zip(draws.posteriors, zip(*_log_q_z_by_z(draws))))
        latents = [*draws.latents]
        at = [latent.z for latent in latents]
        log_p_x_by_z, log_p_z_by_z = (
            torch.autograd.grad(total.sum(), at, retain_graph=True, materialize_grads=True)
            for total in (draws.log_p_x, draws.log_p_z)
        )
        surrogate = weight * draws.log_p_x
        of_later = [torch.zeros_like(z) for z in at]  # the derivatives of the terms of later sites by each draw
        for place, name in reversed([*enumerate(draws.priors)]):
            (z, log_q), latent, prior = of_q[name], latents[place], _learned_normal(latents[place].prior)
            v, num_event_dims = _by_particle(weight, latent), len(latent.prior.event_shape)
            of_log_w = v.square() * (log_p_x_by_z[place] + log_p_z_by_z[place] - log_q)
            surrogate = surrogate + sum_rightmost(of_log_w * z, num_event_dims)
            if prior is None:
                own = weight * draws.log_prior(name)
            else:
                moved = prior.loc + prior.scale * ((latent.z - prior.loc) / prior.scale).detach()
                by_z = v * log_p_x_by_z[place] - of_log_w + of_later[place]
                own = sum_rightmost(by_z * moved, num_event_dims)
            surrogate = surrogate + own
            if own.requires_grad and place:
                through = torch.autograd.grad(own.sum(), at[:place], retain_graph=True, materialize_grads=True)
                of_later[:place] = [one + more for one, more in zip(of_later, through)]
        for z in at:  # the surrogate has these derivatives in their place
            z.register_hook(torch.zeros_like)
        surrogate = surrogate.sum(0)
        return surrogate - surrogate.detach() + value


class PIWAE(PathDerivativeELBO, name="piwae", help="iwae, with miwae for the encoder"):
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

    def bound(self, draws: Draws, beta: float | Tensor) -> Tensor:
        """Return L_K of each datum, (B,)."""
        log_w = draws.log_w.detach()
        value = log_mean_exp(log_w)
        if not torch.is_grad_enabled():
            return value
        of_group = log_w.unflatten(0, (self.groups, -1)).softmax(1).flatten(0, 1) / self.groups
        # These derivatives by z, with the weights of the groups, replace those that log p(x, z) has in the surrogate.
        log_p = draws.log_p_x + draws.log_p_z
        at = [latent.z for latent in draws.latents]
        by_z = torch.autograd.grad((of_group * log_p).sum(), at, retain_graph=True, materialize_grads=True)
        for z in at:
            z.register_hook(torch.zeros_like)
        surrogate = log_w.softmax(0) * log_p - of_group * draws.log_q_z
        for name, gradient in zip(draws.priors, by_z):
            site = draws.posteriors[name]
            surrogate = surrogate + sum_rightmost(gradient * site["value"], len(site["fn"].event_shape))
        surrogate = surrogate.sum(0)
        return surrogate - surrogate.detach() + value


class ScoreELBO(ImportanceELBO, name="score", help="the ELBO with the gradient of the score function"):
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

    def bound(self, draws: Draws, beta: float | Tensor) -> Tensor:
        """Return the bound of each datum, (B,), with the score function's gradient."""
        log_p = draws.log_p_x + beta * draws.log_p_z
        value = (log_p - beta * draws.log_q_z).detach()
        surrogate = log_p + self.by_encoder(draws, value)
        return (surrogate - surrogate.detach() + value).mean(0)

    def by_encoder(self, draws: Draws, log_w: Tensor) -> Tensor:
        """Return (K, B) with the gradient of the encoder, of log-weights in which prior and q have the weight beta."""
        return log_w * draws.log_q_z


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

    def by_encoder(self, draws: Draws, log_w: Tensor) -> Tensor:
        """Return (log w - b) log q(z | x), (K, B)."""
        return (log_w - (log_w.sum(0) - log_w) / (len(log_w) - 1)) * draws.log_q_z


def _has_moving_support(distribution: Distribution) -> bool:
    """Whether the support depends on parameters: the path derivative would then miss a part of the gradient."""
    return any(
        isinstance(bound, Tensor) and bound.requires_grad for bound in vars(constraint_of(distribution)).values()
    )


def _learned_normal(prior: Any) -> Normal | None:
    """Return the Normal of a prior that is one, or independent ones, with parameters that are trained."""
    while isinstance(prior, Independent):
        prior = prior.base_dist
    is_learned = isinstance(prior, Normal) and (prior.loc.requires_grad or prior.scale.requires_grad)
    return prior if is_learned else None


def _by_particle(weight: Tensor, latent: Latent) -> Tensor:
    """Return weights (K, B) in a shape that multiplies the draws of a site."""
    ones = [1] * len(latent.posterior.event_shape)
    return weight.reshape(*latent.z.shape[: latent.z.dim() - len(ones)], *ones)


def _log_q_z_path(draws: Draws) -> Tensor:
    """Return zeros (K, B) with the gradient of log q(z | x) through z alone, at fixed parameters."""
    path = torch.zeros_like(draws.log_q_z)
    if torch.is_grad_enabled():
        for site, z, by_z in zip(draws.posteriors.values(), *_log_q_z_by_z(draws)):
            path = path + sum_rightmost(z * by_z, len(site["fn"].event_shape))
    return path - path.detach()


def _log_q_z_by_z(draws: Draws) -> tuple[list[Tensor], list[Tensor]]:
    """Return the draws of the guide, each (K, B, L), and the derivative of the joint log q(z | x) by each of them.

    The derivative by one draw holds the other draws and the parameters of the guide fixed. It is a sum of two parts:
    the derivative of the site's own density, and those of the densities of later sites, which depend on the draw.
    """
    drawn = [site["value"] for site in draws.posteriors.values()]  # in the guide's order
    at = [z.detach().requires_grad_() for z in drawn]
    densities = [site["fn"].log_prob(z).sum() for site, z in zip(draws.posteriors.values(), at)]
    by_z = list(torch.autograd.grad(densities, at, retain_graph=True, materialize_grads=True))
    if len(drawn) == 1:
        return drawn, by_z
    through = [_derivative(sum(densities), z) for z in drawn]
    for later in reversed(range(len(drawn))):
        if through[later] is None:
            continue
        by_z[later] = by_z[later] + through[later]
        # Autograd's derivative by an earlier draw includes the path through this one, which must be held fixed.
        for earlier in range(later):
            path = _derivative(drawn[later], drawn[earlier], through[later])
            through[earlier] = through[earlier] if path is None else through[earlier] - path
    return drawn, by_z


def _derivative(of: Any, by: Tensor, weights: Tensor | None = None) -> Any:
    return torch.autograd.grad(of, by, weights, retain_graph=True, allow_unused=True)[0]
