"""What an option of a training may be, what it says in --help, and what each ELBO can be combined with."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from pvae.core.errors import InputError, check_name, shown

if TYPE_CHECKING:
    from pvae.config.config import Config

__all__ = [
    "BINARIZATIONS",
    "COMPILERS",
    "DATASETS",
    "ELBOS",
    "ESTIMATORS",
    "PRECISIONS",
    "Estimator",
    "Option",
    "check_elbo_options",
    "flag",
    "option",
    "whole_number",
]


class Estimator(NamedTuple):
    """What an ELBO can be combined with.

    Args:
        beta: its loss has a rate that beta, a warm-up or a mean over the latent dimensions can weigh.
        free_bits: the rate of each latent dimension is known.
        chains: it takes a posterior of several stochastic layers; a closed-form KL does not.
        importance_weighted: it is a bound of importance weights, which with one particle is the ELBO.
        separate_draws: its gradient needs weights that depend on one draw of z each.
        least_particles: the smallest K.
    """

    beta: bool = False
    free_bits: bool = False
    chains: bool = True
    importance_weighted: bool = False
    separate_draws: bool = False
    least_particles: int = 1


ESTIMATORS = {
    "trace": Estimator(beta=True, free_bits=True),
    "analytic": Estimator(beta=True, free_bits=True, chains=False),
    "handwritten": Estimator(beta=True, free_bits=True),
    "stl": Estimator(beta=True),
    "score": Estimator(beta=True, separate_draws=True),
    "score-loo": Estimator(beta=True, separate_draws=True, least_particles=2),
    "iwae": Estimator(importance_weighted=True),
    "dreg": Estimator(importance_weighted=True, separate_draws=True),
    "renyi": Estimator(importance_weighted=True),
    "ciwae": Estimator(importance_weighted=True),
    "miwae": Estimator(importance_weighted=True),
}
ELBOS = tuple(ESTIMATORS)
DATASETS = ("auto", "mnist", "fashion-mnist", "mnist-5k", "binarized-mnist", "linear-gaussian", "celeba", "folder:PATH")
BINARIZATIONS = ("none", "threshold", "static", "dynamic")
COMPILERS = ("none", "graph", "inductor")
PRECISIONS = ("fp32", "bf16")
_REMOVED = {"cuda-graph": "graph", "tf32": "fp32"}  # choices of earlier versions, and what replaces them
_MOST_LAYERS = 1000  # each layer takes memory before its first weight does


@dataclass(frozen=True, kw_only=True)
class Option:
    """One option of a training: what the parser, the checks and the documentation are made from.

    Args:
        default: its value where none is given; its type is the option's type.
        help: one sentence; "{choices}" stands for the list of them.
        limits: the least and the greatest number, by default 0 and 10^9, or 10^38 of a real one.
        choices: the names that it can have; "folder:PATH" is any text that begins with "folder:".
        pattern: a regular expression and its description, of a text that is not one of some names.
        only_with: the options that it goes with, and whether a configuration has them and so reads it.
        may_stay: a system's own value may stay where another option keeps it from being read: `--system conv-2d
            --likelihood bernoulli` leaves the system's scale behind.
    """

    default: Any
    help: str
    limits: tuple[Any, ...] = ()
    choices: tuple[str, ...] = ()
    pattern: tuple[str, str] = ("", "")
    only_with: tuple[str, Callable[[Config], bool]] = ("", lambda _: True)
    may_stay: bool = False

    @property
    def text(self) -> str:
        """Its help, with its choices, the options that it goes with and its default."""
        notes = [f"with {self.only_with[0]} only"] if self.only_with[0] else []
        if isinstance(self.default, tuple):
            notes.append(f"default: {' '.join(map(str, self.default))}")
        elif self.default != "" and not isinstance(self.default, bool):
            notes.append(
                f"default: {self.default:g}" if isinstance(self.default, float) else f"default: {self.default}"
            )
        return self.help.format(choices=", ".join(self.choices)) + (f" ({'; '.join(notes)})" if notes else "")

    def check(self, name: str, value: Any) -> Any:
        """Return a value of the option's type: a number of numpy's as Python's, a list of widths as a tuple.

        Raises:
            InputError: it is of another type or out of range.
        """
        if isinstance(self.default, bool):
            if not isinstance(value, bool):
                raise InputError(f"{flag(name)} must be true or false, not {shown(value)}")
        elif isinstance(self.default, int):
            return whole_number(name, value, *(self.limits or (0, 10**9)))
        elif isinstance(self.default, float):
            return _real_number(name, value, *(self.limits or (0.0, 1e38)))
        elif isinstance(self.default, tuple):
            return _widths(name, value)
        elif not self.choices:
            pattern, description = self.pattern
            if not isinstance(value, str) or not re.fullmatch(pattern, value):
                raise InputError(f"{flag(name)} must be {description}, not {shown(value)}")
        elif isinstance(value, str) and value in _REMOVED:
            raise InputError(f"{flag(name)} {value} was removed from pvae: take {flag(name)} {_REMOVED[value]}")
        elif not (isinstance(value, str) and value.startswith("folder:") and "folder:PATH" in self.choices):
            check_name(flag(name), value, self.choices)
        return value


def option(default: Any, help: str, **rest: Any) -> Any:
    """Return a field of `Config` with its `Option`, of which `rest` are the other arguments."""
    return field(default=default, metadata={"option": Option(default=default, help=help, **rest)})


def whole_number(name: str, value: Any, least: int = 1, most: int = 10**9) -> int:
    """Return a whole number, numpy's included, as an int.

    Raises:
        InputError: it is not one, or out of range.
    """
    try:
        count = operator.index(value)
    except TypeError:
        count = least - 1
    if isinstance(value, bool) or not least <= count <= most:
        limits = f"at least {least:,} and at most {most:,}"
        raise InputError(f"{flag(name)} must be a whole number of {limits}, not {shown(value)}")
    return count


def _real_number(name: str, value: Any, least: float, most: float) -> float:
    try:
        number = math.nan if isinstance(value, (bool, str)) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not least <= number <= most:
        limits = f"at least {least:g} and at most {most:g}"
        raise InputError(f"{flag(name)} must be a number of {limits}, not {shown(value)}")
    return number


def _widths(name: str, hidden: Any) -> tuple[int, ...]:
    found = list(hidden) if isinstance(hidden, Iterable) and not isinstance(hidden, (str, set)) else []
    if not found:
        raise InputError(f"{flag(name)} needs at least one layer width, such as 100 100, not {shown(hidden)}")
    if len(found) > _MOST_LAYERS:
        raise InputError(f"{flag(name)} names {len(found):,} layers: give at most {_MOST_LAYERS}")
    return tuple(whole_number(name, width) for width in found)


def flag(name: str) -> str:
    """Return the command line's name of an option."""
    return "--" + name.replace("_", "-")


def check_elbo_options(name: str, num_particles: int, num_groups: int, *, weighs_rate: bool, free_bits: float) -> None:
    """Refuse options that an ELBO does not have.

    Args:
        name: one of `ELBOS`.
        num_particles: K.
        num_groups: M.
        weighs_rate: the loss is to weigh the rate, by beta, a warm-up or otherwise.
        free_bits: nats.

    Raises:
        InputError: an importance-weighted bound has no rate to weigh, an ELBO does not know the rate of each
            dimension, there is no other particle to compare with, or the particles cannot be divided into groups.
    """
    estimator = ESTIMATORS[name]
    if weighs_rate and not estimator.beta:
        others = ", ".join(other for other in ELBOS if ESTIMATORS[other].beta)
        raise InputError(
            f"--elbo {name} has no rate to weigh: leave --beta, --warm-up and --rate-reduction, or take one of {others}"
        )
    if free_bits and not estimator.free_bits:
        others = ", ".join(other for other in ELBOS if ESTIMATORS[other].free_bits)
        raise InputError(f"--elbo {name} has no free bits: leave --free-bits, or take {others}")
    if num_particles < estimator.least_particles:
        raise InputError(f"--elbo {name} compares each particle with the others: give --particles 2 or more")
    if name == "miwae" and num_particles % num_groups:
        raise InputError(f"--elbo miwae: --particles {num_particles} must be a multiple of --groups {num_groups}")
