"""The terms of which losses of VAEs are sums: likelihoods, rates, and what is written by mistake in place of one.

A term is a function of some arguments of a loss, which are known by their roles: x, reconstruction, x_spread, loc,
spread, z, ... (`roles.ROLES`). Each is written once, for probabilities and scales. How a loss reads an argument, such
as a spread that is a log variance, or a reconstruction that goes through a sigmoid, is a `OutputReading`; every term is
combined with every reading.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import Beta
from torch.nn.functional import huber_loss, logsigmoid, softplus

from pvae.distributions.pixels import ContinuousBernoulli, DiscretizedLogistic

Function = Callable[..., Any]

NUM_CLASSES = 5  # of x, where it holds classes
_EPSILONS = (1e-12, 1e-10, 1e-9, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3)  # that are added to scales or in logarithms
_NORMAL = "log(2 pi scale^2) / 2 is left out, for each value of x"
_SWAPPED = "KL(p, q) stands in place of KL(q, p): the two distributions are swapped"
_Z = "log Z is left out, for each value of x"


def _zero(values: Any) -> Tensor:
    return torch.zeros(())


class OutputReading(NamedTuple):
    """How a loss reads an argument: function(argument)^power + added.

    Args:
        name: with {} in place of the argument.
        function: of the argument.
        power: of the function's value.
        added: to the power.
        shift: of an argument around which the scale is about 1.
    """

    name: str
    function: Function = torch.positive
    power: float = 1.0
    added: float = 0.0
    shift: float = 0.0

    def of(self, argument: Tensor) -> Tensor:
        """Return what the loss makes of the argument."""
        return self.function(argument) ** self.power + self.added


_INVERSE_OF_1 = math.log(math.e - 1)  # of which softplus makes 1
LOG_VARIANCE = OutputReading("exp({} / 2)", torch.exp, 0.5)
_SCALES = (  # of a spread
    LOG_VARIANCE,
    OutputReading("exp({})", torch.exp),
    OutputReading("{}"),
    OutputReading("sqrt({})", power=0.5),
    OutputReading("softplus({})", softplus, shift=_INVERSE_OF_1),
    OutputReading("sqrt(softplus({}))", softplus, 0.5, shift=_INVERSE_OF_1),
    OutputReading("exp(-{} / 2)", torch.exp, -0.5),
    *(OutputReading(f"softplus({{}}) + {e:g}", softplus, added=e, shift=_INVERSE_OF_1) for e in _EPSILONS),
)
_INSIDE: dict[str, Function] = {  # what a loss may do first to the reconstruction
    "tanh": torch.tanh, "sigmoid": torch.sigmoid, "softplus": softplus, "exp": torch.exp,
    "softmax": partial(torch.softmax, dim=-1),
}  # fmt: skip


@dataclass(frozen=True)
class Term:
    """A likelihood or a rate as a sum of columns, each summed over batch and elements.

    Args:
        name: with roles in braces, such as "Bernoulli(probs = {reconstruction})"; {v} is a scale that is found later.
        columns: a function of the arguments in `needs`: a tensor, or one for each part that may have its own weight.
            The sum of all is -log p or the rate in nats, up to a constant or a function of x.
        needs: the roles of the arguments.
        missing: what is said if the loss lacks what -log p has beside the columns: the next two.
        log_z: for each value, by v; NaN where there is no density.
        of_x: the function of x alone.
        log_k: of a rate, the part of its constant that is often left out, by the arguments.
        option: of a likelihood, the choice of --likelihood that trains it.
        note: of a likelihood, a mistake; of a rate, why it is none if its constant is right.
        fault: why it is no likelihood and no rate; empty if it is one.
        is_open: the fault is that something is not known.
        parts: names of the columns.
        prior: of a rate.
        num_of_prior: of a rate, how many columns, the first ones, the variance of a prior N(0, c^2 I) divides.
        reach: how far out it is compared; beyond it, float64 is not exact.
        domain: of x, a choice of `black_box.drawn`.
        readings: of the arguments, by role.
    """

    name: str
    columns: Function
    needs: tuple[str, ...] = ("x", "reconstruction")
    missing: str = ""
    log_z: Function = _zero
    of_x: Function = _zero
    log_k: Function = _zero
    option: str = ""
    note: str = ""
    fault: str = ""
    is_open: bool = False
    parts: tuple[str, ...] = ()
    prior: str = "N(0, I)"
    num_of_prior: int = 0
    reach: float = 8.0
    domain: str = "closed"
    readings: dict[str, OutputReading] = field(default_factory=dict)

    def elements(self, a: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """Return the columns."""
        read = {**a, **{role: reading.of(a[role]) for role, reading in self.readings.items()}}
        columns = self.columns(*(read[role] for role in self.needs))
        return columns if isinstance(columns, tuple) else (columns,)

    def values(self, a: Mapping[str, Tensor]) -> list[Tensor]:
        """Return the sum of each column."""
        return [column.sum() for column in self.elements(a)]

    def read(self, role: str, reading: OutputReading) -> Term:
        """Return the term with a reading of one argument."""
        return replace(self, readings=self.readings | {role: reading})


def _scaled(terms: Sequence[Term], role: str = "x_spread") -> list[Term]:
    """Return terms with each reading of a spread."""
    return [term.read(role, reading) for reading in _SCALES for term in terms]


def likelihoods(kink: float, tail: float, more: Sequence[Term]) -> Iterator[Term]:
    """Yield likelihoods, then what is written in place of one, and then likelihoods of functions of the reconstruction.

    Args:
        kink: the error from which on the loss is no square but absolute; 0 if it is not.
        tail: a of a loss of log(1 + error^2 / a); 0 if it is none.
        more: likelihoods of other roles.
    """
    plain = [*_of_logarithms(0.0), *_OF_VALUES, *_scaled(_OF_SCALES), *more]
    plain += [term for e in _EPSILONS for term in _of_logarithms(e)]
    if kink:  # before the Normal, which a Huber loss is within the kink
        name = f"Huber({{reconstruction}}, kink at |{{x}} - {{reconstruction}}| = {kink:.6g}, v = {{v}})"
        smooth = f"LogCosh({{reconstruction}}, of ({{x}} - {{reconstruction}}) / {kink:.6g}, v = {{v}})"
        plain = [
            _of_error(name, lambda r: huber_loss(r, 0 * r, "none", kink)),
            *plain,
            _of_error(smooth, partial(_log_cosh, kink)),
        ]
    if tail:
        name = (
            f"StudentT({{reconstruction}}, (1 + ({{x}} - {{reconstruction}})^2 / {tail:.6g})^(-1 / v) / Z, v = {{v}})"
        )
        plain.append(_of_error(name, partial(_log_of_square, tail)))
    yield from (*plain, *_NO_LIKELIHOODS)
    for name, function in _INSIDE.items():
        low, high = function(torch.tensor([-40.0, 40.0])).sigmoid().tolist()
        mistake = "the sigmoid is applied twice" if name == "sigmoid" else f"outputs of a {name} are no logits"
        mistake += f": probabilities stay between {low:.2g} and {high:.2g}"
        for term in plain:
            note = mistake if "Bernoulli(logits" in term.name else ""
            fault = "" if name == "softmax" else term.fault  # whose values sum to 1, as a multinomial's
            of_function = term.read("reconstruction", OutputReading(f"{name}({{}})", function))
            yield replace(of_function, option="", note=note, fault=fault)


def _of_error(name: str, energy: Function, missing: str = _Z, option: str = "") -> Term:
    """Return a density exp(-energy(error) / v) / Z."""
    return Term(
        name, lambda x, y: energy(x - y), missing=missing, log_z=partial(_log_integral, energy), option=option
    )  # fmt: skip


def _of_scale(name: str, energy: Function, missing: str = "") -> Term:
    """Return a density exp(-energy(error / scale)) / Z of a scale that is read from another argument."""
    return Term(
        name, lambda x, y, scale: energy((x - y) / scale) + scale.log(), _WITH_SPREAD, missing,
        log_z=lambda v: _log_integral(energy, 1.0),
    )  # fmt: skip


def _log_integral(energy: Function, v: float) -> float:
    """Return the logarithm of the integral of exp(-energy(r) / v) over all r = 1e-4 sinh(u); NaN if it is infinite."""
    u = torch.linspace(-45, 45, 2**15 + 1, dtype=torch.float64)
    logs = (1e-4 * u.cosh()).log() - energy(1e-4 * u.sinh()) / v
    if logs[-1] > logs.max() - 5:
        return math.nan
    return (logs.logsumexp(0) + (u[1] - u[0]).log()).item()


def _square(r: Tensor) -> Tensor:
    return 0.5 * r**2


def _log_cosh(kink: float, r: Tensor) -> Tensor:
    return kink * torch.logaddexp(r / kink, -r / kink) - kink * math.log(2)


def _log_of_square(tail: float, r: Tensor) -> Tensor:
    return (r**2 / tail).log1p()


def _student(df: int, r: Tensor) -> Tensor:
    return 0.5 * (df + 1) * _log_of_square(df, r)


def _log_orders(x: Tensor) -> Tensor:
    return torch.lgamma(x + 1).sum(-1) - torch.lgamma(x.sum(-1) + 1)


_multinomial = partial(
    Term, missing="log(N! / prod x!) is left out, for each x", of_x=_log_orders, domain="counts"
)  # fmt: skip
_counts = partial(Term, missing="log(x!) is left out, for each x", of_x=lambda x: torch.lgamma(x + 1), domain="counts")


def _added(e: float, where: str = "in the logarithms") -> str:
    """Return what a name says of a small number."""
    return f", {e:g} added {where}" if e else ""


def _of_logarithms(e: float) -> Iterator[Term]:
    """Yield the likelihoods of probabilities and rates, with e added in their logarithms.

    A Poisson whose rates sum to 1 has the gradient of a multinomial, which is therefore the first.
    """
    fault = (
        "it is a multinomial's if {reconstruction} sums to 1 over its last axis, as after a softmax; of outputs of a "
        "sigmoid the term -(1 - x) log(1 - y) is missing: give the logits, and write log_softmax into the loss"
    )
    y = f"{{reconstruction}}{_added(e)})"
    yield _multinomial(f"Multinomial(probs = {y}", lambda x, y: -x * (y + e).log(), fault=fault, is_open=True)
    yield Term(
        f"Bernoulli(probs = {y}", lambda x, y: -x * (y + e).log() - (1 - x) * (1 - y + e).log(), option="bernoulli"
    )
    yield _counts(f"Poisson(rate = {y}", lambda x, y: y - x * (y + e).log())


def _minus_log_p(of: Function, x: Tensor, *given: Tensor) -> Tensor:
    return -of(*given, validate_args=False).log_prob(x)


_normal = _of_error("Normal({reconstruction}, scale^2 = {v})", _square, _NORMAL, "normal")
_OF_VALUES = (  # of x and its reconstruction alone
    Term("Bernoulli(logits = {reconstruction})", lambda x, y: softplus(y) - x * y, option="bernoulli"),
    _normal,
    replace(_normal, name="log-Normal(loc = {reconstruction}, scale^2 = {v})", option="", of_x=torch.log,
            columns=lambda x, y: _square(x.log() - y), missing="log(2 pi scale^2) / 2 + log(x) is left out"),
    _of_error("Laplace({reconstruction}, scale = {v})", torch.abs, "log(2 scale) is left out, for each value of x"),
    Term("ContinuousBernoulli(probs = {reconstruction})", option="continuous-bernoulli",
         columns=lambda x, y: _minus_log_p(ContinuousBernoulli, x, y.logit())),
    Term("ContinuousBernoulli(logits = {reconstruction})", partial(_minus_log_p, ContinuousBernoulli),
         option="continuous-bernoulli"),
    _multinomial("Multinomial(logits = {reconstruction})", lambda x, y: -x * y.log_softmax(-1)),
    Term("Exponential(mean = {reconstruction})", lambda x, y: x / y + y.log()),
    Term("Normal({reconstruction}, scale^2 = the mean squared error of the batch)", option="normal-optimal",
         columns=lambda x, y: 0.5 * x.numel() * (x - y).square().mean().log()),
)  # fmt: skip


def _negative_binomial(e: float, x: Tensor, mean: Tensor, total: Tensor) -> Tensor:
    """Return -log p without log(x!), with e added in the logarithms as scVI does."""
    log_sum = (total + mean + e).log()
    powers = total * ((total + e).log() - log_sum) + x * ((mean + e).log() - log_sum)
    return torch.lgamma(total) - torch.lgamma(x + total) - powers


def _with_zeros(e: float, x: Tensor, mean: Tensor, total: Tensor, logits: Tensor) -> Tensor:
    """Return -log p of counts that are 0 with a further probability pi of these logits.

    log p(0) = log(pi + (1 - pi) p_0(0)),    log p(x) = log(1 - pi) + log p_0(x) for x > 0
    """
    log_p = logsigmoid(-logits) - _negative_binomial(e, x, mean, total)
    return -torch.where(x == 0, torch.logaddexp(logsigmoid(logits), log_p), log_p)


def _logistic_without_tails(x: Tensor, y: Tensor, scale: Tensor) -> Tensor:
    """Return -log of the probability of a bin of width 1 / 255 around x under a Logistic."""
    lower, upper = ((x + side / 510 - y) / scale for side in (-1, 1))
    return softplus(-upper) + softplus(lower) - (-(lower - upper).expm1()).log()


_WITH_SPREAD = ("x", "reconstruction", "x_spread")
_NEGATIVE_BINOMIALS = {
    e: f"NegativeBinomial(mean = {{reconstruction}}, dispersion = {{x_spread}}{_added(e)}" for e in (0.0, *_EPSILONS)
}
_OF_SCALES = (  # of a scale that is read from another argument
    _of_scale("Normal({reconstruction}, scale = {x_spread})", _square, _NORMAL),
    _of_scale("Laplace({reconstruction}, scale = {x_spread})", torch.abs, "log(2 scale) is left out"),
    *(_of_scale(f"StudentT({{reconstruction}}, df = {df}, scale = {{x_spread}})", partial(_student, df), _Z)
      for df in range(1, 6)),
    Term("Beta(alpha = {reconstruction}, beta = {x_spread})", partial(_minus_log_p, Beta), _WITH_SPREAD),
    Term("DiscretizedLogistic({reconstruction}, scale = {x_spread})", partial(_minus_log_p, DiscretizedLogistic),
         _WITH_SPREAD, option="discretized-logistic", reach=1.0),
    Term("DiscretizedLogistic({reconstruction}, scale = {x_spread}) without its tails at 0 and 1",
         _logistic_without_tails, _WITH_SPREAD, reach=1.0),
    *(_counts(f"{name})", partial(_negative_binomial, e), _WITH_SPREAD)
      for e, name in _NEGATIVE_BINOMIALS.items()),
)  # fmt: skip


def zero_inflated(role: str) -> list[Term]:
    """Return counts that are 0 with a further probability, whose logits are drawn for an argument of a role."""
    of_zero = f"{role.removeprefix('zero_')} of a zero = {{{role}}})"
    return _scaled([
        _counts(f"zero-inflated {name}, {of_zero}", partial(_with_zeros, e), (*_WITH_SPREAD, role))
        for e, name in _NEGATIVE_BINOMIALS.items()
    ])  # fmt: skip


def _cross_entropy(log_probs: Function, x: Tensor, y: Tensor) -> Tensor:
    axis = -1
    if y.shape[-1] == x.shape[-1]:
        axis = 1
    return -log_probs(y, axis).gather(axis, x.unsqueeze(axis))


OF_CLASSES = (
    Term("Categorical(logits = {reconstruction})", partial(_cross_entropy, torch.log_softmax)),
    Term("Categorical(log_probs = {reconstruction})", partial(_cross_entropy, lambda y, axis: y)),
)


_CROSS_ENTROPIES = (  # that are no likelihoods
    Term("a weighted cross-entropy of logits {reconstruction}",
         lambda x, y: (x * logsigmoid(y), (1 - x) * logsigmoid(-y)),
         fault="its two terms have different weights, a pos_weight: p(x = 0) + p(x = 1) is not 1"),
    Term("a cross-entropy of logits {reconstruction}", lambda x, y: (softplus(y), x * y, y), is_open=True,
         fault="its target is x scaled or shifted, and the cross-entropy is a likelihood of values in [0, 1] alone"),
)  # fmt: skip
_NO_LIKELIHOODS = (  # what is written in place of a likelihood
    Term("the norm of {x} - {reconstruction}, of the batch", lambda x, y: (x - y).norm(),
         fault="a norm over the batch, the root of a sum or mean of squares, is no sum over images"),
    Term("the norm of each {x} - {reconstruction}", lambda x, y: (x - y).flatten(1).norm(dim=1), parts=("the norm",),
         fault="a root of a sum or mean of D squares is no sum over the values: -log p of no independent values"),
    Term("a squared error of means", lambda x, y: _square(x.mean(0) - y.mean(0)),
         fault="it compares means over the batch, and no image with its own reconstruction"),
    *_CROSS_ENTROPIES,
    *(term.read("reconstruction", OutputReading("log({0} / (1 - {0}))", torch.logit)) for term in _CROSS_ENTROPIES),
    Term("a quadratic function of {reconstruction}", lambda x, y: (x * y, y**2), is_open=True,
         fault="x y and y^2 have different weights: it may be a squared error of x and a multiple of {reconstruction}"),
)  # fmt: skip


def rates(is_drawn: bool, has_prior: bool) -> list[Term]:
    """Return KL(q, prior) of a Normal q in closed form, or log q(z) - log p(z) at a draw z; then KL(prior, q).

    Args:
        is_drawn: the loss has a draw z.
        has_prior: the prior is a Normal whose loc and spread the loss has, else N(0, c^2 I).
    """
    name = "Normal(loc = {loc}, scale = {spread}"
    term = Term(name, _closed, ("loc", "spread"), parts=("{loc}^2", "scale^2", "-2 log scale"), num_of_prior=2)
    if is_drawn:
        parts = ("{z}^2", "-({z} - {loc})^2 / scale^2", "-2 log scale")
        term = Term(name, _drawn, ("z", *term.needs), parts=parts, num_of_prior=1)
    if has_prior:
        needs = (*term.needs, "prior_loc", "prior_spread")
        term = replace(term, needs=needs, prior="Normal(loc = {prior_loc}, scale = {prior_spread})", num_of_prior=0)
    rows = [
        replace(term, name=f"{name}{_added(e, 'to its square in the logarithm')})", columns=partial(term.columns, e))
        for e in (0.0, *_EPSILONS)
    ]
    if has_prior:
        rows = _scaled(rows, "prior_spread")
    elif not is_drawn:
        rows.append(replace(rows[0], columns=_swapped, num_of_prior=0, note=_SWAPPED))
    return _scaled(rows, "spread")


_STANDARD = torch.zeros(()), torch.ones(())


def _closed(e: float, loc: Tensor, scale: Tensor, *prior: Tensor) -> tuple[Tensor, ...]:
    """Return three parts of KL(q, prior); e is added to the square of the scale in the logarithm."""
    prior_loc, prior_scale = prior or _STANDARD
    log_ratio = prior_scale.log() - 0.5 * (scale**2 + e).log()
    return _square((loc - prior_loc) / prior_scale), _square(scale / prior_scale), log_ratio - 0.5


def _drawn(e: float, z: Tensor, loc: Tensor, scale: Tensor, *prior: Tensor) -> tuple[Tensor, ...]:
    """Return three parts of log q(z) - log p(z)."""
    of_q, _, log_ratio = _closed(e, z, scale, *prior)
    return of_q, -_square((z - loc) / scale), log_ratio + 0.5


def _swapped(loc: Tensor, scale: Tensor) -> Tensor:
    return 0.5 * (1 + loc**2) / scale**2 + scale.log() - 0.5


_LOG_Q: dict[str, Function] = {  # of logits
    "categorical": partial(torch.log_softmax, dim=-1),
    "bernoulli": lambda logits: torch.stack((logsigmoid(logits), logsigmoid(-logits)), -1),
}


def uniform(role: str) -> list[Term]:
    """Return KL(q, uniform) of the logits of classes or bits, also with small numbers in logarithms, and swapped."""
    kind, name = role.split("_", 1)
    log_q = _LOG_Q[kind]

    def log_k(logits: Tensor) -> float:
        return math.log(log_q(logits).shape[-1])

    def rate(e: float, logits: Tensor) -> Tensor:
        q = log_q(logits).exp()
        return (q * (q + e).log()).sum(-1) + log_k(logits)

    def swapped(logits: Tensor) -> Tensor:
        return -log_q(logits).mean(-1) - log_k(logits)

    term = Term(f"{kind.title()}({name} = {{{role}}}", rate, (role,), log_k=log_k, prior="uniform")
    rows = [replace(term, name=f"{term.name}{_added(e)})", columns=partial(rate, e)) for e in (0.0, *_EPSILONS)]
    return [*rows, replace(rows[0], columns=swapped, note=_SWAPPED)]


HANDED_IN = Term(
    "known to the caller, who hands in {kl}", torch.positive, ("kl",), parts=("{kl}",), is_open=True,
    fault="{kl} is handed in and enters by its sum: if it is KL(q, p) in nats, it is the rate, whose weight gives beta",
)  # fmt: skip


def _of_codes(*parts: str) -> Term:
    """Return what a VQ-VAE, perhaps with a codebook of moving averages, has in place of a rate."""
    both = " and ".join(parts)

    def columns(codes: Tensor, encoded: Tensor) -> tuple[Tensor, ...]:
        squares = {"the codebook": codes - encoded.detach(), "the commitment": encoded - codes.detach()}
        return tuple(squares[part] ** 2 for part in parts)

    fault = f"it has {both} of a VQ-VAE, which is no rate"
    return Term(f"{both}, of {{codes}} and {{encoded}}", columns, ("codes", "encoded"), parts=parts, fault=fault)


OF_CODES = (_of_codes("the codebook"), _of_codes("the commitment"), _of_codes("the codebook", "the commitment"))
