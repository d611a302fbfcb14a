"""Register the parameters of a module with Pyro's parameter store."""

from __future__ import annotations

import pyro
from pyro.ops.provenance import detach_provenance
from pyro.params import param_with_module_name
from torch import nn

__all__ = ["register"]


def register(name: str, module: nn.Module) -> None:
    """Register the parameters of a module with Pyro under a name, so that `pyro.infer.SVI` trains them.

    It does the same as `pyro.module`, and also checks the names.

    Raises:
        RuntimeError: another module's parameters are in Pyro's store under this name. `pyro.module` would run this
            module while the optimiser steps the other one.
    """
    for key, parameter in module.named_parameters():
        full_name = param_with_module_name(name, key)
        if not parameter.requires_grad:
            continue
        stored = pyro.param(full_name, parameter)
        if stored is not parameter and detach_provenance(stored) is not parameter:  # `pyro.render_model` wraps it
            raise RuntimeError(
                "another VAE is in Pyro's parameter store, and this one would not be trained: train each "
                "inside `with pyro.get_param_store().scope():`, or call pyro.clear_param_store() first"
            )
