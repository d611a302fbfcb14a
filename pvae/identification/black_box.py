"""A loss that somebody wrote for a VAE, as a function of random tensors: how it is called, and with which shapes."""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pvae.core.errors import InputError, brief, listed
from pvae.identification.loss_terms import NUM_CLASSES, Arguments
from pvae.identification.roles import OF_X, ROLES, SETS, guesses

_LATENTS = (3, 2, 20, 10, 32, 16, 64, 128, 50, 100, 200, 256, 400)
_IMAGES = ((1, 28, 28), (1, 32, 32), (3, 32, 32), (3, 64, 64), (1, 64, 64), (3, 28, 28), (3, 128, 128))
_UNSAID = "an exception"
_SINGLE = (torch.float32, torch.bfloat16, torch.float16)


class LossError(InputError):
    """The loss itself raised an exception, or returned no number."""


class _Casts(TorchDispatchMode):
    """Sees whether an operation makes a shorter float of a float64."""

    has_seen = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.dtype in _SINGLE:
            self.has_seen |= any(isinstance(one, Tensor) and one.dtype == torch.float64 for one in args)
        return result


class Size(NamedTuple):
    """The size of a batch, the shape of an image, and that of the latents of one image, with a letter for each side."""

    batch: int
    image: tuple[int, ...]
    latent: tuple[int, ...]
    sides: str = "L"

    def symbols(self) -> dict[str, int]:
        """Return B, D and the sides of the latents; of images (C, H, W), in place of D, C, H and W."""
        names = {1: "D", 2: "HW", 3: "CHW"}[len(self.image)]
        return {"B": self.batch, **dict(zip(names, self.image)), **dict(zip(self.sides, self.latent))}

    def others(self) -> Iterator[tuple[str, Size]]:
        """Yield, for each symbol, a size that differs in it alone, and last a size that differs in all of them."""
        yield "B", self._replace(batch=self.batch + 2)
        sides = (*self.image, *self.latent)
        for place, name in enumerate([*self.symbols()][1:]):
            yield name, self._of(self.batch, *sides[:place], sides[place] + 2 + place, *sides[place + 1 :])
        yield "", self._of(self.batch + 1, *(side + 1 for side in sides))

    def _of(self, batch: int, *sides: int) -> Size:
        image, latent = sides[: len(self.image)], sides[len(self.image) :]
        return self._replace(batch=batch, image=image, latent=latent)


@dataclass
class BlackBox:
    """A loss with one way of calling it.

    Args:
        function: the loss.
        names: the name of the argument of each role, in the order of the arguments.
        constants: further arguments.
        by_name: call it by keywords.
        is_shared: the likelihood's spread has one value for each value of an image, the same for every image.
        layout: "same" shapes of x and y, "flat" (y is (B, D)), or x of classes: "classes" (y is (B, K, D)) and "tokens"
            (y is (B, T, K)).
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
    is_shared: bool
    layout: str
    size: Size
    sign: int = 1

    def __post_init__(self) -> None:
        """Call it, and choose the total among what it returns: what depends on most arguments."""
        self.generator = torch.Generator().manual_seed(0)  # of its own, since the loss may seed that of torch
        self.limits = [-0.1, 1.1]  # of x before it is clamped to [0, 1]
        a = self.point(self.size)
        for edge, inside in enumerate((0.05, 0.95)):  # it may take the logarithm of x, or of 1 - x
            if not all(part.isfinite().all() for part in self.parts({**a, "x": 0 * a["x"] + edge}).values()):
                self.limits[edge] = inside
        a = self.point(self.size)
        given = {role: tensor.clone() for role, tensor in a.items()}
        with _Casts() as casts:  # type: ignore[no-untyped-call]
            parts = self.parts(a)
        if changed := [self.names[role] for role in a if not torch.equal(given[role], a[role])]:
            raise InputError(f"the loss changes its argument {listed(changed)} in place: give it a copy")
        self.total = max(parts, key=lambda key: len(self.depends(key)))
        value = parts[self.total]
        self.is_vector = value.dim() == 1 and len(value) == self.size.batch
        if value.numel() != 1 and not self.is_vector:
            shape = tuple(value.shape)
            raise InputError(f"the loss returns a tensor of shape {shape}: return a scalar, or a value for each image")
        self.is_single = value.dtype in _SINGLE or casts.has_seen

    @property
    def has_classes(self) -> bool:
        """Whether x holds classes, and y a value for each of them."""
        return self.layout in ("classes", "tokens")

    def point(self, size: Size, wide: str = "") -> dict[str, Tensor]:
        """Return random arguments by role.

        Spreads are positive, as scales are, and the reconstruction lies in (0, 1), as probabilities do.

        Args:
            size: of batch, image and latent.
            wide: the roles that have any real values.
        """
        (batch, image, latent, sides), (low, high) = size, self.limits
        x = torch.rand((batch, *image), dtype=torch.float64, generator=self.generator)
        x = (255 * (low + (high - low) * x).clamp(0, 1)).round() / 255  # some 0, some 1
        x = (NUM_CLASSES * x).clamp(max=NUM_CLASSES - 1).long() if self.has_classes else x
        y_shape = {"classes": (batch, NUM_CLASSES, *image), "tokens": (*x.shape, NUM_CLASSES)}.get(self.layout, x.shape)
        shapes = {"y": y_shape, "t": y_shape[self.is_shared :]}
        a = {"x": x}
        of_z = (batch, *latent) if sides != "-" else ()
        for letter in [letter for letter in self.names if letter != "x"]:
            role = ROLES[letter]
            shape = of_z if role.part == "z" else shapes.get(letter, x.shape)
            low, width = {"unit": (0.05, 0.9), "ones": (1.0, 0.0)}.get(role.draw, (0.2, 1.6))
            is_real = role.draw == "real" or letter in wide
            draw = torch.randn if is_real else torch.rand
            values = draw(shape, dtype=torch.float64, generator=self.generator)
            a[letter] = values if is_real else low + width * values
        return a

    def __call__(self, a: Arguments, **constants: Any) -> Tensor:
        """Return the total, a sum over images where it is one value for each; perhaps with other constants."""
        return self.sign * self.parts(a, **constants)[self.total].sum().double()

    def depends(self, key: Any) -> list[str]:
        """Return the names of the arguments on which a part depends."""
        a, found = self.point(self.size), []
        value = self.parts(a)[key].double()
        for role, name in self.names.items():
            new = self.point(self.size)[role]
            tries = [new]
            if role in "mso":  # free bits may hide a small rate; a mask is drawn as 1
                tries.append((0 if role == "o" else 100) * new)
            others = [self.parts({**a, role: one})[key].double() for one in tries]
            if not all(torch.allclose(value, one, 0, 0, equal_nan=True) for one in others):
                found.append(name)
        return found

    def parts(self, a: Arguments, **constants: Any) -> dict[Any, Tensor]:
        """Return the tensors in what the loss returns, by key or index; None is the key of a single one.

        Raises:
            LossError: the loss raises an exception, or returns no number.
        """
        values = [ROLES[role].given(a[role]) for role in self.names]
        if self.layout == "flat":
            starts = {role: int(role != "t" or not self.is_shared) for role in f"{OF_X}o"}
            values = [one.flatten(starts[role]) if role in starts else one for role, one in zip(self.names, values)]
        positional, named = ([], dict(zip(self.names.values(), values))) if self.by_name else (values, {})
        try:
            output = self.function(*positional, **named, **{**self.constants, **constants})
        except (InputError, KeyboardInterrupt):  # of a time limit, or of the user
            raise
        except BaseException as error:  # of any type, since it is the user's code
            said = f"{type(error).__name__}: {brief(error)}"
            if type(error) in (RuntimeError, ValueError, IndexError, TypeError):  # of torch, of the shapes
                said = _UNSAID
            raise LossError(f"the loss raises {said}") from error
        several = enumerate(output) if isinstance(output, (tuple, list)) else [(None, output)]
        found = {}
        for key, value in output.items() if isinstance(output, Mapping) else several:
            value = torch.as_tensor(value) if isinstance(value, (int, float)) else value
            if isinstance(value, Tensor) and value.dim() < 2:
                found[key] = value
        if not found:
            raise LossError(f"the loss returns a {type(output).__name__} without a number")
        return found


def ways_of_calling(
    function: Any, arguments: Any, shape: tuple[int, ...] | None, constants: Mapping[str, Any]
) -> Iterator[BlackBox]:
    """Yield the ways of calling a loss that work.

    For each choice of roles there is one for real x and one for classes, each also for a spread of the likelihood that
    all images share.

    Raises:
        InputError: there is none, or the loss is no function of such arguments.
    """
    if not callable(function) or isinstance(function, type):
        what = f"the class {function.__name__}" if isinstance(function, type) else f"a {type(function).__name__}"
        raise InputError(f"a loss is a function or a method of an object, not {what}")
    errors: list[LossError] = []
    tried: list[str] = []
    works = False
    for names, by_name, others in _choices_of_roles(function, arguments, constants):
        found: set[tuple[bool, bool, str]] = set()
        shared = (False, True)[: 1 + ("t" in names)]
        forms = max((ROLES[role].sides for role in names), key=lambda sides: sides != ("L",))
        tried.append(", ".join(f"{name} as {ROLES[role].name}" for role, name in names.items()))
        for (layout, image, latent), is_shared, sides in itertools.product(_shapes(shape), shared, forms):
            kind = (layout in ("classes", "tokens"), is_shared, sides)
            if kind not in found:
                size = Size(4, image, tuple(latent + place for place in range(len(sides.strip("-")))), sides)
                try:
                    box = BlackBox(function, names, others, by_name, is_shared, layout, size)
                except LossError as error:
                    errors.append(error)
                else:
                    works = True
                    found.add(kind)
                    yield box
    if not works:
        own = min(errors, key=lambda error: str(error).endswith(_UNSAID))
        is_one = len({*map(str, errors)}) == 1
        if isinstance(own.__cause__, (NameError, AttributeError, *[NotImplementedError] * is_one)):
            raise InputError(f"{own}: the function itself fails, whatever tensors it is given")
        roles = ", ".join(role.name for role in ROLES.values())
        raise InputError(
            f"{own} for every shape that was tried, with {'; '.join(tried[:3])}: give the shape of an image (shape=, "
            f"--shape), or the roles in order (arguments=, --arguments), from {roles}"
        )


def _shapes(shape: tuple[int, ...] | None) -> Iterator[tuple[str, tuple[int, ...], int]]:
    """Yield layouts, shapes of an image and numbers of latents."""
    free: tuple[tuple[int, ...], ...] = ((6,), (2, 3, 4))
    fixed = [one for image in _IMAGES for one in ((math.prod(image),), image)]
    for latent in _LATENTS:
        for image in [shape] if shape else [*free, *(fixed if latent == _LATENTS[0] else fixed[:2])]:
            yield from ((layout, image, latent) for layout in ("same", "flat")[: len(image)])
            if image == (6,):
                yield from ((layout, image, latent) for layout in ("classes", "tokens"))


def _choices_of_roles(
    function: Any, arguments: Any, constants: Mapping[str, Any]
) -> Iterator[tuple[dict[str, str], bool, dict[str, Any]]]:
    """Yield the names of the arguments by role, whether to call the loss by keywords, and its other arguments.

    Raises:
        InputError: the arguments cannot be told apart, or one that is no tensor has no value.
    """
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        raise InputError("the loss has no signature that Python can read: wrap it in a function") from None
    every = signature.parameters.values()
    named = [p for p in every if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    numbers = {p.name: p.default for p in named if isinstance(p.default, (int, float)) and p.kind != p.POSITIONAL_ONLY}
    others = {**numbers, **constants}
    if arguments is not None:
        by_name = isinstance(arguments, Mapping)
        given = [one.strip() for one in arguments.split(",")] if isinstance(arguments, str) else arguments
        roles = list(arguments.values()) if by_name else list(given)
        letters = {role.name: letter for letter, role in ROLES.items()}
        if not {*roles} <= {*letters} or len({*roles}) < len(roles):
            raise InputError(f"arguments {arguments!r}: give each of these roles at most once: {', '.join(letters)}")
        names = dict(zip((letters[role] for role in roles), given if by_name else roles))
        try:
            signature.bind(*[] if by_name else given, **dict.fromkeys(given if by_name else ()), **others)
        except TypeError:
            takes = ", ".join(signature.parameters)
            raise InputError(f"the loss takes {takes}, and arguments= gives the roles of {len(given)}") from None
        yield names, by_name, others
        return
    needed = [p.name for p in named if p.default is p.empty and p.name not in constants]
    if unused := [name for name in constants if name not in signature.parameters and len(named) == len(every)]:
        raise InputError(f"the loss has no argument {listed(unused)}; it has {', '.join(signature.parameters)}")
    fits = [guesses(name) for name in needed]
    masks = [name for name, fit in zip(needed, fits) if fit == {"o"}]
    unknown = [name for name, fit in zip(needed, fits) if not fit]
    if unknown and any({*roles} <= set().union(*fits) for roles in ("xyms", "xyk")):
        values = ", ".join(f"{name}=1 (--constant {name}=1)" for name in unknown)
        raise InputError(f"what is {listed(unknown)}? if it is no tensor, give it a value: {values}")
    number = len(needed) - len(masks[:1])
    orders = [order for roles in SETS if len(roles) == number for order in itertools.permutations(roles)]
    if not orders:
        wanted = "give the roles of its tensors (arguments=, --arguments), and values for its other arguments"
        raise InputError(f"the loss takes {len(needed)} arguments ({', '.join(needed) or 'without names'}): {wanted}")
    by_name = all(p.kind is not p.POSITIONAL_ONLY for p in named)
    if masks:
        place = needed.index(masks[0])
        orders = [(*order[:place], "o", *order[place:]) for order in orders]
    kept = [sum(role in fit for role, fit in zip(order, fits)) for order in orders]
    for order, count in zip(orders, kept):
        if count == max(kept):
            yield dict(zip(order, needed)), by_name, others
