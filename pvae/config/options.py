"""What an option of a training may be: one of some names, widths, a whole number, a real one."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable
from typing import Any

from pvae.core.errors import InputError, shown

__all__ = [
    "ACTIVATIONS",
    "BINARIZATIONS",
    "COMPILERS",
    "DATASETS",
    "ELBOS",
    "IMPORTANCE_WEIGHTED",
    "INITIALIZATIONS",
    "LIKELIHOODS",
    "NETWORKS",
    "ON_NAN",
    "PIXELS",
    "POSTERIORS",
    "PRECISIONS",
    "RATE_REDUCTIONS",
    "SCHEDULES",
    "WITHOUT_CHAINS",
    "WITH_BETA",
    "WITH_FREE_BITS",
    "check_elbo_options",
    "flag",
    "real_number",
    "whole_number",
    "widths",
]

DATASETS = ("auto", "mnist", "fashion-mnist", "mnist-5k", "binarized-mnist", "linear-gaussian", "celeba", "folder:PATH")
BINARIZATIONS = ("none", "threshold", "static", "dynamic")
ELBOS = (
    "trace",
    "analytic",
    "handwritten",
    "stl",
    "score",
    "score-loo",
    "iwae",
    "dreg",
    "renyi",
    "ciwae",
    "miwae",
)
WITHOUT_CHAINS = ("analytic",)  # needs a closed-form KL of q(z | x) from p(z)
WITH_FREE_BITS = ("trace", "analytic", "handwritten")
IMPORTANCE_WEIGHTED = ("iwae", "dreg", "renyi", "ciwae", "miwae")  # the ELBO, where there is one particle
WITH_BETA = (*WITH_FREE_BITS, "stl", "score", "score-loo")
COMPILERS = ("none", "graph", "inductor", "cuda-graph")
PRECISIONS = ("fp32", "bf16", "tf32")
PIXELS = ("unit", "symmetric")
ACTIVATIONS = ("relu", "tanh")
INITIALIZATIONS = ("torch", "burda")
SCHEDULES = ("constant", "cosine", "steps", "paper")
ON_NAN = ("stop", "skip")
NETWORKS = ("mlp", "conv", "conv-batchnorm", "linear")
POSTERIORS = ("normal", "normal-log-variance", "delta")
LIKELIHOODS = (
    "bernoulli",
    "continuous-bernoulli",
    "normal",
    "normal-learned",
    "normal-optimal",
    "normal-linear",
    "discretized-logistic",
)
RATE_REDUCTIONS = ("sum", "mean")
_MOST_LAYERS = 1000  # each takes some memory before its first weight


def widths(name: str, hidden: Any) -> tuple[int, ...]:
    """Return the widths of layers, of which there must be one at least."""
    found = list(hidden) if isinstance(hidden, Iterable) and not isinstance(hidden, (str, set)) else []
    if not found:
        raise InputError(f"{flag(name)} needs at least one layer width, such as 100 100, not {shown(hidden)}")
    if len(found) > _MOST_LAYERS:
        raise InputError(f"{flag(name)} names {len(found):,} layers: give at most {_MOST_LAYERS}")
    return tuple(whole_number(name, width, most=10**9) for width in found)


def whole_number(name: str, value: Any, least: int = 1, most: int = 2**63 - 1) -> int:
    """Return a whole number, numpy's included, as an int."""
    try:
        count = operator.index(value)
    except TypeError:
        count = -1
    if isinstance(value, bool) or not least <= count <= most:
        limits = f"at least {least:,} and at most {most:,}"
        raise InputError(f"{flag(name)} must be a whole number of {limits}, not {shown(value)}")
    return count


def real_number(name: str, value: Any, least: float, most: float) -> float:
    """Return a number in a range, numpy's included, as a float."""
    try:
        number = math.nan if isinstance(value, (bool, str)) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not least <= number <= most:
        limits = f"at least {least:g} and at most {most:g}"
        raise InputError(f"{flag(name)} must be a number of {limits}, not {shown(value)}")
    return number


def flag(name: str) -> str:
    """Return the command line's name of an option."""
    return "--" + name.replace("_", "-")


def check_elbo_options(name: str, num_particles: int, num_groups: int, *, weighs_rate: bool, free_bits: float) -> None:
    """Refuse options that an ELBO does not have.

    Args:
        name: one of `ELBOS`.
        num_particles: K.
        num_groups: M.
        weighs_rate: the rate is to be weighed in the loss, by beta, a warm-up or otherwise.
        free_bits: nats.

    Raises:
        InputError: there is no rate to weigh in an importance-weighted bound, no rate of each dimension, no other
            particle to compare with, or no way to part the particles.
    """
    if weighs_rate and name not in WITH_BETA:
        raise InputError(
            f"--elbo {name} has no rate to weigh: leave --beta, --warm-up and --rate-reduction, or take one of "
            f"{', '.join(WITH_BETA)}"
        )
    if free_bits and name not in WITH_FREE_BITS:
        raise InputError(f"--elbo {name} knows no free bits: leave --free-bits, or take {', '.join(WITH_FREE_BITS)}")
    if name == "score-loo" and num_particles < 2:
        raise InputError("--elbo score-loo compares each particle with the others: give --particles 2 or more")
    if name == "miwae" and num_particles % num_groups:
        raise InputError(f"--elbo miwae: --particles {num_particles} must be a multiple of --groups {num_groups}")
