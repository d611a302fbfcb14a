"""Bounds of bits: antithetic draws (ARMS, DisARM), VIMCO, and relaxations (Gumbel-softmax, straight-through).

`pvae.reference.binary` has the same gradients written by hand, and the exact ones.
"""

from __future__ import annotations

from typing import Any

import torch
from pyro.distributions import Bernoulli
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import Independent

from pvae.core.errors import InputError
from pvae.core.terms import LossAndTerms, Terms
from pvae.elbos.base import PerDatumELBO, PyroFunction
from pvae.elbos.gradients import NoPathThroughDraws, ScoreELBO
from pvae.elbos.importance import IWAE, log_mean_exp
from pvae.elbos.sites import Draws

__all__ = ["ARMS", "VIMCO", "DisARM", "GumbelSoftmax", "StraightThrough", "antithetic", "correlation"]


def antithetic(probs: Tensor, num_draws: int) -> Tensor:
    """Return n draws of Bernoulli(p), (n, ...), of which two are both the rarer value less often than independent ones.

        d ~ Dirichlet(1, ..., 1),   u_i = (1 - d_i)^(n - 1) ~ U(0, 1),   r_i = [u_i < q],   q = min(p, 1 - p)
        P(r_i = r_j = 1) = max(0, 2 q^(1 / (n - 1)) - 1)^(n - 1)

    and z = r, or 1 - r where p is above 1/2. For n = 2, u_2 = 1 - u_1.

    Args:
        probs: p, (...).
        num_draws: n, at least 2.

    Reference:
        Dimitriev and Zhou, arXiv:2105.14141 (the Dirichlet copula); Dong, Mnih and Tucker, arXiv:2006.10680 (n = 2).
    """
    exponential = -torch.rand(num_draws, *probs.shape, dtype=probs.dtype, device=probs.device).clamp(min=1e-30).log()
    uniform = (1 - exponential / exponential.sum(0)) ** (num_draws - 1)
    rare = torch.minimum(probs, 1 - probs)
    return ((uniform < rare) ^ (probs > 0.5)).to(probs.dtype)


class _AntitheticBits(Messenger):
    """Draw the bits of a guide in groups of n antithetic draws."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] or msg["value"] is not None or not isinstance(msg["fn"], (Independent, Bernoulli)):
            return
        probs = _bits(msg["name"], msg["fn"]).probs.detach()  # (K, B, L), equal for all K
        groups = probs.unflatten(0, (-1, self.size))[:, 0]
        msg["value"] = antithetic(groups, self.size).transpose(0, 1).flatten(0, 1)


class ARMS(ScoreELBO):
    """The ELBO of bits, with a score-function gradient from n = K draws that are negatively correlated.

        d/d a_l ELBO  =  E [ 1 / (n - 1) sum_i (f_i - mean_j f_j) (z_il - p_l) / (1 - rho_l) ],    p = sigmoid(a)

    f = log w, and rho_l is the correlation of two draws of bit l, which the factor corrects for: where draws are
    independent, it is `LeaveOneOutScoreELBO`. There is one latent site, of independent bits.

    Args:
        num_particles: K, the number of draws of z for each datum, at least 2.
        beta: weight of the rate in the loss.

    Raises:
        InputError: (when used) q(z | x) is not one site of independent bits, or K is not a multiple of n.

    Reference:
        Dimitriev and Zhou, arXiv:2105.14141.
    """

    least_particles = 2
    is_of_bits = True

    @property
    def size(self) -> int:
        """n, the number of draws that are antithetic to each other."""
        return self.num_particles

    def messenger(self) -> Messenger:  # type: ignore[override]  # of a class elsewhere
        """Return the handler that draws the bits."""
        if self.num_particles % self.size or self.num_particles < 2:
            raise InputError(f"{self.num_particles} draws are not in groups of {self.size}: give a multiple of it")
        return _AntitheticBits(self.size)

    def bound(self, draws: Draws, beta: float | Tensor) -> Tensor:
        """Return the ELBO of each datum, (B,), with the gradient of the class's docstring."""
        log_p = draws.log_p_x + beta * draws.log_p_z
        value = (log_p - beta * draws.log_q_z).detach()
        q, z = _of_one_site(draws)
        f = value.unflatten(0, (-1, self.size))
        signal = ((f - f.mean(1, keepdim=True)) / (self.size - 1)).flatten(0, 1)
        probs = q.probs.detach()
        by_logit = signal[..., None] * (z - probs) / (1 - correlation(probs, self.size))
        surrogate = log_p + self.size * (by_logit * q.logits).sum(-1)
        return (surrogate - surrogate.detach() + value).mean(0)


class DisARM(ARMS):
    """`ARMS` in pairs: the ELBO of bits, with the gradient of K / 2 pairs z, z' that are drawn from u and 1 - u.

        d/d a_l ELBO  =  E [ 1/2 (f(z) - f(z')) (z_l - z'_l) sigmoid(|a_l|) ]

    Args:
        num_particles: K, an even number.
        beta: weight of the rate in the loss.

    Raises:
        InputError: (when used) as for `ARMS`.

    Reference:
        Dong, Mnih and Tucker, arXiv:2006.10680.
    """

    @property
    def size(self) -> int:
        """2, the size of a pair."""
        return 2


class VIMCO(IWAE):
    """The importance-weighted bound with the score-function gradient of the encoder, and a baseline for each draw.

        d/d phi L_K  =  E [ sum_k (L_K - L_-k) d/d phi log q(z_k | x)  -  sum_k v_k d/d phi log q(z_k | x) ]
        L_-k = log (1/K) (sum_{j != k} w_j + exp(mean_{j != k} log w_j)),    v_k = w_k / sum_j w_j

    It needs no derivative of the decoder by z, so that z may be discrete.

    Args:
        num_particles: K, the number of draws of z for each datum, at least 2.

    Reference:
        Mnih and Rezende, arXiv:1602.06725.
    """

    least_particles = 2
    reparameterised = False
    needs_separate_draws = True
    messenger = NoPathThroughDraws

    def bound(self, draws: Draws, beta: float | Tensor) -> Tensor:
        """Return L_K of each datum, (B,)."""
        log_w, count = draws.log_w.detach(), self.num_particles
        value, mine = log_mean_exp(log_w), torch.eye(count, dtype=torch.bool, device=log_w.device)[..., None]
        others = (log_w.sum(0) - log_w) / (count - 1)
        without = log_mean_exp(torch.where(mine, others, log_w[:, None]))  # (K, B), by the draw that is replaced
        weight, log_p = log_w.softmax(0), draws.log_p_x + draws.log_p_z
        surrogate = (weight * (log_p - draws.log_q_z) + (value - without) * draws.log_q_z).sum(0)
        return surrogate - surrogate.detach() + value


class _RelaxedBits(Messenger):
    """Replace the bits of a guide by functions of their logits that have a gradient."""

    def __init__(self, relaxed: Any) -> None:
        super().__init__()
        self.relaxed = relaxed

    def _pyro_sample(self, msg: Any) -> None:
        if not msg["is_observed"] and msg["value"] is None and isinstance(msg["fn"], (Independent, Bernoulli)):
            msg["value"] = self.relaxed(_bits(msg["name"], msg["fn"]))


class GumbelSoftmax(PerDatumELBO):
    """The ELBO of bits, trained on a relaxed bound, whose z is a differentiable function of the logits a.

        z = sigmoid((a + log u - log(1 - u)) / temperature),   u ~ U(0, 1);     z -> 1[a + log u - log(1 - u) > 0]
        loss = - log p(x | z) + beta KL(q(z | x) || p(z)),  the KL of bits

    Distortion and rate are those of bits. The gradient is biased for them, the less the lower the temperature, and its
    variance grows as the temperature falls.

    Args:
        num_particles: K, the number of draws of z for each datum.
        beta: weight of the rate in the loss.
        temperature: above 0.

    Raises:
        InputError: (when used) q(z | x) or p(z) is not one site of independent bits.

    Reference:
        Jang, Gu and Poole, arXiv:1611.01144; Maddison, Mnih and Teh, arXiv:1611.00712 (who relax the KL too).
    """

    options: tuple[str, ...] = ("beta", "temperature")
    temperature: float = 0.5
    reparameterised = False
    is_of_bits = True
    needs_closed_form = True

    def relaxed(self, q: Any) -> Tensor:
        """Return relaxed bits, (K, B, L) or (B, L)."""
        u = torch.rand_like(q.logits).clamp(1e-7, 1 - 1e-7)
        return torch.sigmoid((q.logits + u.log() - (-u).log1p()) / self.temperature)

    def rate(self, draws: Draws) -> Tensor:
        """Return the KL divergence of bits, (B,)."""
        (latent,) = draws.latents
        rate = torch.distributions.kl_divergence(latent.posterior, latent.prior)
        return rate[0] if rate.dim() == 2 else rate

    def loss_and_terms(
        self, model: PyroFunction, guide: PyroFunction, *batch: Tensor, beta: float | Tensor | None = None
    ) -> LossAndTerms:
        """Return the relaxed loss, and the terms of bits; without a gradient, the loss of bits too."""
        if not torch.is_grad_enabled():
            return super().loss_and_terms(model, guide, *batch, beta=beta)
        with _RelaxedBits(self.relaxed):
            draws = self._draws(model, guide, batch)
        _of_one_site(draws)
        loss = self.loss_of(draws, -draws.log_p_x.mean(0), self.rate(draws), self.beta if beta is None else beta)
        with torch.no_grad():
            return LossAndTerms(loss, self._terms_of_bits(model, guide, batch, draws))

    def _terms_of_bits(self, model: PyroFunction, guide: PyroFunction, batch: Any, draws: Draws) -> Terms:
        return super().loss_and_terms(model, guide, *batch).terms


class StraightThrough(GumbelSoftmax):
    """The ELBO of bits, whose gradient passes through a draw z as if it were its probability p = sigmoid(a).

        z ~ Bernoulli(p),    dz / da := dp / da

    The loss is that of bits. Its gradient is biased, unless log p(x | z) is linear in z.

    Args:
        num_particles: K, the number of draws of z for each datum.
        beta: weight of the rate in the loss.

    Raises:
        InputError: (when used) as for `GumbelSoftmax`.

    Reference:
        Bengio, Leonard and Courville, arXiv:1308.3432.
    """

    options = ("beta",)

    def relaxed(self, q: Any) -> Tensor:
        """Return bits, (K, B, L) or (B, L), with the gradient of their probabilities."""
        return torch.bernoulli(q.probs.detach()) + q.probs - q.probs.detach()

    def _terms_of_bits(self, model: PyroFunction, guide: PyroFunction, batch: Any, draws: Draws) -> Terms:
        return Terms(-draws.log_p_x.mean(0).detach(), self.rate(draws).detach())


def correlation(probs: Tensor, num_draws: int) -> Tensor:
    """Return the correlation of two of n draws by `antithetic`, (...); 0 where p is 0 or 1."""
    rare = torch.minimum(probs, 1 - probs)
    both = (2 * rare ** (1 / (num_draws - 1)) - 1).clamp(min=0) ** (num_draws - 1)
    return (both - rare.square()) / (rare * (1 - rare)).clamp(min=torch.finfo(probs.dtype).tiny)


def _bits(name: str, distribution: Any) -> Any:
    """Return the Bernoulli distributions of a site of independent bits (..., L)."""
    base = getattr(distribution, "base_dist", distribution)
    if not isinstance(base, Bernoulli) or len(distribution.event_shape) != 1:
        raise InputError(
            f"q of {name!r} is not a vector of independent bits: give --posterior bernoulli, or --elbo score"
        )
    return base


def _of_one_site(draws: Draws) -> tuple[Any, Tensor]:
    """Return q and the draws of the one latent site, of bits."""
    latents = [*draws.latents]
    if len(latents) != 1:
        raise InputError(
            f"there are {len(latents)} latent sites, and this ELBO needs one, of bits: take --elbo score-loo"
        )
    return _bits("z", latents[0].posterior), latents[0].z
