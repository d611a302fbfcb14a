"""The house: imports run downward only, and importing the package changes nothing."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import pvae
from pvae import elbos, mnist, options, perdatum

PACKAGE = Path(pvae.__file__).parent

# From the ground up; a module may import from floors below its own only.
FLOORS = [
    {"bfloat16", "checks", "continuous_bernoulli", "cudagraphs", "errors", "interruptions", "memory"}
    | {"torchprivate"},
    {"failures", "files", "fingerprint", "isolation", "options", "processes", "products", "sites"},
    {"records"},
    {"adam", "bernoulli", "config", "deadlines", "devices", "discretized", "folders", "latents", "networks"}
    | {"optimizers", "parallel", "plots", "provenance", "rng", "runfolders"},
    {"checkpoints", "commands", "data", "imagefiles", "hierarchy", "likelihoods", "packages", "schedules", "systems"},
    {"inductor", "mnist", "probe", "trainparser", "vae"},
    {"recording"},
    {"bounds", "building", "evaluation", "handwritten", "latentspace", "oracle", "sources"},
    {"anatomy", "metrics", "perdatum", "underway"},
    {"importance", "sharedelbo", "steps"},
    {"tapes"},
    {"compiled"},
    {"svi"},
    {"elbos"},
    {"comparison"},
    {"events", "runs"},
    {"figures", "progress", "rundata", "tables"},
    {"stepping"},
    {"heldout"},
    {"training"},
    {"sessions"},
    {"fitting"},
    {"subjects"},
    {"drawing", "reports", "seeds", "sheets"},
    {"reporttext"},
    {"compare", "draw", "evaluate", "train"},
]
FLOOR = {module: level for level, floor in enumerate(FLOORS) for module in floor}
MODULES = sorted(path.stem for path in PACKAGE.glob("*.py") if path.stem != "__init__")


def imported_modules(module):
    tree = ast.parse((PACKAGE / f"{module}.py").read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "pvae":
            yield from [node.module.split(".")[1]] if "." in node.module else [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            yield from [alias.name.split(".")[1] for alias in node.names if alias.name.startswith("pvae.")]


def test_every_module_has_a_floor():
    assert sorted(FLOOR) == MODULES


@pytest.mark.parametrize("module", MODULES)
def test_imports_run_downward(module):
    for other in imported_modules(module):
        assert FLOOR[other] < FLOOR[module], f"{module} imports {other}, which does not lie below it"


def test_the_witness_shares_nothing_with_pyros_inference():
    names = set()
    for module in ("handwritten", "bounds"):
        for node in ast.walk(ast.parse((PACKAGE / f"{module}.py").read_text())):
            if isinstance(node, ast.ImportFrom):
                names.add(node.module)
            elif isinstance(node, ast.Import):
                names.update(alias.name for alias in node.names)
    assert names == {"__future__", "math", "typing", "torch", "torch.distributions", "pvae.vae"}


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
    found = private_names_of_torch((PACKAGE / f"{module}.py").read_text())
    assert bool(found) == (module == "torchprivate"), found


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
    assert set(options.DATASETS) == known | set(mnist._TORCHVISION)
    for name in options.ELBOS:
        assert isinstance(elbos.build_elbo(name, 2), perdatum.PerDatumELBO)


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
        for path in PACKAGE.glob("*.py")
        for line in path.read_text().splitlines()
        if "json.dump" in line and "sha256(" not in line
    ]
    assert writers == ["records"]


def test_importing_changes_nothing():
    subprocess.run([sys.executable, "-W", "error::RuntimeWarning", "-c", IMPORT], check=True, timeout=60)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="nothing"):
        pvae.nothing  # noqa: B018
