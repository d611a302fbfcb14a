"""`set_exact_start`: a VAE of values can start at factor analysis, or at a mixture of Normals of codes."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pvae.core.optimizers import LBFGS
from pvae.models.columns import ColumnFeatures
from pvae.models.features import features_seen
from pvae.models.likelihoods import DiagonalNormalLikelihood, ZeroInflatedLikelihood
from pvae.models.networks import BesideLinear
from pvae.models.priors import MixturePrior
from pvae.vae import VAE

__all__ = ["SIZES", "WIDEST", "Linear", "factor_analysis", "least_noise", "mean_elbo", "quietly", "set_exact_start"]

_ROWS = 10_000  # training data, evenly spaced, to which models are fitted
_DRAWS = 64  # of z for each validation datum
SIZES = (1, 2, 4, 8, 16)  # of mixtures, and numbers of factors
WIDEST = 2000  # values of a datum, beyond which models would take minutes to fit
_MANY = 100  # features, beyond which one number of factors is tried
_TOLERANCE = 1e-6  # of factor analysis, nats per row
_LOW_NOISE = 0.003  # of codes that tell clusters apart, as a share of the variance of a feature
_LEAST_NOISE = 1e-5  # of a real value, as the same share
_LEAST_NOISE_OF_CODES = 1.0  # of the features of other kinds, most of which say less than a Normal value
_LEAST_VARIANCE = 0.01  # of codes in a component of the prior, which may have one training datum and other data near it
_RARE = -7.0  # the logit of the components of a prior that no codes need
_LEAST_GAIN = 0.05  # nats, for which a model is taken in place of a simpler one
_AT_ONCE = 2**22  # values of data times draws

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


@quietly()
def factor_analysis(features: Array, held_out: Array, latent_dim: int, least_noise: Array) -> Linear:
    """Return factor analysis, its number of factors chosen by held-out features.

    Args:
        features: of the training data, (N, F).
        held_out: of others, (M, F).
        latent_dim: the most factors.
        least_noise: the least variance of the noise, (F,).
    """
    from sklearn.decomposition import FactorAnalysis

    mean = features.mean(0)
    root = np.linalg.qr(features - mean).R
    root *= math.sqrt(len(root) / len(features))
    root = np.r_[root, -root]  # few rows with the mean and the covariance of all
    most = min(latent_dim, features.shape[1])
    sizes = {most}
    if features.shape[1] <= _MANY:
        sizes |= {min(size, most) for size in SIZES}
    tolerance = _TOLERANCE * len(root)
    fits = [FactorAnalysis(size, tol=tolerance, max_iter=300, random_state=0).fit(root) for size in sorted(sizes)]
    best = max(fits, key=lambda fit: fit.score(held_out - mean))
    factors = "1 factor"
    if best.n_components > 1:
        factors = f"{best.n_components} factors"
    noise = np.maximum(best.noise_variance_, least_noise)
    return Linear(f"factor analysis with {factors}", best.components_.T, mean, noise)


def least_noise(features: Array, share: Array | float) -> Array:
    """Return a share of the variance of each feature, (F,); 1 of a constant one, which says nothing of the scale."""
    variance = features.var(0)
    return np.where(variance > 0, share * variance, 1.0)


def _with_low_noise(features: Array, analysis: Linear, latent_dim: int, least: Array) -> Linear:
    """Return principal components beside noise that is low, whose codes differ wherever the features do.

    Where no two features are correlated, factor analysis has none: it is a saddle.

    Args:
        features: (N, F).
        analysis: factor analysis of them, whose noise is kept where it is lower.
        latent_dim: the most components.
        least: the least variance of the noise, (F,).
    """
    centred = features - analysis.bias
    covariance = centred.T @ centred / len(features)
    noise = np.maximum(np.minimum(analysis.noise, _LOW_NOISE * covariance.diagonal()), least)
    root = np.sqrt(noise)
    values, vectors = np.linalg.eigh(covariance / np.outer(root, root))
    scales = np.sqrt((values - 1).clip(min=0))
    weight = (root[:, None] * vectors * scales)[:, -latent_dim:]
    rest = covariance.diagonal() - (weight**2).sum(1)
    return Linear("principal components", weight, analysis.bias, np.maximum(rest, noise))


@quietly()
@torch.no_grad()
def set_exact_start(vae: VAE, train: Tensor, valid: Tensor) -> str:
    """Let the linear paths of a VAE, and its prior, be the best of few models, and return the name of that.

    They are factor analysis, with p(z) = N(0, I); and where the prior is a mixture, factor analysis and principal
    components with a prior that is fitted to their codes. Each takes the place of those before it if its ELBO of
    validation data is greater by 0.05 nats.

    Of values that are all real, or logarithms of positive ones, the first is exact: q(z | x) is p(z | x), and the ELBO
    is the log-likelihood of the model. Of other kinds of columns the decoder is a generalised
    linear model of z, and q(z | x) takes the variance of a feature as its noise, since 0 or 1 says less of z than a
    Normal value does.

    Args:
        vae: of `BesideLinear` networks as they were drawn, a Normal posterior, and a prior N(0, I) or a mixture.
        train: x of the training data, (N, *D).
        valid: x of the validation data.

    Reference:
        Lucas et al., arXiv:1911.02469, on linear VAEs and probabilistic principal components.
    """
    train, valid = (x[:: math.ceil(len(x) / _ROWS)] for x in (train, valid))
    features, held_out = (_array(features_seen(vae.q_z, x)) for x in (train, valid))
    latent_dim = _linear_path(vae.p_x).in_features
    share = np.full(features.shape[1], _LEAST_NOISE_OF_CODES)
    share[[*_real_features(vae)]] = _LEAST_NOISE
    least = least_noise(features, share)
    analysis = factor_analysis(features, held_out, latent_dim, least)
    codes = _set_linear(vae, analysis, train)
    starts = [_Start.of(vae, valid, analysis.name)]
    if isinstance(vae.p_z, MixturePrior):
        _set_prior(vae.p_z, codes)
        starts.append(_Start.of(vae, valid, f"{analysis.name}, and a mixture of Normals of its codes"))
        components = _with_low_noise(features, analysis, latent_dim, least)
        codes = _set_linear(vae, components, train)
        _set_prior(vae.p_z, codes)
        starts.append(_Start.of(vae, valid, f"{components.name}, and a mixture of Normals of their codes"))
    best = starts[0]
    for start in starts[1:]:
        if start.elbo > best.elbo + _LEAST_GAIN:
            best = start
    vae.load_state_dict(best.weights)
    return best.name


class _Start(NamedTuple):
    """Weights of a VAE, the name of the model that it is, and its mean ELBO of held-out data."""

    elbo: float
    name: str
    weights: Mapping[str, Tensor]

    @classmethod
    def of(cls, vae: VAE, held_out: Tensor, name: str) -> _Start:
        """Return the start that a VAE is."""
        weights = {key: value.clone() for key, value in vae.state_dict().items()}
        return cls(mean_elbo(vae, held_out), name, weights)


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


def _linear_path(module: nn.Module) -> nn.Linear:
    """Return the linear function beside the network of a posterior or a likelihood."""
    (beside,) = (layer for layer in module.modules() if isinstance(layer, BesideLinear))
    return beside.linear


def _real_features(vae: VAE) -> dict[int, tuple[int, int, Tensor]]:
    """Return each feature that is Normal given z: its location and log scale in the decoder's output, and a scale."""
    p_x: Any = vae.p_x
    order = list(range(math.prod(p_x.datum_shape)))  # of the features of numbers
    for layer in vae.q_z.modules():
        if isinstance(layer, ColumnFeatures):
            order = layer.order.tolist()
    real = dict[int, tuple[int, int, Tensor]]()
    for part, places, outputs in p_x.placed():
        if isinstance(part, DiagonalNormalLikelihood) and not isinstance(part, ZeroInflatedLikelihood):
            for place, (loc, log_scale), fixed in zip(places, outputs.tolist(), part.log_scale.flatten()):
                real[order.index(place)] = loc, log_scale, fixed
    return real


def _set_linear(vae: VAE, model: Linear, train: Tensor) -> Array:
    """Let a VAE be a linear model with p(z) = N(0, I), exactly so in real values, and return codes of training data."""
    (_, weight, bias, noise), variance = model.rotated()
    p_x: Any = vae.p_x
    encoder, decoder = _linear_path(vae.q_z), _linear_path(p_x)
    free = [*encoder.parameters(), *decoder.parameters()]
    if isinstance(vae.p_z, MixturePrior):
        free += vae.p_z.parameters()
    for parameter in free:
        parameter.zero_()
    width, size = weight.shape
    inverse = variance[:, None] * weight.T / noise  # so that E[z | f] = inverse (f - b), and q(z | x) is p(z | f)
    log_scale_of_z = np.log(variance) / 2
    if getattr(vae.q_z, "log_variance", False):
        log_scale_of_z *= 2
    encoder.weight[:size, :width] = _tensor(inverse, encoder.weight)
    encoder.bias[:size] = _tensor(-inverse @ bias, encoder.bias)
    encoder.bias[decoder.in_features :][:size] = _tensor(log_scale_of_z, encoder.bias)
    every = torch.ones(len(train), 1, dtype=torch.float64, device=train.device)
    decoder.bias.copy_(p_x.outputs_for(train, every).flatten())
    real = _real_features(vae)
    for feature, (loc, log_scale, fixed) in real.items():
        decoder.weight[loc, :size] = _tensor(weight[feature], decoder.weight)
        decoder.bias[loc] = float(bias[feature])
        least = DiagonalNormalLikelihood.least_share**2
        decoder.bias[log_scale] = 0.5 * math.log(max(noise[feature] - least, least)) - fixed.double()
    z = vae.posterior(train).sample()
    if len(real) < width:
        exact = [place for loc, log_scale, _ in real.values() for place in (loc, log_scale)]
        _fit_decoder(vae, decoder, train, z, exact)
    return _array(z)


@torch.enable_grad()
def _fit_decoder(vae: VAE, linear: nn.Linear, x: Tensor, z: Tensor, exact: list[int]) -> None:
    """Fit p(x | W z + b), a generalised linear model, to codes z; some outputs stay as they are."""
    parameters = [linear.weight, linear.bias]

    def loss() -> Tensor:
        value = linear.weight.square().sum() / (2 * len(x)) - vae.log_likelihood(x, z).mean()
        for parameter, gradient in zip(parameters, torch.autograd.grad(value, parameters)):
            gradient[exact] = 0.0
            parameter.grad = gradient
        return value.detach()

    LBFGS(parameters, max_iter=50, line_search_fn="strong_wolfe").step(loss)  # type: ignore[no-untyped-call]
    linear.zero_grad()


def _set_prior(prior: MixturePrior, codes: Array) -> None:
    """Fit the prior to codes (N, L); it takes as many of its components as are best by BIC."""
    from sklearn.mixture import GaussianMixture

    most = min(len(prior.logits), len(codes))
    fits = [
        GaussianMixture(size, covariance_type="diag", reg_covar=_LEAST_VARIANCE, random_state=0).fit(codes)
        for size in SIZES
        if size <= most
    ]
    best = min(fits, key=lambda fit: fit.bic(codes))
    count = best.n_components
    prior.loc[:count] = _tensor(best.means_, prior.loc)
    prior.log_scale[:count] = _tensor(np.log(best.covariances_) / 2, prior.loc)
    prior.logits.fill_(_RARE)[:count] = _tensor(np.log(best.weights_), prior.loc)
