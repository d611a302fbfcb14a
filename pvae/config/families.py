"""The families: one row for each posterior, prior and likelihood.

To add a family, write its class in `pvae.models`, a row here, and a test of its density. The choices and the help of
`Config`, the refusals, `build_vae`, the explorer page and the tests over all families read the
rows. `config.posterior_family`, `config.prior_family` and `config.likelihood_family` are the rows of a configuration.

In a row, `c` is a `Config`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

__all__ = [
    "FLAT",
    "LIKELIHOODS",
    "POSTERIORS",
    "PRIORS",
    "Family",
    "Likelihood",
    "Posterior",
    "Prior",
    "help_of",
    "names_where",
    "text_where",
]

_BINS = 8  # of a spline, as in zuko's neural spline flow


@dataclass(frozen=True, kw_only=True)
class Family:
    """What the posteriors, the priors and the likelihoods have in common.

    Args:
        name: the value of the option.
        module: where its class is, as "pvae.models.priors:FlowPrior", for `pkgutil.resolve_name`.
        help: one sentence, after the name, in the help of the option; "" for none.
        arguments: the arguments of its class beside those that all of its kind take.
        has_exact_start: `pvae.models.start` knows it, so that a training may start at a model in closed form.
    """

    name: str
    module: str
    help: str = ""
    arguments: Callable[[Any], dict[str, Any]] = lambda c: {}
    has_exact_start: bool = False


@dataclass(frozen=True, kw_only=True)
class LatentFamily(Family):
    """What posteriors and priors have in common.

    Args:
        support: what z is made of, which is the same for a posterior and its prior.
    """

    support: str = "real numbers"

    @property
    def is_on_sphere(self) -> bool:
        """Whether it is a density on the unit sphere."""
        return self.support == "points on the unit sphere"

    @property
    def is_discrete(self) -> bool:
        """Whether it is a distribution of bits or categories, which have no derivative."""
        return self.support in ("bits", "categories")


@dataclass(frozen=True, kw_only=True)
class Posterior(LatentFamily):
    """A row of `POSTERIORS`; its class takes the encoder.

    Args:
        num_outputs: the number of outputs of the encoder.
        closed_forms: the priors from which its KL divergence has a closed form.
        is_normal: a Normal of independent dimensions: each has a rate of its own.
        inference: the orders of `--inference` in which it may be the posterior of several layers.
        is_flow: it has `--flow-length` transforms; it draws z and log q(z) together.
        has_flow_networks: each transform is a masked network, by zuko.
        has_density: it is a density; False for a point.
        page: its kind in `POSTERIORS` of `explore/network.js`, and what else that takes; empty if the page does not
            compute it.
    """

    num_outputs: Callable[[Any], int]
    closed_forms: tuple[str, ...] = ()
    is_normal: bool = False
    inference: tuple[str, ...] = ()
    is_flow: bool = False
    has_flow_networks: bool = False
    has_density: bool = True
    page: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Prior(LatentFamily):
    """A row of `PRIORS`; its class takes the number of latent dimensions.

    Args:
        is_of_posterior: it is made of posteriors; its class takes the posterior and the shape of x first instead.
        is_mixture: a mixture of `--components` distributions.
        is_flow: it has `--flow-length` transforms, each a masked network.
        page: its name in `PRIORS` of `explore/network.js`.
    """

    is_of_posterior: bool = False
    is_mixture: bool = False
    is_flow: bool = False
    page: str = ""


@dataclass(frozen=True, kw_only=True)
class Likelihood(Family):
    """A row of `LIKELIHOODS`; its class takes the decoder and the shape of x.

    Args:
        grey: the class for pixels that are not binarized; "" if it is the same.
        is_of_images: its data are images or other values of their range; False: data other than images alone.
        sees: what the encoder sees of x: "x", "log1p" of counts, "standardized" values, or features of "columns".
        has_scale: `--scale` is its scale, or its first one.
        has_fixed_scale: it is a Normal, and `--scale` is not trained.
        can_be_symmetric: it may be of pixels in [-1, 1].
        is_of_logits: outputs of the decoder are logits, so that `--initialization burda` goes with it.
        is_linear: with a linear network its log p(x) is known exactly; it takes no other one.
        needs_batch: in training its log p(x | z) of a datum depends on the other data of the batch.
        has_levels: a probability of 8-bit levels, reported in bits per dimension too.
        page: its name in `LIKELIHOODS` of `explore/network.js`; "" if the page does not compute it.
        page_mean: for the page, how the output of the decoder becomes the location; "" for the range of the pixels.
        outputs_each: the number of outputs of the decoder for each value of a datum; those of columns have their kinds.
        is_on_table_page: the page of a table computes it, by `COLUMNS` of `explore/table.js`.
    """

    arguments: Callable[[Any], dict[str, Any]] = lambda c: {"scale": c.scale, "symmetric": c.is_symmetric}
    grey: str = ""
    is_of_images: bool = True
    sees: str = "x"
    has_scale: bool = True
    has_fixed_scale: bool = False
    can_be_symmetric: bool = False
    is_of_logits: bool = False
    is_linear: bool = False
    needs_batch: bool = False
    has_levels: bool = False
    outputs_each: int = 1
    page: str = ""
    page_mean: str = ""
    is_on_table_page: bool = False

    @property
    def is_count(self) -> bool:
        """Whether its data are counts."""
        return self.sees == "log1p"

    @property
    def is_real(self) -> bool:
        """Whether its data are real values of any location and scale."""
        return self.sees == "standardized"

    @property
    def is_of_columns(self) -> bool:
        """Whether its data are rows of `--columns`."""
        return self.sees == "columns"


F = TypeVar("F", bound=Family)


def _table(*rows: F) -> dict[str, F]:
    return {row.name: row for row in rows}


def names_where(rows: Mapping[str, F], is_one: Callable[[F], object]) -> tuple[str, ...]:
    """Return the names of the rows for which a function is true."""
    return tuple(name for name, row in rows.items() if is_one(row))


def text_where(rows: Mapping[str, F], is_one: Callable[[F], object]) -> str:
    """Return the names of the rows for which a function is true, as "one, two or three"."""
    *names, last = names_where(rows, is_one)
    return f"{', '.join(names)} or {last}" if names else last


def help_of(rows: Mapping[str, Any]) -> str:
    """Return the names of the rows, each with its sentence."""
    return "; ".join(f"{row.name}: {row.help}" if row.help else row.name for row in rows.values())


def _of_flow(c: Any) -> dict[str, Any]:
    sizes = {"latent_dim": c.latent_dim, "num_transforms": c.flow_length, "num_context": c.hidden[-1]}
    return {**sizes, "hidden": c.flow_hidden}


# fmt: off
POSTERIORS = _table(
    Posterior(
        name="normal", module="pvae.models.posteriors:NormalPosterior",
        has_exact_start=True, help="the encoder's output is (loc, log scale)",
        num_outputs=lambda c: 2 * c.latent_dim, closed_forms=("standard-normal",), is_normal=True,
        inference=("bottom-up", "ladder", "top-down"),
        page={"kind": "normal"},
    ),
    Posterior(
        name="normal-log-variance", module="pvae.models.posteriors:NormalPosterior",
        has_exact_start=True, help="(loc, log variance)",
        arguments=lambda c: {"log_variance": True}, num_outputs=lambda c: 2 * c.latent_dim,
        closed_forms=("standard-normal",), is_normal=True, inference=("bottom-up",),
        page={"kind": "normal", "log_variance": True},
    ),
    Posterior(
        name="normal-full", module="pvae.models.posteriors:FullNormalPosterior",
        has_exact_start=True, help="with a full covariance matrix",
        arguments=lambda c: {"latent_dim": c.latent_dim},
        num_outputs=lambda c: 2 * c.latent_dim + c.latent_dim * (c.latent_dim - 1) // 2,
        closed_forms=("standard-normal",),
        page={"kind": "normal-full"},
    ),
    Posterior(
        name="planar", module="pvae.models.posteriors:PlanarPosterior", help="planar flow",
        arguments=lambda c: {"latent_dim": c.latent_dim},
        num_outputs=lambda c: 2 * c.latent_dim + c.flow_length * (2 * c.latent_dim + 1), is_flow=True,
        page={"kind": "planar"},
    ),
    Posterior(
        name="iaf", module="pvae.models.posteriors:IAFPosterior", help="inverse autoregressive flow, which needs zuko",
        arguments=_of_flow, num_outputs=lambda c: 2 * c.latent_dim + c.hidden[-1], is_flow=True, has_flow_networks=True,
        page={"kind": "flow"},
    ),
    Posterior(
        name="spline", module="pvae.models.posteriors:IAFPosterior", help="the same with splines",
        arguments=lambda c: {**_of_flow(c), "num_bins": _BINS}, num_outputs=lambda c: 2 * c.latent_dim + c.hidden[-1],
        is_flow=True, has_flow_networks=True, page={"kind": "flow"},
    ),
    Posterior(
        name="power-spherical", module="pvae.models.posteriors:PowerSphericalPosterior",
        help="on the unit sphere, with --prior sphere", num_outputs=lambda c: c.latent_dim + 1,
        closed_forms=("sphere",), support="points on the unit sphere",
        page={"kind": "power-spherical"},
    ),
    Posterior(
        name="bernoulli", module="pvae.models.posteriors:BernoulliPosterior",
        help="bits, with --prior bits or uniform-bits, and --elbo arms, disarm, score-loo, vimco, gumbel or "
        "straight-through", num_outputs=lambda c: c.latent_dim, closed_forms=("bits", "uniform-bits"),
        inference=("bottom-up",), support="bits",
        page={"kind": "bits"},
    ),
    Posterior(
        name="categorical", module="pvae.models.posteriors:CategoricalPosterior",
        help="--latent-dim / --categories variables of as many classes, with --prior categories or uniform-categories, "
        "and --elbo disarm-categories, score-loo, vimco, gumbel or straight-through",
        arguments=lambda c: {"num_classes": c.categories}, num_outputs=lambda c: c.latent_dim,
        closed_forms=("categories", "uniform-categories"), support="categories",
    ),
    Posterior(
        name="vq", module="pvae.models.posteriors:QuantizedPosterior",
        help="the nearest of --categories codes of --code-dim values, a codebook that is learned, with --prior "
        "uniform-codes", arguments=lambda c: {"num_codes": c.categories, "code_dim": c.code_dim},
        num_outputs=lambda c: c.latent_dim, closed_forms=("uniform-codes",), support="codes",
    ),
    Posterior(
        name="fsq", module="pvae.models.posteriors:QuantizedPosterior",
        help="the same with the codebook of --categories levels of each latent dimension",
        arguments=lambda c: {"num_codes": c.categories, "is_fixed": True},
        num_outputs=lambda c: c.latent_dim, closed_forms=("uniform-codes",), support="codes",
    ),
    Posterior(
        name="delta", module="pvae.models.posteriors:DeltaPosterior",
        help="a point, without a prior, which makes an autoencoder", num_outputs=lambda c: c.latent_dim,
        closed_forms=("flat",), has_density=False,
        page={"kind": "delta"},
    ),
)

PRIORS = _table(
    Prior(
        name="standard-normal", module="pvae.models.priors:StandardNormalPrior", has_exact_start=True, help="N(0, I)",
        page="normal",
    ),
    Prior(
        name="mixture", module="pvae.models.priors:MixturePrior",
        has_exact_start=True, help="a learned mixture of Normals",
        arguments=lambda c: {"num_components": c.components}, is_mixture=True,
        page="mixture",
    ),
    Prior(
        name="vamp", module="pvae.models.priors:VampPrior", help="a mixture of the posteriors at learned pseudo-inputs",
        arguments=lambda c: {"num_components": c.components, "symmetric": c.is_symmetric}, is_of_posterior=True,
        is_mixture=True,
        page="mixture",
    ),
    Prior(
        name="flow", module="pvae.models.priors:FlowPrior",
        help="learned, by masked autoregressive flow, which needs zuko",
        arguments=lambda c: {"num_transforms": c.flow_length, "hidden": c.flow_hidden}, is_flow=True,
        page="flow",
    ),
    Prior(
        name="bits", module="pvae.models.priors:BernoulliPrior", help="learned, with --posterior bernoulli",
        support="bits", page="bits",
    ),
    Prior(
        name="uniform-bits", module="pvae.models.priors:BernoulliPrior", help="each bit 1 with probability 1/2",
        arguments=lambda c: {"is_learned": False}, support="bits", page="bits",
    ),
    Prior(
        name="categories", module="pvae.models.priors:CategoricalPrior", help="learned, with --posterior categorical",
        arguments=lambda c: {"num_classes": c.categories}, support="categories",
    ),
    Prior(
        name="uniform-categories", module="pvae.models.priors:CategoricalPrior", help="all classes equally probable",
        arguments=lambda c: {"num_classes": c.categories, "is_learned": False}, support="categories",
    ),
    Prior(
        name="uniform-codes", module="pvae.models.priors:CodebookPrior",
        help="all codes equally probable, with --posterior vq or fsq", support="codes",
    ),
    Prior(
        name="sphere", module="pvae.models.priors:SpherePrior",
        help="uniform on the unit sphere, with --posterior power-spherical", support="points on the unit sphere",
        page="sphere",
    ),
)
# fmt: on
FLAT = Prior(name="flat", module="pvae.models.priors:FlatPrior", page="flat")  # of an autoencoder, without --prior

# fmt: off
LIKELIHOODS = _table(
    Likelihood(
        name="bernoulli", module="pvae.models.likelihoods:BernoulliLikelihood",
        help="of binary pixels, or the cross-entropy of grey ones",
        grey="pvae.models.likelihoods:PseudoBernoulliLikelihood", has_scale=False, is_of_logits=True,
        page="bernoulli", is_on_table_page=True, has_exact_start=True,
    ),
    Likelihood(
        name="continuous-bernoulli", module="pvae.models.likelihoods:ContinuousBernoulliLikelihood",
        help="a density of grey pixels of the same shape", has_scale=False, is_of_logits=True,
        page="continuous-bernoulli",
    ),
    Likelihood(
        name="normal", module="pvae.models.likelihoods:NormalLikelihood", help="of a fixed scale: a squared error",
        can_be_symmetric=True, has_fixed_scale=True,
        page="normal",
    ),
    Likelihood(
        name="normal-learned", module="pvae.models.likelihoods:LearnedNormalLikelihood", help="with one trained scale",
        can_be_symmetric=True,
        page="normal",
    ),
    Likelihood(
        name="normal-optimal", module="pvae.models.likelihoods:OptimalNormalLikelihood",
        help="with the scale that is best for each batch (sigma-VAE)", can_be_symmetric=True, needs_batch=True,
        page="normal",
    ),
    Likelihood(
        name="normal-linear", module="pvae.models.likelihoods:LinearNormalLikelihood",
        help="around the decoder's output itself, with --network linear", can_be_symmetric=True, is_linear=True,
        page="normal", page_mean="identity", has_fixed_scale=True,
    ),
    Likelihood(
        name="discretized-logistic", module="pvae.models.likelihoods:DiscretizedLogisticLikelihood",
        help="a probability of the 256 levels of each pixel", has_levels=True,
        page="discretized-logistic",
    ),
    Likelihood(
        name="normal-diagonal", module="pvae.models.likelihoods:DiagonalNormalLikelihood",
        help="of real values, each with a scale that depends on z too", is_of_images=False, sees="standardized",
        is_on_table_page=True, has_exact_start=True, outputs_each=2,
    ),
    Likelihood(
        name="student-t", module="pvae.models.likelihoods:StudentTLikelihood", help="of real values with outliers",
        is_of_images=False, sees="standardized", is_on_table_page=True,
    ),
    Likelihood(
        name="poisson", module="pvae.models.likelihoods:PoissonLikelihood", help="of counts", is_of_images=False,
        sees="log1p", has_scale=False, is_on_table_page=True, has_exact_start=True,
    ),
    Likelihood(
        name="negative-binomial", module="pvae.models.likelihoods:NegativeBinomialLikelihood",
        help="of counts that vary more than a Poisson's", is_of_images=False, sees="log1p", has_scale=False,
        is_on_table_page=True, has_exact_start=True,
    ),
    Likelihood(
        name="columns", module="pvae.models.likelihoods:ColumnsLikelihood",
        help="of rows whose columns are of different kinds",
        arguments=lambda c: {"scale": c.scale, "kinds": c.column_kinds}, is_of_images=False, sees="columns",
        is_on_table_page=True, has_exact_start=True,
    ),
)
# fmt: on
