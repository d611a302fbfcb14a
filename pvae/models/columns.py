"""`ColumnKind`, the kind of a column of a table: its likelihood, and what an encoder sees of it."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["ColumnKind"]

_LIKELIHOODS = {  # of `pvae.models.likelihoods`
    "real": "DiagonalNormalLikelihood",
    "positive": "PositiveLikelihood",
    "zero-inflated": "ZeroInflatedLikelihood",
    "count": "NegativeBinomialLikelihood",
    "binary": "BernoulliLikelihood",
    "categorical": "CategoricalLikelihood",
    "ordinal": "OrdinalLikelihood",
}
_OUTPUTS = {"real": 2, "positive": 2, "zero-inflated": 3}


@dataclass(frozen=True)
class ColumnKind:
    """The kind of a column.

    Args:
        name: "real", "positive", "zero-inflated", "count", "binary", "categorical" or "ordinal".
        num_categories: K of "categorical:K" and "ordinal:K", whose codes are 0 to K - 1; 0 of the others.

    >>> str(ColumnKind("categorical", 5))
    'categorical:5'
    """

    name: str
    num_categories: int = 0

    def __str__(self) -> str:
        """Return the kind as `--columns` names it."""
        return f"{self.name}:{self.num_categories}" if self.num_categories else self.name

    @property
    def likelihood(self) -> str:
        """The class of its likelihood, as in `pvae.config.families.Family.module`."""
        return f"pvae.models.likelihoods:{_LIKELIHOODS[self.name]}"

    @property
    def num_outputs(self) -> int:
        """The number of outputs of the decoder: K for a "categorical", location and scale where it has both, or 1."""
        return self.num_categories if self.name == "categorical" else _OUTPUTS.get(self.name, 1)

    @property
    def num_features(self) -> int:
        """The number of features that an encoder sees: one for each category, or the value; and if it is the least."""
        return self.num_categories or (2 if self.name == "zero-inflated" else 1)

    @property
    def is_count(self) -> bool:
        """Whether an encoder sees log(1 + x) of it."""
        return self.name == "count"

    @property
    def is_log(self) -> bool:
        """Whether an encoder sees the logarithm of it, or of its distance from the least value."""
        return self.name in ("positive", "zero-inflated")

    @property
    def is_standardized(self) -> bool:
        """Whether an encoder sees it less its mean, divided by its standard deviation."""
        return self.name in ("real", "count") or self.is_log
