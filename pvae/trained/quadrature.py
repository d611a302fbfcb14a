"""log p(x) of a VAE of one or two latents by quadrature."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from pvae.core.errors import InputError
from pvae.data.batch import Batch, Data
from pvae.trained import chunks
from pvae.trained.annealing import check_continuous
from pvae.trained.chunks import data_at_once, widest
from pvae.vae import VAE

__all__ = ["MOST_LATENTS", "Quadrature", "quadrature"]

MOST_LATENTS = 2
_CELLS = {1: 1024, 2: 48}  # of the first grid, along each dimension
_DEPTH = 18.0  # nats below the largest cell, from which a cell is left out of finer grids,
_MORE_DEPTH = 50.0  # and where the posterior covers few cells, so that the largest one may miss its peak
_RESOLVED = 12.6  # cells, in effect, that a Normal covers in two dimensions where they are as wide as its scale
_TRUSTED = 2e-3  # nats
_MOST_CELLS = 20_000  # of a datum


class Quadrature(NamedTuple):
    """log p(x) by quadrature.

    Args:
        log_p: (N,) nats, float64.
        stderr: the error of each, (N,): the difference of the last two grids, and the share of the cells at the border.
    """

    log_p: Tensor
    stderr: Tensor

    @property
    def is_trusted(self) -> Tensor:
        """Whether the errors are at most 0.002 nats, (N,)."""
        return self.stderr <= _TRUSTED


@torch.no_grad()
def quadrature(
    vae: VAE, data: Data, tolerance: float = 1e-3, on_images: Callable[[int], object] = lambda count: None
) -> Quadrature:
    """Integrate log p(x) over one or two latents, on grids that are refined where p(x, z) is large.

        log p(x) = log integral p(x | z) p(z) dz  ~  log sum_cells p(x, z_cell) volume

    The first grid covers what p(z) and q(z | x) draw, and a third more on each side. Cells within 18 nats of the
    largest, or within 50 while the posterior covers few cells, are divided in two along each dimension, until two grids
    differ by less than the tolerance, or have 20,000 cells for a datum. A mode is not seen if it is so much narrower
    than a cell of the first grid that p(x, z) at the centre of this cell is 50 nats below that of others.

    Args:
        vae: in eval mode; its latent is any vector of one or two real numbers.
        data: N data x, or a `Batch` of them with their labels.
        tolerance: nats.
        on_images: called after each part with the number of data in it.

    Raises:
        InputError: there are more latents, or they are discrete or on a sphere, or the VAE has no log p(x).
    """
    batch = Batch.of(data)
    check_continuous(vae, batch)
    if (num_latents := vae.given(batch.y).prior().event_shape[0]) > MOST_LATENTS:
        raise InputError(f"quadrature of {num_latents} latents takes too long: take annealing")
    width = widest(vae, batch)
    parts = list[tuple[Tensor, Tensor]]()
    for part in batch.split(min(100, data_at_once(vae, batch))):
        parts.append(_of_part(vae, part, tolerance, width))
        on_images(len(part))
    return Quadrature(*map(torch.cat, zip(*parts)))


def _of_part(vae: VAE, batch: Batch, tolerance: float, width: int) -> tuple[Tensor, Tensor]:
    given, size = vae.given(batch.y), max(1, chunks.CHUNK_VALUES // width)
    prior = given.prior()
    drawn = [prior.sample((4096,)), given.posterior(batch.x).sample((16,))]
    lowest, highest = torch.cat([z.flatten(0, -2) for z in drawn]).aminmax(dim=0)
    lowest, highest = lowest - (highest - lowest) / 3, highest + (highest - lowest) / 3
    num_latents = len(lowest)
    cells = _CELLS[num_latents]
    side = (highest - lowest) / cells
    index = torch.cartesian_prod(*[torch.arange(cells, device=side.device)] * num_latents).view(-1, num_latents)
    z, datum = lowest + (index + 0.5) * side, torch.arange(len(batch), device=side.device)
    values = torch.cat([_log_joint(given, prior, batch, one) for one in z.split(max(1, size // len(batch)))])
    is_border = ((index == 0) | (index == cells - 1)).any(1)
    border = (values[is_border].logsumexp(0) - values.logsumexp(0)).exp()
    z, datum, values = z.repeat_interleave(len(batch), 0), datum.repeat(len(z)), values.flatten()
    offsets = torch.cartesian_prod(*[side.new_tensor([-0.25, 0.25])] * num_latents).view(-1, num_latents)
    log_p, error = values.new_full((2, len(batch)), math.inf)
    while True:
        largest, total, num_cells = _sums(values, datum, len(batch))
        finer, is_open = total + side.log().sum(), ~(error < tolerance)  # only open data have cells
        is_resolved = num_cells > _RESOLVED ** (num_latents / 2)
        error = torch.where(is_open, (finer - log_p).abs().where(is_resolved, math.inf), error)
        log_p = torch.where(is_open, finer, log_p)
        depth = torch.where(is_resolved, _DEPTH, _MORE_DEPTH).where(~(error < tolerance), -math.inf)
        is_kept = values > (largest - depth)[datum]
        is_kept &= (datum[is_kept].bincount(minlength=len(batch)) * len(offsets) <= _MOST_CELLS)[datum]
        if not is_kept.any():
            return log_p, error + border
        z = (z[is_kept][:, None] + offsets * side).flatten(0, 1)
        datum, side = datum[is_kept].repeat_interleave(len(offsets)), side / 2
        rows = zip(z.split(size), datum.split(size))
        values = torch.cat([_log_joint_of_pairs(vae, batch.rows(where), one) for one, where in rows])


def _log_joint(given: VAE, prior: torch.distributions.Distribution, batch: Batch, z: Tensor) -> Tensor:
    """Return log p(x, z) of each latent (G, L) and each datum, (G, B) in float64; without labels z is decoded once."""
    z = z[:, None] if batch.y is None else z[:, None].expand(-1, len(batch), -1)
    return (given.likelihood(z).log_prob(batch.x) + prior.log_prob(z)).double()


def _log_joint_of_pairs(vae: VAE, batch: Batch, z: Tensor) -> Tensor:
    given = vae.given(batch.y)
    return (given.log_likelihood(batch.x, z) + given.prior().log_prob(z)).double()


def _sums(values: Tensor, datum: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return for each datum the largest value, the log of the sum of exp(values), and the effective number of these."""
    largest = values.new_full((count,), -math.inf).scatter_reduce(0, datum, values, "amax")
    share = (values - largest[datum]).exp()
    total, squares = (values.new_zeros(count).index_add(0, datum, part) for part in (share, share.square()))
    return largest, largest + total.log(), total.square() / squares
