"""`Option` and `Family`: an argument that a user may give is declared once, at the class that takes it.

A class of a family is chosen by its name, as in `--posterior iaf`; the annotated arguments of its constructor are its
options. Flags, TOML keys, `Config`, help texts and refusals are read from these declarations.
"""

from __future__ import annotations

import functools
import inspect
import math
import operator
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, get_args, get_origin

from pvae.core.errors import InputError, check_name, shown

_MOST_WIDTHS = 1000  # building a layer takes memory even where its width is 1


@dataclass(frozen=True, kw_only=True)
class Option:
    """What a user reads of an argument, and what it may be: `beta: Annotated[float, Option(help="weight")] = 1.0`.

    Args:
        help: one sentence; "{choices}" is replaced by the list of choices.
        least: the least number.
        most: the greatest number; by default 10^9 for an int, 10^38 for a float.
        choices: the allowed values of a text.
        pattern: a regular expression for a text without choices.
        described: what the pattern allows, as text.
        needs: with what it has an effect beside the classes that take it: another option, as "valid", or some of its
            values, as "dataset=folder:PATH,celeba".
        has_flag: it is an option of the command line too, and not of TOML files and Python alone.
        name: the name of the argument; `options_of` sets it.
        default: the default of the argument, whose type is that of the option; `options_of` sets it.
    """

    help: str = ""
    least: float = 0
    most: float | None = None
    choices: tuple[str, ...] = ()
    pattern: str = ""
    described: str = ""
    needs: str = ""
    has_flag: bool = True
    name: str = ""
    default: Any = None

    @property
    def flag(self) -> str:
        """The name on the command line, for instance "--batch-size"; the name alone if it is no option there."""
        if not self.has_flag:
            return self.name
        return "--" + self.name.replace("_", "-")

    def check(self, value: Any) -> Any:
        """Return the value converted to the option's type: a NumPy number to a Python number, a list to a tuple.

        Raises:
            InputError: the value has another type or is out of range.
        """
        if isinstance(self.default, bool):
            if not isinstance(value, bool):
                raise InputError(f"{self.flag} must be true or false, not {shown(value)}")
            return value
        if isinstance(self.default, int):
            return self._number(value, operator.index, 10**9)
        if isinstance(self.default, float):
            return self._number(value, float, 1e38)
        if isinstance(self.default, tuple):
            return self._widths(value)
        if self.choices:
            return check_name(self.flag, value, self.choices)
        if type(value) is int:  # 64 for --image-size
            value = str(value)
        if not isinstance(value, str) or not re.fullmatch(self.pattern, value):
            raise InputError(f"{self.flag} must be {self.described}, not {shown(value)}")
        return value

    def _number(self, value: Any, convert: Callable[[Any], Any], most: float) -> Any:
        most = most if self.most is None else self.most
        try:
            number = math.nan if isinstance(value, (bool, str, bytes)) else convert(value)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if not self.least <= number <= most:
            kind, style = "whole number", ","
            if convert is float:
                kind, style = "number", "g"
            limits = f"at least {self.least:{style}} and at most {most:{style}}"
            raise InputError(f"{self.flag} must be a {kind} of {limits}, not {shown(value)}")
        return number

    def _widths(self, value: Any) -> tuple[int, ...]:
        is_list = isinstance(value, Iterable) and not isinstance(value, (str, set))
        widths = tuple(value) if is_list else ()
        if not is_list or len(widths) > _MOST_WIDTHS or (self.default and not widths):
            what = f"a list of up to {_MOST_WIDTHS:,} sizes, such as 100 100 or in TOML [100, 100]"
            raise InputError(f"{self.flag} must be {what}, not {shown(value)}")
        width_option = replace(self, default=0, least=1, most=10**6)
        return tuple(width_option.check(width) for width in widths)


def options_of(kind: Callable[..., Any]) -> dict[str, Option]:
    """Return the annotated arguments of a class or a function, each with its name and default.

    Where a constructor takes `**options` that it hands on, these are the arguments of the class above it too.

    >>> def fit(lr: Annotated[float, Option(help="learning rate")] = 1e-3): ...
    >>> options_of(fit)["lr"].default
    0.001
    """
    options: dict[str, Option] = {}
    for parameter in _parameters(kind, eval_str=True):
        if get_origin(parameter.annotation) is Annotated:
            option = next(note for note in get_args(parameter.annotation) if isinstance(note, Option))
            options.setdefault(parameter.name, replace(option, name=parameter.name, default=parameter.default))
    return options


@functools.cache
def arguments_of(kind: Any) -> frozenset[str]:
    """Return the names of all arguments of a class or a function, as `options_of` finds them."""
    return frozenset(parameter.name for parameter in _parameters(kind, eval_str=False))


def call_with(function: Any, known: Mapping[str, Any]) -> Any:
    """Call a class or a function with those of the known values that it has arguments for."""
    return function(**{name: known[name] for name in arguments_of(function) if name in known})


def _parameters(kind: Callable[..., Any], eval_str: bool) -> list[inspect.Parameter]:
    makers: list[Any] = [kind]
    if inspect.isclass(kind):
        makers = [vars(base)["__init__"] for base in inspect.getmro(kind) if "__init__" in vars(base)]
    arguments: list[inspect.Parameter] = []
    for make in makers:
        parameters = [*inspect.signature(make, eval_str=eval_str).parameters.values()]
        arguments += parameters
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            break
    return arguments


class _Takes:
    def __get__(self, instance: object, owner: Any) -> frozenset[str]:
        return arguments_of(owner)


class Family:
    """A class that is chosen by its name among those of its kind, for instance a posterior.

    A kind, such as `Posterior`, is a direct subclass, with a dictionary `members`. A class below it that gives a name
    is a member:

        class IAFPosterior(Posterior, name="iaf", help="inverse autoregressive flow"): ...

    Attributes:
        members: the classes of the kind, by their names.
        name: the name; "" of a class that cannot be chosen by name.
        takes: the names of the arguments of its constructor.
        help: what it is, after its name in help texts; "" for nothing.
    """

    members: ClassVar[dict[str, type[Any]]]
    name: ClassVar[str] = ""
    takes = _Takes()
    help: ClassVar[str] = ""

    def __init_subclass__(cls, name: str = "", help: str = "", **rest: Any) -> None:
        super().__init_subclass__(**rest)
        if Family in cls.__bases__:
            cls.members = {}
        cls.name = name
        cls.help = help
        if name:
            cls.members[name] = cls

    @classmethod
    def names_where(cls, attribute: str, value: object = True) -> tuple[str, ...]:
        """Return the names of the members for which an attribute has a value."""
        return tuple(name for name, member in cls.members.items() if getattr(member, attribute) == value)

    @classmethod
    def listed(cls) -> str:
        """Return the names of the members, each with its help."""
        texts = []
        for name, member in cls.members.items():
            texts.append(name)
            if member.help:
                texts[-1] += f": {member.help}"
        return "; ".join(texts)
