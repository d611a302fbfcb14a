"""`identify`, which names a loss that somebody wrote for a VAE, and proves the name at random points.

The loss is a black box of tensors. It is called where only x and its reconstruction change, and where only the latents
change; each time its values are compared with weighted sums of the terms in `loss_terms`. The weights at several sizes
of batch, image and latent show how the loss is reduced. Values and gradients at 200 further points are the proof.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import math
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pvae.config.config import Config
from pvae.core.errors import InputError, listed
from pvae.identification.black_box import BlackBox, LossError, Size, ways_of_calling
from pvae.identification.loss_terms import Arguments, Term, likelihoods, rates, spreads

__all__ = ["Identified", "Power", "Reading", "identify"]

_POINTS = 30  # at which a term is fitted
_PROOF = 200  # further points, at which the answer is checked
_KNOWN = "(Bernoulli, Normal, Laplace, Poisson, categorical, ...); are x and reconstruction given in this order?"
_MOST_WAYS = 24  # ways of calling the loss that are tried until one of them gives an ELBO


_SAYS = {  # the scale that the name of an argument promises
    "exp({s} / 2)": r"(log|ln)_?(var|v)|lv$",
    "exp({s})": r"(log|ln)_?(s|std)",
    "sqrt({s})": r"var",
    "{s}": r"sigma|std|scale|sd$",
}


@dataclass(frozen=True)
class Power:
    """A weight as a number times powers of the sizes: B of the batch, L latents, D values, or C, H and W of an image.

    >>> print(Power(500.0, {"C": -1, "H": -1, "W": -1}), Power(1.0, {"H": 1, "W": 1}))
    500 / D P
    """

    number: float
    powers: Mapping[str, int] = field(default_factory=dict)

    def __truediv__(self, other: Power) -> Power:
        """Return the quotient."""
        powers = {name: self.powers.get(name, 0) - other.powers.get(name, 0) for name in {*self.powers, *other.powers}}
        return Power(self.number / other.number, powers)

    def without(self, name: str) -> Power:
        """Return the weight without the power of one size."""
        return Power(self.number, {one: power for one, power in self.powers.items() if one != name})

    def at(self, sizes: Mapping[str, int]) -> float:
        """Return the weight as a number.

        Raises:
            KeyError: a size is missing.
        """
        powers = self.powers if {*self.powers} <= {*sizes} else self.merged()
        return self.number * math.prod(float(sizes[name]) ** power for name, power in powers.items() if power)

    def merged(self) -> dict[str, int]:
        """Return the powers, with P = H W or D = C H W in place of sizes that have the same."""
        powers = {name: power for name, power in sorted(self.powers.items()) if power}
        for whole, parts in ("D", "CHW"), ("P", "HW"):
            if len({powers.get(part) for part in parts}) == 1 and parts[0] in powers:
                powers = {whole: powers[parts[0]], **{one: p for one, p in powers.items() if one not in parts}}
        return powers

    def __str__(self) -> str:
        """Return it as a fraction such as "500 / D"."""
        powers = self.merged()
        number = Fraction(self.number).limit_denominator(1000)
        if _nearest(self.number) == float(number) != float(f"{self.number:.6g}"):
            sides = [str(number.numerator)], [str(number.denominator)]
        else:
            sides = [f"{self.number:.6g}"], list[str]()
        for name, power in powers.items():
            sides[power < 0].extend([name] * abs(power))
        above, below = (" ".join(side) for side in sides)
        above = above.removeprefix("1 ")
        return above + (f" / {below if len(sides[1]) == 1 else f'({below})'}" if below else "")


def _nearest(value: float) -> float:
    """Return the short number or fraction that is as near as a fit is exact, or the value itself."""
    for digits, denominator, relative in (3, 100, 1e-7), (6, 1000, 1e-9):
        for one in (float(f"{value:.{digits}g}"), float(Fraction(value).limit_denominator(denominator))):
            if _is_near(one, value, relative):
                return one
    return value


class Reading(NamedTuple):
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

    Args:
        is_elbo: it is an ELBO, or a beta-ELBO whose beta is the same for every batch size, times a positive factor.
        text: the lines that are printed.
        readings: if it is one, the ways to read it.
        reason: if it is none, why.
        residual: the largest difference of a value or a gradient from the loss, relative to the largest of its kind.
        posterior: the choice of --posterior that trains it.
        is_closed_form: its KL divergence is in closed form, as that of --elbo analytic.
    """

    is_elbo: bool
    text: str
    readings: tuple[Reading, ...] = ()
    reason: str = ""
    residual: float = math.nan
    posterior: str = "normal"
    is_closed_form: bool = False

    def __str__(self) -> str:
        """Return the lines."""
        return self.text

    def config(self, reading: int = 0, **sizes: int) -> Config:
        """Return the options that train the same objective, up to the factor.

        Args:
            reading: index of one of `readings`.
            sizes: D, C, H, W and L, those on which scale or beta depend; L becomes the `latent_dim`.

        Raises:
            InputError: the loss is not an ELBO, pvae has no such likelihood, or a size is missing.
        """
        if not self.is_elbo:
            raise InputError(f"no configuration trains a loss that is not an ELBO: {self.reason}")
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
    """Name a loss of a VAE: likelihood, posterior, beta and reductions, or say why it is not an ELBO.

        loss = factor ( distortion + beta rate ) + constant,    ELBO = -(distortion + rate)

    It is called with random tensors in float64. A weight is found as a number times powers of the sizes: B of the
    batch, L latents and D values of an image, or, for images (C, H, W), C, H and W, or P = H W.

    Args:
        loss: a function of x, its reconstruction, the encoder's two outputs and perhaps a draw z or the likelihood's
            spread; it returns a scalar, a value for each image, or a tuple or a dictionary with the total among them.
            Or a module whose forward is the loss.
        arguments: the roles of its arguments, in order, or by name: "x", "reconstruction", "loc", "spread", "z" and
            "x_spread" (of the likelihood); by default found by their names and by trying.
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
    with torch.random.fork_rng(devices=[]), contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of shapes that are only tried
        torch.manual_seed(0)
        found: list[tuple[int, Identified]] = []
        for box in itertools.islice(ways_of_calling(loss, arguments, shape, constants), _MOST_WAYS):
            one = _Identification(box)
            result = one.result()
            found.append((one.num_named, result))
            if result.is_elbo:
                return result
        return max(found, key=lambda pair: pair[0])[1]


class _Fit(NamedTuple):
    """A term with the weights of its columns, and the largest difference from the loss, relative to its values."""

    term: Term
    weights: NDArray[np.float64]
    residual: float

    @property
    def weight(self) -> float:
        """The one weight of the term; NaN if its columns have several."""
        ratios = self.weights / np.array(self.term.exact)
        return float(ratios.mean()) if np.ptp(ratios) <= 1e-5 * abs(ratios).max() else math.nan


def _fitted(term: Term, points: Sequence[Arguments], values: NDArray[np.float64]) -> _Fit:
    """Return the weights of a term, beside a constant, with which it is nearest to the values."""
    columns = np.array([[*term.values(a).tolist(), 1.0] for a in points])
    rounding, width = 64 * np.finfo(np.float64).eps * np.abs(values).max(), np.ptp(values)
    if not np.isfinite(columns).all() or not width > 1e4 * rounding:
        return _Fit(term, np.zeros(len(term.exact)), math.inf)
    scales = np.abs(columns).max(0) + 1e-300
    found = np.linalg.lstsq(columns / scales, values, rcond=None)[0] / scales
    difference = np.abs(columns @ found - values).max()
    return _Fit(term, found[:-1], max(0.0, float(difference - rounding) / float(width)))


class _Claim(NamedTuple):
    """What a loss is said to be: weights times a likelihood and a rate."""

    likelihood: Term
    rate: Term
    of_x: Power
    of_z: Power

    def values(self, box: BlackBox, a: Arguments) -> Tensor:
        """Return the value that it claims, up to a constant."""
        symbols = Size(len(a["x"]), tuple(a["x"].shape[1:]), a["m"].shape[1]).symbols()
        x_part, z_part = self.likelihood.exactly(box.shaped(a)), self.rate.exactly(a)
        return self.of_x.at(symbols) * x_part + self.of_z.at(symbols) * z_part


class _Identification:
    """The steps from a black box to its name."""

    def __init__(self, box: BlackBox) -> None:
        self.box = box
        self.base = box.point(box.size)
        self.is_single = box.is_single or self._casts()
        self.exact = 1e-4 if self.is_single else 1e-9  # relative
        self.num_named = 0  # of likelihood and rate

    def _casts(self) -> bool:
        """Return whether the loss casts an argument to float32: a change in the twelfth digit then changes nothing."""
        value = self.box(self.base)
        moved = ({**self.base, role: one * (1 - 1e-11)} for role, one in self.base.items() if one.is_floating_point())
        return bool(value.isfinite()) and any(torch.equal(self.box(a), value) for a in moved)

    def result(self) -> Identified:
        """Return what the loss is."""
        box, names = self.box, self.box.names
        if reason := self._no_function():
            return self._refused(reason)
        likelihood = self._named(likelihoods(), "xyt", box.size) if "y" in names else None
        rate = self._named(rates(), "msz", box.size) if "m" in names else None
        kink = self._kink() if "m" in names and "z" not in names else ""
        self.num_named = sum(map(bool, (likelihood, rate, kink)))
        lines = [f"  likelihood  {self._text(likelihood.term.name)}"] if likelihood else []
        lines += [f"  posterior   {self._text(rate.term.name)}, prior N(0, I)"] if rate else []
        if "y" in names and (reason := self._wrong(likelihood, "likelihood", "{x} and {y}")):
            return self._refused(reason, lines)
        if kink or ("m" in names and (reason := self._wrong(rate, "rate", "{m} and {s}"))):
            return self._refused(kink or reason, lines)
        if likelihood is None or rate is None:
            alone = "the distortion alone, without a rate, of an autoencoder" if likelihood else "the rate alone"
            return self._refused(alone, lines)
        return self._elbo(likelihood, rate, lines)

    def _no_function(self) -> str:
        """Return why the loss is no differentiable function of x and reconstruction, plus one of the latents; or ""."""
        box, value = self.box, self.box(self.base)
        if not torch.isfinite(value):
            return f"it is {value.item()} at an ordinary point"
        if box(self.base) != value:
            advice = "if it draws z, give z to it as an argument"
            return f"it is not deterministic: two calls with the same arguments differ ({advice})"
        if ignored := [name for name in box.names.values() if name not in box.depends(box.total)]:
            if any({*ignored} & {*box.depends(key)} for key in box.parts(self.base)):
                return "it returns several values, and none depends on all arguments: return their sum too"
            advice = f"if it is not needed, give it a value ({ignored[0]}=None, --constant)"
            return f"it does not depend on {listed(ignored)} ({advice})"
        try:
            _gradients(box, self.base)
        except RuntimeError:
            return "it is not differentiable: what it returns has no gradient of an argument"
        x, z = self._moved("xyt"), self._moved("msz")
        both = {role: (x if role in "xyt" else z)[role] for role in x}
        one, other, *rest = (box(a).item() for a in (self.base, both, x, z))
        if abs(one + other - sum(rest)) > 10 * self.exact * max(map(abs, (one, other, *rest))):
            return "it is no sum of a function of x and its reconstruction and one of the latents"
        return ""

    def _moved(self, roles: str, **how: Any) -> Arguments:
        """Return the base point with other values of these roles."""
        new = self.box.point(self.box.size, **how)
        return {role: new[role] if role in roles else one for role, one in self.base.items()}

    def _named(self, terms: Iterable[Term], roles: str, size: Size, num_points: int = _POINTS) -> _Fit | None:
        """Return the fit of the first term that equals the loss while these roles change; with one weight, if any."""
        box, fixed = self.box, self.box.point(size)
        points = [{**fixed, **{r: one for r, one in box.point(size).items() if r in roles}} for _ in range(num_points)]
        values = np.array([box(a).item() for a in points])
        if not np.isfinite(values).all():
            return None
        shaped, wrong = [box.shaped(a) for a in points], None
        for term in terms:
            if {*term.needs} != {*box.names} & {*roles} or (roles == "xyt" and box.has_classes != term.of_classes):
                continue
            fit = _fitted(term, shaped, values)
            if fit.residual < self.exact and (not math.isnan(fit.weight) or not term.is_part):
                return fit
            wrong = wrong or (fit if fit.residual < self.exact else None)
        return wrong

    def _wrong(self, fit: _Fit | None, what: str, of: str) -> str:
        """Return why a fit is no likelihood or no rate; an empty string if it is one."""
        if fit is None:
            known = _KNOWN if what == "likelihood" else "of a Normal q(z|x) to N(0, I)"
            return f"its function of {self._text(of)} is no {what} {known}"
        if not fit.term.is_part:
            return fit.term.kind
        if not math.isnan(fit.weight):
            return f"the {what} has the wrong sign" if fit.weight < 0 else ""
        weights = dict(zip(map(self._text, fit.term.column_names), fit.weights.tolist()))
        least = min(abs(one) for one in weights.values() if abs(one) > 1e-7 * max(map(abs, weights.values())))
        shown = ", ".join(f"{Power(one / least)} of {name}" for name, one in weights.items())
        reason = f"the terms of the {what} have weights in the ratio {shown}"
        if missing := [name for name, one in weights.items() if abs(one) < 1e-7 * least]:
            return f"of the {what}, the term {listed(missing)} is missing"
        if min(weights.values()) < 0 < max(weights.values()):
            return f"{reason}: a sign is wrong"
        first, *_, spread, logarithm = weights.values()
        if what == "rate" and (_is_near(logarithm, 2 * spread) or _is_near(2 * logarithm, spread)):
            if "exp(" in fit.term.name:
                return f"{reason}: {self._text('{s}')} is a log variance in one term, and a log scale in another"
            return f"{reason}: log scale and scale^2 do not belong together, as log s for log s^2"
        if what == "rate" and _is_near(first, spread) and "z" not in self.box.names:
            variance = f"c^2 = {Power(_nearest(logarithm / spread))}"
            return f"{reason}: the rate to a prior N(0, c^2) with {variance}, and only N(0, 1) is known"
        return f"{reason}: perhaps without the factor 1/2 of one"

    def _kink(self) -> str:
        """Describe a rate with a kink, which free bits or a capacity give it; an empty string if it has none."""
        for _, scale, log_scale in itertools.islice(spreads(), 6):
            with contextlib.suppress(LossError):  # it may refuse what cannot be a scale
                if found := self._kink_of(scale, log_scale):
                    return found
        return ""

    def _kink_of(self, scale: Callable[[Tensor], Tensor], log_scale: Callable[[Tensor], Tensor]) -> str:
        """Describe the rate if the loss has two slopes along equal latents; an empty string if it has one."""
        box, size = self.box, self.box.size
        one = next(s for s in (0.0, 1.0, math.log(math.e - 1)) if _is_near(scale(torch.tensor(s).double()).item(), 1))

        def at(nats: float) -> float:
            m = torch.full((size.batch, size.latent), math.sqrt(2 * nats), dtype=torch.float64)
            return box({**self.base, "m": m, "s": torch.full_like(m, one)}).item()

        low, high = 1e-4, 1e4
        slopes = (at(2 * low) - at(low)) / low, at(high + 1) - at(high)
        is_capacity = _is_near(slopes[0], -slopes[1], 1e-3)
        if slopes[0] == slopes[1] or (not is_capacity and abs(slopes[0]) > 1e-3 * abs(slopes[1])):
            return ""
        limit = (at(low) - slopes[0] * low - at(high) + slopes[1] * high) / (slopes[1] - slopes[0])
        for of_batch, of_image in itertools.product((True, False), repeat=2):
            nats = limit * (size.latent if of_image else 1)

            def column(a: Arguments, nats: float = nats, mean: bool = of_batch, total: bool = of_image) -> Tensor:
                k = 0.5 * (a["m"] ** 2 + scale(a["s"]) ** 2 - 1) - log_scale(a["s"])
                k = k.mean(0) if mean else k
                k = k.sum(-1) if total else k
                return (k - nats).abs() if is_capacity else k.clamp(min=nats)

            spread = 3 * math.sqrt(2 * max(limit, 0.1))
            points = [self._moved("ms", spread=spread * torch.rand(()).item()) for _ in range(_POINTS)]
            if _fitted(Term("", (column,), (1,)), points, np.array([box(a).item() for a in points])).residual < 1e-6:
                latents, images = "all latents" if of_image else "each latent", " of each image"
                of = f"{latents}{', a mean over the batch,' if of_batch else images}"
                if is_capacity:
                    return f"|KL - C| in place of the rate, of {of} with a capacity C = {nats:.6g} nats"
                return f"free bits: the rate of {of} counts as at least {nats:.6g} nats"
        return ""

    def _elbo(self, likelihood: _Fit, rate: _Fit, lines: list[str]) -> Identified:
        """Return the reductions and the proof of a sum of a likelihood and a rate."""
        box, fits, fixed = self.box, {self.box.size: (likelihood, rate)}, dict[str, int]()
        for symbol, size in box.size.others():
            with contextlib.suppress(LossError):  # it may take no other size
                pair = self._named([likelihood.term], "xyt", size, 12), self._named([rate.term], "msz", size, 12)
                if pair[0] and pair[1]:
                    fits[size] = pair[0], pair[1]
            if size not in fits and symbol:
                fixed[symbol] = box.size.symbols()[symbol]
        of_x, of_z = (_power({size: pair[index].weight for size, pair in fits.items()}) for index in (0, 1))
        if of_x is None or of_z is None:
            return self._refused("its weights are no powers of the sizes of batch, image and latent", lines)
        claim, beta, of_batch = _Claim(likelihood.term, rate.term, of_x, of_z), of_z / of_x, of_x.powers.get("B", 0)
        if beta.powers.get("B"):
            reason = f"beta = {beta} depends on the batch size B: one part is a sum over the batch, the other a mean"
            return self._refused(reason, lines)
        first, *others = self._readings(claim, beta)
        reduction = {0: "a sum over its images", -1: "a mean over its images"}.get(
            of_batch, f"B^{of_batch} times a sum"
        )
        head = f"{_times(first.factor)}the negative {'ELBO' if str(first.beta) == '1' else 'beta-ELBO'} of the batch, "
        pseudo = ", a pseudo-likelihood if x is grey" if first.likelihood.startswith("Bernoulli") else ""
        lines = [
            head + ("one value for each image" if box.is_vector else reduction),
            f"  likelihood  {first.likelihood}{pseudo}",
            f"{lines[1]}, KL {'by one draw z' if 'z' in box.names else 'in closed form'}",
            f"  beta        {first.beta}",
            *(
                f"  or          {_times(o.factor)}the negative beta-ELBO of {o.likelihood}, beta = {o.beta}"
                for o in others
            ),
        ]
        reason, line = self._constant(claim, list(fits))
        lines += [*line, *self._notes(rate.term, first.beta, fixed), *self._on_images(claim), *self._part_lines(claim)]
        residual = self._proof(claim, list(fits))
        if reason or residual > 10 * self.exact:
            return self._refused(reason or f"its values and gradients differ from this by {residual:.0e}", lines[1:])
        where = f"{_PROOF} random points in {'float32' if self.is_single else 'float64'}"
        lines.append(f"checked at {where}: value and gradients agree to {residual:.0e}")
        text, is_closed_form = "\n".join(lines), "z" not in box.names
        return Identified(True, text, (first, *others), "", residual, rate.term.option, is_closed_form)

    def _readings(self, claim: _Claim, beta: Power) -> Iterator[Reading]:
        """Yield the readings; two for a likelihood with a fixed scale, which may be 1 or such that beta is 1."""
        term = claim.likelihood
        if "{v}" not in term.name:
            yield Reading(claim.of_x.without("B"), self._text(term.name), beta, None, term.option)
            return
        for factor, scale, weight in (claim.of_z, beta, Power(1.0)), (claim.of_x, Power(1.0), beta):
            variance = scale if term.option else None
            yield Reading(factor.without("B"), self._text(term.name, v=str(scale)), weight, variance, term.option)
            if str(beta) == "1":
                return

    def _constant(self, claim: _Claim, sizes: Sequence[Size]) -> tuple[str, list[str]]:
        """Return why the constant of the rate is not its own, or "", and a line on the constant of the likelihood.

        The constant of the loss is split into one for each value of x and one for each latent, by several sizes.
        """
        rows, constants, term = [], [], claim.likelihood
        for size in sizes:
            a, symbols = self.box.point(size), size.symbols()
            constants.append((self.box(a) - claim.values(self.box, a)).item())
            batch, elements = size.batch, math.prod(size.image)
            rows.append([claim.of_x.at(symbols) * batch * elements, claim.of_z.at(symbols) * batch * size.latent])
        table, wanted = np.array(rows), np.array(constants)
        of_x, of_z = np.linalg.lstsq(table, wanted, rcond=None)[0]
        if np.linalg.matrix_rank(table) < 2:  # they cannot be told apart
            of_z = claim.rate.constant
            of_x = (wanted[0] - table[0, 1] * of_z) / table[0, 0]
        if np.abs(table @ [of_x, of_z] - wanted).max() > 1e-6 * max(1e-3, np.abs(wanted).max()):
            return "", ["  constant    one that depends on the sizes in no simple way"]
        if abs(of_z - claim.rate.constant) > 1e-5:
            which = "is missing (- 1 in the sum)" if abs(of_z) < 1e-5 else f"is {of_z:.6g} for each latent"
            return f"the constant of the rate {which}: its gradient is that of an ELBO, its value is not", []
        scale = (claim.of_z / claim.of_x).at(self.box.size.symbols()) if "{v}" in term.name else 1.0
        power = 0.5 if term.name.startswith("Normal") else 1
        own = [v * (term.constant + power * math.log(v)) for v in (scale, 1.0)]
        if abs(of_x - own[0]) < 1e-5 * scale:
            return "", ["  constant    that of the density"] if term.missing else []
        if abs(of_x - own[1]) < 1e-5 * scale:
            return "", ["  constant    that of the density with scale 1"]
        given = "" if abs(of_x) < 1e-5 * scale else f"{of_x / scale:.6g} for each value of x"
        left_out = f"{term.missing} is left out, for each value of x" if term.missing else ""
        return "", [f"  constant    {'; '.join(filter(None, (given, left_out)))}"]

    def _notes(self, rate: Term, beta: Power, fixed: Mapping[str, int]) -> Iterator[str]:
        """Yield lines on default values, on a spread whose name says another reading, and on fixed sizes."""
        if values := [f"{name} = {value}" for name, value in self.box.constants.items() if not isinstance(value, bool)]:
            yield f"  with        {', '.join(values)}"
        name = self.box.names["s"]
        named = next((reading for reading, pattern in _SAYS.items() if re.search(pattern, name.lower())), "")
        if named and not rate.name.removesuffix(")").endswith(f"scale = {named}"):
            yield f"  note        {name} is read by its formula, not by its name: z must be drawn with the scale above"
        if str(beta) == "2":
            yield "  note        beta is also 2 where a KL divergence is written without its factor 1/2"
        if beta.powers.get("D"):
            yield f"  note        for D = 784 and L = 20, beta = {beta.at({'D': 784, 'L': 20}):.6g}"
        if fixed:
            values = [f"{symbol} = {value}" for symbol, value in fixed.items()]
            yield f"  sizes       the code takes {', '.join(values)} only: the weights above are numbers for these"

    def _on_images(self, claim: _Claim) -> Iterator[str]:
        """Yield a line if the loss of images (C, H, W) differs from the one identified for vectors (D,)."""
        box = self.box
        if box.size.image != (6,) or box.has_classes or box.layout != "same":
            return
        with contextlib.suppress(LossError):  # it may take no images
            points = [box.point(box.size._replace(image=(2, 3, 4))) for _ in range(2)]
            theirs = [box(a).item() for a in points]
            flat = [{role: one.flatten(1) if role in "xyt" else one for role, one in a.items()} for a in points]
            ours = [claim.values(box, a).item() for a in flat]
            if not _is_near(theirs[0] - theirs[1], ours[0] - ours[1], 10 * self.exact):
                yield "  note        for vectors (B, D): for images (B, C, H, W) it is another loss, give their shape"

    def _part_lines(self, claim: _Claim) -> Iterator[str]:
        """Yield a line for each further value that the loss returns: the distortion, the rate, or another value."""
        for key in self.box.parts(self.base):
            of_x, of_z = (bool({*self.box.depends(key)} & {self.box.names.get(r) for r in rs}) for rs in ("xyt", "msz"))
            what = "a value of both parts" if of_x and of_z else "a constant"
            if of_x != of_z:
                term, roles, what = (claim.likelihood, "xyt", "distortion") if of_x else (claim.rate, "msz", "rate")
                points = [self._moved(roles) for _ in range(8)]
                values = np.array([self.box.parts(a)[key].sum().item() for a in points])
                fit = _fitted(term, [self.box.shaped(a) for a in points], values)
                is_it = fit.residual < 1e-6 and not math.isnan(fit.weight)
                what = f"{'minus ' * (fit.weight < 0)}the {what}, times a number" if is_it else f"a value of the {what}"
            if key != self.box.total:
                yield f"  part        {key!r}: {what}"

    def _proof(self, claim: _Claim, sizes: Sequence[Size]) -> float:
        """Return the largest relative difference of values, up to a constant, or gradients."""
        box, residual, constants = self.box, 0.0, dict[Size, float]()
        names = claim.likelihood.name + claim.rate.name
        unit = any(part in names for part in ("probs", "rate = {y}", "Logistic"))
        positive = any(part in names for part in ("= {s}", "sqrt({s})", "= {t}", "sqrt({t})", "Logistic"))

        def claimed(a: Arguments) -> Tensor:
            return claim.values(box, a)

        for number in range(_PROOF):
            size = sizes[number % len(sizes)]
            a = box.point(size, unit=unit, positive=positive)
            if not box.has_classes and number % 2:
                a["x"] = (a["x"] > 0.5).double()
            theirs, ours = [box(a), *_gradients(box, a)], [claimed(a), *_gradients(claimed, a)]
            ours[0] = ours[0] + constants.setdefault(size, (theirs[0] - ours[0]).item())
            for one, other in zip(theirs, ours):
                residual = max(residual, float((one - other).abs().max() / (other.abs().max() + 1e-300)))
        return residual

    def _text(self, name: str, v: str = "") -> str:
        name = name if v else re.sub(r"scale(\^2)? = {v}", "a fixed scale", name)
        return name.format(**{role: self.box.names.get(role, role) for role in "xytmsz"}, v=v)

    def _refused(self, reason: str, lines: Sequence[str] = ()) -> Identified:
        return Identified(is_elbo=False, text="\n".join([f"not an ELBO: {reason}", *lines]), reason=reason)


def _gradients(function: Callable[[Arguments], Tensor], a: Arguments) -> tuple[Tensor, ...]:
    """Return the gradients of a function in all arguments but x."""
    moved = {role: a[role].clone().requires_grad_() for role in a if role != "x"}
    return torch.autograd.grad(function({**a, **moved}), list(moved.values()))


def _power(weights: Mapping[Size, float]) -> Power | None:
    """Return a weight as a number times powers of the sizes; None if no powers give it at all of these sizes."""
    (base, first), *others = ((size.symbols(), weight) for size, weight in weights.items())
    powers: dict[str, int] = {}
    for symbols, weight in others:
        changed = [name for name in base if symbols[name] != base[name]]
        if len(changed) == 1 and weight / first > 0:
            powers[changed[0]] = round(math.log(weight / first) / math.log(symbols[changed[0]] / base[changed[0]]))
    found = Power(_nearest(first / Power(1.0, powers).at(base)), powers)
    return found if all(_is_near(found.at(size.symbols()), one, 1e-5) for size, one in weights.items()) else None


def _times(factor: Power) -> str:
    return "" if str(factor) == "1" else f"{factor} times "


def _is_near(one: float, other: float, relative: float = 1e-7) -> bool:
    return abs(one - other) <= relative * max(abs(one), abs(other))
