"""Whether draws from a VAE keep the rules of a table, and near rules, which a few of its rows break."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pvae.core.errors import one_line
from pvae.evaluation.context import Context, Measure, said
from pvae.evaluation.measures.samples import rows_of_file
from pvae.tables.codec import breaking


@dataclass(frozen=True, kw_only=True)
class NearRule:
    """An order or an identity that a few rows break.

    Args:
        says: what it is, in one line.
        share: of the training rows that break it.
        share_of_draws: the same of the draws.

    >>> print(NearRule(says="returns <= orders", share=0.004, share_of_draws=0.019))
    returns <= orders: broken by 0.4% of the rows, 1.9% of the draws
    """

    says: str
    share: float
    share_of_draws: float

    def __str__(self) -> str:
        """Return the rule with both shares, in one line."""
        return f"{one_line(self.says)}: broken by {self.share:.1%} of the rows, {self.share_of_draws:.1%} of the draws"


@dataclass(frozen=True, kw_only=True)
class Rules(Measure):
    """The rules of a table in draws and in test rows; None as of `SampleQuality`.

    Rules are found in training rows. Test rows that break one are no part of any other measure of the test data.

    Args:
        found: the number of rules.
        broken: the share of drawn rows that break a rule.
        impossible: the number of test rows that break one.
        near: orders and identities that a few training rows break.
    """

    title = "rules of the table"

    found: int = said("rules", "which the training rows show")
    broken: float = said("  broken", "the share of drawn rows that break one")
    impossible: int = said("  impossible test rows", "which break one, and are left out of the test data")
    near: tuple[NearRule, ...] = said("  kept by nearly all rows")

    @classmethod
    def of(cls, context: Context) -> Rules | None:
        """Return that of the draws that `SampleQuality` compares."""
        rows = context.once(rows_of_file)
        if rows is None:
            return None
        schema = context.run.data
        train, drawn = (torch.from_numpy(x) for x in rows)
        near = [
            NearRule(
                says=str(rule),
                share=float(breaking(schema, train, [rule]).mean()),
                share_of_draws=float(breaking(schema, drawn, [rule]).mean()),
            )
            for rule in schema.near
        ]
        broken = float(breaking(schema, drawn, schema.rules).mean())
        return cls(found=len(schema.rules), broken=broken, impossible=len(schema.impossible), near=tuple(near))
