"""The typed, frozen description of one training: everything that decides what it computes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
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
        object.__setattr__(self, "hidden", _widths(self.hidden))
        check_name("data set", self.dataset, DATASETS)
        check_name("binarization", self.binarize, BINARIZATIONS)
        check_name("ELBO", self.elbo, ELBOS)
        for name in ("latent_dim", "particles", "epochs", "batch_size"):
            _check_count(name, getattr(self, name))
        _check_count("seed", self.seed, least=0)
        _check_number("beta", self.beta, zero_too=True)
        _check_number("lr", self.lr)

    def replace(self, **overrides: Any) -> Config:
        """Return a copy with some fields changed; an unknown field or a bad value is an `InputError`."""
        for name in overrides:
            check_name("option", name, [field.name for field in fields(self)])
        return replace(self, **overrides)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values that JSON can hold."""
        return {**asdict(self), "hidden": list(self.hidden)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Config:
        """Return the configuration that `to_dict` gave, checked as any other."""
        return cls().replace(**values)


def _widths(hidden: Any) -> tuple[int, ...]:
    if not isinstance(hidden, (tuple, list)) or not hidden:
        raise InputError(f"{_flag('hidden')} needs at least one layer width, such as 100 100, not {hidden!r}")
    for width in hidden:
        _check_count("hidden", width)
    return tuple(hidden)


def _check_count(name: str, value: Any, least: int = 1) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 2**63:
        raise InputError(f"{_flag(name)} must be a whole number of at least {least}, not {value!r}")


def _check_number(name: str, value: Any, zero_too: bool = False) -> None:
    wanted = "a finite number of at least 0" if zero_too else "a finite number above 0"
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise InputError(f"{_flag(name)} must be {wanted}, not {value!r}")
    if value < 0 or (value == 0 and not zero_too):
        raise InputError(f"{_flag(name)} must be {wanted}, not {value!r}")


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
