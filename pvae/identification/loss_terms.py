"""The terms of which losses of VAEs are sums: what `identify` compares a loss with.

The arguments of a loss are known by their roles: data x, reconstruction y, spread t of the likelihood, of q(z | x) loc
m, spread s and a draw z, of a learned prior loc a and spread b; `roles` has more. Each term is one row: a name and a
function of these arguments, in nats. What a loss does first to the reconstruction, as its tanh, is a row too.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Beta, StudentT
from torch.nn.functional import huber_loss, logsigmoid, softplus

from pvae.distributions.pixels import ContinuousBernoulli, DiscretizedLogistic

NUM_CLASSES = 5  # of x, where it holds classes

Arguments = Mapping[str, Tensor]
_Function = Callable[..., Any]

SWAPPED = "KL(p, q) stands in place of KL(q, p): the two distributions are swapped"
EPSILONS = (1e-12, 1e-10, 1e-9, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3)  # that are added in logarithms
_LOG_2_PI = math.log(2 * math.pi)
_NORMAL, _FACTORIAL, _ORDERS = "log(2 pi scale^2) / 2", "log(x!)", "log(N! / prod x!)"  # what is often left out


@dataclass(frozen=True)
class Term:
    """A likelihood or a rate as a sum of columns, each summed over batch and elements; or what is written for one.

    Args:
        name: a distribution with roles in braces, such as "Bernoulli(probs = {y})"; {v} is a scale found later.
        columns: a function of the roles in `needs`; the sum of all that it returns is -log p or the rate in nats, up
            to a constant.
        missing: the name of the constant, or function of x alone, that -log p has beside the columns.
        log_z: of a density exp(-column / v) / Z, the logarithm of Z for each value, by v; NaN where there is none.
        of_x: the function of x alone.
        name_of: the name by v, where it is better known by other parameters.
        option: the choice of --likelihood or --posterior that trains it.
        needs: the roles on which it depends, in the order of the arguments of `columns`.
        kind: "part", a likelihood or a rate; "none" or "open", neither of them for the reason in `note`.
        note: a mistake, or the reason.
        of_image: the only shape of an image for which it is known; () is any.
        prior: of a rate.
        num_of_prior: of a rate, how many columns, the first ones, the variance of a prior N(0, c^2) divides.
        log_k: of a rate, the part of its constant that is often left out, of each variable.
        parts: names of the columns, where each has a weight of its own.
    """

    name: str
    columns: Callable[..., Tensor | tuple[Tensor, ...]]
    missing: str = ""
    log_z: _Function | None = None
    of_x: _Function | None = None
    option: str = ""
    needs: str = "xy"
    kind: str = "part"
    note: str = ""
    of_image: tuple[int, ...] = ()
    prior: str = "N(0, I)"
    num_of_prior: int = 0
    name_of: Callable[[float], str] | None = None
    log_k: _Function | None = None
    parts: tuple[str, ...] = ()

    def elements(self, a: Arguments) -> tuple[Tensor, ...]:
        """Return the columns."""
        found = self.columns(*(a[role] for role in self.needs))
        return found if isinstance(found, tuple) else (found,)

    def values(self, a: Arguments) -> list[Tensor]:
        """Return the sum of each column."""
        return [column.sum() for column in self.elements(a)]

    def exactly(self, a: Arguments, variance: float = 1.0) -> Tensor:
        """Return the sum of the columns; of a rate, for a variance of the prior."""
        parts = [one / variance if index < self.num_of_prior else one for index, one in enumerate(self.values(a))]
        return torch.stack(parts).sum() + 0.5 * math.log(variance) * self.elements(a)[0].numel()

    def of_function(self, name: str, function: _Function) -> Term:
        """Return the term of a function of y, whose name has {y} in it."""
        name = self.name.replace("{y}", name)
        return replace(self, name=name, columns=lambda x, y, *t: self.columns(x, function(y), *t), option="")

    def weighted(self, weights: Tensor, log_z: _Function) -> Term:
        """Return the density with one scale for each value: its weights have the mean 1 and the shape of x."""
        every: list[float] = weights.flatten().tolist()
        name = f"{self.name[:-1]}, divided by a weight of each value, {min(every):.4g} to {max(every):.4g})"
        return replace(
            self, name=name, columns=lambda x, y: weights * self.columns(x, y), of_image=tuple(weights.shape),
            option="", log_z=lambda v: sum(log_z(v / one) for one in every) / len(every),
        )  # fmt: skip


# The readings of a spread s: its name, the scale, and the logarithm of the scale.
_Reading = tuple[str, _Function, _Function]
_READINGS: tuple[_Reading, ...] = (
    ("scale = exp({s} / 2)", lambda s: (s / 2).exp(), lambda s: s / 2),
    ("scale = exp({s})", lambda s: s.exp(), lambda s: s),
    ("scale = {s}", lambda s: s, lambda s: s.log()),
    ("scale = sqrt({s})", lambda s: s.sqrt(), lambda s: s.log() / 2),
    ("scale = softplus({s})", softplus, lambda s: softplus(s).log()),
    ("scale = sqrt(softplus({s}))", lambda s: softplus(s).sqrt(), lambda s: softplus(s).log() / 2),
    ("scale = exp(-{s} / 2)", lambda s: (-s / 2).exp(), lambda s: -s / 2),
)


def _readings(role: str, epsilons: tuple[float, ...] = ()) -> Iterator[_Reading]:
    """Yield the readings of a spread; the last ones add a small number to a scale, or in its logarithm."""
    for name, scale, log_scale in (*_READINGS, *(one for e in epsilons for one in _with_epsilon(e))):
        yield name.replace("{s}", f"{{{role}}}"), scale, log_scale


def _with_epsilon(e: float) -> Iterator[_Reading]:
    yield f"scale = {{s}}, {e:g} added to its square in the logarithm", lambda s: s, lambda s: (s**2 + e).log() / 2
    yield f"scale = {{s}}, {e:g} added to it in the logarithm", lambda s: s, lambda s: (s + e).log()
    yield f"scale = softplus({{s}}) + {e:g}", lambda s: softplus(s) + e, lambda s: (softplus(s) + e).log()


_FUNCTIONS: dict[str, _Function] = {  # of the reconstruction, inside a loss
    "tanh": torch.tanh, "sigmoid": torch.sigmoid, "softplus": softplus, "exp": torch.exp,
    "softmax": lambda y: y.softmax(-1),
}  # fmt: skip


def likelihoods(kink: float = 0.0, tail: float = 0.0, more: Iterable[Term] = ()) -> Iterator[Term]:
    """Yield likelihoods, and then what is written in place of one.

    Args:
        kink: where a loss turns from a squared to an absolute error; 0 if it does not.
        tail: the square of the error at which a loss turns from a squared error to a logarithm; 0 if it does not.
        more: likelihoods of other roles.
    """
    of_spread = [term for reading in _readings("t") for term in _of_spread(*reading)]
    plain = [*_of_values(kink, tail), *of_spread, *more]
    with_epsilons = [term for e in EPSILONS for term in _of_logarithms(e)]
    yield from (*plain, *with_epsilons, *_not_likelihoods())
    for (name, function), term in itertools.product(_FUNCTIONS.items(), (*plain, *with_epsilons)):
        found = term.of_function(f"{name}({{y}})", function)
        if term.kind == "open" and name == "softmax":  # probabilities that sum to 1, as a multinomial needs
            found = replace(found, kind="part", note="")
        low, high = function(torch.tensor([-40.0, 40.0])).sigmoid().tolist()
        mistake = "the sigmoid is applied twice" if name == "sigmoid" else f"outputs of a {name} are no logits"
        mistake = f"{mistake}: probabilities stay between {low:.2g} and {high:.2g}"
        yield replace(found, note=mistake) if "Bernoulli(logits" in term.name else found
    yield from (term for reading in _readings("t", EPSILONS) for term in _of_spread(*reading))


def _of_values(kink: float, tail: float) -> Iterator[Term]:
    """Yield the likelihoods of x and its reconstruction alone."""
    if kink:  # before the Normal, which it is within the kink
        name = f"Huber({{y}}, kink at |{{x}} - {{y}}| = {kink:.6g}, v = {{v}})"
        yield Term(name, lambda x, y: huber_loss(y, x, "none", kink), "log Z", lambda v: _huber_log_z(kink, v))
        shown = f"of ({{x}} - {{y}}) / {kink:.6g}, v = {{v}})"
        smooth = lambda x, y: kink**2 * ((1 + ((x - y) / kink) ** 2).sqrt() - 1)  # noqa: E731
        yield Term(f"PseudoHuber({{y}}, {shown}", smooth, "log Z", lambda v: _pseudo_huber_log_z(kink, v))
    if kink and kink != 1:
        log_z_of_cosh = lambda v: math.log(kink) + _log_cosh_log_z(v / kink)  # noqa: E731
        name = f"LogCosh({{y}}, {shown}"
        yield Term(name, lambda x, y: kink * _log_cosh((x - y) / kink), "log Z", log_z_of_cosh)
    if tail:
        log_z_of_t = lambda v: _student_log_z(tail, v)  # noqa: E731
        name_of_t = lambda v: f"StudentT({{y}}, df = {2 / v - 1:.6g}, scale = {(tail / (2 / v - 1)) ** 0.5:.6g})"  # noqa: E731
        yield Term(
            f"StudentT({{y}}, (1 + ({{x}} - {{y}})^2 / {tail:.6g})^(-1 / v) / Z, v = {{v}})",
            lambda x, y: ((x - y) ** 2 / tail).log1p(), "log Z", log_z_of_t, name_of=name_of_t,
        )  # fmt: skip
    yield from _of_logarithms(0.0)
    yield Term("Bernoulli(logits = {y})", lambda x, y: softplus(y) - x * y, option="bernoulli")
    log_z: _Function = lambda v: 0.5 * (_LOG_2_PI + math.log(v))  # noqa: E731
    yield Term("Normal({y}, scale^2 = {v})", lambda x, y: 0.5 * (x - y) ** 2, _NORMAL, log_z, option="normal")
    name, log_normal = "log-Normal(loc = {y}, scale^2 = {v})", lambda x, y: 0.5 * (x.log() - y) ** 2
    yield Term(name, log_normal, f"{_NORMAL} + log(x)", log_z, of_x=torch.log)
    log_z = lambda v: math.log(2 * v)  # noqa: E731
    yield Term("Laplace({y}, scale = {v})", lambda x, y: (x - y).abs(), "log(2 scale)", log_z)
    yield Term("LogCosh({y}, v = {v})", lambda x, y: _log_cosh(x - y), "log Z", _log_cosh_log_z)
    for name, logits in ("probs", torch.logit), ("logits", lambda y: y):
        density = lambda x, y, of=logits: -ContinuousBernoulli(of(y), validate_args=False).log_prob(x)  # noqa: E731
        yield Term(f"ContinuousBernoulli({name} = {{y}})", density, option="continuous-bernoulli")
    yield Term("Multinomial(logits = {y})", lambda x, y: -x * y.log_softmax(-1), _ORDERS, of_x=_log_orders)
    yield Term("Poisson(rate = exp({y}))", lambda x, y: y.exp() - x * y, _FACTORIAL, of_x=_log_x)
    yield Term("Exponential(mean = {y})", lambda x, y: x / y + y.log())
    name = "exp(-|{x} - {y}| / v) / Z of the norm of each {x} - {y}, v = {v}"
    yield Term(name, lambda x, y: (x - y).flatten(1).norm(dim=1), "log Z")
    optimal = "Normal({y}, scale^2 = the mean squared error of"
    yield Term(f"{optimal} the batch)", lambda x, y: _half_log(x - y), option="normal-optimal")
    yield Term(f"{optimal} each image)", lambda x, y: torch.stack([*map(_half_log, x - y)]))


def _of_logarithms(e: float) -> Iterator[Term]:
    """Yield the likelihoods of probabilities and rates, with e added in their logarithms.

    A Poisson whose rates sum to 1 has the gradient of a multinomial, which is therefore the first.
    """
    multinomial = lambda x, y: -x * (y + e).log()  # noqa: E731
    yield Term(
        f"Multinomial(probs = {{y}}{added(e)})", multinomial, _ORDERS, of_x=_log_orders, kind="open",
        note="it is a multinomial's if {y} sums to 1 over its last axis, as after a softmax; of outputs of a sigmoid "
        "the term -(1 - x) log(1 - y) is missing: give the logits, and write log_softmax into the loss",
    )  # fmt: skip
    bernoulli = lambda x, y: -x * (y + e).log() - (1 - x) * (1 - y + e).log()  # noqa: E731
    yield Term(f"Bernoulli(probs = {{y}}{added(e)})", bernoulli, option="bernoulli")
    yield Term(f"Poisson(rate = {{y}}{added(e)})", lambda x, y: y - x * (y + e).log(), _FACTORIAL, of_x=_log_x)


def _of_spread(reading: str, scale: _Function, log_scale: _Function) -> Iterator[Term]:
    """Yield the likelihoods whose spread t is an argument of the loss."""
    normal, log_z = lambda x, y, t: 0.5 * ((x - y) / scale(t)) ** 2 + log_scale(t), lambda v: 0.5 * _LOG_2_PI
    yield Term(f"Normal({{y}}, {reading})", normal, _NORMAL, log_z, needs="xyt")
    laplace, log_z = lambda x, y, t: (x - y).abs() / scale(t) + log_scale(t), lambda v: math.log(2)
    yield Term(f"Laplace({{y}}, {reading})", laplace, "log(2 scale)", log_z, needs="xyt")
    log_normal = lambda x, y, t: 0.5 * ((x.log() - y) / scale(t)) ** 2 + log_scale(t)  # noqa: E731
    name, log_z = f"log-Normal(loc = {{y}}, {reading})", lambda v: 0.5 * _LOG_2_PI
    yield Term(name, log_normal, f"{_NORMAL} + log(x)", log_z, of_x=torch.log, needs="xyt")
    for df in range(1, 6):
        student = lambda x, y, t, df=df: -StudentT(df, y, scale(t), validate_args=False).log_prob(x)  # noqa: E731
        yield Term(f"StudentT({{y}}, df = {df}, {reading})", student, needs="xyt")
    given = reading.removeprefix("scale = ")
    beta = lambda x, y, t: -Beta(y, scale(t), validate_args=False).log_prob(x)  # noqa: E731
    yield Term(f"Beta(alpha = {{y}}, beta = {given})", beta, needs="xyt")
    of_mean = lambda x, y, t: -Beta(y * scale(t), scale(t) - y * scale(t), validate_args=False).log_prob(x)  # noqa: E731
    yield Term(f"Beta(mean = {{y}}, precision = {given})", of_mean, needs="xyt")
    name, option = f"DiscretizedLogistic({{y}}, {reading})", "discretized-logistic"
    whole = lambda x, y, t: -DiscretizedLogistic(y, scale(t), validate_args=False).log_prob(x)  # noqa: E731
    yield Term(name, whole, option=option, needs="xyt")
    yield Term(f"{name} without its tails at 0 and 1", lambda x, y, t: -_log_bin(x, y, scale(t)), needs="xyt")
    for name, counts in _counts(reading, scale):
        yield Term(name, lambda *a, counts=counts: -counts(*a), _FACTORIAL, of_x=_log_x, needs="xyt")


def _counts(reading: str, scale: _Function) -> Iterator[tuple[str, _Function]]:
    """Yield negative binomials whose spread t is an argument: log p(x) without log(x!)."""
    given = reading.removeprefix("scale = ")
    for e in (0.0, *EPSILONS) if "added" not in reading else ():
        name = f"NegativeBinomial(mean = {{y}}, dispersion = {given}{added(e)})"
        yield name, lambda x, y, t, e=e: _log_negative_binomial(x, y, scale(t), e)
    of_logits = lambda x, y, t: _log_negative_binomial(x, scale(t) * y.exp(), scale(t), 0.0)  # noqa: E731
    yield f"NegativeBinomial(total_count = {given}, logits = {{y}})", of_logits


def zero_inflated(letter: str, kind: str) -> tuple[Term, ...]:
    """Return counts that are 0 with a further probability pi, whose logits are an argument of this letter.

    log p(0) = log(pi + (1 - pi) p_0(0)),    log p(x) = log(1 - pi) + log p_0(x) for x > 0
    """

    def whole(x: Tensor, y: Tensor, *more: Tensor, counts: _Function) -> Tensor:
        *t, gate = more
        log_p = logsigmoid(-gate) + counts(x, y, *t)
        return -torch.where(x == 0, torch.logaddexp(logsigmoid(gate), log_p), log_p)

    rows: list[tuple[str, str, _Function]] = [("xy", "Poisson(rate = {y})", lambda x, y: x * y.log() - y)]
    for name, scale, _ in _readings("t"):
        rows += [("xyt", *row) for row in _counts(name, scale)]
    return tuple(
        Term(
            f"zero-inflated {name[:-1]}, {kind} of a zero = {{{letter}}})", partial(whole, counts=counts), _FACTORIAL,
            of_x=_log_x, needs=needs + letter,
        ) for needs, name, counts in rows
    )  # fmt: skip


def likelihoods_of_classes() -> Iterator[Term]:
    """Yield the likelihoods of classes, also without the values of one class."""
    by = {"logits": lambda x, y: y.log_softmax(_axis(x, y)), "log_probs": lambda x, y: y}
    for ignored, (name, of) in itertools.product(range(-1, NUM_CLASSES), by.items()):  # -1 is none

        def summed(x: Tensor, y: Tensor, of: Any = of, ignored: int = ignored) -> Tensor:
            return -of(x, y).gather(_axis(x, y), x.unsqueeze(_axis(x, y))).squeeze(_axis(x, y)) * (x != ignored)

        left_out = f", without the values of class {ignored} (ignore_index)" if ignored >= 0 else ""
        yield Term(f"Categorical({name} = {{y}}{left_out})", summed)
        mean = lambda x, y, c=summed, i=ignored: c(x, y).sum() / (x != i).sum()  # noqa: E731
        note = "it is a mean over the values that are not ignored: beta depends on how many of these a batch has"
        yield Term(f"Categorical({name} = {{y}}{left_out})", mean, kind="none", note=note)


def _not_likelihoods() -> Iterator[Term]:
    """Yield what is written in place of a likelihood."""
    note = "a norm over the batch, the root of a sum or mean of squares, is no sum over images"
    yield Term("the norm of {x} - {y}, of the batch", lambda x, y: (x - y).norm(), kind="none", note=note)
    note = "it compares means over the batch, and no image with its own reconstruction"
    yield Term("a squared error of means", lambda x, y: (x.mean(0) - y.mean(0)) ** 2, kind="none", note=note)
    by_logits = "logits", lambda y: y - softplus(y), lambda y: -softplus(y)
    for name, log_p, log_not_p in by_logits, ("probabilities", torch.log, lambda y: (1 - y).log()):
        note = "its two terms have different weights, a pos_weight: p(x = 0) + p(x = 1) is not 1"
        weighted = lambda x, y, p=log_p, q=log_not_p: (x * p(y), (1 - x) * q(y))  # noqa: E731
        yield Term(f"a weighted cross-entropy of {name} {{y}}", weighted, kind="none", note=note)
        note = "its target is x scaled or shifted, and the cross-entropy is a likelihood of values in [0, 1] alone"
        shifted = lambda x, y, p=log_p, q=log_not_p: (q(y), x * (p(y) - q(y)), p(y) - q(y))  # noqa: E731
        yield Term(f"a cross-entropy of {name} {{y}}", shifted, kind="open", note=note)
    note = "x y and y^2 have different weights: it may be a squared error of x and a multiple of {y}"
    yield Term("a quadratic function of {y}", lambda x, y: (x * y, y**2), kind="open", note=note)


def rates(has_prior: bool) -> Iterator[Term]:
    """Yield KL(q, prior) of a Normal q in closed form, log q(z) - log p(z) at a draw z, and at last KL(N(0, I), q).

    Args:
        has_prior: the prior is a Normal of loc a and spread b, else N(0, c^2 I).
    """
    standard: list[_Reading] = [("N(0, I)", lambda b: 1.0, lambda b: 0.0)]
    for reading, prior in itertools.product(_readings("s", EPSILONS), _readings("b") if has_prior else standard):
        yield from _rates_of(*reading, *prior)
    for name, scale, log_scale in _readings("s"):
        swapped = lambda m, s, v=scale, log_v=log_scale: 0.5 * (1 + m**2) / v(s) ** 2 + log_v(s) - 0.5  # noqa: E731
        yield Term(f"Normal(loc = {{m}}, {name})", swapped, needs="ms", note=SWAPPED)


def _rates_of(
    reading: str, scale: _Function, log_scale: _Function, prior: str, c: _Function, log_c: _Function
) -> Iterator[Term]:
    """Yield the rates for a reading of s and a prior of loc a and scale c(b)."""

    def closed(m: Tensor, s: Tensor, a: Any = 0.0, b: Any = 0.0) -> tuple[Tensor, ...]:
        return 0.5 * ((m - a) / c(b)) ** 2, 0.5 * (scale(s) / c(b)) ** 2, log_c(b) - log_scale(s) - 0.5

    def drawn(m: Tensor, s: Tensor, z: Tensor, a: Any = 0.0, b: Any = 0.0) -> tuple[Tensor, ...]:
        return 0.5 * ((z - a) / c(b)) ** 2, -0.5 * ((z - m) / scale(s)) ** 2, log_c(b) - log_scale(s)

    is_learned, option = "{b}" in prior, "normal-log-variance" if "({s} / 2)" in reading else "normal"
    prior, more = (f"Normal(loc = {{a}}, {prior})", "ab") if is_learned else (prior, "")
    for columns, needs, num_of_prior in (closed, "ms", 2), (drawn, "msz", 1):
        yield Term(
            f"Normal(loc = {{m}}, {reading})", columns, option=option, needs=needs + more, prior=prior,
            num_of_prior=0 if is_learned else num_of_prior,
        )  # fmt: skip


def added(e: float) -> str:
    """Return what a name says of a small number in the logarithms."""
    return f", {e:g} added in the logarithms" if e else ""


def _log_cosh(r: Tensor) -> Tensor:
    return r.abs() + softplus(-2 * r.abs()) - math.log(2)


def _log_cosh_log_z(v: float) -> float:
    """Return the logarithm of the integral of cosh(r)^(-1 / v)."""
    return 0.5 * math.log(math.pi) + math.lgamma(0.5 / v) - math.lgamma(0.5 / v + 0.5)


def _huber_log_z(kink: float, v: float) -> float:
    """Return the logarithm of the integral of exp(-huber(r) / v): within the kink a Normal's, beyond it two tails'."""
    within = math.sqrt(2 * math.pi * v) * math.erf(kink / math.sqrt(2 * v))
    return math.log(within + 2 * v / kink * math.exp(-(kink**2) / (2 * v)))


def _pseudo_huber_log_z(kink: float, v: float) -> float:
    """Return the logarithm of the integral of exp(-a (sqrt(1 + (r / kink)^2) - 1)), a = kink^2 / v: by K_1(a)."""
    from scipy.special import k1e

    return math.log(2 * kink) + math.log(k1e(kink**2 / v))


def _student_log_z(tail: float, v: float) -> float:
    """Return the logarithm of the integral of (1 + r^2 / tail)^(-1 / v), which is finite for v < 2."""
    if v >= 2:
        return math.nan
    return 0.5 * math.log(math.pi * tail) + math.lgamma(1 / v - 0.5) - math.lgamma(1 / v)


def _log_x(x: Tensor) -> Tensor:
    return torch.lgamma(x + 1)


def _log_orders(x: Tensor) -> Tensor:
    """Return minus the logarithm of the multinomial coefficient of each x."""
    return torch.lgamma(x + 1).sum(-1) - torch.lgamma(x.sum(-1) + 1)


def _log_negative_binomial(x: Tensor, mean: Tensor, theta: Tensor, e: float) -> Tensor:
    """Return log p without log(x!), with e added in the logarithms as scVI does."""
    log_sum = (theta + mean + e).log()
    powers = theta * ((theta + e).log() - log_sum) + x * ((mean + e).log() - log_sum)
    return torch.lgamma(x + theta) - torch.lgamma(theta) + powers


def _log_bin(x: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
    """Return the logarithm of the probability of a bin of width 1 / 255 around x under a Logistic."""
    lower, upper = (x - 1 / 510 - loc) / scale, (x + 1 / 510 - loc) / scale
    return torch.log(-torch.expm1(lower - upper)) - softplus(-upper) - softplus(lower)


def _half_log(errors: Tensor) -> Tensor:
    """Return N log(mean squared error) / 2 of N errors."""
    return 0.5 * errors.numel() * (errors**2).mean().log()


def _axis(x: Tensor, y: Tensor) -> int:
    """Return the axis of the classes in y."""
    return 1 if y.shape[-1] == x.shape[-1] else -1
