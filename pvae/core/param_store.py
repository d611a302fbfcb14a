"""The parameters of a module, handed to Pyro's parameter store."""

from __future__ import annotations

import pyro
from pyro.params import param_with_module_name
from torch import nn

__all__ = ["register"]


def register(name: str, module: nn.Module) -> None:
    """Hand the parameters of a module to Pyro under a name, so that `pyro.infer.SVI` trains them.

    It does what `pyro.module` does, and refuses what `pyro.module` passes over in silence.

    Raises:
        RuntimeError: another module's parameters are in Pyro's store under this name. Pyro itself would run this
            module and let the optimiser step the other one.
    """
    for key, parameter in module.named_parameters():
        known_as = param_with_module_name(name, key)
        if parameter.requires_grad and pyro.param(known_as, parameter) is not parameter:
            raise RuntimeError(
                "another VAE is in Pyro's parameter store, and this one would not be trained: train each "
                "inside `with pyro.get_param_store().scope():`, or call pyro.clear_param_store() first"
            )
