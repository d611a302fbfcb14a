"""`Option`, one field of `Config`: its type, range and help text."""

from __future__ import annotations

import difflib
import math
import operator
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pvae.core.errors import InputError, check_name, shown
from pvae.data.reading import own_path

__all__ = ["Option", "flag", "option", "without_removed"]

_KINDS_OF_FILES = dict.fromkeys((".csv", ".tsv", ".parquet", ".xlsx"), "table")
_KINDS_OF_FILES |= dict.fromkeys((".npy", ".npz", ".h5", ".h5ad", ".mtx"), "array")
_MOST_LAYERS = 1000  # building a layer takes memory even where its width is 1
_REMOVED_FIELDS = {"crop": 0, "rate_reduction": "sum", "warm_up_cycles": 1}  # of the version before: their defaults


@dataclass(frozen=True, kw_only=True)
class Option:
    """One field of `Config`; the command line's parser, the checks and the documentation are made from it.

    Args:
        default: the default value; its type is the type of the option.
        help: one sentence; "{choices}" is replaced by the list of choices.
        limits: the least and the greatest number; by default 0 and 10^9 for an int, 0 and 10^38 for a float.
        choices: the allowed values of a str; "folder:PATH" allows any text that begins with "folder:".
        pattern: for a str without choices, a regular expression and its description.
        only_with: the options without which this one is not used: a description, and a predicate on `Config`. The value
            that a system has is then ignored, as the scale in `--system conv-2d --likelihood bernoulli`.
        has_flag: it is an option of the command line too, and not of TOML files and Python alone.
    """

    default: Any
    help: str
    limits: tuple[Any, ...] = ()
    choices: tuple[str, ...] = ()
    pattern: tuple[str, str] = ("", "")
    only_with: tuple[str, Callable[[Any], bool]] = ("", lambda _: True)
    has_flag: bool = True

    @property
    def text(self) -> str:
        """The help text, with the choices, the options that are needed for this one, and the default."""
        notes = [f"with {self.only_with[0]} only"] if self.only_with[0] else []
        if isinstance(self.default, tuple):
            notes.append(f"default: {' '.join(map(str, self.default)) or 'none'}")
        elif self.default != "" and not isinstance(self.default, bool):
            notes.append(f"default: {format(self.default, 'g' if isinstance(self.default, float) else '')}")
        return self.help.format(choices=", ".join(self.choices)) + (f" ({'; '.join(notes)})" if notes else "")

    def check(self, name: str, value: Any) -> Any:
        """Return the value converted to the option's type: a NumPy number to a Python number, a list to a tuple.

        Raises:
            InputError: the value has another type or is out of range.
        """
        if isinstance(self.default, bool):
            if not isinstance(value, bool):
                raise InputError(f"{flag(name)} must be true or false, not {shown(value)}")
        elif isinstance(self.default, int):
            return _number(name, value, operator.index, *(self.limits or (0, 10**9)))
        elif isinstance(self.default, float):
            return _number(name, value, float, *(self.limits or (0.0, 1e38)))
        elif isinstance(self.default, tuple):
            is_list = isinstance(value, Iterable) and not isinstance(value, (str, set))
            widths = tuple(_number(name, one, operator.index, 1, 10**6) for one in (value if is_list else ()))
            if not is_list or len(widths) > _MOST_LAYERS or (self.default and not widths):
                what = f"a list of up to {_MOST_LAYERS:,} sizes, such as 100 100 or in TOML [100, 100]"
                raise InputError(f"{flag(name)} must be {what}, not {shown(value)}")
            return widths
        elif not self.choices:
            pattern, description = self.pattern
            value = str(value) if type(value) is int else value  # 64 for --image-size
            if not isinstance(value, str) or not re.fullmatch(pattern, value):
                raise InputError(f"{flag(name)} must be {description}, not {shown(value)}")
        elif not (isinstance(value, str) and own_path(value) and "folder:PATH" in self.choices):
            if "folder:PATH" in self.choices and value not in self.choices and os.path.lexists(str(value)):
                kind = _KINDS_OF_FILES.get(Path(value).suffix, "folder")
                raise InputError(f"unknown {flag(name)} {shown(value)}: for data of your own, give {kind}:{value}")
            prefix = str(value).partition(":")[0]
            near = difflib.get_close_matches(prefix, ("folder", "array", "table"), n=1) if ":" in str(value) else []
            if near and "folder:PATH" in self.choices:
                raise InputError(
                    f"unknown {flag(name)} {shown(value)}: did you mean {near[0]}:{value[len(prefix) + 1 :]}?"
                )
            check_name(flag(name), value, self.choices)
        return value


def option(default: Any, help: str, **rest: Any) -> Any:
    """Return a dataclass field of `Config`, whose metadata hold an `Option` with these arguments."""
    return field(default=default, metadata={"option": Option(default=default, help=help, **rest)})


def without_removed(options: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of `Config` of a run of the version before, without those that were removed since.

    A rate_reduction "mean", of the rate over latent dimensions, becomes beta / latent_dim; a compile "cuda-graph"
    becomes "graph"; a precision is forgotten, since the VAE is the same.

    Raises:
        InputError: a removed field has another value than its default.
    """
    if options.get("rate_reduction") == "mean":
        options = {**options, "rate_reduction": "sum", "beta": options["beta"] / options["latent_dim"]}
    if options.get("compile") == "cuda-graph":
        options = {**options, "compile": "graph"}
    for name, default in _REMOVED_FIELDS.items():
        if options.get(name, default) != default:
            raise InputError(f"it was trained with {flag(name)} {options[name]}, which was removed")
    return {name: value for name, value in options.items() if name not in (*_REMOVED_FIELDS, "precision")}


def _number(name: str, value: Any, convert: Callable[[Any], Any], least: float, most: float) -> Any:
    """Return a number of at least `least` and at most `most`, or raise an `InputError`."""
    try:
        number = math.nan if isinstance(value, (bool, str, bytes)) else convert(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not least <= number <= most:
        kind, style = ("number", "g") if convert is float else ("whole number", ",")
        limits = f"at least {least:{style}} and at most {most:{style}}"
        raise InputError(f"{flag(name)} must be a {kind} of {limits}, not {shown(value)}")
    return number


def flag(name: str) -> str:
    """Return the name of an option on the command line, for instance "--batch-size"."""
    return "--" + name.replace("_", "-")
