"""Guards of a recorded step: what it depends on, to compare, and what a recording must leave as it was."""

from __future__ import annotations

import contextlib
import functools
import operator
import types
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import chain
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer import ELBO
from pyro.poutine.runtime import _PYRO_STACK
from pyro.poutine.trace_messenger import TraceMessenger
from torch import Tensor, nn

from pvae.core.errors import InputError
from pvae.core.torch_private import UNREAD_BY_A_PASS, hooks_of

__all__ = [
    "Snapshot",
    "as_if_nothing",
    "buffers_unchanged",
    "refuse_handlers",
    "running_modules",
    "surroundings",
    "unchanged",
    "unmakes_parameters",
]

_PLAIN = frozenset({bool, int, float, complex, str, bytes, torch.Size, type(None)})

_MADE_ANEW = (types.MethodType, functools.partial, dict, list, tuple, types.CellType)


class Snapshot:
    """A comparable snapshot of everything that a recorded step depends on: two are equal if nothing was edited between.

    Functions are compared by their code and what they close over; modules and ELBOs by attributes, hooks and children;
    parameters and buffers by identity, not by value; plain values by value; everything else by identity.

    Args:
        objects: functions, modules, ELBOs.
    """

    def __init__(self, objects: Sequence[object]) -> None:
        self._state: list[object] = []
        self._dicts: list[dict[Any, Any]] = []  # attributes, parameters and hooks of modules
        self._values: list[object] = []  # their values, in one list, kept alive
        self._owners: list[tuple[Any, tuple[object, ...]]] = []
        self._tensors: list[tuple[Tensor, tuple[object, ...]]] = []
        self._kept: list[object] = []  # kept alive, so that no id is used for another object
        self._seen: set[int] = set()
        for one in objects:
            self._add(one)

    def __eq__(self, other: object) -> bool:
        """Compare the objects."""
        return isinstance(other, Snapshot) and self._state == other._state

    __hash__ = None  # type: ignore[assignment]

    def is_current(self) -> bool:
        """Whether nothing was assigned since; false after an assignment, even of an equal value."""
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
        # Methods and containers are compared by what they hold: they may be created anew for each step.
        self._state.append(kind if isinstance(value, _MADE_ANEW) else id(value))
        if id(value) in self._seen:
            return
        self._seen.add(id(value))
        if isinstance(value, Tensor):
            self._state += _facts(value)
            self._tensors.append((value, _facts(value)))
        elif parts is not None:
            if isinstance(parts, dict) and not isinstance(value, ELBO):  # the module's own dictionary
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
    return (tensor.dtype, tensor.device, tensor.shape, tensor.stride(), tensor.requires_grad, hooks_of(tensor))


def _parts_of(value: Any) -> dict[Any, Any] | Sequence[Any] | None:
    """Return the parts of an object, as the container that changes with it; None if it is compared by identity."""
    if isinstance(value, (dict, list, tuple)):
        return value
    if isinstance(value, nn.Module):
        return vars(value)
    if isinstance(value, ELBO):
        return {name: part for name, part in vars(value).items() if name != "beta"}  # an input of the recording
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
    except ValueError:  # still empty
        return ()


@contextmanager
def running_modules() -> Iterator[dict[int, nn.Module]]:
    """Collect the modules that run in this block; their buffers get their values back afterwards."""
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
    """Give the modules' own buffers their values back, so that BatchNorm does not count a recording as a step."""
    with unchanged([buffer for module in modules for buffer in module.buffers(recurse=False)]):
        yield


@contextmanager
def unchanged(tensors: Sequence[Tensor]) -> Iterator[None]:
    """Give tensors their values back after the block."""
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


def refuse_handlers(gives: str) -> None:
    """Refuse Pyro handlers around a step: they change what is drawn or weighed. SVI's own only traces parameters.

    Raises:
        InputError: there is one.
    """
    for handler in _PYRO_STACK:
        if not (gives == "gradients" and isinstance(handler, TraceMessenger) and handler.param_only):
            name = type(handler).__name__
            raise InputError(f"a compiled ELBO runs under no Pyro handler, here {name}: wrap model and guide instead")


def unmakes_parameters(known: set[str], owned: set[int]) -> bool:
    """Remove from the store what pyro.param created in a trial run, and return whether there was anything."""
    store = pyro.get_param_store()
    made = [name for name, tensor in store._params.items() if name not in known and id(tensor) not in owned]
    for name in made:
        del store[name]
    return bool(made)


@contextlib.contextmanager
def as_if_nothing(inputs: Sequence[Tensor], gives: str) -> Iterator[None]:
    """Leave the random state as it was, and for an evaluation Pyro's parameter store too."""
    devices = {x.device for x in inputs if x.device.type == "cuda"}
    store = pyro.get_param_store()
    scope = contextlib.nullcontext() if gives != "loss" else store.scope(store.get_state())
    with torch.random.fork_rng(devices=list(devices)), poutine.block(), scope:
        yield
