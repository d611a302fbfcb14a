"""`Config`: what a training is. Its fields are the options of the classes that a training chooses, and its own."""

from __future__ import annotations

import math
import os
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass, field, make_dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from pvae.config.refusals import refuse
from pvae.core.errors import InputError, check_name, either, shown
from pvae.core.options import Option, options_of
from pvae.data.files import DATASETS, own_path
from pvae.data.preparation import Preparation
from pvae.elbos.base import PerDatumELBO
from pvae.models.columns import ColumnKind, column_kinds
from pvae.models.hierarchy import Inference
from pvae.models.likelihoods import Likelihood
from pvae.models.networks import Network
from pvae.models.posteriors import Posterior
from pvae.models.priors import FlatPrior, Prior
from pvae.tables.reading import Reading

FAMILIES: dict[str, type[Any]] = {  # each chosen by the option of its name, and with it what its class takes
    "inference": Inference,
    "network": Network,
    "posterior": Posterior,
    "prior": Prior,
    "likelihood": Likelihood,
    "elbo": PerDatumELBO,
}
_SCALE = {"least": 1e-38, "most": 1e38}  # float32 holds little beyond


class _DatasetOption(Option):
    """The option `dataset`: a name, or a kind of file and a path."""

    def check(self, value: Any) -> Any:
        """Return the name of the data set.

        Raises:
            InputError: it is none; the message names the nearest one.
        """
        if isinstance(value, str) and own_path(value):
            return value
        suffix = Path(str(value)).suffix
        if value not in self.choices and os.path.lexists(str(value)):
            kind = "folder"
            if suffix in (".npy", ".npz", ".h5", ".h5ad", ".mtx"):
                kind = "array"
            elif suffix in (".csv", ".tsv", ".parquet", ".xlsx"):
                kind = "table"
            raise InputError(f"unknown --dataset {shown(value)}: for data of your own, give {kind}:{value}")
        own = list[str]()
        if isinstance(value, str) and ":" in value and len(value) < 200:  # of a misspelt kind
            path = value.partition(":")[2]
            own = [f"{kind}:{path}" for kind in ("folder", "array", "table")]
        return check_name(self.flag, value, [*own, *self.choices])


def _choice(kind: type[Any], more: str = "", needs: str = "") -> Option:
    """Return the option that chooses a member of a family."""
    return Option(help=kind.listed() + more, choices=tuple(kind.members), needs=needs)


@dataclass(frozen=True, kw_only=True)
class _Training:
    """The options of a training that no class of a family takes."""

    system: Annotated[
        str,
        Option(
            help="name of the system, used in the name of the run folder and in titles",
            pattern=r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}",
            described="at most 100 letters, digits, dots and dashes",
        ),
    ] = "deep-bayes"
    dataset: Annotated[
        str,
        _DatasetOption(
            help="{choices}; auto is MNIST, or 5,000 of its digits where MNIST is not available; folder:PATH any tree "
            "of image files, or an .npy or .npz file of images (N, H, W[, C]); array:FILE an .npy, .npz or .h5 file of "
            "any shape, or a sparse matrix, .mtx or .h5ad; table:FILE a table of numbers and texts, .csv, .tsv, "
            ".parquet or .xlsx",
            choices=DATASETS,
        ),
    ] = "auto"
    valid: Annotated[
        float,
        Option(
            help="share of the training images, always the same ones, that are held out to choose the best epoch; if "
            "the data set has a validation split, any share above 0 takes that. 0 holds none out",
            most=0.9,
        ),
    ] = 0.0
    calibration: Annotated[
        float,
        Option(
            help="share of the training data, always the same ones, that neither train nor choose anything: `pvae "
            "score --alarm` compares rows with them, and with the test data if there are none",
            most=0.9,
        ),
    ] = 0.0
    missing: Annotated[
        bool,
        Option(
            help="NaN, in a table an empty field, is a value that is missing: the bound is one on log p of the others, "
            "and the encoder sees which they are"
        ),
    ] = False
    condition: Annotated[
        bool,
        Option(
            help="train p(x | z, y) given the labels y of the data, their classes or attributes: posterior and decoder "
            "see y, and the bound is one on log p(x | y)"
        ),
    ] = False
    labels: Annotated[
        int,
        Option(
            help="use the classes of this number of training data, equally many of each class, or all that are known; "
            "all other labels are latent, and --elbo enumerate sums over them (semi-supervised, M2 of Kingma et al.). "
            "0: none"
        ),
    ] = 0
    network: Annotated[str, _choice(Network)] = "mlp"
    initialization: Annotated[
        str,
        Option(
            help="torch: as torch draws the weights; burda: Glorot-uniform with zero biases, and the decoder's last "
            "bias is the logit of the mean training image; exact: a linear path beside each network, set to factor "
            "analysis or another model that has a closed form, whichever describes the validation data best",
            choices=("torch", "burda", "exact"),
        ),
    ] = "torch"
    latent_dim: Annotated[int, Option(help="number of latent dimensions", least=1, most=10**6)] = 32
    upper_latent_dims: Annotated[
        tuple[int, ...],
        Option(
            help="dimensions of further stochastic layers z2, z3, ... above z1, which has --latent-dim dimensions; in "
            "the prior each layer is drawn given the one above it; requires --posterior normal or, from the bottom up, "
            "normal-log-variance or bernoulli"
        ),
    ] = ()
    inference: Annotated[str, _choice(Inference, needs="upper_latent_dims")] = "bottom-up"
    posterior: Annotated[str, _choice(Posterior)] = "normal"
    prior: Annotated[str, _choice(Prior)] = "standard-normal"
    likelihood: Annotated[
        str,
        _choice(
            Likelihood,
            f"; {', '.join(Likelihood.names_where('is_of_images', False))} are for data other than images",
        ),
    ] = "bernoulli"
    elbo: Annotated[str, _choice(PerDatumELBO)] = "trace"
    particles: Annotated[
        int, Option(help="number K of samples z ~ q(z | x) per image in the bound", least=1, most=10**6)
    ] = 1
    warm_up: Annotated[
        int, Option(help="epochs over which the weight of the rate rises linearly, at each step, from 0 to beta")
    ] = 0
    epochs: Annotated[
        int, Option(help="passes over the training images, or with --passes as many of these", least=1)
    ] = 16
    passes: Annotated[
        int,
        Option(
            help="passes over the training data in an epoch, after which it is evaluated and saved",
            least=1,
            most=10**6,
        ),
    ] = 1
    batch_size: Annotated[int, Option(help="images per step", least=1)] = 100
    patience: Annotated[
        int,
        Option(
            help="stop after this number of epochs in a row without a better ELBO on the validation images; 0: never",
            needs="valid",
        ),
    ] = 0
    lr: Annotated[float, Option(help="Adam's learning rate, at the start", **_SCALE)] = 1e-3
    schedule: Annotated[
        str,
        Option(
            help="schedule of the learning rate: constant; cosine: down to 2 % of it at the last step; steps: times "
            "10^(-1/5) after 2/5 and again after 7/10 of the epochs; paper: Burda et al.'s eight stages, times "
            "10^(-1/7) after each; theirs are --epochs 3280 --batch-size 20 --lr 0.001",
            choices=("constant", "cosine", "steps", "paper"),
        ),
    ] = "constant"
    adam_eps: Annotated[float, Option(help="Adam's epsilon", has_flag=False, **_SCALE)] = 1e-8
    seed: Annotated[
        int, Option(help="seed of the initial weights, the order of the images and every draw", most=2**63 - 1)
    ] = 0
    clip_norm: Annotated[
        float, Option(help="largest total norm of all gradients, which are scaled down to it; 0 for no limit")
    ] = 0.0
    compile: Annotated[
        str,
        Option(
            help="none: model and guide run at every step; graph: record the operators of a step once and replay them, "
            "the same training in less time; inductor: compile them to C++ or Triton, the fastest after some seconds "
            "at the start, with torch 2.14 and a C++ compiler only; auto: graph, and inductor if its code is kept from "
            "an earlier run or the epochs are expected to repay the compilation",
            choices=("auto", "none", "graph", "inductor"),
        ),
    ] = "auto"
    source: Annotated[
        str,
        Option(
            help="where the system was published",
            pattern=r"(?s).{0,1000}",
            described="a text of at most 1,000 characters",
            has_flag=False,
        ),
    ] = ""

    def __post_init__(self) -> None:
        """Overridden by `Config`; a dataclass calls it only if it is there when its constructor is made."""


def _collected() -> tuple[dict[str, Option], dict[str, list[tuple[str, str]]]]:
    """Return the options in the order of the help, and by which members of which families each is taken."""
    options: dict[str, Option] = {}
    takers: dict[str, list[tuple[str, str]]] = {}
    for name, own in options_of(_Training).items():
        options[name] = own
        if name == "dataset":
            options |= options_of(Reading) | options_of(Preparation)
        if name not in FAMILIES:
            continue
        for member, kind in FAMILIES[name].members.items():
            for option in options_of(kind).values():
                options.setdefault(option.name, option)
                takers.setdefault(option.name, []).append((name, member))
    return options, takers


OPTIONS, TAKERS = _collected()
_Options: Any = make_dataclass(
    "_Options",
    [
        (name, type(option.default), field(default=option.default))
        for name, option in OPTIONS.items()
        if not hasattr(_Training, name)
    ],
    bases=(_Training,),
    frozen=True,
    kw_only=True,
)


class Config(_Options):
    """The options that decide what a training computes; the defaults are the Deep Bayes system (post 004).

    A published system is a `Config`, and so is a user's own. The device, the folders and the amount of output are not
    part of it. The options of `python -m pvae.train`, the keys of its TOML files and the list below are those of the
    training and of the classes that it chooses, each declared at the argument that it sets; `adam_eps` and `source` are
    set in TOML and Python only.

    Args:
        FIELDS

    Raises:
        InputError: a field is unknown, has the wrong type or is out of range, or two fields contradict each other.

    >>> Config(latent_dim=2).replace(beta=4.0).latent_dim
    2
    """

    def __new__(cls, **options: Any) -> Config:
        """Refuse an unknown option by an `InputError` that names the nearest ones, in place of a `TypeError`."""
        for name in options:
            check_name("option", name, OPTIONS)
        return super().__new__(cls)

    def __post_init__(self) -> None:
        """Check each field, and then combinations of fields."""
        for name, option in OPTIONS.items():
            object.__setattr__(self, name, option.check(getattr(self, name)))
        refuse(self)

    @property
    def posterior_class(self) -> type[Posterior]:
        """The class of the posterior."""
        return Posterior.members[self.posterior]

    @property
    def prior_class(self) -> type[Prior]:
        """The class of the prior; `FlatPrior` of an autoencoder."""
        if self.is_autoencoder:
            return FlatPrior
        return Prior.members[self.prior]

    @property
    def likelihood_class(self) -> type[Likelihood]:
        """The class of the likelihood."""
        return Likelihood.members[self.likelihood]

    @property
    def network_class(self) -> type[Network]:
        """The class of encoder and decoder."""
        return Network.members[self.network]

    @property
    def inference_class(self) -> type[Inference] | None:
        """The class that draws several stochastic layers; None if there is one."""
        if not self.upper_latent_dims:
            return None
        return Inference.members[self.inference]

    @property
    def elbo_class(self) -> type[PerDatumELBO]:
        """The class of the ELBO."""
        return PerDatumELBO.members[self.elbo]

    @property
    def is_autoencoder(self) -> bool:
        """Whether the posterior is a point."""
        return not self.posterior_class.has_density

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
        families = (self.likelihood_class, self.posterior_class, self.prior_class)
        return (
            all(family.has_exact_start for family in families)
            and self.network_class.can_have_linear_path
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
        return self.likelihood_class.grey is not None and not self.is_binarized

    @property
    def column_kinds(self) -> tuple[ColumnKind, ...]:
        """The kind of each column of a row of data; () if the likelihood takes no kinds."""
        if "columns" not in self.likelihood_class.takes:
            return ()
        return column_kinds(self.columns)

    @property
    def closed_forms(self) -> tuple[bool, ...]:
        """Whether the rate KL(q || p) of each stochastic layer has a closed form, z1 first."""
        of_top = self.prior_class.name in self.posterior_class.closed_forms
        if self.is_autoencoder:
            of_top = True
        if self.inference_class is None:
            return (of_top,)
        return (*[self.inference_class.has_closed_forms] * len(self.upper_latent_dims), of_top)

    def steps_in_epoch(self, num_data: int) -> int:
        """Return the number of steps in an epoch; of several passes, data that do not fill a batch are left out."""
        if self.passes == 1:
            return math.ceil(num_data / self.batch_size)
        return max(1, self.passes * num_data // self.batch_size)

    def padded(self, datum_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of a datum after padding, which images (C, H, W) alone may have."""
        if not self.pad:
            return datum_shape
        channels, *sides = datum_shape
        return (channels, *(side + 2 * self.pad for side in sides))

    def uses(self, name: str) -> bool:
        """Return whether the training uses an option: "alpha", for example, is used by --elbo renyi only.

        The value that a system has of another option is ignored.
        """
        takers = TAKERS.get(name, [])
        needs = OPTIONS[name].needs
        if not needs and not takers:
            return True
        for family, member in takers:
            is_chosen = getattr(self, family) == member
            if is_chosen and (family != "inference" or self.upper_latent_dims):
                return True
        wanted, _, values = needs.partition("=")
        if values:  # of --dataset
            kind = self.dataset.partition(":")[0]
            return kind in [value.partition(":")[0] for value in values.split(",")]
        return bool(wanted and getattr(self, wanted))

    def used(self) -> dict[str, Any]:
        """Return the values of the options that the training uses, by their names."""
        return {name: getattr(self, name) for name in OPTIONS if self.uses(name)}

    def check_used(self, names: Iterable[str]) -> None:
        """Check that the training uses each of these options.

        Raises:
            InputError: one of them is not used; the message names who takes it.
        """
        for name in names:
            if not self.uses(name):
                raise InputError(f"{OPTIONS[name].flag} goes with {takers_text(name)} only")

    def replace(self, /, **overrides: Any) -> Config:
        """Return a copy with some fields changed.

        Raises:
            InputError: a field is unknown, of the wrong type or out of range, or contradicts another one.
        """
        return replace(self, **overrides)


def takers_text(name: str) -> str:
    """Return with which options an option has an effect, as "--posterior planar, iaf or spline, or --prior flow"."""
    texts = []
    option = OPTIONS[name]
    if option.needs:
        wanted, _, values = option.needs.partition("=")
        texts.append(f"{OPTIONS[wanted].flag} {either(values.split(','))}".rstrip())
    for family in FAMILIES:
        members = [member for taker, member in TAKERS.get(name, ()) if taker == family]
        if len(members) == len(FAMILIES[family].members):
            continue  # all of them take it: what the family needs is in `needs`
        if members:
            texts.append(f"--{family} {either(members)}")
    return ", or ".join(texts)


def help_text(name: str) -> str:
    """Return the help of an option, with its choices, the options with which it has an effect, and its default."""
    option = OPTIONS[name]
    notes = []
    if takers := takers_text(name):
        notes.append(f"with {takers} only")
    default = option.default
    if isinstance(default, tuple):
        notes.append(f"default: {' '.join(map(str, default)) or 'none'}")
    elif isinstance(default, float):
        notes.append(f"default: {default:g}")
    elif default != "" and not isinstance(default, bool):
        notes.append(f"default: {default}")
    text = option.help.format(choices=", ".join(option.choices))
    if notes:
        text += f" ({'; '.join(notes)})"
    return text


if Config.__doc__:  # Python may run without docstrings
    _LINES = (textwrap.fill(f"{name}: {help_text(name)}.", 108, subsequent_indent=12 * " ") for name in OPTIONS)
    Config.__doc__ = Config.__doc__.replace("FIELDS", "\n        ".join(_LINES))
