"""The text of `--columns`: the kinds of all columns of a table, or of named ones."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby

from pvae.models.columns import ColumnKind

__all__ = ["COLUMNS", "MISSING_VALUES", "column_kinds", "columns_text", "named_kinds"]

MISSING_VALUES = "NA,N/A,n/a,#N/A,<NA>,NaN,nan,null,NULL,None,?,-"

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
