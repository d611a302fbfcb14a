"""`ColumnDistortions`: the distortion of each column of a table, beside what it is without a latent."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from pvae.core.errors import one_line
from pvae.core.random_state import seeded
from pvae.evaluation.measures.floor import log_prob_of_each
from pvae.evaluation.measures.measure import Measure
from pvae.marginal.chunks import data_at_once
from pvae.trained.scores import Estimate

if TYPE_CHECKING:
    from pvae.evaluation.context import Context

__all__ = ["ColumnDistortion", "ColumnDistortions"]


@dataclass(frozen=True, kw_only=True)
class ColumnDistortion:
    """The distortion of a column of a table, in nats per row.

    Args:
        name: of the column.
        distortion: -E_q log p(x_d | z), from one draw of z for each row.
        without_latent: -log p(x_d) by the best distribution of the column alone, as in `floor`.
    """

    name: str
    distortion: Estimate
    without_latent: float


@dataclass(frozen=True, kw_only=True)
class ColumnDistortions(Measure):
    """The distortion of each column of a table; None of other data.

    Args:
        columns: in the order of the table.
    """

    title = f"{'distortion of each column':48}  without a latent"

    columns: tuple[ColumnDistortion, ...]

    @classmethod
    @torch.no_grad()
    def of(cls, context: Context) -> ColumnDistortions | None:
        """Return the distortion of each column, at one draw of z for each row."""
        if context.floor is None or not context.run.data.columns:
            return None
        parts, batch = list[torch.Tensor](), context.seen
        with seeded(context.settings.seed, torch.device("cpu")):
            for part in batch.split(data_at_once(context.vae, batch)):
                vae = context.vae.given(part.y)
                parts.append(-log_prob_of_each(vae.likelihood(vae.posterior(part.x).sample()), part.x))
        each = zip(context.run.data.columns, torch.cat(parts).T, (-context.floor).tolist())
        return cls(
            columns=tuple(
                ColumnDistortion(name=one.name, distortion=Estimate.of(values), without_latent=alone)
                for one, values, alone in each
            )
        )

    def lines(self) -> Iterator[str]:
        """Yield a line for each column."""
        for one in self.columns:
            yield f"  {one_line(one.name):23} {one.distortion!s:22}  {one.without_latent:.4g}"
