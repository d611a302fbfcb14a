"""How surprising each value of a datum is: what is printed beside the score of a row."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pvae.core.batch import Batch
from pvae.data.read import OtherData
from pvae.evaluation.measures.baselines import log_prob_of_each
from pvae.marginal.chunks import data_at_once
from pvae.runs.run import Run
from pvae.vae import VAE

_SHOWN = 4  # columns of a table, the most surprising ones
_DRAWS = 200  # of z, by which they are chosen


def surprising_values(run: Run, given: OtherData, rows: Sequence[int]) -> list[str]:
    """Return for each of some rows of a table why it is outside, or else its most surprising values, as text."""
    texts = dict(given.outside)
    scored = [row for row in rows if row not in texts]
    if scored:
        places = torch.searchsorted(given.inside, torch.tensor(scored))
        surprises = surprise(run.vae(), given.batch(run.preparation).rows(places))
        for row, order in zip(scored, surprises.argsort(descending=True, stable=True).tolist()):
            values = [(run.data.columns[place], given.x[row, place].item()) for place in order]
            known = [f"{column.name} {column.text(value, True)}" for column, value in values if not math.isnan(value)]
            texts[row] = "; ".join(known[:_SHOWN])
    return [texts[row] for row in rows]


def surprise(vae: VAE, batch: Batch) -> Tensor:
    """Return how much less likely each value of vectors is than draws in its place: (N, D) nats, 0 if it is missing.

        E log p(x'_d | z) - E log p(x_d | z),    z ~ q(z | x), x'_d ~ p(x_d | z)

    It is 0 everywhere of a likelihood of your own, whose values depend on each other.

    Args:
        vae: in eval mode.
        batch: vectors (N, D).
    """
    parts = []
    with torch.no_grad():
        for part in batch.split(data_at_once(vae, batch, _DRAWS)):
            p_x = vae.likelihood(vae.posterior(*part).sample((_DRAWS,)), part.y)
            of_draws, of_data = (log_prob_of_each(p_x, x) for x in (p_x.sample(), part.x))
            if of_data.shape[1:] != part.x.shape:
                return torch.zeros(len(batch), part.x.shape[1])
            parts.append((of_draws - of_data).mean(0).where(~part.x.isnan(), 0))
    return torch.cat(parts)
