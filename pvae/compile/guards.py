"""What is around a step that is recorded: Pyro's handlers and its parameter store, and torch's random state."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import pyro
import torch
from pyro import poutine
from pyro.poutine.runtime import _PYRO_STACK
from pyro.poutine.trace_messenger import TraceMessenger
from torch import Tensor

from pvae.core.errors import InputError

__all__ = ["as_if_nothing", "refuse_handlers", "unmakes_parameters"]


def refuse_handlers(gives: str) -> None:
    """Refuse handlers around a step but for SVI's, which traces parameters: they change what is drawn or weighed.

    Raises:
        InputError: there is one.
    """
    for handler in _PYRO_STACK:
        if not (gives == "gradients" and isinstance(handler, TraceMessenger) and handler.param_only):
            name = type(handler).__name__
            raise InputError(f"a compiled ELBO runs under no Pyro handler, here {name}: wrap model and guide instead")


def unmakes_parameters(known: set[str], owned: set[int]) -> bool:
    """Take from the store what pyro.param made, which is neither known nor a module's, and say if there was any."""
    store = pyro.get_param_store()
    made = [name for name, tensor in store._params.items() if name not in known and id(tensor) not in owned]
    for name in made:
        del store[name]
    return bool(made)


@contextlib.contextmanager
def as_if_nothing(inputs: Sequence[Tensor], gives: str) -> Iterator[None]:
    """Leave the random state as it was, and Pyro's store too if nothing is trained: what is must be registered."""
    devices = {x.device for x in inputs if x.device.type == "cuda"}
    store = pyro.get_param_store()
    scope = contextlib.nullcontext() if gives != "loss" else store.scope(store.get_state())
    with torch.random.fork_rng(devices=list(devices)), poutine.block(), scope:
        yield
