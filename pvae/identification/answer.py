"""What `identify` answers: weights as powers of the sizes, ways to read a loss, and the lines that are printed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from textwrap import fill
from typing import Any, NamedTuple

import numpy as np

from pvae.config.config import Config
from pvae.core.errors import InputError

_TOPICS = "(1 - 1 / L)"  # the variance of the Normal that is nearest to a Dirichlet of L topics, a factor of weights


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
        return Power(self.number, {**self.powers, name: 0})

    def at(self, sizes: Mapping[str, float]) -> float:
        """Return the weight as a number.

        Raises:
            KeyError: a size is missing.
        """
        known = {**sizes}
        if "L" in sizes:
            known[_TOPICS] = 1 - 1 / sizes["L"]
        powers = self.powers
        if not {*powers} <= {*known}:
            powers = self.merged()
        return self.number * math.prod(known[name] ** power for name, power in powers.items() if power)

    def merged(self) -> dict[str, float]:
        """Return the powers, with P = H W or D = C H W in place of sizes that have the same."""
        powers = {name: power for name, power in sorted(self.powers.items()) if power}
        for whole, parts in ("D", "CHW"), ("P", "HW"):
            if len({powers.get(part) for part in parts}) == 1 and parts[0] in powers:
                powers = {whole: powers[parts[0]], **{name: powers[name] for name in powers if name not in parts}}
        return powers

    def __str__(self) -> str:
        """Return it as a fraction such as "500 / D"."""
        above = f"{self.number:.6g}"
        fraction = Fraction(self.number).limit_denominator(1000)
        if self.number == float(fraction) != float(above):
            above = str(fraction)
        above, _, below = above.partition("/")
        for name, power in self.merged().items():
            shown = f" {name}" * int(abs(power))
            if power % 1:
                shown += f" sqrt({name})"
            if power > 0:
                above += shown
            else:
                below += shown
        below = below.strip()
        if " " in below:
            below = f"({below})"
        return f"{above.removeprefix('1 ')} / {below}".removesuffix(" / ")


def nearest(value: float) -> float:
    """Return the short number or fraction that is as near as a fit or float32 is exact, or the value itself."""
    fraction = Fraction(value)
    for short, near in (
        (float(f"{value:.3g}"), 1e-7), (float(fraction.limit_denominator(100)), 1e-7),
        (float(fraction.limit_denominator(1000)), 1e-9),
    ):  # fmt: skip
        if math.isclose(short, value, rel_tol=near):
            return short
    return value


def power_of(sizes: Sequence[Mapping[str, float]], weights: Sequence[float]) -> Power | None:
    """Return weights at several sizes as powers of these, and perhaps of 1 - 1 / L; None if they are no powers."""
    if not all(weight * weights[0] > 0 for weight in weights):
        return None
    logs = np.log([[*size.values()] for size in sizes])
    for topics in ({}, {_TOPICS: -1.0})[: 1 + ("L" in sizes[0])]:
        rest = [weight / Power(1.0, topics).at(size) for size, weight in zip(sizes, weights)]
        powers = np.round(2 * np.linalg.lstsq(logs - logs[0], np.log(np.divide(rest, rest[0])), rcond=None)[0]) / 2
        power = Power(1.0, topics | dict(zip(sizes[0], powers.tolist())))
        scaled = Power(nearest(weights[0] / power.at(sizes[0])), power.powers)
        if np.allclose([scaled.at(size) for size in sizes], weights, rtol=1e-5, atol=0):
            return scaled
    return None


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

    def head(self) -> str:
        """Return it without its likelihood, such as "2 times the negative beta-ELBO"."""
        text = "the negative ELBO"
        if str(self.beta) != "1":
            text = "the negative beta-ELBO"
        return f"{self.factor} times {text}".removeprefix("1 times ")


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
        return "\n".join(fill(line, 100, subsequent_indent=f"{'':14}") for line in self.text.split("\n"))

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
        chosen = self.readings[reading]
        if not chosen.option:
            raise InputError(f"pvae has no --likelihood that is {chosen.likelihood}")
        options: dict[str, Any] = {"likelihood": chosen.option, "posterior": self.posterior}
        if self.is_closed_form:
            options["elbo"] = "analytic"
        if "L" in sizes:
            options["latent_dim"] = sizes["L"]
        try:
            options["beta"] = chosen.beta.at(sizes)
            if chosen.variance is not None:
                options["scale"] = math.sqrt(chosen.variance.at(sizes))
        except KeyError as error:
            raise InputError(f"scale or beta depend on the size {error.args[0]}: give {error.args[0]}=...") from None
        return Config(**options)
