"""Checks of the values of a tensor: run at once, or collected by a recording, which runs them at each replay."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import pyro
from pyro.ops.provenance import detach_provenance
from pyro.params import param_with_module_name
from pyro.poutine.runtime import _PYRO_STACK
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor


class Check(NamedTuple):
    """A condition on a tensor, and the error to raise where it is false."""

    holds: Callable[[Tensor], Tensor]
    x: Tensor
    error: Callable[[], Exception]


_collected: ContextVar[list[Check] | None] = ContextVar("_collected", default=None)


def require(holds: Callable[[Tensor], Tensor], x: Tensor, error: Callable[[], Exception]) -> None:
    """Raise `error()` unless `holds(x)`; inside `deferred`, only collect the check; in `vmap` and `grad`, skip it.

    Args:
        holds: returns a boolean scalar.
        x: the tensor to check.
        error: creates the exception; it must hold no tensor, since a recording keeps it.
    """
    checks = _collected.get()
    if checks is not None:
        checks.append(Check(holds, x, error))
    elif not is_functorch_wrapped_tensor(x) and not bool(holds(x)):  # of a vmap there is no one value
        raise error()


@contextlib.contextmanager
def deferred() -> Iterator[list[Check]]:
    """Collect the checks of this block in a list, instead of running them."""
    checks: list[Check] = []
    token = _collected.set(checks)
    try:
        yield checks
    finally:
        _collected.reset(token)


_Results = dict[tuple[int, int], tuple[nn.Module, Tensor, Tensor]]
_results: ContextVar[_Results | None] = ContextVar("results", default=None)


@contextmanager
def shared_calls() -> Iterator[None]:
    """Let `call_once` keep what it computes until the block ends; parameters must not change before."""
    token = _results.set({})
    try:
        yield
    finally:
        _results.reset(token)


def call_once(module: nn.Module, x: Tensor) -> Tensor:
    """Return module(x); inside `shared_calls`, the same tensor for each call with the very same `x`.

    If `x` is another view of the same values, with gradients of its own, the module runs again, but running averages of
    BatchNorm are updated by the first call only.
    """
    results = _results.get()
    if results is None:
        return module(x)
    key = (id(module), id(x))
    if key not in results:
        ran = any(traced is module and x.is_set_to(other) for traced, other, _ in results.values())
        norms: list[Any] = [child for child in module.modules() if ran and getattr(child, "track_running_stats", False)]
        for norm in norms:
            norm.track_running_stats = False
        results[key] = (module, x, module(x))  # kept with both, so that no other object gets their ids
        for norm in norms:
            norm.track_running_stats = True
    return results[key][2]


def register(name: str, module: nn.Module) -> None:
    """Register the parameters of a module with Pyro under a name, so that `pyro.infer.SVI` trains them.

    It does the same as `pyro.module`, and also checks the names. Where another module has them, this one runs with
    its own parameters.

    Raises:
        RuntimeError: another module's parameters are in Pyro's store under this name, and SVI collects those that it
            trains: `pyro.module` would run this module while the optimiser steps the other one. Or a handler gives
            the parameters other values.
    """
    for key, parameter in module.named_parameters():
        full_name = param_with_module_name(name, key)
        if not parameter.requires_grad:
            continue
        stored = pyro.param(full_name, parameter)
        if stored is parameter or detach_provenance(stored) is parameter:  # `pyro.render_model` wraps it
            continue
        store = pyro.get_param_store()
        if full_name not in store or store[full_name] is parameter:
            raise RuntimeError(f"a handler such as poutine.lift replaces {full_name}, which the VAE would not use")
        if any(getattr(handler, "param_only", False) for handler in _PYRO_STACK):
            raise RuntimeError(
                "another VAE is in Pyro's parameter store, and this one would not be trained: train each "
                "inside `with pyro.get_param_store().scope():`, or call pyro.clear_param_store() first"
            )
