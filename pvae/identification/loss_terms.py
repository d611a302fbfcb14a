"""The terms of which losses of VAEs are sums: what `identify` compares a loss with.

The arguments of a loss are known by their roles: data x, reconstruction y, spread t of the likelihood, and of q(z | x)
loc m, spread s and a draw z.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import softplus

from pvae.distributions.continuous_bernoulli import ContinuousBernoulli
from pvae.distributions.discretized_logistic import DiscretizedLogistic

__all__ = ["Arguments", "Term", "likelihoods", "rates", "spreads"]

Arguments = Mapping[str, Tensor]
_Column = Callable[[Arguments], Tensor]
_Function = Callable[[Tensor], Tensor]

_EPSILONS = (1e-12, 1e-10, 1e-9, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3)  # that are added in logarithms
_HALF_LOG_2_PI = 0.5 * math.log(2 * math.pi)
_NORMAL, _LAPLACE = "log(2 pi scale^2) / 2", "log(2 scale)"  # what is often left out


@dataclass(frozen=True)
class Term:
    """A weighted sum of columns, each a sum over batch and elements.

    Args:
        name: a distribution with roles in braces, such as "Bernoulli(probs = {y})"; {v} is a scale found later.
        columns: each returns a tensor.
        exact: the weights with which the columns make -log p or the rate in nats, up to a constant.
        constant: what is then missing, in nats for each value of x, or each latent.
        missing: the name of this constant.
        kind: "likelihood" or "rate", or why the term is neither.
        option: the choice of --likelihood or --posterior that trains it.
        needs: the roles on which it depends.
        column_names: the names of the columns, with roles in braces.
    """

    name: str
    columns: tuple[_Column, ...]
    exact: tuple[float, ...]
    constant: float = 0.0
    missing: str = ""
    kind: str = "likelihood"
    option: str = ""
    needs: str = "xy"
    column_names: tuple[str, ...] = ()

    @property
    def is_part(self) -> bool:
        """Whether it is a likelihood or a rate."""
        return self.kind in ("likelihood", "rate")

    @property
    def of_classes(self) -> bool:
        """Whether x holds classes."""
        return self.name.startswith("Categorical")

    def values(self, a: Arguments) -> Tensor:
        """Return the sum of each column, (number of columns,)."""
        return torch.stack([column(a).sum() for column in self.columns])

    def exactly(self, a: Arguments) -> Tensor:
        """Return -log p or the rate, summed over batch and elements, up to the constant."""
        return self.values(a) @ torch.tensor(self.exact, dtype=torch.float64)


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


def spreads(role: str = "s") -> Iterator[_Reading]:
    """Yield the readings of a spread; the last ones add a small number to a scale, or in its logarithm."""
    for name, scale, log_scale in (*_READINGS, *(one for e in _EPSILONS for one in _with_epsilon(e))):
        yield name.replace("{s}", f"{{{role}}}"), scale, log_scale


def _with_epsilon(e: float) -> Iterator[_Reading]:
    yield f"scale = {{s}}, {e:g} added to its square in the logarithm", lambda s: s, lambda s: (s**2 + e).log() / 2
    yield f"scale = {{s}}, {e:g} added to it in the logarithm", lambda s: s, lambda s: (s + e).log()
    yield f"scale = softplus({{s}}) + {e:g}", lambda s: softplus(s) + e, lambda s: (softplus(s) + e).log()


def likelihoods() -> Iterator[Term]:
    """Yield likelihoods, and then what is written in place of one."""
    yield _bernoulli()
    yield Term("Bernoulli(logits = {y})", (_softplus, _minus_xy), (1, 1), option="bernoulli")
    yield Term("Normal({y}, scale^2 = {v})", (_square,), (0.5,), _HALF_LOG_2_PI, _NORMAL, option="normal")
    yield Term("Laplace({y}, scale = {v})", (_absolute,), (1,), math.log(2), _LAPLACE)
    by_probs = (*_bernoulli().columns, lambda a: -_log_c(torch.logit(a["y"])))
    yield Term("ContinuousBernoulli(probs = {y})", by_probs, (1, 1, 1), option="continuous-bernoulli")
    by_logits = (_softplus, _minus_xy, lambda a: -_log_c(a["y"]))
    yield Term("ContinuousBernoulli(logits = {y})", by_logits, (1, 1, 1), option="continuous-bernoulli")
    yield Term("Poisson(rate = exp({y}))", (lambda a: a["y"].exp(), _minus_xy), (1, 1), missing="log(x!)")
    yield from map(_poisson, (0.0, *_EPSILONS))
    yield Term("Categorical(logits = {y})", (lambda a: -_of_class(a["y"].log_softmax(_axis(a)), a),), (1,))
    yield Term("Categorical(log_probs = {y})", (lambda a: -_of_class(a["y"], a),), (1,))
    yield from (term for reading in spreads("t") for term in _of_given_spread(*reading))
    yield from map(_bernoulli, _EPSILONS)
    name = "Normal({y}, scale^2 = the mean squared error of"
    yield Term(f"{name} the batch)", (lambda a: _log_error(_square(a)),), (0.5,), option="normal-optimal")
    yield Term(f"{name} each image)", (lambda a: torch.stack([*map(_log_error, _square(a))]),), (0.5,))
    yield from _not_likelihoods()


def _of_given_spread(reading: str, scale: _Function, log_scale: _Function) -> Iterator[Term]:
    """Yield the likelihoods whose spread t is an argument of the loss."""

    def logarithm(a: Arguments) -> Tensor:
        return log_scale(a["t"]).expand_as(a["x"])

    normal = (lambda a: _square(a) / scale(a["t"]) ** 2, logarithm)
    yield Term(f"Normal({{y}}, {reading})", normal, (0.5, 1), _HALF_LOG_2_PI, _NORMAL, needs="xyt")
    laplace = (lambda a: _absolute(a) / scale(a["t"]), logarithm)
    yield Term(f"Laplace({{y}}, {reading})", laplace, (1, 1), math.log(2), _LAPLACE, needs="xyt")
    name = f"DiscretizedLogistic({{y}}, {reading})"
    whole = (lambda a: -DiscretizedLogistic(a["y"], scale(a["t"]), validate_args=False).log_prob(a["x"]),)
    yield Term(name, whole, (1,), option="discretized-logistic", needs="xyt")
    cut_off = (lambda a: -_log_bin(a["x"], a["y"], scale(a["t"])),)
    yield Term(f"{name} without its tails at 0 and 1", cut_off, (1,), needs="xyt")


def _not_likelihoods() -> Iterator[Term]:
    """Yield what is written in place of a likelihood."""
    kind = "a norm without its square is the logarithm of no likelihood in the list"
    yield Term("the norm of each {x} - {y}", (lambda a: _square(a).flatten(1).sum(-1).sqrt(),), (1,), kind=kind)
    yield Term("the norm of {x} - {y}, of the batch", (lambda a: _square(a).sum().sqrt(),), (1,), kind=kind)
    kind = "it compares means over the batch, and no image with its own reconstruction"
    means: tuple[_Column, ...] = (lambda a: (a["x"].mean(0) - a["y"].mean(0)) ** 2,)
    yield Term("the squared error of the batch's means", means, (1,), kind=kind)
    kind = "its target is x scaled or shifted, and not x: the cross-entropy is a likelihood of values in [0, 1] alone"
    yield Term("a cross-entropy of logits {y}", (_softplus, _minus_xy, lambda a: a["y"]), (1, 1, 1), kind=kind)
    logs: tuple[_Column, ...] = (lambda a: a["y"].log(), lambda a: (1 - a["y"]).log())
    with_x: tuple[_Column, ...] = (lambda a: a["x"] * a["y"].log(), lambda a: a["x"] * (1 - a["y"]).log())
    yield Term("a cross-entropy of probabilities {y}", logs + with_x, (1, 1, 1, 1), kind=kind)
    kind = "the two terms of the cross-entropy have different weights, a pos_weight"
    weighted = (_softplus, _minus_xy, lambda a: a["x"] * _softplus(a))
    yield Term("a weighted cross-entropy of logits {y}", weighted, (1, 1, 1), kind=kind)
    kind = "outputs of a tanh, in [-1, 1], are no logits: they keep probabilities between 0.27 and 0.73"
    tanh: tuple[_Column, ...] = (lambda a: softplus(a["y"].tanh()), lambda a: -a["x"] * a["y"].tanh())
    yield Term("Bernoulli(logits = tanh({y}))", tanh, (1, 1), kind=kind)
    kind = "x^2, -2 x y and y^2 have different weights, so that it is no squared error"
    squares: tuple[_Column, ...] = (lambda a: a["x"] ** 2, lambda a: -2 * a["x"] * a["y"], lambda a: a["y"] ** 2)
    yield Term("a quadratic function of {x} and {y}", squares, (1, 1, 1), kind=kind)


def rates() -> Iterator[Term]:
    """Yield KL(q, N(0, I)) of a Normal q in closed form, and log q(z) - log p(z) at a draw z."""
    yield from (term for reading in spreads() for term in _rates_of(*reading))


def _rates_of(reading: str, scale: _Function, log_scale: _Function) -> Iterator[Term]:
    name, weights = f"Normal(loc = {{m}}, {reading})", (0.5, 0.5, 0.5)
    option = "normal-log-variance" if "({s} / 2)" in reading else "normal"

    def logarithm(a: Arguments) -> Tensor:
        return -2 * log_scale(a["s"])

    closed = (lambda a: a["m"] ** 2, lambda a: scale(a["s"]) ** 2, logarithm)
    names = "{m}^2", "scale^2", "-2 log scale"
    yield Term(name, closed, weights, -0.5, kind="rate", option=option, needs="ms", column_names=names)
    drawn = (lambda a: a["z"] ** 2, lambda a: -(((a["z"] - a["m"]) / scale(a["s"])) ** 2), logarithm)
    names = "{z}^2", "-({z} - {m})^2 / scale^2", "-2 log scale"
    yield Term(name, drawn, weights, kind="rate", option=option, needs="msz", column_names=names)


def _bernoulli(e: float = 0.0) -> Term:
    name = f"Bernoulli(probs = {{y}}{f', {e:g} added in the logarithms' if e else ''})"
    columns = lambda a: -a["x"] * (a["y"] + e).log(), lambda a: -(1 - a["x"]) * (1 - a["y"] + e).log()
    return Term(name, columns, (1, 1), option="bernoulli", column_names=("-x log y", "-(1 - x) log(1 - y)"))


def _poisson(e: float) -> Term:
    name = f"Poisson(rate = {{y}}{f', {e:g} added in the logarithm' if e else ''})"
    return Term(name, (lambda a: a["y"], lambda a: -a["x"] * (a["y"] + e).log()), (1, 1), missing="log(x!)")


def _softplus(a: Arguments) -> Tensor:
    return softplus(a["y"])


def _minus_xy(a: Arguments) -> Tensor:
    return -a["x"] * a["y"]


def _square(a: Arguments) -> Tensor:
    return (a["x"] - a["y"]) ** 2


def _absolute(a: Arguments) -> Tensor:
    return (a["x"] - a["y"]).abs()


def _log_c(logits: Tensor) -> Tensor:
    """Return log C, the logarithm of the normalising constant of a continuous Bernoulli."""
    at_zero = ContinuousBernoulli(logits=logits, validate_args=False).log_prob(torch.zeros_like(logits))
    return at_zero + softplus(logits)


def _log_bin(x: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
    """Return the logarithm of the probability of a bin of width 1 / 255 around x under a Logistic."""
    lower, upper = (x - 1 / 510 - loc) / scale, (x + 1 / 510 - loc) / scale
    return torch.log(-torch.expm1(lower - upper)) - softplus(-upper) - softplus(lower)


def _log_error(errors: Tensor) -> Tensor:
    """Return N log(mean error) of N squared errors."""
    return errors.numel() * errors.mean().log()


def _axis(a: Arguments) -> int:
    """Return the axis of the classes in y."""
    return 1 if a["y"].shape[-1] == a["x"].shape[-1] else -1


def _of_class(values: Tensor, a: Arguments) -> Tensor:
    """Return the values of the classes x."""
    return values.gather(_axis(a), a["x"].unsqueeze(_axis(a)))
