"""`ColumnKind`, the kind of a column of a table, and the text of `--columns` that names kinds."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby

__all__ = ["COLUMNS", "ColumnKind", "column_kinds", "columns_text", "named_kinds"]

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

_KIND = (
    r"(real|positive|zero-inflated|count|binary|categorical:[1-9]\d{0,4}|ordinal:([2-9]|[1-9]\d{1,2}))(\*[1-9]\d{0,4})?"
)
_NAMED = (
    r"[^,=\n]+=(real|positive|zero-inflated|count|binary|(categorical|ordinal)(:[1-9]\d{0,2})?"
    r"|ordinal:[^,<\n]+(<[^,<\n]+)+)"
)
COLUMNS = (
    rf"({_KIND}(,{_KIND})*|{_NAMED}(,{_NAMED})*)?",
    "a comma-separated list of real, positive, zero-inflated, count, binary, categorical:K and ordinal:K, each perhaps "
    "with *N to repeat it; or of NAME=KIND, such as age=real,size=ordinal:small<medium<large",
)


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


def column_kinds(text: str) -> tuple[ColumnKind, ...]:
    """Return the kind of each column that the text of `--columns` lists; () if it names single columns.

    >>> [str(kind) for kind in column_kinds("real*2,categorical:5")]
    ['real', 'real', 'categorical:5']
    """
    kinds = list[ColumnKind]()
    text = "" if "=" in text else text
    for item in filter(None, text.split(",")):
        kind, _, times = item.partition("*")
        name, _, number = kind.partition(":")
        kinds += [ColumnKind(name, int(number or 0))] * int(times or 1)
    return tuple(kinds)


def named_kinds(text: str) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Return the kind and the categories, () if they are not given, of each column that `--columns NAME=KIND` names.

    >>> named_kinds("age=real,size=ordinal:small<large,room=ordinal:3")
    {'age': ('real', ()), 'size': ('ordinal', ('small', 'large')), 'room': ('ordinal', ('0', '1', '2'))}
    """
    kinds = {}
    for item in text.split(",") if "=" in text else ():
        name, _, kind = item.partition("=")
        kind, _, levels = kind.partition(":")
        categories = map(str, range(int(levels))) if levels.isdecimal() else filter(None, levels.split("<"))
        kinds[name.strip()] = kind, tuple(level.strip() for level in categories)
    return kinds


def columns_text(kinds: Iterable[ColumnKind]) -> str:
    """Return the text of `--columns` that lists these kinds.

    >>> columns_text(column_kinds("real,real,binary"))
    'real*2,binary'
    """
    runs = [(str(kind), len([*run])) for kind, run in groupby(kinds)]
    return ",".join(f"{kind}*{count}" if count > 1 else kind for kind, count in runs)
