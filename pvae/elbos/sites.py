"""The sample sites of model and guide, and the log-probability of each datum at them."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from pyro.distributions import Delta, ImproperUniform, constraints
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import Distribution

from pvae.core.errors import InputError

__all__ = ["Draws", "Latent", "samples"]

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


def _is_on_sphere(distribution: Any) -> bool:
    try:
        constraint = distribution.support
    except NotImplementedError:
        return False
    while hasattr(constraint, "base_constraint"):  # of a mixture
        constraint = constraint.base_constraint
    return constraint is constraints.sphere


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
