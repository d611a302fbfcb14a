"""log p(x) of a VAE of one or two latents by quadrature, and of a few bits or categories by a sum over all codes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
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
_CELLS = {1: (1024, 256), 2: (48, 32)}  # along each dimension, of the first two grids: over p(z), and near q(z | x)
_DEPTH = 18.0  # nats below the largest cell, from which a cell is left out of finer grids,
_MORE_DEPTH = 50.0  # and where the posterior covers few cells, so that the largest one may miss its peak
_RESOLVED = 12.6  # cells, in effect, that a Normal covers in two dimensions where they are as wide as its scale
_TRUSTED = 2e-3  # nats
_MOST_CELLS = 40_000  # of a datum
_DRAWS = 500  # of importance sampling, which check the result
_AROUND = 8.0  # standard deviations that the second grid covers
_SHARED = 6.0  # standard deviations within which it is taken
_PEAKS = 4  # cells of the first grid from which modes are looked for, beside q
_MISSED = 0.05  # nats by which their sum may exceed that of the grids
_ROUNDS = 12  # of smaller grids that place it
_ALONG = 16  # cells of these, from -4 to 4 standard deviations


@torch.no_grad()
def quadrature(
    vae: VAE, data: Data, tolerance: float = 1e-3, on_images: Callable[[int], object] = lambda count: None
) -> LogP:
    """Integrate log p(x) over one or two latents, on grids that are refined where p(x, z) is large.

        log p(x) = log integral p(x | z) p(z) dz  ~  log sum_cells p(x, z_cell) volume

    p(x, z) is the sum of p(x, z) v(z) and p(x, z) (1 - v(z)), where v(z) is about 1 within six standard deviations of
    a mode of p(z | x), and 0 beyond. Twelve small grids, the first one around q(z | x) and each next one around the
    mean of the last, along the axes of its covariance, lead to a mode, as others do from the four best peaks of p(x,
    z) on a grid over p(z); the heaviest of these modes is taken. The first part has a grid along these axes, the
    second one a grid over what p(z) draws, and a third more on each side. Cells within 18 nats of the largest, or
    within 50 while the posterior covers few cells, are divided in two along each dimension, until two grids differ by
    less than the tolerance, or have 40,000 cells for a datum.

    Of bits or categories it is the sum over all codes, which is exact.

    A mode is not seen that is much narrower than a cell over p(z), of which a cell in its place is none of the four
    best peaks, and to which neither q nor a draw leads.

    Args:
        vae: in eval mode; its latent is any vector of one or two real numbers, or has at most 4,096 codes.
        data: N data x, or a `Batch` of them with their labels.
        tolerance: nats.
        on_images: called after each part with the number of data in it.

    Returns:
        Estimates, each with the error of its sum: the difference of the last two grids, and the share of the cells at
        the border of what was refined; and what 500 draws of importance sampling that are trusted find beyond 4 of
        their errors + 0.01, or all modes together beyond 0.05. It is inf where a grid had too many cells, where more
        than 0.002 of the cells are at the border, or where the mode is beyond the grid over p(z). An estimate is
        trusted where its error is at most 0.002.

    Raises:
        InputError: there are more latents or codes, or they are on a sphere, or the VAE has no log p(x).
    """
    batch = Batch.of(data)
    check_few(vae, batch)
    width = widest(vae, batch)
    parts = list[tuple[Tensor, Tensor]]()
    for part in batch.split(min(100, data_at_once(vae, batch))):
        if support_of(vae.given(part.y).prior()):
            parts.append(_of_codes(vae, part, width))
        else:
            parts.append(_of_part(vae, part, tolerance, width))
        on_images(len(part))
    log_p, error = map(torch.cat, zip(*parts))
    return LogP.of("quadrature", log_p, error, error <= _TRUSTED)


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


class _Grids(NamedTuple):
    """Two grids of latents z = centre + axes u of each datum, u between -1 and 1: over p(z), and around a mode.

    A cell is (grid, datum, index), int64: 0 or 1 (M,), (M,), and its place along each dimension, (M, L).
    """

    centre: Tensor  # (2, B, L)
    axes: Tensor  # (2, B, L, L)
    inverse: Tensor  # of the root of the covariance of the mode, (B, L, L)
    dtype: torch.dtype  # of z

    @classmethod
    def over(cls, lowest: Tensor, highest: Tensor, loc: Tensor, scale: Tensor, dtype: torch.dtype) -> _Grids:
        """Return the grids from lowest to highest, (L,), and around means (B, L) with roots of covariances."""
        count = len(loc)
        centre = torch.stack([((lowest + highest) / 2).expand(count, -1), loc])
        axes = torch.stack([((highest - lowest) / 2).diag().expand(count, -1, -1), _AROUND * scale])
        return cls(centre, axes, torch.linalg.inv(scale), dtype)

    def z(self, cells: Tensor, grid: Tensor, datum: Tensor, index: Tensor) -> Tensor:
        """Return the middles of cells, of grids that have `cells` (2,) along each dimension."""
        u = (2 * index.double() + 1) / cells[grid, None] - 1
        return (self.centre[grid, datum] + (self.axes[grid, datum] @ u[:, :, None])[:, :, 0]).to(self.dtype)

    def log_volume(self, cells: Tensor, z: Tensor, grid: Tensor, datum: Tensor) -> Tensor:
        """Return the logarithm of the volume of cells, times v(z) around the mode, and 1 - v(z) in the other grid."""
        off = (self.inverse[datum] @ (z - self.centre[1, datum])[:, :, None])[:, :, 0].norm(dim=1)
        far = (off / _SHARED) ** 16  # v = exp(-far)
        share = torch.where(grid == 1, -far, (-(-far).expm1()).log())
        log_axes = self.axes.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return share + log_axes[grid, datum] + z.shape[1] * (2 / cells.double()).log()[grid]


def _of_part(vae: VAE, batch: Batch, tolerance: float, width: int) -> tuple[Tensor, Tensor]:
    """Return log p(x) of a few data, and its error."""
    given = vae.given(batch.y)
    prior = given.prior()
    size = at_once(width)
    sample, from_q = _drawn(given, batch, size)
    lowest, highest = prior.sample((4096,)).flatten(0, -2).double().aminmax(dim=0)
    beyond = (highest - lowest) / 3
    lowest = lowest - beyond
    highest = highest + beyond
    along = _CELLS[len(lowest)][0]
    first = _mesh(torch.arange(along, device=lowest.device), len(lowest))
    shared = (lowest + (highest - lowest) * (first.double() + 0.5) / along).to(from_q)  # of all data the same latents
    log_first = torch.cat([_log_joint(given, prior, batch, some) for some in shared.split(max(1, size // len(batch)))])
    starts = [from_q, *_near(shared, log_first, along)]
    loc, scale, of_modes = _best([_placed(vae, batch, one, size) for one in starts])
    grids = _Grids.over(lowest, highest, loc, scale, from_q.dtype)
    log_p, error = _integral(vae, batch, grids, log_first, tolerance, size)
    error = error.where(((lowest < loc) & (loc < highest)).all(1), math.inf)
    more = sample.log_p - log_p
    is_low = sample.is_trusted & (more > 4 * sample.stderr + 0.01)
    missed = (of_modes - log_p).where(of_modes - log_p > _MISSED, 0.0)
    return log_p, error + more.where(is_low, 0.0) + missed


def _integral(
    vae: VAE, batch: Batch, grids: _Grids, log_first: Tensor, tolerance: float, size: int
) -> tuple[Tensor, Tensor]:
    """Return the sum of p(x, z) over the cells of both grids, refined until it is known, and its error, (B,).

    Args:
        vae: in eval mode.
        batch: the data.
        grids: of each datum.
        log_first: log p(x, z) of the first cells of the grid over p(z), (G, B).
        tolerance: nats, between the last two grids.
        size: the cells that are decoded at once.
    """
    count = len(batch)
    num_latents = grids.centre.shape[-1]
    device = log_first.device
    cells = torch.tensor(_CELLS[num_latents], device=device)
    parts = []
    for number, along in enumerate(cells.tolist()):
        one = _mesh(torch.arange(along, device=device), num_latents)
        datum = torch.arange(count, device=device).repeat(len(one))
        parts.append((torch.full_like(datum, number), datum, one.repeat_interleave(count, 0)))
    grid, datum, index = (torch.cat(one) for one in zip(*parts))
    z = grids.z(cells, grid, datum, index)
    later = grid == 1
    near = _log_joint_of_pairs(vae, batch, z[later], datum[later], size)
    values = torch.cat([log_first.flatten(), near]) + grids.log_volume(cells, z, grid, datum)
    children = _mesh(torch.arange(2, device=device), num_latents)
    log_p, error, border = values.new_full((3, count), math.inf)  # the border stays inf where a grid has too many cells
    while True:
        largest, finer, num_cells = _sums(values, datum, count)
        is_open = datum.bincount(minlength=count) > 0
        is_resolved = num_cells > _RESOLVED ** (num_latents / 2)
        error = torch.where(is_open, (finer - log_p).abs().where(is_resolved, math.inf), error)
        log_p = torch.where(is_open, finer, log_p)
        is_done = is_open & (error < tolerance)
        ends = is_done[datum] & (values > (log_p - 2 * _DEPTH)[datum])
        share = (values - log_p[datum]).exp() * _is_at_border(grid, datum, index, cells, ends)
        border = border.where(~is_done, torch.zeros_like(border).index_add(0, datum, share))
        depth = torch.where(is_resolved, _DEPTH, _MORE_DEPTH).where(~(error < tolerance), -math.inf)
        is_kept = values > (largest - depth)[datum]
        is_kept &= (datum[is_kept].bincount(minlength=count) * len(children) <= _MOST_CELLS)[datum]
        if not is_kept.any():  # inf, since what lies beyond a border may be much more than what lies at it
            return log_p, error + border.where(border < _TRUSTED, math.inf)
        index = (2 * index[is_kept][:, None] + children).flatten(0, 1)
        grid, datum = (one[is_kept].repeat_interleave(len(children), 0) for one in (grid, datum))
        cells = 2 * cells
        z = grids.z(cells, grid, datum, index)
        values = _log_joint_of_pairs(vae, batch, z, datum, size) + grids.log_volume(cells, z, grid, datum)


def _mesh(values: Tensor, num_latents: int) -> Tensor:
    """Return the points of a grid that has these values along each dimension, (points, L)."""
    return torch.cartesian_prod(*[values] * num_latents).view(-1, num_latents)


def _drawn(given: VAE, batch: Batch, size: int) -> tuple[LogP, Tensor]:
    """Return a small importance sample of each datum, and its draws from q(z | x)."""
    mixture = Mixture(given, batch.x, _DRAWS)
    parts = []
    step = max(1, size // len(batch))
    for start in range(0, _DRAWS, step):
        z, log_q = mixture.draw(start, min(start + step, _DRAWS))
        parts.append((z, mixture.log_weights(given.log_likelihood(batch.x, z), z, log_q)))
    z, log_w = (torch.cat(one) for one in zip(*parts))
    return from_all_weights(log_w), z[: mixture.num_q]


def _near(shared: Tensor, log_joint: Tensor, along: int) -> Iterator[Tensor]:
    """Yield points (K, B, L) around the best cells of a grid (G, L) of p(x, z), (G, B), that have no better neighbour.

    For a datum with fewer of them, cells are taken again.
    """
    num_latents = shared.shape[1]
    as_grid = log_joint.T.reshape(-1, 1, along, along ** (num_latents - 1))
    is_peak = (as_grid == torch.nn.functional.max_pool2d(as_grid, 3, 1, 1)).flatten(1)
    best = log_joint.T.where(is_peak, -math.inf).topk(_PEAKS, 1)
    width = shared.amax(0).sub(shared.amin(0)) / (along - 1)
    u = _mesh(torch.linspace(-1, 1, _ALONG), num_latents).to(shared)
    for value, cell in zip(best.values.T, best.indices.T):
        yield shared[cell.where(value > -math.inf, best.indices[:, 0])] + (u * width)[:, None]


def _best(placed: Sequence[tuple[Tensor, Tensor, Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean and root of the covariance of the heaviest mode of each datum, and the log of the sum of all modes.

    Args:
        placed: modes as of `_placed`, of which several may be the same.
    """
    locs, scales, masses = (torch.stack(one) for one in zip(*placed))
    apart = torch.linalg.solve_triangular(scales[:, None], (locs - locs[:, None])[..., None], upper=False)
    is_near = apart[..., 0].norm(dim=-1) < _AROUND  # (modes, modes, B)
    earlier = torch.ones(len(locs), len(locs), dtype=torch.bool, device=locs.device).triu(1).T[..., None]
    is_again = ((is_near | is_near.transpose(0, 1)) & earlier).any(1)
    chosen = masses.argmax(0)
    rows = torch.arange(len(chosen), device=chosen.device)
    return locs[chosen, rows], scales[chosen, rows], masses.where(~is_again, -math.inf).logsumexp(0)


def _placed(vae: VAE, batch: Batch, start: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return a mode of p(z | x) that small grids find from points (K, B, L).

    Returns:
        Its mean (B, L), a triangular root (B, L, L) of its covariance, and log of the integral of p(x, z) around it,
        (B,).
    """
    count, num_latents = start.shape[1:]
    z = start.double()
    share = start.new_full(start.shape[:2], 1 / len(start)).double()
    least = torch.eye(num_latents).to(z) * 1e-12
    u = _mesh((torch.arange(_ALONG).to(z) + 0.5) * 8 / _ALONG - 4, num_latents)
    datum = torch.arange(count, device=z.device).repeat(len(u))
    loc = z.mean(0)
    for _ in range(_ROUNDS + 1):
        moved = loc
        loc = (share[..., None] * z).sum(0)
        around = torch.cat([z - loc, (moved - loc)[None]])  # as wide as the mean moved, so that it soon arrives
        share = torch.cat([share, torch.ones_like(share[:1])])
        scale = torch.linalg.cholesky(torch.einsum("kb,kbi,kbj->bij", share, around, around) + least)
        z = loc + torch.einsum("bij,kj->kbi", scale, u)
        values = _log_joint_of_pairs(vae, batch, z.flatten(0, 1).to(start), datum, size).view(-1, count)
        share = values.softmax(0).nan_to_num(1 / len(u))
        least = scale @ scale.mT * (8 / _ALONG) ** 2 / 12  # the covariance of a cell
    volume = scale.diagonal(dim1=-2, dim2=-1).log().sum(-1) + num_latents * math.log(8 / _ALONG)
    return loc, scale, values.logsumexp(0) + volume


def _is_at_border(grid: Tensor, datum: Tensor, index: Tensor, cells: Tensor, rows: Tensor) -> Tensor:
    """Return whether a cell lacks a neighbour, (M,); false but for the given rows."""
    along = int(cells.max()) + 2
    is_border = torch.zeros_like(rows)

    def key(index: Tensor) -> Tensor:
        number = 2 * datum[rows] + grid[rows]
        for one in (index + 1).unbind(-1):
            number = number * along + one
        return number

    there = key(index[rows])
    for step in torch.eye(index.shape[-1]).to(index):
        is_border[rows] |= ~(torch.isin(key(index[rows] + step), there) & torch.isin(key(index[rows] - step), there))
    return is_border


def _log_joint(given: VAE, prior: torch.distributions.Distribution, batch: Batch, z: Tensor) -> Tensor:
    """Return log p(x, z) of each latent (G, L) and each datum, (G, B) in float64; without labels z is decoded once."""
    z = z[:, None]
    if batch.y is not None:
        z = z.expand(-1, len(batch), -1)
    return (given.likelihood(z).log_prob(batch.x) + prior.log_prob(z)).double()


def _log_joint_of_pairs(vae: VAE, batch: Batch, z: Tensor, datum: Tensor, size: int) -> Tensor:
    parts = list[Tensor]()
    for one, rows in zip(z.split(size), datum.split(size)):
        part = batch.rows(rows)
        given = vae.given(part.y)
        parts.append((given.log_likelihood(part.x, one) + given.prior().log_prob(one)).double())
    return torch.cat(parts)


def _sums(values: Tensor, datum: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return for each datum the largest value, the log of the sum of exp(values), and the effective number of these."""
    largest = values.new_full((count,), -math.inf).scatter_reduce(0, datum, values, "amax")
    share = (values - largest[datum]).exp()
    total, squares = (values.new_zeros(count).index_add(0, datum, part) for part in (share, share.square()))
    return largest, largest + total.log(), total.square() / squares
