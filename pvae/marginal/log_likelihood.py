"""log p(x) of a VAE, for each datum by a method that can be trusted; and log p of a part of x given the other part."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from pvae.core.batch import Batch, Data
from pvae.core.errors import InputError, check_name
from pvae.core.terminal import progress_bar
from pvae.marginal.annealing import NUM_LEAPFROG, annealed
from pvae.marginal.chunks import widest
from pvae.marginal.importance import importance_sample
from pvae.marginal.log_p import METHODS, LogP, check_bounding, check_continuous, is_continuous
from pvae.marginal.quadrature import check_few, quadrature
from pvae.vae import VAE

MOST_UNTRUSTED = 0.01  # the fraction of untrusted data up to which the mean log-likelihood is reported as reliable
ANNEALING: Mapping[str, Any] = {"num_temperatures": 100, "num_chains": 8, "start": "posterior"}
_MOST_VALUES = 1e11  # that "auto" computes for annealing: 10,000 data of 784 values by 8 chains at 100 temperatures


Progress = Callable[
    [str, int], contextlib.AbstractContextManager[Any]
]  # of a method and a number of data: a bar with `update`
hidden: Progress = functools.partial(progress_bar, unit="datum", quiet=True)


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
    seed: int | None = None,
    progress: Progress = hidden,
) -> LogP:
    """Estimate log p(x), for each datum by a method whose diagnostics trust it.

        quadrature   trusted where its errors are at most 0.002 nats; of one or two latents, or at most 4,096 codes
        importance   trusted where the effective sample size is at least 10 and Pareto k below min(1 - 1 / log10 K, 0.7)
        annealed     trusted where log w varies little over 4 effective chains or more; of latents of real numbers

    "auto" goes through them in this order, each for the data that the one before it does not trust. So that the time is
    bounded, it anneals only as many data as compute 1e11 values, those of the highest k first; `annealed` has no such
    bound. Where an annealed estimate is lower than that of importance sampling by more than 3 errors of the difference,
    draws from p(z) found what the chains did not, and that of importance sampling stays, untrusted. No diagnostic of
    draws sees a mode of p(z | x) that no draw finds; quadrature finds all modes that a fine grid shows.

    The logarithm of a mean of draws is too low in the mean. A datum is trusted by its own draws, which favours lucky
    ones: those that miss large weights. So the mean over data is too low by more than its error, see `LogP.bias`. Where
    few data are trusted, as at small K or where q is much too narrow, most are such, and their errors are too small. So
    take the mean over all data, and never over those that are trusted alone, which is lower.

    Args:
        vae: in eval mode.
        data: N data x, or a `Batch` of them with their labels.
        method: "auto", or one of `METHODS` for all data.
        num_particles: K, the draws of importance sampling for each datum.
        annealing: temperatures, chains and start of `annealed`.
        engine: as in `importance_sample` and `annealed`.
        seed: as in `importance_sample`, of that method alone.
        progress: returns the bar that shows the progress of a method.

    Raises:
        InputError: there is no such method, or it cannot be taken for this VAE, or the VAE has no log p(x).
    """
    batch = Batch.of(data)
    check_method(vae, batch, method)
    methods: Mapping[str, Callable[..., LogP]] = {
        "quadrature": quadrature,
        "importance": functools.partial(importance_sample, num_particles=num_particles, engine=engine, seed=seed),
        "annealed": functools.partial(annealed, engine=engine, **annealing),
    }

    def estimated(name: str, rows: Tensor) -> LogP:
        with progress(name, len(rows)) as bar:
            return methods[name](vae, batch.rows(rows), on_images=bar.update)

    if method != "auto":
        return estimated(method, torch.arange(len(batch)))
    first, *others = _methods_of(vae, batch)
    estimate = estimated(first, torch.arange(len(batch)))
    for name in others:
        rows = (~estimate.is_trusted).nonzero()[:, 0]
        if name == "annealed":
            each = widest(vae, batch) * annealing["num_chains"] * annealing["num_temperatures"] * NUM_LEAPFROG
            rows = rows[estimate.pareto_k[rows].argsort(descending=True)[: int(_MOST_VALUES / each)]].sort().values
        if not len(rows):
            break
        values = estimated(name, rows)
        is_taken = torch.ones_like(rows, dtype=torch.bool)
        if name == "annealed":
            values = values._replace(pareto_k=estimate.pareto_k[rows])
            is_taken = estimate.log_p[rows] - values.log_p <= 3 * estimate.stderr[rows].hypot(values.stderr)
        taken = rows[is_taken]
        estimate = LogP(*(old.index_copy(0, taken, new[is_taken]) for old, new in zip(estimate, values)))
    return estimate


def _methods_of(vae: VAE, batch: Batch) -> list[str]:
    """Return the methods that can be taken, in the order of `METHODS`."""
    methods = ["importance"]
    if is_continuous(vae, batch):
        methods.append("annealed")
    with contextlib.suppress(InputError):
        check_few(vae, batch)
        methods.insert(0, "quadrature")
    return methods


def conditional_log_likelihood(
    vae: VAE, data: Data, is_given: Tensor, joint: LogP | None = None, **how: Any
) -> tuple[Tensor, LogP, LogP]:
    """Estimate log p(x_a | x_b) of the values x_a that are not given, from two estimates with missing values.

        log p(x_a | x_b) = log p(x_a, x_b) - log p(x_b)

    Both are in the mean too low (except by quadrature), so that the difference may be too low or too high. Their draws
    are independent of each other: the standard error is the root of the sum of their squared errors. Values of x that
    are missing are in neither part.

    Args:
        vae: in eval mode; it takes missing values.
        data: N data x, or a `Batch` of them with their labels.
        is_given: which values of a datum are in x_b, bool (*D).
        joint: log p(x_a, x_b) of the same data, if it is known.
        how: method and options of `log_likelihood`.

    Returns:
        log p(x_a | x_b), (N,) nats in float64, and the estimates of log p(x_a, x_b) and log p(x_b).

    Raises:
        InputError: as `log_likelihood`; or `is_given` is not boolean, or not of the shape of a datum.
    """
    batch = Batch.of(data)
    shape = next(iter(batch.x.split(1))).shape[1:]
    if is_given.dtype != torch.bool or is_given.shape != shape:
        what = f"{is_given.dtype} of the shape {tuple(is_given.shape)}"
        raise InputError(f"is_given is {what}: give booleans of the shape {tuple(shape)}, true where given")
    if joint is None:
        joint = log_likelihood(vae, batch, **how)
    x = torch.cat([part.where(is_given, torch.nan) for part in batch.x.split(1000)])
    given = log_likelihood(vae, Batch(x, batch.y), **how)
    return joint.log_p - given.log_p, joint, given
