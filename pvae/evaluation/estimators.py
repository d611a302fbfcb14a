"""Compare estimators at the same weights: bias of the bound, variance and signal-to-noise of its gradient, and time."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyro
import torch
from torch import Tensor

from pvae.config.build import build_elbo
from pvae.config.config import Config
from pvae.core.batch import Batch, Data
from pvae.core.errors import InputError, check_finite
from pvae.core.files import markdown_of
from pvae.core.random_state import seeded
from pvae.data.dataset import Dataset, random_subset
from pvae.distributions.discrete import MOST_CODES, num_codes, support_of
from pvae.distributions.joint import Joint
from pvae.elbos.base import PerDatumELBO
from pvae.marginal.chunks import data_at_once
from pvae.marginal.log_likelihood import MOST_UNTRUSTED, log_likelihood
from pvae.reference import discrete, linear_gaussian
from pvae.trained.scores import Estimate, normalised
from pvae.vae import VAE

_GROUPS = 20  # the jackknife divides the repetitions into this number of groups, and leaves out one at a time


class Reference(NamedTuple):
    """Log p(x) of a batch, with which bounds are compared.

    Args:
        estimate: its mean, in nats per datum; of an exact value the error is 0.
        untrusted: the share of the data whose estimates cannot be trusted.
    """

    estimate: Estimate
    untrusted: float = 0.0

    @property
    def is_reliable(self) -> bool:
        """Whether the estimates of nearly all data can be trusted."""
        return self.untrusted <= MOST_UNTRUSTED

    def __str__(self) -> str:
        """Return the mean with its error, and whether it is exact or not reliable."""
        text = str(self.estimate)
        if not self.estimate.stderr:
            text = f"{self.estimate.mean:.2f} exactly"
        if not self.is_reliable:
            text += " (not reliable: see below)"
        return text


def reference(vae: VAE, data: Data, num_particles: int = 5000) -> Reference:
    """Return the mean log p(x) of a batch, for comparison with the bounds.

    It is exact for a linear-Gaussian VAE. For other VAEs it is that of `log_likelihood`, with its standard error over
    the draws, which are the same in every call.

    Args:
        vae: the VAE.
        data: x (B, *D), or a `Batch` of them with their labels.
        num_particles: K of importance sampling.
    """
    if linear_gaussian.has_oracle(vae):
        with torch.no_grad():
            log_p = linear_gaussian.log_evidence(vae, *Batch.of(data))
        return Reference(Estimate(mean=log_p.mean().item(), stderr=0.0))
    with seeded(0, next(vae.parameters()).device):
        sample = log_likelihood(vae, data, num_particles=num_particles)
    return Reference(Estimate(mean=sample.log_p.mean().item(), stderr=sample.mean_stderr), sample.untrusted)


@dataclass(frozen=True, kw_only=True)
class Gradient:
    """Statistics of a gradient with respect to some of the parameters, over R repetitions with different draws.

    Args:
        variance: the trace of the gradient's covariance, E |g - E g|^2.
        variance_stderr: standard error of `variance`.
        signal_to_noise: |E g| / sqrt(E |g - E g|^2), with the noise of the mean over R subtracted from |E g|^2.
        signal_to_noise_stderr: standard error of `signal_to_noise`; NaN if there is no noise.
        resolution: 1 / sqrt(R); a ratio below it cannot be distinguished from 0.
        bias: |E g - g*| / |g*| where the gradient g* of the ELBO is known exactly, with the noise of the mean over R
            subtracted as for `signal_to_noise`; NaN elsewhere, and of bounds other than the ELBO.
        bias_stderr: standard error of `bias`.
        bias_resolution: the bias that is seen where there is none, sqrt(variance / R) / |g*|; below twice it, none is
            stated.
    """

    variance: float
    variance_stderr: float
    signal_to_noise: float
    signal_to_noise_stderr: float
    resolution: float
    bias: float
    bias_stderr: float
    bias_resolution: float

    @property
    def bias_text(self) -> str:
        """The bias with its error, or "< resolution", in percent of the exact gradient; "-" if it is not known."""
        if math.isnan(self.bias):
            return "-"
        if self.bias < max(2 * self.bias_resolution, 2 * self.bias_stderr):
            return f"< {2 * self.bias_resolution:.0%}"
        return f"{self.bias:.1%} +- {self.bias_stderr:.1%}"

    def __str__(self) -> str:
        """Return the signal-to-noise ratio with its error, or "< resolution" if the ratio is below the resolution."""
        if self.signal_to_noise < self.resolution:
            return f"< {self.resolution:.2f}"
        return str(Estimate(mean=self.signal_to_noise, stderr=self.signal_to_noise_stderr))


class Moments:
    """Sums of gradients that are added one at a time, for their mean, variance and signal-to-noise ratio.

    The gradients of all repetitions may not fit into memory together, so only the sums of each of 20 groups are kept;
    repetition r belongs to group r mod 20. The first gradient is subtracted from each, against cancellation. The
    standard errors are by the jackknife, which leaves out one group at a time, or one repetition if there are at most
    20:

        stderr^2 = (G - 1) / G  sum_b (estimate without group b - their mean)^2

    With 20 groups a standard error is itself uncertain by about 1 / sqrt(2 (G - 1)), a sixth.
    """

    def __init__(self) -> None:
        self.count = 0

    def add(self, gradient: Tensor) -> None:
        """Add a gradient (P,)."""
        if self.count == 0:
            self._first = gradient
            self._sums = gradient.new_zeros(_GROUPS, len(gradient), dtype=torch.float64)
            self._counts, self._squares = torch.zeros(2, _GROUPS, dtype=torch.float64)
        group = self.count % _GROUPS
        offset = gradient - self._first
        self.count += 1
        self._counts[group] += 1
        self._sums[group] += offset
        self._squares[group] += offset @ offset

    def gradient(self, exact: Tensor | None = None) -> Gradient:
        """Return the statistics of the gradients; at least three must have been added.

        Args:
            exact: the gradient that they estimate, (P,), if it is known.
        """
        sums = [one[: self.count] for one in (self._counts, self._sums, self._squares)]
        totals = [one.sum(0) for one in sums]
        whole = self._statistics(totals, exact)
        without = torch.stack(
            [self._statistics([total - one for total, one in zip(totals, group)], exact) for group in zip(*sums)]
        )
        errors = without.std(0, correction=0) * math.sqrt(len(without) - 1)
        names = ("variance", "signal_to_noise", "bias", "bias_resolution")
        found = dict(zip(names, whole.tolist()))
        found |= {f"{name}_stderr": error for name, error in zip(names[:3], errors.tolist())}
        return Gradient(resolution=1 / math.sqrt(self.count), **found)

    def _statistics(self, totals: Sequence[Tensor], exact: Tensor | None) -> Tensor:
        """Return variance, signal-to-noise ratio, bias and its resolution, from sums over repetitions."""
        count, sums, squares = totals
        variance = ((squares - sums @ sums / count) / (count - 1)).clamp(min=0)
        mean = self._first + sums / count

        def length(vector: Tensor) -> Tensor:
            return (vector.square().sum() - variance / count).clamp(min=0).sqrt()

        ratio = torch.where(variance == 0, math.inf, length(mean) / variance.sqrt())
        bias = resolution = variance * math.nan
        if exact is not None and exact.any():
            bias = length(mean - exact) / exact.norm()
            resolution = (variance / count).sqrt() / exact.norm()
        return torch.stack([variance, ratio, bias, resolution])


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """Statistics of one estimator at one set of weights.

    Args:
        stage: the stage of training at which the weights were taken.
        estimator: name of the estimator, one of `PerDatumELBO.members`.
        particles: K, the number of draws of z for each datum.
        value: the bound, mean over repetitions, in nats per datum.
        bias: the bound minus log p(x).
        encoder_gradient: the gradient with respect to the parameters of the posterior.
        decoder_gradient: the gradient with respect to the parameters of the likelihood and the prior.
        milliseconds: the median time for loss and gradients of a batch.
        noise: the variance of the encoder's gradient times the seconds of a step: of two estimators, that of the lower
            noise has a mean gradient of less variance after the same time.
        noise_stderr: its standard error from the draws.
    """

    stage: str = ""
    estimator: str
    particles: int
    value: Estimate
    bias: float
    encoder_gradient: Gradient
    decoder_gradient: Gradient
    milliseconds: float
    noise: float
    noise_stderr: float


def data_to_compare(
    config: Config, vae: VAE, data: Dataset, most: int, has_own_vae: bool = False
) -> tuple[VAE, Batch, str]:
    """Return with what estimators are compared; arguments as of `normalised`.

    Args:
        config: of the VAE.
        vae: in eval mode.
        data: which it was trained on.
        most: the most data that are taken.
        has_own_vae: the VAE was built in Python.

    Returns:
        The VAE with a likelihood that is a probability or a density; random test data, as it takes them, the same in
        every call; and of which test data they are a random subset, and the kind of their pixels.
    """
    rows = random_subset(len(data.test), min(most, len(data.test)), seed=0)
    y = None
    if config.condition or (has_own_vae and vae.takes_labels and not config.labels):
        y = data.labels["test"][rows]
    vae, batch, kind = normalised(config, vae, data, data.test[rows], y, has_own_vae=has_own_vae)
    every = f"{len(data.test):,} test data of {data.name}"
    if kind:
        every += f"; pixels {kind}"
    return vae, next(batch.split(len(rows))), every


def pairs_to_compare(
    vae: VAE, data: Data, names: Iterable[str], particles: Iterable[int], groups: int
) -> tuple[list[tuple[str, int]], list[str]]:
    """Return the pairs of estimator and K that are defined and distinct, and for each other pair why it is left out.

    Args:
        vae: estimators that refuse its distributions are left out.
        data: x (B, *D), or a `Batch` of them with their labels.
        names: names of the estimators.
        particles: values of K.
        groups: number of groups of "miwae" and "piwae".
    """
    batch = Batch.of(data)
    prior = vae.given(batch.y).prior()
    has_label = isinstance(prior, Joint) and prior.is_enumerable
    support = support_of(prior)
    has_rsample = vae.given(batch.y).posterior(batch.x).has_rsample
    pairs = []
    reasons = []
    for count in particles:
        for name in names:
            kind = PerDatumELBO.members[name]
            obstacles = {
                f"it is of {' or '.join(kind.supports)}": kind.supports and support not in kind.supports,
                "a draw of z has no derivative": kind.reparameterised and not (has_rsample or has_label),
                "there is no label to sum over": kind.sums_over_labels and not has_label,
                "a draw of the label has no gradient": has_label and kind.reparameterised and not kind.sums_over_labels,
                "there is no other draw to compare with": count < kind.least_particles,
                f"it draws in groups of {kind.draws_together}": count % kind.draws_together,
                "with one particle its bound equals the ELBO": count == 1 and kind.is_importance_weighted,
                f"K must be a multiple of {groups}": "groups" in kind.takes and count % groups != 0,
                "with one draw in each group its bound equals the ELBO": name == "miwae" and count == groups,
            }
            reason = next((reason for reason, is_so in obstacles.items() if is_so), "")
            if not reason:
                given = {"groups": groups} if "groups" in kind.takes else {}
                try:
                    with seeded(0, next(vae.parameters()).device), pyro.get_param_store().scope():
                        build_elbo(name, count, **given).loss(vae.model, vae.guide, *batch)
                except InputError as error:
                    reason = str(error)
            if not reason:
                pairs.append((name, count))
            else:
                reasons.append(f"{name} is left out at K = {count}: {reason}")
    return pairs, reasons


def measure_estimator(
    vae: VAE,
    data: Data,
    name: str,
    num_particles: int,
    log_p: Estimate,
    repetitions: int = 100,
    exact: Tensor | None = None,
    **options: Any,
) -> Measurement:
    """Measure an estimator on a batch. Repetition r draws from seed r, so that all estimators get the same noise.

    Args:
        vae: in eval mode.
        data: x (B, *D), or a `Batch` of them with their labels.
        name: one of `PerDatumELBO.members`.
        num_particles: K, the number of draws of z for each datum.
        log_p: log p(x) of the batch, as `reference` returns it.
        repetitions: R, at least 3.
        exact: the encoder's gradient of the ELBO as `exact_gradient` returns it, for the bias.
        options: `alpha`, `mix`, `temperature` or `groups`, which the estimators that take them are given.

    Raises:
        NotFiniteError: a bound or a gradient is NaN or infinite.
    """
    taken = {option: value for option, value in options.items() if option in PerDatumELBO.members[name].takes}
    elbo = build_elbo(name, num_particles, **taken)
    batch = Batch.of(data)
    parts = [*batch.split(data_at_once(vae, batch, num_particles))]
    of_encoder = Moments()
    of_decoder = Moments()
    values = []
    seconds = []
    for repetition in range(repetitions):
        started = time.perf_counter()
        values.append(_backward(vae, elbo, parts, repetition))
        of_encoder.add(_gradient(vae.q_z.parameters()))
        of_decoder.add(_gradient([*vae.p_x.parameters(), *vae.p_z.parameters()]))
        seconds.append(time.perf_counter() - started)
    vae.zero_grad()
    if elbo.is_importance_weighted:
        exact = None
    value = Estimate.of(torch.tensor(values))
    encoder = of_encoder.gradient(exact)
    decoder = of_decoder.gradient()
    of_a_step = statistics.median(seconds)
    bias = value.mean - log_p.mean
    check_finite({"bias": bias, "variance": [encoder.variance, decoder.variance]}, f"{name}, K = {num_particles}")
    return Measurement(
        estimator=name,
        particles=num_particles,
        value=value,
        bias=bias,
        encoder_gradient=encoder,
        decoder_gradient=decoder,
        milliseconds=1000 * of_a_step,
        noise=encoder.variance * of_a_step,
        noise_stderr=encoder.variance_stderr * of_a_step,
    )


def _backward(vae: VAE, elbo: PerDatumELBO, parts: Sequence[Batch], seed: int) -> float:
    """Compute the gradients of the loss of the parts of a batch, and return the mean bound."""
    count = sum(map(len, parts))
    value = 0.0
    vae.zero_grad()
    with seeded(seed, next(vae.parameters()).device), pyro.get_param_store().scope():
        for part in parts:
            share = len(part) / count
            loss, terms = elbo.loss_and_terms(vae.model, vae.guide, *part)
            (loss * share).backward()
            bound = terms.elbo.mean()
            if elbo.is_importance_weighted:
                bound = -loss
            value += share * bound.item()
    return value


def exact_gradient(vae: VAE, data: Data) -> Tensor | None:
    """Return the encoder's gradient of - mean ELBO of a VAE whose ELBO is known exactly, float64 (P,); None for others.

    Args:
        vae: linear-Gaussian; or of bits with a linear decoder, or at most 4,096 codes of bits or categories.
        data: x (B, *D), or a `Batch` of them.
    """
    batch = Batch.of(data)
    if batch.y is not None:
        return None
    support = support_of(vae.prior())
    if support == "codes":
        return None
    elbo = linear_gaussian.elbo
    number = 1.0
    if support:
        elbo = discrete.elbo
        number = num_codes(vae.prior())
    parameters = [*vae.q_z.parameters()]
    total = torch.zeros(())
    try:
        for part in batch.split(data_at_once(vae, batch, int(min(number, MOST_CODES)))):
            value = -elbo(vae, part.x).sum() / len(batch)
            gradients = torch.autograd.grad(value, parameters, allow_unused=True, materialize_grads=True)
            total = total + torch.cat([one.flatten() for one in gradients]).double()
    except ValueError:
        return None
    return total


def _gradient(parameters: Iterable[Tensor]) -> Tensor:
    gradients = []
    for one in parameters:
        gradient = one.grad
        if gradient is None:
            gradient = torch.zeros_like(one)
        gradients.append(gradient.flatten())
    return torch.cat(gradients).double()


LEGEND = """\
+- is the standard error over seeds of the draws of z, at the same weights and data. All estimators get the same draws,
so that those of one bound may agree in every digit. K: draws for each datum. bias: bound - log p(x); the nearer to 0,
the tighter the bound. decoder: its parameters and those of the prior. variance: trace of the covariance of the
gradient. signal/noise: |E g| / sqrt(E |g - E g|^2); a higher ratio is better for training. ms: time for loss and
gradients of the batch. variance x s: of the encoder's gradient, times the seconds of a step; lower is better for an
estimator without bias. gradient's bias: |E g - g*| / |g*| of the encoder's, of estimators of the ELBO where its exact
gradient g* is known. Estimators that equal another one are left out: without --elbo handwritten, which equals trace;
with K = 1 all importance-weighted bounds; and miwae with one draw in each group."""


def to_markdown(measurements: Sequence[Measurement]) -> str:
    """Return a Markdown table with aligned columns, which is readable in a terminal too."""

    def variance(gradient: Gradient) -> str:
        return f"{gradient.variance:.2g} +- {gradient.variance_stderr:.1g}"

    return markdown_of(
        [
            {
                "stage": one.stage,
                "estimator": one.estimator,
                "K": str(one.particles),
                "bound, nats": str(one.value),
                "bias": f"{one.bias:+.2f}",
                "encoder variance": variance(one.encoder_gradient),
                "encoder signal/noise": str(one.encoder_gradient),
                "variance x s": f"{one.noise:.2g}",
                "gradient's bias": one.encoder_gradient.bias_text,
                "decoder variance": variance(one.decoder_gradient),
                "decoder signal/noise": str(one.decoder_gradient),
                "ms": f"{one.milliseconds:.1f}",
            }
            for one in measurements
        ]
    )
