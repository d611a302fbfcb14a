"""`exact_starts`: a VAE of values can start at several models that have a closed form, or nearly so."""

from __future__ import annotations

import contextlib
import functools
import math
import warnings
from collections.abc import Callable, Container, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pvae.core.optimizers import LBFGS
from pvae.models.columns import ColumnFeatures
from pvae.models.features import features_seen
from pvae.models.likelihoods import DiagonalNormalLikelihood, ZeroInflatedLikelihood
from pvae.models.networks import WithPaths
from pvae.models.priors import MixturePrior
from pvae.vae import VAE

__all__ = [
    "SIZES",
    "WIDEST",
    "Linear",
    "Mixture",
    "Start",
    "exact_starts",
    "fit_mixture",
    "linear_models",
    "mean_elbo",
    "quietly",
]

_FEW, _FOLDS, _KEPT = 500, 4, 3  # training data below which the best starts are compared by folds, and how many
_ROWS = 10_000  # training data, evenly spaced, to which models are fitted
_DRAWS = 64  # of z for each validation datum
SIZES = (2, 4, 8, 16)  # of mixtures
WIDEST = 2000  # values of a datum, beyond which models would take minutes to fit
_FACTORS = (1, 2, 4, 8, 16, WIDEST)  # numbers of factors that are tried, as far as there are latents; the last is all
_MANY = 100  # features, beyond which one number of factors is tried
_OVERSAMPLED = 10  # directions that the randomised SVD of scikit-learn finds beside those asked for
_NOISE_OF_COMPONENTS = 0.05  # of principal components, as a share of the variance of a feature
_LEAST_NOISE = 1e-5  # of a real value, as the same share
_LEAST_NOISE_OF_CODES = 1.0  # of the features of other kinds, most of which say less than a Normal value
_LEAST_VARIANCE = 0.1  # of codes in a component of the prior, which may have one training datum and other data near it
_DISTANCE = 8.0  # between the codes of two components of a mixture of products, in standard deviations
_SHARP = 3.0  # so that the code of a datum is that of its likeliest component
_NEVER = -20.0  # the log weight of a component that is not used
_ITERATIONS, _TOLERANCE = 100, 1e-4  # of expectation maximisation, nats per datum
_SMALL = 0.1  # of what is drawn at random, so that a VAE starts near a model without a latent
_AT_ONCE = 2**22  # values of data times components

Array = NDArray[np.float64]


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Hide warnings of scikit-learn, as that a fit has not converged, and fit in one thread: matrices are small."""
    from threadpoolctl import threadpool_limits

    with warnings.catch_warnings(), threadpool_limits(1):
        warnings.simplefilter("ignore")
        yield


class Linear(NamedTuple):
    """A linear model of features: f = W z + b + noise, z ~ N(0, I), noise ~ N(0, diag(psi)).

    Args:
        name: what it is.
        weight: W, (F, K).
        bias: b, (F,), the mean of the features.
        noise: psi, (F,), a variance of each.
    """

    name: str
    weight: Array
    bias: Array
    noise: Array

    def rotated(self) -> tuple[Linear, Array]:
        """Return the same model with W' Psi^-1 W diagonal, so that p(z | f) is too, and the variances (K,) of that."""
        precision, rotation = np.linalg.eigh(self.weight.T @ (self.weight / self.noise[:, None]))
        return self._replace(weight=self.weight @ rotation), 1 / (1 + precision.clip(min=0))


class Mixture(NamedTuple):
    """A mixture of K products: in each component, the values of a datum are independent.

    Args:
        outputs: what each component gives the likelihood in place of a decoder's output, (K, O).
        log_weights: (K,) nats.
    """

    outputs: Tensor
    log_weights: Tensor

    @property
    def name(self) -> str:
        """What it is."""
        return f"a mixture of {len(self.outputs)} products" if len(self.outputs) > 1 else "independent values"

    def log_terms(self, p_x: Any, x: Tensor) -> Tensor:
        """Return log weight + log p(x | component) of data (N, *D): (N, K) nats, whose log-sum-exp is log p(x)."""
        outputs = self.outputs.view(-1, 1, *p_x.output_shape)
        size = max(1, _AT_ONCE // (len(outputs) * x[0].numel()))
        return torch.cat([p_x.given(outputs).log_prob(part) for part in x.split(size)], -1).T + self.log_weights


@quietly()
@torch.no_grad()
def fit_mixture(p_x: Any, x: Tensor, features: Array, num_components: int) -> Mixture:
    """Fit a mixture of products to data by expectation maximisation, from the clusters of their features.

    Args:
        p_x: a likelihood with `outputs_for`; the parameters that do not depend on z stay as they are.
        x: the data, (N, *D), NaN where a value is missing.
        features: what an encoder sees of them, (N, F).
        num_components: K; N/2 where there are fewer data.

    Reference:
        Dempster, Laird and Rubin, "Maximum likelihood from incomplete data via the EM algorithm", JRSS B 39, 1977.
    """
    from sklearn.cluster import KMeans

    count = max(1, min(num_components, len(x) // 2, len(np.unique(features, axis=0))))
    labels = KMeans(count, n_init=2, random_state=0).fit_predict(features / _spread(features))
    shares, before = torch.eye(count, dtype=torch.float64)[torch.from_numpy(labels).long()].to(x.device), -math.inf
    for _ in range(_ITERATIONS):
        log_weights = ((shares.sum(0) + 0.1) / (len(x) + 0.1 * count)).log()
        found = Mixture(p_x.outputs_for(x, shares).flatten(1), log_weights)
        terms = found.log_terms(p_x, x)
        shares, reached = terms.softmax(-1), terms.logsumexp(-1).mean().item()
        if reached - before < _TOLERANCE:
            break
        before = reached
    return found


@quietly()
def linear_models(
    features: Array, held_out: Array, latent_dim: int, least_noise: Array, factors: Sequence[int] = _FACTORS
) -> list[Linear]:
    """Return linear models of features.

    They are factor analysis, its number of factors chosen by held-out features; a Normal with a full covariance matrix
    (Ledoit and Wolf), where there are as many latents as features; and last principal components with a twentieth of
    the variance of each feature as noise, whose codes are a start where no two features are correlated, where factor
    analysis is a saddle.

    Args:
        features: of the training data, (N, F).
        held_out: of others, (M, F), by which the number of factors is chosen.
        latent_dim: the most latents.
        least_noise: the least variance of the noise, (F,).
        factors: numbers of factors that are tried.
    """
    from sklearn.covariance import LedoitWolf
    from sklearn.decomposition import FactorAnalysis

    width, spread = features.shape[1], _spread(features)
    mean, most = features.mean(0), min(latent_dim, features.shape[1])
    scaled = (features - mean) / spread
    root = np.linalg.qr(scaled).R
    root *= math.sqrt(len(root) / len(scaled))
    root = np.r_[root, -root]  # few rows with the mean and the covariance of all
    sizes = sorted({min(most, size) for size in factors}) if width <= _MANY else [most]
    tolerance = _TOLERANCE / 100 * len(root)
    methods = ["lapack" if width <= size + _OVERSAMPLED else "randomized" for size in sizes]  # where it is the same
    fits = [
        FactorAnalysis(size, tol=tolerance, max_iter=300, svd_method=method, random_state=0).fit(root)
        for size, method in zip(sizes, methods)
    ]
    best = max(fits, key=lambda one: one.score((held_out - mean) / spread))
    name = f"factor analysis with {best.n_components} factor{'s' * (best.n_components > 1)}"
    noise = np.maximum(best.noise_variance_ * spread**2, least_noise)
    found = [Linear(name, best.components_.T * spread[:, None], mean, noise)]
    covariance = LedoitWolf().fit(scaled).covariance_
    values, vectors = np.linalg.eigh(covariance)
    if most == width:
        noise = np.maximum(0.98 * values[0], (least_noise / spread**2).min())
        weight = vectors * np.sqrt((values - noise).clip(min=0)) * spread[:, None]
        noise = np.maximum(noise * spread**2, least_noise)
        found.append(Linear("a Normal with a full covariance matrix", weight, mean, noise))
    values, vectors = values[::-1][:most], vectors[:, ::-1][:, :most]
    weight = vectors * np.sqrt((values - _NOISE_OF_COMPONENTS).clip(min=1e-3))
    noise = np.maximum(covariance.diagonal() - (weight**2).sum(1), _NOISE_OF_COMPONENTS)
    noise = np.maximum(noise * spread**2, least_noise)
    return [*found, Linear("principal components", weight * spread[:, None], mean, noise)]


def _spread(features: Array) -> Array:
    """Return the standard deviation of each feature, 1 where it is 0."""
    std = features.std(0)
    return np.where(std > 0, std, 1.0)


def _is_real(part: Any) -> bool:
    """Return whether the values of a likelihood, or their logarithms, are Normal given z."""
    return isinstance(part, DiagonalNormalLikelihood) and not isinstance(part, ZeroInflatedLikelihood)


class _Parts:
    """The parts of a VAE that a start sets, the features of its data, and linear models of them."""

    def __init__(self, vae: VAE, train: Tensor, held_out: Tensor, factors: Sequence[int] = _FACTORS) -> None:
        self.vae = vae
        self.p_x: Any = vae.p_x
        self.q_z: Any = vae.q_z
        self.p_z: Any = vae.p_z
        (self.encoder,) = (one for one in vae.q_z.modules() if isinstance(one, WithPaths))
        (self.decoder,) = (one for one in vae.p_x.modules() if isinstance(one, WithPaths))
        self.latent_dim = self.decoder.linear.in_features
        self.train = train
        self.held_out = held_out
        self.features = _array(features_seen(self.q_z, train))
        self.places = dict(self._places())
        self.decoders = dict[str, tuple[Tensor, ...]]()  # by the names of linear models: codes, weight and bias
        others = _array(features_seen(self.q_z, held_out))
        self.linear = linear_models(self.features, others, self.latent_dim, self._least_noise(), factors)

    def _least_noise(self) -> Array:
        """Return the least variance of the noise of each feature, (F,)."""
        found = np.full(self.features.shape[1], _LEAST_NOISE_OF_CODES)
        found[[*self.places]] = _LEAST_NOISE
        found *= _spread(self.features) ** 2
        found[self.features.std(0) == 0] = 1.0  # a constant says nothing of the scale
        return found

    def _places(self) -> Iterator[tuple[int, tuple[int, int, Tensor]]]:
        """Yield each feature that is a real value, with its places in the output of the decoder, and its log scale."""
        order = list(range(self.train[0].numel()))  # of the features of numbers
        features = next((one for one in self.q_z.modules() if isinstance(one, ColumnFeatures)), None)
        if features is not None:
            order = features.order.tolist()
        for part, places, outputs in self.p_x.placed():
            if _is_real(part):
                for place, (loc, log_scale), fixed in zip(places, outputs.tolist(), part.log_scale.flatten()):
                    yield order.index(place), (loc, log_scale, fixed)


class Start(NamedTuple):
    """Weights at which a training can start.

    Args:
        kind: of the model: "linear", "mixture" or "random".
        place: among all that can be tried.
        elbo: of held-out data, nats per datum; of several folds their mean.
        name: what it is, for a note.
        weights: of the VAE.
    """

    kind: str
    place: int
    elbo: float
    name: str
    weights: dict[str, Tensor]


@quietly()
@torch.no_grad()
def exact_starts(vae: VAE, train: Tensor, valid: Tensor) -> list[Start]:
    """Return models at which the paths of a VAE's networks, and its prior, can start, by their ELBO of validation data.

    Of less than 500 training data, it is that of the best three and the best of each kind, by fourfold cross-validation
    of both together.

    The models are those of `linear_models`, with p(z) = N(0, I) or a mixture of Normals that is fitted to the codes;
    with such a prior also mixtures of products by `fit_mixture`; and unless all values are real, independent values
    with networks drawn at random.

    Of values that are all real, or logarithms of positive ones, the models with p(z) = N(0, I) are exact: q(z | x) is
    p(z | x), and the ELBO is the log-likelihood of the model. Of other kinds of columns the decoder is a generalised
    linear model of z, and q(z | x) takes the variance of a feature as its noise, since 0 or 1 says less of z than a
    Normal value does. Of a mixture of products the code of a datum is that of its likeliest component.

    Args:
        vae: of networks `WithPaths`, a Normal posterior, and a prior N(0, I) or a mixture; its weights do not change.
        train: x of the training data, (N, *D).
        valid: x of the validation data.

    Returns:
        The best first.

    Reference:
        Lucas et al., arXiv:1911.02469, on linear VAEs and probabilistic principal components.
    """
    train, valid = (one[:: math.ceil(len(one) / _ROWS)] for one in (train, valid))
    parts = _Parts(vae, train, valid)
    found = sorted(_tried(parts), key=lambda one: -one.elbo)
    if len(train) < _FEW:  # whose few validation data say little
        best = {one.kind: one.place for one in reversed(found)}  # of each kind
        wanted = {*best.values(), *(one.place for one in found[:_KEPT])}
        every, elbos = torch.cat([train, valid]), dict.fromkeys(wanted, 0.0)
        factors = [parts.linear[0].weight.shape[1]]  # of the factor analysis that was the best
        for fold in range(_FOLDS):
            is_held_out = torch.arange(len(every), device=every.device) % _FOLDS == fold
            for one in _tried(_Parts(vae, every[~is_held_out], every[is_held_out], factors), wanted):
                elbos[one.place] += one.elbo / _FOLDS
        found = [one._replace(elbo=elbos[one.place]) for one in found if one.place in wanted]
    return sorted(found, key=lambda one: -one.elbo)


def _tried(parts: _Parts, wanted: Container[int] | None = None) -> list[Start]:
    """Return all starts, or those with the wanted places; a place is of the same kind of model for all data."""
    vae, found = parts.vae, list[Start]()
    first = {key: one.clone() for key, one in vae.state_dict().items()}
    for place, (kind, set_to) in enumerate(_models(parts)):
        if wanted is not None and place not in wanted:
            continue
        vae.load_state_dict(first)
        for one in (parts.encoder, parts.decoder):
            for parameter in (*one.linear.parameters(), *(one.table[-1].parameters() if one.table else ())):
                parameter.zero_()
        name = set_to()
        weights = {key: one.clone() for key, one in vae.state_dict().items()}
        found.append(Start(kind, place, mean_elbo(vae, parts.held_out), name, weights))
    vae.load_state_dict(first)
    return found


def _models(parts: _Parts) -> Iterator[tuple[str, Callable[[], str]]]:
    """Yield the kind of each start, and a function that lets the VAE, whose paths are 0, be it and returns its name."""
    has_mixture = isinstance(parts.p_z, MixturePrior)
    for linear in parts.linear:
        yield "linear", functools.partial(_set_linear, parts, linear)
        if has_mixture:
            yield "linear", functools.partial(_set_linear, parts, linear, has_codes=True)
    if has_mixture:
        most = len(parts.p_z.logits)
        for size in sorted({min(size, most) for size in SIZES} | {most}):
            yield "mixture", functools.partial(_set_mixture, parts, size)
        if parts.decoder.network is not None and len(parts.places) < parts.features.shape[1]:
            yield "random", functools.partial(_set_alone, parts)


@torch.no_grad()
def mean_elbo(vae: VAE, x: Tensor) -> float:
    """Return the mean ELBO of data (N, *D), in nats per datum, by many draws of z for each."""
    num_draws = max(1, min(_DRAWS, _AT_ONCE // x.numel()))
    q = vae.posterior(x)
    z = q.rsample((num_draws,))
    return (vae.log_likelihood(x, z) + vae.prior().log_prob(z) - q.log_prob(z)).mean().item()


def _array(values: Tensor) -> Array:
    return values.double().numpy(force=True)


def _tensor(values: Array, like: Tensor) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values)).to(like)


def _set_linear(parts: _Parts, model: Linear, has_codes: bool = False) -> str:
    """Let the VAE be a linear model, exactly so in real values, with a prior N(0, I) or one fitted to the codes."""
    (_, weight, bias, noise), variance = model.rotated()
    size, encoder, decoder, p_x = weight.shape[1], parts.encoder.linear, parts.decoder.linear, parts.p_x
    inverse = variance[:, None] * weight.T / noise  # so that E[z | f] = inverse (f - b), and q(z | x) is p(z | f)
    encoder.weight[:size, : weight.shape[0]] = _tensor(inverse, encoder.weight)
    encoder.bias[:size] = _tensor(-inverse @ bias, encoder.bias)
    twice = 2 if getattr(parts.q_z, "log_variance", False) else 1
    scales = slice(parts.latent_dim, parts.latent_dim + size)
    encoder.bias[scales] = _tensor(twice * np.log(variance) / 2, encoder.bias)
    if model.name not in parts.decoders:  # for both priors
        z = parts.vae.posterior(parts.train).sample()
        if len(parts.places) < parts.features.shape[1]:
            alone = p_x.outputs_for(parts.train, torch.ones(len(z), 1, dtype=torch.float64, device=z.device)).flatten()
            _fit_decoder(p_x, decoder, z, parts.train, alone)
            decoder.bias.add_(alone)
        parts.decoders[model.name] = z, decoder.weight.clone(), decoder.bias.clone()
    z, *fitted = parts.decoders[model.name]
    for one, value in zip((decoder.weight, decoder.bias), fitted):
        one.copy_(value)
    for feature, (loc, log_scale, fixed) in parts.places.items():
        decoder.weight[[loc, log_scale]] = 0.0
        decoder.weight[loc, :size] = _tensor(weight[feature], decoder.weight)
        decoder.bias[loc] = float(bias[feature])
        least = DiagonalNormalLikelihood.least_share**2
        decoder.bias[log_scale] = 0.5 * math.log(max(noise[feature] - least, least)) - fixed.double()
    if isinstance(parts.p_z, MixturePrior):
        for one in (parts.p_z.loc, parts.p_z.log_scale, parts.p_z.logits):
            one.zero_()
    if not has_codes:
        return model.name
    _set_prior(parts.p_z, _array(z))
    return f"{model.name}, and a mixture of Normals of its codes"


def _set_prior(prior: MixturePrior, codes: Array) -> None:
    """Fit the prior to codes (N, L)."""
    from sklearn.mixture import GaussianMixture

    count = min(len(prior.logits), len(codes))
    fit = GaussianMixture(count, covariance_type="diag", reg_covar=_LEAST_VARIANCE, random_state=0).fit(codes)
    prior.loc[:count] = _tensor(fit.means_, prior.loc)
    prior.log_scale[:count] = _tensor(np.log(fit.covariances_) / 2, prior.loc)
    prior.logits.fill_(_NEVER)[:count] = _tensor(np.log(fit.weights_ + 1e-6), prior.loc)


@torch.enable_grad()
def _fit_decoder(p_x: Any, linear: nn.Linear, z: Tensor, x: Tensor, outputs: Tensor) -> None:
    """Fit p(x | outputs + W z + b), a generalised linear model, to codes z of the values of x that are not real."""
    free = [torch.zeros_like(one, dtype=torch.float64).requires_grad_() for one in (linear.weight, linear.bias)]
    weight, bias = free
    z = z.double()
    x = x.double().flatten(1)
    parts = [
        (part, x[:, places].unflatten(1, part.datum_shape), outs.flatten().sort().values)
        for part, places, outs in p_x.placed()
        if not _is_real(part)
    ]

    def loss() -> Tensor:
        weight.grad = bias.grad = None
        output = outputs + z @ weight.T + bias
        value = weight.square().sum() / (2 * len(z))
        for part, values, places in parts:
            each = part.pixels(output[:, places].unflatten(1, part.output_shape)).log_prob(values.nan_to_num(nan=0.0))
            value = value - torch.where(values.isnan(), 0.0, each).sum() / len(z)
        value.backward()
        return value

    LBFGS(free, max_iter=50, line_search_fn="strong_wolfe").step(loss)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        linear.weight.copy_(weight)
        linear.bias.copy_(bias)


def _set_mixture(parts: _Parts, num_components: int) -> str:
    """Let the VAE be a mixture of products, each component a place in the space of codes."""
    from sklearn.linear_model import LogisticRegression

    model = fit_mixture(parts.p_x, parts.train, parts.features, num_components)
    count, size, features = len(model.outputs), parts.latent_dim, parts.features
    centres = _spread_out(count, size)
    labels = model.log_terms(parts.p_x, parts.train).argmax(-1).numpy(force=True)
    to_codes: Any = parts.encoder.table
    gate, _, table = to_codes
    to_outputs: Any = parts.decoder.table
    gate_back, _, table_back = to_outputs
    prior = parts.p_z
    for one in (gate, gate_back):
        one.weight.zero_()
        one.bias.fill_(-1e4)
    found, spread = np.unique(labels), _spread(features)
    if len(found) > 1:
        fit = LogisticRegression(max_iter=300).fit(features / spread, labels)
        weight, bias = (np.r_[-one, one] if len(found) == 2 else one for one in (fit.coef_, fit.intercept_))
        gate.weight[found, : features.shape[1]] = _tensor(_SHARP * weight / spread, gate.weight)
        gate.bias[found] = _tensor(_SHARP * bias, gate.bias)
    else:
        gate.bias[found] = 0.0
    table.weight[:size, :count] = centres.T.to(table.weight)
    gate_back.weight[:count] = centres.to(gate.weight)
    gate_back.bias[:count] = -centres.square().sum(-1).to(gate.bias) / 2
    table_back.weight[:, :count] = model.outputs.T.to(table.weight)
    prior.loc[:count], prior.log_scale[:count] = centres.to(prior.loc), 0.0
    prior.logits.fill_(_NEVER)[:count] = model.log_weights.to(prior.logits)
    return model.name


def _set_alone(parts: _Parts) -> str:
    """Let the VAE be independent values, near which networks drawn at random can learn to use the latents."""
    model = fit_mixture(parts.p_x, parts.train, parts.features, 1)
    parts.decoder.linear.bias.copy_(model.outputs[0])
    networks: Any = (parts.encoder.network, parts.decoder.network)
    for network, size in zip(networks, (_SMALL, 1.0)):
        network[-1].reset_parameters()
        network[-1].weight.mul_(size)
        network[-1].bias.zero_()
    parts.p_z.loc.mul_(_SMALL)
    for parameter in (parts.p_z.log_scale, parts.p_z.logits):
        parameter.zero_()
    return f"{model.name}, and networks drawn at random"


def _spread_out(count: int, size: int) -> Tensor:
    """Return points (K, L) whose least distance is `_DISTANCE`, and whose greatest is small."""
    generator, best, least = torch.Generator().manual_seed(0), torch.zeros(count, size), math.inf
    for _ in range(100 if count > 1 else 0):
        points = torch.randn(count, size, generator=generator)
        points = points * _DISTANCE / torch.pdist(points).min()
        if (radius := points.norm(dim=-1).max().item()) < least:
            best, least = points, radius
    return best
