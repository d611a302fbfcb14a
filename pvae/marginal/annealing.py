"""Annealed importance sampling of log p(x), and a bracket around log p(x) for data that were drawn from the VAE."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import pyro
import torch
from pyro.distributions import Normal
from torch import Tensor

from pvae.compile.graph import Function, RecordingError, record
from pvae.core.batch import Batch, Data
from pvae.core.errors import InputError, check_name
from pvae.core.random_state import seeded
from pvae.core.tracing import deferred
from pvae.distributions.flow import Flow
from pvae.marginal.chunks import data_at_once, draw_for_each
from pvae.marginal.importance import DECODED_TO_COMPILE, engine_of
from pvae.marginal.log_p import LogP, check_continuous
from pvae.vae import VAE

STARTS = ("prior", "posterior")
NUM_LEAPFROG = 10
_ACCEPTANCE = 0.65
_MOST_VARIANCE = 1.0  # of the chains of a datum that can be trusted
_LEAST_EFFECTIVE = 4
_LEAST_ACCEPTED = 0.2
_SIGMOID = 4.0  # the sigmoid runs from -4 to 4
_WARM_UP = 30  # transitions of the pilot before its first temperature
_TRANSITIONS = 100  # of the pilot at all temperatures together, at least
_DRAWS = 100  # of a flow, whose mean and spread the chains start with
_PILOT = 0.1  # the share of the data in the pilot


class Point(NamedTuple):
    """A latent z (C, B, L), its two log-densities (C, B) in float64 nats, and their derivatives by z, (C, B, L).

    The densities between them are f_b(z) = r(z)^(1 - b) p(x, z)^b at the inverse temperature b.

    Args:
        z: the latent.
        log_start: log r(z), normalised.
        log_joint: log p(x, z).
        by_start: the derivative of log r(z).
        by_joint: the derivative of log p(x, z).
    """

    z: Tensor
    log_start: Tensor
    log_joint: Tensor
    by_start: Tensor
    by_joint: Tensor

    def log_density(self, beta: float) -> Tensor:
        """Return log f_b(z), (C, B)."""
        return (1 - beta) * self.log_start + beta * self.log_joint

    def gradient(self, beta: float) -> Tensor:
        """Return the derivative of log f_b(z) by z, (C, B, L)."""
        return (1 - beta) * self.by_start + beta * self.by_joint


Points = Callable[[Tensor], Point]


class Bracket(NamedTuple):
    """Stochastic bounds on log p(x) of N data that were drawn from the model, (N,) nats each.

    Args:
        lower: in the mean at most log p(x).
        upper: in the mean at least log p(x).
    """

    lower: Tensor
    upper: Tensor


@torch.no_grad()  # replayed operators would keep what their gradients need, for all transitions
def annealed(
    vae: VAE,
    data: Data,
    num_temperatures: int = 1000,
    num_chains: int = 16,
    start: str = "prior",
    on_images: Callable[[int], object] = lambda count: None,
    engine: str = "auto",
) -> LogP:
    """Estimate log p(x) by annealed importance sampling with Hamiltonian transitions.

        log p(x)  ~  log (1/C) sum_c w_c,     w = prod_t (p(x, z_t-1) / r(z_t-1))^(b_t - b_t-1),    t = 1 to T

    z_0 is drawn from r, and each further z_t by a transition that leaves r(z)^(1 - b_t) p(x, z)^b_t invariant, where b
    rises from b_0 = 0 to b_T = 1 as in `temperatures`. The mean of a weight is p(x), whatever T is. So the estimate is
    in the mean a lower bound on log p(x), which rises towards it with T; T = 1 is importance sampling from r. One step
    size for each temperature is adapted to an acceptance of 0.65 in a pilot with draws of its own, on a tenth of the
    data, and is then fixed: steps that depended on the chains would make the weights biased. All chains of as many data
    as memory allows are one batch.

    Args:
        vae: in eval mode; its latent is any vector of real numbers.
        data: N data x, or a `Batch` of them with their labels.
        num_temperatures: T, at least 1.
        num_chains: C, at least 2.
        start: r is p(z) ("prior"), or q(z | x) ("posterior"), from which fewer temperatures do; of a flow it is the
            Normal with its mean and spread. Chains from q(z | x) may miss a mode of p(z | x) that q misses.
        on_images: called after each part with the number of data in it.
        engine: how to compute densities and gradients: "graph" or "inductor" as in `pvae.compile.graph.record`, or
            "none". "auto" is "inductor" for parts of full size, if it is available and the work is large, else "graph";
            it falls back to "none" if the densities cannot be recorded or compiled.

    Returns:
        Estimates, their errors over the chains, and effective sample sizes of the chains. An estimate is trusted where
        log w varies little, 4 chains are effective, and a fifth of their moves are accepted. log w varies little where
        its variance over the chains of the datum and the median of these variances over all data have a mean below 1.
        The median is there because few chains that miss large weights look equal by chance, which then happens to some
        data, and not to half of them. The errors see no mode that no chain found.

    Raises:
        InputError: the VAE has no log p(x), or its latent is discrete or on a sphere; T, C or start is none of these;
            or the densities cannot be recorded with the given engine.

    Reference:
        Neal, Statistics and Computing 11, 2001, section 2; Wu et al., arXiv:1611.04273, section 3 (for VAEs, and the
        schedule); Neal, arXiv:1206.1901, section 3 (the transitions), and the documentation of his program mc-ais (a
        variance of about 1).
    """
    batch = Batch.of(data)
    runs = []
    schedule = _Schedule.of(vae, batch, num_temperatures, num_chains, start, engine)
    for part in batch.split(schedule.data_at_once):
        runs.append(log_weights(*_started(vae, part, schedule), schedule.betas, schedule.steps))
        on_images(len(part))
    log_w, acceptance = (torch.cat(parts, dim=-1) for parts in zip(*runs))
    estimate = LogP.of_weights("annealed", log_w.logsumexp(0), (2 * log_w).logsumexp(0), num_chains)
    variance = log_w.var(0)
    is_even = (variance + variance.nanmedian()) / 2 < _MOST_VARIANCE
    is_moving = ~(acceptance < _LEAST_ACCEPTED)  # NaN without transitions
    return estimate._replace(is_trusted=is_even & (estimate.effective >= _LEAST_EFFECTIVE) & is_moving)


@torch.no_grad()
def bracket(
    vae: VAE,
    data: Data,
    num_temperatures: int = 1000,
    num_chains: int = 16,
    start: str = "prior",
    on_data: Callable[[int], object] = lambda count: None,
) -> Bracket:
    """Draw as many data as are given from the model, and bound log p(x) of each from below and from above.

        z* ~ p(z),  x ~ p(x | z*):     log (1/C) sum_c w_c  <=  log p(x)  <=  -log (1/C) sum_c 1 / w'_c     in the mean

    z* is an exact draw from p(z | x), which exists for simulated data only. The weights w' are of chains that start at
    z* and run the temperatures of `annealed` backwards: the mean of 1 / w' is 1 / p(x). So the mean of upper - lower is
    at least the error of `annealed` on data like the model's. Real data may differ from these, and have no upper bound.

    Args:
        vae: as in `annealed`.
        data: data whose labels, missing values and number the simulated ones get.
        num_temperatures: T, the number of temperatures.
        num_chains: C, the number of chains for each datum.
        start: "prior" or "posterior".
        on_data: called after each part with the number of data in it.

    Raises:
        InputError: as `annealed`.

    Reference:
        Grosse, Ghahramani and Adams, arXiv:1511.02543, section 3; Wu et al., arXiv:1611.04273, section 3.
    """
    batch = Batch.of(data)
    runs = []
    check_continuous(vae, batch)
    parts = [simulated(vae, part) for part in batch.split(data_at_once(vae, batch))]
    drawn = Batch(torch.cat([x for x, _ in parts]), batch.y)
    exact = torch.cat([z for _, z in parts])
    done = 0
    schedule = _Schedule.of(vae, drawn, num_temperatures, num_chains, start)
    for part in drawn.split(schedule.data_at_once):
        points, z = _started(vae, part, schedule)
        lower, _ = log_weights(points, z, schedule.betas, schedule.steps)
        z = exact[done : done + len(part)].expand_as(z)
        upper, _ = log_weights(points, z, schedule.betas.flip(0), schedule.steps[::-1])
        runs.append(Bracket(lower.logsumexp(0), -upper.logsumexp(0)))
        done += len(part)
        on_data(len(part))
    lower, upper = (torch.cat(parts) for parts in zip(*runs))
    return Bracket(lower - math.log(num_chains), upper + math.log(num_chains))


def temperatures(num_temperatures: int) -> Tensor:
    """Return the inverse temperatures b_0 = 0 < ... < b_T = 1, float64 (T + 1,), close together at both ends.

    b_t = (s(4 (2 t / T - 1)) - s(-4)) / (s(4) - s(-4)),     s(u) = 1 / (1 + exp(-u))
    """
    s = torch.linspace(-_SIGMOID, _SIGMOID, num_temperatures + 1, dtype=torch.float64).sigmoid()
    return (s - s[0]) / (s[-1] - s[0])


def log_weights(points: Points, z: Tensor, betas: Tensor, steps: list[float]) -> tuple[Tensor, Tensor]:
    """Return the log-weights of annealed chains, (C, B) in float64, and the mean acceptance of each datum, (B,).

        log w = sum_t (b_t - b_t-1) (log p(x, z_t-1) - log r(z_t-1))

    Given the temperatures and steps in reverse order and z from p(z | x), these are the logarithms of 1 / w'.

    Args:
        points: returns densities and derivatives at z.
        z: from r; or from p(z | x), with everything in reverse order.
        betas: b_0, ..., b_T.
        steps: the step sizes at b_1, ..., b_T-1.
    """
    point = points(z)
    accepted = z.new_zeros(z.shape[:-1], dtype=torch.float64)
    increments = betas.diff().tolist()
    log_w = increments[0] * (point.log_joint - point.log_start)
    for beta, step, increment in zip(betas[1:-1].tolist(), steps, increments[1:], strict=True):
        point, acceptance = transition(points, point, beta, step)
        log_w = log_w + increment * (point.log_joint - point.log_start)
        accepted = accepted + acceptance
    if not steps:
        return log_w, accepted.mean(0) * math.nan
    return log_w, (accepted / len(steps)).mean(0)


def transition(points: Points, point: Point, beta: float, step: float) -> tuple[Point, Tensor]:
    """Return the next point of a Hamiltonian Markov chain that leaves f_b invariant, and its acceptance, (C, B).

    v ~ Normal(0, I);  (z', v') = leapfrog(z, v);  accepted with  min(1, f_b(z') N(v') / f_b(z) N(v)),  else z again
    """
    momentum = torch.randn_like(point.z)
    moved, last = leapfrog(points, point, momentum, beta, step)
    kinetic = (last.double().square() - momentum.double().square()).sum(-1) / 2
    log_ratio = moved.log_density(beta) - point.log_density(beta) - kinetic
    is_accepted = torch.rand_like(log_ratio).log() < log_ratio  # NaN is refused
    kept = []
    for new, old in zip(moved, point):
        shape = is_accepted.shape + (1,) * (new.dim() - log_ratio.dim())
        kept.append(torch.where(is_accepted.view(shape), new, old))
    return Point(*kept), log_ratio.exp().clamp(max=1).nan_to_num(0)


def leapfrog(points: Points, point: Point, momentum: Tensor, beta: float, step: float) -> tuple[Point, Tensor]:
    """Return point and momentum after ten leapfrog steps along the dynamics of -log f_b(z) + |v|^2 / 2.

    The map preserves volume, and is its own inverse with the momentum negated before and after.
    """
    for _ in range(NUM_LEAPFROG):
        momentum = momentum + step / 2 * point.gradient(beta)
        point = points(point.z + step * momentum)
        momentum = momentum + step / 2 * point.gradient(beta)
    return point, momentum


class _Schedule(NamedTuple):
    """What the chains of all data share."""

    betas: Tensor  # b_0, ..., b_T
    steps: list[float]  # of leapfrog at b_1, ..., b_T-1
    num_chains: int
    start: str
    engine: str
    data_at_once: int
    is_large: bool

    @classmethod
    def of(
        cls, vae: VAE, batch: Batch, num_temperatures: int, num_chains: int, start: str, engine: str = "auto"
    ) -> _Schedule:
        check_continuous(vae, batch)
        check_name("start", start, STARTS)
        if num_temperatures < 1 or num_chains < 2:
            raise InputError(f"{num_temperatures} temperatures and {num_chains} chains: give at least 1 and 2")
        size = data_at_once(vae, batch, num_chains)
        is_large = len(batch) * num_chains * num_temperatures * NUM_LEAPFROG >= DECODED_TO_COMPILE
        schedule = cls(temperatures(num_temperatures), [], num_chains, start, engine, size, is_large)
        if num_temperatures == 1:
            return schedule
        rows = torch.randperm(len(batch))[: min(size, math.ceil(_PILOT * len(batch)))]
        pilot = next(batch.rows(rows).split(size))
        return schedule._replace(steps=_adapted(*_started(vae, pilot, schedule), schedule.betas))


def _adapted(points: Points, z: Tensor, betas: Tensor) -> list[float]:
    """Return a step size for each of b_1, ..., b_T-1, from chains that are not used again."""
    inner = betas[1:-1].tolist()
    times = max(1, _TRANSITIONS // len(inner))
    point = points(z)
    step = 0.1 * z.std().item()
    steps = []
    for place, beta in enumerate(inner):
        count = times
        if place == 0:
            count += _WARM_UP
        for _ in range(count):
            point, acceptance = transition(points, point, beta, step)
            step *= math.exp(acceptance.mean().item() - _ACCEPTANCE)
        steps.append(step)
    return steps


@torch.no_grad()
def _started(vae: VAE, batch: Batch, schedule: _Schedule) -> tuple[Points, Tensor]:
    """Return the densities of a few data as a function of z, and draws z (C, B, L) from r."""
    given = vae.given(batch.y)
    x = batch.x
    prior: Any = given.prior()
    r = prior
    if schedule.start == "posterior":
        r = given.posterior(x)
    if isinstance(r, Flow):  # whose density elsewhere than at its draws may take L passes
        drawn = draw_for_each(r, _DRAWS, len(x))
        r = Normal(drawn.mean(0), drawn.std(0)).to_event(1)
    z = draw_for_each(r, schedule.num_chains, len(x))

    def densities(z: Tensor) -> list[Tensor]:
        with torch.enable_grad(), pyro.validation_enabled(False):  # a chain that diverges is refused, no error
            z = z.detach().requires_grad_()
            log_start = r.log_prob(z)
            log_joint = given.log_likelihood(x, z) + prior.log_prob(z)
            (by_start,) = torch.autograd.grad(log_start.sum(), z, retain_graph=True)
            (by_joint,) = torch.autograd.grad(log_joint.sum(), z)
        return [log_start.detach().double(), log_joint.detach().double(), by_start, by_joint]

    recorded: Function = densities
    is_full = len(batch) == schedule.data_at_once  # other sizes, of which there are few data, would be compiled anew
    engine = engine_of(schedule.engine, schedule.is_large and is_full)
    try:
        with deferred(), seeded(0):  # of checks of labels, which the draw made; compiling draws random numbers
            if engine != "none":
                recorded = record(densities, [z.contiguous()], engine)
    except RecordingError:
        if schedule.engine != "auto":
            raise

    def points(z: Tensor) -> Point:
        return Point(z, *(value.contiguous() for value in recorded(z.contiguous())))

    return points, z


@torch.no_grad()
def simulated(vae: VAE, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return data (B, *D) drawn from the model, with the labels and missing values of a batch, and their z (B, L)."""
    given = vae.given(batch.y)
    z = draw_for_each(given.prior(), 1, len(batch))[0]
    x = given.likelihood(z).sample().to(batch.x.dtype)
    return x.where(~batch.x.isnan(), math.nan), z
