"""Fill in missing values by a trained VAE."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from pvae.core.batch import Batch, Data
from pvae.core.errors import InputError
from pvae.data.read import OtherData
from pvae.distributions.values import Columns
from pvae.marginal.chunks import at_once, widest
from pvae.marginal.importance import Mixture, near_posterior, num_in_tail, pareto_k
from pvae.tables.codec import complete
from pvae.tables.schema import Schema
from pvae.vae import VAE

ENOUGH = 1000.0  # the effective sample size below which a datum gets more draws, and its errors cannot be trusted
_TRIES = 20  # draws of a row of a table, of which one that keeps its rules is taken
_TRIES_OF_DRAW = 5  # of each of several imputations
_LIGHT = 0.7  # Pareto k, from which no error of a mean can be trusted
_SPARE = 1.5  # times as many draws as the weights of fewer ones ask for
_MOST = 12_800  # draws
_DATA_AT_ONCE = 100  # of those that get more draws
_MOST_VALUES = 2**26  # in the output of a layer


class Imputed(NamedTuple):
    """Data whose missing values are filled in, (N, *shape).

    Args:
        filled: the data; of a category or a binary column of `Columns` the most likely code is filled in.
        std: how far the missing value may lie from its mean, the standard deviation of p(x missing | x observed); 0
            where nothing is missing, NaN of such a code.
        stderr: the error of `filled` itself, from the draws of z, which more particles make smaller; likewise.
        effective: effective sample sizes of the weights, (N,); inf where nothing is missing. Below `ENOUGH` both are
            too small.
        pareto_k: the shape of the tail of the weights, (N,). Above 0.7 `stderr` is too small.
        draws: draws from p(x missing | x observed), (N, M, *shape), each beside what is observed.
    """

    filled: Tensor
    std: Tensor
    stderr: Tensor
    effective: Tensor
    pareto_k: Tensor
    draws: Tensor

    @property
    def is_trusted(self) -> Tensor:
        """Whether there are enough draws for the errors: the effective sample size, and a tail of the weights, (N,)."""
        return (self.effective >= ENOUGH) & ((self.pareto_k < _LIGHT) | self.effective.isinf())


@torch.no_grad()
def impute(
    vae: VAE,
    data: Data,
    num_particles: int = 200,
    num_draws: int = 0,
    on_data: Callable[[int], object] = lambda count: None,
) -> Imputed:
    """Fill in what is missing: the mean of p(x missing | x observed), by self-normalised importance sampling.

        E[x missing | x observed] ~ sum_k w_k E[x | z_k] / sum_k w_k,    w_k = p(x observed, z_k) / r(z_k)
        r(z) = 0.9 q(z | x observed) + 0.1 p(z),     or with the Normal of `near_posterior`, as in `Mixture`

    The standard deviation is that of a draw from p(x | z_k) for each z_k, by the same weights. Of a category its
    probabilities are averaged, and the most likely one is taken. What is known only to be below a limit is filled in
    too, from p(x | z_k) below the limit, as `Censored` says. The draws from p(z), a tenth of all, bound the weights
    where q(z | x observed) is too narrow. A datum whose effective sample size is small gets more draws, up to 12,800,
    from the Normal of `near_posterior` too. A mode that no draw finds is not seen by the errors.

    Args:
        vae: in eval mode, with `Config.missing`.
        data: N data x, or a `Batch` of them with their labels; NaN is missing.
        num_particles: K, the number of draws of z for each datum.
        num_draws: M; each draws z by its weight, and x from p(x | z).
        on_data: called after each part with the number of data in it.

    Raises:
        InputError: every weight of a datum is 0.

    Reference:
        Mattei and Frellsen, arXiv:1812.02633, "single imputation" and "multiple imputation"; `Mixture`.
    """
    batch = Batch.of(data)
    width = widest(vae, batch)
    parts = list[Imputed]()
    done = 0
    for part in batch.split(at_once(width * num_particles)):
        found = _imputed(vae, part, num_particles, num_draws)
        if found.effective.isnan().any():
            place = done + int(found.effective.isnan().nonzero()[0])
            raise InputError(
                f"datum {place + 1} has log p(x) = -inf, as of a value far from the training data: correct it"
            )
        left = (~found.is_trusted).nonzero()[:, 0]
        for some in left.split(_DATA_AT_ONCE) if len(left) else ():
            now = Imputed(*(one[some] for one in found))
            now = _until_trusted(vae, part.rows(some), now, num_particles, width)
            found = Imputed(*(one.index_copy(0, some, other) for one, other in zip(found, now)))
        parts.append(found)
        done += len(part)
        on_data(len(part))
    return Imputed(*map(torch.cat, zip(*parts)))


def _until_trusted(vae: VAE, batch: Batch, found: Imputed, num_particles: int, width: int) -> Imputed:
    """Return imputed data with as many draws for each datum, up to a limit, as the weights of fewer ask for."""
    (part,) = batch.split(len(batch))
    most = min(_MOST, _MOST_VALUES // width)
    near, share = near_posterior(vae, part, most, lambda z, x, *y: vae.log_likelihood(x, z, *y), width)
    tried = torch.full((len(batch),), num_particles)
    effective = found.effective
    if near is not None:
        effective = (tried * share).clamp(min=1)
    while True:
        asked = tried * (_SPARE * ENOUGH / effective).clamp(min=2)
        wanted = (2 ** asked.log2().ceil()).clamp(max=most).long().where(~found.is_trusted, tried)
        if (wanted <= tried).all():
            return found
        num_particles = int(wanted[wanted > tried].min())
        rows = ((wanted > tried) & (wanted == num_particles)).nonzero()[:, 0]
        tried[rows] = num_particles
        some = list[Imputed]()
        for few in rows.split(at_once(width * num_particles)):
            of_few = near
            if near is not None:
                of_few = MultivariateNormal(near.loc[few], scale_tril=near.scale_tril[few], validate_args=False)
            some.append(_imputed(vae, batch.rows(few), num_particles, found.draws.shape[1], of_few))
        again = map(torch.cat, zip(*some))
        found = Imputed(*(one.index_copy(0, rows, other) for one, other in zip(found, again)))
        effective = effective.index_copy(0, rows, found.effective[rows])


def _imputed(
    vae: VAE, batch: Batch, num_particles: int, num_draws: int, near: MultivariateNormal | None = None
) -> Imputed:
    """Return what `impute` does, with the same number of draws for each datum, and perhaps a Normal near p(z | x)."""
    (part,) = batch.split(len(batch))
    x = part.x
    given = vae.given(part.y)
    mixture = Mixture(given, x, num_particles, near)
    z, log_q = mixture.draw(0, num_particles)
    given_z = given.likelihood(z)
    log_w = mixture.log_weights(given_z.log_prob(x), z, log_q)
    weight = log_w.softmax(0)
    draws = x.new_empty(0, *x.shape)
    if num_draws:
        chosen = weight.nan_to_num(nan=1.0).T.multinomial(num_draws, replacement=True).T  # (M, B)
        chosen_z = z.gather(0, chosen[..., None].expand(*chosen.shape, z.shape[-1]))
        draws = _given_below(given.likelihood(chosen_z), x)[0].sample()
    p_x, is_missing = _given_below(given_z, x)
    means = p_x.features if isinstance(p_x, Columns) else p_x.mean
    shares = weight.to(means.dtype).view(weight.shape + (1,) * (means.dim() - 2))
    mean = (shares * means).sum(0)
    error = (shares * (means - mean)).square().sum(0).sqrt()
    if isinstance(p_x, Columns):
        mean = p_x.from_features(mean)
        error = p_x.from_features(error).where(p_x.has_mean, math.nan)
    std = (shares * (p_x.sample() - mean).square()).sum(0).sqrt().where(~error.isnan(), math.nan)
    k = pareto_k(log_w.topk(num_in_tail(num_particles) + 1, 0).values)
    effective = (1 / weight.square().sum(0)).where(is_missing.flatten(1).any(1), math.inf)
    filled = x.where(~is_missing, mean)
    drawn = x.where(~is_missing, draws).transpose(0, 1)
    return Imputed(filled, std.where(is_missing, 0), error.where(is_missing, 0), effective, k, drawn)


def _given_below(p_x: Any, x: Tensor) -> tuple[Any, Tensor]:
    """Return p(x | z), of columns given which values of x lie below a limit, and which values are filled in."""
    if isinstance(p_x, Columns):
        return p_x.given(x)
    return p_x, x.isnan()


def num_tries(schema: Schema, num_imputations: int = 0) -> int:
    """Return the number of draws of each row, of which `complete_rows` takes those that break no rule of a table."""
    if not schema.recorded:  # it has no rules
        return num_imputations
    return max(_TRIES, _TRIES_OF_DRAW * num_imputations)


def complete_rows(
    schema: Schema, given: OtherData, found: Imputed, num_imputations: int = 0
) -> tuple[list[Tensor], Tensor]:
    """Return rows in the columns of a file whose empty fields are filled in without breaking a rule.

    Args:
        schema: of the table.
        given: its rows; those that are outside become NaN.
        found: what `impute` returns for those that are inside, with the draws of `num_tries`.
        num_imputations: the number of draws; 0 for means, in place of which a draw is taken where they break a rule.

    Returns:
        The rows (N, D) of each imputation, and the numbers of those of which fields stay empty in one of them.
    """
    tries = [*found.draws.unbind(1)]
    of_each = [[found.filled, *tries]]
    if num_imputations:
        of_each = [tries[first::num_imputations] for first in range(num_imputations)]
    inside = given.inside
    y = given.y
    if y is not None and len(y) > 1:
        y = y[inside]
    rows = []
    left = []
    for candidates in of_each:
        completed, without = complete(schema, given.in_file[inside], given.x[inside], candidates, y)
        rows.append(given.in_place(completed))
        left.append(inside[without])
    return rows, torch.cat(left).unique()
