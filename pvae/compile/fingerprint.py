"""All that the Python of a step hangs on, as something to compare: functions, modules, parameters and attributes."""

from __future__ import annotations

import functools
import operator
import types
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import chain
from typing import Any

import torch
from pyro.infer import ELBO
from torch import Tensor, nn

from pvae.core.torch_private import UNREAD_BY_A_PASS, hooks_of

__all__ = ["Fingerprint", "buffers_unchanged", "running_modules", "surroundings", "unchanged"]

_PLAIN = frozenset({bool, int, float, complex, str, bytes, torch.Size, type(None)})

_MADE_ANEW = (types.MethodType, functools.partial, dict, list, tuple, types.CellType)


class Fingerprint:
    """What some objects are now: equal to another one exactly if nothing was edited between.

    Functions count by what they are and what they close over; modules and ELBOs by attributes, hooks and children;
    parameters and buffers by which they are, not by their numbers; plain values by value; all else by identity.

    Args:
        objects: functions, modules, ELBOs.
    """

    def __init__(self, objects: Sequence[object]) -> None:
        self._state: list[object] = []
        self._dicts: list[dict[Any, Any]] = []  # most of what can change: a module's attributes, parameters, hooks
        self._values: list[object] = []  # of all of them, in a row; alive, plain values among them
        self._owners: list[tuple[Any, tuple[object, ...]]] = []
        self._tensors: list[tuple[Tensor, tuple[object, ...]]] = []
        self._kept: list[object] = []  # alive, so that no id comes to stand for another object
        self._seen: set[int] = set()
        for one in objects:
            self._add(one)

    def __eq__(self, other: object) -> bool:
        """Compare what they are of."""
        return isinstance(other, Fingerprint) and self._state == other._state

    __hash__ = None  # type: ignore[assignment]

    def is_current(self) -> bool:
        """Whether nothing at all was touched since; false if something was, even if it is again what it was."""
        if sum(map(len, self._dicts)) != len(self._values):
            return False
        if not all(map(operator.is_, chain.from_iterable(map(dict.values, self._dicts)), self._values)):
            return False
        for owner, parts in self._owners:
            now = _values(_parts_of(owner))
            if len(now) != len(parts) or not all(map(operator.is_, now, parts)):
                return False
        return all(_facts(tensor) == facts for tensor, facts in self._tensors)

    def _add(self, value: Any) -> None:
        kind = type(value)
        if kind in _PLAIN:
            self._state += (kind, value)
            return
        self._kept.append(value)
        parts = _parts_of(value)
        # A method and a container are what they hold; they may be made anew for each step.
        self._state.append(kind if isinstance(value, _MADE_ANEW) else id(value))
        if id(value) in self._seen:
            return
        self._seen.add(id(value))
        if isinstance(value, Tensor):
            self._state += _facts(value)
            self._tensors.append((value, _facts(value)))
        elif parts is not None:
            if isinstance(parts, dict) and not isinstance(value, ELBO):  # a module's own, which changes with it
                self._dicts.append(parts)
                self._values += parts.values()
            elif not isinstance(value, (tuple, types.MethodType)):  # these cannot change
                self._owners.append((value, tuple(_values(parts))))
            names = parts if isinstance(parts, dict) else range(len(parts))
            for name, part in zip(names, _values(parts)):
                if name not in UNREAD_BY_A_PASS or not isinstance(value, nn.Module):
                    self._state.append(name)
                    self._add(part)


def _values(container: Any) -> Any:
    return container.values() if isinstance(container, dict) else container


def _facts(tensor: Tensor) -> tuple[object, ...]:
    place = tensor.data_ptr() if tensor.device.type == "cuda" else 0  # a CUDA graph reads and writes where it lay
    return (tensor.dtype, tensor.device, tensor.shape, tensor.stride(), tensor.requires_grad, hooks_of(tensor), place)


def _parts_of(value: Any) -> dict[Any, Any] | Sequence[Any] | None:
    """Return what an object is made of, as the container that changes with it; None if it counts by identity."""
    if isinstance(value, (dict, list, tuple)):
        return value
    if isinstance(value, nn.Module):
        return vars(value)
    if isinstance(value, ELBO):
        return {name: part for name, part in vars(value).items() if name not in ("beta", "terms")}  # new at each step
    if isinstance(value, functools.partial):
        return (value.func, value.args, value.keywords)
    if isinstance(value, types.MethodType):
        return (value.__func__, value.__self__)
    if isinstance(value, types.FunctionType):
        return (value.__code__, value.__defaults__, value.__kwdefaults__, vars(value), value.__closure__)
    if isinstance(value, types.CellType):
        return _contents(value)
    return None


def _contents(cell: types.CellType) -> tuple[Any, ...]:
    try:
        return (cell.cell_contents,)
    except ValueError:  # empty yet
        return ()


@contextmanager
def running_modules() -> Iterator[dict[int, nn.Module]]:
    """Collect the modules that run in this block, wherever the step finds them; their buffers do not change."""
    modules: dict[int, nn.Module] = {}

    with ExitStack() as stack:

        def note(module: nn.Module, _: Any) -> None:
            if id(module) not in modules:
                modules[id(module)] = module
                stack.enter_context(buffers_unchanged([module]))

        stack.callback(nn.modules.module.register_module_forward_pre_hook(note).remove)
        yield modules


@contextmanager
def buffers_unchanged(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Give the modules' own buffers their values back: what BatchNorm counts, it would count once too often."""
    with unchanged([buffer for module in modules for buffer in module.buffers(recurse=False)]):
        yield


@contextmanager
def unchanged(tensors: Sequence[Tensor]) -> Iterator[None]:
    """Give tensors their numbers back."""
    before = [tensor.detach().clone() for tensor in tensors]
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, value in zip(tensors, before):
                tensor.copy_(value)


def surroundings() -> tuple[object, ...]:
    """Return the settings of torch under which a step runs."""
    autocast = [(torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in ("cpu", "cuda")]
    return (torch.get_default_dtype(), *autocast)
