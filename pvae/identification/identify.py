"""`identify`, which names a loss that somebody wrote for a VAE, and proves the name at random points.

The loss is a black box of tensors. Its gradients in the reconstruction, and those in the latents, are compared with
weighted sums of the gradients of the `terms`, so that neither part disturbs the other and a function of x alone
disturbs none. The weights at several sizes of batch, image and latent show how the loss is reduced. Values and
gradients at 200 further points, near 0 and far out, are the proof.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import math
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pyro.distributions import validation_enabled
from torch import Tensor, nn

from pvae.core.errors import InputError, listed
from pvae.identification.answer import Identified, LossReading, Power, nearest, power_of
from pvae.identification.black_box import Arguments, BlackBox, LossError, Size, ways_of_calling
from pvae.identification.roles import ROLES, SETS, guesses
from pvae.identification.terms import LOG_VARIANCE, OF_CLASSES, Function, Term, likelihoods, rates

_POINTS = 4  # of each of two kinds, at which the gradients of a term are fitted
_BLOCKS = 20  # of 10 further points of the same x, at which the answer is checked
_MOST_WAYS = 32  # ways of calling the loss that are tried until one of them gives an ELBO
_KNOWN = {
    "likelihood": "(Bernoulli, Normal, Laplace, Poisson, ...); are x and reconstruction given in this order?",
    "rate": "(of Normal q and prior, or of classes or bits to a uniform prior)",
}
_ALONE = {"likelihood": "the distortion alone, without a rate, of an autoencoder", "rate": "the rate alone"}
_EXPLANATIONS = ("", "x", "K", "z", "xz", "zK", "xK")  # of a constant: for each value of x, log K, for each latent
# The largest standard deviation of MNIST in [0, 1] along any direction. With `forecast` of measures/latents.py,
# `print(forecast(Pixels(pvae.read("mnist").train), 1.0, 20).largest_std)` prints 2.262.
_MNIST_STD = 2.26
_MNIST = {"C": 1, "H": 28, "W": 28, "D": 784, "L": 20}


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
        What it is, the largest relative difference at 200 random points, and the range of each argument at these.
        Nothing is said of values beyond that range.

    Raises:
        InputError: it raises an exception for every shape that was tried, takes other arguments, or changes them.
    """
    if isinstance(loss, nn.Module):
        loss = loss.forward  # whose signature says what it takes
    is_shape = (
        isinstance(shape, tuple) and 0 < len(shape) < 4 and all(isinstance(size, int) and size > 0 for size in shape)
    )
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
        results = []
        for box in itertools.islice(ways_of_calling(loss, arguments, shape, constants), _MOST_WAYS):
            study = _Study(box)
            result = study.result()
            if study.num_named == 3 and "Multinomial" not in result.text:  # which a cross-entropy of classes is too
                return result
            is_third = result.is_open and len(box.names) == 3
            results.append(((study.num_named, is_third, box.has_classes), result))
        return max(results, key=lambda result: result[0])[1]


class _Precision(NamedTuple):
    """Relative tolerances of what is computed in float64 or float32."""

    name: str
    fit: float
    constant: float
    proof: float


_DOUBLE = _Precision("float64", 1e-9, 1e-5, 3e-7)  # the last, since a weight is rounded to 1e-7
_SINGLE = _Precision("float32", 1e-4, 1e-3, 1e-3)


class _Fit(NamedTuple):
    """A term with the weights of its columns, and the largest difference of a gradient from that of the loss."""

    term: Term
    weights: list[float]
    residual: float

    def is_part(self) -> bool:
        """Return whether it is a likelihood or a rate: all columns that a prior's variance divides have one weight."""
        num = self.term.num_of_prior
        tied = [*num * self.weights[:1], *(len(self.weights) - num) * self.weights[-1:]]
        is_tied = np.allclose(self.weights, tied, max(1e-5, 10 * self.residual), 0)
        return is_tied and not self.term.fault and 1e-6 < self.weights[-1] / (self.weights[0] or math.inf) < 1e6


class _Part(NamedTuple):
    """A likelihood or a rate of a loss, or what is written in place of one, with the weight of each column."""

    term: Term
    weights: list[Power]

    def value(self, a: Arguments, size: Size) -> Tensor:
        """Return what it adds to the loss, with the constant of a rate to a prior of another variance."""
        columns = self.term.elements(a)
        weights = [weight.at(size) for weight in self.weights]
        constant = weights[-1] * 0.5 * math.log(weights[-1] / weights[0]) * columns[0].numel()
        return torch.stack([weight * column.sum() for weight, column in zip(weights, columns)]).sum() + constant


class _Claim(NamedTuple):
    """What a loss is said to be, up to a function of x: the sum of a likelihood and a rate."""

    likelihood: _Part
    rate: _Part

    def beta(self) -> Power:
        """Return the weight of the rate by that of the likelihood."""
        return self.rate.weights[-1] / self.likelihood.weights[-1]

    def value(self, a: Arguments, size: Size) -> Tensor:
        """Return the value of the sum."""
        return self.likelihood.value(a, size) + self.rate.value(a, size)


_Point = tuple[Arguments, list[Tensor]]  # with the gradients of the loss


def _gradients(function: Function, a: Arguments, roles: Sequence[str]) -> list[Tensor]:
    """Return the gradients of some values in each of some arguments, a row for each value."""
    moved = [a[role].clone().requires_grad_() for role in roles]
    zero = sum(0 * tensor.sum() for tensor in moved)  # for a value that does not depend on one of them
    values = function(a | dict(zip(roles, moved)))
    gradients = [torch.autograd.grad(value + zero, moved, retain_graph=True) for value in values]
    return [torch.stack([gradient.flatten() for gradient in of_role]) for of_role in zip(*gradients)]


def _are_finite(tensors: Iterable[Tensor]) -> bool:
    return all(tensor.isfinite().all() for tensor in tensors)


def _difference(pair: Tensor) -> Tensor:
    """Return the largest difference of two rows, relative to each value and 0.01 of the largest one."""
    sizes = pair.abs()
    return ((pair[0] - pair[1]).abs() / (sizes.amax(0) + 1e-2 * sizes.max() + 1e-300)).max()


def _least_squares(columns: NDArray[np.float64], goal: NDArray[np.float64]) -> tuple[list[float], float]:
    """Return the weights with which columns are nearest to a goal, and the largest difference."""
    scales = np.abs(columns).max(0) + 1e-300
    weights = np.linalg.lstsq(columns / scales, goal, rcond=None)[0] / scales
    return weights.tolist(), float(np.abs(columns @ weights - goal).max())


def _fitted(term: Term, points: Sequence[_Point], roles: Sequence[str]) -> _Fit:
    """Return the weights with which the gradients of a term's columns are nearest to those of the loss."""
    rows = list[Tensor]()
    for a, wanted in points:
        ours = _gradients(term.values, a, roles)
        if _are_finite([*ours, *term.values(a)]):
            both = [torch.cat(pair) / (pair[1].abs().max() or 1.0) for pair in zip(ours, wanted)]
            rows.append(torch.cat(both, 1).T)
    if not rows:
        return _Fit(term, [0.0], math.inf)
    table = torch.cat(rows).numpy()
    return _Fit(term, *_least_squares(table[:, :-1], table[:, -1]))


class _Study:
    """The steps from a black box to its name."""

    def __init__(self, box: BlackBox) -> None:
        self.box = box
        self.base = box.point(box.size)
        self.precision = _DOUBLE  # until a part is found in float32 only
        self.num_named = 0  # of likelihood, rate, and their sum
        self.roles = {part: [role for role in box.names if role != "x" and ROLES[role].part == part] for part in _KNOWN}

    def result(self) -> Identified:
        """Return what the loss is."""
        for reason, is_open in self._objections():
            return self._refused(reason, is_open)
        terms = self._terms()
        fits = {part: self._named(terms[part], part, self.box.size) for part in _KNOWN if self.roles[part]}
        faults = [fault for part, fit in fits.items() if (fault := self._fault(fit, part))]
        parts = {part: _Part(fit.term, self._powers(fit, part)) for part, fit in fits.items() if fit}
        self.num_named = len(parts)
        if len(fits) < 2 and (len(self.box.names) < 3 or not faults):
            return self._refused(_ALONE[min(fits, default="rate")])
        lines = [
            f"  {part.replace('rate', 'posterior'):10}  {self._text(fitted.term.name, fitted.term)}"
            for part, fitted in parts.items()
        ]
        if all(fit and fit.is_part() and fit.weights[-1] < 0 for fit in fits.values()):
            self.box.sign = -1
            head, *lines = self.result().text.split("\n")
            return self._refused(f"both parts have the wrong sign; minus the loss is {head}", False, lines)
        if not faults and not all(fitted.weights for fitted in parts.values()):
            faults = [("its weights are no powers of the sizes of batch, image and latent", True)]
        if not faults:
            return self._elbo(_Claim(**parts), lines)
        witnessed = [reason for reason, is_open in faults if not is_open]
        for part, fitted in parts.items():
            names: Sequence[str] = ()
            if fitted.term.fault:
                names = fitted.term.parts
            elif not witnessed:
                names = [f"the {part}"]
            for name, weight in zip(names, fitted.weights[-len(names) :]):
                lines.append(f"  weight      of {self._text(name)}: {weight}")
        return self._refused("; ".join(witnessed or [reason for reason, _ in faults]), not witnessed, lines)

    def _objections(self) -> Iterator[tuple[str, bool]]:
        """Yield why the loss is no function of all its arguments that has gradients.

        With each reason goes whether the answer is open, that is whether the loss may be an ELBO called otherwise.
        """
        box = self.box
        value = box(self.base)
        if not torch.isfinite(value):
            yield f"it is {value.item()} at an ordinary point", True
        if box(self.base) != value:
            advice = "if it draws z, give z to it as an argument"
            yield f"it is not deterministic: two calls with the same arguments differ ({advice})", True
        if ignored := [name for name in box.names.values() if name not in box.depends(box.total)]:
            if any({*ignored} & {*box.depends(key)} for key in box.parts(self.base)):
                yield "it returns several values, and none depends on all arguments: return their sum too", True
            advice = f"if it is not needed, give it a value: {ignored[0]}=None (--constant {ignored[0]}=None)"
            needed = {box.names.get(role) for role in SETS[0]}
            yield f"it does not depend on {listed(ignored)} ({advice})", not needed & {*ignored}
        moving = [role for role in box.names if role not in ("x", "mask", "codes", "encoded")]
        if not all(gradient.any() for gradient in _gradients(self._total, self.base, moving)):
            yield "it is not differentiable: what it returns has no gradient of an argument", self._grows_far()

    def _grows_far(self) -> bool:
        """Return whether the loss grows with the loc of q where it is large, and with it the rate."""
        if "loc" not in self.base:
            return False
        far = self.base | {"loc": 100 * self.base["loc"]}
        return (_gradients(self._total, far, ["loc"])[0] * far["loc"].flatten()).sum().item() > 0

    def _total(self, a: Arguments) -> list[Tensor]:
        return [self.box(a)]

    def _terms(self) -> dict[str, Iterable[Term]]:
        """Return what each part is compared with."""
        names = self.box.names
        more = [
            term for role, name in names.items() for term in ROLES[role].terms
            if "log_probs" not in role or not term.note or re.search("log(?!it)", name.lower())  # linear, as a penalty
        ]  # fmt: skip
        of_x: Iterable[Term] = OF_CLASSES
        if not self.box.has_classes:
            of_x = likelihoods(*self._bends(), [term for term in more if "x" in term.needs])
        return {"likelihood": of_x, "rate": itertools.chain(more, rates("z" in names, "prior_spread" in names))}

    def _bends(self) -> tuple[float, float]:
        """Return where a loss turns from a squared to an absolute error, and to a logarithm; 0 where it does not.

        The first is the slope far out by the curvature at 0. The second is a of a loss of log(1 + r^2 / a), of which
        slope times error is a constant far out.
        """
        for out in (2.0**25, 16.0, 2.0):  # some losses overflow far out
            with contextlib.suppress(LossError, KeyError):  # it may take probabilities only
                zero = 0 * self.base["x"]
                points = [self.base | {"x": zero, "reconstruction": zero + error} for error in (2.0**-30, out, 2 * out)]
                near, far, farther = (_gradients(self._total, a, ["reconstruction"])[0].sum().item() for a in points)
                ratio = far / (2.0**30 * near or math.nan)
                if math.isclose(far, farther, rel_tol=1e-6) and 1e-5 < ratio < 1e2:
                    return nearest(ratio), 0.0
                if math.isclose(far, 2 * farther, rel_tol=1e-12) and 0 < ratio < math.inf:
                    return 0.0, nearest(out * ratio)
        return 0.0, 0.0

    def _widest(self, reach: float, values: Function) -> dict[str, str]:
        """Return for each argument the widest domain in which some values and their gradients are finite."""
        domains = dict[str, str]()
        for role, domain in itertools.product(self.box.domains, ("unit", "positive", "real")):
            if ROLES[role].domain in ("positive", "unit"):
                with contextlib.suppress(LossError):
                    a = self.box.point(self.box.size, reach, **{role: domain})
                    if _are_finite([*values(a), *_gradients(values, a, [*{*a} - {"x"}])]):
                        domains[role] = domain
        return domains

    def _named(self, terms: Iterable[Term], part: str, size: Size) -> _Fit | None:
        """Return the fit of the first term whose gradients are those of the loss: a likelihood or rate if any is."""
        roles = self.roles[part]
        points = list[_Point]()
        for reach, domains in (2.0, {}), (3.0, self._widest(3.0, self._total)):
            for _ in range(_POINTS):
                a = self.box.point(size, reach, **domains)
                wanted = _gradients(self._total, a, roles)
                if _are_finite(wanted):
                    points.append((a, wanted))
        tolerance = _SINGLE.fit if self.box.is_single else _DOUBLE.fit
        others = list[_Fit]()
        for term in terms:
            if {*term.needs} - {"x"} == {*roles} and _fitted(term, points[:1], roles).residual < _SINGLE.fit:
                fit = _fitted(term, points[: _POINTS if term.reach < 2 else None], roles)
                if fit.residual < _DOUBLE.fit and (fit.is_part() or fit.term.fault):
                    return fit
                if fit.residual < tolerance:
                    others.append(fit)
        best = max(others, key=_Fit.is_part, default=None)
        if best and best.residual > _DOUBLE.fit:
            self.precision = _SINGLE
        return best

    def _fault(self, fit: _Fit | None, part: str) -> tuple[str, bool] | None:
        """Return why a fit is no likelihood or no rate, and whether the answer is open; None if it is one."""
        if fit is None:
            names = " and ".join(self.box.names[role] for role in self.roles[part])
            return f"its function of {names} is not a {part} that I know {_KNOWN[part]}", True
        if "kl" in fit.term.needs and fit.weights[0] < 0:
            reason = "{kl} is handed in with a negative weight: if it is KL(q, p), the loss is no ELBO"
            return self._text(reason), "kl" not in guesses(self.box.names["kl"])
        if fit.term.fault:
            return self._text(fit.term.fault), fit.term.is_open
        if not fit.is_part():
            return self._no_prior(dict(zip(map(self._text, fit.term.parts), fit.weights))), False
        if fit.weights[-1] > 0:
            return None
        if part == "rate" and self._grows_far():
            return "the rate has the wrong sign where it is small: a capacity?", True
        return f"the {part} has the wrong sign", False

    def _no_prior(self, weights: dict[str, float]) -> str:
        """Return what is wrong with the weights of the three terms of a Normal's rate."""
        sizes = sorted(map(abs, weights.values()))
        if missing := [name for name, weight in weights.items() if abs(weight) < 1e-7 * sizes[-1]]:
            return f"of the rate, the term {listed(missing)} is missing"
        shown = ", ".join(f"{Power(nearest(weight / sizes[0]))} of {name}" for name, weight in weights.items())
        hint = "perhaps without the factor 1/2 of one"
        if min(weights.values()) < 0 < max(weights.values()):
            hint = "a sign is wrong"
        return f"the terms of the rate have weights in the ratio {shown}, which no prior gives: {hint}"

    def _powers(self, fit: _Fit, part: str) -> list[Power]:
        """Return the weight of each column by the sizes; none if they are no powers of these."""
        fits = [fit, *(self._named([fit.term], part, size) for size in self.box.sizes[1:])]
        if not all(fits):
            return []
        powers = [power_of(self.box.sizes, weights) for weights in zip(*(fitted.weights for fitted in fits if fitted))]
        return [power for power in powers if power and all(powers)]

    def _elbo(self, claim: _Claim, proof: Sequence[str]) -> Identified:
        """Return what a sum of a likelihood and a rate is."""
        box = self.box
        rate = claim.rate.term
        domain = claim.likelihood.term.domain
        with contextlib.suppress(LossError):  # it may take x in [0, 1] only
            if box.domains["x"] == "closed" and box(box.point(box.size, x=domain)).isfinite():
                box.domains["x"] = domain
        variance = claim.rate.weights[-1] / claim.rate.weights[0]
        reason, constant = self._constant(claim, str(variance))
        if reason and rate.note:
            return self._refused(f"up to a constant, {rate.note}", True, proof)
        reasons = [text for text in (reason, rate.note) if text]
        if claim.beta().powers.get("B"):
            reasons.append(f"beta = {claim.beta()} depends on the batch size B: one part is a sum over it")
        if reasons:
            return self._refused("; ".join(reasons), bool(reason and constant), [*proof, *constant])
        prior = self._text(rate.prior, rate) if str(variance) == "1" else f"N(0, c^2 I) with c^2 = {variance}"
        how = "by one draw z" if "z" in box.names else "in closed form"
        readings = self._readings(claim)
        lines = [*self._lines(claim, readings), *constant, *self._constants(), *self._notes(claim)]
        lines.insert(2, f"{proof[1]}, prior {prior}, KL {how}")
        residual, seen = self._proof(claim)
        if not residual < self.precision.proof:  # it may be nan
            reason = f"at ordinary points it is as below, at others its values or gradients differ by {residual:.0e}"
            return self._refused(reason, True, lines[1:])
        self.num_named = 3
        lines.append(f"checked in {self.precision.name} to {residual:.0e} for {seen}")
        if "mask" in box.names:
            reason = f"what {box.names['mask']} does to it is not known; where it is 1 everywhere, the loss is"
            return self._refused(reason, True, lines)
        posterior = "normal-log-variance" if rate.readings.get("spread") is LOG_VARIANCE else "normal"
        return Identified(
            True, "\n".join(lines), tuple(readings), "", residual, posterior, "z" not in box.names, prior=prior
        )  # fmt: skip

    def _readings(self, claim: _Claim) -> list[LossReading]:
        """Return the readings: two for a fixed scale, which may be 1 or such that beta is 1."""
        term = claim.likelihood.term
        has_scale = "{v}" in term.name
        beta = claim.beta()
        rows = list[tuple[_Part, Power, Power]]()
        if has_scale and not math.isnan(term.log_z(beta.at(self.box.size))):
            rows.append((claim.rate, Power(1.0), beta))
        if not rows or str(beta) != "1":
            rows.append((claim.likelihood, beta, Power(1.0)))
        return [
            LossReading(part.weights[-1].without("B"), self._text(term.name, term, str(v)), weight,
                        v if has_scale else None, term.option)
            for part, weight, v in rows
        ]  # fmt: skip

    def _lines(self, claim: _Claim, readings: Sequence[LossReading]) -> Iterator[str]:
        """Yield the lines on likelihood and beta."""
        first, *rest = readings
        power = claim.likelihood.weights[-1].powers.get("B", 0.0)
        sums = {0.0: "a sum over its images", -1.0: "a mean over its images"}
        reduction = sums.get(power, f"B^{power} times a sum")
        if self.box.is_vector:
            reduction = "one value for each image"
        yield f"{first.head()} of the batch, {reduction}"
        grey = ", a pseudo-likelihood if x is grey" if first.likelihood.startswith("Bernoulli") else ""
        yield f"  likelihood  {first.likelihood}{grey}"
        yield f"  beta        {first.beta}"
        for other in rest:
            yield f"  or          {other.head()} of {other.likelihood}, beta = {other.beta}"

    def _notes(self, claim: _Claim) -> Iterator[str]:
        """Yield lines on mistakes, collapse and fixed sizes.

        A linear VAE of a Normal likelihood uses latent i if and only if l_i > beta scale^2, where l_i is an eigenvalue
        of the covariance of x. The variance of a prior N(0, c^2 I) does not change it.

        Reference:
            Lucas et al., arXiv:1911.02469, theorem 1; `pvae.evaluation.measures.latents` derives it for any beta.
        """
        term = claim.likelihood.term
        square = claim.beta()
        if term.note:
            yield f"  mistake     {term.note}"
        is_fixed = "{v}" in term.name
        if str(square) == "2" and not is_fixed:
            yield "  note        beta is also 2 where a KL divergence is written without its factor 1/2"
        if is_fixed and term.name.startswith("Normal") and claim.rate.term.num_of_prior:
            limit = math.sqrt(square.at(_MNIST))
            least = f"sqrt({square})" if square.merged() else f"{limit:.3g}"
            side = "below" if limit > _MNIST_STD else "above"
            latents = " for L = 20" if "L" in square.merged() else ""
            yield (
                f"  collapse    a linear VAE uses latents only if x has a standard deviation above {least} along a "
                f"direction; MNIST in [0, 1] has {_MNIST_STD} at most, {side} {limit:.3g}{latents}"
            )
        fixed = [
            f"{letter} = {side}" for letter, side in self.box.size.items()
            if all(size[letter] == side for size in self.box.sizes)
        ]  # fmt: skip
        if fixed:
            yield f"  sizes       {', '.join(fixed)} only: the weights above are numbers for these"

    def _constant(self, claim: _Claim, variance: str) -> tuple[str, list[str]]:
        """Return why the constant of the rate is not its own, or "", and a line on what -log p has beside its columns.

        What the loss has beside both parts, perhaps less what a density has, is written with the fewest constants: for
        each value of x, log K, and for each latent. With equal values of x, a function of x is a constant too.
        """
        term = claim.likelihood.term
        domains = {self.box.domains["x"]: ""}
        if not self.box.has_classes:
            domains["halves"] = self._text("a function of {x} is added to that of the density")
        for domain, of_x in domains.items():
            rows = [self._beside(claim, size, domain) for size in 2 * self.box.sizes]
            value, left, density, per_x, per_z, log_k = np.array(rows).T
            columns = {"0": 0 * left, "x": per_x, "z": per_z, "K": log_k}
            near = self.precision.constant * max(1e-3, 1e-2 * np.abs(value).max())
            for names, has_density in itertools.product(_EXPLANATIONS, (False, True)):
                goal = left - has_density * density
                weights, difference = _least_squares(np.array([columns[name] for name in f"0{names}"]).T, goal)
                if not difference <= near:  # it may be nan
                    continue
                constants = dict(zip(names, weights[1:]))
                is_tied = np.linalg.matrix_rank(np.array([per_x, per_z])) < 2
                if {*constants} & {"K", "z"} or (constants and is_tied and variance != "1" and not of_x):
                    return self._wrong_constant(constants, claim.rate.term, variance)
                parts = [f"{each:.6g} for each value of x" for each in constants.values()]
                parts.append("that of the density" if has_density else term.missing)
                said = of_x or "; ".join(filter(None, parts))
                if not said:
                    return "", []
                return "", [f"  constant    {said}"]
        return "", ["  constant    one that depends on the sizes in no simple way"]

    def _beside(self, claim: _Claim, size: Size, domain: str) -> list[Any]:
        """Return the value of the loss at a point, what it has beside its parts, and what may explain that.

        These are the constant of the density, and a constant of 1 for each value of x and for each latent, and log K.
        """
        term = claim.likelihood.term
        rate = claim.rate.term
        a = self.box.point(size, x=domain)
        of_x = claim.likelihood.weights[-1].at(size)
        of_z = claim.rate.weights[-1].at(size)
        v = of_z / of_x if "{v}" in term.name else 1.0
        per_x = v * of_x * a["x"].numel()
        per_z = of_z * rate.elements(a)[0].numel()
        value = self.box(a)
        density = v * of_x * term.of_x(a["x"]).sum() + per_x * np.nan_to_num(term.log_z(v))
        return [value, value - claim.value(a, size), density, per_x, per_z, per_z * rate.log_k(a[rate.needs[0]])]

    def _wrong_constant(self, constants: Mapping[str, float], rate: Term, variance: str) -> tuple[str, list[str]]:
        """Return what is said of the constant of a rate that is not its own."""
        its_value = "its gradient is that of an ELBO, its value is not"
        each = constants.get("z", 0.0)
        if "K" in constants:
            classes = round(math.exp(min(each, 9)))
            if classes < 2 or not math.isclose(each, math.log(classes), abs_tol=1e-5):
                return f"the constant log K of the rate is missing: {its_value}", []
            line = f"  constant    log {classes} in place of log K: it is an ELBO of {classes} classes only"
            of_bits = self._text(f"an ELBO of two classes; of bits, the part of 1 - {{{rate.needs[0]}}} is missing")
            return "" if classes > 2 else of_bits, [line]
        which = "is missing (- 1 in the sum)" if math.isclose(each, 0.5, rel_tol=1e-3) else f"is wrong by {each:.6g}"
        of_prior = "" if variance == "1" else f" to a prior N(0, c^2 I), c^2 = {variance},"
        hint = ""
        if variance in ("2", "0.5") and "z" not in self.box.names:
            hint = "; or {spread} is a log variance in one term, and a log scale in another (a square is missing)"
        return self._text(f"the constant of the rate{of_prior} {which}: {its_value}{hint}"), []

    def _constants(self) -> Iterator[str]:
        """Yield lines on the values of further arguments, and on those that change nothing."""
        values = {name: value for name, value in self.box.constants.items() if isinstance(value, (int, float))}
        if values:
            yield f"  with        {', '.join(f'{name} = {value}' for name, value in values.items())}"
        for name in values:
            with contextlib.suppress(LossError):
                if len({self.box(self.base, **{name: value}).item() for value in (values[name], 0, -1, 0.3, 1e6)}) == 1:
                    yield f"  note        {name} is not used: no other value that was tried changes the loss"

    def _proof(self, claim: _Claim) -> tuple[float, str]:
        """Return the largest relative difference of gradients, or of values of the same x, and the range of the points.

        They go from where a rate is almost 0 to 8 for real arguments, and to exp(4) for positive ones.
        """
        box = self.box
        moving = [role for role in box.names if role not in ("x", "mask")]
        reach = min(claim.likelihood.term.reach, claim.rate.term.reach)

        def both(size: Size, a: Arguments) -> list[Tensor]:
            return [claim.value(a, size), box(a)]

        domains = self._widest(reach, partial(both, box.size))
        differences = list[Tensor]()
        readings = claim.likelihood.term.readings | claim.rate.term.readings
        points = list[Arguments]()
        for block, out in enumerate(np.linspace(0.1, reach, _BLOCKS).tolist()):
            size = box.sizes[block % len(box.sizes)]
            x = box.point(size)["x"]
            beside = []
            for _ in range(10):
                a = box.point(size, out, **domains) | {"x": x}
                a |= {role: a[role] + reading.shift for role, reading in readings.items()}
                points.append(a)
                ours, theirs = both(size, a)
                beside.append(theirs - ours)
                pairs = [torch.stack((ours + beside[0], theirs)), *_gradients(partial(both, size), a, moving)]
                differences += map(_difference, pairs)
        names = {**box.names, "x": f"{box.names['x']} ({', '.join(box.letters['x'])})"}
        ranges = list[str]()
        for role in box.names:
            values = torch.cat([ROLES[role].given(a[role]).flatten() for a in points])
            ranges.append(f"{names[role]} {values.min():.2g} to {values.max():.2g}")
        return torch.stack(differences).max().item(), ", ".join(ranges)

    def _text(self, text: str, term: Term | None = None, v: str = "?") -> str:
        """Return a text with the names of the arguments, as a term reads them, in place of their roles."""
        names = {role: self.box.names.get(role, role) for role in ROLES}
        if term:
            names |= {role: reading.name.format(names[role]) for role, reading in term.readings.items()}
        return text.format(**names, v=v)

    def _refused(self, reason: str, is_open: bool = False, lines: Sequence[str] = ()) -> Identified:
        head = f"open, perhaps an ELBO: {reason}" if is_open else f"not an ELBO: {reason}"
        more = [line for line in self._constants() if line not in lines]
        return Identified(is_elbo=False, text="\n".join([head, *lines, *more]), reason=reason, is_open=is_open)
