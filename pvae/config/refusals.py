"""What does not go together: one table, read from top to bottom, of what is refused and why.

A row is refused where its function is true of the parts of a `Case` that it names. Rows that name a part which the case
does not have are skipped, so that each caller gives what it knows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pvae.core.errors import InputError

__all__ = ["Case", "refuse"]


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is known of a training.

    Args:
        config: the configuration.
        elbo: the class of the ELBO.
        datum_shape: the shape of a datum, before padding.
        num_labels: the number of classes or attributes of the data.
        data: the data set.
        has_own_vae: the VAE was built in Python, so that what `config` says of it is not used.
        num_processes: that train together.
    """

    config: Any
    elbo: Any = None
    datum_shape: tuple[int, ...] | None = None
    num_labels: int | None = None
    data: Any = None
    has_own_vae: bool | None = None
    num_processes: int | None = None


def refuse(case: Case) -> None:
    """Refuse a case that a row of the table holds for.

    Raises:
        InputError: the message of the first such row.
    """
    for needed, is_refused, message in _TABLE:
        parts = [getattr(case, name) for name in needed.split()]
        if not any(part is None for part in parts) and is_refused(*parts):
            text = message(*parts) if callable(message) else message.format(c=case.config)
            raise InputError(text)


# What a row needs to know, when it refuses, and what it says; in a message `c` is the configuration.
_TABLE: tuple[tuple[str, Callable[..., object], str | Callable[..., str]], ...] = (
    # Posterior and prior.
    (
        "config",
        lambda c: c.is_autoencoder and (c.beta != 1 or c.warm_up or c.free_bits),
        "--posterior {c.posterior} has no rate: --beta, --warm-up and --free-bits must be the defaults",
    ),
    (
        "config",
        lambda c: c.is_autoencoder and c.prior != "standard-normal",
        "--posterior {c.posterior}, of an autoencoder, takes no prior: leave --prior out, or give another --posterior",
    ),
    (
        "config",
        lambda c: c.posterior_family.is_on_sphere != c.prior_family.is_on_sphere,
        "one of --posterior {c.posterior} and --prior {c.prior} is a density on the unit sphere, and the other is not: "
        "give both --posterior power-spherical and --prior sphere, or neither",
    ),
    (
        "config",
        lambda c: c.prior_family.is_on_sphere and c.latent_dim < 2,
        "--posterior {c.posterior} needs at least 2 dimensions: give --latent-dim 2 or more",
    ),
    (
        "config",
        lambda c: c.upper_latent_dims and c.inference not in c.posterior_family.inference,
        "--upper-latent-dims goes with --posterior normal or, with --inference bottom-up, normal-log-variance, not "
        "{c.posterior}",
    ),
    (
        "config",
        lambda c: c.upper_latent_dims and c.inference == "bottom-up" and c.prior_family.is_of_posterior,
        "--inference bottom-up has no q(z | x) of the top layer alone, so --prior {c.prior} goes with --inference "
        "ladder or top-down only",
    ),
    (
        "config",
        lambda c: c.free_bits and not (c.posterior_family.is_normal and c.prior == "standard-normal"),
        "--free-bits needs a rate of each latent dimension: give --prior standard-normal and --posterior normal",
    ),
    (
        "config",
        lambda c: c.prior_family.is_of_posterior and c.has_batch_norm,
        "the pseudo-inputs of --prior {c.prior} would enter the batch statistics of --network {c.network}: give "
        "--network mlp, conv or conv-groupnorm",
    ),
    # The likelihood.
    (
        "config",
        lambda c: c.likelihood_family.is_linear and (c.network != "linear" or c.upper_latent_dims),
        "--likelihood {c.likelihood} goes with --network linear and one stochastic layer only",
    ),
    (
        "config",
        lambda c: c.likelihood_family.is_of_columns and not c.columns,
        "--likelihood {c.likelihood} needs a kind of each column: give --columns real*3,categorical:5 or the like",
    ),
    (
        "config",
        lambda c: c.is_symmetric and (c.is_binarized or not c.likelihood_family.is_symmetric),
        "--pixels symmetric goes with --binarize none and a --likelihood normal... of images only",
    ),
    (
        "config",
        lambda c: not c.likelihood_family.is_of_images and c.pad,
        "--pad does not go with --likelihood {c.likelihood}: leave one out",
    ),
    (
        "config",
        lambda c: not c.likelihood_family.is_of_images and c.prior_family.is_of_posterior,
        "--prior {c.prior} does not go with --likelihood {c.likelihood}: leave one out",
    ),
    (
        "config",
        lambda c: not c.likelihood_family.is_of_images and c.is_binarized,
        "--binarize {c.binarize} does not go with --likelihood {c.likelihood}: leave one out",
    ),
    (
        "config",
        lambda c: c.likelihood_family.needs_batch and c.missing,
        "--likelihood {c.likelihood} needs all values of a batch: leave --missing out",
    ),
    # Labels.
    (
        "config",
        lambda c: c.labels and c.condition,
        "--condition uses all labels, and --labels some of them: leave one out",
    ),
    (
        "config",
        lambda c: c.takes_labels and c.prior_family.is_of_posterior,
        "--prior {c.prior} does not go with --labels or --condition: leave one out",
    ),
    (
        "config",
        lambda c: c.takes_labels and c.upper_latent_dims,
        "--upper-latent-dims does not go with --labels or --condition: leave one out",
    ),
    (
        "config",
        lambda c: c.labels and c.has_batch_norm,
        "--labels sums over all classes, which would enter the batch statistics of --network {c.network}: give another "
        "--network",
    ),
    (
        "config",
        lambda c: c.labels and c.is_autoencoder,
        "--posterior {c.posterior} has no density: leave --labels out, or give another --posterior",
    ),
    # How it is trained.
    (
        "config",
        lambda c: c.precision != "fp32" and c.compile == "none",
        "--precision {c.precision} does not go with --compile none: leave --compile out",
    ),
    (
        "config",
        lambda c: c.initialization == "burda" and not (c.network == "mlp" and c.likelihood_family.is_of_logits),
        'initialization = "burda" goes with --network mlp and a Bernoulli likelihood only',
    ),
    # The data, for which a VAE is built.
    (
        "config datum_shape",
        lambda c, shape: not shape or min(shape) < 1 or (c.is_conv and len(shape) != 3),
        lambda c, shape: (
            f"datum_shape must be {'(C, H, W) for convolutions' if c.is_conv else 'at least one size'}, each at least "
            f"1, not {shape}"
        ),
    ),
    (
        "config datum_shape",
        lambda c, shape: c.column_kinds and shape != (len(c.column_kinds),),
        lambda c, shape: (
            f"--columns names {len(c.column_kinds)} columns, and a datum has shape {shape}: name each of its columns"
        ),
    ),
    (
        "config num_labels",
        lambda c, num_labels: c.takes_labels and not num_labels,
        lambda c, _: (
            f"--{'condition' if c.condition else 'labels'} needs data with labels: classes, int64 (N,), or attributes, "
            "bool (N, A)"
        ),
    ),
)
