"""What does not go together, in one place: the contradictions between two parts of a training, and why.

Each function yields the messages of the contradictions that it finds; `refuse` raises the first one. A function is
skipped if a part that it needs is not known, so that each caller gives what it knows.
"""

from __future__ import annotations

from collections.abc import Iterator
from shlex import quote
from typing import Any

from pvae.core.errors import InputError, either
from pvae.models.likelihoods import Likelihood
from pvae.models.posteriors import Posterior
from pvae.models.priors import Prior


def refuse(config: Any, **known: Any) -> None:
    """Raise the error of the first contradiction; the arguments are those of `contradictions`.

    Raises:
        InputError: there is one.
    """
    for message in contradictions(config, **known):
        raise InputError(message)


def contradictions(
    config: Any,
    *,
    has_elbo: bool = False,
    has_own_beta: bool = False,
    has_own_vae: bool = False,
    data: Any = None,
    datum_shape: tuple[int, ...] | None = None,
    num_labels: int | None = None,
    num_processes: int = 1,
) -> Iterator[str]:
    """Yield the message of each contradiction in what is known of a training.

    Args:
        config: the configuration.
        has_elbo: its ELBO is made now.
        has_own_beta: the weight of the rate is a function that was given in Python.
        has_own_vae: the VAE was built in Python, so that what `config` says of it is not used.
        data: the data set.
        datum_shape: the shape of a datum, before padding.
        num_labels: the number of classes or attributes of the data.
        num_processes: that train together.
    """
    yield from _of_latents(config)
    yield from _of_layers(config)
    yield from _of_likelihood(config)
    yield from _of_labels(config)
    yield from _of_start(config)
    if has_elbo:
        yield from _of_elbo(config, has_own_beta, has_own_vae)
    if data is not None:
        yield from _of_data(config, data, has_own_vae)
    if num_processes > 1:
        yield from _of_processes(config, has_own_vae)
    if datum_shape is not None:
        yield from _of_shape(config, datum_shape)
    if num_labels is not None and config.takes_labels and not num_labels:
        yield (
            "--condition and --labels need data with labels: classes, int64 (N,), attributes, bool (N, A), or the "
            "--label-column of a table"
        )


def _of_latents(c: Any) -> Iterator[str]:
    q = c.posterior_class
    p = c.prior_class
    is_point = c.is_autoencoder or q.support == "codes"
    if is_point and (c.beta != 1 or c.warm_up or c.free_bits):
        yield (
            f"--posterior {c.posterior} has no rate that changes: --beta, --warm-up and --free-bits must be the "
            "defaults"
        )
    if c.is_autoencoder and c.prior != "standard-normal":
        yield (
            f"--posterior {c.posterior}, of an autoencoder, takes no prior: leave --prior out, or give another "
            "--posterior"
        )
    if q.support != p.support:
        yield (
            f"--posterior {c.posterior} draws {q.support}, and --prior {c.prior} is of {p.support}: give --prior "
            f"{either(Prior.names_where('support', q.support))}, or --posterior "
            f"{either(Posterior.names_where('support', p.support))}"
        )
    if q.support == "categories" and c.latent_dim % c.categories:
        yield (
            f"--latent-dim {c.latent_dim} is not a multiple of --categories {c.categories}: N variables of K "
            "categories have N times K latent dimensions"
        )
    if "code_dim" in q.takes and c.latent_dim % c.code_dim:
        yield (
            f"--latent-dim {c.latent_dim} is not a multiple of --code-dim {c.code_dim}: N codes have N times as many "
            "dimensions"
        )
    if p.support == "points on the unit sphere" and c.latent_dim < 2:
        yield f"--posterior {c.posterior} needs at least 2 dimensions: give --latent-dim 2 or more"
    if p.is_of_posterior and c.network_class.has_batch_norm:
        yield (
            f"the pseudo-inputs of --prior {c.prior} would enter the batch statistics of --network {c.network}: give "
            "--network mlp, conv or conv-groupnorm"
        )


def _of_layers(c: Any) -> Iterator[str]:
    q = c.posterior_class
    if c.upper_latent_dims and c.inference not in q.of_layers:
        able = [name for name, kind in Posterior.members.items() if c.inference in kind.of_layers]
        yield (
            f"--upper-latent-dims and --inference {c.inference} go with --posterior {either(able)}, not {c.posterior}"
        )
    if c.upper_latent_dims and c.inference == "bottom-up" and c.prior_class.is_of_posterior:
        yield (
            f"--inference bottom-up has no q(z | x) of the top layer alone, so --prior {c.prior} goes with --inference "
            "ladder or top-down only"
        )
    needing = ""
    if c.free_bits:
        needing = "--free-bits"
    elif c.elbo_class.needs_independent_dimensions:
        needing = f"--elbo {c.elbo}"
        if c.upper_latent_dims:
            yield f"{needing} is of one stochastic layer: leave --upper-latent-dims out"
    if needing and not (q.is_normal and c.prior == "standard-normal"):
        yield (
            f"{needing} needs a rate of each latent dimension: leave --prior out, and give --posterior "
            f"{either(Posterior.names_where('is_normal'))}"
        )


def _of_likelihood(c: Any) -> Iterator[str]:
    p = c.likelihood_class
    if p.is_linear and (c.network != "linear" or c.upper_latent_dims):
        yield f"--likelihood {c.likelihood} goes with --network linear and one stochastic layer only"
    if "columns" in p.takes and not c.columns:
        yield (
            f"--likelihood {c.likelihood} needs a kind of each column: give --columns real*3,categorical:5 or the like"
        )
    if c.is_symmetric and (c.is_binarized or "symmetric" not in p.takes):
        able = [name for name, kind in Likelihood.members.items() if "symmetric" in kind.takes]
        yield f"--pixels symmetric goes with --binarize none and --likelihood {either(able)} only"
    of_images = {"--pad": c.pad, "--binarize": c.is_binarized, f"--prior {c.prior}": c.prior_class.is_of_posterior}
    for flag, is_given in of_images.items():
        if is_given and not p.is_of_images:
            yield f"{flag} does not go with --likelihood {c.likelihood}: leave it out"
    if p.needs_batch and c.missing:
        yield f"--likelihood {c.likelihood} needs all values of a batch: leave --missing out"


def _of_labels(c: Any) -> Iterator[str]:
    if c.labels and c.condition:
        yield "--condition uses all labels, and --labels some of them: leave one out"
    if c.takes_labels and (c.prior_class.is_of_posterior or c.upper_latent_dims):
        yield "--upper-latent-dims and --prior vamp do not go with --labels or --condition: leave them out"
    if c.labels and c.network_class.has_batch_norm:
        yield (
            f"--labels sums over all classes, which would enter the batch statistics of --network {c.network}: give "
            "another --network"
        )


def _of_start(c: Any) -> Iterator[str]:
    if c.initialization == "burda" and not (c.network == "mlp" and c.likelihood_class.is_of_logits):
        able = either(Likelihood.names_where("is_of_logits"))
        yield f'initialization = "burda" goes with --network mlp and --likelihood {able} only'
    if c.initialization == "exact" and not c.has_exact_start:
        q, p, p_x = (either(kind.names_where("has_exact_start")) for kind in (Posterior, Prior, Likelihood))
        yield (
            f"--initialization exact goes with --network mlp or linear, --posterior {q}, --prior {p} and --likelihood "
            f"{p_x}, without labels and --upper-latent-dims: leave it out"
        )


def _of_elbo(c: Any, has_own_beta: bool, has_own_vae: bool) -> Iterator[str]:
    elbo = c.elbo_class
    if elbo.sums_over_labels != (c.labels > 0):
        yield f"--elbo {c.elbo} and --labels {c.labels}: --elbo enumerate goes with --labels above 0"
    if not has_own_vae:
        yield from _of_elbo_and_vae(c)
    if "beta" not in elbo.takes and (c.beta != 1 or c.warm_up or has_own_beta):
        yield f"--elbo {c.elbo} has no rate to weigh: leave --beta and --warm-up out, or take --elbo trace or analytic"
    if "free_bits" not in elbo.takes and c.free_bits:
        yield f"--elbo {c.elbo} has no free bits: give --free-bits 0, or take --elbo trace or analytic"
    if c.particles % elbo.draws_together:
        yield f"--elbo {c.elbo} draws in pairs: give an even number of --particles, not {c.particles}"
    if c.particles < elbo.least_particles:
        yield f"--elbo {c.elbo} needs --particles {elbo.least_particles} or more, not {c.particles}"
    if "groups" in elbo.takes and c.particles % c.groups:
        yield f"--elbo {c.elbo}: --particles {c.particles} must be a multiple of --groups {c.groups}"


def _of_elbo_and_vae(c: Any) -> Iterator[str]:
    elbo = c.elbo_class
    q = c.posterior_class
    if (c.is_autoencoder or q.support == "codes") and "free_bits" not in elbo.takes:
        yield f"--posterior {c.posterior} is a point, without a density: train it by --elbo trace, not {c.elbo}"
    if elbo.needs_closed_form and not any(c.closed_forms):
        yield f"no closed-form KL is known for --posterior {c.posterior} and --prior {c.prior}: give --elbo trace"
    if elbo.needs_separate_draws and (c.likelihood_class.needs_batch or c.network_class.has_batch_norm):
        yield needs_separate_draws_text(c.elbo)
    if q.support in ("bits", "categories") and elbo.reparameterised:
        yield (
            f"{q.support} have no derivative, which --elbo {c.elbo} needs: give --elbo score-loo with --particles 4, "
            "or another one of notebooks/bits.ipynb"
        )
    if elbo.supports and q.support not in elbo.supports:
        able = [name for name, kind in Posterior.members.items() if kind.support in elbo.supports]
        yield (
            f"--elbo {c.elbo} is of {either(elbo.supports)}, and --posterior {c.posterior} draws {q.support}: give "
            f"--posterior {either(able)}, or another --elbo"
        )
    if elbo.supports and c.upper_latent_dims:
        yield (f"--elbo {c.elbo} is of one stochastic layer: give --elbo score-loo, or leave --upper-latent-dims out")


def needs_separate_draws_text(elbo: str) -> str:
    """Return why an ELBO refuses BatchNorm, and what else to take."""
    return (
        f"--elbo {elbo} needs weights that each depend on their own draw only, and --likelihood normal-optimal and "
        "BatchNorm make them depend on all draws: take --elbo trace, analytic, stl or iwae"
    )


def _of_data(c: Any, data: Any, has_own_vae: bool) -> Iterator[str]:
    if data.is_images and c.initialization == "exact":
        yield "--initialization exact is for data that are no images: leave it out"
    if data.is_images and not c.likelihood_class.is_of_images:
        yield f"--likelihood {c.likelihood} is for data that are no images: give another one"
    if not data.is_images and (c.pad or c.is_symmetric or c.binarize in ("static", "dynamic")):
        yield "--pad, --pixels symmetric and --binarize static or dynamic are for images: leave them out"
    texts = [column.name for column in data.columns if column.categories]
    if texts and "columns" not in c.likelihood_class.takes and not has_own_vae:
        yield f"column {texts[0]} of {data.name} holds texts: give --likelihood columns, or leave it out"
    limits = [kind.limit for kind in c.column_kinds if kind.limit is not None]
    if limits != data.limits and not has_own_vae:
        yield (
            f"values of {data.name} are known only to be below {data.limits[0]:g}, as --likelihood columns takes them: "
            "leave --likelihood out, and list the limits in --columns, as positive<L"
        )
    constant = "" if has_own_vae else _constant(c, data)
    if constant:
        yield (
            f"column {constant} of {data.name} has one value in the training data, and others in the rest, so that no "
            f"scale can be learned: leave it out (--ignore {quote(constant)})"
        )
    if c.batch_size > data.num_train:
        yield (
            f"--batch-size {c.batch_size} is larger than the {data.num_train:,} training data of {data.name}: give at "
            f"least --batch-size 1 and at most {data.num_train}"
        )
    is_single = (data.num_train - 1) % c.batch_size == 0
    if is_single and c.network_class.has_batch_norm and not has_own_vae:
        yield (
            f"--network {c.network} cannot normalise a batch of one datum, the last of {data.num_train:,} by "
            f"--batch-size {c.batch_size}: give another --batch-size"
        )


def _constant(c: Any, data: Any) -> str:
    """Return the name of a column of real values that has one value in the training data, and others in the rest."""
    kinds = [kind.name for kind in c.column_kinds]
    if c.likelihood == "normal-diagonal":
        kinds = ["real"] * len(data.columns)
    for place, (column, kind) in enumerate(zip(data.columns, kinds)):
        if kind in ("real", "positive"):
            of_train, *others = (x[:, place][~x[:, place].isnan()] for x in data.splits.values())
            if (of_train == of_train[0]).all() and any((x != of_train[0]).any() for x in others):
                return str(column.name)
    return ""


def _of_processes(c: Any, has_own_vae: bool) -> Iterator[str]:
    if c.free_bits:
        yield "--free-bits needs the whole batch at once: train in one process"
    if c.elbo_class.needs_whole_batch:
        yield f"--elbo {c.elbo} needs the whole batch at once: train in one process"
    if not has_own_vae and (c.network_class.has_batch_norm or c.likelihood_class.needs_batch):
        yield "BatchNorm and --likelihood normal-optimal need the whole batch at once: train in one process"


def _of_shape(c: Any, shape: tuple[int, ...]) -> Iterator[str]:
    if not shape or min(shape) < 1:
        yield f"datum_shape must be at least one size, each at least 1, not {shape}"
    elif c.network_class.is_conv and len(shape) != 3:
        yield f"--network {c.network} takes images (C, H, W), not data of shape {shape}: give another --network"
    if "columns" in c.likelihood_class.takes and shape != (len(c.column_kinds),):
        yield f"--columns {c.columns} is not of a datum of shape {shape}: name each of its columns"
