"""What does not go together: one table, read from top to bottom, of what is refused and why.

A case is refused if the function of a row returns true. A row is skipped if the case lacks a part that the row needs,
so that each caller gives what it knows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from shlex import quote
from typing import Any

from pvae.config.families import LIKELIHOODS, POSTERIORS, PRIORS, text_where
from pvae.core.errors import InputError

__all__ = ["REFUSALS", "Case", "refuse"]


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is known of a training.

    Args:
        config: the configuration.
        elbo: the class of the ELBO.
        has_own_beta: the weight of the rate is a function that was given in Python.
        datum_shape: the shape of a datum, before padding.
        num_labels: the number of classes or attributes of the data.
        data: the data set.
        has_own_vae: the VAE was built in Python, so that what `config` says of it is not used.
        num_processes: that train together.
    """

    config: Any
    elbo: Any = None
    has_own_beta: bool = False
    datum_shape: tuple[int, ...] | None = None
    num_labels: int | None = None
    data: Any = None
    has_own_vae: bool = False
    num_processes: int = 1


def refuse(case: Case) -> None:
    """Raise the error of the first row that applies.

    Raises:
        InputError: the message of the first such row.
    """
    for needed, is_refused, message in REFUSALS:
        parts = [getattr(case, name) for name in needed.split()]
        if not any(part is None for part in parts) and is_refused(*parts):
            raise InputError(message(*parts) if callable(message) else message.format(c=case.config, k=case, **_NAMES))


def _with_support_of(family: Any) -> Callable[[Any], bool]:
    return lambda row: bool(row.support == family.support)


def _texts(data: Any) -> list[str]:
    """Return the names of the columns that hold texts."""
    return [column.name for column in data.columns if column.categories]


def _constant(c: Any, data: Any) -> str:
    """Return the name of a column of real values that has one value in the training data, and others in the rest."""
    kinds = [kind.name for kind in c.column_kinds] or ["real"] * (c.likelihood == "normal-diagonal") * len(data.columns)
    for place, (column, kind) in enumerate(zip(data.columns, kinds)):
        if kind in ("real", "positive"):
            of_train, *others = (x[:, place][~x[:, place].isnan()] for x in data.splits.values())
            if (of_train == of_train[0]).all() and any((x != of_train[0]).any() for x in others):
                return str(column.name)
    return ""


_NAMES = {  # of families, in messages
    "of_posterior": text_where(PRIORS, lambda row: row.is_of_posterior),
    "normal": text_where(POSTERIORS, lambda row: row.is_normal),
    "symmetric": text_where(LIKELIHOODS, lambda row: row.can_be_symmetric),
    "of_batch": text_where(LIKELIHOODS, lambda row: row.needs_batch),
    "of_start": text_where(POSTERIORS, lambda row: row.has_exact_start),
    "prior_of_start": text_where(PRIORS, lambda row: row.has_exact_start),
    "likelihood_of_start": text_where(LIKELIHOODS, lambda row: row.has_exact_start),
    "of_logits": text_where(LIKELIHOODS, lambda row: row.is_of_logits),
}
# What a row needs to know, when it refuses, and what it says; in a message `c` is the configuration, and `k` the case.
# fmt: off
REFUSALS: tuple[tuple[str, Callable[..., object], str | Callable[..., str]], ...] = (
    # Posterior and prior.
    ("config",
     lambda c: (c.is_autoencoder or c.posterior_family.support == "codes")
     and (c.beta != 1 or c.warm_up or c.free_bits),
     "--posterior {c.posterior} has no rate that changes: --beta, --warm-up and --free-bits must be the defaults"),
    ("config", lambda c: c.is_autoencoder and c.prior != "standard-normal",
     "--posterior {c.posterior}, of an autoencoder, takes no prior: leave --prior out, or give another --posterior"),
    ("config", lambda c: c.posterior_family.support != c.prior_family.support,
     lambda c: (
         f"--posterior {c.posterior} draws {c.posterior_family.support}, and --prior {c.prior} is of "
         f"{c.prior_family.support}: give --prior {text_where(PRIORS, _with_support_of(c.posterior_family))}, or "
         f"--posterior {text_where(POSTERIORS, _with_support_of(c.prior_family))}"
     )),
    ("config", lambda c: c.posterior_family.support == "categories" and c.latent_dim % c.categories,
     "--latent-dim {c.latent_dim} is not a multiple of --categories {c.categories}: N variables of K categories have "
     "N times K latent dimensions"),
    ("config", lambda c: c.latent_dim % c.code_dim,
     "--latent-dim {c.latent_dim} is not a multiple of --code-dim {c.code_dim}: N codes have N times as "
     "many dimensions"),
    ("config", lambda c: c.prior_family.is_on_sphere and c.latent_dim < 2,
     "--posterior {c.posterior} needs at least 2 dimensions: give --latent-dim 2 or more"),
    ("config", lambda c: c.upper_latent_dims and c.inference not in c.posterior_family.inference,
     lambda c: (
         f"--upper-latent-dims and --inference {c.inference} go with --posterior "
         f"{text_where(POSTERIORS, lambda row: c.inference in row.inference)}, not {c.posterior}"
     )),
    ("config", lambda c: c.upper_latent_dims and c.inference == "bottom-up" and c.prior_family.is_of_posterior,
     "--inference bottom-up has no q(z | x) of the top layer alone, so --prior {c.prior} goes with --inference ladder "
     "or top-down only"),
    ("config", lambda c: c.free_bits and not (c.posterior_family.is_normal and c.prior == "standard-normal"),
     "--free-bits needs a rate of each latent dimension: leave --prior out, and give --posterior {normal}"),
    ("config", lambda c: c.prior_family.is_of_posterior and c.has_batch_norm,
     "the pseudo-inputs of --prior {c.prior} would enter the batch statistics of --network {c.network}: give --network"
     " mlp, conv or conv-groupnorm"),
    # The likelihood.
    ("config", lambda c: c.likelihood_family.is_linear and (c.network != "linear" or c.upper_latent_dims),
     "--likelihood {c.likelihood} goes with --network linear and one stochastic layer only"),
    ("config", lambda c: c.likelihood_family.is_of_columns and not c.columns,
     "--likelihood {c.likelihood} needs a kind of each column: give --columns real*3,categorical:5 or the like"),
    ("config", lambda c: c.is_symmetric and (c.is_binarized or not c.likelihood_family.can_be_symmetric),
     "--pixels symmetric goes with --binarize none and --likelihood {symmetric} only"),
    ("config",
     lambda c: not c.likelihood_family.is_of_images and (c.pad or c.is_binarized or c.prior_family.is_of_posterior),
     "--pad, --binarize and --prior {of_posterior} do not go with --likelihood {c.likelihood}: leave them out"),
    ("config", lambda c: c.likelihood_family.needs_batch and c.missing,
     "--likelihood {c.likelihood} needs all values of a batch: leave --missing out"),
    # Labels.
    ("config", lambda c: c.labels and c.condition,
     "--condition uses all labels, and --labels some of them: leave one out"),
    ("config", lambda c: c.takes_labels and (c.prior_family.is_of_posterior or c.upper_latent_dims),
     "--upper-latent-dims and --prior {of_posterior} do not go with --labels or --condition: leave them out"),
    ("config", lambda c: c.labels and c.has_batch_norm,
     "--labels sums over all classes, which would enter the batch statistics of --network {c.network}: give another "
     "--network"),
    # How it is trained.
    ("config", lambda c: c.initialization == "burda" and not (c.network == "mlp" and c.likelihood_family.is_of_logits),
     'initialization = "burda" goes with --network mlp and --likelihood {of_logits} only'),
    ("config", lambda c: c.initialization == "exact" and not c.has_exact_start,
     "--initialization exact goes with --network mlp or linear, --posterior {of_start}, --prior {prior_of_start} and "
     "--likelihood {likelihood_of_start}, without labels and --upper-latent-dims: leave it out"),
    # The ELBO.
    ("config elbo", lambda c, elbo: elbo.sums_over_labels != (c.labels > 0),
     "--elbo {c.elbo} and --labels {c.labels}: --elbo enumerate goes with --labels above 0"),
    ("config elbo",
     lambda c, elbo: (c.is_autoencoder or c.posterior_family.support == "codes") and "free_bits" not in elbo.options,
     "--posterior {c.posterior} is a point, without a density: train it by --elbo trace, not {c.elbo}"),
    ("config elbo", lambda c, elbo: elbo.needs_closed_form and not any(c.closed_forms),
     "no closed-form KL is known for --posterior {c.posterior} and --prior {c.prior}: give --elbo trace"),
    ("config elbo", lambda c, elbo: elbo.needs_separate_draws and (c.likelihood_family.needs_batch or c.has_batch_norm),
     "--elbo {c.elbo} needs weights that each depend on their own draw only, and --likelihood {of_batch} and "
     "BatchNorm make them depend on all draws: take --elbo trace, analytic, stl or iwae"),
    ("config elbo has_own_beta",
     lambda c, elbo, has_own_beta: "beta" not in elbo.options and (c.beta != 1 or c.warm_up or has_own_beta),
     "--elbo {c.elbo} has no rate to weigh: leave --beta and --warm-up out, or take --elbo trace or analytic"),
    ("config elbo", lambda c, elbo: "free_bits" not in elbo.options and c.free_bits,
     "--elbo {c.elbo} has no free bits: give --free-bits 0, or take --elbo trace or analytic"),
    ("config elbo", lambda c, elbo: c.posterior_family.is_discrete and elbo.reparameterised,
     "{c.posterior_family.support} have no derivative, which --elbo {c.elbo} needs: give --elbo score-loo with "
     "--particles 4, or another one of notebooks/bits.ipynb"),
    ("config elbo has_own_vae",
     lambda c, elbo, is_own: elbo.supports and c.posterior_family.support not in elbo.supports and not is_own,
     lambda c, elbo, _: (
         f"--elbo {c.elbo} is of {' or '.join(elbo.supports)}, and --posterior {c.posterior} draws "
         f"{c.posterior_family.support}: give --posterior "
         f"{text_where(POSTERIORS, lambda row: row.support in elbo.supports)}, or another --elbo"
     )),
    ("config elbo", lambda c, elbo: elbo.supports and c.upper_latent_dims,
     "--elbo {c.elbo} is of one stochastic layer: give --elbo score-loo, or leave --upper-latent-dims out"),
    ("config elbo", lambda c, elbo: c.particles % elbo.draws_together,
     "--elbo {c.elbo} draws in pairs: give an even number of --particles, not {c.particles}"),
    ("config elbo", lambda c, elbo: c.particles < elbo.least_particles,
     "--elbo {c.elbo} needs --particles {k.elbo.least_particles} or more, not {c.particles}"),
    ("config elbo", lambda c, elbo: "num_groups" in elbo.options and c.particles % c.groups,
     "--elbo {c.elbo}: --particles {c.particles} must be a multiple of --groups {c.groups}"),
    # The data.
    ("config data", lambda c, data: data.is_images and c.initialization == "exact",
     "--initialization exact is for data that are no images: leave it out"),
    ("config data", lambda c, data: data.is_images and not c.likelihood_family.is_of_images,
     "--likelihood {c.likelihood} is for data that are no images: give another one"),
    ("config data",
     lambda c, data: not data.is_images and (c.pad or c.is_symmetric or c.binarize in ("static", "dynamic")),
     "--pad, --pixels symmetric and --binarize static or dynamic are for images: leave them out"),
    ("config data has_own_vae",
     lambda c, data, is_own: _texts(data) and not c.likelihood_family.is_of_columns and not is_own,
     lambda c, data, _: (
         f"column {_texts(data)[0]} of {data.name} holds texts: give --likelihood columns, or leave it out"
     )),
    ("config data has_own_vae",
     lambda c, data, is_own: not is_own and _constant(c, data),
     lambda c, data, _: (
         f"column {(name := _constant(c, data))} of {data.name} has one value in the training data, and others in the "
         f"rest, so that no scale can be learned: leave it out (--ignore {quote(name)})"
     )),
    ("config data", lambda c, data: c.batch_size > data.num_train,
     "--batch-size {c.batch_size} is larger than the {k.data.num_train:,} training data of {k.data.name}: give at "
     "least --batch-size 1 and at most {k.data.num_train}"),
    ("config data has_own_vae",
     lambda c, data, is_own: (data.num_train - 1) % c.batch_size == 0 and c.has_batch_norm and not is_own,
     "--network {c.network} cannot normalise a batch of one datum, the last of {k.data.num_train:,} by "
     "--batch-size {c.batch_size}: give another --batch-size"),
    ("config data", lambda c, data: data.num_streamed and data.stream is None,
     "{k.data.name} are the rows that the run keeps of a stream: to train on, give the iterable again, as data="),
    ("config data", lambda c, data: data.num_streamed and (c.labels or c.binarize == "static"),
     "--labels and --binarize static need all data in memory, and {k.data.name} are read in batches: leave them out"),
    ("config data num_processes", lambda c, data, number: data.num_streamed and number > 1,
     "{k.data.name} are read in batches, by one process: train without torchrun"),
    ("config num_processes", lambda c, number: number > 1 and c.free_bits,
     "--free-bits needs the whole batch at once: train in one process"),
    ("config has_own_vae num_processes",
     lambda c, is_own, number: number > 1 and not is_own and (c.has_batch_norm or c.likelihood_family.needs_batch),
     "BatchNorm and --likelihood {of_batch} need the whole batch at once: train in one process"),
    # The shape of a datum and its labels, for which a VAE is built.
    ("config datum_shape", lambda c, shape: not shape or min(shape) < 1 or (c.is_conv and len(shape) != 3),
     "datum_shape must be at least one size, (C, H, W) for convolutions, each at least 1, not {k.datum_shape}"),
    ("config datum_shape", lambda c, shape: c.likelihood_family.is_of_columns and shape != (len(c.column_kinds),),
     "--columns {c.columns} is not of a datum of shape {k.datum_shape}: name each of its columns"),
    ("config num_labels", lambda c, num_labels: c.takes_labels and not num_labels,
     "--condition and --labels need data with labels: classes, int64 (N,), or attributes, bool (N, A)"),
)
# fmt: on
