"""Estimators side by side at one set of weights: bias of the value, variance and signal of the gradient, and time."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from torch import Tensor

from pvae.config.options import ESTIMATORS
from pvae.core.finite import check_finite
from pvae.core.random_state import seeded
from pvae.core.records import markdown_of
from pvae.elbos.base import PerDatumELBO
from pvae.elbos.registry import build_elbo
from pvae.evaluation.log_likelihood import Estimate, images_at_once, importance_sample
from pvae.models.hierarchy import ChainPosterior
from pvae.reference import linear_gaussian
from pvae.vae import VAE

__all__ = [
    "LEGEND",
    "Gradient",
    "Measurement",
    "Moments",
    "Reference",
    "compared",
    "measure",
    "reference",
    "to_markdown",
]

_GROUPS = 20  # of repetitions, of which the jackknife leaves out one at a time


@dataclass(frozen=True, kw_only=True)
class Reference:
    """The log p(x) of a batch, nats per datum, with which the bounds are compared.

    Args:
        log_p: its mean over the batch.
        stderr: its standard error over the draws of an importance-weighted estimate; 0 where it is exact.
        exact: whether it is exact, not an estimate.
    """

    log_p: float
    stderr: float
    exact: bool

    def __str__(self) -> str:
        """Return the value, with its error or "exactly"."""
        return f"{self.log_p:.2f} exactly" if self.exact else f"{self.log_p:.2f} +- {self.stderr:.2f}"


def reference(vae: VAE, x: Tensor, num_particles: int = 5000) -> Reference:
    """Return log p(x) of a batch: exact for a linear-Gaussian VAE, else a long importance-weighted estimate.

    Args:
        vae: the model.
        x: images (B, C, H, W).
        num_particles: K of the estimate, which is biased downward, by less than any bound with fewer particles.
    """
    if linear_gaussian.has_oracle(vae):
        with torch.no_grad():
            return Reference(log_p=linear_gaussian.log_evidence(vae, x).mean().item(), stderr=0.0, exact=True)
    sample = importance_sample(vae, x, num_particles)
    return Reference(log_p=sample.log_p.mean().item(), stderr=sample.mean_stderr, exact=False)


@dataclass(frozen=True, kw_only=True)
class Gradient:
    """Statistics of an estimator's gradient by some of the parameters, over R repetitions of its draws.

    Args:
        variance: the trace of its covariance, E |g - E g|^2.
        variance_stderr: its standard error.
        signal_to_noise: |E g| / sqrt(E |g - E g|^2), with the noise of the mean over R subtracted from |E g|^2.
        signal_to_noise_stderr: its standard error; NaN where there is no noise.
        resolution: 1 / sqrt(R): a ratio below it cannot be told from 0.
    """

    variance: float
    variance_stderr: float
    signal_to_noise: float
    signal_to_noise_stderr: float
    resolution: float

    def __str__(self) -> str:
        """Return the ratio and its error, or the resolution if the ratio is below it."""
        if self.signal_to_noise < self.resolution:
            return f"< {self.resolution:.2f}"
        return str(Estimate(mean=self.signal_to_noise, stderr=self.signal_to_noise_stderr))


class Moments:
    """Running mean and scatter of gradients that are added one at a time, by Welford's algorithm.

    All gradients together may not fit into memory, so that mean and scatter are kept for each of 20 groups, repetition
    r in group r mod 20. The standard errors are those of the jackknife that leaves out one group at a time, or one
    repetition if there are at most 20:

        stderr^2 = (G - 1) / G  sum_b (estimate without group b - their mean)^2

    With 20 groups a standard error is itself uncertain by about 1 / sqrt(2 (G - 1)), a sixth.
    """

    def __init__(self) -> None:
        self.count = 0
        self._counts = [0.0] * _GROUPS
        self._means = [torch.zeros(1, dtype=torch.float64)] * _GROUPS
        self._scatters = [0.0] * _GROUPS

    def add(self, gradient: Tensor) -> None:
        """Add a gradient (P,)."""
        group = self.count % _GROUPS
        self.count += 1
        self._counts[group] += 1
        deviation = gradient - self._means[group]
        self._means[group] = self._means[group] + deviation / self._counts[group]
        self._scatters[group] += (deviation @ (gradient - self._means[group])).item()

    def gradient(self) -> Gradient:
        """Return the statistics of the gradients, of which at least three were added."""
        used = min(self.count, _GROUPS)
        counts, scatters = torch.tensor([self._counts[:used], self._scatters[:used]], dtype=torch.float64)
        first = self._means[0]
        # Only inner products of the means are needed, and the columns of a QR decomposition's small R have the same.
        columns = torch.stack([first, *(mean - first for mean in self._means[1:used])], 1)
        coordinates = torch.linalg.qr(columns, mode="r").R.T
        origin, offsets = coordinates[0], coordinates.clone()
        offsets[0] = 0

        def variance_and_ratio(groups: Tensor) -> Tensor:
            count = counts[groups].sum()
            offset = counts[groups] @ offsets[groups] / count
            between = counts[groups] @ (offsets[groups] - offset).square().sum(1)
            variance = (scatters[groups].sum() + between) / (count - 1)
            signal = ((origin + offset).square().sum() - variance / count).clamp(min=0).sqrt()
            return torch.stack([variance, torch.where(variance == 0, math.inf, signal / variance.sqrt())])

        every = torch.arange(used)
        without = torch.stack([variance_and_ratio(every[every != group]) for group in every])
        variance_stderr, ratio_stderr = (without.std(0, correction=0) * math.sqrt(used - 1)).tolist()
        variance, ratio = variance_and_ratio(every).tolist()
        return Gradient(
            variance=variance,
            variance_stderr=variance_stderr,
            signal_to_noise=ratio,
            signal_to_noise_stderr=ratio_stderr,
            resolution=1 / math.sqrt(self.count),
        )


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """Statistics of one estimator at one set of weights.

    Args:
        stage: the stage of training that the weights are of.
        estimator: its name, one of `pvae.config.options.ELBOS`.
        particles: K.
        value: the bound, mean over repetitions with its standard error, nats per datum.
        bias: the value minus log p(x).
        encoder_gradient: of the gradient by the posterior's parameters.
        decoder_gradient: of the gradient by those of the likelihood and the prior.
        milliseconds: the median time of loss and gradients of a batch.
    """

    stage: str
    estimator: str
    particles: int
    value: Estimate
    bias: float
    encoder_gradient: Gradient
    decoder_gradient: Gradient
    milliseconds: float


def compared(
    vae: VAE, names: Iterable[str], particles: Iterable[int], num_groups: int
) -> tuple[list[tuple[str, int]], list[str]]:
    """Return the pairs of estimator and number of particles that differ from each other, and why others are left out.

    Args:
        vae: with two stochastic layers it has no closed forms.
        names: of the estimators.
        particles: numbers K.
        num_groups: of "miwae".
    """
    has_chain = isinstance(vae.q_z, ChainPosterior)
    pairs, reasons = [], []
    for count in particles:
        for name in names:
            reason = ""
            if has_chain and not ESTIMATORS[name].chains:
                reason = "it knows one stochastic layer only"
            elif count < ESTIMATORS[name].least_particles:
                reason = "there is no other draw to compare with"
            elif count == 1 and ESTIMATORS[name].importance_weighted:
                reason = "with one particle it is the ELBO"
            elif name == "miwae" and (count % num_groups or count == num_groups):
                reason = f"{num_groups} groups of several particles are not to be had"
            if reason:
                reasons.append(f"{name} is left out at K = {count}: {reason}")
            else:
                pairs.append((name, count))
    return pairs, reasons


def measure(
    vae: VAE,
    x: Tensor,
    name: str,
    num_particles: int,
    log_p: Reference,
    stage: str = "",
    repetitions: int = 100,
    **options: Any,
) -> Measurement:
    """Measure an estimator on a batch; repetition r draws from seed r, so that all estimators have the same noise.

    Args:
        vae: in eval mode.
        x: images (B, C, H, W).
        name: one of `pvae.config.options.ELBOS`.
        num_particles: K.
        log_p: of the batch.
        stage: the stage of training that the weights are of.
        repetitions: R, at least 3.
        options: alpha, mix or num_groups of `pvae.elbos.registry.build_elbo`.

    Raises:
        NotFiniteError: a bound or a gradient is NaN or infinite.
    """
    elbo = build_elbo(name, num_particles, **options)
    parts = x.split(images_at_once(vae, x, num_particles))
    values, seconds, moments = [], [], (Moments(), Moments())
    for repetition in range(repetitions):
        started = time.perf_counter()
        value, gradients = _bound_and_gradients(vae, parts, elbo, repetition)
        seconds.append(time.perf_counter() - started)
        values.append(value)
        for moment, gradient in zip(moments, gradients):
            moment.add(gradient)
    vae.zero_grad()
    estimate = Estimate.of(torch.tensor(values))
    encoder, decoder = (moment.gradient() for moment in moments)
    figures = {"bias": estimate.mean - log_p.log_p, "variance": [encoder.variance, decoder.variance]}
    check_finite(figures, f"{name}, K = {num_particles}")
    return Measurement(
        stage=stage,
        estimator=name,
        particles=num_particles,
        value=estimate,
        bias=estimate.mean - log_p.log_p,
        encoder_gradient=encoder,
        decoder_gradient=decoder,
        milliseconds=1000 * statistics.median(seconds),
    )


def _bound_and_gradients(
    vae: VAE, parts: Sequence[Tensor], elbo: PerDatumELBO, seed: int
) -> tuple[float, tuple[Tensor, Tensor]]:
    """Return the bound of one repetition on a batch given in parts, and its gradients by encoder and by decoder."""
    vae.zero_grad()
    count, value = sum(map(len, parts)), 0.0
    with seeded(seed, parts[0].device), pyro.get_param_store().scope():
        for part in parts:
            loss = elbo.differentiable_loss(vae.model, vae.guide, part) * (len(part) / count)
            loss.backward()
            value -= loss.item()
    encoder, rest = list(vae.q_z.parameters()), [*vae.p_x.parameters(), *vae.p_z.parameters()]
    return value, (_flat(encoder), _flat(rest))


def _flat(parameters: Sequence[Tensor]) -> Tensor:
    gradients = (p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters)
    return torch.cat([gradient.flatten() for gradient in gradients]).double()


def _variance(gradient: Gradient) -> str:
    return f"{gradient.variance:.2g} +- {gradient.variance_stderr:.1g}"


_COLUMNS: dict[str, Callable[[Measurement], str]] = {
    "stage": lambda one: one.stage,
    "estimator": lambda one: one.estimator,
    "K": lambda one: str(one.particles),
    "bound, nats": lambda one: str(one.value),
    "bias": lambda one: f"{one.bias:+.2f}",
    "encoder variance": lambda one: _variance(one.encoder_gradient),
    "encoder signal/noise": lambda one: str(one.encoder_gradient),
    "decoder variance": lambda one: _variance(one.decoder_gradient),
    "decoder signal/noise": lambda one: str(one.decoder_gradient),
    "ms": lambda one: f"{one.milliseconds:.1f}",
}


LEGEND = """\
K: draws of z for each image. bound: mean over repetitions of the draws, with its standard error. bias: bound -
log p(x), nearer to 0 is tighter. variance: of the gradient over the same draws, the trace of its covariance.
signal/noise: |E g| / sqrt(E |g - E g|^2), higher is better to train with. Their errors are by the jackknife over groups
of repetitions. ms: of loss and gradients of the batch.
What to look for: more draws make iwae tighter and its encoder's signal/noise worse, which dreg mends in part; stl beats
trace near the posterior; score needs no derivative of the decoder and pays in variance, most of which score-loo wins
back. Left out is what equals another: handwritten, which is trace; with K = 1 all importance-weighted bounds; with one
draw in each group miwae."""


def to_markdown(measurements: Sequence[Measurement]) -> str:
    """Return a table, its columns lined up so that it reads in a terminal too."""
    return markdown_of(_COLUMNS, measurements, aligned=True)
