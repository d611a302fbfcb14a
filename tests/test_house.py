"""Importing the package changes nothing.

import-linter, configured in pyproject.toml, holds the imports between rooms to one direction, and keeps Pyro out of the
modules that write the bounds by hand.
"""

from __future__ import annotations

import subprocess
import sys

IMPORT = """
import random, sys
import pvae
assert "torch" not in sys.modules and "matplotlib" not in sys.modules
import numpy, torch, pyro, warnings
def state():
    return (torch.get_rng_state().tolist(), random.getstate(), numpy.random.get_state()[1].tolist(),
            torch.get_default_dtype(), torch.distributions.Distribution._validate_args, torch.get_num_threads(),
            pyro.infer.util.is_validation_enabled(), list(pyro.get_param_store()),
            torch.are_deterministic_algorithms_enabled())
before = state()
assert pvae.VAE and pvae.load and pvae.Config and pvae.build_elbo and pvae.read
assert "matplotlib" not in sys.modules
for name in pvae.__all__:
    assert getattr(pvae, name) is not None
    assert name in dir(pvae)
assert state() == before
assert "matplotlib.pyplot" not in sys.modules
"""


def test_importing_changes_nothing():
    subprocess.run([sys.executable, "-W", "error::RuntimeWarning", "-c", IMPORT], check=True, timeout=60)
