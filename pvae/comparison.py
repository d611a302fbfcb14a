"""Estimators side by side at one set of weights: bias, variance and signal of value and gradient, and their cost."""

from __future__ import annotations

import csv
import io
import math
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields

import pyro
import torch
from torch import Tensor

from pvae import oracle
from pvae.elbos import build_elbo
from pvae.evaluation import Estimate, importance_sample
from pvae.perdatum import PerDatumELBO
from pvae.rng import seeded
from pvae.vae import VAE

__all__ = ["Gradient", "Measurement", "Reference", "compared", "measure", "reference", "to_csv", "to_markdown"]

_ONE_PARTICLE = ("trace", "analytic", "handwritten", "stl", "score")
_GROUPS = 5
_ALPHA = 0.5


@dataclass(frozen=True, kw_only=True)
class Reference:
    """What the bounds of a batch are held against: log p(x), nats per datum.

    Args:
        log_p: its mean over the batch.
        stderr: of an estimate from importance weights; 0 where it is exact.
    """

    log_p: float
    stderr: float


def reference(vae: VAE, x: Tensor, num_samples: int = 5000) -> Reference:
    """Return log p(x) of a batch: exact for a linear-Gaussian VAE, else a long importance-weighted estimate.

    Args:
        vae: the model.
        x: images (B, C, H, W).
        num_samples: S of the estimate; it is biased downward, by less than any bound with fewer particles.
    """
    if oracle.has_oracle(vae):
        with torch.no_grad():
            return Reference(log_p=oracle.log_evidence(vae, x).mean().item(), stderr=0.0)
    sample = importance_sample(vae, x, num_samples)
    stderr = sample.stderr.square().sum().sqrt().item() / len(x)
    return Reference(log_p=sample.log_p.mean().item(), stderr=stderr)


@dataclass(frozen=True, kw_only=True)
class Gradient:
    """An estimator's gradient by some of the parameters, over repetitions of its draws.

    Args:
        variance: the trace of its covariance, E |g - E g|^2.
        signal_to_noise: |E g| / sqrt(E |g - E g|^2), the repetitions' own noise taken out of |E g|.
    """

    variance: float
    signal_to_noise: float

    @classmethod
    def of(cls, mean: Tensor, mean_square: Tensor, repetitions: int) -> Gradient:
        """Return the summary of gradients with a mean and a mean square (P,) over repetitions."""
        variance = ((mean_square - mean**2).clamp(min=0).sum() * repetitions / (repetitions - 1)).item()
        signal = max((mean**2).sum().item() - variance / repetitions, 0.0)
        tiny = 1e-24 * max(mean_square.sum().item(), 1e-300)  # rounding, of a gradient that does not vary at all
        return cls(variance=variance, signal_to_noise=math.sqrt(signal / variance) if variance > tiny else math.inf)


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One estimator at one set of weights.

    Args:
        stage: which weights.
        estimator: its name, of `config.ELBOS`.
        particles: K.
        value: the bound, mean over repetitions with its standard error, nats per datum.
        bias: the value less log p(x).
        encoder: its gradient by the posterior's parameters.
        decoder: its gradient by those of the likelihood and the prior.
        milliseconds: the median time of loss and gradients of a batch.
    """

    stage: str
    estimator: str
    particles: int
    value: Estimate
    bias: float
    encoder: Gradient
    decoder: Gradient
    milliseconds: float


def compared(names: Iterable[str], particles: Iterable[int]) -> list[tuple[str, int]]:
    """Return the pairs of estimator and number of particles that differ from each other.

    With one particle the importance-weighted bounds are the ELBO, and there are no others to leave one out of; a
    mean of groups is another bound only where there are several groups of several.
    """
    pairs = [(name, count) for count in particles for name in names]
    return [
        (name, count)
        for name, count in pairs
        if (count > 1 or name in _ONE_PARTICLE) and (name != "miwae" or (count % _GROUPS == 0 and count > _GROUPS))
    ]


def measure(
    vae: VAE, x: Tensor, name: str, num_particles: int, log_p: Reference, stage: str = "", repetitions: int = 100
) -> Measurement:
    """Measure an estimator on a batch; repetition r draws from seed r, so that all estimators meet the same noise.

    Args:
        vae: at the weights in question, in eval mode.
        x: images (B, C, H, W).
        name: one of `config.ELBOS`.
        num_particles: K.
        log_p: of the batch.
        stage: which weights.
        repetitions: R, at least 2.
    """
    elbo = build_elbo(name, num_particles, alpha=_ALPHA, groups=_GROUPS if name == "miwae" else 1)
    values, seconds = [], []
    moments = [torch.zeros(2, 1, dtype=torch.float64) for _ in range(2)]  # mean and mean square, of each gradient
    for repetition in range(repetitions):
        started = time.perf_counter()
        value, gradients = _one(vae, x, elbo, repetition)
        seconds.append(time.perf_counter() - started)
        values.append(value)
        moments = [m + torch.stack([g, g**2]) / repetitions for m, g in zip(moments, gradients)]
    estimate = Estimate.of(torch.tensor(values))
    encoder, decoder = (Gradient.of(mean, mean_square, repetitions) for mean, mean_square in moments)
    return Measurement(
        stage=stage,
        estimator=name,
        particles=num_particles,
        value=estimate,
        bias=estimate.mean - log_p.log_p,
        encoder=encoder,
        decoder=decoder,
        milliseconds=1000 * statistics.median(seconds),
    )


def _one(vae: VAE, x: Tensor, elbo: PerDatumELBO, seed: int) -> tuple[float, tuple[Tensor, Tensor]]:
    """Return the bound of one repetition, and its gradients by encoder and decoder."""
    vae.zero_grad()
    with seeded(seed, x.device), pyro.get_param_store().scope():
        loss = elbo.loss_and_grads(vae.model, vae.guide, x)
    encoder, rest = list(vae.q_z.parameters()), [*vae.p_x.parameters(), *vae.p_z.parameters()]
    return -loss.item(), (_flat(encoder), _flat(rest))


def _flat(parameters: Sequence[Tensor]) -> Tensor:
    gradients = (p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters)
    return torch.cat([gradient.flatten() for gradient in gradients]).double()


_COLUMNS: dict[str, Callable[[Measurement], str]] = {
    "stage": lambda one: one.stage,
    "estimator": lambda one: one.estimator,
    "K": lambda one: str(one.particles),
    "bound": lambda one: str(one.value),
    "bias": lambda one: f"{one.bias:+.2f}",
    "encoder: variance": lambda one: f"{one.encoder.variance:.2g}",
    "signal/noise": lambda one: f"{one.encoder.signal_to_noise:.2f}",
    "decoder: variance": lambda one: f"{one.decoder.variance:.2g}",
    "signal/noise ": lambda one: f"{one.decoder.signal_to_noise:.2f}",
    "ms": lambda one: f"{one.milliseconds:.1f}",
}


def to_markdown(measurements: Sequence[Measurement]) -> str:
    """Return a table, its columns lined up so that it reads in a terminal too."""
    rows = [list(_COLUMNS), *([column(one) for column in _COLUMNS.values()] for one in measurements)]
    widths = [max(len(row[index].strip()) for row in rows) for index in range(len(_COLUMNS))]
    lines = ["| " + " | ".join(cell.strip().ljust(width) for cell, width in zip(row, widths)) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])


def to_csv(measurements: Sequence[Measurement]) -> str:
    """Return a line for each measurement under a line of names."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    rows = [_flattened(one) for one in measurements]
    writer.writerow(rows[0])
    writer.writerows(row.values() for row in rows)
    return text.getvalue()


def _flattened(measurement: Measurement) -> dict[str, object]:
    row: dict[str, object] = {}
    for field in fields(measurement):
        value = getattr(measurement, field.name)
        if isinstance(value, (Estimate, Gradient)):
            row |= {f"{field.name}_{inner.name}": getattr(value, inner.name) for inner in fields(value)}
        else:
            row[field.name] = value
    return row
