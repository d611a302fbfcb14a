"""Guards of a recorded step: a snapshot of what it depends on, and contexts that leave a model unchanged."""

from __future__ import annotations

import copy
import functools
import operator
import types
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from itertools import chain
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer import ELBO
from pyro.poutine.runtime import _PYRO_STACK
from pyro.poutine.subsample_messenger import SubsampleMessenger
from pyro.poutine.trace_messenger import TraceMessenger
from torch import Tensor, nn
from torch.distributions import Distribution, Transform
from torch.nn.parameter import is_lazy

from pvae.core.errors import InputError
from pvae.core.torch_private import hooks_of, validates_arguments

__all__ = [
    "Snapshot",
    "buffers_unchanged",
    "is_same",
    "refuse_handlers",
    "running_modules",
    "state_unchanged",
    "torch_settings",
    "unchanged",
]

_PLAIN = (bool, int, float, complex, str, bytes, torch.Size, torch.device)
# Types whose objects a step may create anew each time; they are compared by their parts.
_CREATED_ANEW = (types.MethodType, functools.partial, SubsampleMessenger, dict, list, tuple)


class Snapshot:
    """A comparable snapshot of everything that a recorded step depends on.

    Functions are compared by their code and the variables of their closures; modules and ELBOs by attributes, hooks and
    children; parameters and buffers by identity and layout, not by value; plain values and containers by value;
    everything else by identity.

    Args:
        objects: functions, modules, ELBOs.
    """

    def __init__(self, objects: Iterable[object]) -> None:
        containers: dict[int, tuple[Any, list[Any]]] = {}  # by id: each object, with its parts at this time
        others: dict[int, tuple[Any, list[Any]]] = {}
        waiting = list(objects)
        while waiting:
            owner = waiting.pop()
            is_live = isinstance(owner, (nn.Module, dict, list)) and not isinstance(owner, Transform)
            known = containers if is_live else others
            if id(owner) not in known and (parts := _parts_of(owner)) is not None:
                known[id(owner)] = owner, list(parts)
                waiting += () if isinstance(owner, Tensor) else parts
        self._containers, self._others = list(containers.values()), list(others.values())
        self._live = [_parts_of(owner) for owner, _ in self._containers]  # views that change with the containers
        self._values = [part for _, parts in self._containers for part in parts]
        owners = [owner for owner, _ in self._containers + self._others]
        self.has_lazy_parameters = any(isinstance(owner, Tensor) and is_lazy(owner) for owner in owners)
        editable = [owner for owner in owners if isinstance(owner, (nn.Module, ELBO, dict, list))]
        contents = [owner if isinstance(owner, (dict, list)) else vars(owner) for owner in editable]
        self._copies = [(one, copy.copy(one)) for one in contents]

    def is_current(self) -> bool:
        """Whether nothing that matters was edited since."""
        # One pass over all containers: with a call for each of them, a step would take up to 10 % longer.
        nothing_replaced = sum(map(len, self._live)) == len(self._values) and all(
            map(operator.is_, chain.from_iterable(self._live), self._values)
        )
        changeable = self._others if nothing_replaced else self._others + self._containers
        return all(_are_same(_parts_of(owner), parts) for owner, parts in changeable)

    def undo(self) -> None:
        """Give modules, ELBOs, dicts and lists the attributes and items back that they had."""
        for now, before in self._copies:
            now.clear()
            now.extend(before) if isinstance(now, list) else now.update(before)


def is_same(now: Any, before: Any) -> bool:
    """Whether two values are one object, plain values that are equal, or containers of such."""
    if now is before:
        return True
    if type(now) is not type(before):
        return False
    if isinstance(now, _PLAIN):
        return bool(now == before)
    return isinstance(now, _CREATED_ANEW) and _are_same(_parts_of(now), _parts_of(before))


def _are_same(now: Any, before: Any) -> bool:
    return len(now) == len(before) and (all(map(operator.is_, now, before)) or all(map(is_same, now, before)))


def _parts_of(value: Any) -> Any:
    """Return the parts of an object (of a module, dict or list as a live view); None if it is compared by identity."""
    if isinstance(value, nn.Module):
        attributes = vars(value)
        if not isinstance(value, Transform):
            return attributes.values()
        return [part for name, part in attributes.items() if not name.startswith("_cache") and name != "_inv"]
    if isinstance(value, dict):
        return value.values()
    if isinstance(value, (list, tuple)):
        return value
    if isinstance(value, Tensor) and is_lazy(value):
        return ()
    if isinstance(value, Tensor):
        return (value.dtype, value.device, value.shape, value.stride(), value.requires_grad, hooks_of(value))
    if isinstance(value, ELBO):
        return [part for name, part in vars(value).items() if name != "beta"]  # beta is an input of the recording
    if isinstance(value, functools.partial):
        return (value.func, value.args, value.keywords)
    if isinstance(value, SubsampleMessenger):  # a plate; Pyro's guides create theirs anew at each step
        return (value.name, value.size, value.subsample_size)
    if isinstance(value, types.MethodType):
        return (value.__func__, value.__self__)
    if isinstance(value, types.FunctionType):
        return (value.__code__, value.__defaults__, value.__kwdefaults__, vars(value), *(value.__closure__ or ()))
    if isinstance(value, types.CellType):
        try:
            return (value.cell_contents,)
        except ValueError:  # still empty
            return ()
    return None


@contextmanager
def running_modules() -> Iterator[list[nn.Module]]:
    """Collect the modules that run in this block; their buffers get their values back afterwards."""
    modules: list[nn.Module] = []
    with ExitStack() as stack:

        def collect(module: nn.Module, _: Any) -> None:
            if not any(module is known for known in modules):
                modules.append(module)
                stack.enter_context(buffers_unchanged([module]))

        stack.callback(nn.modules.module.register_module_forward_pre_hook(collect).remove)
        yield modules


@contextmanager
def buffers_unchanged(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Restore the modules' own buffers after the block, so that BatchNorm does not count a recording as a step."""
    with unchanged([buffer for module in modules for buffer in module.buffers(recurse=False)]):
        yield


@contextmanager
def unchanged(tensors: Sequence[Tensor]) -> Iterator[None]:
    """Restore the values of tensors after the block."""
    before = [tensor.detach().clone() for tensor in tensors]
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, value in zip(tensors, before):
                tensor.copy_(value)


@contextmanager
def state_unchanged(inputs: Sequence[Tensor], kind: str) -> Iterator[None]:
    """Restore random state and validation flag after the block, and for an evaluation Pyro's parameter store too."""
    store = pyro.get_param_store()
    devices = {x.device for x in (*inputs, *store._params.values()) if x.device.type == "cuda"}
    scope = store.scope(store.get_state()) if kind == "loss" else nullcontext()
    validates = validates_arguments()
    try:
        with torch.random.fork_rng(devices=list(devices)), poutine.block(), scope:
            yield
    finally:
        Distribution.set_default_validate_args(validates)  # Pyro sets it to a value of its own


def torch_settings() -> tuple[object, ...]:
    """Return the settings of torch that a recording depends on."""
    autocast = [(torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in ("cpu", "cuda")]
    return (torch.get_default_dtype(), *autocast)


def refuse_handlers(kind: str) -> None:
    """Refuse Pyro handlers around a step, except SVI's own, which only traces parameters.

    Raises:
        InputError: there is another handler; it would change what is drawn or how it is weighted.
    """
    for handler in _PYRO_STACK:
        if not (kind == "gradients" and isinstance(handler, TraceMessenger) and handler.param_only):
            name = type(handler).__name__
            raise InputError(f"a compiled ELBO runs under no Pyro handler, here {name}: wrap model and guide instead")
