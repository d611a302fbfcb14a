"""The typed, frozen description of one training: everything that decides what it computes."""

from __future__ import annotations

import math
import operator
import re
from dataclasses import dataclass, fields, replace
from typing import Any

from pvae.errors import InputError, check_name

__all__ = ["BINARIZATIONS", "DATASETS", "ELBOS", "Config"]

DATASETS = ("auto", "mnist", "fashion-mnist", "mnist-5k")
BINARIZATIONS = ("none", "threshold", "static", "dynamic")
ELBOS = ("trace", "analytic", "handwritten")


@dataclass(frozen=True, kw_only=True)
class Config:
    """One training, described; the defaults are the Deep Bayes system (source document 004).

    A published system is a `Config`, and so is a user's own. Where the training runs (device, folders)
    and how much it prints are no part of it.

    Args:
        system: the name under which the run is filed and titled.
        dataset: one of `DATASETS`; "auto" takes the best MNIST that can be had.
        binarize: how grey pixels become outcomes of a Bernoulli; "none" keeps them grey, and what is
            reported is then a pseudo-ELBO.
        hidden: widths of the encoder's hidden layers; the decoder takes them in reverse.
        latent_dim: L, the number of latent dimensions.
        elbo: one of `ELBOS`.
        particles: number of samples z ~ q(z | x) per datum in the bound.
        beta: weight of the rate in the loss; never in a reported ELBO.
        epochs: passes over the training images.
        batch_size: images per step.
        lr: Adam's learning rate.
        seed: of the initial weights, the order of the images and every draw of z.

    Raises:
        InputError: a field is unknown, of the wrong type or out of range.

    >>> Config(latent_dim=2).replace(beta=4.0).latent_dim
    2
    """

    system: str = "deep-bayes"
    dataset: str = "auto"
    binarize: str = "none"
    hidden: tuple[int, ...] = (100, 100)
    latent_dim: int = 32
    elbo: str = "trace"
    particles: int = 1
    beta: float = 1.0
    epochs: int = 16
    batch_size: int = 100
    lr: float = 1e-3
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot be trained, before anything is built or written."""
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", str(self.system)):
            raise InputError(f"--system {self.system!r}: a system's name is letters, digits, dots and dashes")
        object.__setattr__(self, "hidden", _widths(self.hidden))
        check_name("data set", self.dataset, DATASETS)
        check_name("binarization", self.binarize, BINARIZATIONS)
        check_name("ELBO", self.elbo, ELBOS)
        for name in ("latent_dim", "particles", "epochs", "batch_size"):
            object.__setattr__(self, name, _count(name, getattr(self, name)))
        object.__setattr__(self, "seed", _count("seed", self.seed, least=0))
        object.__setattr__(self, "beta", _number("beta", self.beta, zero_too=True))
        object.__setattr__(self, "lr", _number("lr", self.lr))

    def replace(self, **overrides: Any) -> Config:
        """Return a copy with some fields changed; an unknown field or a bad value is an `InputError`."""
        for name in overrides:
            check_name("option", name, [field.name for field in fields(self)])
        return replace(self, **overrides)


def _widths(hidden: Any) -> tuple[int, ...]:
    if not isinstance(hidden, (tuple, list)) or not hidden:
        raise InputError(f"{_flag('hidden')} needs at least one layer width, such as 100 100, not {hidden!r}")
    return tuple(_count("hidden", width) for width in hidden)


def _count(name: str, value: Any, least: int = 1) -> int:
    """Return a whole number, numpy's included, as an int."""
    try:
        count = operator.index(value)
    except TypeError:
        count = -1
    if isinstance(value, bool) or not least <= count < 2**63:
        raise InputError(f"{_flag(name)} must be a whole number of at least {least}, not {value!r}")
    return count


def _number(name: str, value: Any, zero_too: bool = False) -> float:
    """Return a finite number, numpy's included, as a float."""
    try:
        number = math.nan if isinstance(value, (bool, str)) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number) or number < 0 or (number == 0 and not zero_too):
        wanted = "a finite number of at least 0" if zero_too else "a finite number above 0"
        raise InputError(f"{_flag(name)} must be {wanted}, not {value!r}")
    return number


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
