"""The ELBO: by Monte Carlo, with a KL divergence in closed form or a rate in parts, summed over labels, and by hand."""

from __future__ import annotations

import contextlib
import functools
import math
import warnings
from typing import Annotated, Any

import torch
from pyro.infer import TraceEnum_ELBO, TraceMeanField_ELBO, config_enumerate
from torch import Tensor
from torch.distributions import kl_divergence

from pvae.core import protocol
from pvae.core.batch import LossAndTerms, Terms
from pvae.core.errors import InputError
from pvae.core.options import Option
from pvae.core.tracing import register, shared_calls
from pvae.distributions.joint import PartlyKnownLabel
from pvae.elbos.base import (
    Beta,
    Draws,
    Latent,
    PerDatumELBO,
    PyroFunction,
    penalties,
    refuse_dependent_dimensions,
    require_rsample,
    samples,
)
from pvae.vae import VAE


class TraceELBO(PerDatumELBO, name="trace", help="the ELBO, by Monte Carlo, as Pyro's Trace_ELBO"):
    """The Monte Carlo bound, for a reparameterised q: Pyro's `Trace_ELBO` divided by the number of data.

        L(x) = E_q [ log p(x, z) - log q(z | x) ]

    Args:
        num_particles: K, the number of draws of z for each datum.
        beta: weight of the rate in the loss.
        free_bits: nats per latent dimension that cost nothing.

    Reference:
        Kingma and Welling, arXiv:1312.6114, equation 6.
    """


class AnalyticELBO(
    PerDatumELBO,
    TraceMeanField_ELBO,
    name="analytic",
    help="with the KL in closed form, as TraceMeanField_ELBO",
):
    """The bound with the KL divergence in closed form: Pyro's `TraceMeanField_ELBO` divided by the number of data.

        L(x) = E_q [ log p(x | z) ] - KL(q(z | x) || p(z))

    Of several latent sites, those with a closed form take it, at the draws of the sites before them; the others take
    the mean of log q - log p. A site has no closed form if its prior may depend on a site that the guide draws later.

    Args:
        num_particles: K, the number of draws of z for each datum.
        beta: weight of the rate in the loss.
        free_bits: nats per latent dimension that cost nothing.

    Raises:
        InputError: (when used) no site has a closed form, where Pyro would silently use a Monte Carlo estimate.

    Reference:
        Kingma and Welling, arXiv:1312.6114, equation 7.
    """

    needs_closed_form = True

    def rate(self, draws: Draws) -> Tensor:
        """Return the rate of each datum, (B,): KL(q(z | x) || p(z)), or of several sites the sum of their rates.

        Raises:
            InputError: no site has a closed form.
        """
        latents = [*draws.latents]
        divergences = [_divergence(latent, latent.posterior, latent.prior) for latent in latents]
        if all(divergence is None for divergence in divergences):
            families = "; ".join(f"({_family(latent.posterior)}, {_family(latent.prior)})" for latent in latents)
            raise InputError(f"no closed-form KL is known for {families}: use TraceELBO")
        num_drawn = sum(divergence is None for divergence in divergences)
        if num_drawn:
            warnings.warn(
                f"{num_drawn} of {len(latents)} layers of latents have no KL in closed form: their rate is a mean of "
                "log q - log p at the draws",
                stacklevel=2,
            )
        pairs = zip(latents, divergences)
        rates = [
            PerDatumELBO.rate_of(self, latent, latent.posterior, latent.prior) if rate is None else rate
            for latent, rate in pairs
        ]
        return functools.reduce(torch.add, (rate.mean(0) if rate.dim() == 2 else rate for rate in rates))

    def rate_of(self, latent: Latent, q: Any, p: Any) -> Tensor:
        """Return KL(q || p), or where it is not the rate or has no closed form, log q - log p at the draws."""
        divergence = _divergence(latent, q, p)
        return super().rate_of(latent, q, p) if divergence is None else divergence


def _divergence(latent: Latent, q: Any, p: Any) -> Tensor | None:
    """Return KL(q, p), repeated for each particle, or None where it is not the rate or has no closed form."""
    with contextlib.suppress(NotImplementedError):
        return kl_divergence(q, p) if latent.is_prior_known else None
    return None


def _family(distribution: Any) -> str:
    return type(getattr(distribution, "base_dist", distribution)).__name__


class HandwrittenELBO(
    PerDatumELBO, name="handwritten", help="log p(x|z) + log p(z) - log q(z|x) without Pyro's inference"
):
    """The Monte Carlo bound written by hand, without Pyro's traces, trained by the same SVI.

        L(x) = E_q [ log p(x | z) + log p(z) - log q(z | x) ]

    Args:
        num_particles: K, the number of draws of z for each datum.
        beta: weight of the rate in the loss.
        free_bits: nats per latent dimension that cost nothing.
    """

    def _draws(self, model: PyroFunction, guide: PyroFunction, batch: tuple[Tensor, ...]) -> Draws:
        """Return the draws from the distributions of the VAE of `model` and `guide`, as sites of traces.

        Raises:
            TypeError: `model` and `guide` are not the methods of one `VAE`, which has the distributions.
            InputError: z is not reparameterised.
        """
        vae = getattr(model, "__self__", None)
        if not isinstance(vae, VAE | protocol.Given) or (model, guide) != (vae.model, vae.guide):
            raise TypeError("the handwritten ELBO takes vae.model and vae.guide of one VAE")
        for name in ("p_z", "q_z", "p_x"):  # SVI updates only parameters that are registered while the loss is computed
            register(name, getattr(vae, name))
        x, *labels = batch
        given = vae.given(*labels) if labels else vae
        posteriors, priors = dict[str, Any](), dict[str, Any]()

        def draw(name: str, q: Any) -> Tensor:
            require_rsample(name, q)
            posteriors[name] = _site(q, q.rsample(() if posteriors else (self.num_particles,)))
            return posteriors[name]["value"]

        def replay(name: str, p: Any) -> Tensor:
            priors[name] = _site(p, posteriors[name]["value"])
            return priors[name]["value"]

        with shared_calls():
            z = protocol.draw(given.posterior(x), draw)
            protocol.draw(given.prior(), replay)
            observed = {"x": _site(protocol.of_event(given.likelihood(z), x), x)}
        return Draws(observed, priors, posteriors, (self.num_particles, len(x)))


def _site(distribution: Any, value: Tensor) -> dict[str, Any]:
    return {"fn": distribution, "value": value, "args": (), "kwargs": {}}


_MI = "weight of the mutual information of datum and code, as a part of the rate"
_TC = "weight of the total correlation of the dimensions of the code"
_DIM = "weight of the rates of the dimensions of q(z) from their priors"


class TotalCorrelationELBO(
    PerDatumELBO, name="beta-tc", help="the ELBO whose total correlation has a weight of its own (beta-TCVAE)"
):
    """The ELBO with a weight for each part of its rate, over N training data n, q(z) = (1/N) sum_n q(z | n).

        loss = distortion + beta (mi_weight MI + tc_weight TC + dim_weight D)
        MI = log q(z | n) - log q(z),   TC = log q(z) - sum_l log q(z_l),   D = sum_l log q(z_l) - log p(z_l)
        log q(z) ~ log 1 / (N M) sum_m q(z | m),   over the M data of the batch; log q(z_l) likewise

    With equal weights it is `TraceELBO`, since MI + TC + D = log q(z | n) - log p(z). The estimate of log q(z) is
    biased, and low: of a batch that is the whole data set it is log N below log q(z), so that MI is too high and TC has
    L - 1 times log N too much. The gradients of these constants are zero. The reported terms are those of the ELBO.

    Args:
        num_particles: K, the number of draws of z for each datum.
        beta: weight of the rate in the loss.
        mi_weight: weight of the index-code mutual information MI.
        tc_weight: weight of the total correlation TC.
        dim_weight: weight of the dimension-wise rate D.
        num_data: N; 0 for the size M of the batch.

    Raises:
        InputError: (when used) there are several latent sites, or dimensions of q or p are not independent.

    Reference:
        Chen et al., arXiv:1802.04942, section 3, with its minibatch-weighted sampling.
    """

    needs_independent_dimensions = True
    needs_whole_batch = True

    def __init__(
        self,
        num_particles: int = 1,
        beta: Beta = 1.0,
        mi_weight: Annotated[float, Option(help=_MI)] = 1.0,
        tc_weight: Annotated[float, Option(help=_TC)] = 6.0,
        dim_weight: Annotated[float, Option(help=_DIM)] = 1.0,
        num_data: int = 0,
    ) -> None:
        super().__init__(num_particles, beta)
        self.mi_weight = mi_weight
        self.tc_weight = tc_weight
        self.dim_weight = dim_weight
        self.num_data = num_data

    def loss_of(self, draws: Draws, distortion: Tensor, rate: Tensor, beta: float | Tensor) -> Tensor:
        """Return the loss, a scalar, of the draws and their distortion, (B,)."""
        information, correlation, by_dimension = self.parts_of_rate(draws)
        weighted = self.mi_weight * information + self.tc_weight * correlation + self.dim_weight * by_dimension
        return distortion.mean() + beta * weighted.mean()

    def parts_of_rate(self, draws: Draws) -> tuple[Tensor, Tensor, Tensor]:
        """Return MI, TC and D of each datum and draw, (B,) or (B, K), in nats; their sum is log q(z | n) - log p(z)."""
        latent = draws.only
        refuse_dependent_dimensions([latent.posterior, latent.prior])
        z = latent.z.movedim(-2, 0)  # (B, L) or (B, K, L)
        q = latent.posterior.base_dist  # type: ignore[attr-defined]  # of the batch, (M, L) or (K, M, L)
        p = latent.prior.base_dist  # type: ignore[attr-defined]
        pairs = q.log_prob(z.unsqueeze(-2))  # of z of each datum given each datum: (B, M, L) or (B, K, M, L)
        log_size = math.log(pairs.shape[-2] * (self.num_data or pairs.shape[-2]))
        log_q_given = q.log_prob(latent.z).movedim(-2, 0).sum(-1)
        log_q = pairs.sum(-1).logsumexp(-1) - log_size
        log_q_each = (pairs.logsumexp(-2) - log_size).sum(-1)
        log_p = p.log_prob(latent.z).movedim(-2, 0).sum(-1)
        return log_q_given - log_q, log_q - log_q_each, log_q_each - log_p


_LABEL_WEIGHT = (
    "weight of the classifier q(y | x) in the loss, times its cross-entropy, a mean over the known labels; 0.1 is "
    "that of Kingma et al., who train for 3,000 passes"
)
_LabelWeight = Annotated[float, Option(help=_LABEL_WEIGHT)]


class EnumeratedELBO(
    PerDatumELBO,
    TraceEnum_ELBO,
    name="enumerate",
    help="the ELBO summed over the labels that are not known, with --labels",
):
    """The ELBO of a label y and a latent z, with the sum over y: Pyro's `TraceEnum_ELBO` divided by the number of data.

        L(x) = sum_y q(y | x) [ log p(x, y, z_y) - log q(y | x) - log q(z_y | x, y) ],    z_y ~ q(z | x, y)

    Where the label is known, q(y | x) is a point mass and L bounds log p(x, y). The classifier q(y | x) then has no
    gradient, so the loss of such a datum has a further term, its cross-entropy with the weight a, `label_weight`:

        loss = -L - a log q(y | x)

    Args:
        num_particles: K draws of z for each y.
        beta: weight of the rate in the loss.
        label_weight: weight of the cross-entropy of the known labels. The authors' is 0.1 N / N_labelled.

    Raises:
        InputError: (when used) the guide has no site "y" that can be enumerated, or z is not reparameterised.

    Reference:
        Kingma et al., arXiv:1406.5298 (the model M2).
    """

    sums_over_labels = True

    def __init__(self, num_particles: int = 1, beta: Beta = 1.0, label_weight: _LabelWeight = 5.0) -> None:
        super().__init__(num_particles, beta)
        self.label_weight = label_weight

    def loss_and_terms(
        self, model: PyroFunction, guide: PyroFunction, *batch: Tensor, beta: float | Tensor | None = None
    ) -> LossAndTerms:
        """Return loss and terms of data x (B, *D), whose labels y are int64 (B,), -1 where one is not known."""
        with shared_calls():
            ((of_model, of_guide),) = self._get_traces(model, guide, batch, {})
        q, p = samples(of_guide), samples(of_model)
        if "_enumerate_dim" not in q.get("y", {}).get("infer", {}):
            raise InputError("the guide has no label y to be summed over: train it by TraceELBO")
        for name in q.keys() - {"y"}:
            require_rsample(name, q[name]["fn"])
        label, log_q_y = q["y"]["fn"], _log_prob(q["y"])
        log_q, log_p = (functools.reduce(torch.add, (_log_prob(sites[name]) for name in q)) for sites in (q, p))
        log_p_x = functools.reduce(torch.add, (_log_prob(site) for site in p.values() if site["is_observed"]))
        distortion, rate = _expected(log_q_y, -log_p_x), _expected(log_q_y, log_q - log_p)
        loss = (distortion + (self.beta if beta is None else beta) * rate).mean()
        if self.label_weight and isinstance(label, PartlyKnownLabel):
            loss = loss + self.label_weight * label.cross_entropy.mean()
        for penalty in penalties(p.values()):
            loss = loss + _expected(log_q_y, penalty).mean()
        return LossAndTerms(loss, Terms(distortion.detach(), rate.detach()))

    def _get_traces(self, model: PyroFunction, guide: PyroFunction, args: Any, kwargs: Any) -> Any:
        """Trace guide and model with all values of y along a new dimension, left of those of the particles."""
        return super()._get_traces(model, config_enumerate(guide), args, kwargs)  # type: ignore[no-untyped-call]


def _log_prob(site: Any) -> Tensor:
    log_prob: Tensor = site["fn"].log_prob(site["value"])
    return log_prob


def _expected(log_q_y: Tensor, values: Tensor) -> Tensor:
    """Return the sum over y of q(y | x) times values (K, ..., B), a mean over the particles: (B,)."""
    summed = (log_q_y.exp() * values).sum(0)
    return summed if summed.dim() == 1 else summed.mean(0)
