"""What a VAE must exceed: a model without a latent, in all and in each column of a table, and simple models."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from pyro.distributions import Independent
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn
from torch.distributions import Normal

from pvae.core.errors import one_line
from pvae.core.optimizers import LBFGS
from pvae.core.protocol import takes_labels
from pvae.core.random_state import seeded
from pvae.data.preparation import Pixels
from pvae.distributions.values import Columns, log_of_step
from pvae.evaluation.context import Context, Measure, said
from pvae.marginal.chunks import data_at_once
from pvae.marginal.importance import num_in_tail, pareto_k
from pvae.models.columns import ColumnKind, ColumnsLikelihood, columns_text
from pvae.models.features import features_seen, fit_to, steps_of
from pvae.models.likelihoods import OrdinalLikelihood
from pvae.models.start import SIZES, WIDEST, Array, factor_analysis, least_noise, quietly
from pvae.runs.metrics import Metrics
from pvae.tables.codec import to_file
from pvae.tables.rule import Order
from pvae.trained.scores import Estimate
from pvae.vae import VAE

_WITHOUT_LATENT = "by the best likelihood that is the same for all data"
_LEAST = 0.01  # nats per datum that count as more than none
_FITTED = 2**18  # values of data by which log p is fitted
_COUNTED = 2**23  # values of images whose levels are counted
_STEP = 5  # between the levels of a pixel by which log p is fitted
_ITERATIONS = 60
_MOST_LEVELED = 2**14  # values of an image whose levels are counted
_PRIOR_SCALE = 5.0
_AT_ONCE = 2**22  # values of data times components
_FEW_ROWS = 200  # from which their tail is seen
_HEAVY = 0.3  # a shape of a tail, above which errors are not stated
_SMALL = 1e-3  # as a share of the greatest


@dataclass(frozen=True, kw_only=True)
class Floor(Measure):
    """The ELBO of a model without a latent, in nats per datum; None where it is not known, see `floor`.

    Args:
        elbo: by the best likelihood that is the same for all data.
        verdict: what it means if the VAE's ELBO is no greater; "" if it is.
        is_pseudo: whether it is a pseudo-ELBO.
    """

    elbo: float
    is_pseudo: bool
    verdict: str

    @classmethod
    def of(cls, context: Context) -> Floor | None:
        """Return that of the test data as the VAE was trained on them."""
        each = context.once(floor_of_each)
        if each is None:
            return None
        elbo = each.sum().item()
        verdict = beside_no_latent(context.terms["elbo"].mean().item(), elbo)
        return cls(elbo=elbo, is_pseudo=context.vae.is_pseudo, verdict=verdict)

    @classmethod
    def before_training(cls, vae: VAE, train: Pixels, held_out: Pixels) -> Floor | None:
        """Return that of held-out data for a VAE that is not trained yet; None where it is not known."""
        each = floor(vae.p_x, train, held_out)
        if each is None:
            return None
        return cls(elbo=each.sum().item(), is_pseudo=vae.is_pseudo, verdict="")

    def announced(self, split: str) -> str:
        """Return the line before a training: what it must exceed on a split."""
        return f"without a latent, {_WITHOUT_LATENT}: {split} {self.bound} {self.elbo:.2f}"

    def below(self, row: Metrics) -> str:
        """Return what it means if the metrics at the end of a training are below it, "" if they are not."""
        if row.elbo is None or row.elbo >= self.elbo - _LEAST:
            return ""
        found = f"the {row.split} {row.bound} of epoch {row.epoch}, {row.elbo:.2f}, is below {self.elbo:.2f}"
        advice = "give more --epochs, or another --lr or --likelihood"
        return f"{found}, which a model without a latent reaches: {advice}"

    @property
    def bound(self) -> str:
        """The name of what it is."""
        if self.is_pseudo:
            return "pseudo-ELBO"
        return "ELBO"

    def lines(self) -> Iterator[str]:
        """Yield one line."""
        note = f"test {self.bound}, {_WITHOUT_LATENT}"
        yield f"{'without a latent':26}{self.elbo:<22.2f}  {note}"

    def warnings(self) -> Iterator[str]:
        """Yield that nothing was learned."""
        if self.verdict:
            yield f"warning: {self.verdict}"


@dataclass(frozen=True, kw_only=True)
class ColumnDistortion:
    """The distortion of a column of a table, in nats per row.

    Args:
        name: of the column.
        distortion: -E_q log p(x_d | z), from one draw of z for each row.
        without_latent: -log p(x_d) by the best distribution of the column alone, as in `floor`.
    """

    name: str
    distortion: Estimate
    without_latent: float


@dataclass(frozen=True, kw_only=True)
class ColumnDistortions(Measure):
    """The distortion of each column of a table; None of other data.

    Args:
        columns: in the order of the table.
    """

    title = f"{'distortion of each modelled column':48}  without a latent"

    columns: tuple[ColumnDistortion, ...]

    @classmethod
    @torch.no_grad()
    def of(cls, context: Context) -> ColumnDistortions | None:
        """Return the distortion of each column, at one draw of z for each row."""
        alone = context.once(floor_of_each)
        if alone is None or not context.run.data.columns:
            return None
        parts = list[Tensor]()
        with seeded(context.seed, torch.device("cpu")):
            for part in context.seen.split(data_at_once(context.vae, context.seen)):
                vae = context.vae.given(part.y)
                parts.append(-log_prob_of_each(vae.likelihood(vae.posterior(part.x).sample()), part.x))
        found = list[ColumnDistortion]()
        for column, values, log_p in zip(context.run.data.columns, torch.cat(parts).T, alone.tolist()):
            distortion = Estimate.of(values)
            found.append(ColumnDistortion(name=column.name, distortion=distortion, without_latent=-log_p))
        return cls(columns=tuple(found))

    def lines(self) -> Iterator[str]:
        """Yield a line for each column."""
        for one in self.columns:
            yield f"  {one_line(one.name):23} {one.distortion!s:22}  {one.without_latent:.4g}"


def floor_of_each(context: Context) -> Tensor | None:
    """Return the `floor` of the test data as the VAE was trained on them; None of a bound that is of labels too."""
    run = context.run
    if run.config.labels:
        return None
    train = run.preparation.prepared(context.data.train, "train", is_redrawn=True)
    return floor(context.vae.p_x, Pixels(train, run.preparation), context.seen.x)


def beside_no_latent(elbo: float, reached: float) -> str:
    """Return what it means if an ELBO is no greater than what a model without a latent reaches, "" if it is greater."""
    if elbo - reached >= _LEAST:
        return ""
    said = "no more than a model without a latent"
    if reached - elbo > _LEAST:
        said += f", which describes these data better by {reached - elbo:.2f} nats"
    return f"{said}: train longer, or these data may need none"


def floor(p_x: nn.Module, train: Pixels, held_out: Pixels) -> Tensor | None:
    """Return the held-out log-likelihood of each value of a datum by the best likelihood that does not depend on z.

        mean over held-out x of log p(x_d; o, t),    o, t = argmax of sum over training x of log p(x; o, t)
                                                             - (|o|^2 + |t|^2) / 50

    o stands in place of the decoder's output, and t are the other parameters of the likelihood, such as scales. The
    last term keeps the probability of a value that never occurs above 0: a binary pixel that is 0 in all of n images is
    1 with the probability p = -log(p / (1 - p)) / (25 n), which is 7.8e-6 for 60,000 images. Of many data evenly spaced
    ones are taken: about 2^18 values, or 2^23 pixels, whose levels are counted. Of n data the sum is too low by about
    half the number of o and t over n. Where pixels depend on one another, as under `DiscretizedLogisticMixture`, their
    levels cannot be counted, and images are taken as other values.

    Args:
        p_x: the likelihood of a VAE.
        train: x of the training data; images that are drawn anew at each visit are grey.
        held_out: x of other data.

    Returns:
        Nats, of the shape of a datum, whose sum is to be compared with an ELBO, or that sum; None for a module of your
        own, for a likelihood that takes labels or depends on the whole batch, for images of more than 2^14 values,
        whose levels take gigabytes, and where the search for o and t fails. It draws no random numbers.
    """
    found: Any = p_x
    if takes_labels(found) or getattr(found, "needs_batch", True):
        return None
    if train.is_bytes and math.prod(found.datum_shape) > _MOST_LEVELED:
        return None
    found = copy.deepcopy(found, {id(found.decoder): nn.Identity()}).double().eval()
    is_counted = train.is_bytes and not getattr(found, "is_joint", False)
    with torch.enable_grad():
        x, weight = next(_weighted(train, is_counted, _STEP))
        output = torch.zeros(found.output_shape, dtype=torch.float64, device=x.device, requires_grad=True)
        free = [output, *found.parameters()]

        def loss() -> Tensor:
            for one in free:
                one.grad = None
            prior = sum((one / _PRIOR_SCALE).square().sum() / 2 for one in free)
            value = (prior - (weight * log_prob_of_each(found.pixels(output), x)).sum()) / len(train)
            value.backward()
            return value

        try:
            for part in ([output], free):  # the output first: around a wrong location a scale would grow
                LBFGS(part, max_iter=_ITERATIONS, line_search_fn="strong_wolfe").step(loss)  # type: ignore[no-untyped-call]
        except ValueError:  # a parameter became NaN
            return None
    with torch.no_grad():
        parts = [
            (weight * log_prob_of_each(found.pixels(output), x)).sum(0) for x, weight in _weighted(held_out, is_counted)
        ]
        return torch.stack(parts).sum(0) / len(held_out)


def log_prob_of_each(p_x: TorchDistribution, x: Tensor) -> Tensor:
    """Return the log-probability of each value of x, (..., *D) nats, 0 where it is missing; of joint images, (...).

    Args:
        p_x: `Columns`, or independent values, or the distribution of one value, or of an image.
        x: data, (..., *D).
    """
    if isinstance(p_x, Columns):
        return p_x.log_prob_of_each(x)
    if isinstance(p_x, Independent):
        p_x = p_x.base_dist
    if p_x.event_shape:
        return p_x.log_prob(x)
    is_missing = x.isnan()
    return torch.where(is_missing, 0.0, p_x.log_prob(torch.where(is_missing, 0.0, x)))


def _weighted(data: Pixels, is_counted: bool, step: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield data (M, *D) in float64 with weights, (M, *D) or (), whose sum over all parts is the number of data.

    Images that are counted are one part, of their levels, each weighted by the number of images that have it at a
    pixel; with a step the levels are rounded to its multiples.

    Args:
        data: N data.
        is_counted: whether levels of pixels are counted.
        step: divides 255; other than 0 it also asks for one part, of evenly spaced data.
    """
    images = data.images
    most = math.inf
    if is_counted:
        most = _COUNTED
    elif step:
        most = _FITTED
    images = images[:: math.ceil(images.numel() / most) or 1]
    if not is_counted:
        size = len(images)
        if not step:
            size = 1000
        weight = torch.tensor(len(data) / len(images), dtype=torch.float64, device=images.device)
        yield from ((data.preparation.x(part).double(), weight) for part in images.split(size))
        return
    size = images[0].numel()
    places = 256 * torch.arange(size, device=images.device)
    counts = torch.zeros(256 * size, dtype=torch.int64, device=images.device)
    for part in images.split(1000):
        counts += torch.bincount((part.flatten(1).long() + places).flatten(), minlength=256 * size)
    weights = counts.view(size, 256).T.double()
    levels = torch.arange(256, device=images.device)
    if data.preparation.binarize != "none":  # a byte is 255 times the probability of 1
        share = levels.double() / 255
        levels = levels[[0, 255]]
        weights = torch.stack([(1 - share) @ weights, share @ weights])
    elif step:
        near = (levels / step).round().long()
        weights = weights.new_zeros(255 // step + 1, size).index_add_(0, near, weights)
        levels = levels[::step]
    x = data.preparation.x(levels.to(torch.uint8)).double().view(-1, *[1] * (images.dim() - 1))
    shape = (len(levels), *images.shape[1:])
    yield x.expand(shape), len(data) / len(images) * weights.view(shape)


_ROWS = 10_000  # training data, evenly spaced, to which models are fitted
_MOST_FOR_FULL = 50  # values of a datum, of a mixture with full covariance matrices
_LEAST_NOISE = 1e-5  # of a value, as a share of its variance
_STEPS_OF_EM = 100
_TOLERANCE = 1e-4  # of expectation maximisation, nats per datum


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
    the likelihood: logarithms where that is log-Normal. Of values in steps it is the product of the probabilities of
    each step given the values before it, as they were recorded: less than the probability of all where steps are not
    small beside the deviation that is left. The ELBO is a lower bound: log p(x) of the VAE gains no less.

    Args:
        linear_model: the linear model.
        linear: its log p(x).
        linear_gain: the ELBO less that, datum by datum.
        mixture_model: the mixture.
        mixture: its log p(x).
        mixture_gain: the ELBO less that, datum by datum.
        verdict: a sentence of both gains.
    """

    linear_model: str = said("linear model", default="")
    linear: Estimate | None = said("  its log p(x)", "of a step, given the values before it", default=None)
    linear_gain: Estimate | None = said("  ELBO - it", "datum by datum", default=None)
    mixture_model: str = said("mixture", default="")
    mixture: Estimate | None = said("  its log p(x)", "of a step, given the values before it", default=None)
    mixture_gain: Estimate | None = said("  ELBO - it", "datum by datum", default=None)
    verdict: str = said("verdict")

    @classmethod
    def of(cls, context: Context) -> Baselines | None:
        """Return what they reach beside the ELBO of the test data; None of images, or given labels."""
        run, batch = context.run, context.seen
        if run.data.is_images or run.config.takes_labels:
            return None
        (held_out,) = batch.x.split(len(batch))
        train = run.preparation.prepared(context.data.train, "train")
        valid = run.preparation.prepared(context.data.splits.get("valid", context.data.train), "valid")
        splits = [train, valid, held_out]
        models = simple_models(context.vae, *splits)
        data = run.data
        if data.steps and not data.limits and all(isinstance(step, Order) for step in data.steps):
            models = _best_of_each(models + _of_file(*(to_file(data, x) for x in splits)))
        return compare_with(models, context.terms["elbo"])

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
        said.append(_verdict(one.name, gain, _tail_shape(elbo - one.log_p)))
    verdict = "; ".join(said)
    if len(elbo) < _FEW_ROWS:
        verdict += f" (+- holds if no row is far odder than these {len(elbo)})"
    return Baselines(**found, verdict=verdict)


def _tail_shape(values: Tensor) -> float:
    """Return the Pareto k of the heavier tail of values (N,), 0 of few or equal ones.

    From 0.5 on their variance is infinite: neither standard errors nor a bootstrap see what was not drawn.
    """
    if len(values) < _FEW_ROWS:
        return 0.0
    size = num_in_tail(len(values)) + 1
    tails = torch.stack([values, -values]).double().topk(size).values
    tails = tails - tails[:, -1:]
    found = pareto_k((tails + _SMALL * tails[:, :1]).T.log())
    return found.where(found.isfinite(), 0.0).max().item()  # ties


def _verdict(name: str, gain: Estimate, shape: float) -> str:
    if shape > _HEAVY:
        beside = "less"
        if gain.mean > 0:
            beside = "more"
        said = f"{abs(gain.mean):.2f} nats {beside} than {name} in these rows"
        return f"{said}, without an error: a few of them decide (Pareto k {shape:.1f})"
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

    Where all values are Normal given z, or their logarithms are, or they are counts or zero-inflated values in steps,
    the linear model is factor analysis, and the mixture one of Normals with
    full or diagonal covariance matrices; beside counts and zero-inflated values, one of products is tried too. Of
    columns of other kinds there is no linear model, and the mixture is one of products, of the likelihoods of the VAE.
    Values that were recorded in steps have the probability of their step, as under the VAE: of a Normal with a full
    covariance matrix, given the values before it.

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
    try:
        models = _of_normals(p_x, train, splits)
        parts = getattr(p_x, "parts", [p_x])
        if not models or not all(part.is_density and not part.has_atom for part in parts):  # as of counts
            models.append(_products(vae, train, splits))
    except NotImplementedError:
        return []
    return _best_of_each(models)


def _of_file(train: Tensor, valid: Tensor, held_out: Tensor) -> list[SimpleModel]:
    """Return the models of Normals of rows (N, D) of numbers in the columns of a file."""
    kinds = columns_text(ColumnKind.of(column) for column in train.T)
    p_x = ColumnsLikelihood(nn.Identity(), train.shape[1:], kinds)
    fit_to(p_x, train)
    return _of_normals(p_x, train[:: math.ceil(len(train) / _ROWS)], [valid, held_out])


def _of_normals(p_x: Any, train: Tensor, splits: Sequence[Tensor]) -> list[SimpleModel]:
    """Return linear models and mixtures of Normals; none where not all values are Normal given z, or some are NaN."""
    y = p_x.normal_values(train)
    if y is None or any(one.isnan().any() for one in (train, *splits)):
        return []
    features = y[0].numpy(force=True)
    step = steps_of(train)
    for part, places, _ in p_x.placed():
        if part.has_atom and not step.view(-1)[places].all():  # a probability, and no density
            return []
        if not part.is_density:  # counts, of which a constant one has no step of its own
            step.view(-1)[places] = torch.where(step.view(-1)[places] > 0, step.view(-1)[places], 1.0)
    rows = [_Rows.of(p_x, one, step) for one in splits]
    linear = factor_analysis(features, rows[0].y.numpy(), features.shape[1], least_noise(features, _LEAST_NOISE))
    covariance = linear.weight @ linear.weight.T + np.diag(linear.noise)
    normal = _Normals(np.ones(1), linear.bias[None], covariance[None])
    fits = [("linear", linear.name, normal)]
    fits += [("mixture", name, fit) for name, fit in _mixtures(features)]
    return [SimpleModel(kind, name, *map(fit.log_prob, rows)) for kind, name, fit in fits]


class _Rows(NamedTuple):
    """Rows, by values that may be Normal, and the step of each.

    Args:
        y: values, (N, D).
        log_slope: log |dy/dx|.
        low: the lower end of the step of each value.
        high: its upper end.
        step: u, of x, (D,); 0 of values without steps.
    """

    y: Tensor
    log_slope: Tensor
    low: Tensor
    high: Tensor
    step: Tensor

    @classmethod
    def of(cls, p_x: Any, x: Tensor, step: Tensor) -> _Rows:
        """Return rows x (N, *D) of a likelihood."""
        y, log_slope = p_x.normal_values(x)
        low, high = (p_x.normal_values(x + half)[0].nan_to_num(nan=-math.inf).cpu() for half in (-step / 2, step / 2))
        return cls(y.cpu(), log_slope.cpu(), low, high, step.flatten().cpu())


class _Normals(NamedTuple):
    """A mixture of K Normals of values that were recorded in steps.

        log p(x) = log sum_k w_k prod_d P(low_d < Y_d <= high_d | y_1 .. y_{d-1}, k) / u_d

    Each value has the probability of its step given the values before it, so that a sum over all steps is at most 1.
    Where u_d is 0, it has its density.

    Args:
        weights: w, (K,).
        means: (K, D).
        covariances: (K, D, D).
    """

    weights: Array
    means: Array
    covariances: Array

    def log_prob(self, rows: _Rows) -> Tensor:
        """Return log p of rows, (N,) nats."""
        factor = torch.linalg.cholesky(torch.from_numpy(self.covariances))
        scale = factor.diagonal(dim1=-2, dim2=-1)[:, None]
        log_weights = torch.from_numpy(self.weights).log()
        parts = list[Tensor]()
        at_once = max(1, _AT_ONCE // self.means.size)
        for some in zip(*(one.split(at_once) for one in rows[:-1])):
            y, log_slope, low, high = some
            deviation = y - torch.from_numpy(self.means)[:, None]
            white = torch.linalg.solve_triangular(factor, deviation.mT, upper=False).mT
            given = Normal(y - scale * white, scale)  # of each value, given those before it
            each = log_of_step(given.log_prob(y) + log_slope, given, low, high, rows.step)
            parts.append((each.sum(-1).T + log_weights).logsumexp(-1))
        return torch.cat(parts)


def _best_of_each(models: Sequence[SimpleModel]) -> list[SimpleModel]:
    """Return the best linear model and the best mixture, by the validation data, of those that there are."""
    kinds = [[one for one in models if one.kind == kind] for kind in ("linear", "mixture")]
    return [_best(some) for some in kinds if some]


def _best(models: Sequence[SimpleModel]) -> SimpleModel:
    return max(models, key=lambda one: one.valid.mean().item())


def _mixtures(y: Array) -> Iterator[tuple[str, _Normals]]:
    """Yield the name of mixtures of Normals that are fitted to rows y (N, D), and these."""
    from sklearn.mixture import GaussianMixture

    sizes = [size for size in SIZES if size <= max(1, len(y) / 2)]
    for shape in ("full", "diag"):
        if shape == "full" and y.shape[1] > _MOST_FOR_FULL:
            continue
        for size in sizes:
            fit = GaussianMixture(size, covariance_type=shape, random_state=0).fit(y)
            covariances = fit.covariances_
            if shape == "diag":
                covariances = covariances[:, None] * np.eye(y.shape[1])
            name = "a Normal"
            if size > 1:
                name = f"a mixture of {size} Normals"
            yield name, _Normals(fit.weights_, fit.means_, covariances)


def _products(vae: VAE, train: Tensor, splits: Sequence[Tensor]) -> SimpleModel:
    """Return the best mixture of products, of the likelihoods of the VAE, their levels cut as before its training."""
    features = features_seen(vae.q_z, train).double().numpy(force=True)
    p_x: Any = copy.deepcopy(vae.p_x)
    for part in p_x.modules():
        if isinstance(part, OrdinalLikelihood):
            part.restart()
    models = list[SimpleModel]()
    for size in SIZES:
        fit = fit_mixture(p_x, train, features, size)
        name = "independent values"
        if len(fit.outputs) > 1:
            name = f"a mixture of {len(fit.outputs)} products"
        log_p = (fit.log_terms(p_x, x).logsumexp(-1) for x in splits)
        models.append(SimpleModel("mixture", name, *log_p))
    return _best(models)


class Mixture(NamedTuple):
    """A mixture of K products: in each component, the values of a datum are independent.

    Args:
        outputs: what each component gives the likelihood in place of a decoder's output, (K, O).
        log_weights: (K,) nats.
    """

    outputs: Tensor
    log_weights: Tensor

    def log_terms(self, p_x: Any, x: Tensor) -> Tensor:
        """Return log weight + log p(x | component) of data (N, *D): (N, K) nats, whose log-sum-exp is log p(x)."""
        outputs = self.outputs.view(-1, 1, *p_x.output_shape)
        size = max(1, _AT_ONCE // (len(outputs) * x[0].numel()))
        return torch.cat([p_x.given(outputs).log_prob(part) for part in x.split(size)], -1).T + self.log_weights


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
    std = features.std(0)
    labels = KMeans(count, n_init=2, random_state=0).fit_predict(features / np.where(std > 0, std, 1.0))
    shares = torch.eye(count, dtype=torch.float64, device=x.device)[labels]
    before = -math.inf
    for _ in range(_STEPS_OF_EM):
        log_weights = ((shares.sum(0) + 0.1) / (len(x) + 0.1 * count)).log()
        mixture = Mixture(p_x.outputs_for(x, shares).flatten(1), log_weights)
        terms = mixture.log_terms(p_x, x)
        shares = terms.softmax(-1)
        reached = terms.logsumexp(-1).mean().item()
        if reached - before < _TOLERANCE:
            break
        before = reached
    return mixture
