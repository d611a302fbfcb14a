"""Write records as Markdown and strict JSON, and read dataclasses from JSON with checks of fields and types."""

from __future__ import annotations

import json
import types
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from pvae.core.errors import InputError, check_finite, shown

__all__ = ["from_record", "markdown_of", "to_json"]

T = TypeVar("T")


def from_record(kind: type[T], record: Any) -> T:
    """Return the dataclass whose `asdict` is `record`.

    Args:
        kind: a dataclass with fields of type T or T | None, where T is str, bool, int, float, tuple[int, ...] or a
            tuple of such dataclasses.
        record: a value that `json.loads` returned.

    Raises:
        InputError: it is not a JSON object, a field without a default is missing, or a field is unknown or of another
            type.
    """
    names = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    needed = {one.name for one in fields(kind) if one.default is MISSING}  # type: ignore[arg-type]
    if not isinstance(record, Mapping):
        raise InputError(f"{kind.__name__} must be an object of named fields, not a {type(record).__name__}")
    missing, unknown = sorted(needed - set(record)), sorted(set(record) - set(names))
    if missing or unknown:
        parts = [f"lacks {', '.join(missing)}"] * bool(missing) + [f"has unknown {', '.join(unknown)}"] * bool(unknown)
        raise InputError(f"{kind.__name__} is not of this version of pvae: it {' and '.join(parts)}")
    hints = get_type_hints(kind)
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in record.items()}
    for name, hint in hints.items():
        inner: Any = get_args(hint)[0] if get_origin(hint) is tuple else None
        if is_dataclass(inner) and isinstance(values.get(name), tuple):
            values[name] = tuple(from_record(inner, item) for item in values[name])  # type: ignore[arg-type]
    for name, value in values.items():
        if not _fits(value, hints[name]):
            raise InputError(f"{name} of {kind.__name__} has the wrong type: {shown(value)}")
    return kind(**values)


def to_json(record: object, indent: int | None = None) -> str:
    """Return a record as strict JSON, without NaN and infinity.

    Raises:
        NotFiniteError: the record contains a NaN or an infinity.
    """
    check_finite(record)
    return json.dumps(record, allow_nan=False, indent=indent)


def markdown_of(rows: Sequence[Mapping[str, str]]) -> str:
    """Return rows of texts with the same columns, at least one, as a table in Markdown whose columns are aligned."""
    cells = [[*rows[0]], *([*row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells)]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths)) + " |" for row in cells]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])


def _fits(value: Any, hint: Any) -> bool:
    if get_origin(hint) is types.UnionType:
        return any(_fits(value, option) for option in get_args(hint))
    if get_origin(hint) is tuple:
        return isinstance(value, tuple) and all(_fits(item, get_args(hint)[0]) for item in value)
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)
