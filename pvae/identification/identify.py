"""`identify`, which names a loss that somebody wrote for a VAE, and proves the name at random points.

The loss is a black box of tensors. Its gradients in the reconstruction, and those in the latents, are compared with
weighted sums of the gradients of the terms in `loss_terms`, so that neither part disturbs the other and a function of x
alone disturbs none. The weights at several sizes of batch, image and latent show how the loss is reduced. Values and
gradients at 200 further points are the proof.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import math
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import partial
from textwrap import fill
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pyro.distributions import validation_enabled
from torch import Tensor, nn

from pvae.config.config import Config
from pvae.core.errors import InputError, listed
from pvae.identification.black_box import BlackBox, LossError, Size, ways_of_calling
from pvae.identification.loss_terms import Arguments, Term, likelihoods, likelihoods_of_classes, rates
from pvae.identification.roles import OF_X, OF_Z, ROLES, guesses

_POINTS = 4  # of each of two kinds, at which the gradients of a term are fitted
_PROOF = 200  # further points, at which the answer is checked
_DOUBLE, _SINGLE = 1e-9, 1e-4  # relative tolerances of what is computed in float64 and in float32
_KNOWN = "(Bernoulli, Normal, Laplace, Poisson, categorical, ...); are x and reconstruction given in this order?"
_KNOWN_RATES = "(of Normal q and prior, or of classes or bits to a uniform prior)"
_DIRICHLET = "(1 - 1 / L)"  # the variance of the Normal that is nearest to a Dirichlet of L topics, a factor of weights
# The largest standard deviation of MNIST in [0, 1] along any direction. With `forecast` of measures/latents.py,
# `print(forecast(Pixels(pvae.read("mnist").train), 1.0, 20).largest_std)` prints 2.262.
_MNIST_STD = 2.26
_MNIST = {"C": 1, "H": 28, "W": 28, "D": 784, "L": 20}
_MOST_WAYS = 32  # ways of calling the loss that are tried until one of them gives an ELBO


@dataclass(frozen=True)
class Power:
    """A weight as a number times powers of the sizes: B of the batch, L latents, D values, or C, H and W of an image.

    >>> print(Power(500.0, {"C": -1, "H": -1, "W": -1}), Power(1.0, {"H": 1, "W": 1}))
    500 / D P
    """

    number: float
    powers: Mapping[str, float] = field(default_factory=dict)

    def __truediv__(self, other: Power) -> Power:
        """Return the quotient."""
        powers = {name: self.powers.get(name, 0) - other.powers.get(name, 0) for name in {*self.powers, *other.powers}}
        return Power(self.number / other.number, powers)

    def without(self, name: str) -> Power:
        """Return the weight without the power of one size."""
        return Power(self.number, {one: power for one, power in self.powers.items() if one != name})

    def at(self, sizes: Mapping[str, float]) -> float:
        """Return the weight as a number.

        Raises:
            KeyError: a size is missing.
        """
        sizes = {**sizes, _DIRICHLET: 1 - 1 / sizes["L"]} if "L" in sizes else sizes
        powers = self.powers if {*self.powers} <= {*sizes} else self.merged()
        return self.number * math.prod(float(sizes[name]) ** power for name, power in powers.items() if power)

    def merged(self) -> dict[str, float]:
        """Return the powers, with P = H W or D = C H W in place of sizes that have the same."""
        powers = {name: power for name, power in sorted(self.powers.items()) if power}
        for whole, parts in ("D", "CHW"), ("P", "HW"):
            if len({powers.get(part) for part in parts}) == 1 and parts[0] in powers:
                powers = {whole: powers[parts[0]], **{one: p for one, p in powers.items() if one not in parts}}
        return powers

    def __str__(self) -> str:
        """Return it as a fraction such as "500 / D"."""
        fraction, decimal = Fraction(self.number).limit_denominator(1000), f"{self.number:.6g}"
        is_fraction = _nearest(self.number) == float(fraction) != float(decimal)
        above, _, below = (str(fraction) if is_fraction else decimal).partition("/")
        for name, power in self.merged().items():
            shown = f" {name}" * int(abs(power))
            shown += f" sqrt({name})" if power % 1 else ""
            above, below = (above + shown, below) if power > 0 else (above, below + shown)
        above, below = above.removeprefix("1 "), below.strip()
        return above + (f" / {f'({below})' if ' ' in below else below}" if below else "")


def _nearest(value: float) -> float:
    """Return the short number or fraction that is as near as a fit is exact, or the value itself."""
    for digits, denominator, relative in (3, 100, 1e-7), (6, 1000, 1e-9):
        for one in (float(f"{value:.{digits}g}"), float(Fraction(value).limit_denominator(denominator))):
            if math.isclose(one, value, rel_tol=relative):
                return one
    return value


class LossReading(NamedTuple):
    """One way to read a loss: a factor times the negative beta-ELBO of a likelihood.

    Args:
        factor: of the sum over the images, or of their mean.
        likelihood: with the names of the loss's arguments.
        beta: weight of the rate.
        variance: of a Normal likelihood with a fixed scale, else None.
        option: the choice of --likelihood that trains it; empty if there is none.
    """

    factor: Power
    likelihood: str
    beta: Power
    variance: Power | None = None
    option: str = ""


@dataclass(frozen=True)
class Identified:
    """What a loss is; `print` shows it.

    It is an ELBO, or none, or neither is shown: then it is open, and the lines say which part is not known.

    Args:
        is_elbo: it is an ELBO, or a beta-ELBO whose beta is the same for every batch size, times a positive factor.
        text: the lines that are printed.
        readings: if it is one, the ways to read it.
        reason: if it is not shown to be one, why.
        residual: the largest difference of a value or a gradient from the loss, relative to the largest of its kind.
        posterior: the choice of --posterior that trains it.
        is_closed_form: its KL divergence is in closed form, as that of --elbo analytic.
        is_open: it may be an ELBO of a part that is not known.
        prior: the prior p(z).
    """

    is_elbo: bool
    text: str
    readings: tuple[LossReading, ...] = ()
    reason: str = ""
    residual: float = math.nan
    posterior: str = "normal"
    is_closed_form: bool = False
    is_open: bool = False
    prior: str = "N(0, I)"

    def __str__(self) -> str:
        """Return the lines, each at most 100 characters wide."""
        return "\n".join(fill(line, 100, subsequent_indent=" " * 14) for line in self.text.split("\n"))

    def config(self, reading: int = 0, **sizes: int) -> Config:
        """Return the options that train the same objective, up to the factor.

        Args:
            reading: index of one of `readings`.
            sizes: D, C, H, W and L, those on which scale or beta depend; L becomes the `latent_dim`.

        Raises:
            InputError: the loss is not an ELBO, pvae has no such likelihood or prior, or a size is missing.
        """
        if not self.is_elbo:
            raise InputError(f"no configuration trains a loss that is not shown to be an ELBO: {self.reason}")
        if self.prior != "N(0, I)":
            raise InputError(f"a configuration trains this loss only with the prior N(0, I), not with {self.prior}")
        if reading not in range(len(self.readings)):
            raise InputError(f"there is no reading {reading}: give one below {len(self.readings)}")
        one = self.readings[reading]
        if not one.option:
            raise InputError(f"pvae has no --likelihood that is {one.likelihood}")
        options: dict[str, Any] = {"likelihood": one.option, "posterior": self.posterior}
        options |= {"elbo": "analytic"} if self.is_closed_form else {}
        options |= {"latent_dim": sizes["L"]} if "L" in sizes else {}
        try:
            options["beta"] = one.beta.at(sizes)
            if one.variance is not None:
                options["scale"] = math.sqrt(one.variance.at(sizes))
        except KeyError as error:
            raise InputError(f"scale or beta depend on the size {error.args[0]}: give {error.args[0]}=...") from None
        return Config(**options)


def identify(
    loss: Callable[..., Any],
    arguments: str | Sequence[str] | Mapping[str, str] | None = None,
    *,
    shape: tuple[int, ...] | None = None,
    **constants: Any,
) -> Identified:
    """Name a loss of a VAE: likelihood, posterior, beta and reductions, or say why it is not shown to be an ELBO.

        loss = factor ( distortion + beta rate ) + constant,    ELBO = -(distortion + rate)

    It is called with random tensors in float64. A weight is found as a number times powers of the sizes: B of the
    batch, L latents and D values of an image, or, for images (C, H, W), C, H and W, or P = H W.

    Args:
        loss: a function of x, its reconstruction, the encoder's two outputs and perhaps a draw z or the likelihood's
            spread, or loc and spread of a learned prior; or of x, its reconstruction, and probabilities or logits of
            classes or bits, a KL divergence, or the codes of a VQ-VAE. It returns a scalar, a value for each image, or
            a tuple or a dictionary with the total among them. Or a module whose forward is the loss.
        arguments: the roles of its arguments, in order, or by name, such as "x", "reconstruction", "loc", "spread";
            all are in `pvae.identification.roles.ROLES`; by default found by their names and by trying.
        shape: of one image, (C, H, W) or (D,); by default found by trying.
        constants: further arguments of the loss, by name, such as a weight of the rate.

    Returns:
        What it is, and the largest relative difference at 200 random points.

    Raises:
        InputError: it raises an exception for every shape that was tried, takes other arguments, or changes them.
    """
    if isinstance(loss, nn.Module):
        loss = loss.forward  # whose signature says what it takes
    is_shape = isinstance(shape, tuple) and shape and all(isinstance(side, int) and side > 0 for side in shape)
    if shape is not None and not is_shape:
        raise InputError(f"shape must be the shape of an image as a tuple, (C, H, W) or (D,), not {shape!r}")
    with (
        contextlib.ExitStack() as stack, contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings(),
        torch.random.fork_rng(devices=[]), validation_enabled(False),  # x may be no value of a distribution
    ):  # fmt: skip
        stack.callback(torch.set_default_dtype, torch.get_default_dtype())
        torch.set_default_dtype(torch.float64)  # of what the loss makes, as torch.tensor(0.1)
        warnings.simplefilter("ignore")  # of shapes that are only tried
        torch.manual_seed(0)
        found: list[tuple[bool, int, bool, bool, Identified]] = []
        for box in itertools.islice(ways_of_calling(loss, arguments, shape, constants), _MOST_WAYS):
            one = _Identification(box)
            result = one.result()
            if result.is_elbo and "Multinomial" not in result.text:  # which a cross-entropy of classes is too
                return result
            is_third = result.is_open and len(box.names) == 3
            found.append((result.is_elbo, one.num_named, is_third, box.has_classes, result))
        return max(found, key=lambda one: one[:-1])[-1]


class _Fit(NamedTuple):
    """A term with the weights of its columns.

    Args:
        term: what was compared with the loss.
        weights: of its columns.
        residual: the largest difference of a gradient, relative to the largest of its argument and point.
        weight: of the term as a whole; NaN if its columns have several.
        variance: of the prior of a rate.
    """

    term: Term
    weights: NDArray[np.float64]
    residual: float
    weight: float = math.nan
    variance: float = 1.0


_Gradients = dict[str, Tensor]
_Point = tuple[Arguments, Tensor, _Gradients]


def _fitted(term: Term, points: Sequence[_Point]) -> _Fit:
    """Return the weights with which the gradients of a term's columns are nearest to those of the loss."""
    rows = list[Tensor]()
    for a, _, goal in points:
        values, gradients = _gradients(term.values, a, goal)
        every = [torch.cat([one[role].flatten() for role in goal]) for one in (*gradients, goal)]
        if all(one.isfinite().all() for one in (*every, *values)):
            size = torch.cat([one.flatten() * 0 + (one.abs().max() or 1) for one in goal.values()])
            rows.append(torch.stack(every, 1) / size[:, None])
        elif not rows:
            return _Fit(term, np.zeros(len(values)), math.inf)
    table = torch.cat(rows).numpy()
    scales = np.abs(table).max(0) + 1e-300
    weights = np.linalg.lstsq(table[:, :-1] / scales[:-1], table[:, -1], rcond=None)[0] / scales[:-1]
    fit = _Fit(term, weights, float(np.abs(table[:, :-1] @ weights - table[:, -1]).max()))
    others, tolerance = weights[term.num_of_prior :], max(1e-5, 10 * fit.residual)
    of_prior = weights[: term.num_of_prior or None]
    if any(np.ptp(group) > tolerance * np.abs(group).max() for group in (of_prior, others)) or not of_prior.all():
        return fit
    variance = float(others.mean() / of_prior.mean())
    variance = 1.0 if math.isclose(variance, 1.0, rel_tol=tolerance) else variance
    return fit._replace(weight=float(others.mean()), variance=variance) if 1e-6 < variance < 1e6 else fit


class _Claim(NamedTuple):
    """What a loss is said to be: weights times a likelihood and a rate, whose prior has a variance by the sizes."""

    likelihood: Term
    rate: Term
    of_x: Power
    of_z: Power
    variance: Power

    def at(self, a: Arguments, size: Size) -> list[Tensor]:
        """Return the value that it claims, in a list, up to what the likelihood has beside its columns."""
        symbols = size.symbols()
        x_part, z_part = self.likelihood.exactly(a), self.rate.exactly(a, self.variance.at(symbols))
        return [self.of_x.at(symbols) * x_part + self.of_z.at(symbols) * z_part]


class _Identification:
    """The steps from a black box to its name."""

    def __init__(self, box: BlackBox) -> None:
        self.box = box
        self.base = box.point(box.size)
        self.exact = _DOUBLE  # until a part is found in float32 only
        self.num_named = 0  # of likelihood and rate

    def result(self) -> Identified:
        """Return what the loss is."""
        box, fits, reasons, lines = self.box, dict[str, _Fit](), list[tuple[str, bool]](), list[str]()
        if objection := next(self._objections(), None):
            return self._refused(*objection)
        more = [
            term for role, name in box.names.items() for term in ROLES[role].terms
            if role != "g" or not term.note or re.search("log(?!it)", name.lower())  # linear, as an L1 penalty is
        ]  # fmt: skip
        of_x = likelihoods_of_classes() if box.has_classes else likelihoods(*self._bends(), more)
        of_z = itertools.chain(more, rates("b" in box.names))
        for what, roles, terms in ("likelihood", OF_X, of_x), ("rate", OF_Z, of_z):
            if {*roles} & {*box.names}:
                fit = self._named(terms, roles, box.size)
                if wrong := self._wrong(fit, what):
                    reasons.append(wrong)
                if fit:
                    fits[what] = fit
                    lines.append(f"  {what.replace('rate', 'posterior'):10}  {self._text(fit.term.name)}")
        if len(fits) == 2 and all(fit.weight < 0 for fit in fits.values()):
            box.sign = -1
            result = self.result()
            itself = "it is the ELBO itself, and its negative is the loss to minimise"
            reason = itself if result.is_elbo else "both parts have the wrong sign"
            return self._refused(reason, False, f"minus the loss is {result.text}".split("\n"))
        self.num_named = sum(2 if fit.term.kind == "part" else 1 for fit in fits.values())
        is_whole = all({*roles} & {*box.names} for roles in (OF_X, OF_Z))
        if not is_whole and (len(box.names) < 3 or not reasons):
            alone = "the distortion alone, without a rate, of an autoencoder" if "y" in box.names else "the rate alone"
            reasons = [(alone, False)]
        if not reasons:
            result = self._elbo(fits["likelihood"], fits["rate"], lines)
            if "o" in box.names and result.is_elbo:
                reason = f"what {box.names['o']} does to it is not known; where it is 1 everywhere, the loss is"
                return self._refused(reason, True, result.text.split("\n"))
            return result
        witnessed = [reason for reason, is_open in reasons if not is_open]
        for what, fit in fits.items():
            by_size, columns = self._at_sizes(fit), dict(enumerate(fit.term.parts))
            if not (columns or witnessed or math.isnan(fit.weight)):
                columns = {-1: f"the {what}"}
            for place, part in columns.items():
                weight = _power({size: float(one.weights[place]) for size, one in by_size.items()})
                lines += [f"  weight      of {self._text(part)}: {weight}"] if weight else []
        reason = witnessed[0] if witnessed else "; ".join(reason for reason, _ in reasons)
        return self._refused(reason, not witnessed, lines)

    def _objections(self) -> Iterator[tuple[str, bool]]:
        """Yield why the loss is no differentiable function of x and reconstruction, plus one of the latents.

        With each reason goes whether the answer is open, that is whether the loss may be an ELBO called otherwise.
        """
        box, value = self.box, self.box(self.base)
        if not torch.isfinite(value):
            yield f"it is {value.item()} at an ordinary point", True
        elif box(self.base) != value:
            advice = "if it draws z, give z to it as an argument"
            yield f"it is not deterministic: two calls with the same arguments differ ({advice})", True
        elif ignored := [name for name in box.names.values() if name not in box.depends(box.total)]:
            if any({*ignored} & {*box.depends(key)} for key in box.parts(self.base)):
                yield "it returns several values, and none depends on all arguments: return their sum too", True
            advice = f"if it is not needed, give it a value: {ignored[0]}=None (--constant {ignored[0]}=None)"
            is_open = not {*ignored} & {box.names.get(role) for role in "xyms"}
            yield f"it does not depend on {listed(ignored)} ({advice})", is_open
        new = box.point(box.size)
        x, z = ({**self.base, **{role: new[role] for role in new if role in of}} for of in ("x" + OF_X, OF_Z))
        one, other, *rest = (box(a).item() for a in (self.base, new, x, z))
        tolerance = 10 * (_SINGLE if box.is_single else _DOUBLE)
        if abs(one + other - sum(rest)) > tolerance * max(map(abs, (one, other, *rest))):
            is_open = len(box.names) == 3
            yield "it is no sum of a function of x and its reconstruction and one of the latents", is_open
        _, gradients = self._at(self.base, [role for role in box.names if role not in "xoqe"])
        if not all(one.any() for one in gradients.values()):
            yield "it is not differentiable: what it returns has no gradient of an argument", self._slope_far() != 0

    def _at(self, a: Arguments, roles: Iterable[str]) -> tuple[Tensor, _Gradients]:
        """Return value and gradients of the loss."""
        values, gradients = _gradients(lambda a: [self.box(a)], a, roles)
        return values[0], gradients[0]

    def _has_value(self, fit: _Fit) -> bool:
        """Return whether the value of the loss changes as the columns do; only detached tensors have both gradients."""
        other = {**self.base, **{role: 2 * self.base[role] for role in fit.term.needs}}
        ours, theirs = (np.array([one.item() for one in fit.term.values(a)]) for a in (other, self.base))
        change = (self.box(other) - self.box(self.base)).item()
        return math.isclose(fit.weights @ (ours - theirs), change, rel_tol=_SINGLE)

    def _slope_far(self) -> float:
        """Return the slope of the loss along the loc of q where it is large, and with it the rate; 0 without a loc."""
        if "m" not in self.base:
            return 0.0
        far = {**self.base, "m": 100 * self.base["m"]}
        return (far["m"] * self._at(far, "m")[1]["m"]).sum().item()

    def _points(
        self, roles: str, size: Size, number: int, term: Term | None = None, **given: Tensor
    ) -> Iterator[_Point]:
        """Yield points with the value and the gradients of the loss: ordinary ones, and as many wide ones.

        Wide ones have spreads below 0 and, if roles have y, reconstructions outside (0, 1); where the loss or a
        likelihood is not finite there, they are ordinary.
        """
        box, moving = self.box, [role for role in self.box.names if role in roles and role != "x"]
        for is_wide in [False] * number + [True] * number:
            for wide in (roles, "")[not is_wide or (term is not None and "Logistic" in term.name) :]:
                with contextlib.suppress(*[LossError] * bool(wide)):
                    a = box.point(size, wide) | given
                    value, gradients = self._at(a, moving)
                    every = [value, *gradients.values(), *(term.values(a) if term else ())]
                    if all(one.isfinite().all() for one in every):
                        yield a, value, gradients
                        break

    def _named(self, terms: Iterable[Term], roles: str, size: Size, number: int = _POINTS) -> _Fit | None:
        """Return the fit of the first term whose gradients are those of the loss; with one weight, if there is any."""
        box, wrong, in_single = self.box, None, None
        points = list(self._points(roles, size, number))
        for term in terms if points else ():
            if {*term.needs} - {"x"} != {*points[0][2]}:
                continue
            fit = _fitted(term, points[:1])
            if fit.residual < _SINGLE:
                fit = _fitted(term, points[: number if "Logistic" in term.name else 2 * number])
            is_it = not math.isnan(fit.weight) or term.kind != "part"
            if fit.residual < _DOUBLE and is_it:
                return fit
            wrong = wrong or (fit if fit.residual < self.exact else None)
            in_single = in_single or (fit if box.is_single and fit.residual < _SINGLE and is_it else None)
        if in_single:
            self.exact = _SINGLE
        return in_single or wrong or self._weighted(points)

    def _weighted(self, points: Sequence[_Point]) -> _Fit | None:
        """Return the first likelihood of which the loss has each value with a weight of its own."""
        is_of_values = points and {*points[0][2]} == {"y"} and not self.box.has_classes
        for term in likelihoods() if is_of_values else ():
            if term.needs == "xy" and term.kind == "part":
                ratios = torch.cat([goal["y"] / _gradients(term.values, a, "y")[1][0]["y"] for a, _, goal in points])
                weights = ratios.mean(0)
                weight = float(weights.mean())
                if (ratios - weights).abs().max() < 1e-7 * weights.abs().max():
                    if term.log_z and (weights / weight > 0).all():
                        return _Fit(term.weighted(weights / weight, term.log_z), np.array([weight]), 0.0, weight)
                    note = "its values have different weights, and a power other than 1 of their density is none"
                    if left_out := int((weights == 0).sum()):  # by a mask
                        note = f"the loss leaves out, by the weight 0, {left_out} of the values of each {{x}}"
                    kind = "open" if left_out else "none"
                    return _Fit(replace(term, kind=kind, note=note), np.array([weight]), 0.0)
        return None

    def _wrong(self, fit: _Fit | None, what: str) -> tuple[str, bool] | None:
        """Return why a fit is no likelihood or no rate, None if it is one, and whether the answer is open."""
        if fit is None:
            roles, known = {"likelihood": (f"x{OF_X}", _KNOWN), "rate": (OF_Z, _KNOWN_RATES)}[what]
            names = " and ".join(name for role, name in self.box.names.items() if role in roles and role not in "zab")
            return f"its function of {names} is not a {what} that I know {known}", True
        if fit.term.parts and not self._has_value(fit):
            return self._text(f"its gradients are those of {fit.term.name}, but not its value"), True
        if what == "rate" and fit.term.kind == "open" and fit.weight < 0:
            note = "{k} is handed in with a negative weight: if it is KL(q, p), the loss is no ELBO"
            return self._text(note), "k" not in guesses(self.box.names["k"])
        if fit.term.kind != "part":
            return self._text(fit.term.note), fit.term.kind == "open"
        if not math.isnan(fit.weight):
            if fit.weight >= 0:
                return None
            if what == "rate" and self._slope_far() > 0:
                return "its rate has the wrong sign where it is small: a capacity?", True
            return f"the {what} has the wrong sign", False
        first = ("{z}^2", "-({z} - {m})^2 / scale^2") if "z" in fit.term.needs else ("{m}^2", "scale^2")
        weights = dict(zip(map(self._text, (*first, "-2 log scale")), fit.weights.tolist()))
        least = min(abs(one) for one in weights.values() if abs(one) > 1e-7 * max(map(abs, weights.values())))
        if missing := [name for name, one in weights.items() if abs(one) < 1e-7 * least]:
            return f"of the rate, the term {listed(missing)} is missing", False
        shown = ", ".join(f"{Power(one / least)} of {name}" for name, one in weights.items())
        is_mixed = min(weights.values()) < 0 < max(weights.values())
        hint = "a sign is wrong" if is_mixed else "perhaps without the factor 1/2 of one"
        return f"the terms of the rate have weights in the ratio {shown}, which no prior gives: {hint}", False

    def _bends(self) -> tuple[float, float]:
        """Return where a loss turns from a squared to an absolute error, and to a logarithm; 0 where it does not.

        The first is the slope far out by the curvature at 0. The second is a of a loss of log(1 + r^2 / a), of which
        slope times error is a constant far out.
        """
        zero = torch.zeros_like(self.base["x"])

        def slope(error: float) -> float:
            return self._at({**self.base, "x": zero, "y": zero + error}, "y")[1]["y"].sum().item()

        for power in (25, 10, 4, 1):  # some losses overflow far out
            with contextlib.suppress(LossError):  # it may take probabilities only
                near, far, farther = slope(2.0**-30) * 2.0**30, slope(2.0**power), slope(2.0 ** (power + 1))
                if near and math.isclose(far, farther, rel_tol=1e-6) and 1e-5 < far / near < 1e2:
                    return _nearest(far / near), 0.0
                if near and 0 < far / near < math.inf and math.isclose(far, 2 * farther, rel_tol=1e-12):
                    return 0.0, _nearest(2.0**power * far / near)
        return 0.0, 0.0

    def _at_sizes(self, fit: _Fit) -> dict[Size, _Fit]:
        """Return the fit of a term at the first size, and at each other size that the loss takes."""
        fits = {self.box.size: fit}
        for _, size in self.box.size.others():
            with contextlib.suppress(LossError):  # it may take no other size
                if fit.term.of_image in ((), size.image) and (one := self._named([fit.term], fit.term.needs, size, 2)):
                    fits[size] = one
        return fits

    def _elbo(self, likelihood: _Fit, rate: _Fit, found: Sequence[str]) -> Identified:
        """Return the reductions and the proof of a sum of a likelihood and a rate."""
        box = self.box
        by_x, by_z = self._at_sizes(likelihood), self._at_sizes(rate)
        sizes = [size for size in by_x if size in by_z]
        of_x, of_z = (_power({size: fits[size].weight for size in sizes}) for fits in (by_x, by_z))
        variance = _power({size: by_z[size].variance for size in sizes})
        if not variance and (
            of_topics := _power({size: by_z[size].variance / (1 - 1 / size.latent[0]) for size in sizes})
        ):
            variance = Power(of_topics.number, {**of_topics.powers, _DIRICHLET: 1})
        if of_x is None or of_z is None or variance is None:
            reason = "its weights are no powers of the sizes of batch, image and latent"
            return self._refused(reason, True, found)
        claim, beta = _Claim(likelihood.term, rate.term, of_x, of_z, variance), of_z / of_x
        if any(power % 1 for power in of_x.powers.values()) and "of the norm of each" in claim.likelihood.name:
            root = f"a root of a mean square, {of_x} times the norm of each {{x}} - {{y}}, is no sum over the values"
            reason = f"{root}: -log p of no independent values (of a whole {{x}}, exp(-norm / v) / Z is a density)"
            return self._refused(self._text(reason), False, found)
        reason, constant = self._constant(claim, sizes)
        is_open = bool(reason and constant)
        if beta.powers.get("B"):
            reason += "; " if reason else ""
            reason += f"beta = {beta} depends on the batch size B: one part is a sum over the batch, the other a mean"
        if note := rate.term.note:
            return self._refused(f"up to a constant, {note}" if reason else note, bool(reason), found)
        if reason:
            return self._refused(reason, is_open, [*found, *constant] if is_open else found)
        prior = self._text(rate.term.prior) if str(variance) == "1" else f"N(0, c^2 I) with c^2 = {variance}"
        first, *rest = self._readings(claim, beta)
        images: dict[float, str] = {0: "a sum over its images", -1: "a mean over its images"}
        reduction = images.get(of_x.powers.get("B", 0), f"B^{of_x.powers.get('B')} times a sum")
        head = f"{_times(first.factor)}the negative {'ELBO' if str(first.beta) == '1' else 'beta-ELBO'} of the batch, "
        pseudo = ", a pseudo-likelihood if x is grey" if first.likelihood.startswith("Bernoulli") else ""
        more = [
            f"  or          {_times(r.factor)}the negative beta-ELBO of {r.likelihood}, beta = {r.beta}" for r in rest
        ]
        lines = [
            head + ("one value for each image" if box.is_vector else reduction),
            f"  likelihood  {first.likelihood}{pseudo}",
            f"{found[1]}, prior {prior}, KL {'by one draw z' if 'z' in box.names else 'in closed form'}",
            f"  beta        {first.beta}",
            *(*more, *constant, *self._notes(claim, first.beta, sizes)),
        ]
        residual = self._proof(claim, sizes)
        if residual > (10 * _SINGLE if self.exact == _SINGLE else 3e-7):  # a weight is rounded to 1e-7
            reason = f"at ordinary points it is as below, at others its values or gradients differ by {residual:.0e}"
            return self._refused(reason, True, lines[1:])
        every = [*box.size.symbols()]
        sides = ", ".join(every[: 1 + len(box.size.image)])
        named = [name for role, name in box.names.items() if ROLES[role].terms and role in OF_Z]
        shown = f", {listed(named)} (B, {', '.join(box.size.sides)})" if named else ""
        where = f"{_PROOF} random points, x ({sides}){shown}, in {'float64' if self.exact == _DOUBLE else 'float32'}"
        lines.append(f"checked at {where}: value and gradients agree to {residual:.0e}")
        text, option, is_closed = "\n".join(lines), rate.term.option, "z" not in box.names
        return Identified(True, text, (first, *rest), "", residual, option, is_closed, prior=prior)

    def _readings(self, claim: _Claim, beta: Power) -> list[LossReading]:
        """Return the readings; two for a likelihood with a fixed scale, which may be 1 or such that beta is 1."""
        term, one = claim.likelihood, Power(1.0)
        rows: Sequence[tuple[Power, Power | None, Power]] = [(claim.of_x, None, beta)]
        if "{v}" in term.name:
            rows = [(claim.of_z, beta, one), (claim.of_x, one, beta)][: 1 + (str(beta) != "1")]
            if term.log_z and math.isnan(term.log_z(beta.at(self.box.size.symbols()))):  # no density
                rows = rows[1:]
        found = list[LossReading]()
        for of, v, weight in rows:
            name = term.name_of(v.number) if term.name_of and v and not v.merged() else term.name
            of_option = v if term.option else None
            found.append(LossReading(of.without("B"), self._text(name, str(v)), weight, of_option, term.option))
        return found

    def _constant(self, claim: _Claim, sizes: Sequence[Size]) -> tuple[str, list[str]]:
        """Return why the constant of the rate is not its own, or "", and a line on what -log p has beside its columns.

        What the loss has beside the claim, less what a density has, is split into a constant for each value of x and
        one for each latent, by points of several sizes.
        """
        box, term, density = self.box, claim.likelihood, "that of the density"
        near = 1e-5 if self.exact == _DOUBLE else 1e-3
        scale = (claim.of_z / claim.of_x).at(box.size.symbols()) if "{v}" in term.name else 1.0
        found = list[tuple[bool, float, float, str, str]]()
        for is_flat in (False, True):  # of equal values, if a function of x hides the constants
            twice = [size for size in sizes for _ in range(2)]
            points = [box.point(size) for size in twice]
            if is_flat or (term.of_x and box.limits[0] < 0):  # a function of counts is not known by x in [0, 1] alone
                points = [a | {"x": torch.full_like(a["x"], 0.5) if is_flat else (12 * a["x"]).floor()} for a in points]
            values = np.array([box(a).item() for a in points])
            left = values - [claim.at(a, size)[0].item() for a, size in zip(points, twice)]
            of_each = np.array([[weight.at(size.symbols()) for weight in (claim.of_x, claim.of_z)] for size in twice])
            table = of_each * [(scale * a["x"].numel(), claim.rate.elements(a)[0].numel()) for a in points]
            of_x_alone = 0 * left
            if term.of_x:
                of_x_alone += scale * of_each[:, 0] * [term.of_x(a["x"]).sum() for a in points]
            own = {"": 0 * left, density: of_x_alone}
            if term.log_z:
                own[density] = of_x_alone + table[:, 0] * term.log_z(scale)
                own[f"{density} with scale 1"] = of_x_alone + table[:, 0] / scale * term.log_z(1.0)
            lacking = {"": 0 * left}
            if log_k := claim.rate.log_k:
                lacking["log K"] = table[:, 1] * [log_k(*(a[role] for role in claim.rate.needs)) for a in points]
            is_split = np.linalg.matrix_rank(table) == 2
            rounding = (1e-12 if self.exact == _DOUBLE else 1e-5) * np.abs(values).max()
            for (text, part), (lacks, log_k_of) in itertools.product(own.items(), lacking.items()):
                one = np.nan_to_num(part - log_k_of)
                columns = table * [is_split or not lacks, is_split or lacks > ""]  # where they cannot be told apart
                of_x, of_z = np.linalg.lstsq(columns, left - one, rcond=None)[0]
                if np.abs(table @ [of_x, of_z] - left + one).max() < near * max(1e-3, 1e-2 * np.abs(values).max()):
                    is_other = np.abs([of_x, of_z]) > near + rounding / np.abs(table).min(0)
                    found.append((is_other.any() or lacks > "", of_x * is_other[0], of_z * is_other[1], text, lacks))
            if found:
                break
        else:
            return "", ["  constant    one that depends on the sizes in no simple way"]
        is_any, of_x, of_z, text, lacks = min(found, key=lambda one: (one[0], one[-1] > "" and abs(one[2])))
        classes = round(math.exp(min(of_z, 9)))
        if lacks and classes > 1 and abs(of_z - math.log(classes)) < near / classes:
            line = f"  constant    log {classes} in place of log K: it is an ELBO of {classes} classes only"
            of_bits = f"an ELBO of two classes; of bits, the part of 1 - {{{claim.rate.needs}}} is missing"
            return self._text(of_bits) if classes == 2 else "", [line]
        if lacks:
            return "the constant log K of the rate is missing: its gradient is that of an ELBO, its value is not", []
        if of_z or (is_any and not is_split and not is_flat and str(claim.variance) != "1"):
            which = "is missing (- 1 in the sum)" if abs(of_z - 0.5) < near else f"is wrong by {of_z:.6g}"
            is_mixed = str(claim.variance) in ("2", "0.5") and "z" not in box.names
            hint = "; or {s} is a log variance in one term, and a log scale in another (a square is missing)"
            hint = hint if is_mixed else ""
            prior = "" if str(claim.variance) == "1" else f" to a prior N(0, c^2 I), c^2 = {claim.variance},"
            reason = f"the constant of the rate{prior} {which}: its gradient is that of an ELBO, its value is not{hint}"
            return self._text(reason), []
        if is_flat:
            return "", [self._text(f"  constant    a function of {{x}} is added to {density}")]
        given = f"{of_x:.6g} for each value of x" if of_x else ""
        left_out = f"{term.missing} is left out, for each {'x' if term.of_x else 'value of x'}" if term.missing else ""
        parts = [part for part in (given, text or left_out) if part]
        return "", [f"  constant    {'; '.join(parts)}"] if parts else []

    def _notes(self, claim: _Claim, beta: Power, sizes: Sequence[Size]) -> Iterator[str]:
        """Yield lines on mistakes, default values, beta, collapse and fixed sizes."""
        if claim.likelihood.note:
            yield f"  mistake     {self._text(claim.likelihood.note)}"
        yield from self._constants()
        if str(beta) == "2":
            yield "  note        beta is also 2 where a KL divergence is written without its factor 1/2"
        if beta.powers.get("D") and {*beta.merged()} <= {*"DL"}:
            yield f"  note        for D = 784 and L = 20, beta = {beta.at({'D': 784, 'L': 20}):.6g}"
        yield from self._collapse(claim)
        base, others = self.box.size.symbols(), self.box.size.others()
        if values := [f"{symbol} = {base[symbol]}" for symbol, size in others if symbol and size not in sizes]:
            yield f"  sizes       {', '.join(values)} only: the weights above are numbers for these"

    def _constants(self) -> Iterator[str]:
        """Yield lines on the values of further arguments, and on those that change nothing."""
        box = self.box
        values = {name: one for name, one in box.constants.items() if not isinstance(one, bool)}
        if values:
            yield f"  with        {', '.join(f'{name} = {value}' for name, value in values.items())}"
        for name in [name for name, value in values.items() if isinstance(value, (int, float))]:
            if all(self._is_same(name, other) for other in (0, 1, -1, 0.3, 1e6)):
                yield f"  note        {name} is not used: no other value that was tried changes the loss"

    def _is_same(self, name: str, value: float) -> bool:
        """Return whether another value of a further argument changes nothing."""
        try:
            return torch.equal(self.box(self.base, **{name: value}), self.box(self.base))
        except LossError:
            return False

    def _collapse(self, claim: _Claim) -> Iterator[str]:
        """Yield below which variation of x a linear VAE uses no latent, for a Normal of fixed scale.

            latent i is used  <=>  l_i > beta scale^2,    l_i an eigenvalue of the covariance of x

        Both readings have the same beta scale^2, and the variance of a prior N(0, c^2 I) does not change it.

        Reference:
            Lucas et al., arXiv:1911.02469, theorem 1; `pvae.evaluation.measures.latents` derives it for any beta.
        """
        is_normal = claim.likelihood.name.startswith("Normal") and claim.likelihood.name.endswith("scale^2 = {v})")
        if is_normal and claim.rate.num_of_prior:  # a Normal's, and N(0, c^2 I)
            square = claim.of_z / claim.of_x
            limit, sizes = math.sqrt(square.at(_MNIST)), square.merged()
            shown = f"sqrt({square})" if sizes else f"{limit:.3g}"
            side = f"{'below' if limit > _MNIST_STD else 'above'} {limit:.3g}{' for L = 20' * ('L' in sizes)}"
            yield (
                f"  collapse    a linear VAE uses latents only if x has a standard deviation above {shown} along a "
                f"direction; MNIST in [0, 1] has {_MNIST_STD} at most, {side}"
            )

    def _proof(self, claim: _Claim, sizes: Sequence[Size]) -> float:
        """Return the largest relative difference of gradients, or of values that have the same x."""
        box, residual = self.box, 0.0
        for number in range(_PROOF // 10):
            size = sizes[number % len(sizes)]
            new, beside = box.point(size), None
            x, s = new["x"], (0.1, 1.1, math.log(math.e - 1) + 0.1)[number % 3]
            if not box.has_classes and number % 2 and box.limits[0] < 0:
                x = (12 * x).floor() if claim.likelihood.of_x else (x > 0.5).double()
            near = {role: 0.1 * new[role] for role in new if ROLES[role].terms and role in OF_Z}
            if "m" in new:  # where a KL is almost 0
                near = {"m": torch.full_like(new["m"], 0.1), "s": torch.full_like(new["s"], s)}
            given = {"x": x, **near} if number % 4 == 0 else {"x": x}
            for a, theirs, wanted in self._points(OF_X + OF_Z, size, 5, claim.likelihood, **given):
                (ours,), (gradients,) = _gradients(partial(claim.at, size=size), a, wanted)
                beside = theirs - ours if beside is None else beside
                sides = [(theirs - beside, ours, theirs)]
                sides += [(wanted[role], one, one) for role, one in gradients.items()]
                for one, other, large in sides:
                    largest = torch.maximum(other.abs().max(), large.abs().max()) + 1e-300
                    residual = max(residual, float((one - other).abs().max() / largest))
        return residual

    def _text(self, name: str, v: str = "") -> str:
        name = name if v else re.sub(r"(scale(\^2)?|v) = {v}", "a fixed scale", name)
        return name.format(**{role: self.box.names.get(role, role) for role in ROLES}, v=v)

    def _refused(self, reason: str, is_open: bool = False, lines: Sequence[str] = ()) -> Identified:
        head = f"open, perhaps an ELBO: {reason}" if is_open else f"not an ELBO: {reason}"
        if is_open and "  with " not in "\n".join(lines):
            lines = [*lines, *self._constants()]
        return Identified(is_elbo=False, text="\n".join([head, *lines]), reason=reason, is_open=is_open)


def _gradients(
    function: Callable[[Arguments], list[Tensor]], a: Arguments, roles: Iterable[str]
) -> tuple[list[Tensor], list[_Gradients]]:
    """Return values, and the gradients of each in some arguments; 0 in those on which it does not depend."""
    moved = {role: a[role].clone().requires_grad_() for role in roles}
    zero = sum((0 * one.sum() for one in moved.values()), torch.zeros(()))
    values = [value + zero for value in function({**a, **moved})]
    found = [torch.autograd.grad(value, [*moved.values()], retain_graph=True) for value in values]
    return [value.detach() for value in values], [dict(zip(moved, gradients)) for gradients in found]


def _power(weights: Mapping[Size, float]) -> Power | None:
    """Return a weight as a number times powers of the sizes; None if no powers give it at all of these sizes."""
    (base, first), *others = ((size.symbols(), weight) for size, weight in weights.items())
    if math.isnan(first):
        return None
    if not any(weights.values()):
        return Power(0.0)
    powers: dict[str, float] = {}
    for symbols, weight in others:
        changed = [name for name in base if symbols[name] != base[name]]
        if len(changed) == 1 and first and weight / first > 0:
            ratio = math.log(weight / first) / math.log(symbols[changed[0]] / base[changed[0]])
            powers[changed[0]] = round(2 * ratio) / 2
    found = Power(_nearest(first / Power(1.0, powers).at(base)), powers)
    is_it = all(math.isclose(found.at(size.symbols()), one, rel_tol=1e-5) for size, one in weights.items())
    return found if is_it else None


def _times(factor: Power) -> str:
    return "" if str(factor) == "1" else f"{factor} times "
