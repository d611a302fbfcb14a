"""Bounds of bits and categories: antithetic draws, VIMCO, and relaxations (Gumbel-softmax, straight-through).

`pvae.reference.discrete` has the exact gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Annotated, Any

import torch
from pyro.distributions import Bernoulli
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import Independent

from pvae.core.batch import LossAndTerms
from pvae.core.errors import InputError
from pvae.core.options import Option
from pvae.distributions.discrete import OneHotVector
from pvae.elbos.base import Beta, Draws, PerDatumELBO, PyroFunction
from pvae.elbos.bounds import NoPathThroughDraws, ScoreELBO, WeightedELBO, Weights, log_mean_exp

_TEMPERATURE = "of relaxed bits or categories: at a lower one, gradients have less bias and more noise"
_Temperature = Annotated[float, Option(help=_TEMPERATURE, least=1e-3, most=100.0)]


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


class _DrawDiscrete(Messenger):
    """Draw each discrete latent of a guide by a function of its distribution."""

    def __init__(self, draw: Callable[[Any], Tensor]) -> None:
        super().__init__()
        self.draw = draw

    def _pyro_sample(self, msg: Any) -> None:
        is_latent = isinstance(msg["fn"], (Independent, Bernoulli, OneHotVector))  # and not the plate's subsample
        if is_latent and not msg["is_observed"] and msg["value"] is None:
            msg["value"] = self.draw(_discrete(msg["name"], msg["fn"]))


def _antithetic_bits(probs: Tensor, size: int) -> Tensor:
    """Return antithetic draws in groups, (K, ...), of probabilities (K, ...) that are equal for all K."""
    return antithetic(probs.unflatten(0, (-1, size))[:, 0], size).transpose(0, 1).flatten(0, 1)


class ARMS(ScoreELBO, name="arms", help="of bits, antithetic draws"):
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
    supports = ("bits",)

    @property
    def size(self) -> int:
        """n, the number of draws that are antithetic to each other."""
        if self.draws_together > 1:
            return self.draws_together
        return self.num_particles

    def messenger(self) -> Messenger:  # type: ignore[override]  # of a class elsewhere
        """Return the handler that draws the bits."""
        if self.num_particles % self.size or self.num_particles < 2:
            raise InputError(f"{self.num_particles} draws are not in groups of {self.size}: give a multiple of it")
        return _DrawDiscrete(self.draw)

    def draw(self, q: Any) -> Tensor:
        """Return K draws of q(z | x), (K, B, L)."""
        return _antithetic_bits(_bits(q).probs.detach(), self.size)

    def by_encoder(self, draws: Draws, score: Tensor) -> Tensor:
        """Return (K, B), whose sum over the draws has the gradient of the class's docstring."""
        return self.by_logits(*_of_one_site(draws), score.unflatten(0, (-1, self.size)))

    def by_logits(self, q: Any, z: Tensor, f: Tensor) -> Tensor:
        """Return (K, B), whose sum over the draws has the gradient of the ELBO by the logits.

        Args:
            q: q(z | x), batch shape (K, B).
            z: its draws, (K, B, L).
            f: log w / K, in groups (K / n, n, B).
        """
        signal = ((f - f.mean(1, keepdim=True)) * self.size / (self.size - 1)).flatten(0, 1)
        probs = _bits(q).probs.detach()
        by_logit = signal[..., None] * (z - probs) / (1 - correlation(probs, self.size))
        return (by_logit * q.logits).sum(-1)


class DisARM(ARMS, name="disarm", help="of bits, antithetic pairs, of an even --particles"):
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

    draws_together = 2


class CategoricalDisARM(DisARM, name="disarm-categories", help="the same of categories"):
    """The ELBO of categories, with the gradient of K / 2 pairs of draws, whose bits by stick-breaking are antithetic.

        class k is drawn if bit k is the first that is 1,   bit k ~ Bernoulli(sigmoid(a_k)), k < C
        a_k = logit_k - log sum_{j > k} exp(logit_j)
        d/d a_k ELBO  =  E [ 1/2 (f - f') (u u' (b - b') / (1 - rho) + u (1 - u') (b - p) - (1 - u) u' (b' - p)) ]

    of two draws with f and f', whose bits k are b and b', and p = sigmoid(a_k); u is 1 if all bits before k are 0,
    since the draw does not depend on bit k otherwise. The order of the classes matters for the variance.

    Args:
        num_particles: K, an even number.
        beta: weight of the rate in the loss.

    Raises:
        InputError: (when used) as for `ARMS`, of categories.

    Reference:
        Dong, Mnih and Tucker, arXiv:2106.08056.
    """

    supports = ("categories",)

    def draw(self, q: Any) -> Tensor:
        """Return K draws of q(z | x), (K, B, N C)."""
        bits = _antithetic_bits(_sticks(q).sigmoid().detach(), 2)
        bits = torch.nn.functional.pad(bits, (0, 1), value=1.0)
        return (bits * (bits.cumsum(-1) == 1)).flatten(-2)

    def by_logits(self, q: Any, z: Tensor, f: Tensor) -> Tensor:
        """Return (K, B), whose sum over the draws has the gradient of the ELBO by the logits."""
        sticks = _sticks(q)
        z = z.unflatten(-1, (-1, q.num_classes)).unflatten(0, (-1, 2))
        used = (1 - (z.cumsum(-1) - z))[..., :-1]
        p = sticks.sigmoid().detach().unflatten(0, (-1, 2))[:, 0]
        (b, other), (u, v) = z[..., :-1].unbind(1), used.unbind(1)
        both = u * v * (b - other) / (1 - correlation(p, 2))
        by_stick = (both + u * (1 - v) * (b - p) - (1 - u) * v * (other - p)) * (f[:, 0] - f[:, 1])[..., None, None] / 2
        return (by_stick.repeat_interleave(2, 0) * sticks).sum((-1, -2))


class VIMCO(WeightedELBO, name="vimco", help="iwae with baselines"):
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

    def weights(self, log_w: Tensor) -> Weights:
        """Return L_K, and the weights v_k of the model and L_K - L_-k - v_k of the score function."""
        value = log_mean_exp(log_w)
        v = log_w.softmax(0)
        mine = torch.eye(len(log_w), dtype=torch.bool, device=log_w.device)[..., None]
        others = (log_w.sum(0) - log_w) / (len(log_w) - 1)
        without = log_mean_exp(torch.where(mine, others, log_w[:, None]))  # (K, B), by the draw that is replaced
        return Weights(value, model=v, score=value - without - v)


class GumbelSoftmax(PerDatumELBO, name="gumbel", help="a relaxed bound of bits or categories"):
    """The ELBO of bits or categories, trained on a relaxed bound, whose z is a differentiable function of the logits a.

        bits        z = sigmoid((a + log u - log(1 - u)) / temperature),    u ~ U(0, 1)
        categories  z = softmax((a - log(-log u)) / temperature)
        loss = - log p(x | z) + beta KL(q(z | x) || p(z)),  the KL of bits or categories

    The distortion and rate that it reports are not relaxed. The gradient is biased for them, the less the lower the
    temperature, and its variance grows as the temperature falls.

    Args:
        num_particles: K, the number of draws of z for each datum.
        beta: weight of the rate in the loss.
        temperature: above 0.

    Raises:
        InputError: (when used) q(z | x) or p(z) is not one site of independent bits or categories.

    Reference:
        Jang, Gu and Poole, arXiv:1611.01144; Maddison, Mnih and Teh, arXiv:1611.00712 (who relax the KL too).
    """

    reparameterised = False
    supports = ("bits", "categories")
    needs_closed_form = True
    is_relaxed = True

    def __init__(self, num_particles: int = 1, beta: Beta = 1.0, temperature: _Temperature = 0.5) -> None:
        super().__init__(num_particles, beta)
        self.temperature = temperature

    def relaxed(self, q: Any) -> Tensor:
        """Return relaxed bits or categories, (K, B, L) or (B, L)."""
        u = torch.rand_like(q.logits).clamp(1e-7, 1 - 1e-7)
        if isinstance(q, OneHotVector):
            logits = (q.logits - (-u.log()).log()) / self.temperature
            return logits.unflatten(-1, (-1, q.num_classes)).softmax(-1).flatten(-2)
        return torch.sigmoid((q.logits + u.log() - (-u).log1p()) / self.temperature)

    def rate(self, draws: Draws) -> Tensor:
        """Return the KL divergence of bits or categories, (B,)."""
        _of_one_site(draws)
        rate = torch.distributions.kl_divergence(draws.only.posterior, draws.only.prior)
        return rate[0] if rate.dim() == 2 else rate

    def messenger(self) -> AbstractContextManager[Any]:
        """Return the handler that draws relaxed values, where there is a gradient."""
        if torch.is_grad_enabled():
            return _DrawDiscrete(self.relaxed)
        return nullcontext()

    def loss_and_terms(
        self, model: PyroFunction, guide: PyroFunction, *batch: Tensor, beta: float | Tensor | None = None
    ) -> LossAndTerms:
        """Return the relaxed loss, and the terms that are not relaxed; without a gradient, such a loss too."""
        result = super().loss_and_terms(model, guide, *batch, beta=beta)
        if not self.is_relaxed or not torch.is_grad_enabled():
            return result
        with torch.no_grad():
            return result._replace(terms=super().loss_and_terms(model, guide, *batch).terms)


class StraightThrough(GumbelSoftmax, name="straight-through", help="of bits or categories, whose draws count as p"):
    """The ELBO of bits or categories, whose gradient passes through a draw z as if it were its probabilities p.

        z ~ Bernoulli(p) or Categorical(p),    dz / da := dp / da,    p = sigmoid(a) or softmax(a)

    The loss is not relaxed. Its gradient is biased, unless log p(x | z) is linear in z.

    Args:
        num_particles: K, the number of draws of z for each datum.
        beta: weight of the rate in the loss.

    Raises:
        InputError: (when used) as for `GumbelSoftmax`.

    Reference:
        Bengio, Leonard and Courville, arXiv:1308.3432.
    """

    is_relaxed = False

    def __init__(self, num_particles: int = 1, beta: Beta = 1.0) -> None:
        super().__init__(num_particles, beta)

    def relaxed(self, q: Any) -> Tensor:
        """Return draws, (K, B, L) or (B, L), with the gradient of their probabilities."""
        drawn: Tensor = q.sample()
        return drawn + q.probs - q.probs.detach()


def correlation(probs: Tensor, num_draws: int) -> Tensor:
    """Return the correlation of two of n draws by `antithetic`, (...); 0 where p is 0 or 1."""
    rare = torch.minimum(probs, 1 - probs)
    both = (2 * rare ** (1 / (num_draws - 1)) - 1).clamp(min=0) ** (num_draws - 1)
    return (both - rare.square()) / (rare * (1 - rare)).clamp(min=torch.finfo(probs.dtype).tiny)


def _sticks(q: Any) -> Tensor:
    """Return the logits of the bits by stick-breaking of categories, (..., N, C - 1)."""
    if not isinstance(q, OneHotVector):
        raise InputError("q(z | x) is of bits, and this ELBO is of categories: take DisARM")
    logits = q.logits.unflatten(-1, (-1, q.num_classes))
    after = logits.flip(-1).logcumsumexp(-1).flip(-1)[..., 1:]
    return logits[..., :-1] - after


def _discrete(name: str, distribution: Any) -> Any:
    """Return the distribution of a site that is a vector of bits, (..., L), or of categories."""
    base = getattr(distribution, "base_dist", distribution)
    if len(distribution.event_shape) != 1 or not isinstance(base, (Bernoulli, OneHotVector)):
        raise InputError(
            f"q of {name!r} is not a vector of independent bits or categories: give a BernoulliPosterior or "
            "CategoricalPosterior, or take ScoreELBO"
        )
    return base


def _bits(q: Any) -> Any:
    """Return Bernoulli distributions, or refuse other ones."""
    if not isinstance(q, Bernoulli):
        raise InputError("q(z | x) is of categories, and this ELBO is of bits: take CategoricalDisARM")
    return q


def _of_one_site(draws: Draws) -> tuple[Any, Tensor]:
    """Return q and the draws of the one latent site."""
    latent = draws.only
    return _discrete("z", latent.posterior), latent.z
