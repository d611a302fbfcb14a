"""The house: importing the package changes nothing, and the witness shares nothing with what it checks.

import-linter, configured in pyproject.toml, holds the imports between rooms to one direction.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import pvae
from pvae.config import options
from pvae.data import sources
from pvae.elbos import base, registry

PACKAGE = Path(pvae.__file__).parent

MODULES = sorted(str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py"))


def test_the_witness_shares_nothing_with_pyros_inference():
    names = set()
    for module in ("elbo", "bounds"):
        for node in ast.walk(ast.parse((PACKAGE / "reference" / f"{module}.py").read_text())):
            if isinstance(node, ast.ImportFrom):
                names.add(node.module)
            elif isinstance(node, ast.Import):
                names.update(alias.name for alias in node.names)
    below_both = {"pvae.core.terms", "pvae.distributions.hierarchy", "pvae.distributions.power_spherical", "pvae.vae"}
    assert names == {"__future__", "math", "typing", "torch", "torch.distributions"} | below_both


def is_private(name):
    return name.startswith("_") and not name.startswith("__")


_ADAM = torch.optim.Adam([torch.zeros(1)])
OF_TORCH = {name for one in (torch.zeros(1), torch.UntypedStorage(), nn.Module(), _ADAM) for name in dir(one)}


def root_of(node):
    while isinstance(node, (ast.Attribute, ast.Call, ast.Subscript)):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node.id if isinstance(node, ast.Name) else None


def private_names_of_torch(source):
    """Names under an underscore that are imported from torch, or reached from it or in its objects; experimental's."""
    tree, found = ast.parse(source), set()
    own = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    own |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)}
    torchs = {"torch"}  # what stands for it, or for a part of it
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            module = [node.module] if isinstance(node, ast.ImportFrom) else []
            for alias in node.names:
                parts = ".".join([*module, alias.name]).split(".")
                if parts[0] == "torch":
                    torchs.add(alias.asname or alias.name)
                    found |= {part for part in parts if is_private(part) or part == "experimental"}
        elif isinstance(node, ast.Assign) and root_of(node.value) in torchs:
            torchs |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and (is_private(node.attr) or node.attr == "experimental"):
            found |= {node.attr} if node.attr in OF_TORCH - own or root_of(node) in torchs else set()
        elif isinstance(node, ast.Constant) and node.value in OF_TORCH and is_private(node.value):
            found.add(node.value)  # for getattr
    return found


@pytest.mark.parametrize("module", MODULES)
def test_private_names_of_torch_stand_in_one_module(module):
    found = private_names_of_torch((PACKAGE / module).read_text())
    assert bool(found) == (module == "core/torch_private.py"), found


@pytest.mark.parametrize(
    "source",
    [
        "import torch._dynamo",
        "from torch.utils._python_dispatch import TorchDispatchMode",
        "from torch.fx.experimental.proxy_tensor import make_fx",
        "import torch; torch._C._is_tracing()",
        "import torch; torch.fx.experimental.proxy_tensor",
        "import torch; ATEN = torch.ops.aten; ATEN._to_copy.default",
        "from torch.autograd import forward_ad; forward_ad._current_level",
        "tensor.untyped_storage()._cdata",
        "getattr(tensor, '_backward_hooks')",
        "optimizer._optimizer_step_pre_hooks",
    ],
)
def test_a_private_name_of_torch_is_found(source):
    assert private_names_of_torch(source)


def test_names_of_the_configuration_are_those_that_exist():
    known = {"auto", "mnist-5k", "binarized-mnist", "linear-gaussian", "celeba", "folder:PATH"}
    assert set(options.DATASETS) == known | set(sources.CLASSES) | set(sources.SETS) | {"omniglot"}
    for name in options.ELBOS:
        assert isinstance(registry.build_elbo(name, 2), base.PerDatumELBO)


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
assert pvae.VAE and pvae.load and pvae.Config and pvae.build_elbo and pvae.load_dataset
assert "matplotlib" not in sys.modules
for name in pvae.__all__:
    assert getattr(pvae, name) is not None
    assert name in dir(pvae)
assert state() == before
assert "matplotlib.pyplot" not in sys.modules
"""


def test_one_function_writes_json():
    """`records.to_json`, which knows no NaN; a checksum over JSON writes nothing."""
    writers = [
        path.stem
        for path in PACKAGE.rglob("*.py")
        for line in path.read_text().splitlines()
        if "json.dump" in line and "sha256(" not in line
    ]
    assert writers == ["records"]


def test_importing_changes_nothing():
    subprocess.run([sys.executable, "-W", "error::RuntimeWarning", "-c", IMPORT], check=True, timeout=60)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="nothing"):
        pvae.nothing  # noqa: B018
