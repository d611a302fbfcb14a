"""log p(x) of a VAE of one or two latents by quadrature, and of a few bits or categories by a sum over all codes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from pvae.core.batch import Batch, Data
from pvae.core.errors import InputError
from pvae.distributions.discrete import codes, support_of
from pvae.marginal.chunks import at_once, data_at_once, widest
from pvae.marginal.importance import Mixture, from_all_weights
from pvae.marginal.log_p import LogP, check_bounding, check_continuous
from pvae.vae import VAE

_MOST_LATENTS = 2
_CELLS = {1: 4096, 2: 96}  # along each dimension, of the first grid over p(z)
_DEPTH = 18.0  # nats below the largest cell, from which a cell is left out of finer grids
_SLACK = 1.0  # nats, and half of the difference to its neighbours, by which a finer cell may be above its cell
_STEEP = 6.0  # nats between neighbours; of a Normal, five times as far from its mean as a cell is wide, where this is 1
_LEAST = -1e15  # nats, so that differences are finite
_TRUSTED = 2e-3  # nats
_MOST_CELLS = 40_000  # of a datum
_DRAWS = 500  # of importance sampling, which check the result


@torch.no_grad()
def quadrature(
    vae: VAE,
    data: Data,
    tolerance: float = 1e-3,
    on_images: Callable[[int], object] = lambda count: None,
) -> LogP:
    """Integrate log p(x) over one or two latents, on grids that are refined where p(x, z) is large.

        log p(x) = log integral p(x | z) p(z) dz  ~  log sum_cells p(x, z_cell) volume

    The first grid has 4,096 cells of one latent, or 96 x 96, over what p(z) draws and a third more on each side. Within
    a cell, log p(x, z) is taken to rise at most by the largest difference between this cell and a neighbour; of a
    Normal mode inside of the cell, it rises by an eighth of that. Cells that may so come within 18 nats of the largest
    are divided in two along each dimension, until two grids differ by less than the tolerance, or have 40,000 cells for
    a datum. Modes that are much narrower than a cell are thereby found, all of them.

    That is judged by what the finer cells show: where one is above its cell by more than half of this difference and
    1 nat, log p(x, z) is too rough for the first grid, and the datum is not trusted. What a cell and all its neighbours
    give no sign of, as a narrow spike on a plateau, is not seen where no draw leads to it.

    Of bits or categories it is the sum over all codes, which is exact, and has the name "enumeration".

    Args:
        vae: in eval mode; its latent is any vector of one or two real numbers, or has at most 4,096 codes.
        data: N data x, or a `Batch` of them with their labels.
        tolerance: nats.
        on_images: called after each part with the number of data in it.

    Returns:
        Estimates, each with the error of its sum: the difference of the last two grids, and the share of the cells at
        the border of what was refined; and what 500 draws of importance sampling that are trusted find beyond 4 of
        their errors + 0.01. It is inf where a grid had too many cells or the first one was too coarse, and where more
        than 0.002 of p(x) is in cells at the border, or in cells that differ from a neighbour by more than 6 nats. An
        estimate is trusted where its error is at most 0.002.

    Raises:
        InputError: there are more latents or codes, or they are on a sphere, or the VAE has no log p(x).
    """
    batch = Batch.of(data)
    check_few(vae, batch)
    width = widest(vae, batch)
    method = "quadrature"
    if support_of(vae.given(batch.y).prior()):
        method = "enumeration"
    parts = list[tuple[Tensor, Tensor]]()
    for part in batch.split(min(100, data_at_once(vae, batch))):
        if method == "enumeration":
            parts.append(_of_codes(vae, part, width))
        else:
            parts.append(_of_part(vae, part, tolerance, width))
        on_images(len(part))
    log_p, error = map(torch.cat, zip(*parts))
    return LogP.of(method, log_p, error, error <= _TRUSTED)


def check_few(vae: VAE, data: Data) -> None:
    """Check that log p(x) is an integral over at most two real numbers, or a sum over at most 4,096 codes.

    Raises:
        InputError: it is not.
    """
    prior = vae.given(Batch.of(data).y).prior()
    if support_of(prior):
        check_bounding(vae)
        codes(prior)
        return
    check_continuous(vae, data)
    if prior.event_shape[0] > _MOST_LATENTS:
        raise InputError(f"quadrature of {prior.event_shape[0]} latents takes too long: take annealed or auto")


def _of_codes(vae: VAE, batch: Batch, width: int) -> tuple[Tensor, Tensor]:
    """Return log p(x) of a few data as a sum over all codes of a discrete latent, and 0 as its error."""
    given = vae.given(batch.y)
    prior = given.prior()
    size = at_once(width * len(batch))
    log_p = torch.cat([_log_joint(given, prior, batch, some) for some in codes(prior).split(size)]).logsumexp(0)
    return log_p, torch.zeros_like(log_p)


class _Grid(NamedTuple):
    """A grid of equal cells over a box of latents.

    Args:
        lowest: the corner of the box, (L,).
        extent: its size, (L,).
        cells: the number of cells along each dimension.
        dtype: of the latents.
    """

    lowest: Tensor
    extent: Tensor
    cells: int
    dtype: torch.dtype

    def centres(self, index: Tensor) -> Tensor:
        """Return the centres of the cells of an index (M, L), latents (M, L)."""
        return (self.lowest + self.extent * (index.double() + 0.5) / self.cells).to(self.dtype)

    @property
    def log_volume(self) -> Tensor:
        """The logarithm of the volume of a cell."""
        return (self.extent / self.cells).log().sum()


def _of_part(vae: VAE, batch: Batch, tolerance: float, width: int) -> tuple[Tensor, Tensor]:
    """Return log p(x) of a few data, and its error."""
    given = vae.given(batch.y)
    prior = given.prior()
    size = at_once(width)
    sample = _drawn(given, batch, size)
    drawn = prior.sample((4096,)).flatten(0, -2)
    lowest, highest = drawn.double().aminmax(dim=0)
    beyond = (highest - lowest) / 3
    grid = _Grid(lowest - beyond, highest - lowest + 2 * beyond, _CELLS[len(lowest)], drawn.dtype)
    index = _mesh(torch.arange(grid.cells, device=lowest.device), len(lowest))
    z = grid.centres(index)  # of all data the same latents
    first = torch.cat([_log_joint(given, prior, batch, some) for some in z.split(max(1, size // len(batch)))])
    rise = _differences(first, grid.cells)
    refined = [
        _refined(vae, batch.rows(slice(row, row + 1)), grid, index, first[:, row], rise[:, row], tolerance, size)
        for row in range(len(batch))
    ]
    log_p, error = map(torch.stack, zip(*refined))
    more = sample.log_p - log_p
    return log_p, error + more.where(sample.is_trusted & (more > 4 * sample.stderr + 0.01), 0.0)


def _refined(
    vae: VAE, datum: Batch, grid: _Grid, index: Tensor, values: Tensor, rise: Tensor, tolerance: float, size: int
) -> tuple[Tensor, Tensor]:
    """Return log p(x) of one datum by grids that are finer where p(x, z) is large, and its error.

    Args:
        vae: the VAE.
        datum: a batch of one.
        grid: the first grid.
        index: of its cells, (M, L).
        values: log p(x, z) at their centres, (M,).
        rise: the largest differences to their neighbours, (M,).
        tolerance: between two grids, in nats.
        size: how many latents are decoded at once.
    """
    given = vae.given(datum.y)
    prior = given.prior()
    values = values.clamp(min=_LEAST)
    children = _mesh(torch.arange(2, device=index.device), index.shape[1])
    log_p = error = values.new_tensor(math.inf)
    border = error  # where a grid has too many cells: what lies beyond it may be much more than what lies at it
    is_covered = True
    while True:
        largest = values.max()
        share = (values - largest).exp()
        before, log_p = log_p, largest + share.sum().log() + grid.log_volume
        share = share / share.sum()
        error = (log_p - before).abs()
        if share[rise > _STEEP].sum() >= _TRUSTED:
            error = error.new_tensor(math.inf)
        if error < tolerance:
            ends = values > largest - 2 * _DEPTH
            border = share[ends][_is_at_border(index[ends])].sum()
            break
        is_kept = values + rise > largest - _DEPTH
        if not 0 < is_kept.sum() * len(children) <= _MOST_CELLS:  # none where p(x, z) is NaN
            break
        index = (2 * index[is_kept][:, None] + children).flatten(0, 1)
        expected = (values + rise / 2 + _SLACK)[is_kept]
        rise = rise[is_kept]
        grid = grid._replace(cells=2 * grid.cells)
        parts = [_log_joint(given, prior, datum, z) for z in grid.centres(index).split(size)]
        values = torch.cat(parts).flatten().clamp(min=_LEAST)
        low, high = values.view(-1, len(children)).aminmax(dim=1)
        is_covered = is_covered and not bool((high > expected).any())
        rise = torch.maximum(high - low, rise / 4).repeat_interleave(len(children))
    if border >= _TRUSTED or not is_covered:
        error = error.new_tensor(math.inf)
    error = error + border
    return log_p, error.where(~error.isnan(), math.inf)


def _mesh(values: Tensor, num_latents: int) -> Tensor:
    """Return the points of a grid that has these values along each dimension, (points, L)."""
    return torch.cartesian_prod(*[values] * num_latents).view(-1, num_latents)


def _drawn(given: VAE, batch: Batch, size: int) -> LogP:
    """Return a small importance sample of each datum."""
    mixture = Mixture(given, batch.x, _DRAWS)
    parts = []
    step = max(1, size // len(batch))
    for start in range(0, _DRAWS, step):
        z, log_q = mixture.draw(start, min(start + step, _DRAWS))
        parts.append(mixture.log_weights(given.log_likelihood(batch.x, z), z, log_q))
    return from_all_weights(torch.cat(parts))


def _differences(log_joint: Tensor, cells: int) -> Tensor:
    """Return the largest difference of each cell of a grid of p(x, z), (G, B), to its neighbours."""
    grid = log_joint.clamp(min=_LEAST).T.reshape(log_joint.shape[1], 1, cells, -1)
    high, low = (sign * torch.nn.functional.max_pool2d(sign * grid, 3, 1, 1) for sign in (1, -1))
    return torch.maximum(high - grid, grid - low).flatten(1).T


def _is_at_border(index: Tensor) -> Tensor:
    """Return whether a cell of an index (M, L) lacks a neighbour, (M,)."""
    along = int(index.max()) + 3
    weights = along ** torch.arange(index.shape[1], device=index.device)
    cells = ((index + 1) * weights).sum(1)  # a number for each cell
    lacks = torch.zeros_like(cells, dtype=torch.bool)
    for step in weights:
        lacks |= ~(torch.isin(cells + step, cells) & torch.isin(cells - step, cells))
    return lacks


def _log_joint(given: VAE, prior: torch.distributions.Distribution, batch: Batch, z: Tensor) -> Tensor:
    """Return log p(x, z) of each latent (G, L) and each datum, (G, B) in float64; without labels z is decoded once."""
    z = z[:, None]
    if batch.y is not None:
        z = z.expand(-1, len(batch), -1)
    return (given.likelihood(z).log_prob(batch.x) + prior.log_prob(z)).double()
