"""The ELBO of a VAE with a label as a latent, which is summed over and not drawn."""

from __future__ import annotations

import functools
from typing import Annotated, Any

import torch
from pyro.infer import TraceEnum_ELBO, config_enumerate
from torch import Tensor

from pvae.core.batch import LossAndTerms, Terms
from pvae.core.errors import InputError
from pvae.core.options import Option
from pvae.core.tracing import shared_calls
from pvae.distributions.joint import PartlyKnownLabel
from pvae.elbos.base import Beta, PerDatumELBO, PyroFunction, require_rsample
from pvae.elbos.sites import samples

__all__ = ["EnumeratedELBO"]

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
