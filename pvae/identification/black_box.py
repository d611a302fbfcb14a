"""A loss that somebody wrote for a VAE, as a function of random tensors: how it is called, and with which shapes."""

from __future__ import annotations

import contextlib
import inspect
import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pvae.core.errors import InputError, brief, listed
from pvae.identification.roles import ROLES, SETS, guesses
from pvae.identification.terms import NUM_CLASSES

Arguments = dict[str, Tensor]
Size = dict[str, int]  # by letter: B of the batch, D of a vector or C, H and W of an image, L, N and K of latents

_LATENTS = (3, 2, 20, 10, 32, 16, 64, 128, 50, 100, 200, 256, 400)
_PIXELS = [(channels, side, side) for side in (28, 32, 64, 128) for channels in (1, 3)]
_IMAGES = [(6,), (2, 3, 4), *(shape for image in _PIXELS for shape in ((math.prod(image),), image))]


class LossError(InputError):
    """The loss itself raised an exception, or returned no number."""


def drawn(domain: str, u: Tensor, reach: float) -> Tensor:
    """Return values in a domain.

    Args:
        domain: "real", "positive", "unit" in (0, 1), "closed" in [0, 1] with both ends, "inside" without them,
            "counts", "classes", or "ones" and "halves", which are all equal.
        u: uniform random values in [0, 1].
        reach: how far out real values are; spreads are from exp(-reach / 2) to exp(reach / 2).
    """
    real = reach * (2 * u - 1)
    match domain:
        case "positive":
            return (real / 2).exp()
        case "unit":
            return real.sigmoid()
        case "closed":
            return (255 * u).round() / 255
        case "inside":
            return 0.05 + 0.9 * u
        case "counts":
            return (12 * u).round()
        case "classes":
            return (NUM_CLASSES * u).long().clamp(max=NUM_CLASSES - 1)
        case "ones":
            return 0 * u + 1
        case "halves":
            return 0 * u + 0.5
    return real


@dataclass
class BlackBox:
    """A loss with one way of calling it.

    Args:
        function: the loss.
        names: the name of the argument of each role, in the order of the arguments.
        constants: further arguments.
        by_name: call it by keywords.
        letters: of the sides of each argument, by role; k is a side of `NUM_CLASSES` values, one for each class of x.
        size: the first size that it takes.
        sign: a factor of the total.

    Raises:
        InputError: it changes an argument, or returns another shape.
        LossError: it cannot be called so.
    """

    function: Callable[..., Any]
    names: Mapping[str, str]
    constants: Mapping[str, Any]
    by_name: bool
    letters: Mapping[str, str]
    size: Size
    sign: int = 1

    def __post_init__(self) -> None:
        """Call it, and choose the total among what it returns: what depends on most arguments."""
        self.generator = torch.Generator().manual_seed(0)  # of its own, since the loss may seed that of torch
        self.domains = {role: ROLES[role].domain for role in self.names}
        self.has_classes = "k" in self.letters["reconstruction"]
        if self.has_classes:
            self.domains["x"] = "classes"
        elif "x" in self.names and not all(
            part.isfinite().all() for part in self.parts(self.point(self.size)).values()
        ):
            self.domains["x"] = "inside"
        a = self.point(self.size)
        parts = self.parts(a)
        self.total = max(parts, key=lambda key: (len(self.depends(key)), -parts[key].dim()))
        value = parts[self.total]
        self.is_vector = value.shape == (self.size["B"],)
        if value.numel() != 1 and not self.is_vector:
            has_shape = f"the loss returns a tensor of shape {tuple(value.shape)}"
            raise InputError(f"{has_shape}: return a scalar, or a value for each image")
        self.is_single = any(  # it does not see what float32 does not see
            torch.equal(self(a | {role: value * (1 - 1e-10)}), self(a))
            for role, value in a.items() if value.is_floating_point()
        )  # fmt: skip
        self.sizes = [self.size]
        others = [self.size | {letter: side + 2 + place} for place, (letter, side) in enumerate(self.size.items())]
        for size in (*others, {letter: side + 1 for letter, side in self.size.items()}):
            with contextlib.suppress(LossError):  # it may take no other size
                self(self.point(size))
                self.sizes.append(size)

    def point(self, size: Size, reach: float = 2.0, **domains: str) -> Arguments:
        """Return random arguments by role.

        Args:
            size: of batch, image and latent.
            reach: how far out they are: real values are within it.
            domains: other domains than those that each such loss takes, by role.
        """
        a = {}
        for role, domain in (self.domains | domains).items():
            shape = [{**size, "k": NUM_CLASSES}[letter] for letter in self.letters[role]]
            u = torch.rand(shape, dtype=torch.float64, generator=self.generator)
            a[role] = drawn(domain, (1.5 * u - 0.25).clamp(0, 1), reach)  # some at the ends of the domain
        return a

    def __call__(self, a: Arguments, **constants: Any) -> Tensor:
        """Return the total, a sum over images where it is one value for each; perhaps with other constants."""
        return self.sign * self.parts(a, **constants)[self.total].sum().double()

    def depends(self, key: Any) -> list[str]:
        """Return the names of the arguments on which a part depends, also if far out only, as with free bits."""
        near = self.point(self.size)
        far = self.point(self.size, 20.0, mask="closed")
        others = {name: self.parts(near | {role: far[role]})[key] for role, name in self.names.items()}
        return [name for name, value in others.items() if not torch.equal(value, self.parts(near)[key])]

    def parts(self, a: Arguments, **constants: Any) -> dict[Any, Tensor]:
        """Return the tensors in what the loss returns, by key or index; None is the key of a single one.

        Raises:
            InputError: the loss changes an argument.
            LossError: the loss raises an exception, or returns no number.
        """
        given = {name: ROLES[role].given(a[role]) for role, name in self.names.items()}
        copies = {name: values.clone() for name, values in given.items()}
        call = partial(self.function, **{**self.constants, **constants})
        try:
            output = call(**copies) if self.by_name else call(*copies.values())
        except (InputError, KeyboardInterrupt):  # of a time limit, or of the user
            raise
        except BaseException as error:  # of any type, since it is the user's code
            is_of_shapes = type(error) in (RuntimeError, ValueError, IndexError, TypeError)
            said = "an exception" if is_of_shapes else f"{type(error).__name__}: {brief(error)}"
            raise LossError(f"the loss raises {said}") from error
        if changed := [name for name in given if not torch.equal(given[name], copies[name])]:
            raise InputError(f"the loss changes its argument {listed(changed)} in place: give it a copy")
        if isinstance(output, (tuple, list)):
            output = dict(enumerate(output))
        if not isinstance(output, Mapping):
            output = {None: output}
        if values := {
            key: torch.as_tensor(value) for key, value in output.items() if isinstance(value, (int, float, Tensor))
        }:
            return values
        raise LossError("the loss returns no number")


def ways_of_calling(
    function: Any, arguments: Any, shape: tuple[int, ...] | None, constants: Mapping[str, Any]
) -> Iterator[BlackBox]:
    """Yield the ways of calling a loss that work.

    For each choice of roles there is one for real x and one for classes, each also for a spread of the likelihood that
    all images share.

    Raises:
        InputError: there is none, or the loss is no function of such arguments.
    """
    if not callable(function) or isinstance(function, type) or inspect.isbuiltin(function):
        raise InputError(f"a loss is a function or a method of an object, not {function!r:.60}")
    error = LossError("an exception")
    is_found = False
    for names, by_name, others in _choices_of_roles(function, arguments, constants):
        kinds = set()
        for kind, letters, size in _shapes([*names], shape):
            if kind in kinds:
                continue
            try:
                box = BlackBox(function, names, others, by_name, letters, size)
            except LossError as raised:
                if "an exception" in str(error):
                    error = raised
            else:
                is_found = True
                kinds.add(kind)
                yield box
    if not is_found:
        if isinstance(error.__cause__, (NameError, AttributeError, NotImplementedError)):
            raise InputError(f"{error}: the function itself fails, whatever tensors it is given")
        raise InputError(
            f"{error} for every shape that was tried: give the shape of an image (shape=, --shape), or the roles in "
            f"order (arguments=, --arguments), from {', '.join(ROLES)}"
        )


def _shapes(roles: list[str], shape: tuple[int, ...] | None) -> Iterator[tuple[Any, dict[str, str], Size]]:
    """Yield a kind, the letters of the arguments, and a size: first any sizes, then those that losses often have."""
    forms = max((ROLES[role].sides for role in roles), key=lambda sides: sides != ("BL",))
    for latent, image in itertools.product(_LATENTS, [shape] if shape else _IMAGES):
        of_x = {1: "BD", 2: "BHW", 3: "BCHW"}[len(image)]
        reconstructions = [of_x]
        if image == (6,):
            reconstructions += ["BkD", "BDk"]  # of classes
        spreads = [of_x]
        if "x_spread" in roles:
            spreads.append(of_x[1:])  # shared by all images
        for of_y, of_z, of_spread in itertools.product(reconstructions, forms, spreads):
            letters = {role: of_z if row.part == "rate" else of_x for role, row in ROLES.items()}
            letters |= {"reconstruction": of_y, "x_spread": of_spread}
            size = dict(zip(of_x, (4, *image))) | {letter: latent + place for place, letter in enumerate(of_z[1:])}
            yield ("k" in of_y, of_z, of_spread[0]), letters, size


def _choices_of_roles(
    function: Any, arguments: Any, constants: Mapping[str, Any]
) -> Iterator[tuple[dict[str, str], bool, dict[str, Any]]]:
    """Yield the names of the arguments by role, whether to call the loss by keywords, and its other arguments.

    Raises:
        InputError: the arguments cannot be told apart, or one that is no tensor has no value.
    """
    parameters = inspect.signature(function).parameters
    named = [
        parameter
        for parameter in parameters.values()
        if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]
    others = {
        parameter.name: parameter.default for parameter in named if isinstance(parameter.default, (int, float))
    } | {**constants}
    if isinstance(arguments, str):
        arguments = [argument.strip() for argument in arguments.split(",")]
    if arguments is not None:
        by_name = isinstance(arguments, Mapping)
        names = {role: name for name, role in arguments.items()} if by_name else dict(zip(arguments, arguments))
        if not {*names} <= {*ROLES} or len(names) < len(arguments):
            raise InputError(f"arguments {arguments!r}: give each of these roles at most once: {', '.join(ROLES)}")
        yield names, by_name, others
        return
    if unused := [name for name in constants if name not in parameters and len(named) == len(parameters)]:
        raise InputError(f"the loss has no argument {listed(unused)}; it has {', '.join(parameters)}")
    needed = [
        parameter.name
        for parameter in named
        if parameter.default is parameter.empty and parameter.name not in constants
    ]
    by_name = all(parameter.kind is not parameter.POSITIONAL_ONLY for parameter in named)
    yield from ((names, by_name, others) for names in _guessed_roles(needed))


def _guessed_roles(needed: list[str]) -> Iterator[dict[str, str]]:
    """Yield the choices of roles that agree with most names of arguments."""
    fits = [guesses(name) for name in needed]
    unknown = [name for name, fit in zip(needed, fits) if not fit]
    if unknown and any({*roles} <= set().union(*fits) for roles in (SETS[0], ("x", "reconstruction", "kl"))):
        values = ", ".join(f"{name}=1 (--constant {name}=1)" for name in unknown)
        raise InputError(f"what is {listed(unknown)}? if it is no tensor, give it a value: {values}")
    sets = [roles for roles in SETS if len(roles) == len(needed)]
    if {"mask"} in fits:
        sets = [[*roles, "mask"] for roles in SETS if len(roles) + 1 == len(needed)]
    if not sets:
        wanted = "give the roles of its tensors (arguments=, --arguments), and values for its other arguments"
        raise InputError(f"the loss takes {len(needed)} arguments ({', '.join(needed) or 'without names'}): {wanted}")
    orders = [order for roles in sets for order in itertools.permutations(roles)]
    kept = [sum(role in fit for role, fit in zip(order, fits)) for order in orders]
    yield from (dict(zip(order, needed)) for order, count in zip(orders, kept) if count == max(kept))
