"""`Baselines`: what simple models reach on the data of a VAE, in its unit and on the same held-out data."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from pvae.core.protocol import takes_labels
from pvae.evaluation.measures.measure import Measure
from pvae.models.features import features_seen, steps_of
from pvae.models.start import SIZES, WIDEST, Array, fit_mixture, linear_models, quietly
from pvae.trained.scores import Estimate
from pvae.vae import VAE

if TYPE_CHECKING:
    from pvae.evaluation.context import Context

__all__ = ["Baselines", "SimpleModel", "compare_with", "simple_models"]

_ROWS = 10_000  # training data, evenly spaced, to which models are fitted
_MOST_FOR_FULL = 50  # values of a datum, of a mixture with full covariance matrices
_LEAST_NOISE = 1e-5  # of a value, as a share of its variance


class SimpleModel(NamedTuple):
    """A model and the log-likelihood that it gives held-out data.

    Args:
        kind: "linear" or "mixture".
        name: what it is.
        log_p: log p(x) of each datum, (M,) nats.
    """

    kind: str
    name: str
    log_p: Tensor


@dataclass(frozen=True, kw_only=True)
class Baselines(Measure):
    """What simple models reach on the test data, beside the ELBO; in nats per datum.

    Each is fitted to the training data, its size chosen by the validation data. A Normal y and its density are those of
    the likelihood: logarithms where that is log-Normal. The ELBO is a lower bound: log p(x) of the VAE gains no less.

    Args:
        linear_model: the linear model, whose log-likelihood is exact.
        linear: its log p(x).
        linear_gain: the ELBO less that, datum by datum.
        mixture_model: the mixture.
        mixture: its log p(x).
        mixture_gain: the ELBO less that, datum by datum.
        verdict: both gains in words.
    """

    linear_model: str = field(default="", metadata={"linear model": ""})
    linear: Estimate | None = field(default=None, metadata={"  its log p(x)": "exact"})
    linear_gain: Estimate | None = field(default=None, metadata={"  ELBO - it": "datum by datum"})
    mixture_model: str = field(default="", metadata={"mixture": ""})
    mixture: Estimate | None = field(default=None, metadata={"  its log p(x)": "exact"})
    mixture_gain: Estimate | None = field(default=None, metadata={"  ELBO - it": "datum by datum"})
    verdict: str = field(metadata={"verdict": ""})

    @classmethod
    def of(cls, context: Context) -> Baselines | None:
        """Return what they reach beside the ELBO of the test data; None of images, or given labels."""
        run, batch = context.run, context.seen
        if run.data.is_images or run.config.takes_labels:
            return None
        (held_out,) = batch.x.split(len(batch))
        splits = [context.data.splits.get(name, context.data.train) for name in ("train", "valid")]
        train, valid = (run.preparation.prepared(x, name) for x, name in zip(splits, ("train", "valid")))
        return compare_with(simple_models(context.vae, train, valid, held_out), context.terms["elbo"])

    @property
    def models(self) -> list[tuple[str, Estimate, Estimate]]:
        """Name, log p(x) and gain of the models that there are; the linear one is the first."""
        linear = self.linear_model, self.linear, self.linear_gain
        mixture = self.mixture_model, self.mixture, self.mixture_gain
        return [(name, log_p, gain) for name, log_p, gain in (linear, mixture) if log_p and gain]


def compare_with(models: list[SimpleModel], elbo: Tensor) -> Baselines | None:
    """Return what simple models reach beside the ELBO of each datum, (M,) nats; None if there are none."""
    if not models:
        return None
    found, said = dict[str, Any](), list[str]()
    for one in models:
        gain = Estimate.of(elbo - one.log_p)
        found |= {f"{one.kind}_model": one.name, one.kind: Estimate.of(one.log_p), f"{one.kind}_gain": gain}
        said.append(_verdict(one.name, gain))
    return Baselines(**found, verdict="; ".join(said))


def _verdict(name: str, gain: Estimate) -> str:
    amount = f"{replace(gain, mean=abs(gain.mean))} nats"
    if gain.mean > 2 * gain.stderr:
        return f"{amount} better than {name}"
    if gain.mean < -2 * gain.stderr:
        return f"{name} describes these data better, by {amount}"
    return f"as good as {name} ({gain} nats)"


@quietly()
@torch.no_grad()
def simple_models(vae: VAE, train: Tensor, valid: Tensor, held_out: Tensor) -> list[SimpleModel]:
    """Fit a linear model and a mixture to data, and return their log-likelihoods of held-out data.

    Where all values are Normal given z, or their logarithms are, or they are counts, the linear model is factor
    analysis or a Normal with a full covariance matrix, and the mixture one of Normals with full or diagonal covariance
    matrices, or where there are counts one of products. Of columns of other kinds there is no linear model, and the
    mixture is one of products, of the likelihoods of the VAE. Covariances of Normals have u^2 / (2 pi) added for values
    that were recorded in steps of u, so that their density is at most that of `InSteps`, 1 / u.

    Args:
        vae: whose likelihood says of which kind x is; its networks are not used.
        train: x of the training data, (N, *D).
        valid: x of data by which sizes are chosen.
        held_out: x of M other data.

    Returns:
        The models; none of a likelihood of images, of one without a closed form, of more than 2,000 values, or given
        labels.
    """
    p_x: Any = vae.p_x
    if takes_labels(p_x) or not hasattr(p_x, "outputs_for") or train[0].numel() > WIDEST:
        return []
    train, splits = train[:: math.ceil(len(train) / _ROWS)], (valid, held_out)
    y = p_x.normal_values(train)
    try:
        if y is None or train.isnan().any() or any(one.isnan().any() for one in splits):
            name, _, log_p = _products(vae, train, *splits)
            return [SimpleModel("mixture", name, log_p)]
    except NotImplementedError:
        return []
    values = [(one.numpy(force=True), slope.sum(-1)) for one, slope in map(p_x.normal_values, splits)]
    steps = steps_of(train).flatten().to(y[1]) * y[1].exp()  # of y
    noise = (steps.square() / (2 * math.pi)).mean(0)  # whose density is 1 / u at most
    features = y[0].numpy(force=True)
    least = np.where(features.std(0) > 0, noise.numpy(force=True).clip(min=_LEAST_NOISE), 1.0)
    linear = linear_models(features, values[0][0], train[0].numel(), least)[:-1]  # without principal components
    found = [[one.name, *(_linear(one, y) + slope for y, slope in values)] for one in linear]
    mixtures = [[name, *(of(y) + slope for y, slope in values)] for name, of in _mixtures(features, noise)]
    if not all(part.is_density for part in getattr(p_x, "parts", [p_x])):  # as of counts
        mixtures.append(_products(vae, train, *splits))
    best = [("linear", _best(found)), ("mixture", _best(mixtures))]
    return [SimpleModel(kind, str(name), log_p) for kind, (name, _, log_p) in best]


def _best(models: list[list[Any]]) -> list[Any]:
    return max(models, key=lambda one: one[1].mean().item())


def _linear(model: Any, y: Array) -> Tensor:
    covariance = model.weight @ model.weight.T + np.diag(model.noise)
    p = MultivariateNormal(torch.from_numpy(model.bias), torch.from_numpy(covariance))
    return p.log_prob(torch.from_numpy(y))


def _mixtures(y: Array, noise: Tensor) -> Iterator[tuple[str, Any]]:
    """Yield the name and the log-density of mixtures of Normals that are fitted to rows y (N, D)."""
    from sklearn.mixture import GaussianMixture

    shapes = ("full", "diag") if y.shape[1] <= _MOST_FOR_FULL else ("diag",)
    for shape in shapes:
        for size in [one for one in SIZES if one <= len(y) / 2] or [1]:
            fit = GaussianMixture(size, covariance_type=shape, random_state=0).fit(y)
            parts = [torch.from_numpy(one) for one in (fit.weights_, fit.means_, fit.covariances_)]
            weights, means, covariances = parts
            covariances = (covariances if shape == "full" else covariances.diag_embed()) + noise.diag()
            p = MixtureSameFamily(Categorical(weights), MultivariateNormal(means, covariances))
            name = f"a mixture of {size} Normals" if size > 1 else "a Normal"
            yield name, lambda rows, p=p: p.log_prob(torch.from_numpy(rows))


def _products(vae: VAE, train: Tensor, valid: Tensor, held_out: Tensor) -> list[Any]:
    """Return the name of the best mixture of products, and its log p(x) of the validation and of the held-out data."""
    features = features_seen(vae.q_z, train).double().numpy(force=True)
    fits = [fit_mixture(vae.p_x, train, features, size) for size in SIZES]
    found = [[one.log_terms(vae.p_x, x).logsumexp(-1) for x in (valid, held_out)] for one in fits]
    return _best([[one.name, *both] for one, both in zip(fits, found)])
