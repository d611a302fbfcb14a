"""The log-likelihood log p(x) of a trained VAE, by the method that can be trusted; means with their errors."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pvae.core.errors import check_name
from pvae.core.terminal import progress_bar
from pvae.data.batch import Batch, Data
from pvae.trained.annealing import NUM_LEAPFROG, annealed, check_bounding, check_continuous, is_continuous
from pvae.trained.chunks import widest
from pvae.trained.importance import importance_sample
from pvae.trained.quadrature import MOST_LATENTS, check_few, quadrature
from pvae.vae import VAE

__all__ = [
    "ANNEALING",
    "METHODS",
    "MOST_UNTRUSTED",
    "Estimate",
    "LogP",
    "Progress",
    "check_method",
    "hidden",
    "log_likelihood",
]

METHODS = ("quadrature", "importance", "annealed")  # in the order in which "auto" takes them
MOST_UNTRUSTED = 0.01  # the fraction of untrusted data up to which the mean log-likelihood is reported as reliable
ANNEALING: Mapping[str, Any] = {"num_temperatures": 100, "num_chains": 8, "start": "posterior"}
_MOST_VALUES = 1e11  # that "auto" computes for annealing: 10,000 data of 784 values by 8 chains at 100 temperatures


Progress = Callable[[str, int], AbstractContextManager[Any]]  # of a method and a number of data: a bar with `update`
hidden: Progress = functools.partial(progress_bar, unit="datum", quiet=True)


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean and its standard error.

    Args:
        mean: the mean of N values, in their unit.
        stderr: its standard error; 0 of an exact value.
    """

    mean: float
    stderr: float

    def __str__(self) -> str:
        """Return mean and error, with two to six decimals: two significant digits of a small error."""
        if not math.isfinite(self.stderr):
            return f"{self.mean} +- {self.stderr}"
        digits = 2 if self.stderr == 0 else min(6, max(2, 1 - math.floor(math.log10(self.stderr))))
        return f"{self.mean:.{digits}f} +- {self.stderr:.{digits}f}"

    @classmethod
    def of(cls, values: Tensor) -> Estimate:
        """Return the mean of values (N,), N at least 2, and its standard error std / sqrt(N), in float64."""
        values = values.double()
        return cls(mean=values.mean().item(), stderr=values.std().item() / math.sqrt(len(values)))


class LogP(NamedTuple):
    """Estimates of log p(x) of N data.

    Args:
        log_p: nats, float64 (N,).
        stderr: their standard errors from the draws, or the errors of quadrature, (N,).
        method: the number in `METHODS` of the method of each, int64 (N,).
        is_trusted: whether the diagnostics of this method trust the estimate and its error, (N,).
        effective: the effective sample size of its weights, (N,); NaN of quadrature.
        pareto_k: the shape of the tail of the weights of importance sampling, (N,); NaN where it was not tried.
    """

    log_p: Tensor
    stderr: Tensor
    method: Tensor
    is_trusted: Tensor
    effective: Tensor
    pareto_k: Tensor

    @property
    def mean_stderr(self) -> float:
        """Standard error of the mean of `log_p` over the N data, from the draws alone: sqrt(sum_n stderr_n^2) / N."""
        return self.stderr.square().sum().sqrt().item() / len(self.log_p)

    @property
    def bias(self) -> float:
        """What the mean is too low by, to first order: the mean of stderr_n^2 / 2, 0 of quadrature.

        It does not fall with N, and is more where estimates are not trusted.
        """
        return (self.stderr.square() / 2).where(self.method != METHODS.index("quadrature"), 0.0).mean().item()

    @property
    def untrusted(self) -> float:
        """The fraction of data whose estimates cannot be trusted."""
        return (~self.is_trusted).double().mean().item()

    @property
    def counts(self) -> dict[str, int]:
        """The number of data by each method that was taken."""
        numbers = zip(METHODS, self.method.bincount(minlength=len(METHODS)).tolist())
        return {name: count for name, count in numbers if count}


def check_method(vae: VAE, data: Data, method: str) -> None:
    """Check that log p(x) can be estimated by a method.

    Raises:
        InputError: there is no such method, or it cannot be taken for this VAE, or the VAE has no log p(x).
    """
    check_name("method", method, ("auto", *METHODS))
    check_bounding(vae)
    if method == "annealed":
        check_continuous(vae, data)
    if method == "quadrature":
        check_few(vae, data)


def log_likelihood(
    vae: VAE,
    data: Data,
    method: str = "auto",
    *,
    num_particles: int = 5000,
    annealing: Mapping[str, Any] = ANNEALING,
    engine: str = "auto",
    progress: Progress = hidden,
) -> LogP:
    """Estimate log p(x), for each datum by a method whose diagnostics trust it.

        quadrature   trusted where its errors are at most 0.002 nats; of one or two latents
        importance   trusted where the effective sample size is at least 10 and Pareto k below min(1 - 1 / log10 K, 0.7)
        annealed     trusted where log w varies little over 4 effective chains or more; of latents of real numbers

    "auto" goes through them in this order, each for the data that the one before it does not trust. So that the time is
    bounded, it anneals only as many data as compute 1e11 values, those of the highest k first; `annealed` has no such
    bound. Where an annealed estimate is lower than that of importance sampling by more than 3 errors of the difference,
    draws from p(z) found what the chains did not, and that of importance sampling stays, untrusted. No diagnostic of
    draws sees a mode of p(z | x) that no draw finds; quadrature finds modes from the peaks of p(x, z) on a grid.

    The logarithm of a mean of draws is too low in the mean. A datum is trusted by its own draws, which favours lucky
    ones: those that miss large weights. So the mean over data is too low by more than its error, see `LogP.bias`. Where
    few data are trusted, as at small K or where q is much too narrow, most are such, and their errors are too small.

    Args:
        vae: in eval mode.
        data: N data x, or a `Batch` of them with their labels.
        method: "auto", or one of `METHODS` for all data.
        num_particles: K, the draws of importance sampling for each datum.
        annealing: temperatures, chains and start of `annealed`.
        engine: as in `importance_sample` and `annealed`.
        progress: returns the bar that shows the progress of a method.

    Raises:
        InputError: there is no such method, or it cannot be taken for this VAE, or the VAE has no log p(x).
    """
    batch = Batch.of(data)
    check_method(vae, batch, method)
    has_few = vae.given(batch.y).prior().event_shape[0] <= MOST_LATENTS
    can = is_continuous(vae, batch)
    names = [method] if method != "auto" else ["quadrature"] * (can and has_few) + ["importance"] + ["annealed"] * can
    found, rows = None, torch.arange(len(batch))
    for name in names:
        if name == "annealed" and found is not None:
            each = widest(vae, batch) * annealing["num_chains"] * annealing["num_temperatures"] * NUM_LEAPFROG
            rows = rows[found.pareto_k[rows].argsort(descending=True)[: int(_MOST_VALUES / each)]].sort().values
        if not len(rows):
            break
        part, unknown = batch.rows(rows), torch.full((len(rows),), math.nan, dtype=torch.float64)
        with progress(name, len(rows)) as bar:
            one: Any
            if name == "quadrature":
                one = quadrature(vae, part, on_images=bar.update)
            elif name == "importance":
                one = importance_sample(vae, part, num_particles, bar.update, engine)
            else:
                one = annealed(vae, part, on_images=bar.update, engine=engine, **annealing)
        by, effective = torch.full_like(rows, METHODS.index(name)), getattr(one, "effective", unknown)
        k = getattr(one, "pareto_k", unknown if found is None else found.pareto_k[rows])
        values = LogP(one.log_p, one.stderr, by, one.is_trusted, effective, k)
        if found is None:
            found = values
        else:
            is_taken = torch.ones_like(rows, dtype=torch.bool)
            if name == "annealed":
                error = found.stderr[rows].hypot(values.stderr)
                is_taken = found.log_p[rows] - values.log_p <= 3 * error
            taken = rows[is_taken]
            found = LogP(*(old.index_copy(0, taken, new[is_taken]) for old, new in zip(found, values)))
        rows = (~found.is_trusted).nonzero()[:, 0]
    assert found is not None
    return found
