"""`Config`: the options of one training, each with its default, range and help text."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from typing import Any

from pvae.config.families import (
    FLAT,
    LIKELIHOODS,
    POSTERIORS,
    PRIORS,
    Likelihood,
    Posterior,
    Prior,
    help_of,
    names_where,
    text_where,
)
from pvae.config.options import Option, flag, option
from pvae.config.refusals import Case, refuse
from pvae.core.errors import InputError, check_name
from pvae.data.reading import DATASETS, MISSING_VALUES
from pvae.elbos.registry import ELBOS
from pvae.models.columns import COLUMNS, ColumnKind, column_kinds

__all__ = ["OPTIONS", "Config"]

_SIZE = (1, 10**9)
_SCALE = (1e-38, 1e38)  # float32 holds little beyond
_READS_FILES = ("--dataset folder:PATH or celeba", lambda c: c.dataset == "celeba" or c.dataset.startswith("folder:"))
_READS_TABLES = ("--dataset table:FILE", lambda c: c.dataset.startswith("table:"))
_HAS_FLOW_NETWORKS = (
    f"--posterior {text_where(POSTERIORS, lambda row: row.has_flow_networks)}, or --prior flow,",
    lambda c: c.posterior_family.has_flow_networks or c.prior_family.is_flow,
)


@dataclass(frozen=True, kw_only=True)
class Config:
    """The options that decide what a training computes; the defaults are the Deep Bayes system (post 004).

    A published system is a `Config`, and so is a user's own. The device, the folders and the amount of output are not
    part of it. `OPTIONS` holds the type, range and help text of each field. The options of `python -m pvae.train`, the
    keys of its TOML files and the list below are generated from it; `adam_eps` and `source` are set
    in TOML and Python only.

    Args:
        FIELDS

    Raises:
        InputError: a field is unknown, has the wrong type or is out of range, or two fields contradict each other.

    >>> Config(latent_dim=2).replace(beta=4.0).latent_dim
    2
    """

    system: str = option(
        "deep-bayes",
        "name of the system, used in the name of the run folder and in titles",
        pattern=(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", "at most 100 letters, digits, dots and dashes"),
    )
    dataset: str = option(
        "auto",
        "{choices}; auto is MNIST, or 5,000 of its digits where MNIST is not available; folder:PATH any tree of image "
        "files, or an .npy or .npz file of images (N, H, W[, C]); array:FILE an .npy, .npz or .h5 file of any shape, "
        "or a sparse matrix, .mtx or .h5ad; table:FILE a table of numbers and texts, .csv, .tsv, .parquet or .xlsx",
        choices=DATASETS,
    )
    image_size: str = option(
        "auto",
        "height and width to which image files are resized: 28x20, or 64 for 64x64. auto: their median size, reduced "
        "to a longer side of 64 if it is larger; what does not fit its shape is cut off at both ends",
        pattern=(r"auto|[1-9]\d{0,3}(x[1-9]\d{0,3})?", "auto, a size such as 28x20 (height x width), or 64 for 64x64"),
        only_with=_READS_FILES,
    )
    grey: bool = option(
        False,
        "read colour images as grey ones; images that are all grey have one channel anyway",
        only_with=_READS_FILES,
    )
    skip_broken: bool = option(False, "leave out image files that cannot be decoded", only_with=_READS_FILES)
    valid: float = option(
        0.0,
        "share of the training images, always the same ones, that are held out to choose the best epoch; if the data "
        "set has a validation split, any share above 0 takes that. 0 holds none out",
        limits=(0.0, 0.9),
    )
    binarize: str = option(
        "none",
        "none: pixels stay grey, and the bound of a Bernoulli is a pseudo-ELBO; threshold: at 0.5; static: each drawn "
        "once with its grey value as probability; dynamic: drawn anew at every visit",
        choices=("none", "threshold", "static", "dynamic"),
    )
    missing: bool = option(
        False,
        "NaN, in a table an empty field, is a value that is missing: the bound is one on log p of the others, and the "
        "encoder sees which they are",
    )
    label_column: str = option(
        "",
        "the column of a table that holds the labels, and is no part of x; an empty field is a label that is not known",
        pattern=(r"[^\n]{0,200}", "the name of a column"),
        only_with=_READS_TABLES,
    )
    name_column: str = option(
        "",
        "the column of a table that names its rows, and is no part of x: encode, score and sample --impute write the "
        "names",
        pattern=(r"[^\n]{0,200}", "the name of a column"),
        only_with=_READS_TABLES,
    )
    ignore: str = option(
        "",
        "columns of a table that are no part of x: their names, with commas in between",
        pattern=(r"[^\n]{0,10000}", "names of columns, with commas in between"),
        only_with=_READS_TABLES,
    )
    missing_values: str = option(
        MISSING_VALUES,
        "the texts that stand for a missing value in a table, beside an empty field, with commas in between; "
        "they replace the default ones",
        pattern=(r"[^\n]{0,1000}", "texts, with commas in between"),
        only_with=_READS_TABLES,
    )
    condition: bool = option(
        False,
        "train p(x | z, y) given the labels y of the data, their classes or attributes: posterior and decoder see y, "
        "and the bound is one on log p(x | y)",
    )
    labels: int = option(
        0,
        "use the classes of this number of training data, equally many of each class, or all that are known; all other "
        "labels are latent, and --elbo enumerate sums over them (semi-supervised, M2 of Kingma et al.). 0: none",
    )
    label_weight: float = option(
        5.0,
        "weight of the classifier q(y | x) in the loss, times its cross-entropy, a mean over the known labels; 0.1 is "
        "that of Kingma et al., who train for 3,000 passes",
        only_with=("--labels above 0", lambda c: c.labels > 0),
    )
    pad: int = option(0, "black pixels added on each side of the images", limits=(0, 10**3))
    pixels: str = option("unit", "unit: [0, 1]; symmetric: [-1, 1]", choices=("unit", "symmetric"))
    network: str = option(
        "mlp",
        "mlp; mlp-batchnorm: the same with BatchNorm, also in the networks between stochastic layers; conv: 3x3 "
        "convolutions that each halve the image; conv-batchnorm: with BatchNorm and LeakyReLU; "
        "conv-groupnorm: 4x4 convolutions with GroupNorm and SiLU, the fastest; linear: no hidden layers",
        choices=("mlp", "mlp-batchnorm", "conv", "conv-batchnorm", "conv-groupnorm", "linear"),
    )
    hidden: tuple[int, ...] = option(
        (100, 100),
        "widths of the encoder's hidden layers, or channels of its convolutions; the decoder takes them in reverse",
        only_with=(
            "a --network that has hidden layers",  # a linear encoder gives flows and top-down layers that many values
            lambda c: c.network != "linear" or c.posterior_family.has_flow_networks or c.inference != "bottom-up",
        ),
    )
    activation: str = option(
        "relu",
        "{choices}, of the hidden layers; a gated layer is h * sigmoid(g), of two linear layers",
        choices=("relu", "tanh", "softplus", "elu", "gated"),
        only_with=(
            "--network mlp or mlp-batchnorm, or --upper-latent-dims",
            lambda c: c.network.startswith("mlp") or bool(c.upper_latent_dims),
        ),
    )
    initialization: str = option(
        "torch",
        "torch: as torch draws the weights; burda: Glorot-uniform with zero biases, and the decoder's last bias is the "
        "logit of the mean training image; exact: a linear path beside each network, set to factor analysis or another "
        "model that has a closed form, whichever describes the validation data best",
        choices=("torch", "burda", "exact"),
    )
    latent_dim: int = option(32, "number of latent dimensions", limits=(1, 10**6))
    upper_latent_dims: tuple[int, ...] = option(
        (),
        "dimensions of further stochastic layers z2, z3, ... above z1, which has --latent-dim dimensions; in the prior "
        "each layer is drawn given the one above it; requires --posterior normal or, from the bottom up, "
        "normal-log-variance or bernoulli",
    )
    upper_hidden: tuple[int, ...] = option(
        (100, 100),
        "widths of the hidden layers between two stochastic layers",
        only_with=("--upper-latent-dims", lambda c: bool(c.upper_latent_dims)),
    )
    inference: str = option(
        "bottom-up",
        "in which order the posterior draws several stochastic layers. bottom-up: z1 given x, then each layer given "
        "the one below (Burda et al.); ladder: the top layer given x, then each layer from the product of its prior "
        "and a Normal computed from x (Sonderby et al.); top-down: the top layer given x, then each layer given x and "
        "the one above, and the decoder takes all layers (the HVAE of Tomczak and Welling)",
        choices=("bottom-up", "ladder", "top-down"),
        only_with=("--upper-latent-dims", lambda c: bool(c.upper_latent_dims)),
    )
    posterior: str = option("normal", help_of(POSTERIORS), choices=tuple(POSTERIORS))
    categories: int = option(
        10,
        "K, the number of classes of each latent variable: --latent-dim 200 --categories 10 are 20 variables; or of "
        "codes, or levels",
        limits=(2, 10**4),
        only_with=(
            "--posterior categorical, vq or fsq",
            lambda c: c.posterior_family.support in ("categories", "codes"),
        ),
    )
    code_dim: int = option(
        1,
        "length of a code: --latent-dim 64 --code-dim 8 are 8 codes",
        limits=(1, 10**6),
        only_with=("--posterior vq", lambda c: "code_dim" in c.posterior_family.arguments(c)),
    )
    flow_length: int = option(
        2,
        "number of transforms of a flow, of the posterior's and of the prior's",
        limits=(1, 1000),
        only_with=(
            f"--posterior {text_where(POSTERIORS, lambda row: row.is_flow)}, or --prior flow,",
            lambda c: c.posterior_family.is_flow or c.prior_family.is_flow,
        ),
    )
    flow_hidden: tuple[int, ...] = option(
        (100, 100),
        "widths of the hidden layers of each transform of an autoregressive flow",
        only_with=_HAS_FLOW_NETWORKS,
    )
    prior: str = option("standard-normal", help_of(PRIORS), choices=tuple(PRIORS))
    components: int = option(
        500,
        "number of Normals of a prior that is a mixture, or of pseudo-inputs",
        limits=(1, 10**6),
        only_with=(f"--prior {text_where(PRIORS, lambda row: row.is_mixture)}", lambda c: c.prior_family.is_mixture),
    )
    likelihood: str = option(
        "bernoulli",
        f"{help_of(LIKELIHOODS)}; {', '.join(names_where(LIKELIHOODS, lambda row: not row.is_of_images))} are for data "
        "other than images",
        choices=tuple(LIKELIHOODS),
    )
    columns: str = option(
        "",
        "the kind of single columns of a table, as in income=real,room=categorical,size=ordinal:small<medium<large; or "
        "of each column of a row, in order: real, count (a negative binomial), binary, categorical:K or ordinal:K, of "
        "codes 0 to K - 1; *N repeats one, as in real*10,count,categorical:5",
        pattern=COLUMNS,
        only_with=(
            "--likelihood columns or --dataset table:FILE",
            lambda c: c.likelihood_family.is_of_columns or c.dataset.startswith("table:"),
        ),
    )
    scale: float = option(
        1.0,
        "standard deviation of a normal likelihood or scale of a logistic one: fixed, or its initial value",
        limits=_SCALE,
        only_with=("a likelihood that has a scale", lambda c: c.likelihood_family.has_scale),
    )
    elbo: str = option(
        "trace",
        "trace (Monte Carlo) and analytic (closed-form KL): means over the batch, tested equal to Pyro's Trace_ELBO "
        "and TraceMeanField_ELBO divided by the batch size; handwritten (log p(x|z) + log p(z) - log q(z|x) without "
        "Pyro's inference); the ELBO with another gradient: stl (sticking the landing), score (score function), "
        "score-loo (with a leave-one-out baseline); bounds of importance weights: iwae, dreg (doubly reparameterised), "
        "renyi, ciwae, miwae, piwae (miwae for the encoder); enumerate: the ELBO "
        "summed over the labels that are not known, with --labels; of bits: arms and disarm, antithetic draws; vimco, "
        "iwae with baselines; gumbel, a relaxed bound; straight-through; of categories the last three and "
        "disarm-categories",
        choices=tuple(ELBOS),
    )
    particles: int = option(1, "number K of samples z ~ q(z | x) per image in the bound", limits=(1, 10**6))
    alpha: float = option(
        0.5,
        "order of the Renyi bound: 0 is iwae, 1 the ELBO, -inf the largest weight (VR-max); below 0 the objective is "
        "not a lower bound. The reported elbo is the ELBO",
        limits=(-math.inf, 1e38),
        only_with=("--elbo renyi", lambda c: c.elbo == "renyi"),
    )
    temperature: float = option(
        0.5,
        "of relaxed bits or categories: at a lower one, gradients have less bias and more noise",
        limits=(1e-3, 100.0),
        only_with=("--elbo gumbel", lambda c: c.elbo == "gumbel"),
    )
    mix: float = option(
        0.5,
        "share of the ELBO in the bound, the rest is iwae",
        limits=(0.0, 1.0),
        only_with=("--elbo ciwae", lambda c: c.elbo == "ciwae"),
    )
    groups: int = option(
        1,
        "number of groups into which the K particles are divided",
        limits=(1, 10**6),
        only_with=("--elbo miwae or piwae", lambda c: c.elbo in ("miwae", "piwae")),
    )
    beta: float = option(1.0, "weight of the rate in the loss, never in a reported ELBO")
    warm_up: int = option(0, "epochs over which the weight of the rate rises linearly, at each step, from 0 to beta")
    free_bits: float = option(
        0.0,
        "the rate of each latent dimension, a mean over the batch, counts as at least this number of nats; requires "
        "--prior standard-normal, --posterior normal or normal-log-variance, and --elbo trace, analytic or handwritten",
    )
    epochs: int = option(16, "passes over the training images, or with --passes as many of these", limits=_SIZE)
    passes: int = option(
        1, "passes over the training data in an epoch, after which it is evaluated and saved", limits=(1, 10**6)
    )
    batch_size: int = option(100, "images per step", limits=_SIZE)
    patience: int = option(
        0,
        "stop after this number of epochs in a row without a better ELBO on the validation images; 0: never",
        only_with=("--valid", lambda c: c.valid > 0),
    )
    lr: float = option(1e-3, "Adam's learning rate, at the start", limits=_SCALE)
    schedule: str = option(
        "constant",
        "schedule of the learning rate: constant; cosine: down to 2 % of it at the last step; steps: times 10^(-1/5) "
        "after 2/5 and again after 7/10 of the epochs; paper: Burda et al.'s eight stages, times 10^(-1/7) after each; "
        "theirs are --epochs 3280 --batch-size 20 --lr 0.001",
        choices=("constant", "cosine", "steps", "paper"),
    )
    adam_eps: float = option(1e-8, "Adam's epsilon", limits=_SCALE, has_flag=False)
    seed: int = option(0, "seed of the initial weights, the order of the images and every draw", limits=(0, 2**63 - 1))
    clip_norm: float = option(0.0, "largest total norm of all gradients, which are scaled down to it; 0 for no limit")
    compile: str = option(
        "auto",
        "none: model and guide run at every step; graph: record the operators of a step once and replay them, the same "
        "training in less time; inductor: compile them to C++ or Triton, the fastest after some seconds at the start, "
        "with torch 2.14 and a C++ compiler only; auto: graph, and inductor if its code is kept from an earlier run or "
        "the epochs are expected to repay the compilation",
        choices=("auto", "none", "graph", "inductor"),
    )
    source: str = option(
        "",
        "where the system was published",
        pattern=(r"(?s).{0,1000}", "a text of at most 1,000 characters"),
        has_flag=False,
    )

    def __new__(cls, **options: Any) -> Config:
        """Refuse an unknown option by an `InputError` that names the nearest ones, in place of a `TypeError`."""
        for name in options:
            check_name("option", name, OPTIONS)
        return super().__new__(cls)

    def __post_init__(self) -> None:
        """Check each field, and then combinations of fields."""
        for name, one in OPTIONS.items():
            object.__setattr__(self, name, one.check(name, getattr(self, name)))
        refuse(Case(config=self))

    @property
    def posterior_family(self) -> Posterior:
        """The row of the posterior."""
        return POSTERIORS[self.posterior]

    @property
    def prior_family(self) -> Prior:
        """The row of the prior; `FLAT` of an autoencoder."""
        return FLAT if self.is_autoencoder else PRIORS[self.prior]

    @property
    def likelihood_family(self) -> Likelihood:
        """The row of the likelihood."""
        return LIKELIHOODS[self.likelihood]

    @property
    def is_autoencoder(self) -> bool:
        """Whether the posterior is a point."""
        return not self.posterior_family.has_density

    @property
    def takes_labels(self) -> bool:
        """Whether the VAE uses labels: of all data as a condition, or of some as a latent."""
        return self.condition or self.labels > 0

    @property
    def latent_dims(self) -> tuple[int, ...]:
        """The number of dimensions of each stochastic layer, z1 first."""
        return (self.latent_dim, *self.upper_latent_dims)

    @property
    def has_exact_start(self) -> bool:
        """Whether a training may start at a model that has a closed form, or nearly one: `initialization` "exact"."""
        return (
            self.likelihood_family.has_exact_start
            and self.posterior_family.has_exact_start
            and self.prior_family.has_exact_start
            and self.network in ("mlp", "linear")
            and not (self.is_pseudo or self.takes_labels or self.upper_latent_dims)
        )

    @property
    def is_symmetric(self) -> bool:
        """Whether pixels are in [-1, 1]."""
        return self.pixels == "symmetric"

    @property
    def is_binarized(self) -> bool:
        """Whether pixels are made black or white."""
        return self.binarize != "none"

    @property
    def is_pseudo(self) -> bool:
        """Whether the likelihood has another class for grey pixels, and these are grey: its bound is a pseudo-ELBO."""
        return bool(self.likelihood_family.grey) and not self.is_binarized

    @property
    def is_conv(self) -> bool:
        """Whether encoder and decoder are convolutions."""
        return self.network.startswith("conv")

    @property
    def has_batch_norm(self) -> bool:
        """Whether encoder and decoder have BatchNorm."""
        return self.network.endswith("batchnorm")

    @property
    def column_kinds(self) -> tuple[ColumnKind, ...]:
        """The kind of each column of a row of data; () if the likelihood is not of columns."""
        return column_kinds(self.columns) if self.likelihood_family.is_of_columns else ()

    @property
    def closed_forms(self) -> tuple[bool, ...]:
        """Whether the rate KL(q || p) of each stochastic layer has a closed form, z1 first."""
        of_top = self.prior_family.name in self.posterior_family.closed_forms
        # The other layers are Normal in posterior and prior, given the layer above; bottom-up draws that one later.
        return (*[self.inference != "bottom-up"] * len(self.upper_latent_dims), of_top)

    def padded(self, datum_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of a datum after padding, which images (C, H, W) alone may have."""
        if not self.pad:
            return datum_shape
        channels, *sides = datum_shape
        return (channels, *(side + 2 * self.pad for side in sides))

    def check_used(self, names: Iterable[str]) -> None:
        """Check that the training uses each of these fields: "alpha", for example, is used by --elbo renyi only.

        Args:
            names: names of fields.

        Raises:
            InputError: one of them is not used.
        """
        for name in names:
            others, is_used = OPTIONS[name].only_with
            if not is_used(self):
                raise InputError(f"{flag(name)} goes with {others} only")

    def replace(self, /, **overrides: Any) -> Config:
        """Return a copy with some fields changed.

        Raises:
            InputError: a field is unknown, of the wrong type or out of range, or contradicts another one.
        """
        return replace(self, **overrides)


OPTIONS: dict[str, Option] = {one.name: one.metadata["option"] for one in fields(Config)}
if Config.__doc__:  # Python may run without docstrings
    _LINES = (textwrap.fill(f"{name}: {one.text}.", 108, subsequent_indent=12 * " ") for name, one in OPTIONS.items())
    Config.__doc__ = Config.__doc__.replace("FIELDS", "\n        ".join(_LINES))
