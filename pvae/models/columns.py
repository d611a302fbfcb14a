"""Tables whose columns are of different kinds: the kinds, what an encoder sees of such rows, and their likelihood.

To add a kind, write a likelihood that says by `fits` for which numbers it is chosen, add it to `KINDS`, and write a
test.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Any, ClassVar

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn

from pvae.core.options import Option, call_with
from pvae.distributions.values import Columns, is_atom
from pvae.models.features import Standardize
from pvae.models.likelihoods import (
    BernoulliLikelihood,
    CategoricalLikelihood,
    DiagonalNormalLikelihood,
    NegativeBinomialLikelihood,
    OrdinalLikelihood,
    PositiveLikelihood,
    Scale,
    ScaledLikelihood,
    ZeroInflatedLikelihood,
)

__all__ = [
    "KINDS",
    "LIMITED",
    "ColumnFeatures",
    "ColumnKind",
    "ColumnsLikelihood",
    "ColumnsText",
    "column_kinds",
    "columns_text",
    "named_kinds",
]

# The likelihoods of columns by the names of their kinds; of numbers the first that `fits` them is chosen.
KINDS: dict[str, type[Any]] = {
    "binary": BernoulliLikelihood,
    "zero-inflated": ZeroInflatedLikelihood,
    "count": NegativeBinomialLikelihood,
    "positive": PositiveLikelihood,
    "real": DiagonalNormalLikelihood,
    "categorical": CategoricalLikelihood,
    "ordinal": OrdinalLikelihood,
}
LIMITED = tuple(name for name, likelihood in KINDS.items() if likelihood.may_have_limit)


@dataclass(frozen=True)
class ColumnKind:
    """The kind of a column of a table.

    Args:
        name: its name in `KINDS`.
        num_categories: K of "categorical:K" and "ordinal:K", whose codes are 0 to K - 1; 0 of the others.
        limit: L of "positive<L" and "real<L", below which values are known only to be below it; or None.

    >>> str(ColumnKind("categorical", 5))
    'categorical:5'
    """

    name: str
    num_categories: int = 0
    limit: float | None = None

    @staticmethod
    def of(x: Tensor, limit: float | None = None) -> ColumnKind:
        """Return the first kind that fits numbers (N,), of which NaN is left out, and what is below a limit."""
        numbers = x[~x.isnan()].double()
        names: Iterable[str] = KINDS
        if limit is not None:
            numbers = torch.cat([numbers[numbers >= limit], numbers.new_tensor([limit])])
            names = LIMITED
        return ColumnKind(next(name for name in names if KINDS[name].fits(numbers)), limit=limit)

    def __str__(self) -> str:
        """Return the kind as `--columns` names it."""
        if self.num_categories:
            return f"{self.name}:{self.num_categories}"
        if self.limit is not None:
            return f"{self.name}<{self.limit!r}"
        return self.name

    @property
    def likelihood(self) -> type[Any]:
        """The class of p(x | z) of such columns."""
        return KINDS[self.name]

    @property
    def levels(self) -> tuple[str, ...]:
        """The codes of its categories as texts, or its limit."""
        if self.limit is not None:
            return (repr(self.limit),)
        return tuple(map(str, range(self.num_categories)))

    @property
    def num_features(self) -> int:
        """The number of features that an encoder sees: one for each category."""
        return (self.num_categories or 1) + self.likelihood.has_atom

    def part(self, num_columns: int, scale: float = 1.0) -> Any:
        """Return the likelihood of that number of such columns; its decoder is not used."""
        arguments = {"scale": scale, "limit": self.limit, "num_categories": self.num_categories}
        return call_with(self.likelihood, {"decoder": nn.Identity(), "datum_shape": (num_columns,), **arguments})


def column_kinds(text: str) -> tuple[ColumnKind, ...]:
    """Return the kind of each column that the text of `--columns` lists; () if it names single columns.

    >>> [str(kind) for kind in column_kinds("real*2,categorical:5")]
    ['real', 'real', 'categorical:5']
    """
    kinds: list[ColumnKind] = []
    if "=" in text:
        return ()
    for item in filter(None, text.split(",")):
        kind, _, times = item.partition("*")
        kind, _, limit = kind.partition("<")
        name, _, number = kind.partition(":")
        kinds += [ColumnKind(name, int(number or 0), float(limit) if limit else None)] * int(times or 1)
    return tuple(kinds)


def named_kinds(text: str) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Return the kind and the categories, () if they are not given, of each column that `--columns NAME=KIND` names.

    Of the kind "below" the limit stands in place of the categories.

    >>> named_kinds("size=ordinal:small<large,room=ordinal:3,lead=below:5")
    {'size': ('ordinal', ('small', 'large')), 'room': ('ordinal', ('0', '1', '2')), 'lead': ('below', ('5',))}
    """
    kinds: dict[str, tuple[str, tuple[str, ...]]] = {}
    if "=" not in text:
        return kinds
    for item in text.split(","):
        name, _, kind = item.partition("=")
        kind, _, levels = kind.partition(":")
        categories = levels.split("<")
        if levels.isdecimal() and kind != "below":
            categories = [str(code) for code in range(int(levels))]
        kinds[name.strip()] = kind, tuple(level.strip() for level in categories if level)
    return kinds


def columns_text(kinds: Iterable[ColumnKind]) -> str:
    """Return the text of `--columns` that lists these kinds.

    >>> columns_text(column_kinds("real,real,binary"))
    'real*2,binary'
    """
    items = []
    for kind, run in itertools.groupby(map(str, kinds)):
        count = len([*run])
        items.append(kind)
        if count > 1:
            items[-1] += f"*{count}"
    return ",".join(items)


_NUMBERS = "|".join(name for name, likelihood in KINDS.items() if "num_categories" not in likelihood.takes)
_NUMBER = r"\d+(\.\d+)?(e[-+]?\d+)?"
_LIMITED = rf"positive<(?=[\d.]*[1-9]){_NUMBER}|real<-?{_NUMBER}"
_LISTED = rf"({_NUMBERS}|{_LIMITED}|categorical:[1-9]\d{{0,4}}|ordinal:([2-9]|[1-9]\d{{1,2}}))(\*[1-9]\d{{0,4}})?"
_NAMED = (
    rf"[^,=\n]+=({_NUMBERS}|below:-?{_NUMBER}|(categorical|ordinal)(:[1-9]\d{{0,2}})?|ordinal:[^,<\n]+(<[^,<\n]+)+)"
)
_NUMBER_KINDS = _NUMBERS.replace("|", ", ")
ColumnsText = Annotated[
    str,
    Option(
        help="the kind of single columns of a table, as in income=real,room=categorical,size=ordinal:small<medium<"
        "large; lead=below:0.5 says that its empty fields are values below 0.5; or of each column of a row, in order: "
        f"{_NUMBER_KINDS}, categorical:K or ordinal:K, of codes 0 to K - 1; *N repeats one, as in real*10,count,"
        "categorical:5; of values below 0.5, positive<0.5 and real<0.5 say only that they are",
        pattern=rf"({_LISTED}(,{_LISTED})*|{_NAMED}(,{_NAMED})*)?",
        described=f"a comma-separated list of {_NUMBER_KINDS}, categorical:K and ordinal:K, each perhaps with *N to "
        "repeat it, and real and positive with a limit, as real<0.5; or of NAME=KIND, such as age=real,"
        "size=ordinal:small<medium<large,lead=below:0.5",
        needs="dataset=table:FILE",
    ),
]


class ColumnFeatures(Standardize):
    """Return what an encoder sees of rows (..., D) of columns of different kinds: (..., F), and with a mask F + D.

    Real values, log(1 + count), log x of positive values and log(x - a) of a zero-inflated one are standardised, a
    binary value is as it is, and a category is one-hot. A zero-inflated value has another feature, 1 where it is a, its
    least value, where log(x - a) counts as its mean. What is missing, NaN, is 0 in all of these.

    Args:
        kinds: the kind of each column.
        has_mask: add 1 for each value that is not NaN.
    """

    unfitted: ClassVar[Mapping[str, float]] = MappingProxyType({**Standardize.unfitted, "atom": 0.0})
    is_count: Tensor
    is_log: Tensor
    order: Tensor
    atom: Tensor

    def __init__(self, kinds: Sequence[ColumnKind], has_mask: bool) -> None:
        super().__init__((len(kinds),))
        self.kinds = tuple(kinds)
        self.has_mask = has_mask
        sizes = [kind.num_categories for kind in kinds]  # K, or 0 of a number
        self.counts = {size: sizes.count(size) for size in sorted({*sizes})}
        order = sorted(range(len(kinds)), key=sizes.__getitem__)
        self.register_buffer("order", torch.tensor(order), persistent=False)
        self.atoms = [place for place, kind in enumerate(kinds) if kind.likelihood.has_atom]
        features = [kind.likelihood.column_feature for kind in kinds]
        self.plain = [place for place, feature in enumerate(features) if not feature]
        self.register_buffer("is_count", torch.tensor([feature == "log1p" for feature in features]), persistent=False)
        self.register_buffer("is_log", torch.tensor([feature == "log" for feature in features]), persistent=False)

    @property
    def num_features(self) -> int:
        """F, or F + D with a mask."""
        count = sum(kind.num_features for kind in self.kinds)
        if self.has_mask:
            count += len(self.kinds)
        return count

    def fit_to(self, data: Tensor) -> None:
        """Store mean and standard deviation of numbers and their logarithms, and leave others as they are."""
        self.atom[self.atoms] = data[:, self.atoms].nan_to_num(nan=math.inf).amin(0).to(self.atom.dtype)
        self._fit_mean(data, self._logs)
        self.mean[self.plain] = self.mean_rest[self.plain] = 0.0
        self.std[self.plain] = 1.0

    def forward(self, x: Tensor) -> Tensor:
        """Return the features."""
        values = super().forward(self._logs(x))[..., self.order]
        parts: list[Tensor] = []
        are_atoms = is_atom(x.double(), self.atom.double())[..., self.atoms].to(values.dtype)
        for size, part in zip(self.counts, values.split([*self.counts.values()], -1)):
            if size:  # NaN equals no code
                part = (part[..., None] == torch.arange(size, device=x.device)).to(part.dtype).flatten(-2)
            parts.append(torch.where(part.isnan(), 0.0, part))
        parts.append(are_atoms)
        if self.has_mask:
            parts.append((~x.isnan()).to(values.dtype))
        return torch.cat(parts, -1)

    def _logs(self, x: Tensor) -> Tensor:
        x = x.double()
        x = torch.where(self.is_count, x.clamp(min=0).log1p(), x)
        atom = self.atom.double()
        return torch.where(self.is_log, torch.where(is_atom(x, atom), math.nan, x - atom).log(), x)


class ColumnsLikelihood(ScaledLikelihood, name="columns", help="of rows whose columns are of different kinds"):
    """Rows of columns of different kinds, independent given z, as `Columns`.

        p(x | z) = prod_d p_d(x_d | z)

    Each column has the likelihood of its `ColumnKind`; columns of one kind are computed together. NaN is a value that
    is missing, as in `Observed`.

    Args:
        decoder: a network from (..., L) to the outputs of all columns.
        datum_shape: (D,), the number of columns.
        columns: the kind of each column, as `column_kinds` reads it.
        scale: initial scale of the real columns, as a share of their standard deviations.
        has_missing: NaN is a value that is missing, as in `Observed`.

    Reference:
        Nazabal et al., arXiv:1807.03653, where counts are Poisson.
    """

    domain = "finite in a real column, 0, 1, 2, ... in a count, 0 or 1 in a binary one, and codes below K"
    is_of_images = False
    has_exact_start = True
    is_on_table_page = True
    order: Tensor

    def __init__(
        self,
        decoder: nn.Module,
        datum_shape: Sequence[int],
        columns: ColumnsText = "",
        scale: Scale = 1.0,
        has_missing: bool = False,
    ) -> None:
        super().__init__(decoder, datum_shape, scale, has_missing=has_missing)
        kinds = column_kinds(columns)
        places: dict[ColumnKind, list[int]] = {}
        for place, kind in enumerate(kinds):
            places.setdefault(kind, []).append(place)
        self.register_buffer("order", torch.tensor([p for group in places.values() for p in group]), persistent=False)
        parts = [kind.part(len(group), scale) for kind, group in places.items()]
        for part, group in zip(parts, places.values()):
            if hasattr(part, "units"):
                part.units.columns = group
        self.parts = nn.ModuleList(parts)
        self.sizes = [len(group) for group in places.values()]
        self.num_outputs = [math.prod(part.output_shape) for part in parts]
        self.output_shape = (sum(self.num_outputs),)

    @classmethod
    def decoded_shape(cls, datum_shape: Sequence[int], columns: str = "") -> tuple[int, ...]:
        """Return the shape of the decoder's output for one latent."""
        counts = Counter(column_kinds(columns))
        return (sum(count * math.prod(kind.part(1).output_shape) for kind, count in counts.items()),)

    @classmethod
    def features(
        cls, datum_shape: Sequence[int], has_missing: bool = False, columns: str = ""
    ) -> tuple[list[nn.Module], tuple[int, ...]]:
        """Return `ColumnFeatures`, and the shape of its result."""
        features = ColumnFeatures(column_kinds(columns), has_missing)
        return [features], (features.num_features,)

    def placed(self) -> Iterator[tuple[Any, list[int], Tensor]]:
        """Yield each part, its columns, and their outputs, which follow those of the parts before it."""
        first = 0
        parts: Any = zip(self.parts, self.order.split(self.sizes), self.num_outputs)
        for part, columns, count in parts:
            yield part, columns.tolist(), first + part.output_places()
            first += count

    def pixels(self, output: Tensor) -> TorchDistribution:
        """Return the joint distribution of a row, given the decoder's output (..., F)."""
        parts: Any = zip(self.parts, output.split(self.num_outputs, -1))
        return Columns([part.pixels(outputs) for part, outputs in parts], self.order)

    def outputs_for(self, x: Tensor, weights: Tensor) -> Tensor:
        """Return the outputs of all parts."""
        return torch.cat([part.outputs_for(values, weights).flatten(1) for part, values in self._split(x)], 1)

    def normal_values(self, x: Tensor) -> tuple[Tensor, Tensor] | None:
        """Return those of all parts, in the order of x, or None if one part has none."""
        pairs = [part.normal_values(values) for part, values in self._split(x)]
        if any(pair is None for pair in pairs):
            return None
        back = self.order.argsort()
        y = torch.cat([normal for normal, _ in pairs], -1)
        log_slope = torch.cat([slope for _, slope in pairs], -1)
        return y[:, back], log_slope[:, back]

    @property
    def inside(self) -> Tensor:  # type: ignore[override]
        """That of each column."""
        parts: Any = zip(self.parts, self.sizes)
        values = torch.cat([self.order.new_ones(size) * part.inside for part, size in parts])
        return values[self.order.argsort()]

    def _refusal(self, x: Tensor) -> str:
        for part, values in self._split(x):
            if not x.isnan().any() and not part.in_domain(values):
                return f"values must be {part.domain}: otherwise, give another kind of column"
        return super()._refusal(x)

    def in_domain(self, x: Tensor) -> Tensor:
        """Return whether the values of each column are in its domain."""
        return torch.stack([part.in_domain(values) for part, values in self._split(x)]).all()

    def _split(self, x: Tensor) -> Iterator[tuple[Any, Tensor]]:
        """Yield the likelihood of each kind, with its columns of x."""
        yield from zip(self.parts, x[..., self.order].split(self.sizes, -1))
