"""`Baselines`: what simple models reach on the data of a VAE, in its unit and on the same held-out data."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Categorical, Distribution, MixtureSameFamily, MultivariateNormal

from pvae.core.protocol import takes_labels
from pvae.evaluation.context import Context, Measure
from pvae.models.features import features_seen, steps_of
from pvae.models.start import SIZES, WIDEST, Array, fit_mixture, linear_models, quietly
from pvae.trained.scores import Estimate
from pvae.vae import VAE

_ROWS = 10_000  # training data, evenly spaced, to which models are fitted
_MOST_FOR_FULL = 50  # values of a datum, of a mixture with full covariance matrices
_LEAST_NOISE = 1e-5  # of a value, as a share of its variance


class SimpleModel(NamedTuple):
    """A model and the log-likelihood that it gives held-out data.

    Args:
        kind: "linear" or "mixture".
        name: what it is.
        valid: log p(x) of each datum by which it was chosen, nats.
        log_p: log p(x) of each held-out datum, (M,) nats.
    """

    kind: str
    name: str
    valid: Tensor
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

    linear_model: str = ""
    linear: Estimate | None = None
    linear_gain: Estimate | None = None
    mixture_model: str = ""
    mixture: Estimate | None = None
    mixture_gain: Estimate | None = None
    verdict: str

    words = {
        "linear_model": ("linear model", ""),
        "linear": ("  its log p(x)", "exact"),
        "linear_gain": ("  ELBO - it", "datum by datum"),
        "mixture_model": ("mixture", ""),
        "mixture": ("  its log p(x)", "exact"),
        "mixture_gain": ("  ELBO - it", "datum by datum"),
        "verdict": ("verdict", ""),
    }

    @classmethod
    def of(cls, context: Context) -> Baselines | None:
        """Return what they reach beside the ELBO of the test data; None of images, or given labels."""
        run, batch = context.run, context.seen
        if run.data.is_images or run.config.takes_labels:
            return None
        (held_out,) = batch.x.split(len(batch))
        train = run.preparation.prepared(context.data.train, "train")
        valid = run.preparation.prepared(context.data.splits.get("valid", context.data.train), "valid")
        return compare_with(simple_models(context.vae, train, valid, held_out), context.terms["elbo"])

    @property
    def models(self) -> list[tuple[str, Estimate, Estimate]]:
        """Name, log p(x) and gain of the models that there are; the linear one is the first."""
        every = [
            (self.linear_model, self.linear, self.linear_gain),
            (self.mixture_model, self.mixture, self.mixture_gain),
        ]
        return [(name, log_p, gain) for name, log_p, gain in every if log_p and gain]


def compare_with(models: list[SimpleModel], elbo: Tensor) -> Baselines | None:
    """Return what simple models reach beside the ELBO of each datum, (M,) nats; None if there are none."""
    if not models:
        return None
    found = dict[str, Any]()
    said = list[str]()
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
    train = train[:: math.ceil(len(train) / _ROWS)]
    splits = [valid, held_out]
    y = p_x.normal_values(train)
    try:
        if y is None or any(one.isnan().any() for one in (train, *splits)):
            return [_products(vae, train, splits)]
    except NotImplementedError:
        return []
    steps = steps_of(train).flatten().to(y[1]) * y[1].exp()  # of y
    noise = (steps.square() / (2 * math.pi)).mean(0)  # whose density is 1 / u at most
    features = y[0].numpy(force=True)
    values = [(one.cpu(), slope.sum(-1)) for one, slope in map(p_x.normal_values, splits)]

    def fitted(kind: str, name: str, density: Distribution) -> SimpleModel:
        return SimpleModel(kind, name, *(density.log_prob(one) + slope for one, slope in values))

    least = np.where(features.std(0) > 0, noise.numpy(force=True).clip(min=_LEAST_NOISE), 1.0)
    every = linear_models(features, values[0][0].numpy(), train[0].numel(), least)
    linear = [fitted("linear", one.name, _normal(one)) for one in every[:-1]]  # without principal components
    mixtures = [fitted("mixture", name, density) for name, density in _mixtures(features, noise)]
    if not all(part.is_density for part in getattr(p_x, "parts", [p_x])):  # as of counts
        mixtures.append(_products(vae, train, splits))
    return [_best(linear), _best(mixtures)]


def _best(models: Sequence[SimpleModel]) -> SimpleModel:
    return max(models, key=lambda one: one.valid.mean().item())


def _normal(model: Any) -> Distribution:
    covariance = model.weight @ model.weight.T + np.diag(model.noise)
    return MultivariateNormal(torch.from_numpy(model.bias), torch.from_numpy(covariance))


def _mixtures(y: Array, noise: Tensor) -> Iterator[tuple[str, Distribution]]:
    """Yield the name and the density of mixtures of Normals that are fitted to rows y (N, D)."""
    from sklearn.mixture import GaussianMixture

    sizes = [one for one in SIZES if one <= len(y) / 2] or [1]
    for shape in ("full", "diag"):
        if shape == "full" and y.shape[1] > _MOST_FOR_FULL:
            continue
        for size in sizes:
            fit = GaussianMixture(size, covariance_type=shape, random_state=0).fit(y)
            covariances = torch.from_numpy(fit.covariances_)
            if shape == "diag":
                covariances = covariances.diag_embed()
            parts = MultivariateNormal(torch.from_numpy(fit.means_), covariances + noise.diag())
            name = "a Normal"
            if size > 1:
                name = f"a mixture of {size} Normals"
            yield name, MixtureSameFamily(Categorical(torch.from_numpy(fit.weights_)), parts)


def _products(vae: VAE, train: Tensor, splits: Sequence[Tensor]) -> SimpleModel:
    """Return the best mixture of products, of the likelihoods of the VAE."""
    features = features_seen(vae.q_z, train).double().numpy(force=True)
    found = list[SimpleModel]()
    for size in SIZES:
        fit = fit_mixture(vae.p_x, train, features, size)
        log_p = (fit.log_terms(vae.p_x, x).logsumexp(-1) for x in splits)
        found.append(SimpleModel("mixture", fit.name, *log_p))
    return _best(found)
