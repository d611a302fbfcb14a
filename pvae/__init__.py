"""Variational autoencoders, distributions first.

The few names that a user needs; everything else is imported from its module. They are loaded when first
used, so that `import pvae` costs nothing and changes nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from pvae.core import __version__ as __version__

if TYPE_CHECKING:
    from .config.config import Config as Config
    from .config.presets import SYSTEMS as SYSTEMS
    from .config.presets import get_system as get_system
    from .core.errors import InputError as InputError
    from .core.errors import TrainingError as TrainingError
    from .data.choices import images_config as images_config
    from .data.choices import values_config as values_config
    from .data.dataset import Dataset as Dataset
    from .data.sources import load_dataset as load_dataset
    from .elbos.registry import build_elbo as build_elbo
    from .identification.identify import identify as identify
    from .models.build import build_vae as build_vae
    from .runs.run import Run as Run
    from .runs.run import load as load
    from .training.fit import fit as fit
    from .training.fit import resume as resume
    from .training.many import fit_many as fit_many
    from .vae import VAE as VAE

_HOMES = {
    "Config": "config.config",
    "Dataset": "data.dataset",
    "InputError": "core.errors",
    "Run": "runs.run",
    "SYSTEMS": "config.presets",
    "TrainingError": "core.errors",
    "VAE": "vae",
    "build_elbo": "elbos.registry",
    "build_vae": "models.build",
    "fit": "training.fit",
    "fit_many": "training.many",
    "get_system": "config.presets",
    "identify": "identification.identify",
    "images_config": "data.choices",
    "load": "runs.run",
    "load_dataset": "data.sources",
    "resume": "training.fit",
    "values_config": "data.choices",
}
__all__ = [*_HOMES]


def __getattr__(name: str) -> Any:
    """Import a public name from its module at its first use."""
    if name not in _HOMES:
        raise AttributeError(f"module 'pvae' has no attribute {name!r}")
    return getattr(importlib.import_module(f"pvae.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    """List the public names."""
    return sorted({*globals(), *_HOMES})
