"""The typed, frozen description of one training: everything that decides what it computes."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from typing import Any

from pvae.errors import InputError, check_name

__all__ = [
    "BINARIZATIONS",
    "DATASETS",
    "ELBOS",
    "LIKELIHOODS",
    "NETWORKS",
    "PIXELS",
    "POSTERIORS",
    "RATE_REDUCTIONS",
    "Config",
]

DATASETS = ("auto", "mnist", "fashion-mnist", "mnist-5k", "celeba", "folder:PATH")
BINARIZATIONS = ("none", "threshold", "static", "dynamic")
ELBOS = ("trace", "analytic", "handwritten")
PIXELS = ("unit", "symmetric")
NETWORKS = ("mlp", "conv", "conv-batchnorm")
POSTERIORS = ("normal", "normal-log-variance", "delta")
LIKELIHOODS = (
    "bernoulli",
    "continuous-bernoulli",
    "normal",
    "normal-learned",
    "normal-optimal",
    "discretized-logistic",
)
RATE_REDUCTIONS = ("sum", "mean")


@dataclass(frozen=True, kw_only=True)
class Config:
    """One training, described; the defaults are the Deep Bayes system (source document 004).

    A published system is a `Config`, and so is a user's own. Where the training runs (device, folders)
    and how much it prints are no part of it.

    Args:
        system: the name under which the run is filed and titled.
        dataset: one of `DATASETS`; "auto" takes the best MNIST that can be had, "folder:PATH" is any tree of
            image files.
        image_size: height and width to which image files are resized (celeba, folder).
        crop: side of the square cut out of the middle of image files first; 0 for the whole image.
        grey: read image files in one channel.
        skip_broken: leave out image files that cannot be decoded.
        binarize: how grey pixels become outcomes of a Bernoulli; "none" keeps them grey, and what is
            reported of a Bernoulli is then a pseudo-ELBO.
        pad: black pixels added on each side of the images.
        pixels: "unit" for [0, 1], "symmetric" for [-1, 1].
        network: one of `NETWORKS`.
        hidden: widths of the encoder's hidden layers, or channels of its convolutions; the decoder takes
            them in reverse.
        latent_dim: L, the number of latent dimensions.
        posterior: "normal" reads the encoder's output as (loc, log scale), "normal-log-variance" as
            (loc, log variance); "delta" is a point, and with it there is no prior term: an autoencoder.
        likelihood: one of `LIKELIHOODS`.
        scale: of a Normal likelihood or a discretised logistic one: fixed, or where training starts.
        elbo: one of `ELBOS`.
        particles: number of samples z ~ q(z | x) per datum in the bound.
        beta: weight of the rate in the loss; never in a reported ELBO.
        rate_reduction: "sum" over the latent dimensions, which is the KL divergence, or the "mean" that one
            document weighs with beta in its place; the loss alone hangs on it.
        warm_up: epochs over which the weight of the rate rises from exactly 0 to beta.
        free_bits: nats below which the rate of a latent dimension, averaged over the batch, costs nothing.
        epochs: passes over the training images.
        batch_size: images per step.
        lr: Adam's learning rate.
        seed: of the initial weights, the order of the images and every draw of z.
        source: where the system was published.

    Raises:
        InputError: a field is unknown, of the wrong type or out of range.

    >>> Config(latent_dim=2).replace(beta=4.0).latent_dim
    2
    """

    system: str = "deep-bayes"
    dataset: str = "auto"
    image_size: int = 64
    crop: int = 0
    grey: bool = False
    skip_broken: bool = False
    binarize: str = "none"
    pad: int = 0
    pixels: str = "unit"
    network: str = "mlp"
    hidden: tuple[int, ...] = (100, 100)
    latent_dim: int = 32
    posterior: str = "normal"
    likelihood: str = "bernoulli"
    scale: float = 1.0
    elbo: str = "trace"
    particles: int = 1
    beta: float = 1.0
    rate_reduction: str = "sum"
    warm_up: int = 0
    free_bits: float = 0.0
    epochs: int = 16
    batch_size: int = 100
    lr: float = 1e-3
    seed: int = 0
    source: str = ""

    def __post_init__(self) -> None:
        """Refuse what cannot be trained, before anything is built or written."""
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", str(self.system)):
            raise InputError(f"--system {self.system!r}: a system's name is letters, digits, dots and dashes")
        object.__setattr__(self, "hidden", _widths(self.hidden))
        for field, names in _CHOICES.items():
            value = getattr(self, field)
            if not (field == "dataset" and str(value).startswith("folder:")):
                check_name(_KINDS.get(field, field.replace("_", " ")), value, names)
        if not isinstance(self.source, str):
            raise InputError(f"source must be a text, not {self.source!r}")
        for field in ("grey", "skip_broken"):
            if not isinstance(getattr(self, field), bool):
                raise InputError(f"{_flag(field)} must be true or false, not {getattr(self, field)!r}")
        for name, most in (("latent_dim", 10**9), ("particles", 10**6), ("epochs", 10**9), ("batch_size", 10**9)):
            object.__setattr__(self, name, _count(name, getattr(self, name), most=most))
        object.__setattr__(self, "image_size", _count("image_size", self.image_size, most=10**4))
        for name, most in (("crop", 10**4), ("pad", 10**3), ("warm_up", 10**9), ("seed", 2**63 - 1)):
            object.__setattr__(self, name, _count(name, getattr(self, name), least=0, most=most))
        for name in ("scale", "lr"):
            object.__setattr__(self, name, _number(name, getattr(self, name)))
        for name in ("beta", "free_bits"):
            object.__setattr__(self, name, _number(name, getattr(self, name), zero_too=True))
        self._check_together()

    def _check_together(self) -> None:
        """Refuse fields that are each possible and contradict each other."""
        if self.pixels == "symmetric" and (self.binarize != "none" or not self.likelihood.startswith("normal")):
            raise InputError("--pixels symmetric goes with --binarize none and a --likelihood normal... only")
        if self.posterior == "delta" and (self.beta != 1 or self.warm_up or self.free_bits):
            raise InputError(
                "--posterior delta has no rate: leave --beta, --warm-up and --free-bits as they are by default"
            )

    def replace(self, **overrides: Any) -> Config:
        """Return a copy with some fields changed; an unknown field or a bad value is an `InputError`."""
        for name in overrides:
            check_name("option", name, [field.name for field in fields(self)])
        return replace(self, **overrides)


_CHOICES = {
    "dataset": DATASETS,
    "binarize": BINARIZATIONS,
    "pixels": PIXELS,
    "network": NETWORKS,
    "posterior": POSTERIORS,
    "likelihood": LIKELIHOODS,
    "elbo": ELBOS,
    "rate_reduction": RATE_REDUCTIONS,
}
_KINDS = {"dataset": "data set", "binarize": "binarization", "elbo": "ELBO", "pixels": "range of pixels"}


def _widths(hidden: Any) -> tuple[int, ...]:
    widths = list(hidden) if isinstance(hidden, Iterable) and not isinstance(hidden, (str, set)) else []
    if not widths:
        raise InputError(f"{_flag('hidden')} needs at least one layer width, such as 100 100, not {hidden!r}")
    return tuple(_count("hidden", width, most=10**9) for width in widths)


def _count(name: str, value: Any, least: int = 1, most: int = 2**63 - 1) -> int:
    """Return a whole number, numpy's included, as an int."""
    try:
        count = operator.index(value)
    except TypeError:
        count = -1
    if isinstance(value, bool) or not least <= count <= most:
        limit = "" if count <= most else f" and at most {most:,}"
        raise InputError(f"{_flag(name)} must be a whole number of at least {least}{limit}, not {value!r}")
    return count


def _number(name: str, value: Any, zero_too: bool = False) -> float:
    """Return a finite number, numpy's included, as a float."""
    try:
        number = math.nan if isinstance(value, (bool, str)) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number) or number < 0 or (number == 0 and not zero_too):
        wanted = "a finite number of at least 0" if zero_too else "a finite number above 0"
        raise InputError(f"{_flag(name)} must be {wanted}, not {value!r}")
    return number


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
