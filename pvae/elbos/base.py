"""The base class of the ELBOs: Pyro traces guide and model, `Draws` reads their sites, the loss follows from these."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.distributions import Delta, ImproperUniform, constraints
from pyro.infer import Trace_ELBO
from pyro.infer.util import is_validation_enabled
from pyro.poutine import Trace
from pyro.poutine.guide import GuideMessenger
from pyro.poutine.util import site_is_subsample
from pyro.util import check_if_enumerated, check_model_guide_match, warn_if_nan
from torch import Tensor
from torch.distributions import Distribution, Independent

from pvae.core.batch import LossAndTerms, Terms
from pvae.core.errors import InputError
from pvae.core.options import Family, Option
from pvae.core.tracing import shared_calls

_Sites = Mapping[str, Any]


class Latent(NamedTuple):
    """A latent site: its draw z, (K, B, L) or with one particle (B, L), its prior and its posterior.

    `is_prior_known` is true if the guide draws, before this site, every site that the model draws before it. Otherwise
    the prior may depend on draws that themselves depend on z, and KL(q, p) is not the rate.
    """

    z: Tensor
    prior: Distribution
    posterior: Distribution
    is_prior_known: bool


@dataclass(frozen=True, eq=False)
class Draws:
    """The sample sites of model and guide at z_1..z_K ~ q(z | x).

    Each log-probability, (K, B), is computed when it is first used.

    Args:
        observed: the observed sites of the model, by name.
        priors: the latent sites of the model.
        posteriors: the same sites in the guide.
        batch_shape: (K, B) or, with one particle, (B,).
    """

    observed: _Sites
    priors: _Sites
    posteriors: _Sites
    batch_shape: tuple[int, ...]

    @functools.cached_property
    def log_p_x(self) -> Tensor:
        """The log-likelihoods log p(x | z_k)."""
        return self._total(self.observed)

    @functools.cached_property
    def log_p_z(self) -> Tensor:
        """The log-densities of the prior, log p(z_k)."""
        return self._total(self.priors)

    @functools.cached_property
    def log_q_z(self) -> Tensor:
        """The log-densities of the approximate posterior, log q(z_k | x)."""
        return self._total(self.posteriors)

    @property
    def log_w(self) -> Tensor:
        """The logarithms of the importance weights, log p(x, z_k) - log q(z_k | x)."""
        return self.log_p_x + self.log_p_z - self.log_q_z

    @property
    def latents(self) -> Iterable[Latent]:
        """The latent sites, in the model's order."""
        model, guide = [*self.priors], [*self.posteriors]
        for place, name in enumerate(model):
            is_known = {*model[:place]} <= {*guide[: guide.index(name)]}
            yield Latent(self.priors[name]["value"], self.priors[name]["fn"], self.posteriors[name]["fn"], is_known)

    @property
    def only(self) -> Latent:
        """The one latent site.

        Raises:
            InputError: there are several.
        """
        latents = [*self.latents]
        if len(latents) > 1:
            raise InputError(f"there are {len(latents)} latent sites, and this ELBO needs one: take TraceELBO or score")
        return latents[0]

    @classmethod
    def of(cls, model_trace: Any, guide_trace: Any, batch_shape: tuple[int, ...]) -> Draws:
        """Read the sample sites of two Pyro traces; the model was replayed at the guide's draws.

        Args:
            model_trace: trace of the model.
            guide_trace: trace of the guide.
            batch_shape: the shape that the plates give each site.

        Raises:
            ValueError: a site is scaled, masked, outside the plate "data" or drawn in only one of the traces, or there
                is no latent or no observed site. The bounds are not defined for any of these.
            InputError: (a ValueError) one of q and p of a site is a density on the unit sphere and the other is not, or
                p is improper and q is not a point mass.
        """
        model, guide = samples(model_trace), samples(guide_trace)
        observed = {name: site for name, site in model.items() if site["is_observed"]}
        priors = {name: site for name, site in model.items() if name not in observed}
        posteriors = {name: site for name, site in guide.items() if not (name in observed and site["is_observed"])}
        if posteriors.keys() != priors.keys() or not priors or not observed:
            of_model, of_guide, seen = (", ".join(sites) or "no site" for sites in (priors, posteriors, observed))
            raise ValueError(
                f"the model draws {of_model} and observes {seen}, and the guide draws {of_guide}: both must draw the "
                "same sites, and the model must observe one"
            )
        for name, site in posteriors.items():
            if _is_on_sphere(site["fn"]) != _is_on_sphere(priors[name]["fn"]):
                raise InputError(
                    f"one of q and p of {name!r} is a density on the unit sphere, and the other is not: change one"
                )
            if isinstance(priors[name]["fn"], ImproperUniform) and not isinstance(site["fn"], Delta):
                raise InputError(
                    f"p of {name!r} is improper, so there is no bound on log p(x): give a proper prior, or a point as "
                    "q, such as DeltaPosterior"
                )
        for sites in (observed, priors, posteriors):
            for name, site in sites.items():
                _check_site(name, site, batch_shape)
        return cls(observed, priors, posteriors, batch_shape)

    def log_prior(self, name: str) -> Tensor:
        """Return the log-densities of one latent site's prior, (K, B)."""
        return self._total({name: self.priors[name]})

    def _total(self, sites: _Sites) -> Tensor:
        """Return the sum of the sites' log-probabilities, (K, B)."""
        total = functools.reduce(torch.add, (self._log_prob(name, site) for name, site in sites.items()))
        return total if total.dim() == 2 else total[None]

    def _log_prob(self, name: str, site: Any) -> Tensor:
        log_prob: Tensor = site["fn"].log_prob(site["value"], *site["args"], **site["kwargs"])
        if log_prob.shape != self.batch_shape:
            shapes = f"{tuple(log_prob.shape)} and not {tuple(self.batch_shape)}"
            raise ValueError(f"the log-probability of site {name!r} has shape {shapes}")
        return log_prob


def constraint_of(distribution: Any) -> Any:
    """Return the support of each dimension of a distribution, as of the components of a mixture."""
    constraint = distribution.support
    while hasattr(constraint, "base_constraint"):
        constraint = constraint.base_constraint
    return constraint


def _is_on_sphere(distribution: Any) -> bool:
    try:
        return constraint_of(distribution) is constraints.sphere
    except NotImplementedError:
        return False


def samples(trace: Any) -> dict[str, Any]:
    """Return the sample sites of a Pyro trace by name, without those of its plates."""
    nodes = trace.nodes.items()
    return {name: site for name, site in nodes if site["type"] == "sample" and not site_is_subsample(site)}


def _check_site(name: str, site: Any, batch_shape: tuple[int, ...]) -> None:
    """Refuse a site that is scaled, masked or not independent for each datum."""
    scale = site["scale"]
    if not (isinstance(scale, (int, float)) and scale == 1) or site["mask"] is not None:
        raise ValueError(f"site {name!r} is scaled or masked, so the loss is not a bound: weigh the rate by beta")
    if site["fn"].batch_shape != batch_shape:
        raise ValueError(
            f"site {name!r} does not have one value per datum (its batch shape is {tuple(site['fn'].batch_shape)}, and "
            f"not {batch_shape}): put it inside pyro.plate('data', x.shape[0]) and no other plate, and declare its "
            "event dimensions by .to_event"
        )


PyroFunction = Callable[..., Any]  # of *batch: data x, and perhaps labels y
Beta = Annotated[float, Option(help="weight of the rate in the loss, never in a reported ELBO")]
_FREE_BITS = (
    "the rate of each latent dimension, a mean over the batch, counts as at least this number of nats; requires "
    "--prior standard-normal, --posterior normal or normal-log-variance, and --elbo trace, analytic or handwritten"
)
FreeBits = Annotated[float, Option(help=_FREE_BITS)]


class PerDatumELBO(Trace_ELBO, Family):
    """Base class of the ELBOs, whose loss is a mean over the batch, where that of Pyro's own ELBOs is a sum.

        loss = mean over the batch of (distortion + beta rate), in nats per datum

    The loss and its terms are computed from the draws in Pyro's traces of guide and model. The particles are an
    additional batch dimension, not a loop. With free bits, the rate of each latent dimension, averaged over the batch,
    counts at least `free_bits` nats in the loss. The `penalty` of a distribution that has one, as that of a codebook,
    is added to the loss, and not to the terms. `pyro.infer.SVI` accepts these ELBOs like its own. The
    arguments of a subclass are its options: to add one, write a subclass with a name, and a test.

    Args:
        num_particles: K, samples z ~ q(z | x) per datum.
        beta: the weight of the rate in the loss, which each method has an argument to override for one call.
        free_bits: the nats per latent dimension that cost nothing.

    Raises:
        InputError: K is no whole number of at least 1.

    Attributes:
        least_particles: the smallest K.
        needs_closed_form: the rate, or with several stochastic layers a part of it, is a KL divergence in closed form.
        is_importance_weighted: a bound of importance weights, which equals the ELBO for one particle.
        needs_separate_draws: its gradient needs importance weights that each depend on one draw of z only.
        needs_independent_dimensions: it has a rate of each latent dimension.
        needs_whole_batch: its loss is no mean of losses of single data.
        reparameterised: z must be a differentiable function of the parameters of q.
        supports: what z may be, "bits" or "categories"; () for any z.
        draws_together: the size of the groups in which z is drawn; K is a multiple of it.
        sums_over_labels: a label is a latent that is summed over.
        messenger: a Pyro handler that is active while guide and model are traced.
    """

    least_particles = 1
    needs_closed_form = False
    is_importance_weighted = False
    needs_separate_draws = False
    needs_independent_dimensions = False
    needs_whole_batch = False
    reparameterised = True
    supports: tuple[str, ...] = ()
    draws_together = 1
    sums_over_labels = False
    messenger: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext

    def __init__(self, num_particles: int = 1, beta: Beta = 1.0, free_bits: FreeBits = 0.0) -> None:
        if not isinstance(num_particles, int) or num_particles < 1:
            raise InputError(f"num_particles is {num_particles!r}: give K, a whole number of at least 1")
        # The only plate, "data", is dimension -1; the particles are dimension -2.
        super().__init__(  # type: ignore[no-untyped-call]
            num_particles=num_particles, vectorize_particles=True, max_plate_nesting=1
        )
        self.beta = beta
        self.free_bits: float | Tensor = free_bits

    def loss_and_terms(
        self, model: PyroFunction, guide: PyroFunction, *batch: Tensor, beta: float | Tensor | None = None
    ) -> LossAndTerms:
        """Return the differentiable loss of a batch, a scalar in nats per datum, and its terms.

        Args:
            model: a Pyro function with observed and latent sites.
            guide: its guide.
            batch: data x (B, *D), and then labels y (B, ...) if model and guide take them.
            beta: weight of the rate in this loss; the ELBO's own if left out. It does not change the terms.

        Raises:
            ValueError: `Draws.of` refuses the sites.
            InputError: (a ValueError) z is not reparameterised, and the gradient needs it to be.
        """
        draws = self._draws(model, guide, batch)
        distortion, rate = -_mean(draws.log_p_x), self.rate(draws)
        loss = self.loss_of(draws, distortion, rate, self.beta if beta is None else beta)
        sites = [*draws.posteriors.values(), *draws.observed.values()]
        loss = loss + sum(penalty.mean() for penalty in penalties(sites))
        return LossAndTerms(loss, Terms(distortion.detach(), rate.detach()))

    def loss_of(self, draws: Draws, distortion: Tensor, rate: Tensor, beta: float | Tensor) -> Tensor:
        """Return the loss, a scalar, of the draws and their two terms, (B,) each."""
        loss = (distortion + beta * rate).mean()
        if not isinstance(self.free_bits, Tensor) and not self.free_bits:
            return loss
        refuse_dependent_dimensions(p for latent in draws.latents for p in (latent.posterior, latent.prior))
        rates = self.rate_by_dimension(draws).mean(0)
        return loss + beta * (rates.clamp(min=self.free_bits) - rates).sum()

    def rate(self, draws: Draws) -> Tensor:
        """Return the rate of each datum, (B,): the mean of log q - log p, or a closed form of its expectation."""
        return _mean(draws.log_q_z - draws.log_p_z)

    def rate_by_dimension(self, draws: Draws) -> Tensor:
        """Return the rate of each latent dimension, (B, L); they sum to the rate."""
        rates = []
        sites: list[Any] = [*draws.latents]  # `loss_of` has checked that they are Independent
        for latent in sites:
            rate = self.rate_of(latent, latent.posterior.base_dist, latent.prior.base_dist)
            rate = rate.flatten(-latent.posterior.reinterpreted_batch_ndims)
            rates.append(rate.mean(0) if rate.dim() == 3 else rate)
        return torch.cat(rates, dim=-1)

    def rate_of(self, latent: Latent, q: Any, p: Any) -> Tensor:
        """Return log q - log p at the draws of a site, in nats; its mean over the particles estimates KL(q || p).

        Args:
            latent: the site, with draws (K, B, L) or, with one particle, (B, L).
            q: its posterior of the whole event, batch shape (B,); or of each dimension, batch shape (B, L).
            p: its prior, as q.

        Returns:
            (K, B) of whole events, (K, B, L) of dimensions; without K for one particle, or where a subclass returns a
            closed form that is the same for every draw.
        """
        ratio: Tensor = q.log_prob(latent.z) - p.log_prob(latent.z)
        return ratio

    def differentiable_loss(self, *arguments: Any, **options: Any) -> Tensor:
        """Return the loss of `loss_and_terms`, which has the same arguments."""
        return self.loss_and_terms(*arguments, **options).loss

    def backward(self, *arguments: Any, **options: Any) -> LossAndTerms:
        """Add the gradients of the loss to the parameters, and return loss and terms without a gradient.

        The arguments are those of `loss_and_terms`.

        Raises:
            InputError: no parameter is registered with Pyro.
        """
        loss, terms = self.loss_and_terms(*arguments, **options)
        if not pyro.get_param_store():
            how = 'call pyro.module("encoder", encoder) in the guide and pyro.module("decoder", decoder) in the model'
            raise InputError(f"model and guide register no parameters with Pyro, so SVI would train nothing: {how}")
        loss.backward()
        return LossAndTerms(loss.detach(), terms)

    def evaluate(self, *arguments: Any, **options: Any) -> LossAndTerms:
        """Return what `loss_and_terms` returns, without a gradient; Pyro's parameter store stays as it was."""
        store = pyro.get_param_store()
        with torch.no_grad(), store.scope(store.get_state()):
            return self.loss_and_terms(*arguments, **options)

    def loss(self, *arguments: Any, **options: Any) -> float:
        """Return the loss as a number, in nats per datum; `SVI.evaluate_loss` calls it."""
        loss = self.evaluate(*arguments, **options).loss
        warn_if_nan(loss, "loss")
        return loss.item()

    def loss_and_grads(self, *arguments: Any, **options: Any) -> Tensor:
        """Return the loss, in nats per datum, after adding its gradients to the parameters; `SVI.step` calls it."""
        loss = self.backward(*arguments, **options).loss
        warn_if_nan(loss, "loss")
        return loss

    def _draws(self, model: PyroFunction, guide: PyroFunction, batch: tuple[Tensor, ...]) -> Draws:
        with shared_calls(), self.messenger():
            ((model_trace, guide_trace),) = self._get_traces(model, guide, batch, {})  # type: ignore[no-untyped-call]
        particles = () if self.num_particles == 1 else (self.num_particles,)
        draws = Draws.of(model_trace, guide_trace, (*particles, len(batch[0])))
        for name, site in draws.posteriors.items():
            if self.reparameterised:
                require_rsample(name, site["fn"])
        return draws

    def _get_trace(self, model: PyroFunction, guide: PyroFunction, args: Any, kwargs: Any) -> tuple[Trace, Trace]:
        """Trace guide and model as Pyro's ELBOs do, but do not compute their log-probabilities.

        Pyro computes and sums all of them; with a closed-form rate only log p(x | z) is needed. The sites of the
        plates are left in the traces; `Draws` ignores them.
        """
        messenger = poutine.unwrap(guide)
        if isinstance(messenger, GuideMessenger):
            guide(*args, **kwargs)
            model_trace, guide_trace = messenger.get_traces()
        else:
            guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
            model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*args, **kwargs)
        if is_validation_enabled():
            check_model_guide_match(model_trace, guide_trace, self.max_plate_nesting)
            if not self.sums_over_labels:
                check_if_enumerated(guide_trace)
        return model_trace, guide_trace


def penalties(sites: Iterable[Any]) -> Iterator[Tensor]:
    """Yield the `penalty` of each distribution that has one, at the value of its site, which no ELBO counts."""
    for site in sites:
        if hasattr(site["fn"], "penalty"):
            yield site["fn"].penalty(site["value"])


def require_rsample(name: str, posterior: Distribution) -> None:
    """Raise an `InputError` if the posterior of the latent site of that name is not reparameterised."""
    if not posterior.has_rsample:
        raise InputError(
            f"q of {name!r} is not reparameterised (it has no rsample): use ScoreELBO, or LeaveOneOutScoreELBO "
            "with 2 particles or more"
        )


def refuse_dependent_dimensions(distributions: Iterable[Distribution]) -> None:
    """Refuse an ELBO of the rate of each latent dimension where the rate is not a sum over them.

    Args:
        distributions: posterior and prior of each latent site.

    Raises:
        InputError: a distribution is not `Independent` over the dimensions of its event.
    """
    for distribution in distributions:
        if not isinstance(distribution, Independent):
            family = type(distribution).__name__
            raise InputError(f"a {family} has no rate of each latent dimension, which this ELBO needs")


def _mean(values: Tensor) -> Tensor:
    """Return the mean over the particles; for a single particle only drop the dimension, which is faster."""
    return values.mean(0) if values.shape[0] > 1 else values.squeeze(0)
