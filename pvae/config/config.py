"""The typed, frozen description of one training: everything that decides what it computes."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from typing import Any

from pvae.config.options import (
    ACTIVATIONS,
    BINARIZATIONS,
    COMPILERS,
    DATASETS,
    ELBOS,
    INITIALIZATIONS,
    LIKELIHOODS,
    NETWORKS,
    ON_NAN,
    PIXELS,
    POSTERIORS,
    PRECISIONS,
    RATE_REDUCTIONS,
    SCHEDULES,
    WITH_FREE_BITS,
    WITHOUT_CHAINS,
    check_elbo_options,
    flag,
    real_number,
    whole_number,
    widths,
)
from pvae.core.errors import InputError, check_name, shown

__all__ = ["Config"]


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
            them in reverse. A linear network has none, and does not read it.
        activation: of an MLP's hidden layers, "relu" or "tanh".
        initialization: "torch" leaves the weights as torch draws them; "burda" is Glorot-uniform with zero biases, and
            the decoder's last bias the logit of the mean training image (an MLP and a Bernoulli only).
        latent_dim: L, the number of latent dimensions.
        second_latent_dim: of a second stochastic layer above the first, z1 -> z2 in the posterior and z2 -> z1 in the
            prior (an MLP and a Normal posterior only); 0 for none.
        second_hidden: widths of the hidden layers between the two.
        posterior: "normal" reads the encoder's output as (loc, log scale), "normal-log-variance" as
            (loc, log variance); "delta" is a point, and with it there is no prior term: an autoencoder.
        likelihood: one of `LIKELIHOODS`.
        scale: of a Normal likelihood or a discretised logistic one: fixed, or where training starts.
        elbo: one of `ELBOS`.
        particles: number of samples z ~ q(z | x) per datum in the bound.
        alpha: of the ELBO "renyi": 0 is the importance-weighted bound, 1 the ELBO; below 0 it is no lower bound.
        mix: the ELBO's share in "ciwae".
        groups: into which "miwae" parts the particles.
        beta: weight of the rate in the loss; never in a reported ELBO.
        rate_reduction: "sum" over the latent dimensions, which is the KL divergence, or the "mean" that one
            document weighs with beta in its place; the loss alone hangs on it.
        warm_up: epochs over which the weight of the rate rises from exactly 0 to beta.
        free_bits: nats below which the rate of a latent dimension, averaged over the batch, costs nothing.
        epochs: passes over the training images.
        batch_size: images per step.
        lr: Adam's learning rate, at the start.
        schedule: "constant"; "cosine", down to 2 % of it at the last step; "steps", times 10^(-1/5) after 2/5 and again
            after 7/10 of the epochs; or "paper", Burda et al.'s: times 10^(-i/7) for the i-th of eight stages of 3^i
            passes (3,280 in all, scaled to `epochs`).
        adam_eps: Adam's epsilon.
        clip_norm: the most that the norm of all gradients together may be, by which they are scaled; 0 for no bound.
        on_nan: at a loss or a gradient that is NaN or infinite "stop", or "skip" that step.
        max_skipped: steps that may be skipped in a training.
        seed: of the initial weights, the order of the images and every draw of z.
        compile: "none" runs model and guide at every step, "graph" records the step's operators once and replays them,
            "inductor" compiles them to C++ or Triton, "cuda-graph" launches them on a GPU as one; the same training, to
            rounding.
        precision: "fp32", or "bf16" for matrix products and convolutions in bfloat16, whose results and all else are
            float32, or "tf32" for those of a GPU in TF32; of a compiled step only.
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
    activation: str = "relu"
    initialization: str = "torch"
    latent_dim: int = 32
    second_latent_dim: int = 0
    second_hidden: tuple[int, ...] = (100, 100)
    posterior: str = "normal"
    likelihood: str = "bernoulli"
    scale: float = 1.0
    elbo: str = "trace"
    particles: int = 1
    alpha: float = 0.5
    mix: float = 0.5
    groups: int = 1
    beta: float = 1.0
    rate_reduction: str = "sum"
    warm_up: int = 0
    free_bits: float = 0.0
    epochs: int = 16
    batch_size: int = 100
    lr: float = 1e-3
    schedule: str = "constant"
    adam_eps: float = 1e-8
    seed: int = 0
    clip_norm: float = 0.0
    on_nan: str = "stop"
    max_skipped: int = 10
    compile: str = "none"
    precision: str = "fp32"
    source: str = ""

    def __post_init__(self) -> None:
        """Refuse what cannot be trained, before anything is built or written."""
        if not isinstance(self.system, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", self.system):
            raise InputError(f"--system {shown(self.system)}: a system's name is letters, digits, dots and dashes")
        for name in ("hidden", "second_hidden"):
            object.__setattr__(self, name, widths(name, getattr(self, name)))
        for name, names in _CHOICES.items():
            value = getattr(self, name)
            if not (name == "dataset" and isinstance(value, str) and value.startswith("folder:")):
                check_name(_KINDS.get(name, name.replace("_", " ")), value, names)
        if not isinstance(self.source, str) or len(self.source) > 1000:
            raise InputError(f"source must be a text of at most 1,000 characters, not {shown(self.source)}")
        for name in ("grey", "skip_broken"):
            if not isinstance(getattr(self, name), bool):
                raise InputError(f"{flag(name)} must be true or false, not {shown(getattr(self, name))}")
        for name, limits in _WHOLE_NUMBERS.items():
            object.__setattr__(self, name, whole_number(name, getattr(self, name), *limits))
        for name, (least, most) in _REAL_NUMBERS.items():
            object.__setattr__(self, name, real_number(name, getattr(self, name), least, most))
        self._check_together()

    def _check_together(self) -> None:
        """Refuse fields that are each possible and contradict each other."""
        weighs_rate = self.beta != 1 or self.warm_up > 0 or self.rate_reduction != "sum"
        check_elbo_options(self.elbo, self.particles, self.groups, weighs_rate=weighs_rate, free_bits=self.free_bits)
        if self.posterior == "delta" and self.elbo not in WITH_FREE_BITS:
            raise InputError(f"--posterior delta has no density: train it by --elbo trace, not {self.elbo}")
        if self.likelihood == "normal-linear" and (self.network != "linear" or self.second_latent_dim):
            raise InputError("--likelihood normal-linear goes with --network linear and one stochastic layer only")
        if self.likelihood == "normal-optimal" and self.elbo in ("dreg", "score", "score-loo"):
            raise InputError(
                f"--elbo {self.elbo} needs weights that each depend on their own draw only, and --likelihood "
                "normal-optimal fits one scale to all of them: take --elbo trace, analytic, stl or iwae"
            )
        self._check_second_layer()
        self._check_what_is_read()
        if self.pixels == "symmetric" and (self.binarize != "none" or not self.likelihood.startswith("normal")):
            raise InputError("--pixels symmetric goes with --binarize none and a --likelihood normal... only")
        if self.posterior == "delta" and (self.beta != 1 or self.warm_up or self.free_bits):
            raise InputError(
                "--posterior delta has no rate: leave --beta, --warm-up and --free-bits as they are by default"
            )
        if self.precision != "fp32" and self.compile == "none":
            raise InputError(f"--precision {self.precision} goes with --compile graph, inductor or cuda-graph only")
        if self.initialization == "burda" and (self.network != "mlp" or "bernoulli" not in self.likelihood):
            raise InputError("--initialization burda goes with --network mlp and a Bernoulli likelihood only")

    def _check_second_layer(self) -> None:
        if not self.second_latent_dim:
            return
        if self.network != "mlp" or self.posterior == "delta":
            raise InputError("--second-latent-dim goes with --network mlp and a normal posterior only")
        if self.free_bits or self.rate_reduction != "sum":
            raise InputError("--second-latent-dim has no rate of a dimension: leave --free-bits and --rate-reduction")
        if self.elbo in WITHOUT_CHAINS:
            raise InputError(f"--elbo {self.elbo} knows one stochastic layer only: take trace or iwae, for instance")

    def _check_what_is_read(self) -> None:
        """Refuse an option that nothing would read."""
        defaults = {one.name: one.default for one in fields(self)}
        self.refuse_unread(name for name in _OPTIONAL if getattr(self, name) != defaults[name])

    def refuse_unread(self, given: Iterable[str]) -> None:
        """Refuse fields that somebody chose and nothing reads.

        A system's own value is not refused where another field keeps it from being read: `--system conv-2d --likelihood
        bernoulli` leaves the system's scale behind.

        Args:
            given: names of the fields.

        Raises:
            InputError: one of them is not read.
        """
        reads_files = self.dataset == "celeba" or self.dataset.startswith("folder:")
        unread = {
            "alpha": self.elbo != "renyi",
            "mix": self.elbo != "ciwae",
            "groups": self.elbo != "miwae",
            "max_skipped": self.on_nan != "skip",
            "second_hidden": not self.second_latent_dim,
            "activation": self.network != "mlp",
            "hidden": self.network == "linear",
            "scale": "bernoulli" in self.likelihood,
            **dict.fromkeys(("image_size", "crop", "grey", "skip_broken"), not reads_files),
        }
        for name in given:
            if unread.get(name):
                raise InputError(f"{flag(name)} goes with {_READ_WITH[name]} only")

    def replace(self, /, **overrides: Any) -> Config:
        """Return a copy with some fields changed; an unknown field or a bad value is an `InputError`."""
        for name in overrides:
            check_name("option", name, [one.name for one in fields(self)])
        return replace(self, **overrides)


_WHOLE_NUMBERS = {
    "latent_dim": (1, 10**9),
    "particles": (1, 10**6),
    "groups": (1, 10**6),
    "epochs": (1, 10**9),
    "batch_size": (1, 10**9),
    "image_size": (1, 10**4),
    "crop": (0, 10**4),
    "pad": (0, 10**3),
    "warm_up": (0, 10**9),
    "second_latent_dim": (0, 10**9),
    "max_skipped": (0, 10**9),
    "seed": (0, 2**63 - 1),
}
_TINY, _HUGE = 1e-38, 1e38  # float32 holds little beyond
_REAL_NUMBERS = {
    **dict.fromkeys(("scale", "lr", "adam_eps"), (_TINY, _HUGE)),
    **dict.fromkeys(("beta", "free_bits", "clip_norm"), (0.0, _HUGE)),
    "alpha": (-_HUGE, _HUGE),
    "mix": (0.0, 1.0),
}
_CHOICES = {
    "dataset": DATASETS,
    "binarize": BINARIZATIONS,
    "pixels": PIXELS,
    "network": NETWORKS,
    "activation": ACTIVATIONS,
    "initialization": INITIALIZATIONS,
    "schedule": SCHEDULES,
    "posterior": POSTERIORS,
    "likelihood": LIKELIHOODS,
    "elbo": ELBOS,
    "on_nan": ON_NAN,
    "compile": COMPILERS,
    "precision": PRECISIONS,
    "rate_reduction": RATE_REDUCTIONS,
}
_OPTIONAL = ("alpha", "mix", "groups", "max_skipped", "second_hidden", "activation")  # a system that sets one reads it
_READ_WITH = {
    "alpha": "--elbo renyi",
    "mix": "--elbo ciwae",
    "groups": "--elbo miwae",
    "max_skipped": "--on-nan skip",
    "second_hidden": "--second-latent-dim",
    "activation": "--network mlp",
    "hidden": "a --network that has hidden layers",
    "scale": "a normal or logistic --likelihood",
    **dict.fromkeys(("image_size", "crop", "grey", "skip_broken"), "--dataset celeba or folder:PATH"),
}
_KINDS = {
    "on_nan": "--on-nan",
    "compile": "way to compile",
    "dataset": "data set",
    "binarize": "binarization",
    "elbo": "ELBO",
    "pixels": "range of pixels",
}
