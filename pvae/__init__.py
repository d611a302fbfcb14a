"""Variational autoencoders, distributions first.

The few names that a user needs; everything else is imported from its module. They are loaded when first
used, so that `import pvae` costs nothing and changes nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pvae.building import build_vae
    from pvae.config import Config
    from pvae.data import Dataset
    from pvae.elbos import build_elbo
    from pvae.errors import InputError, TrainingError
    from pvae.fitting import fit, resume
    from pvae.runs import Run, load
    from pvae.sources import load_dataset
    from pvae.systems import SYSTEMS, get_system
    from pvae.vae import VAE

__all__ = [
    "SYSTEMS",
    "VAE",
    "Config",
    "Dataset",
    "InputError",
    "Run",
    "TrainingError",
    "build_elbo",
    "build_vae",
    "fit",
    "get_system",
    "load",
    "load_dataset",
    "resume",
]

__version__ = "0.1.0"

_HOMES = {
    "Config": "config",
    "Dataset": "data",
    "InputError": "errors",
    "Run": "runs",
    "SYSTEMS": "systems",
    "TrainingError": "errors",
    "VAE": "vae",
    "build_elbo": "elbos",
    "build_vae": "building",
    "fit": "fitting",
    "get_system": "systems",
    "load": "runs",
    "load_dataset": "sources",
    "resume": "fitting",
}


def __getattr__(name: str) -> Any:
    """Import a public name from its module at its first use."""
    if name not in _HOMES:
        raise AttributeError(f"module 'pvae' has no attribute {name!r}")
    return getattr(importlib.import_module(f"pvae.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    """List the public names."""
    return sorted({*globals(), *_HOMES})
